//! subsample: which examples an experiment uses, from a seed, written as row numbers. Knows labels and splits; knows no
//! pixel and no model.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::data::indices::{Indices, IndicesMeta};
use crate::data::{Counts, Examples, Split};
use crate::job::{Job, bad};
use crate::rehearsal::{self, Sizes};
use crate::rng::Stream;

/// The params of subsample: how examples are chosen.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "scheme", rename_all = "kebab-case", deny_unknown_fields)]
enum Params {
    /// Step imbalance: every minority class is thinned out by the same ratio (Cao et al. 2019).
    Step(Step),
    /// The published splits as they are.
    Published(Published),
    /// A part of the validation split, the same of each group, to retrain a last layer on.
    HeldOut(HeldOut),
}

/// The params of step imbalance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Examples of a majority class for one of a minority class, at least 1.
    ratio: f64,
    /// Which classes are the majority.
    majority: Majority,
    /// At most so many training examples of a majority class; all without it.
    #[serde(default)]
    per_class: Option<usize>,
    /// At most so many test examples of each class; all without it.
    #[serde(default)]
    test_per_class: Option<usize>,
    /// Validation examples of each class, taken from the training split and not used for training.
    validation_per_class: usize,
    /// Of the choice.
    seed: u64,
}

/// The params of the published splits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    /// At most so many examples of each group in each split; all without it.
    #[serde(default)]
    per_group: Option<usize>,
    /// Of the choice, where `per_group` makes one.
    #[serde(default)]
    seed: u64,
}

/// The params of a training on held-out rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldOut {
    /// How much of the rarest group's validation rows is trained on, above 0 and below 1; the other rows validate.
    share: f64,
    /// Of the choice.
    seed: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Majority {
    /// Labels below half the number of classes.
    FirstHalf,
}

/// Reads input `data`, writes `indices.safetensors` and `meta.json`.
///
/// Errors: `BadInput` where a class has too few examples, or the ratio leaves none of a minority class.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let data = job.input("data")?;
    let examples = Examples::open(&data)?;
    match rehearsal::stands_for::<Counts>(&data)? {
        Some(real) => rehearse(&params, &examples, &real, job.out()),
        None => choose(&params, &examples)?.write(job.out()),
    }
}

/// On a placeholder: the choice among the real numbers of examples, for its errors and its sizes, and all rows of the
/// placeholder in place of the chosen ones.
fn rehearse(params: &Params, examples: &Examples, real: &Counts, out: &Path) -> Result<()> {
    let (groups, splits) = rehearsal::rows(real);
    let meta = examples.meta();
    let chosen = match params {
        Params::Step(params) => {
            let labels: Vec<u32> = groups.iter().map(|group| group / meta.n_attributes).collect();
            step(params, &labels, &splits, &meta.classes)?
        }
        Params::Published(params) => published(params, &groups, &splits, examples.n_groups()),
        Params::HeldOut(params) => held_out(params, &groups, &splits, examples.n_groups())?,
    };
    let sizes =
        Sizes { train: chosen.train.len(), validation: chosen.validation.len(), test: chosen.test.len() };
    let of = |split: Split, n: usize| -> Vec<u32> {
        let rows = 0..examples.n() as u32;
        rows.filter(|&row| examples.splits()[row as usize] == split as u32).take(n).collect()
    };
    // Those of a set without a validation split are taken from the training rows.
    let validation = match of(Split::Validation, sizes.validation) {
        rows if rows.is_empty() => of(Split::Train, sizes.validation),
        rows => rows,
    };
    let (train, test) = (of(Split::Train, usize::MAX), of(Split::Test, sizes.test));
    rehearsal::mark(out, &sizes)?;
    Indices { train, validation, test, meta: chosen.meta }.write(out)
}

fn choose(params: &Params, examples: &Examples) -> Result<Indices> {
    match params {
        Params::Step(params) => step(params, examples.labels(), examples.splits(), &examples.meta().classes),
        Params::Published(params) => {
            let groups: Vec<u32> = (0..examples.n()).map(|i| examples.group(i)).collect();
            Ok(published(params, &groups, examples.splits(), examples.n_groups()))
        }
        Params::HeldOut(params) => {
            let groups: Vec<u32> = (0..examples.n()).map(|row| examples.group(row)).collect();
            held_out(params, &groups, examples.splits(), examples.n_groups())
        }
    }
}

