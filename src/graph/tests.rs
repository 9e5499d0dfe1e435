//! Order, upstream, selection, drawings. Cycles are in `tests/bad_yaml`.

use super::*;
use crate::parse::parse;

fn pipeline(text: &str) -> (Pipeline, Graph) {
    let pipeline =
        parse(&format!("version: 1\nstages:\n{text}"), "p", None, &[]).unwrap_or_else(|e| panic!("{e}"));
    let graph = Graph::new(&pipeline).unwrap_or_else(|e| panic!("{e}"));
    (pipeline, graph)
}

const PAPER: &str = r#"
  report: { shell: "true", in: { table: table, all: "@provenance" } }
  table: { shell: "true", in: { metrics: "train[*]" } }
  train: { shell: "true", matrix: { data: [a, b], seed: [0, 1] }, in: { data: "{data}", x: a } }
  a: { shell: "true" }
  b: { shell: "true" }
  other: { shell: "true", in: { b: b/part } }
"#;

fn names<'p>(pipeline: &'p Pipeline, ids: &[StageId]) -> Vec<&'p str> {
    ids.iter().map(|id| pipeline.stage(*id).name.as_str()).collect()
}

#[test]
fn order_is_topological_and_else_as_declared() {
    let (pipeline, graph) = pipeline(PAPER);
    let expected =
        ["a", "train[a,0]", "train[a,1]", "b", "train[b,0]", "train[b,1]", "table", "report", "other"];
    assert_eq!(names(&pipeline, graph.order()), expected);
}

#[test]
fn upstream_and_dependents() {
    let (pipeline, graph) = pipeline(PAPER);
    let select = |target: &str| graph.select(&pipeline, &[target.to_owned()]).unwrap();
    assert_eq!(names(&pipeline, &graph.upstream(&select("train[a,*]"))), ["a", "train[a,0]", "train[a,1]"]);
    assert_eq!(names(&pipeline, &graph.upstream(&select("other"))), ["b", "other"]);
    let b = select("b");
    assert_eq!(names(&pipeline, graph.dependents_of(b[0])), ["train[b,0]", "train[b,1]", "other"]);
    assert_eq!(names(&pipeline, graph.inputs_of(select("train[b,1]")[0])), ["a", "b"]);
    let down = graph.downstream(&b);
    assert_eq!(names(&pipeline, &down), ["b", "train[b,0]", "train[b,1]", "table", "report", "other"]);
}

#[test]
fn targets() {
    let (pipeline, graph) = pipeline(PAPER);
    let select = |targets: &[&str]| {
        let targets: Vec<_> = targets.iter().map(|t| t.to_string()).collect();
        graph
            .select(&pipeline, &targets)
            .map(|ids| names(&pipeline, &ids).join(" "))
            .map_err(|e| e.to_string())
    };
    assert_eq!(select(&["train"]), Ok("train[a,0] train[a,1] train[b,0] train[b,1]".to_owned()));
    assert_eq!(select(&["a", "train[*,1]", "a", "report"]), Ok("report train[a,1] train[b,1] a".to_owned()));
    assert_eq!(select(&["train[a|b,0]"]), Ok("train[a,0] train[b,0]".to_owned()));
    assert_eq!(
        select(&["reprot"]),
        Err("reprot: there is no stage 'reprot'\n  hint: did you mean 'report'?".to_owned())
    );
    let wrong = "train[c,0]: the axis 'data' of 'train' has no value 'c'\n  hint: there are a, b";
    assert_eq!(select(&["train[c,0]"]), Err(wrong.to_owned()));
    assert!(select(&["b/part"]).unwrap_err().contains("cannot be a target"));
}

#[test]
fn drawings_show_a_base_once() {
    let (pipeline, graph) = pipeline(PAPER);
    let text = "a\nb\ntrain (4) <- a, b\ntable <- train\nreport <- table\nother <- b\n";
    assert_eq!(graph.text(&pipeline, graph.order()), text);
    let report = graph.upstream(&graph.select(&pipeline, &["table".to_owned()]).unwrap());
    let dot = graph.dot(&pipeline, &report);
    assert!(dot.contains("\"train\" [label=\"train (4)\"];") && dot.contains("\"a\" -> \"train\";"), "{dot}");
    assert!(!dot.contains("report"), "{dot}");
    let json: serde_json::Value = serde_json::from_str(&graph.json(&pipeline, &report)).unwrap();
    for (i, id) in graph.order().iter().filter(|id| report.contains(id)).enumerate() {
        let needs: Vec<&str> =
            graph.inputs_of(*id).iter().map(|id| pipeline.stage(*id).name.as_str()).collect();
        assert_eq!(json["stages"][i]["stage"], pipeline.stage(*id).name);
        assert_eq!(json["stages"][i]["needs"], serde_json::json!(needs));
    }
    let mermaid = graph.mermaid(&pipeline, &report);
    assert!(mermaid.starts_with("flowchart LR\n  s0[\"a\"]\n") && mermaid.contains("s0 --> s2"), "{mermaid}");
}

#[test]
fn a_long_chain_and_a_long_cycle() {
    let mut text = String::new();
    for i in 0..30_000 {
        text += &format!("  s{i}: {{ shell: \"true\", in: {{ x: s{} }} }}\n", i + 1);
    }
    let (_, graph) = pipeline(&format!("{text}  s30000: {{ shell: \"true\" }}\n"));
    assert_eq!(graph.order()[0], StageId(30_000));
    assert_eq!(graph.upstream(&[StageId(0)]).len(), 30_001);
    let text = format!("version: 1\nstages:\n{text}  s30000: {{ shell: \"true\", in: {{ x: s0 }} }}\n");
    let errors = Graph::new(&parse(&text, "p", None, &[]).unwrap()).unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert!(errors.0[0].message.len() < 1000, "a message of {} bytes", errors.0[0].message.len());
}
