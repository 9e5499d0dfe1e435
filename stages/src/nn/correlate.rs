//! out[pixel][o] = Σ over taps and input channels of in[neighbour][i] · w[tap][i][o]: a convolution forward, and its
//! gradient with respect to the input (one correlation for each parity of a strided one). Knows offsets and weights,
//! not which of the two it computes.
//!
//! A block of `P` pixels × `NB` vectors of output channels stays in registers over all taps and input channels. Taps
//! that would meet zero padding are left out: up to a sixth of the work of an 8×8 image.

use super::cpu::Isa;
use super::layout::Image;
use super::memory::Buffer;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{BLOCK, Portable, Vector, lanes};

/// A neighbour, relative to an output's position times the stride, and the index of its weights.
#[derive(Clone, Copy, Debug)]
pub struct Tap {
    pub row: isize,
    pub column: isize,
    pub weights: usize,
}

/// Which pixels of an image are written: rows `first.0 + r * step`, columns `first.1 + c * step`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub image: Image,
    pub first: (usize, usize),
    pub step: usize,
}

/// A tap of one block of pixels, as an offset in floats from the block's first pixel.
#[derive(Clone, Copy)]
struct Step {
    offset: isize,
    weights: usize,
    edge: Edge,
}

/// Which pixel of a block a tap leaves out because it would read padding.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    None,
    First,
    Last,
}

/// How to compute one correlation of one example: everything that does not depend on the numbers.
pub struct Plan {
    isa: Isa,
    input: Image,
    target: Target,
    stride: usize,
    rows: usize,
    /// Zero columns to the left and right, where leaving out one pixel of a block is not enough.
    padding: (usize, usize),
    /// Output vectors are computed in groups of one or two.
    groups: Vec<Group>,
    taps: usize,
}

struct Group {
    vector: usize,
    vectors: usize,
    /// Of its packed weights.
    weights: usize,
    /// First column, columns, the function for that many, by block.
    blocks: Vec<(usize, BlockFn)>,
    /// By row of the output: index into `steps`, which has one list for each block.
    class: Vec<usize>,
    steps: Vec<Vec<Vec<Step>>>,
}

/// The most pixels of a block, by number of vectors: what fits in the registers.
fn most_pixels(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        (Isa::Avx512, 1) => 16,
        (Isa::Avx512, _) => 14,
        (Isa::Avx2, 1) => 10,
        (Isa::Avx2, _) => 6,
        (Isa::Portable, 1) => 4,
        (Isa::Portable, _) => 2,
    }
}

impl Plan {
    /// `rows` × `columns` outputs at `target`; stride 1 or 2.
    pub fn new(
        isa: Isa,
        input: Image,
        target: Target,
        (rows, columns): (usize, usize),
        stride: usize,
        taps: &[Tap],
        n_weights: usize,
    ) -> Plan {
        assert!(stride == 1 || stride == 2, "correlate: stride {stride}");
        let left = taps.iter().map(|t| (-t.column).max(0)).max().unwrap_or(0) as usize;
        let last = taps.iter().map(|t| (columns.max(1) - 1) as isize * stride as isize + t.column).max();
        let right = (last.unwrap_or(0) + 1 - input.width as isize).max(0) as usize;
        // One pixel at each end can be left out; anything else reads zeros.
        let simple = taps.iter().all(|t| {
            let position = |c: usize| (c * stride) as isize + t.column;
            let before = (0..columns).filter(|&c| position(c) < 0).count();
            let after = (0..columns).filter(|&c| position(c) >= input.width as isize).count();
            before <= 1 && after <= 1 && (before == 0 || after == 0)
        });
        let padding = if simple { (0, 0) } else { (left, right) };
        let row_stride = (input.width + padding.0 + padding.1) * BLOCK;
        let total = target.image.blocks() * BLOCK / lanes(isa);
        let mut groups = vec![];
        let (mut vector, mut weights) = (0, 0);
        while vector < total {
            let vectors = 2.min(total - vector);
            groups.push(Group::new(
                isa,
                input,
                (rows, columns),
                stride,
                taps,
                padding,
                row_stride,
                vector,
                vectors,
                weights,
            ));
            vector += vectors;
            weights += n_weights * input.channels * vectors * lanes(isa);
        }
        Plan { isa, input, target, stride, rows, padding, groups, taps: n_weights }
    }

