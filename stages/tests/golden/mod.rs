//! Reads the golden files that models.py (beside this file) makes, and fills a model with the same formula.
#![allow(dead_code)]

mod formula;

use candle_core::{DType, Device, Tensor, Var};
pub use formula::{fill, uniform};
use safetensors::SafeTensors;
use stages::models::{self, Model, ModelParams, Shape};
use stages::nn::cpu::{Cpu, Form, Isa};
use stages::rng::Stream;

/// Every path of the kernels that this processor has: each instruction set, with direct convolutions alone and with
/// Winograd's algorithm as models use it (by Form::Winograd it runs on one or three channels too, where nothing else would
/// use it and its error is larger).
pub fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    Isa::tested().unwrap().into_iter().flat_map(move |isa| {
        [Form::Direct, Form::Fastest].map(|form| Cpu::with_isa(isa, threads).unwrap().with_form(form))
    })
}

/// A model with the golden files' weights.
pub fn model(params: &str, shape: Shape, cpu: Cpu) -> Model {
    shifted(params, shape, cpu, 0.0)
}

/// With this `shift` of batch norms' biases, as in models.py.
pub fn shifted(params: &str, shape: Shape, cpu: Cpu, shift: f64) -> Model {
    let params: ModelParams = serde_json::from_str(params).unwrap();
    let model = models::build(&params, shape, cpu, &mut |name| Stream::new(0, name, 0, 0)).unwrap();
    for (name, var) in model.parameters().iter().chain(model.buffers()) {
        if var.dtype() == DType::F32 {
            set(var, fill(name, var.dims(), shift));
        }
    }
    model
}

pub fn set(var: &Var, values: Vec<f32>) {
    var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
}

/// As `images` in models.py: NHWC and labels.
pub fn images(name: &str, n: usize, shape: Shape) -> (Tensor, Vec<u32>) {
    let Shape { classes, channels, height, width } = shape;
    let values =
        uniform(name, n * height * width * channels).into_iter().map(|u| u as f32).collect::<Vec<_>>();
    let x = Tensor::from_vec(values, (n, height, width, channels), &Device::Cpu).unwrap();
    (x, (0..n).map(|i| (i * 7 % classes) as u32).collect())
}

/// As `sentences` in models.py: tokens and labels.
pub fn sentences(n: usize, length: usize, vocabulary: usize, classes: usize) -> (Tensor, Vec<u32>) {
    let tokens = formula::sentences(n, length, vocabulary);
    let tokens = Tensor::from_vec(tokens, (n, 3, length), &Device::Cpu).unwrap();
    (tokens, (0..n).map(|i| (i * 7 % classes) as u32).collect())
}

/// Mean cross-entropy.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Tensor {
    let labels = Tensor::new(labels, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let chosen = logits.gather(&labels, 1).unwrap().squeeze(1).unwrap();
    (logits.log_sum_exp(1).unwrap() - chosen).unwrap().mean_all().unwrap()
}

pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub fn distance(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - b)) / norm(&mut b.iter().copied())
}

/// The entries that models.py keeps.
pub fn entries(values: &[f32], keep: usize) -> Vec<f32> {
    values.iter().step_by(values.len().div_ceil(keep)).copied().collect()
}

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Golden {
        let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Golden(std::fs::read(path).unwrap())
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    pub fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|_| panic!("golden: {name} missing"));
        view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// How far a gradient may be from PyTorch's float64, relative to its norm.
#[derive(Clone, Copy)]
pub enum Limit {
    /// Twice PyTorch's own float32, and 1e-4: for small nets.
    Small,
    /// Twice PyTorch's own float32, where an error below 3e-6 (a lucky draw of many rounding errors in a row) counts as
    /// 3e-6.
    Smooth,
    /// 2e-2: for a deep net at inputs some of whose activations lie on a ReLU's corner. There one activation on the other
    /// side, which is chance, changes every gradient below it by up to 1e-2 (PyTorch's float32: 1.3e-2 in the wide
    /// ResNet-50); a wrong layer changes it by more than its size. The same net is held to `Smooth` at inputs whose activations are apart from the corner.
    Corner,
}

