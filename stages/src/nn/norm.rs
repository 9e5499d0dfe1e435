//! Batch norm's passes over one plane ([pixel][16 channels]), fused with the residual sum and ReLU. Knows no batch:
//! the sums of examples are put together by the caller, in float64 and in a fixed order.

use super::simd::{BLOCK, Vector, kernel};

/// One value for each of a block's channels.
pub type Lanes = [f32; BLOCK];

/// Pixels that are summed in a row before the sum is put aside, for its rounding error's sake.
const CHAIN: usize = 256;

/// A sum over pixels in four interleaved chains: short ones, small rounding errors.
#[inline(always)]
unsafe fn sum_over<V: Vector>(pixels: usize, add: impl Fn(usize, V) -> V) -> V {
    unsafe {
        let zero = V::splat(0.0);
        let mut total = zero;
        for first in (0..pixels).step_by(CHAIN) {
            let mut sums = [zero; 4];
            for pixel in first..pixels.min(first + CHAIN) {
                sums[pixel % 4] = add(pixel, sums[pixel % 4]);
            }
            total = total.add(sums[0].add(sums[1]).add(sums[2].add(sums[3])));
        }
        total
    }
}

/// Mean and sum of squared deviations from it over a plane's pixels.
pub struct Moments<'a> {
    pub y: &'a [f32],
    pub mean: &'a mut Lanes,
    pub squares: &'a mut Lanes,
}

#[inline(always)]
unsafe fn moments_of<V: Vector>(args: Moments<'_>) {
    unsafe {
        let pixels = args.y.len() / BLOCK;
        for lane in (0..BLOCK).step_by(V::LANES) {
            let at = |pixel: usize| V::load(args.y.as_ptr().add(pixel * BLOCK + lane));
            let sum = sum_over(pixels, |pixel, sums: V| sums.add(at(pixel)));
            let mean = sum.mul(V::splat(1.0 / pixels as f32));
            let squares = sum_over(pixels, |pixel, sums: V| {
                let d = at(pixel).sub(mean);
                d.mul_add(d, sums)
            });
            mean.store(args.mean.as_mut_ptr().add(lane));
            squares.store(args.squares.as_mut_ptr().add(lane));
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    moments, moments_of, Moments<'_>
);

/// out = (y − mean) · scale + shift [+ residual], then max(·, 0) if `relu`.
pub struct Apply<'a> {
    pub y: &'a [f32],
    pub residual: Option<&'a [f32]>,
    pub out: &'a mut [f32],
    pub mean: &'a Lanes,
    pub scale: &'a Lanes,
    pub shift: &'a Lanes,
    pub relu: bool,
}

#[inline(always)]
unsafe fn apply_to<V: Vector>(args: Apply<'_>) {
    unsafe {
        assert!(args.out.len() == args.y.len() && args.residual.is_none_or(|r| r.len() == args.y.len()));
        let floor = V::splat(if args.relu { 0.0 } else { f32::NEG_INFINITY });
        for lane in (0..BLOCK).step_by(V::LANES) {
            let mean = V::load(args.mean.as_ptr().add(lane));
            let scale = V::load(args.scale.as_ptr().add(lane));
            let shift = V::load(args.shift.as_ptr().add(lane));
            let y = args.y.as_ptr().add(lane);
            let out = args.out.as_mut_ptr().add(lane);
            let normal = |at: usize| V::load(y.add(at)).sub(mean).mul_add(scale, shift);
            match args.residual {
                None => {
                    for at in (0..args.y.len()).step_by(BLOCK) {
                        normal(at).max(floor).store(out.add(at));
                    }
                }
                Some(residual) => {
                    let residual = residual.as_ptr().add(lane);
                    for at in (0..args.y.len()).step_by(BLOCK) {
                        normal(at).add(V::load(residual.add(at))).max(floor).store(out.add(at));
                    }
                }
            }
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    apply, apply_to, Apply<'_>
);

/// The two sums of batch norm's backward: Σ dz and Σ dz · (y − mean). With `out`, dz is first set to zero, in place,
/// where the ReLU's output was not positive.
pub struct Sums<'a> {
    pub dz: &'a mut [f32],
    pub out: Option<&'a [f32]>,
    pub y: &'a [f32],
    pub mean: &'a Lanes,
    pub plain: &'a mut Lanes,
    pub weighted: &'a mut Lanes,
}

#[inline(always)]
unsafe fn sums_of<V: Vector>(args: Sums<'_>) {
    unsafe {
        assert!(args.dz.len() == args.y.len() && args.out.is_none_or(|o| o.len() == args.y.len()));
        let zero = V::splat(0.0);
        for lane in (0..BLOCK).step_by(V::LANES) {
            let mean = V::load(args.mean.as_ptr().add(lane));
            let (mut plain_total, mut weighted_total) = (zero, zero);
            let pixels = args.y.len() / BLOCK;
            for first in (0..pixels).step_by(CHAIN) {
                let (mut plain, mut weighted) = ([zero; 4], [zero; 4]);
                for pixel in first..pixels.min(first + CHAIN) {
                    let at = pixel * BLOCK + lane;
                    let to = args.dz.as_mut_ptr().add(at);
                    let mut dz = V::load(to);
                    if let Some(out) = args.out {
                        dz = dz.where_positive(V::load(out.as_ptr().add(at)));
                        dz.store(to);
                    }
                    plain[pixel % 4] = plain[pixel % 4].add(dz);
                    let centred = V::load(args.y.as_ptr().add(at)).sub(mean);
                    weighted[pixel % 4] = dz.mul_add(centred, weighted[pixel % 4]);
                }
                let total = |s: [V; 4]| s[0].add(s[1]).add(s[2].add(s[3]));
                plain_total = plain_total.add(total(plain));
                weighted_total = weighted_total.add(total(weighted));
            }
            plain_total.store(args.plain.as_mut_ptr().add(lane));
            weighted_total.store(args.weighted.as_mut_ptr().add(lane));
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    sums, sums_of, Sums<'_>
);

/// dy = dz · a + (y − mean) · b + c: batch norm's gradient with respect to its input.
pub struct Backward<'a> {
    pub dz: &'a [f32],
    pub y: &'a [f32],
    pub dy: &'a mut [f32],
    pub mean: &'a Lanes,
    pub a: &'a Lanes,
    pub b: &'a Lanes,
    pub c: &'a Lanes,
}

#[inline(always)]
unsafe fn backward_of<V: Vector>(args: Backward<'_>) {
    unsafe {
        assert!(args.dz.len() == args.y.len() && args.dy.len() == args.y.len());
        for lane in (0..BLOCK).step_by(V::LANES) {
            let mean = V::load(args.mean.as_ptr().add(lane));
            let a = V::load(args.a.as_ptr().add(lane));
            let b = V::load(args.b.as_ptr().add(lane));
            let c = V::load(args.c.as_ptr().add(lane));
            for at in (lane..args.y.len()).step_by(BLOCK) {
                let centred = V::load(args.y.as_ptr().add(at)).sub(mean);
                let dz = V::load(args.dz.as_ptr().add(at));
                dz.mul_add(a, centred.mul_add(b, c)).store(args.dy.as_mut_ptr().add(at));
            }
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    backward, backward_of, Backward<'_>
);
