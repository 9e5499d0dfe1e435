//! min ½ αᵀKα - mᵀα over α >= 0: the dual of the hard-margin separator through the origin with a margin of its own for
//! each example (min ½|w|² with y_i x_i·w >= m_i, K_ij = y_i y_j x_i·x_j). Knows matrices only.

use anyhow::Result;

use super::linalg::{Cholesky, Matrix, dot};
use crate::job::bad;

/// An optimum with its certificate.
#[derive(Debug, Clone)]
pub struct Optimum {
    pub dual: Vec<f64>,
    /// |w|².
    pub square: f64,
    /// The largest violation of a margin, relative to the largest margin.
    pub violation: f64,
    /// (primal - dual value) / primal value, of the rescaled feasible point.
    pub gap: f64,
    pub iterations: usize,
}

/// Solves by block principal pivoting (Kim and Park 2011), with Murty's single exchange where a block does not help.
///
/// Errors: shapes differ; no margin is positive; a singular system; the examples cannot be separated (no convergence).
pub fn solve(k: &Matrix, margins: &[f64], iterations: usize) -> Result<Optimum> {
    let n = margins.len();
    if n == 0 || k.rows != n || k.cols != n {
        return Err(bad(format!("separator: {} × {} products for {n} margins", k.rows, k.cols)));
    }
    let largest = margins.iter().fold(0.0, |m: f64, v| m.max(*v));
    if !(largest > 0.0 && margins.iter().all(|m| m.is_finite())) {
        return Err(bad("separator: the margins are not finite, or none is positive"));
    }
    let tolerance = 1e-10;
    let mut free = vec![true; n];
    let mut alpha = vec![0.0; n];
    let (mut fewest, mut patience) = (n + 1, 3);
    for iteration in 1..=iterations {
        let at: Vec<usize> = (0..n).filter(|i| free[*i]).collect();
        let part = Matrix::from_fn(at.len(), at.len(), |i, j| k.data[at[i] * n + at[j]]);
        let right: Vec<f64> = at.iter().map(|i| margins[*i]).collect();
        let solved = Cholesky::new(part)
            .map_err(|e| anyhow::anyhow!("separator: {e}; the examples may not be separable"))?
            .solve(&right);
        alpha.fill(0.0);
        at.iter().zip(&solved).for_each(|(i, a)| alpha[*i] = *a);
        let f = k.times(&alpha);
        let scale = alpha.iter().fold(0.0, |m: f64, a| m.max(a.abs()));
        let wrong: Vec<usize> = (0..n)
            .filter(|&i| {
                if free[i] { alpha[i] < -tolerance * scale } else { f[i] < margins[i] - tolerance * largest }
            })
            .collect();
        if wrong.is_empty() {
            alpha.iter_mut().for_each(|a| *a = a.max(0.0));
            return finish(k, margins, alpha, iteration);
        }
        let all = if wrong.len() < fewest {
            (fewest, patience) = (wrong.len(), 3);
            true
        } else {
            patience -= i32::from(patience > 0);
            patience > 0
        };
        let flip = if all { &wrong[..] } else { &wrong[wrong.len() - 1..] };
        flip.iter().for_each(|i| free[*i] = !free[*i]);
    }
    anyhow::bail!("separator: no convergence: {iterations} exchanges of the active set were not enough")
}

fn finish(k: &Matrix, margins: &[f64], dual: Vec<f64>, iterations: usize) -> Result<Optimum> {
    let f = k.times(&dual);
    let square = dot(&dual, &f);
    let largest = margins.iter().fold(0.0, |m: f64, v| m.max(*v));
    let violation = f.iter().zip(margins).map(|(f, m)| m - f).fold(0.0, f64::max) / largest;
    // Scaled up until every margin holds, w is feasible and its value bounds the optimum from above.
    let scale = f.iter().zip(margins).filter(|(_, m)| **m > 0.0).map(|(f, m)| m / f).fold(1.0, f64::max);
    let upper = 0.5 * square * scale * scale;
    let lower = dot(&dual, margins) - 0.5 * square;
    Ok(Optimum { dual, square, violation, gap: (upper - lower) / upper, iterations })
}

/// The separator's direction and certificate for examples as rows, labels ±1.
pub fn separator(x: &Matrix, y: &[f64], margins: &[f64]) -> Result<(Vec<f64>, Optimum)> {
    let signed = Matrix::from_fn(x.rows, x.cols, |i, j| y[i] * x.data[i * x.cols + j]);
    let mut k = super::linalg::gram(&signed);
    // Fewer features than examples leave K singular; a ridge of 1e-11 of its trace bounds the error of w by as much.
    if x.cols < x.rows {
        let mean = (0..x.rows).map(|i| k.data[i * x.rows + i]).sum::<f64>() / x.rows as f64;
        (0..x.rows).for_each(|i| k.data[i * x.rows + i] += 1e-11 * mean);
    }
    let optimum = solve(&k, margins, 100 + 20 * x.rows)?;
    Ok((signed.transposed_times(&optimum.dual), optimum))
}
