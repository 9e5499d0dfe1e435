//! The transforms of Winograd's F(4×4, 3×3): tiles of images, gradients and weights to their values at six interpolation
//! points in each direction, and back. Knows tiles and points, not what is multiplied between.
//!
//! The points are 0, ±5/8, ±3/2, ∞: all constants but [`SCALE`] are exact in float32, and the rounding error is half of
//! that of the usual 0, ±1, ±2, ∞.

use super::layout::Image;
use super::simd::{BLOCK, Vector, kernel};

/// Outputs and inputs of a tile, in each direction.
pub const OUT: usize = 4;
const IN: usize = 6;
pub const POINTS: usize = IN * IN;

/// The points a and b, squared and cubed.
const A: f32 = 0.625;
const A2: f32 = A * A;
const A3: f32 = A2 * A;
const B: f32 = 1.5;
const B2: f32 = B * B;
const B3: f32 = B2 * B;

/// What the weights' transform is multiplied with in the end: 1 / Π (point − other points), for rows and columns.
const SCALE: [f64; POINTS] = {
    let (a2, b2) = (A2 as f64, B2 as f64);
    let (zero, a, b) = (1.0 / (a2 * b2), 0.5 / (a2 * (a2 - b2)), 0.5 / (b2 * (b2 - a2)));
    let one = [zero, a, a, b, b, 1.0];
    let mut all = [0.0; POINTS];
    let mut k = 0;
    while k < POINTS {
        all[k] = one[k / IN] * one[k % IN];
        k += 1;
    }
    all
};

/// At least `floats`, an odd number of cache lines: 36 streams that lie a power of two apart would share a few places of
/// the cache.
pub fn apart(floats: usize) -> usize {
    (floats.div_ceil(BLOCK) | 1) * BLOCK
}

/// Part of the tiles of a group of examples, counted by example, row, column.
#[derive(Clone, Copy)]
pub struct Strip {
    pub image: Image,
    pub tiles: (usize, usize),
    pub first: usize,
    pub end: usize,
}

/// A tile's place: of its first number in the first block, and the row and column of its first output.
struct Place {
    at: usize,
    row: usize,
    column: usize,
}

impl Strip {
    fn place(&self, tile: usize) -> Place {
        let (column, row) = (tile % self.tiles.1 * OUT, tile / self.tiles.1 % self.tiles.0 * OUT);
        let example = tile / (self.tiles.0 * self.tiles.1);
        let pixel = row * self.image.width + column;
        Place { at: example * self.image.len() + pixel * BLOCK, row, column }
    }

    fn len(&self) -> usize {
        self.end - self.first
    }

    /// Floats from one point to the next.
    pub fn step(&self) -> usize {
        apart(self.image.blocks() * self.len() * BLOCK)
    }
}

/// A transform to the points in one direction. A trait and not a closure: closures are compiled without the target
/// features, and what they call is then not inlined.
trait ToPoints<const N: usize> {
    unsafe fn points<V: Vector>(from: [V; N]) -> [V; IN];
}

/// The inverse of evaluating at the points, transposed: what a tile of inputs is multiplied with.
struct OfInput;

impl ToPoints<IN> for OfInput {
    #[inline(always)]
    unsafe fn points<V: Vector>(d: [V; IN]) -> [V; IN] {
        unsafe {
            let [a, minus_a, minus_a2] = [V::splat(A), V::splat(-A), V::splat(-A2)];
            let [b, minus_b, minus_b2] = [V::splat(B), V::splat(-B), V::splat(-B2)];
            let (product, sum) = (V::splat(A2 * B2), V::splat(-A2 - B2));
            let (a_even, a_odd) = (d[2].fused(minus_b2, d[4]), d[1].fused(minus_b2, d[3]));
            let (b_even, b_odd) = (d[2].fused(minus_a2, d[4]), d[1].fused(minus_a2, d[3]));
            [
                d[0].fused(product, d[2].fused(sum, d[4])),
                a_odd.fused(a, a_even),
                a_odd.fused(minus_a, a_even),
                b_odd.fused(b, b_even),
                b_odd.fused(minus_b, b_even),
                d[1].fused(product, d[3].fused(sum, d[5])),
            ]
        }
    }
}

/// The value of a polynomial of four coefficients at the points: what a tile of gradients is multiplied with.
struct OfPolynomial;

impl ToPoints<OUT> for OfPolynomial {
    #[inline(always)]
    unsafe fn points<V: Vector>(y: [V; OUT]) -> [V; IN] {
        unsafe {
            let [a, minus_a, a2] = [V::splat(A), V::splat(-A), V::splat(A2)];
            let [b, minus_b, b2] = [V::splat(B), V::splat(-B), V::splat(B2)];
            let (a_even, b_even) = (y[2].fused(a2, y[0]), y[2].fused(b2, y[0]));
            let (a_odd, b_odd) = (y[3].fused(a2, y[1]), y[3].fused(b2, y[1]));
            [
                y[0],
                a_odd.fused(a, a_even),
                a_odd.fused(minus_a, a_even),
                b_odd.fused(b, b_even),
                b_odd.fused(minus_b, b_even),
                y[3],
            ]
        }
    }
}

