//! `stages bench MODEL …`: the speed of a training step on made-up data, as one JSON line. Knows no data set; its
//! numbers are measurements of this machine and enter no result.

use crate::job::bad;
use crate::loss;
use crate::models::{self, ModelParams, Shape};
use crate::nn::cpu::Cpu;
use crate::nn::memory;
use crate::optim::{Optimizer, OptimizerParams};
use crate::rng::Stream;
use crate::train::{DeviceName, Precision, available, place};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::time::Instant;

mod decode;
mod stock;

const USAGE: &str = "usage: stages bench decode FOLDER [--threads T] [--rounds R] [--out FILE], or\n\
                     stages bench [stock] MODEL [--batch B] [--threads T] [--steps K] [--image N] [--channels C] \
                     [--classes K] [--sequence L] [--device cpu|cuda] [--dtype f32|tf32|bf16]\nMODEL: resnet<depth>[b] (CIFAR; also `stock`, by candle's convolutions), resnet50, \
                     wide-resnet50, mlp, linear, bert-base, bert-large, minilm, or a model's params as JSON";

struct Request {
    params: ModelParams,
    batch: usize,
    threads: usize,
    steps: usize,
    shape: Shape,
    /// Tokens of an example, for BERT.
    sequence: usize,
    device: DeviceName,
    dtype: Precision,
}

/// Runs one bench and prints its line.
///
/// Errors: words that it does not know; what building and running a model may report.
pub fn run(words: &[String]) -> Result<()> {
    if let Some(("decode", rest)) = words.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        println!("{}", decode::run(rest)?);
        return Ok(());
    }
    memory::keep_freed();
    let line = match words.split_first() {
        Some((word, rest)) if word == "stock" => stock::measure(&parse(rest)?)?,
        _ => measure(&parse(words)?)?,
    };
    println!("{line}");
    Ok(())
}

fn parse(words: &[String]) -> Result<Request> {
    let model = words.first().ok_or_else(|| bad(format!("a model is missing\n{USAGE}")))?;
    let mut options = std::collections::BTreeMap::new();
    let (mut device, mut dtype) = (DeviceName::Cpu, Precision::F32);
    for pair in words[1..].chunks(2) {
        let name = pair[0].strip_prefix("--").unwrap_or_default();
        if !["batch", "threads", "steps", "image", "channels", "classes", "sequence", "device", "dtype"]
            .contains(&name)
            || pair.len() < 2
        {
            return Err(bad(format!("{}: unknown word or value missing\n{USAGE}", pair[0])));
        }
        let unknown = |e| bad(format!("{}: {e}\n{USAGE}", pair[0]));
        match name {
            "device" => device = serde_json::from_value(json!(pair[1])).map_err(unknown)?,
            "dtype" => dtype = serde_json::from_value(json!(pair[1])).map_err(unknown)?,
            _ => {}
        }
        if ["device", "dtype"].contains(&name) {
            continue;
        }
        let value: usize =
            pair[1].parse().map_err(|_| bad(format!("{}: {}: not a number", pair[0], pair[1])))?;
        options.insert(name, value.max(1));
    }
    available(device, dtype).map_err(bad)?;
    let option = |name: &str, default: usize| options.get(name).copied().unwrap_or(default);
    let image = option("image", 32);
    Ok(Request {
        device,
        dtype,
        params: named(model)?,
        batch: option("batch", 128),
        threads: option("threads", 1),
        steps: option("steps", 10),
        sequence: option("sequence", 128),
        shape: Shape {
            classes: option("classes", 10).max(2),
            channels: option("channels", 3),
            height: image,
            width: image,
        },
    })
}

fn named(model: &str) -> Result<ModelParams> {
    let depth = |word: &str| word.strip_prefix("resnet").and_then(|d| d.parse::<usize>().ok());
    let minilm = json!({"family": "bert", "sizes": {"hidden": 384, "layers": 6, "intermediate": 1536}});
    let large =
        json!({"family": "bert", "sizes": {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096}});
    let params = match (model, depth(model), model.strip_suffix('b').and_then(depth)) {
        ("resnet50", ..) => json!({"family": "resnet50"}).to_string(),
        ("bert-base", ..) => json!({"family": "bert"}).to_string(),
        ("bert-large", ..) => large.to_string(),
        ("minilm", ..) => minilm.to_string(),
        (_, Some(depth), _) => json!({"family": "resnet-cifar", "depth": depth}).to_string(),
        (_, _, Some(depth)) => json!({"family": "resnet-cifar", "depth": depth, "shortcut": "B"}).to_string(),
        (word, ..) if word.starts_with('{') => word.to_string(),
        (word, ..) => json!({"family": word}).to_string(),
    };
    serde_json::from_str(&params).map_err(|e| bad(format!("{model}: unknown model: {e}\n{USAGE}")))
}

