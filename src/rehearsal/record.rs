//! Which rehearsals passed, and what they told: `rehearsals` in the store, a line of JSON each, only ever appended. No
//! result: nothing here is ever taken for the output of a stage.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::estimate::Cost;

/// A rehearsal that passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsed {
    pub version: u32,
    pub key: Digest,
    /// As [`crate::estimate::Classes::fact`] writes it.
    pub class: String,
    pub stage: String,
    /// What it wrote: the inputs of later rehearsals. Blobs of the store that no result needs; `gc` takes them.
    pub tree: Digest,
    pub seconds: f64,
    /// What the stage said of a real run.
    pub cost: Cost,
    /// Milliseconds since 1970.
    pub when: u64,
}

pub const VERSION: u32 = 1;

/// All of them, oldest first; a line that is torn or of another version does not count.
pub fn read(cache: &Path) -> Vec<Rehearsed> {
    let text = std::fs::read_to_string(cache.join("rehearsals")).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Rehearsed>(line).ok());
    all.filter(|one| one.version == VERSION).collect()
}

/// Adds one in a single write.
pub fn append(cache: &Path, one: &Rehearsed) -> io::Result<()> {
    // A line of its own also after one that a crash has torn.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, one)?;
    line.push(b'\n');
    OpenOptions::new().create(true).append(true).open(cache.join("rehearsals"))?.write_all(&line)
}

/// What a rehearsed stage says of a real run, the last line `{"estimate":{"seconds":3600,"bytes":1,"download":0}}` of
/// its log; nothing where it says nothing.
pub fn told(log: &Path) -> Cost {
    #[derive(Deserialize)]
    struct Line {
        estimate: Cost,
    }
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| line.starts_with("{\"estimate\""));
    let cost = line.and_then(|line| serde_json::from_str::<Line>(line).ok()).map(|line| line.estimate);
    let mut cost = cost.unwrap_or_default();
    cost.seconds = cost.seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    cost
}
