use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::pipeline::{Location, Value};

fn kind() -> Kind {
    Kind {
        name: Some("train".into()),
        command: Command::Argv(vec!["stages".into(), "train".into()]),
        identity: Some(vec!["stages".into(), "identity".into()]),
        code: vec!["src".into()],
        repeatable: Repeatable::Bits,
        pool: "cpu".into(),
        resources: BTreeMap::new(),
        threads: 1,
        env: vec!["A".into()],
        fixed: false,
        rehearse: false,
        alike: Vec::new(),
        expect: None,
        timeout: None,
        retries: 0,
        location: Location { file: "pipeline.yaml".into(), line: 1, column: 1 },
    }
}

/// Everything that a key is made of, owned, so that a test can change one thing.
#[derive(Clone)]
struct Parts {
    stage: Stage,
    salt: String,
    program: Option<Digest>,
    code: Vec<(String, Digest)>,
    identity: Option<String>,
    env: Vec<(String, Option<String>)>,
    inputs: Vec<(String, InputDigest)>,
}

fn parts() -> Parts {
    let stage = Stage {
        name: "train[a]".into(),
        base: "train".into(),
        axes: vec![("data".into(), Value::Text("a".into()))],
        kind: Arc::new(kind()),
        inputs: Vec::new(),
        params: BTreeMap::from([
            ("depth".into(), Value::Int(1)),
            ("list".into(), Value::List(vec![Value::Int(1), Value::Int(2)])),
            ("map".into(), Value::Map(BTreeMap::from([("a".into(), Value::Null)]))),
        ]),
        files: None,
        licence: None,
        publish: None,
        location: Location { file: "pipeline.yaml".into(), line: 9, column: 3 },
    };
    Parts {
        stage,
        salt: "".into(),
        program: None,
        code: vec![("src/a.rs".into(), Digest::of(b"a")), ("src/b.rs".into(), Digest::of(b"b"))],
        identity: Some("rustc 1.90".into()),
        env: vec![("A".into(), Some("1".into()))],
        inputs: vec![
            ("data".into(), InputDigest::One(Digest::of(b"x"))),
            (
                "many".into(),
                InputDigest::Many(vec![("e[1]".into(), Digest::of(b"1")), ("e[2]".into(), Digest::of(b"2"))]),
            ),
        ],
    }
}

impl Parts {
    fn manifest(&self) -> Manifest {
        let action = Action {
            stage: &self.stage,
            salt: &self.salt,
            program: self.program,
            code: &self.code,
            identity: self.identity.as_deref(),
            env: &self.env,
            inputs: &self.inputs,
        };
        action.manifest()
    }

    fn kind(&mut self) -> &mut Kind {
        Arc::make_mut(&mut self.stage.kind)
    }

    fn param(&mut self, name: &str, value: Value) {
        self.stage.params.insert(name.into(), value);
    }
}

