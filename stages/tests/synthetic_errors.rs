//! Wrong parameters of the theory's stages end with an error that names them, never with a silent number.

use std::fs;

use serde_json::{Value, json};
use stages::job::{Job, exit_code};
use stages::synthetic::linalg::Matrix;
use stages::synthetic::logistic::{Loss, Stop};
use stages::synthetic::{
    bound, boundary, direction, errata, figure4, figure6, nonneg, peeled, separators, shift,
};

type Stage = fn(Job) -> anyhow::Result<()>;

/// The stage's error, and its exit code.
fn fails(stage: Stage, params: Value) -> (String, u8) {
    let folder = tempfile::tempdir().unwrap();
    let job = json!({"version": 1, "params": params, "inputs": {}, "out": "out", "scratch": "scratch",
        "rehearse": false, "threads": 1, "fixed": null});
    let path = folder.path().join("job.json");
    fs::write(&path, job.to_string()).unwrap();
    let error = stage(Job::open(&path).unwrap()).unwrap_err();
    (format!("{error:#}"), exit_code(&error))
}

fn with(mut base: Value, path: &str, value: Value) -> Value {
    *base.pointer_mut(path).unwrap() = value;
    base
}

fn figure4_params() -> Value {
    json!({"name": "f", "setting": {"dimension": 3, "majority": 0.9, "core_mean": 1, "core_variance": 100,
        "spurious_mean": 1, "spurious_variance": 1}, "n": 40, "m": 60, "test": 5, "validation": 2, "ridge": 1e-9,
        "temperatures": [1, 4], "normalisation": "feature", "solver": "newton", "seed": 0})
}

#[test]
fn random_features() {
    for (path, value, message) in [
        ("/setting/majority", json!(1.0), "params: majority: 1 does not lie between 0 and 1"),
        ("/setting/majority", json!(0.0), "params: majority: 0 does not lie between 0 and 1"),
        ("/setting/core_variance", json!(-1), "params: core_variance: -1 is not a positive number"),
        ("/setting/dimension", json!(0), "params: dimension: 0, at least 1 is expected"),
        ("/m", json!(0), "params: m: 0, at least 1 is expected"),
        ("/n", json!(4), "params: n: 4 examples at a majority of 0.9 leave a group empty"),
        ("/temperatures", json!([1, -2]), "params: temperatures: -2 is not a positive number"),
        ("/temperatures", json!([]), "params: temperatures: no value"),
        ("/ridge", json!(0), "params: ridge: 0 is not a positive number"),
    ] {
        assert_eq!(fails(figure4::run, with(figure4_params(), path, value)), (message.to_string(), 2));
    }
}

#[test]
fn best_temperature() {
    let mut params = figure4_params();
    let fields = params.as_object_mut().unwrap();
    fields.retain(|name, _| !["normalisation", "solver"].contains(&name.as_str()));
    fields.extend(json!({"panel": "scale", "values": [1.0], "near": 1}).as_object().unwrap().clone());
    let zero = fails(figure6::run, with(params.clone(), "/values", json!([0])));
    assert_eq!(zero, ("params: values: 0 is not a positive number".to_string(), 2));
    for name in ["m", "n", "test", "validation"] {
        let zero = fails(figure6::run, with(params.clone(), &format!("/{name}"), json!(0)));
        assert_eq!(zero, (format!("params: {name}: 0, at least 1 is expected"), 2));
    }
}

#[test]
fn theorems() {
    let params = json!({"fractions": [0.9], "lambdas": [1], "information": [1], "scales": [1], "draws": 10, "n": 8,
        "noise": 20, "seeds": [0], "model": {"p": 0.9, "core_mean": 1, "core_sd": 1, "spurious_mean": 2,
        "spurious_sd": 0.2, "price": 3}});
    for (path, value, message) in [
        ("/model/p", json!(1.5), "params: p: 1.5 does not lie between 0 and 1"),
        ("/model/spurious_sd", json!(-0.2), "params: spurious_sd: -0.2 is not a positive number"),
        ("/fractions", json!([1]), "params: fractions: 1 does not lie between 0 and 1"),
        ("/lambdas", json!([0]), "params: lambdas: 0 is not a positive number"),
    ] {
        assert_eq!(fails(separators::run, with(params.clone(), path, value)), (message.to_string(), 2));
    }
    let peeled = |classes: u32, ratio: f64| {
        fails(peeled::run, json!({"classes": classes, "ratios": [ratio], "decays": [], "seeds": [0]})).0
    };
    assert_eq!(peeled(5, 2.0), "params: classes: 5, an even number of at least 4 is expected");
    assert_eq!(peeled(10, 0.5), "params: ratios: 0.5, a number of at least 1 is expected");
    let (text, code) = fails(bound::run, json!({"ratios": [10], "shares": [1.5]}));
    assert_eq!((text.as_str(), code), ("params: shares: 1.5 does not lie between 0 and 1", 2));
    let params = json!({"majority": 6, "minority": 2, "dimension": 2, "mean": 2, "temperatures": [0], "steps": [1, 2],
        "rate": 1, "seeds": [0]});
    assert_eq!(fails(direction::run, params).0, "params: temperatures: 0 is not a positive number");
    let params = json!({"majority": 6, "ratios": [10], "dimension": 2, "mean": 2, "constant": 3, "ridge": 1e-9,
        "validation": 1, "temperatures": [1], "seeds": [0]});
    assert!(fails(shift::run, params).0.ends_with("ratios up to the majority, are expected"));
}

