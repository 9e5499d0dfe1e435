//! The training stage with the large models, at tiny sizes: BERT on texts, the bottleneck ResNets, published weights to
//! start from, and what comes after it (evaluate, geometry).

#[path = "support/training.rs"]
mod training;

use std::fs;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use stages::models::{self, ModelParams, Shape};
use stages::nn::cpu::Cpu;
use stages::rng::Stream;
use training::*;

fn bert() -> Value {
    json!({"family": "bert", "sizes": {
        "vocabulary": 30, "hidden": 16, "layers": 2, "heads": 2, "intermediate": 24, "positions": 16
    }})
}

/// Fine-tuning as the paper's reference code does it: AdamW, linear decay, clipping, dropout.
fn fine_tuning() -> Value {
    json!({
        "model": bert(), "method": "erm", "epochs": 6, "batch": 16, "optimizer": {"name": "adamw"}, "clip": 1.0,
        "schedule": {"name": "linear", "rate": 0.01, "warmup_steps": 3}, "seed": 3, "checkpoint_every": 2,
        "metrics_every": 2
    })
}

fn json_file(path: std::path::PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn same_bits_bert_with_dropout() {
    let groups = json!([{"names": ["bias", "LayerNorm"], "weight_decay": 0}]);
    let decay = json!({"optimizer": {"name": "adamw", "weight_decay": 0.01, "groups": groups}});
    same_bits("bert", &Bench::texts(40, 8), &with(fine_tuning(), decay));
}

#[test]
fn same_bits_bert_with_group_dro_in_parts() {
    let dro = json!({"method": "group-dro", "select": "best-validation-worst", "metrics_every": 1});
    same_bits("bert, group dro", &Bench::texts(40, 8), &with(fine_tuning(), dro));
    let parts = json!({"method": "iw", "micro_batch": 5});
    same_bits("bert, parts", &Bench::texts(40, 8), &with(fine_tuning(), parts));
}

/// Learns what is there to learn, and the stages after it read its output.
#[test]
fn bert_learns_and_is_evaluated() {
    let bench = Bench::texts(60, 60);
    succeeded(&bench.train("a", &with(fine_tuning(), json!({"epochs": 50})), 2));
    let train = json_file(bench.path("a/out/train.json"));
    assert!(train["train"]["error_raw"].as_f64().unwrap() < 0.3, "{}", train["train"]);
    for kind in ["evaluate", "geometry"] {
        let folder = bench.job_with(kind, &json!({}), 2, json!({"weights": "../a/out"}));
        succeeded(&start_kind(kind, &folder).wait_with_output().unwrap());
    }
    let metrics = json_file(bench.path("evaluate/out/metrics.json"));
    assert_eq!(metrics["n"], 40);
    assert!(metrics["average_accuracy"].as_f64().unwrap() > 0.4, "{metrics}");
    assert!(
        json_file(bench.path("geometry/out/geometry.json"))["angles"]["classifier"]["majority"].is_number()
    );
}

/// One step each of the bottleneck networks and ResNet-10, then evaluate.
#[test]
fn the_resnets_of_the_paper_train() {
    let bench = Bench::new(10, 10);
    for family in ["resnet10", "resnet50", "wide-resnet50"] {
        let params = json!({
            "model": {"family": family, "width": 4}, "method": "it-group", "temperatures": [1, 1, 1, 1, 2, 2, 3, 3],
            "epochs": 1, "batch": 40, "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
            "schedule": {"name": "constant", "rate": 1e-3}, "seed": 0
        });
        succeeded(&bench.train(family, &params, 2));
        assert_eq!(json_file(bench.path(&format!("{family}/out/train.json")))["training"]["steps"], 1);
        let name = format!("{family}-evaluate");
        let folder = bench.job_with(&name, &json!({}), 1, json!({"weights": format!("../{family}/out")}));
        succeeded(&start_kind("evaluate", &folder).wait_with_output().unwrap());
    }
}

/// Writes the weights of a fresh model under `folder`, its head for ten classes, and gives them by name.
fn publish(bench: &Bench, folder: &str, params: &Value, side: usize) -> Vec<(String, Tensor)> {
    let params: ModelParams = serde_json::from_value(params.clone()).unwrap();
    let shape = Shape { classes: 10, channels: usize::from(side > 0), height: side, width: side };
    let model =
        models::build(&params, shape, Cpu::new(1).unwrap(), &mut |name| Stream::new(77, name, 0, 0)).unwrap();
    fs::create_dir_all(bench.path(folder)).unwrap();
    model.save_published(&bench.path(folder).join("model.safetensors")).unwrap();
    model.to_published()
}

/// With a rate of 0 the result is the start: the published body and a fresh head of the data's classes.
#[test]
fn published_weights_are_the_start() {
    for (bench, model, side) in [
        (Bench::texts(10, 10), bert(), 0),
        (Bench::new(10, 10), json!({"family": "resnet50", "width": 4}), SIDE),
        (Bench::new(10, 10), json!({"family": "wide-resnet50", "width": 2}), SIDE),
    ] {
        let published = publish(&bench, "published", &model, side);
        let still = json!({"model": model, "epochs": 1, "schedule": {"name": "constant", "rate": 0}});
        let params = with(fine_tuning(), still);
        let folder = bench.job_with("a", &params, 1, json!({"pretrained": "../published"}));
        succeeded(&start(&folder).wait_with_output().unwrap());
        let weights =
            candle_core::safetensors::load(folder.join("out/weights.safetensors"), &Device::Cpu).unwrap();
        for (name, tensor) in published {
            if tensor.dtype() != DType::F32 || name.contains("running") {
                continue;
            }
            let ours = &weights[&name];
            if name.starts_with("fc") || name.starts_with("classifier") {
                assert_eq!(ours.dim(0).unwrap(), CLASSES);
                continue;
            }
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(ours), bits(&tensor), "{name}");
        }
    }
}

