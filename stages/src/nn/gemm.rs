//! C = A · B, or C += A · B, in float32. Knows matrices in memory, not what they stand for.
//!
//! A tile of C stays in the registers while [`DEPTH`] of the inner dimension pass; B is packed once into panels as wide
//! as a tile, a block of A into panels as tall as one. Every element of C is one chain of sums in the order of the inner
//! dimension, whoever computes it: the bits do not depend on the number of threads.

use super::cpu::{Cpu, Isa};
use super::memory::{Buffer, Shared, share};
use super::simd::{Vector, kernel, lanes};
use std::ops::Range;

/// How much of the inner dimension a tile takes at a time: a panel of B, 16 KiB, stays in the first cache.
const DEPTH: usize = 256;
/// From row to row of a packed panel of A: not a power of two, whose rows would share cache sets.
const STEP: usize = DEPTH + 16;
/// Tiles of a block of rows, which stays in the second cache, and columns of a block of C.
const TALL: usize = 22;
const BROAD: usize = 384;
/// From this many blocks of rows on, blocks are twice as broad: A is packed half as often, and there is still enough to
/// share between threads.
const MANY: usize = 16;

/// A matrix in memory.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// From row to row, or from column to column of a transposed one.
    step: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Element (i, j) is `data[i * step + j]`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, step: usize) -> Matrix<'a> {
        assert!(rows == 0 || columns == 0 || data.len() >= (rows - 1) * step + columns, "gemm: too short");
        Matrix { data, rows, columns, step, transposed: false }
    }

    /// As many whole rows of `columns` as there are.
    pub fn of(data: &'a [f32], columns: usize) -> Matrix<'a> {
        Matrix::new(data, data.len() / columns, columns, columns)
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Its transpose, in the same memory.
    pub fn t(self) -> Matrix<'a> {
        Matrix { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }
}

/// Where a product goes: element (i, j) to `to[i * step + j]`.
#[derive(Clone, Copy)]
pub struct Target {
    to: Shared,
    step: usize,
    add: bool,
}

impl Target {
    /// Overwrites.
    pub fn new(to: &mut [f32], step: usize) -> Target {
        Target { to: share(to), step, add: false }
    }

    /// Adds the product to what is there.
    pub fn sum(to: &mut [f32], step: usize) -> Target {
        Target { to: share(to), step, add: true }
    }

    /// Overwrites a part of what other threads write to.
    ///
    /// # Safety
    /// The rows lie inside the buffer, and no other thread touches their elements.
    pub unsafe fn shared(to: Shared, step: usize) -> Target {
        Target { to, step, add: false }
    }
}

/// The right-hand side of a product, in the order in which tiles read it: by block of the inner dimension and panel of
/// columns, [`DEPTH`] × columns of a tile, missing columns zero.
pub struct Packed {
    buffer: Buffer,
    depth: usize,
    columns: usize,
}

impl Packed {
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn new(cpu: &Cpu, b: Matrix<'_>) -> Packed {
        let width = 2 * lanes(cpu.isa);
        let (depth, columns) = (b.rows, b.columns);
        let panels = columns.div_ceil(width);
        let mut buffer = Buffer::stale(depth * panels * width);
        let to = buffer.shared();
        let blocks = depth.div_ceil(DEPTH);
        // A few panels a task.
        let some = 8;
        cpu.for_each(blocks * panels.div_ceil(some), |task| {
            let (block, first) = (task % blocks, task / blocks * some);
            let inner = block * DEPTH..depth.min((block + 1) * DEPTH);
            for panel in first..panels.min(first + some) {
                let at = inner.start * panels * width + panel * inner.len() * width;
                let to = unsafe { to.part(at, inner.len() * width) };
                let columns = panel * width..columns.min((panel + 1) * width);
                pack_panel(b, inner.clone(), columns, width, to);
            }
        });
        Packed { buffer, depth, columns }
    }
}

fn pack_panel(b: Matrix<'_>, inner: Range<usize>, columns: Range<usize>, width: usize, to: &mut [f32]) {
    if columns.len() < width {
        to.fill(0.0);
    }
    if b.transposed {
        for (j, column) in columns.enumerate() {
            let from = &b.data[column * b.step + inner.start..][..inner.len()];
            for (to, from) in to.chunks_exact_mut(width).zip(from) {
                to[j] = *from;
            }
        }
        return;
    }
    let rows = inner.map(|k| &b.data[k * b.step..][columns.clone()]);
    match columns.len() {
        // Of a length that the compiler knows: no call for each.
        16 if width == 16 => copy::<16>(rows, to),
        32 if width == 32 => copy::<32>(rows, to),
        n => to.chunks_exact_mut(width).zip(rows).for_each(|(to, from)| to[..n].copy_from_slice(from)),
    }
}

fn copy<'a, const N: usize>(rows: impl Iterator<Item = &'a [f32]>, to: &mut [f32]) {
    for (to, from) in to.as_chunks_mut::<N>().0.iter_mut().zip(rows) {
        if let Some(from) = from.first_chunk::<N>() {
            *to = *from;
        }
    }
}

