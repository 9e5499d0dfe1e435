//! The learning rate as a pure function of the step. Knows no optimiser.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How the rate moves over a training: the `schedule` param.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    Constant {
        rate: f64,
        /// Steps over which the rate first rises from 0: step s of n has s / n of it (as in transformers).
        #[serde(default)]
        warmup_steps: u64,
    },
    /// `rate`, and from epoch `milestones[i]` on (so many epochs being finished) `rates[i]`.
    Step {
        rate: f64,
        milestones: Vec<f64>,
        rates: Vec<f64>,
        #[serde(default)]
        warmup_steps: u64,
    },
    /// From `rate` down a straight line that would reach `end` one step after the last.
    Linear {
        rate: f64,
        #[serde(default)]
        end: f64,
        #[serde(default)]
        warmup_steps: u64,
    },
    /// From `rate` to `end` along half a cosine, as PyTorch's CosineAnnealingLR with one tick a step.
    Cosine {
        rate: f64,
        #[serde(default)]
        end: f64,
        #[serde(default)]
        warmup_steps: u64,
    },
}

impl Schedule {
    /// Errors: a rate that is negative or not finite, milestones that do not rise or do not match the rates.
    pub fn check(&self) -> Result<()> {
        let sound = |name: &str, rate: f64| -> Result<()> {
            ensure!(rate.is_finite() && rate >= 0.0, "schedule.{name}: {rate}: must be finite, at least 0");
            Ok(())
        };
        match self {
            Schedule::Constant { rate, .. } => sound("rate", *rate),
            Schedule::Step { rate, milestones, rates, .. } => {
                ensure!(
                    milestones.len() == rates.len(),
                    "schedule: {} milestones for {} rates: each milestone needs its rate",
                    milestones.len(),
                    rates.len()
                );
                ensure!(
                    milestones.iter().all(|m| *m > 0.0) && milestones.windows(2).all(|w| w[0] < w[1]),
                    "schedule.milestones: {milestones:?}: must be above 0 and rise"
                );
                sound("rate", *rate)?;
                rates.iter().try_for_each(|r| sound("rates", *r))
            }
            Schedule::Linear { rate, end, .. } | Schedule::Cosine { rate, end, .. } => {
                sound("rate", *rate)?;
                sound("end", *end)
            }
        }
    }

    /// The rate of a step (the first is 0) of `total`, with `per_epoch` steps an epoch.
    pub fn rate(&self, step: u64, per_epoch: u64, total: u64) -> f64 {
        let (Schedule::Constant { warmup_steps, .. }
        | Schedule::Step { warmup_steps, .. }
        | Schedule::Linear { warmup_steps, .. }
        | Schedule::Cosine { warmup_steps, .. }) = self;
        if step < *warmup_steps {
            let (Schedule::Constant { rate, .. }
            | Schedule::Step { rate, .. }
            | Schedule::Linear { rate, .. }
            | Schedule::Cosine { rate, .. }) = self;
            return rate * step as f64 / *warmup_steps as f64;
        }
        let rest = (step - warmup_steps) as f64 / total.saturating_sub(*warmup_steps).max(1) as f64;
        match self {
            Schedule::Constant { rate, .. } => *rate,
            Schedule::Step { rate, milestones, rates, .. } => {
                let passed = |m: &&f64| step as f64 >= **m * per_epoch as f64;
                match milestones.iter().take_while(passed).count() {
                    0 => *rate,
                    n => rates[n - 1],
                }
            }
            Schedule::Linear { rate, end, .. } => end + (rate - end) * (1.0 - rest),
            Schedule::Cosine { rate, end, .. } => {
                end + (rate - end) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * rest))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Schedule {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn steps_as_appendix_e1() {
        let s = parse(r#"{"name": "step", "rate": 0.1, "milestones": [150, 250], "rates": [1e-3, 1e-5]}"#);
        s.check().unwrap();
        let at = |epoch: u64, i: u64| s.rate(epoch * 7 + i, 7, 400 * 7);
        assert_eq!(
            [at(0, 0), at(149, 6), at(150, 0), at(249, 6), at(250, 0), at(399, 6)],
            [0.1, 0.1, 1e-3, 1e-3, 1e-5, 1e-5]
        );
    }

    // transformers.get_linear_schedule_with_warmup(optimizer, 2, 10) at rate 1; torch CosineAnnealingLR(optimizer, 4, 0.1).
    #[test]
    fn linear_and_cosine() {
        let s = parse(r#"{"name": "linear", "rate": 1, "warmup_steps": 2}"#);
        let got: Vec<f64> = (0..10).map(|i| s.rate(i, 5, 10)).collect();
        assert_eq!(got, [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
        let s = parse(r#"{"name": "cosine", "rate": 1, "end": 0.1}"#);
        for (i, expected) in [1.0, 0.8681980515339464, 0.55, 0.23180194846605367].into_iter().enumerate() {
            assert!((s.rate(i as u64, 5, 4) - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn errors() {
        let error = |text: &str| parse(text).check().unwrap_err().to_string();
        assert_eq!(
            error(r#"{"name": "step", "rate": 0.1, "milestones": [150], "rates": []}"#),
            "schedule: 1 milestones for 0 rates: each milestone needs its rate"
        );
        assert_eq!(
            error(r#"{"name": "constant", "rate": -1}"#),
            "schedule.rate: -1: must be finite, at least 0"
        );
        let typo = serde_json::from_str::<Schedule>(r#"{"name": "constant", "rates": 1}"#);
        assert!(typo.unwrap_err().to_string().contains("unknown field `rates`"));
    }
}
