//! Every model as: inputs -> features `h` -> linear head -> logits, with parameters named as in the published PyTorch
//! checkpoints. Knows shapes and names, not losses, data sets or how training goes.

pub mod bert;
pub mod checkpoint;
pub mod convnet;
pub mod gpu;
pub mod head;
pub mod mlp;
pub mod resnet;
pub mod resnet_cifar;

use crate::nn::cpu::Cpu;
use crate::nn::gpu::Gpu;
use crate::rng::Stream;
use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::sync::Arc;

use bert::{Bert, BertParams};
use convnet::ConvBody;
use head::Head;
use mlp::Mlp;
use resnet::{Block, Layout};
use resnet_cifar::Shortcut;

/// Which model: the `model` param of a training stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ModelParams {
    /// Logits are a linear function of the flattened input (channel first, as PyTorch flattens).
    Linear {
        #[serde(default)]
        head: HeadInit,
    },
    /// A multilayer perceptron on the flattened input.
    Mlp {
        #[serde(default = "two_of_200")]
        hidden: Vec<usize>,
        #[serde(default)]
        head: HeadInit,
    },
    /// ResNet-10 by width: basic blocks [1, 1, 1, 1] after the ImageNet stem.
    Resnet10 {
        width: usize,
        #[serde(default)]
        head: HeadInit,
    },
    /// torchvision's resnet50; another width than 64 is a smaller net of the same form.
    Resnet50 {
        #[serde(default = "published_width")]
        width: usize,
        #[serde(default)]
        head: HeadInit,
    },
    /// torchvision's wide_resnet50_2; `width` as of resnet50.
    WideResnet50 {
        #[serde(default = "published_width")]
        width: usize,
        #[serde(default)]
        head: HeadInit,
    },
    /// BERT with pooler; its input is tokens, see [`Bert::features`].
    Bert {
        #[serde(default)]
        sizes: BertParams,
    },
    /// The CIFAR ResNet of depth 6n + 2.
    ResnetCifar {
        depth: usize,
        #[serde(default)]
        shortcut: Shortcut,
        #[serde(default)]
        head: HeadInit,
    },
}

fn published_width() -> usize {
    64
}

fn two_of_200() -> Vec<usize> {
    vec![200, 200]
}

/// How the linear head starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// Weight and bias uniform in ±1/√(inputs), as `torch.nn.Linear`.
    #[default]
    Pytorch,
    /// Kaiming normal weight (standard deviation √(2/inputs)) and PyTorch's bias, as the imbalanced-CIFAR reference code.
    Kaiming,
    /// All zero.
    Zero,
}

/// What the model sees and says: `classes` logits for images of `height` × `width` × `channels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub classes: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

/// Gives a parameter, by its published name, its stream of random numbers. Called once for a parameter that needs any;
/// streams keyed by the name make a parameter's start independent of the others.
pub type Init<'a> = dyn FnMut(&str) -> Stream + 'a;

/// Parameters and buffers under construction, in their published order.
pub struct Builder<'a> {
    pub init: &'a mut Init<'a>,
    pub parameters: Vec<(String, Var)>,
    pub buffers: Vec<(String, Var)>,
}

impl Builder<'_> {
    /// A trainable tensor with the given values.
    pub fn parameter(&mut self, name: String, shape: &[usize], values: Vec<f32>) -> Result<Var> {
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        self.parameters.push((name, var.clone()));
        Ok(var)
    }

    /// Normal numbers times `deviation`.
    pub fn normal(&mut self, name: String, shape: &[usize], deviation: f64) -> Result<Var> {
        let values = (self.init)(&name).normals(shape.iter().product(), 0.0, deviation);
        self.parameter(name, shape, values)
    }

    /// Uniform in ±`bound`.
    pub fn uniform(&mut self, name: String, shape: &[usize], bound: f64) -> Result<Var> {
        let values = (self.init)(&name).uniforms(shape.iter().product(), -bound, bound);
        self.parameter(name, shape, values)
    }

    pub fn constant(&mut self, name: String, shape: &[usize], value: f32) -> Result<Var> {
        self.parameter(name, shape, vec![value; shape.iter().product()])
    }

    /// State that is saved but not trained.
    pub fn buffer(&mut self, name: String, start: &Tensor) -> Result<Var> {
        let var = Var::from_tensor(start)?;
        self.buffers.push((name, var.clone()));
        Ok(var)
    }
}

