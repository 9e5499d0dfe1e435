//! Prepared data sets: what a set is, its arrays on disk, and the one formula for groups. Knows the files that prepare
//! and subsample write; knows no model.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::job::{bad, read_json};

pub mod celeba;
pub mod cifar10;
pub mod decode;
pub mod fashion_mnist;
pub mod indices;
pub mod multinli;
pub mod packed;
pub mod parquet;
pub mod resize;
pub mod waterbirds;

/// The sets of pairs of texts that prepare knows.
pub const TEXTS: &[&TextSet] = &[&multinli::SET];

/// The sets of images that prepare knows.
pub const SETS: &[&Set] = &[&fashion_mnist::SET, &cifar10::SET, &celeba::SET, &waterbirds::SET];

/// What is known of a set of labelled images: how the Hub stores it and how it was published.
pub struct Set {
    /// The word in `params.dataset`.
    pub name: &'static str,
    /// The published splits that it has, in the order train, validation, test.
    pub splits: &'static [SplitFiles],
    /// The Parquet column with PNG or JPEG bytes.
    pub image: &'static str,
    /// The label.
    pub label: Field,
    /// The attribute that makes groups of the labels, where the set has one.
    pub attribute: Option<Field>,
    /// How an image gets its size.
    pub fit: Fit,
    /// Height in pixels, after that.
    pub height: usize,
    /// Width in pixels, after that.
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// The published normalisation: the mean of each channel, of pixels in 0..1.
    pub mean: &'static [f64],
    /// Its standard deviation.
    pub std: &'static [f64],
    /// Whether pictures of it may be shown.
    pub shown: bool,
    /// Where a row of the Hub's training file stands in the published order, where the two differ: (row, rows) -> row.
    pub published_row: Option<fn(usize, usize) -> usize>,
}

impl Set {
    /// How many values the attribute has; 1 without one.
    pub fn n_attributes(&self) -> u32 {
        self.attribute.as_ref().map_or(1, |attribute| attribute.names.len() as u32)
    }
}

/// What is known of a set of labelled pairs of texts.
pub struct TextSet {
    /// The word in `params.dataset`.
    pub name: &'static str,
    /// Its Parquet files, in the order of the metadata's rows.
    pub files: &'static [&'static str],
    /// The table of labels, attributes and splits, one row a pair: the columns of group DRO's preparation.
    pub metadata: &'static str,
    /// The columns of the first and the second text.
    pub texts: [&'static str; 2],
    /// The column of the label, and the label that each of its numbers stands for.
    pub label: (&'static str, &'static [u32]),
    /// The names of the labels.
    pub classes: &'static [&'static str],
    /// Whether a second text has the attribute.
    pub attribute: fn(&str) -> bool,
    /// The names of the attribute's two values.
    pub attributes: [&'static str; 2],
    /// Published examples of each group, in the order train, validation, test.
    pub counts: [&'static [u64]; 3],
}

/// A column of small whole numbers: `first` stands for the value 0, `first + step` for 1, ….
pub struct Field {
    /// The Parquet column.
    pub column: &'static str,
    /// The names of the values.
    pub names: &'static [&'static str],
    /// The number in the column that stands for the value 0.
    pub first: i64,
    /// The difference between two neighbours.
    pub step: i64,
}

impl Field {
    /// The value that a number of the column stands for. Errors: it stands for none.
    pub fn value(&self, number: i64) -> Result<u32, String> {
        let at = (0..self.names.len()).find(|&i| self.first + self.step * i as i64 == number);
        at.map(|i| i as u32).ok_or_else(|| {
            let last = self.first + self.step * (self.names.len() as i64 - 1);
            match self.step {
                1 => format!("{}: {number} is not in {}..={last}", self.column, self.first),
                step => format!(
                    "{}: {number} is not in {}, {}, ..={last}",
                    self.column,
                    self.first,
                    self.first + step
                ),
            }
        })
    }
}

/// How an image of the set gets its published size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It has it.
    Exact,
    /// The middle square of so many pixels is cut out, then resized.
    CropThenResize(usize),
    /// It is resized to a square of so many pixels whatever its shape, then the middle is cut out.
    ResizeThenCrop(usize),
}

/// One split of a published set.
pub struct SplitFiles {
    /// Which one.
    pub split: Split,
    /// Its files in the repository, in order.
    pub files: &'static [&'static str],
    /// How many examples each group has, in the order of [`group`].
    pub counts: &'static [u64],
    /// Digests of the content, where they are known.
    pub content: Content,
}

