//! What runs and what does not, after each kind of change.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use support::Repo;

/// `a` reads data.txt and a parameter, `b` reads `a`, `c` stands alone.
const CHAIN: &str = r#"
vars: { n: 1, other: 1 }
stages:
  a: { shell: 'cat $in_data > $out/x; echo $param_n >> $out/x', in: { data: ./data.txt }, params: { n: "{vars.n}" } }
  b: { shell: 'tr a-z A-Z < $in_a > $out/x', in: { a: a/x } }
  c: { shell: 'echo c > $out/x', params: { n: "{vars.other}" } }
"#;

fn chain() -> Repo {
    let repo = Repo::new(CHAIN);
    repo.write("data.txt", "one\n");
    assert_eq!(repo.run().good().ran(), ["a", "b", "c"]);
    assert_eq!(repo.output("b", "x"), "ONE\n1\n");
    repo
}

#[track_caller]
fn edits(repo: &Repo, from: &str, to: &str) {
    let text = repo.read("pipeline.yaml");
    assert!(text.contains(from));
    repo.write("pipeline.yaml", text.replace(from, to));
}

#[test]
fn a_second_run_does_nothing_and_writes_nothing() {
    let repo = chain();
    let before = fs::metadata(repo.path("pipeline.lock")).unwrap();
    let journal = fs::metadata(repo.path("cache/results/journal")).unwrap();
    let out = repo.run().good();
    assert_eq!(out.ran(), [""; 0]);
    assert!(out.stderr.contains("3 up to date"), "{}", out.stderr);
    assert_eq!(fs::metadata(repo.path("pipeline.lock")).unwrap().ctime_nsec(), before.ctime_nsec());
    assert_eq!(fs::metadata(repo.path("cache/results/journal")).unwrap().mtime_nsec(), journal.mtime_nsec());
    assert_eq!(fs::read_dir(repo.path("cache/work")).unwrap().count(), 0, "nothing is left of finished jobs");
}

#[test]
fn another_command_or_parameter_runs_what_it_changes() {
    let repo = chain();
    edits(&repo, "tr a-z A-Z", "tr a-m A-M");
    assert_eq!(repo.run().good().ran(), ["b"]);
    edits(&repo, "n: 1, other: 1", "n: 1, other: 2");
    assert_eq!(repo.run().good().ran(), ["c"], "a parameter that others do not use");
    edits(&repo, "n: 1, other: 2", "n: 2, other: 2");
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
}

#[test]
fn what_cannot_change_the_bytes_runs_nothing() {
    let repo = chain();
    let text = repo.read("pipeline.yaml");
    repo.write("pipeline.yaml", text.replace("vars:", "# a comment\npools: { cpu: 1 }\nvars:"));
    assert_eq!(repo.run().good().ran(), [""; 0]);
    edits(&repo, "c: { shell", "c: { threads: 3, timeout: 99, shell");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    assert_eq!(repo.itpipe(&["run", "-j", "1"]).good().ran(), [""; 0]);
    assert_eq!(
        repo.with(&["run"], |c| _ = c.env("ITPIPE_JOBS", "1").env("USER", "other")).good().ran(),
        [""; 0]
    );
    let moved = tempfile::tempdir().unwrap();
    let status =
        std::process::Command::new("cp").arg("-a").arg(repo.root()).arg(moved.path().join("m")).status();
    assert!(status.unwrap().success());
    let out = repo.with(&["run"], |c| _ = c.current_dir(moved.path().join("m"))).good();
    assert_eq!(out.ran(), [""; 0], "a moved folder");
}

#[test]
fn a_declared_variable_of_the_environment_is_an_input() {
    let repo = Repo::new("stages: { a: { shell: 'echo \"${{WORD-unset}}\" > $out/x', env: [WORD] } }\n");
    let run = |word: Option<&str>| {
        let out = repo.with(&["run"], |c| match word {
            Some(word) => _ = c.env("WORD", word),
            None => _ = c.env_remove("WORD"),
        });
        (out.good().ran().len(), repo.output("a", "x"))
    };
    // `output` looks with WORD unset, so only the count of what ran and the lock's content matter.
    assert_eq!(run(Some("one")).0, 1);
    assert_eq!(run(Some("one")).0, 0);
    assert_eq!(run(Some("two")), (1, "two\n".into()));
    assert_eq!(run(None), (1, "unset\n".into()));
    assert_eq!(run(Some("one")), (0, "one\n".into()));
}

