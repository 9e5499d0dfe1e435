//! The named training methods: a name with its params and the training set's counts -> a loss and a sampler. Knows how
//! the functions of `loss.rs` are put together; knows no model and no loop.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::loss::{self, GroupDro};

/// The names, as a pipeline writes them.
pub const METHODS: &[&str] = &[
    "erm",
    "iw",
    "iw-resampled",
    "group-dro",
    "it-group",
    "it-features",
    "it-classifier",
    "ldam",
    "logit-adjustment",
    "vs",
    "focal",
    "polynomial-tailed",
];

/// What single methods may be told; a value that the method does not have is an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Extras {
    /// group-dro: step size of the group weights, 0.01 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<f64>,
    /// group-dro: the C of the adjustment C / √n_g, 0 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjustment: Option<f64>,
    /// logit-adjustment, vs: the τ of τ log π_k, 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// focal: the exponent of 1 - p, 2 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focus: Option<f64>,
    /// ldam: the rarest class's margin, 0.5 without it; others in proportion to n_k^(-1/4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// ldam: what the logits are multiplied by, 30 without it (meant for a normalised head).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// polynomial-tailed: the tail's exponent, 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// polynomial-tailed: the margin from which on the tail holds, 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
}

impl Extras {
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("step", self.step),
            ("adjustment", self.adjustment),
            ("tau", self.tau),
            ("focus", self.focus),
            ("margin", self.margin),
            ("scale", self.scale),
            ("alpha", self.alpha),
            ("beta", self.beta),
        ];
        all.into_iter().filter(|(_, v)| v.is_some()).map(|(name, _)| name).collect()
    }
}

/// How many training examples there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// By class.
    pub class: Vec<usize>,
    /// By group `g = y * n_attributes + a`.
    pub group: Vec<usize>,
}

/// How the examples of an epoch are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampler {
    /// Each once, in random order.
    Shuffled,
    /// As many draws with replacement as there are examples; an example's probability is in proportion to its group's
    /// weight.
    Resampled(Vec<f64>),
}

/// A method made ready for a training set.
#[derive(Clone, Debug)]
pub struct Method {
    shape: Shape,
    reduction: Reduction,
    /// How an epoch's examples are chosen.
    pub sampler: Sampler,
}

/// What is done to the logits before the loss.
#[derive(Clone, Debug)]
enum Shape {
    Raw,
    /// Divided by the temperature of the example's class.
    Class(Vec<f64>),
    /// Divided by the temperature of the example's group.
    Group(Vec<f64>),
    /// Column k divided by its temperature, then its offset added.
    Columns(Vec<f64>, Option<Vec<f64>>),
    Margins(Vec<f64>, f64),
}

/// From shaped logits to a number.
#[derive(Clone, Debug)]
enum Reduction {
    Mean,
    Weighted(Vec<f64>),
    Dro(GroupDro),
    Focal(f64),
    Tail(f64, f64),
}

/// What a training asks of its method.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One of [`METHODS`].
    pub name: &'a str,
    /// The exponent of `T[k] = (n_max / n_k)^gamma`, for the methods with temperatures.
    pub gamma: f64,
    /// Temperatures by hand (by class, or by group for it-group) instead of a gamma.
    pub temperatures: Option<&'a [f64]>,
    pub extras: &'a Extras,
}

