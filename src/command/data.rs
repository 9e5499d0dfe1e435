//! `itpipe data`: sources, what is promised and what is here of them, their licences. Knows the session; a fetch is a run.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::print;
use crate::action::is_pinned;
use crate::cas::Store;
use crate::cli::{Global, RunArgs};
use crate::digest::Digest;
use crate::error::Error;
use crate::keys::{Keys, Output};
use crate::licence;
use crate::pipeline::StageId;
use crate::session::Session;
use crate::why::{self, Found};

/// The sources among the targets; none named: all of them.
fn sources(session: &Session, targets: &[String]) -> Result<Vec<StageId>, Error> {
    let chosen = session.select(targets)?;
    let is_source = |id: &StageId| session.stage(*id).kind.fixed;
    if let Some(other) = chosen.iter().find(|id| !targets.is_empty() && !is_source(id)) {
        let name = &session.stage(*other).name;
        return Err(Error::input(format!("{name}: is no source\n  hint: itpipe data ls shows the sources")));
    }
    Ok(chosen.into_iter().filter(|id| is_source(id)).collect())
}

/// The key of a source, and what the store has of it.
fn found(session: &Session, keys: &Keys<'_>, id: StageId) -> Result<(Digest, Found), Error> {
    let n = session.pipeline.stages.len();
    let key = keys.key(id, &vec![None; n], &vec![None; n])?.key;
    Ok((key, why::look(session, &key)))
}

/// One line a source: whether it is here, whether all of it is pinned, files, bytes, licence.
pub fn list(global: &Global) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let sources = sources(&session, &[])?;
    let keys = Keys::current(&session, &sources)?;
    let mut rows = vec![["SOURCE", "HERE", "PINNED", "FILES", "SIZE", "LICENCE"].map(String::from)];
    for id in sources {
        let stage = session.stage(id);
        let files = stage.files.iter().flatten();
        let (mut size, mut unknown) = (0, false);
        for (_, promise) in files.clone() {
            size += promise.size.unwrap_or(0);
            unknown |= promise.size.is_none();
        }
        let (key, found) = found(&session, &keys, id)?;
        let here = match found {
            Found::Whole(output) => {
                (size, unknown) = (tree_size(&session.store, &output)?, false);
                "yes"
            }
            Found::Broken(_) => "damaged",
            Found::Nothing => "no",
        };
        let recorded = session.lock.source(&stage.name, &key).is_some();
        let pinned = if is_pinned(stage) {
            "yes"
        } else if recorded {
            "in the lock"
        } else {
            "no"
        };
        let size = match (size, unknown) {
            (0, true) => "unknown".to_string(),
            (size, true) => format!("> {size}"),
            (size, false) => size.to_string(),
        };
        let licence = stage.licence.clone().unwrap_or_default();
        rows.push([stage.name.clone(), here.into(), pinned.into(), files.count().to_string(), size, licence]);
    }
    print(&table(&rows));
    Ok(0)
}

/// Fetches sources: a run of them alone.
pub fn fetch(global: &Global, args: &RunArgs) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let targets =
        sources(&session, &args.targets)?.iter().map(|id| session.stage(*id).name.clone()).collect();
    drop(session);
    crate::run::run(global, &RunArgs { targets, ..args.clone() })
}

/// Hashes what is here of the sources and compares it with the promises, or with the lock where nothing is promised.
pub fn verify(global: &Global, targets: &[String]) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let sources = sources(&session, targets)?;
    let keys = Keys::current(&session, &sources)?;
    let (mut out, mut wrong) = (String::new(), false);
    for id in sources {
        let stage = session.stage(id);
        let name = &stage.name;
        let (key, found) = found(&session, &keys, id)?;
        let output = match found {
            Found::Whole(output) => output,
            Found::Nothing => {
                let _ = writeln!(out, "absent   {name}");
                continue;
            }
            Found::Broken(why) => {
                wrong = true;
                let _ = writeln!(out, "damaged  {name}: {why}");
                continue;
            }
        };
        let Some(tree) = session.store.tree(&output.tree)? else { continue };
        let locked = session.lock.source(name, &key).map(|(_, source)| source);
        let mut good = true;
        for (path, blob, size, _) in tree.files() {
            let sha256 = sha256(&session.store, &blob)?;
            let promise = stage.files.as_ref().and_then(|files| files.get(path));
            let promised = promise.and_then(|promise| promise.sha256.clone());
            let expected = promised.or_else(|| Some(locked?.files.get(path)?.sha256.clone()));
            if let Some(expected) = expected.filter(|expected| *expected != sha256) {
                good = false;
                let _ =
                    writeln!(out, "wrong    {name}: {path}: sha256 {sha256} ({size} bytes), not {expected}");
            }
        }
        if good {
            let _ = writeln!(out, "good     {name}: {} files, {} bytes", tree.files().count(), tree.size());
        }
        wrong |= !good;
    }
    print(&out);
    Ok(u8::from(wrong))
}

/// The licences, whether they were accepted, and how many stages hold data that may not be passed on.
pub fn licences(global: &Global) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let accepted = licence::accepted(session.store.cache())?;
    let mut out = String::new();
    for (id, licence) in &session.pipeline.licences {
        let consent = match (licence.consent, licence::covers(&accepted, id, licence)) {
            (false, _) => "no consent needed".to_string(),
            (true, true) => format!("accepted ({})", accepted[id].how),
            (true, false) => format!("must be accepted: --accept-licence {id}"),
        };
        let _ = writeln!(out, "{id}: {}: {consent}", licence.name);
        if !licence.terms.is_empty() {
            let _ = writeln!(out, "  {}", licence.terms);
        }
        if let Some(url) = &licence.url {
            let _ = writeln!(out, "  {url}");
        }
        let of: Vec<&str> = session
            .pipeline
            .stages
            .iter()
            .filter(|stage| stage.licence.as_ref() == Some(id))
            .map(|stage| stage.name.as_str())
            .collect();
        let of = if of.is_empty() { "no source in this profile".to_string() } else { of.join(", ") };
        let _ = writeln!(out, "  sources: {of}");
        if !licence.redistribute {
            let held = session.pipeline.iter();
            let held = held.filter(|(stage, _)| {
                licence::restricted(&session.pipeline, &session.graph, *stage).contains(id.as_str())
            });
            let _ = writeln!(out, "  may not be passed on: {} stages are made from it", held.count());
        }
    }
    print(&out);
    Ok(0)
}

fn tree_size(store: &Store, output: &Output) -> Result<u64, Error> {
    Ok(store.tree(&output.tree)?.map_or(0, |tree| tree.size()))
}

fn sha256(store: &Store, blob: &Digest) -> Result<String, Error> {
    let path = store.blob_path(blob);
    let read = || -> std::io::Result<String> {
        let (mut file, mut hasher, mut buffer) = (File::open(&path)?, Sha256::new(), vec![0; 1 << 18]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    read().map_err(crate::error::at(&path))
}

/// Columns as wide as their longest text.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
