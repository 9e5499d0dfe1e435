//! The GPU's networks and kernels without a GPU: the same calls and the same kernels, compiled for the processor
//! (support/emulated.rs), against PyTorch's float64 and against the CPU's own kernels. What this cannot show is the
//! engine's use of cuBLAS and cuDNN: `stages check cuda` does, on a GPU.

#[path = "support/emulated.rs"]
mod emulated;
mod golden;

use candle_core::{D, DType, Device, Tensor, Var};
use golden::{Limit, cross_entropy, distance, flat, images, sentences};
use serde_json::json;
use stages::models::{Model, Shape};
use stages::nn::cpu::Cpu;
use stages::optim::{Optimizer, OptimizerParams, clip_scale, global_norm};

const SMALL: Shape = Shape { classes: 10, channels: 3, height: 16, width: 16 };
const ODD: Shape = Shape { classes: 5, channels: 1, height: 13, width: 11 };
const COLOUR: Shape = Shape { classes: 7, channels: 3, height: 37, width: 35 };

fn model(params: &str, shape: Shape) -> Model {
    golden::model(params, shape, Cpu::new(2).unwrap())
}

/// A BERT of two layers with this dropout.
fn bert(dropout: f64) -> Model {
    let params = json!({"family": "bert", "sizes": {"vocabulary": 50, "hidden": 24, "layers": 2, "heads": 3,
        "intermediate": 40, "positions": 16, "dropout": dropout, "attention_dropout": dropout}});
    model(&params.to_string(), Shape { classes: 3, channels: 0, height: 0, width: 0 })
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    flat(tensor).into_iter().map(f64::from).collect()
}

#[test]
fn a_resnet_equals_pytorch() {
    let on_gpu = model(r#"{"family":"resnet-cifar","depth":8}"#, SMALL).on(emulated::gpu(false)).unwrap();
    let (x, labels) = images("images", 6, SMALL);
    golden::check("resnet8a", &on_gpu, &x, &labels, Limit::Small);
}

#[test]
fn a_resnet_with_projections_on_odd_images_equals_pytorch() {
    let params = r#"{"family":"resnet-cifar","depth":8,"shortcut":"B"}"#;
    let on_gpu = model(params, ODD).on(emulated::gpu(false)).unwrap();
    let (x, labels) = images("images", 5, ODD);
    golden::check("resnet8b", &on_gpu, &x, &labels, Limit::Small);
}

#[test]
fn a_small_bert_equals_pytorch() {
    let params = r#"{"family":"bert","sizes":{"vocabulary":60,"hidden":48,"layers":2,"heads":4,"intermediate":80,
        "positions":20,"dropout":0,"attention_dropout":0}}"#;
    let on_gpu = model(params, Shape { classes: 3, channels: 1, height: 1, width: 1 });
    let on_gpu = on_gpu.on(emulated::gpu(false)).unwrap();
    let (tokens, labels) = sentences(4, 18, 60, 3);
    golden::check("bert", &on_gpu, &tokens, &labels, Limit::Small);
    golden::check_candle("bert", &on_gpu, &tokens);
}

/// Logits of both modes, gradients, running statistics and weights after so many steps with clipping: as on the CPU.
fn as_on_the_cpu(
    make: &dyn Fn() -> Model,
    x: &Tensor,
    labels: &[u32],
    steps: u64,
    optimizer: serde_json::Value,
) {
    let params: OptimizerParams = serde_json::from_value(optimizer).unwrap();
    let run = |model: Model| -> Vec<(String, Vec<f32>)> {
        let mut optimizer = Optimizer::new(&params, model.parameters()).unwrap().on(model.gpu().cloned());
        let mut all = vec![];
        for step in 0..steps {
            model.set_step(1, step);
            let logits = model.forward(x, true).unwrap();
            all.push((format!("logits {step}"), flat(&logits)));
            let loss = cross_entropy(&logits, labels);
            let gradients = optimizer.gradients(&mut model.backward(&loss).unwrap()).unwrap();
            for ((name, _), gradient) in model.parameters().iter().zip(&gradients) {
                // Zero by symmetry: rounding errors alone.
                if !name.ends_with("key.bias") {
                    all.push((format!("gradient {step} {name}"), flat(gradient)));
                }
            }
            let norm = global_norm(&gradients).unwrap();
            assert!(clip_scale(norm, 0.5) < 1.0, "{norm}: nothing is clipped");
            optimizer.step_clipped(&gradients, 0.05, Some(0.5)).unwrap();
        }
        for (name, var) in model.parameters().iter().chain(model.buffers()) {
            if var.dtype() == DType::F32 && !name.ends_with("key.bias") {
                all.push((name.clone(), flat(var)));
            }
        }
        all.push(("evaluation".into(), flat(&model.forward(x, false).unwrap())));
        all
    };
    let (cpu, gpu) = (run(make()), run(make().on(emulated::gpu(false)).unwrap()));
    for ((name, cpu), (_, gpu)) in cpu.iter().zip(&gpu) {
        let cpu: Vec<f64> = cpu.iter().copied().map(f64::from).collect();
        let error = distance(gpu, &cpu);
        assert!(error <= 1e-3 || cpu.iter().all(|v| v.abs() < 1e-7), "{name}: {error:.1e}");
    }
}

