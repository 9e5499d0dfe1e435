//! Max pooling and the parameter-free shortcut of one example, both ways, in the kernels' layout. Knows no batch.

use super::layout::Image;
use super::simd::{BLOCK, Vector, kernel};

/// to[c + before] = from[c] at every second pixel, zero in the other channels.
pub fn shortcut(from: Image, to: Image, before: usize, x: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for_pairs(from, to, before, |f, t| out[t] = x[f]);
}

/// The gradient, added to `dx`.
pub fn shortcut_backward(from: Image, to: Image, before: usize, dz: &[f32], dx: &mut [f32]) {
    for_pairs(from, to, before, |f, t| dx[f] += dz[t]);
}

fn for_pairs(from: Image, to: Image, before: usize, mut pair: impl FnMut(usize, usize)) {
    for channel in 0..from.channels {
        let other = channel + before;
        let f0 = channel / BLOCK * from.plane() + channel % BLOCK;
        let t0 = other / BLOCK * to.plane() + other % BLOCK;
        for row in 0..to.height {
            for column in 0..to.width {
                let f = f0 + (2 * row * from.width + 2 * column) * BLOCK;
                pair(f, t0 + (row * to.width + column) * BLOCK);
            }
        }
    }
}

/// 3×3, stride 2, padding 1: the largest of the window and which one it was (the first of equals, as PyTorch).
pub struct Max<'a> {
    pub from: Image,
    pub to: Image,
    pub x: &'a [f32],
    pub out: &'a mut [f32],
    pub chosen: &'a mut [u8],
}

// kernel! compiles it for the vector's instruction set; the compiler finds the vectors.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn max_of<V: Vector>(args: Max<'_>) {
    let Max { from, to, x, out, chosen } = args;
    let pixels = out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(chosen.as_chunks_mut::<BLOCK>().0);
    for (pixel, (out, chosen)) in pixels.enumerate() {
        let mut best = [f32::NEG_INFINITY; BLOCK];
        let mut which = [0; BLOCK];
        for tap in 0..9 {
            let Some(at) = neighbour(from, to, pixel, tap) else { continue };
            let x = &x[at..at + BLOCK];
            for lane in 0..BLOCK {
                // NaN wins, so that a broken activation is seen.
                let better = (x[lane] > best[lane]) | x[lane].is_nan();
                best[lane] = if better { x[lane] } else { best[lane] };
                which[lane] = if better { tap as i32 } else { which[lane] };
            }
        }
        *out = best;
        *chosen = which.map(|tap| tap as u8);
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    max, max_of, Max<'_>
);

/// The gradient goes to the chosen pixel alone; added to `dx`.
pub struct MaxBackward<'a> {
    pub from: Image,
    pub to: Image,
    pub dz: &'a [f32],
    pub chosen: &'a [u8],
    pub dx: &'a mut [f32],
}

// As above.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn max_backward_of<V: Vector>(args: MaxBackward<'_>) {
    let MaxBackward { from, to, dz, chosen, dx } = args;
    let pixels = dz.as_chunks::<BLOCK>().0.iter().zip(chosen.as_chunks::<BLOCK>().0);
    for (pixel, (dz, chosen)) in pixels.enumerate() {
        let which = chosen.map(i32::from);
        for tap in 0..9 {
            let Some(at) = neighbour(from, to, pixel, tap) else { continue };
            let dx = &mut dx[at..at + BLOCK];
            for lane in 0..BLOCK {
                dx[lane] += if which[lane] == tap as i32 { dz[lane] } else { 0.0 };
            }
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    max_backward, max_backward_of, MaxBackward<'_>
);

/// Where a tap of an output's window lies (block, row and column counted in `pixel`); none outside of the image.
#[inline(always)]
fn neighbour(from: Image, to: Image, pixel: usize, tap: usize) -> Option<usize> {
    let (block, row, column) = (pixel / to.pixels(), pixel % to.pixels() / to.width, pixel % to.width);
    let (r, c) = (2 * row + tap / 3, 2 * column + tap % 3);
    let inside = (1..=from.height).contains(&r) && (1..=from.width).contains(&c);
    inside.then(|| block * from.plane() + ((r - 1) * from.width + c - 1) * BLOCK)
}

/// Bytes that threads write to in disjoint parts.
#[derive(Clone, Copy)]
pub struct Bytes(*mut u8);

unsafe impl Send for Bytes {}
unsafe impl Sync for Bytes {}

impl Bytes {
    pub fn new(bytes: &mut [u8]) -> Bytes {
        Bytes(bytes.as_mut_ptr())
    }

    /// # Safety
    /// The part lies inside the bytes and no other thread uses it.
    pub unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}
