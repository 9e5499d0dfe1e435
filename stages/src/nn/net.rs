//! A convolutional network as one differentiable function of (images, all its parameters): convolution + batch norm
//! (+ residual) (+ ReLU) units, parameter-free shortcuts, max pooling, a mean over pixels at the end. Knows which value
//! feeds which step, not what the network is called.
//!
//! One function for the whole network, because an autograd over its parts would write every gradient three times (zero,
//! add, copy) and could not give a finished gradient's memory to the next.

use super::conv::Conv;
use super::cpu::Cpu;
use super::gpu::net as gpu;
use super::layout::{self, Image};
use super::memory::{Buffer, share};
use super::norm::{self, Lanes};
use super::pool;
use super::simd::BLOCK;
use std::ops::Range;

/// Examples whose gradients are summed one after the other; the chunks' sums are then added in order. Fixed, so that
/// the bits do not depend on the number of threads.
const CHUNK: usize = 8;

/// PyTorch's default.
const EPSILON: f64 = 1e-5;

/// A value: the network's input is 0, each step makes the next.
pub type Value = usize;

enum Step {
    Unit(Unit),
    Shortcut { input: Value, before: usize },
    MaxPool { input: Value },
}

/// out = relu?(norm(conv(input)) [+ residual]).
struct Unit {
    conv: Conv,
    input: Value,
    residual: Option<Value>,
    relu: bool,
    /// Where its parameters lie among all.
    weight: Range<usize>,
    gamma: Range<usize>,
    beta: Range<usize>,
    /// Which of the running statistics.
    norm: usize,
}

/// The steps and shapes of a network.
pub struct Net {
    cpu: Cpu,
    shapes: Vec<Image>,
    steps: Vec<Step>,
    parameters: usize,
    norms: Vec<usize>,
}

/// Mean and variance of a batch norm's input, by channel.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    pub mean: Vec<f64>,
    /// Biased in the forward pass; [`Saved::batch`] has the unbiased one.
    pub variance: Vec<f64>,
}

/// What the forward pass leaves for the backward pass.
pub struct Saved {
    n: usize,
    values: Vec<Buffer>,
    /// By step: what its convolution gave, or a max pool's choices.
    inner: Vec<Option<Inner>>,
    /// By norm: the batch's mean and unbiased variance, if it was used.
    pub batch: Option<Vec<Statistics>>,
}

enum Inner {
    Unit { y: Buffer, mean: Vec<Lanes>, inverse: Vec<f64> },
    MaxPool(Vec<u8>),
}

impl Net {
    pub fn new(cpu: Cpu, input: Image) -> Net {
        Net { cpu, shapes: vec![input], steps: vec![], parameters: 0, norms: vec![] }
    }

    /// The shape of a value.
    pub fn shape(&self, value: Value) -> Image {
        self.shapes[value]
    }

    /// The last value.
    pub fn last(&self) -> Value {
        self.shapes.len() - 1
    }

    /// Length of the packed parameters: for each unit in order weight (OIHW), gamma, beta.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Channels of each norm, in the order of the units.
    pub fn norms(&self) -> &[usize] {
        &self.norms
    }

    /// The steps for another machine's kernels.
    pub fn plan(&self) -> gpu::Plan {
        let step = |step: &Step| match step {
            Step::Unit(Unit { conv, input, residual, relu, .. }) => gpu::Step::Unit {
                kernel: conv.kernel,
                // As the output's size is ⌈size / stride⌉; of single pixels any will do.
                stride: (conv.input.height.div_ceil(conv.output.height))
                    .max(conv.input.width.div_ceil(conv.output.width)),
                input: *input,
                residual: *residual,
                relu: *relu,
            },
            Step::Shortcut { input, before } => gpu::Step::Shortcut { input: *input, before: *before },
            Step::MaxPool { input } => gpu::Step::MaxPool { input: *input },
        };
        gpu::Plan {
            images: self.shapes.iter().map(|s| (s.height, s.width, s.channels)).collect(),
            steps: self.steps.iter().map(step).collect(),
        }
    }

