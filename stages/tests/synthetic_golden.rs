//! The theory's numerics against SciPy, scikit-learn and CVXPY: values and programs in `golden/theory.{json,py}`.

use serde_json::Value;
use stages::synthetic::linalg::{Matrix, dot, norm};
use stages::synthetic::logistic::{Loss, Stop};
use stages::synthetic::nonneg::separator;
use stages::synthetic::peeled::{self, Placement};
use stages::synthetic::population::{Model, hinge, slack};
use stages::theory;

fn golden(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("golden/theory.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap()
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(number).collect()
}

fn matrix(v: &Value) -> Matrix {
    let rows: Vec<Vec<f64>> = v.as_array().unwrap().iter().map(numbers).collect();
    Matrix::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j])
}

#[test]
fn separators_are_cvxpys() {
    for one in golden("separators") {
        let (w, optimum) =
            separator(&matrix(&one["x"]), &numbers(&one["y"]), &numbers(&one["margins"])).unwrap();
        let goal = numbers(&one["w"]);
        let cosine = dot(&w, &goal) / (norm(&w) * norm(&goal));
        assert!(1.0 - cosine < 1e-10, "1 - cosine {:e}", 1.0 - cosine);
        assert!((norm(&w) / norm(&goal) - 1.0).abs() < 1e-6);
        assert!(optimum.gap.abs() < 1e-6 && optimum.violation < 1e-8, "{optimum:?}");
    }
}

#[test]
fn logistic_weights_are_scikit_learns() {
    for one in golden("logistic") {
        let x = matrix(&one["x"]);
        let loss = Loss {
            scales: numbers(&one["scales"]),
            weights: numbers(&one["weights"]),
            ridge: number(&one["ridge"]),
        };
        let found = loss.minimise(&x, None, None, Stop::default()).unwrap();
        for (w, goal) in found.coefficients.iter().zip(numbers(&one["w"])) {
            assert!((w - goal).abs() < 1e-6, "{} × {}: {w} {goal}", x.rows, x.cols);
        }
    }
}

#[test]
fn the_objective_at_1e_9_is_scipys() {
    for one in golden("objective") {
        let x = matrix(&one["x"]);
        let n = x.rows;
        let scales = numbers(&one["scales"]);
        let loss = Loss { scales, weights: vec![1.0 / n as f64; n], ridge: number(&one["ridge"]) };
        let found = loss.minimise(&x, None, None, Stop::default()).unwrap();
        let goal = number(&one["value"]);
        assert!((found.objective / goal - 1.0).abs() < 1e-8, "{} {goal}", found.objective);
        assert!(found.gradient < 1e-10, "{} × {}: gradient {:e}", n, x.cols, found.gradient);
    }
}

#[test]
fn both_sides_of_m_equal_n_agree() {
    // The dual form on more features than examples against the primal form on the same data, padded with no examples.
    let one = &golden("logistic")[1];
    let x = matrix(&one["x"]);
    let extra = x.cols + 5;
    let wide = Loss { scales: numbers(&one["scales"]), weights: numbers(&one["weights"]), ridge: 1e-4 };
    let padded = Matrix::from_fn(extra, x.cols, |i, j| if i < x.rows { x.row(i)[j] } else { 0.0 });
    let mut tall = wide.clone();
    tall.scales.resize(extra, 1.0);
    tall.weights.resize(extra, 0.0);
    let a = wide.minimise(&x, None, None, Stop::default()).unwrap();
    let b = tall.minimise(&padded, None, None, Stop::default()).unwrap();
    for (p, q) in a.coefficients.iter().zip(&b.coefficients) {
        assert!((p - q).abs() < 1e-7, "{p} {q}");
    }
}

#[test]
fn layer_peeled_optima_are_those_of_the_semidefinite_programmes() {
    for one in golden("peeled") {
        let placement = match one["placement"].as_str().unwrap() {
            "vanilla" => Placement::Vanilla,
            "it-features" => Placement::Features,
            _ => Placement::Classifier,
        };
        let ratio = number(&one["ratio"]);
        let found = peeled::solve(10, ratio, placement).unwrap();
        let near = |what: &str, ours: f64, tolerance: f64| {
            let goal = number(&one[what]);
            assert!((ours - goal).abs() < tolerance, "{placement:?} {ratio} {what}: {ours} {goal}");
        };
        // CVXPY's own optimum of the 20 × 20 programme is good to about 1e-5 at R = 10,000.
        let tolerance = if ratio <= 100.0 { 1e-6 } else { 1e-4 };
        near("value", found.value, tolerance * number(&one["value"]));
        near("majority", found.rows.majority, tolerance);
        near("minority", found.rows.minority, tolerance);
        near("between", found.rows.between, tolerance);
        near("norms", found.rows.norms, tolerance);
        near("features_minority", found.features.minority, tolerance);
        assert!(found.gap < 1e-9);
        let closed = match placement {
            Placement::Vanilla => continue,
            Placement::Features => {
                theory::Cosines { majority: theory::simplex(10), minority: theory::simplex(10) }
            }
            Placement::Classifier => theory::it_classifier(10, ratio),
        };
        assert!((found.rows.majority - closed.majority).abs() < tolerance);
        assert!((found.rows.minority - closed.minority).abs() < tolerance);
    }
}

#[test]
fn gaussian_integrals_are_scipys() {
    for one in golden("integrals") {
        let (a, b) = (number(&one["a"]), number(&one["b"]));
        assert!((slack(a, b) - number(&one["square"])).abs() < 1e-12);
        assert!((hinge(a, b) - number(&one["first"])).abs() < 1e-12);
    }
}

#[test]
fn population_optima_are_scipys() {
    for one in golden("population") {
        let model = Model {
            p: number(&one["p"]),
            core_mean: 1.0,
            core_sd: 1.0,
            spurious_mean: 2.0,
            spurious_sd: 0.2,
            price: number(&one["price"]),
        };
        let found = model.both(number(&one["lambda"]));
        assert!((found.square / number(&one["square"]) - 1.0).abs() < 1e-10, "{found:?}");
        assert!((found.core - number(&one["core"])).abs() < 1e-5, "{found:?}");
        assert!((found.spurious - number(&one["spurious"])).abs() < 1e-5, "{found:?}");
    }
}
