//! `stages check cuda`: whether this machine's GPU computes what the CPU does, and the same bits every time. One JSON line
//! a model and arithmetic, exit code 1 where one does not hold. Knows no data set; enters no result.

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::job::bad;
use crate::loss;
use crate::models::{self, Model, ModelParams, Shape};
use crate::nn::cpu::Cpu;
use crate::optim::{Optimizer, OptimizerParams};
use crate::rng::Stream;
use crate::train::{DeviceName, Precision, available, place};

/// What float32 may differ by, relative to the norm of the CPU's.
const LIMIT: f64 = 1e-3;

/// For gradients below many ReLUs: an activation so near its corner that rounding decides the side changes all of them.
const DEEP: f64 = 2e-2;

const STEPS: u64 = 5;
const RUNS: usize = 3;

struct Case {
    name: &'static str,
    params: Value,
    /// Side of the images.
    image: usize,
    /// Tokens of the texts.
    sequence: usize,
    batch: usize,
    /// The limit of its gradients.
    limit: f64,
}

fn cases() -> Vec<Case> {
    let case = |name, params, image, batch, limit| Case { name, params, image, sequence: 0, batch, limit };
    let text = |name, sizes: Value, batch| Case {
        sequence: 64,
        ..case(name, json!({"family": "bert", "sizes": sizes}), 0, batch, LIMIT)
    };
    vec![
        case("linear", json!({"family": "linear"}), 32, 32, LIMIT),
        case("mlp", json!({"family": "mlp"}), 32, 32, LIMIT),
        case("resnet8", json!({"family": "resnet-cifar", "depth": 8}), 32, 32, LIMIT),
        case("resnet32", json!({"family": "resnet-cifar", "depth": 32}), 32, 32, DEEP),
        case("resnet32b", json!({"family": "resnet-cifar", "depth": 32, "shortcut": "B"}), 31, 17, DEEP),
        case("resnet10", json!({"family": "resnet10", "width": 20}), 64, 16, LIMIT),
        case("resnet50", json!({"family": "resnet50"}), 64, 16, DEEP),
        case("wide-resnet50", json!({"family": "wide-resnet50"}), 64, 8, DEEP),
        text(
            "minilm",
            json!({"hidden": 384, "layers": 6, "intermediate": 1536, "dropout": 0, "attention_dropout": 0}),
            8,
        ),
        text("bert-base", json!({"dropout": 0, "attention_dropout": 0}), 4),
        text("bert-base with dropout", json!({}), 4),
    ]
}

/// A model, what it is given and its optimiser.
struct Ready {
    model: Model,
    optimizer: Optimizer,
    x: Tensor,
    labels: Vec<u32>,
}

impl Case {
    fn ready(&self, device: DeviceName, dtype: Precision) -> Result<Ready> {
        let params: ModelParams = serde_json::from_value(self.params.clone())?;
        let shape = Shape { classes: 10, channels: 3, height: self.image, width: self.image };
        let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from))?;
        let model = models::build(&params, shape, cpu, &mut |name| Stream::new(0, name, 0, 0))?;
        let model = place(model, device, dtype)?;
        let optimizer = match self.sequence {
            0 => json!({"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4}),
            _ => json!({"name": "adamw", "weight_decay": 0.01}),
        };
        let optimizer: OptimizerParams = serde_json::from_value(optimizer)?;
        let optimizer = Optimizer::new(&optimizer, model.parameters())?.on(model.gpu().cloned());
        let mut stream = Stream::new(0, "check", 0, 0);
        let n = self.batch;
        let x = if self.sequence > 0 {
            let mut tokens = vec![];
            for example in 0..n {
                // Padding, two segments and words that stand more than once.
                let length = self.sequence - example;
                tokens.extend((0..self.sequence).map(|_| stream.below(1000) as u32));
                tokens.extend((0..self.sequence).map(|place| u32::from(place > length / 2)));
                tokens.extend((0..self.sequence).map(|place| u32::from(place < length)));
            }
            Tensor::from_vec(tokens, (n, 3, self.sequence), &Device::Cpu)?
        } else {
            let values = stream.normals(n * self.image * self.image * 3, 0.0, 1.0);
            Tensor::from_vec(values, (n, self.image, self.image, 3), &Device::Cpu)?
        };
        let labels = (0..n).map(|i| (i * 7 % 10) as u32).collect();
        Ok(Ready { model, optimizer, x, labels })
    }
}

impl Ready {
    /// One clipped step: its loss and gradients.
    fn step(&mut self, number: u64) -> Result<(Tensor, Vec<Tensor>)> {
        self.model.set_step(0, number);
        let logits = self.model.forward(&self.x, true)?;
        let loss = loss::cross_entropy(&logits, &self.labels)?.mean_all()?;
        let gradients = self.optimizer.gradients(&mut self.model.backward(&loss)?)?;
        self.optimizer.step_clipped(&gradients, 0.01, Some(1.0))?;
        Ok((loss.detach(), gradients))
    }

