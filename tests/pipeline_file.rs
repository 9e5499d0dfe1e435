//! The committed `pipeline.yaml`: every profile reads, they are one graph, and the paper profile has the paper's settings.

use std::collections::BTreeSet;
use std::path::Path;

use itpipe::graph::Graph;
use itpipe::parse;
use itpipe::pipeline::{Pipeline, Value};

fn load(profile: &str) -> Pipeline {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pipeline =
        parse::load(root, &root.join("pipeline.yaml"), Some(profile), &[]).unwrap_or_else(|e| panic!("{e}"));
    Graph::new(&pipeline).unwrap_or_else(|e| panic!("{e}"));
    pipeline
}

fn names(pipeline: &Pipeline, base: &str) -> Vec<String> {
    pipeline.stages.iter().filter(|s| s.base == base).map(|s| s.name.clone()).collect()
}

#[test]
fn the_profiles_are_one_graph() {
    let bases = |profile: &str| load(profile).stages.iter().map(|s| s.base.clone()).collect::<BTreeSet<_>>();
    let paper = bases("paper");
    assert!(paper.contains("report") && paper.contains("figure3"), "{paper:?}");
    assert_eq!(bases("smoke"), paper);
    assert_eq!(bases("laptop"), paper);
}

#[test]
fn every_cell_of_the_label_shift_half_has_its_trainings() {
    let paper = load("paper");
    let trainings: BTreeSet<String> = names(&paper, "train").into_iter().collect();
    for data in ["fashion-mnist", "cifar10"] {
        for ratio in [10, 100] {
            for seed in 0..3 {
                let mut wanted = vec!["erm,0".to_string(), "iw,0".to_string()];
                for tenth in 1..=10 {
                    let gamma = if tenth == 10 { "1".to_string() } else { format!("0.{tenth}") };
                    wanted.extend([format!("it-features,{gamma}"), format!("it-classifier,{gamma}")]);
                }
                for method in wanted {
                    let name = format!("train[{data},{ratio},{method},{seed}]");
                    assert!(trainings.contains(&name), "{name}");
                }
            }
        }
    }
    assert!(!trainings.iter().any(|name| name.contains("it-") && name.contains(",0,")), "gamma 0 is ERM");
}

/// Appendix E.1, number by number.
#[test]
fn the_paper_profile_has_the_papers_settings() {
    let paper = load("paper");
    let stage = paper.stages.iter().find(|s| s.name == "train[cifar10,100,it-classifier,0.5,0]").unwrap();
    let params = serde_json::to_value(&stage.params).unwrap();
    assert_eq!(params["model"]["depth"], 32);
    assert_eq!(params["epochs"], 400);
    assert_eq!(params["batch"], 128);
    assert_eq!(params["optimizer"]["momentum"], 0.9);
    assert_eq!(params["optimizer"]["weight_decay"], 2e-4);
    assert_eq!(params["schedule"]["rate"], 0.1);
    assert_eq!(params["schedule"]["milestones"], serde_json::json!([150, 250]));
    assert_eq!(params["schedule"]["rates"], serde_json::json!([1e-3, 1e-5]));
    assert_eq!(params["warmup"], serde_json::json!({"gamma": 0.2, "epochs": 100}));
}

#[test]
fn reduced_profiles_say_so_and_the_paper_does_not() {
    let reduced = |profile: &str| load(profile).vars["reduced"].clone();
    assert_eq!(reduced("paper"), Value::Text(String::new()));
    for profile in ["smoke", "laptop"] {
        assert!(matches!(reduced(profile), Value::Text(text) if text.len() > 40));
    }
}

/// What a laptop run is compared on was fixed before it: three seeds of ERM, IW and both ITs at gamma 0.5.
#[test]
fn the_laptop_compares_three_seeds() {
    let trainings: BTreeSet<String> = names(&load("laptop"), "train").into_iter().collect();
    for ratio in [10, 100] {
        for method in ["erm,0", "iw,0", "it-features,0.5", "it-classifier,0.5"] {
            for seed in 0..3 {
                let name = format!("train[fashion-mnist,{ratio},{method},{seed}]");
                assert!(trainings.contains(&name), "{name}");
            }
        }
    }
}
