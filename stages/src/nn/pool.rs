//! Max pooling and the parameter-free shortcut of one example, both ways, in the kernels' layout. Knows no batch.

use super::layout::Image;
use super::simd::BLOCK;

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
pub fn max_forward(from: Image, to: Image, x: &[f32], out: &mut [f32], chosen: &mut [u8]) {
    out.fill(f32::NEG_INFINITY);
    chosen.fill(0);
    for_windows(from, to, |tap, f, t| {
        let (x, out, chosen) = (&x[f..f + BLOCK], &mut out[t..t + BLOCK], &mut chosen[t..t + BLOCK]);
        for lane in 0..BLOCK {
            // NaN wins, so that a broken activation is seen.
            if x[lane] > out[lane] || x[lane].is_nan() {
                out[lane] = x[lane];
                chosen[lane] = tap;
            }
        }
    });
}

/// The gradient goes to the chosen pixel alone; added to `dx`.
pub fn max_backward(from: Image, to: Image, dz: &[f32], chosen: &[u8], dx: &mut [f32]) {
    for_windows(from, to, |tap, f, t| {
        let (dz, chosen, dx) = (&dz[t..t + BLOCK], &chosen[t..t + BLOCK], &mut dx[f..f + BLOCK]);
        for lane in 0..BLOCK {
            dx[lane] += if chosen[lane] == tap { dz[lane] } else { 0.0 };
        }
    });
}

/// Each (tap, pixel of `from`, pixel of `to`) inside the image, taps of a window in order.
fn for_windows(from: Image, to: Image, mut window: impl FnMut(u8, usize, usize)) {
    for block in 0..from.blocks() {
        for row in 0..to.height {
            for column in 0..to.width {
                for tap in 0..9 {
                    let (r, c) = (2 * row + tap / 3, 2 * column + tap % 3);
                    if (1..=from.height).contains(&r) && (1..=from.width).contains(&c) {
                        let f = block * from.plane() + ((r - 1) * from.width + c - 1) * BLOCK;
                        window(tap as u8, f, block * to.plane() + (row * to.width + column) * BLOCK);
                    }
                }
            }
        }
    }
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
