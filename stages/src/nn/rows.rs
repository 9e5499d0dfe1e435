//! What a transformer does to rows of floats beside its products: layer norm with its residual and dropout, softmax,
//! GELU, both ways. Knows rows, not what they stand for.
//!
//! Plain loops over groups of 16 floats, which the compiler turns into vectors; no sum depends on the instruction set.

// The dispatch hands every pass its vector type, used or not; the constants are written as published.
#![allow(clippy::extra_unused_type_parameters, clippy::excessive_precision)]

use super::cpu::Cpu;
use super::dropout::{GROUP, Key, Mask};
use super::memory::{Buffer, share};
use super::simd::{Vector, kernel};

/// Rows that a thread takes at a time, whose parameter gradients are summed first and which share a mask's stream.
pub const ROWS: usize = 64;

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

#[inline(always)]
fn most(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut mosts = [f32::NEG_INFINITY; GROUP];
    for group in x.as_chunks::<GROUP>().0 {
        mosts.iter_mut().zip(group).for_each(|(m, v)| *m = larger(*m, *v));
    }
    let rest = x.as_chunks::<GROUP>().1;
    mosts.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| larger(m, *v))
}

/// The parameters of a layer norm.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub epsilon: f32,
}

#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// A part's rows of [`Norm::join`].
pub struct Join<'a> {
    norm: Norm<'a>,
    bias: &'a [f32],
    mask: Option<Mask>,
    residual: &'a [f32],
    y: &'a mut [f32],
    out: &'a mut [f32],
}

#[inline(always)]
unsafe fn join_rows<V: Vector>(part: Join<'_>) {
    let Join { norm: Norm { gamma, beta, epsilon }, bias, mut mask, residual, y, out } = part;
    let width = gamma.len();
    let rows = y.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
    for (r, (y, out)) in rows.enumerate() {
        if !bias.is_empty() {
            let bias = &bias[..width];
            for i in 0..width {
                y[i] += bias[i];
            }
        }
        if let Some(mask) = &mut mask {
            mask.row(y);
        }
        if !residual.is_empty() {
            let residual = &residual[r * width..][..width];
            for i in 0..width {
                y[i] += residual[i];
            }
        }
        let (mean, inverse) = moments(y, epsilon);
        for i in 0..width {
            out[i] = (y[i] - mean) * inverse * gamma[i] + beta[i];
        }
    }
}

/// A part's rows of [`Norm::part`].
pub struct Part<'a> {
    norm: Norm<'a>,
    mask: Option<Mask>,
    s: &'a [f32],
    /// The gradient of the norm's result, replaced by that of its argument.
    d: &'a mut [f32],
    /// Gets the gradient of what was dropped; empty where nobody asks.
    dy: &'a mut [f32],
    /// Sums over the rows: dγ, dβ, and the gradient of the bias.
    sums: &'a mut [f32],
}

#[inline(always)]
unsafe fn part_rows<V: Vector>(part: Part<'_>) {
    let Part { norm: Norm { gamma, epsilon, .. }, mut mask, s, d, dy, sums } = part;
    let width = gamma.len();
    let (dgamma, rest) = sums.split_at_mut(width);
    let (dbeta, dbias) = rest.split_at_mut(width);
    sums_to_zero(dgamma, dbeta, dbias);
    for (r, (x, d)) in s.chunks_exact(width).zip(d.chunks_exact_mut(width)).enumerate() {
        let (mean, inverse) = moments(x, epsilon);
        let n = width as f32;
        let plain = sum(width, |i| d[i] * gamma[i]) / n;
        let weighted = sum(width, |i| d[i] * gamma[i] * ((x[i] - mean) * inverse)) / n;
        for i in 0..width {
            let normal = (x[i] - mean) * inverse;
            dgamma[i] += d[i] * normal;
            dbeta[i] += d[i];
            d[i] = inverse * (d[i] * gamma[i] - plain - normal * weighted);
        }
        if !dy.is_empty() {
            let dy = &mut dy[r * width..][..width];
            dy.copy_from_slice(d);
            if let Some(mask) = &mut mask {
                mask.row(dy);
            }
            dbias.iter_mut().zip(dy).for_each(|(s, d)| *s += *d);
        }
    }
}

#[inline(always)]
fn sums_to_zero(a: &mut [f32], b: &mut [f32], c: &mut [f32]) {
    a.fill(0.0);
    b.fill(0.0);
    c.fill(0.0);
}

