//! Every data set and every network of the paper through fetch, prepare, subsample, one training step and evaluate: from
//! generated files with the Hub's columns and key names, and from the real files of the mirror where there is one.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stages::fetch::{Params, fetch};
use stages::hub::Resolve;
use stages::job::Fixed;
use stages::{evaluate, prepare, subsample, train};
use support::*;
use tempfile::tempdir;

/// Brings files to `to`: from the repository's generated ones, or from a mirror.
fn bring(repo: &str, kind: &str, files: &[&str], from: Option<&Path>, to: &Path) {
    let variant = if from.is_some() { "mirror" } else { "bundled" };
    let params = json!({"repo": repo, "repo_type": kind, "variant": variant, "path": "tests/data/generated"});
    let params: Params = serde_json::from_value(params).unwrap();
    let files: serde_json::Map<String, Value> =
        files.iter().map(|file| (file.to_string(), json!({}))).collect();
    let fixed: Fixed =
        serde_json::from_value(json!({"files": files, "root": root(), "mirror": from, "offline": true}))
            .unwrap();
    let hub = Resolve::new("http://127.0.0.1:1", None, Default::default(), Default::default());
    fetch(&params, &fixed, true, &hub, &to.join("scratch"), &to.join("out")).unwrap();
}

/// What a chain works on.
struct Chain<'a> {
    repo: &'a str,
    files: &'a [&'a str],
    form: Value,
    rows: Value,
    /// Repository and file of the tokenizer.
    tokenizer: Option<(&'a str, &'a str)>,
    model: Value,
    /// The repository of the weights to start from.
    pretrained: Option<&'a str>,
    training: Value,
}