#[test]
fn plain_errors() {
    let bench = Bench::texts(10, 10);
    publish(&bench, "resnet", &json!({"family": "resnet50", "width": 4}), SIDE);
    publish(&bench, "bert", &bert(), 0);
    fs::write(bench.path("bert/config.json"), r#"{"num_attention_heads": 4, "hidden_size": 16}"#).unwrap();
    let mut n = 0;
    let mut fails = |changes: Value, more: Value, expected: &str| {
        n += 1;
        let folder = bench.job_with(&format!("e{n}"), &with(fine_tuning(), changes), 1, more);
        let out = start(&folder).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{text}\nshould contain\n{expected}");
    };
    fails(
        json!({"model": {"family": "resnet10", "width": 4}}),
        json!({}),
        "train: params.model.family: reads images, but the examples of bars are texts\nhint: set family: bert",
    );
    fails(json!({"augment": "crop-flip"}), json!({}), "params.augment: texts have no augmentation\nhint: ");
    let sizes = |key: &str, value: usize| {
        let mut model = bert();
        model["sizes"][key] = json!(value);
        json!({"model": model})
    };
    fails(
        sizes("positions", 8),
        json!({}),
        "params.model.sizes.positions: 8: the texts have 12 tokens\nhint: ",
    );
    fails(
        sizes("vocabulary", 20),
        json!({}),
        "params.model.sizes.vocabulary: 20: the texts' tokenizer knows 30",
    );
    let from = |folder: &str| json!({"pretrained": format!("../{folder}")});
    fails(json!({}), from("resnet"), "weights of another model:\n  bert.");
    fails(json!({}), from("resnet"), "more\nhint: params.model must be the model whose weights these are");
    fails(json!({}), from("nowhere"), "train: inputs.pretrained: ");
    fails(json!({}), from("bert"), "config.json: num_attention_heads: 4, but the params say 2\nhint: ");
    fs::remove_file(bench.path("bert/config.json")).unwrap();
    fails(
        sizes("hidden", 32),
        from("bert"),
        "bert.embeddings.LayerNorm.bias: shape [16] in the file, [32] in",
    );
}

/// What evaluate says to the weights of another model, and of another number of classes.
#[test]
fn weights_of_another_model_are_not_evaluated() {
    let bench = Bench::new(10, 10);
    let small = json!({
        "model": {"family": "resnet-cifar", "depth": 8}, "method": "erm", "epochs": 1, "batch": 20,
        "optimizer": {"name": "sgd"}, "schedule": {"name": "constant", "rate": 0.01}, "seed": 0
    });
    succeeded(&bench.train("a", &small, 1));
    let evaluate = |name: &str| {
        let folder = bench.job_with(name, &json!({}), 1, json!({"weights": "../a/out"}));
        let out = start_kind("evaluate", &folder).wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(2));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let path = bench.path("a/out/weights.safetensors");
    let weights = fs::read(&path).unwrap();
    publish(&bench, "ten", &small["model"], SIDE);
    fs::copy(bench.path("ten/model.safetensors"), &path).unwrap();
    let text = evaluate("head");
    assert!(text.contains("linear.weight: shape [10, 64] in the file, [4, 64] in the model"), "{text}");
    assert!(
        text.contains("\nhint: weights, train.json and data must be of one training: train it again"),
        "{text}"
    );
    fs::write(&path, weights).unwrap();
    let mut train = json_file(bench.path("a/out/train.json"));
    train["params"]["model"]["depth"] = json!(14);
    fs::write(bench.path("a/out/train.json"), train.to_string()).unwrap();
    let text = evaluate("depth");
    assert!(text.contains("layer1.1.conv1.weight: missing from the file"), "{text}");
}