/// The rows of each split; of a group that has more than the cap, that many at random, of all seeds and caps in the
/// order of one shuffle, so that a smaller choice is a part of a larger one.
fn published(params: &Published, groups: &[u32], splits: &[u32], n_groups: usize) -> Indices {
    let mut counts = Counts::default();
    let [train, validation, test] = [
        (Split::Train, &mut counts.train),
        (Split::Validation, &mut counts.validation),
        (Split::Test, &mut counts.test),
    ]
    .map(|(split, counts)| {
        let mut all = Vec::new();
        for group in 0..n_groups as u32 {
            let mut rows: Vec<u32> = (0..groups.len() as u32)
                .filter(|&row| groups[row as usize] == group && splits[row as usize] == split as u32)
                .collect();
            if let Some(cap) = params.per_group.filter(|&cap| cap < rows.len()) {
                let purpose = format!("subsample/published/{}", split.name());
                Stream::new(params.seed, &purpose, 0, u64::from(group)).shuffle(&mut rows);
                rows.truncate(cap);
            }
            counts.push(rows.len() as u64);
            all.extend(rows);
        }
        if all.is_empty() {
            counts.clear();
        }
        all.sort_unstable();
        all
    });
    let n_major = counts.train.iter().copied().max().unwrap_or(0);
    let meta = IndicesMeta {
        ratio: 1.0,
        n_major,
        validation_per_class: 0,
        seed: params.seed,
        counts,
        majority: Vec::new(),
        minority: Vec::new(),
    };
    Indices { train, validation, test, meta }
}

/// Of each group's validation rows the same number is trained on, the rest validates; the test rows stay. The counts of
/// the training rows stay the published ones, by whose shares accuracies are weighted.
fn held_out(params: &HeldOut, groups: &[u32], splits: &[u32], n_groups: usize) -> Result<Indices> {
    if params.share.is_nan() || params.share <= 0.0 || params.share >= 1.0 {
        return Err(bad(format!("params.share: {} is not between 0 and 1", params.share)));
    }
    let mut indices = published(&Published { per_group: None, seed: params.seed }, groups, splits, n_groups);
    let mut members = vec![Vec::new(); n_groups];
    indices.validation.iter().for_each(|&row| members[groups[row as usize] as usize].push(row));
    let least = members.iter().map(Vec::len).min().unwrap_or(0);
    let each = (least as f64 * params.share).floor() as usize;
    if each == 0 {
        return Err(bad(format!(
            "params.share: {} of the rarest group's {least} validation rows leaves none to train on\n\
             hint: raise it, or take a set with a validation split",
            params.share
        )));
    }
    (indices.train, indices.validation) = (Vec::new(), Vec::new());
    for (group, rows) in members.iter_mut().enumerate() {
        Stream::new(params.seed, "subsample/held-out", 0, group as u64).shuffle(rows);
        indices.train.extend(&rows[..each]);
        indices.validation.extend(&rows[each..]);
        indices.meta.counts.validation[group] = (rows.len() - each) as u64;
    }
    indices.train.sort_unstable();
    indices.validation.sort_unstable();
    Ok(indices)
}

