//! Claims: what the paper prints, and the verdict that measured values give on it. Knows the claims file and the
//! statistics of a verdict; knows no training and no page. See "Claims" in DESIGN.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::job::bad;
use crate::stats::{self, Summary};

/// The version of the claims file that this program reads.
const VERSION: u32 = 1;

/// The claims file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    version: u32,
    /// Title and number of the paper.
    pub paper: String,
    /// Margins by name.
    pub margins: BTreeMap<String, Margin>,
    /// In the paper's order.
    pub claims: Vec<Claim>,
    /// Wrong, missing or ambiguous places of the paper and how they are read here.
    #[serde(default)]
    pub readings: Vec<Reading>,
}

/// How far a value may be off, fixed before any run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margin {
    /// In the claim's unit.
    pub size: f64,
    /// Why this size.
    pub reason: String,
}

/// What the paper's own value is.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// One draw of unknown spread.
    Unknown,
    /// A value of theory.
    Exact,
    /// The mean of so many draws of unknown spread.
    MeanOf(u32),
}

impl Spread {
    /// The variance of the paper's value as a multiple of one draw's variance.
    fn variance(self) -> f64 {
        match self {
            Spread::Unknown => 1.0,
            Spread::Exact => 0.0,
            Spread::MeanOf(k) => 1.0 / f64::from(k.max(1)),
        }
    }
}

/// One statement of the paper about measured quantities.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Claim {
    /// The quantity has this value.
    Number {
        id: String,
        r#where: String,
        quantity: String,
        value: f64,
        unit: String,
        spread: Spread,
        margin: String,
        note: Option<String>,
        /// Ours is a deterministic computation: one value, no spread.
        #[serde(default)]
        computed: bool,
    },
    /// One quantity is above another; paired by seed.
    Ordering {
        id: String,
        r#where: String,
        greater: String,
        lesser: String,
        margin: String,
        note: Option<String>,
        /// Ours is a deterministic computation: one value, no spread.
        #[serde(default)]
        computed: bool,
    },
    /// The quantity lies between two values.
    Range {
        id: String,
        r#where: String,
        quantity: String,
        low: f64,
        high: f64,
        unit: String,
        margin: String,
        note: Option<String>,
        /// Ours is a deterministic computation: one value, no spread.
        #[serde(default)]
        computed: bool,
    },
}

impl Claim {
    /// Unique in the file.
    pub fn id(&self) -> &str {
        match self {
            Claim::Number { id, .. } | Claim::Ordering { id, .. } | Claim::Range { id, .. } => id,
        }
    }

    /// Where the paper says it.
    pub fn place(&self) -> &str {
        match self {
            Claim::Number { r#where, .. }
            | Claim::Ordering { r#where, .. }
            | Claim::Range { r#where, .. } => r#where,
        }
    }

    /// The name of its margin.
    pub fn margin(&self) -> &str {
        match self {
            Claim::Number { margin, .. } | Claim::Ordering { margin, .. } | Claim::Range { margin, .. } => {
                margin
            }
        }
    }

    /// A remark of the file's author.
    pub fn note(&self) -> Option<&str> {
        match self {
            Claim::Number { note, .. } | Claim::Ordering { note, .. } | Claim::Range { note, .. } => {
                note.as_deref()
            }
        }
    }

    /// Whether ours is a deterministic computation.
    pub fn computed(&self) -> bool {
        match self {
            Claim::Number { computed, .. }
            | Claim::Ordering { computed, .. }
            | Claim::Range { computed, .. } => *computed,
        }
    }

    /// The quantities that it is about.
    pub fn quantities(&self) -> Vec<&str> {
        match self {
            Claim::Number { quantity, .. } | Claim::Range { quantity, .. } => vec![quantity],
            Claim::Ordering { greater, lesser, .. } => vec![greater, lesser],
        }
    }

    /// What it says, in short.
    pub fn says(&self) -> String {
        match self {
            Claim::Number { value, unit, .. } => format!("{value} {unit}").trim_end().to_string(),
            Claim::Ordering { .. } => "above".to_string(),
            Claim::Range { low, high, unit, .. } => format!("{low} to {high} {unit}").trim_end().to_string(),
        }
    }
}

/// A place of the paper that had to be interpreted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    pub id: String,
    pub r#where: String,
    /// What stands there.
    pub printed: String,
    /// How it is read here.
    pub reading: String,
    /// A computation of the report that shows it.
    pub computed: Option<Computation>,
    /// Measured quantities that show it.
    #[serde(default)]
    pub quantities: Vec<String>,
}

/// Which part of the paper a report is about: claims and readings of the theory have ids that begin with `theory.`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    #[default]
    Training,
    Theory,
}

impl Scope {
    fn has(self, id: &str) -> bool {
        id.starts_with("theory.") == (self == Scope::Theory)
    }
}

/// Computations that a reading can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Computation {
    /// The angles with and without the minus sign.
    Arccos,
    /// The closed forms at several ratios.
    ClosedForms,
}

