//! The training stage as the engine runs it: the real binary, a job.json, synthetic arrays. Same bits when it is killed,
//! stopped, resumed or given another number of threads; plain errors for what cannot be.

#[path = "support/training.rs"]
mod training;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Command;

use serde_json::{Value, json};
use training::*;

fn params() -> Value {
    json!({
        "model": {"family": "resnet-cifar", "depth": 8}, "method": "it-classifier", "gamma": 0.5,
        "warmup": {"gamma": 0.2, "epochs": 2}, "epochs": 6, "batch": 16,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
        "schedule": {"name": "step", "rate": 0.05, "milestones": [4], "rates": [0.005]},
        "augment": "crop-flip", "seed": 3, "checkpoint_every": 2, "metrics_every": 2
    })
}

fn same_bits_of(name: &str, changes: Value) {
    same_bits(name, &Bench::new(40, 8), &with(params(), changes));
}

#[test]
fn same_bits_it_with_warmup() {
    same_bits_of("it-classifier", json!({}));
}

#[test]
fn same_bits_group_dro_with_the_best_epoch() {
    same_bits_of(
        "group-dro",
        json!({"method": "group-dro", "gamma": 0, "select": "best-validation-worst", "metrics_every": 1}),
    );
}

#[test]
fn same_bits_resampled_adamw_in_parts() {
    same_bits_of(
        "iw-resampled",
        json!({
            "method": "iw-resampled", "gamma": 0, "optimizer": {"name": "adamw"}, "clip": 1.0, "micro_batch": 7,
            "schedule": {"name": "linear", "rate": 0.01, "warmup_steps": 3}
        }),
    );
}

#[test]
fn stops_while_it_measures_and_goes_on() {
    let bench = Bench::new(1500, 300);
    // One step, after which nothing but the measurement looks whether it is to stop.
    let changes = json!({"checkpoint_every": 0, "epochs": 1, "warmup": null, "batch": 3600, "select": "best-validation-worst", "metrics_every": 1});
    let params = with(params(), changes);
    succeeded(&bench.train("whole", &params, 2));
    let folder = bench.job("stopped", &params, 2);
    let mut child = start(&folder);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(75), "after {line}");
    succeeded(&start(&folder).wait_with_output().unwrap());
    assert!(output(&folder) == output(&bench.path("whole")));
}

