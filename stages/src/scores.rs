//! What a training is judged by while it runs: errors, losses and margins by group, from raw and tempered logits. Knows
//! numbers; knows no tensor, no model and no file.

use serde::{Deserialize, Serialize};

use crate::metrics::{self, Hits};

/// How many groups there are and which class each belongs to: `g / n_attributes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    pub classes: usize,
    pub n_attributes: usize,
    /// Training examples of each group.
    pub train: Vec<usize>,
}

impl Groups {
    /// Whether each group is a rare one: at most √(most · least) examples, where the counts differ at all.
    fn rare(&self) -> Vec<bool> {
        let present = || self.train.iter().copied().filter(|&n| n > 0);
        let (most, least) = (present().max().unwrap_or(0) as f64, present().min().unwrap_or(0) as f64);
        let bound = if most > least { libm::sqrt(most * least) } else { -1.0 };
        self.train.iter().map(|&n| n as f64 <= bound).collect()
    }
}

/// Counters over a set of examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    n: Vec<u64>,
    correct: Vec<u64>,
    tempered_correct: Vec<u64>,
    loss: Vec<f64>,
    tempered_loss: Vec<f64>,
    margin: Vec<f64>,
    /// The least margin; `None` before the first example.
    least: Vec<Option<f64>>,
}

/// The scores as they are written. Accuracies and errors are fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub n: u64,
    /// Over examples.
    pub average_accuracy: f64,
    /// Group accuracies weighted by the groups' shares of the training set.
    pub adjusted_average_accuracy: f64,
    /// Over groups that have examples.
    pub worst_group_accuracy: f64,
    pub worst_class_accuracy: f64,
    pub per_class: Vec<Hits>,
    pub per_group: Vec<Hits>,
    /// Share of examples whose largest raw logit is not the label's.
    pub error_raw: f64,
    /// The same of the logits that the loss sees.
    pub error_tempered: f64,
    /// Mean cross-entropy of the raw logits.
    pub loss_raw: f64,
    /// Mean cross-entropy of the logits that the loss sees.
    pub loss_tempered: f64,
    pub margins: Margins,
    /// Mean margin over the examples of rare groups divided by that over the other groups' (rare: at most
    /// √(n_max n_min) training examples). `None` where all groups are equally frequent or a side is empty.
    pub margin_ratio: Option<f64>,
}

/// Margins of the raw logits, `z_y - max_{j≠y} z_j`, by group; `None` for a group without examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margins {
    pub mean: Vec<Option<f64>>,
    pub least: Vec<Option<f64>>,
}

impl Scores {
    /// Nothing counted yet, for so many groups.
    pub fn new(groups: usize) -> Scores {
        Scores {
            n: vec![0; groups],
            correct: vec![0; groups],
            tempered_correct: vec![0; groups],
            loss: vec![0.0; groups],
            tempered_loss: vec![0.0; groups],
            margin: vec![0.0; groups],
            least: vec![None; groups],
        }
    }

    /// Counts examples: raw and tempered logits row by row, `classes` to a row.
    pub fn add(&mut self, raw: &[f32], tempered: &[f32], labels: &[u32], groups: &[u32], classes: usize) {
        let rows = raw.chunks_exact(classes).zip(tempered.chunks_exact(classes));
        for ((raw, tempered), (&y, &g)) in rows.zip(labels.iter().zip(groups)) {
            let (y, g) = (y as usize, g as usize);
            let margin = margin(raw, y);
            self.n[g] += 1;
            self.correct[g] += u64::from(is_first_largest(raw, y));
            self.tempered_correct[g] += u64::from(is_first_largest(tempered, y));
            self.loss[g] += cross_entropy(raw, y);
            self.tempered_loss[g] += cross_entropy(tempered, y);
            self.margin[g] += margin;
            self.least[g] = Some(self.least[g].map_or(margin, |least| least.min(margin)));
        }
    }