/// Of each class the training rows are put in a random order of their own; the first `validation_per_class` are held
/// out, the next ones are trained on. So the validation rows depend on neither ratio nor cap, and a smaller training
/// set of a class is a part of a larger one.
fn step(params: &Step, labels: &[u32], splits: &[u32], classes: &[String]) -> Result<Indices> {
    let k = classes.len();
    let rows_of = |split: Split, class: u32| -> Vec<u32> {
        (0..labels.len() as u32)
            .filter(|&row| labels[row as usize] == class && splits[row as usize] == split as u32)
            .collect()
    };
    let shuffled = |split: Split, class: u32| -> Vec<u32> {
        let mut rows = rows_of(split, class);
        Stream::new(params.seed, &format!("subsample/{}", split.name()), 0, u64::from(class))
            .shuffle(&mut rows);
        rows
    };
    if params.ratio < 1.0 || !params.ratio.is_finite() {
        return Err(bad(format!("params.ratio: {} is not at least 1", params.ratio)));
    }
    let is_major = |class: usize| match params.majority {
        Majority::FirstHalf => class < k / 2,
    };
    let train: Vec<Vec<u32>> = (0..k as u32).map(|class| shuffled(Split::Train, class)).collect();
    let held = params.validation_per_class;
    let left = |class: usize| train[class].len().saturating_sub(held);
    let smallest = (0..k).filter(|&class| is_major(class)).map(left).min().unwrap_or(0);
    let n_major = params.per_class.unwrap_or(smallest);
    let n_minor = (n_major as f64 / params.ratio).floor() as usize;
    if n_minor == 0 {
        return Err(bad(format!(
            "params.ratio: {} leaves no example of a minority class: a majority class has {n_major}\n\
             hint: raise `per_class`, or lower `ratio` or `validation_per_class`",
            params.ratio
        )));
    }
    let mut indices = Indices {
        train: Vec::new(),
        validation: Vec::new(),
        test: Vec::new(),
        meta: IndicesMeta {
            ratio: params.ratio,
            n_major: n_major as u64,
            validation_per_class: held as u64,
            seed: params.seed,
            counts: Counts { train: vec![0; k], validation: vec![0; k], test: vec![0; k] },
            majority: (0..k as u32).filter(|&class| is_major(class as usize)).collect(),
            minority: (0..k as u32).filter(|&class| !is_major(class as usize)).collect(),
        },
    };
    for class in 0..k {
        let n = if is_major(class) { n_major } else { n_minor };
        if train[class].len() < held + n {
            return Err(bad(format!(
                "class {class} ({}): {} training examples, {held} for validation and {n} for training are asked for",
                classes[class],
                train[class].len()
            )));
        }
        let mut test = shuffled(Split::Test, class as u32);
        if let Some(cap) = params.test_per_class {
            if test.len() < cap {
                let (name, has) = (&classes[class], test.len());
                return Err(bad(format!("class {class} ({name}): {has} test examples, {cap} are asked for")));
            }
            test.truncate(cap);
        }
        let counts = &mut indices.meta.counts;
        (counts.train[class], counts.validation[class]) = (n as u64, held as u64);
        counts.test[class] = test.len() as u64;
        indices.validation.extend(&train[class][..held]);
        indices.train.extend(&train[class][held..held + n]);
        indices.test.extend(test);
    }
    indices.train.sort_unstable();
    indices.validation.sort_unstable();
    indices.test.sort_unstable();
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Four classes, 50 training and 8 test rows each, in turns.
    fn set() -> (Vec<u32>, Vec<u32>, Vec<String>) {
        let labels = (0..232).map(|row| row % 4).collect();
        let splits = (0..232).map(|row| if row < 200 { 0 } else { 2 }).collect();
        (labels, splits, ["a", "b", "c", "d"].map(String::from).to_vec())
    }

    fn chosen(text: &str) -> Result<Indices> {
        let (labels, splits, classes) = set();
        let Params::Step(params) = serde_json::from_str(text).unwrap() else { panic!("step is expected") };
        step(&params, &labels, &splits, &classes)
    }

    const BASE: &str =
        r#"{"scheme":"step","ratio":10,"majority":"first-half","validation_per_class":5,"seed":0}"#;

    #[test]
    fn counts_by_hand() {
        let indices = chosen(BASE).unwrap();
        let meta = &indices.meta;
        assert_eq!(meta.n_major, 45);
        assert_eq!(meta.counts.train, [45, 45, 4, 4]);
        assert_eq!(meta.counts.validation, [5; 4]);
        assert_eq!(meta.counts.test, [8; 4]);
        assert_eq!((&meta.majority[..], &meta.minority[..]), (&[0, 1][..], &[2, 3][..]));
        let (labels, splits, _) = set();
        for class in 0..4 {
            let n = |rows: &[u32]| rows.iter().filter(|&&r| labels[r as usize] == class).count() as u64;
            assert_eq!(n(&indices.train), meta.counts.train[class as usize]);
            assert_eq!(n(&indices.validation), 5);
        }
        assert!(indices.train.iter().chain(&indices.validation).all(|&r| splits[r as usize] == 0));
        let all: BTreeSet<u32> = indices.train.iter().chain(&indices.validation).copied().collect();
        assert_eq!(
            all.len(),
            indices.train.len() + indices.validation.len(),
            "held-out rows are not trained on"
        );
    }

    #[test]
    fn other_ratios_and_caps_share_rows() {
        let ten = chosen(BASE).unwrap();
        let two = chosen(&BASE.replace("10", "2")).unwrap();
        let capped = chosen(&BASE.replace("\"seed\"", "\"per_class\":20,\"seed\"")).unwrap();
        assert_eq!(ten.validation, two.validation);
        assert_eq!(ten.validation, capped.validation);
        let two: BTreeSet<u32> = two.train.iter().copied().collect();
        assert!(ten.train.iter().all(|row| two.contains(row)));
        assert_eq!(capped.meta.counts.train, [20, 20, 2, 2]);
        assert!(capped.train.iter().all(|row| ten.train.contains(row)));
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(chosen(BASE).unwrap(), chosen(BASE).unwrap());
        assert_ne!(
            chosen(BASE).unwrap().train,
            chosen(&BASE.replace("\"seed\":0", "\"seed\":1")).unwrap().train
        );
    }

    #[test]
    fn what_cannot_be_chosen() {
        let error = chosen(&BASE.replace("10", "100")).unwrap_err().to_string();
        assert!(error.starts_with("params.ratio: 100 leaves no example of a minority class"), "{error}");
        let error = chosen(&BASE.replace("\"seed\"", "\"per_class\":46,\"seed\"")).unwrap_err().to_string();
        let expected =
            "class 0 (a): 50 training examples, 5 for validation and 46 for training are asked for";
        assert_eq!(error, expected);
        let error =
            chosen(&BASE.replace("\"seed\"", "\"test_per_class\":9,\"seed\"")).unwrap_err().to_string();
        assert_eq!(error, "class 0 (a): 8 test examples, 9 are asked for");
        let error = chosen(&BASE.replace("10", "0.5")).unwrap_err().to_string();
        assert_eq!(error, "params.ratio: 0.5 is not at least 1");
    }

    #[test]
    fn published_splits_stay() {
        let groups = [0, 1, 1, 1, 0, 1, 1, 0];
        let splits = [0, 0, 0, 0, 1, 1, 2, 2];
        let chosen = |text: &str| {
            let Params::Published(params) = serde_json::from_str(text).unwrap() else { panic!("published") };
            published(&params, &groups, &splits, 2)
        };
        let all = chosen(r#"{"scheme":"published"}"#);
        assert_eq!(
            (&all.train[..], &all.validation[..], &all.test[..]),
            (&[0, 1, 2, 3][..], &[4, 5][..], &[6, 7][..])
        );
        assert_eq!(all.meta.counts, Counts { train: vec![1, 3], validation: vec![1, 1], test: vec![1, 1] });
        let two = chosen(r#"{"scheme":"published","per_group":2,"seed":1}"#);
        let one = chosen(r#"{"scheme":"published","per_group":1,"seed":1}"#);
        assert_eq!((two.train.len(), one.train.len()), (3, 2));
        assert!(one.train.iter().all(|row| two.train.contains(row)));
        let wrong = serde_json::from_str::<Params>(r#"{"scheme":"published","ratio":10}"#).unwrap_err();
        assert!(wrong.to_string().contains("unknown field `ratio`"), "{wrong}");
    }

    #[test]
    fn the_same_of_each_group_is_held_out() {
        // Validation rows: 4 of group 0 (rows 2 to 5), 3 of group 1 (rows 6 to 8).
        let groups = [0, 1, 0, 0, 0, 0, 1, 1, 1, 0];
        let splits = [0, 0, 1, 1, 1, 1, 1, 1, 1, 2];
        let chosen = |share: f64| held_out(&HeldOut { share, seed: 0 }, &groups, &splits, 2);
        let indices = chosen(0.7).unwrap();
        let of = |rows: &[u32], g: u32| rows.iter().filter(|&&row| groups[row as usize] == g).count();
        assert_eq!((of(&indices.train, 0), of(&indices.train, 1)), (2, 2));
        assert_eq!((of(&indices.validation, 0), of(&indices.validation, 1)), (2, 1));
        let all: BTreeSet<u32> = indices.train.iter().chain(&indices.validation).copied().collect();
        assert_eq!(all, (2..9).collect());
        assert_eq!(indices.test, [9]);
        assert_eq!(
            indices.meta.counts,
            Counts { train: vec![1, 1], validation: vec![2, 1], test: vec![1, 0] }
        );
        let error = chosen(0.3).unwrap_err().to_string();
        assert!(error.starts_with("params.share: 0.3 of the rarest group's 3 validation rows"), "{error}");
        assert_eq!(chosen(1.0).unwrap_err().to_string(), "params.share: 1 is not between 0 and 1");
    }
}
