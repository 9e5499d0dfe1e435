//! Trained and measured runs: reads `metrics.json` and `geometry.json`, groups them by data set, ratio, method, gamma
//! and seed, names their quantities. Knows no layout and no paper.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::claims::{Measured, Measurements};
use crate::job::{NamedInput, bad, read_json};

/// How the loss treats the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Erm,
    Iw,
    IwResampled,
    GroupDro,
    ItFeatures,
    ItClassifier,
    ItGroup,
}

impl Method {
    /// The word in params, names and quantities.
    pub fn word(self) -> &'static str {
        match self {
            Method::Erm => "erm",
            Method::Iw => "iw",
            Method::IwResampled => "iw-resampled",
            Method::GroupDro => "group-dro",
            Method::ItFeatures => "it-features",
            Method::ItClassifier => "it-classifier",
            Method::ItGroup => "it-group",
        }
    }

    /// The name in tables and figures.
    pub fn label(self) -> &'static str {
        match self {
            Method::Erm => "ERM",
            Method::Iw => "IW",
            Method::IwResampled => "IW (resampled)",
            Method::GroupDro => "group DRO",
            Method::ItFeatures => "IT(H)",
            Method::ItClassifier => "IT(W)",
            Method::ItGroup => "IT",
        }
    }

    /// Whether gamma means something to it. At gamma = 0 every T is 1, and IT is ERM itself.
    pub fn tempered(self) -> bool {
        matches!(self, Method::ItFeatures | Method::ItClassifier | Method::ItGroup)
    }
}

/// Worst-class and plain average accuracy of a balanced split, as fractions.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Accuracy {
    #[serde(rename = "worst_class_accuracy")]
    pub worst: f64,
    #[serde(rename = "average_accuracy")]
    pub average: f64,
}

/// How far the training went.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Training {
    /// Share of training examples whose raw logits have another argmax than the label.
    pub error_raw: f64,
    /// The same of the tempered logits; absent where there is no temperature.
    pub error_tempered: Option<f64>,
    /// The training loss at the end.
    pub loss: Option<f64>,
    /// Optimiser steps.
    pub steps: u64,
    /// Passes over the training examples.
    pub epochs: u64,
}

/// Which data a number was computed from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Source {
    pub dataset: String,
    pub variant: String,
    /// Whether the arrays are bit for bit the published ones.
    pub exact: bool,
    /// What is different, where they are not.
    #[serde(default)]
    pub note: Option<String>,
    /// n_max / n_min.
    #[serde(deserialize_with = "whole")]
    pub ratio: u64,
    /// Training examples after subsampling.
    #[serde(default)]
    pub n_train: Option<u64>,
}

/// A whole number, however JSON spells it: a ratio is a float where the subsampling allows other ratios.
fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let is_whole = (0.0..1e15).contains(&value) && value.fract() == 0.0;
    if is_whole {
        Ok(value as u64)
    } else {
        Err(serde::de::Error::custom(format!("{value} is not a whole number")))
    }
}

/// The params of a training that tell it from its sisters.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Params {
    pub method: Method,
    #[serde(default)]
    pub gamma: f64,
    pub seed: u64,
}

/// What both kinds of run have.
pub trait Run {
    /// The stage that it came from.
    fn stage(&self) -> &str;
    fn params(&self) -> &Params;
    fn source(&self) -> &Source;
}

/// One evaluated training.
#[derive(Debug, Clone, Deserialize)]
pub struct Evaluated {
    #[serde(skip)]
    pub stage: String,
    pub params: Params,
    pub data: Source,
    #[serde(flatten)]
    pub test: Accuracy,
    #[serde(default)]
    pub validation: Option<Accuracy>,
    pub training: Training,
}

/// The average angles between vectors of one kind, in degrees. `None`: fewer than two classes, or a zero vector.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Angles {
    pub majority: Option<f64>,
    pub minority: Option<f64>,
}

/// Which vectors are measured.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct AllAngles {
    pub classifier: Angles,
    pub means_centred: Angles,
    pub means_uncentred: Angles,
}

/// The geometry of one trained network.
#[derive(Debug, Clone, Deserialize)]
pub struct Shaped {
    #[serde(skip)]
    pub stage: String,
    pub params: Params,
    pub data: Source,
    pub angles: AllAngles,
}

