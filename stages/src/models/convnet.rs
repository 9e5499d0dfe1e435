//! A convolutional body: a [`Net`] with named parameters and running statistics. Knows batch norm's bookkeeping, not
//! which architecture it carries.

use super::Builder;
use crate::nn::net::{Net, Statistics, Value};
use crate::nn::op;
use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use std::sync::Arc;

/// PyTorch's default: the weight of the newest batch.
const MOMENTUM: f64 = 0.1;

/// How the weights of convolutions start: standard deviation √(2 / n).
#[derive(Clone, Copy)]
pub enum Fan {
    /// n = kernel² · input channels: `kaiming_normal_`'s default.
    In,
    /// n = kernel² · output channels: torchvision's ResNet.
    Out,
}

/// A convolution's and its batch norm's parameters, and the norm's running statistics.
pub struct UnitVars {
    weight: Var,
    gamma: Var,
    beta: Var,
    mean: Var,
    variance: Var,
    count: Var,
}

impl UnitVars {
    /// Named `conv`.weight and `norm`.weight, `norm`.bias, …
    pub fn new(
        builder: &mut Builder<'_>,
        (conv, norm): (&str, &str),
        (inputs, outputs): (usize, usize),
        kernel: usize,
        fan: Fan,
    ) -> Result<UnitVars> {
        let n = kernel * kernel * if matches!(fan, Fan::In) { inputs } else { outputs };
        let shape = [outputs, inputs, kernel, kernel];
        let zeros = Tensor::zeros(outputs, DType::F32, &Device::Cpu)?;
        Ok(UnitVars {
            weight: builder.normal(format!("{conv}.weight"), &shape, (2.0 / n as f64).sqrt())?,
            gamma: builder.constant(format!("{norm}.weight"), &[outputs], 1.0)?,
            beta: builder.constant(format!("{norm}.bias"), &[outputs], 0.0)?,
            mean: builder.buffer(format!("{norm}.running_mean"), &zeros)?,
            variance: builder.buffer(format!("{norm}.running_var"), &zeros.ones_like()?)?,
            count: builder
                .buffer(format!("{norm}.num_batches_tracked"), &Tensor::new(0i64, &Device::Cpu)?)?,
        })
    }
}

/// A net under construction together with its variables, in the order of the net's units.
pub struct ConvNet {
    pub net: Net,
    units: Vec<UnitVars>,
}

impl ConvNet {
    pub fn new(net: Net) -> ConvNet {
        ConvNet { net, units: vec![] }
    }

    /// [`Net::unit`] with its variables.
    pub fn unit(
        &mut self,
        vars: UnitVars,
        input: Value,
        (kernel, stride): (usize, usize),
        residual: Option<Value>,
        relu: bool,
    ) -> Result<Value> {
        let outputs = vars.weight.dim(0)?;
        self.units.push(vars);
        Ok(self.net.unit(input, outputs, (kernel, stride), residual, relu))
    }

    pub fn finish(self) -> ConvBody {
        ConvBody { net: Arc::new(self.net), units: self.units }
    }
}

/// Images to features.
pub struct ConvBody {
    net: Arc<Net>,
    units: Vec<UnitVars>,
}

impl ConvBody {
    /// Features [N, channels]. With `train`, by the batch's statistics, which move the running ones.
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut packed = vec![];
        for unit in &self.units {
            for var in [&unit.weight, &unit.gamma, &unit.beta] {
                packed.push(var.as_tensor().flatten_all()?);
            }
        }
        let packed = Tensor::cat(&packed, 0)?;
        let running = if train { None } else { Some(self.running()?) };
        let (features, batch) = op::apply(&self.net, images, &packed, running)?;
        if let Some(batch) = batch {
            self.units.iter().zip(&batch).try_for_each(|(unit, batch)| unit.move_running(batch))?;
        }
        Ok(features)
    }

    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Of each unit in the net's order: weight, gamma, beta; running mean, running variance, count of batches.
    pub fn units(&self) -> impl Iterator<Item = [&Var; 6]> {
        self.units.iter().map(|u| [&u.weight, &u.gamma, &u.beta, &u.mean, &u.variance, &u.count])
    }

    fn running(&self) -> Result<Vec<Statistics>> {
        let values = |var: &Var| -> Result<Vec<f64>> {
            Ok(var.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        let units = self.units.iter();
        units.map(|u| Ok(Statistics { mean: values(&u.mean)?, variance: values(&u.variance)? })).collect()
    }
}

impl UnitVars {
    fn move_running(&self, batch: &Statistics) -> Result<()> {
        for (var, new) in [(&self.mean, &batch.mean), (&self.variance, &batch.variance)] {
            let moved = var.to_vec1::<f32>()?;
            let moved: Vec<f32> = moved
                .into_iter()
                .zip(new)
                .map(|(old, new)| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * new) as f32)
                .collect();
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
        }
        self.count.set(&Tensor::new(self.count.to_scalar::<i64>()? + 1, &Device::Cpu)?)?;
        Ok(())
    }
}