#[test]
fn boundaries_and_slips() {
    let params = json!({"majority": 8, "minority": 2, "mean": 2, "clearance": 0.5, "temperatures": [1, 2], "steps": 2,
        "early": [1], "rate": 1, "width": 3, "network_steps": 1, "seed": 0});
    for (path, value, message) in [
        ("/mean", json!(-2), "params: mean: -2 is not a positive number"),
        ("/temperatures", json!([-1]), "params: temperatures: -1 is not a positive number"),
        (
            "/minority",
            json!(0),
            "params: majority, minority, width, steps: at least 1, and clearance below mean, are expected",
        ),
    ] {
        assert_eq!(fails(boundary::run, with(params.clone(), path, value)), (message.to_string(), 2));
    }
    let params = json!({"classes": 10, "ratios": [10], "fractions": [0.9], "core_means": [1], "spurious_means": [1.5],
        "model": {"p": 0.9, "core_mean": 1, "core_sd": 1, "spurious_mean": 2, "spurious_sd": 0.2, "price": 3}});
    for (path, value, message) in [
        ("/classes", json!(5), "params: classes: 5, an even number of at least 4 is expected"),
        ("/fractions", json!([0]), "params: fractions: 0 does not lie between 0 and 1"),
        ("/core_means", json!([-1]), "params: core_means: -1 is not a positive number"),
        (
            "/spurious_means",
            json!([0.5]),
            "params: spurious means above core means are expected: remark 5 is about the easier feature",
        ),
        ("/model/core_sd", json!(-1), "params: core_sd: -1 is not a positive number"),
    ] {
        assert_eq!(fails(errata::run, with(params.clone(), path, value)), (message.to_string(), 2));
    }
}

#[test]
fn solvers_say_what_they_cannot_do() {
    // Two equal examples with opposite labels.
    let x = Matrix::from_fn(2, 3, |_, j| j as f64);
    let error = nonneg::separator(&x, &[1.0, -1.0], &[1.0, 1.0]).unwrap_err().to_string();
    assert!(error.starts_with("separator: "), "{error}");
    let error = nonneg::separator(&x, &[1.0, -1.0], &[0.0, -1.0]).unwrap_err().to_string();
    assert_eq!(error, "separator: the margins are not finite, or none is positive");
    let x = Matrix::from_fn(4, 2, |i, j| (i * 2 + j) as f64 - 3.0);
    let loss = Loss { scales: vec![1.0, -1.0, 1.0, 1.0], weights: vec![0.25; 4], ridge: 1e-9 };
    let stop = Stop { decrement: 1e-10, iterations: 1 };
    let error = loss.minimise(&x, None, None, stop).unwrap_err().to_string();
    assert_eq!(
        error,
        "logistic: no convergence: 1 Newton steps did not bring the decrement below 1e-10 of the objective"
    );
    let refused = |change: fn(&mut Loss)| {
        let mut wrong = loss.clone();
        change(&mut wrong);
        wrong.minimise(&x, None, None, Stop::default()).unwrap_err().to_string()
    };
    assert_eq!(refused(|l| l.ridge = -1.0), "logistic: ridge: -1 is not a positive number");
    assert_eq!(
        refused(|l| l.scales[0] = 0.0),
        "logistic: a label over its temperature is zero or not finite"
    );
    assert_eq!(refused(|l| l.weights[0] = -1.0), "logistic: a weight is negative or not finite");
    assert_eq!(refused(|l| l.weights.clear()), "logistic: 4 examples, 4 scales, 0 weights");
}
