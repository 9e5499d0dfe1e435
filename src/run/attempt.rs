//! One action from its lease to its stored output, on a thread of its own. Knows no schedule and no other stage.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use crate::action;
use crate::cas::{Link, Store};
use crate::device::Devices;
use crate::digest::Digest;
use crate::executor::{Control, End, Executor, Job, Update};
use crate::job::{self, Folder, How, JobError, Reach};
use crate::keys::Keyed;
use crate::lease::Lease;
use crate::lock::{Files, SourceFile};
use crate::pipeline::{Promise, Stage};
use crate::publish::RUN_FILE;
use crate::stat_cache::StatCache;

/// How often a stage that says "checkpointed, run me again" is run again by one run.
const CHECKPOINTS: u32 = 1000;

/// What an attempt works with; shared by all.
pub struct Bench<'a> {
    pub store: &'a Store,
    pub stat: &'a StatCache,
    pub executor: &'a dyn Executor,
    pub reach: &'a Reach,
    pub link: Link,
    pub secrets: &'a [String],
    pub grace: Duration,
}

/// One action to perform.
pub struct Attempt<'a> {
    pub stage: &'a Stage,
    pub keyed: AttemptKey,
    pub argv: Vec<String>,
    pub lease: Lease,
    /// The GPUs that it may use.
    pub devices: Devices,
    pub control: Arc<Control>,
    /// Whether it is only rehearsed: its promises are not asked for.
    pub rehearse: bool,
}

/// The part of a keyed stage that travels to another thread.
#[derive(Clone, Debug)]
pub struct AttemptKey {
    pub key: Digest,
    pub inputs: Vec<(String, job::Placed)>,
    pub watched: Vec<(PathBuf, Digest)>,
    /// The files that the patterns of its code named.
    pub code: Vec<String>,
    pub env: Vec<(String, Option<String>)>,
}

impl From<&Keyed> for AttemptKey {
    fn from(keyed: &Keyed) -> AttemptKey {
        AttemptKey {
            key: keyed.key,
            inputs: keyed.inputs.clone(),
            watched: keyed.watched.clone(),
            code: keyed.code().map(str::to_string).collect(),
            env: keyed.env.clone(),
        }
    }
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// The output is stored and may be recorded.
    Done(Made),
    /// No result. The scratch folder is kept.
    Failed { error: String, tail: Vec<String> },
    /// The user stopped it; the scratch folder is kept.
    Interrupted,
}

/// A stored output.
#[derive(Debug)]
pub struct Made {
    pub tree: Digest,
    pub log: Option<Digest>,
    /// For a source: what came.
    pub files: Files,
    /// When the command was started, in milliseconds since 1970.
    pub started: u64,
    pub seconds: f64,
}

/// What an attempt says while it runs.
#[derive(Debug)]
pub enum Said {
    Progress { done: f64, total: f64, note: String },
    Retry { attempt: u32, error: String },
}

