//! BERT of any size with pooler and dropout in all of its places, named as `BertForSequenceClassification`. Knows
//! tokens as numbers, no text.

use super::Builder;
use crate::nn::cpu::Cpu;
use crate::nn::dropout::Key;
use crate::nn::gpu::bert as gpu;
use crate::nn::transformer::{Batch, Saved, Transformer};
use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Storage, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

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

pub struct Bert {
    params: BertParams,
    body: Arc<Body>,
}

/// What its operations share.
struct Body {
    transformer: Transformer,
    /// In the transformer's order, which is the published one.
    vars: Vec<Var>,
    /// What the backward passes since the last [`Bert::backward`] gave.
    gradients: Mutex<Option<Vec<Vec<f32>>>>,
}

/// Makes the parameters one after the other.
struct Vars<'a, 'b> {
    builder: &'a mut Builder<'b>,
    vars: Vec<Var>,
}

impl Vars<'_, '_> {
    fn table(&mut self, name: &str, shape: [usize; 2]) -> Result<()> {
        self.vars.push(self.builder.normal(format!("{name}.weight"), &shape, DEVIATION)?);
        Ok(())
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<()> {
        self.table(name, [outputs, inputs])?;
        self.vars.push(self.builder.constant(format!("{name}.bias"), &[outputs], 0.0)?);
        Ok(())
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.vars.push(self.builder.constant(format!("{name}.LayerNorm.weight"), &[width], 1.0)?);
        self.vars.push(self.builder.constant(format!("{name}.LayerNorm.bias"), &[width], 0.0)?);
        Ok(())
    }

    fn layer(&mut self, name: &str, params: &BertParams) -> Result<()> {
        let BertParams { hidden, intermediate, .. } = *params;
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            self.linear(&format!("{name}.attention.{part}"), hidden, hidden)?;
        }
        self.norm(&format!("{name}.attention.output"), hidden)?;
        self.linear(&format!("{name}.intermediate.dense"), hidden, intermediate)?;
        self.linear(&format!("{name}.output.dense"), intermediate, hidden)?;
        self.norm(&format!("{name}.output"), hidden)
    }
}

impl Bert {
    pub fn new(builder: &mut Builder<'_>, params: &BertParams, cpu: Cpu) -> Result<Bert> {
        let BertParams { hidden, heads, layers, intermediate, dropout, attention_dropout, .. } = *params;
        ensure!(
            heads > 0 && hidden > 0 && hidden.is_multiple_of(heads),
            "model: heads: {heads} do not divide hidden {hidden}"
        );
        for (name, size) in [("layers", layers), ("intermediate", intermediate), ("types", params.types)] {
            ensure!(size > 0, "model: {name}: 0: needs at least one");
        }
        for (name, p) in [("dropout", dropout), ("attention_dropout", attention_dropout)] {
            ensure!((0.0..1.0).contains(&p), "model: {name}: {p} is not in [0, 1)");
        }
        let place = "bert.embeddings";
        let mut vars = Vars { builder, vars: vec![] };
        for (name, rows) in
            [("word", params.vocabulary), ("position", params.positions), ("token_type", params.types)]
        {
            vars.table(&format!("{place}.{name}_embeddings"), [rows, hidden])?;
        }
        vars.norm(place, hidden)?;
        for i in 0..layers {
            vars.layer(&format!("bert.encoder.layer.{i}"), params)?;
        }
        vars.linear("bert.pooler.dense", hidden, hidden)?;
        let vars = vars.vars;
        let epsilon = params.epsilon as f32;
        let transformer =
            Transformer { cpu, hidden, layers, heads, intermediate, epsilon, dropout, attention_dropout };
        let body = Body { transformer, vars, gradients: Mutex::new(None) };
        Ok(Bert { params: params.clone(), body: Arc::new(body) })
    }

    /// For another machine's kernels.
    pub fn sizes(&self) -> gpu::Sizes {
        let p = &self.params;
        gpu::Sizes {
            vocabulary: p.vocabulary,
            hidden: p.hidden,
            layers: p.layers,
            heads: p.heads,
            intermediate: p.intermediate,
            positions: p.positions,
            types: p.types,
            epsilon: p.epsilon,
            dropout: p.dropout,
            attention_dropout: p.attention_dropout,
        }
    }

