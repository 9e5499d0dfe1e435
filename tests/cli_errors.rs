//! What a user sees when something is wrong: the place, the hint, the exit code; and that nothing half-written is left.

mod support;

use support::{Out, Repo};

const GOOD: &str = "stages:\n  data: { shell: 'echo 1 > $out/d' }\n";

/// Neither a lock nor a store nor a published folder was made.
#[track_caller]
fn nothing_written(repo: &Repo) {
    for path in ["pipeline.lock", "cache", "reports"] {
        assert!(!repo.exists(path), "{path} was written");
    }
}

/// No result is recorded and no output is half there.
#[track_caller]
fn nothing_recorded(repo: &Repo, stage: &str) {
    if repo.exists("pipeline.lock") {
        assert!(!repo.read("pipeline.lock").contains(stage), "{stage} is in the lock");
    }
    let ls = repo.itpipe(&["cache", "ls"]);
    assert!(!ls.stdout.contains(stage), "{stage} has a result: {}", ls.stdout);
    assert!(!repo.exists("reports"), "something was published");
}

/// Every command that reads the pipeline refuses a wrong one with the same words and code 2.
#[track_caller]
fn refused(yaml: &str, says: &[&str]) {
    let repo = Repo::new(yaml);
    for command in [&["run"][..], &["plan"], &["why", "data"], &["graph"], &["validate"]] {
        let Out { code, stderr, stdout } = repo.itpipe(command);
        assert_eq!(code, 2, "{command:?}: {stderr}");
        for text in says {
            assert!(stderr.contains(text), "{command:?}: no '{text}' in:\n{stderr}");
        }
        assert_eq!(stdout, "", "{command:?}");
    }
    nothing_written(&repo);
}

#[test]
fn a_misspelt_key() {
    let says =
        ["pipeline.yaml:3:30: stages.data.threds: unknown key 'threds'", "hint: did you mean 'threads'?"];
    refused("stages:\n  data: { shell: 'echo 1',   threds: 2 }\n", &says);
}

#[test]
fn an_unknown_input() {
    let yaml = format!("{GOOD}  train: {{ shell: 'true', in: {{ data: dta }} }}\n");
    refused(
        &yaml,
        &["pipeline.yaml:4:39: stages.train.in.data: there is no stage 'dta'", "did you mean 'data'?"],
    );
}

#[test]
fn a_cycle() {
    let yaml = "stages:\n  data: { shell: x, in: { b: b } }\n  b: { shell: x, in: { c: c } }\n  c: { shell: x, in: { a: data } }\n";
    refused(
        yaml,
        &["pipeline.yaml:3:3: stages.data.in: stages read one another in a cycle: data -> b -> c -> data"],
    );
}

#[test]
fn a_wrong_type() {
    let yaml = "stages:\n  data: { shell: 'true', threads: ten }\n";
    refused(
        yaml,
        &["pipeline.yaml:3:35: stages.data.threads: expected a whole number, found the text 'ten'"],
    );
}

#[test]
fn all_mistakes_at_once() {
    let yaml = "vars: { depth: 8 }\nstages:\n  data: { shell: 'true', parms: {} }\n  b: { kind: none, in: { x: dat }, params: { d: '{vars.dept}' } }\n";
    let says =
        ["4:26: stages.data.parms", "5:14: stages.b.kind", "5:29: stages.b.in.x", "5:49: stages.b.params.d"];
    refused(yaml, &says);
}

#[test]
fn wrong_words_on_the_command_line() {
    let repo = Repo::new(&format!("vars: {{ depth: 8 }}\nprofiles: {{ smoke: {{}} }}\n{GOOD}"));
    let bad = |args: &[&str], says: &str| {
        repo.itpipe(args).bad(2, says);
        nothing_written(&repo);
    };
    bad(
        &["--profile", "smok", "plan"],
        "--profile: there is no profile 'smok'\n  hint: did you mean 'smoke'?",
    );
    bad(&["-S", "dpeth=3", "plan"], "-S dpeth: there is no variable 'dpeth'\n  hint: did you mean 'depth'?");
    bad(&["-S", "depth", "plan"], "-S depth: expected NAME=VALUE");
    bad(&["-S", "depth=[1", "plan"], "-S depth: a '[' that is not closed");
    bad(&["--file", "other.yaml", "plan"], "other.yaml: cannot be read: no such file");
    bad(&["rnu"], "unrecognized subcommand 'rnu'");
    // A target is looked for in a pipeline that is good: by then the store may exist, results do not.
    for (command, target) in
        [("run", "dat"), ("plan", "data[1]"), ("why", "dat"), ("log", "dat"), ("run", "data/d")]
    {
        let out = repo.itpipe(&[command, target]);
        assert_eq!(out.code, 2, "{command} {target}: {}", out.stderr);
        assert!(out.stderr.contains(target), "{}", out.stderr);
        nothing_recorded(&repo, "data");
    }
}

