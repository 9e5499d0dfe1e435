//! Rehearsed stages: from sources that brought nothing, through arrays and indices that are placeholders, to a training
//! of two full batches and what is measured of it; what a whole run would take is told; too little memory is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::tempdir;

/// A folder of rehearsed stages.
struct Chain(tempfile::TempDir);

impl Chain {
    fn new() -> Chain {
        let chain = Chain(tempdir().unwrap());
        for source in ["source", "weights"] {
            fs::create_dir_all(chain.out(source)).unwrap();
            fs::write(chain.out(source).join("rehearsal.json"), r#"{"files": ["x"]}"#).unwrap();
        }
        chain
    }

    fn out(&self, stage: &str) -> PathBuf {
        self.0.path().join(stage).join("out")
    }

    /// Writes the job of a stage; inputs are (name, stage).
    fn job(&self, stage: &str, params: Value, inputs: &[(&str, &str)]) -> PathBuf {
        let folder = self.0.path().join(stage);
        fs::create_dir_all(folder.join("scratch")).unwrap();
        let inputs: serde_json::Map<String, Value> =
            inputs.iter().map(|(name, from)| (name.to_string(), json!(self.out(from)))).collect();
        let job = json!({
            "version": 1, "params": params, "inputs": inputs, "out": "out", "scratch": "scratch", "rehearse": true,
            "threads": 2, "fixed": null,
        });
        fs::write(folder.join("job.json"), job.to_string()).unwrap();
        folder
    }

    fn run(&self, kind: &str, params: Value, inputs: &[(&str, &str)]) -> Output {
        let folder = self.job(kind, params, inputs);
        Command::new(env!("CARGO_BIN_EXE_stages"))
            .args([kind, "job.json"])
            .current_dir(folder)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn good(&self, kind: &str, params: Value, inputs: &[(&str, &str)]) -> Value {
        let output = self.run(kind, params, inputs);
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        let told = said.lines().rfind(|line| line.starts_with("{\"estimate\""));
        told.map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
    }

    fn read(&self, stage: &str, file: &str) -> Value {
        read(&self.out(stage).join(file))
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const READ: [(&str, &str); 3] = [("weights", "train"), ("data", "prepare"), ("indices", "subsample")];

fn training(model: Value, batch: u64) -> Value {
    json!({
        "model": model, "method": "it-features", "gamma": 0.5, "warmup": {"gamma": 0.2, "epochs": 100}, "epochs": 400,
        "batch": batch, "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
        "schedule": {"name": "step", "rate": 0.1, "milestones": [150, 250], "rates": [1e-3, 1e-5]}, "seed": 0,
    })
}

#[test]
fn label_shift_from_nothing() {
    let chain = Chain::new();
    let form = json!({"dataset": "fashion-mnist", "variant": "hub", "exact": true});
    chain.good("prepare", form, &[("files", "source")]);
    let step = |held: u64| json!({"scheme": "step", "ratio": 100, "majority": "first-half", "validation_per_class": held, "seed": 0});
    chain.good("subsample", step(100), &[("data", "prepare")]);
    // Of 6,000 images of a class 100 are held out: 5 x 5,900 and 5 x 59 are trained on.
    let sizes = json!({"train": 29795, "validation": 1000, "test": 10000});
    assert_eq!(chain.read("subsample", "rehearsal.json"), sizes);

    let model = json!({"family": "resnet-cifar", "depth": 8, "shortcut": "A", "head": "zero"});
    let data = [("data", "prepare"), ("indices", "subsample")];
    let told = chain.good("train", training(model.clone(), 128), &data);
    // 400 epochs of 233 steps: even at a millisecond a step it is above a minute.
    let seconds = told["estimate"]["seconds"].as_f64().unwrap();
    assert!(seconds > 93.2, "{told}");
    let weights = fs::metadata(chain.out("train").join("weights.safetensors")).unwrap().len();
    let bytes = told["estimate"]["bytes"].as_u64().unwrap();
    assert!(bytes <= weights && weights < bytes + 20_000, "{bytes} of {weights}");
    assert_eq!(chain.read("train", "train.json")["training"]["steps"], 2);
    assert!(chain.0.path().join("train/scratch/checkpoint.safetensors").is_file());

    let told = chain.good("evaluate", json!({}), &READ);
    assert_eq!(told["estimate"]["bytes"], 10000 * 10 * 4);
    assert_eq!(chain.read("evaluate", "metrics.json")["per_class"].as_array().unwrap().len(), 10);
    chain.good("geometry", json!({}), &READ);

    // What cannot be is found as in a whole run.
    let output = chain.run("subsample", step(6000), &[("data", "prepare")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("leaves no example of a minority class"));
    let output = chain.run("train", training(model, 30_000), &data);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("params.batch: 30000: larger than the 29795 training rows"), "{said}");
}

#[test]
fn groups_from_pretrained_weights_that_are_not_here() {
    let chain = Chain::new();
    let form = json!({"dataset": "multinli", "variant": "hub", "exact": true, "sequence": 32});
    chain.good("prepare", form, &[("files", "source"), ("tokenizer", "source")]);
    chain.good(
        "subsample",
        json!({"scheme": "published", "per_group": null, "seed": 0}),
        &[("data", "prepare")],
    );
    assert_eq!(
        chain.read("subsample", "rehearsal.json"),
        json!({"train": 206175, "validation": 82462, "test": 123712})
    );
    let sizes = json!({"hidden": 16, "layers": 2, "heads": 2, "intermediate": 32, "positions": 64});
    let params = json!({
        "model": {"family": "bert", "sizes": sizes}, "method": "group-dro", "extras": {"step": 0.01, "adjustment": 0.0},
        "epochs": 20, "batch": 32, "optimizer": {"name": "adamw", "weight_decay": 0.0},
        "schedule": {"name": "linear", "rate": 2e-5}, "clip": 1.0, "seed": 0, "metrics_every": 1,
        "select": "best-validation-worst",
    });
    let inputs = [("data", "prepare"), ("indices", "subsample"), ("pretrained", "weights")];
    let told = chain.good("train", params, &inputs);
    assert!(told["estimate"]["seconds"].as_f64().unwrap() > 100.0, "{told}");
    chain.good("evaluate", json!({}), &READ);
    assert_eq!(chain.read("evaluate", "metrics.json")["per_group"].as_array().unwrap().len(), 6);
}

#[test]
fn too_little_memory_is_found_in_two_steps() {
    let chain = Chain::new();
    chain.good(
        "prepare",
        json!({"dataset": "cifar10", "variant": "hub", "exact": true}),
        &[("files", "source")],
    );
    let step = json!({"scheme": "step", "ratio": 10, "majority": "first-half", "validation_per_class": 100, "seed": 0});
    chain.good("subsample", step, &[("data", "prepare")]);
    let model = json!({"family": "resnet-cifar", "depth": 8, "shortcut": "A", "head": "zero"});
    let limited = |batch: u64| {
        let data = [("data", "prepare"), ("indices", "subsample")];
        let folder = chain.job("train", training(model.clone(), batch), &data);
        let _ = fs::remove_file(folder.join("scratch/checkpoint.safetensors"));
        let script = format!("ulimit -v 1500000; exec {} train job.json", env!("CARGO_BIN_EXE_stages"));
        Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap()
    };
    let output = limited(16);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = limited(8192);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("memory"), "{said}");
}

#[test]
fn a_source_is_asked_for_and_only_what_is_small_is_brought() {
    let folder = tempdir().unwrap();
    let here = |path: &str| folder.path().join(path);
    let fetch = |variant: &str, size: u64, offline: bool| -> (Option<i32>, String) {
        let _ = fs::remove_dir_all(here("out"));
        fs::create_dir_all(here("out")).unwrap();
        let params = json!({
            "repo": "a/b", "repo_type": "dataset", "variant": variant, "path": "data", "revision": "0".repeat(40),
        });
        let fixed = json!({"files": {"x.csv": {"size": size}}, "root": folder.path(), "mirror": null, "offline": offline});
        let job = json!({
            "version": 1, "params": params, "inputs": {}, "out": "out", "scratch": "scratch", "rehearse": true,
            "threads": 1, "fixed": fixed,
        });
        fs::write(here("job.json"), job.to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_stages"))
            .args(["fetch", "job.json"])
            .current_dir(folder.path())
            // Nobody listens there.
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = fetch("bundled", 3, true);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("x.csv: not in the repository"), "{said}");

    fs::create_dir_all(here("data/datasets/a/b")).unwrap();
    let file = here("data/datasets/a/b/x.csv");
    fs::write(&file, "1,2").unwrap();
    assert_eq!(fetch("bundled", 3, true).0, Some(0));
    assert!(here("out/x.csv").is_file() && !here("out/rehearsal.json").exists());

    // A hundred megabytes are not copied for a rehearsal.
    let large = 100 << 20;
    fs::File::create(&file).unwrap().set_len(large).unwrap();
    assert_eq!(fetch("bundled", large, true).0, Some(0));
    assert!(here("out/rehearsal.json").is_file() && !here("out/x.csv").exists());
    let (code, said) = fetch("bundled", large + 1, true);
    assert!(code != Some(0) && said.contains("wrong size"), "{said}");

    let (code, said) = fetch("hub", large, true);
    assert!(code == Some(2) && said.contains("offline: the network may not be used"), "{said}");
    let (code, said) = fetch("hub", large, false);
    assert!(code == Some(1) && said.contains("127.0.0.1:1"), "{said}");
}
