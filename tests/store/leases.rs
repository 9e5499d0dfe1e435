//! One writer for each action, also when the engine is killed and the stage lives on.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use itpipe::lease::{self, Acquired, Holder, Lease, Process};
use rustix::process::Signal;

fn ours(work: &Path) -> Lease {
    // A child of another test has every lock of this process for a moment, between its fork and its exec.
    match lease::wait(work, Duration::from_secs(10), &|| false).unwrap() {
        Acquired::Ours(lease) => lease,
        Acquired::HeldBy(holder) => panic!("held by {holder:?}"),
    }
}

fn held(work: &Path) -> Holder {
    match lease::acquire(work).unwrap() {
        Acquired::Ours(_) => panic!("it was free"),
        Acquired::HeldBy(holder) => holder.unwrap(),
    }
}

fn stage(lease: &Lease, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).process_group(0).stdin(Stdio::piped()).stdout(Stdio::null());
    lease.pass_to(&mut command);
    command.spawn().unwrap()
}

#[test]
fn one_at_a_time_and_free_again() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work/key");
    let first = ours(&work);
    let holder = held(&work);
    assert_eq!(holder.engine, Process::me());
    assert!(!holder.is_orphan() && holder.here() && holder.stage.is_none());
    assert!(lease::is_held(&work));
    drop(first);
    ours(&work);
    ours(&work);
    assert!(!lease::is_held(&folder.path().join("nothing")));
}

#[test]
fn a_stage_that_outlives_its_engine_keeps_the_lease_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut lease = ours(folder.path());
    let mut child = stage(&lease, "sleep 60 & read wait");
    lease.started(child.id()).unwrap();
    let bystander = Command::new("sleep").arg("60").spawn().unwrap();
    // As the death of the engine would.
    drop(lease);
    let holder = held(folder.path());
    assert_eq!(holder.stage, Process::of(child.id() as i32));
    // Its leader ends, but what it left in the background writes on.
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(lease::is_held(folder.path()));
    assert!(!holder.signal(Signal::TERM).unwrap(), "the id may be another's now");
    rustix::process::kill_process_group(
        rustix::process::Pid::from_raw(child.id() as i32).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    match lease::wait(folder.path(), Duration::from_secs(10), &|| false).unwrap() {
        Acquired::Ours(_) => {}
        Acquired::HeldBy(holder) => panic!("{holder:?}"),
    }
    let mut bystander = bystander;
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn other_children_do_not_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let lease = ours(folder.path());
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    drop(lease);
    ours(folder.path());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn an_orphan_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut lease = ours(folder.path());
    let mut child = stage(&lease, "sleep 60 & wait");
    lease.started(child.id()).unwrap();
    drop(lease);
    let mut holder = held(folder.path());
    assert!(!holder.is_orphan(), "the engine is this process");
    holder.engine.started += 1;
    assert!(holder.is_orphan(), "its id is another's now");
    assert!(holder.signal(Signal::KILL).unwrap());
    child.wait().unwrap();
    assert!(matches!(
        lease::wait(folder.path(), Duration::from_secs(10), &|| false).unwrap(),
        Acquired::Ours(_)
    ));
}

#[test]
fn an_id_that_was_used_again_is_not_signalled() {
    let mut innocent = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
    let now = Process::of(innocent.id() as i32).unwrap();
    let then = Process { started: now.started - 1, ..now.clone() };
    let rebooted = Process { boot: "another".into(), ..now.clone() };
    for stage in [then, rebooted] {
        let holder = Holder { version: 1, host: "h".into(), engine: Process::me(), stage: Some(stage) };
        assert!(!holder.signal(Signal::KILL).unwrap());
    }
    assert!(now.runs() && innocent.try_wait().unwrap().is_none());
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert!(!now.runs());
}

#[test]
fn waiting_ends_with_the_time_or_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let _lease = ours(folder.path());
    let begin = Instant::now();
    let answer = lease::wait(folder.path(), Duration::from_millis(60), &|| false).unwrap();
    assert!(matches!(answer, Acquired::HeldBy(Some(_))) && begin.elapsed() >= Duration::from_millis(60));
    assert!(matches!(
        lease::wait(folder.path(), Duration::from_secs(60), &|| true).unwrap(),
        Acquired::HeldBy(_)
    ));
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_folder_that_vanishes_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("key");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    if let Acquired::Ours(lease) = lease::acquire(&work).unwrap() {
                        assert!(lease::is_held(&work), "ours, and nobody else can take it");
                        // Fails where another has opened a lock in it at this moment.
                        let _ = std::fs::remove_dir_all(&work);
                        drop(lease);
                    }
                }
            });
        }
    });
}
