//! Label shift with more features than examples: worst-class error of tempered logistic regression against T, and how
//! near temperatures come that are chosen without the test set. Knows the solver; errors are exact, not sampled.

use anyhow::Result;
use serde::Deserialize;

use super::linalg::{Matrix, gram, norm};
use super::logistic::{Loss, Solution, Stop};
use super::mixture::{positive, temperatures};
use super::outcome::{Outcome, word};
use super::population::normal_cdf;
use crate::job::{Job, bad, progress};
use crate::rng::Stream;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    majority: usize,
    ratios: Vec<usize>,
    dimension: usize,
    /// Distance of each class's mean from 0.
    mean: f64,
    /// The constant feature, which carries the intercept.
    constant: f64,
    ridge: f64,
    /// Validation examples of each class.
    validation: usize,
    temperatures: Vec<f64>,
    seeds: Vec<u64>,
}

/// Runs the stage. Output: `outcome.json`, quantities shift/R/T/worst and shift/R/rule/worst.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    for (name, value) in [("mean", p.mean), ("constant", p.constant), ("ridge", p.ridge)] {
        positive(name, value)?;
    }
    temperatures(&p.temperatures)?;
    if p.dimension == 0 || p.validation == 0 || p.ratios.iter().any(|r| *r == 0 || *r > p.majority) {
        return Err(bad(
            "params: dimension, validation, ratios: at least 1, and ratios up to the majority, are expected",
        ));
    }
    let mut out = Outcome::new();
    let total = (p.seeds.len() * p.ratios.len()) as u64;
    for (i, seed) in p.seeds.iter().enumerate() {
        for (j, ratio) in p.ratios.iter().enumerate() {
            progress((i * p.ratios.len() + j) as u64, total, format!("seed {seed}, 1:{ratio}"));
            one(&p, *ratio, *seed, &mut out)?;
        }
    }
    out.write(&job)
}

struct Tried {
    temperature: f64,
    worst: f64,
    validation: f64,
    pull: f64,
}

fn draw(p: &Params, counts: [usize; 2], seed: u64, purpose: &str) -> (Matrix, Vec<f64>) {
    let n = counts[0] + counts[1];
    let y: Vec<f64> = (0..n).map(|i| if i < counts[0] { 1.0 } else { -1.0 }).collect();
    let mut x = Matrix::zeros(n, p.dimension + 1);
    for i in 0..n {
        let mut stream = Stream::new(seed, purpose, 0, i as u64);
        let row = x.row_mut(i);
        row[..p.dimension].iter_mut().for_each(|v| *v = stream.normal());
        row[0] += y[i] * p.mean;
        row[p.dimension] = p.constant;
    }
    (x, y)
}

fn one(p: &Params, ratio: usize, seed: u64, out: &mut Outcome) -> Result<()> {
    let (x, y) = draw(p, [p.majority, p.majority / ratio], seed, "shift");
    let (xv, yv) = draw(p, [p.validation; 2], seed, "shift-validation");
    let kernel = gram(&x);
    let root = (ratio as f64).sqrt();
    let mut grid = p.temperatures.clone();
    grid.extend([1.0, root]);
    grid.sort_by(f64::total_cmp);
    grid.dedup();
    let mut last: Option<Solution> = None;
    let mut tried = vec![];
    for t in grid {
        let scales: Vec<f64> = y.iter().map(|y| if *y > 0.0 { 1.0 } else { -1.0 / t }).collect();
        let loss = Loss { scales, weights: vec![1.0 / y.len() as f64; y.len()], ridge: p.ridge };
        let kernel = (x.cols >= x.rows).then_some(&kernel);
        let found = loss.minimise(&x, kernel, last.as_ref(), Stop::default())?;
        let w = &found.coefficients;
        let (slope, spread) = (w[0] * p.mean, norm(&w[..p.dimension]));
        let error = |side: f64| 100.0 * normal_cdf(-(slope + side * w[p.dimension] * p.constant) / spread);
        let f = xv.times(w);
        let wrong = |side: f64| {
            let own = f.iter().zip(&yv).filter(|(_, y)| **y == side);
            own.filter(|(f, y)| *f * *y <= 0.0).count() as f64
        };
        let pull = |side: f64| -> f64 {
            found.dual.iter().zip(&y).filter(|(_, y)| **y == side).map(|(a, _)| a.abs()).sum()
        };
        tried.push(Tried {
            temperature: t,
            worst: error(1.0).max(error(-1.0)),
            validation: wrong(1.0).max(wrong(-1.0)),
            pull: pull(-1.0) / (pull(1.0) + pull(-1.0)),
        });
        last = Some(found);
    }
    let place = format!("shift/{ratio}");
    for one in &tried {
        out.add(format!("{place}/it@{}/worst", word(one.temperature)), "%", seed, one.worst);
    }
    let least = |value: &dyn Fn(&Tried) -> f64| {
        tried.iter().min_by(|a, b| value(a).total_cmp(&value(b))).map(|t| (t.temperature, t.worst))
    };
    let fixed = |t: f64| tried.iter().find(|a| a.temperature == t).map(|a| (a.temperature, a.worst));
    for (rule, found) in [
        ("erm", fixed(1.0)),
        ("root", fixed(root)),
        ("auto-validation", least(&|t| t.validation)),
        ("auto-pull", least(&|t| (t.pull - 0.5).abs())),
        ("best", least(&|t| t.worst)),
    ] {
        if let Some((temperature, worst)) = found {
            out.add(format!("{place}/{rule}/temperature"), "", seed, temperature);
            out.add(format!("{place}/{rule}/worst"), "%", seed, worst);
        }
    }
    Ok(())
}
