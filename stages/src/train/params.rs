//! The params of a training: what may be asked, its defaults, and what cannot be. Knows no tensor and no file.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::batches::Augment;
use crate::job::bad;
use crate::method::{Counts, Extras, Method, Request};
use crate::models::{Model, ModelParams};
use crate::nn::gpu::Gpu;
use crate::optim::OptimizerParams;
use crate::schedule::Schedule;

/// `params` of kind train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    pub model: ModelParams,
    /// One of [`crate::method::METHODS`].
    pub method: String,
    /// The exponent of `T[k] = (n_max / n_k)^gamma`.
    #[serde(default)]
    pub gamma: f64,
    /// Temperatures by hand, by class (it-group: by group), instead of a gamma.
    #[serde(default)]
    pub temperatures: Option<Vec<f64>>,
    #[serde(default)]
    pub extras: Extras,
    /// The temperature warm-up of appendix E.1.
    #[serde(default)]
    pub warmup: Option<Warmup>,
    /// Deferred re-weighting: the classes are weighed in the last epochs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred: Option<Deferred>,
    /// What is trained.
    #[serde(default, skip_serializing_if = "Part::is_all")]
    pub part: Part,
    /// Passes over the training examples, the warm-up's included.
    pub epochs: u64,
    /// Examples a step; the last step of an epoch may have fewer.
    pub batch: usize,
    /// Cuts a batch in parts of so many examples whose gradients are added: less memory. Batch norm then sees the parts.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    pub optimizer: OptimizerParams,
    pub schedule: Schedule,
    /// The largest global norm of a step's gradient.
    #[serde(default)]
    pub clip: Option<f64>,
    #[serde(default)]
    pub augment: Augment,
    pub seed: u64,
    #[serde(default)]
    pub device: DeviceName,
    #[serde(default)]
    pub dtype: Precision,
    /// Steps between checkpoints; 0: only when asked to stop.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Epochs between measurements of the training and the validation set; 0: only after the last.
    #[serde(default)]
    pub metrics_every: u64,
    #[serde(default)]
    pub select: Select,
    /// Stops after so many measurements without a better one.
    #[serde(default)]
    pub patience: Option<u64>,
}

/// Where gamma is above `gamma`, the first `epochs` epochs use this one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    pub gamma: f64,
    pub epochs: u64,
}

/// From the epoch behind the first `epochs` on, each class has the weight of [`Method::reweighted`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deferred {
    pub epochs: u64,
    /// Of the effective number of examples; 1: the number itself.
    #[serde(default = "beta")]
    pub beta: f64,
}

fn beta() -> f64 {
    0.9999
}

/// Which of the model's parameters a training moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    #[default]
    All,
    /// The linear head on the features of the input `pretrained`, in eval mode: last-layer retraining (Kirichenko et al.
    /// 2023).
    LastLayer,
}

impl Part {
    fn is_all(&self) -> bool {
        *self == Part::All
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    #[default]
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// Float32 whose products round their factors to TF32.
    Tf32,
    /// Activations in bf16, weights and sums in float32.
    Bf16,
}

/// Errors: what this program lacks for a device and a type, and the cure.
pub fn available(device: DeviceName, dtype: Precision) -> Result<(), &'static str> {
    match (device, dtype) {
        (DeviceName::Cpu, Precision::Bf16) => {
            Err("dtype: bf16: there is no bf16 arithmetic on the cpu\nhint: set dtype: f32")
        }
        (DeviceName::Cpu, Precision::Tf32) => {
            Err("dtype: tf32: there is no TF32 arithmetic on the cpu\nhint: set dtype: f32")
        }
        (DeviceName::Cuda, _) if !cfg!(feature = "cuda") => {
            Err("device: cuda: this program was built without CUDA\n\
             hint: set device: cpu, for one run with -S device=cpu; or, on a machine with an NVIDIA GPU and its driver, \
             take the program of scripts/cuda_build.sh, with -S program=cuda")
        }
        _ => Ok(()),
    }
}

