//! Sources: what came is a fact of the result, and of an unpinned one a line of the lock; other bytes are refused.
//! Knows the session; fetches nothing.

use crate::action;
use crate::digest::Digest;
use crate::error::Error;
use crate::lock::{Files, Source};
use crate::pipeline::{Promise, Stage};
use crate::results::ActionResult;
use crate::session::Session;

/// The fact of a result that tells what came, so that nobody has to hash it again.
const FILES: &str = "files";

/// Whether the pipeline leaves open what a source brings.
pub fn is_unpinned(stage: &Stage) -> bool {
    stage.kind.fixed && !action::is_pinned(stage)
}

/// What came, as a fact of a result; none where the stage is no source.
pub fn fact(stage: &Stage, files: &Files) -> Option<(String, String)> {
    let text = || serde_json::to_string(files).unwrap_or_default();
    stage.kind.fixed.then(|| (FILES.to_string(), text()))
}

fn files(result: &ActionResult) -> Option<Files> {
    serde_json::from_str(result.facts.get(FILES)?).ok()
}

/// What the recorded result of an unpinned source brought, as the lock writes it.
pub fn came(session: &Session, stage: &Stage, key: &Digest) -> Option<Source> {
    if !is_unpinned(stage) {
        return None;
    }
    let result = session.results.get(key)?;
    let files = files(&result)?;
    Some(Source { licence: stage.licence.clone(), files })
}

/// Why the recorded result of a source may not be served.
pub fn refused(session: &Session, stage: &Stage, key: &Digest) -> Option<String> {
    if !is_unpinned(stage) {
        return None;
    }
    let Some(came) = came(session, stage, key) else { return Some("nothing tells what it brought".into()) };
    let (_, recorded) = session.lock.source(&stage.name, key)?;
    let (path, ..) = recorded.other(&came.files)?;
    Some(format!("{path}: {} recorded other bytes than the store has", session.lock_name()))
}

/// # Errors
/// An unpinned source brought other bytes than the lock recorded.
pub fn demand(session: &Session, stage: &Stage, key: &Digest, files: &Files) -> Result<(), Error> {
    let Some((line, recorded)) = session.lock.source(&stage.name, key) else { return Ok(()) };
    let Some((path, recorded, found)) = recorded.other(files) else { return Ok(()) };
    let lock = session.lock_name();
    Err(Error::input(format!(
        "{path}: other bytes came than {lock} recorded\n  recorded sha256 {}\n  found    sha256 {}\n  \
         hint: the source has changed; if that is right, delete its line '{line}' in {lock}",
        recorded.sha256, found.sha256
    )))
}

/// # Errors
/// An earlier result of a source is not what the stage promises today.
pub fn demand_promises(stage: &Stage, result: &ActionResult) -> Result<(), Error> {
    let (place, name) = (&stage.location, &stage.name);
    let hint = format!("hint: itpipe run '{name}' fetches what is promised");
    let files = files(result).ok_or_else(|| {
        Error::input(format!("{place}: {name}: nothing tells what the earlier result brought\n  {hint}"))
    })?;
    let promises = stage.files.iter().flatten();
    let kept = |path: &String, promise: &Promise| {
        files.get(path).is_some_and(|file| {
            promise.sha256.as_ref().is_none_or(|sha256| *sha256 == file.sha256)
                && promise.size.is_none_or(|size| size == file.size)
        })
    };
    let broken = promises.clone().find(|(path, promise)| !kept(path, promise)).map(|(path, _)| path);
    let unpromised = || files.keys().find(|path| promises.clone().all(|(promised, _)| promised != *path));
    match broken.or_else(unpromised) {
        None => Ok(()),
        Some(path) => Err(Error::input(format!(
            "{place}: {name}: {path}: the earlier result is not what is promised\n  {hint}"
        ))),
    }
}
