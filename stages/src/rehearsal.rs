//! What rehearsed stages tell each other and the engine. Beside a placeholder stands `rehearsal.json`: how large the real
//! thing would be. Knows sizes; knows no stage's work.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::data::{Counts, Split};
use crate::job::{read_json, write_json};

/// The file that marks a placeholder.
pub const FILE: &str = "rehearsal.json";

/// How many rows of each split a real run would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    pub train: usize,
    pub validation: usize,
    pub test: usize,
}

/// What the placeholder in a folder stands for; `None` where the folder holds the real thing.
///
/// Errors: `BadInput` for a file of another kind of placeholder.
pub fn stands_for<T: serde::de::DeserializeOwned>(folder: &Path) -> Result<Option<T>> {
    let path = folder.join(FILE);
    path.is_file().then(|| read_json(&path)).transpose()
}

/// Marks a folder as a placeholder.
pub fn mark(folder: &Path, real: &impl Serialize) -> Result<()> {
    write_json(&folder.join(FILE), real)
}

/// Tells the engine what a real run is likely to take; the last line of a rehearsal that knows it.
pub fn tell(seconds: f64, bytes: Option<u64>, download: Option<u64>) {
    let line = serde_json::json!({"estimate": {"seconds": seconds, "bytes": bytes, "download": download}});
    // A reader that went away is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// At most `most` of these rows, from all over them.
pub fn some(rows: &[u32], most: usize) -> Vec<u32> {
    if rows.len() <= most {
        return rows.to_vec();
    }
    (0..most).map(|i| rows[i * rows.len() / most]).collect()
}

/// Groups and splits of a set with so many examples of each group in each split, one split after the other.
pub fn rows(counts: &Counts) -> (Vec<u32>, Vec<u32>) {
    let (mut groups, mut splits) = (Vec::new(), Vec::new());
    for (split, counts) in
        [(Split::Train, &counts.train), (Split::Validation, &counts.validation), (Split::Test, &counts.test)]
    {
        for (group, n) in counts.iter().enumerate() {
            groups.resize(groups.len() + *n as usize, group as u32);
        }
        splits.resize(groups.len(), split as u32);
    }
    (groups, splits)
}

/// Training examples of a placeholder; a batch is filled by taking them again and again.
const TRAIN: u64 = 256;
/// Examples of each group in the other splits.
const OTHERS: u64 = 8;

/// The counts of a placeholder for a set with these counts: every group that the set has, few of each.
pub fn few(real: &Counts) -> Counts {
    let few = |counts: &[u64], n: u64| counts.iter().map(|count| (*count).min(n)).collect::<Vec<u64>>();
    let groups = real.train.len().max(1) as u64;
    Counts {
        train: few(&real.train, TRAIN.div_ceil(groups)),
        validation: few(&real.validation, OTHERS),
        test: few(&real.test, OTHERS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_from_all_over() {
        let all: Vec<u32> = (0..1000).collect();
        assert_eq!(some(&all, 4), [0, 250, 500, 750]);
        assert_eq!(some(&all[..3], 4), [0, 1, 2]);
    }

    #[test]
    fn a_placeholder_has_every_group() {
        let real = Counts { train: vec![6000, 3], validation: vec![], test: vec![5, 900] };
        let few = few(&real);
        assert_eq!((&few.train, &few.test), (&vec![128, 3], &vec![5, 8]));
        let (groups, splits) = rows(&few);
        assert_eq!((groups.len(), splits.iter().filter(|s| **s == 2).count()), (144, 13));
    }
}