/// A block of rows of A as panels of `tall` rows: a row after the other, [`STEP`] apart, or of a transposed matrix `tall`
/// neighbours for each of the inner dimension. Missing rows are zero.
fn pack_rows(a: Matrix<'_>, rows: Range<usize>, inner: Range<usize>, tall: usize, to: &mut [f32]) {
    let panels = to.chunks_exact_mut(tall * STEP).take(rows.len().div_ceil(tall)).enumerate();
    if a.transposed {
        for (panel, to) in panels {
            let first = rows.start + panel * tall;
            let here = first..rows.end.min(first + tall);
            for (to, k) in to.chunks_exact_mut(tall).zip(inner.clone()) {
                let from = &a.data[k * a.step..][here.clone()];
                // Short and of a fixed length nearly always: no call.
                to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
                to[here.len()..].fill(0.0);
            }
        }
    } else {
        for (panel, to) in panels {
            for (i, to) in to.chunks_exact_mut(STEP).enumerate() {
                let row = rows.start + panel * tall + i;
                match row < rows.end {
                    true => to[..inner.len()]
                        .copy_from_slice(&a.data[row * a.step + inner.start..][..inner.len()]),
                    false => to[..inner.len()].fill(0.0),
                }
            }
        }
    }
}

/// Rows of C in a tile: as many as the registers hold.
fn tall(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        Isa::Avx2 => 6,
        Isa::Portable => 2,
    }
}

/// The rows of the blocks that [`multiply`] computes of a product of `rows` rows: fixed, so that what is summed by block
/// does not depend on the number of threads.
pub fn block_rows(isa: Isa, rows: usize) -> usize {
    let blocks = rows.div_ceil(TALL * tall(isa)).max(1);
    rows.div_ceil(blocks).next_multiple_of(tall(isa))
}

/// Writes or adds `a` · `b` to `c` and calls `then(rows, columns)` once for each finished block of C (of
/// [`block_rows`] rows).
pub fn multiply(
    cpu: &Cpu,
    a: Matrix<'_>,
    b: &Packed,
    c: Target,
    then: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    assert_eq!(a.columns, b.depth, "gemm: the inner dimensions differ");
    let (tall, width) = (tall(cpu.isa), 2 * lanes(cpu.isa));
    let height = block_rows(cpu.isa, a.rows).max(1);
    let panels = b.columns.div_ceil(width);
    let down = a.rows.div_ceil(height);
    let broad = if down < MANY { BROAD } else { 2 * BROAD };
    let across = b.columns.div_ceil(broad);
    cpu.for_each(down * across, |task| {
        let rows = task / across * height..a.rows.min((task / across + 1) * height);
        let columns = task % across * broad..b.columns.min((task % across + 1) * broad);
        let mut packed = Buffer::stale(height * STEP);
        for first in (0..b.depth).step_by(DEPTH) {
            let inner = first..b.depth.min(first + DEPTH);
            pack_rows(a, rows.clone(), inner.clone(), tall, &mut packed);
            let at = first * panels * width + columns.start / width * inner.len() * width;
            let block = Block {
                depth: inner.len(),
                rows: rows.len(),
                columns: columns.len(),
                by_row: !a.transposed,
                a: &packed,
                b: &b.buffer[at..],
                c: unsafe { c.to.at(rows.start * c.step + columns.start) },
                step: c.step,
                add: c.add || first > 0,
            };
            unsafe { block_kernel(cpu.isa, block) };
        }
        then(rows, columns);
    });
}

pub struct Block<'a> {
    depth: usize,
    rows: usize,
    columns: usize,
    by_row: bool,
    a: &'a [f32],
    b: &'a [f32],
    c: *mut f32,
    step: usize,
    add: bool,
}

