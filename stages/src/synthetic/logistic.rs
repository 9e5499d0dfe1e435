//! Weighted, tempered logistic regression without an intercept, to the optimum: Newton's method in whichever of examples
//! and features there are fewer. Knows matrices; knows no group and no experiment.
//!
//! The objective is F(w) = Σ c_i log(1 + exp(-s_i x_i·w)) + (ridge / 2) |w|²: s_i = y_i / T_i carries label and
//! temperature, c_i the importance weight (1/n where there is none). scikit-learn's C is 1 / (n ridge).

use anyhow::Result;
use rayon::prelude::*;

use super::linalg::{Cholesky, Matrix, dot, gram, norm};
use crate::job::bad;

/// The loss of n examples; features stand elsewhere.
#[derive(Debug, Clone)]
pub struct Loss {
    /// s_i: label (±1) over temperature.
    pub scales: Vec<f64>,
    /// c_i, positive; 0 leaves an example out.
    pub weights: Vec<f64>,
    /// Factor of |w|²/2, positive.
    pub ridge: f64,
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Half the squared Newton decrement, relative to the objective.
    pub decrement: f64,
    /// More than so many steps is an error.
    pub iterations: usize,
}

impl Default for Stop {
    fn default() -> Self {
        Self { decrement: 1e-10, iterations: 200 }
    }
}

/// An optimum.
#[derive(Debug, Clone)]
pub struct Solution {
    /// w, one value a feature.
    pub coefficients: Vec<f64>,
    /// α with w = Xᵀα.
    pub dual: Vec<f64>,
    /// s_i x_i·w.
    pub margins: Vec<f64>,
    pub objective: f64,
    /// Euclidean norm of the gradient with respect to w.
    pub gradient: f64,
    pub iterations: usize,
}

impl Loss {
    /// Errors: lengths differ; a scale or weight is not finite; a weight is negative; the ridge is not positive.
    pub fn check(&self, n: usize) -> Result<()> {
        if n == 0 || self.scales.len() != n || self.weights.len() != n {
            let (s, w) = (self.scales.len(), self.weights.len());
            return Err(bad(format!("logistic: {n} examples, {s} scales, {w} weights")));
        }
        if !(self.ridge > 0.0 && self.ridge.is_finite()) {
            return Err(bad(format!("logistic: ridge: {} is not a positive number", self.ridge)));
        }
        if self.scales.iter().any(|s| !s.is_finite() || *s == 0.0) {
            return Err(bad("logistic: a label over its temperature is zero or not finite"));
        }
        if self.weights.iter().any(|c| !(*c >= 0.0 && c.is_finite())) {
            return Err(bad("logistic: a weight is negative or not finite"));
        }
        Ok(())
    }

    /// Σ c_i log(1 + exp(-s_i f_i)).
    pub fn data(&self, f: &[f64]) -> f64 {
        let one = |((f, s), c): ((&f64, &f64), &f64)| c * softplus(-s * f);
        f.iter().zip(&self.scales).zip(&self.weights).map(one).sum()
    }

    /// -∂/∂f_i of [`Loss::data`].
    pub fn pull(&self, f: &[f64]) -> Vec<f64> {
        let one = |((f, s), c): ((&f64, &f64), &f64)| c * s * sigmoid(-s * f);
        f.iter().zip(&self.scales).zip(&self.weights).map(one).collect()
    }

    /// Square roots of the second derivatives with respect to f.
    fn stiffness(&self, f: &[f64]) -> Vec<f64> {
        let one = |((f, s), c): ((&f64, &f64), &f64)| s.abs() * (c * sigmoid(s * f) * sigmoid(-s * f)).sqrt();
        f.iter().zip(&self.scales).zip(&self.weights).map(one).collect()
    }

    /// Pull over stiffness, without dividing by what may be 0.
    fn ratio(&self, f: &[f64]) -> Vec<f64> {
        let one = |((f, s), c): ((&f64, &f64), &f64)| s.signum() * c.sqrt() * libm::exp(-0.5 * s * f);
        f.iter().zip(&self.scales).zip(&self.weights).map(one).collect()
    }