    fn push(&mut self, step: Step, shape: Image) -> Value {
        self.steps.push(step);
        self.shapes.push(shape);
        self.last()
    }

    /// A square convolution (padding kernel / 2) and its batch norm.
    pub fn unit(
        &mut self,
        input: Value,
        channels: usize,
        (kernel, stride): (usize, usize),
        residual: Option<Value>,
        relu: bool,
    ) -> Value {
        let conv = Conv::new(&self.cpu, self.shapes[input], channels, (kernel, stride), CHUNK);
        if let Some(residual) = residual {
            assert_eq!(self.shapes[residual], conv.output, "net: a residual of another shape");
        }
        let mut take = |n: usize| {
            self.parameters += n;
            self.parameters - n..self.parameters
        };
        let (weight, gamma, beta) = (take(conv.weights()), take(channels), take(channels));
        self.norms.push(channels);
        let shape = conv.output;
        let norm = self.norms.len() - 1;
        self.push(Step::Unit(Unit { conv, input, residual, relu, weight, gamma, beta, norm }), shape)
    }

    /// Every second pixel, with zero channels on both sides: the imbalanced-CIFAR code's option A,
    /// `F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))`.
    pub fn shortcut(&mut self, input: Value, channels: usize) -> Value {
        let Image { height, width, channels: inputs } = self.shapes[input];
        assert!(inputs <= channels);
        let shape = Image { channels, height: height.div_ceil(2), width: width.div_ceil(2) };
        self.push(Step::Shortcut { input, before: (channels - inputs) / 2 }, shape)
    }

    /// 3×3, stride 2, padding 1.
    pub fn max_pool(&mut self, input: Value) -> Value {
        let Image { height, width, channels } = self.shapes[input];
        let shape = Image { channels, height: height.div_ceil(2), width: width.div_ceil(2) };
        self.push(Step::MaxPool { input }, shape)
    }

    /// Features [n, channels of the last value] of `images` (NHWC). With `running`, these statistics are used instead of
    /// the batch's.
    pub fn forward(
        &self,
        images: &[f32],
        parameters: &[f32],
        running: Option<&[Statistics]>,
    ) -> (Vec<f32>, Saved) {
        let n = images.len() / (self.shapes[0].pixels() * self.shapes[0].channels);
        assert_eq!(parameters.len(), self.parameters, "net: parameters");
        let mut saved = Saved { n, values: vec![self.input(n, images)], inner: vec![], batch: None };
        let mut batch = vec![Statistics::default(); self.norms.len()];
        for (step, shape) in self.steps.iter().zip(&self.shapes[1..]) {
            let mut out = Buffer::stale(n * shape.len());
            let inner = match step {
                Step::Unit(unit) => {
                    let (inner, statistics) = self.unit_forward(
                        unit,
                        &saved.values,
                        parameters,
                        running.map(|r| &r[unit.norm]),
                        &mut out,
                    );
                    batch[unit.norm] = statistics;
                    Some(inner)
                }
                Step::Shortcut { input, before } => {
                    let from = self.shapes[*input];
                    let to = out.shared();
                    self.cpu.for_each(n, |i| {
                        let x = &saved.values[*input][i * from.len()..][..from.len()];
                        pool::shortcut(from, *shape, *before, x, unsafe {
                            to.part(i * shape.len(), shape.len())
                        });
                    });
                    None
                }
                Step::MaxPool { input } => {
                    let from = self.shapes[*input];
                    let mut chosen = vec![0u8; n * shape.len()];
                    let to = out.shared();
                    let choice = pool::Bytes::new(&mut chosen);
                    self.cpu.for_each(n, |i| {
                        let x = &saved.values[*input][i * from.len()..][..from.len()];
                        let (out, chosen) = unsafe {
                            (to.part(i * shape.len(), shape.len()), choice.part(i * shape.len(), shape.len()))
                        };
                        let max = pool::Max { from, to: *shape, x, out, chosen };
                        unsafe { pool::max(self.cpu.isa, max) };
                    });
                    Some(Inner::MaxPool(chosen))
                }
            };
            saved.values.push(out);
            saved.inner.push(inner);
        }
        if running.is_none() {
            saved.batch = Some(batch);
        }
        (self.mean_pixels(n, &saved.values[self.last()]), saved)
    }

