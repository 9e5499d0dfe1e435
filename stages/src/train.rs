//! train: arrays, indices and params -> weights and how they came to be. Reads top to bottom; a method differs from
//! another in its loss alone. Knows no evaluation on the test rows.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::batches::{Batch, Pixels, Source};
use crate::checkpoint;
use crate::data::Examples;
use crate::data::indices::Indices;
use crate::job::{self, Checkpointed, Job, bad};
use crate::method::{Counts, Method};
use crate::models::{self, Model, Shape};
use crate::nn::cpu::Cpu;
use crate::optim::{Optimizer, clip_scale, global_norm};
use crate::rng::Stream;
use crate::scores::{Groups, Scores, Summary};

mod params;
pub use params::{DeviceName, Params, Precision, Select, Warmup};

/// Examples a forward pass of a measurement.
const MEASURE_BATCH: usize = 256;

/// At least this long between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Where a training stands, beside the tensors: all of it is in the checkpoint.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Of params and rows: a checkpoint of another training is not taken up.
    fingerprint: String,
    epoch: u64,
    /// Steps made in this epoch.
    step: u64,
    optimizer_steps: u64,
    /// What the method remembers: group DRO's weights.
    method: Vec<f64>,
    /// Of this epoch's batches, as the training saw them.
    running: Scores,
    /// Σ of this epoch's batch losses.
    loss: f64,
    /// The lines of `epochs.jsonl` so far.
    history: Vec<String>,
    best: Option<Best>,
    /// The mean batch loss of the last finished epoch.
    last_loss: f64,
}

/// The best measured epoch.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    epoch: u64,
    value: f64,
    /// Measurements since.
    since: u64,
}

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

