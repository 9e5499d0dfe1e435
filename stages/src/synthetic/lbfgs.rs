//! Limited-memory BFGS with a line search for the strong Wolfe conditions: for smooth functions of few values, and for
//! showing where a loose tolerance stops. Knows only a function that gives value and gradient.

use anyhow::Result;

use super::linalg::dot;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest absolute value of the gradient.
    pub gradient: f64,
    /// The relative fall of the value in one step; 0: never a reason to stop.
    pub fall: f64,
    /// More than so many steps is an error.
    pub iterations: usize,
}

/// Where it stopped.
#[derive(Debug, Clone)]
pub struct Minimum {
    pub x: Vec<f64>,
    pub value: f64,
    /// The largest absolute value of the gradient there.
    pub gradient: f64,
    pub iterations: usize,
}

/// Pairs of steps and gradient changes that are remembered.
const MEMORY: usize = 10;

/// Minimises from `x`; `f` writes the gradient and returns the value.
///
/// Errors: the value is not finite; too many steps.
pub fn minimise(
    mut x: Vec<f64>,
    limits: Limits,
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Result<Minimum> {
    let n = x.len();
    let mut slope = vec![0.0; n];
    let mut value = f(&x, &mut slope);
    let mut pairs: Vec<(Vec<f64>, Vec<f64>, f64)> = vec![];
    for iterations in 0..=limits.iterations {
        let gradient = slope.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        if !value.is_finite() {
            anyhow::bail!("l-bfgs: step {iterations}: the value is not finite");
        }
        if gradient <= limits.gradient {
            return Ok(Minimum { x, value, gradient, iterations });
        }
        let direction = direction(&slope, &pairs);
        let first = if pairs.is_empty() { 1.0 / dot(&slope, &slope).sqrt().max(1.0) } else { 1.0 };
        let found = wolfe(&x, value, &slope, &direction, first, &mut f);
        let Some((moved, new_value, new_slope)) = found else {
            // No step falls: the optimum to rounding, or a wrong memory.
            if pairs.is_empty() {
                return Ok(Minimum { x, value, gradient, iterations });
            }
            pairs.clear();
            continue;
        };
        let s: Vec<f64> = moved.iter().zip(&x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = new_slope.iter().zip(&slope).map(|(a, b)| a - b).collect();
        let sy = dot(&s, &y);
        if sy > 1e-300 {
            if pairs.len() == MEMORY {
                pairs.remove(0);
            }
            pairs.push((s, y, 1.0 / sy));
        }
        let fall = value - new_value;
        (x, value, slope) = (moved, new_value, new_slope);
        if fall <= limits.fall * value.abs().max(new_value.abs()) && limits.fall > 0.0 {
            let gradient = slope.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            return Ok(Minimum { x, value, gradient, iterations: iterations + 1 });
        }
    }
    anyhow::bail!("l-bfgs: no convergence: {} steps were not enough", limits.iterations)
}

fn direction(slope: &[f64], pairs: &[(Vec<f64>, Vec<f64>, f64)]) -> Vec<f64> {
    let mut q: Vec<f64> = slope.iter().map(|g| -g).collect();
    let mut factors = vec![];
    for (s, y, rho) in pairs.iter().rev() {
        let a = rho * dot(s, &q);
        q.iter_mut().zip(y).for_each(|(q, y)| *q -= a * y);
        factors.push(a);
    }
    if let Some((_, y, rho)) = pairs.last() {
        let scale = 1.0 / (rho * dot(y, y));
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((s, y, rho), a) in pairs.iter().zip(factors.into_iter().rev()) {
        let b = rho * dot(y, &q);
        q.iter_mut().zip(s).for_each(|(q, s)| *q += (a - b) * s);
    }
    q
}

/// A point with the strong Wolfe conditions (1e-4, 0.9), by bisection between brackets.
fn wolfe(
    x: &[f64],
    value: f64,
    slope: &[f64],
    direction: &[f64],
    first: f64,
    f: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Option<(Vec<f64>, f64, Vec<f64>)> {
    let down = dot(slope, direction);
    if down >= 0.0 {
        return None;
    }
    let (mut low, mut high, mut t) = (0.0, f64::INFINITY, first);
    let mut best = None;
    for _ in 0..40 {
        let moved: Vec<f64> = x.iter().zip(direction).map(|(x, d)| x + t * d).collect();
        let mut there = vec![0.0; x.len()];
        let at = f(&moved, &mut there);
        let along = dot(&there, direction);
        if at.is_nan() || at > value + 1e-4 * t * down {
            high = t;
        } else {
            let steep = along < 0.9 * down;
            let beyond = along > -0.9 * down;
            best = Some((moved, at, there));
            match (steep, beyond) {
                (true, _) => low = t,
                (_, true) => high = t,
                _ => return best,
            }
        }
        t = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * t };
    }
    best.filter(|(_, at, _)| *at < value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rosenbrocks_valley() {
        let limits = Limits { gradient: 1e-10, fall: 0.0, iterations: 500 };
        let found = minimise(vec![-1.2, 1.0], limits, |x, g| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            g[0] = -2.0 * a - 400.0 * x[0] * b;
            g[1] = 200.0 * b;
            a * a + 100.0 * b * b
        })
        .unwrap();
        assert!((found.x[0] - 1.0).abs() < 1e-9 && (found.x[1] - 1.0).abs() < 1e-9, "{found:?}");
        let limits = Limits { gradient: 1e-10, fall: 0.0, iterations: 3 };
        let error = minimise(vec![-1.2, 1.0], limits, |x, g| {
            g[0] = 4.0 * x[0].powi(3);
            g[1] = 2.0 * x[1];
            x[0].powi(4) + x[1].powi(2)
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "l-bfgs: no convergence: 3 steps were not enough");
    }
}
