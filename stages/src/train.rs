//! train: arrays, indices and params -> weights and how they came to be. Reads top to bottom; a method differs from
//! another in its loss alone. Knows no evaluation on the test rows.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::Serialize;

use crate::batches::{Augment, Batch, Inputs, Source};
use crate::checkpoint;
use crate::data::Examples;
use crate::data::indices::Indices;
use crate::job::{self, Checkpointed, Job, bad};
use crate::method::{Counts, Method};
use crate::models::{self, Model};
use crate::nn::cpu::Cpu;
use crate::nn::memory;
use crate::optim::Optimizer;
use crate::rng::Stream;
use crate::scores::{Groups, Scores, Summary};

mod clock;
mod params;
mod pretrained;
mod rehearsal;
mod seen;
mod state;

use clock::Clock;
pub use params::{Deferred, DeviceName, Params, Part, Precision, Select, Warmup, available, place};
use rehearsal::Rehearsal;
use seen::Seen;
use state::{Best, State, copy, fingerprint};

/// A line of `epochs.jsonl`.
#[derive(Serialize)]
struct Epoch<'a> {
    /// The first is 1.
    epoch: u64,
    /// Steps made by its end.
    step: u64,
    /// Of its last step.
    rate: f64,
    gamma: f64,
    /// Mean of its batch losses.
    loss: f64,
    /// Over its batches, in train mode and while the weights moved.
    running: Summary,
    /// Over the training rows, in eval mode, at its end; where it was measured.
    train: Option<&'a Summary>,
    validation: Option<&'a Summary>,
    /// What the method remembers: group DRO's weights.
    method_state: &'a [f64],
}

/// The training and the validation rows' figures.
type Measured = (Summary, Option<Summary>);

