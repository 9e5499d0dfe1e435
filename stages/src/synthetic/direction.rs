//! Theorem 1: the direction of descent on the tempered exponential and logistic loss against the separator with margins
//! T = 1/f, over time. Knows the descent and the quadratic programme.

use anyhow::Result;
use serde::Deserialize;

use super::descent::{self, Kind, Rate};
use super::linalg::{Matrix, dot, norm};
use super::mixture::{positive, temperatures};
use super::nonneg::separator;
use super::outcome::{Outcome, word};
use crate::job::{Job, bad, progress};
use crate::rng::Stream;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Examples of the majority and of the minority, each half of label +1.
    majority: usize,
    minority: usize,
    dimension: usize,
    /// Distance of each label's mean from 0, in standard deviations.
    mean: f64,
    temperatures: Vec<f64>,
    /// Steps at which the direction is compared.
    steps: Vec<usize>,
    rate: f64,
    seeds: Vec<u64>,
}

/// Runs the stage. Output: `outcome.json`, quantities theorem1/loss/rate/T/step/what.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    positive("mean", p.mean)?;
    positive("rate", p.rate)?;
    temperatures(&p.temperatures)?;
    if p.dimension == 0 || p.minority == 0 || p.steps.len() < 2 {
        return Err(bad("params: dimension, minority, steps: at least 1, 1 and two are expected"));
    }
    let mut out = Outcome::new();
    let total = (p.seeds.len() * p.temperatures.len()) as u64;
    for (i, seed) in p.seeds.iter().enumerate() {
        let (x, y) = examples(&p, *seed);
        for (j, t) in p.temperatures.iter().enumerate() {
            progress((i * p.temperatures.len() + j) as u64, total, format!("seed {seed}, T = {t}"));
            one(&p, &x, &y, *t, *seed, &mut out)?;
        }
    }
    out.write(&job)
}

/// Two Gaussians at ± mean along a random direction's axis; the first `majority` examples are the majority's.
fn examples(p: &Params, seed: u64) -> (Matrix, Vec<f64>) {
    let n = p.majority + p.minority;
    let mut stream = Stream::new(seed, "direction", 0, 0);
    let y: Vec<f64> = (0..n).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let x =
        Matrix::from_fn(n, p.dimension, |i, j| stream.normal() + if j == 0 { y[i] * p.mean } else { 0.0 });
    (x, y)
}

fn one(p: &Params, x: &Matrix, y: &[f64], t: f64, seed: u64, out: &mut Outcome) -> Result<()> {
    let margins: Vec<f64> = (0..x.rows).map(|i| if i < p.majority { 1.0 } else { t }).collect();
    let (goal, optimum) = separator(x, y, &margins)?;
    let signed = Matrix::from_fn(x.rows, x.cols, |i, j| y[i] / margins[i] * x.data[i * x.cols + j]);
    let ones = vec![1.0; x.rows];
    let place = format!("theorem1/{}", word(t));
    out.add(format!("{place}/log10-gap"), "", seed, libm::log10(optimum.gap.abs().max(1e-17)));
    // A constant rate below 2 / smoothness; the normalised one is divided by the same scale.
    let smooth = (0..x.rows).map(|i| dot(signed.row(i), signed.row(i))).fold(0.0, f64::max);
    for (kind, loss) in [(Kind::Exponential, "exponential"), (Kind::Logistic, "logistic")] {
        for (rate, name) in
            [(Rate::Constant(p.rate / smooth), "constant"), (Rate::Normalised(p.rate / smooth), "normalised")]
        {
            let mut curve = vec![];
            descent::run(&signed, &ones, kind, rate, &p.steps, |step, w| {
                let cosine = dot(w, &goal) / (norm(w) * norm(&goal));
                curve.push((step, 1.0 - cosine));
            });
            let place = format!("{place}/{loss}/{name}");
            for (step, off) in &curve {
                out.add(format!("{place}/{step}/log10-off"), "", seed, libm::log10(off.max(1e-16)));
            }
            if let Some((last, off)) = curve.last() {
                out.add(format!("{place}/last/log10-off"), "", seed, libm::log10(off.max(1e-16)));
                // The rate over the second half of the curve, on a double logarithmic scale.
                let (first, before) = curve[curve.len() / 2];
                let span = libm::log10(*last as f64 / first as f64);
                if span > 0.0 {
                    let fall = libm::log10(off.max(1e-16)) - libm::log10(before.max(1e-16));
                    out.add(format!("{place}/rate"), "", seed, fall / span);
                }
            }
        }
    }
    Ok(())
}