#[test]
fn steps_of_a_net_with_the_imagenet_stem_equal_the_cpus() {
    let make = || model(r#"{"family":"resnet10","width":6}"#, COLOUR);
    let (x, labels) = images("images", 3, COLOUR);
    let sgd = json!({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "nesterov": true});
    as_on_the_cpu(&make, &x, &labels, 2, sgd);
}

#[test]
fn steps_of_a_bottleneck_net_equal_the_cpus() {
    let small = Shape { height: 20, width: 18, ..COLOUR };
    let make = || model(r#"{"family":"resnet50","width":2}"#, small);
    // With three examples the last norms divide by the spread of three numbers, which makes 3e-2 of a rounding error.
    let (x, labels) = images("images", 8, small);
    as_on_the_cpu(&make, &x, &labels, 2, json!({"name": "sgd"}));
}

#[test]
fn steps_of_a_bert_equal_the_cpus() {
    let (x, labels) = sentences(4, 9, 50, 3);
    let adamw = json!({"name": "adamw", "weight_decay": 0.01});
    as_on_the_cpu(&|| bert(0.0), &x, &labels, 2, adamw);
}

#[test]
fn steps_of_a_perceptron_equal_the_cpus() {
    let make = || model(r#"{"family":"mlp","hidden":[9,8]}"#, ODD);
    let (x, labels) = images("images", 5, ODD);
    as_on_the_cpu(&make, &x, &labels, 2, json!({"name": "sgd", "momentum": 0.5}));
}

/// The directional derivative of the loss with fixed dropout masks, by the gradient and by differences.
#[test]
fn dropout_has_the_gradient_of_its_masks() {
    let on_gpu = bert(0.2).on(emulated::gpu(false)).unwrap();
    let (x, labels) = sentences(4, 9, 50, 3);
    let loss = |step: u64| {
        on_gpu.set_step(5, step);
        cross_entropy(&on_gpu.forward(&x, true).unwrap(), &labels)
    };
    let value = |step: u64| f64::from(loss(step).to_scalar::<f32>().unwrap());
    assert_eq!(value(0), value(0));
    assert_ne!(value(0), value(1));
    let gradients = on_gpu.backward(&loss(0)).unwrap();
    let along: Vec<(&Var, Tensor)> = on_gpu
        .parameters()
        .iter()
        .map(|(_, var)| (var, gradients.get(var).unwrap().copy().unwrap()))
        .collect();
    let square: f64 = along.iter().flat_map(|(_, g)| doubles(g)).map(|g| g * g).sum();
    let walk = |by: f64| {
        for (var, gradient) in &along {
            var.set(&(var.as_tensor() + (gradient * (by / square.sqrt())).unwrap()).unwrap()).unwrap();
        }
    };
    let step = 0.01;
    walk(step);
    let ahead = value(0);
    walk(-2.0 * step);
    let slope = (ahead - value(0)) / (2.0 * step);
    assert!((slope / square.sqrt() - 1.0).abs() < 0.01, "{slope} {}", square.sqrt());
}

#[test]
fn dropout_drops_its_share() {
    let gpu = emulated::gpu(false);
    let n = 100_001;
    let ones = Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
    let at = gpu.engine.address(&ones).unwrap();
    let limit = (0.1 * 2f64.powi(32)) as usize;
    gpu.each("dropout", [&at], [n, 0x1234_5678_9abc_def0, limit], [1.0 / 0.9]).unwrap();
    let values = flat(&ones);
    let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / n as f64;
    assert!((zeros - 0.1).abs() < 0.003, "{zeros}");
    // Neighbours are dropped independently of each other.
    let both = values.windows(2).filter(|w| w[0] == 0.0 && w[1] == 0.0).count() as f64 / n as f64;
    assert!((both - 0.01).abs() < 0.001, "{both}");
}

/// In bf16, whose numbers have three digits: the loss close, every gradient in about the same direction.
#[test]
fn bf16_is_close() {
    let resnet = || model(r#"{"family":"resnet-cifar","depth":8}"#, SMALL);
    let (images, image_labels) = images("images", 6, SMALL);
    let (texts, text_labels) = sentences(4, 9, 50, 3);
    let nets: [(&dyn Fn() -> Model, &Tensor, &[u32]); 2] =
        [(&resnet, &images, &image_labels), (&|| bert(0.0), &texts, &text_labels)];
    for (make, x, labels) in nets {
        let run = |half: bool| {
            let model = make().on(emulated::gpu(half)).unwrap();
            let loss = cross_entropy(&model.forward(x, true).unwrap(), labels);
            let gradients = model.backward(&loss).unwrap();
            let named = model.parameters().iter();
            let gradients: Vec<_> =
                named.map(|(name, var)| (name.clone(), gradients.get(var).unwrap().clone())).collect();
            (loss.to_scalar::<f32>().unwrap(), gradients)
        };
        let ((exact, gradients), (near, halves)) = (run(false), run(true));
        assert!((near / exact - 1.0).abs() < 0.02, "{near} {exact}");
        for ((name, gradient), (_, half)) in gradients.iter().zip(&halves) {
            assert_eq!(half.dtype(), DType::F32, "{name}: gradients and weights stay float32");
            if name.ends_with("key.bias") {
                continue;
            }
            let (a, b) = (gradient.flatten_all().unwrap(), half.flatten_all().unwrap());
            let dot = |a: &Tensor, b: &Tensor| {
                let product = (a * b).unwrap().sum(D::Minus1).unwrap();
                f64::from(product.to_scalar::<f32>().unwrap())
            };
            let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!(cosine > 0.97, "{name}: {cosine}");
        }
    }
}

#[test]
fn what_cannot_be_is_said() {
    let on_gpu = bert(0.0).on(emulated::gpu(false)).unwrap();
    let (x, _) = sentences(2, 5, 50, 3);
    let beyond = (x + 49.0).unwrap();
    assert!(on_gpu.forward(&beyond, false).unwrap_err().to_string().contains("there are 50"));
    let linear = model(r#"{"family":"linear"}"#, ODD);
    let error = linear.on(emulated::gpu(true)).err().unwrap().to_string();
    assert!(error.starts_with("dtype: bf16: ") && error.contains("hint: set dtype: f32"), "{error}");
}