    /// The minimiser; `examples` is n × m, `kernel` its Gram matrix where m >= n and it is at hand, `start` another
    /// loss's optimum on the same examples to begin at: its margins (m >= n), or its w.
    ///
    /// Errors: see [`Loss::check`]; a singular system; no convergence within the allowed steps.
    pub fn minimise(
        &self,
        examples: &Matrix,
        kernel: Option<&Matrix>,
        start: Option<&Solution>,
        stop: Stop,
    ) -> Result<Solution> {
        self.check(examples.rows)?;
        if examples.cols == 0 {
            return Err(bad("logistic: m = 0: there are no features"));
        }
        if examples.cols >= examples.rows {
            match kernel {
                Some(kernel) => self.in_examples(examples, kernel, start, stop),
                None => self.in_examples(examples, &gram(examples), start, stop),
            }
        } else {
            self.in_features(examples, start, stop)
        }
    }

    /// Newton over w: m × m systems.
    fn in_features(&self, x: &Matrix, start: Option<&Solution>, stop: Stop) -> Result<Solution> {
        let columns = x.transposed();
        let mut w = start.map_or_else(|| vec![0.0; x.cols], |s| s.coefficients.clone());
        let mut f = x.times(&w);
        for iterations in 1..=stop.iterations {
            let stiffness = self.stiffness(&f);
            let mut scaled = columns.clone();
            for row in scaled.data.chunks_exact_mut(x.rows) {
                row.iter_mut().zip(&stiffness).for_each(|(a, s)| *a *= s);
            }
            let mut hessian = gram(&scaled);
            (0..x.cols).for_each(|j| hessian.data[j * x.cols + j] += self.ridge);
            let downhill: Vec<f64> =
                columns.times(&self.pull(&f)).iter().zip(&w).map(|(p, w)| p - self.ridge * w).collect();
            let step = Cholesky::new(hessian)?.solve(&downhill);
            let decrement = dot(&downhill, &step);
            let change = x.times(&step);
            let square = |t: f64| dot(&w, &w) + 2.0 * t * dot(&w, &step) + t * t * dot(&step, &step);
            let (t, value, last) = self.search(&f, &change, &square, decrement, stop)?;
            w.iter_mut().zip(&step).for_each(|(w, d)| *w += t * d);
            f = x.times(&w);
            if !last {
                let stretch = self.stretch(&f, dot(&w, &w));
                w.iter_mut().chain(&mut f).for_each(|v| *v *= stretch);
            }
            if last {
                let pull = self.pull(&f);
                let gradient: Vec<f64> =
                    columns.times(&pull).iter().zip(&w).map(|(p, w)| self.ridge * w - p).collect();
                let dual = pull.iter().map(|p| p / self.ridge).collect();
                let margins = f.iter().zip(&self.scales).map(|(f, s)| f * s).collect();
                return Ok(Solution {
                    coefficients: w,
                    dual,
                    margins,
                    objective: value,
                    gradient: norm(&gradient),
                    iterations,
                });
            }
        }
        Err(self.unfinished(stop))
    }

    /// Newton over α: n × n systems. With D the second derivatives and z = f + pull / D, a step solves
    /// (ridge D⁻¹ + K) α = z, written with √D so that saturated examples (D = 0) do no harm.
    fn in_examples(&self, x: &Matrix, k: &Matrix, start: Option<&Solution>, stop: Stop) -> Result<Solution> {
        // Where every example can have the margin that it wants, temperatures hardly change the margins s f: a step from
        // them leads near the optimum, however far α is.
        let mut alpha = match start {
            None => vec![0.0; k.rows],
            Some(start) => {
                let f: Vec<f64> = start.margins.iter().zip(&self.scales).map(|(u, s)| u / s).collect();
                self.newton(k, &f)?
            }
        };
        let mut f = k.times(&alpha);
        for iterations in 1..=stop.iterations {
            let step: Vec<f64> = self.newton(k, &f)?.iter().zip(&alpha).map(|(new, a)| new - a).collect();
            let change = k.times(&step);
            let downhill: Vec<f64> =
                self.pull(&f).iter().zip(&alpha).map(|(p, a)| p - self.ridge * a).collect();
            let decrement = dot(&downhill, &change);
            let (aa, ad, dd) = (dot(&alpha, &f), dot(&alpha, &change), dot(&step, &change));
            let square = |t: f64| aa + 2.0 * t * ad + t * t * dd;
            let (t, value, last) = self.search(&f, &change, &square, decrement, stop)?;
            alpha.iter_mut().zip(&step).for_each(|(a, d)| *a += t * d);
            f = k.times(&alpha);
            if !last {
                let stretch = self.stretch(&f, dot(&alpha, &f));
                alpha.iter_mut().chain(&mut f).for_each(|v| *v *= stretch);
            }
            if last {
                let slope: Vec<f64> =
                    self.pull(&f).iter().zip(&alpha).map(|(p, a)| self.ridge * a - p).collect();
                return Ok(Solution {
                    margins: f.iter().zip(&self.scales).map(|(f, s)| f * s).collect(),
                    coefficients: x.transposed_times(&alpha),
                    objective: value,
                    gradient: norm(&x.transposed_times(&slope)),
                    dual: alpha,
                    iterations,
                });
            }
        }
        Err(self.unfinished(stop))
    }