#[test]
fn stops_on_request_and_goes_on() {
    let bench = Bench::new(40, 8);
    // Long and quick: a linear model.
    let changes = json!({"checkpoint_every": 0, "epochs": 1500, "model": {"family": "linear"}});
    let params = with(params(), changes);
    succeeded(&bench.train("whole", &params, 2));
    let folder = bench.job("stopped", &params, 2);
    let mut stops = 0;
    loop {
        let mut child = start(&folder);
        // The first line of progress: the training has begun.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if stops < 3 {
            let kill = format!("kill -TERM {}", child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => break,
            Some(75) => stops += 1,
            code => panic!("{code:?} {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    assert_eq!(stops, 3);
    assert!(output(&folder) == output(&bench.path("whole")));
}

#[test]
fn a_spoilt_checkpoint_is_ignored_and_another_trainings_is_an_error() {
    let bench = Bench::new(20, 4);
    let params = with(params(), json!({"epochs": 3}));
    succeeded(&bench.train("a", &params, 1));
    let path = bench.path("a").join("scratch/checkpoint.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let b = bench.job("b", &params, 1);
    fs::write(b.join("scratch/checkpoint.safetensors"), &bytes).unwrap();
    let again = start(&b).wait_with_output().unwrap();
    succeeded(&again);
    assert!(String::from_utf8_lossy(&again.stderr).contains("ignored, starting anew"));
    assert!(output(&b) == output(&bench.path("a")));
    let c = bench.job("c", &with(params, json!({"seed": 4})), 1);
    fs::copy(&path, c.join("scratch/checkpoint.safetensors")).unwrap();
    let other = start(&c).wait_with_output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(text.contains("a checkpoint of another training\nhint: remove it"), "{text}");
}

#[test]
fn what_is_written() {
    let bench = Bench::new(40, 8);
    let out = bench.train("a", &params(), 2);
    succeeded(&out);
    let files = output(&bench.path("a"));
    let lines: Vec<Value> =
        String::from_utf8_lossy(&files[0].1).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    let of = |field: &str| -> Vec<f64> { lines.iter().map(|l| l[field].as_f64().unwrap()).collect() };
    assert_eq!(of("gamma"), [0.2, 0.2, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(of("rate"), [0.05, 0.05, 0.05, 0.05, 0.005, 0.005]);
    assert_eq!(of("step"), [6.0, 12.0, 18.0, 24.0, 30.0, 36.0]);
    let measured: Vec<bool> = lines.iter().map(|l| l["validation"].is_object()).collect();
    assert_eq!(measured, [false, true, false, true, false, true]);
    let train: Value = serde_json::from_slice(&files[1].1).unwrap();
    assert_eq!(train["n_train"], 96);
    assert_eq!(train["counts"]["class"], json!([40, 40, 8, 8]));
    assert_eq!(train["temperatures"], json!([1.0, 1.0, 5f64.sqrt(), 5f64.sqrt()]));
    assert_eq!(train["params"]["select"], "last");
    assert_eq!((&train["training"]["steps"], &train["training"]["epochs"]), (&json!(36), &json!(6)));
    assert_eq!(train["train"], lines[5]["train"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let progress: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(progress["progress"]["done"], 36);
    assert!(progress["progress"]["note"].as_str().unwrap().starts_with("epoch 6/6 loss "));
    for (name, bytes) in &files[..2] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("second") && !text.contains("/tmp"), "{name}");
    }
}

#[test]
fn plain_errors() {
    let bench = Bench::new(10, 2);
    let mut n = 0;
    let mut fails = |changes: Value, code: i32, expected: &str| {
        n += 1;
        let out = bench.train(&format!("e{n}"), &with(params(), changes), 1);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{text}");
        assert!(text.contains(expected), "{text}\nshould contain\n{expected}");
        assert!(!bench.path(&format!("e{n}/out/weights.safetensors")).exists());
    };
    fails(
        json!({"method": "it-clasifier"}),
        2,
        "train: params.method: `it-clasifier` is unknown; did you mean `it-classifier`?",
    );
    fails(json!({"epoch": 3}), 2, "params: unknown field `epoch`");
    fails(
        json!({"gamma": 0, "temperatures": [1, 1, 0, 1]}),
        2,
        "params.temperatures[2]: 0: a temperature divides logits and must be finite and above 0",
    );
    fails(json!({"dtype": "bf16"}), 2, "params.dtype: bf16: there is no bf16 arithmetic on the cpu");
    if !cfg!(feature = "cuda") {
        fails(
            json!({"device": "cuda"}),
            2,
            "params.device: cuda: this program was built without CUDA\nhint: ",
        );
    }
    fails(
        json!({"schedule": {"name": "constant", "rate": 1e30}}),
        1,
        "the loss is NaN\nhint: lower schedule.rate (1000000000000000000000000000000 here)",
    );
    // The hint names the cure; the step is the first.
    fails(
        json!({"method": "it-features", "temperatures": [1, 1, -2, 1], "gamma": 0}),
        2,
        "temperatures[2]: -2:",
    );
    fails(
        json!({"batch": 1000}),
        2,
        "train: params.batch: 1000: larger than the 24 training rows\nhint: set it to 24 at most",
    );
    fails(
        json!({"model": {"family": "bert"}}),
        2,
        "train: params.model.family: reads texts, but the examples of bars are images",
    );
    // Logits of 1e38 and more.
    fails(
        json!({"method": "it-classifier", "gamma": 0, "warmup": null, "temperatures": [1e-38, 1e-38, 1e-38, 1e-38]}),
        1,
        "train: step 1 (epoch 1): the loss is",
    );
    fails(json!({"batch": 0}), 2, "params.batch: 0: must be at least 1");
    fails(json!({"warmup": {"gamma": 0.2, "epochs": 6}}), 2, "params.warmup.epochs: 6 of 6: leaves no epoch");
    fails(json!({"select": "best-validation-worst", "metrics_every": 0}), 2, "params.metrics_every: 0:");
    fails(json!({"model": {"family": "resnet-cifar", "depth": 9}}), 2, "train: params.model: depth: 9");
    let empty = Bench::new(10, 0);
    let out = empty.train("e", &params(), 1);
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let expected =
        "train: inputs.indices: class 2 (c2) has no training example\nhint: take more rows per class";
    assert!(text.contains(expected), "{text}");
    // The one example of class 2 is even, that of class 3 odd: groups 5 and 6 have none.
    let thin = Bench::new(10, 1);
    for method in ["iw", "iw-resampled", "group-dro", "it-group"] {
        let out =
            thin.train(method, &with(params(), json!({"method": method, "gamma": 0, "warmup": null})), 1);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{text}");
        let expected = match method {
            "it-group" => "train: params.temperatures: groups [5, 6] have no training example",
            _ => "train: inputs.indices: group 5: has no training example",
        };
        assert!(text.contains(expected) && text.contains("\nhint: "), "{text}");
    }
}
