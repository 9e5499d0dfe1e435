//! `pipeline.lock`: which result each stage has, by profile, and what unpinned sources turned out to be. Generated,
//! committed beside the pipeline. Knows no store.
//!
//! JSON with one line for each stage and source, sorted, so that a difference reads well. Written only when something
//! changed, and whole: a temporary file, then a rename, under a short lock on its folder, merged with what others wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::stat_table::replacement;

/// The content of `pipeline.lock`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// By a name that says what it is and from which place.
    pub sources: BTreeMap<String, Source>,
    /// By profile, then by stage.
    pub results: BTreeMap<String, BTreeMap<String, Locked>>,
}

/// A stage's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    pub key: Digest,
    pub tree: Digest,
}

/// What a source gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    pub files: BTreeMap<String, SourceFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    pub sha256: String,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: version {found}: this itpipe knows version {VERSION}\n  hint: a newer itpipe wrote it")]
    Version { path: PathBuf, found: u64 },
    #[error(
        "{path}:{line}:{column}: {why}\n  hint: it is generated: 'git checkout' it, or delete it and run again"
    )]
    Malformed { path: PathBuf, line: usize, column: usize, why: String },
    #[error("{path}:{line}:1: a merge conflict\n  hint: keep either side, then run again")]
    Conflict { path: PathBuf, line: usize },
}

type Result<T> = std::result::Result<T, LockError>;

const VERSION: u64 = 1;

/// What a run adds to the lock.
#[derive(Clone, Debug, Default)]
pub struct Update<'a> {
    pub profile: &'a str,
    /// New results of this profile, by stage.
    pub results: BTreeMap<String, Locked>,
    /// The stages that the profile has; others are dropped from it. `None`: nothing is dropped.
    pub stages: Option<BTreeSet<String>>,
    pub sources: BTreeMap<String, Source>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "version")]
    _version: u64,
    sources: BTreeMap<String, Source>,
    results: BTreeMap<String, BTreeMap<String, Locked>>,
}

impl Lock {
    /// Reads the lock; a missing one is empty.
    pub fn load(path: &Path) -> Result<Lock> {
        match fs::read_to_string(path) {
            // Deleting the last line of a list leaves the comma of the one before.
            Ok(text) => Lock::parse(path, &text.replace(",\n}", "\n}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::default()),
            Err(source) => Err(LockError::Io { path: path.to_path_buf(), doing: "reading", source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Lock> {
        let malformed = |error: serde_json::Error| LockError::Malformed {
            path: path.to_path_buf(),
            line: error.line(),
            column: error.column(),
            why: error.to_string().split(" at line ").next().unwrap_or_default().to_string(),
        };
        if let Some(line) = text.lines().position(|line| line.starts_with("<<<<<<< ")) {
            return Err(LockError::Conflict { path: path.to_path_buf(), line: line + 1 });
        }
        // The version first: of another one nothing else is known.
        let Versioned { version } = serde_json::from_str(text).map_err(malformed)?;
        if version != VERSION {
            return Err(LockError::Version { path: path.to_path_buf(), found: version });
        }
        let stored: Stored = serde_json::from_str(text).map_err(malformed)?;
        Ok(Lock { sources: stored.sources, results: stored.results })
    }

    /// What a stage has in a profile.
    pub fn get(&self, profile: &str, stage: &str) -> Option<&Locked> {
        self.results.get(profile)?.get(stage)
    }

    /// Merges the update into the file, under a lock that other writers respect. `true` when it was written: a lock
    /// that says all this already is left alone.
    pub fn update(path: &Path, update: &Update<'_>) -> Result<bool> {
        let io = |doing| move |source| LockError::Io { path: path.to_path_buf(), doing, source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let held = File::open(folder).map_err(io("locking"))?;
        rustix::fs::flock(&held, FlockOperation::LockExclusive)
            .map_err(|error| io("locking")(error.into()))?;
        let before = Lock::load(path)?;
        let mut after = before.clone();
        after.merge(update);
        if after == before {
            return Ok(false);
        }
        let write = || {
            let mut file = replacement(folder)?;
            file.write_all(after.render()?.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(io("writing"))?;
        Ok(true)
    }

    fn merge(&mut self, update: &Update<'_>) {
        let results = self.results.entry(update.profile.to_string()).or_default();
        if let Some(stages) = &update.stages {
            results.retain(|stage, _| stages.contains(stage));
        }
        results.extend(update.results.clone());
        if results.is_empty() {
            self.results.remove(update.profile);
        }
        self.sources.extend(update.sources.clone());
    }

    fn render(&self) -> io::Result<String> {
        let mut out = format!("{{\"version\": {VERSION},\n\"sources\": {{");
        lines(&mut out, &self.sources)?;
        out.push_str("},\n\"results\": {");
        for (i, (profile, results)) in self.results.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(out, "{comma}\n{}: {{", serde_json::to_string(profile)?);
            lines(&mut out, results)?;
            out.push('}');
        }
        out.push_str(if self.results.is_empty() { "}}\n" } else { "\n}}\n" });
        Ok(out)
    }
}

fn lines<T: Serialize>(out: &mut String, map: &BTreeMap<String, T>) -> io::Result<()> {
    for (i, (name, value)) in map.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(out, "{comma}\n  {}: {}", serde_json::to_string(name)?, serde_json::to_string(value)?);
    }
    if !map.is_empty() {
        out.push('\n');
    }
    Ok(())
}
