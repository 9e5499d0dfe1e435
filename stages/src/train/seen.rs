//! What a training saw of its batches and has not counted yet. On the CPU each step is counted at once; on a GPU, whose
//! results the host would have to wait for, many together. Knows tensors and counters; knows no model.

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::state::State;

/// Steps that are counted together on a GPU. Their logits stay there that long.
const TOGETHER: usize = 64;

/// A batch, or a part of one, as it was seen.
pub struct Part<'a> {
    /// Its share of the step's loss.
    pub loss: Tensor,
    pub logits: Tensor,
    /// As the loss saw them.
    pub shaped: Tensor,
    pub labels: &'a [u32],
    pub groups: &'a [u32],
}

struct Kept {
    loss: Tensor,
    logits: Tensor,
    shaped: Tensor,
    labels: Vec<u32>,
    groups: Vec<u32>,
}

struct Step {
    number: u64,
    rate: f64,
    parts: Vec<Kept>,
}

pub struct Seen {
    together: usize,
    steps: Vec<Step>,
}

impl Seen {
    pub fn new(on_gpu: bool) -> Seen {
        Seen { together: if on_gpu { TOGETHER } else { 1 }, steps: Vec::new() }
    }

    /// The parts that follow belong to this step, counted from 0.
    pub fn begin(&mut self, number: u64, rate: f64) {
        self.steps.push(Step { number, rate, parts: Vec::new() });
    }

    pub fn add(&mut self, part: Part<'_>) {
        let Part { loss, logits, shaped, labels, groups } = part;
        let (labels, groups) = (labels.to_vec(), groups.to_vec());
        if let Some(step) = self.steps.last_mut() {
            step.parts.push(Kept { loss, logits, shaped, labels, groups });
        }
    }

    /// Steps that are not counted.
    pub fn steps(&self) -> u64 {
        self.steps.len() as u64
    }

    pub fn is_due(&self) -> bool {
        self.steps.len() >= self.together
    }

    /// Counts them: the epoch's losses and predictions so far.
    ///
    /// Errors: a loss that is not finite.
    pub fn count(&mut self, state: &mut State, per_epoch: u64) -> Result<()> {
        for Step { number, rate, parts } in self.steps.drain(..) {
            let mut total = 0.0;
            for part in parts {
                let loss = f64::from(part.loss.to_scalar::<f32>()?);
                total += loss;
                if !loss.is_finite() {
                    bail!(
                        "step {} (epoch {}): the loss is {loss}\n\
                         hint: lower schedule.rate ({rate} here), set clip, or take temperatures nearer to 1",
                        number + 1,
                        number / per_epoch + 1
                    );
                }
                let classes = part.logits.dim(1)?;
                let (logits, shaped) = (host(&part.logits)?, host(&part.shaped)?);
                state.running.add(&logits, &shaped, &part.labels, &part.groups, classes);
            }
            state.loss += total;
        }
        Ok(())
    }
}

/// A tensor's numbers.
pub fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
