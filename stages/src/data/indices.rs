//! Which examples an experiment uses: row numbers into the arrays. Knows the two files that subsample writes; knows no
//! scheme that chose them.

use std::fs;
use std::path::Path;

use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Counts, Examples, u32s};
use crate::job::{bad, read_json, write, write_json};

/// `meta.json` beside the indices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndicesMeta {
    /// Examples of a majority class for one of a minority class; 1 where nothing was thinned out.
    #[serde(serialize_with = "whole")]
    pub ratio: f64,
    /// Training examples of a majority class.
    pub n_major: u64,
    /// Validation examples of each class.
    pub validation_per_class: u64,
    /// The seed of the choice.
    pub seed: u64,
    /// Chosen examples per group and split.
    pub counts: Counts,
    /// The classes that keep all their training examples.
    pub majority: Vec<u32>,
    /// The classes that were thinned out.
    pub minority: Vec<u32>,
}

/// Writes 10.0 as 10.
fn whole<S: serde::Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    crate::job::whole(*value).serialize(to)
}

/// Row numbers into the arrays, by split; ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Indices {
    /// To train on.
    pub train: Vec<u32>,
    /// To choose settings on.
    pub validation: Vec<u32>,
    /// To report.
    pub test: Vec<u32>,
    /// How they were chosen.
    pub meta: IndicesMeta,
}

impl Indices {
    /// Opens the folder that subsample wrote, for these arrays.
    ///
    /// Errors: `BadInput` for missing or malformed files, or a row that the arrays do not have.
    pub fn open(folder: &Path, examples: &Examples) -> anyhow::Result<Self> {
        let meta = read_json(&folder.join("meta.json"))?;
        let path = folder.join("indices.safetensors");
        let read = || -> anyhow::Result<Self> {
            let bytes = fs::read(&path).map_err(bad)?;
            let tensors =
                SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("not safetensors: {e}")))?;
            let rows = |name: &str| -> anyhow::Result<Vec<u32>> {
                let rows = u32s(&tensors, name)?;
                match rows.iter().find(|&&row| row as usize >= examples.n()) {
                    Some(row) => Err(bad(format!("{name}: row {row} of {}", examples.n()))),
                    None => Ok(rows),
                }
            };
            Ok(Self { train: rows("train")?, validation: rows("validation")?, test: rows("test")?, meta })
        };
        read().with_context(|| path.display().to_string())
    }

    /// Writes both files.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let bytes = |rows: &[u32]| rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>();
        let data = [("train", &self.train), ("validation", &self.validation), ("test", &self.test)]
            .map(|(name, rows)| (name, rows.len(), bytes(rows)));
        let mut views = Vec::new();
        for (name, length, bytes) in &data {
            views.push((*name, TensorView::new(Dtype::U32, vec![*length], bytes)?));
        }
        write(&folder.join("indices.safetensors"), &safetensors::serialize(views, None)?)?;
        write_json(&folder.join("meta.json"), &self.meta)
    }
}