    fn input(&self, n: usize, images: &[f32]) -> Buffer {
        let shape = self.shapes[0];
        let flat = shape.pixels() * shape.channels;
        let mut value = Buffer::stale(n * shape.len());
        let to = value.shared();
        self.cpu.for_each(n, |i| {
            layout::from_nhwc(shape, &images[i * flat..][..flat], unsafe {
                to.part(i * shape.len(), shape.len())
            });
        });
        value
    }

    fn mean_pixels(&self, n: usize, value: &[f32]) -> Vec<f32> {
        let shape = self.shapes[self.last()];
        let mut features = vec![0.0; n * shape.channels];
        let to = share(&mut features);
        self.cpu.for_each(n, |i| {
            let features = unsafe { to.part(i * shape.channels, shape.channels) };
            for (block, features) in features.chunks_mut(BLOCK).enumerate() {
                let plane = &value[i * shape.len() + block * shape.plane()..][..shape.plane()];
                let mut sum: Lanes = [0.0; BLOCK];
                for pixel in plane.as_chunks::<BLOCK>().0 {
                    sum.iter_mut().zip(pixel).for_each(|(s, v)| *s += v);
                }
                features.iter_mut().zip(sum).for_each(|(f, s)| *f = s / shape.pixels() as f32);
            }
        });
        features
    }

    fn unit_forward(
        &self,
        unit: &Unit,
        values: &[Buffer],
        parameters: &[f32],
        running: Option<&Statistics>,
        out: &mut Buffer,
    ) -> (Inner, Statistics) {
        let (isa, conv) = (self.cpu.isa, &unit.conv);
        let (from, to) = (conv.input, conv.output);
        let (blocks, plane) = (to.blocks(), to.plane());
        let n = out.len() / to.len();
        let packed = conv.pack_forward(&self.cpu, &parameters[unit.weight.clone()]);
        let mut y = Buffer::stale(n * to.len());
        // By example and block: means, then sums of squares.
        let mut moments = vec![0f32; n * blocks * 2 * BLOCK];
        {
            let (y, moments) = (y.shared(), share(&mut moments));
            self.cpu.for_each(n.div_ceil(conv.group()), |group| {
                let first = group * conv.group();
                let count = conv.group().min(n - first);
                let x = &values[unit.input][first * from.len()..][..count * from.len()];
                let y = unsafe { y.part(first * to.len(), count * to.len()) };
                unsafe { conv.forward(x, &packed, y) };
                if running.is_none() {
                    for (at, y) in y.chunks_exact(plane).enumerate() {
                        let at = (first * blocks + at) * 2 * BLOCK;
                        let part = unsafe { moments.part(at, 2 * BLOCK) };
                        let ([mean, squares], _) = part.as_chunks_mut::<BLOCK>() else { continue };
                        unsafe { norm::moments(isa, norm::Moments { y, mean, squares }) };
                    }
                }
            });
        }
        let mut batch = Statistics::default();
        let used = match running {
            Some(statistics) => statistics.clone(),
            None => {
                let biased = combine(&moments, n, blocks, to.channels, to.pixels());
                let count = (n * to.pixels()) as f64;
                let unbiased = count / (count - 1.0).max(1.0);
                batch.mean = biased.mean.clone();
                batch.variance = biased.variance.iter().map(|v| v * unbiased).collect();
                biased
            }
        };
        let inverse: Vec<f64> = used.variance.iter().map(|v| 1.0 / (v + EPSILON).sqrt()).collect();
        let gamma = &parameters[unit.gamma.clone()];
        let mean = lanes(blocks, &used.mean, |m| *m);
        let scale =
            lanes(blocks, &inverse.iter().zip(gamma).collect::<Vec<_>>(), |(i, g)| *i * f64::from(**g));
        let shift = lanes(blocks, &parameters[unit.beta.clone()], |b| f64::from(*b));
        let out = out.shared();
        self.cpu.for_each(n, |i| {
            for block in 0..blocks {
                let at = i * to.len() + block * plane;
                let (mean, scale, shift) = (&mean[block], &scale[block], &shift[block]);
                let residual = unit.residual.map(|r| &values[r][at..at + plane]);
                let (y, out) = (&y[at..at + plane], unsafe { out.part(at, plane) });
                unsafe {
                    norm::apply(isa, norm::Apply { y, residual, out, mean, scale, shift, relu: unit.relu })
                };
            }
        });
        (Inner::Unit { y, mean, inverse }, batch)
    }

