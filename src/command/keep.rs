//! Commands that look after results and the store: accept, verify, cache. Know the session and one action at a time.

use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{built, inspect, print};
use crate::action;
use crate::cas::Link;
use crate::cli::Global;
use crate::device::{self, Devices};
use crate::digest::Encoder;
use crate::error::Error;
use crate::executor::{Control, local::Local};
use crate::gc;
use crate::job::Reach;
use crate::keys::{Keyed, Keys, Output};
use crate::lease::{self, Acquired};
use crate::lock::Lock;
use crate::pipeline::{Kind, StageId};
use crate::results::{Accepted, ActionResult};
use crate::run::attempt::{Attempt, AttemptKey, Bench, Outcome};
use crate::sandbox;
use crate::schedule::{GPU, WHOLE};
use crate::session::Session;
use crate::source;

/// The key of a stage, all of whose upstream has results.
fn keyed(session: &Session, keys: &Keys<'_>, id: StageId) -> Result<Keyed, Error> {
    let n = session.pipeline.stages.len();
    let (mut outputs, mut past) = (vec![None; n], vec![None; n]);
    for stage in session.graph.upstream(&[id]) {
        let keyed = keys.key(stage, &outputs, &past)?;
        if stage == id {
            return Ok(keyed);
        }
        let name = &session.stage(stage).name;
        let result =
            session.results.get(&keyed.key).filter(|r| session.store.complete(&r.tree)).ok_or_else(|| {
                Error::input(format!(
                    "{name}: is not up to date, and {} needs it\n  hint: itpipe run '{name}'",
                    session.stage(id).name
                ))
            })?;
        outputs[stage.index()] = Some(Output { key: keyed.key, tree: result.tree });
        past[stage.index()] = Some(Rc::new(keyed));
    }
    Err(Error::environment("a stage is not among its own upstream"))
}

/// Records that today's key of a stage gives the result that it had.
pub fn accept(global: &Global, stage: &str, reason: &str) -> Result<u8, Error> {
    if reason.trim().is_empty() {
        return Err(Error::input("--reason: is empty: who reads the report must learn why"));
    }
    let session = Session::open(global)?;
    let id = session.select_one(stage)?;
    let name = session.stage(id).name.clone();
    let upstream = session.graph.upstream(&[id]);
    let keys = built(&session, &upstream, global)?;
    let keyed = keyed(&session, &keys, id)?;
    if session.results.get(&keyed.key).is_some_and(|result| session.store.complete(&result.tree)) {
        return Err(Error::input(format!("{name}: is up to date: there is nothing to accept")));
    }
    let old = inspect::result(&session, &session.pipeline.profile, &name)?;
    if !session.store.complete(&old.tree) {
        return Err(Error::environment(format!("{name}: the earlier output is not whole in the store")));
    }
    if session.stage(id).kind.fixed {
        source::demand_promises(session.stage(id), &old)?;
    }
    let before = session.store.manifest(&old.manifest).unwrap_or_default();
    let mut out = format!("{name}: key {} now has the result of {}\n", keyed.key.short(), old.key.short());
    for change in action::changes(&before, &keyed.manifest.lines) {
        let _ = writeln!(out, "  accepted: {change}");
    }
    let accepted = Accepted { from: old.key, reason: reason.trim().to_string() };
    let manifest = session.store.put_manifest(&keyed.manifest.lines)?;
    let result = ActionResult { key: keyed.key, manifest, accepted: Some(accepted), ..old };
    session.results.record(&session.store, &result).map_err(Error::environment)?;
    print(&out);
    Ok(0)
}