    /// All float32 parameters and buffers.
    fn weights(&self) -> Result<Vec<Tensor>> {
        let all = self.model.parameters().iter().chain(self.model.buffers());
        let floats = all.filter(|(_, var)| var.dtype() == DType::F32);
        floats.map(|(_, var)| Ok(var.as_detached_tensor().copy()?)).collect()
    }
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// ‖a − b‖ / ‖b‖ over all tensors together.
fn distance(a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let (mut apart, mut whole) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        for (a, b) in host(a)?.into_iter().zip(host(b)?) {
            apart += (f64::from(a) - f64::from(b)).powi(2);
            whole += f64::from(b).powi(2);
        }
    }
    Ok((apart / whole).sqrt())
}

/// The word after `check`: `cuda`.
///
/// Errors: `BadInput` where there is no GPU; a model that does not do what the CPU does.
pub fn run(words: &[String]) -> Result<()> {
    if words != ["cuda"] {
        return Err(bad("usage: stages check cuda"));
    }
    available(DeviceName::Cuda, Precision::F32).map_err(bad)?;
    let mut wrong = vec![];
    for case in cases() {
        let dropout = case.name.ends_with("dropout");
        if !dropout {
            let line = against_the_cpu(&case)?;
            if line["holds"] != true {
                wrong.push(format!("{}: differs from the CPU", case.name));
            }
            println!("{line}");
        }
        for dtype in [Precision::F32, Precision::Bf16] {
            if dtype == Precision::Bf16 && ["linear", "mlp"].contains(&case.name) {
                continue;
            }
            let (same, loss) = repeated(&case, dtype)?;
            println!(
                "{}",
                json!({"model": case.name, "dtype": dtype, "runs": RUNS, "steps": STEPS, "same_bits": same, "loss": loss})
            );
            if !same {
                wrong.push(format!("{} {dtype:?}: other bits in another run", case.name));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// One step in float32 on both.
fn against_the_cpu(case: &Case) -> Result<Value> {
    let mut cpu = case.ready(DeviceName::Cpu, Precision::F32)?;
    let mut gpu = case.ready(DeviceName::Cuda, Precision::F32)?;
    let evaluation = |ready: &Ready| ready.model.forward(&ready.x, false);
    let before = distance(&[evaluation(&gpu)?], &[evaluation(&cpu)?])?;
    let ((cpu_loss, cpu_gradients), (gpu_loss, gpu_gradients)) = (cpu.step(0)?, gpu.step(0)?);
    let loss = distance(&[gpu_loss], &[cpu_loss])?;
    let gradients = distance(&gpu_gradients, &cpu_gradients)?;
    let weights = distance(&gpu.weights()?, &cpu.weights()?)?;
    let after = distance(&[evaluation(&gpu)?], &[evaluation(&cpu)?])?;
    let holds = before <= LIMIT && loss <= LIMIT && weights <= LIMIT && gradients <= case.limit;
    Ok(json!({"model": case.name, "dtype": "f32", "evaluation": before, "loss": loss, "gradients": gradients,
        "weights": weights, "evaluation_after": after, "limit": LIMIT, "limit_of_gradients": case.limit, "holds": holds}))
}

/// Whether several runs of some steps end in the same bits; and the last loss.
fn repeated(case: &Case, dtype: Precision) -> Result<(bool, f32)> {
    let mut first: Option<Vec<Vec<u32>>> = None;
    let (mut same, mut last) = (true, 0.0);
    for _ in 0..RUNS {
        let mut ready = case.ready(DeviceName::Cuda, dtype)?;
        for number in 0..STEPS {
            last = ready.step(number)?.0.to_scalar::<f32>()?;
        }
        let bits = |t: &Tensor| -> Result<Vec<u32>> { Ok(host(t)?.iter().map(|v| v.to_bits()).collect()) };
        let bits = ready.weights()?.iter().map(bits).collect::<Result<Vec<_>>>()?;
        match &first {
            Some(first) => same &= *first == bits,
            None => first = Some(bits),
        }
    }
    Ok((same, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_it_says_what_is_missing_and_the_cure() {
        let said = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            run(&words).unwrap_err().to_string()
        };
        assert_eq!(said(&[]), "usage: stages check cuda");
        if !cfg!(feature = "cuda") {
            let text = said(&["cuda"]);
            assert!(text.starts_with("device: cuda: this program was built without CUDA\nhint: "), "{text}");
            assert!(text.contains("scripts/cuda_build.sh"), "{text}");
        }
    }
}
