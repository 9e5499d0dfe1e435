//! The population model of equation (37): one core scalar x_c | y ~ N(y μ_c, σ_c²), one spurious scalar
//! x_s | a ~ N(a μ_s, σ_s²), and memorising noise so high-dimensional that a margin bought from it costs its square times
//! κ = n / σ_n² (noise variance σ_n²/N per dimension, as in section 4.2). Minority examples have the margin λ = T, majority
//! examples 1. Knows no sample.

use anyhow::Result;
use serde::Deserialize;

use super::mixture::{open, positive};

/// The model's parameters.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Fraction of the majority.
    pub p: f64,
    pub core_mean: f64,
    pub core_sd: f64,
    pub spurious_mean: f64,
    pub spurious_sd: f64,
    /// κ, the price of squared slack.
    pub price: f64,
}

/// Φ.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// The integral of equation (39): E (a - b Z)₊² for a standard normal Z, b >= 0.
pub fn slack(a: f64, b: f64) -> f64 {
    if b <= 0.0 {
        return a.max(0.0) * a.max(0.0);
    }
    let t = a / b;
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    (a * a + b * b) * normal_cdf(t) + a * b * density
}

/// E (a - b Z)₊.
pub fn hinge(a: f64, b: f64) -> f64 {
    if b <= 0.0 {
        return a.max(0.0);
    }
    let t = a / b;
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    a * normal_cdf(t) + b * density
}

/// A separator's two scalars with its norm.
#[derive(Debug, Clone, Copy)]
pub struct Separator {
    pub core: f64,
    pub spurious: f64,
    /// |w|², memorising part and all.
    pub square: f64,
}

impl Model {
    /// Errors: `BadInput` naming the first value that makes no sense.
    pub fn check(&self) -> Result<()> {
        open("p", self.p)?;
        for (name, value) in [
            ("core_mean", self.core_mean),
            ("core_sd", self.core_sd),
            ("spurious_mean", self.spurious_mean),
            ("spurious_sd", self.spurious_sd),
            ("price", self.price),
        ] {
            positive(name, value)?;
        }
        Ok(())
    }

    /// Equation (37): the least |w|² of a separator with these two scalars.
    pub fn square(&self, core: f64, spurious: f64, lambda: f64) -> f64 {
        let sd = libm::hypot(core * self.core_sd, spurious * self.spurious_sd);
        let (c, s) = (core * self.core_mean, spurious * self.spurious_mean);
        let slack = self.p * slack(1.0 - c - s, sd) + (1.0 - self.p) * slack(lambda - c + s, sd);
        core * core + spurious * spurious + self.price * slack
    }

    /// The separator that uses the core feature alone (38).
    pub fn core(&self, lambda: f64) -> Separator {
        let (core, square) = golden((0.0, self.reach(lambda)), |w| self.square(w, 0.0, lambda));
        Separator { core, spurious: 0.0, square }
    }

    /// The separator that uses the spurious feature alone (41).
    pub fn spurious(&self, lambda: f64) -> Separator {
        let reach = self.reach(lambda);
        let (spurious, square) = golden((-reach, reach), |w| self.square(0.0, w, lambda));
        Separator { core: 0.0, spurious, square }
    }

    /// The best separator with both.
    pub fn both(&self, lambda: f64) -> Separator {
        let reach = self.reach(lambda);
        let inner = |core: f64| golden((-reach, reach), |w| self.square(core, w, lambda));
        let (core, square) = golden((0.0, reach), |core| inner(core).1);
        Separator { core, spurious: inner(core).0, square }
    }

    /// No scalar of an optimum is larger: beyond it |w|² alone passes what w = 0 costs, or the margins are all met.
    fn reach(&self, lambda: f64) -> f64 {
        let zero = self.square(0.0, 0.0, lambda).sqrt();
        let met = 20.0 * f64::max(1.0, lambda) / f64::min(self.core_mean, self.spurious_mean);
        f64::min(zero, met)
    }

    /// Errors of majority and minority, in percent, of new examples: the memorising part does not reach them.
    pub fn errors(&self, w: &Separator) -> (f64, f64) {
        let sd = libm::hypot(w.core * self.core_sd, w.spurious * self.spurious_sd);
        let of = |mean: f64| if sd > 0.0 { 100.0 * normal_cdf(-mean / sd) } else { 50.0 };
        let (c, s) = (w.core * self.core_mean, w.spurious * self.spurious_mean);
        (of(c + s), of(c - s))
    }

    /// The larger of the two.
    pub fn worst(&self, lambda: f64) -> f64 {
        let (majority, minority) = self.errors(&self.both(lambda));
        majority.max(minority)
    }

    /// The λ at which the best separator has no spurious part: where the core separator's pulls balance,
    /// p E(1 - w x)₊ = (1 - p) E(λ - w x)₊. It does not depend on μ_s.
    pub fn balance(&self) -> f64 {
        let pull = |lambda: f64| {
            let w = self.core(lambda).core;
            let (c, sd) = (w * self.core_mean, w * self.core_sd);
            (1.0 - self.p) * hinge(lambda - c, sd) - self.p * hinge(1.0 - c, sd)
        };
        bisect((1e-3, 1e6), pull)
    }
}

/// The minimiser of a convex function on an interval, and its value there.
pub fn golden((mut a, mut b): (f64, f64), f: impl Fn(f64) -> f64) -> (f64, f64) {
    const RATIO: f64 = 0.618_033_988_749_894_9;
    let (mut x, mut y) = (b - RATIO * (b - a), a + RATIO * (b - a));
    let (mut fx, mut fy) = (f(x), f(y));
    for _ in 0..76 {
        if fx <= fy {
            (b, y, fy) = (y, x, fx);
            x = b - RATIO * (b - a);
            fx = f(x);
        } else {
            (a, x, fx) = (x, y, fy);
            y = a + RATIO * (b - a);
            fy = f(y);
        }
    }
    let middle = 0.5 * (a + b);
    (middle, f(middle))
}

/// Where a function that is negative at the left end and positive at the right end changes its sign, on a logarithmic
/// scale; an end where there is no change.
pub fn bisect((mut a, mut b): (f64, f64), f: impl Fn(f64) -> f64) -> f64 {
    if f(a) >= 0.0 {
        return a;
    }
    if f(b) <= 0.0 {
        return b;
    }
    for _ in 0..60 {
        let middle = (a * b).sqrt();
        if f(middle) < 0.0 { a = middle } else { b = middle }
    }
    (a * b).sqrt()
}
