//! The linear head: features to logits. Knows nothing of what made the features.

use super::{Builder, HeadInit};
use anyhow::Result;
use candle_core::{Tensor, Var};

/// logits = h · weightᵀ + bias.
pub struct Head {
    pub weight: Var,
    pub bias: Var,
}

impl Head {
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        inputs: usize,
        outputs: usize,
        init: HeadInit,
    ) -> Result<Head> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let bound = 1.0 / (inputs as f64).sqrt();
        Ok(match init {
            HeadInit::Pytorch => Head {
                weight: builder.uniform(weight, &[outputs, inputs], bound)?,
                bias: builder.uniform(bias, &[outputs], bound)?,
            },
            HeadInit::Kaiming => Head {
                weight: builder.normal(weight, &[outputs, inputs], (2.0 / inputs as f64).sqrt())?,
                bias: builder.uniform(bias, &[outputs], bound)?,
            },
            HeadInit::Zero => Head {
                weight: builder.constant(weight, &[outputs, inputs], 0.0)?,
                bias: builder.constant(bias, &[outputs], 0.0)?,
            },
        })
    }

    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?)
    }
}
