//! Licences of sources: which of them a person must accept first, who accepted them, and which results hold data that may
//! not be passed on. Knows the pipeline and one file of the store; fetches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, at};
use crate::graph::Graph;
use crate::pipeline::{Licence, Pipeline, StageId};
use crate::session::Session;

const VERSION: u32 = 1;

/// Who accepted what: `licences.json` in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    accepted: BTreeMap<String, Accepted>,
}

/// One consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Seconds since 1970.
    pub time: u64,
    /// `terminal`, or `--accept-licence`.
    pub how: String,
    /// The words that were accepted; other words ask again.
    pub terms: String,
}

fn place(cache: &Path) -> PathBuf {
    cache.join("licences.json")
}

/// What was accepted on this store. A missing file is empty.
///
/// # Errors
/// The file cannot be read, or is of another version.
pub fn accepted(cache: &Path) -> Result<BTreeMap<String, Accepted>, Error> {
    let path = place(cache);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(at(&path)(error)),
    };
    let wrong = |what: String| Error::environment(format!("{}: {what}", path.display()));
    let stored: Stored = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if stored.version != VERSION {
        return Err(wrong(format!("version {}: this itpipe knows version {VERSION}", stored.version)));
    }
    Ok(stored.accepted)
}

fn record(cache: &Path, accepted: BTreeMap<String, Accepted>) -> Result<(), Error> {
    let path = place(cache);
    let text =
        serde_json::to_vec_pretty(&Stored { version: VERSION, accepted }).map_err(Error::environment)?;
    let part = cache.join("licences.json.part");
    std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)).map_err(at(&path))
}

/// Whether the consent covers what the licence says today.
pub fn covers(accepted: &BTreeMap<String, Accepted>, id: &str, licence: &Licence) -> bool {
    accepted.get(id).is_some_and(|accepted| accepted.terms == licence.terms)
}

/// Demands the consents that these stages need, before anything runs: given on the command line, earlier, or now on the
/// terminal; new ones are recorded.
///
/// # Errors
/// A consent that is missing, with what it is about and how to give it; an unknown licence on the command line.
pub fn demand(session: &Session, wanted: &[StageId], given: &[String]) -> Result<(), Error> {
    let licences = &session.pipeline.licences;
    if let Some(id) = given.iter().find(|id| !licences.contains_key(*id)) {
        let known: Vec<&str> =
            licences.iter().filter(|(_, l)| l.consent).map(|(id, _)| id.as_str()).collect();
        let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
        return Err(Error::input(format!(
            "--accept-licence {id}: the pipeline has no such licence\n  hint: consent is needed for: {known}"
        )));
    }
    let cache = session.store.cache();
    let before = accepted(cache)?;
    let mut all = before.clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut accept = |id: &str, licence: &Licence, how: &str| {
        let accepted = Accepted { time: now, how: how.to_string(), terms: licence.terms.clone() };
        all.insert(id.to_string(), accepted);
    };
    for id in given {
        accept(id, &licences[id], "--accept-licence");
    }
    let mut asked = BTreeSet::new();
    for stage in wanted.iter().map(|id| session.stage(*id)) {
        let Some((id, licence)) = stage.licence.as_ref().and_then(|id| licences.get_key_value(id)) else {
            continue;
        };
        let is_needed = licence.consent && !covers(&before, id, licence) && !given.contains(id);
        if !is_needed || !asked.insert(id) {
            continue;
        }
        if !ask(id, licence)? {
            let place = licence.url.as_ref().map(|url| format!("read {url}, then ")).unwrap_or_default();
            return Err(Error::input(format!(
                "{}: {}: licence '{id}' must be accepted first: {}: {}\n  hint: {place}run again with \
                 --accept-licence {id} (or ITPIPE_ACCEPT_LICENCE={id})",
                stage.location, stage.name, licence.name, licence.terms
            )));
        }
        accept(id, licence, "terminal");
    }
    if all != before { record(cache, all) } else { Ok(()) }
}

/// Asks on a terminal; without one the answer is no.
fn ask(id: &str, licence: &Licence) -> Result<bool, Error> {
    let mut stderr = std::io::stderr();
    if !std::io::stdin().is_terminal() || !stderr.is_terminal() {
        return Ok(false);
    }
    let url = licence.url.as_ref().map(|url| format!("\n  {url}")).unwrap_or_default();
    let text = format!("{}\n  {}{url}\nDo you accept '{id}'? Type yes: ", licence.name, licence.terms);
    let mut answer = String::new();
    stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|e| Error::environment(format!("the terminal: {e}")))?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}

/// The licences that forbid passing on the output of a stage: those of all sources that it was made from. What is empty
/// may be pushed to a shared cache and shown.
pub fn restricted<'p>(pipeline: &'p Pipeline, graph: &Graph, id: StageId) -> BTreeSet<&'p str> {
    let upstream = graph.upstream(&[id]).into_iter().filter_map(|id| pipeline.stage(id).licence.as_deref());
    upstream.filter(|id| pipeline.licences.get(*id).is_some_and(|licence| !licence.redistribute)).collect()
}
