//! A [`Net`] as an operation of candle's autograd: features = f(images, packed parameters). Knows tensors, not steps.

use super::net::{Net, Saved, Statistics};
use candle_core::{CpuStorage, CustomOp2, Device, Error, Layout, Result, Shape, Storage, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// What a forward pass hands to its caller and to its backward pass.
#[derive(Default)]
struct State {
    saved: Option<Saved>,
    batch: Option<Vec<Statistics>>,
}

struct NetOp {
    net: Arc<Net>,
    running: Option<Vec<Statistics>>,
    state: Arc<Mutex<State>>,
}

/// Features [N, channels] of images [N, H, W, C] and, without `running`, the batch's statistics by norm (unbiased
/// variance). The gradient reaches `parameters` (flat, in the net's order), not the images.
///
/// Errors: tensors that are not float32 on the CPU or of another shape than the net's; in the backward pass, a second
/// one through the same forward pass.
pub fn apply(
    net: &Arc<Net>,
    images: &Tensor,
    parameters: &Tensor,
    running: Option<Vec<Statistics>>,
) -> Result<(Tensor, Option<Vec<Statistics>>)> {
    let state = Arc::new(Mutex::new(State::default()));
    let op = NetOp { net: net.clone(), running, state: state.clone() };
    let features = images.contiguous()?.apply_op2(&parameters.contiguous()?, op)?;
    let batch = state.lock().unwrap_or_else(PoisonError::into_inner).batch.take();
    Ok((features, batch))
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => Err(Error::RequiresContiguous { op: "net" }),
    }
}

/// Calls `read` with a contiguous tensor's floats.
fn with_floats<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(floats(storage, layout)?),
        _ => Err(Error::Msg("net: not a tensor of the CPU".into())),
    }
}

impl CustomOp2 for NetOp {
    fn name(&self) -> &'static str {
        "net"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        images_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let input = self.net.shape(0);
        let dims = images_layout.dims();
        let counted = parameters_layout.shape().elem_count();
        if dims.len() != 4
            || dims[0] == 0
            || dims[1..] != [input.height, input.width, input.channels]
            || counted != self.net.parameters()
        {
            return Err(Error::Msg(format!(
                "net: images {dims:?} and {counted} parameters, expected [N ≥ 1, {}, {}, {}] and {}",
                input.height,
                input.width,
                input.channels,
                self.net.parameters()
            )));
        }
        let (features, mut saved) = self.net.forward(
            floats(images, images_layout)?,
            floats(parameters, parameters_layout)?,
            self.running.as_deref(),
        );
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.batch = saved.batch.clone();
        if let Some(batch) = &mut saved.batch {
            batch.clear();
        }
        state.saved = Some(saved);
        let shape = (dims[0], self.net.shape(self.net.last()).channels);
        Ok((CpuStorage::F32(features), shape.into()))
    }

    fn bwd(
        &self,
        _images: &Tensor,
        parameters: &Tensor,
        _features: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.state.lock().unwrap_or_else(PoisonError::into_inner).saved.take();
        let saved =
            saved.ok_or_else(|| Error::Msg("net: a second backward pass through one forward pass".into()))?;
        let gradient = with_floats(gradient, |gradient| {
            with_floats(parameters, |parameters| Ok(self.net.backward(saved, parameters, gradient)))
        })?;
        Ok((None, Some(Tensor::from_vec(gradient, parameters.shape(), &Device::Cpu)?)))
    }
}