    /// The figures. Everything is 0 where nothing was counted.
    pub fn summary(&self, groups: &Groups) -> Summary {
        let all: u64 = self.n.iter().sum();
        let share = |part: f64| if all == 0 { 0.0 } else { part / all as f64 };
        let hits = |members: &[usize]| Hits {
            n: members.iter().map(|&g| self.n[g]).sum(),
            correct: members.iter().map(|&g| self.correct[g]).sum(),
        };
        let per_group: Vec<Hits> = (0..self.n.len()).map(|g| hits(&[g])).collect();
        let of_class = |k: usize| -> Vec<usize> {
            (0..groups.n_attributes).map(|a| k * groups.n_attributes + a).collect()
        };
        let per_class: Vec<Hits> = (0..groups.classes).map(|k| hits(&of_class(k))).collect();
        let training: Vec<u64> = groups.train.iter().map(|&n| n as u64).collect();
        let wrong = |correct: &[u64]| share((all - correct.iter().sum::<u64>()) as f64);
        let mean = |g: usize| (self.n[g] > 0).then(|| self.margin[g] / self.n[g] as f64);
        let rare = groups.rare();
        let side = |wanted: bool| -> Option<f64> {
            let members = || (0..self.n.len()).filter(|&g| rare[g] == wanted);
            let n: u64 = members().map(|g| self.n[g]).sum();
            (n > 0).then(|| members().map(|g| self.margin[g]).sum::<f64>() / n as f64)
        };
        let margin_ratio = match (side(true), side(false)) {
            (Some(rare), Some(common)) if common != 0.0 => Some(rare / common),
            _ => None,
        };
        Summary {
            n: all,
            average_accuracy: metrics::average(&per_group).unwrap_or(0.0),
            adjusted_average_accuracy: metrics::adjusted(&per_group, &training).unwrap_or(0.0),
            worst_group_accuracy: metrics::worst(&per_group).unwrap_or(0.0),
            worst_class_accuracy: metrics::worst(&per_class).unwrap_or(0.0),
            per_class,
            per_group,
            error_raw: wrong(&self.correct),
            error_tempered: wrong(&self.tempered_correct),
            loss_raw: share(self.loss.iter().sum()),
            loss_tempered: share(self.tempered_loss.iter().sum()),
            margins: Margins { mean: (0..self.n.len()).map(mean).collect(), least: self.least.clone() },
            margin_ratio,
        }
    }
}

/// Whether place `y` is where argmax finds the largest: no earlier one is as large, no later one larger.
fn is_first_largest(row: &[f32], y: usize) -> bool {
    row[..y].iter().all(|&v| v < row[y]) && row[y + 1..].iter().all(|&v| v <= row[y])
}

fn margin(row: &[f32], y: usize) -> f64 {
    let others = row.iter().enumerate().filter(|(k, _)| *k != y).map(|(_, &v)| f64::from(v));
    f64::from(row[y]) - others.reduce(f64::max).unwrap_or(0.0)
}

fn cross_entropy(row: &[f32], y: usize) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&v| libm::exp(f64::from(v) - top)).sum();
    top + libm::log(sum) - f64::from(row[y])
}

#[cfg(test)]
mod tests {
    use super::*;

    // Two classes with two attributes; groups 0..4 have 8, 1, 2, 2 training examples: √(8 · 1) = 2.83, so all but group 0
    // are rare. Four examples, of groups 0, 0, 1, 3:
    //   label 0, (2, 0) right, margin 2; label 0, (0, 1) wrong, margin -1; label 0, (1, 0) right, margin 1;
    //   label 1, (0, 0): argmax takes the first, wrong, margin 0.
    #[test]
    fn figures_by_hand() {
        let groups = Groups { classes: 2, n_attributes: 2, train: vec![8, 1, 2, 2] };
        let raw = [2.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        let tempered = [2.0, 0.0, 2.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let mut scores = Scores::new(4);
        scores.add(&raw, &tempered, &[0, 0, 0, 1], &[0, 0, 1, 3], 2);
        let s = scores.summary(&groups);
        assert_eq!(s.n, 4);
        assert_eq!(s.average_accuracy, 0.5);
        // Groups 0, 1, 3 have accuracies 1/2, 1, 0 and 8, 1, 2 training examples: (4 + 1 + 0) / 11.
        assert!((s.adjusted_average_accuracy - 5.0 / 11.0).abs() < 1e-15);
        assert_eq!((s.worst_group_accuracy, s.worst_class_accuracy), (0.0, 0.0));
        assert_eq!(s.per_class, [Hits { n: 3, correct: 2 }, Hits { n: 1, correct: 0 }]);
        assert_eq!(s.per_group[2], Hits { n: 0, correct: 0 });
        assert_eq!((s.error_raw, s.error_tempered), (0.5, 0.0));
        assert_eq!(s.margins.mean, [Some(0.5), Some(1.0), None, Some(0.0)]);
        assert_eq!(s.margins.least, [Some(-1.0), Some(1.0), None, Some(0.0)]);
        // Rare: (1 + 0) / 2; common: (2 - 1) / 2.
        assert_eq!(s.margin_ratio, Some(1.0));
        let e = std::f64::consts::E;
        let loss = ((1.0 + (-2f64).exp()).ln() + (1.0 + e).ln() + (1.0 + 1.0 / e).ln() + 2f64.ln()) / 4.0;
        assert!((s.loss_raw - loss).abs() < 1e-12);
    }

    #[test]
    fn equal_groups_have_no_rare_side() {
        let groups = Groups { classes: 2, n_attributes: 1, train: vec![3, 3] };
        let mut scores = Scores::new(2);
        scores.add(&[1.0, 0.0], &[1.0, 0.0], &[0], &[0], 2);
        assert_eq!(scores.summary(&groups).margin_ratio, None);
        assert_eq!(Scores::new(2).summary(&groups).average_accuracy, 0.0);
    }
}
