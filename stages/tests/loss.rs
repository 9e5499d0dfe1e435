//! Losses against PyTorch's values, against numbers worked by hand, and against finite differences.

use candle_core::{Device, Tensor, Var};
use serde_json::Value;
use stages::loss::{self, GroupDro};
use stages::method::{Counts, Extras, METHODS, Method, Request, Sampler};

/// By `golden/loss.py`.
fn golden() -> Value {
    serde_json::from_str(include_str!("golden/loss.json")).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(v: &Value) -> T {
    serde_json::from_value(v.clone()).unwrap()
}

fn method(name: &str, gamma: f64, temperatures: Option<&[f64]>, extras: Extras, counts: &Counts) -> Method {
    Method::new(Request { name, gamma, temperatures, extras: &extras }, counts).unwrap()
}

/// The method as golden/loss.py has it.
fn golden_method(name: &str, counts: &Counts) -> Method {
    let mut extras = Extras::default();
    let (mut gamma, mut temperatures) = (0.0, None);
    match name {
        "group-dro" => extras.adjustment = Some(2.0),
        "it-features" | "it-classifier" => gamma = 0.5,
        "it-group" => temperatures = Some([0.01, 1.0].as_slice()),
        "logit-adjustment" => extras.tau = Some(1.5),
        "vs" => (gamma, extras.tau) = (0.3, Some(1.5)),
        "polynomial-tailed" => extras.alpha = Some(2.0),
        _ => {}
    }
    method(name, gamma, temperatures, extras, counts)
}

fn counts(g: &Value) -> Counts {
    Counts { class: numbers(&g["counts"]), group: numbers(&g["group_counts"]) }
}

/// Logits, labels and groups of the golden file, for a method.
fn batch(g: &Value, name: &str) -> (Vec<Vec<f64>>, Vec<u32>, Vec<u32>) {
    let two = if name == "polynomial-tailed" { "two_" } else { "" };
    (numbers(&g[format!("{two}logits")]), numbers(&g[format!("{two}labels")]), numbers(&g["groups"]))
}

fn cases(g: &Value) -> Vec<(String, f64, Vec<Vec<f64>>)> {
    let all = g["losses"].as_object().unwrap();
    all.iter().map(|(name, c)| (name.clone(), c["loss"].as_f64().unwrap(), numbers(&c["gradient"]))).collect()
}

fn tensor(rows: &[Vec<f64>], dtype: candle_core::DType) -> Tensor {
    let flat: Vec<f64> = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn equal_to_pytorch_in_float32() {
    let g = golden();
    for (name, expected, gradient) in cases(&g) {
        let (logits, labels, groups) = batch(&g, &name);
        let z = Var::from_tensor(&tensor(&logits, candle_core::DType::F32)).unwrap();
        let loss = golden_method(&name, &counts(&g)).loss(z.as_tensor(), &labels, &groups).unwrap();
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{name}: {got} {expected}");
        let grads = loss.backward().unwrap();
        let got = grads.get(&z).unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let pairs = || got.iter().flatten().zip(gradient.iter().flatten());
        let off = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let size = gradient.iter().flatten().map(|b| b * b).sum::<f64>().sqrt();
        assert!(off <= 1e-5 * size, "{name}: gradient off by {off} of {size}");
    }
    let covered: Vec<String> = cases(&g).into_iter().map(|c| c.0).collect();
    for name in METHODS.iter().filter(|&&n| n != "iw-resampled") {
        assert!(covered.iter().any(|c| c == name), "{name} is not in the golden file");
    }
}

// Central differences of h = 1e-6 in float64.
#[test]
fn gradients_are_those_of_finite_differences() {
    let g = golden();
    for (name, _, _) in cases(&g) {
        let (logits, labels, groups) = batch(&g, &name);
        let value = |rows: &[Vec<f64>]| -> f64 {
            let z = tensor(rows, candle_core::DType::F64);
            let loss = golden_method(&name, &counts(&g)).loss(&z, &labels, &groups).unwrap();
            loss.to_scalar().unwrap()
        };
        let z = Var::from_tensor(&tensor(&logits, candle_core::DType::F64)).unwrap();
        let mut m = golden_method(&name, &counts(&g));
        let grads = m.loss(z.as_tensor(), &labels, &groups).unwrap().backward().unwrap();
        let got = grads.get(&z).unwrap().to_vec2::<f64>().unwrap();
        // Group DRO's weights are held fixed in its gradient, so they are held fixed here too.
        let frozen = m.state().to_vec();
        for i in 0..logits.len() {
            for k in 0..logits[i].len() {
                let h = 1e-6;
                let moved = |by: f64| {
                    let mut rows = logits.clone();
                    rows[i][k] += by;
                    if frozen.is_empty() { value(&rows) } else { dro_value(&rows, &labels, &groups, &frozen) }
                };
                let slope = (moved(h) - moved(-h)) / (2.0 * h);
                assert!(
                    (slope - got[i][k]).abs() < 1e-6 * (1.0 + slope.abs()),
                    "{name}: {slope} {}",
                    got[i][k]
                );
            }
        }
    }
}

/// Σ q_g L_g at given weights.
fn dro_value(rows: &[Vec<f64>], labels: &[u32], groups: &[u32], q: &[f64]) -> f64 {
    let z = tensor(rows, candle_core::DType::F64);
    let losses = loss::cross_entropy(&z, labels).unwrap().to_vec1::<f64>().unwrap();
    (0..q.len())
        .map(|g| {
            let own: Vec<f64> =
                losses.iter().zip(groups).filter(|(_, h)| **h as usize == g).map(|(l, _)| *l).collect();
            q[g] * own.iter().sum::<f64>() / own.len() as f64
        })
        .sum()
}

// Three examples, two classes that are also the two groups: logits (ln 3, 0), (0, ln 3), (0, 0), labels 0, 0, 1.
// Softmax: (3/4, 1/4), (1/4, 3/4), (1/2, 1/2); CE = ln 4/3, ln 4, ln 2.
#[test]
fn three_examples_by_hand() {
    let l3 = 3f64.ln();
    let z = tensor(&[vec![l3, 0.0], vec![0.0, l3], vec![0.0, 0.0]], candle_core::DType::F64);
    let (labels, n) = ([0, 0, 1], Counts { class: vec![2, 1], group: vec![2, 1] });
    let (a, b, c) = ((4.0f64 / 3.0).ln(), 4f64.ln(), 2f64.ln());
    let value = |name: &str, gamma: f64, temperatures: Option<&[f64]>, extras: Extras| -> f64 {
        let mut m = method(name, gamma, temperatures, extras, &n);
        m.loss(&z, &labels, &labels).unwrap().to_scalar().unwrap()
    };
    let none = Extras::default;
    let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
    near(value("erm", 0.0, None, none()), (a + b + c) / 3.0);
    near(value("iw-resampled", 0.0, None, none()), (a + b + c) / 3.0);
    // w_0 = 3 / (2 * 2), w_1 = 3 / (2 * 1).
    near(value("iw", 0.0, None, none()), (0.75 * a + 0.75 * b + 1.5 * c) / 3.0);
    // L_0 = (a + b) / 2, L_1 = c.
    let (l0, l1) = ((a + b) / 2.0, c);
    let (q0, q1) = ((0.01 * l0).exp(), (0.01 * l1).exp());
    near(value("group-dro", 0.0, None, none()), (q0 * l0 + q1 * l1) / (q0 + q1));
    // gamma 1: T = (1, 2). The third example's logits are 0 whatever they are divided by.
    near(value("it-features", 1.0, None, none()), (a + b + c) / 3.0);
    // T = (1/2, 1): the first two examples' logits are doubled: p = 9/10 and 1/10.
    near(value("it-group", 0.0, Some(&[0.5, 1.0]), none()), ((10.0f64 / 9.0).ln() + 10f64.ln() + c) / 3.0);
    // T = (1, 2): the second column is halved: p of the second example is 1 / (1 + √3).
    near(value("it-classifier", 1.0, None, none()), (a + (1.0 + 3f64.sqrt()).ln() + c) / 3.0);
    // The prior (2/3, 1/3) doubles the first column's odds: 6:1, 2:3, 2:1.
    let adjusted = ((7.0f64 / 6.0).ln() + 2.5f64.ln() + 3f64.ln()) / 3.0;
    near(value("logit-adjustment", 0.0, None, none()), adjusted);
    // Odds 2 * 3 : 1, 2 : √3, 2 : 1.
    let vs = ((7.0f64 / 6.0).ln() + (1.0 + 3f64.sqrt() / 2.0).ln() + 3f64.ln()) / 3.0;
    near(value("vs", 1.0, None, none()), vs);
    let focal = (a / 16.0 + b * 9.0 / 16.0 + c / 4.0) / 3.0;
    near(value("focal", 0.0, None, none()), focal);
    near(value("focal", 0.0, None, Extras { focus: Some(0.0), ..none() }), (a + b + c) / 3.0);
    // Margins ln 3 > 1 (tail: 1 / m), -ln 3 and 0 (logistic: CE over ln(1 + 1/e)).
    let edge = (1.0 + (-1f64).exp()).ln();
    near(value("polynomial-tailed", 0.0, None, none()), (1.0 / l3 + b / edge + c / edge) / 3.0);
    // Margins (0.5 (1/2)^(1/4), 0.5), scale 1.
    let m0 = 0.5 * 0.5f64.powf(0.25);
    let taken = |m: f64, own: f64, other: f64| (1.0 + (other - own + m).exp()).ln();
    let ldam = (taken(m0, l3, 0.0) + taken(m0, 0.0, l3) + taken(0.5, 0.0, 0.0)) / 3.0;
    near(value("ldam", 0.0, None, Extras { scale: Some(1.0), ..none() }), ldam);
}

#[test]
fn group_dro_over_five_steps() {
    let g = golden();
    let (logits, labels, groups) = batch(&g, "group-dro");
    let mut dro = GroupDro::new(&counts(&g).group, 0.01, 2.0).unwrap();
    for (step, expected) in g["group_dro_steps"].as_array().unwrap().iter().enumerate() {
        let z = (tensor(&logits, candle_core::DType::F64) * (step + 1) as f64).unwrap();
        let losses = loss::cross_entropy(&z, &labels).unwrap();
        let value: f64 = dro.loss(&losses, &groups).unwrap().to_scalar().unwrap();
        assert!((value - expected["loss"].as_f64().unwrap()).abs() < 1e-12);
        for (a, b) in dro.weights.iter().zip(numbers::<Vec<f64>>(&expected["weights"])) {
            assert!((a - b).abs() < 1e-14);
        }
    }
}

// By hand: one group always loses ln 2, the other is absent from the batch: q = (e^{0.01 t ln 2}, 1) normalised.
#[test]
fn group_dro_with_an_absent_group() {
    let losses = Tensor::new(&[2f64.ln()], &Device::Cpu).unwrap();
    let mut dro = GroupDro::new(&[3, 1], 0.01, 0.0).unwrap();
    for step in 1..=5 {
        let value: f64 = dro.loss(&losses, &[0]).unwrap().to_scalar().unwrap();
        let q = 2f64.powf(0.01 * f64::from(step));
        assert!((dro.weights[0] - q / (q + 1.0)).abs() < 1e-14);
        assert!((value - q / (q + 1.0) * 2f64.ln()).abs() < 1e-14);
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let g = golden();
    for (name, _, _) in cases(&g) {
        let (logits, labels, groups) = batch(&g, &name);
        let scaled = (tensor(&logits, candle_core::DType::F32) * 1e3).unwrap();
        let z = Var::from_tensor(&scaled).unwrap();
        let loss = golden_method(&name, &counts(&g)).loss(z.as_tensor(), &labels, &groups).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{name}");
        let grads = loss.backward().unwrap();
        let sum = grads.get(&z).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{name}");
    }
}

// For two classes the polynomial-tailed loss is a function of z_y - z_other; for more, its logistic side is CE.
#[test]
fn polynomial_tail_below_its_edge_is_scaled_cross_entropy() {
    let z = tensor(&[vec![0.3, 0.1, 0.2], vec![-1.0, 2.0, 0.5]], candle_core::DType::F64);
    let tail = loss::polynomial_tailed(&z, &[0, 0], 1.0, 1.0).unwrap().to_vec1::<f64>().unwrap();
    let ce = loss::cross_entropy(&z, &[0, 0]).unwrap().to_vec1::<f64>().unwrap();
    for (t, c) in tail.iter().zip(ce) {
        assert!((t - c / (1.0 + (-1f64).exp()).ln()).abs() < 1e-12);
    }
}

#[test]
fn temperatures_and_samplers() {
    assert_eq!(loss::temperatures(&[100, 100, 1], 0.5).unwrap(), [1.0, 1.0, 10.0]);
    let n = Counts { class: vec![3, 3], group: vec![4, 0, 1, 1] };
    let resampled = Counts { class: vec![3, 3], group: vec![3, 3] };
    let m = method("iw-resampled", 0.0, None, Extras::default(), &resampled);
    assert_eq!(m.sampler, Sampler::Resampled(vec![1.0, 1.0]));
    let error = |name: &str, gamma: f64, t: Option<&[f64]>, extras: Extras, n: &Counts| -> String {
        Method::new(Request { name, gamma, temperatures: t, extras: &extras }, n).unwrap_err().to_string()
    };
    let none = Extras::default;
    assert_eq!(
        error("it-features", 0.5, None, none(), &Counts { class: vec![3, 0], group: vec![3, 0] }),
        "temperatures: groups [1] have no training example, so (n_max / n)^gamma has no value\n\
         hint: leave the class out, take more rows per class, or give `temperatures` by hand"
    );
    assert_eq!(
        error("it-classifier", 0.0, Some(&[1.0, 0.0]), none(), &n),
        "temperatures[1]: 0: a temperature divides logits and must be finite and above 0\n\
         hint: the paper's section 3 factor is 1/T; give T"
    );
    assert_eq!(
        error("it-feature", 0.5, None, none(), &n),
        "method: `it-feature` is unknown; did you mean `it-features`?"
    );
    assert!(
        error("sharpness", 0.5, None, none(), &n)
            .starts_with("method: `sharpness` is unknown; one of: erm, iw")
    );
    assert_eq!(error("erm", 0.5, None, none(), &n), "gamma: 0.5: method erm has no temperature; leave it 0");
    assert_eq!(
        error("erm", 0.0, None, Extras { tau: Some(1.0), ..none() }, &n),
        "extras.tau: method erm has no such param"
    );
    assert!(error("iw", 0.0, None, none(), &n).starts_with("group 1: has no training example"));
    assert!(error("it-features", f64::NAN, None, none(), &n).starts_with("gamma: NaN"));
    assert_eq!(error("it-group", 0.0, Some(&[1.0]), none(), &n), "temperatures: 1 values for 4 groups");
}

/// By how much the margins of two examples, one of each class and on axes of their own, grow while the loss of a linear
/// model without bias falls from 1e-7 to 1e-14. Loss-normalised gradient descent in float64: a constant rate would
/// converge as 1 / log t.
fn toy_growth(name: &str, temperatures: Option<&[f64]>) -> (f64, f64) {
    let n = Counts { class: vec![9, 1], group: vec![9, 1] };
    let mut m = method(name, 0.0, temperatures, Extras::default(), &n);
    let x = Tensor::new(&[[1.0, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let w = Var::from_tensor(&x.zeros_like().unwrap()).unwrap();
    let mut descend = |to: f64| {
        loop {
            let logits = x.matmul(&w.t().unwrap()).unwrap();
            let loss = m.loss(&logits, &[0, 1], &[0, 1]).unwrap();
            let size: f64 = loss.to_scalar().unwrap();
            if size < to {
                let z = logits.to_vec2::<f64>().unwrap();
                return (z[0][0] - z[0][1], z[1][1] - z[1][0]);
            }
            let gradient = loss.backward().unwrap().remove(w.as_tensor()).unwrap();
            w.set(&(w.as_tensor() - (gradient * (0.5 / size)).unwrap()).unwrap()).unwrap();
        }
    };
    let (half, whole) = (descend(1e-7), descend(1e-14));
    (whole.0 - half.0, whole.1 - half.1)
}

// Theorem 1: the margin of group g grows in proportion to its temperature; importance weights fade.
#[test]
fn margins_on_a_separable_toy() {
    for t in [1.0, 3.0, 10.0] {
        let (common, rare) = toy_growth("it-features", Some(&[1.0, t]));
        assert!((rare / common / t - 1.0).abs() < 0.02, "T = {t}: growth {common} {rare}");
        let same = toy_growth("it-group", Some(&[1.0, t]));
        assert_eq!((common, rare), same, "with one attribute value a group is a class");
    }
    for name in ["iw", "erm"] {
        let (common, rare) = toy_growth(name, None);
        assert!((rare / common - 1.0).abs() < 0.02, "{name}: growth {common} {rare}");
    }
}
