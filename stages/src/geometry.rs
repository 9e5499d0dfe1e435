//! geometry: the angles between a network's class vectors, apart for the majority and the minority (figure 3). Three
//! kinds of vectors, since the paper does not say which it draws: the classifier's rows, and the class means of the
//! last hidden layer over the training examples, centred and not. Knows vectors; knows no loss.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{self, Job, progress, write_json};
use crate::trained::{Source, Trained};

/// The params of geometry: none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {}

/// A figure for the majority classes and one for the minority classes; `None` where there are fewer vectors than it
/// needs, or a zero vector has no direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Sides {
    majority: Option<f64>,
    minority: Option<f64>,
}

/// Angles, cosines or norms of the three kinds of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Kinds {
    /// The rows of the head's weight.
    classifier: Sides,
    /// Class means less the mean of the class means.
    means_centred: Sides,
    /// Class means.
    means_uncentred: Sides,
}

#[derive(Serialize)]
struct Geometry<'a> {
    params: &'a Value,
    data: Source,
    ratio: Value,
    /// Average over the pairs of classes of a side of the angle between their vectors, in degrees.
    angles: Kinds,
    /// Average over the classes of a side of the vectors' norms.
    norms: Kinds,
    training: &'a Value,
}

/// Reads inputs `weights`, `data` and `indices`; writes `geometry.json`.
///
/// Errors: `BadInput` as [`Trained::open`]; features that are not numbers.
pub fn run(job: Job) -> Result<()> {
    let Params {} = job.params()?;
    let trained = Trained::open(&job)?;
    let classifier: Vec<Vec<f64>> = doubles(trained.model.classifier().to_vec2()?);
    let means = class_means(&trained)?;
    trained.tell(|real| real.train, trained.indices.train.len(), |_| 2000);
    let centred = centre(&means);
    if !classifier.iter().chain(&means).flatten().all(|v| v.is_finite()) {
        bail!("the network has weights or features that are not numbers: the training diverged");
    }
    let meta = &trained.indices.meta;
    let measure = |of: fn(&[&[f64]]) -> Option<f64>| {
        let sides = |vectors: &[Vec<f64>]| {
            let side = |classes: &[u32]| {
                let members: Vec<&[f64]> = classes.iter().map(|&k| &vectors[k as usize][..]).collect();
                of(&members)
            };
            Sides { majority: side(&meta.majority), minority: side(&meta.minority) }
        };
        Kinds {
            classifier: sides(&classifier),
            means_centred: sides(&centred),
            means_uncentred: sides(&means),
        }
    };
    let source = trained.source();
    let geometry = Geometry {
        params: &trained.params,
        ratio: source.ratio.clone(),
        data: source,
        angles: measure(average_angle),
        norms: measure(average_norm),
        training: &trained.training,
    };
    write_json(&job.out().join("geometry.json"), &geometry)
}

fn doubles(rows: Vec<Vec<f32>>) -> Vec<Vec<f64>> {
    rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
}

/// The mean of the last hidden layer over each class's training examples, in eval mode.
fn class_means(trained: &Trained) -> Result<Vec<Vec<f64>>> {
    let (rows, labels) = (&trained.indices.train, trained.examples.labels());
    let classes = trained.examples.meta().classes.len();
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); classes];
    let mut counts = vec![0u64; classes];
    let mut done = 0;
    trained.batches(rows, |batch, images| {
        if job::stop_requested() {
            return Err(job::Checkpointed.into());
        }
        let features = trained.model.features(images, false)?.detach().to_vec2::<f32>()?;
        for (&row, feature) in batch.iter().zip(features) {
            let class = labels[row as usize] as usize;
            counts[class] += 1;
            sums[class].resize(feature.len(), 0.0);
            sums[class].iter_mut().zip(feature).for_each(|(sum, v)| *sum += f64::from(v));
        }
        done += batch.len();
        progress(done as u64, rows.len() as u64, "examples");
        Ok(())
    })?;
    let length = sums.iter().map(Vec::len).max().unwrap_or(0);
    for (sum, n) in sums.iter_mut().zip(counts) {
        // A class without examples has no mean: a zero vector, which has no angle.
        sum.resize(length, 0.0);
        sum.iter_mut().for_each(|v| *v /= n.max(1) as f64);
    }
    Ok(sums)
}

