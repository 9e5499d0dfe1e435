//! A training that is only rehearsed: two steps at full batch, one measurement, a checkpoint written and read. Knows what
//! is left of a training then, and what it says of a whole one.

use anyhow::Result;

use super::Params;
use super::clock::Clock;
use crate::data::indices::Indices;
use crate::job::{Job, bad};
use crate::models::Model;
use crate::rehearsal::{self, FILE, Sizes};

/// What a whole training would be.
pub struct Rehearsal {
    sizes: Sizes,
    steps: u64,
    measurements: u64,
}

/// Whether the published weights are a placeholder: the start values do then.
pub fn lacks_weights(job: &Job) -> Result<bool> {
    Ok(job.rehearse() && job.input("pretrained")?.join(FILE).is_file())
}

impl Rehearsal {
    /// Leaves two full batches of one epoch, and a batch of validation rows. The examples of a placeholder are taken
    /// again and again.
    pub fn shorten(job: &Job, params: &mut Params, indices: &mut Indices) -> Result<Rehearsal> {
        let sizes = rehearsal::stands_for::<Sizes>(&job.input("indices")?)?;
        let sizes = sizes.unwrap_or(Sizes {
            train: indices.train.len(),
            validation: indices.validation.len(),
            test: indices.test.len(),
        });
        if params.batch > sizes.train {
            let (batch, n) = (params.batch, sizes.train);
            return Err(bad(format!("params.batch: {batch}: larger than the {n} training rows")));
        }
        let whole = Rehearsal {
            sizes,
            steps: params.epochs * sizes.train.div_ceil(params.batch) as u64,
            measurements: params.epochs.checked_div(params.metrics_every).unwrap_or(0).max(1),
        };
        let all = rehearsal::some(&indices.train, 2 * params.batch);
        indices.train = all.iter().copied().cycle().take(2 * params.batch).collect();
        indices.validation = rehearsal::some(&indices.validation, params.batch);
        params.epochs = 1;
        Ok(whole)
    }

    /// Tells the engine what a whole training takes: the second step for each, the measurement by its rows.
    pub fn tell(&self, clock: &Clock, indices: &Indices, model: &Model) {
        let (step, measuring) = clock.last();
        let measured = (indices.train.len() + indices.validation.len()) as f64;
        let rows = (self.sizes.train + self.sizes.validation) as f64 * self.measurements as f64;
        let seconds = step.as_secs_f64() * self.steps as f64 + measuring.as_secs_f64() / measured * rows;
        let numbers: usize =
            model.parameters().iter().chain(model.buffers()).map(|(_, var)| var.elem_count()).sum();
        rehearsal::tell(seconds, Some(4 * numbers as u64), None);
    }
}
