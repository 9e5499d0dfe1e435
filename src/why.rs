//! Why a stage has no result for its key: what differs from the result that it had. Knows no schedule.

use std::collections::HashMap;
use std::fmt;

use crate::action::{self, Change};
use crate::cas::Complete;
use crate::digest::Digest;
use crate::keys::{Keyed, Output};
use crate::pipeline::Stage;
use crate::session::Session;
use crate::source;

/// Why a stage runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has no result in this profile.
    Never,
    /// It is a new instance: what differs from the instance that is gone and most like it.
    Instead { of: String, changes: Vec<Change> },
    /// Its key is the one it had; the result is not in the store.
    Gone,
    /// Its key is the one it had; a blob of its output is missing or damaged.
    Incomplete(String),
    /// Its key is another now: what differs, the cause that a reader looks for first.
    Changed(Vec<Change>),
    /// The earlier result's manifest is not in the store: only the keys can be told.
    Unknown { old: Digest },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Never => f.write_str("no result yet"),
            Cause::Instead { of, changes } => {
                let rest = changes.len().saturating_sub(1);
                let first = changes.first().map_or(String::new(), |change| format!(", {change}"));
                let more = if rest > 0 { format!(" (and {rest} more)") } else { String::new() };
                write!(f, "no result yet; in place of {of}{first}{more}")
            }
            Cause::Gone => f.write_str("its result is not in the store"),
            Cause::Incomplete(why) => f.write_str(why),
            Cause::Unknown { old } => write!(f, "key was {}; its manifest is not in the store", old.short()),
            Cause::Changed(changes) => match changes.as_slice() {
                [] => f.write_str("no result yet"),
                [one] => write!(f, "{one}"),
                [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
            },
        }
    }
}

/// What the store has for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A result whose blobs are all there and good.
    Whole(Output),
    /// A result that cannot be served: why. A damaged blob is set aside by the look.
    Broken(String),
    Nothing,
}

/// Looks a key up.
pub fn look(session: &Session, key: &Digest) -> Found {
    look_with(session, key, None)
}

/// Looks a key up, with what was found of some trees a moment ago.
pub fn look_with(session: &Session, key: &Digest, seen: Option<&HashMap<Digest, Complete>>) -> Found {
    let Some(result) = session.results.get(key) else { return Found::Nothing };
    let complete = match seen.and_then(|seen| seen.get(&result.tree)) {
        Some(complete) => Ok(complete.clone()),
        None => session.store.completeness(&result.tree),
    };
    match complete {
        Ok(Complete::Whole) => Found::Whole(Output { key: *key, tree: result.tree }),
        Ok(Complete::Missing { path, .. }) if path.is_empty() => {
            Found::Broken("its output is missing in the store".into())
        }
        Ok(Complete::Missing { path, .. }) => {
            Found::Broken(format!("output '{path}' is missing in the store"))
        }
        Ok(Complete::Damaged { path, .. }) => {
            Found::Broken(format!("output '{path}' was damaged in the store"))
        }
        Err(error) => Found::Broken(error.to_string()),
    }
}

/// Looks the key of a stage up: of a source only what the lock does not contradict is whole.
pub fn look_for(
    session: &Session,
    stage: &Stage,
    key: &Digest,
    seen: Option<&HashMap<Digest, Complete>>,
) -> Found {
    let found = look_with(session, key, seen);
    match source::refused(session, stage, key) {
        Some(why) if matches!(found, Found::Whole(_)) => Found::Broken(why),
        _ => found,
    }
}

/// Why there is no result for this key; compares with what the lock says that the stage had in this profile.
pub fn cause(session: &Session, stage: &str, keyed: &Keyed) -> Cause {
    let profile = &session.pipeline.profile;
    let old = match session.lock.get(profile, stage) {
        Some(locked) => match session.results.get(&locked.key) {
            Some(result) => result,
            None if locked.key == keyed.key => return Cause::Gone,
            None => return Cause::Unknown { old: locked.key },
        },
        None => return instead(session, stage, keyed),
    };
    match session.store.manifest(&old.manifest) {
        Ok(lines) => Cause::Changed(action::changes(&lines, &keyed.manifest.lines)),
        Err(_) => Cause::Unknown { old: old.key },
    }
}

/// At most so many instances that are gone are compared with a new one.
const MOST_COMPARED: usize = 200;

/// For an instance that has no result: the one that the pipeline had before an axis was edited.
fn instead(session: &Session, stage: &str, keyed: &Keyed) -> Cause {
    let base = |name: &str| name.split('[').next().unwrap_or_default().to_string();
    let Some(locked) = session.lock.results.get(&session.pipeline.profile) else { return Cause::Never };
    let gone = locked.iter().filter(|(name, _)| {
        base(name) == base(stage) && !session.pipeline.stages.iter().any(|stage| stage.name == **name)
    });
    let compared = gone.take(MOST_COMPARED).filter_map(|(name, locked)| {
        let result = session.results.get(&locked.key)?;
        let lines = session.store.manifest(&result.manifest).ok()?;
        Some((name, action::changes(&lines, &keyed.manifest.lines)))
    });
    match compared.min_by_key(|(_, changes)| changes.len()) {
        Some((name, changes)) => Cause::Instead { of: name.clone(), changes },
        None => Cause::Never,
    }
}
