//! A real BERT on real text: MiniLM's published weights, fine-tuned on MultiNLI's first pairs with dropout off, against the
//! losses of PyTorch (golden/minilm.py). Needs the weights, so it runs where `ITPIPE_TEST_MIRROR` names their mirror. With
//! `ITPIPE_MINILM` it reads a longer file that golden/minilm.py made, and says how far the losses are apart.

mod golden;
mod support;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use stages::loss;
use stages::models::{self, Model, ModelParams, Shape};
use stages::nn::cpu::Cpu;
use stages::optim::{Optimizer, OptimizerParams, clip_scale, global_norm};
use stages::rng::Stream;

// As golden/minilm.py.
const BATCH: usize = 32;
const CLIP: f64 = 1.0;
const SCHEDULE: &str = r#"{"name": "linear", "rate": 5e-5}"#;
const STEPS: u64 = 244;
const MODEL: &str = r#"{"family": "bert", "sizes": {
    "hidden": 384, "layers": 6, "intermediate": 1536, "dropout": 0, "attention_dropout": 0}}"#;

fn minilm(weights: &std::path::Path) -> Model {
    let params: ModelParams = serde_json::from_str(MODEL).unwrap();
    let shape = Shape { classes: 3, channels: 0, height: 0, width: 0 };
    // One stream for all: every value is replaced below.
    let model =
        models::build(&params, shape, Cpu::new(2).unwrap(), &mut |n| Stream::new(0, n, 0, 0)).unwrap();
    model.load_pretrained(weights).unwrap();
    for (name, var) in model.parameters() {
        if name.starts_with("classifier") {
            golden::set(var, golden::fill(name, var.dims(), 0.0));
        }
    }
    model
}

/// [n, 3, longest] tokens, segments and mask; an example is (tokens, length of its first text).
fn batch(examples: &[(&[u16], usize)]) -> Tensor {
    let length = examples.iter().map(|e| e.0.len()).max().unwrap();
    let mut values: Vec<u32> = vec![];
    for (ids, first) in examples {
        values.extend((0..length).map(|i| ids.get(i).map_or(0, |&id| u32::from(id))));
        values.extend((0..length).map(|i| u32::from((*first..ids.len()).contains(&i))));
        values.extend((0..length).map(|i| u32::from(i < ids.len())));
    }
    Tensor::from_vec(values, (examples.len(), 3, length), &Device::Cpu).unwrap()
}

#[test]
fn minilm_fine_tunes_as_in_pytorch() {
    let Some(mirror) = support::mirror("minilm_fine_tunes_as_in_pytorch") else { return };
    let model = minilm(&mirror.join("models/sentence-transformers/all-MiniLM-L6-v2/model.safetensors"));
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/minilm.safetensors");
    let path = std::env::var("ITPIPE_MINILM").unwrap_or_else(|_| committed.into());
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
    let losses = data("losses");
    let losses: Vec<f64> = losses.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let ids: Vec<u16> = data("ids").chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let (labels, firsts) = (data("labels"), data("firsts"));
    let mut at = 0;
    let examples: Vec<(&[u16], usize)> = data("lengths")
        .iter()
        .zip(&firsts)
        .map(|(&length, &first)| {
            at += usize::from(length);
            (&ids[at - usize::from(length)..at], usize::from(first))
        })
        .collect();
    let adamw: OptimizerParams = serde_json::from_str(r#"{"name": "adamw"}"#).unwrap();
    let schedule: stages::schedule::Schedule = serde_json::from_str(SCHEDULE).unwrap();
    let mut optimizer = Optimizer::new(&adamw, model.parameters()).unwrap();
    let mut worst = 0f64;
    for (step, expected) in losses.iter().enumerate() {
        let rows = step * BATCH..(step + 1) * BATCH;
        let labels: Vec<u32> = labels[rows.clone()].iter().map(|&l| u32::from(l)).collect();
        model.set_step(0, step as u64);
        let logits = model.forward(&batch(&examples[rows]), true).unwrap();
        let loss = loss::cross_entropy(&logits, &labels).unwrap().mean_all().unwrap();
        let value = f64::from(loss.to_scalar::<f32>().unwrap());
        let error = (value / expected - 1.0).abs();
        // Behind that, rounding that was amplified by the steps before; told, not judged.
        if step < 20 {
            assert!(error <= 1e-3, "step {step}: loss {value}, PyTorch's {expected}");
            worst = worst.max(error);
        } else {
            println!("step {step}: {value:.6}, PyTorch's {expected:.6}, {error:.1e}");
        }
        let gradients = optimizer.gradients(&mut model.backward(&loss).unwrap()).unwrap();
        let scale = clip_scale(global_norm(&gradients).unwrap(), CLIP);
        optimizer.step(&gradients, schedule.rate(step as u64, STEPS, STEPS), scale).unwrap();
    }
    assert!(losses.len() >= 20);
    println!("20 losses equal PyTorch's to {worst:.1e}, {} to {}", losses[0], losses[19]);
}
