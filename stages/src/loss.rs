//! Every loss of the paper and its neighbours as small pure functions of logits, labels and groups. Knows no model, no
//! data set and no schedule; prediction always uses the raw logits and does not pass through here.
//!
//! Shapes: logits `[N, K]`, labels and groups N numbers, a per-example loss `[N]`, a batch's loss a scalar. Everything
//! is made of differentiable candle ops on any float type (candle's fused softmax would drop the gradient).

use anyhow::{Result, ensure};
use candle_core::{D, Tensor};

/// Logarithms of softmax probabilities over the last dimension.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Cross-entropy of each example, `[N]`.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let at = Tensor::from_slice(labels, (labels.len(), 1), logits.device())?;
    Ok(log_softmax(logits)?.gather(&at, 1)?.squeeze(1)?.neg()?)
}

/// Focal loss of each example: `(1 - p_y)^focus CE` (Lin et al. 2017, equation 4). `focus` 0 is cross-entropy.
pub fn focal(logits: &Tensor, labels: &[u32], focus: f64) -> Result<Tensor> {
    let loss = cross_entropy(logits, labels)?;
    if focus == 0.0 {
        return Ok(loss);
    }
    // 1 - p_y = 1 - e^-CE; kept from exactly 0, where a power below 1 has no derivative.
    let missing = loss.neg()?.exp()?.affine(-1.0, 1.0)?.clamp(1e-12, 1.0)?;
    Ok((missing.powf(focus)? * loss)?)
}

/// Polynomial-tailed loss of each example (Wang et al. 2022, "Is importance weighting incompatible with interpolating
/// classifiers?", equation 3): logistic in the margin m up to `beta`, scaled to meet the tail `(m - (beta - 1))^-alpha`
/// at 1. The margin is `z_y - log Σ_{j≠y} e^{z_j}`: that of the paper for two classes, and CE = log(1 + e^-m) for any.
pub fn polynomial_tailed(logits: &Tensor, labels: &[u32], alpha: f64, beta: f64) -> Result<Tensor> {
    let hot = one_hot(labels, logits)?;
    let own = (logits * &hot)?.sum(D::Minus1)?;
    // The own column is pushed out of the sum; e^-1e30 is 0 in every float type.
    let others = (logits + (hot * -1e30)?)?;
    let top = others.detach().max_keepdim(D::Minus1)?;
    let others = (others.broadcast_sub(&top)?.exp()?.sum(D::Minus1)?.log()? + top.squeeze(1)?)?;
    let margin = (own - others)?;
    let edge = (margin.zeros_like()? + beta)?;
    // log(1 + e^-m) on the side where it cannot overflow; both branches see only margins of their own side.
    let left = margin.minimum(&edge)?;
    let soft = ((left.abs()?.neg()?.exp()? + 1.0)?.log()? + left.neg()?.relu()?)?;
    let left = (soft / libm::log1p(libm::exp(-beta)))?;
    let right = (margin.maximum(&edge)? - (beta - 1.0))?.powf(-alpha)?;
    Ok(margin.detach().lt(&edge)?.where_cond(&left, &right)?)
}

/// Equation (3): all logits of an example divided by that example's temperature. `temperatures[i]` belongs to example i.
pub fn temper_examples(logits: &Tensor, temperatures: &[f64]) -> Result<Tensor> {
    let t = row(temperatures, logits)?.reshape((temperatures.len(), 1))?;
    Ok(logits.broadcast_div(&t)?)
}

/// Equation (4): logit column k divided by `temperatures[k]` for every example. With `offsets`, `offsets[k]` is added
/// after that: logit adjustment (Menon et al. 2021, offsets τ log π_k, T = 1) and the VS loss (Kini et al. 2021).
pub fn temper_columns(logits: &Tensor, temperatures: &[f64], offsets: Option<&[f64]>) -> Result<Tensor> {
    let tempered = logits.broadcast_div(&row(temperatures, logits)?)?;
    match offsets {
        Some(offsets) => Ok(tempered.broadcast_add(&row(offsets, logits)?)?),
        None => Ok(tempered),
    }
}

/// Label-distribution-aware margin (Cao et al. 2019, equation 13): `margins[y]` taken from the own logit, then all
/// multiplied by `scale`.
pub fn take_margins(logits: &Tensor, labels: &[u32], margins: &[f64], scale: f64) -> Result<Tensor> {
    let taken = one_hot(labels, logits)?.broadcast_mul(&row(margins, logits)?)?;
    Ok(((logits - taken)? * scale)?)
}

/// Σ w_i l_i / N: divided by the number of examples, not by the sum of the weights.
pub fn weighted_mean(losses: &Tensor, weights: &[f64]) -> Result<Tensor> {
    ensure!(
        losses.dims() == [weights.len()],
        "loss: {} weights for losses {:?}",
        weights.len(),
        losses.dims()
    );
    let weights = row(weights, losses)?;
    Ok(((losses * weights)?.sum_all()? / losses.elem_count() as f64)?)
}

