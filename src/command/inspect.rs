//! Commands that only look: log, show, diff, doctor. Know the session; change nothing.

use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom, Write};
use std::rc::Rc;
use std::time::Duration;

use super::print;
use crate::cli::Global;
use crate::digest::Digest;
use crate::error::{Error, at};
use crate::event::Event;
use crate::keys::Keys;
use crate::pipeline::StageId;
use crate::plan::Fate;
use crate::results::ActionResult;
use crate::sandbox;
use crate::session::Session;
use crate::tree::{Tree, What};
use crate::why::Cause;

/// The manifest that a stage's key is made of now.
pub fn manifest(
    session: &Session,
    keys: &Keys<'_>,
    id: StageId,
    fates: &[(StageId, Fate)],
) -> Result<Vec<(String, String)>, Error> {
    let n = session.pipeline.stages.len();
    let (mut outputs, mut keyed) = (vec![None; n], vec![None; n]);
    for (stage, fate) in fates {
        if let Fate::UpToDate(output) = fate
            && *stage != id
        {
            outputs[stage.index()] = Some(*output);
            keyed[stage.index()] = Some(Rc::new(keys.key(*stage, &outputs, &keyed)?));
        }
    }
    Ok(keys.key(id, &outputs, &keyed)?.manifest.lines)
}

/// The start of a stage when it last ran in this profile (with this key, where one is given), as the event logs tell: its
/// key and why it ran.
pub fn last_start(session: &Session, stage: &str, of: Option<&Digest>) -> Option<(String, String)> {
    let of = of.map(Digest::to_string);
    let wanted = |text: &str| of.as_ref().is_none_or(|of| of == text);
    let mut logs: Vec<_> =
        std::fs::read_dir(session.store.cache().join("runs")).ok()?.flatten().map(|e| e.path()).collect();
    logs.sort();
    logs.iter().rev().find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        match serde_json::from_str(text.lines().next()?) {
            Ok(Event::Begun { profile, .. }) if profile == session.pipeline.profile => {}
            _ => return None,
        }
        text.lines().rev().find_map(|line| match serde_json::from_str(line) {
            Ok(Event::Started { stage: name, key, cause, .. }) if name == stage && wanted(&key) => {
                Some((key, cause))
            }
            _ => None,
        })
    })
}

/// Why a stage would run, as one document.
pub fn why_json(global: &Global, stage: &str) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let id = session.select_one(stage)?;
    let fates = crate::plan::plan(&session, &session.graph.upstream(&[id]))?;
    let fate = fates.iter().find(|(stage, _)| *stage == id).map(|(_, fate)| fate);
    let (word, cause, changes) = match fate {
        Some(Fate::Run(cause)) => {
            let changes = match cause {
                Cause::Changed(changes) | Cause::Instead { changes, .. } => changes.as_slice(),
                _ => &[],
            };
            ("run", cause.to_string(), changes)
        }
        Some(Fate::UpToDate(output)) => ("up-to-date", output.key.to_string(), &[][..]),
        Some(Fate::After(first)) => ("maybe", session.stage(*first).name.clone(), &[][..]),
        Some(Fate::Stuck(why)) => ("stuck", why.clone(), &[][..]),
        None => ("stuck", String::new(), &[][..]),
    };
    let changes: Vec<_> = changes
        .iter()
        .map(|change| serde_json::json!({ "field": change.field, "old": change.old, "new": change.new }))
        .collect();
    let document = serde_json::json!({
        "version": 1, "stage": session.stage(id).name, "fate": word, "cause": cause, "changes": changes,
        "last": last_start(&session, &session.stage(id).name, None).map(|(key, cause)| serde_json::json!({ "key": key, "cause": cause })),
    });
    print(&format!("{document:#}\n"));
    Ok(0)
}

