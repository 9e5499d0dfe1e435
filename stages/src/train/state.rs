//! The state of a training as its checkpoint holds it: model, optimiser, best weights, and where it stands. Knows what
//! belongs to it; knows no step and no loss.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Params;
use crate::checkpoint;
use crate::data::Examples;
use crate::data::indices::Indices;
use crate::job;
use crate::method::Method;
use crate::models::Model;
use crate::optim::Optimizer;
use crate::scores::Scores;

/// Named tensors of a model: parameters, then buffers.
pub type Weights = Vec<(String, Tensor)>;

/// Where a training stands, beside the tensors: all of it is in the checkpoint.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Of params and rows: a checkpoint of another training is not taken up.
    pub fingerprint: String,
    pub epoch: u64,
    /// Steps made in this epoch.
    pub step: u64,
    pub optimizer_steps: u64,
    /// What the method remembers: group DRO's weights.
    pub method: Vec<f64>,
    /// Of this epoch's batches, as the training saw them.
    pub running: Scores,
    /// Σ of this epoch's batch losses.
    pub loss: f64,
    /// The lines of `epochs.jsonl` so far.
    pub history: Vec<String>,
    pub best: Option<Best>,
    /// The mean batch loss of the last finished epoch.
    pub last_loss: f64,
}

/// The best measured epoch.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub epoch: u64,
    pub value: f64,
    /// Measurements since.
    pub since: u64,
}

impl State {
    /// Before the first step, for so many groups.
    pub fn new(fingerprint: String, groups: usize) -> State {
        State {
            fingerprint,
            epoch: 0,
            step: 0,
            optimizer_steps: 0,
            method: Vec::new(),
            running: Scores::new(groups),
            loss: 0.0,
            last_loss: 0.0,
            history: Vec::new(),
            best: None,
        }
    }

    /// Takes up the checkpoint, where there is one, and gives the best weights, where it holds them. One that cannot be
    /// read is ignored: starting anew gives the same result, later.
    ///
    /// Errors: the checkpoint of another training.
    pub fn resume(
        &mut self,
        path: &Path,
        model: &Model,
        optimizer: &mut Optimizer,
        method: &mut Method,
    ) -> Result<Weights> {
        let saved = match checkpoint::load::<State>(path) {
            Ok(None) => return Ok(Vec::new()),
            Ok(Some(saved)) => saved,
            Err(error) => {
                eprintln!("{}: {error:#}: ignored, starting anew", path.display());
                return Ok(Vec::new());
            }
        };
        if saved.state.fingerprint != self.fingerprint {
            bail!("{}: a checkpoint of another training\nhint: remove it", path.display());
        }
        let find = |kind: &str, name: &str| -> Result<Tensor> {
            let name = format!("{kind}/{name}");
            saved.tensors.get(&name).cloned().with_context(|| format!("checkpoint: {name}: missing"))
        };
        for (name, var) in model.parameters().iter().chain(model.buffers()) {
            var.set(&find("model", name)?.to_device(var.device())?)
                .with_context(|| format!("checkpoint: {name}"))?;
        }
        optimizer.restore(saved.state.optimizer_steps, |name| find("optimizer", name))?;
        method.restore(&saved.state.method)?;
        let mut best = Vec::new();
        if saved.state.best.is_some() {
            for (name, _) in model.parameters().iter().chain(model.buffers()) {
                best.push((name.clone(), find("best", name)?));
            }
        }
        *self = saved.state;
        eprintln!("resumed at epoch {} step {}", self.epoch + 1, self.step);
        Ok(best)
    }

    /// Writes the checkpoint.
    pub fn save(
        &mut self,
        path: &Path,
        model: &Model,
        optimizer: &Optimizer,
        method: &Method,
        best: &Weights,
    ) -> Result<()> {
        self.optimizer_steps = optimizer.steps();
        self.method = method.state().to_vec();
        let named = |kind: &str, name: &str, t: Tensor| (format!("{kind}/{name}"), t);
        let mut tensors = Vec::new();
        for (name, var) in model.parameters().iter().chain(model.buffers()) {
            tensors.push(named("model", name, var.as_detached_tensor()));
        }
        tensors.extend(optimizer.state().into_iter().map(|(name, t)| named("optimizer", &name, t)));
        tensors.extend(best.iter().map(|(name, t)| named("best", name, t.clone())));
        checkpoint::save(path, &tensors, self)
    }
}

/// A copy of the weights that later steps do not touch.
pub fn copy(model: &Model) -> Result<Weights> {
    let all = model.parameters().iter().chain(model.buffers());
    all.map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?))).collect()
}

/// A digest of what decides a training: the params, the published weights it starts from, the rows with their labels and
/// groups.
pub fn fingerprint(
    params: &Params,
    examples: &Examples,
    indices: &Indices,
    pretrained: Option<blake3::Hash>,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(job::canonical(params)?.as_bytes());
    if let Some(digest) = pretrained {
        hasher.update(digest.as_bytes());
    }
    for rows in [&indices.train, &indices.validation] {
        hasher.update(&(rows.len() as u64).to_le_bytes());
        for &row in rows {
            hasher.update(&row.to_le_bytes());
            hasher.update(&examples.group(row as usize).to_le_bytes());
            if examples.is_text() {
                let text = examples.tokens(row as usize);
                text.ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
                hasher.update(text.types);
                hasher.update(&(text.length as u64).to_le_bytes());
            } else {
                hasher.update(examples.image(row as usize));
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
