//! What a computation of the theory hands on: quantities with seed and value. Knows no computation and no page.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::job::{self, Job, bad};

/// The version of `outcome.json`.
pub const VERSION: u32 = 1;

/// `outcome.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub version: u32,
    /// By quantity.
    pub quantities: BTreeMap<String, Quantity>,
}

/// One quantity of one stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Quantity {
    /// `%`, `deg` or empty.
    pub unit: String,
    /// Seed and value; a deterministic value has seed 0.
    pub values: Vec<(u64, f64)>,
}

impl Outcome {
    pub fn new() -> Self {
        Self { version: VERSION, quantities: BTreeMap::new() }
    }

    /// Adds a value.
    pub fn add(&mut self, id: impl Into<String>, unit: &str, seed: u64, value: f64) {
        let empty = || Quantity { unit: unit.to_string(), values: vec![] };
        self.quantities.entry(id.into()).or_insert_with(empty).values.push((seed, value));
    }

    /// Writes `outcome.json`.
    ///
    /// Errors: a value is not finite; nothing was computed.
    pub fn write(&self, job: &Job) -> Result<()> {
        for (id, quantity) in &self.quantities {
            if let Some((seed, value)) = quantity.values.iter().find(|(_, v)| !v.is_finite()) {
                anyhow::bail!("{id}: seed {seed}: {value} is no result");
            }
        }
        if self.quantities.is_empty() {
            return Err(bad("params: nothing to compute"));
        }
        job::write_json(&job.out().join("outcome.json"), self)
    }
}

/// A number as it stands in a quantity's name: 10, 0.5.
pub fn word(value: f64) -> String {
    format!("{value}")
}
