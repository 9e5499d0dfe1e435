//! Sources as a user sees them: licences that must be accepted, bytes that are recorded and demanded, `itpipe data`.

mod support;

use support::Repo;

/// One source that needs consent, one that does not, and what is made of them.
const TWO: &str = r#"
licences:
  open: { name: MIT }
  closed: { name: The agreement, terms: "research only", url: "https://example.org/terms", consent: true, redistribute: false }
kinds: { fetch: { shell: 'cp "$HERE/$param_file" $out/x', env: [HERE], fixed: true, pool: network, repeatable: bits } }
stages:
  free: { kind: fetch, params: { file: a }, files: { x: { sha256: null } }, licence: open }
  bound: { kind: fetch, params: { file: b }, files: { x: { sha256: null } }, licence: closed }
  of-free: { shell: 'cat $in_a > $out/x', in: { a: free } }
  of-both: { shell: 'cat $in_a $in_b > $out/x', in: { a: free/x, b: bound/x } }
"#;

fn two() -> Repo {
    let yaml = TWO.replace("cat $in_a > ", "cat $in_a/x > ");
    let repo = Repo::new(&yaml);
    repo.write("a", "one\n");
    repo.write("b", "two\n");
    repo
}

fn here(repo: &Repo, args: &[&str]) -> support::Out {
    repo.with(args, |command| {
        command.env("HERE", repo.root());
    })
}

#[test]
fn consent_is_demanded_given_and_remembered() {
    let repo = two();
    here(&repo, &["run", "of-free"]).good();
    let says = "pipeline.yaml:9:3: bound: licence 'closed' must be accepted first: The agreement: research only\n  \
                hint: read https://example.org/terms, then run again with --accept-licence closed (or \
                ITPIPE_ACCEPT_LICENCE=closed)\n";
    here(&repo, &["run"]).bad(2, says);
    assert!(!repo.exists("cache/licences.json"));
    let known =
        "--accept-licence other: the pipeline has no such licence\n  hint: consent is needed for: closed\n";
    here(&repo, &["run", "--accept-licence", "other"]).bad(2, known);
    let out = here(&repo, &["run", "--accept-licence", "closed"]).good();
    assert_eq!(out.ran(), ["bound", "of-both"]);
    assert!(repo.read("cache/licences.json").contains("\"how\": \"--accept-licence\""));
    // It is remembered, until the terms are others.
    here(&repo, &["run"]).good();
    repo.write("pipeline.yaml", repo.read("pipeline.yaml").replace("research only", "research alone"));
    here(&repo, &["run"]).bad(2, "must be accepted first: The agreement: research alone");
    repo.with(&["run"], |command| {
        command.env("HERE", repo.root()).env("ITPIPE_ACCEPT_LICENCE", "closed");
    })
    .good();
}

#[test]
fn sources_are_listed_with_their_licences() {
    let repo = two();
    let out = here(&repo, &["data", "ls"]).good();
    let expected = "SOURCE  HERE  PINNED  FILES  SIZE     LICENCE\n\
                    free    no    no      1      unknown  open\n\
                    bound   no    no      1      unknown  closed\n";
    assert_eq!(out.stdout, expected);
    let out = here(&repo, &["plan"]).good();
    let expected = "of these: 1 bound, 1 free, 1 of-both, 1 of-free\n\
                    to fetch: 2 files of 2 sources, 0 bytes, and 2 files of unknown size\n";
    assert!(out.stdout.ends_with(expected), "{}", out.stdout);
    here(&repo, &["data", "fetch", "of-free"]).bad(2, "of-free: is no source\n  hint: itpipe data ls");
    assert_eq!(here(&repo, &["data", "fetch", "--accept-licence", "closed"]).good().ran(), ["bound", "free"]);
    let out = here(&repo, &["data", "ls"]).good();
    assert!(out.stdout.contains("free    yes   in the lock  1      4     open\n"), "{}", out.stdout);
    let out = here(&repo, &["data", "licences"]).good();
    let expected = "closed: The agreement: accepted (--accept-licence)\n  research only\n  https://example.org/terms\n  \
                    sources: bound\n  may not be passed on: 2 stages are made from it\n\
                    open: MIT: no consent needed\n  sources: free\n";
    assert_eq!(out.stdout, expected);
}