    /// The α of a full step from outputs f.
    fn newton(&self, k: &Matrix, f: &[f64]) -> Result<Vec<f64>> {
        let n = k.rows;
        let s = self.stiffness(f);
        let mut system = Matrix::zeros(n, n);
        system.data.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            let lower = row[..=i].iter_mut().zip(k.row(i)).zip(&s);
            lower.for_each(|((b, k), sj)| *b = s[i] * k * sj);
            row[i] += self.ridge;
        });
        let right: Vec<f64> = self.ratio(f).iter().zip(&s).zip(f).map(|((r, s), f)| s * f + r).collect();
        let solved = Cholesky::new(system)?.solve(&right);
        Ok(solved.iter().zip(&s).map(|(v, s)| s * v).collect())
    }

    /// Halves the step until the objective falls enough: step length, objective there, whether this was the last one.
    fn search(
        &self,
        f: &[f64],
        change: &[f64],
        square: &dyn Fn(f64) -> f64,
        decrement: f64,
        stop: Stop,
    ) -> Result<(f64, f64, bool)> {
        let at = |t: f64| {
            let moved: Vec<f64> = f.iter().zip(change).map(|(f, d)| f + t * d).collect();
            self.data(&moved) + 0.5 * self.ridge * square(t)
        };
        let now = at(0.0);
        if !now.is_finite() || !decrement.is_finite() {
            anyhow::bail!("logistic: the objective is not finite");
        }
        let last = decrement <= 2.0 * stop.decrement * now;
        let mut t = 1.0;
        while t > 1e-10 {
            let value = at(t);
            if value <= now - 1e-4 * t * decrement {
                return Ok((t, value, last));
            }
            // At the optimum to rounding: no step falls.
            if last && value <= now * (1.0 + 1e-12) {
                return Ok((t, value, true));
            }
            t *= 0.5;
        }
        if decrement.abs() <= 1e-7 * now {
            return Ok((0.0, now, true));
        }
        anyhow::bail!(
            "logistic: no descent: the Newton decrement is {decrement:e} at an objective of {now:e}"
        )
    }

    /// The factor by which to lengthen w, |w|² being `square`. Where the examples are separated, Newton's method adds about
    /// one to every margin in a step and would take as many steps as the optimum's margins are long.
    fn stretch(&self, f: &[f64], square: f64) -> f64 {
        let at = |s: f64| {
            let longer: Vec<f64> = f.iter().map(|f| s * f).collect();
            self.data(&longer) + 0.5 * self.ridge * s * s * square
        };
        let (mut best, mut value) = (1.0, at(1.0));
        for factor in [1.5, 1.1, 1.02] {
            loop {
                let longer = at(best * factor);
                if longer >= value || best > 1e6 {
                    break;
                }
                (best, value) = (best * factor, longer);
            }
        }
        best
    }

    fn unfinished(&self, stop: Stop) -> anyhow::Error {
        anyhow::anyhow!(
            "logistic: no convergence: {} Newton steps did not bring the decrement below {:e} of the objective",
            stop.iterations,
            stop.decrement
        )
    }
}

/// log(1 + eˣ).
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// 1 / (1 + e⁻ˣ).
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + libm::exp(-x))
    } else {
        let e = libm::exp(x);
        e / (1.0 + e)
    }
}
