//! Figure 6, one replicate of one panel: the best temperature against the core feature's information or the spurious
//! feature's scale. Knows the two criteria, fixed before any run.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::mixture::{self, Normalisation, Setting, positive};
use super::outcome::{Outcome, word};
use super::sweep::{Draw, Sizes, Solver, choose};
use crate::job::{Checkpointed, Job, bad, progress, read_json, stop_requested, write_json};

/// What the horizontal axis changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Panel {
    /// (core_mean² / core_variance) / (spurious_mean² / spurious_variance), through the core variance.
    Information,
    /// The spurious feature's mean at fixed noise.
    Scale,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// The first word of the quantities.
    name: String,
    panel: Panel,
    values: Vec<f64>,
    setting: Setting,
    n: usize,
    m: usize,
    test: usize,
    validation: usize,
    ridge: f64,
    temperatures: Vec<f64>,
    /// The smallest temperature whose worst-group error is within so many points of the least is "near".
    near: f64,
    seed: u64,
}

/// Runs the stage. Output: `outcome.json`, quantities NAME/x/what.
///
/// Errors: `BadInput` for a value that makes no sense; the solver's.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    positive("ridge", p.ridge)?;
    positive("near", p.near)?;
    mixture::temperatures(&p.temperatures)?;
    for (name, value) in [("m", p.m), ("n", p.n), ("test", p.test), ("validation", p.validation)] {
        if value == 0 {
            return Err(bad(format!("params: {name}: 0, at least 1 is expected")));
        }
    }
    // Points that an interrupted attempt had finished.
    let kept = job.scratch().join("outcome.json");
    let mut out: Outcome = if kept.is_file() { read_json(&kept)? } else { Outcome::new() };
    for (i, x) in p.values.iter().enumerate() {
        positive("values", *x)?;
        if out.quantities.contains_key(&format!("{}/{}/best", p.name, word(*x))) {
            continue;
        }
        if stop_requested() {
            return Err(Checkpointed.into());
        }
        progress(i as u64, p.values.len() as u64, format!("x = {x}"));
        point(&p, *x, &mut out)?;
        write_json(&kept, &out)?;
    }
    for (what, trend) in [("best", "best-trend"), ("near", "near-trend")] {
        let of = |x: &f64| out.quantities.get(&format!("{}/{}/{what}", p.name, word(*x)));
        let points: Vec<(f64, f64)> = p
            .values
            .iter()
            .filter_map(|x| Some((libm::log2(*x), libm::log2(of(x)?.values.first()?.1))))
            .collect();
        if let Some(slope) = slope(&points) {
            out.add(format!("{}/{trend}", p.name), "", p.seed, slope);
        }
    }
    out.write(&job)
}

fn point(p: &Params, x: f64, out: &mut Outcome) -> Result<()> {
    let mut setting = p.setting.clone();
    match p.panel {
        Panel::Information => {
            let spurious = setting.spurious_mean * setting.spurious_mean / setting.spurious_variance;
            setting.core_variance = setting.core_mean * setting.core_mean / (x * spurious);
        }
        Panel::Scale => setting.spurious_mean = x,
    }
    let sizes = Sizes { n: p.n, m: p.m, test: p.test, validation: p.validation, ridge: p.ridge };
    let draw = Draw::new(&setting, &sizes, Normalisation::Feature, p.seed)?;
    let fits = draw.sweep(&p.temperatures, false, Solver::Newton)?;
    let place = format!("{}/{}", p.name, word(x));
    let mut add = |what: &str, unit: &str, v: f64| out.add(format!("{place}/{what}"), unit, p.seed, v);
    let least = fits.iter().map(|f| f.test.worst).fold(f64::INFINITY, f64::min);
    for fit in &fits {
        add(&format!("{}/worst", fit.method), "%", fit.test.worst);
    }
    add("least", "%", least);
    let first = |limit: f64| {
        let found = fits.iter().find(|f| f.test.worst <= limit);
        found.and_then(|f| f.temperature).unwrap_or(1.0)
    };
    add("best", "", first(least));
    add("near", "", first(least + p.near));
    for (name, fit) in choose(&fits) {
        add(name, "", fit.temperature.unwrap_or(1.0));
        add(&format!("{name}-worst"), "%", fit.test.worst);
    }
    Ok(())
}

/// The least-squares slope; `None` for fewer than two different x.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let xx: f64 = points.iter().map(|p| (p.0 - mx) * (p.0 - mx)).sum();
    let xy: f64 = points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum();
    (xx > 0.0).then(|| xy / xx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 3.0)]), None);
    }
}
