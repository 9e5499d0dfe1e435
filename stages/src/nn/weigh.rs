//! The gradient of a convolution's weights: dw[tap][i][o] += Σ over pixels of in[neighbour][i] · gradient[pixel][o].
//! Knows one example at a time, not chunks of a batch or their order.

use super::correlate::Tap;
use super::cpu::Isa;
use super::layout::Image;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{BLOCK, Portable, Vector, lanes};

/// How to add one example's part of the gradient.
pub struct Plan {
    isa: Isa,
    input: Image,
    output: Image,
    stride: usize,
    taps: Vec<Tap>,
}

/// Registers: (input channels, vectors of output channels) of a block.
fn block_size(isa: Isa, vectors: usize, channels: usize) -> (usize, usize) {
    let vectors = if isa == Isa::Portable { 1 } else { vectors.min(2) };
    let most = match (isa, vectors) {
        (Isa::Avx512, 1) => 16,
        (Isa::Avx512, _) | (Isa::Avx2, 1) => 8,
        (Isa::Avx2, _) => 4,
        (Isa::Portable, _) => 4,
    };
    (most.min(channels.next_power_of_two()), vectors)
}

impl Plan {
    /// `input` and `output` are the convolution's; taps as for its forward correlation; stride 1 or 2.
    pub fn new(isa: Isa, input: Image, output: Image, stride: usize, taps: &[Tap]) -> Plan {
        assert!(stride == 1 || stride == 2, "weigh: stride {stride}");
        Plan { isa, input, output, stride, taps: taps.to_vec() }
    }

    /// Floats of a gradient: [tap][input channel][output channel], both filled up to whole blocks.
    pub fn len(&self) -> usize {
        self.taps.len() * self.input.blocks() * self.output.blocks() * BLOCK * BLOCK
    }

    /// Where [tap][i][o] lies.
    pub fn at(&self, tap: usize, i: usize, o: usize) -> usize {
        (tap * self.input.blocks() * BLOCK + i) * self.output.blocks() * BLOCK + o
    }

    /// # Safety
    /// `dw` has [`Plan::len`] floats; the processor has the plan's instruction set.
    pub unsafe fn run(&self, input: &[f32], gradient: &[f32], dw: &mut [f32]) {
        assert!(
            input.len() >= self.input.len() && gradient.len() >= self.output.len() && dw.len() >= self.len()
        );
        let lanes = lanes(self.isa);
        let total = self.output.blocks() * BLOCK / lanes;
        let at = |vector: usize| vector * lanes / BLOCK * self.output.plane() + vector * lanes % BLOCK;
        for tap in &self.taps {
            let (r0, r1) = inside(tap.row, self.stride, self.output.height, self.input.height);
            let (c0, c1) = inside(tap.column, self.stride, self.output.width, self.input.width);
            if r0 >= r1 || c0 >= c1 {
                continue;
            }
            let row = ((r0 * self.stride) as isize + tap.row) as usize;
            let column = ((c0 * self.stride) as isize + tap.column) as usize;
            let from = (row * self.input.width + column) * BLOCK;
            let grad = (r0 * self.output.width + c0) * BLOCK;
            for block in 0..self.input.blocks() {
                let n = BLOCK.min(self.input.channels - block * BLOCK);
                let mut vector = 0;
                while vector < total {
                    let (channels, vectors) = block_size(self.isa, total - vector, n);
                    let call = block_fn(self.isa, channels, vectors, self.stride);
                    for first in (0..n).step_by(channels) {
                        let second = vector + vectors - 1;
                        unsafe {
                            call(&Block {
                                image: input.as_ptr().add(block * self.input.plane() + from + first),
                                image_row: self.input.width * self.stride * BLOCK,
                                gradient: [
                                    gradient.as_ptr().add(at(vector) + grad),
                                    gradient.as_ptr().add(at(second) + grad),
                                ],
                                gradient_row: self.output.width * BLOCK,
                                rows: r1 - r0,
                                columns: c1 - c0,
                                dw: dw.as_mut_ptr().add(self.at(
                                    tap.weights,
                                    block * BLOCK + first,
                                    vector * lanes,
                                )),
                                dw_row: self.output.blocks() * BLOCK,
                            })
                        }
                    }
                    vector += vectors;
                }
            }
        }
    }
}

