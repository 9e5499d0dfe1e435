//! fetch: the promised files of a source, from the Hub, a mirror or the repository itself; size and SHA-256 of each are
//! checked before it is put in place. Knows variants and promises; knows no content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::hub::{self, Hub, Place, RepoType};
use crate::job::{Fixed, Job, Promise, bad, progress};

mod rehearsal;

/// The place of a source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// `owner/name` on the Hub.
    repo: String,
    repo_type: RepoType,
    /// The pinned commit, 40 hexadecimal digits; only files that come from the Hub's repository need one.
    #[serde(default)]
    revision: Option<String>,
    variant: Variant,
    /// The licence of the data, for the report.
    #[serde(default)]
    #[allow(dead_code)]
    licence: String,
    /// How far the variant is from the published set.
    #[serde(default)]
    #[allow(dead_code)]
    note: String,
    /// A bundled variant's folder in the repository.
    #[serde(default)]
    path: Option<PathBuf>,
    /// Files that lie at plain URLs instead of on the Hub; the first URL that gives the file is taken.
    #[serde(default)]
    urls: BTreeMap<String, Vec<String>>,
    /// The SHA-1 that git gives a file, where that is what is known of it.
    #[serde(default)]
    git: BTreeMap<String, String>,
}

impl Params {
    /// Where a file lies in a folder that is laid out as the Hub.
    fn below(&self, root: &Path, file: &str) -> PathBuf {
        root.join(self.repo_type.folder()).join(&self.repo).join(file)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Variant {
    /// The Hub's own bytes; a mirror may hold them too.
    Hub,
    /// Other bytes, which only a mirror has.
    Mirror,
    /// In the repository.
    Bundled,
}

/// Writes the promised files below `out`, each at its path in the repository.
///
/// Errors say which file, where it was looked for and what to do; `BadInput` where another run cannot help.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let hub = hub::from_env()?;
    let offline = std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|v| ["1", "true", "yes", "on"].contains(&v.trim().to_lowercase().as_str()));
    let fixed = job.fixed()?;
    if job.rehearse() {
        return rehearsal::rehearse(&params, fixed, offline, &*hub, job.scratch(), job.out());
    }
    fetch(&params, fixed, offline, &*hub, job.scratch(), job.out())
}

/// What serde cannot see of the params.
fn check_params(params: &Params, fixed: &Fixed) -> Result<()> {
    if let Some(revision) = &params.revision
        && (revision.len() != 40 || !revision.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(bad(format!(
            "params.revision: `{revision}` is no commit: 40 hexadecimal digits are expected (a branch would move)"
        )));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if !params.repo.contains('/') || params.repo.contains("..") || !params.repo.chars().all(is_name) {
        return Err(bad(format!("params.repo: `{}`: owner/name is expected", params.repo)));
    }
    for file in fixed.files.keys() {
        if file.is_empty() || !Path::new(file).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(bad(format!("fixed.files: `{file}` is not a path inside the repository")));
        }
    }
    let named = params.urls.keys().map(|file| ("urls", file));
    for (name, file) in named.chain(params.git.keys().map(|file| ("git", file))) {
        if !fixed.files.contains_key(file) {
            return Err(bad(format!("params.{name}: `{file}` is none of the promised files")));
        }
    }
    Ok(())
}

/// [`run`] without the environment: `offline` and `hub` are what it would have found there.
pub fn fetch(
    params: &Params,
    fixed: &Fixed,
    offline: bool,
    hub: &dyn Hub,
    scratch: &Path,
    out: &Path,
) -> Result<()> {
    check_params(params, fixed)?;
    let total: u64 = fixed.files.values().filter_map(|promise| promise.size).sum();
    let done: Vec<AtomicU64> = fixed.files.keys().map(|_| AtomicU64::new(0)).collect();
    let queue = Mutex::new(fixed.files.iter().enumerate());
    let failed = AtomicBool::new(false);
    let worker = || -> Vec<(usize, anyhow::Error)> {
        let mut errors = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let next = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
            let Some((i, (file, promise))) = next else { break };
            let seen = |bytes: u64| {
                done[i].store(bytes, Ordering::Relaxed);
                let all: u64 = done.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum();
                progress(all, total.max(all + 1), file);
            };
            let part = scratch.join("parts").join(file);
            let one = || -> Result<u64> {
                bring(params, fixed, offline, hub, file, promise, &part, &seen)?;
                place(&part, &out.join(file))
            };
            match one().with_context(|| format!("{}: {file}", params.repo)) {
                Ok(size) => seen(size),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    errors.push((i, error));
                }
            }
        }
        errors
    };
    let workers = PARALLEL.min(fixed.files.len());
    let mut errors: Vec<(usize, anyhow::Error)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|errors| errors.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    errors.sort_by_key(|(i, _)| *i);
    match errors.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Files that are brought at the same time.
