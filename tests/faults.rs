//! Kills, damage, full disks, two runs at once: the store never lies and the next run ends right.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Repo, alive, wait_until};

/// The folder of the only action that has one.
fn work(repo: &Repo) -> std::path::PathBuf {
    let mut folder = None;
    wait_until("a job folder", || {
        let all = fs::read_dir(repo.path("cache/work")).into_iter().flatten().flatten().map(|e| e.path());
        // Not the file by which a run finds out whether it may write there.
        folder = all.into_iter().find(|path| path.is_dir());
        folder.is_some()
    });
    folder.unwrap()
}

/// Waits for a stage to write this file into its scratch folder, and reads it.
fn scratch(repo: &Repo, file: &str) -> String {
    let path = work(repo).join("scratch").join(file);
    let mut text = String::new();
    wait_until(&format!("{} has a line", path.display()), || {
        text = fs::read_to_string(&path).unwrap_or_default();
        text.ends_with('\n')
    });
    text
}

/// Overwrites a blob with other bytes of the same length and puts its time back.
fn damage(blob: &Path, with: &str) {
    let time = fs::metadata(blob).unwrap().modified().unwrap();
    fs::set_permissions(blob, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(fs::metadata(blob).unwrap().len(), with.len() as u64);
    fs::write(blob, with).unwrap();
    fs::File::options().write(true).open(blob).unwrap().set_modified(time).unwrap();
    fs::set_permissions(blob, fs::Permissions::from_mode(0o444)).unwrap();
}

/// A stage that half-writes its output, then waits while `go` is not there, then ends.
const SLOW: &str = "stages:\n  a: { shell: 'echo half > $out/x; echo $$ > $scratch/pid; while [ ! -e $in_go/go ]; do sleep 0.02; done; echo whole > $out/x', in: { go: ./go } }\n";

#[test]
fn half_an_output_is_never_taken_when_all_is_killed() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo half > $out/x; echo $$ > $scratch/pid; sleep 30; echo whole > $out/x' }\n",
    );
    let running = repo.spawn(&["run"]);
    let pid: i32 = scratch(&repo, "pid").trim().parse().unwrap();
    running.signal(libc::SIGKILL);
    // SAFETY: a plain system call on a group that the test made.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    assert_eq!(running.wait().code, 128 + 9);
    assert!(!repo.exists("cache/results/journal") || repo.itpipe(&["cache", "ls"]).good().stdout.is_empty());
    repo.pipeline("stages:\n  a: { shell: 'echo whole > $out/x' }\n");
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "whole\n");
}

#[test]
fn a_stage_whose_itpipe_was_killed_is_ended_and_never_joined() {
    // The child left its group and ignores what it can: only the lock that it holds tells of it.
    let repo = Repo::new("stages: {}\n");
    repo.pipeline(
        r#"
stages:
  a:
    shell: |
      if [ -e $scratch/child ]; then
        case "$(cat /proc/$(cat $scratch/child)/stat 2>/dev/null)" in
          "" | *") Z "*) echo whole > $out/x ;;
          *) echo 'two writers' > $out/x ;;
        esac
        exit 0
      fi
      setsid sh -c 'trap "" TERM HUP INT; echo $$ > $0; while :; do echo half >> $1/x; sleep 0.02; done' $scratch/child $out &
      sleep 30
"#,
    );
    let running = repo.spawn(&["run"]);
    let child: i32 = scratch(&repo, "child").trim().parse().unwrap();
    running.signal(libc::SIGKILL);
    running.wait();
    assert!(alive(child), "the orphan writes on");
    let out = repo.run().good();
    assert!(
        out.stderr.contains("a process of a killed run was still at work and was ended"),
        "{}",
        out.stderr
    );
    assert!(!alive(child));
    assert_eq!(repo.output("a", "x"), "whole\n");
}