/// Reads inputs `data`, `indices` and, where the body starts from other weights, `pretrained` (a folder with
/// `model.safetensors` as published, or the output of a training); writes `weights.safetensors`, `train.json`, `epochs.jsonl`.
///
/// Errors: `BadInput` for params that cannot be; a loss that is not finite; `Checkpointed` after SIGTERM.
pub fn run(job: Job) -> Result<()> {
    let mut params: Params = job.params()?;
    params.check()?;
    memory::keep_freed();
    let examples = Examples::open(&job.input("data")?)?;
    let mut indices = Indices::open(&job.input("indices")?, &examples)?;
    let counts = count(&examples, &indices.train)?;
    let mut methods = params.methods(&counts)?;
    if params.select != Select::Last && indices.validation.is_empty() {
        return Err(bad(
            "params.select: there are no validation rows to choose by\nhint: raise subsample's \
                        validation_per_class, or set select: last",
        ));
    }
    let meta = examples.meta();
    let (inputs, shape) = Inputs::new(meta, &params.model)?;
    if params.augment != Augment::None && matches!(inputs, Inputs::Texts) {
        return Err(bad("params.augment: texts have no augmentation\nhint: set augment: none"));
    }
    let rehearsal =
        job.rehearse().then(|| Rehearsal::shorten(&job, &mut params, &mut indices)).transpose()?;
    if params.batch > indices.train.len() {
        let n = indices.train.len();
        return Err(bad(format!(
            "params.batch: {}: larger than the {n} training rows\nhint: set it to {n} at most, or take more rows in subsample",
            params.batch
        )));
    }
    let model = models::build(&params.model, shape, Cpu::new(job.threads())?, &mut |name| {
        Stream::new(params.seed, &format!("init/{name}"), 0, 0)
    })
    .map_err(|e| bad(format!("params.{e:#}")))?;
    let pretrained = match job.has_input("pretrained") && !rehearsal::lacks_weights(&job)? {
        true => Some(pretrained::load(&model, &params.model, &job.input("pretrained")?)?),
        false => None,
    };
    let model = place(model, params.device, params.dtype)?;
    let trained = match params.part {
        Part::All => model.parameters(),
        Part::LastLayer if pretrained.is_some() => model.head_parameters(),
        Part::LastLayer => {
            return Err(bad("params.part: last-layer: there is nothing below it to keep\n\
                 hint: give the input `pretrained`: published weights, or the output of a training"));
        }
    };
    let mut optimizer = Optimizer::new(&params.optimizer, trained)
        .map_err(|e| bad(format!("params.{e:#}")))?
        .on(model.gpu().cloned());

    let groups = Groups {
        classes: meta.classes.len(),
        n_attributes: meta.n_attributes as usize,
        train: counts.group.clone(),
    };
    let sampler = methods.main.sampler.clone();
    let source = Source {
        examples: &examples,
        rows: &indices.train,
        inputs: &inputs,
        augment: params.augment,
        sampler: &sampler,
        seed: params.seed,
        batch: params.batch,
    };
    let per_epoch = source.steps();
    let total = per_epoch * params.epochs;
    let measure = |method: &Method, rows: &[u32]| -> Result<Summary> {
        let summary = measure(&model, method, &examples, rows, &inputs, groups.classes)?.summary(&groups);
        if !summary.loss_raw.is_finite() {
            bail!("the trained model's logits are not finite\nhint: lower schedule.rate, or set clip");
        }
        Ok(summary)
    };
    let measure_all = |method: &Method| -> Result<Measured> {
        let validation = indices.validation.as_slice();
        let validation = if validation.is_empty() { None } else { Some(measure(method, validation)?) };
        Ok((measure(method, &indices.train)?, validation))
    };

    let path = checkpoint::path(job.scratch());
    let mut state = State::new(fingerprint(&params, &examples, &indices, pretrained)?, counts.group.len());
    let mut best_weights = state.resume(&path, &model, &mut optimizer, &mut methods.main)?;

    let mut clock = Clock::new(state.epoch * per_epoch + state.step, total);
    let mut seen = Seen::new(model.gpu().is_some());
    let mut measured: Option<Measured> = None;
    std::thread::scope(|scope| -> Result<()> {
        let batches = source.ahead(scope, state.epoch, state.step, params.epochs);
        while state.epoch < params.epochs && !out_of_patience(&params, &state) {
            let warming = params.warming(state.epoch);
            let now = methods.of(&params, state.epoch);
            while state.step < per_epoch {
                let waiting = Instant::now();
                let batch = batches.recv().context("the batches ended early")??;
                clock.waited(waiting.elapsed());
                let step = state.epoch * per_epoch + state.step;
                let rate = params.schedule.rate(step, per_epoch, total);

                let gradients = gradients(&model, &optimizer, now, &batch, &params, step, rate, &mut seen)?;
                if seen.is_due() {
                    seen.count(&mut state, per_epoch)?;
                }
                optimizer.step_clipped(&gradients, rate, params.clip)?;

                state.step += 1;
                if let Some((train, validation)) = &measured {
                    clock.worst = Some(validation.as_ref().unwrap_or(train).worst_group_accuracy);
                }
                let note = format!(
                    "epoch {}/{} loss {:.4}",
                    state.epoch + 1,
                    params.epochs,
                    state.loss / (state.step - seen.steps()).max(1) as f64
                );
                clock.step(batch.labels.len(), &note);
                let stop = job::stop_requested();
                if stop || (params.checkpoint_every > 0 && (step + 1).is_multiple_of(params.checkpoint_every))
                {
                    seen.count(&mut state, per_epoch)?;
                    state.save(&path, &model, &optimizer, now, &best_weights)?;
                }
                if stop {
                    return Err(Checkpointed.into());
                }
            }

            seen.count(&mut state, per_epoch)?;
            let done = state.epoch + 1;
            state.last_loss = state.loss / per_epoch as f64;
            let due = params.metrics_every > 0 && done.is_multiple_of(params.metrics_every);
            measured = None;
            if due || done == params.epochs {
                measured = Some(match measure_all(now) {
                    Err(stop) if stop.is::<Checkpointed>() => {
                        state.save(&path, &model, &optimizer, now, &best_weights)?;
                        return Err(stop);
                    }
                    other => other?,
                });
            }
            let line = Epoch {
                epoch: done,
                step: done * per_epoch,
                rate: params.schedule.rate(done * per_epoch - 1, per_epoch, total),
                gamma: if warming { params.warmup.map_or(params.gamma, |w| w.gamma) } else { params.gamma },
                loss: state.last_loss,
                running: state.running.summary(&groups),
                train: measured.as_ref().map(|m| &m.0),
                validation: measured.as_ref().and_then(|m| m.1.as_ref()),
                method_state: now.state(),
            };
            state.history.push(serde_json::to_string(&line)?);
            if let Some(value) = selection(&params, measured.as_ref()) {
                match &mut state.best {
                    Some(best) if value <= best.value => best.since += 1,
                    best => {
                        *best = Some(Best { epoch: done, value, since: 0 });
                        best_weights = copy(&model)?;
                    }
                }
            }
            state.epoch = done;
            (state.step, state.loss) = (0, 0.0);
            state.running = Scores::new(counts.group.len());
        }
        Ok(())
    })?;

    let method = methods.of(&params, state.epoch.saturating_sub(1));
    let mut selected = state.epoch;
    if state.best.is_some() && measured.is_some() {
        // The weights are about to be replaced: whoever stops us from here on goes on from here.
        state.save(&path, &model, &optimizer, method, &best_weights)?;
    }
    if let Some(best) = state.best {
        selected = best.epoch;
        for ((_, var), (_, value)) in model.parameters().iter().chain(model.buffers()).zip(&best_weights) {
            var.set(&value.to_device(var.device())?)?;
        }
        measured = None;
    }
    let (train, validation) = match measured {
        Some(measured) => measured,
        None => measure_all(method)?,
    };
    if let Some(rehearsal) = rehearsal {
        let mut saved = State::new(state.fingerprint.clone(), counts.group.len());
        state.save(&path, &model, &optimizer, method, &best_weights)?;
        saved.resume(&path, &model, &mut optimizer, method)?;
        rehearsal.tell(&clock, &indices, &model);
    }
    let out = job.out();
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    model.save_published(&out.join("weights.safetensors"))?;
    job::write(&out.join("epochs.jsonl"), (state.history.join("\n") + "\n").as_bytes())?;
    let tempered = method.temperatures().is_some();
    job::write_json(
        &out.join("train.json"),
        &serde_json::json!({
            "version": 1,
            "params": params,
            "n_train": indices.train.len(),
            "counts": {"class": counts.class, "group": counts.group},
            "temperatures": method.temperatures(),
            "training": {
                "error_raw": train.error_raw,
                "error_tempered": tempered.then_some(train.error_tempered),
                "loss": state.last_loss,
                "steps": state.epoch * per_epoch,
                "epochs": state.epoch,
                "selected_epoch": selected,
            },
            "train": train,
            "validation": validation,
        }),
    )
}