kernel!(join_kernel, join_rows, Join<'_>);
kernel!(part_kernel, part_rows, Part<'_>);

/// Which masks a pass over rows draws: key, place, probability.
pub type Drop = (Option<Key>, usize, f64);

impl Norm<'_> {
    /// y ← dropout(y + bias) + residual, out ← norm(y), by row. An empty bias or residual is none.
    pub fn join(
        self,
        cpu: &Cpu,
        y: &mut [f32],
        bias: &[f32],
        (key, place, p): Drop,
        residual: &[f32],
        out: &mut [f32],
    ) {
        let part = ROWS * self.gamma.len();
        let n = y.len();
        let (y, out) = (share(y), share(out));
        cpu.for_each(n.div_ceil(part), |i| {
            let here = i * part..n.min((i + 1) * part);
            let residual = if residual.is_empty() { residual } else { &residual[here.clone()] };
            let mask = Mask::new(key, place, i, p);
            let (y, out) = unsafe { (y.part(here.start, here.len()), out.part(here.start, here.len())) };
            unsafe { join_kernel(cpu.isa, Join { norm: self, bias, mask, residual, y, out }) };
        });
    }

    /// The way back through [`Norm::join`]: given its `y` and d = the gradient of its result, d becomes that of the
    /// residual, `dy` that of what came in (empty: not asked for). Gives the gradients of γ, β and the bias in one.
    pub fn part(
        self,
        cpu: &Cpu,
        y: &[f32],
        (key, place, p): Drop,
        d: &mut [f32],
        dy: &mut [f32],
    ) -> Vec<f32> {
        let width = self.gamma.len();
        let part = ROWS * width;
        let n = y.len();
        let parts = n.div_ceil(part);
        let asked = !dy.is_empty();
        let mut sums = Buffer::stale(parts * 3 * width);
        {
            let (d, dy, sums) = (share(d), share(dy), sums.shared());
            cpu.for_each(parts, |i| {
                let here = i * part..n.min((i + 1) * part);
                let part = Part {
                    norm: self,
                    mask: Mask::new(key, place, i, p),
                    s: &y[here.clone()],
                    d: unsafe { d.part(here.start, here.len()) },
                    dy: if asked { unsafe { dy.part(here.start, here.len()) } } else { &mut [] },
                    sums: unsafe { sums.part(i * 3 * width, 3 * width) },
                };
                unsafe { part_kernel(cpu.isa, part) };
            });
        }
        total(&sums, 3 * width)
    }
}

/// The sum of rows, in order.
pub fn total(rows: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0f32; width];
    for row in rows.chunks_exact(width.max(1)) {
        total.iter_mut().zip(row).for_each(|(t, v)| *t += v);
    }
    total
}

/// Rows of scores that become probabilities.
pub struct Softmax<'a> {
    pub width: usize,
    pub scale: f32,
    /// Added to every row; empty: nothing.
    pub shift: &'a [f32],
    pub mask: Option<Mask>,
    /// Scores; probabilities afterwards, with the sign set where they are dropped.
    pub p: &'a mut [f32],
    /// Gets what is left after dropout.
    pub left: &'a mut [f32],
}

#[inline(always)]
unsafe fn softmax_rows<V: Vector>(args: Softmax<'_>) {
    let Softmax { width, scale, shift, mut mask, p, left } = args;
    for (p, left) in p.chunks_exact_mut(width).zip(left.chunks_exact_mut(width)) {
        p.iter_mut().for_each(|v| *v *= scale);
        if !shift.is_empty() {
            p.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
        }
        let most = most(p);
        p.iter_mut().for_each(|v| *v = exp(*v - most));
        let total = 1.0 / sum(width, |i| p[i]);
        match &mut mask {
            None => {
                p.iter_mut().for_each(|v| *v *= total);
                left.copy_from_slice(p);
            }
            Some(mask) => {
                let (groups, rest) = p.as_chunks_mut::<GROUP>();
                let (left_groups, left_rest) = left.as_chunks_mut::<GROUP>();
                for (p, left) in groups.iter_mut().zip(left_groups) {
                    let factors = mask.factors();
                    for i in 0..GROUP {
                        (p[i], left[i]) = decided(p[i] * total, factors[i]);
                    }
                }
                if !rest.is_empty() {
                    for ((p, left), factor) in rest.iter_mut().zip(left_rest).zip(mask.factors()) {
                        (*p, *left) = decided(*p * total, factor);
                    }
                }
            }
        }
    }
}

/// A probability as it is kept, and what dropout leaves of it.
#[inline(always)]
fn decided(p: f32, factor: f32) -> (f32, f32) {
    (if factor == 0.0 { -p } else { p }, p * factor)
}