impl Run for Evaluated {
    fn stage(&self) -> &str {
        &self.stage
    }
    fn params(&self) -> &Params {
        &self.params
    }
    fn source(&self) -> &Source {
        &self.data
    }
}

impl Run for Shaped {
    fn stage(&self) -> &str {
        &self.stage
    }
    fn params(&self) -> &Params {
        &self.params
    }
    fn source(&self) -> &Source {
        &self.data
    }
}

/// Runs in a fixed order, no two alike.
#[derive(Debug, Default)]
pub struct Runs<R>(Vec<R>);

/// Reads the metrics of evaluate stages.
pub fn evaluated(inputs: &[NamedInput]) -> Result<Runs<Evaluated>> {
    let read =
        |i: &NamedInput| Ok(Evaluated { stage: i.name.clone(), ..read_json(&file(i, "metrics.json"))? });
    Runs::new(inputs.iter().map(read).collect::<Result<_>>()?)
}

/// Reads the angles of geometry stages.
pub fn shaped(inputs: &[NamedInput]) -> Result<Runs<Shaped>> {
    let read = |i: &NamedInput| Ok(Shaped { stage: i.name.clone(), ..read_json(&file(i, "geometry.json"))? });
    Runs::new(inputs.iter().map(read).collect::<Result<_>>()?)
}

/// The pipeline may hand over the stage's folder or the file in it.
fn file(input: &NamedInput, name: &str) -> PathBuf {
    if input.path.is_dir() { input.path.join(name) } else { input.path.clone() }
}

impl<R: Run> Runs<R> {
    /// Sorts; errors: [`crate::job::BadInput`] for no run at all and for two of the same place.
    pub fn new(mut runs: Vec<R>) -> Result<Self> {
        if runs.is_empty() {
            return Err(bad("inputs: no run to show"));
        }
        let place = |r: &R| {
            let p = r.params();
            (r.source().dataset.clone(), r.source().ratio, p.method, p.gamma.to_bits(), p.seed)
        };
        runs.sort_by_key(|r| place(r));
        for pair in runs.windows(2) {
            if place(&pair[0]) == place(&pair[1]) {
                return Err(bad(format!(
                    "inputs: {} and {} are the same run",
                    pair[0].stage(),
                    pair[1].stage()
                )));
            }
        }
        Ok(Self(runs))
    }

    /// All of them.
    pub fn all(&self) -> &[R] {
        &self.0
    }

    /// The data sets, in the paper's order of rows: Fashion-MNIST before CIFAR-10.
    pub fn datasets(&self) -> Vec<String> {
        let all: BTreeSet<&str> = self.0.iter().map(|r| r.source().dataset.as_str()).collect();
        all.into_iter().rev().map(str::to_string).collect()
    }

    /// The ratios of a data set, rising.
    pub fn ratios(&self, data: &str) -> Vec<u64> {
        let all: BTreeSet<u64> =
            self.0.iter().filter(|r| r.source().dataset == data).map(|r| r.source().ratio).collect();
        all.into_iter().collect()
    }

    /// The gammas of a method there, rising.
    pub fn gammas(&self, data: &str, ratio: u64, method: Method) -> Vec<f64> {
        let mut all: Vec<f64> = self
            .0
            .iter()
            .filter(|r| {
                r.source().dataset == data && r.source().ratio == ratio && r.params().method == method
            })
            .map(|r| r.params().gamma)
            .collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }

    /// The runs of one cell, by seed. IT at gamma 0 is ERM, unless it was run by itself.
    pub fn cell(&self, data: &str, ratio: u64, method: Method, gamma: f64) -> Vec<&R> {
        let of = |method: Method| -> Vec<&R> {
            let here = |r: &&R| r.source().dataset == data && r.source().ratio == ratio;
            let same =
                |r: &&R| r.params().method == method && (!method.tempered() || r.params().gamma == gamma);
            self.0.iter().filter(here).filter(same).collect()
        };
        let own = of(method);
        if own.is_empty() && method.tempered() && gamma == 0.0 { of(Method::Erm) } else { own }
    }
}

