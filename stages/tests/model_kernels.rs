//! The convolution kernels against a naive float64 reference on odd shapes, and the whole net's gradient against finite
//! differences, on every instruction set, direct and by Winograd's algorithm.

mod golden;

use candle_core::{Device, Tensor, Var};
use golden::{flat, uniform};
use proptest::prelude::*;
use stages::nn::conv::Conv;
use stages::nn::cpu::{Cpu, Form, Isa};
use stages::nn::layout::{Image, from_nhwc, to_nhwc};
use stages::nn::net::{Net, Statistics};
use stages::nn::op;
use std::sync::Arc;

/// Each instruction set, with direct convolutions and with Winograd's algorithm wherever it is possible.
fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    Isa::tested().unwrap().into_iter().flat_map(move |isa| {
        [Form::Direct, Form::Winograd].map(|form| Cpu::with_isa(isa, threads).unwrap().with_form(form))
    })
}

/// NHWC in and out, OIHW weights: (output, gradient to the input, gradient to the weights), the naive way.
fn naive(conv: &Conv, stride: usize, x: &[f64], w: &[f64], g: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (from, to, k) = (conv.input, conv.output, conv.kernel);
    let mut y = vec![0.0; to.pixels() * to.channels];
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for row in 0..to.height {
        for column in 0..to.width {
            for (kh, kw) in (0..k * k).map(|t| (t / k, t % k)) {
                let (r, c) = (row * stride + kh, column * stride + kw);
                if r < k / 2 || c < k / 2 || r - k / 2 >= from.height || c - k / 2 >= from.width {
                    continue;
                }
                let pixel = (r - k / 2) * from.width + c - k / 2;
                for (o, i) in (0..to.channels * from.channels).map(|t| (t / from.channels, t % from.channels))
                {
                    let (at, xi) = (((o * from.channels + i) * k + kh) * k + kw, pixel * from.channels + i);
                    let yo = (row * to.width + column) * to.channels + o;
                    y[yo] += x[xi] * w[at];
                    dx[xi] += g[yo] * w[at];
                    dw[at] += g[yo] * x[xi];
                }
            }
        }
    }
    (y, dx, dw)
}

fn close(what: &str, ours: &[f32], exact: &[f64], bound: f64) -> Result<(), TestCaseError> {
    let size = exact.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (at, (a, b)) in ours.iter().zip(exact).enumerate() {
        prop_assert!((f64::from(*a) - b).abs() <= bound * size, "{what}[{at}]: {a} instead of {b}");
    }
    Ok(())
}

/// `n` examples, in groups as the net does it.
fn check_conv(
    cpu: &Cpu,
    n: usize,
    (inputs, outputs): (usize, usize),
    (height, width): (usize, usize),
    (kernel, stride): (usize, usize),
) -> Result<(), TestCaseError> {
    let conv = Conv::new(cpu, Image { channels: inputs, height, width }, outputs, (kernel, stride), 8);
    let (from, to) = (conv.input, conv.output);
    // Winograd's transforms round more: their numbers are larger than the result.
    let bound = if conv.sums_are_gradient() { 2e-6 } else { 8e-6 };
    let close = |what: &str, ours: &[f32], exact: &[f64]| close(what, ours, exact, bound);
    let single = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
    let x = uniform("x", n * from.pixels() * inputs);
    let w = uniform("w", conv.weights());
    let g = uniform("g", n * to.pixels() * outputs);
    let (mut y, mut dx, mut dw) = (vec![], vec![], vec![0.0; w.len()]);
    for (x, g) in x.chunks(x.len() / n).zip(g.chunks(g.len() / n)) {
        let one = naive(&conv, stride, x, &w, g);
        y.extend(one.0);
        dx.extend(one.1);
        dw.iter_mut().zip(one.2).for_each(|(sum, one)| *sum += one);
    }
    let (w, before) = (single(&w), uniform("before", x.len()));
    let blocked = |image: Image, nhwc: &[f32]| {
        let mut out = vec![f32::NAN; n * image.len()];
        for (from, to) in nhwc.chunks(nhwc.len() / n).zip(out.chunks_mut(image.len())) {
            from_nhwc(image, from, to);
        }
        out
    };
    let nhwc = |image: Image, blocked: &[f32]| {
        let flat = image.pixels() * image.channels;
        let mut out = vec![f32::NAN; n * flat];
        for (from, to) in blocked.chunks(image.len()).zip(out.chunks_mut(flat)) {
            to_nhwc(image, from, to);
        }
        out
    };
    let (x, g) = (blocked(from, &single(&x)), blocked(to, &single(&g)));
    let mut output = vec![f32::NAN; g.len()];
    let mut input = vec![f32::NAN; x.len()];
    let mut added = blocked(from, &single(&before));
    let mut sums = vec![0.0; conv.sums()];
    let (forward, backward) = (conv.pack_forward(cpu, &w), conv.pack_backward(cpu, &w));
    for first in (0..n).step_by(conv.group()) {
        let end = n.min(first + conv.group());
        let (i, o) = (first * from.len()..end * from.len(), first * to.len()..end * to.len());
        unsafe {
            conv.forward(&x[i.clone()], &forward, &mut output[o.clone()]);
            conv.backward(&g[o.clone()], &backward, &mut input[i.clone()], false);
            conv.backward(&g[o.clone()], &backward, &mut added[i.clone()], true);
            conv.weigh(&x[i], &g[o], &mut sums);
        }
    }
    close("forward", &nhwc(to, &output), &y)?;
    prop_assert!(output.iter().all(|v| !v.is_nan()), "an unused lane is not zero");
    close("backward", &nhwc(from, &input), &dx)?;
    let sum: Vec<f64> = dx.iter().zip(&before).map(|(a, b)| a + b).collect();
    close("backward, added", &nhwc(from, &added), &sum)?;
    let mut kernel_order = vec![0.0; conv.gradient()];
    unsafe { conv.fold(&sums, &mut kernel_order) };
    let mut weights = vec![f32::NAN; conv.weights()];
    conv.unpack_weights(cpu, &kernel_order, &mut weights);
    close("weigh", &weights, &dw)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn convolutions_equal_the_naive_ones(
        channels in (1usize..50, 1usize..50),
        size in (1usize..20, 1usize..36),
        form in prop_oneof![Just((1, 1)), Just((1, 2)), Just((3, 1)), Just((3, 2)), Just((5, 1)), Just((7, 2))],
    ) {
        for cpu in cpus(1) {
            check_conv(&cpu, 1, channels, size, form)?;
        }
    }

    #[test]
    fn batches_of_winograd_tiles_equal_the_naive_ones(
        n in prop_oneof![Just(1usize), Just(7), 2usize..20],
        channels in (1usize..36, 1usize..36),
        size in (1usize..10, 1usize..18),
    ) {
        for cpu in cpus(1).filter(|cpu| cpu.form == Form::Winograd) {
            check_conv(&cpu, n, channels, size, (3, 1))?;
        }
    }
}

