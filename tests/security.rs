//! What a stage may not do, and what a name may not become.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::Repo;

fn confined() -> bool {
    let on = itpipe::sandbox::available();
    if !on {
        eprintln!("skipped: no Landlock here");
    }
    on
}

#[test]
fn a_stage_cannot_write_but_to_its_own_folders() {
    if !confined() {
        return;
    }
    let repo = Repo::new(
        r#"
stages:
  a: { shell: 'echo input > $out/x' }
  b:
    in: { a: a, f: ./file.txt }
    shell: |
      try() {{ "$@" 2>/dev/null && echo "could: $*" >> $out/broken; true; }}
      root=$(cd ../../..; pwd)
      try chmod 644 $in_a/x
      (echo bad > $in_a/x) 2>/dev/null && echo input >> $out/broken
      (echo bad > $in_f) 2>/dev/null && echo file >> $out/broken
      try rm -f $in_a/x
      try touch $in_a/new
      try mv $in_a $in_f
      try truncate -s 0 $in_a/x
      (echo bad > $root/file.txt) 2>/dev/null && echo repository >> $out/broken
      (echo bad > $root/cache/results/journal) 2>/dev/null && echo store >> $out/broken
      (echo bad > $root/cache/blobs/new) 2>/dev/null && echo blobs >> $out/broken
      try mkdir -p $root/cache/work/other/out
      (echo bad > job.json) 2>/dev/null && echo job >> $out/broken
      try ln -s / $root/link
      try rm -rf $out
      mkdir -p $out 2>/dev/null
      echo ok > $out/x; echo ok > $scratch/x; echo ok > $TMPDIR/x; echo ok > $HOME/x; echo ok > /dev/null
      mv $scratch/x $out/moved
"#,
    );
    repo.write("file.txt", "file");
    repo.run().good();
    let listing = repo.itpipe(&["cache", "path", "b"]).good().stdout;
    // Our own links may change mode by mode bits alone; what counts is that no byte and no name changed.
    if listing.contains("\tbroken") {
        let broken = repo.output("b", "broken");
        assert_eq!(broken.replace("could: chmod 644 in/a/x\n", ""), "", "{broken}");
    }
    assert_eq!(repo.read("file.txt"), "file");
    assert_eq!(repo.output("a", "x"), "input\n");
    assert_eq!(repo.run().good().ran(), [""; 0]);
    assert!(repo.itpipe(&["doctor"]).stdout.contains("sandbox: on: Landlock"));
}

#[test]
fn an_input_that_its_stage_makes_writable_is_not_the_store() {
    let repo = Repo::new(
        r#"
stages:
  a: { shell: 'echo input > $out/x' }
  b: { shell: 'chmod u+w $in_a/x; (echo other > $in_a/x) 2> /dev/null || true; echo > $out/x', in: { a: a } }
"#,
    );
    repo.run().good();
    assert_eq!(repo.output("a", "x"), "input\n");
    repo.itpipe(&["cache", "verify"]).good();
}

#[test]
fn an_output_cannot_lead_out_of_itself() {
    let repo = Repo::new("");
    for (script, says) in [
        ("ln -s /etc/passwd $out/x", "absolute target"),
        ("ln -s ../../../../secret $out/x", "leads out"),
        ("mkdir $out/d; ln -s ../../x $out/d/x", "leads out"),
        ("mkfifo $out/x", "only files, folders and symlinks"),
        ("printf x > \"$out/$(printf '\\377')\"", "not UTF-8"),
    ] {
        repo.write("pipeline.yaml", format!("version: 1\nstages:\n  a:\n    shell: |\n      {script}\n"));
        repo.run().bad(1, says);
        assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "", "{script}");
    }
    repo.pipeline("stages:\n  a: { shell: 'mkdir $out/d; echo 1 > $out/d/f; ln -s d/f $out/x; ln -s ../x $out/d/y' }\n  b: { shell: 'cat $in_a/x $in_a/d/y > $out/x', in: { a: a } }\n");
    repo.run().good();
    assert_eq!(repo.output("b", "x"), "1\n1\n");
}

#[test]
fn an_output_that_became_a_symlink_is_refused() {
    let repo = Repo::new("stages: { a: { shell: 'rm -rf $out; ln -s /etc $out' } }\n");
    let out = repo.run();
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "");
}

