//! `why` and `why --not` over the ways in which a pipeline changes: the first cause with its old and new value, and
//! what follows from it.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::Repo;

const PIPELINE: &str = "\
salt: ''
vars: { rate: 0.1, depth: 8, list: [1, 2], deep: { a: { b: 1 } }, unused: 1, seeds: [0] }
profiles: { tiny: { vars: { depth: 2 } } }
kinds:
  train:
    shell: 'cat $in_data > $out/w; echo $param_rate >> $out/w'
    code: [src/train.sh]
    env: [FLAVOUR, HUB_TOKEN]
    identity: [./src/identity.sh]
stages:
  data: { shell: 'head -n 1 $in_file > $out/d', in: { file: ./data.txt } }
  train:
    kind: train
    in: { data: data/d }
    params: { rate: '{vars.rate}', depth: '{vars.depth}', list: '{vars.list}', deep: '{vars.deep}' }
  table: { shell: 'cat $in_all > $out/t', in: { all: [train/w, data/d] } }
  tool: { run: [./src/tool.sh], in: { t: table/t } }
  seed: { matrix: { seed: '{vars.seeds}' }, shell: 'echo $param_seed > $out/s', params: { seed: '{seed}', kept: 1 } }
  source: { shell: 'echo x > $out/x', fixed: true, files: { x: { sha256: 73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac, size: 2 } } }
";

/// The pipeline after a run.
fn repo() -> Repo {
    let repo = Repo::new(PIPELINE);
    repo.write("data.txt", "one\nrest\n");
    repo.write("src/train.sh", "code\n");
    script(&repo, "src/identity.sh", "echo compiler 1");
    script(&repo, "src/tool.sh", "cat in/t > out/x");
    let out = repo.run().good();
    assert_eq!(out.ran().len(), 6);
    repo
}

fn script(repo: &Repo, path: &str, line: &str) {
    repo.write(path, format!("#!/bin/sh\n{line}\n"));
    fs::set_permissions(repo.path(path), fs::Permissions::from_mode(0o755)).unwrap();
}

fn edit(repo: &Repo, old: &str, new: &str) {
    let text = repo.read("pipeline.yaml");
    assert!(text.contains(old), "no '{old}'");
    repo.write("pipeline.yaml", text.replace(old, new));
}

/// What `why` says of a stage after a change, with digests made equal.
#[track_caller]
fn says(what: &str, stage: &str, change: impl FnOnce(&Repo), expected: &[&str]) {
    let repo = repo();
    change(&repo);
    let out = repo.itpipe(&["why", stage]).good().stdout;
    for text in expected {
        assert!(out.contains(text), "{what}: no '{text}' in:\n{out}");
    }
    let line = out.lines().next().unwrap_or_default();
    assert!(line.contains(expected[0]), "{what}: '{}' is not first in:\n{out}", expected[0]);
    // What follows from it.
    let follows = match stage {
        "data" => "  then looks at train, table, tool\n",
        "train" => "  then looks at table, tool\n",
        "table" => "  then looks at tool\n",
        _ => "",
    };
    assert!(!line.contains(": would run: ") || out.ends_with(follows), "{what}: {out}");
    // The document says the same, and a run begins with that cause.
    let json = repo.itpipe(&["why", stage, "--json"]).good().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["version"].as_u64(), json["stage"].as_str()), (Some(1), Some(stage)), "{what}");
}

#[test]
fn a_param() {
    let then = "then looks at table, tool";
    says("a value", "train", |r| edit(r, "rate: 0.1", "rate: 0.2"), &["params.rate: 0.1 -> 0.2", then]);
    says("another type", "train", |r| edit(r, "depth: 8", "depth: 8.0"), &["params.depth: 8 -> 8.0"]);
    says("text", "train", |r| edit(r, "depth: 8", "depth: '8'"), &["params.depth: 8 -> \"8\""]);
    says("one of a list", "train", |r| edit(r, "[1, 2]", "[1, 3]"), &["params.list[1]: 2 -> 3"]);
    says("a longer list", "train", |r| edit(r, "[1, 2]", "[1, 2, 9]"), &["params.list[2]: (none) -> 9"]);
    says("deep in a map", "train", |r| edit(r, "{ b: 1 }", "{ b: 2 }"), &["params.deep.a.b: 1 -> 2"]);
    says("gone", "train", |r| edit(r, "rate: '{vars.rate}', ", ""), &["params.rate: 0.1 -> (none)"]);
    says(
        "new",
        "train",
        |r| edit(r, "params: { rate", "params: { more: x, rate"),
        &["params.more: (none) -> \"x\""],
    );
}

#[test]
fn what_is_run() {
    says(
        "the line",
        "train",
        |r| edit(r, "cat $in_data >", "cat < $in_data >"),
        &["shell: cat $in_data > $out/w"],
    );
    says("salt", "train", |r| edit(r, "salt: ''", "salt: again"), &["salt:  -> again"]);
    says("code", "train", |r| r.write("src/train.sh", "other\n"), &["code.src/train.sh: "]);
    let more = |r: &Repo| {
        r.write("src/more.sh", "");
        edit(r, "code: [src/train.sh]", "code: [src/train.sh, src/more.sh]");
    };
    says("more code", "train", more, &["code.src/more.sh: (none) -> "]);
    says(
        "identity",
        "train",
        |r| script(r, "src/identity.sh", "echo compiler 2"),
        &["identity: compiler 1 -> compiler 2"],
    );
    says("a script", "tool", |r| script(r, "src/tool.sh", "cat < in/t > out/x"), &["program: "]);
    says("a word", "tool", |r| edit(r, "[./src/tool.sh]", "[./src/tool.sh, -v]"), &["run[1]: (none) -> -v"]);
    says(
        "the class",
        "train",
        |r| edit(r, "    env:", "    repeatable: statistical\n    env:"),
        &["repeatable: bits -> statistical"],
    );
    says(
        "another variable",
        "train",
        |r| edit(r, "[FLAVOUR,", "[FLAVOUR, MORE,"),
        &["env.MORE: (none) -> unset"],
    );
}