#[test]
fn recorded_bytes_are_demanded() {
    let repo = two();
    here(&repo, &["run", "free", "--locked"]).bad(
        2,
        "free: --locked: neither the pipeline nor pipeline.lock knows the bytes of this source\n  hint: run once",
    );
    here(&repo, &["run", "free"]).good();
    assert_eq!(repo.recorded("free")[0]["licence"], "open");
    here(&repo, &["run", "free", "--locked"]).good();
    let out = here(&repo, &["data", "verify", "free"]).good();
    assert_eq!(out.stdout, "good     free: 1 files, 4 bytes\n");
    // The place gives something else now, and the store is gone.
    std::fs::remove_dir_all(repo.path("cache")).unwrap();
    repo.write("a", "other\n");
    here(&repo, &["run", "free"]).bad(1, "x: other bytes came than pipeline.lock recorded");
    assert_eq!(here(&repo, &["data", "verify", "free"]).good().stdout, "absent   free\n");
}

#[test]
fn an_unpinned_source_is_the_place_that_it_names() {
    let source = |name: &str| {
        format!(
            "  {name}: {{ shell: 'cat \"$HERE/{name}\" > $out/x', fixed: true, env: [HERE], in: {{ list: ./list }}, \
             files: {{ x: {{ sha256: null }} }} }}\n"
        )
    };
    let yaml = format!("stages:\n{}{}", source("a"), source("b"));
    let repo = Repo::new(&yaml);
    for file in ["a", "b", "c", "list"] {
        repo.write(file, file);
    }
    assert_eq!(here(&repo, &["run"]).good().ran(), ["a", "b"]);
    assert_eq!((repo.output("a", "x"), repo.output("b", "x")), ("a".into(), "b".into()));
    repo.pipeline(&yaml.replace("HERE/b", "HERE/c"));
    assert_eq!(here(&repo, &["run"]).good().ran(), ["b"]);
    assert_eq!(repo.output("b", "x"), "c");
    repo.write("list", "longer");
    assert_eq!(here(&repo, &["run"]).good().ran(), ["a", "b"]);
    let there = tempfile::tempdir().unwrap();
    std::fs::write(there.path().join("a"), "moved").unwrap();
    repo.with(&["run", "a"], |command| _ = command.env("HERE", there.path())).good();
    assert_eq!(repo.output("a", "x"), "moved");
}

#[test]
fn what_the_store_has_is_held_to_the_lock_and_fills_it() {
    let repo = two();
    here(&repo, &["run", "free"]).good();
    let lock = repo.read("pipeline.lock");
    let without: String = lock.split_inclusive('\n').filter(|line| !line.starts_with("  \"free ")).collect();
    assert_ne!(without, lock);
    repo.write("pipeline.lock", without);
    here(&repo, &["run", "free", "--locked"]).bad(2, "free: --locked: neither");
    assert_eq!(here(&repo, &["run", "free"]).good().ran(), [""; 0]);
    assert_eq!(repo.read("pipeline.lock"), lock);
    here(&repo, &["run", "free", "--locked"]).good();
    // Someone else's lock has other bytes: they are fetched, and nothing else is served.
    let (one, eno) = (
        "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",
        "0408b6cd993ec832ed7ad1fb3c87d23929d457903d3ec1fea0727e65a983f341",
    );
    let theirs = lock.replace(one, eno);
    assert_ne!(theirs, lock);
    repo.write("pipeline.lock", &theirs);
    let plan = here(&repo, &["plan", "free"]).good().stdout;
    assert!(plan.contains("x: pipeline.lock recorded other bytes than the store has"), "{plan}");
    let says = format!(
        "x: other bytes came than pipeline.lock recorded\n  recorded sha256 {eno}\n  found    sha256 {one}\n"
    );
    here(&repo, &["run", "free", "--locked"]).bad(1, &says);
    assert_eq!(repo.read("pipeline.lock"), theirs);
    repo.write("a", "eno\n");
    assert_eq!(here(&repo, &["run", "free", "--locked"]).good().ran(), ["free"]);
    assert_eq!(repo.output("free", "x"), "eno\n");
    assert_eq!(here(&repo, &["run", "free", "--locked"]).good().ran(), [""; 0]);
}