/// MD5 digests of a split in the published order, in hexadecimal digits, where they are known.
#[derive(Default)]
pub struct Content {
    /// Of the pixels, row by row, channels last, without any header.
    pub pixels: Option<&'static str>,
    /// Of the labels as an idx1 file, header included.
    pub labels: Option<&'static str>,
}

/// The group of an example with label `y` and attribute `a`; the only place that knows the formula.
pub fn group(y: u32, a: u32, n_attributes: u32) -> u32 {
    y * n_attributes + a
}

/// A number for each of the three splits' groups, in the order of [`group`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Training examples per group.
    pub train: Vec<u64>,
    /// Validation examples per group; empty where the split is.
    pub validation: Vec<u64>,
    /// Test examples per group.
    pub test: Vec<u64>,
}

impl Counts {
    /// Those of a split.
    pub fn of(&mut self, split: Split) -> &mut Vec<u64> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::Test => &mut self.test,
        }
    }
}

/// `meta.json` beside the arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The set's name, as `fashion-mnist`.
    pub dataset: String,
    /// Which of its forms this is: `hub`, `mirror`, `bundled`.
    pub variant: String,
    /// Whether the arrays are bit for bit the published set.
    pub exact: bool,
    /// How far they are from it; every number computed from a variant that is not exact carries this text.
    pub note: String,
    /// Height in pixels; 0 for text.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub height: usize,
    /// Width in pixels; 0 for text.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub width: usize,
    /// 1 or 3; 0 for text.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub channels: usize,
    /// How many tokens a text has, padding included; `None` for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<usize>,
    /// How many different tokens its tokenizer knows; `None` for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
    /// The names of the labels.
    pub classes: Vec<String>,
    /// The names of the attribute's values; one name where the set has no attribute.
    pub attributes: Vec<String>,
    /// How many values the attribute has, at least 1.
    pub n_attributes: u32,
    /// Examples per group.
    pub counts: Counts,
    /// The published normalisation: mean of each channel, of pixels in 0..1; empty for text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f64>,
    /// Its standard deviation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f64>,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// The number of a split in the arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// 0
    Train = 0,
    /// 1
    Validation = 1,
    /// 2
    Test = 2,
}

impl Split {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// A text as a network reads it, padded with `[PAD]` to the set's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens<'a> {
    /// The tokens' numbers, padding included.
    pub ids: &'a [u32],
    /// 0 for the first text of a pair (with its `[CLS]` and `[SEP]`) and for padding, 1 for the second.
    pub types: &'a [u8],
    /// How many are no padding: the attention mask is 1 below it.
    pub length: usize,
}

/// Where the inputs lie in the mapped file.
enum Inputs {
    /// `length` bytes an example.
    Images { start: usize, length: usize },
    /// `sequence` words of four bytes, and as many bytes, an example.
    Texts { ids: usize, types: usize, sequence: usize, lengths: Vec<u32> },
}

/// A prepared set, its inputs mapped into memory.
pub struct Examples {
    meta: Meta,
    map: Mmap,
    inputs: Inputs,
    labels: Vec<u32>,
    attributes: Vec<u32>,
    splits: Vec<u32>,
}

impl Examples {
    /// Opens the folder that prepare wrote.
    ///
    /// Errors: `BadInput` where a file is missing, its arrays do not have the documented names, types and shapes, or a
    /// label, an attribute or a split is out of range.
    pub fn open(folder: &Path) -> Result<Self> {
        let meta: Meta = read_json(&folder.join("meta.json"))?;
        let path = folder.join("examples.safetensors");
        Self::map(meta, &path).with_context(|| path.display().to_string())
    }

