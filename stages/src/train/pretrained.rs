//! A training's start from published weights. Knows the files of a published model; knows no data.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::job::{bad, read_json};
use crate::models::{Model, ModelParams};

/// What of a published `config.json` changes the function but no tensor's shape. A model of images has none of it.
#[derive(Deserialize)]
struct Config {
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
}

/// Differences between a file and a model that are named one by one.
const NAMED: usize = 12;

/// Reads the body's weights from `model.safetensors` in `folder`, or from the `weights.safetensors` of a training; the
/// head keeps its start. Gives the file's digest.
///
/// Errors: `BadInput` for a file that is not there, the weights of another model.
pub fn load(model: &Model, params: &ModelParams, folder: &Path) -> Result<blake3::Hash> {
    let published = folder.join("model.safetensors");
    let ours = folder.join("weights.safetensors");
    let path = if !published.exists() && ours.exists() { ours } else { published };
    if let ModelParams::Bert { sizes } = params
        && folder.join("config.json").exists()
    {
        let config: Config = read_json(&folder.join("config.json"))?;
        let differs = |name: &str, there: String, here: String| {
            Err(bad(format!(
                "inputs.pretrained: config.json: {name}: {there}, but the params say {here}\n\
                 hint: set params.model.sizes as the published model has them"
            )))
        };
        if let Some(heads) = config.num_attention_heads.filter(|&n| n != sizes.heads) {
            return differs("num_attention_heads", heads.to_string(), sizes.heads.to_string());
        }
        if let Some(epsilon) = config.layer_norm_eps.filter(|&e| e != sizes.epsilon) {
            return differs("layer_norm_eps", format!("{epsilon:e}"), format!("{:e}", sizes.epsilon));
        }
        if let Some(act) = config.hidden_act.filter(|a| a != "gelu") {
            return differs("hidden_act", act, "gelu (there is no other)".into());
        }
    }
    model.load_pretrained(&path).map_err(|error| {
        let text = format!("{error:#}");
        let mut lines: Vec<&str> = text.lines().collect();
        let more = lines.len().saturating_sub(1 + NAMED);
        lines.truncate(1 + NAMED);
        let rest = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        bad(format!(
            "inputs.pretrained: {}{rest}\nhint: params.model must be the model whose weights these are",
            lines.join("\n")
        ))
    })?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(&path)?;
    Ok(hasher.finalize())
}
