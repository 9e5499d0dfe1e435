//! Small-sample statistics: means, Student's t intervals, paired differences, how many seeds are still missing. Pure
//! functions of slices; knows no paper and no metric.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The level of every interval of the report.
pub const LEVEL: f64 = 0.95;

/// The most seeds that [`further_seeds`] asks for; beyond it the answer is "no number settles it".
pub const MOST_SEEDS: usize = 1000;

/// Mean and spread of a few values, in their unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Standard deviation with n - 1; `None` for a single value.
    pub sd: Option<f64>,
}

impl Summary {
    /// `None` for no values, or where one of them is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { n, mean, sd })
    }

    /// Half the width of the 95 % t interval of the mean; `None` for a single value.
    pub fn half_width(&self) -> Option<f64> {
        self.half_width_with(0.0)
    }

    /// Half the width of the 95 % t interval of (mean - another draw), where the other's variance is `other` times
    /// this one's: t(n-1) s sqrt(other + 1/n). A single printed number has `other` = 1, a mean of k 1/k, a constant 0.
    pub fn half_width_with(&self, other: f64) -> Option<f64> {
        Some(half_width(self.sd?, self.n, other))
    }
}

fn half_width(sd: f64, n: usize, other: f64) -> f64 {
    t_quantile(n - 1) * sd * (other + 1.0 / n as f64).sqrt()
}

/// Student's t with `df` >= 1 degrees of freedom at the upper 2.5 %.
pub fn t_quantile(df: usize) -> f64 {
    match StudentsT::new(0.0, 1.0, df.max(1) as f64) {
        Ok(t) => t.inverse_cdf(0.5 + LEVEL / 2.0),
        Err(_) => f64::NAN,
    }
}

/// The differences `a - b` of those seeds that both have, in the order of `a`.
pub fn paired(a: &[(u64, f64)], b: &[(u64, f64)]) -> Vec<f64> {
    let other = |seed: u64| b.iter().find(|(s, _)| *s == seed).map(|(_, v)| *v);
    a.iter().filter_map(|(seed, v)| Some(v - other(*seed)?)).collect()
}

/// How many seeds beyond `now.n` until half the interval's width (with `other` as in [`Summary::half_width_with`]) is at
/// most `room`, if mean and spread stay as they are; `None` if no number up to [`MOST_SEEDS`] does.
pub fn further_seeds(now: &Summary, other: f64, room: f64) -> Option<usize> {
    let sd = now.sd?;
    if room <= 0.0 || sd * other.sqrt() * t_quantile(MOST_SEEDS) > room {
        return None;
    }
    (now.n + 1..=MOST_SEEDS).find(|&n| half_width(sd, n, other) <= room).map(|n| n - now.n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    // python: from scipy import stats; [stats.t.ppf(0.975, df) for df in (1, 2, 3, 4, 9, 29, 999)]
    #[test]
    fn t_quantiles_are_scipys() {
        let golden = GOLDEN_T;
        for (df, t) in golden {
            near(t_quantile(df), t, 1e-8 * t);
        }
    }

    const GOLDEN_T: [(usize, f64); 7] = [
        (1, 12.7062047362),
        (2, 4.30265272975),
        (3, 3.18244630528),
        (4, 2.7764451052),
        (9, 2.2621571628),
        (29, 2.04522964213),
        (999, 1.96234146113),
    ];

    // python: x = [64.1, 66.3, 62.0]; scipy.stats.t.interval(0.95, 2, loc=mean(x), scale=scipy.stats.sem(x))
    #[test]
    fn interval_is_scipys() {
        let s = Summary::of(&[64.1, 66.3, 62.0]).unwrap();
        let half = s.half_width().unwrap();
        near(s.mean - half, 58.7919558527, 1e-7);
        near(s.mean + half, 69.4747108139, 1e-7);
    }

    // python: a = [79.0, 77.4, 80.1], b = [70.2, 69.9, 71.5];
    //         scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    #[test]
    fn paired_interval_is_scipys() {
        let a = [(0, 79.0), (1, 77.4), (2, 80.1), (7, 99.0)];
        let b = [(2, 71.5), (0, 70.2), (1, 69.9)];
        let s = Summary::of(&paired(&a, &b)).unwrap();
        let half = s.half_width().unwrap();
        assert_eq!(s.n, 3);
        near(s.mean - half, 6.5611036018, 1e-7);
        near(s.mean + half, 10.0388963982, 1e-7);
    }

    #[test]
    fn one_value_has_no_interval_and_none_no_summary() {
        assert_eq!(Summary::of(&[3.0]).unwrap().half_width(), None);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[2.0, 2.0]).unwrap().half_width(), Some(0.0));
    }

    // By hand: s = 1, room 1, constant reference: t(n-1)/sqrt(n) <= 1 first at n = 7 (2.447/2.646 = 0.925; n = 6:
    // 2.571/2.449 = 1.05). With a printed draw (other = 1) the width never falls below 1.96.
    #[test]
    fn further_seeds_by_hand() {
        let now = Summary { n: 3, mean: 0.0, sd: Some(1.0) };
        assert_eq!(further_seeds(&now, 0.0, 1.0), Some(4));
        assert_eq!(further_seeds(&now, 1.0, 1.9), None);
        // t(n-1) sqrt(1 + 1/n) <= 2.5: n = 8 gives 2.365*1.0607 = 2.508, n = 9 2.306*1.0541 = 2.431.
        assert_eq!(further_seeds(&now, 1.0, 2.5), Some(6));
        assert_eq!(further_seeds(&Summary { n: 1, mean: 0.0, sd: None }, 0.0, 1.0), None);
    }
}