/// Why a stage would not run.
pub fn why_not(global: &Global, stage: &str) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let id = session.select_one(stage)?;
    let stages = session.graph.upstream(&[id]);
    let fates = crate::plan::plan(&session, &stages)?;
    let name = &session.stage(id).name;
    let fate = fates.iter().find(|(stage, _)| *stage == id).map(|(_, fate)| fate);
    let Some(Fate::UpToDate(output)) = fate else {
        let text = match fate {
            Some(Fate::Run(cause)) => format!("{name}: would run: {cause}\n"),
            Some(Fate::After(first)) => {
                format!("{name}: may run, after {}\n", session.stage(*first).name)
            }
            Some(Fate::Stuck(why)) => format!("{name}: cannot run: {why}\n"),
            _ => String::new(),
        };
        print(&text);
        return Ok(0);
    };
    let mut out =
        format!("{name}: would not run: its key {} is that of a recorded result\n", output.key.short());
    let Some(result) = session.results.get(&output.key) else { return Ok(0) };
    let lines = session.store.manifest(&result.manifest).unwrap_or_default();
    let _ = writeln!(
        out,
        "  recorded  {}, {} on {}",
        when(result.started),
        crate::progress::seconds(result.seconds),
        result.host
    );
    if result.stage != *name {
        let _ = writeln!(out, "  made by   {}, which was the same action", result.stage);
    }
    if let Some(accepted) = &result.accepted {
        let _ = writeln!(out, "  accepted  from {}: {}", accepted.from.short(), accepted.reason);
    }
    for up in session.graph.inputs_of(id) {
        let Some(Fate::UpToDate(above)) = fates.iter().find(|(stage, _)| stage == up).map(|(_, fate)| fate)
        else {
            continue;
        };
        let ran = session.results.get(&above.key).map_or(0, |result| result.started);
        if ran > result.started {
            let _ = writeln!(
                out,
                "  cut off   {} ran since, {}, and made the same bytes",
                session.stage(*up).name,
                when(ran)
            );
        }
    }
    let mut fields: Vec<&str> =
        lines.iter().map(|(field, _)| field.split(['.', '[']).next().unwrap_or_default()).collect();
    fields.dedup();
    let _ = writeln!(
        out,
        "  unchanged {} lines of its manifest ({}): itpipe why '{name}' --manifest",
        lines.len(),
        fields.join(", ")
    );
    let _ = writeln!(
        out,
        "  not in it its name and profile, pool, threads, resources, timeout, retries; times, owners and places of files;\n            variables that it does not use or declare"
    );
    print(&out);
    Ok(0)
}

/// The result of a stage: the one of the lock, else the last one recorded under its name; with -S, of which the lock knows
/// nothing, the one of its key now.
pub fn result(session: &Session, profile: &str, stage: &str) -> Result<ActionResult, Error> {
    if session.pipeline.overridden && profile == session.pipeline.profile {
        let id = session.select_one(stage)?;
        let fates = crate::plan::plan(session, &session.graph.upstream(&[id]))?;
        return match fates.last() {
            Some((_, Fate::UpToDate(output))) => {
                session.results.get(&output.key).map(|result| (*result).clone())
            }
            _ => None,
        }
        .ok_or_else(|| {
            Error::input(format!(
                "{stage}: has no result with these -S\n  hint: itpipe run '{stage}' with the same -S"
            ))
        });
    }
    let locked = session.lock.get(profile, stage).and_then(|locked| session.results.get(&locked.key));
    locked.map(|result| (*result).clone()).or_else(|| session.results.latest_for_stage(profile, stage)).ok_or_else(|| {
        Error::input(format!("{stage}: has no result in profile {profile}\n  hint: itpipe run '{stage}' --profile {profile}"))
    })
}