impl Attempt<'_> {
    /// Performs the action. Nothing is recorded here: the deciding thread does that.
    pub fn perform(mut self, bench: &Bench<'_>, said: &mut dyn FnMut(Said)) -> (Outcome, f64, Lease) {
        let start = Instant::now();
        let outcome = self.tries(bench, said);
        let seconds = start.elapsed().as_secs_f64();
        let folder = self.folder(bench);
        let cleared = match &outcome {
            Outcome::Done(_) => folder.finish(bench.store),
            _ => folder.clear(bench.store),
        };
        let outcome = match (outcome, cleared) {
            (Outcome::Failed { error, tail }, Err(why)) => Outcome::Failed {
                error: format!("{error}\n  and its folder could not be emptied: {why}"),
                tail,
            },
            // What a finished job leaves behind costs room and nothing else: gc takes it.
            (outcome, _) => outcome,
        };
        (outcome, seconds, self.lease)
    }

    fn folder(&self, bench: &Bench<'_>) -> Folder {
        Folder(bench.store.work(&self.keyed.key))
    }

    fn tries(&mut self, bench: &Bench<'_>, said: &mut dyn FnMut(Said)) -> Outcome {
        let (mut failures, mut checkpoints) = (0, 0);
        loop {
            if self.control.level() > 0 {
                return Outcome::Interrupted;
            }
            let (error, tail, again) = match self.once(bench, failures + checkpoints > 0, said) {
                Ok(made) => return Outcome::Done(made),
                Err(Stop::Interrupted) => return Outcome::Interrupted,
                Err(Stop::Checkpointed) => {
                    checkpoints += 1;
                    if checkpoints < CHECKPOINTS {
                        continue;
                    }
                    (format!("asked {CHECKPOINTS} times to be run again (exit 75)"), Vec::new(), false)
                }
                Err(Stop::Failed { error, tail, again }) => (error, tail, again),
            };
            failures += 1;
            if !again || failures > self.stage.kind.retries {
                return Outcome::Failed { error, tail };
            }
            said(Said::Retry { attempt: failures + 1, error });
            // A server that is busy, a lock that is held: longer each time, and a stop is not waited for.
            let until = Instant::now() + Duration::from_millis(500 << failures.min(6));
            while Instant::now() < until && self.control.level() == 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Files that the patterns of the code name now and did not when the key was computed, or the other way round, where
    /// the code is read while the stage runs (what is compiled into a program was looked at when it was built).
    fn code_come_or_gone(&self, bench: &Bench<'_>) -> Vec<PathBuf> {
        let root = &bench.reach.root;
        if !self
            .keyed
            .code
            .iter()
            .any(|file| self.keyed.watched.iter().any(|(path, _)| *path == root.join(file)))
        {
            return Vec::new();
        }
        let then: BTreeSet<&String> = self.keyed.code.iter().collect();
        // A pattern that names nothing any more: the files that it named are gone, and those were looked at.
        let now = crate::code::files(root, &self.stage.kind.code, "code").unwrap_or_default();
        let now: BTreeSet<&String> = now.iter().collect();
        then.symmetric_difference(&now).map(|file| root.join(file)).collect()
    }

    fn once(&mut self, bench: &Bench<'_>, append: bool, said: &mut dyn FnMut(Said)) -> Result<Made, Stop> {
        let folder = self.folder(bench);
        let paths: Vec<&PathBuf> = self.keyed.watched.iter().map(|(path, _)| path).collect();
        let before = bench.stat.snapshot(&paths).map_err(|e| Stop::because(e.to_string()))?;
        for (digest, (path, keyed)) in before.digests().zip(&self.keyed.watched) {
            if digest != *keyed {
                return Err(Stop::because(changed(
                    std::slice::from_ref(path),
                    "before the stage could start",
                )));
            }
        }
        let how = How { reach: bench.reach, link: bench.link, rehearse: self.rehearse };
        folder.prepare(bench.store, self.stage, &self.keyed.inputs, how).map_err(|e| match e {
            JobError::Changed(path) => Stop::because(changed(&[path], "before the stage could start")),
            other => Stop::because(other.to_string()),
        })?;
        let mut env =
            job::environment(&folder, self.stage, &self.keyed.env, &self.keyed.inputs, self.rehearse)
                .map_err(Stop::because)?;
        env.extend(self.devices.env());
        let job = Job {
            argv: self.argv.clone(),
            env,
            writable: vec![folder.out(), folder.scratch(), folder.tmp()],
            folder: folder.0.clone(),
            log: bench.store.log_path(&self.keyed.key),
            append,
            secrets: bench.secrets.to_vec(),
            timeout: self.stage.kind.timeout.map(Duration::from_secs),
            grace: bench.grace,
            holds: [self.lease.descriptor()].into_iter().chain(self.devices.descriptors()).collect(),
            mark: Some(format!("TMPDIR={}", folder.tmp().display())),
        };
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let start = Instant::now();
        let lease = &mut self.lease;
        let outcome = bench.executor.run(&job, &self.control, &mut |update| match update {
            // Only a reader who looks for an orphan needs it; the lock itself is held already.
            Update::Started { group } => _ = lease.started(group),
            Update::Progress { done, total, note } => said(Said::Progress { done, total, note }),
        });
        let seconds = start.elapsed().as_secs_f64();
        let fail = |error: String, again: bool| Stop::Failed { error, tail: outcome.tail.clone(), again };
        match &outcome.end {
            End::Exit(0) => {}
            End::Stopped => return Err(Stop::Interrupted),
            End::Exit(75) if self.control.level() > 0 => return Err(Stop::Interrupted),
            End::Exit(75) => return Err(Stop::Checkpointed),
            End::Exit(2) => return Err(fail("bad input (exit 2)".into(), false)),
            End::Exit(code) => return Err(fail(format!("exit {code}"), true)),
            End::Signal(signal) => return Err(fail(format!("ended by {}", signal_name(*signal)), true)),
            End::TimedOut => {
                let seconds = self.stage.kind.timeout.unwrap_or(0);
                return Err(fail(format!("ran longer than its timeout of {seconds} s"), true));
            }
            End::NotStarted(why) => {
                let place = &self.stage.kind.location;
                return Err(fail(format!("{place}: {why}"), false));
            }
        }
        let mut modified = before.changed();
        modified.extend(self.code_come_or_gone(bench));
        if !modified.is_empty() {
            return Err(fail(changed(&modified, "while the stage ran"), false));
        }
        let out = folder.out();
        match fs::symlink_metadata(&out) {
            Ok(meta) if meta.is_dir() => {}
            _ => return Err(fail("out: is no folder any more".into(), false)),
        }
        if fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_none()) {
            return Err(fail("exited 0 without writing anything into out".into(), false));
        }
        if self.stage.publish.is_some() && out.join(RUN_FILE).exists() {
            let why = format!("out/{RUN_FILE}: itpipe writes a file of this name beside what it publishes");
            return Err(fail(format!("{why}\n  hint: give the stage's own file another name"), false));
        }
        let files = match self.stage.kind.fixed && !self.rehearse {
            true => promised(&out, self.stage).map_err(|error| fail(error, false))?,
            false => Files::new(),
        };
        if !action::is_pinned(self.stage) {
            let told = job
                .env
                .iter()
                .filter(|(name, value)| action::is_secret(name) && value.len() >= action::SHORTEST_SECRET);
            for (name, value) in told {
                if let Some(path) = holding(&out, value.as_bytes()).map_err(|error| fail(error, false))? {
                    let why = format!("out/{path}: holds the value of {name}: nothing is recorded");
                    return Err(fail(format!("{why}\n  hint: a result may be published and shared"), false));
                }
            }
        }
        let store = |e: crate::cas::StoreError| fail(e.to_string(), false);
        let (tree, _) = bench.store.put_tree(&out).map_err(store)?;
        let log = match fs::metadata(&job.log) {
            Ok(meta) if meta.size() > 0 => Some(bench.store.put_file(&job.log).map_err(store)?),
            _ => None,
        };
        Ok(Made { tree, log, files, started, seconds })
    }
}

