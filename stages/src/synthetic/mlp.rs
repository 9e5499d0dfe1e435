//! A network with two hidden ReLU layers of equal width on three inputs (two coordinates and a constant), one output:
//! value, gradient and descent of the log of a weighted, tempered logistic loss. Knows no data.

use super::descent::{Kind, Rate, factors};
use super::linalg::{Matrix, norm, product};
use crate::rng::Stream;

/// Weights: inputs × width, width × width, width × 1.
pub struct Network {
    layers: [Matrix; 3],
}

impl Network {
    /// He's initialisation.
    pub fn new(inputs: usize, width: usize, seed: u64) -> Self {
        let layer = |index: u64, rows: usize, cols: usize| {
            let mut stream = Stream::new(seed, "mlp", 0, index);
            let sd = (2.0 / rows as f64).sqrt();
            Matrix::from_fn(rows, cols, |_, _| sd * stream.normal())
        };
        Self { layers: [layer(0, inputs, width), layer(1, width, width), layer(2, width, 1)] }
    }

    /// One output a row of `x`.
    pub fn outputs(&self, x: &Matrix) -> Vec<f64> {
        let [_, _, out] = self.forward(x);
        out.data
    }

    fn forward(&self, x: &Matrix) -> [Matrix; 3] {
        let relu = |mut m: Matrix| {
            m.data.iter_mut().for_each(|v| *v = v.max(0.0));
            m
        };
        let first = relu(product(x, &self.layers[0]));
        let second = relu(product(&first, &self.layers[1]));
        let out = product(&second, &self.layers[2]);
        [first, second, out]
    }

    /// Gradients of Σ slope_i output_i with respect to the three layers.
    pub fn gradients(&self, x: &Matrix, slope: impl FnOnce(&[f64]) -> Vec<f64>) -> [Matrix; 3] {
        let [first, second, out] = self.forward(x);
        let delta = Matrix { rows: x.rows, cols: 1, data: slope(&out.data) };
        let third = product(&second.transposed(), &delta);
        let back = |delta: &Matrix, layer: &Matrix, at: &Matrix| {
            let mut d = product(delta, &layer.transposed());
            d.data.iter_mut().zip(&at.data).filter(|(_, a)| **a <= 0.0).for_each(|(d, _)| *d = 0.0);
            d
        };
        let delta = back(&delta, &self.layers[2], &second);
        let middle = product(&first.transposed(), &delta);
        let delta = back(&delta, &self.layers[1], &first);
        [product(&x.transposed(), &delta), middle, third]
    }

    /// Descends the log of the loss Σ weights_i log(1 + exp(-scales_i output_i)); a step's length is a falling fraction
    /// of the weights' norm, so that the direction settles whatever the loss.
    pub fn train(&mut self, x: &Matrix, scales: &[f64], weights: &[f64], steps: usize) {
        for step in 0..steps {
            let gradients = self.gradients(x, |out| {
                let margins: Vec<f64> = out.iter().zip(scales).map(|(f, s)| f * s).collect();
                let pull = factors(Kind::Logistic, Rate::Normalised(1.0), &margins, weights);
                pull.iter().zip(scales).map(|(p, s)| p * s).collect()
            });
            let total = |all: &[Matrix; 3]| all.iter().map(|m| norm(&m.data).powi(2)).sum::<f64>().sqrt();
            let slope = total(&gradients);
            if slope == 0.0 {
                return;
            }
            let fraction = 0.02 / (1.0 + step as f64 / 50.0).sqrt();
            let length = fraction * total(&self.layers) / slope;
            for (layer, gradient) in self.layers.iter_mut().zip(&gradients) {
                layer.data.iter_mut().zip(&gradient.data).for_each(|(w, g)| *w += length * g);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_finite_differences() {
        let mut net = Network::new(3, 7, 1);
        let mut stream = Stream::new(2, "x", 0, 0);
        let x = Matrix::from_fn(5, 3, |_, _| stream.normal());
        let slope = [0.3, -1.0, 0.7, 0.1, 2.0];
        let gradients = net.gradients(&x, |_| slope.to_vec());
        let value = |net: &Network| net.outputs(&x).iter().zip(slope).map(|(f, s)| f * s).sum::<f64>();
        for layer in 0..3 {
            for place in 0..net.layers[layer].data.len() {
                let at = net.layers[layer].data[place];
                let mut move_to = |v: f64| {
                    net.layers[layer].data[place] = v;
                    value(&net)
                };
                let slow = (move_to(at + 1e-6) - move_to(at - 1e-6)) / 2e-6;
                move_to(at);
                let fast = gradients[layer].data[place];
                assert!((slow - fast).abs() < 1e-7, "layer {layer}, {place}: {slow} {fast}");
            }
        }
    }
}