/// Prints the log of a stage: of the run in progress or the last failure if there is one, else of its result.
pub fn log(global: &Global, stage: &str, follow: bool) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let id = session.select_one(stage)?;
    let name = session.stage(id).name.clone();
    let path = last_start(&session, &name, None)
        .and_then(|(key, _)| key.parse().ok())
        .map(|key| session.store.log_path(&key))
        .filter(|path| path.is_file());
    let Some(path) = path else {
        let result = result(&session, &session.pipeline.profile, &name)?;
        return match result.log {
            Some(blob) => {
                print(&String::from_utf8_lossy(&session.store.bytes(&blob)?));
                Ok(0)
            }
            None => Ok(0),
        };
    };
    let mut file = std::fs::File::open(&path).map_err(at(&path))?;
    let work = path.file_stem().map(|stem| session.store.cache().join("work").join(stem)).unwrap_or_default();
    loop {
        // Asked before reading: what is written before the stage ends is then printed.
        let runs = follow && crate::lease::is_held(&work);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(at(&path))?;
        if std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()).is_err() {
            return Ok(0);
        }
        if !runs {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_millis(200));
        let size = std::fs::metadata(&path).map_or(0, |m| m.len());
        if file.stream_position().is_ok_and(|at| at > size) {
            // Begun anew.
            let _ = file.seek(SeekFrom::Start(0));
        }
    }
}

fn tree_of(session: &Session, result: &ActionResult) -> Result<Tree, Error> {
    session.store.tree(&result.tree)?.ok_or_else(|| {
        Error::environment(format!(
            "{}: its output is not in the store any more\n  hint: run it again",
            result.stage
        ))
    })
}

/// Shows a result.
pub fn show(global: &Global, stage: &str, json: bool) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let name = session.stage(session.select_one(stage)?).name.clone();
    let result = result(&session, &session.pipeline.profile, &name)?;
    let manifest = session.store.manifest(&result.manifest).unwrap_or_default();
    let tree = tree_of(&session, &result)?;
    if json {
        let files: Vec<_> = tree
            .files()
            .map(|(path, digest, size, executable)| {
                serde_json::json!({ "path": path, "digest": digest, "size": size, "executable": executable })
            })
            .collect();
        let document =
            serde_json::json!({ "version": 1, "result": result, "manifest": manifest, "files": files });
        print(&format!("{document:#}\n"));
        return Ok(0);
    }
    let mut out = String::new();
    let _ = writeln!(out, "{name}");
    let _ = writeln!(out, "  key      {}", result.key);
    let _ = writeln!(out, "  output   {} ({} bytes)", result.tree, tree.size());
    let _ = writeln!(
        out,
        "  ran      {} on {}, {}",
        when(result.started),
        result.host,
        crate::progress::seconds(result.seconds)
    );
    if let Some(commit) = &result.commit {
        let _ = writeln!(out, "  commit   {commit}");
    }
    if let Some(accepted) = &result.accepted {
        let _ = writeln!(out, "  accepted from {}: {}", accepted.from, accepted.reason);
    }
    let _ = writeln!(out, "  made of");
    for (field, value) in &manifest {
        let _ = writeln!(out, "    {field} = {}", value.replace('\n', "\n      "));
    }
    let _ = writeln!(out, "  files");
    for (path, digest, size, _) in tree.files() {
        let _ = writeln!(out, "    {}  {size:>12}  {path}", digest.short());
    }
    print(&out);
    Ok(0)
}

