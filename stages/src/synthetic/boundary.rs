//! Figure 1: where the boundary lies between a majority and a minority Gaussian in the plane, for a linear model (descent
//! and separator) and a network with two hidden layers; what weights and temperatures do to it. Knows both models.

use anyhow::Result;
use serde::Deserialize;

use super::descent::{self, Kind, Rate};
use super::linalg::{Matrix, dot};
use super::mixture::{positive, temperatures};
use super::mlp::Network;
use super::nonneg::separator;
use super::outcome::{Outcome, word};
use crate::job::{Job, bad, progress};
use crate::rng::Stream;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    majority: usize,
    minority: usize,
    /// The means lie at ± this on the first axis; the noise has variance 1.
    mean: f64,
    /// No example lies nearer than this to the plane x_1 = 0 on its own side, so that the sample can be separated.
    clearance: f64,
    temperatures: Vec<f64>,
    /// Steps of the loss-normalised descent, and those at which the run at a constant rate is looked at.
    steps: usize,
    early: Vec<usize>,
    rate: f64,
    width: usize,
    network_steps: usize,
    seed: u64,
}

/// Heights x_2 at which the boundary is located.
const HEIGHTS: [f64; 5] = [-2.0, -1.0, 0.0, 1.0, 2.0];

/// Runs the stage. Output: `outcome.json`, quantities figure1/model/method/what. Offsets are along x_1, from the middle
/// between the means; the minority lies at negative x_1.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    for (name, value) in [("mean", p.mean), ("clearance", p.clearance), ("rate", p.rate)] {
        positive(name, value)?;
    }
    temperatures(&p.temperatures)?;
    if p.majority == 0 || p.minority == 0 || p.width == 0 || p.steps == 0 || p.clearance >= p.mean {
        return Err(bad(
            "params: majority, minority, width, steps: at least 1, and clearance below mean, are expected",
        ));
    }
    let (x, y) = examples(&p);
    let mut out = Outcome::new();
    let ratio = p.majority as f64 / p.minority as f64;
    let ones = vec![1.0; y.len()];
    let balanced: Vec<f64> =
        y.iter().map(|y| 0.5 * if *y > 0.0 { 1.0 + 1.0 / ratio } else { 1.0 + ratio }).collect();
    let mut methods = vec![("erm".to_string(), 1.0, &ones), ("iw".to_string(), 1.0, &balanced)];
    methods
        .extend(p.temperatures.iter().filter(|t| **t > 1.0).map(|t| (format!("it@{}", word(*t)), *t, &ones)));
    for (i, (method, t, weights)) in methods.iter().enumerate() {
        progress(i as u64, methods.len() as u64, method);
        let scales: Vec<f64> = y.iter().map(|y| if *y > 0.0 { 1.0 } else { -1.0 / t }).collect();
        let signed = Matrix::from_fn(x.rows, 3, |i, j| scales[i] * x.data[i * 3 + j]);
        let mut add = |model: &str, outputs: &dyn Fn(&Matrix) -> Vec<f64>| {
            let place = format!("figure1/{model}/{method}");
            let mut sum = 0.0;
            for height in HEIGHTS {
                let at = crossing(height, &p, outputs);
                sum += at;
                out.add(format!("{place}/boundary/{}", word(height)), "", p.seed, at);
            }
            out.add(format!("{place}/offset"), "", p.seed, sum / HEIGHTS.len() as f64);
            let f = outputs(&x);
            let margin = |side: f64| {
                let own = f.iter().zip(&y).filter(|(_, y)| **y == side);
                own.map(|(f, y)| f * y).fold(f64::INFINITY, f64::min)
            };
            out.add(format!("{place}/margin-ratio"), "", p.seed, margin(-1.0) / margin(1.0));
        };
        let linear = |w: &[f64]| {
            let w = w.to_vec();
            move |x: &Matrix| x.times(&w)
        };
        if method != "iw" {
            let margins: Vec<f64> = scales.iter().map(|s| 1.0 / s.abs()).collect();
            let (w, _) = separator(&x, &y, &margins)?;
            add("separator", &linear(&w));
        }
        let smooth = (0..x.rows).map(|i| dot(signed.row(i), signed.row(i))).fold(0.0, f64::max);
        let mut last = vec![];
        let rate = Rate::Normalised(p.rate / smooth);
        descent::run(&signed, weights, Kind::Logistic, rate, &[p.steps], |_, w| last = w.to_vec());
        add("linear", &linear(&last));
        let mut network = Network::new(3, p.width, p.seed);
        network.train(&x, &scales, weights, p.network_steps);
        add("network", &|x: &Matrix| network.outputs(x));
        if *t == 1.0 {
            let rate = Rate::Constant(p.rate / smooth);
            descent::run(&signed, weights, Kind::Logistic, rate, &p.early, |step, w| {
                let at = crossing(0.0, &p, &linear(w));
                out.add(format!("figure1/early/{method}/{step}/offset"), "", p.seed, at);
            });
        }
    }
    for model in ["linear", "network"] {
        let offset = |method: &str| {
            let found = out.quantities.get(&format!("figure1/{model}/{method}/offset"));
            found.and_then(|q| q.values.first()).map(|v| v.1)
        };
        if let (Some(iw), Some(erm)) = (offset("iw"), offset("erm")) {
            out.add(format!("figure1/{model}/iw-shift"), "", p.seed, iw - erm);
        }
    }
    out.write(&job)
}

/// Rows (x_1, x_2, 1): the majority (label 1) right, the minority (label -1) left.
fn examples(p: &Params) -> (Matrix, Vec<f64>) {
    let n = p.majority + p.minority;
    let y: Vec<f64> = (0..n).map(|i| if i < p.majority { 1.0 } else { -1.0 }).collect();
    let mut x = Matrix::zeros(n, 3);
    for i in 0..n {
        let mut stream = Stream::new(p.seed, "plane", 0, i as u64);
        let row = x.row_mut(i);
        loop {
            row[0] = y[i] * p.mean + stream.normal();
            if row[0] * y[i] >= p.clearance {
                break;
            }
        }
        (row[1], row[2]) = (stream.normal(), 1.0);
    }
    (x, y)
}

/// Where the output changes its sign along x_1 at a height, nearest to the middle; three means away if nowhere.
fn crossing(height: f64, p: &Params, outputs: &dyn Fn(&Matrix) -> Vec<f64>) -> f64 {
    const PIECES: usize = 2000;
    let reach = 3.0 * p.mean;
    let at = |i: usize| -reach + 2.0 * reach * i as f64 / PIECES as f64;
    let line = Matrix::from_fn(PIECES + 1, 3, |i, j| [at(i), height, 1.0][j]);
    let f = outputs(&line);
    let changes = (0..PIECES).filter(|i| (f[*i] <= 0.0) != (f[i + 1] <= 0.0));
    let places = changes.map(|i| at(i) + (at(i + 1) - at(i)) * f[i] / (f[i] - f[i + 1]));
    let nearest = places.min_by(|a, b| a.abs().total_cmp(&b.abs()));
    nearest.unwrap_or(if f[PIECES / 2] > 0.0 { -reach } else { reach })
}
