//! MultiNLI (Williams et al. 2018) as a group problem (Sagawa et al. 2020): does the second sentence follow from the
//! first, and does it hold a negation. Facts and the negation rule; labels and splits are group DRO's.

use super::TextSet;

/// The set as the Hub has it (nyu-mll/multi_nli: pairs without a gold label are already left out), with group DRO's
/// `metadata_random.csv`, whose rows are the training, the matched and the mismatched pairs in this order. Groups:
/// contradiction, contradiction with negation, entailment, …, neutral with negation.
pub const SET: TextSet = TextSet {
    name: "multinli",
    files: &[
        "data/train-00000-of-00001.parquet",
        "data/validation_matched-00000-of-00001.parquet",
        "data/validation_mismatched-00000-of-00001.parquet",
    ],
    metadata: "metadata_random.csv",
    texts: ["premise", "hypothesis"],
    // The Hub: 0 entailment, 1 neutral, 2 contradiction. Group DRO: 0 contradiction, 1 entailment, 2 neutral.
    label: ("label", &[1, 2, 0]),
    classes: &["contradiction", "entailment", "neutral"],
    attribute: has_negation,
    attributes: ["no negation", "negation"],
    counts: [
        &[57_498, 11_158, 67_376, 1_521, 66_630, 1_992],
        &[22_814, 4_634, 26_949, 613, 26_655, 797],
        &[34_597, 6_655, 40_496, 886, 39_930, 1_148],
    ],
};

const NEGATIONS: [&str; 4] = ["nobody", "no", "never", "nothing"];

/// Group DRO's rule (`generate_multinli.py`): ASCII punctuation is deleted, not replaced, the rest is put in lower case
/// and cut at single blanks; one of the words is a negation. So "don't" and "not" are none, and "no-one" is "noone".
pub fn has_negation(text: &str) -> bool {
    let words: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    words.to_lowercase().split(' ').any(|word| NEGATIONS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_negation_rule_by_hand() {
        for text in [
            "No.",
            "There is no way",
            "nobody, knows",
            "He NEVER came!",
            "\"Nothing\"",
            "it is (no) use",
            "n.o.",
            // A hyphen between blanks is deleted, the words on both sides stay words.
            "yes - no",
        ] {
            assert!(has_negation(text), "{text}");
        }
        for text in [
            "",
            "not at all",
            "don't",
            "none",
            "know",
            "no-one came",
            "nobody's here",
            // Only a blank separates.
            "yes\tno",
            "yes\nno",
            "yes\u{a0}no",
            // Typographic marks are no ASCII punctuation.
            "\u{201c}no\u{201d}",
        ] {
            assert!(!has_negation(text), "{text}");
        }
    }

    #[test]
    fn the_hubs_labels_become_group_dros() {
        let names = |hub: usize| SET.classes[SET.label.1[hub] as usize];
        assert_eq!([names(0), names(1), names(2)], ["entailment", "neutral", "contradiction"]);
    }

    #[test]
    fn published_counts_add_up() {
        assert_eq!(SET.counts.map(|split| split.iter().sum::<u64>()), [206_175, 82_462, 123_712]);
        let all: Vec<u64> = (0..6).map(|g| SET.counts.iter().map(|split| split[g]).sum()).collect();
        assert_eq!(all, [114_909, 22_447, 134_821, 3_020, 133_215, 3_937]);
    }
}
