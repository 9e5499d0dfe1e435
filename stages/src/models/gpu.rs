//! A model moved to a GPU: its numbers lie there, its body runs as kernels (`nn/gpu.rs`), head and loss stay candle's.
//! Knows which variable is which argument; knows no kernel.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::head::Head;
use super::mlp::Mlp;
use super::{Model, Shape};
use crate::nn::gpu::net::{self, Net, UnitBufs};
use crate::nn::gpu::{Gpu, bert};
use crate::rng::Stream;

/// The part below the head.
pub struct Body {
    gpu: Arc<Gpu>,
    network: Network,
    /// In the order of the network's gradients.
    parameters: Vec<Var>,
    /// The last training pass: its features, and what its backward pass needs.
    pending: RefCell<Option<(Var, Saved)>>,
}

enum Network {
    Net { net: Net, shape: Shape, counts: Vec<Var> },
    Bert { bert: bert::Bert, sizes: bert::Sizes },
}

enum Saved {
    Net(net::Saved),
    Bert(bert::Saved),
}

impl Model {
    /// The same model on a GPU. Images and tokens may still be given on the CPU.
    ///
    /// Errors: bf16 for a model without convolutions and attention.
    pub fn on(self, gpu: Arc<Gpu>) -> Result<Model> {
        let moved = |(name, var): &(String, Var)| -> Result<(String, Var)> {
            // Counts of batches are the host's.
            let var = if var.dtype() == DType::F32 {
                Var::from_tensor(&var.as_detached_tensor().to_device(gpu.device())?)?
            } else {
                var.clone()
            };
            Ok((name.clone(), var))
        };
        let parameters = self.parameters.iter().map(moved).collect::<Result<Vec<_>>>()?;
        let buffers = self.buffers.iter().map(moved).collect::<Result<Vec<_>>>()?;
        let find = |var: &Var| -> Result<Var> {
            let old = self.parameters.iter().chain(&self.buffers);
            let at = old.zip(parameters.iter().chain(&buffers)).find(|((_, old), _)| old.id() == var.id());
            Ok(at.context("model: a variable without a name")?.1.1.clone())
        };
        let (below, head) = parameters.split_at(parameters.len() - 2);
        let layer = |pair: &[(String, Var)]| Head { weight: pair[0].1.clone(), bias: pair[1].1.clone() };
        let body = match &self.body {
            super::Body::Flatten | super::Body::Mlp(_) => {
                ensure!(
                    !gpu.engine.half(),
                    "dtype: bf16: this family is float32 throughout\nhint: set dtype: f32"
                );
                match &self.body {
                    super::Body::Mlp(_) => super::Body::Mlp(Mlp::of(below.chunks(2).map(layer).collect())),
                    _ => super::Body::Flatten,
                }
            }
            super::Body::Conv(body) => {
                let (mut units, mut trained, mut counts) = (vec![], vec![], vec![]);
                for vars in body.units() {
                    let vars = vars.into_iter().map(&find).collect::<Result<Vec<_>>>()?;
                    let at = |i: usize| gpu.engine.address(&vars[i]);
                    units.push(UnitBufs {
                        weight: at(0)?,
                        gamma: at(1)?,
                        beta: at(2)?,
                        mean: at(3)?,
                        variance: at(4)?,
                    });
                    trained.extend_from_slice(&vars[..3]);
                    counts.push(vars[5].clone());
                }
                let net = Net::new(body.net().plan(), units);
                let network = Network::Net { net, shape: self.shape, counts };
                super::Body::Gpu(Body::new(&gpu, network, trained))
            }
            super::Body::Bert(body) => {
                let sizes = body.sizes();
                let addresses = below.iter().map(|(_, var)| gpu.engine.address(var));
                let bert = bert::Bert::new(sizes.clone(), addresses.collect::<Result<_>>()?)?;
                let trained = below.iter().map(|(_, var)| var.clone()).collect();
                super::Body::Gpu(Body::new(&gpu, Network::Bert { bert, sizes }, trained))
            }
            super::Body::Gpu(_) => anyhow::bail!("model: it is on a GPU already"),
        };
        let head = layer(head);
        let Model { shape, head_name, dropout, .. } = self;
        Ok(Model { shape, body, head, parameters, buffers, head_name, dropout, gpu: Some(gpu) })
    }

