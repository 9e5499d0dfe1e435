//! evaluate: a trained network -> its predictions on the test rows and the metrics made of them. Prediction is by the
//! raw logits, whatever the loss did to them. Knows splits and groups; the formulas stand in `metrics.rs`.

use anyhow::{Result, bail};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{self, Job, bad, progress, write, write_json};
use crate::metrics::{Hits, adjusted, average, balanced, hits, predictions, worst};
use crate::trained::{Source, Trained};

/// The params of evaluate: none; everything stands in the training's own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {}

/// The figures of one split. Accuracies are fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    n: usize,
    per_class: Vec<Hits>,
    per_group: Vec<Hits>,
    worst_class_accuracy: f64,
    worst_group_accuracy: f64,
    /// Over examples.
    average_accuracy: f64,
    /// The mean over groups.
    balanced_accuracy: f64,
    /// Groups weighted by their training examples.
    adjusted_average_accuracy: f64,
}

#[derive(Serialize)]
struct Metrics<'a> {
    params: &'a Value,
    temperatures: &'a Value,
    data: Source,
    split: &'static str,
    #[serde(flatten)]
    figures: Figures,
    validation: Option<Figures>,
    training: &'a Value,
}

/// Reads inputs `weights`, `data` and `indices`; writes `metrics.json` and `predictions.safetensors` (the test rows'
/// raw logits, f32 [n, classes]).
///
/// Errors: `BadInput` as [`Trained::open`], or where there is no test row; logits that are not numbers.
pub fn run(job: Job) -> Result<()> {
    let Params {} = job.params()?;
    let trained = Trained::open(&job)?;
    if trained.indices.test.is_empty() {
        return Err(bad("inputs.indices: there are no test rows"));
    }
    let validation = &trained.indices.validation;
    let validation = if validation.is_empty() { None } else { Some(figures(&trained, validation)?.0) };
    let (figures, logits) = figures(&trained, &trained.indices.test)?;

    let classes = trained.examples.meta().classes.len();
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![figures.n, classes], &bytes)?;
    write(&job.out().join("predictions.safetensors"), &safetensors::serialize([("logits", view)], None)?)?;
    let rows = trained.indices.validation.len() + figures.n;
    trained.tell(|real| real.validation + real.test, rows, |real| (4 * real.test * classes) as u64);
    let metrics = Metrics {
        params: &trained.params,
        temperatures: &trained.temperatures,
        data: trained.source(),
        split: "test",
        figures,
        validation,
        training: &trained.training,
    };
    write_json(&job.out().join("metrics.json"), &metrics)
}

/// The figures of the given rows, and their logits row by row.
fn figures(trained: &Trained, rows: &[u32]) -> Result<(Figures, Vec<f32>)> {
    let mut logits = Vec::with_capacity(rows.len() * trained.examples.meta().classes.len());
    trained.batches(rows, |_, images| {
        if job::stop_requested() {
            return Err(job::Checkpointed.into());
        }
        let batch = trained.model.forward(images, false)?.detach();
        logits.extend(batch.flatten_all()?.to_vec1::<f32>()?);
        let done = logits.len() / batch.dim(1)?;
        progress(done as u64, rows.len() as u64, "examples");
        Ok(())
    })?;
    let (examples, meta) = (&trained.examples, trained.examples.meta());
    let Some(predicted) = predictions(&logits, meta.classes.len()) else {
        bail!("the network gives logits that are not numbers: the training diverged");
    };
    let labels: Vec<u32> = rows.iter().map(|&row| examples.labels()[row as usize]).collect();
    let groups: Vec<u32> = rows.iter().map(|&row| examples.group(row as usize)).collect();
    let per_class = hits(&predicted, &labels, &labels, meta.classes.len());
    let per_group = hits(&predicted, &labels, &groups, examples.n_groups());
    let training = &trained.indices.meta.counts.train;
    // None of these is `None`: there is at least one row, and a group of it.
    let figures = Figures {
        n: rows.len(),
        worst_class_accuracy: worst(&per_class).unwrap_or_default(),
        worst_group_accuracy: worst(&per_group).unwrap_or_default(),
        average_accuracy: average(&per_group).unwrap_or_default(),
        balanced_accuracy: balanced(&per_group).unwrap_or_default(),
        adjusted_average_accuracy: adjusted(&per_group, training).unwrap_or_default(),
        per_class,
        per_group,
    };
    Ok((figures, logits))
}
