//! A convolutional network, forward and backward, on an engine: the same steps as `nn/net.rs`, images as
//! [example][row][column][channel]. Knows which value feeds which step; the gradients come in the order of the parameters.

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::{Buf, Conv, Gpu, Pass, Tiles};

/// PyTorch's defaults.
const EPSILON: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

/// Height, width, channels.
pub type Image = (usize, usize, usize);

/// A network's steps: value 0 is the input, step i makes value i + 1.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of every value.
    pub images: Vec<Image>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// relu?(norm(conv(input)) [+ residual]).
    Unit { kernel: usize, stride: usize, input: usize, residual: Option<usize>, relu: bool },
    /// Every second pixel, `before` zero channels before the input's.
    Shortcut { input: usize, before: usize },
    /// 3×3, stride 2, padding 1.
    MaxPool { input: usize },
}

/// Where a unit's numbers lie, all float32: weight OIHW, the norm's parameters and running statistics.
pub struct UnitBufs {
    pub weight: Buf,
    pub gamma: Buf,
    pub beta: Buf,
    pub mean: Buf,
    pub variance: Buf,
}

pub struct Net {
    plan: Plan,
    units: Vec<UnitBufs>,
}

/// What the forward pass of a training step leaves for the backward pass.
pub struct Saved {
    n: usize,
    values: Vec<Buf>,
    inner: Vec<Inner>,
}

enum Inner {
    Unit { packed: Buf, y: Buf, mean: Buf, inverse: Buf },
    MaxPool { choice: Buf },
    None,
}

fn len((height, width, channels): Image) -> usize {
    height * width * channels
}

impl Net {
    /// `units` in the order of the plan's units.
    pub fn new(plan: Plan, units: Vec<UnitBufs>) -> Net {
        Net { plan, units }
    }

    fn conv(&self, n: usize, step: usize, kernel: usize, stride: usize, input: usize) -> Conv {
        Conv { n, from: self.plan.images[input], to: self.plan.images[step + 1], kernel, stride }
    }

    /// Features [n, channels] (a new float32 tensor) of n images, float32. With `train` by the batch's statistics, which
    /// move the running ones.
    pub fn forward(&self, gpu: &Gpu, images: &Buf, n: usize, train: bool) -> Result<(Tensor, Saved)> {
        let plan = &self.plan;
        let first = gpu.as_reals(images, n * len(plan.images[0]))?;
        let mut saved = Saved { n, values: vec![first], inner: vec![] };
        let mut units = self.units.iter();
        for (at, (step, &to)) in plan.steps.iter().zip(&plan.images[1..]).enumerate() {
            let count = n * len(to);
            let out = gpu.reals(count)?;
            let inner = match *step {
                Step::Unit { kernel, stride, input, residual, relu } => {
                    let vars = units.next().context("net: more units than variables")?;
                    let conv = self.conv(n, at, kernel, stride, input);
                    let residual = residual.map_or(Buf::none(), |r| saved.values[r].clone());
                    self.unit(gpu, &conv, vars, &saved.values[input], &residual, relu, train, &out)?
                }
                Step::Shortcut { input, before } => {
                    let (h, w, c) = plan.images[input];
                    let sizes = [count, to.2, to.0, to.1, c, h, w, before];
                    gpu.each("shortcut", [&saved.values[input], &out], sizes, [])?;
                    Inner::None
                }
                Step::MaxPool { input } => {
                    let (h, w, _) = plan.images[input];
                    let choice = gpu.engine.alloc(count)?;
                    let sizes = [count, to.2, to.0, to.1, h, w];
                    gpu.each("max_pool", [&saved.values[input], &out, &choice], sizes, [])?;
                    Inner::MaxPool { choice }
                }
            };
            saved.values.push(out);
            saved.inner.push(inner);
        }
        let (h, w, c) = plan.images[plan.steps.len()];
        let (features, to) = gpu.tensor(&[n, c])?;
        gpu.each("mean_pixels", [&saved.values[plan.steps.len()], &to], [n * c, c, h * w], [])?;
        Ok((features, saved))
    }

    fn unit(
        &self,
        gpu: &Gpu,
        conv: &Conv,
        vars: &UnitBufs,
        x: &Buf,
        residual: &Buf,
        relu: bool,
        train: bool,
        out: &Buf,
    ) -> Result<Inner> {
        let (inputs, channels, taps) = (conv.from.2, conv.to.2, conv.kernel * conv.kernel);
        let rows = conv.n * conv.to.0 * conv.to.1;
        let packed = gpu.reals(inputs * channels * taps)?;
        // The element count stands first for `each`; the kernel multiplies the three itself.
        self.weights(gpu, "pack_weight", [&vars.weight, &packed], conv)?;
        let y = gpu.reals(rows * channels)?;
        gpu.engine.convolve(Pass::Forward, conv, x, &packed, &y)?;
        let (mut mean, inverse) = (vars.mean.clone(), gpu.floats(channels)?);
        if train {
            let t = Tiles::new(rows, channels);
            let parts = gpu.floats(2 * t.chunks * channels)?;
            mean = gpu.floats(channels)?;
            gpu.blocks("norm_sums", t.blocks, [&y, &parts], [rows, channels, t.lanes, t.per_chunk], [])?;
            let p = [&parts, &y, &mean, &inverse, &vars.mean, &vars.variance];
            gpu.blocks("norm_finish", channels, p, [t.chunks, channels, rows], [EPSILON, MOMENTUM])?;
        } else {
            gpu.each("norm_running", [&vars.variance, &inverse], [channels], [EPSILON])?;
        }
        let p = [&y, &mean, &inverse, &vars.gamma, &vars.beta, residual, out];
        gpu.each("norm_apply", p, [rows * channels, channels, usize::from(relu)], [])?;
        Ok(Inner::Unit { packed, y, mean, inverse })
    }