const PARALLEL: usize = 4;

/// Brings a file to `part` from wherever the variant has it, and checks it there.
#[allow(clippy::too_many_arguments)]
fn bring(
    params: &Params,
    fixed: &Fixed,
    offline: bool,
    hub: &dyn Hub,
    file: &str,
    promise: &Promise,
    part: &Path,
    seen: &dyn Fn(u64),
) -> Result<()> {
    let below = |root: &Path| params.below(root, file);
    let check = |from: &str| check(part, promise, params.git.get(file).map(String::as_str), from);
    match params.variant {
        Variant::Bundled => {
            let folder =
                params.path.as_ref().ok_or_else(|| bad("params.path: missing, a bundled variant has one"))?;
            let source = below(&fixed.root.join(folder));
            copy(&source, part, "not in the repository", "the checkout is not complete: restore the file")?;
            return check(&source.display().to_string());
        }
        Variant::Mirror | Variant::Hub => {}
    }
    let looked = match &fixed.mirror {
        Some(root) => {
            let source = below(root);
            // The Hub can still help where the mirror has not the Hub's file.
            if params.variant == Variant::Mirror || source.is_file() {
                let hint = format!(
                    "--mirror DIR names a folder laid out as DIR/{}/{}/{file}",
                    params.repo_type.folder(),
                    params.repo
                );
                copy(&source, part, "not in the mirror", &hint)?;
                return check(&source.display().to_string());
            }
            format!(", and {} does not exist", source.display())
        }
        None if params.variant == Variant::Mirror => {
            return Err(bad(
                "this variant lies only in a mirror, and none was named\nhint: name its folder with --mirror DIR",
            ));
        }
        None => String::new(),
    };
    if fixed.offline || offline {
        return Err(bad(format!(
            "offline: the network may not be used{looked}\nhint: leave out --offline (HF_HUB_OFFLINE), or use --mirror DIR"
        )));
    }
    let on_hub = || -> Result<()> {
        let revision = params.revision.as_ref().ok_or_else(|| {
            bad("params.revision: missing: a file that has no URL of its own is asked for at a pinned commit")
        })?;
        let place = Place {
            repo: params.repo.clone(),
            repo_type: params.repo_type,
            revision: revision.to_lowercase(),
        };
        hub.bring(&place, file, promise.size, part, seen)
    };
    let download = || match params.urls.get(file) {
        None => on_hub(),
        Some(urls) => {
            let mut last = Err(bad(format!("params.urls: no URL for `{file}`")));
            for url in urls {
                last = hub.bring_url(url, promise.size, part, seen);
                match &last {
                    Err(error) if Some(url) != urls.last() => {
                        eprintln!("fetch: {error:#}; trying the next URL")
                    }
                    _ => break,
                }
            }
            last
        }
    };
    let from =
        if params.urls.contains_key(file) { "what came from its URL" } else { "what came from the Hub" };
    let resumed = fs::metadata(part).is_ok_and(|m| m.len() > 0);
    download()?;
    match check(from) {
        // The beginning may have been another file's: once more, from nothing.
        Err(_) if resumed => {
            download()?;
            check(from)
        }
        checked => checked,
    }
}

