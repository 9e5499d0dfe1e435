//! The saved state of a training: one file, put in place whole, so that a kill at any moment leaves the last one. Knows
//! named tensors and a JSON text; knows no model and no loop.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::job;

/// The version of the file that this program writes and reads.
const VERSION: &str = "1";

/// A checkpoint's tensors by name, and its state.
pub struct Checkpoint<S> {
    pub tensors: BTreeMap<String, Tensor>,
    pub state: S,
}

/// Where the checkpoint of a training lies in its scratch folder.
pub fn path(scratch: &Path) -> PathBuf {
    scratch.join("checkpoint.safetensors")
}

/// Writes a checkpoint in the place of an older one. A digest of all it holds goes with it.
///
/// Errors: a tensor that is not float32 or int64; the file cannot be written.
pub fn save(path: &Path, tensors: &[(String, Tensor)], state: &impl Serialize) -> Result<()> {
    let mut raw = Vec::new();
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes): (Dtype, Vec<u8>) = match tensor.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            other => anyhow::bail!("checkpoint: {name}: cannot save {other:?}"),
        };
        raw.push((name.as_str(), dtype, tensor.dims().to_vec(), bytes));
    }
    let state = serde_json::to_string(state)?;
    let digest = digest(&state, raw.iter().map(|(name, _, _, bytes)| (*name, bytes.as_slice())));
    let header = HashMap::from([
        ("version".to_string(), VERSION.to_string()),
        ("state".to_string(), state),
        ("digest".to_string(), digest),
    ]);
    let mut views = Vec::new();
    for (name, dtype, dims, bytes) in &raw {
        views.push((*name, TensorView::new(*dtype, dims.clone(), bytes)?));
    }
    job::write(path, &safetensors::serialize(views, Some(header))?)
}

/// Reads a checkpoint; `None` where there is none.
///
/// Errors: a file of another version, a file that is not what was written.
pub fn load<S: DeserializeOwned>(path: &Path) -> Result<Option<Checkpoint<S>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
    let header = metadata.metadata().as_ref().context("no header")?;
    let field = |name: &str| header.get(name).with_context(|| format!("{name}: missing"));
    ensure!(field("version")? == VERSION, "version: {}, this program reads {VERSION}", field("version")?);
    let file = SafeTensors::deserialize(&bytes)?;
    let state = field("state")?;
    let mut names: Vec<&str> = file.names().into_iter().collect();
    names.sort_unstable();
    let mut parts = Vec::new();
    let mut tensors = BTreeMap::new();
    for name in names {
        let view = file.tensor(name)?;
        let words = |size: usize| view.data().chunks_exact(size);
        let tensor = match view.dtype() {
            Dtype::F32 => {
                let values = words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                Tensor::from_vec(values, view.shape(), &Device::Cpu)?
            }
            _ => {
                let value = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap_or_default());
                Tensor::from_vec(words(8).map(value).collect(), view.shape(), &Device::Cpu)?
            }
        };
        parts.push((name.to_string(), view.data().to_vec()));
        tensors.insert(name.to_string(), tensor);
    }
    let found = digest(state, parts.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    ensure!(&found == field("digest")?, "the content is not what was written");
    Ok(Some(Checkpoint { tensors, state: serde_json::from_str(state)? }))
}

/// BLAKE3 over the state and all tensors in the order of their names, each part preceded by its length.
fn digest<'a>(state: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(state.as_bytes());
    for (name, bytes) in tensors {
        part(name.as_bytes());
        part(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        assert!(load::<Vec<f64>>(&path).unwrap().is_none());
        let a = Tensor::new(&[[1f32, f32::MIN_POSITIVE], [-0.0, 3.5]], &Device::Cpu).unwrap();
        let n = Tensor::new(&[7i64], &Device::Cpu).unwrap();
        let state = vec![0.1, 1.0 / 3.0, f64::MAX];
        save(&path, &[("a".into(), a.clone()), ("n".into(), n)], &state).unwrap();
        let back = load::<Vec<f64>>(&path).unwrap().unwrap();
        assert_eq!(back.state, state);
        let bits = |t: &Tensor| -> Vec<u32> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(&back.tensors["a"]), bits(&a));
        assert_eq!(back.tensors["n"].to_vec1::<i64>().unwrap(), [7]);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(load::<Vec<f64>>(&path).err().unwrap().to_string(), "the content is not what was written");
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(load::<Vec<f64>>(&path).is_err());
    }
}
