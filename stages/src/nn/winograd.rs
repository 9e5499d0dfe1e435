//! A 3×3 convolution of stride 1 by Winograd's F(4×4, 3×3) (Lavin and Gray 2016): tiles of 4×4 outputs from 6×6 inputs
//! with 36 products a pair of channels instead of 144. Knows strips of tiles and the order of the work; [`super::tiles`]
//! has the transforms, and the products between them are the correlation and weight kernels of one pixel.

use super::correlate::{self, Tap, Target};
use super::cpu::{Cpu, Isa};
use super::layout::Image;
use super::memory::Buffer;
use super::simd::BLOCK;
use super::tiles::{self, Fold, OUT, Output, POINTS, Strip, Transform, Weights, apart};
use super::weigh;

/// Tiles of a strip, if there are as many: so few that a strip's numbers stay in the cache, but not so few that reading
/// the weights, or the sums of their gradient, takes longer than reading the tiles.
fn most_tiles(inputs: usize, outputs: usize) -> usize {
    let fit = (1 << 16) / (POINTS * (inputs + outputs));
    fit.max(inputs * outputs / (inputs + outputs)).clamp(32, 128)
}

/// Products that are summed in a row before the sum is put aside. Fewer than in a direct convolution, because the
/// transforms of the sums amplify their rounding errors.
const CHAIN: usize = 16;

/// How to convolve with 3×3 kernels: everything that does not depend on the numbers.
pub struct Winograd {
    input: Image,
    output: Image,
    /// Rows and columns of tiles.
    tiles: (usize, usize),
    /// Tiles of a strip at most.
    most: usize,
    /// Examples that one call takes at most, so that small images fill a strip.
    pub group: usize,
    /// By the number of tiles that a strip can have.
    plans: Vec<Plans>,
}

/// The products of one strip: forward, backward to the input, backward to the weights.
struct Plans {
    tiles: usize,
    forward: correlate::Plan,
    backward: correlate::Plan,
    weigh: weigh::Plan,
}

impl Plans {
    fn new(isa: Isa, inputs: usize, outputs: usize, tiles: usize) -> Plans {
        let row = |channels: usize| Image { channels, height: 1, width: tiles };
        let tap = [Tap { row: 0, column: 0, weights: 0 }];
        let correlate = |from: usize, to: usize| {
            let target = Target { image: row(to), first: (0, 0), step: 1 };
            correlate::Plan::new(isa, row(from), target, (1, tiles), 1, &tap, 1, CHAIN)
        };
        Plans {
            tiles,
            forward: correlate(inputs, outputs),
            backward: correlate(outputs, inputs),
            weigh: weigh::Plan::new(isa, row(inputs), row(outputs), 1, &tap, 2 * CHAIN),
        }
    }
}

impl Winograd {
    /// `input` and `output` have the same height and width. At most `most_examples` in a group.
    pub fn new(isa: Isa, input: Image, output: Image, most_examples: usize) -> Winograd {
        let tiles = (input.height.div_ceil(OUT), input.width.div_ceil(OUT));
        let each = tiles.0 * tiles.1;
        let most = most_tiles(input.blocks() * BLOCK, output.blocks() * BLOCK);
        let group = (most / each.max(1)).clamp(1, most_examples);
        let mut counts: Vec<usize> =
            (1..=group).flat_map(|n| strips(n * each, most).map(|(first, end)| end - first)).collect();
        counts.sort_unstable();
        counts.dedup();
        let plans = counts.iter().map(|&n| Plans::new(isa, input.channels, output.channels, n)).collect();
        Winograd { input, output, tiles, most, group, plans }
    }

    fn plans(&self, tiles: usize) -> &Plans {
        let at = self.plans.partition_point(|p| p.tiles < tiles);
        &self.plans[at]
    }

    /// Transformed OIHW weights in the order of the forward products.
    pub fn pack_forward(&self, cpu: &Cpu, weights: &[f32]) -> Buffer {
        let inputs = self.input.channels;
        pack(cpu, &self.plans[0].forward, self.input, self.output, |i, o, tap| {
            weights[(o * inputs + i) * 9 + tap]
        })
    }

    /// The same for the gradient with respect to the input, which is a convolution with the kernels turned round.
    pub fn pack_backward(&self, cpu: &Cpu, weights: &[f32]) -> Buffer {
        let inputs = self.input.channels;
        pack(cpu, &self.plans[0].backward, self.output, self.input, |o, i, tap| {
            weights[(o * inputs + i) * 9 + 8 - tap]
        })
    }