#[test]
fn who_holds_a_lock_that_still_names_a_dead_run_is_not_ended() {
    let repo = Repo::new(
        "stages:\n  a: { shell: '[ -e $scratch/s ] || {{ echo > $scratch/s; exit 1; }}; echo > $out/x' }\n  b: { shell: 'echo > $out/x' }\n",
    );
    repo.itpipe(&["run", "a"]).bad(1, "exit 1");
    let lock = fs::File::options().read(true).write(true).open(work(&repo).join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // Another run that has taken the lock and not yet written its name.
    let mut other = Command::new("sleep").arg("60").stdin(lock).spawn().unwrap();
    let running = repo.spawn(&["run"]);
    running.until_says("done  b");
    std::thread::sleep(Duration::from_millis(500));
    assert!(alive(other.id() as i32), "it is no process of the dead run");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(running.wait().good().ran(), ["a", "b"]);
}

#[test]
fn the_processes_of_a_killed_itpipe_die_with_it() {
    for script in
        ["echo $$ > $scratch/pid; exec sleep 60", "sh -c \"echo \\$\\$ > $scratch/pid; sleep 60\"; true"]
    {
        let repo = Repo::new(&format!("stages:\n  a: {{ shell: '{script}' }}\n"));
        let running = repo.spawn(&["run"]);
        let pid: i32 = scratch(&repo, "pid").trim().parse().unwrap();
        running.signal(libc::SIGKILL);
        running.wait();
        wait_until("the stage is dead", || !alive(pid));
    }
}

#[test]
fn a_killed_run_resumes_with_its_scratch_folder_and_another_key_meets_an_empty_one() {
    let script = "n=$(cat $scratch/n 2>/dev/null || echo 0); echo $((n + 1)) > $scratch/n; [ $n -ge 1 ] || sleep 30; echo $n > $out/x";
    let repo = Repo::new(&format!("stages:\n  a: {{ shell: '{script}' }}\n"));
    let running = repo.spawn(&["run"]);
    assert_eq!(scratch(&repo, "n"), "1\n");
    running.signal(libc::SIGKILL);
    running.wait();
    let out = repo.run().good();
    assert!(out.stderr.contains("a (no result yet, resumes)"), "{}", out.stderr);
    assert_eq!(repo.output("a", "x"), "1\n");
    repo.pipeline(&format!("stages:\n  a: {{ shell: '{}' }}\n", script.replace("sleep 30", "true")));
    repo.run().good();
    assert_eq!(repo.output("a", "x"), "0\n");
}

#[test]
fn a_stage_that_fails_half_way_leaves_nothing_but_scratch() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo half > $out/x; echo kept > $scratch/s; exit 1' }\n  b: { shell: 'cat $in_a/x > $out/x', in: { a: a } }\n",
    );
    repo.run().bad(1, "not run  b: needs a");
    let folder = work(&repo);
    assert!(!folder.join("out").exists());
    assert!(folder.join("scratch/s").exists());
    assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "");
}

#[test]
fn ctrl_c_lets_a_stage_write_a_checkpoint() {
    let repo = Repo::new(
        r#"
stages:
  a:
    shell: |
      trap 'echo kept > $scratch/kept; exit 75' TERM
      if [ -e $scratch/kept ]; then echo resumed > $out/x; exit 0; fi
      echo half > $out/x
      echo $$ > $scratch/pid
      while :; do sleep 0.02; done
  b: { shell: 'cp $in_a/x $out', in: { a: a } }
"#,
    );
    let running = repo.spawn(&["run"]);
    scratch(&repo, "pid");
    running.signal(libc::SIGINT);
    let out = running.wait();
    assert_eq!(out.code, 130, "{}", out.stderr);
    assert!(out.stderr.contains("stopped  a ("), "{}", out.stderr);
    assert!(!out.stderr.contains("FAILED"), "{}", out.stderr);
    assert!(!work(&repo).join("out").exists(), "the half output is gone");
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
    assert_eq!(repo.output("b", "x"), "resumed\n");
}

