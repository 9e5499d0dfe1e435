//! BERT of any size with pooler and dropout in all of its places, named as `BertForSequenceClassification`. Knows
//! tokens as numbers, no text.

use super::Builder;
use super::head::Head;
use crate::nn::cpu::Cpu;
use crate::nn::rows;
use crate::rng::Stream;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

/// The sizes of a BERT; those left out are bert-base-uncased's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BertParams {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
    pub types: usize,
    pub epsilon: f64,
    /// After the embeddings, both outputs of a layer and the pooler.
    pub dropout: f64,
    /// Of attention probabilities.
    pub attention_dropout: f64,
}

impl Default for BertParams {
    fn default() -> BertParams {
        BertParams {
            vocabulary: 30522,
            hidden: 768,
            layers: 12,
            heads: 12,
            intermediate: 3072,
            positions: 512,
            types: 2,
            epsilon: 1e-12,
            dropout: 0.1,
            attention_dropout: 0.1,
        }
    }
}

/// Standard deviation of fresh weights: `initializer_range`.
pub const DEVIATION: f64 = 0.02;

/// Added to the scores of padding, as the published code does.
const MASKED: f64 = -1e4;

struct LayerNorm {
    gamma: Var,
    beta: Var,
}

struct Layer {
    query: Head,
    key: Head,
    value: Head,
    attention: Head,
    attention_norm: LayerNorm,
    intermediate: Head,
    output: Head,
    output_norm: LayerNorm,
}

pub struct Bert {
    cpu: Cpu,
    params: BertParams,
    words: Var,
    positions: Var,
    types: Var,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Head,
}

/// Gives each dropout of a training step its mask.
struct Dropout {
    /// None in evaluation mode.
    key: Option<(u64, u64)>,
    place: u64,
}

impl Dropout {
    /// Zero with probability `p`, else x / (1 − p).
    fn apply(&mut self, x: Tensor, p: f64) -> Result<Tensor> {
        let Some((seed, step)) = self.key else { return Ok(x) };
        self.place += 1;
        if p == 0.0 {
            return Ok(x);
        }
        let mut stream = Stream::new(seed, "dropout", step, self.place);
        // Two decisions of 32 bits from one draw.
        let (limit, kept) = ((p * 2f64.powi(32)) as u64, (1.0 / (1.0 - p)) as f32);
        let n = x.elem_count();
        let mut mask = Vec::with_capacity(n + 1);
        while mask.len() < n {
            let bits = stream.bits();
            for half in [bits & 0xFFFF_FFFF, bits >> 32] {
                mask.push(if half < limit { 0.0 } else { kept });
            }
        }
        mask.truncate(n);
        let mask = Tensor::from_vec(mask, x.shape(), &Device::Cpu)?;
        Ok((x * mask)?)
    }
}

