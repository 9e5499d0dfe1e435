//! Tables from fabricated runs, read by eye once and kept.

use super::*;
use crate::runs::{Accuracy, Params as RunParams, Source, Training};

fn run(data: &str, ratio: u64, method: Method, gamma: f64, seed: u64, worst: f64) -> Evaluated {
    let average = (worst + 1.0) / 2.0;
    Evaluated {
        stage: format!("evaluate[{data},{ratio},{},{gamma},{seed}]", method.word()),
        params: RunParams { method, gamma, seed },
        data: Source {
            dataset: data.into(),
            variant: "mirror".into(),
            exact: data != "cifar10",
            note: Some("JPEG quality 75".into()),
            ratio,
            n_train: Some(1650),
        },
        test: Accuracy { worst, average },
        validation: Some(Accuracy { worst: worst - 0.1, average }),
        training: Training {
            error_raw: 0.01,
            error_tempered: method.tempered().then_some(0.0),
            loss: Some(0.002),
            steps: 400,
            epochs: 8,
        },
    }
}

fn claims() -> Claims {
    Claims::parse(include_str!("../../../claims.yaml")).unwrap()
}

fn runs(data: &str) -> Runs<Evaluated> {
    use Method::*;
    let mut all = vec![];
    for ratio in [10, 100] {
        let down = if ratio == 100 { 0.3 } else { 0.0 };
        for seed in 0..3 {
            let drift = [0.0, 0.02, 0.01][seed as usize] - down;
            all.push(run(data, ratio, Erm, 0.0, seed, 0.64 + drift));
            all.push(run(data, ratio, Iw, 0.0, seed, 0.68 + drift));
            all.push(run(data, ratio, ItFeatures, 0.5, seed, 0.67 + 2.0 * drift));
            all.push(run(data, ratio, ItClassifier, 0.5, seed, 0.72 + drift));
            if ratio == 100 {
                all.push(run(data, ratio, ItFeatures, 1.0, seed, 0.60 + drift));
                all.push(run(data, ratio, ItClassifier, 1.0, seed, 0.80 + drift));
            }
        }
    }
    Runs::new(all).unwrap()
}

fn of(layout: Layout, runs: &Runs<Evaluated>) -> Table {
    build(&Params { layout, gammas: vec![0.5], axes: vec![] }, &claims(), runs).unwrap()
}

#[test]
fn table1_of_cifar10_stands_beside_the_paper() {
    let table = of(Layout::Table1, &runs("cifar10"));
    assert!(table.in_paper);
    assert_eq!(table.title, "Table 1: CIFAR-10 under label shift");
    // By hand: seeds 64, 66, 65 give 65.0 ± 4.303 * 1 / sqrt 3 = 2.5; IT(H) - ERM at 1:10 moves by the drift alone.
    assert_eq!(table.grids[0].markdown(), include_str!("golden/table1-cifar10.md"));
    assert_eq!(table.grids[1].markdown(), include_str!("golden/training-cifar10.md"));
    assert!(table.notes.last().unwrap().contains("JPEG quality 75"));
    assert_eq!(table.measurements["cifar10/10/erm/worst"].stages.len(), 3);
}

#[test]
fn table1_of_another_data_set_says_that_it_is_not_in_the_paper() {
    let table = of(Layout::Table1, &runs("fashion-mnist"));
    assert!(!table.in_paper && table.title.ends_with("not in the paper"), "{}", table.title);
    assert!(table.grids[0].rows.iter().all(|r| r.kind != RowKind::Paper));
}

#[test]
fn table2_shows_the_worst_class_alone() {
    let table = of(Layout::Table2Shift, &runs("fashion-mnist"));
    assert_eq!(table.grids[0].markdown(), include_str!("golden/table2-shift.md"));
}

#[test]
fn wrong_inputs_say_so() {
    let mut both: Vec<Evaluated> = runs("cifar10").all().to_vec();
    both.extend(runs("fashion-mnist").all().to_vec());
    let both = Runs::new(both).unwrap();
    let params = |gammas| Params { layout: Layout::Table1, gammas, axes: vec![] };
    assert_eq!(
        build(&params(vec![0.5]), &claims(), &both).unwrap_err().to_string(),
        "inputs.metrics: layout table1 shows one data set, not fashion-mnist and cifar10"
    );
    assert_eq!(build(&params(vec![]), &claims(), &both).unwrap_err().to_string(), "params: gammas: no value");
}

#[test]
fn the_same_runs_in_another_order_give_the_same_bytes() {
    let one = of(Layout::Table2Shift, &runs("fashion-mnist"));
    let mut all = runs("fashion-mnist").all().to_vec();
    all.reverse();
    let other = of(Layout::Table2Shift, &Runs::new(all).unwrap());
    assert_eq!(html(&one), html(&other));
    assert_eq!(job::canonical(&one).unwrap(), job::canonical(&other).unwrap());
}
