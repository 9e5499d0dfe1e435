//! What surrounds the loss: deferred re-weighting, "just train twice", last-layer retraining, the choice of an epoch and
//! early stopping; what a training tells while it runs; the sheet of pictures.

#[path = "support/training.rs"]
mod training;

use std::fs;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use stages::method::{Counts, Extras, Method, Request};
use training::*;

fn params() -> Value {
    json!({
        "model": {"family": "resnet-cifar", "depth": 8}, "method": "erm", "epochs": 4, "batch": 16,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
        "schedule": {"name": "constant", "rate": 0.05}, "seed": 3, "checkpoint_every": 2, "metrics_every": 1
    })
}

fn json_file(path: std::path::PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The lines of `epochs.jsonl`.
fn epochs(bench: &Bench, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.path(name).join("out/epochs.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn weights(bench: &Bench, name: &str) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(bench.path(name).join("out/weights.safetensors"), &Device::Cpu).unwrap()
}

fn method(name: &str, counts: &Counts) -> Method {
    Method::new(Request { name, gamma: 0.0, temperatures: None, extras: &Extras::default() }, counts).unwrap()
}

// Logits (ln 3, 0), (0, ln 3), (0, 0), labels 0, 0, 1: CE = ln 4/3, ln 4, ln 2; two examples of class 0, one of 1.
// beta 1: weights in proportion to 1/2, 1, of mean 1: 3/4, 3/2. beta 1/2: effective numbers 3/2 and 1, weights in
// proportion to 2/3, 1, of mean 1: 6/7, 9/7.
#[test]
fn deferred_weights_by_hand() {
    let l3 = 3f64.ln();
    let z = Tensor::new(&[[l3, 0.0], [0.0, l3], [0.0, 0.0]], &Device::Cpu).unwrap();
    let counts = Counts { class: vec![2, 1], group: vec![1, 1, 1, 0] };
    let (a, b, c) = ((4.0f64 / 3.0).ln(), 4f64.ln(), 2f64.ln());
    for (beta, common, rare) in [(1.0, 0.75, 1.5), (0.5, 6.0 / 7.0, 9.0 / 7.0), (0.0, 1.0, 1.0)] {
        let mut late = method("erm", &counts).reweighted(beta, &counts).unwrap();
        let loss: f64 = late.loss(&z, &[0, 0, 1], &[0, 1, 2]).unwrap().to_scalar().unwrap();
        assert!((loss - (common * (a + b) + rare * c) / 3.0).abs() < 1e-12, "beta {beta}: {loss}");
    }
    let error = |name: &str, beta: f64, counts: &Counts| {
        method(name, counts).reweighted(beta, counts).unwrap_err().to_string()
    };
    let full = Counts { class: vec![2, 1], group: vec![2, 1] };
    assert_eq!(error("erm", 1.5, &full), "deferred.beta: 1.5: must be in [0, 1]");
    for name in ["iw", "iw-resampled", "group-dro", "focal"] {
        assert!(
            error(name, 1.0, &full).starts_with("deferred: this method's loss is no plain mean"),
            "{name}"
        );
    }
    let empty = Counts { class: vec![2, 0], group: vec![2, 0] };
    assert!(error("erm", 1.0, &empty).starts_with("class 1: has no training example"));
}

#[test]
fn deferred_weights_begin_where_they_should_and_survive_kills() {
    let bench = Bench::new(40, 8);
    let ldam = with(params(), json!({"method": "ldam", "extras": {"scale": 1.0}}));
    let deferred = with(ldam.clone(), json!({"deferred": {"epochs": 2, "beta": 1.0}}));
    succeeded(&bench.train("plain", &ldam, 1));
    same_bits("deferred", &bench, &deferred);
    let (plain, deferred) = (epochs(&bench, "plain"), epochs(&bench, "whole"));
    assert_eq!(plain[..2], deferred[..2]);
    assert_ne!(plain[2]["loss"], deferred[2]["loss"]);
    let late = with(ldam, json!({"deferred": {"epochs": 4}}));
    let out = bench.train("late", &late, 1);
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("train: params.deferred.epochs: 4 of 4: leaves no epoch"), "{text}");
}

/// A head on the features of another training: the body keeps its bits, the head learns, kills do not show.
#[test]
fn the_last_layer_alone_is_retrained() {
    for (bench, model) in [
        (Bench::new(40, 8), params()["model"].clone()),
        (
            Bench::texts(40, 8),
            json!({"family": "bert", "sizes": {"vocabulary": 30, "hidden": 16, "layers": 1, "heads": 2,
                                                "intermediate": 24, "positions": 16}}),
        ),
    ] {
        let first = with(params(), json!({"model": model}));
        succeeded(&bench.train("first", &first, 2));
        let last = with(first, json!({"part": "last-layer", "optimizer": {"name": "sgd"}, "seed": 4}));
        let from = || json!({"pretrained": "../first/out"});
        let run = |name: &str, threads: usize| {
            let folder = bench.job_with(name, &last, threads, from());
            succeeded(&start(&folder).wait_with_output().unwrap());
            output(&folder)
        };
        let whole = run("last", 1);
        assert!(run("two", 2) == whole, "two threads give other bits");
        let killed = bench.job_with("killed", &last, 2, from());
        assert!(train_under_kills(&killed, 4) >= 2);
        assert!(output(&killed) == whole, "a resumed training gives other bits");
        let (before, after) = (weights(&bench, "first"), weights(&bench, "last"));
        let bits =
            |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>();
        for (name, tensor) in &before {
            let same = bits(tensor).unwrap() == bits(&after[name]).unwrap();
            let is_head = name.starts_with("linear.") || name.starts_with("classifier.");
            assert_eq!(same, !is_head, "{name}");
        }
        let lines = epochs(&bench, "last");
        assert!(lines[3]["loss"].as_f64().unwrap() < lines[0]["loss"].as_f64().unwrap());
        let out = bench.train("alone", &last, 1);
        assert_eq!(out.status.code(), Some(2));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            text.contains("train: params.part: last-layer: there is nothing below it to keep\nhint: give"),
            "{text}"
        );
    }
}

