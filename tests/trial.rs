//! What somebody who tried the program lost, waited for or was told wrongly.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use support::Repo;

#[test]
fn a_publication_takes_nobodys_files() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo gen > $out/index.html; echo gen > $out/data', publish: docs }\n",
    );
    repo.write("docs/data/notes", "mine");
    repo.write("docs/index.html", "my own page");
    repo.run().bad(2, "docs/data/notes: is there, and no publication wrote it");
    assert_eq!(
        (repo.read("docs/data/notes"), repo.read("docs/index.html")),
        ("mine".into(), "my own page".into())
    );
    fs::remove_dir_all(repo.path("docs/data")).unwrap();
    repo.run().bad(2, "docs/index.html: is there, and no publication wrote it");
    assert!(!repo.exists("docs/data"), "found before anything is written");
    fs::remove_file(repo.path("docs/index.html")).unwrap();
    repo.run().good();
    assert_eq!(repo.read("docs/index.html"), "gen\n");
    repo.write("docs/run.json", "{}");
    repo.run().bad(2, "docs/run.json: is no record of a publication");
}

#[test]
fn the_mode_that_a_stage_gives_its_input_stays_its_own() {
    let yaml = |run: &str| {
        format!(
            "stages:\n  tool: {{ shell: 'printf \"echo hi\\n\" > $out/t' }}\n  use: {{ in: {{t: tool}}, shell: '{run}' }}\n  \
             copy: {{ in: {{t: tool, u: use}}, shell: 'cp -p $in_t/t $out/t' }}\n"
        )
    };
    for run in ["chmod +x $in_t/t; echo > $out/x", "echo > $out/x; chmod 000 $in_t/t"] {
        let repo = Repo::new(&yaml(run));
        repo.run().good();
        let mode = |blob: std::path::PathBuf| fs::metadata(blob).unwrap().permissions().mode() & 0o7777;
        assert!(
            !repo.itpipe(&["show", "--json", "copy"]).good().stdout.contains("\"executable\": true"),
            "{run}"
        );
        assert_eq!(mode(repo.blob("echo hi\n")), 0o444, "{run}");
        repo.itpipe(&["cache", "verify"]).good();
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let repo = Repo::new("stages: { g: { in: { f: ./ff }, shell: 'cat $in_f > $out/x' } }\n");
    let path = std::ffi::CString::new(repo.path("ff").as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    repo.run().bad(2, "./ff: is neither a file nor a folder");
    fs::remove_file(repo.path("ff")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", repo.path("ff")).unwrap();
    repo.run().bad(2, "./ff: is neither a file nor a folder");
}

#[test]
fn a_built_program_of_which_nothing_else_tells_is_part_of_the_key() {
    let repo = Repo::new(
        "programs: { prog: { build: 'mkdir -p target; cp src.sh target/prog; chmod +x target/prog', path: target/prog, sources: [src.sh] } }\n\
         stages: { a: { run: [prog, go] } }\n",
    );
    repo.write("src.sh", "#!/bin/sh\necho one > out/x\n");
    repo.run().good();
    repo.write("src.sh", "#!/bin/sh\necho two > out/x\n");
    assert_eq!(repo.run().good().ran(), ["a"]);
    assert_eq!(repo.output("a", "x"), "two\n");
}

#[test]
fn a_profile_has_its_own_past() {
    let repo = Repo::new(
        "vars: { n: 1 }\nprofiles: { tiny: { vars: { n: 2 } } }\nstages:\n  a: { params: { n: '{vars.n}' }, shell: 'echo \"this is n=$param_n\"; echo > $out/x; [ $param_n -lt 7 ]' }\n",
    );
    repo.run().good();
    repo.itpipe(&["run", "--profile", "tiny"]).good();
    assert!(repo.itpipe(&["log", "a"]).good().stdout.contains("this is n=1"));
    repo.itpipe(&["run", "--profile", "tiny", "-S", "n=9"]).bad(1, "exit 1");
    let why = repo.itpipe(&["why", "a", "--profile", "tiny"]).good().stdout;
    assert!(why.contains("ran last because of no result yet"), "{why}");
    repo.itpipe(&["show", "a", "-S", "n=3"]).bad(2, "a: has no result with these -S");
    repo.itpipe(&["run", "-S", "n=3"]).good();
    assert!(repo.itpipe(&["show", "a", "-S", "n=3"]).good().stdout.contains('3'));
}

#[test]
fn two_pipelines_in_a_folder_have_a_lock_each() {
    let repo = Repo::new("stages: { a: { shell: 'echo 1 > $out/x' } }\n");
    repo.write("other.yaml", "version: 1\nstages: { b: { shell: 'echo 2 > $out/x' } }\n");
    repo.run().good();
    let before = repo.read("pipeline.lock");
    repo.itpipe(&["--file", "other.yaml", "run"]).good();
    assert_eq!(repo.read("pipeline.lock"), before);
    assert!(repo.read("other.lock").contains("\"b\""));
    // A line deleted by hand leaves a comma.
    repo.write("pipeline.lock", before.replace("}\n}", "},\n}"));
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn a_change_far_inside_a_text_is_seen() {
    let repo = Repo::new("");
    let yaml =
        |end: &str| format!("stages: {{ a: {{ shell: 'echo {} {end} > $out/x' }} }}\n", "word ".repeat(60));
    repo.pipeline(&yaml("old"));
    repo.run().good();
    repo.pipeline(&yaml("new"));
    let why = repo.itpipe(&["why", "a"]).good().stdout;
    assert!(
        why.contains("old >") && why.contains("new >") && why.lines().all(|line| line.len() < 300),
        "{why}"
    );
}

#[test]
fn looking_builds_nothing_and_says_what_cannot_run() {
    let repo = Repo::new(
        "programs: { p: { build: 'touch built; false', path: p, sources: [pipeline.yaml] } }\n\
         kinds: { get: { run: [p], fixed: true } }\n\
         stages:\n  s: { kind: get, files: { x: { sha256: null } } }\n  a: { in: { f: ./gone }, shell: 'cat $in_f > $out/x' }\n  \
         b: { in: { a: a }, shell: 'cp $in_a/x $out/x' }\n",
    );
    repo.itpipe(&["data", "ls"]).good();
    assert!(!repo.exists("built"));
    let why = repo.itpipe(&["why", "b"]).stdout;
    assert!(why.contains("after a, which cannot run"), "{why}");
}

#[test]
fn an_axis_may_hold_an_at_sign() {
    let repo = Repo::new(
        "stages: { t: { matrix: { v: [a@b, c] }, params: { v: '{v}' }, shell: 'echo $param_v > $out/x' } }\n",
    );
    repo.run().good();
    let diff = repo.itpipe(&["diff", "t[a@b]", "t[c]"]);
    assert_eq!(diff.code, 1);
    assert!(diff.stdout.contains("params.v: \"a@b\" -> \"c\""), "{}", diff.stdout);
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let repo = Repo::new("stages: { a: { shell: 'echo 1 > $out/x' } }\n");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = repo.command(&["schema"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stderr).contains("the output cannot be written"));
}

#[test]
fn a_repository_whose_name_is_no_text_is_refused() {
    let repo = Repo::new("");
    let folder = repo.root().join(std::ffi::OsStr::from_bytes(b"bad\xffname"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("pipeline.yaml"), "version: 1\nstages: { a: { shell: 'echo 1 > $out/x' } }\n")
        .unwrap();
    let out = repo.command(&["run"]).current_dir(&folder).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && text.contains("is not UTF-8"), "{text}");
}