#[test]
fn ctrl_c_twice_ends_a_stage_that_does_not_listen() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'trap \"\" TERM; echo $$ > $scratch/pid; while :; do sleep 0.02; done' }\n",
    );
    let running = repo.spawn(&["run"]);
    let pid: i32 = scratch(&repo, "pid").trim().parse().unwrap();
    running.signal(libc::SIGTERM);
    running.until_says("once more ends them at once");
    std::thread::sleep(Duration::from_millis(200));
    assert!(alive(pid));
    running.signal(libc::SIGTERM);
    let out = running.wait();
    assert_eq!(out.code, 143, "{}", out.stderr);
    assert!(!alive(pid));
}

#[test]
fn a_stage_that_prints_without_end_is_stopped_too() {
    let repo = Repo::new("stages:\n  a: { timeout: 1, shell: 'exec yes' }\n");
    repo.spawn(&["run"]).wait().bad(1, "ran longer than its timeout of 1 s");
    let repo = Repo::new("stages:\n  a: { shell: 'echo $$ > $scratch/pid; exec yes' }\n");
    let running = repo.spawn(&["run"]);
    let pid: i32 = scratch(&repo, "pid").trim().parse().unwrap();
    running.signal(libc::SIGINT);
    assert_eq!(running.wait().code, 130);
    assert!(!alive(pid));
}

#[test]
fn no_process_outlives_its_stage() {
    let repo = Repo::new(
        r#"
stages:
  a:
    shell: |
      sleep 300 & echo $! > $out/group
      setsid sh -c 'echo $$ > out/session; exec sleep 300' > /dev/null 2>&1 < /dev/null &
      while [ ! -s $out/session ]; do sleep 0.01; done
"#,
    );
    let start = Instant::now();
    repo.run().good();
    assert!(start.elapsed() < Duration::from_secs(30));
    for file in ["group", "session"] {
        let pid: i32 = repo.output("a", file).trim().parse().unwrap();
        assert!(!alive(pid), "{file}");
    }
}

#[test]
fn two_runs_at_once_make_each_result_once() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo $$ > $scratch/pid; sleep 0.5; date +%N > $out/x; echo $$ > $out/pid' }\n  \
         b: { shell: 'cat $in_a/x > $out/x', in: { a: a } }\n  c: { shell: 'echo c > $out/x' }\n",
    );
    let first = repo.spawn(&["run", "a", "b"]);
    scratch(&repo, "pid");
    let second = repo.spawn(&["run", "-j", "1"]);
    let (first, second) = (first.wait().good(), second.wait().good());
    assert!(second.stderr.contains("is making it"), "{}", second.stderr);
    let mut ran: Vec<&str> = first.ran().into_iter().chain(second.ran()).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["a", "b", "c"], "{}\n{}", first.stderr, second.stderr);
    // An unrelated stage did not wait.
    let at = |text: &str| second.stderr.find(text).unwrap();
    assert!(at("done  c") < second.stderr.rfind("in ").unwrap());
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn runs_of_unrelated_targets_do_not_wait_for_each_other() {
    let repo = Repo::new(
        "stages:\n  slow: { shell: 'echo $$ > $scratch/pid; sleep 60; echo > $out/x' }\n  quick: { shell: 'echo q > $out/x' }\n",
    );
    let slow = repo.spawn(&["run", "slow"]);
    scratch(&repo, "pid");
    assert_eq!(repo.itpipe(&["run", "quick"]).good().ran(), ["quick"]);
    slow.signal(libc::SIGINT);
    assert_eq!(slow.wait().code, 130);
}