type Edit = (&'static str, fn(&mut Parts));

#[test]
fn any_declared_change_flips_the_key_and_names_its_field() {
    let edits: [Edit; 22] = [
        ("salt", |p| p.salt = "x".into()),
        ("run[1]", |p| p.kind().command = Command::Argv(vec!["stages".into(), "evaluate".into()])),
        ("run[0]", |p| p.kind().command = Command::Shell("stages train".into())),
        ("program", |p| p.program = Some(Digest::of(b"p"))),
        ("params.depth", |p| p.param("depth", Value::Int(2))),
        ("params.depth", |p| p.param("depth", Value::Float(1.0))),
        ("params.depth", |p| p.param("depth", Value::Text("1".into()))),
        ("params.depth", |p| p.param("depth", Value::Bool(true))),
        ("params.new", |p| p.param("new", Value::Null)),
        ("params.list[0]", |p| p.param("list", Value::List(vec![Value::Int(2), Value::Int(1)]))),
        ("params.list", |p| p.param("list", Value::List(vec![]))),
        ("params.map.a", |p| p.param("map", Value::Map(BTreeMap::from([("a".into(), Value::Int(0))])))),
        ("params.map.b", |p| p.param("map", Value::Map(BTreeMap::from([("b".into(), Value::Null)])))),
        ("code.src/a.rs", |p| p.code[0].1 = Digest::of(b"other")),
        ("code.src/c.rs", |p| p.code.push(("src/c.rs".into(), Digest::of(b"c")))),
        ("code.src/b.rs", |p| _ = p.code.pop()),
        ("identity", |p| p.identity = Some("rustc 1.91".into())),
        ("env.A", |p| p.env[0].1 = None),
        ("env.A", |p| p.env[0].1 = Some("2".into())),
        ("inputs.data", |p| p.inputs[0].1 = InputDigest::One(Digest::of(b"y"))),
        ("inputs.many[0]", |p| {
            p.inputs[1].1 =
                InputDigest::Many(vec![("e[3]".into(), Digest::of(b"1")), ("e[2]".into(), Digest::of(b"2"))])
        }),
        ("repeatable", |p| p.kind().repeatable = Repeatable::Statistical),
    ];
    let base = parts().manifest();
    let mut keys = vec![base.key()];
    for (field, edit) in edits {
        let mut changed = parts();
        edit(&mut changed);
        let changed = changed.manifest();
        let differences = changes(&base.lines, &changed.lines);
        assert!(differences.iter().any(|d| d.field == field), "{field}: {differences:?}");
        assert!(!keys.contains(&changed.key()), "{field}: the key of another edit");
        keys.push(changed.key());
    }
}

#[test]
fn what_can_only_change_the_time_is_not_in_the_key() {
    let base = parts().manifest().key();
    let edits: [fn(&mut Parts); 9] = [
        |p| p.kind().threads = 8,
        |p| p.kind().pool = "gpu".into(),
        |p| p.kind().timeout = Some(1),
        |p| p.kind().retries = 3,
        |p| p.kind().name = Some("other".into()),
        |p| p.kind().location.line = 77,
        |p| p.stage.name = "other".into(),
        |p| p.stage.publish = Some("reports/x".into()),
        |p| p.stage.axes.clear(),
    ];
    for (i, edit) in edits.into_iter().enumerate() {
        let mut changed = parts();
        edit(&mut changed);
        assert_eq!(changed.manifest().key(), base, "edit {i}");
    }
}

#[test]
fn neighbouring_fields_cannot_be_mistaken_for_one_another() {
    let mut nested = parts();
    nested.param("a", Value::Map(BTreeMap::from([("b".into(), Value::Int(1))])));
    let mut dotted = parts();
    dotted.param("a.b", Value::Int(1));
    let mut quoted = parts();
    quoted.param("a\".\"b", Value::Int(1));
    let keys = [nested.manifest().key(), dotted.manifest().key(), quoted.manifest().key()];
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    let one = Manifest { lines: vec![("ab".into(), "c".into())] };
    let other = Manifest { lines: vec![("a".into(), "bc".into())] };
    assert_ne!(one.key(), other.key());
}

#[test]
fn a_pinned_source_is_its_promises_alone() {
    let pinned = |sha: Option<&str>| {
        let mut parts = parts();
        parts.kind().fixed = true;
        let promise = Promise { sha256: sha.map(str::to_string), size: Some(3) };
        parts.stage.files = Some(BTreeMap::from([("a.parquet".into(), promise)]));
        parts
    };
    let edits: [fn(&mut Parts); 5] = [
        |p| p.param("url", Value::Text("elsewhere".into())),
        |p| p.code[0].1 = Digest::of(b"other"),
        |p| p.identity = None,
        |p| p.kind().command = Command::Shell("curl".into()),
        |p| p.salt = "x".into(),
    ];
    let base = pinned(Some("aa")).manifest();
    assert_eq!(base.lines.len(), 2);
    for edit in edits {
        let mut changed = pinned(Some("aa"));
        edit(&mut changed);
        assert_eq!(changed.manifest(), base);
    }
    assert_ne!(pinned(Some("bb")).manifest().key(), base.key());
    // Unpinned, whatever names the place decides what comes; the code still does not.
    let unpinned = |edit: fn(&mut Parts)| {
        let mut parts = pinned(None);
        edit(&mut parts);
        parts.manifest().key()
    };
    let base = unpinned(|_| ());
    let places: [fn(&mut Parts); 5] = [
        edits[0],
        edits[3],
        edits[4],
        |p| p.env[0].1 = None,
        |p| p.inputs[0].1 = InputDigest::One(Digest::of(b"y")),
    ];
    places.into_iter().for_each(|edit| assert_ne!(unpinned(edit), base));
    assert_eq!(unpinned(edits[1]), base);
}

#[test]
fn a_secret_is_in_the_key_and_not_in_the_manifest() {
    let with = |value: &str| {
        let mut parts = parts();
        parts.env = vec![("HF_TOKEN".into(), Some(value.into()))];
        parts.manifest()
    };
    assert_ne!(with("hf_abcdef").key(), with("hf_abcdeg").key());
    assert!(!format!("{:?}", with("hf_abcdef")).contains("hf_abcdef"));
    for name in ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "api_key", "DB_PASSWORD", "TOKEN"] {
        assert!(is_secret(name), "{name}");
    }
    for name in ["PATH", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEY"] {
        assert!(!is_secret(name), "{name}");
    }
}

#[test]
fn a_change_reads_as_one_line() {
    let change = |old: &str, new: &str| {
        let change = Change { field: "params.gamma".into(), old: Some(old.into()), new: Some(new.into()) };
        change.to_string()
    };
    assert_eq!(change("0.1", "0.5"), "params.gamma: 0.1 -> 0.5");
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    assert_eq!(
        change(&a.to_string(), &format!("e[1] {b}")),
        format!("params.gamma: {} -> e[1] {}", a.short(), b.short())
    );
    assert_eq!(change("a\nb", "c"), "params.gamma: a ⏎ b -> c");
}
