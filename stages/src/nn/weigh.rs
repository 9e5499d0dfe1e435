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
    blocks: Vec<Registers>,
    /// Pixels that are summed in a row, at least. Their numbers stay in the cache while all pairs of channels read them.
    chain: usize,
}

/// What a block's function keeps in registers.
struct Registers {
    plane: usize,
    /// The first input channel, in its plane.
    channel: usize,
    /// First and last vector of output channels.
    vector: usize,
    second: usize,
    run: BlockFn,
}

/// Registers: (input channels, vectors of output channels) of a block, at most.
fn most(isa: Isa, vectors: usize) -> (usize, usize) {
    let vectors = if isa == Isa::Portable { 1 } else { vectors.min(2) };
    let channels = match (isa, vectors) {
        (Isa::Avx512, 1) => 16,
        (Isa::Avx512, _) => 8,
        (Isa::Avx2, _) => 6,
        (Isa::Portable, _) => 4,
    };
    (channels, vectors)
}

impl Plan {
    /// `input` and `output` are the convolution's; taps as for its forward correlation; stride 1 or 2.
    pub fn new(isa: Isa, input: Image, output: Image, stride: usize, taps: &[Tap], chain: usize) -> Plan {
        assert!(stride == 1 || stride == 2, "weigh: stride {stride}");
        let total = output.blocks() * BLOCK / lanes(isa);
        let mut blocks = vec![];
        for plane in 0..input.blocks() {
            let n = BLOCK.min(input.channels - plane * BLOCK);
            let mut vector = 0;
            while vector < total {
                let (channels, vectors) = most(isa, total - vector);
                let calls = n.div_ceil(channels);
                for call in 0..calls {
                    let (channel, end) = part(call, calls, n);
                    let run = block_fn(isa, end - channel, vectors, stride);
                    blocks.push(Registers { plane, channel, vector, second: vector + vectors - 1, run });
                }
                vector += vectors;
            }
        }
        Plan { isa, input, output, stride, taps: taps.to_vec(), blocks, chain }
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
        let at = |vector: usize| vector * lanes / BLOCK * self.output.plane() + vector * lanes % BLOCK;
        let Image { height, width, .. } = self.output;
        let n_strips = (height * width / self.chain).max(1);
        let (row_strips, column_strips) = if height == 1 { (1, n_strips) } else { (n_strips.min(height), 1) };
        let strips = (0..row_strips * column_strips).map(|strip| {
            (
                part(strip / column_strips, row_strips, height),
                part(strip % column_strips, column_strips, width),
            )
        });
        for ((rows, columns), tap) in strips.flat_map(|s| self.taps.iter().map(move |tap| (s, tap))) {
            let (r0, r1) = inside(tap.row, self.stride, rows, self.input.height);
            let (c0, c1) = inside(tap.column, self.stride, columns, self.input.width);
            if r0 >= r1 || c0 >= c1 {
                continue;
            }
            let row = ((r0 * self.stride) as isize + tap.row) as usize;
            let column = ((c0 * self.stride) as isize + tap.column) as usize;
            let from = (row * self.input.width + column) * BLOCK;
            let grad = (r0 * self.output.width + c0) * BLOCK;
            for block in &self.blocks {
                let channel = block.plane * BLOCK + block.channel;
                unsafe {
                    (block.run)(&Block {
                        image: input.as_ptr().add(block.plane * self.input.plane() + from + block.channel),
                        image_row: self.input.width * self.stride * BLOCK,
                        gradient: [
                            gradient.as_ptr().add(at(block.vector) + grad),
                            gradient.as_ptr().add(at(block.second) + grad),
                        ],
                        gradient_row: self.output.width * BLOCK,
                        rows: r1 - r0,
                        columns: c1 - c0,
                        dw: dw.as_mut_ptr().add(self.at(tap.weights, channel, block.vector * lanes)),
                        dw_row: self.output.blocks() * BLOCK,
                    })
                }
            }
        }
    }
}

/// First and one past the last of part `i` of `parts` nearly equal ones.
fn part(i: usize, parts: usize, n: usize) -> (usize, usize) {
    (i * n / parts, (i + 1) * n / parts)
}

/// The outputs of a range whose neighbour lies inside the input: first and one past the last.
fn inside(offset: isize, stride: usize, outputs: (usize, usize), inputs: usize) -> (usize, usize) {
    let first = (-offset).max(0) as usize;
    let room = inputs as isize - offset;
    let end = if room <= 0 { 0 } else { (room as usize).div_ceil(stride) };
    (first.div_ceil(stride).max(outputs.0), end.min(outputs.1))
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
        let mut sums = [[V::splat(0.0); NB]; I];
        for row in 0..block.rows {
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
#[cfg(all(target_arch = "x86_64", not(feature = "emulate-avx512")))]
entry!(avx512, Avx512, "avx512f");
#[cfg(all(target_arch = "x86_64", feature = "emulate-avx512"))]
entry!(avx512, Avx512, "avx2,fma");
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
        Isa::Avx512 => table!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; 1 2 3 4 5 6 7 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => table!(avx2: ; 1 2 3 4 5 6),
        _ => table!(portable: 1 2 3 4;),
    }
}
