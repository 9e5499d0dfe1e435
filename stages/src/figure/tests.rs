//! Figures from fabricated runs: what is measured, what is drawn, what is refused.

use super::*;
use crate::runs::{Accuracy, Params as RunParams, Source, Training};

fn source(ratio: u64) -> Source {
    let (dataset, variant) = ("fashion-mnist".to_string(), "mirror".to_string());
    Source { dataset, variant, exact: true, note: None, ratio, n_train: Some(10) }
}

fn evaluated(ratio: u64, method: Method, gamma: f64, seed: u64, worst: f64) -> Evaluated {
    Evaluated {
        stage: format!("evaluate[fashion-mnist,{ratio},{},{gamma},{seed}]", method.word()),
        params: RunParams { method, gamma, seed },
        data: source(ratio),
        test: Accuracy { worst, average: worst + 0.1 },
        validation: Some(Accuracy { worst, average: worst }),
        training: Training { error_raw: 0.0, error_tempered: None, loss: None, steps: 1, epochs: 1 },
    }
}

fn runs() -> Runs<Evaluated> {
    let mut all = vec![];
    for seed in 0..2 {
        let up = seed as f64 / 100.0;
        all.push(evaluated(100, Method::Erm, 0.0, seed, 0.2 + up));
        all.push(evaluated(100, Method::Iw, 0.0, seed, 0.3 + up));
        for (gamma, worst) in [(0.5, 0.6), (1.0, 0.5 + 20.0 * up)] {
            all.push(evaluated(100, Method::ItClassifier, gamma, seed, worst));
        }
    }
    Runs::new(all).unwrap()
}

fn shaped(ratio: u64, method: Method, gamma: f64, angle: f64) -> Shaped {
    let angles = Angles { majority: Some(angle), minority: Some(angle - 10.0) };
    Shaped {
        stage: format!("geometry[fashion-mnist,{ratio},{},{gamma},0]", method.word()),
        params: RunParams { method, gamma, seed: 0 },
        data: source(ratio),
        angles: AllAngles { classifier: angles, means_centred: angles, means_uncentred: angles },
    }
}

#[test]
fn figure2_measures_the_curve_and_each_seeds_best_gamma() {
    let drawing = figure2(&runs(), 100).unwrap();
    let m = &drawing.figure.measurements;
    // Seed 0: 0.2, 0.6, 0.5; seed 1: 0.21, 0.6, 0.7.
    assert_eq!(m["fashion-mnist/100/it-classifier/peak-gamma/worst"].seeds, [(0, 0.5), (1, 1.0)]);
    assert_eq!(m["fashion-mnist/100/it-classifier/peak-gamma/worst"].unit, "");
    let series = &drawing.panels[1].series;
    assert_eq!(series.len(), 1);
    assert_eq!(series[0].points.iter().map(|p| p.x).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
    assert!((series[0].points[0].mean - 20.5).abs() < 1e-9, "gamma 0 is ERM");
    assert_eq!(drawing.panels[1].references.len(), 2);
    let text = csv(&drawing);
    assert!(text.contains("figure2-fashion-mnist,Worst-class accuracy,IT(W),0.5,mean,,60,0\n"), "{text}");
    assert_eq!(
        fragment(&drawing, &looks(&drawing.panels)).unwrap(),
        fragment(&drawing, &looks(&drawing.panels)).unwrap()
    );
}

#[test]
fn figure3_measures_angles_beside_the_closed_forms() {
    let shapes = vec![
        shaped(10, Method::Erm, 0.0, 95.0),
        shaped(100, Method::Erm, 0.0, 93.0),
        shaped(10, Method::ItClassifier, 0.5, 96.0),
        shaped(100, Method::ItClassifier, 0.5, 97.0),
        shaped(100, Method::ItClassifier, 1.0, 90.0),
    ];
    let drawing = figure3(&runs(), &Runs::new(shapes).unwrap(), 0.5, 10).unwrap();
    assert_eq!(drawing.panels.len(), 6);
    let m = &drawing.figure.measurements;
    assert_eq!(m["fashion-mnist/100/it-classifier@0.5/classifier/minority-angle"].seeds, [(0, 87.0)]);
    // Validation prefers gamma 1 (mean 0.6 against 0.6: equal, then the smaller gamma), so best is 0.5.
    assert_eq!(m["fashion-mnist/100/it-classifier@best/classifier/minority-angle"].seeds, [(0, 87.0)]);
    assert_eq!(m["fashion-mnist/10/erm/means-centred/majority-angle"].seeds, [(0, 95.0)]);
    let minority = &drawing.panels[1];
    assert_eq!(minority.title, "Minority: classifier rows");
    assert_eq!(minority.references.len(), 3);
    // 1:100: acos(-100/405) = 104.2949 degrees (python: math.degrees(math.acos(-100/405))).
    assert!((minority.references[2].points.last().unwrap().1 - 104.294_9).abs() < 1e-3);
    assert_eq!(drawing.panels[2].references.len(), 2);
}

#[test]
fn what_cannot_be_shown_is_refused() {
    assert_eq!(figure2(&runs(), 7).err().unwrap().to_string(), "inputs.metrics: no tempered run at ratio 7");
}
