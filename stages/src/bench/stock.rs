//! `stages bench stock`: a CIFAR ResNet's step by candle's own convolutions and automatic gradient, without an update: what a
//! training would take without kernels of ours. Knows candle; nothing of it enters a result.

use std::time::Instant;

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};
use serde_json::{Value, json};

use super::{Request, median};
use crate::job::bad;
use crate::models::ModelParams;

/// Steps of made-up data; the threads are those of the environment (`RAYON_NUM_THREADS`).
///
/// Errors: another model than a CIFAR ResNet with shortcuts A.
pub fn measure(request: &Request) -> Result<Value> {
    let ModelParams::ResnetCifar { depth, .. } = request.params else {
        return Err(bad("stock: only resnet<depth> is written with candle alone".to_string()));
    };
    let shape = request.shape;
    let mut net = Net { variables: vec![], at: 0 };
    let size = (request.batch, shape.channels, shape.height, shape.width);
    let x = Tensor::randn(0f32, 1.0, size, &Device::Cpu)?;
    let labels: Vec<u32> = (0..request.batch).map(|i| (i % shape.classes) as u32).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?.unsqueeze(1)?;
    let mut whole = vec![];
    for number in 0..=request.steps {
        let start = Instant::now();
        net.at = 0;
        let logits = net.forward(&x, depth, shape.classes)?;
        let picked = logits.gather(&labels, 1)?.squeeze(1)?;
        let loss = (logits.log_sum_exp(D::Minus1)? - picked)?.mean_all()?;
        let store = loss.backward()?;
        anyhow::ensure!(net.variables.iter().all(|v| store.get(v).is_some()), "candle lost a gradient");
        if number > 0 {
            whole.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let step = median(&mut whole);
    Ok(
        json!({"model": request.params, "batch": request.batch, "steps": request.steps, "by": "candle's convolutions",
        "image": [shape.height, shape.width, shape.channels], "ms": {"step": step},
        "examples_per_second": (request.batch as f64 / step * 1e4).round() / 10.0}),
    )
}

/// The parameters in the order of their use, made at the first one.
struct Net {
    variables: Vec<Var>,
    at: usize,
}

impl Net {
    fn variable(&mut self, dims: &[usize], spread: f64) -> Result<Tensor> {
        if self.at == self.variables.len() {
            self.variables.push(Var::randn(0f32, spread as f32, dims, &Device::Cpu)?);
        }
        self.at += 1;
        Ok(self.variables[self.at - 1].as_tensor().clone())
    }

    /// 3×3 convolution and batch normalisation by the batch.
    fn convolved(&mut self, x: &Tensor, out: usize, stride: usize) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let weight = self.variable(&[out, channels, 3, 3], (2.0 / (9 * out) as f64).sqrt())?;
        let x = x.conv2d(&weight, 1, stride, 1, 1)?;
        let mean = |x: &Tensor| x.mean_keepdim(D::Minus1)?.mean_keepdim(2)?.mean_keepdim(0);
        let centred = x.broadcast_sub(&mean(&x)?)?;
        let scale = (mean(&centred.sqr()?)? + 1e-5)?.sqrt()?;
        let (gain, bias) = (self.variable(&[1, out, 1, 1], 1.0)?, self.variable(&[1, out, 1, 1], 1.0)?);
        Ok(centred.broadcast_div(&scale)?.broadcast_mul(&gain)?.broadcast_add(&bias)?)
    }

    fn forward(&mut self, x: &Tensor, depth: usize, classes: usize) -> Result<Tensor> {
        let mut x = self.convolved(x, 16, 1)?.relu()?;
        for (stage, width) in [16, 32, 64].into_iter().enumerate() {
            for block in 0..(depth - 2) / 6 {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let inner = self.convolved(&x, width, stride)?.relu()?;
                let inner = self.convolved(&inner, width, 1)?;
                x = (inner + shortcut(&x, width, stride)?)?.relu()?;
            }
        }
        let features = x.mean(D::Minus1)?.mean(D::Minus1)?;
        let weight = self.variable(&[64, classes], 0.1)?;
        Ok(features.matmul(&weight)?.to_dtype(DType::F32)?)
    }
}

/// Option A: every second pixel, channels of zeros around.
fn shortcut(x: &Tensor, width: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let second = |n: usize| Tensor::arange_step(0u32, n as u32, 2, &Device::Cpu);
    let x = x.index_select(&second(x.dim(2)?)?, 2)?.index_select(&second(x.dim(3)?)?, 3)?;
    let more = width - x.dim(1)?;
    Ok(x.pad_with_zeros(1, more / 2, more - more / 2)?)
}
