//! The paper's slips that no other stage has numbers for: theorem 3(b)'s centring, remark 5, appendix D.2's scores and the
//! two variances of the noise. Knows the closed forms and the population model; draws nothing.

use anyhow::Result;
use serde::Deserialize;

use super::mixture::{open, positive};
use super::outcome::{Outcome, word};
use super::peeled::{self, Geometry, Placement};
use super::population::{Model, bisect};
use super::separators::{printed_range, sagawa};
use crate::job::{Job, bad};
use crate::theory::degrees;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    classes: u32,
    /// R of the centred features.
    ratios: Vec<f64>,
    /// Majority fractions with Sagawa et al.'s parameters.
    fractions: Vec<f64>,
    /// Of remark 5.
    model: Model,
    /// Means of the core and of the spurious feature that remark 5 varies.
    core_means: Vec<f64>,
    spurious_means: Vec<f64>,
}

/// Runs the stage. Output: `outcome.json`, quantities errata/place/what.
///
/// Errors: `BadInput` for a value that makes no sense; the cone solver's.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    p.model.check()?;
    p.fractions.iter().try_for_each(|f| open("fractions", *f))?;
    for (name, means) in [("core_means", &p.core_means), ("spurious_means", &p.spurious_means)] {
        means.iter().try_for_each(|m| positive(name, *m))?;
    }
    if p.spurious_means.iter().any(|m| *m <= p.model.core_mean)
        || p.core_means.iter().any(|m| *m >= p.model.spurious_mean)
    {
        return Err(bad(
            "params: spurious means above core means are expected: remark 5 is about the easier feature",
        ));
    }
    let mut out = Outcome::new();
    for ratio in &p.ratios {
        centring(p.classes, *ratio, &mut out)?;
    }
    for mean in &p.spurious_means {
        out.add(format!("errata/coefficient/{}", word(*mean)), "", 0, 1e3 * coefficient(&p.model, *mean));
    }
    for mean in &p.core_means {
        let model = Model { core_mean: *mean, ..p.model };
        let low =
            bisect((1e-3, model.p / (1.0 - model.p)), |l| model.spurious(l).square - model.core(l).square);
        out.add(format!("errata/core/{}/low", word(*mean)), "", 0, low);
    }
    p.fractions.iter().for_each(|f| scores(*f, &mut out));
    out.write(&job)
}

/// Angles of the features under IT(H), as they are and after centring.
fn centring(classes: u32, ratio: f64, out: &mut Outcome) -> Result<()> {
    let half = f64::from(classes) / 2.0;
    let features = peeled::solve(classes, ratio, Placement::Features)?.features;
    // Means of the class means, and of all examples: the majority's classes have ratio / (ratio + 1) of those.
    for (name, share) in [("classes", 0.5), ("examples", ratio / (ratio + 1.0))] {
        let place = format!("errata/centred/{}/{name}", word(ratio));
        let [majority, minority, between] = centred(half, &features, share).map(degrees);
        out.add(format!("{place}/majority"), "deg", 0, majority);
        out.add(format!("{place}/minority"), "deg", 0, minority);
        out.add(format!("{place}/between"), "deg", 0, between);
    }
    Ok(())
}

/// Cosines within the majority, within the minority and between them once a mean is taken off that gives the majority's
/// `half` classes the weight `share` together.
fn centred(half: f64, g: &Geometry, share: f64) -> [f64; 3] {
    let (aa, bb, b) = (1.0, g.norms * g.norms, g.norms);
    let (off_a, off_b, ab) = (g.majority, bb * g.minority, b * g.between);
    // Products with the mean c, and |c|².
    let a_c = share / half * (aa + (half - 1.0) * off_a) + (1.0 - share) * ab;
    let b_c = share * ab + (1.0 - share) / half * (bb + (half - 1.0) * off_b);
    let cc = share * a_c + (1.0 - share) * b_c;
    let (a2, b2) = (aa - 2.0 * a_c + cc, bb - 2.0 * b_c + cc);
    [(off_a - 2.0 * a_c + cc) / a2, (off_b - 2.0 * b_c + cc) / b2, (ab - a_c - b_c + cc) / (a2 * b2).sqrt()]
}

/// The coefficient of T² in (42), from deterministic scalars: (1 - p)² (S - C), S and C of a feature's mean μ being
/// 1 / (1 + 1 / (κ μ²)).
fn coefficient(model: &Model, spurious_mean: f64) -> f64 {
    let square = |mean: f64| 1.0 / (1.0 + 1.0 / (model.price * mean * mean));
    (1.0 - model.p) * (1.0 - model.p) * (square(spurious_mean) - square(model.core_mean))
}

/// ERM's errors of both groups, those at the low end of theorem 10's range, and ERM's worst one under either variance of
/// the noise.
fn scores(p: f64, out: &mut Outcome) {
    let model = sagawa(p);
    let name = format!("errata/scores/{}", word(p));
    for (what, lambda) in [("erm", 1.0), ("printed-low", printed_range(p).0)] {
        let (majority, minority) = model.errors(&model.both(lambda));
        out.add(format!("{name}/{what}/majority"), "%", 0, majority);
        out.add(format!("{name}/{what}/minority"), "%", 0, minority);
    }
    // Per dimension σ_n²/N the price of squared slack is n / σ_n², per dimension n σ_n²/N it is 1 / σ_n²; n is 100 / (1 - p).
    let dear = Model { price: model.price * (1.0 - p) / 100.0, ..model };
    out.add(format!("errata/noise/{}/total", word(p)), "%", 0, model.worst(1.0));
    out.add(format!("errata/noise/{}/per-example", word(p)), "%", 0, dear.worst(1.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [f64; 3] = [0.7385620915032681, -0.2044564890093345, -0.16974821538612406];
    const EXAMPLES: [f64; 3] = [-0.2481493717040463, -0.08859435693857513, -0.01382639447262693];

    // python: n = np.linalg.norm; e = np.eye(10) - 0.1; h = e / n(e, axis=1)[:, None]; h[5:] *= 10
    //   for w in (np.full(10, 0.1), np.array([100] * 5 + [1] * 5) / 505):
    //     c = h - w @ h; c /= n(c, axis=1)[:, None]; print(c[0] @ c[1], c[5] @ c[6], c[0] @ c[5])
    #[test]
    fn centring_by_hand() {
        let simplex = -1.0 / 9.0;
        let g = Geometry { majority: simplex, minority: simplex, between: simplex, norms: 10.0 };
        for (share, expected) in [(0.5, CLASSES), (100.0 / 101.0, EXAMPLES)] {
            for (ours, goal) in centred(5.0, &g, share).iter().zip(expected) {
                assert!((ours - goal).abs() < 1e-12, "{share}: {ours} {goal}");
            }
        }
        // Balanced, the mean is 0.
        let g = Geometry { norms: 1.0, ..g };
        centred(5.0, &g, 0.5).iter().for_each(|c| assert!((c - simplex).abs() < 1e-12));
    }
}