/// The GPUs that a run of this kind is given; waits while other runs hold them.
fn devices(kind: &Kind) -> Result<Devices, Error> {
    let own = if kind.pool == GPU { WHOLE } else { 0 };
    let amount = kind.resources.get(GPU).copied().unwrap_or(own);
    let names = device::names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let count = (amount.div_ceil(WHOLE) as usize).min(names.len());
    if count == 0 {
        return Ok(Devices::default());
    }
    loop {
        for some in names.windows(count) {
            let taken = Devices::take(some, amount.min(WHOLE));
            if let Some(devices) =
                taken.map_err(|e| Error::environment(format!("its GPU cannot be locked: {e}")))?
            {
                return Ok(devices);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Runs stages again beside their results and compares.
pub fn verify(global: &Global, targets: &[String], mirror: Option<&Path>) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let stages = session.select(targets)?;
    let keys = built(&session, &session.graph.upstream(&stages), global)?;
    session.store.check_writable(32 << 20)?;
    let confined = sandbox::available();
    let reach = Reach { root: session.root.clone(), mirror: crate::run::mirror(mirror)?, offline: false };
    let secrets = action::secrets();
    let bench = Bench {
        store: &session.store,
        stat: &session.stat,
        executor: &Local::new(confined),
        reach: &reach,
        link: if confined { Link::Auto } else { Link::Copy },
        secrets: &secrets,
        grace: Duration::from_secs(10),
    };
    crate::orphan::adopt();
    let mut differs = false;
    for id in stages {
        let stage = session.stage(id);
        let keyed = keyed(&session, &keys, id)?;
        let result = session.results.get(&keyed.key).ok_or_else(|| {
            Error::input(format!(
                "{}: has no result to compare with\n  hint: itpipe run '{}'",
                stage.name, stage.name
            ))
        })?;
        // A folder of its own: nothing of a result's making may help to make it again.
        let beside = Encoder::new("itpipe verify 1").digest(&keyed.key).finish();
        let work = session.store.work(&beside);
        let lease = match lease::acquire(&work).map_err(crate::error::at(&work))? {
            Acquired::Ours(lease) => lease,
            Acquired::HeldBy(_) => {
                return Err(Error::environment(format!("{}: is being verified already", stage.name)));
            }
        };
        let attempt = Attempt {
            rehearse: false,
            stage,
            keyed: AttemptKey { key: beside, ..AttemptKey::from(&keyed) },
            argv: keys.command(&stage.kind),
            lease,
            devices: devices(&stage.kind)?,
            control: Arc::new(Control::new().map_err(|e| Error::environment(format!("descriptors: {e}")))?),
        };
        let (outcome, seconds, lease) = attempt.perform(&bench, &mut |_| {});
        let made = match outcome {
            Outcome::Done(made) => made,
            Outcome::Failed { error, tail } => {
                let tail: String = tail.iter().map(|line| format!("\n  | {line}")).collect();
                print(&format!("FAILED   {}: {error}{tail}\n", stage.name));
                differs = true;
                continue;
            }
            Outcome::Interrupted => return Ok(130),
        };
        let _ = std::fs::remove_dir_all(&work);
        drop(lease);
        let time = crate::progress::seconds(seconds);
        if made.tree == result.tree {
            print(&format!("same     {} ({time})\n", stage.name));
            continue;
        }
        let bits = action::must_be_equal(stage.kind.repeatable);
        differs |= bits;
        let mut out = format!(
            "{}  {} ({time}): {}\n",
            if bits { "DIFFERS" } else { "differs" },
            stage.name,
            if bits { "its kind promises the same bytes" } else { "as its kind (statistical) may" }
        );
        if let (Some(a), Some(b)) = (session.store.tree(&result.tree)?, session.store.tree(&made.tree)?) {
            for path in crate::stat_cache::differences(&a, &b).iter().take(20) {
                let _ = writeln!(out, "  {path}");
            }
        }
        print(&out);
    }
    Ok(u8::from(differs))
}

/// Lists the recorded results, newest last.
pub fn list(global: &Global) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let mut out = String::new();
    for result in session.results.every() {
        let _ = writeln!(
            out,
            "{}  {}  {:>10}  {:10}  {}{}",
            result.key.short(),
            inspect::when(result.started),
            crate::progress::seconds(result.seconds),
            result.profile,
            result.stage,
            if result.accepted.is_some() { " (accepted)" } else { "" }
        );
    }
    print(&out);
    Ok(0)
}

/// Hashes every blob again.
pub fn verify_store(global: &Global) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let verified = session.store.verify_all(&|_, _| {})?;
    let mut out = format!("{} blobs, {} bytes read\n", verified.blobs, verified.bytes);
    for digest in &verified.bad {
        let _ = writeln!(out, "damaged: {digest}, set aside; its stage runs again when it is needed");
    }
    for path in &verified.strange {
        let _ = writeln!(out, "strange: {}: is no blob", path.display());
    }
    print(&out);
    Ok(u8::from(!verified.bad.is_empty()))
}

/// Deletes what nothing needs.
pub fn gc(global: &Global, dry_run: bool) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let options = gc::Options { dry_run, ..gc::Options::default() };
    let mut locks = Lock::all(&session.root).map_err(Error::environment)?;
    // Ours too where someone has written it in another way.
    locks.push(session.lock.clone());
    let report = gc::gc(&session.store, &session.results, &locks, options).map_err(Error::environment)?;
    let mut out = format!("keeps {} results and {} blobs\n", report.kept_results, report.kept_blobs);
    let verb = if dry_run { "would delete" } else { "deleted" };
    for (what, swept) in report.rows() {
        if swept.count > 0 {
            let _ = writeln!(out, "{verb} {} {what}, {} MB", swept.count, swept.bytes >> 20);
        }
    }
    print(&out);
    Ok(0)
}

/// Prints where the store is, or copies out where the output of a stage lies.
pub fn path(global: &Global, stage: Option<&str>) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let Some(stage) = stage else {
        print(&format!("{}\n", session.store.cache().display()));
        return Ok(0);
    };
    let name = session.stage(session.select_one(stage)?).name.clone();
    let result = inspect::result(&session, &session.pipeline.profile, &name)?;
    let tree = session.store.tree(&result.tree)?.ok_or_else(|| {
        Error::environment(format!("{name}: its output is not in the store any more\n  hint: run it again"))
    })?;
    let mut out = String::new();
    for (path, digest, _, _) in tree.files() {
        let _ = writeln!(out, "{}\t{path}", session.store.blob_path(&digest).display());
    }
    print(&out);
    Ok(0)
}
