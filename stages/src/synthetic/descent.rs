//! Gradient descent of a linear model on the exponential or the logistic loss, at a constant rate or normalised by the
//! loss (descending its logarithm), through log-sum-exp so that no loss is too small. Knows margins only.

use super::linalg::{Matrix, dot};
use super::logistic::{sigmoid, softplus};

/// The loss of a margin u.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// e⁻ᵘ
    Exponential,
    /// log(1 + e⁻ᵘ)
    Logistic,
}

/// How far a step goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// η ∇L
    Constant(f64),
    /// η ∇ log L
    Normalised(f64),
}

/// Log of an example's loss and the slope's share -ℓ'(u)/ℓ(u).
pub fn log_loss(kind: Kind, u: f64) -> (f64, f64) {
    match kind {
        Kind::Exponential => (-u, 1.0),
        // log log(1 + e⁻ᵘ) is -u to rounding where e⁻ᵘ is tiny.
        Kind::Logistic if u > 36.0 => (-u, 1.0),
        Kind::Logistic => {
            let loss = softplus(-u);
            (libm::log(loss), sigmoid(-u) / loss)
        }
    }
}

/// Factors of each example's s_i x_i in a step: `weights` are the importance weights (mean 1), n their number.
pub fn factors(kind: Kind, rate: Rate, margins: &[f64], weights: &[f64]) -> Vec<f64> {
    let each: Vec<(f64, f64)> = margins.iter().map(|u| log_loss(kind, *u)).collect();
    let logs: Vec<f64> = each.iter().zip(weights).map(|(e, w)| e.0 + libm::log(*w)).collect();
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = logs.iter().map(|l| libm::exp(l - top)).collect();
    let total: f64 = shares.iter().sum();
    let scale = match rate {
        Rate::Normalised(eta) => eta / total,
        Rate::Constant(eta) => eta * libm::exp(top) / margins.len() as f64,
    };
    shares.iter().zip(&each).map(|(s, e)| scale * s * e.1).collect()
}

/// Descends from 0 on rows s_i x_i; `see` gets the step's number and w after the steps of `at`.
pub fn run(
    signed: &Matrix,
    weights: &[f64],
    kind: Kind,
    rate: Rate,
    at: &[usize],
    mut see: impl FnMut(usize, &[f64]),
) {
    let mut w = vec![0.0; signed.cols];
    let last = at.iter().copied().max().unwrap_or(0);
    for step in 1..=last {
        let margins: Vec<f64> = (0..signed.rows).map(|i| dot(signed.row(i), &w)).collect();
        let pull = factors(kind, rate, &margins, weights);
        for (i, f) in pull.iter().enumerate() {
            w.iter_mut().zip(signed.row(i)).for_each(|(w, x)| *w += f * x);
        }
        if at.contains(&step) {
            see(step, &w);
        }
    }
}