#[test]
fn values_never_become_part_of_a_script() {
    let nasty =
        "x'; touch /tmp/itpipe-was-here; echo '$(touch /tmp/itpipe-was-here)`touch /tmp/itpipe-was-here`\\n";
    let yaml_text = serde_json::to_string(nasty).unwrap();
    let repo = Repo::new(&format!(
        "stages:\n  a: {{ shell: 'printf %s \"$param_v\" > $out/x', params: {{ v: {yaml_text} }} }}\n"
    ));
    repo.run().good();
    assert_eq!(repo.output("a", "x"), nasty);
    assert!(!std::path::Path::new("/tmp/itpipe-was-here").exists());
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn a_token_reaches_no_log_no_result_and_no_lock() {
    let token = "hf_AbCdEfGhIjKlMnOp";
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo \"token is $MY_TOKEN.\"; echo $MY_TOKEN >&2; echo fine > $out/x; false', env: [MY_TOKEN] }\n  \
         b: { shell: 'echo \"${{HF_TOKEN-none}}\" > $out/x' }\n",
    );
    let run = || repo.with(&["run"], |c| _ = c.env("MY_TOKEN", token).env("HF_TOKEN", token));
    let out = run();
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("| token is ***.") && !out.stderr.contains(token), "{}", out.stderr);
    repo.write("pipeline.yaml", repo.read("pipeline.yaml").replace("; false", ""));
    run().good();
    assert_eq!(repo.output("b", "x"), "none\n", "only a source gets it");
    let found =
        std::process::Command::new("grep").args(["-r", "-l", token, "."]).current_dir(repo.root()).output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");
    // Another token is another value of a declared variable.
    let other = repo.with(&["run"], |c| _ = c.env("MY_TOKEN", "hf_other_other").env("HF_TOKEN", "hf_x"));
    assert_eq!(other.good().ran(), ["a"]);
}

#[test]
fn a_published_folder_cannot_lead_out_of_the_repository() {
    let outside = tempfile::tempdir().unwrap();
    let repo = Repo::new("stages: { a: { shell: 'echo > $out/x', publish: reports/link } }\n");
    fs::create_dir(repo.path("reports")).unwrap();
    std::os::unix::fs::symlink(outside.path(), repo.path("reports/link")).unwrap();
    repo.run().bad(2, "a symlink stands on its way");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    for bad in ["../x", "/tmp/x", "cache/x", ".git/hooks"] {
        repo.pipeline(&format!("stages: {{ a: {{ shell: 'echo > $out/x', publish: '{bad}' }} }}\n"));
        assert_eq!(repo.run().code, 2, "{bad}");
    }
}

#[test]
fn a_source_is_checked_against_its_promises() {
    // sha256sum of "abc\n"
    let sha = "edeaaff3f1774ad2888673770c6d64097e391bc362d7d6fb34982ddf0efd18cb";
    let with = |script: &str, sha: &str, size: u64| {
        format!(
            "kinds: {{ fetch: {{ shell: '{script}', fixed: true, pool: network }} }}\nstages:\n  s: {{ kind: fetch, params: {{ from: here }}, files: {{ d/a.txt: {{ sha256: {sha}, size: {size} }} }} }}\n"
        )
    };
    let good = "mkdir $out/d; echo abc > $out/d/a.txt";
    let repo = Repo::new("");
    for (script, sha, size, says) in [
        ("mkdir $out/d; echo abd > $out/d/a.txt", sha, 4, "d/a.txt: sha256 "),
        ("mkdir $out/d; echo abcd > $out/d/a.txt", sha, 4, "d/a.txt: 5 bytes, promised were 4"),
        ("mkdir $out/d; echo abc > $out/d/a.txt; echo > $out/more", sha, 4, "more: was not promised"),
        ("echo abc > $out/a.txt", sha, 4, "a.txt: was not promised"),
        ("mkdir $out/d; ln -s ../x $out/d/a.txt", sha, 4, "a source may only write files"),
    ] {
        repo.pipeline(&with(script, sha, size));
        repo.run().bad(1, says);
        assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "", "{script}");
    }
    repo.pipeline(&with(good, sha, 4));
    assert_eq!(repo.run().good().ran(), ["s"]);
    // Another way to the same bytes is the same source.
    repo.pipeline(&with("exit 1", sha, 4).replace("here", "there"));
    assert_eq!(repo.run().good().ran(), [""; 0]);
    assert_eq!(repo.lock()["sources"], serde_json::json!({}));
    // Not pinned: the place counts, the lock records what came.
    repo.pipeline(&with(good, "null", 4));
    assert_eq!(repo.run().good().ran(), ["s"]);
    assert_eq!(repo.recorded("s")[0]["files"]["d/a.txt"]["sha256"], sha);
    repo.pipeline(&with(good, "null", 4).replace("here", "there"));
    assert_eq!(repo.run().good().ran(), ["s"]);
}

