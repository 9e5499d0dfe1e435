//! Layer norm, softmax and GELU over rows, with the gradients that candle lacks or rounds. Knows tensors as rows of
//! floats, not what they stand for.
//!
//! Plain loops over groups of 16 floats, which the compiler turns into vectors; no sum depends on the instruction set.

// The dispatch hands every pass its vector type, used or not; the constants are written as published.
#![allow(clippy::extra_unused_type_parameters, clippy::excessive_precision)]

use super::cpu::Cpu;
use super::memory::share;
use super::simd::{Vector, kernel};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Error, Layout, Result, Shape, Storage, Tensor};

/// Rows that a thread takes at a time, and whose parameter gradients are summed first.
const ROWS: usize = 64;
const GROUP: usize = 16;

/// A contiguous tensor's floats in a forward pass.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => Err(Error::RequiresContiguous { op: "rows" }),
    }
}

/// Calls `read` with the floats of several tensors, made contiguous.
fn with<const N: usize, T>(tensors: [&Tensor; N], read: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let contiguous = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            Storage::Cpu(storage) => floats(storage, layout)?,
            _ => return Err(Error::Msg("rows: not a tensor of the CPU".into())),
        };
    }
    Ok(read(slices))
}

/// Σ f(i) in 16 interleaved sums: short chains, small errors, and vectors.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; GROUP];
    for start in (0..n - n % GROUP).step_by(GROUP) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += f(start + i);
        }
    }
    let mut total: f32 = (n - n % GROUP..n).map(&f).sum();
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    total += sums[0];
    total
}

/// What a kernel over a span of rows is given.
pub struct Span<'a> {
    width: usize,
    x: &'a [f32],
    /// The result's gradient in a backward pass.
    dy: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
    /// Sums over the rows: dγ, then dβ.
    dparameters: &'a mut [f32],
}

#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

#[inline(always)]
unsafe fn layer_norm_rows<V: Vector>(span: Span<'_>) {
    let Span { width, x, gamma, beta, epsilon, out, .. } = span;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (mean, inverse) = moments(x, epsilon);
        for i in 0..width {
            out[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
        }
    }
}

#[inline(always)]
unsafe fn layer_norm_back<V: Vector>(span: Span<'_>) {
    let Span { width, x, dy, gamma, epsilon, out, dparameters, .. } = span;
    let (dgamma, dbeta) = dparameters.split_at_mut(width);
    for ((x, dy), out) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
        let (mean, inverse) = moments(x, epsilon);
        let n = width as f32;
        let plain = sum(width, |i| dy[i] * gamma[i]) / n;
        let weighted = sum(width, |i| dy[i] * gamma[i] * ((x[i] - mean) * inverse)) / n;
        for i in 0..width {
            let normal = (x[i] - mean) * inverse;
            dgamma[i] += dy[i] * normal;
            dbeta[i] += dy[i];
            out[i] = inverse * (dy[i] * gamma[i] - plain - normal * weighted);
        }
    }
}

#[inline(always)]
unsafe fn softmax_rows<V: Vector>(span: Span<'_>) {
    let Span { width, x, out, .. } = span;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let most = x.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
        for i in 0..width {
            out[i] = exp(x[i] - most);
        }
        let total = 1.0 / sum(width, |i| out[i]);
        out.iter_mut().for_each(|v| *v *= total);
    }
}

/// `x` is the softmax.
#[inline(always)]
unsafe fn softmax_back<V: Vector>(span: Span<'_>) {
    let Span { width, x, dy, out, .. } = span;
    for ((p, dy), out) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
        let mean = sum(width, |i| p[i] * dy[i]);
        for i in 0..width {
            out[i] = p[i] * (dy[i] - mean);
        }
    }
}

