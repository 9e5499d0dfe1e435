//! Theorems 4 and 5 and appendix D: norms of the core and the spurious separator in closed form, by Monte Carlo and by the
//! quadratic programme on samples; windows of λ = T; worst-group errors and exact thresholds. Knows the population model.

use anyhow::Result;
use serde::Deserialize;

use super::linalg::{Matrix, gram};
use super::mixture::{open, positive};
use super::nonneg;
use super::outcome::{Outcome, word};
use super::population::{Model, bisect, slack};
use crate::job::{Job, bad, progress};
use crate::rng::Stream;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Majority fractions with Sagawa et al.'s parameters.
    fractions: Vec<f64>,
    /// λ of the curves.
    lambdas: Vec<f64>,
    /// For windows and norms.
    model: Model,
    /// Ratios of core to spurious information (μ²/σ²) of the population curves of figure 6(a).
    information: Vec<f64>,
    /// Spurious means of those of figure 6(b).
    scales: Vec<f64>,
    /// Monte Carlo draws; examples and noise dimensions of the quadratic programme.
    draws: usize,
    n: usize,
    noise: usize,
    seeds: Vec<u64>,
}

/// Sagawa et al.'s theorem 1: σ_c = 1, σ_s² = 1 / (16 log(100 n_maj)), σ_n² = n_maj / 600², n_min = 100.
pub(super) fn sagawa(p: f64) -> Model {
    let majority = 100.0 * p / (1.0 - p);
    Model {
        p,
        core_mean: 1.0,
        core_sd: 1.0,
        spurious_mean: 1.0,
        spurious_sd: (1.0 / (16.0 * libm::log(100.0 * majority))).sqrt(),
        price: (majority / p) * 600.0 * 600.0 / majority,
    }
}

/// Theorem 10's sufficient range of λ.
pub(super) fn printed_range(p: f64) -> (f64, f64) {
    let euler = (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt();
    let low = p / (8.0 * (1.0 - p)) + 0.25 * (1.0 - 1.0 / euler);
    (low, (1.0 + 0.5_f64.sqrt()) / (8.0 * (1.0 - p)))
}

/// The exact range of λ in which every group is better than random: w_c > |w_s|.
fn exact_range(model: &Model) -> (f64, f64) {
    let low = bisect((1e-3, 1e7), |l| {
        let w = model.both(l);
        w.core * model.core_mean - w.spurious * model.spurious_mean
    });
    let high = bisect((low * 1.0001, 1e9), |l| {
        let w = model.both(l);
        -(w.core * model.core_mean + w.spurious * model.spurious_mean)
    });
    (low, high)
}

/// Runs the stage. Output: `outcome.json`.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    p.model.check()?;
    if p.model.spurious_mean <= p.model.core_mean {
        return Err(bad(
            "params: model: spurious_mean: above core_mean is expected: the window is that of the easier feature",
        ));
    }
    p.fractions.iter().try_for_each(|f| open("fractions", *f))?;
    p.lambdas.iter().chain(&p.information).chain(&p.scales).try_for_each(|l| positive("lambdas", *l))?;
    if p.n < 4 || p.noise == 0 || p.draws == 0 || p.seeds.is_empty() {
        return Err(bad("params: n, noise, draws, seeds: at least 4, 1, 1 and one are expected"));
    }
    let mut out = Outcome::new();
    progress(0, 4, "theorem 5");
    for fraction in &p.fractions {
        theorem5(*fraction, &p.lambdas, &mut out);
    }
    thresholds(&mut out);
    progress(1, 4, "windows");
    windows(&p.model, &mut out);
    progress(2, 4, "population optima");
    for x in &p.information {
        let mut model = p.model;
        let spurious = model.spurious_mean / model.spurious_sd;
        model.core_sd = model.core_mean / (x.sqrt() * spurious);
        out.add(format!("population/information/{}/best", word(*x)), "", 0, model.balance());
    }
    for x in &p.scales {
        let model = Model { spurious_mean: *x, ..p.model };
        out.add(format!("population/scale/{}/best", word(*x)), "", 0, model.balance());
    }
    for seed in &p.seeds {
        progress(3, 4, format!("samples, seed {seed}"));
        samples(&p, *seed, &mut out)?;
    }
    out.write(&job)
}

fn theorem5(p: f64, lambdas: &[f64], out: &mut Outcome) {
    let model = sagawa(p);
    let name = format!("theorem5/{}", word(p));
    let mut add = |what: &str, unit: &str, v: f64| out.add(format!("{name}/{what}"), unit, 0, v);
    add("erm/worst", "%", model.worst(1.0));
    let (printed, exact) = (printed_range(p), exact_range(&model));
    for (what, value) in [
        ("printed-low", printed.0),
        ("printed-high", printed.1),
        ("exact-low", exact.0),
        ("exact-high", exact.1),
    ] {
        add(what, "", value);
        add(&format!("log2-{what}"), "", libm::log2(value));
    }
    add("printed-low/worst", "%", model.worst(printed.0));
    add("printed-high/worst", "%", model.worst(printed.1));
    let best = model.balance();
    add("best-lambda", "", best);
    add("best-lambda/worst", "%", model.worst(best));
    for lambda in lambdas {
        add(&format!("lambda/{}/worst", word(*lambda)), "%", model.worst(*lambda));
    }
}

