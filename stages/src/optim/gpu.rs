//! The optimisers' steps by an engine's kernels: one launch a parameter, nothing read back. Knows the kernels' arguments.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;

use super::{Optimizer, OptimizerParams};
use crate::nn::gpu::{Buf, Gpu};

impl Optimizer {
    /// The same for parameters that lie on a GPU.
    pub fn on(mut self, gpu: Option<Arc<Gpu>>) -> Optimizer {
        self.gpu = gpu;
        self
    }

    /// One step; the norm that clips is computed and used where the gradients lie.
    pub(super) fn step_on_gpu(&mut self, gradients: &[Tensor], rate: f64, clip: Option<f64>) -> Result<()> {
        let gpu = self.gpu.as_ref().context("optimizer: no GPU")?;
        ensure!(
            gradients.len() == self.parameters.len(),
            "optimizer: {} gradients for {} parameters",
            gradients.len(),
            self.parameters.len()
        );
        let scale = clip.map_or(Ok(Buf::none()), |most| gpu.clip(gradients, most))?;
        self.steps += 1;
        for (p, gradient) in self.parameters.iter().zip(gradients) {
            ensure!(
                gradient.shape() == p.var.shape() && gradient.is_contiguous(),
                "optimizer: {}: a gradient of shape {:?}",
                p.name,
                gradient.dims()
            );
            let rate = rate * p.factor;
            let count = p.var.elem_count();
            let (value, gradient) = (gpu.engine.address(&p.var)?, gpu.engine.address(gradient)?);
            let state = p.state.iter().map(|s| gpu.engine.address(s)).collect::<Result<Vec<_>>>()?;
            match &self.params {
                OptimizerParams::Sgd { momentum, nesterov, .. } => {
                    let buffer = state.first().cloned().unwrap_or(Buf::none());
                    let f = [rate as f32, *momentum as f32, p.decay as f32];
                    gpu.sgd([&value, &gradient, &buffer, &scale], count, *nesterov, f)?;
                }
                OptimizerParams::Adamw { beta1, beta2, epsilon, .. } => {
                    let [first, second] = &state[..] else { bail!("the two moments are missing") };
                    let correction = |beta: f64| 1.0 - libm::pow(beta, self.steps as f64);
                    let f = [
                        (1.0 - beta1) as f32,
                        *beta2 as f32,
                        (1.0 - beta2) as f32,
                        (1.0 - rate * p.decay) as f32,
                        (rate / correction(*beta1)) as f32,
                        libm::sqrt(correction(*beta2)) as f32,
                        *epsilon as f32,
                    ];
                    gpu.adamw([&value, &gradient, first, second, &scale], count, f)?;
                }
            }
        }
        Ok(())
    }
}