/// The part below the head.
enum Body {
    /// NHWC to channel-first rows, as PyTorch's `flatten(1)` orders them.
    Flatten,
    Mlp(Mlp),
    Conv(ConvBody),
    Bert(Bert),
    /// A network of convolutions or a BERT on a GPU.
    Gpu(gpu::Body),
}

/// A trainable model: on the CPU in float32, or where [`Model::on`] put it.
pub struct Model {
    shape: Shape,
    body: Body,
    head: Head,
    parameters: Vec<(String, Var)>,
    buffers: Vec<(String, Var)>,
    /// Name of the head, before `.weight`.
    head_name: String,
    /// Seed and step of the next dropout masks.
    dropout: Cell<(u64, u64)>,
    gpu: Option<Arc<Gpu>>,
}

/// Builds a model with fresh parameters drawn from `init`.
///
/// Errors: a depth or size that the family does not have.
pub fn build(params: &ModelParams, shape: Shape, cpu: Cpu, init: &mut Init<'_>) -> Result<Model> {
    ensure!(shape.classes >= 2, "model: {} class: needs at least two", shape.classes);
    ensure!(
        matches!(params, ModelParams::Bert { .. }) || shape.channels * shape.height * shape.width > 0,
        "model: {shape:?}: needs a non-empty image"
    );
    let mut give = |name: &str| init(name);
    let mut builder = Builder { init: &mut give, parameters: vec![], buffers: vec![] };
    let inputs = shape.channels * shape.height * shape.width;
    let (body, head) = match params {
        ModelParams::Linear { head } => {
            (Body::Flatten, Head::new(&mut builder, "linear", inputs, shape.classes, *head)?)
        }
        ModelParams::Mlp { hidden, head } => {
            let body = Mlp::new(&mut builder, inputs, hidden)?;
            let name = format!("fc{}", hidden.len() + 1);
            let features = hidden.last().copied().unwrap_or(inputs);
            (Body::Mlp(body), Head::new(&mut builder, &name, features, shape.classes, *head)?)
        }
        ModelParams::Bert { sizes } => {
            let body = Bert::new(&mut builder, sizes, cpu)?;
            let shape = [shape.classes, sizes.hidden];
            let head = Head {
                weight: builder.normal("classifier.weight".into(), &shape, bert::DEVIATION)?,
                bias: builder.constant("classifier.bias".into(), &shape[..1], 0.0)?,
            };
            (Body::Bert(body), head)
        }
        ModelParams::Resnet10 { head, .. }
        | ModelParams::Resnet50 { head, .. }
        | ModelParams::WideResnet50 { head, .. } => {
            let bottleneck = |inner, width: &usize| Layout {
                block: Block::Bottleneck { inner },
                blocks: [3, 4, 6, 3],
                width: *width,
            };
            let layout = match params {
                ModelParams::WideResnet50 { width, .. } => bottleneck(2, width),
                ModelParams::Resnet50 { width, .. } => bottleneck(1, width),
                ModelParams::Resnet10 { width, .. } => {
                    Layout { block: Block::Basic, blocks: [1; 4], width: *width }
                }
                _ => unreachable!("the other families have their own arms"),
            };
            let body = resnet::build(&mut builder, shape, cpu, layout)?;
            let head = Head::new(&mut builder, "fc", layout.features(), shape.classes, *head)?;
            (Body::Conv(body), head)
        }
        ModelParams::ResnetCifar { depth, shortcut, head } => {
            let body = resnet_cifar::build(&mut builder, shape, cpu, *depth, *shortcut)?;
            let head = Head::new(&mut builder, "linear", resnet_cifar::FEATURES, shape.classes, *head)?;
            (Body::Conv(body), head)
        }
    };
    let Builder { parameters, buffers, .. } = builder;
    let last = parameters.last().map(|(name, _)| name.trim_end_matches(".bias").to_string());
    let head_name = last.unwrap_or_default();
    Ok(Model { shape, body, head, parameters, buffers, head_name, dropout: Cell::new((0, 0)), gpu: None })
}

