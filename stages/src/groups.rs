//! Evaluated runs on groups that are not classes: what tells one from another stands in the names of their stages, whose
//! axes a table or figure is told. Knows `metrics.json`; knows no layout and no paper.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use crate::claims::{Measured, Measurements};
use crate::job::{NamedInput, bad, read_json};
use crate::runs::{self, Method, Source};
use crate::table::Fidelity;

/// One evaluated training.
#[derive(Debug, Clone)]
pub struct GroupRun {
    /// The stage that it came from.
    pub stage: String,
    /// The values of the stage's axes, by name.
    pub axes: BTreeMap<String, String>,
    pub method: Method,
    pub seed: u64,
    pub data: Source,
    pub training: Training,
    /// Of the test split, as fractions.
    pub worst: f64,
    /// The groups weighted by their training examples.
    pub average: f64,
}

/// How far the training went.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Training {
    pub error_raw: f64,
    pub error_tempered: Option<f64>,
    pub steps: u64,
    pub epochs: u64,
    /// The epoch whose weights were evaluated.
    pub selected_epoch: u64,
}

#[derive(Deserialize)]
struct Metrics {
    params: runs::Params,
    data: Source,
    worst_group_accuracy: f64,
    adjusted_average_accuracy: f64,
    training: Training,
}

/// Reads the metrics of evaluate stages whose axes are these.
///
/// Errors: `BadInput` for no run, a name with another number of values, two runs of equal axes.
pub fn read(inputs: &[NamedInput], axes: &[String]) -> Result<Vec<GroupRun>> {
    let mut all = inputs.iter().map(|input| one(input, axes)).collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(bad("inputs.metrics: no run to show"));
    }
    all.sort_by(|a, b| (&a.axes, a.seed).cmp(&(&b.axes, b.seed)));
    if let Some(pair) = all.windows(2).find(|p| p[0].axes == p[1].axes) {
        return Err(bad(format!("inputs: {} and {} are the same run", pair[0].stage, pair[1].stage)));
    }
    Ok(all)
}

fn one(input: &NamedInput, axes: &[String]) -> Result<GroupRun> {
    let inside = input.name.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(v, _)| v);
    let values: Vec<&str> = inside.split(',').collect();
    if values.len() != axes.len() {
        return Err(bad(format!("inputs.metrics: {}: {} axes are expected", input.name, axes.len())));
    }
    let path = if input.path.is_dir() { input.path.join("metrics.json") } else { input.path.clone() };
    let metrics: Metrics = read_json(&path)?;
    Ok(GroupRun {
        stage: input.name.clone(),
        axes: axes.iter().cloned().zip(values.into_iter().map(String::from)).collect(),
        method: metrics.params.method,
        seed: metrics.params.seed,
        data: metrics.data,
        training: metrics.training,
        worst: metrics.worst_group_accuracy,
        average: metrics.adjusted_average_accuracy,
    })
}

impl GroupRun {
    /// The value of an axis; empty where there is none.
    pub fn axis(&self, name: &str) -> &str {
        self.axes.get(name).map_or("", String::as_str)
    }
}

/// The runs with these values of axes and this method, by seed.
pub fn cell<'a>(runs: &'a [GroupRun], axes: &[(&str, &str)], method: Method) -> Vec<&'a GroupRun> {
    let here = |r: &&GroupRun| r.method == method && axes.iter().all(|(name, value)| r.axis(name) == *value);
    runs.iter().filter(here).collect()
}

/// Adds a quantity: `value` of each run of the cell.
pub fn measure(
    into: &mut Measurements,
    id: &str,
    unit: &str,
    cell: &[&GroupRun],
    value: impl Fn(&GroupRun) -> f64,
) {
    if !cell.is_empty() {
        let measured = Measured {
            unit: unit.to_string(),
            seeds: cell.iter().map(|r| (r.seed, value(r))).collect(),
            stages: cell.iter().map(|r| r.stage.clone()).collect(),
        };
        into.insert(id.to_string(), measured);
    }
}

/// The different values of an axis, in the order of the runs' names; numbers rise.
pub fn values(runs: &[GroupRun], axis: &str) -> Vec<String> {
    let mut all: Vec<String> = runs.iter().map(|r| r.axis(axis).to_string()).collect();
    let number = |text: &String| text.parse::<f64>().unwrap_or(f64::INFINITY);
    all.sort_by(|a, b| number(a).total_cmp(&number(b)).then_with(|| a.cmp(b)));
    all.dedup();
    all
}

/// The data that runs were computed from, each once.
pub fn sources(runs: &[GroupRun]) -> Vec<Fidelity> {
    let fidelity = |r: &GroupRun| {
        let note = r.data.note.clone().unwrap_or_default();
        let (dataset, variant) = (r.data.dataset.clone(), r.data.variant.clone());
        Fidelity { dataset, variant, exact: r.data.exact, note }
    };
    let mut all: Vec<Fidelity> = runs.iter().map(fidelity).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A fabricated run.
    pub fn run(axes: &[(&str, &str)], method: Method, seed: u64, worst: f64) -> GroupRun {
        let source = Source {
            dataset: axes.first().map_or("celeba", |(_, v)| v).to_string(),
            variant: "hub".into(),
            exact: true,
            note: None,
            ratio: 1,
            n_train: Some(100),
        };
        let training =
            Training { error_raw: 0.0, error_tempered: None, steps: 9, epochs: 3, selected_epoch: 1 + seed };
        let mut axes: BTreeMap<String, String> =
            axes.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        axes.insert("method".into(), method.word().into());
        axes.insert("seed".into(), seed.to_string());
        GroupRun {
            stage: format!("evaluate-group[{seed}]"),
            axes,
            method,
            seed,
            data: source,
            training,
            worst,
            average: worst + 0.1,
        }
    }

    #[test]
    fn names_are_taken_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.json");
        let text = r#"{"params": {"method": "group-dro", "seed": 2, "epochs": 4}, "n": 5,
            "data": {"dataset": "celeba", "variant": "hub", "exact": true, "note": "", "ratio": 1},
            "worst_group_accuracy": 0.25, "adjusted_average_accuracy": 0.5,
            "training": {"error_raw": 0, "error_tempered": null, "loss": 1, "steps": 8, "epochs": 4, "selected_epoch": 3}}"#;
        std::fs::write(&path, text).unwrap();
        let axes = ["data", "width", "method", "seed"].map(String::from);
        let named = |name: &str| NamedInput { name: name.into(), path: path.clone() };
        let runs = read(&[named("e[celeba,10,group-dro,2]")], &axes).unwrap();
        assert_eq!((runs[0].axis("width"), runs[0].method, runs[0].worst), ("10", Method::GroupDro, 0.25));
        assert_eq!(runs[0].training.selected_epoch, 3);
        let error = read(&[named("e[celeba,10]")], &axes).unwrap_err().to_string();
        assert_eq!(error, "inputs.metrics: e[celeba,10]: 4 axes are expected");
        let twice = [named("a[celeba,10,group-dro,2]"), named("b[celeba,10,group-dro,2]")];
        assert!(read(&twice, &axes).unwrap_err().to_string().ends_with("are the same run"));
        assert_eq!(values(&runs, "width"), ["10"]);
    }
}
