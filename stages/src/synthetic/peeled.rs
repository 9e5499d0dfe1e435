//! Theorem 3: the layer-peeled problems (5), (6), (7) to global optimality, and by cross-entropy with weight decay. K
//! classes, the first half with R examples for each one of the rest. Knows no network.
//!
//! With h̃_k = √n_k h_k the programmes min ½(|W|² + Σ n_k |h_k|²) are nuclear-norm problems in Z = W H̃ (K × K), that is
//! semidefinite programmes in the Gram matrix of [Wᵀ; H̃]. They are invariant under permutations within each half, and
//! convex, so an optimum of that symmetry exists: six numbers. The nuclear norm then falls into |diagonal - off-diagonal|
//! of each half, K/2 - 1 times, and the nuclear norm of a 2 × 2 matrix, which two second-order cones express.

use anyhow::Result;
use clarabel::algebra::CscMatrix;
use clarabel::solver::{DefaultSettingsBuilder, DefaultSolver, IPSolver, SolverStatus, SupportedConeT};
use serde::Deserialize;

use super::lbfgs::{self, Limits};
use super::outcome::{Outcome, word};
use crate::job::{Job, bad, progress};
use crate::rng::Stream;
use crate::theory;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    classes: u32,
    /// R >= 1.
    ratios: Vec<f64>,
    /// Weight decays of the cross-entropy runs.
    decays: Vec<f64>,
    seeds: Vec<u64>,
}

/// The three problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Vanilla,
    Features,
    Classifier,
}

const PLACEMENTS: [(Placement, &str); 3] = [
    (Placement::Vanilla, "vanilla"),
    (Placement::Features, "it-features"),
    (Placement::Classifier, "it-classifier"),
];

/// A matrix that is the same within each pair of halves: diagonal and off-diagonal of the majority's block, the block
/// (majority, minority), the block (minority, majority), diagonal and off-diagonal of the minority's block.
type Blocks = [f64; 6];

/// An optimum of one problem.
#[derive(Debug, Clone)]
pub struct Optimum {
    /// Σ of the singular values of Z.
    pub value: f64,
    /// (primal - dual) / primal.
    pub gap: f64,
    pub rows: Geometry,
    pub features: Geometry,
}

/// Cosines and norms of one kind of vectors.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub majority: f64,
    pub minority: f64,
    pub between: f64,
    /// Norm of a minority vector over that of a majority vector.
    pub norms: f64,
}

/// Solves one problem at λ_k = √n_k, with n = R for the first half and 1 for the rest.
///
/// Errors: K odd or below 4; R below 1; the solver stops short of an optimum.
pub fn solve(classes: u32, ratio: f64, placement: Placement) -> Result<Optimum> {
    check(classes, ratio)?;
    let half = f64::from(classes) / 2.0;
    let root = ratio.sqrt();
    // Variables: the six blocks of Z, u and v for |diagonal - off-diagonal|, t for the 2 × 2 nuclear norm.
    let objective = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, half - 1.0, half - 1.0, 1.0];
    // Rows of A x + s = b, s in a cone; first those with s >= 0.
    let mut rows: Vec<(Vec<(usize, f64)>, f64)> = vec![];
    let (maj, min, into_min, into_maj) = match placement {
        // w_k·h̃_k - w_j·h̃_k >= √n_k
        Placement::Vanilla => (root, 1.0, 1.0, 1.0),
        Placement::Features => (1.0, 1.0, 1.0, 1.0),
        // √n_k w_k·h_k - √n_j w_j·h_k >= 1: w_k·h̃_k - √(n_j/n_k) w_j·h̃_k >= 1
        Placement::Classifier => (1.0, 1.0, 1.0 / root, root),
    };
    rows.push((vec![(0, -1.0), (1, 1.0)], -maj));
    rows.push((vec![(0, -1.0), (3, into_min)], -maj));
    rows.push((vec![(4, -1.0), (5, 1.0)], -min));
    rows.push((vec![(4, -1.0), (2, into_maj)], -min));
    for (at, u) in [(0, 6), (4, 7)] {
        rows.push((vec![(at, 1.0), (at + 1, -1.0), (u, -1.0)], 0.0));
        rows.push((vec![(at, -1.0), (at + 1, 1.0), (u, -1.0)], 0.0));
    }
    let linear = rows.len();
    // The 2 × 2 matrix [[p, q], [r, s]] of the all-ones directions.
    for sign in [1.0, -1.0] {
        rows.push((vec![(8, -1.0)], 0.0));
        let p_s = vec![(0, -1.0), (1, -(half - 1.0)), (4, -sign), (5, -sign * (half - 1.0))];
        rows.push((p_s, 0.0));
        rows.push((vec![(2, -half), (3, sign * half)], 0.0));
    }
    let (mut values, mut columns) = (vec![], vec![vec![]; 9]);
    for (i, (entries, b)) in rows.iter().enumerate() {
        values.push(*b);
        entries.iter().for_each(|(j, v)| columns[*j].push((i, *v)));
    }
    let (mut starts, mut places, mut entries) = (vec![0], vec![], vec![]);
    for column in &columns {
        places.extend(column.iter().map(|(i, _)| *i));
        entries.extend(column.iter().map(|(_, v)| *v));
        starts.push(places.len());
    }
    let a = CscMatrix::new(rows.len(), 9, starts, places, entries);
    let zero = CscMatrix::new(9, 9, vec![0; 10], vec![], vec![]);
    let cones = [
        SupportedConeT::NonnegativeConeT(linear),
        SupportedConeT::SecondOrderConeT(3),
        SupportedConeT::SecondOrderConeT(3),
    ];
    let settings = DefaultSettingsBuilder::default()
        .verbose(false)
        .max_iter(200)
        .tol_gap_abs(1e-13)
        .tol_gap_rel(1e-13)
        .tol_feas(1e-13)
        .build()
        .map_err(|e| anyhow::anyhow!("peeled: settings: {e}"))?;
    let mut solver = DefaultSolver::new(&zero, &objective, &a, &values, &cones, settings)
        .map_err(|e| anyhow::anyhow!("peeled: {e:?}"))?;
    solver.solve();
    let found = &solver.solution;
    let gap = (found.obj_val - found.obj_val_dual).abs() / found.obj_val.abs().max(1e-300);
    let solved = matches!(
        found.status,
        SolverStatus::Solved | SolverStatus::AlmostSolved | SolverStatus::InsufficientProgress
    );
    if !solved || gap.is_nan() || gap > 1e-9 {
        anyhow::bail!("peeled: R = {ratio}: {:?}, with a relative duality gap of {gap:e}", found.status);
    }
    let z: Blocks = [found.x[0], found.x[1], found.x[2], found.x[3], found.x[4], found.x[5]];
    let turned: Blocks = [z[0], z[1], z[3], z[2], z[4], z[5]];
    let mut features = geometry(half, turned);
    // From h̃ back to h.
    features.norms *= root;
    Ok(Optimum { value: found.obj_val, gap, rows: geometry(half, z), features })
}