#[test]
fn a_stage_sees_the_declared_environment_and_a_short_list() {
    let repo = Repo::new(
        "stages: { a: { shell: 'env | cut -d= -f1 | sort > $out/x', env: [WORD], params: { p: 1 } } }\n",
    );
    let more = |c: &mut std::process::Command| {
        _ = c.env("WORD", "w").env("OTHER", "o").env("HF_TOKEN", "hf_secret1")
    };
    repo.with(&["run"], more).good();
    let text = repo.output("a", "x");
    let allowed = [
        "CUDA_VISIBLE_DEVICES",
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PATH",
        "PWD",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHASHSEED",
        "RAYON_NUM_THREADS",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "WORD",
        "_",
        "out",
        "param_p",
        "scratch",
        "threads",
        "OLDPWD",
        "SHLVL",
    ];
    for name in text.lines() {
        assert!(allowed.contains(&name), "{name}");
    }
    assert!(text.lines().any(|name| name == "WORD"));
}

#[test]
fn a_touched_input_runs_nothing() {
    let repo = chain();
    fs::File::open(repo.path("data.txt"))
        .unwrap()
        .set_modified(SystemTime::now() + Duration::from_secs(9))
        .unwrap();
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn an_input_that_was_put_back_takes_the_earlier_result() {
    let repo = chain();
    repo.write("data.txt", "two\n");
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
    repo.write("data.txt", "one\n");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    assert_eq!(repo.output("b", "x"), "ONE\n1\n");
}

#[test]
fn an_edit_that_keeps_size_and_time_is_noticed() {
    let repo = chain();
    std::thread::sleep(Duration::from_millis(30));
    repo.run().good();
    let time = fs::metadata(repo.path("data.txt")).unwrap().modified().unwrap();
    repo.write("data.txt", "two\n");
    fs::File::options().write(true).open(repo.path("data.txt")).unwrap().set_modified(time).unwrap();
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
    assert_eq!(repo.output("b", "x"), "TWO\n1\n");
}

#[test]
fn an_input_replaced_by_an_older_file_is_noticed() {
    let repo = chain();
    repo.write("old.txt", "old\n");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(repo.path("old.txt")).unwrap().set_modified(old).unwrap();
    fs::rename(repo.path("old.txt"), repo.path("data.txt")).unwrap();
    assert_eq!(repo.run().good().ran(), ["a", "b"]);
    assert_eq!(repo.output("b", "x"), "OLD\n1\n");
}

#[test]
fn an_equal_output_stops_what_follows() {
    let repo = chain();
    edits(&repo, "cat $in_data > $out/x", "cat < $in_data > $out/x");
    assert_eq!(repo.run().good().ran(), ["a"]);
}

#[test]
fn a_symlinked_input_is_what_it_points_to() {
    let repo = Repo::new("stages: { a: { shell: 'cat $in_d > $out/x', in: { d: ./link } } }\n");
    repo.write("one", "1\n");
    repo.write("two", "2\n");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(repo.path("two")).unwrap().set_modified(old).unwrap();
    symlink("one", repo.path("link")).unwrap();
    repo.run().good();
    repo.write("one", "11\n");
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "11\n");
    fs::remove_file(repo.path("link")).unwrap();
    symlink("two", repo.path("link")).unwrap();
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "2\n");
}

