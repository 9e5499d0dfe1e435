//! Theorem 2: the generalisation bound under label shift as a function of f. With margins 1/f[k] and the norm as the
//! complexity, class k's bound is proportional to f[k] / √n_k, Σ f fixed. Knows nothing but this formula.

use anyhow::Result;
use serde::Deserialize;

use super::mixture::positive;
use super::outcome::{Outcome, word};
use super::population::golden;
use crate::job::{Job, bad};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// n_1 / n_2.
    ratios: Vec<f64>,
    /// Shares f_1 / (f_1 + f_2) of the curves.
    shares: Vec<f64>,
}

/// Bounds of the two classes at the share of the larger class, n_2 = 1, f_1 + f_2 = 1.
fn bounds(ratio: f64, share: f64) -> (f64, f64) {
    (share / ratio.sqrt(), 1.0 - share)
}

/// The worst-class bound's minimiser, found by search.
fn worst(ratio: f64) -> f64 {
    golden((0.0, 1.0), |s| {
        let (a, b) = bounds(ratio, s);
        a.max(b)
    })
    .0
}

/// Runs the stage. Output: `outcome.json`, quantities theorem2/R/what.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    let mut out = Outcome::new();
    for ratio in &p.ratios {
        positive("ratios", *ratio)?;
        let place = format!("theorem2/{}", word(*ratio));
        let mut add = |what: &str, unit: &str, v: f64| out.add(format!("{place}/{what}"), unit, 0, v);
        let found = worst(*ratio);
        let rule = ratio.sqrt() / (1.0 + ratio.sqrt());
        add("worst/share", "%", 100.0 * found);
        add("rule/share", "%", 100.0 * rule);
        add("worst/gamma", "", libm::log(found / (1.0 - found)) / libm::log(*ratio));
        // The average is linear in the share: its minimiser is an end.
        let average = |s: f64| 0.5 * (bounds(*ratio, s).0 + bounds(*ratio, s).1);
        add("average/share", "%", if average(1.0) < average(0.0) { 100.0 } else { 0.0 });
        add("average/at-rule", "", average(rule));
        add("average/at-corner", "", average(1.0).min(average(0.0)));
        for s in &p.shares {
            if !(0.0..=1.0).contains(s) {
                return Err(bad(format!("params: shares: {s} does not lie between 0 and 1")));
            }
            let (a, b) = bounds(*ratio, *s);
            add(&format!("share/{}/worst", word(*s)), "", a.max(b));
            add(&format!("share/{}/average", word(*s)), "", average(*s));
        }
    }
    out.write(&job)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_search_finds_the_root_rule() {
        for ratio in [2.0_f64, 10.0, 100.0] {
            let rule = ratio.sqrt() / (1.0 + ratio.sqrt());
            assert!((super::worst(ratio) - rule).abs() < 1e-9);
        }
    }
}