fn check(classes: u32, ratio: f64) -> Result<()> {
    if classes < 4 || !classes.is_multiple_of(2) {
        return Err(bad(format!("params: classes: {classes}, an even number of at least 4 is expected")));
    }
    if !(ratio >= 1.0 && ratio.is_finite()) {
        return Err(bad(format!("params: ratios: {ratio}, a number of at least 1 is expected")));
    }
    Ok(())
}

/// Of the vectors whose Gram matrix is (Z Zᵀ)^½: the left factors of the balanced factorisation of Z.
fn geometry(half: f64, z: Blocks) -> Geometry {
    let (p, q) = (z[0] + (half - 1.0) * z[1], half * z[2]);
    let (r, s) = (half * z[3], z[4] + (half - 1.0) * z[5]);
    // √ of the 2 × 2 matrix M Mᵀ: (M Mᵀ + |det M| I) / tr, tr² = tr(M Mᵀ) + 2 |det M|.
    let det = (p * s - q * r).abs();
    let trace = (p * p + q * q + r * r + s * s + 2.0 * det).sqrt();
    let (aa, ab, bb) =
        ((p * p + q * q + det) / trace, (p * r + q * s) / trace, (r * r + s * s + det) / trace);
    let (a, b) = ((z[0] - z[1]).abs(), (z[4] - z[5]).abs());
    let diagonal = |ones: f64, rest: f64| ones / half + rest * (1.0 - 1.0 / half);
    let beside = |ones: f64, rest: f64| (ones - rest) / half;
    let (wa, wb) = (diagonal(aa, a), diagonal(bb, b));
    Geometry {
        majority: beside(aa, a) / wa,
        minority: beside(bb, b) / wb,
        between: ab / half / (wa * wb).sqrt(),
        norms: (wb / wa).sqrt(),
    }
}

/// Averages over pairs of K vectors of any kind, one a row of `v`.
fn measure(k: usize, d: usize, v: &[f64]) -> Geometry {
    let half = k / 2;
    let row = |i: usize| &v[i * d..(i + 1) * d];
    let dot = |i: usize, j: usize| super::linalg::dot(row(i), row(j));
    let average = |pairs: Vec<(usize, usize)>| {
        let n = pairs.len() as f64;
        pairs.iter().map(|(i, j)| dot(*i, *j) / (dot(*i, *i) * dot(*j, *j)).sqrt()).sum::<f64>() / n
    };
    let within = |from: usize, to: usize| {
        average((from..to).flat_map(|i| (from..i).map(move |j| (i, j))).collect::<Vec<_>>())
    };
    let norm = |from: usize, to: usize| (from..to).map(|i| dot(i, i).sqrt()).sum::<f64>() / half as f64;
    Geometry {
        majority: within(0, half),
        minority: within(half, k),
        between: average((0..half).flat_map(|i| (half..k).map(move |j| (i, j))).collect()),
        norms: norm(half, k) / norm(0, half),
    }
}

