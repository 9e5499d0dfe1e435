//! Dense real matrices in double precision: products, Gram matrices, Cholesky's factor and its triangular solves. Knows
//! no data and no loss.
//!
//! Every sum runs in an order that depends on shapes alone, so the bits do not depend on the number of threads.

use anyhow::Result;
use gemm::Parallelism;
use rayon::prelude::*;

/// Rows that one task of a product handles at most.
const TILE: usize = 512;
/// A triangle of at most so many rows is computed as a square.
const SQUARE: usize = 128;
/// Columns that Cholesky's factorisation eliminates at once, and that a triangular solve takes at a time.
const PANEL: usize = 64;

/// A matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    /// `rows * cols` values.
    pub data: Vec<f64>,
}

impl Matrix {
    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// The value of each place.
    pub fn from_fn(rows: usize, cols: usize, mut value: impl FnMut(usize, usize) -> f64) -> Self {
        let mut all = Self::zeros(rows, cols);
        for i in 0..rows {
            for j in 0..cols {
                all.data[i * cols + j] = value(i, j);
            }
        }
        all
    }

    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }

    pub fn transposed(&self) -> Self {
        let mut all = Self::zeros(self.cols, self.rows);
        for (i0, j0) in blocks(self.rows, self.cols) {
            for i in i0..(i0 + 32).min(self.rows) {
                for j in j0..(j0 + 32).min(self.cols) {
                    all.data[j * self.rows + i] = self.data[i * self.cols + j];
                }
            }
        }
        all
    }

    /// `self * x`; x has `cols` values.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        (0..self.rows).into_par_iter().with_min_len(64).map(|i| dot(self.row(i), x)).collect()
    }

    /// `selfᵀ * x`; x has `rows` values.
    pub fn transposed_times(&self, x: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.cols];
        sum.par_chunks_mut(512).enumerate().for_each(|(block, part)| {
            for (i, &xi) in x.iter().enumerate().filter(|(_, xi)| **xi != 0.0) {
                let row = &self.row(i)[block * 512..block * 512 + part.len()];
                part.iter_mut().zip(row).for_each(|(s, a)| *s += xi * a);
            }
        });
        sum
    }
}

fn blocks(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(32).flat_map(move |i| (0..cols).step_by(32).map(move |j| (i, j)))
}

/// The inner product, in eight interleaved sums.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for k in 0..8 {
            sums[k] += x[k] * y[k];
        }
    }
    rest + ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// The Euclidean norm.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// A part of a matrix: where it begins and how far rows and columns lie apart.
#[derive(Clone, Copy)]
struct Part {
    start: *const f64,
    row: isize,
    col: isize,
}

/// `c = keep * c + factor * a * b` for an m×n part `c` with unit column stride and row stride `row`.
///
/// Safety: all three parts lie within live buffers, and nobody else touches `c`.
unsafe fn multiply(
    shape: (usize, usize, usize),
    c: (*mut f64, isize),
    a: Part,
    b: Part,
    keep: f64,
    factor: f64,
) {
    let (m, n, k) = shape;
    let read = keep != 0.0;
    // Safety: the caller's.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.0,
            1,
            c.1,
            read,
            a.start,
            a.col,
            a.row,
            b.start,
            b.col,
            b.row,
            keep,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// A pointer that tasks share: each writes rows of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f64);
// Safety: the users below give every task rows of its own.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f64 {
        self.0.wrapping_add(offset)
    }
}

fn tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(TILE).map(move |i| (i, TILE.min(rows - i)))
}

/// A rectangle of a matrix that one task computes.
struct Block {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// The largest first, so that no thread is left with one at the end.
fn ordered(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_by_key(|b| std::cmp::Reverse(b.rows * b.cols));
    blocks
}

/// Cuts a lower triangle into squares below the diagonal and small ones on it.
fn triangle(start: usize, size: usize, blocks: &mut Vec<Block>) {
    if size <= SQUARE {
        blocks.push(Block { row: start, rows: size, col: start, cols: size });
        return;
    }
    let half = (size / 2).next_multiple_of(8);
    triangle(start, half, blocks);
    triangle(start + half, size - half, blocks);
    let below =
        tiles(size - half).map(|(i, rows)| Block { row: start + half + i, rows, col: start, cols: half });
    blocks.extend(below);
}

/// `a * b`.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    assert_eq!(a.cols, b.rows, "shapes of a product");
    let mut c = Matrix::zeros(a.rows, b.cols);
    let out = Shared(c.data.as_mut_ptr());
    tiles(a.rows).collect::<Vec<_>>().into_par_iter().for_each(|(i, m)| {
        let left = Part { start: a.row(i).as_ptr(), row: a.cols as isize, col: 1 };
        let right = Part { start: b.data.as_ptr(), row: b.cols as isize, col: 1 };
        // Safety: rows i .. i + m of `c` belong to this task alone.
        unsafe { multiply((m, b.cols, a.cols), (out.at(i * b.cols), b.cols as isize), left, right, 0.0, 1.0) }
    });
    c
}

