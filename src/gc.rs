//! What nothing needs any more: marks from the locks and from recent results, sweeps the rest. Knows no stage.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cas::{Store, StoreError};
use crate::digest::Digest;
use crate::lease;
use crate::lock::Lock;
use crate::results::{ActionResult, Results, ResultsError};

#[derive(Debug, thiserror::Error)]
pub enum GcError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Results(#[from] ResultsError),
}

/// What to keep, and whether to touch anything.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Results that are younger stay, whether a lock names them or not.
    pub keep: Duration,
    /// Only report.
    pub dry_run: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { keep: Duration::from_secs(90 * 24 * 3600), dry_run: true }
    }
}

/// What is kept and what goes (or would go), by what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub kept_results: u64,
    pub kept_blobs: u64,
    pub results: Swept,
    pub blobs: Swept,
    /// Folders of actions: scratch of stages that did not finish.
    pub work: Swept,
    pub logs: Swept,
    pub programs: Swept,
    /// Unfinished writes of killed runs.
    pub tmp: Swept,
    pub quarantine: Swept,
}

/// How many, and their bytes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub count: u64,
    pub bytes: u64,
}

impl Swept {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

impl Report {
    /// Each class of things with what goes of it.
    pub fn rows(&self) -> [(&'static str, Swept); 7] {
        [
            ("results", self.results),
            ("blobs", self.blobs),
            ("work folders", self.work),
            ("logs", self.logs),
            ("programs", self.programs),
            ("unfinished writes", self.tmp),
            ("quarantined blobs", self.quarantine),
        ]
    }

    pub fn bytes(&self) -> u64 {
        self.rows().iter().map(|(_, swept)| swept.bytes).sum()
    }
}

/// Keeps what the locks' results (of all profiles) and recent results need, and removes the rest. Refuses while a run
/// has the store open, unless it only reports.
pub fn gc(store: &Store, results: &Results, locks: &[Lock], options: Options) -> Result<Report, GcError> {
    let alone = if options.dry_run { None } else { Some(store.exclusive()?) };
    results.reload()?;
    let mut report = Report::default();

    let oldest = SystemTime::now().checked_sub(options.keep).unwrap_or(SystemTime::UNIX_EPOCH);
    let oldest_ms = oldest.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let profiles = locks.iter().flat_map(|lock| lock.results.values());
    let locked: HashSet<(Digest, Digest)> =
        profiles.flat_map(|stages| stages.values()).map(|one| (one.key, one.tree)).collect();
    let keep =
        |result: &ActionResult| result.started >= oldest_ms || locked.contains(&(result.key, result.tree));

    let mut marked: HashSet<Digest> = HashSet::new();
    let mut keys: HashSet<Digest> = locked.iter().map(|(key, _)| *key).collect();
    let mut trees: HashSet<Digest> = locked.iter().map(|(_, tree)| *tree).collect();
    for result in results.every() {
        if keep(&result) {
            report.kept_results += 1;
            keys.insert(result.key);
            trees.insert(result.tree);
            marked.extend([Some(result.manifest), result.log].into_iter().flatten());
        } else {
            report.results.add(0);
        }
    }
    for tree in trees {
        marked.insert(tree);
        // A tree that is missing or bad has nothing to keep: its stage runs again.
        if let Some(tree) = store.tree(&tree)? {
            marked.extend(tree.files().map(|(_, digest, ..)| digest));
        }
    }

    // Results first: killed in between, the store has blobs without results, never results without blobs.
    if !options.dry_run && report.results.count > 0 {
        results.retain(&keep)?;
    }
    for digest in store.blobs()?.0 {
        if marked.contains(&digest) {
            report.kept_blobs += 1;
            continue;
        }
        report.blobs.add(fs::metadata(store.blob_path(&digest)).map_or(0, |meta| meta.len()));
        if !options.dry_run {
            store.remove(&digest)?;
        }
    }

    let cache = store.cache();
    let sweep =
        |folder: &str, goes: &dyn Fn(&Path, &str) -> bool| sweep(&cache.join(folder), goes, options.dry_run);
    let older = |path: &Path, than: SystemTime| {
        fs::symlink_metadata(path).and_then(|meta| meta.modified()).is_ok_and(|modified| modified < than)
    };
    let yesterday =
        SystemTime::now().checked_sub(Duration::from_secs(24 * 3600)).unwrap_or(SystemTime::UNIX_EPOCH);
    report.work = sweep("work", &|path, _| older(path, oldest) && !lease::is_held(path))?;
    report.logs = sweep("logs", &|path, name| {
        let key = name.split('.').next().and_then(|hex| hex.parse().ok());
        older(path, oldest) && key.is_none_or(|key: Digest| !keys.contains(&key))
    })?;
    report.programs = sweep("programs", &|path, _| older(path, oldest))?;
    report.tmp = sweep("tmp", &|path, _| older(path, yesterday))?;
    report.quarantine = sweep("quarantine", &|path, _| older(path, oldest))?;
    drop(alone);
    Ok(report)
}

fn sweep(folder: &Path, goes: &dyn Fn(&Path, &str) -> bool, dry_run: bool) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        Err(error) => return Err(StoreError::io(folder, "listing")(error)),
    };
    for entry in entries {
        let path: PathBuf = entry.map_err(StoreError::io(folder, "listing"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !goes(&path, &name) {
            continue;
        }
        let bytes = walkdir::WalkDir::new(&path)
            .into_iter()
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .filter(|meta| meta.is_file())
            .map(|meta| meta.len())
            .sum();
        swept.add(bytes);
        if !dry_run {
            let removed = match path.is_dir() && !path.is_symlink() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(StoreError::io(&path, "removing"))?;
        }
    }
    Ok(swept)
}
