//! BERT against PyTorch's float64 (golden/models.py), its dropout, its published names and its numbers of parameters.

mod golden;

use candle_core::{DType, Device, Tensor};
use golden::{Limit, cross_entropy, flat, model, sentences};
use stages::models::{self, Model, ModelParams, Shape};
use stages::nn::cpu::{Cpu, Isa};
use stages::rng::Stream;

const THREE: Shape = Shape { classes: 3, channels: 1, height: 1, width: 1 };
const TINY: &str = r#"{"family":"bert","sizes":{"vocabulary":60,"hidden":48,"layers":2,"heads":4,"intermediate":80,
    "positions":20,"dropout":0,"attention_dropout":0}}"#;

#[test]
fn a_small_bert_equals_pytorch() {
    for isa in Isa::tested().unwrap() {
        let model = model(TINY, THREE, Cpu::with_isa(isa, 2).unwrap());
        let (tokens, labels) = sentences(4, 18, 60, 3);
        golden::check("bert", &model, &tokens, &labels, Limit::Small);
        golden::check_candle("bert", &model, &tokens);
    }
}

#[test]
fn bert_base_equals_pytorch() {
    let base = r#"{"family":"bert","sizes":{"dropout":0,"attention_dropout":0}}"#;
    let model = model(base, Shape { classes: 2, ..THREE }, Cpu::new(2).unwrap());
    let (tokens, labels) = sentences(2, 16, 30522, 2);
    golden::check("bertbase", &model, &tokens, &labels, Limit::Smooth);
    golden::check_candle("bertbase", &model, &tokens);
}

fn with_dropout() -> Model {
    model(
        &TINY.replace(r#""dropout":0,"attention_dropout":0"#, r#""dropout":0.3"#),
        THREE,
        Cpu::new(1).unwrap(),
    )
}

#[test]
fn dropout_depends_on_seed_and_step_alone() {
    let model = with_dropout();
    let (tokens, labels) = sentences(4, 18, 60, 3);
    let run = |seed: u64, step: u64| {
        model.set_step(seed, step);
        let loss = cross_entropy(&model.forward(&tokens, true).unwrap(), &labels);
        let gradients = model.backward(&loss).unwrap();
        assert!(model.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
        loss.to_scalar::<f32>().unwrap().to_bits()
    };
    assert_eq!(run(1, 5), run(1, 5));
    assert_ne!(run(1, 5), run(1, 6));
    assert_ne!(run(1, 5), run(2, 5));
    let evaluated = flat(&model.forward(&tokens, false).unwrap());
    model.set_step(7, 7);
    assert_eq!(evaluated, flat(&model.forward(&tokens, false).unwrap()));
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = model(TINY, THREE, Cpu::new(threads).unwrap());
            let (tokens, labels) = sentences(8, 18, 60, 3);
            let loss = cross_entropy(&model.forward(&tokens, true).unwrap(), &labels);
            let gradients = model.backward(&loss).unwrap();
            let all = model.parameters().iter().flat_map(|(_, var)| flat(gradients.get(var).unwrap()));
            all.map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!((2..=4).all(|threads| run(threads) == one));
}

/// A published pretraining checkpoint: gamma and beta, pretraining heads, another head; with and without the prefix.
#[test]
fn published_names_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(TINY, THREE, Cpu::new(1).unwrap());
    for prefix in [true, false] {
        let mut published = vec![];
        for (name, tensor) in source.to_published() {
            let name = match (prefix, name.strip_prefix("bert.")) {
                (false, Some(rest)) => rest.to_string(),
                (true, Some(_)) => name
                    .replace("LayerNorm.weight", "LayerNorm.gamma")
                    .replace("LayerNorm.bias", "LayerNorm.beta"),
                _ => continue,
            };
            published.push((name, tensor));
        }
        published.push(("cls.predictions.bias".into(), Tensor::zeros(60, DType::F32, &Device::Cpu).unwrap()));
        let path = folder.path().join("bert.safetensors");
        models::checkpoint::save(&published, &path).unwrap();
        let params: ModelParams = serde_json::from_str(TINY).unwrap();
        let two = Shape { classes: 2, ..THREE };
        let fresh =
            models::build(&params, two, Cpu::new(1).unwrap(), &mut |n| Stream::new(0, n, 0, 0)).unwrap();
        let head = flat(fresh.classifier());
        fresh.load_pretrained(&path).unwrap();
        let (tokens, _) = sentences(4, 18, 60, 3);
        let features = |m: &Model| flat(&m.features(&tokens, false).unwrap());
        assert_eq!(features(&fresh), features(&source));
        assert_eq!(flat(fresh.classifier()), head);
        let error = fresh.load_published(&path).unwrap_err().to_string();
        assert!(error.contains("classifier.weight: missing from the file, expected [2, 48]"), "{error}");
        assert!(error.contains("cls.predictions.bias: in the file but not in the model"), "{error}");
    }
}

#[test]
fn numbers_of_parameters() {
    let count = |sizes: &str, classes: usize| -> usize {
        let params: ModelParams =
            serde_json::from_str(&format!(r#"{{"family":"bert","sizes":{sizes}}}"#)).unwrap();
        let shape = Shape { classes, ..THREE };
        // The start does not matter here: one stream for all is enough.
        let model =
            models::build(&params, shape, Cpu::new(1).unwrap(), &mut |n| Stream::new(0, n, 0, 0)).unwrap();
        model.parameters().iter().map(|(_, var)| var.elem_count()).sum()
    };
    assert_eq!(count("{}", 3), 109_482_240 + 2_307);
    // BERT large by its parts, which is quicker than 335 million random numbers: words, and layers of one size.
    let large = |layers: usize| {
        let sizes =
            format!(r#"{{"vocabulary":522,"hidden":1024,"layers":{layers},"heads":16,"intermediate":4096}}"#);
        count(&sizes, 3)
    };
    let layer = large(2) - large(1);
    assert_eq!(large(1) + 23 * layer + 30_000 * 1024, 335_141_888 + 3_075);
    let minilm = r#"{"hidden":384,"layers":6,"intermediate":1536}"#;
    // 30522·384 + 512·384 + 2·384 + 768 + 6·(4·(384² + 384) + 2·384·1536 + 1536 + 384 + 4·384) + 384² + 384, and the head.
    assert_eq!(count(minilm, 3), 22_713_216 + 3 * 385);
}
