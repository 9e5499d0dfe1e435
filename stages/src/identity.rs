//! `stages identity KIND`: a text that says what compiled the code, for the key. No path, no time, no host. Knows which
//! kinds promise bits of arithmetic; for those it adds the instruction set that is chosen at run time.

use std::io::Write;

use anyhow::Result;

use crate::job::bad;
use crate::nn::cpu::{Form, Isa};

/// The kinds whose results are bits of floating-point arithmetic and so depend on the instruction set.
const ARITHMETIC: &[&str] = &["train", "evaluate", "geometry", "synthetic"];

/// Prints the identity of the kind named by the first word.
pub fn run(words: &[String]) -> Result<()> {
    let [kind] = words else { return Err(bad("one word is expected: the kind")) };
    std::io::stdout().write_all(text(kind)?.as_bytes())?;
    Ok(())
}

/// The identity of a kind, one `name: value` a line.
///
/// Errors: `ITPIPE_ISA` or `ITPIPE_CONVOLUTION` names what is not there.
fn text(kind: &str) -> Result<String> {
    let mut lines = vec![
        format!("rustc: {}", env!("IT_RUSTC")),
        format!("target: {} {}", env!("IT_TARGET"), env!("IT_TARGET_FEATURES")),
        format!("rustflags: {}", env!("IT_RUSTFLAGS")),
        format!("profile: {} opt-level {}", env!("IT_PROFILE"), env!("IT_OPT_LEVEL")),
        format!("features: {}", env!("IT_FEATURES")),
        format!("dependencies: {}", blake3::hash(env!("IT_DEPENDENCIES").as_bytes())),
    ];
    if ARITHMETIC.contains(&kind) {
        lines.push(format!("instruction set: {}", Isa::detect()?.name()));
        // Only where it is forced: the rule that chooses it is code.
        match Form::detect()? {
            Form::Fastest => {}
            form => lines.push(format!("convolutions: {form:?}")),
        }
    }
    Ok(lines.iter().map(|line| line.trim_end().to_string() + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_compiled_it_and_nothing_of_the_place() {
        let text = text("table").unwrap();
        assert_eq!(text, super::text("report").unwrap(), "kinds without arithmetic share one identity");
        let here = env!("CARGO_MANIFEST_DIR");
        assert!(!text.contains(here) && !text.contains("/"), "a path in:\n{text}");
        assert!(text.starts_with("rustc: 1."), "{text}");
        assert!(env!("IT_DEPENDENCIES").contains("candle-core 0.11"), "{}", env!("IT_DEPENDENCIES"));
        assert!(!env!("IT_DEPENDENCIES").contains("petgraph"), "the engine's dependencies are not ours");
        assert!(!env!("IT_DEPENDENCIES").contains("proptest"), "nor are those of the tests");
        let fetches = ["hf-hub 1.", "reqwest 0."];
        assert!(
            !fetches.iter().any(|name| env!("IT_DEPENDENCIES").contains(name)),
            "nor is what fetch alone needs"
        );
        assert!(!text.contains("hf-hub"), "{text}");
    }

    #[test]
    fn only_arithmetic_names_the_instruction_set() {
        assert!(text("train").unwrap().contains("instruction set: "));
        assert!(!text("prepare").unwrap().contains("instruction set: "));
    }
}
