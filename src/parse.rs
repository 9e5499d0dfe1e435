//! YAML to `Pipeline`: every error at once, each with its place. Knows nothing of keys, files' contents or processes.

use std::fmt;
use std::path::Path;

use crate::pipeline::{Location, Pipeline};

/// One thing that is wrong in `pipeline.yaml` or on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it stands.
    pub location: Location,
    /// The field, as `stages.train.kind`; empty for the whole file.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Reads `file` (a pipeline of the repository at `root`) for one profile; `overrides` are the `-S name=value` of the
/// command line, their values YAML.
pub fn load(
    root: &Path,
    file: &Path,
    profile: Option<&str>,
    overrides: &[(String, String)],
) -> Result<Pipeline, Diagnostics> {
    let _ = (root, profile, overrides);
    let location = Location { file: file.display().to_string().into(), line: 0, column: 0 };
    Err(Diagnostics(vec![Diagnostic {
        location,
        field: String::new(),
        message: "the parser has not landed".into(),
        hint: None,
    }]))
}