#[test]
fn an_input_that_changes_while_its_stage_runs_is_named_and_nothing_recorded() {
    let repo = Repo::new(SLOW);
    fs::create_dir(repo.path("go")).unwrap();
    repo.write("go/data", "one");
    let running = repo.spawn(&["run"]);
    scratch(&repo, "pid");
    repo.write("go/data", "two");
    // The stage reads a copy, so the file that lets it end must come in another way: let it be stopped by itself.
    let pid: i32 = scratch(&repo, "pid").trim().parse().unwrap();
    let go = work(&repo).join("in/go/go");
    let parent = go.parent().unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&go, "").unwrap();
    let out = running.wait().bad(1, "data: changed while the stage ran: nothing is recorded");
    assert!(out.stderr.contains("go/data"), "{}", out.stderr);
    assert!(!alive(pid));
    assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "");
    repo.write("go/go", "");
    assert_eq!(repo.run().good().ran(), ["a"], "noticed the next time");
}

#[test]
fn code_that_changes_while_its_stage_runs_is_named() {
    let repo = Repo::new("kinds: { k: { run: [./go.sh], code: [lib.sh] } }\nstages: { a: { kind: k } }\n");
    repo.write("go.sh", "#!/bin/sh\necho > scratch/pid; sleep 1; echo x > out/x\n");
    fs::set_permissions(repo.path("go.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    repo.write("lib.sh", "1");
    let running = repo.spawn(&["run"]);
    scratch(&repo, "pid");
    repo.write("lib.sh", "2");
    running.wait().bad(1, "lib.sh: changed while the stage ran");
    assert_eq!(repo.run().good().ran(), ["a"]);
}

#[test]
fn code_that_changes_while_a_run_looks_at_it_is_not_keyed_with_the_old_program() {
    let repo = Repo::new(
        "programs: { tool: { build: 'cp tool.sh tool; chmod +x tool', path: tool, sources: [tool.sh] } }\n\
         stages: { a: { run: [tool], code: [lib, tool.sh] } }\n",
    );
    repo.write("tool.sh", "#!/bin/sh\necho one > out/x\n");
    repo.write("lib/small", "");
    repo.run().good();
    // Read before tool.sh, for as long as the edit takes.
    fs::File::create(repo.path("lib/large")).unwrap().set_len(512 << 20).unwrap();
    let running = repo.spawn(&["run"]);
    let pid = running.child.id() as i32;
    wait_until("lib/large is read", || {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.contains("lib/large") || !alive(pid)
    });
    repo.write("tool.sh", "#!/bin/sh\necho two > out/x\n");
    running.wait().good();
    repo.run().good();
    assert_eq!(repo.output("a", "x"), "two\n");
}

const CHAIN: &str = "stages:\n  a: { shell: 'echo aaa > $out/x; echo other > $out/y' }\n  b: { shell: 'cat $in_a/x > $out/x; echo b >> $out/x', in: { a: a } }\n";

#[test]
fn a_damaged_blob_is_found_set_aside_and_made_again() {
    let repo = Repo::new(CHAIN);
    repo.run().good();
    std::thread::sleep(Duration::from_millis(30));
    repo.run().good();
    damage(&repo.blob("aaa\n"), "bad\n");
    let out = repo.run().good();
    assert_eq!(out.ran(), ["a"], "{}", out.stderr);
    assert!(out.stderr.contains("'x' was damaged in the store"), "{}", out.stderr);
    repo.blob("aaa\n");
    assert_eq!(fs::read_dir(repo.path("cache/quarantine")).unwrap().count(), 1);
    damage(&repo.blob("aaa\nb\n"), "bad\nb\n");
    assert_eq!(repo.run().good().ran(), ["b"]);
    assert_eq!(repo.output("b", "x"), "aaa\nb\n");
}

#[test]
fn other_bytes_for_a_key_whose_kind_promises_the_same_are_an_error() {
    let random = "head -c 8 /dev/urandom | od -An -tx1 > $out/x";
    let repo = Repo::new(&format!("stages:\n  a: {{ shell: '{random}' }}\n"));
    repo.run().good();
    let path = repo.blobs().into_iter().find(|p| fs::metadata(p).is_ok_and(|m| m.len() == 25)).unwrap();
    fs::remove_file(path).unwrap();
    let out = repo.run().bad(1, "a kind that is repeatable: bits made other bytes for the same key");
    assert!(out.stderr.contains("hint: find what it does not declare, or say repeatable: statistical"));
    // The way out is to say what is true: another key.
    repo.pipeline(&format!("stages:\n  a: {{ shell: '{random}', repeatable: statistical }}\n"));
    repo.run().good();
}

#[test]
fn cache_verify_reads_every_blob() {
    let repo = Repo::new(CHAIN);
    repo.run().good();
    assert!(repo.itpipe(&["cache", "verify"]).good().stdout.contains("blobs"));
    damage(&repo.blob("other\n"), "0ther\n");
    let out = repo.itpipe(&["cache", "verify"]);
    assert_eq!((out.code, out.stdout.contains("damaged: ")), (1, true), "{out:?}");
    assert_eq!(repo.run().good().ran(), ["a"]);
    repo.itpipe(&["cache", "verify"]).good();
}

#[test]
fn a_deleted_blob_is_made_again_and_a_deleted_cache_too() {
    let repo = Repo::new(CHAIN);
    repo.run().good();
    fs::remove_file(repo.blob("aaa\n")).unwrap();
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.run().good().ran(), [""; 0]);
    fs::remove_dir_all(repo.path("cache")).unwrap();
    let lock = repo.read("pipeline.lock");
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
    assert_eq!(repo.read("pipeline.lock"), lock, "a clean run gives the same lock");
}

#[test]
fn gc_keeps_what_the_lock_names() {
    let repo = Repo::new(CHAIN);
    repo.run().good();
    assert!(repo.itpipe(&["cache", "gc"]).good().stdout.contains("keeps 2 results"));
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn gc_keeps_what_the_lock_of_another_pipeline_names() {
    let repo = Repo::new(CHAIN);
    repo.write("x.yaml", "version: 1\nstages: { other: { shell: 'echo other pipeline > $out/x' } }\n");
    // Not ours, whatever they hold.
    repo.write("Cargo.lock", "version = 4\n");
    repo.write("flake.lock", "{\n  \"nodes\": {},\n  \"version\": 7\n}\n");
    let x = |args: &[&str]| repo.itpipe(&[&["--file", "x.yaml"][..], args].concat());
    repo.run().good();
    x(&["run"]).good();
    // As if all of it had been made long ago.
    let results = itpipe::results::Results::open(&repo.path("cache")).unwrap().every();
    fs::remove_file(repo.path("cache/results/journal")).unwrap();
    {
        let store = itpipe::cas::Store::open(&repo.path("cache")).unwrap();
        let journal = itpipe::results::Results::open(&repo.path("cache")).unwrap();
        for result in results {
            journal.record(&store, &itpipe::results::ActionResult { started: 0, ..result }).unwrap();
        }
    }
    let lock = repo.read("x.lock");
    repo.write("x.lock", format!("{}<<<<<<< ours\n", lock.split_inclusive('\n').next().unwrap()));
    repo.itpipe(&["cache", "gc"]).bad(3, "x.lock:2:1: a merge conflict");
    repo.write("x.lock", lock);
    for run in [&repo.itpipe(&["cache", "gc"]), &x(&["cache", "gc"])] {
        assert!(run.stdout.contains("keeps 3 results"), "{run:?}");
    }
    assert_eq!((repo.run().good().ran(), x(&["run"]).good().ran()), (vec![], vec![]));
    fs::remove_file(repo.path("x.lock")).unwrap();
    repo.itpipe(&["cache", "gc"]).good();
    assert_eq!(x(&["run"]).good().ran(), ["other"], "what no lock names goes");
}

#[test]
fn a_stage_must_write_something() {
    let repo = Repo::new("stages:\n  a: { shell: 'true' }\n");
    repo.run().bad(1, "a (").bad(1, "exited 0 without writing anything into out");
    assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "");
}

#[test]
fn retries_timeouts_and_bad_input() {
    let count = "n=$(cat $scratch/n 2>/dev/null || echo 0); echo $((n + 1)) > $scratch/n; ";
    let repo = Repo::new(&format!(
        "stages:\n  flaky: {{ retries: 2, shell: '{count} [ $n -ge 2 ] || {{{{ echo try $n; exit 1; }}}}; echo ok > $out/x' }}\n"
    ));
    let out = repo.run().good();
    assert_eq!(out.with_word("retry"), ["flaky", "flaky"], "{}", out.stderr);
    assert_eq!(repo.itpipe(&["log", "flaky"]).good().stdout, "try 0\ntry 1\n");
    repo.pipeline(&format!("stages:\n  bad: {{ retries: 5, shell: '{count} exit 2' }}\n"));
    let out = repo.run().bad(1, "bad input (exit 2)");
    assert_eq!(out.with_word("retry"), [""; 0]);
    repo.pipeline("stages:\n  slow: { timeout: 1, shell: 'sleep 60' }\n");
    let start = Instant::now();
    repo.run().bad(1, "ran longer than its timeout of 1 s");
    assert!(start.elapsed() < Duration::from_secs(30));
    repo.pipeline(&format!(
        "stages:\n  again: {{ shell: '{count} [ $n -ge 3 ] || exit 75; echo $n > $out/x' }}\n"
    ));
    repo.run().good();
    assert_eq!(repo.output("again", "x"), "3\n", "75 asks to be run again");
}

/// Runs a script as root of a name space of its own, in which it may mount; none where that is forbidden.
fn in_namespace(repo: &Repo, script: &str) -> Option<std::process::Output> {
    let probe = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !probe.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: no name spaces here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_itpipe")]).current_dir(repo.root());
    Some(command.output().unwrap())
}

fn said(out: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn a_full_disk_is_found_before_a_stage_runs() {
    let repo = Repo::new("stages:\n  a: { shell: 'echo > $out/x' }\n");
    fs::create_dir(repo.path("cache")).unwrap();
    let Some(out) = in_namespace(&repo, "mount -t tmpfs -o size=4m tmpfs cache && exec \"$0\" run") else {
        return;
    };
    let text = said(&out);
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("disk full") && !text.contains("start  a"), "{text}");
    // It fills while the stage runs: an error, nothing recorded, and clean afterwards.
    let repo = Repo::new("stages:\n  a: { shell: 'head -c 60000000 /dev/zero > $out/x' }\n");
    fs::create_dir(repo.path("cache")).unwrap();
    let script = "mount -t tmpfs -o size=40m tmpfs cache; \"$0\" run; echo first $?; sed -i s/60000000/60/ pipeline.yaml; \"$0\" run; echo second $?";
    let Some(out) = in_namespace(&repo, script) else { return };
    let text = said(&out);
    assert!(text.contains("first 1") && text.contains("No space left"), "{text}");
    assert!(text.contains("second 0"), "{text}");
}

#[test]
fn a_read_only_store_serves_and_refuses_before_a_stage_runs() {
    let repo = Repo::new("stages:\n  a: { shell: 'echo > $out/x' }\n");
    repo.run().good();
    let bound = "mount --bind cache cache && mount -o remount,ro,bind cache; ";
    let Some(out) = in_namespace(&repo, &format!("{bound} exec \"$0\" run")) else { return };
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
    repo.pipeline("stages:\n  a: { shell: 'echo 2 > $out/x' }\n");
    let Some(out) = in_namespace(&repo, &format!("{bound} exec \"$0\" run")) else { return };
    let text = said(&out);
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("not writable") && !text.contains("start  a"), "{text}");
}

