//! Views for machines: events as lines of JSON, annotations and a summary for GitHub Actions. Consumers of events and of
//! nothing else.

use std::fs::OpenOptions;
use std::io::{self, Write};

use crate::event::{Event, View};

/// Every event as a line of JSON on stdout.
pub struct Json;

impl View for Json {
    fn event(&mut self, event: &Event) {
        let Ok(line) = serde_json::to_string(event) else { return };
        let mut out = io::stdout().lock();
        // A reader that is gone must not end a run.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Annotations on stdout, and at the end a summary in the file that the runner names.
pub struct GitHub {
    summary: Option<std::path::PathBuf>,
    failed: Vec<(String, String)>,
}

impl GitHub {
    /// The view, where GitHub Actions runs us.
    pub fn here() -> Option<GitHub> {
        let on = std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
        let summary = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|v| !v.is_empty()).map(Into::into);
        on.then(|| GitHub { summary, failed: Vec::new() })
    }
}

/// Data of a workflow command: what would end it is escaped, as the runner's documentation says.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a workflow command, in which `:` and `,` have a meaning besides.
fn property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text within a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', "<br>")
}

impl View for GitHub {
    fn event(&mut self, event: &Event) {
        let command = |level: &str, title: &str, text: &str| {
            let mut out = io::stdout().lock();
            let _ = writeln!(out, "::{level} title={}::{}", property(title), escaped(text));
        };
        match event {
            Event::Warning { text } => command("warning", "itpipe", text),
            Event::Failed { stage, error, tail, .. } => {
                let text = [std::slice::from_ref(error), tail.as_slice()].concat().join("\n");
                command("error", &format!("{stage} failed"), &text);
                self.failed.push((stage.clone(), error.clone()));
            }
            Event::Ended { summary } => {
                let Some(path) = &self.summary else { return };
                let mut text = format!("### itpipe: {}\n\n", super::summary_line(summary));
                if !self.failed.is_empty() {
                    text += "| failed | why |\n|---|---|\n";
                    for (stage, error) in &self.failed {
                        text += &format!("| {} | {} |\n", cell(stage), cell(error));
                    }
                    text += "\n";
                }
                for (stage, path) in &summary.published {
                    text += &format!("- {stage}: `{path}`\n");
                }
                let file = OpenOptions::new().create(true).append(true).open(path);
                let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
            }
            _ => {}
        }
    }
}