#[test]
fn the_environment() {
    let repo = repo();
    let with =
        |name: &str, value: &str| repo.with(&["why", "train"], |c| _ = c.env(name, value)).good().stdout;
    assert!(with("FLAVOUR", "mint").starts_with("train: would run: env.FLAVOUR: unset -> \"mint\"\n"));
    let secret = with("HUB_TOKEN", "s3cret-of-mine");
    assert!(secret.starts_with("train: would run: env.HUB_TOKEN: unset -> secret "), "{secret}");
    assert!(!secret.contains("s3cret"));
}

#[test]
fn inputs() {
    let file = |r: &Repo| r.write("data.txt", "two\nrest\n");
    says("a file", "data", file, &["inputs.file: ", " -> ", "then looks at train, table, tool"]);
    says("upstream", "tool", file, &["tool: would be looked at after data, which would run: inputs.file: "]);
    says(
        "another source",
        "train",
        |r| edit(r, "{ data: data/d }", "{ data: ./data.txt }"),
        &["inputs.data: "],
    );
    says(
        "another order",
        "table",
        |r| edit(r, "[train/w, data/d]", "[data/d, train/w]"),
        &["inputs.all[0]: train/w "],
    );
    says(
        "a longer list",
        "table",
        |r| edit(r, "[train/w, data/d]", "[train/w, data/d, source]"),
        &["inputs.all[2]: (none) -> source "],
    );
    says("a promise", "source", |r| edit(r, "size: 2", "size: 3"), &["files.x: 73cb3858"]);
    // The edit made data run; what it wrote made train run.
    let repo = repo();
    repo.write("data.txt", "two\nrest\n");
    repo.run().good();
    let out = repo.itpipe(&["why", "train"]).good().stdout;
    assert!(out.contains("up to date") && out.contains("ran last because of inputs.data: "), "{out}");
}

#[test]
fn the_store_and_the_lock() {
    let blob = |r: &Repo| fs::remove_file(r.blob("one\n")).unwrap();
    says("a blob is gone", "data", blob, &["output 'd' is missing in the store"]);
    let results = |r: &Repo| fs::remove_dir_all(r.path("cache/results")).unwrap();
    says("results are gone", "data", results, &["its result is not in the store"]);
    let all = |r: &Repo| {
        fs::remove_dir_all(r.path("cache")).unwrap();
        fs::remove_file(r.path("pipeline.lock")).unwrap();
    };
    says("nothing is there", "data", all, &["no result yet"]);
    says(
        "a new instance",
        "seed[1]",
        |r| edit(r, "seeds: [0]", "seeds: [1]"),
        &["no result yet; in place of seed[0], params.seed: 0 -> 1"],
    );
    says(
        "one more instance",
        "seed[1]",
        |r| edit(r, "seeds: [0]", "seeds: [0, 1]"),
        &["would run: no result yet"],
    );
    let two = |r: &Repo| {
        edit(r, "rate: 0.1", "rate: 0.3");
        r.write("src/train.sh", "other\n");
    };
    says("two at once", "train", two, &["params.rate: 0.1 -> 0.3 (and 1 more)", "code.src/train.sh"]);
    let repo = repo();
    let out = repo.itpipe(&["why", "train", "--profile", "tiny"]).good().stdout;
    assert!(out.starts_with("train: would run: no result yet"), "{out}");
}

/// What changes nothing, and what `why --not` says then.
#[test]
fn why_not() {
    let not = |what: &str, change: &dyn Fn(&Repo), expected: &str| {
        let repo = repo();
        change(&repo);
        let out = repo.itpipe(&["why", "--not", "train"]).good().stdout;
        assert!(out.starts_with("train: would not run: its key "), "{what}: {out}");
        assert!(out.contains(expected), "{what}: no '{expected}' in:\n{out}");
    };
    not(
        "nothing",
        &|_| (),
        "unchanged 14 lines of its manifest (format, salt, shell, params, code, identity, env, inputs, repeatable)",
    );
    not("a comment", &|r| edit(r, "kinds:\n", "# a comment\nkinds:\n"), "unchanged 14 lines");
    not(
        "threads",
        &|r| edit(r, "    env:", "    threads: 2\n    timeout: 9\n    env:"),
        "not in it its name and profile, pool, threads",
    );
    not(
        "an unused variable",
        &|r| edit(r, "unused: 1", "unused: 2"),
        "variables that it does not use or declare",
    );
    let touch = |r: &Repo| {
        fs::File::options()
            .append(true)
            .open(r.path("data.txt"))
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap()
    };
    not("a touch", &touch, "times, owners and places of files");
    let cut = |r: &Repo| {
        r.write("data.txt", "one\nother rest\n");
        r.run().good();
    };
    not("an equal output", &cut, "cut off   data ran since, ");
    let repo = repo();
    edit(&repo, "rate: 0.1", "rate: 0.2");
    let out = repo.itpipe(&["why", "--not", "train"]).good().stdout;
    assert_eq!(out, "train: would run: params.rate: 0.1 -> 0.2\n");
}