    /// Weights in the order in which blocks read them: [group][tap][input channel][output lane]. `weight(tap, input,
    /// output)` gives one.
    pub fn pack(&self, weight: impl Fn(usize, usize, usize) -> f32) -> Buffer {
        let lanes = lanes(self.isa);
        let outputs = self.target.image.channels;
        let total: usize =
            self.groups.iter().map(|g| g.vectors * lanes * self.taps * self.input.channels).sum();
        let mut packed = Buffer::stale(total);
        for group in &self.groups {
            let width = group.vectors * lanes;
            let first = group.vector * lanes;
            let part = &mut packed[group.weights..][..self.taps * self.input.channels * width];
            for (row, to) in part.chunks_exact_mut(width).enumerate() {
                let (tap, i) = (row / self.input.channels, row % self.input.channels);
                for (lane, value) in to.iter_mut().enumerate() {
                    *value = if first + lane < outputs { weight(tap, i, first + lane) } else { 0.0 };
                }
            }
        }
        packed
    }

    /// Floats of scratch that [`Plan::run`] needs.
    pub fn scratch(&self) -> usize {
        match self.padding {
            (0, 0) => 0,
            (left, right) => {
                self.input.blocks() * self.input.height * (self.input.width + left + right) * BLOCK
            }
        }
    }

    /// One example: `input` in the kernels' layout, `weights` from [`Plan::pack`]; writes the target's pixels, or adds
    /// to them.
    ///
    /// # Safety
    /// `output` points to an example of the target's image, which no other thread uses; the processor has the plan's
    /// instruction set.
    pub unsafe fn run(
        &self,
        input: &[f32],
        weights: &[f32],
        output: *mut f32,
        add: bool,
        scratch: &mut [f32],
    ) {
        assert!(input.len() >= self.input.len());
        let (image, plane) = match self.padding {
            (0, 0) => (input, self.input.plane()),
            _ => (&*self.pad(input, scratch), scratch_plane(self.input, self.padding)),
        };
        let row_stride = (self.input.width + self.padding.0 + self.padding.1) * BLOCK;
        let lanes = lanes(self.isa);
        let Target { image: out, first, step } = self.target;
        let at = |vector: usize| vector * lanes / BLOCK * out.plane() + vector * lanes % BLOCK;
        for group in &self.groups {
            let second = group.vector + group.vectors - 1;
            for row in 0..self.rows {
                let steps = &group.steps[group.class[row]];
                let from = (row * self.stride) * row_stride + self.padding.0 * BLOCK;
                let to = (first.0 + row * step) * out.width + first.1;
                for (&(column, block), steps) in group.blocks.iter().zip(steps) {
                    let pixel = (to + column * step) * BLOCK;
                    unsafe {
                        block(&Block {
                            steps,
                            image: image.as_ptr().add(from + column * self.stride * BLOCK),
                            plane,
                            channels: self.input.channels,
                            weights: weights.as_ptr().add(group.weights),
                            output: [output.add(at(group.vector) + pixel), output.add(at(second) + pixel)],
                            step: step * BLOCK,
                            add,
                        })
                    }
                }
            }
        }
    }

    fn pad<'a>(&self, input: &[f32], scratch: &'a mut [f32]) -> &'a mut [f32] {
        let (left, right) = (self.padding.0 * BLOCK, self.padding.1 * BLOCK);
        let width = self.input.width * BLOCK;
        let scratch = &mut scratch[..self.scratch()];
        for (from, to) in input.chunks_exact(width).zip(scratch.chunks_exact_mut(left + width + right)) {
            to[..left].fill(0.0);
            to[left..left + width].copy_from_slice(from);
            to[left + width..].fill(0.0);
        }
        scratch
    }
}

fn scratch_plane(input: Image, padding: (usize, usize)) -> usize {
    input.height * (input.width + padding.0 + padding.1) * BLOCK
}