#[test]
fn a_source_gets_the_way_to_the_network_and_the_mirror() {
    let repo = Repo::new(
        "kinds: { fetch: { run: [./fetch.sh], fixed: true } }\nstages:\n  s: { kind: fetch, files: { job: { sha256: null, size: null }, env: { sha256: null, size: null } } }\n",
    );
    repo.write(
        "fetch.sh",
        "#!/bin/sh\ncp \"$1\" out/job; echo \"$HF_TOKEN $HF_ENDPOINT $https_proxy\" > out/env\n",
    );
    fs::set_permissions(repo.path("fetch.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(repo.path("mirror")).unwrap();
    repo.itpipe(&["run", "--mirror", "nowhere"]).bad(2, "--mirror nowhere: ");
    let out = repo.with(&["run", "--mirror", "mirror", "--offline"], |c| {
        c.env("HF_TOKEN", "short").env("HF_ENDPOINT", "https://hub").env("https_proxy", "http://p");
    });
    out.good();
    assert_eq!(repo.output("s", "env"), "short https://hub http://p\n");
    let job: serde_json::Value = serde_json::from_str(&repo.output("s", "job")).unwrap();
    assert_eq!(job["fixed"]["offline"], true);
    let real = |path: &str| serde_json::json!(fs::canonicalize(repo.path(path)).unwrap());
    assert_eq!(job["fixed"]["mirror"], real("mirror"));
    assert_eq!(job["fixed"]["files"]["job"], serde_json::json!({ "sha256": null, "size": null }));
}

#[test]
fn a_program_is_built_when_its_sources_change_and_runs_from_a_copy() {
    let repo = Repo::new(
        r#"
programs: { tool: { build: 'echo building; mkdir -p bin; cp tool.sh bin/tool; chmod +x bin/tool', path: bin/tool, sources: [tool.sh] } }
kinds: { k: { run: [tool, go], identity: [tool, identity], code: [tool.sh] } }
stages: { a: { kind: k }, b: { shell: 'echo b > $out/x' } }
"#,
    );
    let tool = |word: &str| {
        format!(
            "#!/bin/sh\nif [ $1 = identity ]; then echo version 1; exit; fi\necho {word} $1 $2 > out/x; echo $0 > out/path\n"
        )
    };
    repo.write("tool.sh", tool("one"));
    let plan = repo.itpipe(&["plan"]).good().stdout;
    assert!(plan.contains("build    tool:") && !repo.exists("bin"), "{plan}");
    let out = repo.run().good();
    assert_eq!(out.ran(), ["a", "b"]);
    assert!(out.stderr.contains("building\n"), "{}", out.stderr);
    assert_eq!(repo.output("a", "x"), "one go job.json\n");
    assert!(repo.output("a", "path").contains("/cache/programs/"));
    let out = repo.run().good();
    assert!(out.ran().is_empty() && !out.stderr.contains("building"), "{}", out.stderr);
    repo.write("tool.sh", tool("two"));
    let why = repo.itpipe(&["why", "a"]).good().stdout;
    assert!(why.contains("a: would run: code.tool.sh: "), "{why}");
    let out = repo.run().good();
    assert_eq!((out.ran(), out.stderr.contains("building\n")), (vec!["a"], true));
    assert_eq!(repo.output("a", "x"), "two go job.json\n");
    // A build that fails, makes nothing, or during which the source changes: nothing runs.
    let yaml = repo.read("pipeline.yaml");
    repo.write("tool.sh", tool("three"));
    for (build, says) in [
        ("exit 7", "'exit 7': exit status: 7"),
        ("rm bin/tool", "the build made no such file"),
        ("echo >> tool.sh", "tool.sh: changed while tool was built"),
    ] {
        let from = yaml.find("build: '").unwrap() + 8;
        let to = from + yaml[from..].find('\'').unwrap();
        repo.write("pipeline.yaml", format!("{}{build}{}", &yaml[..from], &yaml[to..]));
        assert_eq!(repo.run().bad(2, says).ran(), [""; 0]);
    }
    assert_eq!(repo.itpipe(&["run", "b"]).good().ran(), [""; 0], "b does not need the program");
}

#[test]
fn a_token_in_an_output_or_a_progress_note_goes_no_further() {
    let token = "hf_AbCdEfGhIjKlMnOp";
    let key = "-----BEGIN-----\nQUJDREVGR0hJSktM\n-----END-----";
    let note = r#"echo "{{\"progress\":{{\"done\":1,\"total\":2,\"note\":\"with $MY_TOKEN\"}}}}""#;
    let stage = |script: &str| {
        format!(
            "stages:\n  a:\n    env: [MY_TOKEN, MY_KEY]\n    shell: |\n      {script}\n    publish: reports/a\n"
        )
    };
    let repo = Repo::new("");
    let run = |args: &[&str]| repo.with(args, |c| _ = c.env("MY_TOKEN", token).env("MY_KEY", key));
    for (script, says) in [
        (
            "mkdir $out/d; echo \"a $MY_TOKEN\" > $out/d/x",
            "out/d/x: holds the value of MY_TOKEN: nothing is recorded",
        ),
        ("printf '%s' \"$MY_KEY\" > $out/x", "out/x: holds the value of MY_KEY"),
        ("echo > $out/$MY_TOKEN", "out/***: holds the value of MY_TOKEN"),
        ("ln -s $MY_TOKEN $out/x", "out/x: holds the value of MY_TOKEN"),
        (
            "head -c 1048570 /dev/zero > $out/x; echo $MY_TOKEN >> $out/x",
            "out/x: holds the value of MY_TOKEN",
        ),
    ] {
        repo.pipeline(&stage(script));
        run(&["run"]).bad(1, says);
        assert_eq!(repo.itpipe(&["cache", "ls"]).good().stdout, "", "{script}");
        assert!(!repo.exists("reports") && !repo.exists("pipeline.lock"), "{script}");
    }
    // What it says of its progress, a key of several lines in its log, and every view of the run.
    repo.pipeline(&stage(&format!("{note}; echo \"$MY_KEY\"; echo fine > $out/x")));
    let out = run(&["run", "--json"]).good();
    assert!(out.stdout.contains("with ***"), "{}", out.stdout);
    for text in
        [&out.stdout, &out.stderr, &run(&["log", "a"]).good().stdout, &run(&["show", "a"]).good().stdout]
    {
        assert!(!text.contains(token) && !text.contains("QUJDREVG"), "{text}");
    }
    for secret in [token, "QUJDREVGR0hJSktM"] {
        let mut grep = std::process::Command::new("grep");
        let found = grep.args(["-r", "-l", secret, "."]).current_dir(repo.root()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

#[test]
fn a_file_that_went_from_a_publication_is_not_removed_through_a_symlink() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), "theirs").unwrap();
    let repo = Repo::new(
        "stages: { a: { shell: 'mkdir $out/d; echo > $out/d/x; echo > $out/y', publish: reports } }\n",
    );
    repo.run().good();
    fs::remove_dir_all(repo.path("reports/d")).unwrap();
    std::os::unix::fs::symlink(outside.path(), repo.path("reports/d")).unwrap();
    repo.pipeline("stages: { a: { shell: 'echo > $out/y', publish: reports } }\n");
    repo.run().good();
    assert_eq!(fs::read_to_string(outside.path().join("x")).unwrap(), "theirs");
}

#[test]
fn a_stage_cannot_write_into_the_folder_of_another_that_runs() {
    if !confined() {
        return;
    }
    let repo = Repo::new(
        r#"
stages:
  victim: { shell: 'echo mine > $out/x; echo > $scratch/begun; sleep 0.5; cat $out/x > $out/y' }
  intruder:
    shell: |
      root=$(cd ../../..; pwd); own=$(pwd)
      until ls $root/cache/work/*/scratch/begun > /dev/null 2>&1; do sleep 0.01; done
      for folder in $root/cache/work/*; do
        [ $folder = $own ] && continue
        for file in out/x out/new scratch/begun scratch/new in/new job.json lock; do
          (echo theirs > $folder/$file) 2>/dev/null && echo "$file" >> $out/broken
          rm -f $folder/$file 2>/dev/null && [ ! -e $folder/$file ] && case $file in *new) ;; *) echo "rm $file" >> $out/broken ;; esac
        done
        echo looked >> $out/looked
      done
"#,
    );
    repo.itpipe(&["run", "-j", "2"]).good();
    let listing = repo.itpipe(&["cache", "path", "intruder"]).good().stdout;
    assert!(listing.contains("\tlooked") && !listing.contains("\tbroken"), "{listing}");
    assert_eq!(repo.output("victim", "y"), "mine\n");
}