#[inline(always)]
unsafe fn gelu_rows<V: Vector>(span: Span<'_>) {
    for (out, x) in span.out.iter_mut().zip(span.x) {
        *out = x * 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[inline(always)]
unsafe fn gelu_back<V: Vector>(span: Span<'_>) {
    for ((out, x), dy) in span.out.iter_mut().zip(span.x).zip(span.dy) {
        let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        // 1/√(2π)
        let density = 0.398_942_3 * exp(-0.5 * x * x);
        *out = dy * (below + x * density);
    }
}

kernel!(layer_norm_forward, layer_norm_rows, Span<'_>);
kernel!(layer_norm_backward, layer_norm_back, Span<'_>);
kernel!(softmax_forward, softmax_rows, Span<'_>);
kernel!(softmax_backward, softmax_back, Span<'_>);
kernel!(gelu_forward, gelu_rows, Span<'_>);
kernel!(gelu_backward, gelu_back, Span<'_>);

/// eˣ without a branch, to about 1e-7 relative: 2^n · e^r with |r| ≤ ln 2 / 2 (Cephes' expf). 0 below −87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let inside = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 · 2^23 rounds to a whole number without a library call.
    let n = (inside * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = (inside - n * 0.693_359_375) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_2e-3;
    let p = ((p * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1;
    let p = (p * r + 0.5) * r * r + r + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// The error function to 1e-7: Eigen's rational function x · p(x²) / q(x²) on [−4, 4].
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = ((-2.726_142_3e-10 * s + 2.770_681_4e-8) * s - 2.101_024e-6) * s - 5.692_506_2e-5;
    let p = ((p * s - 7.349_906_3e-4) * s - 2.954_6e-3) * s - 1.609_603_3e-2;
    let q = ((-1.456_607_2e-5 * s - 2.133_740_6e-4) * s - 1.682_827e-3) * s - 7.373_329_2e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

type Kernel = unsafe fn(super::cpu::Isa, Span<'_>);

/// What runs a kernel over all rows.
struct Work<'a> {
    cpu: &'a Cpu,
    kernel: Kernel,
    width: usize,
    epsilon: f32,
    gamma: &'a [f32],
    beta: &'a [f32],
}

impl Work<'_> {
    /// The kernel's rows; the parameters' gradients of each part are summed in order.
    fn run(&self, x: &[f32], dy: &[f32], parameters: usize) -> (Vec<f32>, Vec<f32>) {
        let part = ROWS * self.width;
        let parts = x.len().div_ceil(part);
        let mut out = vec![0f32; x.len()];
        let mut partial = vec![0f32; parts * parameters];
        {
            let (out, partial) = (share(&mut out), share(&mut partial));
            self.cpu.for_each(parts, |i| {
                let here = i * part..x.len().min((i + 1) * part);
                let span = Span {
                    width: self.width,
                    x: &x[here.clone()],
                    dy: if dy.is_empty() { &[] } else { &dy[here.clone()] },
                    gamma: self.gamma,
                    beta: self.beta,
                    epsilon: self.epsilon,
                    out: unsafe { out.part(here.start, here.len()) },
                    dparameters: unsafe { partial.part(i * parameters, parameters) },
                };
                unsafe { (self.kernel)(self.cpu.isa, span) }
            });
        }
        let mut total = vec![0f32; parameters];
        for part in partial.chunks_exact(parameters.max(1)) {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
        (out, total)
    }
}

struct LayerNorm {
    cpu: Cpu,
    epsilon: f32,
}

/// (x − mean) / √(variance + ε) · γ + β over the last dimension.
///
/// Errors: γ or β of another length than a row; tensors that are not float32 on the CPU.
pub fn layer_norm(cpu: &Cpu, x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    if gamma.dims() != [width] || beta.dims() != [width] {
        return Err(Error::Msg(format!(
            "layer norm: rows of {width}, parameters {:?} and {:?}",
            gamma.dims(),
            beta.dims()
        )));
    }
    let op = LayerNorm { cpu: cpu.clone(), epsilon: epsilon as f32 };
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gamma, beta) = (floats(gamma, gamma_layout)?, floats(beta, beta_layout)?);
        let (cpu, width, epsilon) = (&self.cpu, gamma.len(), self.epsilon);
        let work = Work { cpu, kernel: layer_norm_forward, width, epsilon, gamma, beta };
        let (out, _) = work.run(floats(x, x_layout)?, &[], 0);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        _out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = gamma.elem_count();
        let (dx, mut dgamma) = with([x, gamma, dy], |[values, gamma, dy]| {
            let (cpu, epsilon) = (&self.cpu, self.epsilon);
            let work = Work { cpu, kernel: layer_norm_backward, width, epsilon, gamma, beta: &[] };
            work.run(values, dy, 2 * width)
        })?;
        let dbeta = dgamma.split_off(width);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dgamma, width, &Device::Cpu)?),
            Some(Tensor::from_vec(dbeta, width, &Device::Cpu)?),
        ))
    }
}

struct RowOp {
    name: &'static str,
    cpu: Cpu,
    forward: Kernel,
    backward: Kernel,
    /// Whether the backward kernel wants the result instead of the argument.
    of_result: bool,
}

/// Softmax over the last dimension.
pub fn softmax(cpu: &Cpu, x: &Tensor) -> Result<Tensor> {
    let (forward, backward): (Kernel, Kernel) = (softmax_forward, softmax_backward);
    let op = RowOp { name: "softmax", cpu: cpu.clone(), forward, backward, of_result: true };
    x.contiguous()?.apply_op1(op)
}

/// x · Φ(x), with the error function (not its tanh approximation).
pub fn gelu(cpu: &Cpu, x: &Tensor) -> Result<Tensor> {
    let (forward, backward): (Kernel, Kernel) = (gelu_forward, gelu_backward);
    let op = RowOp { name: "gelu", cpu: cpu.clone(), forward, backward, of_result: false };
    x.contiguous()?.apply_op1(op)
}

impl RowOp {
    fn work(&self, kernel: Kernel, width: usize) -> Work<'_> {
        Work { cpu: &self.cpu, kernel, width: width.max(1), epsilon: 0.0, gamma: &[], beta: &[] }
    }
}

impl CustomOp1 for RowOp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let (out, _) = self.work(self.forward, width).run(floats(x, layout)?, &[], 0);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims().last().copied().unwrap_or(1);
        let of = if self.of_result { out } else { x };
        let (dx, _) = with([of, dy], |[of, dy]| self.work(self.backward, width).run(of, dy, 0))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against libm's float64 functions.
    #[test]
    fn exp_and_erf_are_accurate() {
        for i in -8000..=8000 {
            let x = i as f32 / 100.0;
            let exact = libm::exp(f64::from(x));
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x})");
            let exact = libm::erf(f64::from(x));
            assert!((f64::from(erf(x)) - exact).abs() < 3e-7, "erf({x})");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