/// Reads inputs `data` and `indices`; writes `weights.safetensors`, `train.json`, `epochs.jsonl`.
///
/// Errors: `BadInput` for params that cannot be; a loss that is not finite; `Checkpointed` after SIGTERM.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    params.check()?;
    let examples = Examples::open(&job.input("data")?)?;
    let indices = Indices::open(&job.input("indices")?, &examples)?;
    let counts = count(&examples, &indices.train)?;
    let (mut method, mut warm) = params.methods(&counts)?;
    if params.select != Select::Last && indices.validation.is_empty() {
        return Err(bad(
            "params.select: there are no validation rows to choose by\nhint: raise subsample's \
                        validation_per_class, or set select: last",
        ));
    }
    let meta = examples.meta();
    let shape = Shape {
        classes: meta.classes.len(),
        channels: meta.channels,
        height: meta.height,
        width: meta.width,
    };
    let model = models::build(&params.model, shape, Cpu::new(job.threads())?, &mut |name| {
        Stream::new(params.seed, &format!("init/{name}"), 0, 0)
    })
    .map_err(|e| bad(format!("params.{e:#}")))?;
    let mut optimizer =
        Optimizer::new(&params.optimizer, model.parameters()).map_err(|e| bad(format!("params.{e:#}")))?;

    let groups = Groups {
        classes: meta.classes.len(),
        n_attributes: meta.n_attributes as usize,
        train: counts.group.clone(),
    };
    let pixels = Pixels::new(meta);
    let sampler = method.sampler.clone();
    let source = Source {
        examples: &examples,
        rows: &indices.train,
        pixels: &pixels,
        augment: params.augment,
        sampler: &sampler,
        seed: params.seed,
        batch: params.batch,
    };
    let per_epoch = source.steps();
    let total = per_epoch * params.epochs;
    let measure = |method: &Method, rows: &[u32]| -> Result<Summary> {
        let summary = measure(&model, method, &examples, rows, &pixels, groups.classes)?.summary(&groups);
        if !summary.loss_raw.is_finite() {
            bail!("the trained model's logits are not finite\nhint: lower schedule.rate, or set clip");
        }
        Ok(summary)
    };

    let path = checkpoint::path(job.scratch());
    let mut best_weights = Vec::new();
    let mut state = State {
        fingerprint: fingerprint(&params, &examples, &indices)?,
        epoch: 0,
        step: 0,
        optimizer_steps: 0,
        method: method.state().to_vec(),
        running: Scores::new(counts.group.len()),
        loss: 0.0,
        history: Vec::new(),
        best: None,
        last_loss: 0.0,
    };
    match checkpoint::load::<State>(&path) {
        Ok(None) => {}
        Ok(Some(saved)) => {
            if saved.state.fingerprint != state.fingerprint {
                bail!("{}: a checkpoint of another training\nhint: remove it", path.display());
            }
            let find = |kind: &str, name: &str| -> Result<Tensor> {
                let name = format!("{kind}/{name}");
                saved.tensors.get(&name).cloned().with_context(|| format!("checkpoint: {name}: missing"))
            };
            for (name, var) in model.parameters().iter().chain(model.buffers()) {
                var.set(&find("model", name)?).with_context(|| format!("checkpoint: {name}"))?;
            }
            optimizer.restore(saved.state.optimizer_steps, |name| find("optimizer", name))?;
            method.restore(&saved.state.method)?;
            if saved.state.best.is_some() {
                for (name, _) in model.parameters().iter().chain(model.buffers()) {
                    best_weights.push((name.clone(), find("best", name)?));
                }
            }
            state = saved.state;
            eprintln!("resumed at epoch {} step {}", state.epoch + 1, state.step);
        }
        Err(error) => eprintln!("{}: {error:#}: ignored, starting anew", path.display()),
    }

    let mut clock = Clock::new(state.epoch * per_epoch + state.step, total);
    let mut measured: Option<Measured> = None;
    std::thread::scope(|scope| -> Result<()> {
        let batches = source.ahead(scope, state.epoch, state.step, params.epochs);
        while state.epoch < params.epochs && !out_of_patience(&params, &state) {
            let warming = warm.is_some() && params.warmup.is_some_and(|w| state.epoch < w.epochs);
            let now = if warming { warm.as_mut().unwrap_or(&mut method) } else { &mut method };
            while state.step < per_epoch {
                let waiting = Instant::now();
                let batch = batches.recv().context("the batches ended early")??;
                clock.waited(waiting.elapsed());
                let step = state.epoch * per_epoch + state.step;
                let rate = params.schedule.rate(step, per_epoch, total);

                let (loss, gradients) =
                    gradients(&model, &optimizer, now, &batch, &params, &mut state.running)?;
                if !loss.is_finite() {
                    bail!(
                        "step {} (epoch {}): the loss is {loss}\n\
                         hint: lower schedule.rate ({rate} here), set clip, or take temperatures nearer to 1",
                        step + 1,
                        state.epoch + 1
                    );
                }
                let scale = match params.clip {
                    Some(most) => clip_scale(global_norm(&gradients)?, most),
                    None => 1.0,
                };
                optimizer.step(&gradients, rate, scale)?;

                state.loss += loss;
                state.step += 1;
                clock.step(&state, &params, batch.labels.len(), measured.as_ref());
                let stop = job::stop_requested();
                if stop || (params.checkpoint_every > 0 && (step + 1).is_multiple_of(params.checkpoint_every))
                {
                    state.optimizer_steps = optimizer.steps();
                    state.method = now.state().to_vec();
                    save(&path, &model, &optimizer, &best_weights, &state)?;
                }
                if stop {
                    return Err(Checkpointed.into());
                }
            }

            let done = state.epoch + 1;
            state.last_loss = state.loss / per_epoch as f64;
            let due = params.metrics_every > 0 && done.is_multiple_of(params.metrics_every);
            measured = None;
            if due || done == params.epochs {
                let validation = if indices.validation.is_empty() {
                    None
                } else {
                    Some(measure(now, &indices.validation)?)
                };
                measured = Some((measure(now, &indices.train)?, validation));
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

    let mut selected = state.epoch;
    if let Some(best) = state.best {
        selected = best.epoch;
        for ((_, var), (_, value)) in model.parameters().iter().chain(model.buffers()).zip(&best_weights) {
            var.set(value)?;
        }
        measured = None;
    }
    let (train, validation) = match measured {
        Some(measured) => measured,
        None => {
            let validation = indices.validation.as_slice();
            let validation = if validation.is_empty() { None } else { Some(measure(&method, validation)?) };
            (measure(&method, &indices.train)?, validation)
        }
    };
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

/// One batch forward and backward: its loss and the parameters' gradients. Counts its predictions.
fn gradients(
    model: &Model,
    optimizer: &Optimizer,
    method: &mut Method,
    batch: &Batch,
    params: &Params,
    running: &mut Scores,
) -> Result<(f64, Vec<Tensor>)> {
    let n = batch.labels.len();
    let part = params.micro_batch.unwrap_or(n).min(n);
    let (mut total, mut sum) = (0.0, Vec::new());
    for from in (0..n).step_by(part.max(1)) {
        let size = part.min(n - from);
        let (labels, groups) = (&batch.labels[from..from + size], &batch.groups[from..from + size]);
        let logits = model.forward(&batch.images.narrow(0, from, size)?, true)?;
        count_predictions(running, method, &logits.detach(), labels, groups)?;
        let share = size as f64 / n as f64;
        let loss = method.loss(&logits, labels, groups)?;
        let loss = if size == n { loss } else { (loss * share)? };
        let value = f64::from(loss.to_scalar::<f32>()?);
        total += value;
        if !value.is_finite() {
            return Ok((value, Vec::new()));
        }
        let gradients = optimizer.gradients(&mut loss.backward()?)?;
        sum = match sum.is_empty() {
            true => gradients,
            false => sum.iter().zip(&gradients).map(|(a, b)| Ok((a + b)?)).collect::<Result<_>>()?,
        };
    }
    Ok((total, sum))
}

/// The figures of the given rows, in eval mode.
fn measure(
    model: &Model,
    method: &Method,
    examples: &Examples,
    rows: &[u32],
    pixels: &Pixels,
    classes: usize,
) -> Result<Scores> {
    let mut scores = Scores::new(classes * examples.meta().n_attributes as usize);
    for rows in rows.chunks(MEASURE_BATCH) {
        let logits = model.forward(&pixels.tensor(examples, rows)?, false)?.detach();
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
    let host = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
    let shaped = host(&method.shaped(logits, labels, groups)?)?;
    scores.add(&host(logits)?, &shaped, labels, groups, logits.dim(1)?);
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

/// A copy of the weights that later steps do not touch.
fn copy(model: &Model) -> Result<Vec<(String, Tensor)>> {
    let all = model.parameters().iter().chain(model.buffers());
    all.map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?))).collect()
}

fn save(
    path: &std::path::Path,
    model: &Model,
    optimizer: &Optimizer,
    best: &[(String, Tensor)],
    state: &State,
) -> Result<()> {
    let named = |kind: &str, name: &str, t: Tensor| (format!("{kind}/{name}"), t);
    let mut tensors = Vec::new();
    for (name, var) in model.parameters().iter().chain(model.buffers()) {
        tensors.push(named("model", name, var.as_detached_tensor()));
    }
    tensors.extend(optimizer.state().into_iter().map(|(name, t)| named("optimizer", &name, t)));
    tensors.extend(best.iter().map(|(name, t)| named("best", name, t.clone())));
    checkpoint::save(path, &tensors, state)
}

/// A digest of what decides a training: the params and the rows with their labels and groups.
fn fingerprint(params: &Params, examples: &Examples, indices: &Indices) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(job::canonical(params)?.as_bytes());
    for rows in [&indices.train, &indices.validation] {
        hasher.update(&(rows.len() as u64).to_le_bytes());
        for &row in rows {
            hasher.update(&row.to_le_bytes());
            hasher.update(&examples.group(row as usize).to_le_bytes());
            hasher.update(examples.image(row as usize));
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Speed and what is left; nothing of it reaches the output.
struct Clock {
    started: Instant,
    printed: Option<Instant>,
    waited: Duration,
    images: usize,
    steps: u64,
    done: u64,
    total: u64,
    worst: Option<f64>,
}

impl Clock {
    fn new(done: u64, total: u64) -> Clock {
        let started = Instant::now();
        Clock {
            started,
            printed: None,
            waited: Duration::ZERO,
            images: 0,
            steps: 0,
            done,
            total,
            worst: None,
        }
    }

    fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Counts a step and prints a line of progress from time to time.
    fn step(&mut self, state: &State, params: &Params, images: usize, measured: Option<&Measured>) {
        self.images += images;
        self.steps += 1;
        if let Some((train, validation)) = measured {
            self.worst = Some(validation.as_ref().unwrap_or(train).worst_group_accuracy);
        }
        let last = self.done + self.steps == self.total;
        if !last && self.printed.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        self.printed = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let left = seconds / self.steps as f64 * (self.total - self.done - self.steps) as f64;
        let worst = self.worst.map(|w| format!(" worst {w:.3}")).unwrap_or_default();
        let note = format!(
            "epoch {}/{} loss {:.4}{worst} {:.0} images/s data wait {:.0}% {:.0} s left",
            state.epoch + 1,
            params.epochs,
            state.loss / state.step as f64,
            self.images as f64 / seconds,
            100.0 * self.waited.as_secs_f64() / seconds,
            left
        );
        job::progress(self.done + self.steps, self.total, note);
    }
}
