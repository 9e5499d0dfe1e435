//! A multilayer perceptron with ReLU: `fc1`, `fc2`, … below the head. Knows no data.

use super::Builder;
use super::head::Head;
use crate::models::HeadInit;
use anyhow::{Result, ensure};
use candle_core::Tensor;

/// The hidden layers.
pub struct Mlp(Vec<Head>);

impl Mlp {
    /// Layers of the given widths after `inputs`, started as `torch.nn.Linear`.
    pub fn new(builder: &mut Builder<'_>, mut inputs: usize, hidden: &[usize]) -> Result<Mlp> {
        ensure!(
            !hidden.is_empty() && !hidden.contains(&0),
            "model: hidden: {hidden:?}: needs widths above 0"
        );
        let mut layers = vec![];
        for (i, &outputs) in hidden.iter().enumerate() {
            layers.push(Head::new(builder, &format!("fc{}", i + 1), inputs, outputs, HeadInit::Pytorch)?);
            inputs = outputs;
        }
        Ok(Mlp(layers))
    }

    /// The same of other layers.
    pub fn of(layers: Vec<Head>) -> Mlp {
        Mlp(layers)
    }

    pub fn features(&self, rows: &Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(rows.clone(), |rows, layer| relu(&layer.forward(&rows)?))
    }
}

/// max(x, 0) with PyTorch's gradient: 0 at 0, where candle's passes it.
fn relu(x: &Tensor) -> Result<Tensor> {
    let positive = x.detach().gt(0f32)?.to_dtype(x.dtype())?;
    Ok((x * positive)?)
}
