//! Makes golden/candle.safetensors: logits in evaluation mode of candle-transformers' ResNet-50 and BERT, on the weights
//! and inputs of models.py. candle's BERT has neither pooler nor head: they are written out here.
//!
//! cargo run --release --manifest-path stages/tests/golden/candle/Cargo.toml

#[path = "../formula.rs"]
mod formula;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_nn::{Init, Module};
use candle_transformers::models::{bert, resnet};
use std::collections::HashMap;

/// Gives a parameter by its name and shape.
struct Formula;

impl SimpleBackend for Formula {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        Tensor::from_vec(formula::fill(name, shape.dims(), 0.0), shape, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: the shape is not known")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        // BertModel asks whether to put "bert." before its names: it stands there already.
        !name.ends_with("bert")
    }
}

fn variables() -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Formula), DType::F32, Device::Cpu)
}

fn images(n: usize, side: usize) -> Result<Tensor> {
    let values = formula::uniform("images", n * side * side * 3).into_iter().map(|u| u as f32).collect();
    Tensor::from_vec::<_, f32>(values, (n, side, side, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()
}

fn bert_logits(config: &bert::Config, (n, length): (usize, usize), classes: usize) -> Result<Tensor> {
    let model = bert::BertModel::load(variables().pp("bert"), config)?;
    let tokens = formula::sentences(n, length, config.vocab_size);
    let tokens = Tensor::from_vec(tokens, (n, 3, length), &Device::Cpu)?;
    let row = |i: usize| tokens.narrow(1, i, 1)?.squeeze(1)?.contiguous();
    let hidden = model.forward(&row(0)?, &row(1)?, Some(&row(2)?))?;
    let first = hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
    let width = config.hidden_size;
    let pooled = candle_nn::linear(width, width, variables().pp("bert.pooler.dense"))?.forward(&first)?.tanh()?;
    candle_nn::linear(width, classes, variables().pp("classifier"))?.forward(&pooled)
}

fn main() -> Result<()> {
    let mut logits = HashMap::new();
    let resnet = resnet::resnet50(2, variables())?;
    logits.insert("resnet50".to_string(), resnet.forward(&images(8, 64)?)?);
    let base = bert::Config { layer_norm_eps: 1e-12, ..Default::default() };
    logits.insert("bertbase".to_string(), bert_logits(&base, (2, 16), 2)?);
    let small = bert::Config {
        vocab_size: 60,
        hidden_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 80,
        max_position_embeddings: 20,
        ..base
    };
    logits.insert("bert".to_string(), bert_logits(&small, (4, 18), 3)?);
    // As models.py writes its own: float64.
    let logits: HashMap<_, _> =
        logits.into_iter().map(|(name, t)| Ok((name, t.to_dtype(DType::F64)?))).collect::<Result<_>>()?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../candle.safetensors");
    candle_core::safetensors::save(&logits, path)
}
