//! Which result an action had: the traces, `ActionKey → ActionResult`. Knows digests; knows no blob's place.
//!
//! `results/journal` begins with a line that names its version; each further line is one result:
//! `<checksum> <key> <json>`, where the checksum is the first 16 digits of the BLAKE3 of what follows it. Lines are
//! only ever appended, each by one write under the file's lock, so recording costs the same at 10 and at 100,000. A
//! line that was cut short by a crash does not count. A result is written after all its blobs.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cas::Store;
use crate::digest::Digest;
use crate::stat_table::{lock, replacement};

/// A result, and what stands beside it: who ran it, where, when, for how long. Only `key` and `tree` are identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionResult {
    pub key: Digest,
    /// The output.
    pub tree: Digest,
    /// The stage's name in the pipeline that ran it.
    pub stage: String,
    pub kind: String,
    pub profile: String,
    /// A blob: the manifest that was hashed ([`Store::put_manifest`]).
    pub manifest: Digest,
    /// A blob: the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Digest>,
    /// `bits` or `statistical`.
    pub repeatable: String,
    pub seconds: f64,
    /// When it began, in milliseconds since 1970.
    pub started: u64,
    pub host: String,
    /// The version of itpipe that recorded it.
    pub itpipe: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    /// From which shared cache it came, if it was not run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// What else is worth telling (the device, say); never identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// A result that a person accepted for a key without running it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The key whose result it was.
    pub from: Digest,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: not a journal of version 1: this itpipe cannot read it\n  hint: where no other itpipe wrote it, delete it: what it knew is made again"
    )]
    Version { path: PathBuf },
    #[error("result {key}: its blob {blob} is not in the store")]
    Unbacked { key: Digest, blob: Digest },
}

type Result<T> = std::result::Result<T, ResultsError>;

const HEADER: &[u8] = b"itpipe results 1\n";
const CHECKSUM: usize = 16;
/// Checksum, space, key, space.
const PREFIX: usize = CHECKSUM + 1 + 64 + 1;

/// The journal of results, in memory. Safe to share between threads; other processes' lines come in by
/// [`Results::reload`].
pub struct Results {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The journal's bytes as read; lines are parsed when they are asked for.
    text: Vec<u8>,
    lines: Vec<Line>,
    by_key: HashMap<Digest, Vec<u32>>,
    inode: u64,
}

struct Line {
    start: usize,
    end: usize,
}

impl Results {
    /// Reads the journal in the cache folder; a missing one is empty.
    pub fn open(cache: &Path) -> Result<Results> {
        let results = Results { path: cache.join("results/journal"), state: RwLock::default() };
        results.reload()?;
        Ok(results)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn error(&self) -> impl FnOnce(io::Error) -> ResultsError + '_ {
        |source| ResultsError::Io { path: self.path.clone(), source }
    }

    /// The latest result of an action.
    pub fn get(&self, key: &Digest) -> Option<Arc<ActionResult>> {
        let state = self.read();
        state
            .by_key
            .get(key)?
            .iter()
            .rev()
            .find_map(|&line| state.parse(&state.lines[line as usize]))
            .map(Arc::new)
    }

    /// All results of an action, oldest first: two that differ are an error of a kind that promises bits, and a fact of
    /// one that does not.
    pub fn all(&self, key: &Digest) -> Vec<ActionResult> {
        let state = self.read();
        let lines = state.by_key.get(key).map_or(&[][..], Vec::as_slice);
        lines.iter().filter_map(|&line| state.parse(&state.lines[line as usize])).collect()
    }

    /// The last result recorded for a stage of this name in this profile; reads the journal backwards.
    pub fn latest_for_stage(&self, profile: &str, stage: &str) -> Option<ActionResult> {
        self.read().newest(&[profile, stage], |result| result.profile == profile && result.stage == stage)
    }

    /// Every result, oldest first.
    pub fn every(&self) -> Vec<ActionResult> {
        let state = self.read();
        state.lines.par_iter().filter_map(|line| state.parse(line)).collect()
    }