/// All stages; the metrics, and what the training says of itself.
fn chain(from: Option<&Path>, chain: &Chain) -> (Value, Value) {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let out = |name: &str| folder.path().join(name).join("out");
    bring(chain.repo, "dataset", chain.files, from, &at("source"));
    let mut inputs = vec![("files", out("source"))];
    if let Some((repo, file)) = chain.tokenizer {
        bring(repo, "model", &[file], from, &at("words"));
        inputs.push(("tokenizer", out("words")));
    }
    let run = |name: &str, params: &Value, inputs: Vec<(&'static str, PathBuf)>| {
        let inputs: Vec<(&str, &Path)> = inputs.iter().map(|(name, path)| (*name, path.as_path())).collect();
        job(&at(name), params.clone(), &inputs)
    };
    prepare::run(run("data", &chain.form, inputs)).unwrap();
    subsample::run(run("rows", &chain.rows, vec![("data", out("data"))])).unwrap();
    let mut inputs = vec![("data", out("data")), ("indices", out("rows"))];
    // One batch of all training rows: one step.
    let rows: Value = serde_json::from_slice(&std::fs::read(out("rows").join("meta.json")).unwrap()).unwrap();
    let n: u64 = rows["counts"]["train"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    let mut params = json!({"model": chain.model, "epochs": 1, "batch": n, "seed": 0, "checkpoint_every": 0});
    params.as_object_mut().unwrap().extend(chain.training.as_object().unwrap().clone());
    if let Some(repo) = chain.pretrained {
        bring(repo, "model", &["model.safetensors"], from, &at("weights"));
        inputs.push(("pretrained", out("weights")));
    }
    train::run(run("train", &params, inputs)).unwrap();
    let inputs = vec![("data", out("data")), ("indices", out("rows")), ("weights", out("train"))];
    evaluate::run(run("evaluate", &json!({}), inputs)).unwrap();
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (metrics, training) =
        (read(out("evaluate").join("metrics.json")), read(out("train").join("train.json")));
    assert_eq!(training["training"]["steps"], 1, "{training}");
    (metrics, training)
}

const CELEBA: [&str; 5] = [
    "data/train-00000-of-00003.parquet",
    "data/train-00001-of-00003.parquet",
    "data/train-00002-of-00003.parquet",
    "data/validation-00000-of-00001.parquet",
    "data/test-00000-of-00001.parquet",
];
const WATERBIRDS: [&str; 3] =
    ["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"];
const MULTINLI: [&str; 4] = [
    "data/train-00000-of-00001.parquet",
    "data/validation_matched-00000-of-00001.parquet",
    "data/validation_mismatched-00000-of-00001.parquet",
    "metadata_random.csv",
];

fn form(dataset: &str, variant: &str) -> Value {
    json!({"dataset": dataset, "variant": variant, "exact": false, "note": "in a test"})
}

fn published(per_group: Option<usize>) -> Value {
    json!({"scheme": "published", "per_group": per_group, "seed": 0})
}

fn sgd(method: &str, temperatures: Value) -> Value {
    json!({"method": method, "temperatures": temperatures, "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
           "schedule": {"name": "constant", "rate": 1e-3}, "metrics_every": 1, "select": "best-validation-worst"})
}

fn adamw(method: &str, temperatures: Value) -> Value {
    json!({"method": method, "temperatures": temperatures, "optimizer": {"name": "adamw"}, "clip": 1.0,
           "schedule": {"name": "linear", "rate": 2e-5}})
}

/// Fashion-MNIST and CIFAR-10 from generated images, with every network that reads images of their size.
#[test]
fn the_balanced_sets_with_the_small_networks() {
    let folder = tempdir().unwrap();
    let rows = |colour_images: bool, n: u8| -> Vec<Row> {
        let image = |i: u8| if colour_images { png(colour(i)) } else { png(grey(u32::from(i))) };
        (0..n).map(|i| (Some(image(i)), i64::from(i % 10))).collect()
    };
    for (dataset, repo, column, files) in [
        (
            "fashion-mnist",
            "zalando-datasets/fashion_mnist",
            "image",
            ["fashion_mnist/train-00000-of-00001.parquet", "fashion_mnist/test-00000-of-00001.parquet"],
        ),
        (
            "cifar10",
            "uoft-cs/cifar10",
            "img",
            ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"],
        ),
    ] {
        for (file, n) in files.iter().zip([80, 20]) {
            let path = folder.path().join("datasets").join(repo).join(file);
            write_parquet(&path, column, &rows(dataset == "cifar10", n), 16);
        }
        for model in [
            json!({"family": "resnet-cifar", "depth": 8, "head": "zero"}),
            json!({"family": "resnet-cifar", "depth": 8, "shortcut": "B"}),
            json!({"family": "mlp"}),
            json!({"family": "linear"}),
        ] {
            let (metrics, training) = chain(
                Some(folder.path()),
                &Chain {
                    repo,
                    files: &files,
                    form: form(dataset, "generated"),
                    rows: json!({"scheme": "step", "ratio": 2, "majority": "first-half",
                                 "validation_per_class": 2, "seed": 0}),
                    tokenizer: None,
                    model,
                    pretrained: None,
                    training: json!({"method": "it-features", "gamma": 0.5, "optimizer": {"name": "sgd", "momentum": 0.9},
                                     "schedule": {"name": "constant", "rate": 0.01}}),
                },
            );
            // Of 8 images of a class 2 are held out; 6 and 3 are trained on.
            assert_eq!((&metrics["n"], &training["n_train"]), (&json!(20), &json!(45)), "{dataset}");
        }
    }
}

#[test]
fn celeba_with_both_bottleneck_nets_and_resnet10() {
    for (model, pretrained, method) in [
        ("resnet50", Some("timm/resnet50.tv_in1k"), "it-group"),
        ("wide-resnet50", Some("timm/wide_resnet50_2.tv_in1k"), "group-dro"),
        ("resnet10", None, "iw-resampled"),
    ] {
        let temperatures = if method == "it-group" { json!([0.01, 0.0044, 0.0036, 1]) } else { Value::Null };
        let (metrics, training) = chain(
            None,
            &Chain {
                repo: "tpremoli/CelebA-attrs",
                files: &CELEBA,
                form: form("celeba", "generated"),
                rows: published(None),
                tokenizer: None,
                model: json!({"family": model, "width": 2}),
                pretrained,
                training: sgd(method, temperatures),
            },
        );
        assert_eq!(
            (&metrics["n"], &training["counts"]["group"]),
            (&json!(19), &json!([12, 10, 6, 2])),
            "{model}"
        );
    }
}

#[test]
fn waterbirds_with_resnet50() {
    let (metrics, _) = chain(
        None,
        &Chain {
            repo: "grodino/waterbirds",
            files: &WATERBIRDS,
            form: form("waterbirds", "generated"),
            rows: published(None),
            tokenizer: None,
            model: json!({"family": "resnet50", "width": 2}),
            pretrained: Some("timm/resnet50.tv_in1k"),
            training: sgd("erm", Value::Null),
        },
    );
    assert_eq!((&metrics["n"], &metrics["per_group"].as_array().unwrap().len()), (&json!(16), &4));
}

#[test]
fn multinli_with_both_berts() {
    for (repo, hidden, layers, intermediate) in
        [("google-bert/bert-base-uncased", 16, 2, 32), ("google-bert/bert-large-uncased", 24, 3, 48)]
    {
        let mut form = form("multinli", "generated");
        form["sequence"] = json!(32);
        let (metrics, training) = chain(
            None,
            &Chain {
                repo: "nyu-mll/multi_nli",
                files: &MULTINLI,
                form,
                rows: published(None),
                tokenizer: Some((repo, "vocab.txt")),
                model: json!({"family": "bert", "sizes": {"vocabulary": 92, "hidden": hidden, "layers": layers, "heads": 2,
                              "intermediate": intermediate, "positions": 64}}),
                pretrained: Some(repo),
                training: adamw("it-group", json!([0.0067, 0.000125, 0.0033, 3, 0.0125, 1])),
            },
        );
        assert_eq!(
            (&metrics["n"], &training["counts"]["group"]),
            (&json!(26), &json!([18, 6, 18, 2, 18, 2]))
        );
    }
}

/// Fashion-MNIST and CIFAR-10 with a CIFAR ResNet, MultiNLI with MiniLM, all real.
#[test]
fn the_real_files() {
    let Some(mirror) = mirror("the_real_files") else { return };
    let step = json!({"scheme": "step", "ratio": 10, "majority": "first-half", "per_class": 20, "test_per_class": 10,
                      "validation_per_class": 5, "seed": 0});
    for (dataset, repo, files) in [
        (
            "fashion-mnist",
            "zalando-datasets/fashion_mnist",
            ["fashion_mnist/train-00000-of-00001.parquet", "fashion_mnist/test-00000-of-00001.parquet"],
        ),
        (
            "cifar10",
            "uoft-cs/cifar10",
            ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"],
        ),
    ] {
        let (metrics, _) = chain(
            Some(&mirror),
            &Chain {
                repo,
                files: &files,
                form: form(dataset, "mirror"),
                rows: step.clone(),
                tokenizer: None,
                model: json!({"family": "resnet-cifar", "depth": 8, "head": "zero"}),
                pretrained: None,
                training: json!({"method": "it-classifier", "gamma": 0.5, "optimizer": {"name": "sgd", "momentum": 0.9},
                                 "schedule": {"name": "constant", "rate": 0.1}}),
            },
        );
        assert_eq!((&metrics["n"], &metrics["data"]["n_train"]), (&json!(100), &json!(110)), "{dataset}");
    }
    let mut form = form("multinli", "mirror");
    form["sequence"] = json!(32);
    let repo = "sentence-transformers/all-MiniLM-L6-v2";
    let (metrics, _) = chain(
        Some(&mirror),
        &Chain {
            repo: "nyu-mll/multi_nli",
            files: &MULTINLI,
            form,
            rows: published(Some(4)),
            tokenizer: Some((repo, "tokenizer.json")),
            model: json!({"family": "bert", "sizes": {"hidden": 384, "layers": 6, "heads": 12, "intermediate": 1536}}),
            pretrained: Some(repo),
            training: adamw("erm", Value::Null),
        },
    );
    assert_eq!(metrics["n"], 24);
}