impl Method {
    /// Errors: an unknown name (with the nearest one), a param that the method does not have, a temperature that is not
    /// above 0, a class or group without examples where the method needs one.
    pub fn new(request: Request<'_>, counts: &Counts) -> Result<Method> {
        let Request { name, gamma, temperatures, extras } = request;
        let mut known: &[&str] = &[];
        let mut tempered = false;
        let (classes, groups) = (&counts.class, &counts.group);
        let by_hand_or = |n: &[usize]| -> Result<Vec<f64>> {
            let Some(given) = temperatures else { return loss::temperatures(n, gamma) };
            ensure!(
                given.len() == n.len(),
                "temperatures: {} values for {} {}",
                given.len(),
                n.len(),
                if name == "it-group" { "groups" } else { "classes" }
            );
            loss::check_temperatures(given)?;
            Ok(given.to_vec())
        };
        let prior = || -> Result<Vec<f64>> {
            let all: usize = classes.iter().sum();
            for (k, &n) in classes.iter().enumerate() {
                ensure!(n > 0, "class {k}: has no training example, so {name} has no log of its share");
            }
            let tau = extras.tau.unwrap_or(1.0);
            Ok(classes.iter().map(|&n| tau * libm::log(n as f64 / all as f64)).collect())
        };
        let resampled = || -> Result<Sampler> { Ok(Sampler::Resampled(loss::importance_weights(groups)?)) };
        let (shape, reduction, sampler) = match name {
            "erm" => (Shape::Raw, Reduction::Mean, Sampler::Shuffled),
            "iw" => (Shape::Raw, Reduction::Weighted(loss::importance_weights(groups)?), Sampler::Shuffled),
            "iw-resampled" => (Shape::Raw, Reduction::Mean, resampled()?),
            "group-dro" => {
                known = &["step", "adjustment"];
                let step = extras.step.unwrap_or(0.01);
                let dro = GroupDro::new(groups, step, extras.adjustment.unwrap_or(0.0))?;
                (Shape::Raw, Reduction::Dro(dro), resampled()?)
            }
            "it-group" => {
                tempered = true;
                (Shape::Group(by_hand_or(groups)?), Reduction::Mean, Sampler::Shuffled)
            }
            "it-features" => {
                tempered = true;
                (Shape::Class(by_hand_or(classes)?), Reduction::Mean, Sampler::Shuffled)
            }
            "it-classifier" => {
                tempered = true;
                (Shape::Columns(by_hand_or(classes)?, None), Reduction::Mean, Sampler::Shuffled)
            }
            "logit-adjustment" => {
                known = &["tau"];
                let ones = vec![1.0; classes.len()];
                (Shape::Columns(ones, Some(prior()?)), Reduction::Mean, Sampler::Shuffled)
            }
            "vs" => {
                known = &["tau"];
                tempered = true;
                (Shape::Columns(by_hand_or(classes)?, Some(prior()?)), Reduction::Mean, Sampler::Shuffled)
            }
            "ldam" => {
                known = &["margin", "scale"];
                let margins = ldam_margins(classes, extras.margin.unwrap_or(0.5))?;
                (Shape::Margins(margins, extras.scale.unwrap_or(30.0)), Reduction::Mean, Sampler::Shuffled)
            }
            "focal" => {
                known = &["focus"];
                (Shape::Raw, Reduction::Focal(extras.focus.unwrap_or(2.0)), Sampler::Shuffled)
            }
            "polynomial-tailed" => {
                known = &["alpha", "beta"];
                let (alpha, beta) = (extras.alpha.unwrap_or(1.0), extras.beta.unwrap_or(1.0));
                ensure!(alpha > 0.0, "extras.alpha: {alpha}: must be above 0");
                (Shape::Raw, Reduction::Tail(alpha, beta), Sampler::Shuffled)
            }
            _ => anyhow::bail!("method: `{name}` is unknown{}", hint(name, METHODS)),
        };
        if let Some(extra) = extras.given().into_iter().find(|e| !known.contains(e)) {
            anyhow::bail!("extras.{extra}: method {name} has no such param");
        }
        ensure!(tempered || temperatures.is_none(), "temperatures: method {name} has none");
        ensure!(tempered || gamma == 0.0, "gamma: {gamma}: method {name} has no temperature; leave it 0");
        Ok(Method { shape, reduction, sampler })
    }

    /// The method with its classes weighed, as the late part of a deferred re-weighting has it (Cao et al. 2019):
    /// `(1 - beta) / (1 - beta^n_k)`, the inverse of the effective number of examples (Cui et al. 2019), here scaled to a
    /// mean of 1 over the training set; beta 1 is the limit 1 / n_k. As everywhere the sum is divided by the number of
    /// examples (that study's code divides by the batch's sum of weights).
    ///
    /// Errors: a class without examples, a method that weighs groups itself, a beta outside [0, 1].
    pub fn reweighted(&self, beta: f64, counts: &Counts) -> Result<Method> {
        ensure!((0.0..=1.0).contains(&beta), "deferred.beta: {beta}: must be in [0, 1]");
        ensure!(
            matches!((&self.reduction, &self.sampler), (Reduction::Mean, Sampler::Shuffled)),
            "deferred: this method's loss is no plain mean over shuffled examples\n\
             hint: take erm, ldam, logit-adjustment, vs or a tempered method"
        );
        let mut weights = Vec::with_capacity(counts.class.len());
        for (k, &n) in counts.class.iter().enumerate() {
            ensure!(n > 0, "class {k}: has no training example, so its weight has no value");
            let effective =
                if beta == 1.0 { n as f64 } else { (1.0 - libm::pow(beta, n as f64)) / (1.0 - beta) };
            weights.push(1.0 / effective);
        }
        let all: usize = counts.class.iter().sum();
        let sum: f64 = weights.iter().zip(&counts.class).map(|(w, &n)| w * n as f64).sum();
        let attributes = (counts.group.len() / counts.class.len()).max(1);
        let of_group = |g: usize| weights[g / attributes] * all as f64 / sum;
        let reduction = Reduction::Weighted((0..counts.group.len()).map(of_group).collect());
        Ok(Method { reduction, ..self.clone() })
    }