/// Just train twice: what the first training gets wrong stands `times` times in the rows of the second.
#[test]
fn errors_are_repeated_for_a_second_training() {
    let bench = Bench::new(40, 8);
    succeeded(&bench.train("first", &with(params(), json!({"epochs": 1})), 2));
    let upweight = |name: &str, params: Value| {
        let folder = bench.job_with(name, &params, 1, json!({"weights": "../first/out"}));
        start_kind("upweight", &folder).wait_with_output().unwrap()
    };
    succeeded(&upweight("errors", json!({"times": 5})));
    let told = json_file(bench.path("errors/out/errors.json"));
    let train = json_file(bench.path("first/out/train.json"));
    let wrong = told["wrong"].as_u64().unwrap();
    assert_eq!(wrong as f64, (train["train"]["error_raw"].as_f64().unwrap() * 96.0).round());
    assert!(wrong > 0 && wrong < 96, "{told}");
    let by_group: Vec<u64> = serde_json::from_value(told["wrong_groups"].clone()).unwrap();
    let hits = train["train"]["per_group"].as_array().unwrap();
    for (g, hit) in hits.iter().enumerate() {
        assert_eq!(by_group[g], hit["n"].as_u64().unwrap() - hit["correct"].as_u64().unwrap(), "group {g}");
    }
    let second = bench.job_with("second", &params(), 1, json!({"indices": "../errors/out"}));
    succeeded(&start(&second).wait_with_output().unwrap());
    let second = json_file(bench.path("second/out/train.json"));
    assert_eq!(second["n_train"], 96 + 4 * wrong);
    let out = upweight("none", json!({"times": 0}));
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "upweight: params.times: 0: must be at least 1\n");
}

/// The epoch that is kept is the first best one by the named figure, and early stopping ends `patience` epochs behind it.
#[test]
fn the_best_epoch_and_patience() {
    let bench = Bench::new(40, 8);
    for (select, figure) in
        [("best-validation-worst", "worst_group_accuracy"), ("best-validation-average", "average_accuracy")]
    {
        let chosen = with(params(), json!({"select": select, "epochs": 12, "patience": 2}));
        succeeded(&bench.train(select, &chosen, 2));
        let lines = epochs(&bench, select);
        let values: Vec<f64> =
            lines.iter().map(|line| line["validation"][figure].as_f64().unwrap()).collect();
        let best = values.iter().copied().fold(f64::MIN, f64::max);
        let first = values.iter().position(|&v| v == best).unwrap();
        let train = json_file(bench.path(select).join("out/train.json"));
        assert_eq!(train["training"]["selected_epoch"], first + 1, "{values:?}");
        assert_eq!(train["training"]["epochs"], lines.len());
        assert!(lines.len() == 12 || lines.len() == first + 3, "{values:?}");
        assert_eq!(train["validation"], lines[first]["validation"], "the weights are those of that epoch");
    }
    // One measurement is not better than itself: of a network that does not move, the first epoch is kept.
    let still = with(
        params(),
        json!({"select": "best-validation-average", "patience": 1, "epochs": 9, "model": {"family": "linear"},
               "schedule": {"name": "constant", "rate": 0}}),
    );
    succeeded(&bench.train("still", &still, 1));
    let train = json_file(bench.path("still/out/train.json"));
    assert_eq!((&train["training"]["epochs"], &train["training"]["selected_epoch"]), (&json!(2), &json!(1)));
    let last = with(params(), json!({"patience": 1}));
    let text = String::from_utf8_lossy(&bench.train("last", &last, 1).stderr).into_owned();
    assert!(text.contains("params.patience: select is `last`: nothing says which epoch is better"), "{text}");
}