    /// A kernel over all weights of a convolution.
    fn weights(&self, gpu: &Gpu, kernel: &'static str, p: [&Buf; 2], conv: &Conv) -> Result<()> {
        let (inputs, channels, taps) = (conv.from.2, conv.to.2, conv.kernel * conv.kernel);
        let blocks = (inputs * channels * taps).div_ceil(super::THREADS).clamp(1, super::BLOCKS);
        gpu.blocks(kernel, blocks, p, [channels, inputs, taps], [])
    }

    /// The parameters' gradients (weight OIHW, gamma, beta of each unit) of a training step, given that of the features.
    pub fn backward(&self, gpu: &Gpu, saved: Saved, dfeatures: &Buf) -> Result<Vec<Tensor>> {
        let plan = &self.plan;
        let Saved { n, mut values, mut inner } = saved;
        let last = plan.steps.len();
        let mut gradients: Vec<Option<Buf>> = vec![None; last + 1];
        let (h, w, c) = plan.images[last];
        let dz = gpu.reals(n * len(plan.images[last]))?;
        gpu.each("spread", [dfeatures, &dz], [n * h * w * c, c, h * w], [])?;
        gradients[last] = Some(dz);
        let mut units = self.units.iter().rev();
        let mut out = vec![];
        for at in (0..last).rev() {
            let (value, saved) = (values.pop().unwrap_or(Buf::none()), inner.pop().unwrap_or(Inner::None));
            let dz = gradients[at + 1].take().context("net: a value that nothing reads")?;
            let to = plan.images[at + 1];
            match (plan.steps[at], saved) {
                (
                    Step::Unit { kernel, stride, input, residual, relu },
                    Inner::Unit { packed, y, mean, inverse },
                ) => {
                    let vars = units.next().context("net: more units than variables")?;
                    let conv = self.conv(n, at, kernel, stride, input);
                    let (channels, rows) = (to.2, n * to.0 * to.1);
                    let t = Tiles::new(rows, channels);
                    let parts = gpu.floats(2 * t.chunks * channels)?;
                    let mask = if relu { value } else { Buf::none() };
                    let sizes = [rows, channels, t.lanes, t.per_chunk];
                    gpu.blocks("norm_back_sums", t.blocks, [&dz, &mask, &y, &mean, &parts], sizes, [])?;
                    let ((dgamma, g), (dbeta, b)) = (gpu.tensor(&[channels])?, gpu.tensor(&[channels])?);
                    let by = gpu.floats(3 * channels)?;
                    let p = [&parts, &vars.gamma, &inverse, &g, &b, &by];
                    gpu.blocks("norm_back_finish", channels, p, [t.chunks, channels, rows, 1], [])?;
                    let dy = gpu.reals(rows * channels)?;
                    gpu.each("norm_back", [&dz, &y, &mean, &by, &dy], [rows * channels, channels], [])?;
                    drop(y);
                    let dpacked = gpu.reals(conv.from.2 * channels * kernel * kernel)?;
                    gpu.engine.convolve(Pass::ToWeights, &conv, &values[input], &dpacked, &dy)?;
                    let (dweight, to) = gpu.tensor(&[channels, conv.from.2, kernel, kernel])?;
                    self.weights(gpu, "unpack_gradient", [&dpacked, &to], &conv)?;
                    out.extend([dbeta, dgamma, dweight]);
                    if input > 0 {
                        let dx = gpu.reals(n * len(conv.from))?;
                        gpu.engine.convolve(Pass::ToInput, &conv, &dx, &packed, &dy)?;
                        give(gpu, &mut gradients[input], dx, n * len(conv.from))?;
                    }
                    if let Some(residual) = residual {
                        give(gpu, &mut gradients[residual], dz, rows * channels)?;
                    }
                }
                (Step::Shortcut { input, before }, _) => {
                    let (h, w, c) = plan.images[input];
                    let (dx, add) = taken(gpu, &mut gradients[input], n * h * w * c)?;
                    let sizes = [n * h * w * c, to.2, to.0, to.1, c, h, w, before, add];
                    gpu.each("shortcut_back", [&dx, &dz], sizes, [])?;
                    gradients[input] = Some(dx);
                }
                (Step::MaxPool { input }, Inner::MaxPool { choice }) => {
                    let (h, w, c) = plan.images[input];
                    let (dx, add) = taken(gpu, &mut gradients[input], n * h * w * c)?;
                    let sizes = [n * h * w * c, to.2, to.0, to.1, h, w, add];
                    gpu.each("max_pool_back", [&dx, &dz, &choice], sizes, [])?;
                    gradients[input] = Some(dx);
                }
                _ => anyhow::bail!("net: a step without what its forward pass saved"),
            }
        }
        out.reverse();
        Ok(out)
    }
}

/// Adds a gradient to a value's, which it becomes where there is none yet.
fn give(gpu: &Gpu, to: &mut Option<Buf>, gradient: Buf, count: usize) -> Result<()> {
    match to {
        Some(sum) => gpu.each("add", [sum, &gradient], [count], [])?,
        None => *to = Some(gradient),
    }
    Ok(())
}

/// A value's gradient and whether there is something in it to add to.
fn taken(gpu: &Gpu, of: &mut Option<Buf>, count: usize) -> Result<(Buf, usize)> {
    match of.take() {
        Some(sum) => Ok((sum, 1)),
        None => Ok((gpu.reals(count)?, 0)),
    }
}
