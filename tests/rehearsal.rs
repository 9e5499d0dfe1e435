//! Rehearsals: what a long plan would stumble over is found before its first stage, and a short one pays nothing.

mod support;

use std::os::unix::process::CommandExt;

use support::Repo;

/// A small study in which each kind can be rehearsed; `DATA`, `TRAIN`, `EVAL` and `REPORT` are lines that a test adds.
const STUDY: &str = r#"
vars: { expect: 3600, seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] }
licences: { closed: { name: The agreement, terms: "research only", consent: true } }
pools: { cpu: 4 }
kinds:
  fetch: { rehearse: true, fixed: true, env: [HERE], expect: 1, shell: 'test -e "$HERE/$param_file"; echo "$rehearse $param_file" > $out/x' }
  prepare: { rehearse: true, expect: 1, shell: 'DATA cat $in_files/x > $out/x' }
  train:
    rehearse: true
    alike: [seed]
    expect: '{vars.expect}'
    shell: 'TRAIN cat $in_data/x > $out/w; echo "$rehearse $param_method $param_seed" >> $out/w'
  evaluate: { rehearse: true, expect: 1, shell: 'EVAL tail -n 1 $in_weights/w > $out/m' }
  report: { rehearse: true, expect: 1, shell: 'REPORT cat $in_metrics > $out/index.html' }
stages:
  source: { kind: fetch, params: { file: data.txt }, files: { x: { sha256: null } } }
  arrays: { kind: prepare, in: { files: source } }
  train: { kind: train, matrix: &runs { method: [erm, it], seed: '{vars.seeds}' }, in: { data: arrays }, params: { method: '{method}', seed: '{seed}' } }
  evaluate: { kind: evaluate, matrix: *runs, in: { weights: 'train[{method},{seed}]' } }
  report: { kind: report, in: { metrics: 'evaluate[*]/m' }, publish: page }
"#;

fn study(edits: &[(&str, &str)]) -> Repo {
    let mut yaml = STUDY.to_string();
    for (old, new) in edits {
        assert!(yaml.contains(old), "{old}");
        yaml = yaml.replace(old, new);
    }
    for line in ["DATA ", "TRAIN ", "EVAL ", "REPORT "] {
        yaml = yaml.replace(line, "");
    }
    let repo = Repo::new(&yaml);
    repo.write("data.txt", "data\n");
    repo
}

fn run(repo: &Repo, args: &[&str]) -> support::Out {
    let here = repo.root().to_path_buf();
    repo.with(&[&["run"][..], args].concat(), |command| _ = command.env("HERE", here))
}

#[test]
fn one_of_each_class_is_rehearsed_and_leaves_no_result() {
    let repo = study(&[]);
    let out = run(&repo, &[]).good();
    assert_eq!(
        out.with_word("passed"),
        ["arrays", "evaluate[erm,0]", "evaluate[it,0]", "report", "source", "train[erm,0]", "train[it,0]"]
    );
    assert!(
        out.stderr
            .starts_with("rehearse  7 of 43 stages, one of each class, before the first of a long plan\n"),
        "{}",
        out.stderr
    );
    // All that is rehearsed comes before all that runs.
    let last = out.stderr.rfind("passed  ").unwrap();
    assert!(last < out.stderr.find("   start  ").unwrap(), "{}", out.stderr);
    assert_eq!(out.ran().len(), 43);
    // What the rehearsals wrote is nowhere in the results.
    let page = repo.read("page/index.html");
    assert_eq!(page.lines().count(), 20);
    assert!(page.lines().all(|line| line.starts_with("false ")), "{page}");
    assert_eq!(repo.output("train[it,3]", "w"), "false data.txt\nfalse it 3\n");
    assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout.lines().count(), 43);
    // Nothing is left to run, and so nothing to rehearse.
    let out = run(&repo, &[]).good();
    assert!(out.stderr.starts_with("43 up to date in "), "{}", out.stderr);
}