/// Milliseconds since 1970 as a date in UTC (days to civil date: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
pub fn when(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Compares two results: what their keys are made of, and their files.
pub fn diff(global: &Global, left: &str, right: &str) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let find = |text: &str| -> Result<ActionResult, Error> {
        // An axis may have '@' in its values.
        let after = text.rfind(']').unwrap_or(0);
        match text[after..].rfind('@').map(|at| (&text[..after + at], &text[after + at + 1..])) {
            Some((stage, profile)) => result(&session, profile, stage),
            None => {
                let name = session.stage(session.select_one(text)?).name.clone();
                result(&session, &session.pipeline.profile, &name)
            }
        }
    };
    let (a, b) = (find(left)?, find(right)?);
    let manifest = |r: &ActionResult| session.store.manifest(&r.manifest).unwrap_or_default();
    let mut out = String::new();
    for change in crate::action::changes(&manifest(&a), &manifest(&b)) {
        let _ = writeln!(out, "{change}");
    }
    let (ta, tb) = (tree_of(&session, &a)?, tree_of(&session, &b)?);
    for path in crate::stat_cache::differences(&ta, &tb) {
        let size = |tree: &Tree| {
            let entry = tree.entries().iter().find(|e| e.path == path);
            match entry.map(|e| &e.what) {
                Some(What::File { size, digest, .. }) => format!("{} ({size} bytes)", digest.short()),
                Some(What::Symlink { target }) => format!("symlink to {target}"),
                Some(What::Folder) => "empty folder".into(),
                None => "(none)".into(),
            }
        };
        let _ = writeln!(out, "file {path}: {} -> {}", size(&ta), size(&tb));
    }
    if out.is_empty() {
        out = "no difference\n".into();
        print(&out);
        return Ok(0);
    }
    print(&out);
    Ok(1)
}

/// Looks at this machine.
pub fn doctor(global: &Global) -> Result<u8, Error> {
    let mut out = String::new();
    let mut bad = false;
    let mut line = |ok: bool, what: &str, text: String| {
        bad |= !ok;
        let _ = writeln!(out, "{} {what}: {text}", if ok { "ok  " } else { "BAD " });
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    line(
        true,
        "itpipe",
        format!("{} on {} with {cores} cores", env!("CARGO_PKG_VERSION"), std::env::consts::OS),
    );
    match sandbox::version() {
        0 => line(
            true,
            "sandbox",
            "off: this kernel has no Landlock; inputs are protected by permissions and checks".into(),
        ),
        v if sandbox::available() => {
            line(
                true,
                "sandbox",
                format!("on: Landlock {v}; a stage writes only to its out, scratch and tmp"),
            );
        }
        v => line(true, "sandbox", format!("off: Landlock {v} cannot forbid truncation (3 can)")),
    }
    let sh = std::path::Path::new("/bin/sh");
    line(crate::executor::local::is_executable(sh), "shell", "/bin/sh".into());
    match Session::open(global) {
        Ok(session) => {
            line(
                true,
                "pipeline",
                format!("{}: {} stages", session.file.display(), session.pipeline.stages.len()),
            );
            let cache = session.store.cache().display().to_string();
            match session.store.check_writable(32 << 20) {
                Ok(()) => {
                    line(true, "store", format!("{cache}: can be written, {} results", session.results.len()))
                }
                Err(error) => line(false, "store", error.to_string()),
            }
            for program in session.pipeline.programs.values() {
                let text = match session.programs().current(program) {
                    Ok(Some(_)) => "built from the sources as they are".to_string(),
                    Ok(None) => "is built by the next run that needs it".to_string(),
                    Err(error) => error.text,
                };
                line(true, &format!("program {}", program.name), text);
            }
            let stages: Vec<StageId> = session.graph.order().to_vec();
            let mut words: Vec<String> = stages
                .iter()
                .filter_map(|id| match &session.stage(*id).kind.command {
                    crate::pipeline::Command::Argv(words) => words.first().cloned(),
                    crate::pipeline::Command::Shell(_) => None,
                })
                .filter(|word| !word.contains('/') && !session.pipeline.programs.contains_key(word))
                .collect();
            words.sort();
            words.dedup();
            let path = std::env::var_os("PATH").unwrap_or_default();
            for word in words {
                let found = std::env::split_paths(&path)
                    .map(|f| f.join(&word))
                    .find(|f| crate::executor::local::is_executable(f));
                match found {
                    Some(found) => line(true, &word, found.display().to_string()),
                    None => line(false, &word, "not found on PATH".into()),
                }
            }
        }
        Err(error) => line(false, "pipeline", error.text),
    }
    print(&out);
    Ok(if bad { crate::error::ENVIRONMENT } else { 0 })
}
