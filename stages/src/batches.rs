//! Batches of a training: which examples an epoch visits in which order, and what the model is given of them. Knows
//! arrays and seeds; knows no loss, and of a model only whether it reads images or text.
//!
//! A batch is a function of (seed, epoch, place in the epoch) alone, so a resumed training and one that prepares its
//! batches on another thread see the same ones.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::{Examples, Meta};
use crate::job::bad;
use crate::method::Sampler;
use crate::models::{ModelParams, Shape};
use crate::rng::Stream;

/// How many batches are prepared ahead.
const AHEAD: usize = 2;

/// Pixels that crop-flip pads on each side.
const PAD: usize = 4;

/// What is done to a training image before it is normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    #[default]
    None,
    /// Zero-padded by 4, cropped back at a random place, mirrored with probability 1/2 (Cao et al. 2019's code).
    CropFlip,
}

/// From packed rows to what a model reads.
pub enum Inputs {
    /// [N, H, W, C], float32, normalised.
    Images(Pixels),
    /// [N, 3, length], u32: tokens, segments and mask, as `Bert::features` wants them.
    Texts,
}

impl Inputs {
    /// Of a data set's rows for a model, and the shape that the model must have.
    ///
    /// Errors: `BadInput` for a model that cannot read them.
    pub fn new(meta: &Meta, model: &ModelParams) -> Result<(Inputs, Shape)> {
        let shape = Shape {
            classes: meta.classes.len(),
            channels: meta.channels,
            height: meta.height,
            width: meta.width,
        };
        let (Some(sequence), ModelParams::Bert { sizes }) = (meta.sequence, model) else {
            let (reads, are, cure) = match meta.sequence {
                Some(_) => ("images", "texts", "bert"),
                None if matches!(model, ModelParams::Bert { .. }) => ("texts", "images", "resnet-cifar"),
                None => return Ok((Inputs::Images(Pixels::new(meta)), shape)),
            };
            let set = &meta.dataset;
            return Err(bad(format!(
                "params.model.family: reads {reads}, but the examples of {set} are {are}\nhint: set family: {cure}, say"
            )));
        };
        if sequence > sizes.positions {
            return Err(bad(format!(
                "params.model.sizes.positions: {}: the texts have {sequence} tokens\nhint: prepare them with a smaller \
                 sequence",
                sizes.positions
            )));
        }
        if let Some(vocabulary) = meta.vocabulary.filter(|&n| n > sizes.vocabulary) {
            return Err(bad(format!(
                "params.model.sizes.vocabulary: {}: the texts' tokenizer knows {vocabulary} tokens\nhint: take the \
                 tokenizer that belongs to the model",
                sizes.vocabulary
            )));
        }
        Ok((Inputs::Texts, shape))
    }

    /// The given rows, untouched.
    pub fn tensor(&self, examples: &Examples, rows: &[u32]) -> Result<Tensor> {
        match self {
            Inputs::Images(pixels) => pixels.tensor(examples, rows),
            Inputs::Texts => texts(examples, rows),
        }
    }

    /// How many rows a forward pass without training should take: its memory is in proportion to them.
    pub fn at_once(&self) -> usize {
        match self {
            Inputs::Images(pixels) => {
                (MEASURED / (pixels.height * pixels.width * pixels.channels).max(1)).clamp(8, 256)
            }
            Inputs::Texts => 32,
        }
    }
}

/// Numbers of images that a forward pass without training takes: 256 of CIFAR-10's.
const MEASURED: usize = 256 * 3072;

/// Texts as long as the longest of them: padding that all have in common changes nothing but the time.
fn texts(examples: &Examples, rows: &[u32]) -> Result<Tensor> {
    let texts: Vec<_> = rows.iter().map(|&row| examples.tokens(row as usize)).collect();
    let length = texts.iter().map(|t| t.length).max().unwrap_or(0).max(1);
    let mut values = Vec::with_capacity(3 * length * texts.len());
    for text in &texts {
        values.extend_from_slice(&text.ids[..length]);
        values.extend(text.types[..length].iter().map(|&t| u32::from(t)));
        values.extend((0..length).map(|place| u32::from(place < text.length)));
    }
    Ok(Tensor::from_vec(values, (texts.len(), 3, length), &Device::Cpu)?)
}

