//! Weights as published: safetensors under PyTorch's names, checked both ways. Knows names, shapes and bytes only.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Writes the tensors; the bytes depend on nothing but names and values.
///
/// Errors: a type other than f32 and i64; the file cannot be written.
pub fn save(tensors: &[(String, Tensor)], path: &Path) -> Result<()> {
    let mut raw = vec![];
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes): (Dtype, Vec<u8>) = match tensor.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            other => bail!("weights: {name}: cannot save {other:?}"),
        };
        raw.push((name, dtype, tensor.dims().to_vec(), bytes));
    }
    let views: Vec<(&String, TensorView<'_>)> = raw
        .iter()
        .map(|(name, dtype, dims, bytes)| Ok((*name, TensorView::new(*dtype, dims.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| format!("{}: weights cannot be written", path.display()))
}

/// Sets every target from the file, whose keys and shapes must equal the targets'. `num_batches_tracked` may be
/// missing from the file (older checkpoints lack it) and is then left as it is.
///
/// `rename` gives the target's name of a key, or None for a key that is left out.
///
/// Errors: all differences in one message; then no target was changed.
pub fn load(targets: &[&(String, Var)], path: &Path, rename: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("{place}: weights cannot be read"))?;
    // SAFETY: an input of a stage lies in the store, whose files are written once and replaced whole.
    let bytes = unsafe { Mmap::map(&file) }.with_context(|| format!("{place}: weights cannot be read"))?;
    let file =
        SafeTensors::deserialize(&bytes).with_context(|| format!("{place}: not a safetensors file"))?;
    let mut wrong = vec![];
    let mut found = vec![];
    let keys: BTreeMap<String, &str> =
        file.names().into_iter().filter_map(|key| Some((rename(key)?, key))).collect();
    for (name, var) in targets {
        let view = keys.get(name).map(|key| file.tensor(key)).transpose()?;
        match view {
            None if name.ends_with("num_batches_tracked") => {}
            None => wrong.push(format!("{name}: missing from the file, expected {:?}", var.dims())),
            Some(view) if view.shape() != var.dims() => wrong.push(format!(
                "{name}: shape {:?} in the file, {:?} in the model",
                view.shape(),
                var.dims()
            )),
            Some(view) => match values(&view, var.dtype()) {
                Ok(tensor) => found.push((var, tensor)),
                Err(error) => wrong.push(format!("{name}: {error}")),
            },
        }
    }
    for name in keys.keys() {
        if !targets.iter().any(|(target, _)| target == name) {
            wrong.push(format!("{name}: in the file but not in the model"));
        }
    }
    if !wrong.is_empty() {
        wrong.sort();
        bail!("{place}: weights of another model:\n  {}", wrong.join("\n  "));
    }
    for (var, tensor) in found {
        var.set(&tensor.to_device(var.device())?)?;
    }
    Ok(())
}

/// The name in `BertForSequenceClassification` of a key of a published BERT; None for its pretraining heads and for the
/// numbers of positions that some files hold.
pub fn bert_name(key: &str) -> Option<String> {
    if key.starts_with("cls.") || key.ends_with("position_ids") {
        return None;
    }
    let key = match key.rsplit_once("LayerNorm.") {
        Some((before, "gamma")) => format!("{before}LayerNorm.weight"),
        Some((before, "beta")) => format!("{before}LayerNorm.bias"),
        _ => key.to_string(),
    };
    let has_prefix = key.starts_with("bert.") || key.starts_with("classifier.");
    Some(if has_prefix { key } else { format!("bert.{key}") })
}

fn values(view: &TensorView<'_>, wanted: DType) -> Result<Tensor> {
    let (shape, bytes) = (view.shape(), view.data());
    let tensor = match (view.dtype(), wanted) {
        (Dtype::F32, DType::F32) => {
            let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        (Dtype::I64, DType::I64) => {
            let values: Vec<i64> = bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        (found, _) => bail!("type {found:?} in the file, {wanted:?} in the model"),
    };
    Ok(tensor)
}