#[test]
fn a_folder_input_is_all_of_its_files() {
    let repo = Repo::new(
        "stages: { a: { shell: '(cd $in_d; find . -type f | sort) > $out/x', in: { d: ./dir } } }\n",
    );
    repo.write("dir/a", "a");
    repo.write("dir/sub/b", "b");
    repo.run().good();
    assert_eq!(repo.output("a", "x"), "./a\n./sub/b\n");
    repo.write("dir/sub/c", "");
    assert_eq!(repo.run().good().ran(), ["a"]);
    fs::remove_file(repo.path("dir/a")).unwrap();
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "./sub/b\n./sub/c\n");
    repo.itpipe(&["run"]).good();
}

#[test]
fn code_is_an_input_by_its_bytes() {
    let repo = Repo::new("stages: { a: { run: [sh, ./x], shell: x } }\n");
    repo.pipeline("kinds: { k: { run: [./go.sh, word], code: ['lib/*.sh'] } }\nstages: { a: { kind: k } }\n");
    repo.write("go.sh", "#!/bin/sh\necho \"$1 $2\" > out/x\n");
    fs::set_permissions(repo.path("go.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    repo.write("lib/a.sh", "1");
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "word job.json\n");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    repo.write("lib/a.sh", "2");
    assert_eq!(repo.run().good().ran(), ["a"]);
    repo.write("lib/b.sh", "2");
    assert_eq!(repo.run().good().ran(), ["a"]);
    repo.write("lib/b.txt", "2");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    repo.write("go.sh", "#!/bin/sh\necho changed > out/x\n");
    assert_eq!(repo.run().good().ran(), ["a"], "the executable is part of the key");
    fs::remove_dir_all(repo.path("lib")).unwrap();
    repo.run().bad(2, "kinds.k.code: 'lib/*.sh': no such file in the repository");
}

#[test]
fn code_leaves_out_what_is_made_and_no_folder_for_its_name() {
    let repo = Repo::new(
        "kinds: { k: { shell: 'echo > $out/x', code: [src, 'web/**/*.js'] } }\nstages: { a: { kind: k } }\n",
    );
    repo.write("src/main.rs", "mod target;");
    repo.write("src/node_modules/own.js", "1");
    repo.write("web/own.js", "1");
    repo.write("web/package.json", "{}");
    repo.run().good();
    let runs = |path: &str| {
        repo.write(path, format!("another {path}"));
        !repo.run().good().ran().is_empty()
    };
    assert!(runs("src/target/mod.rs") && runs("src/node_modules/own.js"), "modules are code");
    repo.write("src/built/CACHEDIR.TAG", "");
    for made in ["src/built/x.rs", "src/__pycache__/x.pyc", "src/.git/index", "web/node_modules/x/x.js"] {
        assert!(!runs(made), "{made}");
    }
    assert!(runs("src/main.rs"));
}

#[test]
fn the_job_file_is_the_contract() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo a > $out/f' }\n  b: { matrix: { i: [1, 2] }, shell: 'echo $param_i > $out/f', params: { i: '{i}' } }\n  \
         c: { run: [./copy.sh], threads: 2, in: { one: a, path: a/f, many: 'b[*]', list: [a, 'b[2]'], file: ./copy.sh }, params: { x: 1.0, s: '1', m: { k: [] } } }\n",
    );
    repo.write(
        "copy.sh",
        "#!/bin/sh\ncp \"$1\" out/job.json; (ls -d in/* in/*/*; pwd | sed 's/.*cache/cache/') > out/ls\n",
    );
    fs::set_permissions(repo.path("copy.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    repo.run().good();
    let job: serde_json::Value = serde_json::from_str(&repo.output("c", "job.json")).unwrap();
    assert_eq!(
        job,
        serde_json::json!({
            "version": 1,
            "params": { "x": 1.0, "s": "1", "m": { "k": [] } },
            "inputs": {
                "one": "in/one", "path": "in/path", "file": "in/file",
                "many": [{ "name": "b[1]", "path": "in/many/0" }, { "name": "b[2]", "path": "in/many/1" }],
                "list": [{ "name": "a", "path": "in/list/0" }, { "name": "b[2]", "path": "in/list/1" }],
            },
            "out": "out", "scratch": "scratch", "rehearse": false, "threads": 2, "fixed": null,
        })
    );
    assert!(repo.output("c", "ls").starts_with("in/file\nin/list\nin/list/0\nin/list/1\nin/many\n"));
    assert!(repo.output("c", "ls").contains("cache/work/"));
}

#[test]
fn overrides_run_and_leave_the_lock_alone() {
    let repo = chain();
    let lock = repo.read("pipeline.lock");
    assert_eq!(repo.itpipe(&["run", "-S", "n=7"]).good().ran(), ["a", "b"]);
    assert_eq!(repo.read("pipeline.lock"), lock);
    assert_eq!(repo.run().good().ran(), [""; 0]);
    repo.itpipe(&["run", "-S", "n"]).bad(2, "-S n: expected NAME=VALUE");
}

#[test]
fn profiles_have_results_of_their_own_and_share_what_is_equal() {
    let repo = chain();
    let text = repo.read("pipeline.yaml") + "profiles: { small: { vars: { other: 2 } } }\n";
    repo.write("pipeline.yaml", text);
    assert_eq!(repo.itpipe(&["run", "--profile", "small"]).good().ran(), ["c"]);
    let lock = repo.lock();
    assert_eq!(lock["results"]["small"]["a"], lock["results"]["paper"]["a"]);
    assert_ne!(lock["results"]["small"]["c"], lock["results"]["paper"]["c"]);
    repo.itpipe(&["run", "--profile", "smal"]).bad(2, "smal");
}

#[test]
fn a_stage_that_is_gone_leaves_the_lock() {
    let repo = chain();
    let text = repo.read("pipeline.yaml");
    repo.write(
        "pipeline.yaml",
        text.lines().filter(|l| !l.starts_with("  c:")).collect::<Vec<_>>().join("\n"),
    );
    repo.run().good();
    assert!(repo.lock()["results"]["paper"].get("c").is_none());
}

#[test]
fn targets_run_with_what_they_need_and_nothing_else() {
    let repo = Repo::new(CHAIN);
    repo.write("data.txt", "one\n");
    assert_eq!(repo.itpipe(&["run", "b"]).good().ran(), ["a", "b"]);
    repo.itpipe(&["run", "d"]).bad(2, "d: there is no stage 'd'");
}

#[test]
fn provenance_is_a_function_of_what_is_upstream() {
    let repo = Repo::new(
        "vars: { n: 1 }\nstages:\n  a: { shell: 'echo $param_n > $out/x', params: { n: '{vars.n}' } }\n  z: { shell: 'echo z > $out/z' }\n  \
         r: { shell: 'cp $in_p $out/p.json', in: { a: a, p: '@provenance' } }\n",
    );
    repo.run().good();
    let first = repo.output("r", "p.json");
    let document: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(document["version"], 1);
    assert_eq!(document["profile"], "paper");
    assert_eq!(document["vars"], serde_json::json!({ "n": 1 }));
    assert_eq!(document["stages"].as_array().unwrap().len(), 1, "what is not upstream is not in it");
    let stage = &document["stages"][0];
    assert_eq!(stage["name"], "a");
    assert_eq!(stage["params"], serde_json::json!({ "n": 1 }));
    assert_eq!(stage["key"], repo.lock()["results"]["paper"]["a"]["key"]);
    assert_eq!(stage["tree"], repo.lock()["results"]["paper"]["a"]["tree"]);
    // The same repository elsewhere, made anew: the same document.
    let other = Repo::new("");
    other.write("pipeline.yaml", repo.read("pipeline.yaml"));
    other.run().good();
    assert_eq!(other.output("r", "p.json"), first);
}

#[test]
fn a_published_folder_is_kept_as_the_output() {
    let repo = Repo::new(
        "stages: { r: { shell: 'mkdir $out/d; echo 1 > $out/d/x; echo page > $out/index.html', publish: 'reports/{profile}' } }\n",
    );
    let out = repo.run().good();
    assert_eq!(out.stdout, "reports/paper/index.html\n");
    assert_eq!(repo.read("reports/paper/d/x"), "1\n");
    let run: serde_json::Value = serde_json::from_str(&repo.read("reports/paper/run.json")).unwrap();
    assert_eq!(run["stages"][0]["name"], "r");
    repo.write("reports/paper/mine.txt", "kept");
    let before = fs::metadata(repo.path("reports/paper/index.html")).unwrap();
    assert_eq!(repo.run().good().stdout, "reports/paper/index.html\n");
    let after = fs::metadata(repo.path("reports/paper/index.html")).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()), "left alone");
    // Deleted, edited, truncated, replaced by a folder: repaired without running anything.
    fs::remove_file(repo.path("reports/paper/d/x")).unwrap();
    repo.write("reports/paper/index.html", "edited");
    let out = repo.run().good();
    assert_eq!((out.ran(), repo.read("reports/paper/d/x").as_str()), (vec![], "1\n"));
    assert_eq!(repo.read("reports/paper/index.html"), "page\n");
    repo.write("reports/paper/index.html", "");
    fs::remove_dir_all(repo.path("reports/paper/d")).unwrap();
    repo.write("reports/paper/d", "a file");
    repo.run().good();
    assert_eq!(repo.read("reports/paper/index.html"), "page\n");
    assert_eq!(repo.read("reports/paper/d/x"), "1\n");
    // A new output without the old file: the old file goes, the stranger stays.
    repo.pipeline("stages: { r: { shell: 'echo new > $out/index.html', publish: 'reports/{profile}' } }\n");
    repo.run().good();
    assert!(!repo.exists("reports/paper/d"));
    assert_eq!(repo.read("reports/paper/index.html"), "new\n");
    assert_eq!(repo.read("reports/paper/mine.txt"), "kept");
}

