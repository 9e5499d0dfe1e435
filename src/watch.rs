//! Waiting until something that a run reads from the repository changes. Looks at stats only: a run looks at contents.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::Global;
use crate::error::Error;
use crate::session;

/// How often is looked, and for how long nothing may change before a run begins: an editor writes in steps.
const EVERY: Duration = Duration::from_millis(300);

/// What a run would see now: path, size, times and inode of everything that it reads.
#[derive(PartialEq, Eq)]
pub struct Sight(Vec<(PathBuf, Option<(u64, i64, i64, u64)>)>);

/// Looks. A pipeline that cannot be read is a sight too: of its file alone.
pub fn look(global: &Global) -> Option<Sight> {
    let (root, file) = session::find(global).ok()?;
    let mut paths = BTreeSet::from([std::path::absolute(file.clone()).unwrap_or_else(|_| file.clone())]);
    if let Ok((pipeline, _)) = session::read(global, &root, &file) {
        let mut code: BTreeSet<&[String]> =
            pipeline.programs.values().map(|p| p.sources.as_slice()).collect();
        let mut named = BTreeSet::new();
        for (_, stage) in pipeline.iter() {
            code.insert(&stage.kind.code);
            named.extend(stage.named().map(|(_, path)| path));
        }
        named.into_iter().for_each(|path| below(&root.join(path), &mut paths));
        for patterns in code {
            let files = crate::code::files(&root, patterns, "").unwrap_or_default();
            paths.extend(files.iter().map(|path| root.join(path)));
        }
    }
    let seen = |path: PathBuf| {
        let meta = std::fs::metadata(&path).ok();
        let stat = meta.map(|m| (m.size(), m.mtime(), m.mtime_nsec(), m.ino()));
        (path, stat)
    };
    Some(Sight(paths.into_iter().map(seen).collect()))
}

fn below(path: &Path, paths: &mut BTreeSet<PathBuf>) {
    for entry in walkdir::WalkDir::new(path).follow_links(true).into_iter().flatten() {
        paths.insert(entry.into_path());
    }
}

/// The signals that end a watch, heard also while nothing runs.
pub struct Stop(Vec<(i32, Arc<AtomicBool>)>);

impl Stop {
    pub fn new() -> Result<Stop, Error> {
        let heard = [SIGINT, SIGTERM, SIGHUP].map(|signal| (signal, Arc::new(AtomicBool::new(false))));
        for (signal, flag) in &heard {
            signal_hook::flag::register(*signal, flag.clone())
                .map_err(|e| Error::environment(format!("signals: {e}")))?;
        }
        Ok(Stop(heard.into()))
    }

    fn code(&self) -> Option<u8> {
        self.0.iter().find(|(_, flag)| flag.load(Ordering::SeqCst)).map(|(signal, _)| 128 + *signal as u8)
    }
}

/// Returns when there is another sight than `before` and it has been still for a moment; an exit code when a signal came.
pub fn wait(global: &Global, before: &Option<Sight>, stop: &Stop) -> Option<u8> {
    let mut last = None;
    loop {
        std::thread::sleep(EVERY);
        if let Some(code) = stop.code() {
            return Some(code);
        }
        let now = Some(look(global));
        if now.as_ref() != Some(before) && now == last {
            return None;
        }
        last = now;
    }
}