/// The model where it is to be trained.
///
/// Errors: `BadInput` for a device that is not there, a type that the model does not have.
pub fn place(model: Model, device: DeviceName, dtype: Precision) -> Result<Model> {
    match device {
        DeviceName::Cpu => Ok(model),
        DeviceName::Cuda => {
            let gpu = gpu(dtype).map_err(|e| bad(format!("params.{e:#}")))?;
            model.on(gpu).map_err(|e| bad(format!("params.{e:#}")))
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(dtype: Precision) -> Result<Arc<Gpu>> {
    use crate::nn::cuda::{Arithmetic, open};
    open(match dtype {
        Precision::F32 => Arithmetic::Float32,
        Precision::Tf32 => Arithmetic::Tf32,
        Precision::Bf16 => Arithmetic::Bf16,
    })
}

#[cfg(not(feature = "cuda"))]
fn gpu(dtype: Precision) -> Result<Arc<Gpu>> {
    available(DeviceName::Cuda, dtype).map_err(anyhow::Error::msg)?;
    anyhow::bail!("device: cuda: this program was built without CUDA")
}

/// Which epoch's weights are the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    #[default]
    Last,
    /// The first with the largest worst-group accuracy on the validation rows.
    BestValidationWorst,
    /// The first with the largest average accuracy on the validation rows.
    BestValidationAverage,
}

impl Params {
    /// What serde cannot see. Errors: `BadInput`, naming the field and the cure.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(bad(format!("params.{what}")));
        if self.epochs == 0 {
            return fail("epochs: 0: nothing would be trained".into());
        }
        if self.batch == 0 {
            return fail("batch: 0: must be at least 1".into());
        }
        if self.micro_batch == Some(0) {
            return fail("micro_batch: 0: must be at least 1".into());
        }
        if let Some(clip) = self.clip.filter(|c| !c.is_finite() || *c <= 0.0) {
            return fail(format!("clip: {clip}: must be finite and above 0\nhint: leave it out not to clip"));
        }
        self.schedule.check().map_err(|e| bad(format!("params.{e}")))?;
        if let Some(warmup) = self.warmup
            && self.warms_up()
            && warmup.epochs >= self.epochs
        {
            return fail(format!(
                "warmup.epochs: {} of {}: leaves no epoch at gamma {}\nhint: lower warmup.epochs",
                warmup.epochs, self.epochs, self.gamma
            ));
        }
        if let Some(deferred) = self.deferred.filter(|d| d.epochs >= self.epochs) {
            return fail(format!(
                "deferred.epochs: {} of {}: leaves no epoch for the weights\nhint: lower deferred.epochs",
                deferred.epochs, self.epochs
            ));
        }
        if self.select != Select::Last && self.metrics_every == 0 {
            return fail(
                "metrics_every: 0: a best epoch is chosen among measured ones\nhint: set it to 1".into(),
            );
        }
        if self.patience.is_some() && self.select == Select::Last {
            return fail("patience: select is `last`: nothing says which epoch is better".into());
        }
        if self.patience == Some(0) {
            return fail("patience: 0: must be at least 1".into());
        }
        available(self.device, self.dtype).map_err(|what| bad(format!("params.{what}")))
    }

    /// Whether the warm-up applies.
    pub fn warms_up(&self) -> bool {
        self.warmup.is_some_and(|w| w.epochs > 0 && self.gamma > w.gamma) && self.temperatures.is_none()
    }

    /// The method at its real gamma, at the warm-up's where it applies, and with the weights of `deferred`.
    ///
    /// Errors: `BadInput` as [`Method::new`] and [`Method::reweighted`].
    pub fn methods(&self, counts: &Counts) -> Result<Methods> {
        let told = |e: anyhow::Error| {
            let text = e.to_string();
            // What the examples lack is no param's fault.
            let of_data = text.starts_with("class ") || text.starts_with("group ");
            bad(format!("{}{text}", if of_data { "inputs.indices: " } else { "params." }))
        };
        let at = |gamma: f64| {
            let temperatures = self.temperatures.as_deref();
            let request = Request { name: &self.method, gamma, temperatures, extras: &self.extras };
            Method::new(request, counts).map_err(told)
        };
        let main = at(self.gamma)?;
        if self.micro_batch.is_some() && !main.adds_up() {
            return Err(bad(format!("params.micro_batch: the loss of {} joins a whole batch", self.method)));
        }
        let warm = self.warmup.filter(|_| self.warms_up()).map(|w| at(w.gamma)).transpose()?;
        let late = self.deferred.map(|d| main.reweighted(d.beta, counts).map_err(told)).transpose()?;
        Ok(Methods { main, warm, late })
    }

    /// Whether epoch `epoch` (the first is 0) belongs to the warm-up.
    pub fn warming(&self, epoch: u64) -> bool {
        self.warms_up() && self.warmup.is_some_and(|w| epoch < w.epochs)
    }
}

/// A method in the phases of a training.
pub struct Methods {
    pub main: Method,
    /// In the epochs of the warm-up.
    pub warm: Option<Method>,
    /// Behind the epochs of `deferred`.
    pub late: Option<Method>,
}

impl Methods {
    /// The one of an epoch (the first is 0).
    pub fn of(&mut self, params: &Params, epoch: u64) -> &mut Method {
        let late = params.deferred.is_some_and(|d| epoch >= d.epochs);
        match (&mut self.warm, &mut self.late) {
            (Some(warm), _) if params.warming(epoch) => warm,
            (_, Some(weighed)) if late => weighed,
            _ => &mut self.main,
        }
    }
}