#[test]
fn the_file_beside_a_publication_is_ours() {
    let repo = Repo::new("stages: { r: { shell: 'echo > $out/run.json', publish: reports/r } }\n");
    repo.run().bad(1, "out/run.json: itpipe writes a file of this name");
    assert!(!repo.exists("reports"));
}

#[test]
fn two_stages_cannot_be_published_to_one_place() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo > $out/x', publish: p }\n  b: { shell: 'echo > $out/x', publish: p }\n",
    );
    repo.run().bad(2, "'a' and 'b' publish to the same folder 'p'");
    assert!(!repo.exists("p"));
}

#[test]
fn failures_stop_only_what_needs_them() {
    let mut yaml = String::from(
        "stages:\n  bad: { shell: 'echo broken >&2; exit 3' }\n  after: { shell: 'cp $in_b/* $out', in: { b: bad } }\n",
    );
    for i in 0..6 {
        yaml += &format!("  ok{i}: {{ shell: 'echo {i} > $out/x' }}\n");
    }
    let repo = Repo::new(&yaml);
    let out = repo.run().bad(1, "bad (");
    assert_eq!(out.ran(), ["ok0", "ok1", "ok2", "ok3", "ok4", "ok5"]);
    assert!(out.stderr.contains("exit 3\n          | broken\n"), "{}", out.stderr);
    assert!(out.stderr.contains("not run  after: needs bad"), "{}", out.stderr);
    let log = out.stderr.lines().find_map(|l| l.trim().strip_prefix("log: ")).unwrap();
    assert_eq!(repo.read(log), "broken\n");
    assert_eq!(repo.itpipe(&["log", "bad"]).good().stdout, "broken\n");
    assert!(out.stderr.contains("6 ran, 1 failed, 1 not run"), "{}", out.stderr);
    let out = repo.itpipe(&["run", "-j", "1", "--fail-fast"]).bad(1, "bad (");
    assert!(out.stderr.contains("6 up to date"));
}