/// The way back through [`Softmax`], from its probabilities.
pub struct SoftmaxBack<'a> {
    pub width: usize,
    pub scale: f32,
    /// Of the mask that was used; 1 without.
    pub kept: f32,
    pub p: &'a [f32],
    /// The gradient of what was left; that of the scores afterwards.
    pub d: &'a mut [f32],
}

#[inline(always)]
unsafe fn softmax_back_rows<V: Vector>(args: SoftmaxBack<'_>) {
    let SoftmaxBack { width, scale, kept, p, d } = args;
    for (p, d) in p.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
        for i in 0..width {
            d[i] = if p[i].to_bits() >> 31 == 1 { 0.0 } else { d[i] * kept };
        }
        let mean = sum(width, |i| d[i] * p[i].abs());
        for i in 0..width {
            d[i] = p[i].abs() * (d[i] - mean) * scale;
        }
    }
}

/// What [`Softmax`] left, from its probabilities.
pub struct Left<'a> {
    pub kept: f32,
    pub p: &'a [f32],
    pub left: &'a mut [f32],
}

#[inline(always)]
unsafe fn left_rows<V: Vector>(args: Left<'_>) {
    for (left, p) in args.left.iter_mut().zip(args.p) {
        *left = if p.to_bits() >> 31 == 1 { 0.0 } else { *p * args.kept };
    }
}

/// x ← x + bias, and with `gelu` out ← GELU(x) = x · Φ(x), with the error function (not its tanh approximation).
pub struct Biased<'a> {
    pub bias: &'a [f32],
    pub x: &'a mut [f32],
    /// Empty: no GELU.
    pub out: &'a mut [f32],
}

#[inline(always)]
unsafe fn biased_rows<V: Vector>(args: Biased<'_>) {
    let Biased { bias, x, out } = args;
    x.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    for (out, x) in out.iter_mut().zip(x) {
        *out = *x * 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// out ← GELU(x), x ← its derivative.
pub struct GeluBoth<'a> {
    pub x: &'a mut [f32],
    pub out: &'a mut [f32],
}

#[inline(always)]
unsafe fn gelu_both_rows<V: Vector>(args: GeluBoth<'_>) {
    for (out, x) in args.out.iter_mut().zip(args.x) {
        let below = 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        // 1/√(2π)
        let density = 0.398_942_3 * exp(-0.5 * *x * *x);
        *out = *x * below;
        *x = below + *x * density;
    }
}

/// d ← d · factor, and adds it to the sums.
pub struct Times<'a> {
    pub d: &'a mut [f32],
    pub factor: &'a [f32],
    pub sums: &'a mut [f32],
}

#[inline(always)]
unsafe fn times_rows<V: Vector>(args: Times<'_>) {
    for ((d, f), s) in args.d.iter_mut().zip(args.factor).zip(args.sums) {
        *d *= f;
        *s += *d;
    }
}

/// A part's rows of [`drop`].
pub struct Dropped<'a> {
    width: usize,
    mask: Mask,
    x: &'a mut [f32],
}

#[inline(always)]
unsafe fn dropped_rows<V: Vector>(args: Dropped<'_>) {
    let Dropped { width, mut mask, x } = args;
    x.chunks_exact_mut(width).for_each(|row| mask.row(row));
}

kernel!(softmax, softmax_rows, Softmax<'_>);
kernel!(softmax_back, softmax_back_rows, SoftmaxBack<'_>);
kernel!(left, left_rows, Left<'_>);
kernel!(biased, biased_rows, Biased<'_>);
kernel!(gelu_both, gelu_both_rows, GeluBoth<'_>);
kernel!(times, times_rows, Times<'_>);
kernel!(dropped_kernel, dropped_rows, Dropped<'_>);

/// Dropout of rows in place; of a gradient, its way back.
pub fn drop(cpu: &Cpu, (key, place, p): Drop, width: usize, x: &mut [f32]) {
    let (n, part) = (x.len(), ROWS * width);
    let x = share(x);
    cpu.for_each(n.div_ceil(part), |i| {
        let Some(mask) = Mask::new(key, place, i, p) else { return };
        let x = unsafe { x.part(i * part, part.min(n - i * part)) };
        unsafe { dropped_kernel(cpu.isa, Dropped { width, mask, x }) };
    });
}

/// eˣ without a branch, to about 1e-7 relative: 2^n · e^r with |r| ≤ ln 2 / 2 (Cephes' expf). 0 below −87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let inside = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2^23 rounds to a whole number, which is then in the lowest bits.
    let shifted = inside * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = (inside - n * 0.693_359_375) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_2e-3;
    let p = ((p * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1;
    let p = (p * r + 0.5) * r * r + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
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