fn copy(source: &Path, part: &Path, missing: &str, hint: &str) -> Result<()> {
    match fs::metadata(source) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(bad(format!("{}: not a file", source.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(bad(format!("{missing}: looked for {}\nhint: {hint}", source.display())));
        }
        Err(e) => return Err(bad(format!("{}: {e}", source.display()))),
    }
    let attempt = || -> io::Result<()> {
        fs::create_dir_all(part.parent().unwrap_or(Path::new("")))?;
        // A read-only part of an earlier try could not be overwritten.
        if part.exists() {
            fs::remove_file(part)?;
        }
        let mut target = File::create(part)?;
        io::copy(&mut File::open(source)?, &mut target)?;
        target.sync_all()
    };
    attempt().with_context(|| format!("{} -> {}", source.display(), part.display()))
}

/// Compares a file with its promise. One that does not fit is removed, so that nothing wrong is kept. `from` says
/// where it came from.
fn check(part: &Path, promise: &Promise, git: Option<&str>, from: &str) -> Result<()> {
    let checked = compare(part, promise, from).and_then(|()| compare_git(part, git, from));
    if checked.is_err() {
        fs::remove_file(part).with_context(|| part.display().to_string())?;
    }
    checked
}

fn compare(part: &Path, promise: &Promise, from: &str) -> Result<()> {
    let size = fs::metadata(part).with_context(|| part.display().to_string())?.len();
    let sha256 = sha256(part)?;
    let fits = promise.size.is_none_or(|s| s == size)
        && promise.sha256.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(&sha256));
    let is_pinned = promise.sha256.is_some();
    if fits && is_pinned {
        return Ok(());
    }
    // A page or a pointer explains a wrong size better than the size does; unpinned files have only this check.
    if let Some(what) = sniff(part)? {
        return Err(bad(format!("{from}: {what}")));
    }
    if let Some(promised) = promise.size.filter(|&promised| promised != size) {
        let torn = if size < promised { " (truncated?)" } else { "" };
        return Err(bad(format!("{from}: wrong size: {size} bytes, {promised} are promised{torn}")));
    }
    if let Some(promised) = promise.sha256.as_ref().filter(|_| !fits) {
        return Err(bad(format!(
            "{from}: wrong digest\n  promised sha256 {promised}\n  found    sha256 {sha256}\n\
             hint: these are other bytes than the pipeline pins for this variant; is it the right variant?"
        )));
    }
    Ok(())
}

/// Compares a file with the SHA-1 that git gives it.
fn compare_git(part: &Path, promised: Option<&str>, from: &str) -> Result<()> {
    let Some(promised) = promised else { return Ok(()) };
    let read = || -> io::Result<String> {
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", fs::metadata(part)?.len()));
        io::copy(&mut File::open(part)?, &mut hasher)?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    let found = read().with_context(|| part.display().to_string())?;
    if found.eq_ignore_ascii_case(promised) {
        return Ok(());
    }
    Err(bad(format!(
        "{from}: wrong digest\n  promised git blob {promised}\n  found    git blob {found}\n\
         hint: these are other bytes than the pipeline pins for this variant; is it the right variant?"
    )))
}

/// What a file is that should be none of it: an HTML page, a Git LFS pointer, nothing at all.
fn sniff(path: &Path) -> Result<Option<String>> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start).with_context(|| path.display().to_string())?;
    let text = String::from_utf8_lossy(&start).trim_start().to_lowercase();
    let is_page_asked_for = path.extension().is_some_and(|e| e == "html");
    Ok(if start.is_empty() {
        Some("an empty file".to_string())
    } else if text.starts_with("version https://git-lfs.github.com/spec/") {
        Some("a Git LFS pointer, not the file\nhint: fetch the content with `git lfs pull`".to_string())
    } else if !is_page_asked_for && (text.starts_with("<!doctype html") || text.starts_with("<html")) {
        Some(
            "an HTML page, not the file\nhint: a proxy or a login page answered in the server's place"
                .to_string(),
        )
    } else {
        None
    })
}

fn sha256(path: &Path) -> Result<String> {
    let attempt = || -> io::Result<String> {
        let mut hasher = Sha256::new();
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    attempt().with_context(|| path.display().to_string())
}

/// Moves a checked file to its place; returns its length.
fn place(part: &Path, target: &Path) -> Result<u64> {
    let attempt = || -> io::Result<u64> {
        fs::create_dir_all(target.parent().unwrap_or(Path::new("")))?;
        let size = fs::metadata(part)?.len();
        match fs::rename(part, target) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(part, target)?;
                fs::remove_file(part)?;
            }
            moved => moved?,
        }
        Ok(size)
    };
    attempt().map_err(|e| anyhow!("{}: {e}", target.display()))
}
