//! The CIFAR ResNet against PyTorch's float64 (golden/models.py), on every path of the kernels and number of threads.

mod golden;

use golden::{Limit, cpus, cross_entropy, flat, images};
use stages::models::Shape;
use stages::nn::cpu::Cpu;

const SMALL: Shape = Shape { classes: 10, channels: 3, height: 16, width: 16 };
const ODD: Shape = Shape { classes: 5, channels: 1, height: 13, width: 11 };
const GREY: Shape = Shape { classes: 10, channels: 1, height: 28, width: 28 };

#[test]
fn option_a_equals_pytorch() {
    for cpu in cpus(1) {
        let model = golden::model(r#"{"family":"resnet-cifar","depth":8}"#, SMALL, cpu);
        let (x, labels) = images("images", 6, SMALL);
        golden::check("resnet8a", &model, &x, &labels, Limit::Small);
    }
}

#[test]
fn option_b_on_odd_images_equals_pytorch() {
    for cpu in cpus(2) {
        let model = golden::model(r#"{"family":"resnet-cifar","depth":8,"shortcut":"B"}"#, ODD, cpu);
        let (x, labels) = images("images", 5, ODD);
        golden::check("resnet8b", &model, &x, &labels, Limit::Small);
    }
}

#[test]
fn depth_20_on_grey_images_equals_pytorch() {
    for cpu in cpus(2) {
        let model = golden::shifted(r#"{"family":"resnet-cifar","depth":20}"#, GREY, cpu, 2.0);
        let (x, labels) = golden::Golden::open("resnet20a").images(8, GREY);
        golden::check("resnet20a", &model, &x, &labels, Limit::Smooth);
    }
}

/// Two steps of gradient descent: logits and parameters are the same bits for 1 to 4 threads.
#[test]
fn the_same_bits_for_any_number_of_threads() {
    for path in cpus(1) {
        let run = |threads: usize| {
            let cpu = Cpu::with_isa(path.isa, threads).unwrap().with_form(path.form);
            let model = golden::model(r#"{"family":"resnet-cifar","depth":8}"#, GREY, cpu);
            let (x, labels) = images("images", 21, GREY);
            for _ in 0..2 {
                let loss = cross_entropy(&model.forward(&x, true).unwrap(), &labels);
                let gradients = loss.backward().unwrap();
                for (_, var) in model.parameters() {
                    let step = (gradients.get(var).unwrap() * 0.1).unwrap();
                    var.set(&(var.as_tensor() - step).unwrap()).unwrap();
                }
            }
            let mut bits: Vec<u32> = vec![];
            for (_, var) in model.parameters().iter().chain(&model.buffers()[..2]) {
                bits.extend(flat(var).iter().map(|v| v.to_bits()));
            }
            bits.extend(flat(&model.forward(&x, false).unwrap()).iter().map(|v| v.to_bits()));
            bits
        };
        let one = run(1);
        for threads in 2..=4 {
            assert!(run(threads) == one, "{path:?}: {threads} threads differ from one");
        }
    }
}