#[test]
fn each_profile_has_a_source_from_its_own_place() {
    let repo = Repo::new(
        r#"
vars: { from: a }
profiles: { smoke: { vars: { from: b } } }
kinds: { fetch: { shell: 'cat "$HERE/$param_from" > $out/x', env: [HERE], fixed: true } }
stages: { data: { kind: fetch, params: { from: "{vars.from}" }, files: { x: { sha256: null } } } }
"#,
    );
    for file in ["a", "b", "c"] {
        repo.write(file, file);
    }
    let smoke = ["run", "--locked", "--profile", "smoke"];
    here(&repo, &["run", "--profile", "smoke"]).good();
    here(&repo, &["run", "--locked"]).bad(2, "data: --locked: neither");
    here(&repo, &["run"]).good();
    here(&repo, &["run", "-S", "from=c"]).good();
    assert_eq!(repo.recorded("data").len(), 2);
    std::fs::remove_dir_all(repo.path("cache")).unwrap();
    here(&repo, &["run", "--locked"]).good();
    here(&repo, &smoke).good();
    // A lock of before names the stage alone: it is held to, and then replaced.
    let mut lock = repo.lock();
    let key = lock["results"]["paper"]["data"]["key"].as_str().unwrap().to_string();
    let line = format!("data {key}");
    lock["sources"] = serde_json::json!({ "data": lock["sources"][&line] });
    std::fs::remove_dir_all(repo.path("cache")).unwrap();
    repo.write("pipeline.lock", lock.to_string());
    repo.write("a", "other");
    here(&repo, &["run", "--locked"]).bad(1, "delete its line 'data' in pipeline.lock");
    repo.write("a", "a");
    here(&repo, &["run", "--locked"]).good();
    assert_eq!(repo.lock()["sources"].as_object().unwrap().keys().collect::<Vec<_>>(), [&line]);
}

#[test]
fn nothing_is_accepted_that_a_source_does_not_promise() {
    let with = |sha256: &str| {
        format!(
            "stages: {{ data: {{ shell: 'echo abc > $out/x', fixed: true, files: {{ x: {{ sha256: {sha256} }} }} }} }}\n"
        )
    };
    let repo = Repo::new(&with("null"));
    repo.run().good();
    let accept = ["accept", "data", "--reason", "it is the same"];
    repo.pipeline(&with(&"f".repeat(64)));
    let says =
        "pipeline.yaml:2:11: data: x: the earlier result is not what is promised\n  hint: itpipe run 'data'";
    repo.itpipe(&accept).bad(2, says);
    repo.run().bad(1, "promised was ffff");
    // What came may be pinned without another download.
    repo.pipeline(&with("edeaaff3f1774ad2888673770c6d64097e391bc362d7d6fb34982ddf0efd18cb"));
    repo.itpipe(&accept).good();
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn what_a_licence_cannot_say() {
    let bad = |yaml: &str, says: &str| {
        Repo::new(yaml).itpipe(&["validate"]).bad(2, says);
    };
    bad("stages: { a: { shell: 'true', licence: mit } }", "licence: only a fixed stage has a licence");
    let source =
        "stages: { a: { shell: 'true', fixed: true, files: { x: { sha256: null } }, licence: mitt } }";
    bad(
        &format!("licences: {{ mit: {{ name: MIT }} }}\n{source}"),
        "there is no licence 'mitt'\n  hint: did you mean",
    );
    bad(source, "there is no licence 'mitt'\n  hint: declare it under licences");
    bad(
        "licences: { a: { terms: t } }\nstages: { a: { shell: 'true' } }",
        "'name' is missing: what people call the licence",
    );
    bad(
        "licences: { a: { name: A, consent: true } }\nstages: { a: { shell: 'true' } }",
        "'terms' is missing: what a person is to accept",
    );
}