impl Golden {
    /// `images` of the name that models.py found to be apart from every corner.
    pub fn images(&self, n: usize, shape: Shape) -> (Tensor, Vec<u32>) {
        match self.get("input")[0] as usize {
            0 => images("images", n, shape),
            number => images(&format!("images{number}"), n, shape),
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Logits in both modes and loss (to 1e-5), every gradient and the running statistics of `model` against a golden file.
pub fn check(title: &str, model: &Model, x: &Tensor, labels: &[u32], limit: Limit) {
    let golden = Golden::open(title);
    let keep = golden.get("entries")[0] as usize;
    let evaluated = model.forward(x, false).unwrap();
    let error = distance(&flat(&evaluated), &golden.get("eval"));
    assert!(error <= 1e-5, "logits in evaluation mode: {error:.1e}");
    let logits = model.forward(x, true).unwrap();
    let error = distance(&flat(&logits), &golden.get("train"));
    assert!(error <= 1e-5, "logits in training mode: {error:.1e}");
    let loss = cross_entropy(&logits, labels);
    let error = distance(&[loss.to_scalar::<f32>().unwrap()], &golden.get("loss"));
    assert!(error <= 1e-5, "loss: {error:.1e}");
    let gradients = model.backward(&loss).unwrap();
    let (mut wrong, mut ratios) = (vec![], vec![]);
    for (name, var) in model.parameters() {
        let gradient = flat(gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient")));
        assert!(gradient.iter().any(|g| *g != 0.0), "{name}: a zero gradient");
        if !golden.has(&format!("gradient/{name}")) {
            // Zero by symmetry (models.py says why): small beside its neighbour's.
            let other = match name.ends_with("key.bias") {
                true => name.replace("key", "query"),
                false => name.replace("bias", "weight"),
            };
            let (_, other) = model.parameters().iter().find(|(n, _)| *n == other).unwrap();
            let kept = |gradient: &[f32]| norm(&entries(gradient, keep));
            let (ours, other) = (kept(&gradient), kept(&flat(gradients.get(other).unwrap())));
            assert!(ours <= 1e-5 * other, "{name}: {ours:.1e} against {other:.1e}");
            continue;
        }
        let table = name.contains("embeddings") && var.rank() == 2;
        let gradient = if table { flat(&gradients.get(var).unwrap().sum(0).unwrap()) } else { gradient };
        let error = distance(&entries(&gradient, keep), &golden.get(&format!("gradient/{name}")));
        let torch = golden.get(&format!("error/gradient/{name}"))[0];
        let bound = match limit {
            Limit::Small => (2.0 * torch).min(1e-4),
            Limit::Smooth => 2.0 * torch.max(3e-6),
            Limit::Corner => 2e-2,
        };
        ratios.push((error / torch, name));
        if error > bound {
            wrong.push(format!("{name}: {error:.2e}, PyTorch's float32 {torch:.2e}"));
        }
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let above = ratios.iter().filter(|(ratio, _)| *ratio > 2.0).count();
    if let Some((ratio, name)) = ratios.last() {
        let middle = ratios[ratios.len() / 2].0;
        println!(
            "{title}: error over that of PyTorch's float32: median {middle:.2}, largest {ratio:.2} ({name}), above 2: {above} of {}",
            ratios.len()
        );
    }
    assert!(wrong.is_empty(), "gradients:\n{}", wrong.join("\n"));
    for (name, var) in model.buffers() {
        if var.dtype() == DType::F32 {
            let error = distance(&entries(&flat(var), keep), &golden.get(&format!("buffer/{name}")));
            assert!(error <= 1e-5, "{name}: {error:.1e}");
        }
    }
}

/// Logits in evaluation mode against candle-transformers' (golden/candle/main.rs).
pub fn check_candle(name: &str, model: &Model, x: &Tensor) {
    let error = distance(&flat(&model.forward(x, false).unwrap()), &Golden::open("candle").get(name));
    assert!(error <= 1e-5, "{name}: logits {error:.1e} from candle-transformers'");
}
