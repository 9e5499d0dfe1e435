//! Good files: what comes out of them. The wrong ones are in `tests/bad_yaml`.

use super::*;
use crate::pipeline::{Command, Input, Pipeline, Repeatable, Source, StageId, Value};

fn good(text: &str) -> Pipeline {
    with(text, None, &[])
}

fn with(text: &str, profile: Option<&str>, overrides: &[(&str, &str)]) -> Pipeline {
    let overrides: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    parse(text, "pipeline.yaml", profile, &overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

fn bad(text: &str) -> String {
    parse(text, "pipeline.yaml", None, &[]).expect_err("the file is accepted").to_string()
}

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.stages.iter().map(|stage| stage.name.as_str()).collect()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Names of what an input reads.
fn reads(pipeline: &Pipeline, stage: usize, input: usize) -> Vec<String> {
    pipeline.stages[stage].inputs[input]
        .1
        .sources()
        .iter()
        .map(|source| match source {
            Source::Stage { id, path: None } => pipeline.stage(*id).name.clone(),
            Source::Stage { id, path: Some(path) } => format!("{}/{path}", pipeline.stage(*id).name),
            Source::Repo(path) => format!("./{path}"),
            Source::Provenance => "@provenance".to_owned(),
        })
        .collect()
}

#[test]
fn types_are_kept_where_a_value_is_one_expression() {
    let pipeline = good(
        r#"
version: 1
vars: { i: 3, f: 1e-3, t: "3", b: true, n: null, l: [1, "a"], m: { k: 1.0 }, big: 1_000_000, yes: yes, old: 0755 }
stages:
  s:
    run: [echo]
    params:
      i: "{vars.i}"
      f: "{vars.f}"
      t: "{vars.t}"
      b: "{ vars.b }"
      n: "{vars.n}"
      l: "{vars.l}"
      m: "{vars.m}"
      part: "{vars.m.k}"
      item: "{vars.l[1]}"
      big: "{vars.big}"
      yes: "{vars.yes}"
      old: "{vars.old}"
      mixed: "i={vars.i} f={vars.f} b={vars.b} m={vars.m.k}"
      deep: { list: ["{vars.i}", "x{vars.i}"] }
"#,
    );
    let params = &pipeline.stages[0].params;
    assert_eq!(params["i"], Value::Int(3));
    assert_eq!(params["f"], Value::Float(0.001));
    assert_eq!(params["t"], text("3"));
    assert_eq!(params["b"], Value::Bool(true));
    assert_eq!(params["n"], Value::Null);
    assert_eq!(params["l"], Value::List(vec![Value::Int(1), text("a")]));
    assert_eq!(params["m"], Value::Map([("k".to_owned(), Value::Float(1.0))].into()));
    assert_eq!(params["part"], Value::Float(1.0));
    assert_eq!(params["item"], text("a"));
    assert_eq!(params["big"], Value::Int(1_000_000));
    assert_eq!(params["yes"], text("yes"), "YAML 1.2: only true and false are truth values");
    assert_eq!(params["old"], text("0755"), "neither octal nor decimal by accident");
    assert_eq!(params["mixed"], text("i=3 f=0.001 b=true m=1.0"));
    let deep = Value::List(vec![Value::Int(3), text("x3")]);
    assert_eq!(params["deep"], Value::Map([("list".to_owned(), deep)].into()));
}

#[test]
fn braces_are_doubled_and_nothing_is_evaluated_twice() {
    let pipeline = good(
        r#"
version: 1
vars: { braces: "{{vars.x}}", x: 1 }
stages:
  s:
    shell: "awk '{{print $1}}' ${{HOME}} > $out/x"
    params: { a: "{vars.braces}", b: "{{{vars.x}}}", c: "}}{{", d: "{vars.braces}{vars.x}" }
"#,
    );
    let stage = &pipeline.stages[0];
    assert_eq!(stage.kind.command, Command::Shell("awk '{print $1}' ${HOME} > $out/x".to_owned()));
    assert_eq!(stage.params["a"], text("{vars.x}"));
    assert_eq!(stage.params["b"], text("{1}"));
    assert_eq!(stage.params["c"], text("}{"));
    assert_eq!(stage.params["d"], text("{vars.x}1"));
}

#[test]
fn instances_come_in_the_order_of_the_axes_and_where_keeps_some() {
    let pipeline = good(
        r#"
version: 1
vars: { gammas: [0, 0.5, 1] }
stages:
  a:
    run: [echo]
    matrix: { data: [x, y], gamma: "{vars.gammas}", on: [true] }
    params: { data: "{data}", gamma: "{gamma}", on: "{on}", text: "{data}/{gamma}" }
  b:
    run: [echo]
    matrix: { method: [erm, iw, it-a, it-b], gamma: "{vars.gammas}" }
    where: [{ method: [it-a, it-b] }, { method: [erm, iw], gamma: 0 }]
  c:
    run: [echo]
    matrix: { method: [erm, iw], gamma: [0.0, 1] }
    where: { method: erm, gamma: [1.0, 0] }
"#,
    );
    let expected = [
        "a[x,0,true]",
        "a[x,0.5,true]",
        "a[x,1,true]",
        "a[y,0,true]",
        "a[y,0.5,true]",
        "a[y,1,true]",
        "b[erm,0]",
        "b[iw,0]",
        "b[it-a,0]",
        "b[it-a,0.5]",
        "b[it-a,1]",
        "b[it-b,0]",
        "b[it-b,0.5]",
        "b[it-b,1]",
        "c[erm,0.0]",
        "c[erm,1]",
    ];
    assert_eq!(names(&pipeline), expected);
    let stage = &pipeline.stages[1];
    assert_eq!(stage.base, "a");
    assert_eq!(stage.params["gamma"], Value::Float(0.5));
    assert_eq!(stage.params["on"], Value::Bool(true));
    assert_eq!(stage.params["text"], text("x/0.5"));
    assert_eq!(stage.axes[0], ("data".to_owned(), text("x")));
    assert_eq!(stage.axes[2], ("on".to_owned(), Value::Bool(true)));
}

#[test]
fn inputs_of_every_form() {
    let pipeline = good(
        r#"
version: 1
vars: { gammas: [0, 1] }
stages:
  cifar-arrays: { run: [echo] }
  prepare: { run: [echo] }
  evaluate:
    run: [echo]
    matrix: { data: [cifar, mnist], method: [erm, iw, it], gamma: "{vars.gammas}" }
  table:
    run: [echo]
    matrix: { data: [cifar] }
    in:
      a-one: "{data}-arrays"
      b-path: prepare/meta/x.json
      c-instance: "evaluate[{data},erm,0]"
      d-some: "evaluate[{data},erm|it,*]"
      e-rest: "evaluate[mnist,*]"
      f-path: "evaluate[*,iw,0]/metrics.json"
      g-list: [prepare, ./claims.yaml, "evaluate[mnist, it, 1]"]
      h-file: ./a/b/
      i-all: "@provenance"
      j-lacking: "evaluate[cifar,iw,0|0.5]"
"#,
    );
    let table = pipeline.stages.len() - 1;
    assert_eq!(pipeline.stages[table].name, "table[cifar]");
    assert_eq!(reads(&pipeline, table, 0), ["cifar-arrays"]);
    assert_eq!(reads(&pipeline, table, 1), ["prepare/meta/x.json"]);
    assert_eq!(reads(&pipeline, table, 2), ["evaluate[cifar,erm,0]"]);
    let some =
        ["evaluate[cifar,erm,0]", "evaluate[cifar,erm,1]", "evaluate[cifar,it,0]", "evaluate[cifar,it,1]"];
    assert_eq!(reads(&pipeline, table, 3), some);
    assert_eq!(reads(&pipeline, table, 4).len(), 6);
    assert_eq!(
        reads(&pipeline, table, 5),
        ["evaluate[cifar,iw,0]/metrics.json", "evaluate[mnist,iw,0]/metrics.json"]
    );
    assert_eq!(reads(&pipeline, table, 6), ["prepare", "./claims.yaml", "evaluate[mnist,it,1]"]);
    assert_eq!(reads(&pipeline, table, 7), ["./a/b"]);
    assert_eq!(reads(&pipeline, table, 8), ["@provenance"]);
    // 0.5 is not among the gammas of this profile: the axis comes from a variable.
    assert_eq!(reads(&pipeline, table, 9), ["evaluate[cifar,iw,0]"]);
    let many: Vec<bool> =
        pipeline.stages[table].inputs.iter().map(|(_, input)| matches!(input, Input::Many(_))).collect();
    assert_eq!(many, [false, false, false, true, true, true, true, false, false, true]);
}

const PROFILES: &str = r#"
version: 1
default-profile: smoke
vars: { depth: 32, name: "resnet-{vars.depth}", device: cuda, promise: { cpu: bits, cuda: statistical }, t: { lr: 0.1 } }
profiles:
  smoke: { vars: { depth: 8, device: cpu } }
  laptop: { vars: { depth: 20, name: small } }
  same:
kinds:
  train: { run: [echo], repeatable: "{vars.promise[vars.device]}", threads: 2, timeout: 60 }
stages:
  s: { kind: train, params: { name: "{vars.name}", lr: "{vars.t.lr}" }, publish: "reports/{profile}", threads: 4 }
"#;

#[test]
fn a_profile_overrides_variables_and_the_command_line_overrides_both() {
    let of = |profile, overrides: &[(&str, &str)]| {
        let pipeline = with(PROFILES, profile, overrides);
        let stage = pipeline.stages[0].clone();
        (stage.params["name"].to_string(), stage.publish.unwrap(), stage.kind.repeatable, pipeline.overridden)
    };
    let own = |a: &str, b: &str, c, d| (a.to_owned(), b.to_owned(), c, d);
    assert_eq!(of(None, &[]), own("resnet-8", "reports/smoke", Repeatable::Bits, false));
    assert_eq!(of(Some("paper"), &[]), own("resnet-32", "reports/paper", Repeatable::Statistical, false));
    assert_eq!(of(Some("laptop"), &[]), own("small", "reports/laptop", Repeatable::Statistical, false));
    assert_eq!(of(Some("same"), &[]), own("resnet-32", "reports/same", Repeatable::Statistical, false));
    assert_eq!(of(None, &[("depth", "14")]), own("resnet-14", "reports/smoke", Repeatable::Bits, true));
    let pipeline = with(PROFILES, None, &[("t.lr", "1e-3"), ("name", "\"{vars.device}\"")]);
    assert_eq!(pipeline.stages[0].params["lr"], Value::Float(0.001));
    assert_eq!(pipeline.stages[0].params["name"], text("cpu"));
    assert_eq!(pipeline.vars["depth"], Value::Int(8));
}

#[test]
fn a_stage_overrides_its_kind_and_instances_share_one() {
    let pipeline = good(
        r#"
version: 1
pools: { disk: 3 }
kinds:
  k: { run: [./run.sh, 3], code: [./a/, "b/*.rs"], env: [B, A, B], threads: 2, pool: gpu }
stages:
  a: { kind: k, matrix: { i: [1, 2, 3] }, pool: disk, retries: 1 }
  b: { kind: k }
  c: { kind: k, matrix: { i: [1, 2] }, threads: "{i}" }
"#,
    );
    let kind = &pipeline.stages[0].kind;
    assert_eq!((kind.pool.as_str(), kind.threads, kind.retries), ("disk", 2, 1));
    assert_eq!(kind.command, Command::Argv(vec!["./run.sh".to_owned(), "3".to_owned()]));
    assert_eq!(kind.code, ["a", "b/*.rs"]);
    assert_eq!(kind.env, ["A", "B"]);
    assert!(std::sync::Arc::ptr_eq(kind, &pipeline.stages[2].kind));
    assert_eq!(pipeline.stages[3].kind.pool, "gpu");
    assert_eq!([pipeline.stages[4].kind.threads, pipeline.stages[5].kind.threads], [1, 2]);
}

#[test]
fn fixed_stages_promise_files() {
    let sha = "AB".repeat(32);
    let pipeline = good(&format!(
        r#"
version: 1
vars: {{ sources: {{ hub: {{ a/b.bin: {{ sha256: "{sha}", size: 3 }} }}, mirror: {{ x: {{ sha256: null }} }} }}, v: hub }}
kinds: {{ fetch: {{ run: [echo], fixed: true, pool: network }} }}
stages: {{ f: {{ kind: fetch, files: "{{vars.sources[vars.v]}}" }} }}
"#
    ));
    let files = pipeline.stages[0].files.as_ref().unwrap();
    assert_eq!(files["a/b.bin"].sha256.as_deref(), Some(sha.to_lowercase().as_str()));
    assert_eq!(files["a/b.bin"].size, Some(3));
}

#[test]
fn anchors_merge_and_a_key_of_the_map_wins() {
    let pipeline = good(
        r#"
version: 1
stages:
  a: &a { run: [echo], params: &p { x: 1, y: 2 } }
  b: { <<: *a, params: { <<: *p, y: 3 } }
  c: { <<: [{ threads: 2 }, { threads: 3, retries: 1 }], run: [echo], params: { "<<": 1 } }
"#,
    );
    assert_eq!(pipeline.stages[1].params["x"], Value::Int(1));
    assert_eq!(pipeline.stages[1].params["y"], Value::Int(3));
    assert_eq!((pipeline.stages[2].kind.threads, pipeline.stages[2].kind.retries), (2, 1));
    assert_eq!(pipeline.stages[2].params["<<"], Value::Int(1));
}

#[test]
fn numbers_keep_their_type_and_odd_ones_are_text() {
    let pipeline = good(
        r#"
version: 1
stages:
  s:
    run: [echo]
    params: { l: [1, -1, +1, 1.0, -0.0, 1e3, 1E-3, .5, 5., 1_0.5, 0x1F, -0x1f, 0o17, 0b101, 0, -0] }
  t:
    run: [echo]
    params: { l: [1.2.3, 2024-01-01, 007, 1__0, _1, 1_, "1", 0x, 0xg, e5, 1e, ., +, .., 1e+, --1, 12:30, 1,] }
"#,
    );
    use Value::{Float, Int, List};
    let numbers = vec![
        Int(1),
        Int(-1),
        Int(1),
        Float(1.0),
        Float(-0.0),
        Float(1000.0),
        Float(0.001),
        Float(0.5),
        Float(5.0),
        Float(10.5),
        Int(31),
        Int(-31),
        Int(15),
        Int(5),
        Int(0),
        Int(0),
    ];
    assert_eq!(pipeline.stages[0].params["l"], List(numbers));
    let Value::List(texts) = &pipeline.stages[1].params["l"] else { panic!() };
    let (last, texts) = texts.split_last().unwrap();
    assert!(texts.iter().all(|value| matches!(value, Value::Text(_))), "{texts:?}");
    assert_eq!(*last, Int(1));
}

#[test]
fn a_chain_of_variables_may_be_long() {
    let mut file = String::from("version: 1\nvars:\n  v0: 1\n");
    for i in 1..20_000 {
        file += &format!("  v{i}: \"{{vars.v{}}}\"\n", i - 1);
    }
    file += "stages: { s: { run: [echo], params: { x: \"{vars.v19999}\" } } }\n";
    assert_eq!(good(&file).stages[0].params["x"], Value::Int(1));
}

#[test]
fn a_mistake_in_a_matrix_is_shown_once_and_many_mistakes_end() {
    let values: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    let axis = values.join(", ");
    let errors = bad(&format!(
        "version: 1\nstages:\n  s: {{ run: [echo], matrix: {{ i: [{axis}] }}, params: {{ x: \"{{j}}\" }} }}\n"
    ));
    assert_eq!(errors.lines().count(), 2, "{errors}");
    let mut file = String::from("version: 1\nstages:\n");
    for i in 0..5000 {
        file += &format!("  stage-{i}: {{ run: [echo], in: {{ x: stag-{i} }} }}\n");
    }
    let errors = bad(&file);
    assert!(errors.ends_with("more than 100 errors; these are the first that were found"), "{errors}");
}

#[test]
fn locations_are_those_of_the_file() {
    let pipeline = good("version: 1\nstages:\n  a:\n    run: [echo]\n  b: { run: [echo] }\n");
    assert_eq!(pipeline.stages[1].location.to_string(), "pipeline.yaml:5:3");
    assert_eq!(pipeline.stages[0].kind.location.to_string(), "pipeline.yaml:3:3");
    let errors =
        load(Path::new("/none"), Path::new("/none/pipeline.yaml"), None, &[]).unwrap_err().to_string();
    assert!(errors.starts_with("pipeline.yaml: cannot be read: no such file"), "{errors}");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// A value to be written as YAML.
    #[derive(Clone, Debug)]
    enum Tree {
        Scalar(&'static str),
        List(Vec<Tree>),
        Map(Vec<(&'static str, Tree)>),
    }

    fn params() -> impl Strategy<Value = Tree> {
        let scalar = prop::sample::select(vec![
            "1",
            "0.5",
            "true",
            "null",
            "text",
            "'it''s'",
            "\"{vars.d}\"",
            "1e-3",
            "[]",
            "x y",
        ]);
        let key = prop::sample::select(vec!["a", "b", "c", "long-name", "d_e"]);
        let leaf = scalar.prop_map(Tree::Scalar);
        leaf.prop_recursive(3, 20, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::List),
                prop::collection::btree_map(key.clone(), inner, 1..5)
                    .prop_map(|map| Tree::Map(map.into_iter().collect())),
            ]
        })
    }

    /// Writes a tree in block style, its maps turned by `seed`, with comments and empty lines where `seed` says so.
    fn write(tree: &Tree, indent: usize, seed: &mut u64, noise: bool, out: &mut String) {
        fn next(seed: &mut u64) -> usize {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*seed >> 33) as usize
        }
        match tree {
            Tree::Scalar(text) => {
                out.push_str(text);
                if noise && next(seed).is_multiple_of(2) {
                    out.push_str("   # a comment: {vars.none} [");
                }
                out.push('\n');
            }
            Tree::List(list) if list.is_empty() => out.push_str("[]\n"),
            Tree::List(list) => {
                out.push('\n');
                for item in list {
                    out.push_str(&" ".repeat(indent));
                    out.push_str("- ");
                    write(item, indent + 2, seed, noise, out);
                }
            }
            Tree::Map(map) => {
                let mut map = map.clone();
                if noise {
                    let by = next(seed) % map.len().max(1);
                    map.rotate_left(by);
                }
                out.push('\n');
                for (key, value) in &map {
                    if noise && next(seed).is_multiple_of(3) {
                        out.push_str("\n# between\n");
                    }
                    out.push_str(&format!("{}{key}: ", " ".repeat(indent)));
                    write(value, indent + 2, seed, noise, out);
                }
            }
        }
    }

    fn file(params: &[Tree], seed: u64, noise: bool) -> String {
        use Tree::{List, Map, Scalar};
        let stage = |i: usize, params: &Tree| {
            let inputs = match i {
                0 => Map(vec![("file", Scalar("./x")), ("all", Scalar("\"@provenance\""))]),
                1 => Map(vec![("one", Scalar("s0/part")), ("many", List(vec![Scalar("s0")]))]),
                _ => Map(vec![("one", Scalar("\"m[{vars.d},*]\"")), ("two", Scalar("s1"))]),
            };
            Map(vec![
                ("kind", Scalar("k")),
                ("params", Map(vec![("p", params.clone()), ("q", Scalar("\"{profile}\""))])),
                ("in", inputs),
                ("threads", Scalar("2")),
            ])
        };
        let matrix = Map(vec![
            // The axes of a matrix are an order: they are not turned.
            ("matrix", Scalar("{ a: [7, 8], b: [x, y] }")),
            (
                "where",
                List(vec![
                    Map(vec![("a", Scalar("7")), ("b", Scalar("[x, y]"))]),
                    Map(vec![("a", Scalar("8"))]),
                ]),
            ),
            ("shell", Scalar("\"echo {a}\"")),
        ]);
        let names = ["s0", "s1", "s2"];
        let mut stages: Vec<_> = params.iter().enumerate().map(|(i, p)| (names[i], stage(i, p))).collect();
        stages.push(("m", matrix));
        let tree = Map(vec![
            ("version", Scalar("1")),
            ("salt", Scalar("pepper")),
            ("vars", Map(vec![("d", Scalar("\"{vars.e}\"")), ("e", Scalar("7"))])),
            ("profiles", Map(vec![("smoke", Map(vec![("vars", Map(vec![("e", Scalar("8"))]))]))])),
            ("pools", Map(vec![("cpu", Scalar("2")), ("disk", Scalar("1"))])),
            ("kinds", Map(vec![("k", Map(vec![("run", Scalar("[echo, x]")), ("pool", Scalar("disk"))]))])),
            ("stages", Map(stages)),
        ]);
        let mut out = String::new();
        let mut seed = seed;
        write(&tree, 0, &mut seed, noise, &mut out);
        out
    }

    /// The pipeline without places, its stages by name and their inputs by the names of what they read.
    fn essence(pipeline: &Pipeline) -> String {
        let mut stages: Vec<String> = (0..pipeline.stages.len())
            .map(|i| {
                let stage = &pipeline.stages[i];
                let inputs: Vec<_> = (0..stage.inputs.len())
                    .map(|n| {
                        (
                            &stage.inputs[n].0,
                            matches!(stage.inputs[n].1, Input::Many(_)),
                            reads(pipeline, i, n),
                        )
                    })
                    .collect();
                let kind = (&stage.kind.name, &stage.kind.command, &stage.kind.pool, stage.kind.threads);
                format!("{} {:?} {kind:?} {inputs:?} {:?}", stage.name, stage.params, stage.publish)
            })
            .collect();
        stages.sort();
        format!("{} {} {:?} {:?} {stages:#?}", pipeline.profile, pipeline.salt, pipeline.pools, pipeline.vars)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn key_order_and_comments_change_nothing(params in prop::collection::vec(params(), 3), seed in any::<u64>(), smoke in any::<bool>()) {
            let profile = smoke.then_some("smoke");
            let plain = file(&params, 0, false);
            let turned = file(&params, seed, true);
            let read = |text: &str| {
                let pipeline = parse(text, "p", profile, &[]);
                pipeline.map(|p| essence(&p)).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))
            };
            prop_assert_eq!(read(&plain)?, read(&turned)?);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = parse(&text, "p", None, &[]);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&String::from_utf8_lossy(&bytes), "p", None, &[("a".to_owned(), String::from_utf8_lossy(&bytes).into_owned())]);
        }

        /// A good file with a piece cut out, doubled or replaced is wrong in many ways, and never a panic.
        #[test]
        fn no_damaged_file_panics(at in 0usize..2000, length in 0usize..60, with in "[\\[\\]{}:,*&!|>'\"#%@`.a0 \\n-]{0,8}") {
            let text = PROFILES.to_string() + &file(&[Tree::Scalar("1"), Tree::List(vec![]), Tree::Scalar("x")], 1, true);
            let chars: Vec<char> = text.chars().collect();
            let at = at % chars.len();
            let end = (at + length).min(chars.len());
            let damaged: String = chars[..at].iter().chain(with.chars().collect::<Vec<_>>().iter()).chain(&chars[end..]).collect();
            let _ = parse(&damaged, "p", Some("smoke"), &[]);
        }
    }
}