#[test]
fn a_missing_input_is_found_before_anything_runs() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo > $out/x' }\n  b: { shell: 'cp $in_f $out', in: { f: ./no.txt, a: a } }\n",
    );
    let out = repo.run().bad(2, "in.f: ./no.txt");
    assert_eq!(out.ran(), [""; 0]);
    repo.itpipe(&["validate"]).bad(2, "./no.txt: no such file");
    // A path that the output lacks can only be known after.
    repo.pipeline(
        "stages:\n  a: { shell: 'echo > $out/x' }\n  b: { shell: 'cp $in_f $out', in: { f: a/y } }\n",
    );
    let out = repo.run().bad(1, "in.f: a: y: no such path in the output");
    assert_eq!(out.ran(), ["a"]);
}

#[test]
fn names_with_spaces_and_unicode_work() {
    let repo = Repo::new(
        "stages: { a: { shell: 'cp \"$in_f\" \"$out/ü b\"; printf x > \"$out/new\nline\"; cp -r \"$in_d\" $out/d', in: { f: './dåta file.txt', d: './a dir' } } }\n",
    );
    repo.write("dåta file.txt", "text");
    repo.write("a dir/x y/z'\"$(w)", "deep");
    repo.run().good();
    assert_eq!(repo.output("a", "ü b"), "text");
    assert_eq!(repo.output("a", "d/x y/z'\"$(w)"), "deep");
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn accept_verify_diff_and_show_tell_one_story() {
    let repo = chain();
    edits(&repo, "tr a-z A-Z <", "tr a-z  A-Z <");
    let out = repo.itpipe(&["why", "b"]).good().stdout;
    assert!(out.contains("would run: shell: tr a-z A-Z <"), "{out}");
    repo.itpipe(&["accept", "b", "--reason", " "]).bad(2, "--reason: is empty");
    let out = repo.itpipe(&["accept", "b", "--reason", "only a space"]).good().stdout;
    assert!(out.contains("accepted: shell: "), "{out}");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    repo.itpipe(&["accept", "b", "--reason", "again"]).bad(2, "there is nothing to accept");
    assert!(repo.itpipe(&["show", "b"]).good().stdout.contains(": only a space"));
    assert!(repo.itpipe(&["verify", "b"]).good().stdout.contains("same     b"));
    // An acceptance that was wrong is found.
    edits(&repo, "tr a-z  A-Z <", "tr a-y A-Y <");
    repo.itpipe(&["accept", "b", "--reason", "wrong"]).good();
    repo.run().good();
    assert!(repo.itpipe(&["verify", "b"]).good().stdout.contains("same"), "'one' has no z");
    edits(&repo, "tr a-y A-Y <", "tr a-c A-C <");
    repo.itpipe(&["accept", "b", "--reason", "wrong"]).good();
    let out = repo.itpipe(&["verify", "b"]);
    assert_eq!((out.code, out.stdout.contains("DIFFERS  b")), (1, true), "{out:?}");
    assert!(repo.itpipe(&["diff", "a", "a"]).good().stdout.contains("no difference"));
    assert_eq!(repo.itpipe(&["diff", "a", "b"]).code, 1);
}

#[test]
fn a_stage_is_told_its_gpu_and_none_is_held_beyond_its_whole() {
    let train = "sleep 0.3; echo $CUDA_VISIBLE_DEVICES > $out/x";
    let mut yaml = "pools: { cpu: 8, gpu-memory: 24 }\nkinds:\n".to_string();
    yaml +=
        &format!("  half: {{ shell: '{train}', pool: gpu, resources: {{ gpu: 0.5, gpu-memory: 10 }} }}\n");
    yaml += &format!("  whole: {{ shell: '{train}', pool: gpu }}\n");
    yaml += "stages:\n  none: { shell: 'echo \"[${{CUDA_VISIBLE_DEVICES-}}]\" > $out/x' }\n";
    for i in 0..4 {
        yaml += &format!("  half{i}: {{ kind: half, params: {{ i: {i} }} }}\n");
    }
    yaml += "  whole4: { kind: whole, params: { i: 4 } }\n";
    let repo = Repo::new(&yaml);
    let locks = tempfile::tempdir().unwrap();
    let gpus = |command: &mut std::process::Command| {
        command.env("CUDA_VISIBLE_DEVICES", "5,GPU-7").env("ITPIPE_GPU_LOCKS", locks.path());
    };
    let out = repo.with(&["run"], gpus).good();
    assert_eq!(out.ran().len(), 6);
    assert_eq!(repo.output("none", "x"), "[]\n");
    let mut halves: Vec<String> = (0..4).map(|i| repo.output(&format!("half{i}"), "x")).collect();
    halves.sort();
    assert_eq!(halves, ["5\n", "5\n", "GPU-7\n", "GPU-7\n"]);
    assert!(["5\n", "GPU-7\n"].contains(&repo.output("whole4", "x").as_str()));
    let more = yaml.replace("gpu: 0.5, gpu-memory: 10", "gpu: 9, gpu-memory: 80");
    repo.pipeline(&more.replace("params: {", "params: { again: 1,"));
    let out = repo.with(&["run"], gpus).good();
    let says = |what: &str| out.stderr.matches(what).count();
    assert_eq!(
        says("half0: asks for 9 of the pool gpu, which has 2: it runs with all of it"),
        1,
        "{}",
        out.stderr
    );
    assert_eq!(says("half0: asks for 80 of the pool gpu-memory, which has 24: it runs with all of it"), 1);
    assert_eq!(says("asks for"), 2, "once a kind");
    repo.pipeline(&yaml.replace("gpu: 0.5", "gpu: none"));
    repo.with(&["plan"], gpus).bad(2, "kinds.half.resources.gpu: expected a number, found the text 'none'");
    repo.pipeline(&yaml.replace("gpu: 0.5", "gpus: 1"));
    repo.with(&["plan"], gpus).bad(2, "there is no pool 'gpus'\n  hint: did you mean 'gpu'?");
}

#[test]
fn an_empty_list_of_gpus_hides_them_all() {
    let repo = Repo::new("stages:\n  a: { shell: 'echo \"[$CUDA_VISIBLE_DEVICES]\" > $out/x', pool: gpu }\n");
    repo.with(&["run"], |c| _ = c.env("CUDA_VISIBLE_DEVICES", "")).good();
    assert_eq!(repo.output("a", "x"), "[]\n");
    let config = repo.with(&["config", "show"], |c| _ = c.env("CUDA_VISIBLE_DEVICES", "")).good().stdout;
    assert!(config.lines().any(|line| line.split_whitespace().take(2).eq(["pools.gpu", "0"])), "{config}");
}

#[test]
fn gpus_are_not_locked_where_others_may_write() {
    let repo = Repo::new("stages: { a: { shell: 'echo > $out/x', pool: gpu } }\n");
    repo.write("locks/x", "");
    fs::set_permissions(repo.path("locks"), fs::Permissions::from_mode(0o777)).unwrap();
    let out = repo.with(&["run"], |c| _ = c.env("ITPIPE_GPU_LOCKS", repo.path("locks")));
    out.bad(1, "its GPU cannot be locked: ").bad(1, "is no folder that belongs to you");
}

#[test]
fn two_runs_share_the_gpus_and_a_killed_holder_frees_its_own() {
    let stage = |name: &str, sleep: &str| {
        format!(
            "stages:\n  {name}: {{ shell: 'echo $CUDA_VISIBLE_DEVICES > $out/x; sleep {sleep}', pool: gpu }}\n"
        )
    };
    let (one, two) = (Repo::new(&stage("long", "100")), Repo::new(&stage("short", "0")));
    let locks = tempfile::tempdir().unwrap();
    let gpu = |command: &mut std::process::Command| {
        command.env("CUDA_VISIBLE_DEVICES", "0").env("ITPIPE_GPU_LOCKS", locks.path());
    };
    let first = one.spawn_with(&["run"], gpu);
    first.until_says("start  long");
    let second = two.spawn_with(&["run"], gpu);
    second.until_says("short: waits for a GPU that another run holds");
    assert!(!two.exists("pipeline.lock"), "the second run waits");
    first.signal(libc::SIGKILL);
    assert_eq!(first.wait().code, 128 + 9);
    second.wait().good();
    assert_eq!(two.output("short", "x"), "0\n");
}
