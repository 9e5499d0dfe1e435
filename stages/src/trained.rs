//! A trained network as evaluate and geometry see it: its weights loaded, what its training said of itself, the data
//! that it belongs to. Knows the files of train; knows no metric.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batches::Inputs;
use crate::data::indices::Indices;
use crate::data::{Counts, Examples};
use crate::job::{Job, bad, read_json, whole};
use crate::models::{self, Model, ModelParams};
use crate::nn::cpu::Cpu;
use crate::rehearsal::{self, Sizes};
use crate::rng::Stream;

/// What is read of `train.json`; the rest is train's own.
#[derive(Deserialize)]
struct TrainJson {
    params: Value,
    #[serde(default)]
    temperatures: Value,
    #[serde(default)]
    training: Value,
}

/// Which data a number was computed from; the same object in every metrics file.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// The set's name.
    pub dataset: String,
    /// Which of its forms.
    pub variant: String,
    /// Whether the arrays are bit for bit the published set.
    pub exact: bool,
    /// How far they are from it.
    pub note: String,
    /// The imbalance asked for; a whole number is written as one.
    pub ratio: Value,
    /// Training examples.
    pub n_train: usize,
    /// Chosen examples per group and split.
    pub counts: Counts,
}

/// A trained network with its data.
pub struct Trained {
    /// The prepared arrays.
    pub examples: Examples,
    /// The rows that it was trained, chosen and is tested on.
    pub indices: Indices,
    /// The network, its weights loaded.
    pub model: Model,
    /// The params of its training.
    pub params: Value,
    /// The temperatures that its training used, or null.
    pub temperatures: Value,
    /// How its training ended.
    pub training: Value,
    inputs: Inputs,
    /// In a rehearsal: the rows of a real run, and when it began.
    real: Option<(Sizes, Instant)>,
}

impl Trained {
    /// Opens inputs `weights`, `data` and `indices`.
    ///
    /// Errors: `BadInput` for files that are missing or not what they should be; weights of another model.
    pub fn open(job: &Job) -> Result<Self> {
        let examples = Examples::open(&job.input("data")?)?;
        let folder = job.input("indices")?;
        let indices = Indices::open(&folder, &examples)?;
        let weights = job.input("weights")?;
        let mut trained = Self::load(examples, indices, &weights, job.threads())
            .with_context(|| weights.display().to_string())?;
        if job.rehearse() {
            trained.rehearse(&folder)?;
        }
        Ok(trained)
    }

    /// From now on a batch of each split is all there is.
    fn rehearse(&mut self, folder: &Path) -> Result<()> {
        let (indices, most) = (&mut self.indices, self.inputs.at_once());
        let real = rehearsal::stands_for::<Sizes>(folder)?.unwrap_or(Sizes {
            train: indices.train.len(),
            validation: indices.validation.len(),
            test: indices.test.len(),
        });
        for rows in [&mut indices.train, &mut indices.validation, &mut indices.test] {
            *rows = rehearsal::some(rows, most);
        }
        self.real = Some((real, Instant::now()));
        Ok(())
    }

    /// In a rehearsal: tells the engine how long `all` rows take where `some` took the time since it was opened.
    pub fn tell(&self, all: impl Fn(&Sizes) -> usize, some: usize, bytes: impl Fn(&Sizes) -> u64) {
        if let Some((real, start)) = &self.real {
            let seconds = start.elapsed().as_secs_f64() * all(real) as f64 / some.max(1) as f64;
            rehearsal::tell(seconds, Some(bytes(real)), None);
        }
    }

    fn load(examples: Examples, indices: Indices, weights: &Path, threads: usize) -> Result<Self> {
        let TrainJson { params, temperatures, training } = read_json(&weights.join("train.json"))?;
        let model = params.get("model").cloned().ok_or_else(|| bad("train.json: params.model is missing"))?;
        let model: ModelParams =
            serde_json::from_value(model).map_err(|e| bad(format!("train.json: params.model: {e}")))?;
        let (inputs, shape) = Inputs::new(examples.meta(), &model)?;
        // The start values are overwritten, which ones they are does not matter.
        let mut init = |name: &str| Stream::new(0, name, 0, 0);
        let model = models::build(&model, shape, Cpu::new(threads)?, &mut init)?;
        model.load_published(&weights.join("weights.safetensors")).map_err(|e| {
            bad(format!("{e:#}\nhint: weights, train.json and data must be of one training: train it again"))
        })?;
        Ok(Self { examples, indices, model, params, temperatures, training, inputs, real: None })
    }

    /// Calls `each` with batches of rows and the model's input for them, in order.
    pub fn batches(&self, rows: &[u32], mut each: impl FnMut(&[u32], &Tensor) -> Result<()>) -> Result<()> {
        for rows in rows.chunks(self.inputs.at_once()) {
            each(rows, &self.inputs.tensor(&self.examples, rows)?)?;
        }
        Ok(())
    }

    /// What its data are.
    pub fn source(&self) -> Source {
        let (meta, chosen) = (self.examples.meta(), &self.indices.meta);
        Source {
            dataset: meta.dataset.clone(),
            variant: meta.variant.clone(),
            exact: meta.exact,
            note: meta.note.clone(),
            ratio: whole(chosen.ratio),
            n_train: self.indices.train.len(),
            counts: chosen.counts.clone(),
        }
    }
}