impl Group {
    #[allow(clippy::too_many_arguments)]
    fn new(
        isa: Isa,
        input: Image,
        (rows, columns): (usize, usize),
        stride: usize,
        taps: &[Tap],
        padding: (usize, usize),
        row_stride: usize,
        vector: usize,
        vectors: usize,
        weights: usize,
    ) -> Group {
        let count = columns.div_ceil(most_pixels(isa, vectors)).max(1);
        let (each, longer) = (columns / count, columns % count);
        let spans: Vec<(usize, usize)> = (0..count)
            .map(|b| (b * each + b.min(longer), each + usize::from(b < longer)))
            .filter(|&(_, pixels)| pixels > 0)
            .collect();
        let mut seen: Vec<Vec<usize>> = vec![];
        let mut steps = vec![];
        let mut class = vec![];
        for row in 0..rows {
            let inside = |t: &Tap| {
                let at = (row * stride) as isize + t.row;
                at >= 0 && at < input.height as isize
            };
            let valid: Vec<usize> = (0..taps.len()).filter(|&t| inside(&taps[t])).collect();
            let known = seen.iter().position(|s| *s == valid).unwrap_or_else(|| {
                let taps: Vec<Tap> = valid.iter().map(|&t| taps[t]).collect();
                let edges =
                    |span: &(usize, usize)| steps_of(&taps, input, *span, stride, padding, row_stride);
                steps.push(spans.iter().map(edges).collect());
                seen.push(valid);
                seen.len() - 1
            });
            class.push(known);
        }
        let blocks =
            spans.iter().map(|&(first, pixels)| (first, block_fn(isa, pixels, vectors, stride))).collect();
        Group { vector, vectors, weights, blocks, class, steps }
    }
}

fn steps_of(
    taps: &[Tap],
    input: Image,
    (first, pixels): (usize, usize),
    stride: usize,
    padding: (usize, usize),
    row_stride: usize,
) -> Vec<Step> {
    let mut steps = vec![];
    for tap in taps {
        let outside = |pixel: usize| {
            let at = ((first + pixel) * stride) as isize + tap.column;
            at < 0 || at >= input.width as isize
        };
        let n = (0..pixels).filter(|&p| outside(p)).count();
        if n == pixels {
            continue;
        }
        let edge = match n {
            _ if padding != (0, 0) => Edge::None,
            0 => Edge::None,
            _ if outside(0) => Edge::First,
            _ => Edge::Last,
        };
        let offset = tap.row * row_stride as isize + tap.column * BLOCK as isize;
        steps.push(Step { offset, weights: tap.weights, edge });
    }
    steps
}

/// Products that are summed one after the other before the sum is put aside: the rounding error of a sum of n numbers in
/// a row is in proportion to √n, that of a sum of sums to the square root of the longer part.
const CHAIN: usize = 128;

/// What a block's function is given.
struct Block<'a> {
    steps: &'a [Step],
    image: *const f32,
    plane: usize,
    channels: usize,
    weights: *const f32,
    output: [*mut f32; 2],
    step: usize,
    add: bool,
}

