//! The inner loops of a correlation: a block of `P` pixels × `NB` vectors of output channels stays in registers over all
//! taps and input channels. Knows pointers and offsets, not images.

use super::cpu::Isa;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{BLOCK, Portable, Vector};

/// A tap of one block of pixels, as an offset in floats from the block's first pixel.
#[derive(Clone, Copy, PartialEq)]
pub struct Step {
    pub offset: isize,
    pub weights: usize,
    pub edge: Edge,
}

/// Which pixel of a block a tap leaves out because it would read padding.
#[derive(Clone, Copy, PartialEq)]
pub enum Edge {
    None,
    First,
    Last,
}

/// The most pixels of a block, by number of vectors: what fits in the registers.
pub fn most_pixels(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        (Isa::Avx512, 1) => 16,
        (Isa::Avx512, _) => 14,
        (Isa::Avx2, 1) => 10,
        (Isa::Avx2, _) => 6,
        (Isa::Portable, 1) => 4,
        (Isa::Portable, _) => 2,
    }
}

/// What a block's function is given: the first of some blocks.
pub struct Block<'a> {
    pub taps: &'a [Step],
    pub blocks: usize,
    pub image: *const f32,
    pub plane: usize,
    pub channels: usize,
    pub chain: usize,
    pub weights: *const f32,
    pub output: [*mut f32; 2],
    pub step: usize,
    pub add: bool,
}

pub type BlockFn = unsafe fn(&Block<'_>);

#[inline(always)]
unsafe fn block<V: Vector, const P: usize, const NB: usize, const S: usize>(block: &Block<'_>) {
    unsafe {
        let [mut first_output, mut second_output] = block.output;
        let mut from = block.image;
        for _ in 0..block.blocks {
            let mut first = 0;
            while first < block.channels || first == 0 {
                let channels = block.chain.min(block.channels - first);
                let mut sums = [[V::splat(0.0); NB]; P];
                for step in block.taps {
                    let image = from.offset(step.offset).add(first / BLOCK * block.plane);
                    let weights = block.weights.add((step.weights * block.channels + first) * NB * V::LANES);
                    let from = From { image, plane: block.plane, channels, weights };
                    match step.edge {
                        Edge::None => accumulate::<V, P, NB, S, 0, P>(&mut sums, from),
                        Edge::First => accumulate::<V, P, NB, S, 1, P>(&mut sums, from),
                        Edge::Last => accumulate_but_last::<V, P, NB, S>(&mut sums, from),
                    }
                }
                put(&sums, [first_output, second_output], block.step, block.add || first > 0);
                first += block.chain;
            }
            from = from.add(P * S * BLOCK);
            first_output = first_output.add(P * block.step);
            second_output = second_output.add(P * block.step);
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
unsafe fn put<V: Vector, const P: usize, const NB: usize>(
    sums: &[[V; NB]; P],
    output: [*mut f32; 2],
    step: usize,
    add: bool,
) {
    unsafe {
        for (p, sums) in sums.iter().enumerate() {
            for (b, sum) in sums.iter().enumerate() {
                let to = output[b].add(p * step);
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
#[cfg(all(target_arch = "x86_64", not(feature = "emulate-avx512")))]
entry!(avx512, Avx512, "avx512f");
#[cfg(all(target_arch = "x86_64", feature = "emulate-avx512"))]
entry!(avx512, Avx512, "avx2,fma");
#[cfg(target_arch = "x86_64")]
entry!(avx2, Avx2, "avx2,fma");
entry!(portable, Portable);

pub fn block_fn(isa: Isa, pixels: usize, vectors: usize, stride: usize) -> BlockFn {
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