    /// The pooled first token [N, hidden]. `tokens` is u32 [N, 3, length]: numbers of tokens, of segments (token types),
    /// and 1 where a token stands, 0 for padding. With `dropout`, the masks of that (seed, step). Gradients come through
    /// [`Bert::backward`].
    ///
    /// Errors: a tensor of another shape or type, more tokens than positions, a token that the vocabulary lacks.
    pub fn features(&self, tokens: &Tensor, dropout: Option<(u64, u64)>) -> Result<Tensor> {
        let most = self.params.positions;
        let dims = tokens.dims();
        ensure!(
            tokens.dtype() == DType::U32 && dims.len() == 3 && dims[1] == 3 && (1..=most).contains(&dims[2]),
            "model: input: {:?} {dims:?}, expected U32 [N, 3, 1 to {most}]",
            tokens.dtype()
        );
        let tokens: Vec<u32> = tokens.flatten_all()?.to_vec1()?;
        let batch = Batch::new(&tokens, dims[2], self.params.vocabulary, self.params.types)?;
        let key = dropout.map(|(seed, step)| Key { seed, step });
        let op = Features { body: self.body.clone(), batch, key, saved: Mutex::new(None) };
        // The pooler's bias stands for all parameters in candle's graph.
        let bias = self.body.vars.last().context("model: no parameters")?;
        Ok(bias.as_tensor().apply_op1(op)?)
    }

    /// The gradients of a loss of its features. Here, and not in candle's backward pass, because that would write each
    /// of them three times more (zero, add, copy).
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        self.body.take();
        let mut store = loss.backward()?;
        for (var, gradient) in self.body.vars.iter().zip(self.body.take().unwrap_or_default()) {
            store.insert(var.as_tensor(), Tensor::from_vec(gradient, var.shape(), &Device::Cpu)?);
        }
        Ok(store)
    }
}

impl Body {
    fn take(&self) -> Option<Vec<Vec<f32>>> {
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Calls `run` with the parameters' floats.
    fn with_floats<T>(&self, run: impl FnOnce(&[&[f32]]) -> T) -> candle_core::Result<T> {
        let guards: Vec<_> = self.vars.iter().map(|var| var.storage_and_layout()).collect();
        let mut floats = vec![];
        for (storage, layout) in &guards {
            match (&**storage, layout.contiguous_offsets()) {
                (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
                    floats.push(&values[start..end])
                }
                _ => candle_core::bail!("bert: a parameter that is not contiguous float32 on the CPU"),
            }
        }
        Ok(run(&floats))
    }
}

/// One forward pass in candle's graph.
struct Features {
    body: Arc<Body>,
    batch: Batch,
    key: Option<Key>,
    saved: Mutex<Option<Saved>>,
}

impl CustomOp1 for Features {
    fn name(&self) -> &'static str {
        "bert"
    }

    fn cpu_fwd(&self, _bias: &CpuStorage, _layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let transformer = &self.body.transformer;
        let (features, saved) = self.body.with_floats(|w| transformer.forward(&self.batch, w, self.key))?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        let hidden = transformer.hidden;
        let shape = (features.len() / hidden, hidden);
        Ok((CpuStorage::F32(features), shape.into()))
    }

    fn bwd(&self, bias: &Tensor, _features: &Tensor, d: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(saved) = saved else {
            candle_core::bail!("bert: a second backward pass through one forward pass")
        };
        let d = d.flatten_all()?.to_vec1::<f32>()?;
        let transformer = &self.body.transformer;
        let ours = self.body.with_floats(|w| transformer.backward(&self.batch, w, saved, d))?;
        let mut gradients = self.body.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *gradients {
            // A loss of several forward passes.
            Some(sums) => {
                for (sum, part) in sums.iter_mut().flatten().zip(ours.iter().flatten()) {
                    *sum += part;
                }
            }
            none => *none = Some(ours),
        }
        Ok(Some(bias.zeros_like()?))
    }
}