type BlockFn = unsafe fn(&Block<'_>);

#[inline(always)]
unsafe fn block<V: Vector, const P: usize, const NB: usize, const S: usize>(block: &Block<'_>) {
    unsafe {
        // Channels of a chain: with few taps more of them.
        let part = CHAIN.div_ceil(block.steps.len().max(1)).next_multiple_of(BLOCK);
        let mut first = 0;
        while first < block.channels || first == 0 {
            let channels = part.min(block.channels - first);
            let mut sums = [[V::splat(0.0); NB]; P];
            for step in block.steps {
                let image = block.image.offset(step.offset).add(first / BLOCK * block.plane);
                let weights = block.weights.add((step.weights * block.channels + first) * NB * V::LANES);
                let from = From { image, plane: block.plane, channels, weights };
                match step.edge {
                    Edge::None => accumulate::<V, P, NB, S, 0, P>(&mut sums, from),
                    Edge::First => accumulate::<V, P, NB, S, 1, P>(&mut sums, from),
                    Edge::Last => accumulate_but_last::<V, P, NB, S>(&mut sums, from),
                }
            }
            put(&sums, block, block.add || first > 0);
            first += part;
        }
    }
}

/// Where a tap's channels of a chain lie.
#[derive(Clone, Copy)]
struct From {
    image: *const f32,
    plane: usize,
    channels: usize,
    weights: *const f32,
}

/// Writes the sums to the output, or adds them.
#[inline(always)]
unsafe fn put<V: Vector, const P: usize, const NB: usize>(sums: &[[V; NB]; P], block: &Block<'_>, add: bool) {
    unsafe {
        for (p, sums) in sums.iter().enumerate() {
            for (b, sum) in sums.iter().enumerate() {
                let to = block.output[b].add(p * block.step);
                let sum = if add { sum.add(V::load(to)) } else { *sum };
                sum.store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn accumulate<
    V: Vector,
    const P: usize,
    const NB: usize,
    const S: usize,
    const LO: usize,
    const HI: usize,
>(
    sums: &mut [[V; NB]; P],
    from: From,
) {
    unsafe {
        let From { mut image, plane, channels, mut weights } = from;
        for _ in 0..channels / BLOCK {
            for i in 0..BLOCK {
                channel::<V, P, NB, S, LO, HI>(sums, image.add(i), weights.add(i * NB * V::LANES));
            }
            image = image.add(plane);
            weights = weights.add(BLOCK * NB * V::LANES);
        }
        for i in 0..channels % BLOCK {
            channel::<V, P, NB, S, LO, HI>(sums, image.add(i), weights.add(i * NB * V::LANES));
        }
    }
}

/// Const arithmetic (`P - 1` as an argument) is not in the language yet, hence this match.
#[inline(always)]
unsafe fn accumulate_but_last<V: Vector, const P: usize, const NB: usize, const S: usize>(
    sums: &mut [[V; NB]; P],
    from: From,
) {
    macro_rules! by_length {
        ($($n:literal)*) => {
            match P - 1 {
                $($n => unsafe { accumulate::<V, P, NB, S, 0, $n>(sums, from) },)*
                _ => {}
            }
        };
    }
    by_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

#[inline(always)]
unsafe fn channel<
    V: Vector,
    const P: usize,
    const NB: usize,
    const S: usize,
    const LO: usize,
    const HI: usize,
>(
    sums: &mut [[V; NB]; P],
    image: *const f32,
    weights: *const f32,
) {
    unsafe {
        let mut w = [V::splat(0.0); NB];
        for (b, w) in w.iter_mut().enumerate() {
            *w = V::load(weights.add(b * V::LANES));
        }
        for p in LO..HI {
            let x = V::splat(*image.add(p * S * BLOCK));
            for b in 0..NB {
                sums[p][b] = x.mul_add(w[b], sums[p][b]);
            }
        }
    }
}

macro_rules! entry {
    ($name:ident, $vector:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $name<const P: usize, const NB: usize, const S: usize>(args: &Block<'_>) {
            unsafe { block::<$vector, P, NB, S>(args) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
entry!(avx512, Avx512, "avx512f");
#[cfg(target_arch = "x86_64")]
entry!(avx2, Avx2, "avx2,fma");
entry!(portable, Portable);

fn block_fn(isa: Isa, pixels: usize, vectors: usize, stride: usize) -> BlockFn {
    macro_rules! table {
        ($entry:ident: $($one:literal)*; $($two:literal)*) => {
            match (vectors, pixels, stride) {
                $((1, $one, 1) => $entry::<$one, 1, 1>,)*
                $((1, $one, 2) => $entry::<$one, 1, 2>,)*
                $((2, $two, 1) => $entry::<$two, 2, 1>,)*
                $((2, $two, 2) => $entry::<$two, 2, 2>,)*
                other => unreachable!("correlate: no block of {other:?}"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            table!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => table!(avx2: 1 2 3 4 5 6 7 8 9 10; 1 2 3 4 5 6),
        _ => table!(portable: 1 2 3 4; 1 2),
    }
}
