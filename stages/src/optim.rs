//! SGD and AdamW as PyTorch's, with parameter groups, and clipping by the global norm. Knows named parameters and their
//! gradients; knows no model, no loss and no schedule.

use crate::nn::memory::{Shared, share};
use anyhow::{Context, Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Storage, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::nn::gpu::Gpu;

mod gpu;

/// Which optimiser: the `optimizer` param.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerParams {
    /// `torch.optim.SGD`; the decay is L2, added to the gradient of every parameter.
    Sgd {
        #[serde(default)]
        momentum: f64,
        #[serde(default)]
        weight_decay: f64,
        #[serde(default)]
        nesterov: bool,
        #[serde(default)]
        groups: Vec<Group>,
    },
    /// `torch.optim.AdamW`; the decay is decoupled.
    Adamw {
        #[serde(default = "beta1")]
        beta1: f64,
        #[serde(default = "beta2")]
        beta2: f64,
        #[serde(default = "epsilon")]
        epsilon: f64,
        #[serde(default)]
        weight_decay: f64,
        #[serde(default)]
        groups: Vec<Group>,
    },
}

/// Parameters treated apart: those whose name contains one of `names`; the first group that fits counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub names: Vec<String>,
    /// Instead of the optimiser's.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// The rate is multiplied by it.
    #[serde(default = "one")]
    pub rate_factor: f64,
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn epsilon() -> f64 {
    1e-8
}
fn one() -> f64 {
    1.0
}

struct Parameter {
    name: String,
    var: Var,
    decay: f64,
    factor: f64,
    /// Momentum, or AdamW's two moments; empty for plain SGD.
    state: Vec<Var>,
}

/// An optimiser over named float32 parameters.
pub struct Optimizer {
    params: OptimizerParams,
    parameters: Vec<Parameter>,
    /// How many steps were made.
    steps: u64,
    /// Where the parameters lie, if not on the CPU.
    gpu: Option<Arc<Gpu>>,
}