    /// Where it runs, if not on the CPU.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref()
    }
}

impl Body {
    fn new(gpu: &Arc<Gpu>, network: Network, parameters: Vec<Var>) -> Body {
        Body { gpu: gpu.clone(), network, parameters, pending: RefCell::new(None) }
    }

    /// As `Model::features`; with `dropout`, a training pass.
    pub fn features(&self, input: &Tensor, dropout: Option<(u64, u64)>) -> Result<Tensor> {
        let (gpu, dims) = (&self.gpu, input.dims());
        let (features, saved) = match &self.network {
            Network::Net { net, shape, counts } => {
                let Shape { height, width, channels, .. } = *shape;
                ensure!(
                    input.dtype() == DType::F32
                        && dims.len() == 4
                        && dims[0] > 0
                        && dims[1..] == [height, width, channels],
                    "model: input: {:?} {dims:?}, expected F32 [N, {height}, {width}, {channels}]",
                    input.dtype()
                );
                let images = gpu.engine.upload(input)?;
                let images = gpu.engine.address(&images)?;
                let (features, saved) = net.forward(gpu, &images, dims[0], dropout.is_some())?;
                if dropout.is_some() {
                    for count in counts {
                        count.set(&(count.as_tensor() + 1.0)?)?;
                    }
                }
                (features, Saved::Net(saved))
            }
            Network::Bert { bert, sizes } => {
                let most = sizes.positions;
                ensure!(
                    input.dtype() == DType::U32
                        && dims.len() == 3
                        && dims[0] > 0
                        && dims[1] == 3
                        && (1..=most).contains(&dims[2]),
                    "model: input: {:?} {dims:?}, expected U32 [N, 3, 1 to {most}]",
                    input.dtype()
                );
                // A kernel would read beyond the table. Reading back from a GPU would wait for it.
                let rows = [(0, "token", sizes.vocabulary), (1, "segment", sizes.types)];
                for (row, name, below) in rows.into_iter().filter(|_| input.device().is_cpu()) {
                    let numbers = input.narrow(1, row, 1)?.flatten_all()?.to_vec1::<u32>()?;
                    if let Some(number) = numbers.into_iter().find(|&n| n as usize >= below) {
                        anyhow::bail!("model: input: {name} {number}: there are {below}");
                    }
                }
                let tokens = gpu.engine.upload(input)?;
                let tokens = gpu.engine.address(&tokens)?;
                let key = dropout
                    .map(|(seed, step)| move |place: u64| Stream::new(seed, "dropout", step, place).bits());
                let key = key.as_ref().map(|key| key as &dyn Fn(u64) -> u64);
                let (features, saved) = bert.forward(gpu, &tokens, (dims[0], dims[2]), key)?;
                (features, Saved::Bert(saved))
            }
        };
        if dropout.is_none() {
            return Ok(features);
        }
        let features = Var::from_tensor(&features)?;
        let tensor = features.as_tensor().clone();
        *self.pending.borrow_mut() = Some((features, saved));
        Ok(tensor)
    }

    /// As `Model::backward`. A loss that does not come from the last training pass leaves the body without gradients.
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        let mut store = loss.backward()?;
        let Some((features, saved)) = self.pending.borrow_mut().take() else { return Ok(store) };
        let Some(gradient) = store.remove(&features) else { return Ok(store) };
        let gradient = self.gpu.engine.address(&gradient.contiguous()?)?;
        let gradients = match (&self.network, saved) {
            (Network::Net { net, .. }, Saved::Net(saved)) => net.backward(&self.gpu, saved, &gradient)?,
            (Network::Bert { bert, .. }, Saved::Bert(saved)) => bert.backward(&self.gpu, saved, &gradient)?,
            _ => anyhow::bail!("model: what another network saved"),
        };
        for (var, gradient) in self.parameters.iter().zip(gradients) {
            store.insert(var, gradient);
        }
        Ok(store)
    }
}