    /// The logits as the loss sees them, `[N, K]`: what "tempered training error" is about.
    pub fn shaped(&self, logits: &Tensor, labels: &[u32], groups: &[u32]) -> Result<Tensor> {
        let of = |t: &[f64], keys: &[u32]| -> Vec<f64> { keys.iter().map(|&k| t[k as usize]).collect() };
        match &self.shape {
            Shape::Raw => Ok(logits.clone()),
            Shape::Class(t) => loss::temper_examples(logits, &of(t, labels)),
            Shape::Group(t) => loss::temper_examples(logits, &of(t, groups)),
            Shape::Columns(t, offsets) => loss::temper_columns(logits, t, offsets.as_deref()),
            Shape::Margins(margins, scale) => loss::take_margins(logits, labels, margins, *scale),
        }
    }

    /// A batch's loss, a scalar with a gradient, from raw logits `[N, K]`. Moves group DRO's weights.
    pub fn loss(&mut self, logits: &Tensor, labels: &[u32], groups: &[u32]) -> Result<Tensor> {
        let shaped = self.shaped(logits, labels, groups)?;
        let losses = || loss::cross_entropy(&shaped, labels);
        match &mut self.reduction {
            Reduction::Mean => Ok(losses()?.mean_all()?),
            Reduction::Weighted(w) => {
                let weights: Vec<f64> = groups.iter().map(|&g| w[g as usize]).collect();
                loss::weighted_mean(&losses()?, &weights)
            }
            Reduction::Dro(dro) => dro.loss(&losses()?, groups),
            Reduction::Focal(focus) => Ok(loss::focal(&shaped, labels, *focus)?.mean_all()?),
            Reduction::Tail(alpha, beta) => {
                Ok(loss::polynomial_tailed(&shaped, labels, *alpha, *beta)?.mean_all()?)
            }
        }
    }

    /// Temperatures by class or group, where the method has them.
    pub fn temperatures(&self) -> Option<&[f64]> {
        match &self.shape {
            Shape::Class(t) | Shape::Group(t) | Shape::Columns(t, _) => Some(t),
            _ => None,
        }
    }

    /// What the method remembers between batches: group DRO's weights, else nothing.
    pub fn state(&self) -> &[f64] {
        if let Reduction::Dro(dro) = &self.reduction { &dro.weights } else { &[] }
    }

    /// Puts back what [`Method::state`] gave. Errors: a state of another method.
    pub fn restore(&mut self, state: &[f64]) -> Result<()> {
        ensure!(self.state().len() == state.len(), "method: a state of {} numbers does not fit", state.len());
        if let Reduction::Dro(dro) = &mut self.reduction {
            dro.weights.copy_from_slice(state);
        }
        Ok(())
    }

    /// Whether a batch may be cut in parts whose gradients are added: not where the loss joins the whole batch.
    pub fn adds_up(&self) -> bool {
        !matches!(self.reduction, Reduction::Dro(_))
    }
}

/// `margin * (n_min / n_k)^(1/4)`: the rarest class has the whole margin.
fn ldam_margins(counts: &[usize], margin: f64) -> Result<Vec<f64>> {
    for (k, &n) in counts.iter().enumerate() {
        ensure!(n > 0, "class {k}: has no training example, so ldam has no margin for it");
    }
    let least = counts.iter().copied().min().unwrap_or(1) as f64;
    Ok(counts.iter().map(|&n| margin * libm::pow(least / n as f64, 0.25)).collect())
}

/// `; did you mean …?` with the nearest of `words`, or the list of them.
pub fn hint(word: &str, words: &[&str]) -> String {
    let near = words.iter().map(|w| (strsim::damerau_levenshtein(word, w), *w)).min();
    match near {
        Some((d, w)) if d <= 1 + w.len() / 3 => format!("; did you mean `{w}`?"),
        _ => format!("; one of: {}", words.join(", ")),
    }
}