/// The smallest p from which theorem 5's statements hold in the exact model.
fn thresholds(out: &mut Outcome) {
    // On the scale of 1 - p, from which an error falls.
    let two_thirds = bisect((1e-6, 0.45), |q| 200.0 / 3.0 - sagawa(1.0 - q).worst(1.0));
    out.add("theorem5/erm-above-two-thirds/p", "", 0, 1.0 - two_thirds);
    // Both ends of the printed range lie within the exact one, which is an interval.
    let inside = |q: f64| {
        let (model, printed) = (sagawa(1.0 - q), printed_range(1.0 - q));
        let (low, high) = (model.both(printed.0), model.both(printed.1));
        if low.core >= low.spurious && high.core >= -high.spurious { -1.0 } else { 1.0 }
    };
    out.add("theorem5/range-sufficient/p", "", 0, 1.0 - bisect((1e-4, 0.45), inside));
}

/// The window of λ in which the core separator has the smaller norm: the quadratic (42) from deterministic scalars, with
/// the sign of its constant term as derived and as printed, and the direct comparison of (38) with (41), noise and all.
fn windows(model: &Model, out: &mut Outcome) {
    let square = |mean: f64| 1.0 / (1.0 + 1.0 / (model.price * mean * mean));
    let (core, spurious) = (square(model.core_mean), square(model.spurious_mean));
    let (p, q) = (model.p, 1.0 - model.p);
    // core (p + q λ)² > spurious (p - q λ)², as a λ² + b λ + c > 0.
    let (a, b, c) = (q * q * (core - spurious), 2.0 * p * q * (core + spurious), p * p * (core - spurious));
    for (name, c) in [("corrected", c), ("printed", -c)] {
        let root = (b * b - 4.0 * a * c).max(0.0).sqrt();
        // a < 0 where the spurious feature is the easier one.
        let mut ends = [(-b + root) / (2.0 * a), (-b - root) / (2.0 * a)];
        ends.sort_by(f64::total_cmp);
        out.add(format!("window/{name}/low"), "", 0, ends[0]);
        out.add(format!("window/{name}/high"), "", 0, ends[1]);
    }
    let exact = Model { core_sd: 1e-9, spurious_sd: 1e-9, ..*model };
    for (name, model) in [("direct", &exact), ("noisy", model)] {
        let difference = |l: f64| model.spurious(l).square - model.core(l).square;
        let low = bisect((1e-6, model.p / (1.0 - model.p)), difference);
        let high = bisect((model.p / (1.0 - model.p), 1e9), |l| -difference(l));
        out.add(format!("window/{name}/low"), "", 0, low);
        out.add(format!("window/{name}/high"), "", 0, high);
    }
}

/// Norms at three λ: closed form, Monte Carlo at the same scalars, and the quadratic programme on a sample.
fn samples(p: &Params, seed: u64, out: &mut Outcome) -> Result<()> {
    let model = &p.model;
    let majority = (p.n as f64 * model.p).round() as usize;
    // The sample's own p, so that what differs is sampling and nothing else.
    let model = &Model { p: majority as f64 / p.n as f64, ..*model };
    let mut stream = Stream::new(seed, "scalars", 0, 0);
    let scalars: Vec<(f64, f64)> = (0..p.n)
        .map(|i| {
            let a = if i < majority { 1.0 } else { -1.0 };
            let core = model.core_mean + model.core_sd * stream.normal();
            (core, a * model.spurious_mean + model.spurious_sd * stream.normal())
        })
        .collect();
    let mut noise = Matrix::zeros(p.n, p.noise);
    let sd = (p.n as f64 / (model.price * p.noise as f64)).sqrt();
    for i in 0..p.n {
        let mut stream = Stream::new(seed, "noise", 0, i as u64);
        noise.row_mut(i).iter_mut().for_each(|v| *v = sd * stream.normal());
    }
    let noise = gram(&noise);
    let kernel = |core: f64, spurious: f64| {
        Matrix::from_fn(p.n, p.n, |i, j| {
            let (a, b) = (scalars[i], scalars[j]);
            noise.data[i * p.n + j] + core * a.0 * b.0 + spurious * a.1 * b.1
        })
    };
    for lambda in [1.0, 3.0, 9.0] {
        let margins: Vec<f64> = (0..p.n).map(|i| if i < majority { 1.0 } else { lambda }).collect();
        for (name, w, k) in [
            ("core", model.core(lambda), kernel(1.0, 0.0)),
            ("spurious", model.spurious(lambda), kernel(0.0, 1.0)),
            ("both", model.both(lambda), kernel(1.0, 1.0)),
        ] {
            let place = format!("norms/{name}/{}", word(lambda));
            let solved = nonneg::solve(&k, &margins, 100 + 20 * p.n)?;
            out.add(format!("{place}/programme"), "", seed, solved.square);
            out.add(format!("{place}/log10-gap"), "", seed, libm::log10(solved.gap.abs().max(1e-17)));
            out.add(format!("{place}/ratio"), "%", seed, 100.0 * solved.square / w.square);
            out.add(format!("{place}/monte-carlo"), "", seed, monte_carlo(model, &w, lambda, p.draws, seed));
            if seed == p.seeds[0] {
                out.add(format!("{place}/closed"), "", 0, w.square);
            }
        }
    }
    Ok(())
}

/// Equation (37) at fixed scalars, its expectations by draws.
fn monte_carlo(model: &Model, w: &super::population::Separator, lambda: f64, draws: usize, seed: u64) -> f64 {
    let mut stream = Stream::new(seed, "monte-carlo", 0, 0);
    let mut sum = 0.0;
    for i in 0..draws {
        let majority = (i as f64) < model.p * draws as f64;
        let (a, margin) = if majority { (1.0, 1.0) } else { (-1.0, lambda) };
        let core = w.core * (model.core_mean + model.core_sd * stream.normal());
        let spurious = w.spurious * (a * model.spurious_mean + model.spurious_sd * stream.normal());
        sum += slack(margin - core - spurious, 0.0);
    }
    w.core * w.core + w.spurious * w.spurious + model.price * sum / draws as f64
}
