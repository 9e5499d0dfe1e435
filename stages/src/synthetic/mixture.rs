//! Equation (8)'s data, d core and d spurious features with Gaussian noise, and random ReLU features of them. Knows no
//! solver.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::linalg::{Matrix, product};
use crate::job::bad;
use crate::rng::Stream;

/// How the examples are drawn: x = [y mean_core + N(0, core_variance) in d dimensions, a mean_spurious +
/// N(0, spurious_variance) in d dimensions].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// d.
    pub dimension: usize,
    /// The fraction of examples with a = y, in (0, 1).
    pub majority: f64,
    pub core_mean: f64,
    pub core_variance: f64,
    pub spurious_mean: f64,
    pub spurious_variance: f64,
}

impl Setting {
    /// Errors: `BadInput` naming the first value that makes no sense.
    pub fn check(&self) -> Result<()> {
        if self.dimension == 0 {
            return Err(bad("params: dimension: 0, at least 1 is expected"));
        }
        open("majority", self.majority)?;
        positive("core_variance", self.core_variance)?;
        positive("spurious_variance", self.spurious_variance)?;
        for (name, value) in [("core_mean", self.core_mean), ("spurious_mean", self.spurious_mean)] {
            if !value.is_finite() {
                return Err(bad(format!("params: {name}: {value} is not finite")));
            }
        }
        Ok(())
    }
}

/// Errors: the value is not a positive number.
pub fn positive(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(bad(format!("params: {name}: {value} is not a positive number")))
}

/// Errors: the value does not lie within (0, 1).
pub fn open(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(bad(format!("params: {name}: {value} does not lie between 0 and 1")))
}

/// Errors: a temperature is not positive, or there is none.
pub fn temperatures(all: &[f64]) -> Result<()> {
    if all.is_empty() {
        return Err(bad("params: temperatures: no value"));
    }
    all.iter().try_for_each(|t| positive("temperatures", *t))
}

/// Examples with label and attribute, both ±1.
#[derive(Debug, Clone)]
pub struct Examples {
    /// n × 2d.
    pub x: Matrix,
    pub y: Vec<f64>,
    pub a: Vec<f64>,
}

/// The four groups as (y, a), in the order g = y · 2 + a of the project.
pub const GROUPS: [(f64, f64); 4] = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)];

/// n/2 · majority examples in each majority group, n/2 · (1 - majority) in each minority group.
///
/// Errors: a group would be empty.
pub fn counts(n: usize, majority: f64) -> Result<[usize; 4]> {
    let many = (n as f64 * majority / 2.0).round() as usize;
    let few = (n / 2).saturating_sub(many);
    if many == 0 || few == 0 {
        return Err(bad(format!("params: n: {n} examples at a majority of {majority} leave a group empty")));
    }
    Ok([many, few, few, many])
}

/// So many examples of each group, from the stream of (seed, purpose, 0, example).
pub fn draw(setting: &Setting, counts: [usize; 4], seed: u64, purpose: &str) -> Examples {
    let d = setting.dimension;
    let n = counts.iter().sum();
    let mut all = Examples { x: Matrix::zeros(n, 2 * d), y: vec![], a: vec![] };
    for ((y, a), count) in GROUPS.into_iter().zip(counts) {
        for _ in 0..count {
            let i = all.y.len();
            let mut stream = Stream::new(seed, purpose, 0, i as u64);
            let (core, spurious) = all.x.row_mut(i).split_at_mut(d);
            let (c, s) = (setting.core_variance.sqrt(), setting.spurious_variance.sqrt());
            core.iter_mut().for_each(|v| *v = y * setting.core_mean + c * stream.normal());
            spurious.iter_mut().for_each(|v| *v = a * setting.spurious_mean + s * stream.normal());
            all.y.push(y);
            all.a.push(a);
        }
    }
    all
}

impl Examples {
    /// Whether an example belongs to a majority group.
    pub fn is_majority(&self, i: usize) -> bool {
        self.y[i] == self.a[i]
    }

    /// The group of an example, 0 to 3.
    pub fn group(&self, i: usize) -> usize {
        2 * usize::from(self.y[i] > 0.0) + usize::from(self.a[i] > 0.0)
    }
}

/// What the columns of the random weights are scaled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// Each feature's weights have norm 1, as the text of Sagawa et al. says.
    Feature,
    /// Each input's weights over all features have norm 1, as their code does.
    Input,
}

/// Random ReLU features: weights 2d × m. The first features of a wider layer are those of a narrower one (before the
/// normalisation over inputs).
pub fn layer(inputs: usize, m: usize, seed: u64, normalisation: Normalisation) -> Matrix {
    let mut columns = Matrix::zeros(m, inputs);
    for j in 0..m {
        let mut stream = Stream::new(seed, "feature", 0, j as u64);
        columns.row_mut(j).iter_mut().for_each(|v| *v = stream.normal());
    }
    if normalisation == Normalisation::Feature {
        columns.data.chunks_exact_mut(inputs).for_each(unit);
        return columns.transposed();
    }
    let mut weights = columns.transposed();
    weights.data.chunks_exact_mut(m).for_each(unit);
    weights
}

fn unit(row: &mut [f64]) {
    let norm = super::linalg::norm(row);
    row.iter_mut().for_each(|v| *v /= norm);
}

/// max(0, x · weights).
pub fn features(x: &Matrix, weights: &Matrix) -> Matrix {
    let mut all = product(x, weights);
    all.data.iter_mut().for_each(|v| *v = v.max(0.0));
    all
}

/// Wrong predictions of sign(features · w) by group, in percent; features are made a few rows at a time.
pub fn errors(examples: &Examples, weights: &Matrix, w: &[f64]) -> [f64; 4] {
    const ROWS: usize = 512;
    let (mut wrong, mut count) = ([0.0; 4], [0.0; 4]);
    for start in (0..examples.x.rows).step_by(ROWS) {
        let end = (start + ROWS).min(examples.x.rows);
        let width = examples.x.cols;
        let part = Matrix {
            rows: end - start,
            cols: width,
            data: examples.x.data[start * width..end * width].to_vec(),
        };
        for (i, f) in (start..end).zip(features(&part, weights).times(w)) {
            count[examples.group(i)] += 1.0;
            wrong[examples.group(i)] += f64::from(u8::from(examples.y[i] * f <= 0.0));
        }
    }
    [0, 1, 2, 3].map(|g| 100.0 * wrong[g] / f64::max(count[g], 1.0))
}
