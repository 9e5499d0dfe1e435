//! The CIFAR ResNet of depth 6n + 2 (He et al. 2016, section 4.2): names, widths and shortcuts as in the
//! imbalanced-CIFAR reference code (LDAM-DRW, `models/resnet_cifar.py`). Knows no kernel.

use super::convnet::{ConvBody, ConvNet, Fan, UnitVars};
use super::{Builder, Shape};
use crate::nn::cpu::Cpu;
use crate::nn::layout::Image;
use crate::nn::net::Net;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How a block that halves the image passes its input on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortcut {
    /// Every second pixel, zero channels on both sides; no parameters.
    #[default]
    A,
    /// A 1×1 convolution of stride 2 and its batch norm.
    B,
}

const WIDTHS: [usize; 3] = [16, 32, 64];

/// Features after the mean over pixels.
pub const FEATURES: usize = WIDTHS[2];

pub fn build(
    builder: &mut Builder<'_>,
    shape: Shape,
    cpu: Cpu,
    depth: usize,
    shortcut: Shortcut,
) -> Result<ConvBody> {
    ensure!(
        depth >= 8 && (depth - 2).is_multiple_of(6),
        "model: depth: {depth} is not 6n + 2\na CIFAR ResNet has depth 8, 14, 20, 32, 44, 56, 110, …"
    );
    let image = Image { channels: shape.channels, height: shape.height, width: shape.width };
    let mut body = ConvNet::new(Net::new(cpu, image));
    let stem = UnitVars::new(builder, ("conv1", "bn1"), (shape.channels, WIDTHS[0]), 3, Fan::In)?;
    let mut value = body.unit(stem, 0, (3, 1), None, true)?;
    let mut inputs = WIDTHS[0];
    for (layer, outputs) in WIDTHS.into_iter().enumerate() {
        for block in 0..(depth - 2) / 6 {
            let name = format!("layer{}.{block}", layer + 1);
            let unit = |builder: &mut Builder<'_>, i: usize, inputs: usize| {
                let names = (format!("{name}.conv{i}"), format!("{name}.bn{i}"));
                UnitVars::new(builder, (&names.0, &names.1), (inputs, outputs), 3, Fan::In)
            };
            let (first, second) = (unit(builder, 1, inputs)?, unit(builder, 2, outputs)?);
            let stride = outputs / inputs;
            let residual = match (stride, shortcut) {
                (1, _) => value,
                (_, Shortcut::A) => body.net.shortcut(value, outputs),
                (_, Shortcut::B) => {
                    let names = (format!("{name}.shortcut.0"), format!("{name}.shortcut.1"));
                    let vars = UnitVars::new(builder, (&names.0, &names.1), (inputs, outputs), 1, Fan::In)?;
                    body.unit(vars, value, (1, stride), None, false)?
                }
            };
            let middle = body.unit(first, value, (3, stride), None, true)?;
            value = body.unit(second, middle, (3, 1), Some(residual), true)?;
            inputs = outputs;
        }
    }
    Ok(body.finish())
}