    /// How many results the journal has.
    pub fn len(&self) -> usize {
        self.read().lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in what other processes have appended since.
    pub fn reload(&self) -> Result<()> {
        self.write().load(&self.path)
    }

    /// Records a result, whose blobs are in the store already: that is checked.
    pub fn record(&self, store: &Store, result: &ActionResult) -> Result<()> {
        for blob in [Some(result.tree), Some(result.manifest), result.log].into_iter().flatten() {
            if !store.contains(&blob) {
                return Err(ResultsError::Unbacked { key: result.key, blob });
            }
        }
        let line = encode(result).map_err(self.error())?;
        let mut state = self.write();
        let mut file = lock(&self.path).map_err(self.error())?;
        append(&mut file, &line).map_err(self.error())?;
        // Still locked, so what is new in the file ends with this line.
        state.load(&self.path)
    }

    /// Writes the journal anew with only the results that `keep` wants; for gc, which has the store for itself.
    pub(crate) fn retain(&self, keep: &dyn Fn(&ActionResult) -> bool) -> Result<()> {
        let write = || {
            let held = lock(&self.path)?;
            let mut state = self.write();
            state.load(&self.path).map_err(io::Error::other)?;
            let mut new = replacement(self.path.parent().unwrap_or(Path::new(".")))?;
            new.write_all(HEADER)?;
            for line in &state.lines {
                if state.parse(line).is_some_and(|result| keep(&result)) {
                    new.write_all(&state.text[line.start..=line.end])?;
                }
            }
            new.as_file().sync_all()?;
            new.persist(&self.path)?;
            state.load(&self.path).map_err(io::Error::other)?;
            drop(held);
            Ok(())
        };
        write().map_err(self.error())
    }
}

/// One line, checksum first.
fn encode(result: &ActionResult) -> io::Result<Vec<u8>> {
    let mut line = vec![b' '; CHECKSUM + 1];
    line.extend_from_slice(&result.key.hex());
    line.push(b' ');
    serde_json::to_writer(&mut line, result)?;
    let sum = Digest::of(&line[CHECKSUM + 1..]).hex();
    line[..CHECKSUM].copy_from_slice(&sum[..CHECKSUM]);
    line.push(b'\n');
    Ok(line)
}

/// Appends a line in one write. After a torn one it begins on a line of its own; if the disk is full, what was written
/// of it is taken back.
fn append(file: &mut File, line: &[u8]) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut out = Vec::with_capacity(line.len() + HEADER.len());
    if end < HEADER.len() as u64 {
        file.set_len(0)?;
        out.extend_from_slice(HEADER);
    } else {
        let mut last = [0];
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            out.push(b'\n');
        }
    }
    out.extend_from_slice(line);
    file.write_all(&out).inspect_err(|_| {
        let _ = file.set_len(end);
    })
}

impl State {
    fn load(&mut self, path: &Path) -> Result<()> {
        let error = |source| ResultsError::Io { path: path.to_path_buf(), source };
        let mut file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self = State::default();
                return Ok(());
            }
            other => other.map_err(error)?,
        };
        let meta = file.metadata().map_err(error)?;
        // Only whole lines are kept, so a torn tail is read again and may have become whole.
        if meta.ino() != self.inode || (meta.len() as usize) < self.text.len() {
            *self = State { inode: meta.ino(), ..State::default() };
        }
        let from = self.text.len();
        if meta.len() as usize == from {
            return Ok(());
        }
        file.seek(SeekFrom::Start(from as u64)).map_err(error)?;
        self.text.reserve_exact(meta.len() as usize - from);
        file.read_to_end(&mut self.text).map_err(error)?;
        let end = self.text[from..].iter().rposition(|&b| b == b'\n').map_or(from, |at| from + at + 1);
        self.text.truncate(end);
        let mut start = from;
        if from == 0 && !self.text.is_empty() {
            if !self.text.starts_with(HEADER) {
                *self = State::default();
                return Err(ResultsError::Version { path: path.to_path_buf() });
            }
            start = HEADER.len();
        }
        let mut found = Vec::new();
        // Up to the last line's end, so every look finds one.
        while let Ok(length @ 1..) = (&self.text[start..]).skip_until(b'\n') {
            found.push(Line { start, end: start + length - 1 });
            start += length;
        }
        let key = |line: Line| {
            let text = &self.text[line.start..line.end];
            let key = Digest::from_hex(text.get(CHECKSUM + 1..PREFIX - 1)?)?;
            is_whole(text).then_some((key, line))
        };
        let found: Vec<(Digest, Line)> = found.into_par_iter().with_min_len(1000).filter_map(key).collect();
        for (key, line) in found {
            self.by_key.entry(key).or_default().push(self.lines.len() as u32);
            self.lines.push(line);
        }
        Ok(())
    }

    fn parse(&self, line: &Line) -> Option<ActionResult> {
        serde_json::from_slice(&self.text[line.start + PREFIX..line.end]).ok()
    }

    /// The newest line that holds all these texts and satisfies the test.
    fn newest(&self, hints: &[&str], test: impl Fn(&ActionResult) -> bool) -> Option<ActionResult> {
        let hints: Vec<String> = hints.iter().filter_map(|hint| serde_json::to_string(hint).ok()).collect();
        self.lines.iter().rev().find_map(|line| {
            let text = std::str::from_utf8(&self.text[line.start..line.end]).ok()?;
            // Finding a text is several times faster than parsing the line.
            hints.iter().all(|hint| text.contains(hint.as_str())).then(|| self.parse(line))?.filter(&test)
        })
    }
}

fn is_whole(line: &[u8]) -> bool {
    line.len() > PREFIX && line[..CHECKSUM] == Digest::of(&line[CHECKSUM + 1..]).hex()[..CHECKSUM]
}
