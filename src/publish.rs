//! Copies of outputs in the repository: written file by file, whole or not at all, and repaired when edited.
//! Knows trees and folders; knows no stage but by its name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cas::Store;
use crate::error::{Error, at};
use crate::program::write_whole;
use crate::stat_cache::StatCache;
use crate::tree::{Tree, What};

/// The file beside a published output that holds what is not a function of the inputs.
pub const RUN_FILE: &str = "run.json";

/// What stands in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    pub version: u32,
    pub stage: String,
    pub profile: String,
    /// Digest of the published output.
    pub tree: String,
    /// The files that were published, so that the next time those that went can be removed.
    pub files: Vec<String>,
    /// What it cost: seconds of the stages behind the output whose time had been estimated before they ran, as estimated
    /// and as spent, and the seconds of all of them.
    #[serde(default)]
    pub cost: Spent,
    /// Each stage behind the output: when, where and for how long it ran.
    pub stages: Vec<Ran>,
}

/// Seconds of stages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    pub estimated: f64,
    pub spent_of_estimated: f64,
    pub spent: f64,
}

/// When, where and for how long a stage ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    pub name: String,
    pub key: String,
    /// Milliseconds since 1970.
    pub started: u64,
    pub seconds: f64,
    /// What was estimated before it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated: Option<f64>,
    pub host: String,
    pub commit: Option<String>,
    pub itpipe: String,
}

/// Where in the repository a `publish` leads.
///
/// # Errors
/// A path that leads out of the repository, by itself or through a symlink, or into the store.
pub fn place(root: &Path, cache: &Path, publish: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(publish.trim_start_matches("./"));
    let plain =
        relative.components().all(|c| matches!(c, Component::Normal(_))) && relative.components().count() > 0;
    let bad = |why: &str| Error::input(format!("publish: '{publish}': {why}"));
    if !plain || publish.contains('\0') {
        return Err(bad("leads out of the repository"));
    }
    let mut path = root.to_path_buf();
    for part in relative.components() {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.file_type().is_symlink() => return Err(bad("a symlink stands on its way")),
            Ok(meta) if !meta.is_dir() => return Err(bad("a file stands on its way")),
            _ => {}
        }
    }
    if path.starts_with(cache) || relative.starts_with(".git") {
        return Err(bad("lies in the store or in .git"));
    }
    Ok(path)
}

/// Makes the folder hold the tree: writes what differs, removes what an earlier publication wrote and this one has not,
/// leaves other files alone. Returns how many files changed. `run` makes the content of `run.json`, which is written
/// when the tree is another or something was written.
pub fn publish(
    store: &Store,
    stat: &StatCache,
    tree: &Tree,
    to: &Path,
    run: impl FnOnce(Vec<String>) -> RunFile,
) -> Result<usize, Error> {
    let files: Vec<String> = tree.entries().iter().map(|entry| entry.path.clone()).collect();
    let run_path = to.join(RUN_FILE);
    let before: Option<RunFile> =
        fs::read(&run_path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut written = 0;
    for entry in tree.entries() {
        let path = to.join(&entry.path);
        written += usize::from(match &entry.what {
            What::File { digest, executable, .. } => {
                let is_file = fs::symlink_metadata(&path)
                    .is_ok_and(|m| m.is_file() && (m.permissions().mode() & 0o100 != 0) == *executable);
                if is_file && stat.file(&path).is_ok_and(|found| found == *digest) {
                    false
                } else {
                    make_way(to, &path)?;
                    let bytes = store.bytes(digest)?;
                    write_whole(&path, &bytes).map_err(at(&path))?;
                    if *executable {
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
                    }
                    true
                }
            }
            What::Symlink { target } => {
                if fs::read_link(&path).is_ok_and(|found| found == Path::new(target)) {
                    false
                } else {
                    make_way(to, &path)?;
                    let temporary = path.with_extension("itpipe-tmp");
                    let _ = fs::remove_file(&temporary);
                    std::os::unix::fs::symlink(target, &temporary).map_err(at(&temporary))?;
                    fs::rename(&temporary, &path).map_err(at(&path))?;
                    true
                }
            }
            What::Folder => {
                let there = path.is_dir();
                fs::create_dir_all(&path).map_err(at(&path))?;
                !there
            }
        });
    }
    let now: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for old in before.iter().flat_map(|run| &run.files).filter(|old| !now.contains(old.as_str())) {
        if crate::tree::is_normal(old) && is_below(to, old) && fs::remove_file(to.join(old)).is_ok() {
            written += 1;
            // Folders that have become empty; others stay.
            let mut folder = to.join(old);
            while folder.pop() && folder != to && fs::remove_dir(&folder).is_ok() {}
        }
    }
    let digest = tree.digest().to_string();
    if written > 0 || before.is_none_or(|run| run.tree != digest) {
        let run = run(files);
        let text =
            serde_json::to_vec_pretty(&run).map_err(|e| Error::environment(format!("{RUN_FILE}: {e}")))?;
        write_whole(&run_path, &text).map_err(at(&run_path))?;
    }
    Ok(written)
}

/// Whether a path leads there through folders alone: through a symlink someone else's file would be removed.
fn is_below(to: &Path, relative: &str) -> bool {
    let parents = Path::new(relative).ancestors().skip(1).filter(|part| !part.as_os_str().is_empty());
    parents.into_iter().all(|part| fs::symlink_metadata(to.join(part)).is_ok_and(|meta| meta.is_dir()))
}

/// Removes what stands where a file is to be: a folder at its path, or a file (or symlink) where a folder must be.
fn make_way(to: &Path, path: &Path) -> Result<(), Error> {
    let mut folder = PathBuf::from(to);
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let relative = path.strip_prefix(to).unwrap_or(path).parent().unwrap_or(Path::new(""));
    for part in relative.components() {
        folder.push(part);
        if fs::symlink_metadata(&folder).is_ok_and(|meta| !meta.is_dir()) {
            fs::remove_file(&folder).map_err(at(&folder))?;
        }
        if !folder.is_dir() {
            fs::create_dir(&folder).map_err(at(&folder))?;
        }
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(at(path)),
        _ => Ok(()),
    }
}