/// The vectors less their mean, each class counting once.
fn centre(vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut mean = vec![0.0; vectors.first().map_or(0, Vec::len)];
    for vector in vectors {
        mean.iter_mut().zip(vector).for_each(|(m, v)| *m += v / vectors.len() as f64);
    }
    vectors.iter().map(|vector| vector.iter().zip(&mean).map(|(v, m)| v - m).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The average over all pairs of the angle between two vectors, in degrees; `None` for fewer than two vectors or a
/// zero one.
fn average_angle(vectors: &[&[f64]]) -> Option<f64> {
    let (mut sum, mut pairs) = (0.0, 0);
    for (i, a) in vectors.iter().enumerate() {
        for b in &vectors[..i] {
            let (na, nb) = (dot(a, a).sqrt(), dot(b, b).sqrt());
            if na == 0.0 || nb == 0.0 {
                return None;
            }
            // Kahan's formula: the arc cosine loses half of the digits near 0 and 180 degrees, where collapse is.
            // `libm`, so that the angle has the same bits on every machine.
            let (mut difference, mut total) = (0.0, 0.0);
            for (a, b) in a.iter().zip(b.iter()) {
                difference += (a / na - b / nb).powi(2);
                total += (a / na + b / nb).powi(2);
            }
            sum += (2.0 * libm::atan2(difference.sqrt(), total.sqrt())).to_degrees();
            pairs += 1;
        }
    }
    (pairs > 0).then(|| sum / f64::from(pairs))
}

fn average_norm(vectors: &[&[f64]]) -> Option<f64> {
    let sum: f64 = vectors.iter().map(|v| dot(v, v).sqrt()).sum();
    (!vectors.is_empty()).then(|| sum / vectors.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn angle(vectors: &[Vec<f64>]) -> Option<f64> {
        average_angle(&vectors.iter().map(|v| &v[..]).collect::<Vec<_>>())
    }

    /// The K unit vectors less their mean: a simplex equiangular tight frame.
    fn simplex(k: usize) -> Vec<Vec<f64>> {
        centre(&(0..k).map(|i| (0..k).map(|j| if i == j { 1.0 } else { 0.0 }).collect()).collect::<Vec<_>>())
    }

    #[test]
    fn a_simplex_has_its_angle() {
        for k in [2, 3, 5, 10] {
            let expected = (-1.0 / (k as f64 - 1.0)).acos().to_degrees();
            assert!((angle(&simplex(k)).unwrap() - expected).abs() < 1e-9, "{k}");
        }
        // The two lines of figure 3, for ten classes.
        assert!((angle(&simplex(10)).unwrap() - 96.379).abs() < 1e-3);
        assert!((angle(&simplex(5)).unwrap() - 104.478).abs() < 1e-3);
    }

    #[test]
    fn a_part_of_a_simplex_has_the_angle_of_the_whole() {
        let whole = (-1.0f64 / 9.0).acos().to_degrees();
        assert!((angle(&simplex(10)[5..]).unwrap() - whole).abs() < 1e-9);
    }

    #[test]
    fn by_hand() {
        let vectors = [vec![1.0, 0.0], vec![0.0, 2.0], vec![-3.0, 0.0]];
        // 90, 90 and 180 degrees: the average of the angles, not the angle of the average cosine.
        assert!((angle(&vectors).unwrap() - 120.0).abs() < 1e-12);
        assert_eq!(average_norm(&[&[3.0, 4.0], &[0.0, 1.0]]), Some(3.0));
        assert_eq!(angle(&vectors[..1]), None);
        assert_eq!(angle(&[vec![0.0, 0.0], vec![1.0, 0.0]]), None);
        // Equal directions: minority collapse.
        assert!(angle(&[vec![0.1, 0.3, 0.7], vec![0.3, 0.9, 2.1]]).unwrap() < 1e-12);
        assert_eq!(centre(&[vec![1.0, 2.0], vec![3.0, 6.0]]), [[-1.0, -2.0], [1.0, 2.0]]);
    }
}