/// From bytes to numbers: `(v / 255 - mean) / std` of each channel, in float32 as torchvision computes it.
pub struct Pixels {
    height: usize,
    width: usize,
    channels: usize,
    tables: Vec<[f32; 256]>,
}

impl Pixels {
    /// With the published normalisation of a data set.
    pub fn new(meta: &Meta) -> Pixels {
        let table = |(mean, std): (&f64, &f64)| {
            std::array::from_fn(|v| (v as f32 / 255.0 - *mean as f32) / *std as f32)
        };
        let tables = meta.mean.iter().zip(&meta.std).map(table).collect();
        Pixels { height: meta.height, width: meta.width, channels: meta.channels, tables }
    }

    /// Images `[N, H, W, C]` of the given rows, normalised and otherwise untouched.
    pub fn tensor(&self, examples: &Examples, rows: &[u32]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(rows.len() * self.height * self.width * self.channels);
        rows.iter().for_each(|&row| self.push(examples.image(row as usize), None, &mut values));
        self.shape(values)
    }

    fn shape(&self, values: Vec<f32>) -> Result<Tensor> {
        let n = values.len() / (self.height * self.width * self.channels).max(1);
        Ok(Tensor::from_vec(values, (n, self.height, self.width, self.channels), &Device::Cpu)?)
    }

    /// Appends one image. `moved` is the crop's corner in the padded image and whether it is mirrored.
    fn push(&self, image: &[u8], moved: Option<(usize, usize, bool)>, out: &mut Vec<f32>) {
        let Some((top, left, mirrored)) = moved else {
            for pixel in image.chunks_exact(self.channels) {
                out.extend(pixel.iter().zip(&self.tables).map(|(&v, table)| table[v as usize]));
            }
            return;
        };
        for y in 0..self.height {
            for x in 0..self.width {
                let x = if mirrored { self.width - 1 - x } else { x };
                // Outside the image the subtraction wraps to a number beyond its size.
                let (from_y, from_x) = ((y + top).wrapping_sub(PAD), (x + left).wrapping_sub(PAD));
                let inside = from_y < self.height && from_x < self.width;
                let at = if inside { (from_y * self.width + from_x) * self.channels } else { 0 };
                out.extend((0..self.channels).map(|c| {
                    let v = if inside { image[at + c] } else { 0 };
                    self.tables[c][v as usize]
                }));
            }
        }
    }
}

/// One batch.
pub struct Batch {
    /// As [`Inputs`] has them.
    pub inputs: Tensor,
    pub labels: Vec<u32>,
    pub groups: Vec<u32>,
}

/// The training rows of a data set with what is needed to make batches of them.
pub struct Source<'a> {
    pub examples: &'a Examples,
    /// The rows to train on.
    pub rows: &'a [u32],
    pub inputs: &'a Inputs,
    /// Of images.
    pub augment: Augment,
    pub sampler: &'a Sampler,
    pub seed: u64,
    /// Examples a batch; the last of an epoch may be smaller (PyTorch's `drop_last=False`).
    pub batch: usize,
}