/// Temperatures `T[k] = (n_max / n_k)^gamma`: 1 for the most frequent, larger for rarer ones.
///
/// Errors: an empty group, a gamma that is negative or not finite.
pub fn temperatures(counts: &[usize], gamma: f64) -> Result<Vec<f64>> {
    ensure!(gamma.is_finite() && gamma >= 0.0, "gamma: {gamma}: must be a finite number, at least 0");
    let most = counts.iter().copied().max().unwrap_or(0);
    let empty: Vec<_> = counts.iter().enumerate().filter(|(_, n)| **n == 0).map(|(k, _)| k).collect();
    ensure!(
        empty.is_empty(),
        "temperatures: groups {empty:?} have no training example, so (n_max / n)^gamma has no value\n\
         hint: leave the class out, take more rows per class, or give `temperatures` by hand"
    );
    Ok(counts.iter().map(|&n| libm::pow(most as f64 / n as f64, gamma)).collect())
}

/// Whether every temperature is finite and above 0. Errors: names the first that is not.
pub fn check_temperatures(temperatures: &[f64]) -> Result<()> {
    for (k, t) in temperatures.iter().enumerate() {
        ensure!(
            t.is_finite() && *t > 0.0,
            "temperatures[{k}]: {t}: a temperature divides logits and must be finite and above 0\n\
             hint: the paper's section 3 factor is 1/T; give T"
        );
    }
    Ok(())
}

/// Importance weights `w_g = N / (G n_g)`, G the number of groups: their mean over the training set is 1.
///
/// Errors: an empty group.
pub fn importance_weights(counts: &[usize]) -> Result<Vec<f64>> {
    let all: usize = counts.iter().sum();
    for (g, &n) in counts.iter().enumerate() {
        ensure!(
            n > 0,
            "group {g}: has no training example, so its importance weight has no value\n\
             hint: take more rows per class, or use a method without group weights"
        );
    }
    Ok(counts.iter().map(|&n| all as f64 / (counts.len() as f64 * n as f64)).collect())
}

/// Group DRO (Sagawa et al. 2020, algorithm 1): adversarial weights of the groups, moved by each batch.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupDro {
    /// The groups' weights, summing to 1. State: it belongs in the checkpoint.
    pub weights: Vec<f64>,
    /// Step size of the exponentiated gradient.
    pub step: f64,
    /// What is added to a group's loss in the update of its weight: `C / √n_g`.
    pub adjustments: Vec<f64>,
}

impl GroupDro {
    /// Equal weights. `adjustment` is C. Errors: an empty group while C is not 0.
    pub fn new(counts: &[usize], step: f64, adjustment: f64) -> Result<GroupDro> {
        ensure!(
            adjustment == 0.0 || counts.iter().all(|&n| n > 0),
            "group-dro: adjustment: {adjustment}: needs an example of every group, the counts are {counts:?}"
        );
        let extra = |&n: &usize| if adjustment == 0.0 { 0.0 } else { adjustment / libm::sqrt(n as f64) };
        Ok(GroupDro {
            weights: vec![1.0 / counts.len() as f64; counts.len()],
            step,
            adjustments: counts.iter().map(extra).collect(),
        })
    }

    /// Moves the weights by this batch's group losses and gives `Σ_g q_g L_g`, L_g the mean loss of group g in the batch
    /// (0 where the batch has none of it). The gradient does not pass through q.
    ///
    /// Errors: a group out of range; losses of another length.
    pub fn loss(&mut self, losses: &Tensor, groups: &[u32]) -> Result<Tensor> {
        let values = losses.detach().to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
        ensure!(values.len() == groups.len(), "loss: {} losses for {} groups", values.len(), groups.len());
        let n = self.weights.len();
        ensure!(groups.iter().all(|&g| (g as usize) < n), "loss: a group out of range, there are {n}");
        let (mut sums, mut counts) = (vec![0.0; n], vec![0usize; n]);
        for (value, &g) in values.iter().zip(groups) {
            sums[g as usize] += value;
            counts[g as usize] += 1;
        }
        for g in 0..n {
            let mean = sums[g] / counts[g].max(1) as f64;
            self.weights[g] *= libm::exp(self.step * (mean + self.adjustments[g]));
        }
        let total: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|q| *q /= total);
        let shares: Vec<f64> =
            groups.iter().map(|&g| self.weights[g as usize] / counts[g as usize] as f64).collect();
        Ok((losses * row(&shares, losses)?)?.sum_all()?)
    }
}

/// Numbers as a one-dimensional tensor of `like`'s type and device.
fn row(values: &[f64], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), like.device())?.to_dtype(like.dtype())?)
}

/// `[N, K]` of 0 and 1, of the logits' shape and type.
fn one_hot(labels: &[u32], logits: &Tensor) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let mut hot = vec![0.0; n * classes];
    for (i, &y) in labels.iter().enumerate() {
        ensure!((y as usize) < classes, "loss: label {y} of example {i}: there are {classes} classes");
        hot[i * classes + y as usize] = 1.0;
    }
    Ok(Tensor::from_vec(hot, (n, classes), logits.device())?.to_dtype(logits.dtype())?)
}