#[test]
fn a_short_plan_pays_nothing() {
    let out = run(&study(&[("expect: 3600", "expect: 20")]), &[]).good();
    assert_eq!((out.with_word("passed"), out.ran().len()), (Vec::new(), 43));
    // The kinds say nothing: the first time nobody knows, then it was measured.
    let repo = study(&[("    expect: '{vars.expect}'\n", "")]);
    assert_eq!(run(&repo, &[]).good().with_word("passed").len(), 7);
    let yaml = repo.read("pipeline.yaml");
    repo.write("pipeline.yaml", yaml.replace("cat $in_data/x > $out/w", "cat < $in_data/x > $out/w"));
    let out = run(&repo, &[]).good();
    assert_eq!(
        out.with_word("passed").len(),
        4,
        "another line is another class, with the same bytes: {}",
        out.stderr
    );
    repo.write("data.txt", "data\n");
    let yaml = repo.read("pipeline.yaml");
    repo.write("pipeline.yaml", yaml.replace("version: 1", "version: 1\nsalt: again"));
    let out = run(&repo, &[]).good();
    assert_eq!((out.with_word("passed"), out.ran().len()), (Vec::new(), 43), "{}", out.stderr);
}

#[test]
fn it_can_be_left_out() {
    let out = run(&study(&[]), &["--no-rehearsal"]).good();
    assert_eq!((out.with_word("passed"), out.ran().len()), (Vec::new(), 43));
    let repo = study(&[]);
    let here = repo.root().to_path_buf();
    let out = repo.with(&["run"], |c| _ = c.env("HERE", here).env("ITPIPE_NO_REHEARSAL", "1")).good();
    assert_eq!((out.with_word("passed"), out.ran().len()), (Vec::new(), 43));
}

/// Nothing but the rehearsal ran, and it says what is wrong.
#[track_caller]
fn found(what: &str, out: support::Out, code: i32, says: &[&str]) {
    assert_eq!(out.code, code, "{what}: {}", out.stderr);
    for text in says {
        assert!(out.stderr.contains(text), "{what}: no '{text}' in:\n{}", out.stderr);
    }
    let begun = out.with_word("start");
    assert!(begun.is_empty(), "{what}: {begun:?} began");
}

#[test]
fn each_fault_is_found_before_the_first_stage() {
    let licence = [("files: { x: { sha256: null } } }", "files: { x: { sha256: null } }, licence: closed }")];
    found("a licence", run(&study(&licence), &[]), 2, &["licence 'closed' must be accepted first"]);

    let repo = study(&[]);
    std::fs::remove_file(repo.path("data.txt")).unwrap();
    found("a file", run(&repo, &[]), 1, &["FAILED  source (", "): rehearsal: exit 1"]);

    // Two steps need as much memory as a thousand.
    let buffer = "TRAIN dd if=/dev/zero of=/dev/null bs=3000M count=1; ";
    let repo = study(&[("TRAIN ", buffer)]);
    let here = repo.root().to_path_buf();
    let out = repo.with(&["run"], |command| {
        command.env("HERE", here);
        // SAFETY: a plain system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 2 << 30, rlim_max: 2 << 30 };
                match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    });
    found("memory", out, 1, &["FAILED  train[erm,0] (", "): rehearsal: exit ", "memory exhausted"]);

    let edits = [("EVAL ", "ech $rehearse; EVAL "), ("REPORT ", "cat no-such-template; REPORT ")];
    let says = [
        "FAILED  evaluate[erm,0] (",
        "FAILED  evaluate[it,0] (",
        "): rehearsal: exit 127",
        "ech: not found",
        "2 failed, 41 not run",
    ];
    found("the evaluation", run(&study(&edits), &[]), 1, &says);
    found(
        "the report",
        run(&study(&edits[1..]), &[]),
        1,
        &["FAILED  report (", "no-such-template", "1 failed, 42 not run"],
    );

    // A folder that nobody can write to, root neither.
    let repo = study(&[]);
    std::fs::create_dir(repo.path("cache")).unwrap();
    let here = repo.root().to_path_buf();
    let script = "mount -t tmpfs -o ro tmpfs cache && exec \"$0\" run";
    let out = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_itpipe")])
        .current_dir(&here)
        .env("HERE", &here)
        .output();
    if let Ok(out) = out {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        if !text.contains("unshare") && !text.contains("mount") {
            assert!(text.contains("writable") || text.contains("Read-only"), "{text}");
            assert!(!text.contains("rehearse  ") && !text.contains("start  "), "{text}");
        }
    }
    // Room that the plan is likely to need and the disk has not.
    let told = r#"EVAL if $rehearse; then echo "{{\"estimate\":{{\"seconds\":1,\"bytes\":4000000000000000}}}}"; fi; "#;
    let out = run(&study(&[("EVAL ", told)]), &[]);
    found("room", out, 3, &["disk full", "MB are needed"]);
}