impl Claims {
    /// Reads a claims file. Errors: [`crate::job::BadInput`] with the file's line for what does not fit, for an id that stands twice, an
    /// unknown margin, a negative margin, an empty range.
    pub fn read(path: &Path) -> Result<Self> {
        let place = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).map_err(|e| bad(format!("{place}: {e}")))?;
        Self::parse(&text).map_err(|e| bad(format!("{place}: {e}")))
    }

    /// As [`Claims::read`], from text; the error is without the file's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let claims: Claims = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if claims.version != VERSION {
            return Err(format!("version: {} is unknown, this program reads {VERSION}", claims.version));
        }
        for (name, margin) in &claims.margins {
            if !(margin.size >= 0.0 && margin.size.is_finite()) {
                return Err(format!("margins.{name}: size: {} is not a number of at least 0", margin.size));
            }
        }
        let mut ids = BTreeSet::new();
        for claim in &claims.claims {
            let id = claim.id();
            if !ids.insert(id) {
                return Err(format!("claims: {id}: stands twice"));
            }
            if !claims.margins.contains_key(claim.margin()) {
                return Err(format!("claims: {id}: margin: unknown name `{}`", claim.margin()));
            }
            if let Claim::Range { low, high, .. } = claim
                && low > high
            {
                return Err(format!("claims: {id}: low {low} is above high {high}"));
            }
        }
        Ok(claims)
    }

    /// Without what belongs to another part of the paper, margins and all.
    pub fn within(mut self, scope: Scope) -> Self {
        self.claims.retain(|c| scope.has(c.id()));
        self.readings.retain(|r| scope.has(&r.id));
        let used: BTreeSet<&str> = self.claims.iter().map(Claim::margin).collect();
        self.margins.retain(|name, _| used.contains(name.as_str()));
        self
    }

    /// The number that one place of the paper (the id's first word, as `table1`) prints of a quantity.
    pub fn printed(&self, place: &str, quantity: &str) -> Option<f64> {
        self.claims.iter().find_map(|c| match c {
            Claim::Number { id, quantity: q, value, .. }
                if q == quantity && id.split('.').next() == Some(place) =>
            {
                Some(*value)
            }
            _ => None,
        })
    }
}

/// What was measured of one quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// `%`, `deg` or empty.
    pub unit: String,
    /// Seed and value, by seed.
    pub seeds: Vec<(u64, f64)>,
    /// The stages that it comes from.
    pub stages: Vec<String>,
}

impl Measured {
    /// The values alone.
    pub fn values(&self) -> Vec<f64> {
        self.seeds.iter().map(|(_, v)| *v).collect()
    }
}

/// Measured quantities by id.
pub type Measurements = BTreeMap<String, Measured>;

/// How many further seeds would settle a claim, at the spread seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Further {
    /// So many.
    Seeds(usize),
    /// None up to [`stats::MOST_SEEDS`].
    NoNumber,
    /// One seed shows no spread.
    Unknown,
}

/// What the measurements say of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Match,
    Contradicted,
    Inconclusive(Further),
    /// A quantity was not measured in this run.
    NotRun,
}

/// A claim with its verdict.
#[derive(Debug)]
pub struct Judged<'a> {
    pub claim: &'a Claim,
    pub verdict: Verdict,
    /// The mean (number, range) or the mean of the paired differences (ordering).
    pub ours: Option<Summary>,
    /// Half the width of the 95 % interval that the verdict used; none of what was computed once.
    pub half_width: Option<f64>,
}

/// The verdict of `measured` on a claim, by the rules at the top of the claims file.
pub fn judge<'a>(claims: &Claims, claim: &'a Claim, measured: &Measurements) -> Judged<'a> {
    let margin = claims.margins.get(claim.margin()).map_or(0.0, |m| m.size);
    let summary = |id: &str| measured.get(id).and_then(|m| Summary::of(&m.values()));
    let (ours, other) = match claim {
        Claim::Number { quantity, spread, .. } => (summary(quantity), spread.variance()),
        Claim::Range { quantity, .. } => (summary(quantity), 0.0),
        Claim::Ordering { greater, lesser, .. } => {
            let pair = measured.get(greater).zip(measured.get(lesser));
            (pair.and_then(|(a, b)| Summary::of(&stats::paired(&a.seeds, &b.seeds))), 0.0)
        }
    };
    let Some(summary) = ours else {
        return Judged { claim, verdict: Verdict::NotRun, ours: None, half_width: None };
    };
    let alone = (claim.computed() && summary.n == 1).then_some(0.0);
    let half_width = summary.half_width_with(other);
    let verdict = match half_width.or(alone) {
        None => Verdict::Inconclusive(Further::Unknown),
        Some(half) => {
            let (settled, room) = decide(claim, margin, summary.mean, half);
            settled.unwrap_or_else(|| {
                let further = stats::further_seeds(&summary, other, room);
                Verdict::Inconclusive(further.map_or(Further::NoNumber, Further::Seeds))
            })
        }
    };
    Judged { claim, verdict, ours, half_width }
}

/// The verdict, if `mean ± half` settles the claim, and the half width below which it would.
fn decide(claim: &Claim, margin: f64, mean: f64, half: f64) -> (Option<Verdict>, f64) {
    let (inside, outside, room) = match claim {
        Claim::Number { value, .. } => {
            let off = (mean - value).abs();
            (off + half <= margin, off - half > margin, (margin - off).abs())
        }
        Claim::Ordering { .. } => (mean - half > margin, mean + half < -margin, mean.abs() - margin),
        Claim::Range { low, high, .. } => {
            let (low, high) = (low - margin, high + margin);
            let inside = mean - half >= low && mean + half <= high;
            (inside, mean + half < low || mean - half > high, (mean - low).abs().min((high - mean).abs()))
        }
    };
    match (inside, outside) {
        (true, _) => (Some(Verdict::Match), room),
        (_, true) => (Some(Verdict::Contradicted), room),
        _ => (None, room),
    }
}

#[cfg(test)]
mod tests;