impl Model {
    /// Logits [N, classes] of images [N, H, W, C] (float32, normalised). With `train`, batch statistics are used and the
    /// running ones updated; the result carries gradients to [`Model::parameters`] either way.
    ///
    /// Errors: a tensor of another shape or type.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.head.forward(&self.features(images, train)?)
    }

    /// The last hidden layer `h` [N, features]: what the head's rows are multiplied with.
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        match &self.body {
            Body::Bert(body) => return body.features(images, train.then(|| self.dropout.get())),
            Body::Gpu(body) => return body.features(images, train.then(|| self.dropout.get())),
            _ => {}
        }
        let images = &self.gpu.as_ref().map_or(Ok(images.clone()), |gpu| gpu.engine.upload(images))?;
        let Shape { channels, height, width, .. } = self.shape;
        let dims = images.dims();
        ensure!(
            images.dtype() == DType::F32 && dims.len() == 4 && dims[1..] == [height, width, channels],
            "model: input: {:?} {dims:?}, expected F32 [N, {height}, {width}, {channels}]",
            images.dtype()
        );
        match &self.body {
            Body::Flatten => flatten(images),
            Body::Mlp(body) => body.features(&flatten(images)?),
            Body::Conv(body) => body.features(images, train),
            Body::Bert(_) | Body::Gpu(_) => unreachable!("these read no image, or check it themselves"),
        }
    }

    /// The gradients of a loss of its logits or features, by parameter: to be called instead of [`Tensor::backward`],
    /// which finds none of a BERT's, and on a GPU the head's alone.
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        match &self.body {
            Body::Bert(body) => body.backward(loss),
            Body::Gpu(body) => body.backward(loss),
            _ => Ok(loss.backward()?),
        }
    }

    /// Names the masks of the next training passes' dropout: the same (seed, step), the same masks. A model without
    /// dropout ignores it.
    pub fn set_step(&self, seed: u64, step: u64) {
        self.dropout.set((seed, step));
    }

    /// Logits of given features.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.head.forward(features)
    }

    /// The head's weight [classes, features]: row k is class k's classifier.
    pub fn classifier(&self) -> &Var {
        &self.head.weight
    }

    /// What is trained, in the published order (that of `torch.nn.Module.parameters`), under published names.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The head's weight and bias among [`Model::parameters`], where they are the last two.
    pub fn head_parameters(&self) -> &[(String, Var)] {
        &self.parameters[self.parameters.len() - 2..]
    }

    /// What is saved but not trained: the running statistics of batch norm.
    pub fn buffers(&self) -> &[(String, Var)] {
        &self.buffers
    }

    /// Parameters and buffers as the published checkpoint holds them (convolutions OIHW), in order.
    pub fn to_published(&self) -> Vec<(String, Tensor)> {
        self.parameters
            .iter()
            .chain(&self.buffers)
            .map(|(n, v)| (n.clone(), v.as_detached_tensor()))
            .collect()
    }

    /// Writes [`Model::to_published`] as safetensors.
    pub fn save_published(&self, path: &std::path::Path) -> Result<()> {
        checkpoint::save(&self.to_published(), path)
    }

    /// Reads a published checkpoint: keys and shapes must be equal both ways.
    ///
    /// Errors: every missing key, unknown key and differing shape, in one message; then nothing was changed.
    pub fn load_published(&self, path: &std::path::Path) -> Result<()> {
        let all: Vec<_> = self.parameters.iter().chain(&self.buffers).collect();
        checkpoint::load(&all, path, &|name| Some(name.to_string()))
    }

    /// Reads the body of a published checkpoint and leaves the head as it is, for another number of classes. BERT's
    /// older names (`gamma`, `beta`, no `bert.` prefix) are understood and its pretraining heads left out; otherwise as
    /// [`Model::load_published`].
    pub fn load_pretrained(&self, path: &std::path::Path) -> Result<()> {
        let is_head = |name: &str| {
            name.strip_prefix(&self.head_name).is_some_and(|rest| rest == ".weight" || rest == ".bias")
        };
        let all = self.parameters.iter().chain(&self.buffers);
        let body: Vec<_> = all.filter(|(name, _)| !is_head(name)).collect();
        let is_bert = matches!(self.body, Body::Bert(_));
        checkpoint::load(&body, path, &|name| {
            let name = if is_bert { checkpoint::bert_name(name)? } else { name.to_string() };
            (!is_head(&name)).then_some(name)
        })
    }
}

/// NHWC to rows in channel-first order.
fn flatten(images: &Tensor) -> Result<Tensor> {
    Ok(images.permute((0, 3, 1, 2))?.flatten_from(1)?)
}