impl Optimizer {
    /// Errors: Nesterov without momentum, a value out of its range, a group that fits no parameter.
    pub fn new(params: &OptimizerParams, parameters: &[(String, Var)]) -> Result<Optimizer> {
        let (decay, groups, states) = match params {
            OptimizerParams::Sgd { momentum, weight_decay, nesterov, groups } => {
                ensure!((0.0..1.0).contains(momentum), "optimizer.momentum: {momentum}: must be in [0, 1)");
                ensure!(!nesterov || *momentum > 0.0, "optimizer.nesterov: needs a momentum above 0");
                (*weight_decay, groups, usize::from(*momentum > 0.0))
            }
            OptimizerParams::Adamw { beta1, beta2, epsilon, weight_decay, groups } => {
                for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
                    ensure!((0.0..1.0).contains(beta), "optimizer.{name}: {beta}: must be in [0, 1)");
                }
                ensure!(*epsilon >= 0.0, "optimizer.epsilon: {epsilon}: must be at least 0");
                (*weight_decay, groups, 2)
            }
        };
        ensure!(
            decay.is_finite() && decay >= 0.0,
            "optimizer.weight_decay: {decay}: must be finite, at least 0"
        );
        let fits = |group: &Group, name: &str| group.names.iter().any(|part| name.contains(part.as_str()));
        for group in groups {
            if !parameters.iter().any(|(name, _)| fits(group, name)) {
                bail!("optimizer.groups: {:?}: no parameter's name contains one of these", group.names);
            }
        }
        let parameters = parameters
            .iter()
            .map(|(name, var)| {
                ensure!(
                    var.dtype() == DType::F32 && var.is_contiguous(),
                    "optimizer: {name}: is {:?}, must be contiguous float32",
                    var.dtype()
                );
                let group = groups.iter().find(|g| fits(g, name));
                let state = (0..states).map(|_| Ok(Var::zeros(var.shape(), DType::F32, var.device())?));
                Ok(Parameter {
                    name: name.clone(),
                    var: var.clone(),
                    decay: group.and_then(|g| g.weight_decay).unwrap_or(decay),
                    factor: group.map_or(1.0, |g| g.rate_factor),
                    state: state.collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Optimizer { params: params.clone(), parameters, steps: 0, gpu: None })
    }

    /// Takes the parameters' gradients, in their order, out of a backward pass.
    ///
    /// Errors: a parameter without a gradient: the loss does not depend on it, or candle dropped it.
    pub fn gradients(&self, store: &mut GradStore) -> Result<Vec<Tensor>> {
        let take = |p: &Parameter| {
            let gradient = store
                .remove(p.var.as_tensor())
                .with_context(|| format!("gradient: {}: the parameter received none", p.name))?;
            Ok(gradient.to_dtype(DType::F32)?.contiguous()?)
        };
        self.parameters.iter().map(take).collect()
    }

    /// One step along `gradients` (as [`Optimizer::gradients`] gives them), each first multiplied by `scale`.
    pub fn step(&mut self, gradients: &[Tensor], rate: f64, scale: f64) -> Result<()> {
        ensure!(
            gradients.len() == self.parameters.len(),
            "optimizer: {} gradients for {} parameters",
            gradients.len(),
            self.parameters.len()
        );
        if self.gpu.is_some() {
            let scaled = gradients.iter().map(|g| Ok((g * scale)?)).collect::<Result<Vec<_>>>()?;
            return self.step_on_gpu(&scaled, rate, None);
        }
        self.steps += 1;
        for (p, gradient) in self.parameters.iter().zip(gradients) {
            let rate = rate * p.factor;
            match &self.params {
                OptimizerParams::Sgd { momentum, nesterov, .. } => {
                    p.sgd(gradient, scale as f32, rate as f32, *momentum as f32, *nesterov)
                }
                OptimizerParams::Adamw { beta1, beta2, epsilon, .. } => {
                    p.adamw(gradient, scale, rate, [*beta1, *beta2], *epsilon, self.steps)
                }
            }
            .with_context(|| format!("optimizer: {}", p.name))?;
        }
        Ok(())
    }

    /// As [`Optimizer::step`], with the gradients first scaled so that their global norm is at most `clip`.
    pub fn step_clipped(&mut self, gradients: &[Tensor], rate: f64, clip: Option<f64>) -> Result<()> {
        if self.gpu.is_some() {
            return self.step_on_gpu(gradients, rate, clip);
        }
        let scale = match clip {
            Some(most) => clip_scale(global_norm(gradients)?, most),
            None => 1.0,
        };
        self.step(gradients, rate, scale)
    }

    /// How many steps were made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Everything to be saved beside the parameters: named tensors. Their number of steps is [`Optimizer::steps`].
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |p: &Parameter, i: usize| (format!("{}.{i}", p.name), p.state[i].as_detached_tensor());
        self.parameters.iter().flat_map(|p| (0..p.state.len()).map(move |i| named(p, i))).collect()
    }

    /// Puts back a saved state; `find` gives a tensor by its name.
    ///
    /// Errors: a tensor that is missing or has another shape.
    pub fn restore(&mut self, steps: u64, find: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for p in &self.parameters {
            for (i, state) in p.state.iter().enumerate() {
                state.set(&find(&format!("{}.{i}", p.name))?.to_device(state.device())?)?;
            }
        }
        self.steps = steps;
        Ok(())
    }
}

impl Parameter {
    // PyTorch's _single_tensor_sgd without dampening. Its first step sets the buffer to the gradient: the same as this,
    // from a buffer of 0.
    fn sgd(&self, gradient: &Tensor, scale: f32, rate: f32, momentum: f32, nesterov: bool) -> Result<()> {
        let decay = self.decay as f32;
        let Some(buffer) = self.state.first() else {
            return each(&self.var, gradient, |_, p, g| {
                for (p, g) in p.iter_mut().zip(g) {
                    *p -= rate * (g * scale + decay * *p);
                }
            });
        };
        hold(buffer, |buffer| {
            each(&self.var, gradient, |at, p, g| {
                let buffer = unsafe { buffer.part(at, p.len()) };
                for ((p, g), b) in p.iter_mut().zip(g).zip(buffer) {
                    let decayed = g * scale + decay * *p;
                    *b = momentum * *b + decayed;
                    *p -= rate * if nesterov { decayed + momentum * *b } else { *b };
                }
            })
        })
    }

