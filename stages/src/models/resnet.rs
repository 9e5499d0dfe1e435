//! ResNets with the ImageNet stem: torchvision's bottleneck networks (v1.5: the stride sits on the 3×3 convolution) and
//! the ResNet-10 by width of the overparameterisation study (Sagawa et al. 2020). Knows names and widths, no kernel.

use super::convnet::{ConvBody, ConvNet, Fan, UnitVars};
use super::{Builder, Shape};
use crate::nn::cpu::Cpu;
use crate::nn::layout::Image;
use crate::nn::net::{Net, Value};
use anyhow::{Result, ensure};

/// The form of a network's blocks.
#[derive(Clone, Copy, Debug)]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3, 1×1; the inner ones have `inner` times the stage's width, the last four times.
    Bottleneck { inner: usize },
}

/// What tells one network from another.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub block: Block,
    /// Blocks of each of the four stages.
    pub blocks: [usize; 4],
    /// Channels of the stem; stage i has width · 2^i.
    pub width: usize,
}

impl Layout {
    /// Features after the mean over pixels.
    pub fn features(&self) -> usize {
        8 * self.width * self.expansion()
    }

    fn expansion(&self) -> usize {
        match self.block {
            Block::Basic => 1,
            Block::Bottleneck { .. } => 4,
        }
    }
}

pub fn build(builder: &mut Builder<'_>, shape: Shape, cpu: Cpu, layout: Layout) -> Result<ConvBody> {
    ensure!(layout.width > 0, "model: width: must be at least 1");
    let image = Image { channels: shape.channels, height: shape.height, width: shape.width };
    let mut body = ConvNet::new(Net::new(cpu, image));
    let stem = UnitVars::new(builder, ("conv1", "bn1"), (shape.channels, layout.width), 7, Fan::Out)?;
    let stem = body.unit(stem, 0, (7, 2), None, true)?;
    let mut value = body.net.max_pool(stem);
    let mut inputs = layout.width;
    for (stage, blocks) in layout.blocks.into_iter().enumerate() {
        let width = layout.width << stage;
        for i in 0..blocks {
            let name = format!("layer{}.{i}", stage + 1);
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            value = block(builder, &mut body, &name, layout.block, value, (inputs, width), stride)?;
            inputs = width * layout.expansion();
        }
    }
    Ok(body.finish())
}

fn block(
    builder: &mut Builder<'_>,
    body: &mut ConvNet,
    name: &str,
    form: Block,
    value: Value,
    (inputs, width): (usize, usize),
    stride: usize,
) -> Result<Value> {
    // (inputs, outputs, kernel, stride) of each convolution.
    let convolutions = match form {
        Block::Basic => vec![(inputs, width, 3, stride), (width, width, 3, 1)],
        Block::Bottleneck { inner } => {
            let inner = inner * width;
            vec![(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * width, 1, 1)]
        }
    };
    let outputs = convolutions[convolutions.len() - 1].1;
    let mut vars = vec![];
    for (i, &(inputs, outputs, kernel, _)) in convolutions.iter().enumerate() {
        let names = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
        vars.push(UnitVars::new(builder, (&names.0, &names.1), (inputs, outputs), kernel, Fan::Out)?);
    }
    let residual = if stride == 1 && inputs == outputs {
        value
    } else {
        let names = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        let vars = UnitVars::new(builder, (&names.0, &names.1), (inputs, outputs), 1, Fan::Out)?;
        body.unit(vars, value, (1, stride), None, false)?
    };
    let last = vars.len() - 1;
    let mut inner = value;
    for (i, (vars, (_, _, kernel, stride))) in vars.into_iter().zip(convolutions).enumerate() {
        inner = body.unit(vars, inner, (kernel, stride), (i == last).then_some(residual), true)?;
    }
    Ok(inner)
}
