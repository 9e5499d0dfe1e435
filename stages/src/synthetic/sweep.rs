//! ERM, importance weighting and importance tempering at several temperatures on one set of random features: fits, errors
//! by group, and temperatures chosen without the test set. Knows no figure.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::lbfgs::{self, Limits};
use super::linalg::{Matrix, gram};
use super::logistic::{Loss, Solution, Stop};
use super::mixture::{Examples, Normalisation, Setting, counts, draw, errors, features, layer};
use super::outcome::{Outcome, word};
use crate::rng::Stream;

/// How the convex problem is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Newton, to the optimum.
    Newton,
    /// L-BFGS until no entry of the gradient is above 1e-4, scikit-learn's default.
    Loose,
}

/// The sizes of one fit.
pub struct Sizes {
    pub n: usize,
    pub m: usize,
    /// Test examples of each group.
    pub test: usize,
    /// Validation examples of each group, for the automatic choice.
    pub validation: usize,
    pub ridge: f64,
}

/// Errors in percent.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    pub worst: f64,
    /// By the training set's proportions of the groups.
    pub average: f64,
    pub balanced: f64,
}

impl Scores {
    fn of(groups: [f64; 4], proportions: [f64; 4]) -> Self {
        Self {
            worst: groups.iter().copied().fold(0.0, f64::max),
            average: groups.iter().zip(proportions).map(|(e, p)| e * p).sum(),
            balanced: groups.iter().sum::<f64>() / 4.0,
        }
    }
}

/// One method's fit.
pub struct Fit {
    /// `erm`, `iw`, `iw-resampled`, `it@4`.
    pub method: String,
    /// Of a tempered fit; ERM is T = 1.
    pub temperature: Option<f64>,
    pub test: Scores,
    pub validation: Scores,
    /// Wrong signs on the training set, in percent.
    pub training: f64,
    /// The minority's share of Σ|α|: how hard it pulls.
    pub pull: f64,
    pub iterations: usize,
    pub gradient: f64,
    pub objective: f64,
}

/// One draw of data and features.
pub struct Draw {
    train: Examples,
    test: Examples,
    validation: Examples,
    weights: Matrix,
    features: Matrix,
    /// Gram matrix of the features where there are at least as many of them as examples.
    kernel: Option<Matrix>,
    proportions: [f64; 4],
    ridge: f64,
    seed: u64,
}

impl Draw {
    /// Errors: a group would be empty.
    pub fn new(setting: &Setting, sizes: &Sizes, normalisation: Normalisation, seed: u64) -> Result<Self> {
        setting.check()?;
        let counts = counts(sizes.n, setting.majority)?;
        let train = draw(setting, counts, seed, "train");
        let weights = layer(2 * setting.dimension, sizes.m, seed, normalisation);
        let features = features(&train.x, &weights);
        let kernel = (sizes.m >= train.y.len()).then(|| gram(&features));
        Ok(Self {
            test: draw(setting, [sizes.test; 4], seed, "test"),
            validation: draw(setting, [sizes.validation; 4], seed, "validation"),
            weights,
            features,
            kernel,
            proportions: counts.map(|c| c as f64 / train.y.len() as f64),
            ridge: sizes.ridge,
            seed,
            train,
        })
    }

    /// ERM, IW in both forms where asked for, and IT at each temperature above 1, each begun where the last one ended.
    pub fn sweep(&self, temperatures: &[f64], weighting: bool, solver: Solver) -> Result<Vec<Fit>> {
        let n = self.train.y.len() as f64;
        let ones = vec![1.0 / n; self.train.y.len()];
        let mut fits = vec![];
        let (erm, base) = self.fit("erm".into(), Some(1.0), &self.train.y, ones.clone(), None, solver)?;
        fits.push(erm);
        let mut last = base.clone();
        for t in temperatures.iter().copied().filter(|t| *t > 1.0) {
            let scales: Vec<f64> = self.tempered(t);
            let name = format!("it@{}", word(t));
            let (fit, solution) = self.fit(name, Some(t), &scales, ones.clone(), Some(&last), solver)?;
            fits.push(fit);
            last = solution;
        }
        if weighting {
            let weighted: Vec<f64> = (0..self.train.y.len())
                .map(|i| 1.0 / (4.0 * n * self.proportions[self.train.group(i)]))
                .collect();
            let (iw, solution) = self.fit("iw".into(), None, &self.train.y, weighted, Some(&base), solver)?;
            fits.push(iw);
            let counts = self.oversampled();
            let (iw, _) =
                self.fit("iw-resampled".into(), None, &self.train.y, counts, Some(&solution), solver)?;
            fits.push(iw);
        }
        Ok(fits)
    }

    /// y / T, with T = 1 on the majority groups.
    fn tempered(&self, t: f64) -> Vec<f64> {
        let one = |(i, y): (usize, &f64)| if self.train.is_majority(i) { *y } else { y / t };
        self.train.y.iter().enumerate().map(one).collect()
    }