impl Source<'_> {
    /// Steps of one epoch.
    pub fn steps(&self) -> u64 {
        self.rows.len().div_ceil(self.batch.max(1)) as u64
    }

    /// The rows of an epoch in the order of their visit.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let places = match self.sampler {
            Sampler::Shuffled => Stream::new(self.seed, "shuffle", epoch, 0).permutation(self.rows.len()),
            Sampler::Resampled(by_group) => {
                let weight = |&row: &u32| by_group[self.examples.group(row as usize) as usize];
                let weights: Vec<f64> = self.rows.iter().map(weight).collect();
                Stream::new(self.seed, "resample", epoch, 0).draw(&weights, self.rows.len())
            }
        };
        places.into_iter().map(|place| self.rows[place as usize]).collect()
    }

    /// The batch of a step within an epoch whose order is given.
    pub fn batch(&self, epoch: u64, order: &[u32], step: u64) -> Result<Batch> {
        let from = step as usize * self.batch;
        let rows = &order[from..(from + self.batch).min(order.len())];
        let inputs = match self.inputs {
            Inputs::Texts => texts(self.examples, rows)?,
            Inputs::Images(pixels) => self.images(pixels, epoch, from, rows)?,
        };
        Ok(Batch {
            inputs,
            labels: rows.iter().map(|&row| self.examples.labels()[row as usize]).collect(),
            groups: rows.iter().map(|&row| self.examples.group(row as usize)).collect(),
        })
    }

    /// The images of `rows`, which stand at place `from` and on of the epoch, augmented.
    fn images(&self, pixels: &Pixels, epoch: u64, from: usize, rows: &[u32]) -> Result<Tensor> {
        let mut values = Vec::new();
        for (i, &row) in rows.iter().enumerate() {
            let moved = match self.augment {
                Augment::None => None,
                Augment::CropFlip => {
                    let mut stream = Stream::new(self.seed, "augment", epoch, (from + i) as u64);
                    let mut corner = || stream.below(2 * PAD as u64 + 1) as usize;
                    Some((corner(), corner(), stream.chance(0.5)))
                }
            };
            pixels.push(self.examples.image(row as usize), moved, &mut values);
        }
        pixels.shape(values)
    }

    /// Makes all batches from a step of an epoch to the end of the last epoch on a thread of `scope`, a few ahead of the
    /// one that takes them. The thread ends when the receiver is dropped.
    pub fn ahead<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        epoch: u64,
        step: u64,
        epochs: u64,
    ) -> Receiver<Result<Batch>> {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            let mut first = step;
            for epoch in epoch..epochs {
                let order = self.order(epoch);
                for step in first..self.steps() {
                    if sender.send(self.batch(epoch, &order, step)).is_err() {
                        return;
                    }
                }
                first = 0;
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels() -> Pixels {
        // Numbers that say which byte they came from.
        Pixels { height: 3, width: 3, channels: 1, tables: vec![std::array::from_fn(|v| v as f32)] }
    }

    fn moved(top: usize, left: usize, mirrored: bool) -> Vec<f32> {
        let mut out = Vec::new();
        pixels().push(&[1, 2, 3, 4, 5, 6, 7, 8, 9], Some((top, left, mirrored)), &mut out);
        out
    }

    #[test]
    fn crops_and_mirrors_by_hand() {
        assert_eq!(moved(4, 4, false), [1., 2., 3., 4., 5., 6., 7., 8., 9.]);
        assert_eq!(moved(4, 4, true), [3., 2., 1., 6., 5., 4., 9., 8., 7.]);
        // The corner one to the right and one down in the padded image: the picture moves up and left.
        assert_eq!(moved(5, 5, false), [5., 6., 0., 8., 9., 0., 0., 0., 0.]);
        assert_eq!(moved(3, 4, false), [0., 0., 0., 1., 2., 3., 4., 5., 6.]);
        assert_eq!(moved(0, 0, false), [0.; 9]);
        // PyTorch mirrors the crop, not the picture.
        assert_eq!(moved(4, 5, true), [0., 3., 2., 0., 6., 5., 0., 9., 8.]);
    }

    // torchvision: (torch.tensor(v, dtype=torch.float32) / 255).sub_(0.2860).div_(0.3530) for v = 0, 1, 128, 255
    #[test]
    fn normalises_as_torchvision() {
        let meta: Meta = serde_json::from_value(serde_json::json!({
            "dataset": "fashion-mnist", "variant": "hub", "exact": true, "note": "", "height": 1, "width": 4,
            "channels": 1, "classes": ["a", "b"], "attributes": ["none"], "n_attributes": 1,
            "counts": {"train": [], "validation": [], "test": []}, "mean": [0.2860], "std": [0.3530]
        }))
        .unwrap();
        let mut out = Vec::new();
        Pixels::new(&meta).push(&[0, 1, 128, 255], None, &mut out);
        assert_eq!(out, [-0.81019837, -0.79908913, 0.611787, 2.0226629]);
    }
}
