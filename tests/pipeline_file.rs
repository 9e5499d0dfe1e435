//! The committed `pipeline.yaml`: every profile reads, they are one graph, and the paper profile has the paper's settings.

use std::collections::BTreeSet;
use std::path::Path;

use itpipe::graph::Graph;
use itpipe::parse;
use itpipe::pipeline::{Pipeline, Source, Value};

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

/// Appendix E.1, number by number, in every training of the label shift.
#[test]
fn the_paper_profile_has_the_papers_settings() {
    let paper = load("paper");
    for name in names(&paper, "train") {
        let params = params(&paper, &name);
        let axes: Vec<&str> = name["train[".len()..name.len() - 1].split(',').collect();
        let [data, ratio, method, gamma, seed] = axes[..] else { panic!("{name}") };
        assert_eq!(params["model"]["family"], "resnet-cifar", "{name}");
        assert_eq!((&params["model"]["depth"], &params["model"]["shortcut"]), (&32.into(), &"A".into()));
        assert_eq!((&params["epochs"], &params["batch"]), (&400.into(), &128.into()), "{name}");
        let sgd =
            serde_json::json!({"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4, "nesterov": false});
        assert_eq!(params["optimizer"], sgd, "{name}");
        let steps =
            serde_json::json!({"name": "step", "rate": 0.1, "milestones": [150, 250], "rates": [1e-3, 1e-5]});
        assert_eq!(params["schedule"], steps, "{name}");
        // Where gamma is above 0.2: 100 epochs at 0.2, then 300 at gamma.
        assert_eq!(params["warmup"], serde_json::json!({"gamma": 0.2, "epochs": 100}), "{name}");
        assert_eq!(params["method"], method, "{name}");
        assert_eq!(params["gamma"].as_f64(), gamma.parse().ok(), "{name}");
        assert_eq!(params["seed"].as_u64(), seed.parse().ok(), "{name}");
        assert!(params["temperatures"].is_null() && params["extras"].is_null(), "{name}");
        // First five classes majority with all of their images, last five a `ratio`-th of them; the whole test set.
        let step = &paper.stages.iter().find(|s| s.name == format!("step[{data},{ratio}]")).unwrap().params;
        let step = serde_json::to_value(step).unwrap();
        assert_eq!((&step["scheme"], &step["majority"]), (&"step".into(), &"first-half".into()));
        assert_eq!(step["ratio"].as_f64(), ratio.parse().ok(), "{name}");
        assert!(step["per_class"].is_null() && step["test_per_class"].is_null(), "{name}");
    }
}

/// Tables 1 and 2 see each of their printed cells of the label shift, at the rule of theorem 2 (gamma 1/2) and at every
/// gamma that the best one is chosen of; the report sees every table and figure.
#[test]
fn the_tables_and_the_report_see_their_cells() {
    let paper = load("paper");
    let gammas = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"];
    let table1 = inputs(&paper, "table1[cifar10]", "metrics");
    let table2 = inputs(&paper, "table2", "metrics");
    for ratio in [10, 100] {
        for seed in 0..3 {
            let cell = |data: &str, method: &str, gamma: &str| {
                format!("evaluate[{data},{ratio},{method},{gamma},{seed}]")
            };
            assert!(table1.contains(&cell("cifar10", "erm", "0")));
            for gamma in gammas {
                for method in ["it-features", "it-classifier"] {
                    assert!(table1.contains(&cell("cifar10", method, gamma)), "{method} {gamma}");
                }
            }
            for data in ["fashion-mnist", "cifar10"] {
                assert!(table2.contains(&cell(data, "erm", "0")) && table2.contains(&cell(data, "iw", "0")));
                assert!(gammas.iter().all(|gamma| table2.contains(&cell(data, "it-classifier", gamma))));
            }
        }
    }
    let shown: BTreeSet<String> =
        inputs(&paper, "report", "tables").union(&inputs(&paper, "report", "figures")).cloned().collect();
    let printed = [
        "table1[cifar10]",
        "table2",
        "table2-groups",
        "figure2[cifar10]",
        "figure2[fashion-mnist]",
        "figure3",
        "figure4b",
        "figure5",
    ];
    assert!(printed.iter().all(|name| shown.contains(*name)), "{shown:?}");
    let theory = inputs(&paper, "theory", "figures");
    for part in ["figure1", "figure4a", "figure6", "theorem1", "theorem2", "theorem3", "theorem45"] {
        assert!(theory.contains(&format!("theory-figure[{part}]")), "{part}");
    }
}

/// The report of the trainings shows the verdicts of the committed theory, not of another.
#[test]
fn the_theorys_verdicts_are_those_of_its_report() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    assert!(read("theory.json") == read("reports/theory/tables/verdicts.json"));
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

/// The params of a stage.
fn params(pipeline: &Pipeline, name: &str) -> serde_json::Value {
    let stage = pipeline.stages.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}"));
    serde_json::to_value(&stage.params).unwrap()
}

/// Table 2's rows of groups: (data, network, T without strong l2, T with it), T in appendix E.2's order g = 2 y + a.
/// MultiNLI's third entry is printed "1.300" and read as 1/300; BERT large's are not printed and taken from BERT base.
type Temperatures = &'static [f64];
const CELEBA_STRONG: Temperatures = &[1.0 / 100.0, 1.0 / 225.0, 1.0 / 275.0, 1.0];
const MULTINLI: Temperatures = &[1.0 / 150.0, 1.0 / 8000.0, 1.0 / 300.0, 3.0, 1.0 / 80.0, 1.0];
#[rustfmt::skip]
const GROUP_ROWS: [(&str, &str, Temperatures, Option<Temperatures>); 5] = [
    ("celeba", "resnet50", &[1.0 / 75.0, 1.0 / 100.0, 1.0 / 100.0, 1.0], Some(CELEBA_STRONG)),
    ("celeba", "wide-resnet50", &[1.0 / 75.0, 1.0 / 250.0, 1.0 / 250.0, 1.0], Some(CELEBA_STRONG)),
    ("waterbirds", "resnet50", &[1.0 / 100.0, 1.0 / 50.0, 1.0, 1.0 / 75.0], Some(&[1.0 / 20.0, 1.0 / 15.0, 1.0, 1.0 / 15.0])),
    ("multinli", "bert-base", MULTINLI, None),
    ("multinli", "bert-large", MULTINLI, None),
];

/// Table 2 and appendix E.2, number by number: every printed cell is trained, evaluated and shown.
#[test]
fn every_cell_of_the_group_half_has_its_stages_and_settings() {
    let paper = load("paper");
    let shown = inputs(&paper, "table2-groups", "metrics");
    let mut cells = 0;
    for (data, network, standard, strong) in GROUP_ROWS {
        for (decay, temperatures) in [("standard", Some(standard)), ("strong", strong)] {
            let Some(temperatures) = temperatures else { continue };
            for method in ["erm", "iw-resampled", "group-dro", "it-group"] {
                // Table 2 has no IW for Waterbirds without strong l2.
                if (data, decay, method) == ("waterbirds", "standard", "iw-resampled") {
                    assert!(!shown.contains("evaluate-group[waterbirds,resnet50,standard,iw-resampled,0]"));
                    continue;
                }
                for seed in 0..3 {
                    cells += 1;
                    let instance = format!("[{data},{network},{decay},{method},{seed}]");
                    assert!(shown.contains(&format!("evaluate-group{instance}")), "{instance}");
                    let params = params(&paper, &format!("train-group{instance}"));
                    let is_text = data == "multinli";
                    // E.2: SGD, momentum 0.9, batch 128, constant rate, 500 epochs; weight decay 1e-4, strong l2: 1.0
                    // (Waterbirds), 0.1 (CelebA). MultiNLI: AdamW, 2e-5 decaying linearly, batch 32, no weight decay.
                    assert_eq!(params["batch"], if is_text { 32 } else { 128 }, "{instance}");
                    let decay_of = match (data, decay) {
                        ("multinli", _) => 0.0,
                        (_, "standard") => 1e-4,
                        ("waterbirds", _) => 1.0,
                        _ => 0.1,
                    };
                    assert_eq!(params["optimizer"]["weight_decay"], decay_of, "{instance}");
                    if is_text {
                        assert_eq!(params["optimizer"]["name"], "adamw");
                        assert_eq!(params["schedule"], serde_json::json!({"name": "linear", "rate": 2e-5}));
                    } else {
                        assert_eq!(params["optimizer"]["name"], "sgd");
                        assert_eq!(params["optimizer"]["momentum"], 0.9);
                        assert_eq!(params["schedule"]["name"], "constant");
                        assert_eq!(params["epochs"], 500);
                    }
                    let expected = match method {
                        "it-group" => serde_json::json!(temperatures),
                        _ => serde_json::Value::Null,
                    };
                    assert_eq!(params["temperatures"], expected, "{instance}");
                }
            }
        }
    }
    // 8 + 8 + 7 + 4 + 4 cells, three seeds each, and nothing else in the table.
    assert_eq!((cells, shown.len()), (31 * 3, 31 * 3));
    // Group DRO as in its paper: a step of 0.01, no adjustment.
    let dro = params(&paper, "train-group[celeba,resnet50,strong,group-dro,0]");
    assert_eq!(dro["extras"], serde_json::json!({"step": 0.01, "adjustment": 0.0}));
    // The networks of E.2, from published weights.
    let sizes = |model: &str| {
        params(&paper, &format!("train-group[multinli,{model},standard,erm,0]"))["model"]["sizes"].clone()
    };
    assert_eq!(
        sizes("bert-base"),
        serde_json::json!({"hidden": 768, "layers": 12, "heads": 12, "intermediate": 3072})
    );
    assert_eq!(
        sizes("bert-large"),
        serde_json::json!({"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096})
    );
    for network in ["resnet50", "wide-resnet50"] {
        let params = params(&paper, &format!("train-group[celeba,{network},strong,it-group,0]"));
        assert_eq!(params["model"], serde_json::json!({"family": network, "width": 64}));
    }
    for network in ["resnet50", "wide-resnet50", "bert-base", "bert-large"] {
        let stage = paper.stages.iter().find(|s| s.name == format!("pretrained[{network}]")).unwrap();
        assert!(stage.files.as_ref().unwrap()["model.safetensors"].sha256.is_some(), "{network} is pinned");
    }
}

/// Figures 4(b) and 5: CelebA, ResNet-10, 50 epochs, width 10 to 100, the mean of 2 replicates, the best epoch by
/// worst-group validation accuracy. Rate, batch and decay are Sagawa et al.'s (2020).
#[test]
fn every_width_of_figures_4b_and_5_has_its_stages() {
    let paper = load("paper");
    for figure in ["figure4b", "figure5"] {
        let shown = inputs(&paper, figure, "metrics");
        assert_eq!(shown.len(), 10 * 3 * 2);
        for width in (10..=100).step_by(10) {
            for method in ["erm", "iw-resampled", "it-group"] {
                for seed in 0..2 {
                    let instance = format!("[celeba,{width},{method},{seed}]");
                    assert!(shown.contains(&format!("evaluate-width{instance}")), "{instance}");
                    let params = params(&paper, &format!("train-width{instance}"));
                    assert_eq!(params["model"], serde_json::json!({"family": "resnet10", "width": width}));
                    assert_eq!((&params["epochs"], &params["batch"]), (&50.into(), &128.into()));
                    assert_eq!(params["schedule"], serde_json::json!({"name": "constant", "rate": 0.01}));
                    assert_eq!(params["optimizer"]["weight_decay"], 1e-4);
                    assert_eq!(params["select"], "best-validation-worst");
                    let tempered = serde_json::json!(GROUP_ROWS[0].2);
                    let expected = if method == "it-group" { tempered } else { serde_json::Value::Null };
                    assert_eq!(params["temperatures"], expected);
                }
            }
        }
    }
}

/// Figure 2: both data sets at 1:100, gamma from 0 (ERM) to 1. Figure 3: vanilla, IT(H), IT(W) by ratio, Fashion-MNIST.
#[test]
fn figures_2_and_3_see_all_their_runs() {
    let paper = load("paper");
    for data in ["fashion-mnist", "cifar10"] {
        let shown = inputs(&paper, &format!("figure2[{data}]"), "metrics");
        assert!(shown.contains(&format!("evaluate[{data},100,erm,0,0]")));
        for gamma in ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"] {
            for method in ["it-features", "it-classifier"] {
                assert!(
                    shown.contains(&format!("evaluate[{data},100,{method},{gamma},0]")),
                    "{method} {gamma}"
                );
            }
        }
    }
    let shown = inputs(&paper, "figure3", "geometry");
    for ratio in [2, 5, 10, 20, 50, 100, 200, 500] {
        for method in ["erm,0", "it-features,0.5", "it-classifier,0.5"] {
            assert!(
                shown.contains(&format!("geometry[fashion-mnist,{ratio},{method},0]")),
                "{ratio} {method}"
            );
        }
    }
}

/// What the paper does not state is a variable with a note that says where our value comes from.
#[test]
fn unstated_values_have_their_notes() {
    let paper = load("paper");
    let notes = serde_json::to_value(&paper.vars["deviations"]).unwrap();
    let all = notes.as_array().unwrap();
    for note in all {
        for field in ["what", "paper", "here", "why"] {
            assert!(!note[field].is_null(), "{note}: {field}");
        }
    }
    for what in [
        "Rate for CelebA",
        "Epoch reported",
        "MultiNLI epochs",
        "MultiNLI temperatures",
        "BERT-large",
        "figure 4(b)",
    ] {
        assert!(all.iter().any(|note| note["what"].as_str().unwrap().contains(what)), "{what}");
    }
}

/// CelebA and Waterbirds need consent and are not passed on; what stands in for them in smoke is our own.
#[test]
fn licences_are_declared() {
    let paper = load("paper");
    let of = |pipeline: &Pipeline, name: &str| {
        pipeline.stages.iter().find(|s| s.name == name).unwrap().licence.clone().unwrap()
    };
    for data in ["celeba", "waterbirds"] {
        assert_eq!(of(&paper, &format!("group-source[{data}]")), data);
        assert!(paper.licences[data].consent && !paper.licences[data].redistribute);
        assert_eq!(of(&load("smoke"), &format!("group-source[{data}]")), "generated");
    }
    assert!(paper.stages.iter().filter(|s| s.kind.fixed).all(|s| s.licence.is_some()));
    let graph = Graph::new(&paper).unwrap();
    let restricted = |name: &str| {
        let (id, _) = paper.iter().find(|(_, s)| s.name == name).unwrap();
        itpipe::licence::restricted(&paper, &graph, id)
    };
    assert_eq!(restricted("group-images[celeba]").into_iter().collect::<Vec<_>>(), ["celeba"]);
    assert_eq!(restricted("report").into_iter().collect::<Vec<_>>(), ["celeba", "waterbirds"]);
    assert!(restricted("group-texts[multinli]").is_empty());
    // No sheet of pictures is made of what may not be shown.
    let sheets = names(&paper, "sheet");
    assert!(!sheets.is_empty() && sheets.iter().all(|name| restricted(name).is_empty()), "{sheets:?}");
}

/// Beyond the paper: just train twice with its study's settings, last-layer retraining, deferred re-weighting.
#[test]
fn procedures_of_two_trainings_are_stages() {
    let paper = load("paper");
    for (data, first, times, twice, rate, decay) in
        [("celeba", 1, 50, 50, 1e-5, 0.1), ("waterbirds", 60, 100, 300, 1e-5, 1.0)]
    {
        let [one, two, errors, last] = ["train-first", "train-twice", "errors", "train-last"]
            .map(|base| params(&paper, &format!("{base}[{data},0]")));
        assert_eq!((&one["epochs"], &two["epochs"]), (&first.into(), &twice.into()), "{data}");
        assert_eq!(errors["times"], times, "{data}");
        for training in [one, two] {
            assert_eq!(training["method"], "erm");
            assert_eq!(training["schedule"], serde_json::json!({"name": "constant", "rate": rate}));
            assert_eq!(training["optimizer"]["weight_decay"], decay, "{data}");
        }
        assert_eq!(
            inputs(&paper, &format!("train-twice[{data},0]"), "indices").first().unwrap(),
            &format!("errors[{data},0]")
        );
        assert_eq!(last["part"], "last-layer");
        let body = inputs(&paper, &format!("train-last[{data},0]"), "pretrained");
        assert_eq!(body.first().unwrap(), &format!("train-group[{data},resnet50,standard,erm,0]"));
    }
    let ldam = params(&paper, "train-deferred[cifar10,100,0]");
    assert_eq!((&ldam["method"], &ldam["epochs"]), (&"ldam".into(), &200.into()));
    assert_eq!(ldam["deferred"], serde_json::json!({"epochs": 160}));
}

/// The names of the stages that an input shows.
fn inputs(pipeline: &Pipeline, stage: &str, input: &str) -> BTreeSet<String> {
    let stage = pipeline.stages.iter().find(|s| s.name == stage).unwrap_or_else(|| panic!("{stage}"));
    let (_, input) = stage.inputs.iter().find(|(name, _)| name == input).unwrap();
    let name = |source: &Source| match source {
        Source::Stage { id, .. } => Some(pipeline.stage(*id).name.clone()),
        _ => None,
    };
    input.sources().iter().filter_map(name).collect()
}
