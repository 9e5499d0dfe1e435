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
use crate::tree::{Entry, Tree, What};

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
///
/// # Errors
/// A file or folder stands in the way that no earlier publication wrote, and it has other content: found before anything
/// is written.
pub fn publish(
    store: &Store,
    stat: &StatCache,
    tree: &Tree,
    to: &Path,
    run: impl FnOnce(Vec<String>) -> RunFile,
) -> Result<usize, Error> {
    let files: Vec<String> = tree.entries().iter().map(|entry| entry.path.clone()).collect();
    let run_path = to.join(RUN_FILE);
    let before = recorded(&run_path)?;
    let earlier: Vec<String> = before.iter().flat_map(|run| run.files.clone()).collect();
    let ours: BTreeSet<&str> = earlier.iter().map(String::as_str).collect();
    let differing: Vec<&Entry> = tree.entries().iter().filter(|entry| !is_there(stat, to, entry)).collect();
    differing.iter().try_for_each(|entry| check_way(to, &entry.path, &ours))?;
    let digest = tree.digest().to_string();
    let is_another = before.as_ref().is_none_or(|run| run.tree != digest);
    if differing.is_empty() && !is_another {
        return Ok(0);
    }
    let mut run = run(files.clone());
    // What is about to be written is recorded first: a kill in between leaves no file that nobody owns.
    run.files.extend(earlier.iter().filter(|old| !files.contains(old)).cloned());
    fs::create_dir_all(to).map_err(at(to))?;
    write_run(&run_path, &run)?;
    let mut written = 0;
    for entry in differing {
        let path = to.join(&entry.path);
        make_way(to, &path)?;
        match &entry.what {
            What::File { digest, executable, .. } => {
                write_whole(&path, &store.bytes(digest)?).map_err(at(&path))?;
                if *executable {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
                }
            }
            What::Symlink { target } => {
                let temporary = path.with_extension("itpipe-tmp");
                let _ = fs::remove_file(&temporary);
                std::os::unix::fs::symlink(target, &temporary).map_err(at(&temporary))?;
                fs::rename(&temporary, &path).map_err(at(&path))?;
            }
            What::Folder => {
                let _ = fs::remove_file(&path);
                fs::create_dir_all(&path).map_err(at(&path))?;
            }
        }
        written += 1;
    }
    let now: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for old in earlier.iter().filter(|old| !now.contains(old.as_str())) {
        if crate::tree::is_normal(old) && is_below(to, old) && fs::remove_file(to.join(old)).is_ok() {
            written += 1;
            // Folders that have become empty; others stay.
            let mut folder = to.join(old);
            while folder.pop() && folder != to && fs::remove_dir(&folder).is_ok() {}
        }
    }
    run.files = files;
    write_run(&run_path, &run)?;
    Ok(written)
}

/// What an earlier publication recorded.
///
/// # Errors
/// A `run.json` that is none of ours.
fn recorded(path: &Path) -> Result<Option<RunFile>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let path = path.display();
        Error::input(format!(
            "{path}: is no record of a publication: {error}\n  hint: 'git checkout' it, or publish into another folder"
        ))
    })
}

fn write_run(path: &Path, run: &RunFile) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(run).map_err(|e| Error::environment(format!("{RUN_FILE}: {e}")))?;
    write_whole(path, &text).map_err(at(path))
}

/// Whether an entry is published as it is.
fn is_there(stat: &StatCache, to: &Path, entry: &Entry) -> bool {
    let path = to.join(&entry.path);
    match &entry.what {
        What::File { digest, executable, .. } => {
            let is_file = fs::symlink_metadata(&path)
                .is_ok_and(|m| m.is_file() && (m.permissions().mode() & 0o100 != 0) == *executable);
            is_file && is_below(to, &entry.path) && stat.file(&path).is_ok_and(|found| found == *digest)
        }
        What::Symlink { target } => fs::read_link(&path).is_ok_and(|found| found == Path::new(target)),
        What::Folder => path.is_dir(),
    }
}

/// Whether whatever stands where an entry is to be was written by an earlier publication.
fn check_way(to: &Path, relative: &str, ours: &BTreeSet<&str>) -> Result<(), Error> {
    let taken = |path: &Path| {
        let path = path.display();
        Error::input(format!(
            "publish: {path}: is there, and no publication wrote it\n  hint: move it away, or publish into another folder"
        ))
    };
    for part in Path::new(relative).ancestors().filter(|part| !part.as_os_str().is_empty()) {
        let path = to.join(part);
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        // Also what stands where a folder of ours was.
        let is_ours = |part: &str| ours.iter().any(|own| Path::new(own).starts_with(part));
        if !meta.is_dir() && !part.to_str().is_some_and(is_ours) {
            return Err(taken(&path));
        }
    }
    let path = to.join(relative);
    if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
        for below in walkdir::WalkDir::new(&path).into_iter().flatten().filter(|e| !e.file_type().is_dir()) {
            let name = below.path().strip_prefix(to).ok().and_then(Path::to_str);
            if !name.is_some_and(|name| ours.contains(name)) {
                return Err(taken(below.path()));
            }
        }
    }
    Ok(())
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