/// One batch forward and backward: the parameters' gradients. What its predictions and its loss were goes to `seen`.
fn gradients(
    model: &Model,
    optimizer: &Optimizer,
    method: &mut Method,
    batch: &Batch,
    params: &Params,
    step: u64,
    rate: f64,
    seen: &mut Seen,
) -> Result<Vec<Tensor>> {
    let n = batch.labels.len();
    let part = params.micro_batch.unwrap_or(n).min(n);
    let parts = params.batch.div_ceil(part.max(1)) as u64;
    let mut sum = Vec::new();
    seen.begin(step, rate);
    for (i, from) in (0..n).step_by(part.max(1)).enumerate() {
        let size = part.min(n - from);
        // Each part draws dropout masks of its own.
        model.set_step(params.seed, step * parts + i as u64);
        let (labels, groups) = (&batch.labels[from..from + size], &batch.groups[from..from + size]);
        let inputs = batch.inputs.narrow(0, from, size)?;
        let logits = match params.part {
            Part::All => model.forward(&inputs, true)?,
            Part::LastLayer => model.logits(&model.features(&inputs, false)?.detach())?,
        };
        let share = size as f64 / n as f64;
        let loss = method.loss(&logits, labels, groups)?;
        let loss = if size == n { loss } else { (loss * share)? };
        let plain = logits.detach();
        let shaped = method.shaped(&plain, labels, groups)?;
        seen.add(seen::Part { loss: loss.detach(), logits: plain, shaped, labels, groups });
        let gradients = optimizer.gradients(&mut model.backward(&loss)?)?;
        sum = match sum.is_empty() {
            true => gradients,
            false => sum.iter().zip(&gradients).map(|(a, b)| Ok((a + b)?)).collect::<Result<_>>()?,
        };
    }
    Ok(sum)
}

/// The figures of the given rows, in eval mode.
///
/// Errors: `Checkpointed` after SIGTERM; the checkpoint is the caller's to write.
fn measure(
    model: &Model,
    method: &Method,
    examples: &Examples,
    rows: &[u32],
    inputs: &Inputs,
    classes: usize,
) -> Result<Scores> {
    let mut scores = Scores::new(classes * examples.meta().n_attributes as usize);
    for rows in rows.chunks(inputs.at_once()) {
        if job::stop_requested() {
            return Err(Checkpointed.into());
        }
        let logits = model.forward(&inputs.tensor(examples, rows)?, false)?.detach();
        let labels: Vec<u32> = rows.iter().map(|&row| examples.labels()[row as usize]).collect();
        let groups: Vec<u32> = rows.iter().map(|&row| examples.group(row as usize)).collect();
        count_predictions(&mut scores, method, &logits, &labels, &groups)?;
    }
    Ok(scores)
}

fn count_predictions(
    scores: &mut Scores,
    method: &Method,
    logits: &Tensor,
    labels: &[u32],
    groups: &[u32],
) -> Result<()> {
    let shaped = seen::host(&method.shaped(logits, labels, groups)?)?;
    scores.add(&seen::host(logits)?, &shaped, labels, groups, logits.dim(1)?);
    Ok(())
}

/// Training examples by class and group. Errors: `BadInput` for no examples, or none of a class.
fn count(examples: &Examples, rows: &[u32]) -> Result<Counts> {
    let classes = &examples.meta().classes;
    let mut counts = Counts { class: vec![0; classes.len()], group: vec![0; examples.n_groups()] };
    for &row in rows {
        counts.class[examples.labels()[row as usize] as usize] += 1;
        counts.group[examples.group(row as usize) as usize] += 1;
    }
    if rows.is_empty() {
        return Err(bad("inputs.indices: there are no training rows"));
    }
    if let Some(k) = counts.class.iter().position(|&n| n == 0) {
        let name = &classes[k];
        return Err(bad(format!(
            "inputs.indices: class {k} ({name}) has no training example\nhint: take more rows per class in subsample"
        )));
    }
    Ok(counts)
}

/// The value that the selection compares, of a measured epoch.
fn selection(params: &Params, measured: Option<&Measured>) -> Option<f64> {
    let validation = measured?.1.as_ref()?;
    match params.select {
        Select::Last => None,
        Select::BestValidationWorst => Some(validation.worst_group_accuracy),
        Select::BestValidationAverage => Some(validation.average_accuracy),
    }
}

fn out_of_patience(params: &Params, state: &State) -> bool {
    matches!((params.patience, state.best), (Some(patience), Some(best)) if best.since >= patience)
}