    /// Every group drawn with replacement up to the size of the largest: how often each example came, over the total.
    fn oversampled(&self) -> Vec<f64> {
        let mut members: [Vec<usize>; 4] = Default::default();
        (0..self.train.y.len()).for_each(|i| members[self.train.group(i)].push(i));
        let largest = members.iter().map(Vec::len).max().unwrap_or(0);
        let mut times = vec![0.0; self.train.y.len()];
        for (g, group) in members.iter().enumerate() {
            let mut stream = Stream::new(self.seed, "oversample", 0, g as u64);
            group.iter().for_each(|i| times[*i] += 1.0);
            for _ in group.len()..largest {
                times[group[stream.below(group.len() as u64) as usize]] += 1.0;
            }
        }
        times.iter().map(|t| t / (4 * largest) as f64).collect()
    }

    fn fit(
        &self,
        method: String,
        temperature: Option<f64>,
        scales: &[f64],
        weights: Vec<f64>,
        start: Option<&Solution>,
        solver: Solver,
    ) -> Result<(Fit, Solution)> {
        let loss = Loss { scales: scales.to_vec(), weights, ridge: self.ridge };
        let solution = match solver {
            Solver::Newton => loss.minimise(&self.features, self.kernel.as_ref(), start, Stop::default())?,
            Solver::Loose => loose(&loss, &self.features)?,
        };
        let pull = |majority: bool| -> f64 {
            let all = solution.dual.iter().enumerate();
            all.filter(|(i, _)| self.train.is_majority(*i) == majority).map(|(_, a)| a.abs()).sum()
        };
        let wrong = self.features.times(&solution.coefficients);
        let wrong = wrong.iter().zip(&self.train.y).filter(|(f, y)| *f * *y <= 0.0).count();
        let (majority, minority) = (pull(true), pull(false));
        let score =
            |on: &Examples| Scores::of(errors(on, &self.weights, &solution.coefficients), self.proportions);
        let fit = Fit {
            method,
            temperature,
            test: score(&self.test),
            validation: score(&self.validation),
            training: 100.0 * wrong as f64 / self.train.y.len() as f64,
            pull: minority / f64::max(majority + minority, f64::MIN_POSITIVE),
            iterations: solution.iterations,
            gradient: solution.gradient,
            objective: solution.objective,
        };
        Ok((fit, solution))
    }
}

/// Where scikit-learn's lbfgs stops with its default tolerance, from 0.
fn loose(loss: &Loss, x: &Matrix) -> Result<Solution> {
    loss.check(x.rows)?;
    let limits = Limits { gradient: 1e-4, fall: 64.0 * f64::EPSILON, iterations: 100_000 };
    let found = lbfgs::minimise(vec![0.0; x.cols], limits, |w, g| {
        let f = x.times(w);
        let pulled = x.transposed_times(&loss.pull(&f));
        g.iter_mut().zip(&pulled).zip(w).for_each(|((g, p), w)| *g = loss.ridge * w - p);
        loss.data(&f) + 0.5 * loss.ridge * super::linalg::dot(w, w)
    })?;
    let dual = loss.pull(&x.times(&found.x)).iter().map(|p| p / loss.ridge).collect();
    Ok(Solution {
        coefficients: found.x,
        margins: vec![],
        dual,
        objective: found.value,
        gradient: found.gradient,
        iterations: found.iterations,
    })
}

/// A temperature chosen without the test set, among those that were fitted: by the validation split's worst group (the
/// smallest of several best), and by equal pull: the one at which Σ|α| of minority and majority are the closest to equal.
pub fn choose(fits: &[Fit]) -> [(&'static str, &Fit); 2] {
    let tempered: Vec<&Fit> = fits.iter().filter(|f| f.temperature.is_some()).collect();
    let least = |value: &dyn Fn(&Fit) -> f64| {
        let best = |a: &&&Fit, b: &&&Fit| value(a).total_cmp(&value(b));
        *tempered.iter().min_by(best).unwrap_or(&&fits[0])
    };
    [
        ("auto-validation", least(&|f: &Fit| f.validation.worst)),
        ("auto-pull", least(&|f: &Fit| (f.pull - 0.5).abs())),
    ]
}

/// Writes the scores of each fit under `prefix/method/`.
pub fn record(out: &mut Outcome, prefix: &str, seed: u64, fits: &[Fit]) {
    for fit in fits {
        let mut add = |what: &str, unit: &str, v: f64| {
            out.add(format!("{prefix}/{}/{what}", fit.method), unit, seed, v)
        };
        add("worst", "%", fit.test.worst);
        add("average", "%", fit.test.average);
        add("balanced", "%", fit.test.balanced);
        add("training", "%", fit.training);
        add("iterations", "", fit.iterations as f64);
        add("log10-gradient", "", libm::log10(fit.gradient.max(1e-300)));
        add("log10-objective", "", libm::log10(fit.objective.max(1e-300)));
        add("minority-pull", "%", 100.0 * fit.pull);
    }
    for (name, fit) in choose(fits) {
        out.add(format!("{prefix}/{name}/worst"), "%", seed, fit.test.worst);
        out.add(format!("{prefix}/{name}/temperature"), "", seed, fit.temperature.unwrap_or(1.0));
    }
}
