//! Any bytes as pipeline.yaml, with an override and the graph: an error or a pipeline, never a panic, a hang or a
//! message without a place. `fuzz/run` builds and starts it; the same on stored and random texts is a plain test of
//! the engine (`parse::tests`).
#![no_main]

use itpipe::graph::Graph;
use itpipe::parse::parse;

libfuzzer_sys::fuzz_target!(|text: &str| {
    // What follows a form feed is the value of an override.
    let (file, value) = text.split_once('\u{c}').unwrap_or((text, "1"));
    let overrides = [("a".to_owned(), value.to_owned())];
    let overrides = if text.contains('\u{c}') { &overrides[..] } else { &[] };
    match parse(file, "p", None, overrides) {
        Ok(pipeline) => {
            if let Ok(graph) = Graph::new(&pipeline) {
                assert_eq!(graph.order().len(), pipeline.stages.len());
                let names: Vec<String> = pipeline.stages.iter().take(20).map(|stage| stage.name.clone()).collect();
                let selected = graph.select(&pipeline, &names).expect("a stage is found by its own name");
                assert_eq!(selected.len(), names.len());
                let _ = graph.mermaid(&pipeline, graph.order());
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            for error in &errors.0 {
                assert!(!error.message.is_empty());
                assert!(error.location.line > 0 || &*error.location.file != "p" || error.message.starts_with("more than"));
            }
        }
    }
});