    /// The gradient with respect to the parameters, given that with respect to the features.
    pub fn backward(&self, saved: Saved, parameters: &[f32], dfeatures: &[f32]) -> Vec<f32> {
        let Saved { n, values, inner, batch } = saved;
        let mut dparameters = vec![0f32; self.parameters];
        let mut gradients: Vec<Option<Buffer>> = self.shapes.iter().map(|_| None).collect();
        gradients[self.last()] = Some(self.spread(n, dfeatures));
        for (at, (step, inner)) in self.steps.iter().zip(inner).enumerate().rev() {
            let Some(mut dz) = gradients[at + 1].take() else { continue };
            let shape = self.shapes[at + 1];
            match (step, inner) {
                (Step::Unit(unit), Some(Inner::Unit { y, mean, inverse })) => {
                    let add = gradients[unit.input].is_some();
                    let mut dx = match gradients[unit.input].take() {
                        Some(dx) => Some(dx),
                        None if unit.input == 0 => None,
                        None => Some(Buffer::stale(n * self.shapes[unit.input].len())),
                    };
                    let state = UnitState {
                        x: &values[unit.input],
                        out: &values[at + 1],
                        y: &y,
                        mean: &mean,
                        inverse: &inverse,
                        of_batch: batch.is_some(),
                    };
                    self.unit_backward(unit, state, parameters, &mut dz, dx.as_mut(), add, &mut dparameters);
                    gradients[unit.input] = dx;
                    if let Some(residual) = unit.residual {
                        self.give(&mut gradients[residual], dz);
                    }
                }
                (Step::Shortcut { input, before }, _) => {
                    let from = self.shapes[*input];
                    let mut dx = gradients[*input].take().unwrap_or_else(|| Buffer::zeroed(n * from.len()));
                    let to = dx.shared();
                    self.cpu.for_each(n, |i| {
                        let dz = &dz[i * shape.len()..][..shape.len()];
                        pool::shortcut_backward(from, shape, *before, dz, unsafe {
                            to.part(i * from.len(), from.len())
                        });
                    });
                    gradients[*input] = Some(dx);
                }
                (Step::MaxPool { input }, Some(Inner::MaxPool(chosen))) => {
                    let from = self.shapes[*input];
                    let mut dx = gradients[*input].take().unwrap_or_else(|| Buffer::zeroed(n * from.len()));
                    let to = dx.shared();
                    self.cpu.for_each(n, |i| {
                        let (dz, chosen) = (
                            &dz[i * shape.len()..][..shape.len()],
                            &chosen[i * shape.len()..][..shape.len()],
                        );
                        let dx = unsafe { to.part(i * from.len(), from.len()) };
                        let max = pool::MaxBackward { from, to: shape, dz, chosen, dx };
                        unsafe { pool::max_backward(self.cpu.isa, max) };
                    });
                    gradients[*input] = Some(dx);
                }
                _ => unreachable!("net: a step without what its forward pass saved"),
            }
        }
        dparameters
    }