/// `a * aᵀ`, symmetric to the bit.
pub fn gram(a: &Matrix) -> Matrix {
    let n = a.rows;
    let mut c = Matrix::zeros(n, n);
    let out = Shared(c.data.as_mut_ptr());
    let mut blocks = vec![];
    triangle(0, n, &mut blocks);
    ordered(blocks).into_par_iter().with_max_len(1).for_each(|b| {
        let left = Part { start: a.data[b.row * a.cols..].as_ptr(), row: a.cols as isize, col: 1 };
        let right = Part { start: a.data[b.col * a.cols..].as_ptr(), row: 1, col: a.cols as isize };
        let at = out.at(b.row * n + b.col);
        // Safety: this block of `c` belongs to this task alone.
        unsafe { multiply((b.rows, b.cols, a.cols), (at, n as isize), left, right, 0.0, 1.0) }
    });
    mirror(&mut c);
    c
}

/// Copies the lower triangle to the upper one.
fn mirror(c: &mut Matrix) {
    let n = c.rows;
    let all = Shared(c.data.as_mut_ptr());
    (0..n.div_ceil(32)).into_par_iter().for_each(|block| {
        let rows = block * 32..(block * 32 + 32).min(n);
        for i0 in (rows.start..n).step_by(32) {
            for j in rows.clone() {
                for i in i0.max(j + 1)..(i0 + 32).min(n) {
                    // Safety: a task writes above the diagonal in rows of its own, and all read below it.
                    unsafe { *all.at(j * n + i) = *all.at(i * n + j) }
                }
            }
        }
    });
}

/// Cholesky's factor of a symmetric matrix of which the lower triangle is read.
pub struct Cholesky {
    /// Lower triangle; what lies above the diagonal means nothing.
    factor: Matrix,
}

impl Cholesky {
    /// Factorises in place: n³/3 multiplications.
    ///
    /// Errors: the matrix is not positive definite to working precision; the message names the pivot.
    pub fn new(mut a: Matrix) -> Result<Self> {
        let n = a.rows;
        factorise(&mut a, 0, n)?;
        Ok(Self { factor: a })
    }

    /// The solution of `a x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        let n = self.factor.rows;
        for start in (0..n).step_by(PANEL) {
            let end = (start + PANEL).min(n);
            let (known, rest) = x.split_at_mut(start);
            let rows = rest[..end - start].par_iter_mut().with_min_len(PANEL / 4).enumerate();
            rows.for_each(|(i, x)| *x -= dot(&self.factor.row(start + i)[..start], known));
            for i in start..end {
                let row = &self.factor.row(i)[start..=i];
                x[i] = (x[i] - dot(&row[..i - start], &x[start..i])) / row[i - start];
            }
        }
        for start in (0..n).step_by(PANEL).rev() {
            let end = (start + PANEL).min(n);
            for i in (start..end).rev() {
                let row = &self.factor.row(i)[start..=i];
                let value = x[i] / row[i - start];
                x[i] = value;
                x[start..i].iter_mut().zip(row).for_each(|(x, l)| *x -= value * l);
            }
            let (open, rest) = x.split_at_mut(start);
            open.par_chunks_mut(512).enumerate().for_each(|(part, open)| {
                for (i, value) in (start..end).zip(&*rest) {
                    let row = &self.factor.row(i)[part * 512..];
                    open.iter_mut().zip(row).for_each(|(x, l)| *x -= value * l);
                }
            });
        }
        x
    }
}

/// Factorises `width` columns from `start` on, all rows below included: the left half, what it takes from the right half,
/// the right half.
fn factorise(a: &mut Matrix, start: usize, width: usize) -> Result<()> {
    if width <= PANEL {
        let inverse = eliminate(a, start, width)?;
        scale(a, start, width, &inverse);
        return Ok(());
    }
    let half = (width / 2).next_multiple_of(PANEL);
    factorise(a, start, half)?;
    let (n, middle, right) = (a.cols, start + half, width - half);
    let mut blocks = vec![];
    triangle(0, right, &mut blocks);
    let below =
        tiles(n - middle - right).map(|(i, rows)| Block { row: right + i, rows, col: 0, cols: right });
    blocks.extend(below);
    let all = Shared(a.data.as_mut_ptr());
    ordered(blocks).into_par_iter().with_max_len(1).for_each(|b| {
        let left = Part { start: all.at((middle + b.row) * n + start), row: n as isize, col: 1 };
        let across = Part { start: all.at((middle + b.col) * n + start), row: 1, col: n as isize };
        let at = all.at((middle + b.row) * n + middle + b.col);
        // Safety: this block belongs to this task alone, and all read the columns left of `middle`, which none writes.
        unsafe { multiply((b.rows, b.cols, half), (at, n as isize), left, across, 1.0, -1.0) }
    });
    factorise(a, middle, right)
}