kernel!(block_kernel, block_generic, Block<'_>);

#[inline(always)]
unsafe fn block_generic<V: Vector>(block: Block<'_>) {
    unsafe {
        match V::TALL {
            14 => tiles::<V, 14>(&block),
            6 => tiles::<V, 6>(&block),
            _ => tiles::<V, 2>(&block),
        }
    }
}

#[inline(always)]
unsafe fn tiles<V: Vector, const M: usize>(block: &Block<'_>) {
    let width = 2 * V::LANES;
    let Block { depth, rows, columns, step, add, .. } = *block;
    for (j, b) in (0..columns).step_by(width).zip(block.b.chunks_exact(depth * width)) {
        for (i, a) in (0..rows).step_by(M).zip(block.a.chunks_exact(M * STEP)) {
            let c = unsafe { block.c.add(i * step + j) };
            if i + M <= rows && j + width <= columns {
                unsafe { tile::<V, M>(block.by_row, depth, a, b, c, step, add) };
                continue;
            }
            // A tile over the edge goes through a whole one.
            let mut whole = [0f32; 14 * 32];
            unsafe { tile::<V, M>(block.by_row, depth, a, b, whole.as_mut_ptr(), width, false) };
            for (r, row) in whole.chunks_exact(width).take(M.min(rows - i)).enumerate() {
                for (s, value) in row.iter().take(columns - j).enumerate() {
                    let c = unsafe { &mut *c.add(r * step + s) };
                    *c = if add { *c + value } else { *value };
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const M: usize>(
    by_row: bool,
    depth: usize,
    a: &[f32],
    b: &[f32],
    c: *mut f32,
    step: usize,
    add: bool,
) {
    let mut sums = [[unsafe { V::splat(0.0) }; 2]; M];
    let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
    if by_row {
        for _ in 0..depth {
            unsafe {
                outer::<V, M, STEP>(&mut sums, a, b);
                a = a.add(1);
                b = b.add(2 * V::LANES);
            }
        }
    } else {
        for _ in 0..depth {
            unsafe {
                outer::<V, M, 1>(&mut sums, a, b);
                a = a.add(M);
                b = b.add(2 * V::LANES);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (half, sum) in sums.into_iter().enumerate() {
            unsafe {
                let c = c.add(i * step + half * V::LANES);
                let sum = if add { V::load(c).add(sum) } else { sum };
                sum.store(c);
            }
        }
    }
}

/// One of the inner dimension: `S` floats lie between the elements of A's column.
#[inline(always)]
unsafe fn outer<V: Vector, const M: usize, const S: usize>(
    sums: &mut [[V; 2]; M],
    a: *const f32,
    b: *const f32,
) {
    unsafe {
        let (left, right) = (V::load(b), V::load(b.add(V::LANES)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = V::splat(*a.add(i * S));
            sums[0] = a.mul_add(left, sums[0]);
            sums[1] = a.mul_add(right, sums[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn values(n: usize, index: u64) -> Vec<f32> {
        Stream::new(1, "gemm", 0, index).uniforms(n, -1.0, 1.0)
    }

    /// Against float64, every way of lying in memory, odd sizes around every block's edge, a strided target.
    #[test]
    fn products_equal_the_naive_ones() {
        for isa in Isa::tested().unwrap() {
            let cpu = Cpu::with_isa(isa, 2).unwrap();
            for (m, n, k) in [(1, 1, 1), (7, 33, 5), (129, 49, 257), (300, 400, 64), (13, 17, 520)] {
                for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
                    let (a, b) = (values(m * k, 0), values(k * n, 1));
                    let first = match left {
                        false => Matrix::new(&a, m, k, k),
                        true => Matrix::new(&a, k, m, m).t(),
                    };
                    let second = match right {
                        false => Matrix::new(&b, k, n, n),
                        true => Matrix::new(&b, n, k, k).t(),
                    };
                    let at = |matrix: &Matrix<'_>, i: usize, j: usize| match matrix.transposed {
                        false => f64::from(matrix.data[i * matrix.step + j]),
                        true => f64::from(matrix.data[j * matrix.step + i]),
                    };
                    let step = n + 3;
                    let mut c = vec![0.5; m * step];
                    let packed = Packed::new(&cpu, second);
                    multiply(&cpu, first, &packed, Target::new(&mut c, step), |_, _| ());
                    multiply(&cpu, first, &packed, Target::sum(&mut c, step), |_, _| ());
                    for i in 0..m {
                        for j in 0..n {
                            let exact: f64 = (0..k).map(|l| at(&first, i, l) * at(&second, l, j)).sum();
                            let error = (f64::from(c[i * step + j]) - 2.0 * exact).abs();
                            assert!(error < 1e-6 * k as f64, "{isa:?} {m} {n} {k} {left} {right}: {error}");
                        }
                        assert!(c[i * step + n..(i + 1) * step].iter().all(|v| *v == 0.5), "outside");
                    }
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        for isa in Isa::tested().unwrap() {
            let (m, n, k) = (301, 411, 530);
            let (a, b) = (values(m * k, 0), values(k * n, 1));
            let run = |threads: usize| {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                let mut c = vec![0.0; m * n];
                let packed = Packed::new(&cpu, Matrix::new(&b, k, n, n));
                multiply(&cpu, Matrix::new(&a, m, k, k), &packed, Target::new(&mut c, n), |_, _| ());
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(run(1) == run(3));
        }
    }
}