#[test]
fn a_pipeline_is_found_from_a_folder_below_and_its_absence_is_said() {
    let repo = Repo::new(GOOD);
    repo.write("deep/er/file", "");
    let below = repo.path("deep/er");
    repo.with(&["plan"], |command| _ = command.current_dir(&below)).good();
    let empty = tempfile::tempdir().unwrap();
    let out = repo.with(&["plan"], |command| _ = command.current_dir(empty.path()));
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("pipeline.yaml"), "{}", out.stderr);
}

#[test]
fn a_missing_repository_file() {
    let repo = Repo::new(&format!(
        "{GOOD}  train: {{ shell: 'true', in: {{ x: ./no/file.csv, d: data }}, publish: reports/t }}\n"
    ));
    let out = repo.run().bad(2, "pipeline.yaml:4:3: train: in.x: ./no/file.csv");
    assert_eq!(out.ran(), [""; 0], "nothing runs before all inputs are there");
    nothing_recorded(&repo, "data");
    // What does not need the file can be made.
    assert_eq!(repo.itpipe(&["run", "data"]).good().ran(), ["data"]);
}

#[test]
fn a_missing_program() {
    let yaml = "stages:\n  a: { run: [no-such-program-at-all, x], publish: reports/a }\n  b: { shell: 'cp $in_a/x $out/x', in: { a: a } }\n";
    let repo = Repo::new(&format!("{yaml}  good: {{ shell: 'echo 1 > $out/x' }}\n"));
    let out = repo.run();
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(
        out.stderr.contains("pipeline.yaml:3:3: no-such-program-at-all: cannot be started"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("hint: a program that the pipeline builds stands under programs:"));
    assert_eq!(out.ran(), ["good"], "what does not depend on a failure runs");
    nothing_recorded(&repo, "\"a\"");
}

#[test]
fn a_missing_script_is_found_before_anything_runs() {
    let yaml = "kinds: { k: { run: [./no/script, x], identity: [./id.sh] } }\n";
    let repo = Repo::new(&format!("{yaml}{GOOD}  c: {{ kind: k }}\n"));
    for command in ["run", "validate"] {
        let out = repo.itpipe(&[command]).bad(2, "pipeline.yaml:5:3: c: run: ./no/script: ");
        assert!(out.stderr.contains("c: identity: ./id.sh: ") && out.ran().is_empty(), "{}", out.stderr);
    }
    nothing_recorded(&repo, "data");
    assert_eq!(repo.itpipe(&["run", "data"]).good().ran(), ["data"]);
}

#[test]
fn a_word_that_no_key_can_cover() {
    for (word, says) in [
        (
            "./../shared/mean.py",
            "leads out with '..'\n  hint: write it relative to the root of the repository",
        ),
        ("./a//m.py", "has an empty part or a '.'"),
        ("././m.py", "has an empty part or a '.'"),
        ("./", "is the whole folder"),
    ] {
        let yaml = format!("stages:\n  data: {{ run: [cat, '{word}'] }}\n");
        refused(&yaml, &[&format!("pipeline.yaml:3:22: stages.data.run[1]: the path '{word}' {says}")]);
    }
}

#[test]
fn a_digest_mismatch() {
    let fetch = |sha256: &str, size: u32, shell: &str| {
        format!(
            "kinds:\n  fetch: {{ shell: '{shell}', fixed: true, pool: network }}\nstages:\n  \
             src: {{ kind: fetch, files: {{ x.bin: {{ sha256: {sha256}, size: {size} }} }}, publish: reports/src }}\n  \
             use: {{ shell: 'cp $in_src $out/y', in: {{ src: src/x.bin }} }}\n"
        )
    };
    let right = "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac";
    let wrong = "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ad";
    let cases = [
        (wrong, 2, "echo x > $out/x.bin", "x.bin: sha256 73cb"),
        (right, 3, "echo x > $out/x.bin", "x.bin"),
        (right, 2, "echo x > $out/x.bin; echo y > $out/more", "more"),
        (right, 2, "echo x > $out/other", "other: was not promised"),
    ];
    for (sha256, size, shell, says) in cases {
        let repo = Repo::new(&fetch(sha256, size, shell));
        let out = repo.run().bad(1, says);
        assert!(out.stderr.contains("FAILED  src"), "{}", out.stderr);
        assert_eq!(out.ran(), [""; 0]);
        nothing_recorded(&repo, "src");
    }
    let repo = Repo::new(&fetch(right, 2, "echo x > $out/x.bin"));
    assert_eq!(repo.run().good().ran(), ["src", "use"]);
}

#[test]
fn a_program_that_cannot_be_built() {
    let programs = "programs: { tool: { build: 'echo cannot build it >&2; exit 3', path: bin/tool, sources: [tool.c] } }\n";
    let repo = Repo::new(&format!("{programs}stages: {{ a: {{ run: [tool] }} }}\n"));
    repo.write("tool.c", "");
    let out = repo.run();
    assert!(out.code == 1 || out.code == 2, "{}: {}", out.code, out.stderr);
    assert!(out.stderr.contains("tool"), "{}", out.stderr);
    nothing_recorded(&repo, "\"a\"");
}
