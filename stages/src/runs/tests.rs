//! Grouping, the choice of gamma and the names of quantities, on fabricated runs.

use super::*;

fn run(method: Method, gamma: f64, seed: u64, worst: f64, validation: Option<f64>) -> Evaluated {
    Evaluated {
        stage: format!("evaluate[fashion-mnist,100,{},{gamma},{seed}]", method.word()),
        params: Params { method, gamma, seed },
        data: Source {
            dataset: "fashion-mnist".into(),
            variant: "bundled".into(),
            exact: true,
            note: None,
            ratio: 100,
            n_train: None,
        },
        test: Accuracy { worst, average: worst + 0.1 },
        validation: validation.map(|worst| Accuracy { worst, average: worst }),
        training: Training { error_raw: 0.0, error_tempered: None, loss: None, steps: 10, epochs: 1 },
    }
}

#[test]
fn the_best_gamma_is_chosen_on_validation_and_shared_seeds() {
    use Method::*;
    let mut all = vec![
        run(Erm, 0.0, 0, 0.9, Some(0.1)),
        run(Erm, 0.0, 1, 0.9, Some(0.1)),
        run(ItClassifier, 0.5, 0, 0.5, Some(0.4)),
        // A seed that the others lack must not count.
        run(ItClassifier, 0.5, 1, 0.5, Some(0.9)),
        run(ItClassifier, 1.0, 0, 0.2, Some(0.6)),
    ];
    let runs = Runs::new(all.clone()).unwrap();
    assert_eq!(runs.best_gamma("fashion-mnist", 100, ItClassifier), Some(1.0));
    let measured = accuracies(&runs);
    assert_eq!(measured["fashion-mnist/100/it-classifier@best/worst"].seeds, [(0, 20.0)]);
    assert_eq!(measured["fashion-mnist/100/it-classifier@0.5/worst"].seeds, [(0, 50.0), (1, 50.0)]);
    assert_eq!(measured["fashion-mnist/100/erm/average"].seeds, [(0, 100.0), (1, 100.0)]);
    assert!(!measured.contains_key("fashion-mnist/100/erm@best/worst"));
    // Equal: the smaller gamma, here ERM itself.
    for r in &mut all {
        r.validation = Some(Accuracy { worst: 0.3, average: 0.3 });
    }
    let runs = Runs::new(all.clone()).unwrap();
    assert_eq!(runs.best_gamma("fashion-mnist", 100, ItClassifier), Some(0.0));
    let measured = accuracies(&runs);
    assert_eq!(
        measured["fashion-mnist/100/it-classifier@best/worst"].stages[0],
        "evaluate[fashion-mnist,100,erm,0,0]"
    );
    // Without validation accuracies there is no choice.
    all[0].validation = None;
    assert_eq!(Runs::new(all).unwrap().best_gamma("fashion-mnist", 100, ItClassifier), None);
}

#[test]
fn the_same_run_twice_or_none_is_an_error() {
    let twice = vec![run(Method::Erm, 0.0, 0, 0.9, None), run(Method::Erm, 0.0, 0, 0.8, None)];
    let error = Runs::new(twice).unwrap_err().to_string();
    assert!(error.ends_with("are the same run"), "{error}");
    assert_eq!(Runs::<Evaluated>::new(vec![]).unwrap_err().to_string(), "inputs: no run to show");
}

#[test]
fn gamma_zero_is_erm() {
    let runs = Runs::new(vec![run(Method::Erm, 0.0, 3, 0.9, None)]).unwrap();
    assert_eq!(runs.cell("fashion-mnist", 100, Method::ItFeatures, 0.0)[0].params.method, Method::Erm);
    assert!(runs.cell("fashion-mnist", 100, Method::Iw, 0.0).is_empty());
    assert_eq!(quantity("d", 10, Method::ItFeatures, "0", "worst"), "d/10/erm/worst");
}