    // PyTorch's _single_tensor_adamw: decay, moments, then the step with both bias corrections.
    fn adamw(
        &self,
        gradient: &Tensor,
        scale: f64,
        rate: f64,
        [beta1, beta2]: [f64; 2],
        epsilon: f64,
        steps: u64,
    ) -> Result<()> {
        let correction = |beta: f64| 1.0 - libm::pow(beta, steps as f64);
        let size = (rate / correction(beta1)) as f32;
        let root = libm::sqrt(correction(beta2)) as f32;
        let keep = (1.0 - rate * self.decay) as f32;
        let (scale, epsilon) = (scale as f32, epsilon as f32);
        let (one_less1, beta2, one_less2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
        let [first, second] = &self.state[..] else { bail!("the two moments are missing") };
        hold(first, |first| {
            hold(second, |second| {
                each(&self.var, gradient, |at, p, g| {
                    let (m, v) = unsafe { (first.part(at, p.len()), second.part(at, p.len())) };
                    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * scale;
                        *m += (g - *m) * one_less1;
                        *v = *v * beta2 + g * g * one_less2;
                        *p = *p * keep - size * (*m / (v.sqrt() / root + epsilon));
                    }
                })
            })
        })
    }
}

/// √ of the sum of all squares, in float64 and in a fixed order, so that no thread count shows.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients {
        let contiguous = gradient.flatten_all()?.contiguous()?;
        let (storage, layout) = contiguous.storage_and_layout();
        if let Storage::Cpu(CpuStorage::F32(values)) = &*storage {
            let values = &values[layout.start_offset()..layout.start_offset() + contiguous.elem_count()];
            let parts: Vec<f64> = values.par_chunks(CHUNK).map(squares).collect();
            total += parts.iter().sum::<f64>();
        } else {
            drop(storage);
            total += contiguous.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
    }
    Ok(libm::sqrt(total))
}

/// The sum of squares in 8 interleaved sums, which need not wait for each other.
fn squares(values: &[f32]) -> f64 {
    let (groups, rest) = values.as_chunks::<8>();
    let mut sums = [0f64; 8];
    let mut add = |group: &[f32]| {
        for (sum, x) in sums.iter_mut().zip(group) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    };
    groups.iter().for_each(|group| add(group));
    add(rest);
    sums.iter().sum()
}

/// What to multiply gradients of this norm by so that it becomes at most `most`: as `clip_grad_norm_`.
pub fn clip_scale(norm: f64, most: f64) -> f64 {
    (most / (norm + 1e-6)).min(1.0)
}

/// Elements that one thread takes at a time; fixed, so that sums are the same for any number of threads.
const CHUNK: usize = 1 << 14;

/// Calls `step(at, target, gradient)` for every part of `target`, in parallel: its floats from `at` on and the gradient's
/// at the same place. One pass, whatever else the step reads and writes there.
fn each(target: &Var, gradient: &Tensor, step: impl Fn(usize, &mut [f32], &[f32]) + Sync) -> Result<()> {
    ensure!(
        gradient.shape() == target.shape(),
        "shape {:?} where {:?} is expected",
        gradient.dims(),
        target.dims()
    );
    Ok(target.inplace_op2(gradient, &Each(step))?)
}

/// Calls `run` with the floats of a variable that it may write to.
fn hold(var: &Var, run: impl Fn(Shared) -> Result<()>) -> Result<()> {
    Ok(var.inplace_op1(&Hold(run))?)
}

struct Each<F>(F);
struct Hold<F>(F);

/// The elements of a contiguous float32 tensor on the CPU.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("must be contiguous float32"),
    }
}

fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("must be contiguous float32"),
    }
}

impl<F: Fn(usize, &mut [f32], &[f32]) + Sync> InplaceOp2 for Each<F> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (target, gradient) = (elements_mut(target, layout)?, elements(gradient, gradient_layout)?);
        let parts = target.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).enumerate();
        parts.for_each(|(i, (target, gradient))| (self.0)(i * CHUNK, target, gradient));
        Ok(())
    }
}

impl<F: Fn(Shared) -> Result<()>> InplaceOp1 for Hold<F> {
    fn name(&self) -> &'static str {
        "optimizer-state"
    }

    fn cpu_fwd(&self, state: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        (self.0)(share(elements_mut(state, layout)?)).map_err(|e| candle_core::Error::Msg(format!("{e:#}")))
    }
}