fn measure(request: &Request) -> Result<Value> {
    let Request { params, batch, threads, steps, shape, sequence, device, dtype } = request;
    let cpu = Cpu::new(*threads)?;
    let isa = cpu.isa.name();
    let model = models::build(params, *shape, cpu, &mut |name| Stream::new(0, name, 0, 0))?;
    let model = place(model, *device, *dtype)?;
    // What the paper trains them with.
    let (optimizer, rate) = match params {
        ModelParams::Bert { .. } => (json!({"name": "adamw"}), 2e-5),
        _ => (json!({"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4}), 0.1),
    };
    let optimizer: OptimizerParams = serde_json::from_value(optimizer)?;
    let mut optimizer = Optimizer::new(&optimizer, model.parameters())?.on(model.gpu().cloned());
    let x = match params {
        ModelParams::Bert { .. } => tokens(*batch, *sequence)?,
        _ => {
            let dims = (*batch, shape.height, shape.width, shape.channels);
            let n = batch * shape.height * shape.width * shape.channels;
            Tensor::from_vec(Stream::new(0, "bench", 0, 0).normals(n, 0.0, 1.0), dims, &Device::Cpu)?
        }
    };
    let x = match model.gpu() {
        Some(gpu) => gpu.engine.upload(&x)?,
        None => x,
    };
    let labels: Vec<u32> = (0..*batch).map(|i| (i % shape.classes) as u32).collect();
    let (mut forward, mut backward, mut update, mut whole) = (vec![], vec![], vec![], vec![]);
    let mut last = 0.0;
    let mut used = 0.0;
    // A GPU works behind the host's back. With `together` nobody waits for it: that is how a training runs.
    let wait = || model.gpu().map_or(Ok(()), |gpu| gpu.engine.wait());
    let mut step = |step: usize, together: bool| -> Result<[Instant; 4]> {
        let wait = || if together { Ok(()) } else { wait() };
        let start = Instant::now();
        model.set_step(0, step as u64);
        let loss = loss::cross_entropy(&model.forward(&x, true)?, &labels)?.mean_all()?;
        if !together {
            last = loss.to_scalar::<f32>()?;
        }
        let forwarded = Instant::now();
        let mut store = model.backward(&loss)?;
        wait()?;
        let backwarded = Instant::now();
        let gradients = optimizer.gradients(&mut store)?;
        optimizer.step_clipped(&gradients, rate, None)?;
        drop((store, gradients, loss));
        wait()?;
        Ok([start, forwarded, backwarded, Instant::now()])
    };
    // The first step fills the buffers and is not counted.
    for number in 0..=*steps {
        if number == 1 {
            used = processor_ms().unwrap_or(0.0);
        }
        let [start, forwarded, backwarded, end] = step(number, false)?;
        if number > 0 {
            let ms = |a: Instant, b: Instant| (b - a).as_secs_f64() * 1e3;
            forward.push(ms(start, forwarded));
            backward.push(ms(forwarded, backwarded));
            update.push(ms(backwarded, end));
            whole.push(ms(start, end));
        }
    }
    let cpu_ms = processor_ms().map(|now| ((now - used) / *steps as f64).round());
    if model.gpu().is_some() {
        let start = Instant::now();
        for number in 1..=*steps {
            step(*steps + number, true)?;
        }
        wait()?;
        whole = vec![start.elapsed().as_secs_f64() * 1e3 / *steps as f64];
    }
    let all = median(&mut whole);
    Ok(json!({
        "model": params, "batch": batch, "threads": threads, "device": device, "dtype": dtype, "isa": isa, "steps": steps,
        "sequence": matches!(params, ModelParams::Bert { .. }).then_some(sequence), "image": [shape.height, shape.width, shape.channels],
        "examples_per_second": (*batch as f64 / all * 1e4).round() / 10.0,
        "ms": {"forward": median(&mut forward), "backward": median(&mut backward), "update": median(&mut update),
            "step": all, "least": (whole[0] * 100.0).round() / 100.0},
        "cpu_ms": cpu_ms, "peak_memory_mb": peak_memory()?, "loss": last,
        "gpu": model.gpu().map(|gpu| gpu.engine.name()).transpose()?,
        "gpu_memory_mb": model.gpu().map(|gpu| gpu.engine.peak()).transpose()?.map(|bytes| bytes >> 20),
    }))
}

/// The middle one of times, which it sorts, to two decimals.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2] * 100.0).round() / 100.0
}

/// [batch, 3, length]: words below 1,000, which every vocabulary has, one segment, no padding.
fn tokens(batch: usize, length: usize) -> Result<Tensor> {
    let mut stream = Stream::new(0, "bench", 0, 0);
    let mut tokens = vec![];
    for _ in 0..batch {
        tokens.extend((0..length).map(|_| stream.below(1000) as u32));
        tokens.extend(std::iter::repeat_n(0, length));
        tokens.extend(std::iter::repeat_n(1, length));
    }
    Ok(Tensor::from_vec(tokens, (batch, 3, length), &Device::Cpu)?)
}

/// Processor time of all threads so far, in steps of 10 ms; none where the system does not tell.
fn processor_ms() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15 of proc(5), in ticks of 1/100 s; the name before them may hold blanks.
    let mut fields = status.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * 10.0)
}

/// The largest resident size so far, in MB; null where the system does not tell.
fn peak_memory() -> Result<Value> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return Ok(Value::Null) };
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no VmHWM")?.parse()?;
    Ok(json!(kib / 1024))
}
