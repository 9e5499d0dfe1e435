//! Why a stage has no result for its key: what differs from the result that it had. Knows no schedule.

use std::fmt;

use crate::action::{self, Change};
use crate::digest::Digest;
use crate::session::{Keyed, Session};

/// Why a stage runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has no result in this profile.
    Never,
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

/// Why there is no result for this key; compares with what the lock says that the stage had in this profile, else with
/// the last result of a stage of this name.
pub fn cause(session: &Session, stage: &str, keyed: &Keyed) -> Cause {
    use crate::cas::Complete;
    if let Some(result) = session.results.get(&keyed.key) {
        let why = match session.store.completeness(&result.tree) {
            Ok(Complete::Missing { path, .. }) => format!("output '{path}' is missing in the store"),
            Ok(Complete::Damaged { path, .. }) => format!("output '{path}' was damaged in the store"),
            Ok(Complete::Whole) => return Cause::Gone,
            Err(error) => error.to_string(),
        };
        return Cause::Incomplete(why);
    }
    let profile = &session.pipeline.profile;
    let old = match session.lock.get(profile, stage) {
        Some(locked) => match session.results.get(&locked.key) {
            Some(result) => result,
            None if locked.key == keyed.key => return Cause::Gone,
            None => return Cause::Unknown { old: locked.key },
        },
        None => return Cause::Never,
    };
    match session.store.manifest(&old.manifest) {
        Ok(lines) => Cause::Changed(action::changes(&lines, &keyed.manifest.lines)),
        Err(_) => Cause::Unknown { old: old.key },
    }
}