    /// The gradient of the mean over pixels.
    fn spread(&self, n: usize, dfeatures: &[f32]) -> Buffer {
        let shape = self.shapes[self.last()];
        let mut gradient = Buffer::stale(n * shape.len());
        let to = gradient.shared();
        self.cpu.for_each(n, |i| {
            let features = &dfeatures[i * shape.channels..][..shape.channels];
            for (block, features) in features.chunks(BLOCK).enumerate() {
                let mut pixel: Lanes = [0.0; BLOCK];
                pixel.iter_mut().zip(features).for_each(|(p, f)| *p = f / shape.pixels() as f32);
                let plane = unsafe { to.part(i * shape.len() + block * shape.plane(), shape.plane()) };
                plane.as_chunks_mut::<BLOCK>().0.fill(pixel);
            }
        });
        gradient
    }

    fn give(&self, to: &mut Option<Buffer>, gradient: Buffer) {
        match to {
            None => *to = Some(gradient),
            Some(sum) => {
                let to = sum.shared();
                let part = 1 << 14;
                self.cpu.for_each(gradient.len().div_ceil(part), |i| {
                    let from = &gradient[i * part..gradient.len().min((i + 1) * part)];
                    let to = unsafe { to.part(i * part, from.len()) };
                    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                });
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn unit_backward(
        &self,
        unit: &Unit,
        state: UnitState<'_>,
        parameters: &[f32],
        dz: &mut Buffer,
        dx: Option<&mut Buffer>,
        add: bool,
        dparameters: &mut [f32],
    ) {
        let (isa, conv) = (self.cpu.isa, &unit.conv);
        let (from, to) = (conv.input, conv.output);
        let (blocks, plane) = (to.blocks(), to.plane());
        let n = dz.len() / to.len();
        let mut sums = vec![0f32; n * blocks * 2 * BLOCK];
        {
            let (dz, sums) = (dz.shared(), share(&mut sums));
            self.cpu.for_each(n, |i| {
                for block in 0..blocks {
                    let at = i * to.len() + block * plane;
                    let part = unsafe { sums.part((i * blocks + block) * 2 * BLOCK, 2 * BLOCK) };
                    let ([plain, weighted], _) = part.as_chunks_mut::<BLOCK>() else { continue };
                    let out = unit.relu.then(|| &state.out[at..at + plane]);
                    let (dz, y, mean) =
                        (unsafe { dz.part(at, plane) }, &state.y[at..at + plane], &state.mean[block]);
                    unsafe { norm::sums(isa, norm::Sums { dz, out, y, mean, plain, weighted }) };
                }
            });
        }
        // dy = γ·inv·(dz − Σdz/m − x̂·Σ(dz·x̂)/m) with x̂ = (y − mean)·inv; the sums vanish for running statistics.
        let count = (n * to.pixels()) as f64;
        let gamma = &parameters[unit.gamma.clone()];
        let (mut a, mut b, mut c) = (vec![0.0; to.channels], vec![0.0; to.channels], vec![0.0; to.channels]);
        for channel in 0..to.channels {
            let total = |which: usize| -> f64 {
                (0..n)
                    .map(|i| {
                        let at = ((i * blocks + channel / BLOCK) * 2 + which) * BLOCK + channel % BLOCK;
                        f64::from(sums[at])
                    })
                    .sum()
            };
            let (plain, weighted, inverse) = (total(0), total(1), state.inverse[channel]);
            dparameters[unit.gamma.start + channel] = (weighted * inverse) as f32;
            dparameters[unit.beta.start + channel] = plain as f32;
            a[channel] = f64::from(gamma[channel]) * inverse;
            if state.of_batch {
                b[channel] = -a[channel] * inverse * inverse * weighted / count;
                c[channel] = -a[channel] * plain / count;
            }
        }
        let (a, b, c) = (lanes(blocks, &a, |v| *v), lanes(blocks, &b, |v| *v), lanes(blocks, &c, |v| *v));
        let packed = dx.is_some().then(|| conv.pack_backward(&self.cpu, &parameters[unit.weight.clone()]));
        let dx = dx.map(|dx| dx.shared());
        let chunks = n.div_ceil(CHUNK);
        let mut parts = Buffer::stale(chunks * conv.gradient());
        {
            let parts = parts.shared();
            self.cpu.for_each(chunks, |chunk| {
                let dw = unsafe { parts.part(chunk * conv.gradient(), conv.gradient()) };
                dw.fill(0.0);
                let mut own = (!conv.sums_are_gradient()).then(|| Buffer::zeroed(conv.sums()));
                let mut dy = Buffer::stale(conv.group() * to.len());
                let end = n.min((chunk + 1) * CHUNK);
                for first in (chunk * CHUNK..end).step_by(conv.group()) {
                    let count = conv.group().min(end - first);
                    for block in 0..count * blocks {
                        let at = first * to.len() + block * plane;
                        let of = block % blocks;
                        let (mean, a, b, c) = (&state.mean[of], &a[of], &b[of], &c[of]);
                        let (dz, y) = (&dz[at..at + plane], &state.y[at..at + plane]);
                        let dy = &mut dy[block * plane..][..plane];
                        unsafe { norm::backward(isa, norm::Backward { dz, y, dy, mean, a, b, c }) };
                    }
                    let dy = &dy[..count * to.len()];
                    let x = &state.x[first * from.len()..][..count * from.len()];
                    unsafe { conv.weigh(x, dy, own.as_deref_mut().unwrap_or(dw)) };
                    if let (Some(dx), Some(packed)) = (dx, &packed) {
                        let dx = unsafe { dx.part(first * from.len(), count * from.len()) };
                        unsafe { conv.backward(dy, packed, dx, add) };
                    }
                }
                if let Some(sums) = own {
                    unsafe { conv.fold(&sums, dw) };
                }
            });
        }
        let (first, rest) = parts.split_at_mut(conv.gradient());
        let part = 1 << 12;
        let total = share(first);
        self.cpu.for_each(conv.gradient().div_ceil(part), |i| {
            let here = i * part..conv.gradient().min((i + 1) * part);
            let total = unsafe { total.part(here.start, here.len()) };
            for chunk in rest.chunks_exact(conv.gradient()) {
                total.iter_mut().zip(&chunk[here.clone()]).for_each(|(t, c)| *t += c);
            }
        });
        conv.unpack_weights(&self.cpu, &parts, &mut dparameters[unit.weight.clone()]);
    }
}

struct UnitState<'a> {
    x: &'a [f32],
    out: &'a [f32],
    y: &'a [f32],
    mean: &'a [Lanes],
    inverse: &'a [f64],
    of_batch: bool,
}

/// Values by channel as whole blocks of float32, zero in the unused lanes.
fn lanes<T>(blocks: usize, values: &[T], value: impl Fn(&T) -> f64) -> Vec<Lanes> {
    let mut out = vec![[0.0; BLOCK]; blocks];
    for (channel, v) in values.iter().enumerate() {
        out[channel / BLOCK][channel % BLOCK] = value(v) as f32;
    }
    out
}

/// The examples' moments, put together in order (Chan, Golub and LeVeque 1979).
fn combine(moments: &[f32], n: usize, blocks: usize, channels: usize, pixels: usize) -> Statistics {
    let mut statistics = Statistics::default();
    for channel in 0..channels {
        let at = |i: usize, which: usize| {
            f64::from(moments[((i * blocks + channel / BLOCK) * 2 + which) * BLOCK + channel % BLOCK])
        };
        let mean = (0..n).map(|i| at(i, 0)).sum::<f64>() / n as f64;
        let within: f64 = (0..n).map(|i| at(i, 1)).sum();
        let between: f64 = (0..n).map(|i| (at(i, 0) - mean).powi(2)).sum();
        statistics.mean.push(mean);
        statistics.variance.push((within + between * pixels as f64) / (n * pixels) as f64);
    }
    statistics
}