#[test]
fn what_passed_is_not_rehearsed_again_the_next_hour() {
    let repo = study(&[("TRAIN ", "TRAIN if ! $rehearse; then exit 9; fi; ")]);
    let out = run(&repo, &["--fail-fast"]);
    assert_eq!((out.code, out.with_word("passed").len()), (1, 7), "{}", out.stderr);
    // The arrays are real by now: what reads them is looked at once more (not the report: it gets the same bytes), and
    // then no more.
    let out = run(&repo, &["--fail-fast"]);
    assert_eq!((out.code, out.with_word("passed").len()), (1, 4), "{}", out.stderr);
    let out = run(&repo, &["--fail-fast"]);
    assert!(out.with_word("passed").is_empty() && out.stderr.contains("exit 9"), "{}", out.stderr);
    // The rehearsal counts for nobody's result: without it the stages still have to run.
    let plan = ["plan", "train[it,*]"];
    let out = repo.with(&plan, |command| _ = command.env("HERE", repo.root())).good().stdout;
    assert!(out.contains("10 to run"), "{out}");
}

#[test]
fn the_measured_step_makes_the_estimate_and_the_report_compares() {
    let told = r#"TRAIN if $rehearse; then echo "{{\"estimate\":{{\"seconds\":7200,\"bytes\":1000000,\"download\":5000}}}}"; fi; "#;
    let repo = study(&[("TRAIN ", told), ("expect: 3600", "expect: 61")]);
    let before = repo.itpipe(&["plan"]).good().stdout;
    // 20 trainings of 61 s on four cores, and what is before and after them.
    assert!(before.contains("\nestimate: 5 min 11 s for 43 stages\n"), "{before}");
    repo.write("pipeline.yaml", repo.read("pipeline.yaml").replace("expect: 61", "expect: 610"));
    let out = run(&repo, &[]).good();
    assert!(
        out.stderr.contains("estimate  10 h 00 min for 43 stages, 20 MB on the disk, 100 kB to bring\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("; what was estimated at 40 h 00 min took "), "{}", out.stderr);
    let run_json: serde_json::Value = serde_json::from_str(&repo.read("page/run.json")).unwrap();
    let cost = &run_json["cost"];
    assert!(
        cost["estimated"].as_f64().unwrap() > 143_999.0 && cost["spent"].as_f64().unwrap() < 600.0,
        "{cost}"
    );
    let trained = run_json["stages"].as_array().unwrap().iter().find(|s| s["name"] == "train[it,3]").unwrap();
    assert_eq!(trained["estimated"], 7200.0);
    // What was measured since is known better.
    repo.write("pipeline.yaml", repo.read("pipeline.yaml").replace("version: 1", "version: 1\nsalt: again"));
    let out = repo.itpipe(&["plan", "--json"]).good().stdout;
    let estimate: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&estimate["event"], &estimate["unknown"]), (&"estimate".into(), &0.into()));
    assert!(estimate["wall"].as_f64().unwrap() < 60.0, "{estimate}");
}

#[test]
fn it_can_be_stopped() {
    let repo = study(&[("shell: 'test -e", "shell: 'sleep 60; test -e")]);
    let running = repo.spawn(&["run"]);
    support::wait_until("a rehearsal runs", || {
        std::fs::read_dir(repo.path("cache/work")).is_ok_and(|all| all.count() > 0)
    });
    running.signal(libc::SIGINT);
    let out = running.wait();
    assert_eq!(out.code, 130, "{}", out.stderr);
    assert!(out.with_word("start").is_empty() && !repo.exists("pipeline.lock"), "{}", out.stderr);
}