impl Runs<Evaluated> {
    /// The gamma of the highest mean worst-class accuracy on the validation split, then the highest mean average, then
    /// the smallest gamma; 0 (ERM) among the candidates. `None` where only one gamma was run, a run has no validation
    /// accuracies, or no two candidates share a seed: candidates are compared on the seeds that all of them have.
    pub fn best_gamma(&self, data: &str, ratio: u64, method: Method) -> Option<f64> {
        let mut gammas = self.gammas(data, ratio, method);
        if gammas.len() < 2 {
            return None;
        }
        if gammas[0] != 0.0 && !self.cell(data, ratio, Method::Erm, 0.0).is_empty() {
            gammas.insert(0, 0.0);
        }
        let cells: Vec<_> = gammas.iter().map(|g| self.cell(data, ratio, method, *g)).collect();
        let shared = shared_seeds(&cells);
        let mut best: Option<(f64, f64, f64)> = None;
        for (gamma, cell) in gammas.iter().zip(&cells) {
            let held: Vec<Accuracy> = cell
                .iter()
                .filter(|r| shared.contains(&r.params.seed))
                .map(|r| r.validation)
                .collect::<Option<_>>()?;
            let n = held.len() as f64;
            let worst = held.iter().map(|a| a.worst).sum::<f64>() / n;
            let average = held.iter().map(|a| a.average).sum::<f64>() / n;
            if n > 0.0 && best.is_none_or(|(w, a, _)| (worst, average) > (w, a)) {
                best = Some((worst, average, *gamma));
            }
        }
        best.map(|(_, _, gamma)| gamma)
    }
}

/// The seeds that every cell has.
pub fn shared_seeds<R: Run>(cells: &[Vec<&R>]) -> BTreeSet<u64> {
    let mut sets = cells.iter().map(|c| c.iter().map(|r| r.params().seed).collect::<BTreeSet<u64>>());
    let first = sets.next().unwrap_or_default();
    sets.fold(first, |all, set| all.intersection(&set).copied().collect())
}

/// The id of a quantity: `fashion-mnist/100/it-classifier@0.5/worst`; `gamma` as text, `best` included.
pub fn quantity(data: &str, ratio: u64, method: Method, gamma: &str, what: &str) -> String {
    let at = if method.tempered() && gamma != "0" { format!("@{gamma}") } else { String::new() };
    let method = if method.tempered() && gamma == "0" { Method::Erm } else { method };
    format!("{data}/{ratio}/{}{at}/{what}", method.word())
}

/// Adds a quantity: `value` of every run of the cell; runs without it are left out.
pub fn measure<R: Run>(
    into: &mut Measurements,
    id: &str,
    unit: &str,
    cell: &[&R],
    value: impl Fn(&R) -> Option<f64>,
) {
    let values: Vec<(&&R, f64)> = cell.iter().filter_map(|r| Some((r, value(r)?))).collect();
    if values.is_empty() {
        return;
    }
    let measured = Measured {
        unit: unit.to_string(),
        seeds: values.iter().map(|(r, v)| (r.params().seed, *v)).collect(),
        stages: values.iter().map(|(r, _)| r.stage().to_string()).collect(),
    };
    into.insert(id.to_string(), measured);
}

/// Worst-class and average test accuracy of every cell, in percent, and of IT at its best gamma where that is known.
pub fn accuracies(runs: &Runs<Evaluated>) -> Measurements {
    let mut all = Measurements::new();
    let mut add = |data: &str, ratio: u64, method: Method, gamma: f64, name: &str| {
        let cell = runs.cell(data, ratio, method, gamma);
        let id = |what: &str| quantity(data, ratio, method, name, what);
        measure(&mut all, &id("worst"), "%", &cell, |r| Some(100.0 * r.test.worst));
        measure(&mut all, &id("average"), "%", &cell, |r| Some(100.0 * r.test.average));
    };
    let mut places: Vec<(String, u64, Method)> =
        runs.0.iter().map(|r| (r.data.dataset.clone(), r.data.ratio, r.params.method)).collect();
    places.dedup();
    for (data, ratio, method) in &places {
        for gamma in runs.gammas(data, *ratio, *method) {
            add(data, *ratio, *method, gamma, &gamma.to_string());
        }
        if let Some(best) = runs.best_gamma(data, *ratio, *method).filter(|_| method.tempered()) {
            add(data, *ratio, *method, best, "best");
        }
    }
    all
}

#[cfg(test)]
mod tests;