#[test]
fn stage_ids_are_places() {
    let pipeline = good("version: 1\nstages: { a: { run: [echo] }, b: { run: [echo], in: { x: a } } }\n");
    assert_eq!(pipeline.iter().map(|(id, _)| id).collect::<Vec<_>>(), [StageId(0), StageId(1)]);
    assert_eq!(reads(&pipeline, 1, 0), ["a"]);
}

/// The committed schema lists exactly the keys that are read here.
#[test]
fn the_schema_has_the_keys_of_the_format() {
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../schema/pipeline.schema.json")).unwrap();
    let keys = |object: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<String> = object["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    // What an unknown key is told to be one of is what the parser knows.
    let known = |text: &str| -> Vec<String> {
        let shown = bad(text);
        let line =
            shown.lines().find_map(|line| line.trim().strip_prefix("hint: there are ")).expect("a list");
        let mut keys: Vec<String> = line.split(", ").map(str::to_owned).collect();
        keys.sort();
        keys
    };
    let of = |name: &str| keys(&schema["definitions"][name]);
    let stages = "stages: { a: { shell: x } }\n";
    assert_eq!(keys(&schema), known(&format!("version: 1\nqqqqqqqqqqqq: 1\n{stages}")));
    assert_eq!(
        of("kind"),
        known(&format!("version: 1\nkinds: {{ k: {{ qqqqqqqqqqqq: 1, shell: x }} }}\n{stages}"))
    );
    assert_eq!(of("stage"), known("version: 1\nstages: { a: { qqqqqqqqqqqq: 1, shell: x } }\n"));
    let program = "programs: { p: { qqqqqqqqqqqq: 1, path: x } }";
    assert_eq!(of("program"), known(&format!("version: 1\n{program}\n{stages}")));
    let licence = "licences: { l: { qqqqqqqqqqqq: 1, name: x } }";
    assert_eq!(of("licence"), known(&format!("version: 1\n{licence}\n{stages}")));
    let files = "stages: { a: { shell: x, fixed: true, files: { f: { qqqqqqqqqqqq: 1, sha256: null } } } }";
    assert_eq!(of("promise"), known(&format!("version: 1\n{files}\n")));
}
