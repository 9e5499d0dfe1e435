//! `stages bench decode FOLDER`: how fast CelebA's preparation is on the JPEG files of a folder: decoded, cut, resized to
//! 224x224 and normalised, as prepare and the batches do it. Knows these steps; its figures enter no result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::USAGE;
use crate::data::celeba::SET;
use crate::data::decode::decode;
use crate::job::bad;

/// Decodes all files `rounds` times, keeping none, and gives the fastest round; `--out` gets all values.
///
/// Errors: unknown words; files that cannot be read or are no images of the set.
pub fn run(words: &[String]) -> Result<Value> {
    let (folder, options) =
        words.split_first().ok_or_else(|| bad(format!("a folder is missing\n{USAGE}")))?;
    let mut given = BTreeMap::new();
    for pair in options.chunks(2) {
        let [name, value] = pair else { return Err(bad(format!("{}: no value\n{USAGE}", pair[0]))) };
        if !["--threads", "--rounds", "--out"].contains(&name.as_str()) {
            return Err(bad(format!("{name}: unknown word\n{USAGE}")));
        }
        given.insert(name.as_str(), value.as_str());
    }
    let number = |name: &str, without: usize| -> Result<usize> {
        let Some(text) = given.get(name) else { return Ok(without) };
        text.parse()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| bad(format!("{name} {text}: not a number of at least 1")))
    };
    let (threads, rounds) = (number("--threads", 2)?, number("--rounds", 3)?);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|e| bad(format!("{folder}: {e}")))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).with_context(|| path.display().to_string());
    let files: Vec<Vec<u8>> = paths.iter().map(read).collect::<Result<_>>()?;

    let size = [SET.height, SET.width, SET.channels];
    let length: usize = size.iter().product();
    let tables: Vec<Vec<f32>> = SET
        .mean
        .iter()
        .zip(SET.std)
        .map(|(mean, std)| (0..256).map(|v| ((f64::from(v) / 255.0 - mean) / std) as f32).collect())
        .collect();
    let one = |bytes: &Vec<u8>, pixels: &mut [u8], values: &mut [f32]| -> Result<()> {
        decode(bytes, SET.fit, size, pixels)?;
        for (values, pixels) in values.chunks_exact_mut(3).zip(pixels.chunks_exact(3)) {
            for c in 0..3 {
                values[c] = tables[c][pixels[c] as usize];
            }
        }
        Ok(())
    };
    let room = || (vec![0; length], vec![0.0; length]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let start = Instant::now();
        pool.install(|| {
            files.par_iter().try_for_each_init(room, |(pixels, values), file| {
                one(file, pixels, values)?;
                std::hint::black_box(&values);
                Ok::<_, anyhow::Error>(())
            })
        })?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    if let Some(out) = given.get("--out") {
        let (mut pixels, mut values) = room();
        let mut bytes = Vec::with_capacity(files.len() * length * 4);
        for file in &files {
            one(file, &mut pixels, &mut values)?;
            bytes.extend(values.iter().flat_map(|v: &f32| v.to_le_bytes()));
        }
        crate::job::write(Path::new(out), &bytes)?;
    }
    let per_second = files.len() as f64 / best;
    Ok(json!({"images": files.len(), "threads": threads, "seconds": best, "images_per_second": per_second}))
}