#[test]
fn a_damaged_lock_or_journal_is_an_error_or_costs_only_time() {
    let repo = Repo::new(CHAIN);
    repo.run().good();
    let lock = repo.read("pipeline.lock");
    repo.write("pipeline.lock", &lock[..lock.len() / 2]);
    repo.run().bad(3, "pipeline.lock:");
    repo.write("pipeline.lock", &lock);
    // A line that was cut by a crash does not count.
    let journal = fs::read(repo.path("cache/results/journal")).unwrap();
    fs::write(repo.path("cache/results/journal"), &journal[..journal.len() - 20]).unwrap();
    assert_eq!(repo.run().good().ran(), ["b"]);
    assert_eq!(repo.run().good().ran(), [""; 0]);
    fs::write(repo.path("cache/version"), "itpipe cache 99\n").unwrap();
    repo.run().bad(3, "version 'itpipe cache 99'");
}

#[test]
fn killed_at_random_moments_the_store_never_lies() {
    let mut yaml = String::from("stages:\n");
    for i in 0..12 {
        let input = if i < 3 { String::new() } else { format!(", in: {{ a: s{}, b: s{} }}", i - 1, i - 3) };
        let read = if i < 3 { "true" } else { "cat $in_a/x $in_b/x > $out/in" };
        yaml += &format!(
            "  s{i}: {{ shell: '{read}; echo {i} $param_n > $out/x; head -c 20000 /dev/zero > $out/big'{input}, params: {{ n: \"{{vars.n}}\" }} }}\n"
        );
    }
    let repo = Repo::new(&format!("vars: {{ n: 0 }}\n{yaml}"));
    let clean = Repo::new(&format!("vars: {{ n: 0 }}\n{yaml}"));
    clean.run().good();
    // Marsaglia's xorshift: moments that are spread, and the same ones each time.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut killed = 0;
    for round in 0..200 {
        if round % 10 == 0 {
            // A new value asks for new work.
            repo.pipeline(&format!("vars: {{ n: {round} }}\n{yaml}"));
        }
        let running = repo.spawn(&["run"]);
        std::thread::sleep(Duration::from_micros(random(60_000)));
        running.signal(libc::SIGKILL);
        killed += usize::from(running.wait().code == 128 + 9);
        let store = itpipe::cas::Store::open(&repo.path("cache")).unwrap();
        let results = itpipe::results::Results::open(&repo.path("cache")).unwrap();
        for result in results.every() {
            assert!(
                store.complete(&result.tree),
                "round {round}: {} has a result without its blobs",
                result.stage
            );
            store.manifest(&result.manifest).unwrap();
        }
    }
    assert!(killed > 50, "{killed} of 200 were killed in time");
    repo.pipeline(&format!("vars: {{ n: 0 }}\n{yaml}"));
    repo.run().good();
    assert_eq!(repo.lock()["results"], clean.lock()["results"]);
    assert!(repo.itpipe(&["cache", "verify"]).good().stdout.contains("blobs"));
}

#[test]
fn a_reader_that_has_gone_ends_nothing() {
    use std::os::fd::FromRawFd;
    // The writing end of a pipe that nobody reads any more.
    let closed = || {
        let mut ends = [0i32; 2];
        // SAFETY: two descriptors are written; they are ours alone.
        unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            libc::close(ends[0]);
            std::process::Stdio::from(std::os::fd::OwnedFd::from_raw_fd(ends[1]))
        }
    };
    let repo = Repo::new("stages: { a: { shell: 'echo > $out/index.html', publish: reports } }\n");
    for args in [&["run"][..], &["run"], &["plan"], &["show", "a"], &["doctor"], &["schema"]] {
        let status = repo.command(args).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
    assert!(repo.exists("reports/index.html"));
    let status = repo.command(&["run", "nothing"]).stdout(closed()).stderr(closed()).status().unwrap();
    assert_eq!(status.code(), Some(2), "an error keeps its code");
}