/// A line of progress has epoch, loss, worst group, images a second, the wait for data and the time left; a line of
/// `epochs.jsonl` what the training is judged by.
#[test]
fn what_a_training_tells() {
    let bench = Bench::new(40, 8);
    let out = bench.train("a", &with(params(), json!({"method": "it-features", "gamma": 0.5})), 1);
    succeeded(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let note = last["progress"]["note"].as_str().unwrap();
    let words: Vec<&str> = note.split(' ').collect();
    let number =
        |i: usize| words[i].trim_end_matches('%').parse::<f64>().unwrap_or_else(|_| panic!("{note}"));
    assert_eq!((words[0], words[1], words[2], words[4]), ("epoch", "4/4", "loss", "worst"), "{note}");
    assert!(number(3) > 0.0 && (0.0..=1.0).contains(&number(5)) && number(6) > 0.0, "{note}");
    assert_eq!((words[7], words[8], words[9]), ("images/s", "data", "wait"), "{note}");
    assert!((0.0..=100.0).contains(&number(10)) && number(11) == 0.0, "{note}");
    assert_eq!(words[12..], ["s", "left"], "{note}");
    for line in epochs(&bench, "a") {
        for part in ["running", "train", "validation"] {
            for field in [
                "average_accuracy",
                "adjusted_average_accuracy",
                "worst_group_accuracy",
                "error_raw",
                "error_tempered",
                "loss_raw",
                "loss_tempered",
                "margin_ratio",
            ] {
                assert!(line[part][field].is_number(), "{part}.{field}: {line}");
            }
            assert_eq!(line[part]["per_group"].as_array().unwrap().len(), 8);
        }
    }
}

/// The first examples of each group, row by row; texts and sets of which no picture may be shown are refused.
#[test]
fn sheets() {
    let bench = Bench::new(3, 1);
    let sheet = |columns: usize| {
        let folder = bench.job_with("sheet", &json!({"columns": columns}), 1, json!({}));
        start_kind("sheet", &folder).wait_with_output().unwrap()
    };
    let describe = |dataset: &str, variant: &str| {
        let path = bench.path("data/meta.json");
        let mut meta = json_file(path.clone());
        (meta["dataset"], meta["variant"]) = (json!(dataset), json!(variant));
        fs::write(path, meta.to_string()).unwrap();
    };
    for restricted in ["celeba", "waterbirds", "bars"] {
        describe(restricted, "hub");
        let out = sheet(2);
        assert_eq!(out.status.code(), Some(2));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let expected = format!("sheet: inputs.data: {restricted}: no picture of it may be shown\nhint: ");
        assert!(text.starts_with(&expected), "{text}");
        assert!(!bench.path("sheet/out/sheet.png").exists());
    }
    for (dataset, variant) in [("celeba", "generated"), ("fashion-mnist", "hub")] {
        describe(dataset, variant);
        succeeded(&sheet(2));
    }
    let told = json_file(bench.path("sheet/out/sheet.json"));
    // Classes 0 and 1 have three training rows, 2 and 3 one, then come ten validation rows of each; even rows have
    // attribute 0.
    assert_eq!(told["groups"][0]["rows"], json!([0, 2]));
    assert_eq!(told["groups"][1], json!({"group": 1, "name": "c0, odd", "rows": [1, 9]}));
    let page = image::open(bench.path("sheet/out/sheet.png")).unwrap().to_rgb8();
    let side = SIDE as u32;
    assert_eq!(page.dimensions(), (2 + 2 * (side + 2), 2 + 8 * (side + 2)));
    let data = fs::read(bench.path("data/examples.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&data).unwrap();
    let pixels = file.tensor("image").unwrap().data().to_vec();
    // Example 9, its third line and fourth column: in the second row of pictures, the second of it.
    let value = pixels[9 * SIDE * SIDE + 2 * SIDE + 3];
    assert_eq!(page.get_pixel(2 + (side + 2) + 3, 2 + (side + 2) + 2).0, [value; 3]);
    assert_eq!(page.get_pixel(0, 0).0, [255; 3]);
    let texts = Bench::texts(3, 1);
    let folder = texts.job_with("sheet", &json!({}), 1, json!({}));
    let out = start_kind("sheet", &folder).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.starts_with("sheet: inputs.data: bars is a set of texts"), "{text}");
}