/// Factorises the diagonal block and returns the inverse of its factor.
fn eliminate(a: &mut Matrix, start: usize, width: usize) -> Result<Matrix> {
    let n = a.cols;
    for j in 0..width {
        let at = |i: usize| (start + i) * n + start;
        let head: Vec<f64> = a.data[at(j)..at(j) + j].to_vec();
        let pivot = a.data[at(j) + j] - dot(&head, &head);
        if pivot.is_nan() || pivot <= 0.0 {
            anyhow::bail!("singular: pivot {} of {n} is {pivot:e}, not positive", start + j);
        }
        let root = pivot.sqrt();
        a.data[at(j) + j] = root;
        for i in j + 1..width {
            let value = a.data[at(i) + j] - dot(&a.data[at(i)..at(i) + j], &head);
            a.data[at(i) + j] = value / root;
        }
    }
    let factor = |i: usize, j: usize| a.data[(start + i) * n + start + j];
    let mut inverse = Matrix::zeros(width, width);
    for j in 0..width {
        inverse.data[j * width + j] = 1.0 / factor(j, j);
        for i in j + 1..width {
            let sum: f64 = (j..i).map(|k| factor(i, k) * inverse.data[k * width + j]).sum();
            inverse.data[i * width + j] = -sum / factor(i, i);
        }
    }
    Ok(inverse)
}

/// Multiplies the rows below a diagonal block by the transposed inverse of its factor.
fn scale(a: &mut Matrix, start: usize, width: usize, inverse: &Matrix) {
    let (n, below) = (a.cols, start + width);
    a.data[below * n..].par_chunks_mut(TILE / 2 * n).for_each(|rows| {
        let m = rows.len() / n;
        let mut product = vec![0.0; m * width];
        let left = Part { start: rows[start..].as_ptr(), row: n as isize, col: 1 };
        let right = Part { start: inverse.data.as_ptr(), row: 1, col: width as isize };
        // Safety: `product` belongs to this task alone.
        unsafe { multiply((m, width, width), (product.as_mut_ptr(), width as isize), left, right, 0.0, 1.0) }
        for (row, product) in rows.chunks_exact_mut(n).zip(product.chunks_exact(width)) {
            row[start..below].copy_from_slice(product);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn random(rows: usize, cols: usize) -> Matrix {
        let mut stream = Stream::new(1, "matrix", rows as u64, cols as u64);
        Matrix::from_fn(rows, cols, |_, _| stream.normal())
    }

    #[test]
    fn products_and_factors() {
        let (n, m) = (301, 333);
        let a = random(n, m);
        let k = gram(&a);
        let slow = product(&a, &a.transposed());
        for (x, y) in k.data.iter().zip(&slow.data) {
            assert!((x - y).abs() < 1e-11);
        }
        let x: Vec<f64> = (0..n).map(|i| (i as f64).sin()).collect();
        let b = k.times(&x);
        let solved = Cholesky::new(k.clone()).unwrap().solve(&b);
        let residual: Vec<f64> = k.times(&solved).iter().zip(&b).map(|(p, q)| p - q).collect();
        assert!(norm(&residual) < 1e-11 * norm(&b), "{}", norm(&residual));
        let direct = a.transposed().times(&x);
        for (p, q) in a.transposed_times(&x).iter().zip(&direct) {
            assert!((p - q).abs() < 1e-11);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let a = random(700, 300);
        let alone = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut k = gram(&a);
                (0..700).for_each(|i| k.data[i * 700 + i] += 1.0);
                let x = Cholesky::new(k.clone()).unwrap().solve(a.transposed().row(0));
                (k, x)
            })
        };
        assert!(alone(1) == alone(3));
    }

    #[test]
    fn a_singular_matrix_is_named() {
        let a = random(5, 3);
        let error = Cholesky::new(gram(&a)).err();
        // Rounding may leave a tiny positive pivot; an exact zero may not pass.
        assert!(Cholesky::new(Matrix::zeros(4, 4)).is_err());
        if let Some(error) = error {
            assert!(error.to_string().starts_with("singular: pivot"), "{error}");
        }
    }
}