#[test]
fn the_shapes_of_the_paper() {
    for cpu in cpus(1) {
        for (n, inputs, outputs, size, stride) in [
            (1, 1, 16, (28, 28), 1),
            (1, 3, 16, (32, 32), 1),
            (7, 16, 16, (28, 28), 1),
            (1, 16, 32, (28, 28), 2),
            (1, 32, 64, (33, 31), 2),
            (1, 32, 33, (33, 31), 1),
            (129, 17, 15, (4, 4), 1),
            (1, 64, 64, (7, 7), 1),
            (1, 64, 64, (56, 56), 1),
        ] {
            check_conv(&cpu, n, (inputs, outputs), size, (3, stride)).unwrap();
        }
    }
}

/// stem → max pool → two units with a residual → shortcut → unit with a residual, on an odd image.
fn net(cpu: Cpu) -> Net {
    let mut net = Net::new(cpu, Image { channels: 2, height: 13, width: 9 });
    let stem = net.unit(0, 6, (7, 1), None, true);
    let pooled = net.max_pool(stem);
    let middle = net.unit(pooled, 6, (3, 1), None, true);
    let end = net.unit(middle, 6, (1, 1), Some(pooled), true);
    let short = net.shortcut(end, 20);
    net.unit(end, 20, (3, 2), Some(short), false);
    net
}

/// The derivative along a direction, by central differences, against the gradient; for the batch's statistics and for
/// given ones. The function is Σ weight · feature, in float32: hence the wide step and tolerance.
#[test]
fn the_gradient_equals_finite_differences() {
    for cpu in cpus(2) {
        for train in [true, false] {
            let net = Arc::new(net(cpu.clone()));
            let single =
                |name: &str, n: usize| uniform(name, n).iter().map(|v| *v as f32).collect::<Vec<_>>();
            let x = Tensor::from_vec(single("x", 9 * 13 * 9 * 2), (9, 13, 9, 2), &Device::Cpu).unwrap();
            let running = || {
                let one = |(i, &n): (usize, &usize)| Statistics {
                    mean: uniform(&format!("mean{i}"), n),
                    variance: uniform(&format!("variance{i}"), n).iter().map(|v| 1.5 + v).collect(),
                };
                (!train).then(|| net.norms().iter().enumerate().map(one).collect())
            };
            let start: Vec<f32> =
                single("parameters", net.parameters()).iter().map(|v| 0.6 * v + 0.2).collect();
            let parameters = Var::from_vec(start, net.parameters(), &Device::Cpu).unwrap();
            let weights = Tensor::from_vec(single("weights", 9 * 20), (9, 20), &Device::Cpu).unwrap();
            let value = |p: &Tensor| {
                let (features, _) = op::apply(&net, &x, p, running()).unwrap();
                (features * &weights).unwrap().sum_all().unwrap()
            };
            let gradients = value(parameters.as_tensor()).backward().unwrap();
            let gradient = flat(gradients.get(&parameters).unwrap());
            for i in 0..6 {
                let direction = single(&format!("direction{i}"), net.parameters());
                let d = Tensor::from_vec(direction.clone(), net.parameters(), &Device::Cpu).unwrap();
                let h = 1e-3;
                let at = |s: f64| {
                    let moved = (parameters.as_detached_tensor() + (&d * s).unwrap()).unwrap();
                    f64::from(value(&moved).to_scalar::<f32>().unwrap())
                };
                let measured = (at(h) - at(-h)) / (2.0 * h);
                let computed: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
                let norm: f64 = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
                assert!(
                    (measured - computed).abs() <= 0.01 * norm,
                    "{cpu:?}, train {train}, direction {i}: {measured} measured, {computed} computed, norm {norm}"
                );
            }
        }
    }
}
