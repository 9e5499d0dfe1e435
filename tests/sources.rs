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
    assert_eq!(repo.lock()["sources"]["free"]["licence"], "open");
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
