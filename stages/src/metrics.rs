//! How good predictions are: counts by group and the figures made of them. Pure functions of slices; knows no file, no
//! tensor and no model.

use serde::{Deserialize, Serialize};

/// Right predictions among the examples of a class or group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hits {
    /// Examples.
    pub n: u64,
    /// Of them predicted right.
    pub correct: u64,
}

impl Hits {
    /// The share predicted right, in 0..=1; `None` without examples.
    pub fn accuracy(self) -> Option<f64> {
        (self.n > 0).then(|| self.correct as f64 / self.n as f64)
    }
}

/// The class with the largest logit of each row of `classes` logits; the first of equals, as PyTorch's `argmax`.
/// `None`: a row has a logit that is not a number.
pub fn predictions(logits: &[f32], classes: usize) -> Option<Vec<u32>> {
    let rows = logits.chunks_exact(classes);
    rows.map(|row| {
        let mut best = 0;
        for (k, &value) in row.iter().enumerate() {
            if value.is_nan() {
                return None;
            }
            if value > row[best] {
                best = k;
            }
        }
        Some(best as u32)
    })
    .collect()
}

/// Counts right predictions by group. `groups` gives the group of each example, below `n_groups`.
pub fn hits(predicted: &[u32], labels: &[u32], groups: &[u32], n_groups: usize) -> Vec<Hits> {
    let mut all = vec![Hits::default(); n_groups];
    for ((p, y), &g) in predicted.iter().zip(labels).zip(groups) {
        let group = &mut all[g as usize];
        group.n += 1;
        group.correct += u64::from(p == y);
    }
    all
}

/// The share of all examples that is predicted right.
pub fn average(groups: &[Hits]) -> Option<f64> {
    let sum = |f: fn(&Hits) -> u64| groups.iter().map(f).sum();
    Hits { n: sum(|h| h.n), correct: sum(|h| h.correct) }.accuracy()
}

/// The plain mean of the accuracies of the groups that have examples.
pub fn balanced(groups: &[Hits]) -> Option<f64> {
    let present: Vec<f64> = groups.iter().filter_map(|h| h.accuracy()).collect();
    (!present.is_empty()).then(|| present.iter().sum::<f64>() / present.len() as f64)
}

/// The mean of group accuracies weighted by the groups' numbers of *training* examples (Sagawa et al. 2020; WILDS'
/// `adj_acc_avg`): the average accuracy on data distributed as the training set. Groups without examples are left out.
pub fn adjusted(groups: &[Hits], training: &[u64]) -> Option<f64> {
    let (mut sum, mut weight) = (0.0, 0.0);
    for (hits, &n) in groups.iter().zip(training) {
        if let Some(accuracy) = hits.accuracy() {
            sum += n as f64 * accuracy;
            weight += n as f64;
        }
    }
    (weight > 0.0).then(|| sum / weight)
}

/// The least accuracy of the groups that have examples.
pub fn worst(groups: &[Hits]) -> Option<f64> {
    groups.iter().filter_map(|h| h.accuracy()).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Class 0: 3 of 4, class 1: 1 of 2, class 2: no example.
        let groups = hits(&[0, 0, 0, 1, 1, 0], &[0, 0, 0, 0, 1, 1], &[0, 0, 0, 0, 1, 1], 3);
        assert_eq!(groups, [(4, 3), (2, 1), (0, 0)].map(|(n, correct)| Hits { n, correct }));
        assert_eq!(average(&groups), Some(4.0 / 6.0));
        assert_eq!(balanced(&groups), Some(0.625));
        assert_eq!(worst(&groups), Some(0.5));
        // Training proportions 9 : 1: (9 · 0.75 + 1 · 0.5) / 10.
        assert_eq!(adjusted(&groups, &[9, 1, 5]), Some(0.725));
        assert_eq!((average(&[]), worst(&groups[2..]), adjusted(&groups, &[0, 0, 1])), (None, None, None));
    }

    #[test]
    fn the_first_of_equal_logits() {
        assert_eq!(predictions(&[1.0, 1.0, 0.0, -1.0, -2.0, -0.5], 3), Some(vec![0, 2]));
        assert_eq!(predictions(&[1.0, f32::NAN], 2), None);
    }

    // Expected values: stages/tests/golden/metrics.py (scikit-learn).
    #[test]
    fn golden_values() {
        let labels: Vec<u32> = (0..60).map(|i| (i * i + i / 7) % 3).collect();
        let predicted: Vec<u32> =
            (0..60).map(|i| (i * i + i / 7 + u32::from(i % 5 == 0) + i / 50) % 3).collect();
        let attributes: Vec<u32> = (0..60).map(|i| u32::from(i % 4 == 0)).collect();
        let groups: Vec<u32> = labels.iter().zip(&attributes).map(|(y, a)| y * 2 + a).collect();
        let by_class = hits(&predicted, &labels, &labels, 3);
        let by_group = hits(&predicted, &labels, &groups, 6);
        let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-15, "{a:?} {b}");
        close(average(&by_class), GOLDEN[0]);
        close(balanced(&by_class), GOLDEN[1]);
        close(worst(&by_class), GOLDEN[2]);
        close(worst(&by_group), GOLDEN[3]);
        close(adjusted(&by_group, &[50, 5, 30, 10, 4, 1]), GOLDEN[4]);
    }
    const GOLDEN: [f64; 5] =
        [0.6666666666666666, 0.6695286195286195, 0.6363636363636364, 0.42857142857142855, 0.7200952380952382];
}