    /// Up to [`Winograd::group`] examples, one after the other.
    ///
    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Winograd::pack_forward`].
    pub unsafe fn forward(&self, isa: Isa, input: &[f32], packed: &[f32], output: &mut [f32]) {
        unsafe { self.convolve(isa, (self.input, self.output), input, packed, output, false, |p| &p.forward) }
    }

    /// The gradient with respect to the input: written, or added if `add`.
    ///
    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Winograd::pack_backward`].
    pub unsafe fn backward(&self, isa: Isa, gradient: &[f32], packed: &[f32], dx: &mut [f32], add: bool) {
        unsafe { self.convolve(isa, (self.output, self.input), gradient, packed, dx, add, |p| &p.backward) }
    }

    unsafe fn convolve(
        &self,
        isa: Isa,
        (from, to): (Image, Image),
        input: &[f32],
        packed: &[f32],
        output: &mut [f32],
        add: bool,
        plan: impl Fn(&Plans) -> &correlate::Plan,
    ) {
        let n = input.len() / from.len();
        assert!(n <= self.group && output.len() >= n * to.len());
        for (first, end) in strips(n * self.tiles.0 * self.tiles.1, self.most) {
            let plan = plan(self.plans(end - first));
            let [from, to] = [from, to].map(|image| Strip { image, tiles: self.tiles, first, end });
            let mut v = Buffer::stale(POINTS * from.step());
            let mut m = Buffer::stale(POINTS * to.step());
            unsafe {
                tiles::input(isa, Transform { strip: from, image: input, points: &mut v });
                for k in 0..POINTS {
                    let u = &packed[k * (packed.len() / POINTS)..];
                    plan.run(&v[k * from.step()..], u, m.as_mut_ptr().add(k * to.step()), false, &mut []);
                }
                tiles::output(isa, Output { strip: to, points: &m, image: output, add });
            }
        }
    }

    /// Floats of the sums of a weight gradient's products.
    pub fn sums(&self) -> usize {
        POINTS * apart(self.plans[0].weigh.len())
    }

    /// Adds up to [`Winograd::group`] examples' part to `sums`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    pub unsafe fn weigh(&self, isa: Isa, input: &[f32], gradient: &[f32], sums: &mut [f32]) {
        let n = input.len() / self.input.len();
        assert!(n <= self.group && gradient.len() >= n * self.output.len() && sums.len() >= self.sums());
        for (first, end) in strips(n * self.tiles.0 * self.tiles.1, self.most) {
            let plan = &self.plans(end - first).weigh;
            let strip = |image: Image| Strip { image, tiles: self.tiles, first, end };
            let (from, to) = (strip(self.input), strip(self.output));
            let mut v = Buffer::stale(POINTS * from.step());
            let mut q = Buffer::stale(POINTS * to.step());
            unsafe {
                tiles::input(isa, Transform { strip: from, image: input, points: &mut v });
                tiles::gradient(isa, Transform { strip: to, image: gradient, points: &mut q });
                for k in 0..POINTS {
                    let sums = &mut sums[k * apart(plan.len())..][..plan.len()];
                    plan.run(&v[k * from.step()..], &q[k * to.step()..], sums);
                }
            }
        }
    }

    /// Adds the weight gradient that `sums` stand for to `dw`, in the order [tap][input channel][output channel], both
    /// filled up to whole blocks.
    ///
    /// # Safety
    /// The processor has the instruction set.
    pub unsafe fn fold(&self, isa: Isa, sums: &[f32], dw: &mut [f32]) {
        let pairs = self.plans[0].weigh.len();
        assert!(sums.len() >= self.sums() && dw.len() >= pairs * 9);
        unsafe { tiles::fold(isa, Fold { sums, step: apart(pairs), dw, pairs }) }
    }
}

/// First tile and one past the last of strips of nearly equal length, at most `most`.
fn strips(tiles: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let n = tiles.div_ceil(most);
    (0..n).map(move |s| (s * tiles / n, (s + 1) * tiles / n))
}

fn pack(
    cpu: &Cpu,
    plan: &correlate::Plan,
    from: Image,
    to: Image,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Buffer {
    let step = apart(from.channels * to.blocks() * BLOCK);
    let mut packed = Buffer::stale(POINTS * step);
    let all = packed.shared();
    cpu.for_each(to.blocks(), |block| {
        let first = block * BLOCK;
        let n = BLOCK.min(to.channels - first);
        let mut taps = [[0.0; BLOCK]; 9];
        for i in 0..from.channels {
            for o in 0..n {
                for (tap, to) in taps.iter_mut().enumerate() {
                    to[o] = weight(i, first + o, tap);
                }
            }
            // Another index writes to other blocks of outputs.
            unsafe {
                let to = all.at(plan.at(0, i, first));
                tiles::weights(cpu.isa, Weights { taps: &taps, to, step });
            }
        }
    });
    packed
}