/// Cross-entropy Σ n_k CE / Σ n_k + (decay/2)(|W|² + |H̃|²) from a random start, d = K: geometry of rows and features.
pub fn cross_entropy(
    classes: u32,
    ratio: f64,
    placement: Placement,
    decay: f64,
    seed: u64,
) -> Result<(Geometry, Geometry, lbfgs::Minimum)> {
    check(classes, ratio)?;
    super::mixture::positive("decays", decay)?;
    let k = classes as usize;
    let n: Vec<f64> = (0..k).map(|i| if i < k / 2 { ratio } else { 1.0 }).collect();
    let total: f64 = n.iter().sum();
    let mut stream = Stream::new(seed, "layer-peeled", 0, 0);
    let start: Vec<f64> = (0..2 * k * k).map(|_| stream.normal() / k as f64).collect();
    let limits = Limits { gradient: 1e-10 * decay.sqrt(), fall: 0.0, iterations: 400_000 };
    let found = lbfgs::minimise(start, limits, |x, g| {
        let (w, h) = x.split_at(k * k);
        g.iter_mut().zip(x).for_each(|(g, x)| *g = decay * x);
        let mut value = 0.5 * decay * super::linalg::dot(x, x);
        for i in 0..k {
            // Logits of class i's features h = h̃ / √n, tempered.
            let factor = |j: usize| match placement {
                Placement::Vanilla => 1.0 / n[i].sqrt(),
                Placement::Features => 1.0,
                Placement::Classifier => (n[j] / n[i]).sqrt(),
            };
            let hi = &h[i * k..(i + 1) * k];
            let z: Vec<f64> =
                (0..k).map(|j| factor(j) * super::linalg::dot(&w[j * k..(j + 1) * k], hi)).collect();
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| libm::exp(z - top)).sum();
            value += n[i] / total * (top + libm::log(sum) - z[i]);
            for j in 0..k {
                let soft = libm::exp(z[j] - top) / sum - f64::from(u8::from(i == j));
                let pull = n[i] / total * soft * factor(j);
                for c in 0..k {
                    g[j * k + c] += pull * hi[c];
                    g[k * k + i * k + c] += pull * w[j * k + c];
                }
            }
        }
        value
    })?;
    let mut features = measure(k, k, &found.x[k * k..]);
    features.norms *= ratio.sqrt();
    Ok((measure(k, k, &found.x[..k * k]), features, found))
}

/// Runs the stage. Output: `outcome.json`, quantities theorem3/method/R/what.
pub fn run(job: Job) -> Result<()> {
    let p: Params = job.params()?;
    let mut out = Outcome::new();
    let total = (PLACEMENTS.len() * p.ratios.len()) as u64;
    let mut done = 0;
    for (placement, method) in PLACEMENTS {
        for ratio in &p.ratios {
            progress(done, total, format!("{method}, R = {ratio}"));
            done += 1;
            let place = format!("theorem3/{method}/{}", word(*ratio));
            let optimum = solve(p.classes, *ratio, placement)?;
            out.add(format!("{place}/log10-gap"), "", 0, libm::log10(optimum.gap.max(1e-17)));
            record(&mut out, &format!("{place}/w"), 0, &optimum.rows);
            record(&mut out, &format!("{place}/h"), 0, &optimum.features);
            let closed = match placement {
                Placement::Vanilla => None,
                Placement::Features => {
                    let c = theory::simplex(p.classes);
                    Some(theory::Cosines { majority: c, minority: c })
                }
                Placement::Classifier => Some(theory::it_classifier(p.classes, *ratio)),
            };
            if let Some(closed) = closed {
                let off = (closed.majority - optimum.rows.majority)
                    .abs()
                    .max((closed.minority - optimum.rows.minority).abs());
                out.add(format!("{place}/log10-off"), "", 0, libm::log10(off.max(1e-17)));
                out.add(format!("{place}/closed/minority"), "deg", 0, theory::degrees(closed.minority));
                out.add(format!("{place}/closed/majority"), "deg", 0, theory::degrees(closed.majority));
            }
            for decay in &p.decays {
                for seed in &p.seeds {
                    let (rows, features, _) = cross_entropy(p.classes, *ratio, placement, *decay, *seed)?;
                    record(&mut out, &format!("{place}/decay/{}/w", word(*decay)), *seed, &rows);
                    record(&mut out, &format!("{place}/decay/{}/h", word(*decay)), *seed, &features);
                }
            }
        }
    }
    out.write(&job)
}

fn record(out: &mut Outcome, place: &str, seed: u64, g: &Geometry) {
    out.add(format!("{place}/majority"), "deg", seed, theory::degrees(g.majority));
    out.add(format!("{place}/minority"), "deg", seed, theory::degrees(g.minority));
    out.add(format!("{place}/between"), "deg", seed, theory::degrees(g.between));
    out.add(format!("{place}/norms"), "", seed, g.norms);
}
