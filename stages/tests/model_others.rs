//! Every other model of images: parity with PyTorch's float64 (golden/models.py) and the published numbers of
//! parameters.

mod golden;

use golden::{Limit, images, model};
use stages::models::{self, ModelParams, Shape};
use stages::nn::cpu::{Cpu, Form};
use stages::rng::Stream;

fn parity(golden: &str, params: &str, n: usize, shape: Shape, limit: Limit) {
    for cpu in forms() {
        let model = model(params, shape, cpu);
        let (x, labels) = images("images", n, shape);
        golden::check(golden, &model, &x, &labels, limit);
    }
}

/// Two threads and the instruction set that `ITPIPE_ISA` names, direct and by Winograd's algorithm.
fn forms() -> [Cpu; 2] {
    [Form::Direct, Form::Fastest].map(|form| Cpu::new(2).unwrap().with_form(form))
}

const TINY: Shape = Shape { classes: 3, channels: 3, height: 5, width: 4 };

#[test]
fn linear_equals_pytorch() {
    parity("linear", r#"{"family":"linear"}"#, 4, TINY, Limit::Small);
}

#[test]
fn mlp_equals_pytorch() {
    parity("mlp", r#"{"family":"mlp"}"#, 4, TINY, Limit::Small);
}

#[test]
fn resnet_10_equals_pytorch() {
    let shape = Shape { classes: 2, channels: 3, height: 65, width: 61 };
    parity("resnet10", r#"{"family":"resnet10","width":20}"#, 4, shape, Limit::Small);
}

const COLOUR: Shape = Shape { classes: 2, channels: 3, height: 64, width: 64 };
const RESNET50: &str = r#"{"family":"resnet50"}"#;
const WIDE_RESNET50: &str = r#"{"family":"wide-resnet50"}"#;

#[test]
fn resnet_50_equals_pytorch() {
    parity("resnet50", RESNET50, 8, COLOUR, Limit::Corner);
}

#[test]
fn wide_resnet_50_equals_pytorch() {
    parity("wideresnet50", WIDE_RESNET50, 8, COLOUR, Limit::Corner);
}

/// At an input whose activations all lie apart from the ReLU's corner, where rounding is the only error.
fn parity_apart(golden: &str, params: &str) {
    let shape = Shape { height: 36, width: 36, ..COLOUR };
    for cpu in forms() {
        let model = golden::shifted(params, shape, cpu, 2.0);
        let (x, labels) = golden::Golden::open(golden).images(4, shape);
        golden::check(golden, &model, &x, &labels, Limit::Smooth);
    }
}

#[test]
fn resnet_50_apart_from_the_corners_equals_pytorch() {
    parity_apart("resnet50apart", RESNET50);
}

#[test]
fn wide_resnet_50_apart_from_the_corners_equals_pytorch() {
    parity_apart("wideresnet50apart", WIDE_RESNET50);
}

#[test]
fn resnet_50_equals_candle_transformers() {
    for cpu in forms() {
        let model = model(RESNET50, COLOUR, cpu);
        let (x, _) = images("images", 8, COLOUR);
        golden::check_candle("resnet50", &model, &x);
    }
}

/// The counts follow from the published architectures; ResNet-50's and the wide one's are torchvision's.
#[test]
fn numbers_of_parameters() {
    let count = |params: &str, classes: usize, channels: usize| -> usize {
        let params: ModelParams = serde_json::from_str(params).unwrap();
        let shape = Shape { classes, channels, height: 32, width: 32 };
        let model = models::build(&params, shape, Cpu::new(1).unwrap(), &mut |n| Stream::new(0, n, 0, 0));
        model.unwrap().parameters().iter().map(|(_, var)| var.elem_count()).sum()
    };
    let cifar = |shortcut: &str| format!(r#"{{"family":"resnet-cifar","depth":32,"shortcut":"{shortcut}"}}"#);
    assert_eq!(count(&cifar("A"), 10, 3), 464_154);
    assert_eq!(count(&cifar("A"), 10, 1), 463_866);
    assert_eq!(count(&cifar("B"), 10, 3), 466_906);
    assert_eq!(count(&cifar("B"), 10, 1), 466_618);
    assert_eq!(count(r#"{"family":"resnet50"}"#, 1000, 3), 25_557_032);
    assert_eq!(count(r#"{"family":"resnet50"}"#, 2, 3), 23_512_130);
    assert_eq!(count(r#"{"family":"wide-resnet50"}"#, 1000, 3), 68_883_240);
    assert_eq!(count(r#"{"family":"wide-resnet50"}"#, 2, 3), 66_838_338);
    let widths = [
        (10, 121_932),
        (16, 309_714),
        (20, 482_662),
        (32, 1_230_754),
        (40, 1_920_522),
        (50, 2_997_652),
        (60, 4_313_582),
        (70, 5_868_312),
        (80, 7_661_842),
        (90, 9_694_172),
        (100, 11_965_302),
    ];
    for (width, n) in widths {
        assert_eq!(count(&format!(r#"{{"family":"resnet10","width":{width}}}"#), 2, 3), n);
    }
}