enum Stop {
    Failed { error: String, tail: Vec<String>, again: bool },
    Checkpointed,
    Interrupted,
}

impl Stop {
    fn because(error: impl Into<String>) -> Stop {
        Stop::Failed { error: error.into(), tail: Vec::new(), again: false }
    }
}

fn changed(paths: &[PathBuf], when: &str) -> String {
    let names: Vec<String> = paths.iter().take(5).map(|p| p.display().to_string()).collect();
    format!("{}: changed {when}: nothing is recorded\n  hint: run again", names.join(", "))
}

/// The path below `out`, if there is one, whose name, target or bytes hold the text.
fn holding(out: &Path, text: &[u8]) -> Result<Option<String>, String> {
    use std::os::unix::ffi::OsStrExt;
    let within = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for entry in walkdir::WalkDir::new(out).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|e| e.to_string())?;
        let relative = entry.path().strip_prefix(out).unwrap_or(entry.path());
        let failed = |e: std::io::Error| format!("{}: {e}", relative.display());
        let found = if within(relative.as_os_str().as_bytes()) {
            // The path itself would be the leak.
            return Ok(Some("***".into()));
        } else if entry.path_is_symlink() {
            within(fs::read_link(entry.path()).map_err(failed)?.as_os_str().as_bytes())
        } else if entry.file_type().is_file() {
            let mut file = fs::File::open(entry.path()).map_err(failed)?;
            let mut buffer = vec![0; (1 << 20) + text.len()];
            let (mut kept, mut found) = (0, false);
            while !found {
                let read = file.read(&mut buffer[kept..]).map_err(failed)?;
                if read == 0 {
                    break;
                }
                found = within(&buffer[..kept + read]);
                // It may begin at the end of what was read.
                let tail = (kept + read).min(text.len() - 1);
                buffer.copy_within(kept + read - tail..kept + read, 0);
                kept = tail;
            }
            found
        } else {
            false
        };
        if found {
            return Ok(Some(relative.display().to_string()));
        }
    }
    Ok(None)
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGKILL => "SIGKILL (out of memory?)",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL (an instruction that this processor lacks?)",
        libc::SIGTERM => "SIGTERM",
        libc::SIGPIPE => "SIGPIPE",
        other => return format!("signal {other}"),
    };
    name.to_string()
}

/// Checks a source's output: exactly the promised files, each with its size and SHA-256. Returns what came.
fn promised(out: &std::path::Path, stage: &Stage) -> Result<Files, String> {
    let none = std::collections::BTreeMap::new();
    let promises: &std::collections::BTreeMap<String, Promise> = stage.files.as_ref().unwrap_or(&none);
    let mut found = Files::new();
    for entry in walkdir::WalkDir::new(out).sort_by_file_name() {
        let entry = entry.map_err(|e| e.to_string())?;
        if entry.file_type().is_dir() {
            continue;
        }
        let relative = entry.path().strip_prefix(out).unwrap_or(entry.path()).to_string_lossy().into_owned();
        if !entry.file_type().is_file() {
            return Err(format!("{relative}: a source may only write files"));
        }
        let Some(promise) =
            promises.get(&relative).or(promises.is_empty().then_some(&Promise { sha256: None, size: None }))
        else {
            return Err(format!("{relative}: was not promised"));
        };
        let size = entry.metadata().map_err(|e| format!("{relative}: {e}"))?.size();
        if let Some(wanted) = promise.size.filter(|wanted| *wanted != size) {
            return Err(format!("{relative}: {size} bytes, promised were {wanted}"));
        }
        let mut file = fs::File::open(entry.path()).map_err(|e| format!("{relative}: {e}"))?;
        let mut sha = Sha256::new();
        std::io::copy(&mut file, &mut sha).map_err(|e| format!("{relative}: {e}"))?;
        let sha: String = sha.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if let Some(wanted) = promise.sha256.as_ref().filter(|wanted| **wanted != sha) {
            return Err(format!("{relative}: sha256 {sha}, promised was {wanted}"));
        }
        found.insert(relative, SourceFile { sha256: sha, size });
    }
    if let Some(missing) = promises.keys().find(|path| !found.contains_key(*path)) {
        return Err(format!("{missing}: was promised and did not come"));
    }
    Ok(found)
}