/// The transpose of [`OfPolynomial`]: values at the points to a tile of outputs.
#[inline(always)]
unsafe fn coefficients<V: Vector>(m: [V; IN]) -> [V; OUT] {
    unsafe {
        let (a, a_odd) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (b, b_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(a.add(b)),
            a_odd.fused(V::splat(A), b_odd.mul(V::splat(B))),
            a.fused(V::splat(A2), b.mul(V::splat(B2))),
            a_odd.fused(V::splat(A3), b_odd.fused(V::splat(B3), m[5])),
        ]
    }
}

/// Numbers of a strip of images to points [point][block][tile][16].
pub struct Transform<'a> {
    pub strip: Strip,
    pub image: &'a [f32],
    pub points: &'a mut [f32],
}

#[inline(always)]
unsafe fn transform<V: Vector, T: ToPoints<N>, const N: usize>(args: Transform<'_>, before: usize) {
    unsafe {
        let strip = &args.strip;
        let step = strip.step();
        let Image { height, width, .. } = strip.image;
        assert!(args.points.len() >= POINTS * step);
        let mut copy = [[0.0; BLOCK]; POINTS];
        for tile in strip.first..strip.end {
            let Place { at, row: first_row, column: first_column } = strip.place(tile);
            // The window's first pixel, and the part of it that lies inside the image.
            let at = at as isize - (before * (width + 1) * BLOCK) as isize;
            let (r0, r1) = (before.saturating_sub(first_row), N.min(height + before - first_row));
            let (c0, c1) = (before.saturating_sub(first_column), N.min(width + before - first_column));
            let whole = (r0, c0, r1, c1) == (0, 0, N, N);
            if !whole {
                copy.fill([0.0; BLOCK]);
            }
            for block in 0..strip.image.blocks() {
                let mut from = args.image.as_ptr().offset(at + (block * strip.image.plane()) as isize);
                let mut row_step = width * BLOCK;
                if !whole {
                    for r in r0..r1 {
                        for c in c0..c1 {
                            let pixel = from.add(r * row_step + c * BLOCK);
                            copy[r * N + c] = pixel.cast::<[f32; BLOCK]>().read();
                        }
                    }
                    (from, row_step) = (copy.as_ptr().cast(), N * BLOCK);
                }
                let to = args.points.as_mut_ptr().add((block * strip.len() + tile - strip.first) * BLOCK);
                for lane in (0..BLOCK).step_by(V::LANES) {
                    let mut half = [[V::splat(0.0); N]; IN];
                    for c in 0..N {
                        let mut column = [V::splat(0.0); N];
                        for r in 0..N {
                            column[r] = V::load(from.add(r * row_step + c * BLOCK + lane));
                        }
                        let column = T::points(column);
                        for r in 0..IN {
                            half[r][c] = column[r];
                        }
                    }
                    for r in 0..IN {
                        let row = T::points(half[r]);
                        for c in 0..IN {
                            row[c].store(to.add((r * IN + c) * step + lane));
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn input_of<V: Vector>(args: Transform<'_>) {
    unsafe { transform::<V, OfInput, IN>(args, 1) }
}

#[inline(always)]
unsafe fn gradient_of<V: Vector>(args: Transform<'_>) {
    unsafe { transform::<V, OfPolynomial, OUT>(args, 0) }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    input, input_of, Transform<'_>
);
kernel!(
    /// # Safety
    /// The processor has the instruction set.
    gradient, gradient_of, Transform<'_>
);

/// Points to a strip of images: written, or added if `add`.
pub struct Output<'a> {
    pub strip: Strip,
    pub points: &'a [f32],
    pub image: &'a mut [f32],
    pub add: bool,
}

#[inline(always)]
unsafe fn output_of<V: Vector>(args: Output<'_>) {
    unsafe {
        let strip = &args.strip;
        let step = strip.step();
        assert!(args.points.len() >= POINTS * step);
        let Image { height, width, .. } = strip.image;
        for tile in strip.first..strip.end {
            let Place { at, row, column } = strip.place(tile);
            let whole = row + OUT <= height && column + OUT <= width;
            for block in 0..strip.image.blocks() {
                let from = args.points.as_ptr().add((block * strip.len() + tile - strip.first) * BLOCK);
                let to = args.image.as_mut_ptr().add(at + block * strip.image.plane());
                for lane in (0..BLOCK).step_by(V::LANES) {
                    let mut half = [[V::splat(0.0); IN]; OUT];
                    for c in 0..IN {
                        let mut column = [V::splat(0.0); IN];
                        for r in 0..IN {
                            column[r] = V::load(from.add((r * IN + c) * step + lane));
                        }
                        let column: [V; OUT] = coefficients(column);
                        for r in 0..OUT {
                            half[r][c] = column[r];
                        }
                    }
                    for r in 0..OUT {
                        let row_of: [V; OUT] = coefficients(half[r]);
                        for c in 0..OUT {
                            if whole || (row + r < height && column + c < width) {
                                let to = to.add((r * width + c) * BLOCK + lane);
                                let mut value = row_of[c];
                                if args.add {
                                    value = value.add(V::load(to));
                                }
                                value.store(to);
                            }
                        }
                    }
                }
            }
        }
    }
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    output, output_of, Output<'_>
);

/// The taps of one input channel and 16 output channels; their points lie `step` floats apart.
pub struct Weights<'a> {
    pub taps: &'a [[f32; BLOCK]; 9],
    pub to: *mut f32,
    pub step: usize,
}

/// In float64, rounded once: a small part of the work, but its error enters every product.
// kernel! compiles it for the vector's instruction set; the compiler finds the vectors.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn weights_of<V: Vector>(args: Weights<'_>) {
    const LANES: usize = 8;
    for lane in (0..BLOCK).step_by(LANES) {
        let mut half = [[[0f64; LANES]; 3]; IN];
        for c in 0..3 {
            for l in 0..LANES {
                let column = [0, 1, 2].map(|r| f64::from(args.taps[r * 3 + c][lane + l]));
                for (half, value) in half.iter_mut().zip(values(column)) {
                    half[c][l] = value;
                }
            }
        }
        for r in 0..IN {
            let mut row = [[0f32; LANES]; IN];
            for l in 0..LANES {
                let all = values([half[r][0][l], half[r][1][l], half[r][2][l]]);
                for c in 0..IN {
                    row[c][l] = (all[c] * SCALE[r * IN + c]) as f32;
                }
            }
            for c in 0..IN {
                let to = unsafe { args.to.add((r * IN + c) * args.step + lane) };
                unsafe { to.cast::<[f32; LANES]>().write(row[c]) };
            }
        }
    }
}

/// The values of a polynomial of three coefficients at the points.
#[inline(always)]
fn values(y: [f64; 3]) -> [f64; IN] {
    let (a, b) = (f64::from(A), f64::from(B));
    let (a_even, a_odd) = (y[0] + a * a * y[2], a * y[1]);
    let (b_even, b_odd) = (y[0] + b * b * y[2], b * y[1]);
    [y[0], a_even + a_odd, a_even - a_odd, b_even + b_odd, b_even - b_odd, y[2]]
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    weights, weights_of, Weights<'_>
);

/// `pairs` of channels: `sums` [point][pair], points `step` floats apart, to `dw` [tap][pair], which is added to.
pub struct Fold<'a> {
    pub sums: &'a [f32],
    pub step: usize,
    pub dw: &'a mut [f32],
    pub pairs: usize,
}

/// In float64, as the weights.
// kernel! compiles it for the vector's instruction set; the compiler finds the vectors.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn fold_of<V: Vector>(args: Fold<'_>) {
    const LANES: usize = 8;
    for pair in (0..args.pairs).step_by(LANES) {
        let mut half = [[[0f64; LANES]; IN]; 3];
        for c in 0..IN {
            let mut column = [[0f64; LANES]; IN];
            for r in 0..IN {
                let k = r * IN + c;
                let sums = &args.sums[k * args.step + pair..][..LANES];
                for l in 0..LANES {
                    column[r][l] = f64::from(sums[l]) * SCALE[k];
                }
            }
            for l in 0..LANES {
                let three = three_coefficients(std::array::from_fn(|r| column[r][l]));
                for r in 0..3 {
                    half[r][c][l] = three[r];
                }
            }
        }
        for r in 0..3 {
            let mut taps = [[0f32; LANES]; 3];
            for l in 0..LANES {
                let three = three_coefficients(std::array::from_fn(|c| half[r][c][l]));
                for c in 0..3 {
                    taps[c][l] = three[c] as f32;
                }
            }
            for (c, taps) in taps.iter().enumerate() {
                let to = &mut args.dw[(r * 3 + c) * args.pairs + pair..][..LANES];
                to.iter_mut().zip(taps).for_each(|(to, tap)| *to += tap);
            }
        }
    }
}

/// The transpose of [`values`].
#[inline(always)]
fn three_coefficients(m: [f64; IN]) -> [f64; 3] {
    let (a, b) = (f64::from(A), f64::from(B));
    let (a_even, b_even) = (m[1] + m[2], m[3] + m[4]);
    [m[0] + (a_even + b_even), a * (m[1] - m[2]) + b * (m[3] - m[4]), a * a * a_even + b * b * b_even + m[5]]
}

kernel!(
    /// # Safety
    /// The processor has the instruction set.
    fold, fold_of, Fold<'_>
);
