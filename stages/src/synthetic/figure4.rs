//! Figure 4(a), one replicate at one number of random features: errors of ERM, IW and IT. Knows one fit's sizes.

use anyhow::Result;
use serde::Deserialize;

use super::mixture::{self, Normalisation, Setting, positive};
use super::outcome::Outcome;
use super::sweep::{Draw, Sizes, Solver, record};
use crate::job::{Job, bad, progress};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// The first word of the quantities.
    name: String,
    setting: Setting,
    n: usize,
    m: usize,
    /// Test and validation examples of each group.
    test: usize,
    validation: usize,
    ridge: f64,
    temperatures: Vec<f64>,
    normalisation: Normalisation,
    solver: Solver,
    seed: u64,
}

/// Runs the stage. Output: `outcome.json`, quantities NAME/m/method/what.
///
/// Errors: `BadInput` for a value that makes no sense; the solver's.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    p.setting.check()?;
    positive("ridge", p.ridge)?;
    mixture::temperatures(&p.temperatures)?;
    for (name, value) in [("m", p.m), ("n", p.n), ("test", p.test), ("validation", p.validation)] {
        if value == 0 {
            return Err(bad(format!("params: {name}: 0, at least 1 is expected")));
        }
    }
    let sizes = Sizes { n: p.n, m: p.m, test: p.test, validation: p.validation, ridge: p.ridge };
    progress(0, 2, format!("{} features of {} examples", p.m, p.n));
    let draw = Draw::new(&p.setting, &sizes, p.normalisation, p.seed)?;
    progress(1, 2, "fitting");
    let fits = draw.sweep(&p.temperatures, true, p.solver)?;
    let mut out = Outcome::new();
    record(&mut out, &format!("{}/{}", p.name, p.m), p.seed, &fits);
    // What one Newton step costs: the system's entries and Cholesky's multiplications, in 10^9.
    let small = p.n.min(p.m) as f64;
    let steps: usize = fits.iter().map(|f| f.iterations).sum();
    let assembling = if p.m >= p.n { 0.0 } else { small * small * p.n as f64 };
    let once = if p.m >= p.n { small * small * p.m as f64 / 2.0 } else { 0.0 };
    let work = (once + steps as f64 * (assembling / 2.0 + small * small * small / 6.0)) / 1e9;
    out.add(format!("{}/{}/log10-work", p.name, p.m), "", p.seed, libm::log10(work));
    out.write(&job)
}
