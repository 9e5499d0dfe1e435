//! Optimiser steps from given gradients, against PyTorch's.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use serde::Deserialize;
use stages::optim::{Optimizer, OptimizerParams, clip_scale, global_norm};

type Values = BTreeMap<String, Vec<f32>>;

/// By `golden/optim.py`.
#[derive(Deserialize)]
struct Golden {
    shapes: BTreeMap<String, Vec<usize>>,
    start: Values,
    gradients: Vec<Values>,
    rates: Vec<f64>,
    cases: Vec<Case>,
    norms: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    params: OptimizerParams,
    clip: Option<f64>,
    steps: Vec<Values>,
}

const NAMES: [&str; 2] = ["a.weight", "a.bias"];

impl Golden {
    fn open() -> Golden {
        serde_json::from_str(include_str!("golden/optim.json")).unwrap()
    }

    fn tensors(&self, values: &Values) -> Vec<Tensor> {
        let one = |name: &&str| {
            Tensor::from_vec(values[*name].clone(), self.shapes[*name].clone(), &Device::Cpu).unwrap()
        };
        NAMES.iter().map(one).collect()
    }

    fn variables(&self) -> Vec<(String, Var)> {
        let start = self.tensors(&self.start);
        NAMES.iter().zip(start).map(|(n, t)| (n.to_string(), Var::from_tensor(&t).unwrap())).collect()
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn steps_equal_pytorch() {
    let golden = Golden::open();
    for case in &golden.cases {
        let variables = golden.variables();
        let mut optimizer = Optimizer::new(&case.params, &variables).unwrap();
        for (i, expected) in case.steps.iter().enumerate() {
            let gradients = golden.tensors(&golden.gradients[i]);
            let norm = global_norm(&gradients).unwrap();
            assert!((norm - golden.norms[i]).abs() < 1e-6 * norm);
            let scale = case.clip.map_or(1.0, |most| clip_scale(norm, most));
            optimizer.step(&gradients, golden.rates[i], scale).unwrap();
            for (name, var) in &variables {
                for (got, expected) in values(var).iter().zip(&expected[name]) {
                    let off = (got - expected).abs();
                    assert!(
                        off <= 1e-6 * expected.abs().max(1.0),
                        "{:?} {name}: {got} {expected}",
                        case.params
                    );
                }
            }
        }
    }
}

// A step from a restored state is the step from the state itself, to the bit.
#[test]
fn state_survives() {
    let golden = Golden::open();
    for case in &golden.cases {
        let variables = golden.variables();
        let mut optimizer = Optimizer::new(&case.params, &variables).unwrap();
        optimizer.step(&golden.tensors(&golden.gradients[0]), 0.1, 1.0).unwrap();
        let saved: BTreeMap<String, Tensor> =
            optimizer.state().into_iter().map(|(n, t)| (n, t.copy().unwrap())).collect();
        let copies: Vec<(String, Var)> = variables
            .iter()
            .map(|(n, v)| (n.clone(), Var::from_tensor(&v.as_detached_tensor().copy().unwrap()).unwrap()))
            .collect();
        let mut second = Optimizer::new(&case.params, &copies).unwrap();
        second.restore(optimizer.steps(), |name| Ok(saved[name].clone())).unwrap();
        for gradients in &golden.gradients[1..] {
            optimizer.step(&golden.tensors(gradients), 0.1, 0.5).unwrap();
            second.step(&golden.tensors(gradients), 0.1, 0.5).unwrap();
        }
        for ((name, a), (_, b)) in variables.iter().zip(&copies) {
            assert_eq!(values(a), values(b), "{name}");
        }
    }
}

#[test]
fn gradients_come_in_order_and_a_missing_one_is_named() {
    let golden = Golden::open();
    let variables = golden.variables();
    let optimizer = Optimizer::new(&golden.cases[0].params, &variables).unwrap();
    let loss =
        (variables[0].1.sqr().unwrap().sum_all().unwrap() + variables[1].1.sum_all().unwrap()).unwrap();
    let gradients = optimizer.gradients(&mut loss.backward().unwrap()).unwrap();
    assert_eq!(values(&gradients[1]), [1.0; 3]);
    assert_eq!(values(&gradients[0]), values(&variables[0].1).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    let half = variables[0].1.sum_all().unwrap();
    let error = optimizer.gradients(&mut half.backward().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "gradient: a.bias: the parameter received none");
}

#[test]
fn wrong_params() {
    let golden = Golden::open();
    let error = |text: &str| {
        let params = serde_json::from_str(text).unwrap();
        Optimizer::new(&params, &golden.variables()).err().unwrap().to_string()
    };
    assert_eq!(error(r#"{"name": "sgd", "nesterov": true}"#), "optimizer.nesterov: needs a momentum above 0");
    assert_eq!(error(r#"{"name": "sgd", "momentum": 1}"#), "optimizer.momentum: 1: must be in [0, 1)");
    assert_eq!(
        error(r#"{"name": "adamw", "groups": [{"names": ["norm"]}]}"#),
        "optimizer.groups: [\"norm\"]: no parameter's name contains one of these"
    );
    assert!(serde_json::from_str::<OptimizerParams>(r#"{"name": "sgd", "momentun": 1}"#).is_err());
}

// Long enough for several threads: any number of them gives the same bits.
#[test]
fn threads_do_not_show() {
    let n = 100_000;
    let source: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let var = Var::from_vec(source.clone(), n, &Device::Cpu).unwrap();
            let params = serde_json::from_str(r#"{"name": "adamw"}"#).unwrap();
            let mut optimizer = Optimizer::new(&params, &[("p".into(), var.clone())]).unwrap();
            let gradient = [Tensor::from_vec(source.clone(), n, &Device::Cpu).unwrap()];
            let norm = global_norm(&gradient).unwrap();
            optimizer.step(&gradient, 0.01, clip_scale(norm, 1.0)).unwrap();
            (norm.to_bits(), values(&var))
        })
    };
    assert_eq!(run(1), run(3));
}
