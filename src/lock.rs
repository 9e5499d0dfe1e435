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
    /// By [`place`].
    pub sources: BTreeMap<String, Source>,
    /// By profile, then by stage.
    pub results: BTreeMap<String, BTreeMap<String, Locked>>,
}

/// The name of a source's line: under another key it comes from another place, as in another profile.
pub fn place(stage: &str, key: &Digest) -> String {
    format!("{stage} {key}")
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
    pub files: Files,
}

/// Files by path.
pub type Files = BTreeMap<String, SourceFile>;

impl Source {
    /// The first file that is another than the recorded one: its path, the recorded one and the other.
    pub fn other<'f>(&'f self, files: &'f Files) -> Option<(&'f str, &'f SourceFile, &'f SourceFile)> {
        let mut pairs =
            files.iter().filter_map(|(path, file)| Some((path.as_str(), self.files.get(path)?, file)));
        pairs.find(|(_, recorded, file)| recorded != file)
    }
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
/// How every lock of ours begins, of whatever version; no other tool's `*.lock` does.
const HEAD: &str = "{\"version\": ";

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

    /// All locks in a folder: pipelines beside one another share a store.
    ///
    /// # Errors
    /// One that cannot be read, so that nobody knows what it names.
    pub fn all(folder: &Path) -> Result<Vec<Lock>> {
        let io = |source| LockError::Io { path: folder.to_path_buf(), doing: "listing", source };
        let ours = |path: &Path| {
            let named = path.extension().is_some_and(|extension| extension == "lock") && path.is_file();
            named && fs::read(path).is_ok_and(|bytes| bytes.starts_with(HEAD.as_bytes()))
        };
        let mut locks = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if ours(&path) {
                locks.push(Lock::load(&path)?);
            }
        }
        Ok(locks)
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

    /// What a source gave under this key, with the name of its line. An older lock knows the stage alone.
    pub fn source(&self, stage: &str, key: &Digest) -> Option<(&String, &Source)> {
        self.sources.get_key_value(&place(stage, key)).or_else(|| self.sources.get_key_value(stage))
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
        for (place, source) in &update.sources {
            // An older lock's line of the stage alone has said what it knew.
            if let Some((stage, _)) = place.rsplit_once(' ') {
                self.sources.remove(stage);
            }
            self.sources.insert(place.clone(), source.clone());
        }
    }

    fn render(&self) -> io::Result<String> {
        let mut out = format!("{HEAD}{VERSION},\n\"sources\": {{");
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
