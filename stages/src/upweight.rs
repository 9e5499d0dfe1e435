//! upweight: the training rows that a first network gets wrong are repeated, for a second training on them: "just train
//! twice" (Liu et al. 2021). Knows rows and predictions; knows no loss and no group.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::data::indices::Indices;
use crate::job::{self, Job, bad, progress, write_json};
use crate::metrics::predictions;
use crate::trained::Trained;

/// The params of upweight.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// How often a row that the first network gets wrong stands among the training rows, at least 1.
    times: usize,
}

/// `errors.json`: what was repeated.
#[derive(Serialize)]
struct Errors {
    times: usize,
    /// Training rows, and those of them that the first network gets wrong.
    n: usize,
    wrong: usize,
    /// By group.
    groups: Vec<u64>,
    wrong_groups: Vec<u64>,
}

/// Reads inputs `weights` (of the first training), `data` and `indices`; writes indices whose training rows hold each
/// misclassified row `times` times and the others once, and `errors.json`. The counts in `meta.json` stay those of the
/// data: accuracies are weighted by them.
///
/// Errors: `BadInput` as [`Trained::open`], or for `times` 0; logits that are not numbers.
pub fn run(job: Job) -> Result<()> {
    let Params { times } = job.params()?;
    if times == 0 {
        return Err(bad("params.times: 0: must be at least 1"));
    }
    let trained = Trained::open(&job)?;
    let (examples, rows) = (&trained.examples, &trained.indices.train);
    let mut logits = Vec::with_capacity(rows.len() * examples.meta().classes.len());
    trained.batches(rows, |_, inputs| {
        if job::stop_requested() {
            return Err(job::Checkpointed.into());
        }
        let out = trained.model.forward(inputs, false)?.detach();
        logits.extend(out.flatten_all()?.to_vec1::<f32>()?);
        progress((logits.len() / out.dim(1)?) as u64, rows.len() as u64, "examples");
        Ok(())
    })?;
    let Some(predicted) = predictions(&logits, examples.meta().classes.len()) else {
        bail!("the network gives logits that are not numbers: the training diverged");
    };
    let is_wrong = |i: usize| predicted[i] != examples.labels()[rows[i] as usize];
    let mut errors = Errors {
        times,
        n: rows.len(),
        wrong: 0,
        groups: vec![0; examples.n_groups()],
        wrong_groups: vec![0; examples.n_groups()],
    };
    let mut train = Vec::new();
    for (i, &row) in rows.iter().enumerate() {
        let g = examples.group(row as usize) as usize;
        errors.groups[g] += 1;
        if is_wrong(i) {
            errors.wrong += 1;
            errors.wrong_groups[g] += 1;
        }
        train.extend(std::iter::repeat_n(row, if is_wrong(i) { times } else { 1 }));
    }
    let Indices { validation, test, meta, .. } = trained.indices.clone();
    Indices { train, validation, test, meta }.write(job.out())?;
    write_json(&job.out().join("errors.json"), &errors)
}