/// The outputs whose neighbour lies inside the input: first and one past the last.
fn inside(offset: isize, stride: usize, outputs: usize, inputs: usize) -> (usize, usize) {
    let first = (-offset).max(0) as usize;
    let room = inputs as isize - offset;
    let end = if room <= 0 { 0 } else { (room as usize).div_ceil(stride) };
    (first.div_ceil(stride), end.min(outputs))
}

struct Block {
    image: *const f32,
    image_row: usize,
    gradient: [*const f32; 2],
    gradient_row: usize,
    rows: usize,
    columns: usize,
    dw: *mut f32,
    dw_row: usize,
}

type BlockFn = unsafe fn(&Block);

#[inline(always)]
unsafe fn block<V: Vector, const I: usize, const NB: usize, const S: usize>(block: &Block) {
    unsafe {
        let zero = [[V::splat(0.0); NB]; I];
        let mut sums = zero;
        let mut chain = 0;
        for row in 0..block.rows {
            if chain >= CHAIN {
                add(&sums, block);
                (sums, chain) = (zero, 0);
            }
            chain += block.columns;
            let mut image = block.image.add(row * block.image_row);
            let mut gradient = block.gradient.map(|g| g.add(row * block.gradient_row));
            for _ in 0..block.columns {
                let mut g = [V::splat(0.0); NB];
                for b in 0..NB {
                    g[b] = V::load(gradient[b]);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = V::splat(*image.add(i));
                    for b in 0..NB {
                        sums[b] = x.mul_add(g[b], sums[b]);
                    }
                }
                image = image.add(S * BLOCK);
                gradient = gradient.map(|g| g.add(BLOCK));
            }
        }
        add(&sums, block);
    }
}

/// Pixels that are summed in a row, at least, before the sum is put aside, for its rounding error's sake.
const CHAIN: usize = 128;

/// Adds the sums to the gradient.
#[inline(always)]
unsafe fn add<V: Vector, const I: usize, const NB: usize>(sums: &[[V; NB]; I], block: &Block) {
    unsafe {
        for (i, sums) in sums.iter().enumerate() {
            for (b, sum) in sums.iter().enumerate() {
                let to = block.dw.add(i * block.dw_row + b * V::LANES);
                V::load(to).add(*sum).store(to);
            }
        }
    }
}

macro_rules! entry {
    ($name:ident, $vector:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $name<const I: usize, const NB: usize, const S: usize>(args: &Block) {
            unsafe { block::<$vector, I, NB, S>(args) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
entry!(avx512, Avx512, "avx512f");
#[cfg(target_arch = "x86_64")]
entry!(avx2, Avx2, "avx2,fma");
entry!(portable, Portable);

fn block_fn(isa: Isa, channels: usize, vectors: usize, stride: usize) -> BlockFn {
    macro_rules! table {
        ($entry:ident: $($one:literal)*; $($two:literal)*) => {
            match (vectors, channels, stride) {
                $((1, $one, 1) => $entry::<$one, 1, 1>,)*
                $((1, $one, 2) => $entry::<$one, 1, 2>,)*
                $((2, $two, 1) => $entry::<$two, 2, 1>,)*
                $((2, $two, 2) => $entry::<$two, 2, 2>,)*
                other => unreachable!("weigh: no block of {other:?}"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => table!(avx512: 1 2 4 8 16; 1 2 4 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => table!(avx2: 1 2 4 8; 1 2 4),
        _ => table!(portable: 1 2 4;),
    }
}
