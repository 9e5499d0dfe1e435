//! out[pixel][o] = Σ over taps and input channels of in[neighbour][i] · w[tap][i][o]: a convolution forward, and its
//! gradient with respect to the input (one correlation for each parity of a strided one). Knows offsets and weights,
//! not which of the two it computes.
//!
//! Taps that would meet zero padding are left out: up to a sixth of the work of an 8×8 image.

use super::blocks::{Block, BlockFn, Edge, Step, block_fn, most_pixels};
use super::cpu::{Cpu, Isa};
use super::layout::Image;
use super::memory::Buffer;
use super::simd::{BLOCK, lanes};

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

/// Floats of a strip of the image: half of a small second-level cache.
const STRIP: usize = 1 << 16;

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
    /// Blocks of pixels in a row.
    blocks: usize,
    /// By row of the output: index into `runs`.
    class: Vec<usize>,
    runs: Vec<Vec<Run>>,
}

/// Blocks of equally many pixels with the same taps, one after the other.
struct Run {
    block: usize,
    column: usize,
    blocks: usize,
    pixels: usize,
    taps: Vec<Step>,
    /// Input channels of a chain: with few taps more of them.
    channels: usize,
    run: BlockFn,
}

impl Plan {
    /// `rows` × `columns` outputs at `target`; stride 1 or 2. About `chain` products are summed in a row.
    pub fn new(
        isa: Isa,
        input: Image,
        target: Target,
        (rows, columns): (usize, usize),
        stride: usize,
        taps: &[Tap],
        n_weights: usize,
        chain: usize,
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
                chain,
            ));
            vector += vectors;
            weights += n_weights * input.channels * vectors * lanes(isa);
        }
        Plan { isa, input, target, stride, rows, padding, groups, taps: n_weights }
    }

    /// Weights in the order in which blocks read them: [group][tap][input channel][output lane]. `weight(tap, input,
    /// output)` gives one.
    pub fn pack(&self, cpu: &Cpu, weight: impl Fn(usize, usize, usize) -> f32 + Sync) -> Buffer {
        let lanes = lanes(self.isa);
        let outputs = self.target.image.channels;
        let rows = self.taps * self.input.channels;
        let total: usize = self.groups.iter().map(|g| g.vectors * lanes * rows).sum();
        let mut packed = Buffer::stale(total);
        let all = packed.shared();
        cpu.for_each(self.groups.len(), |group| {
            let group = &self.groups[group];
            let width = group.vectors * lanes;
            let first = group.vector * lanes;
            let part = unsafe { all.part(group.weights, rows * width) };
            // An input's taps one after the other, as they lie in OIHW.
            for (i, tap) in (0..rows).map(|at| (at / self.taps, at % self.taps)) {
                let to = &mut part[(tap * self.input.channels + i) * width..][..width];
                for (lane, value) in to.iter_mut().enumerate() {
                    *value = if first + lane < outputs { weight(tap, i, first + lane) } else { 0.0 };
                }
            }
        });
        packed
    }

    /// Where a weight lies among the packed ones. The 16 outputs of a block lie one after the other.
    pub fn at(&self, tap: usize, i: usize, o: usize) -> usize {
        let lanes = lanes(self.isa);
        let group = &self.groups[o / lanes / 2];
        let width = group.vectors * lanes;
        group.weights + (tap * self.input.channels + i) * width + o - group.vector * lanes
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
        // Strips of the image that stay in the cache while all groups of outputs read them.
        let floats = self.stride * row_stride * self.input.blocks();
        let (row_strips, column_strips) = match self.rows {
            1 => (1, floats.div_ceil(STRIP)),
            rows => ((rows * floats).div_ceil(STRIP).min(rows), 1),
        };
        let part = |strip: usize, strips: usize, n: usize| strip * n / strips..(strip + 1) * n / strips;
        for (strip, group) in (0..row_strips * column_strips)
            .flat_map(|strip| self.groups.iter().map(move |group| (strip, group)))
        {
            let second = group.vector + group.vectors - 1;
            let blocks = part(strip % column_strips, column_strips, group.blocks);
            for row in part(strip / column_strips, row_strips, self.rows) {
                let from = (row * self.stride) * row_stride + self.padding.0 * BLOCK;
                let to = (first.0 + row * step) * out.width + first.1;
                for run in &group.runs[group.class[row]] {
                    let start = run.block.max(blocks.start);
                    let end = (run.block + run.blocks).min(blocks.end);
                    // Without taps there is nothing to add: the pixels that a strided convolution does not read.
                    if start >= end || (add && run.taps.is_empty()) {
                        continue;
                    }
                    let column = run.column + (start - run.block) * run.pixels;
                    let pixel = (to + column * step) * BLOCK;
                    unsafe {
                        (run.run)(&Block {
                            taps: &run.taps,
                            blocks: end - start,
                            image: image.as_ptr().add(from + column * self.stride * BLOCK),
                            plane,
                            channels: self.input.channels,
                            chain: run.channels,
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
        chain: usize,
    ) -> Group {
        let count = columns.div_ceil(most_pixels(isa, vectors)).max(1);
        let (each, longer) = (columns / count, columns % count);
        let spans: Vec<(usize, usize)> = (0..count)
            .map(|b| (b * each + b.min(longer), each + usize::from(b < longer)))
            .filter(|&(_, pixels)| pixels > 0)
            .collect();
        let mut seen: Vec<Vec<usize>> = vec![];
        let mut runs = vec![];
        let mut class = vec![];
        for row in 0..rows {
            let inside = |t: &Tap| {
                let at = (row * stride) as isize + t.row;
                at >= 0 && at < input.height as isize
            };
            let valid: Vec<usize> = (0..taps.len()).filter(|&t| inside(&taps[t])).collect();
            let known = seen.iter().position(|s| *s == valid).unwrap_or_else(|| {
                let taps: Vec<Tap> = valid.iter().map(|&t| taps[t]).collect();
                let mut all: Vec<Run> = vec![];
                for (block, &(column, pixels)) in spans.iter().enumerate() {
                    let taps = steps_of(&taps, input, (column, pixels), stride, padding, row_stride);
                    match all.last_mut() {
                        Some(last) if last.pixels == pixels && last.taps == taps => last.blocks += 1,
                        _ => {
                            let channels = chain.div_ceil(taps.len().max(1)).next_multiple_of(BLOCK);
                            let run = block_fn(isa, pixels, vectors, stride);
                            all.push(Run { block, column, blocks: 1, pixels, taps, channels, run });
                        }
                    }
                }
                runs.push(all);
                seen.push(valid);
                seen.len() - 1
            });
            class.push(known);
        }
        Group { vector, vectors, weights, blocks: spans.len(), class, runs }
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