    fn map(meta: Meta, path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(bad)?;
        // SAFETY: the file belongs to a stage's output, which nobody writes to once it is there.
        let map = unsafe { Mmap::map(&file)? };
        let tensors = SafeTensors::deserialize(&map).map_err(|e| bad(format!("not safetensors: {e}")))?;
        let labels = u32s(&tensors, "label")?;
        let (attributes, splits) = (u32s(&tensors, "attribute")?, u32s(&tensors, "split")?);
        let start = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<usize> {
            let tensor = tensors.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
            let found = (tensor.dtype(), tensor.shape());
            if found != (dtype, shape) {
                return Err(bad(format!("{name}: {:?} is expected, found {found:?}", (dtype, shape))));
            }
            Ok(tensor.data().as_ptr() as usize - map.as_ptr() as usize)
        };
        let n = labels.len();
        let inputs = match meta.sequence {
            None => Inputs::Images {
                start: start("image", Dtype::U8, &[n, meta.height, meta.width, meta.channels])?,
                length: meta.height * meta.width * meta.channels,
            },
            Some(sequence) => {
                let ids = start("input_ids", Dtype::U32, &[n, sequence])?;
                if !ids.is_multiple_of(size_of::<u32>()) {
                    return Err(bad("input_ids: not at a multiple of four bytes"));
                }
                let types = start("token_type_ids", Dtype::U8, &[n, sequence])?;
                Inputs::Texts { ids, types, sequence, lengths: u32s(&tensors, "length")? }
            }
        };
        let mut columns = vec![
            ("label", &labels, meta.classes.len() as u32),
            ("attribute", &attributes, meta.n_attributes),
            ("split", &splits, 3),
        ];
        if let Inputs::Texts { sequence, lengths, .. } = &inputs {
            columns.push(("length", lengths, *sequence as u32 + 1));
        }
        for (name, values, end) in columns {
            if values.len() != n {
                return Err(bad(format!("{name}: {} values for {n} labels", values.len())));
            }
            if let Some(row) = values.iter().position(|&v| v >= end) {
                return Err(bad(format!("{name}: row {row}: {} is not below {end}", values[row])));
            }
        }
        Ok(Self { meta, map, inputs, labels, attributes, splits })
    }

    /// How many examples there are, in all splits.
    pub fn n(&self) -> usize {
        self.labels.len()
    }

    /// What `meta.json` says.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether the examples are texts, not images.
    pub fn is_text(&self) -> bool {
        matches!(self.inputs, Inputs::Texts { .. })
    }

    /// The pixels of an example: height · width · channels bytes, channels last. Panics where `i >= n()`, and for text.
    pub fn image(&self, i: usize) -> &[u8] {
        assert!(i < self.n(), "example {i} of {}", self.n());
        let Inputs::Images { start, length } = self.inputs else { panic!("{} is text", self.meta.dataset) };
        &self.map[start + i * length..][..length]
    }

    /// The tokens of an example. Panics where `i >= n()`, and for images.
    pub fn tokens(&self, i: usize) -> Tokens<'_> {
        assert!(i < self.n(), "example {i} of {}", self.n());
        let Inputs::Texts { ids, types, sequence, lengths } = &self.inputs else {
            panic!("{} is a set of images", self.meta.dataset)
        };
        let bytes = &self.map[ids + i * sequence * 4..][..sequence * 4];
        // SAFETY: every four bytes are a u32; `map` has checked where they start.
        let (_, words, _) = unsafe { bytes.align_to::<u32>() };
        let types = &self.map[types + i * sequence..][..*sequence];
        Tokens { ids: words, types, length: lengths[i] as usize }
    }

    /// The label of each example.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The attribute of each example.
    pub fn attributes(&self) -> &[u32] {
        &self.attributes
    }

    /// The split of each example, as in [`Split`].
    pub fn splits(&self) -> &[u32] {
        &self.splits
    }

    /// The group of an example. Panics where `i >= n()`.
    pub fn group(&self, i: usize) -> u32 {
        group(self.labels[i], self.attributes[i], self.meta.n_attributes)
    }

    /// How many groups there are.
    pub fn n_groups(&self) -> usize {
        self.meta.classes.len() * self.meta.n_attributes as usize
    }
}

/// A u32 tensor of one dimension, by name.
pub(crate) fn u32s(tensors: &SafeTensors, name: &str) -> Result<Vec<u32>> {
    let tensor = tensors.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
    if tensor.dtype() != Dtype::U32 || tensor.shape().len() != 1 {
        let found = (tensor.dtype(), tensor.shape());
        return Err(bad(format!("{name}: u32 of one dimension is expected, found {found:?}")));
    }
    let words = tensor.data().chunks_exact(4);
    Ok(words.map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_index_by_hand() {
        // CelebA: y = blond (1), a = male (1): dark female 0, dark male 1, blond female 2, blond male 3.
        assert_eq!([group(0, 0, 2), group(0, 1, 2), group(1, 0, 2), group(1, 1, 2)], [0, 1, 2, 3]);
        // Without an attribute the group is the class.
        assert_eq!(group(7, 0, 1), 7);
        // MultiNLI: neutral (2) with a negation (1) of 2 attribute values.
        assert_eq!(group(2, 1, 2), 5);
    }
}