fn linear(builder: &mut Builder<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Head> {
    Ok(Head {
        weight: builder.normal(format!("{name}.weight"), &[outputs, inputs], DEVIATION)?,
        bias: builder.constant(format!("{name}.bias"), &[outputs], 0.0)?,
    })
}

impl LayerNorm {
    fn new(builder: &mut Builder<'_>, name: &str, width: usize) -> Result<LayerNorm> {
        Ok(LayerNorm {
            gamma: builder.constant(format!("{name}.LayerNorm.weight"), &[width], 1.0)?,
            beta: builder.constant(format!("{name}.LayerNorm.bias"), &[width], 0.0)?,
        })
    }
}

impl Bert {
    pub fn new(builder: &mut Builder<'_>, params: &BertParams, cpu: Cpu) -> Result<Bert> {
        let BertParams { hidden, heads, .. } = *params;
        ensure!(
            heads > 0 && hidden > 0 && hidden.is_multiple_of(heads),
            "model: heads: {heads} do not divide hidden {hidden}"
        );
        for (name, p) in [("dropout", params.dropout), ("attention_dropout", params.attention_dropout)] {
            ensure!((0.0..1.0).contains(&p), "model: {name}: {p} is not in [0, 1)");
        }
        let place = "bert.embeddings";
        let table = |builder: &mut Builder<'_>, name: &str, rows: usize| {
            builder.normal(format!("{place}.{name}_embeddings.weight"), &[rows, hidden], DEVIATION)
        };
        let words = table(builder, "word", params.vocabulary)?;
        let positions = table(builder, "position", params.positions)?;
        let types = table(builder, "token_type", params.types)?;
        let norm = LayerNorm::new(builder, place, hidden)?;
        let layers = (0..params.layers)
            .map(|i| Layer::new(builder, &format!("bert.encoder.layer.{i}"), params))
            .collect::<Result<_>>()?;
        let pooler = linear(builder, "bert.pooler.dense", hidden, hidden)?;
        Ok(Bert { cpu, params: params.clone(), words, positions, types, norm, layers, pooler })
    }

    /// The pooled first token [N, hidden]. `tokens` is u32 [N, 3, length]: numbers of tokens, of segments (token types),
    /// and 1 where a token stands, 0 for padding. With `dropout`, the masks of that (seed, step).
    ///
    /// Errors: a tensor of another shape or type, more tokens than positions.
    pub fn features(&self, tokens: &Tensor, dropout: Option<(u64, u64)>) -> Result<Tensor> {
        let most = self.params.positions;
        let dims = tokens.dims();
        ensure!(
            tokens.dtype() == DType::U32 && dims.len() == 3 && dims[1] == 3 && (1..=most).contains(&dims[2]),
            "model: input: {:?} {dims:?}, expected U32 [N, 3, 1 to {most}]",
            tokens.dtype()
        );
        let (n, length) = (dims[0], dims[2]);
        let hidden = self.params.hidden;
        let row = |i: usize| -> Result<Tensor> { Ok(tokens.narrow(1, i, 1)?.flatten_all()?) };
        let place = Tensor::arange(0, length as u32, &Device::Cpu)?;
        let embedded = (self.words.index_select(&row(0)?, 0)? + self.types.index_select(&row(1)?, 0)?)?;
        let places = self.positions.index_select(&place, 0)?;
        let embedded = embedded.reshape((n, length, hidden))?.broadcast_add(&places)?;
        let mask = ((tokens.narrow(1, 2, 1)?.to_dtype(DType::F32)? - 1.0)? * -MASKED)?.unsqueeze(1)?;
        let mut dropout = Dropout { key: dropout, place: 0 };
        let mut x = self.normal(&self.norm, &embedded.reshape((n * length, hidden))?)?;
        x = dropout.apply(x, self.params.dropout)?;
        for layer in &self.layers {
            x = self.layer(layer, &x, &mask, (n, length), &mut dropout)?;
        }
        let first = x.reshape((n, length, hidden))?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        dropout.apply(self.pooler.forward(&first)?.tanh()?, self.params.dropout)
    }

    fn normal(&self, norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        Ok(rows::layer_norm(&self.cpu, x, &norm.gamma, &norm.beta, self.params.epsilon)?)
    }

    /// `x` is [N · length, hidden], `mask` [N, 1, 1, length].
    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        mask: &Tensor,
        (n, length): (usize, usize),
        dropout: &mut Dropout,
    ) -> Result<Tensor> {
        let BertParams { hidden, heads, .. } = self.params;
        let split = |projection: &Head| -> Result<Tensor> {
            let y = projection.forward(x)?.reshape((n, length, heads, hidden / heads))?;
            Ok(y.transpose(1, 2)?.contiguous()?)
        };
        let (query, key, value) = (split(&layer.query)?, split(&layer.key)?, split(&layer.value)?);
        let scale = 1.0 / ((hidden / heads) as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?.broadcast_add(mask)?;
        let attention = dropout.apply(rows::softmax(&self.cpu, &scores)?, self.params.attention_dropout)?;
        let context = attention.matmul(&value)?.transpose(1, 2)?.reshape((n * length, hidden))?;
        let attended = dropout.apply(layer.attention.forward(&context)?, self.params.dropout)?;
        let x = self.normal(&layer.attention_norm, &(attended + x)?)?;
        let inner = rows::gelu(&self.cpu, &layer.intermediate.forward(&x)?)?;
        let output = dropout.apply(layer.output.forward(&inner)?, self.params.dropout)?;
        self.normal(&layer.output_norm, &(output + x)?)
    }
}

impl Layer {
    fn new(builder: &mut Builder<'_>, name: &str, params: &BertParams) -> Result<Layer> {
        let BertParams { hidden, intermediate, .. } = *params;
        let attention = |part: &str| format!("{name}.attention.{part}");
        Ok(Layer {
            query: linear(builder, &attention("self.query"), hidden, hidden)?,
            key: linear(builder, &attention("self.key"), hidden, hidden)?,
            value: linear(builder, &attention("self.value"), hidden, hidden)?,
            attention: linear(builder, &attention("output.dense"), hidden, hidden)?,
            attention_norm: LayerNorm::new(builder, &attention("output"), hidden)?,
            intermediate: linear(builder, &format!("{name}.intermediate.dense"), hidden, intermediate)?,
            output: linear(builder, &format!("{name}.output.dense"), intermediate, hidden)?,
            output_norm: LayerNorm::new(builder, &format!("{name}.output"), hidden)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_zeroes_its_share_and_keeps_the_mean() {
        let ones = Tensor::ones(100_001, DType::F32, &Device::Cpu).unwrap();
        let apply = |p: f64| {
            let mut dropout = Dropout { key: Some((3, 4)), place: 0 };
            dropout.apply(ones.clone(), p).unwrap().to_vec1::<f32>().unwrap()
        };
        for p in [0.1, 0.5] {
            let values = apply(p);
            let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
            assert!((zeros - p).abs() < 0.006, "{zeros} zeros of {p}");
            assert!(values.iter().all(|v| *v == 0.0 || *v == (1.0 / (1.0 - p)) as f32));
        }
        assert!(apply(0.0).iter().all(|v| *v == 1.0));
        let off = Dropout { key: None, place: 0 }.apply(ones.clone(), 0.5).unwrap();
        assert_eq!(off.to_vec1::<f32>().unwrap(), vec![1.0; 100_001]);
    }
}
