//! The report stage: tables, figures, claims and provenance → one offline page with its files beside it. Knows what must
//! be there and reads it; how it looks stands in `report/page.rs` and `report/appendix.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::claims::{Claims, Judged, Measurements, Scope, judge};
use crate::figure::{self, Figure};
use crate::job::{self, Job, NamedInput, bad, read_json};
use crate::table::{self, Fidelity, Table};

mod appendix;
mod page;
mod theory;

/// The version of the provenance document that this program reads.
const PROVENANCE: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    title: String,
    /// How this run is smaller than the paper's; empty: it is not, and verdicts are shown.
    reduced: String,
    /// The part of the paper whose claims and readings are shown.
    #[serde(default)]
    scope: Scope,
    /// What was set, beside what the paper set.
    settings: Vec<Setting>,
    /// Where this reproduction does otherwise, in every profile.
    deviations: Vec<Deviation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    what: String,
    paper: Value,
    here: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deviation {
    what: String,
    paper: String,
    here: String,
    why: String,
}

/// The engine's account of what led here.
#[derive(Debug, Deserialize)]
struct Provenance {
    version: u32,
    profile: String,
    vars: BTreeMap<String, Value>,
    /// Upstream before downstream.
    stages: Vec<Stage>,
}

/// One stage of it.
#[derive(Debug, Deserialize)]
struct Stage {
    name: String,
    #[serde(default)]
    kind: Option<String>,
    key: String,
    #[serde(default)]
    command: Value,
    #[serde(default)]
    params: Value,
    /// By the input's name: an upstream's name, or a list of them.
    #[serde(default)]
    inputs: BTreeMap<String, Value>,
    tree: String,
    #[serde(default)]
    code: Vec<Code>,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    repeatable: Value,
}

#[derive(Debug, Deserialize)]
struct Code {
    path: String,
    digest: String,
}

/// A figure with what is drawn.
struct Drawn {
    figure: Figure,
    /// Legend and panels, as the figure stage wrote them.
    fragment: String,
}

/// All that the page is made of.
struct Content {
    params: Params,
    claims: Claims,
    provenance: Provenance,
    tables: Vec<Table>,
    figures: Vec<Drawn>,
    /// Of all tables and figures.
    measurements: Measurements,
    sources: Vec<Fidelity>,
    /// What the target `theory` came to, where this page takes it.
    theory: Option<theory::Verdicts>,
}

impl Content {
    /// Whether numbers may be judged.
    fn judges(&self) -> bool {
        self.params.reduced.trim().is_empty()
    }

    /// A table's or figure's file as it leaves the report: of a reduced run it says so itself.
    fn marked(&self, file: &Path, text: String) -> String {
        if self.judges() {
            return text;
        }
        let note = self.params.reduced.split_whitespace().collect::<Vec<_>>().join(" ");
        match file.extension().and_then(|e| e.to_str()) {
            Some("md") => format!("{text}\nReduced: {note}\n"),
            Some("tex") => format!("% Reduced: {note}\n{text}"),
            Some("csv") => {
                let mark =
                    |(i, line): (usize, &str)| format!("{line},{}\n", if i == 0 { "reduced" } else { "yes" });
                text.lines().enumerate().map(mark).collect()
            }
            Some("svg") => {
                let note = note.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                match text.find("<svg").and_then(|svg| Some(svg + text[svg..].find('>')? + 1)) {
                    Some(end) => format!("{}<desc>Reduced: {note}</desc>{}", &text[..end], &text[end..]),
                    None => text,
                }
            }
            _ => text,
        }
    }

    fn verdicts(&self) -> Vec<Judged<'_>> {
        self.claims.claims.iter().map(|c| judge(&self.claims, c, &self.measurements)).collect()
    }

    /// The anchor of a stage, by its name or by a name with a path in its output.
    fn stage(&self, name: &str) -> Option<String> {
        let base = name.split_once("]/").map_or(name, |(base, _)| &name[..base.len() + 1]);
        let base = if base.contains('[') { base } else { base.split('/').next().unwrap_or(base) };
        self.provenance.stages.iter().position(|s| s.name == base).map(|i| format!("s{i}"))
    }
}

/// Runs the stage. Inputs: `tables`, `figures` (lists of folders), `claims`, `provenance` (files), optionally `theory` (the
/// verdicts of a theory's report, as committed). Output: `index.html`, `tables/ID.{md,tex,csv}`, `figures/ID.{svg,csv}`; of the
/// theory `tables/verdicts.json` too, where numbers may be judged.
///
/// Errors: `BadInput` for a missing or foreign file, two tables or figures of one id.
pub fn run(job: Job) -> Result<()> {
    let (content, files) = read(&job)?;
    for (from, to) in files {
        let text = fs::read_to_string(&from).map_err(|e| bad(format!("{}: {e}", from.display())))?;
        job::write(&job.out().join(&to), content.marked(&to, text).as_bytes())?;
    }
    if content.params.scope == Scope::Theory && content.judges() {
        job::write_json(&job.out().join("tables/verdicts.json"), &theory::Verdicts::of(&content))?;
    }
    job::write(&job.out().join("index.html"), page::html(&content).into_string().as_bytes())
}

/// Files to copy: from, to.
type Copies = Vec<(PathBuf, PathBuf)>;

fn read(job: &Job) -> Result<(Content, Copies)> {
    let params: Params = job.params()?;
    let claims = Claims::read(&job.input("claims")?)?.within(params.scope);
    let provenance: Provenance = read_json(&job.input("provenance")?)?;
    if provenance.version != PROVENANCE {
        return Err(bad(format!(
            "inputs.provenance: version: {} is unknown, this program reads {PROVENANCE}",
            provenance.version
        )));
    }
    let mut files = vec![];
    let mut copy = |from: &Path, folder: &str, stem: &str, id: &str, endings: &[&str]| {
        files.extend(
            endings
                .iter()
                .map(|e| (from.join(format!("{stem}.{e}")), Path::new(folder).join(format!("{id}.{e}")))),
        );
    };
    let mut tables: Vec<Table> = vec![];
    for input in job.inputs("tables")? {
        let table: Table = versioned(&input, "table.json", table::VERSION)?;
        unique(&input, &table.id, tables.iter().map(|t| &t.id))?;
        copy(&input.path, "tables", "table", &table.id, &["md", "tex", "csv"]);
        tables.push(table);
    }
    let mut figures: Vec<Drawn> = vec![];
    for input in job.inputs("figures")? {
        let figure: Figure = versioned(&input, "figure.json", figure::VERSION)?;
        unique(&input, &figure.id, figures.iter().map(|f| &f.figure.id))?;
        copy(&input.path, "figures", "figure", &figure.id, &["svg", "csv"]);
        figures.push(Drawn { fragment: fragment(&input)?, figure });
    }
    let mut measurements = Measurements::new();
    let mut sources = vec![];
    let parts = tables.iter().map(|t| (&t.measurements, &t.sources));
    for (measured, from) in parts.chain(figures.iter().map(|f| (&f.figure.measurements, &f.figure.sources))) {
        for (id, one) in measured {
            measurements.entry(id.clone()).or_insert_with(|| one.clone());
        }
        sources.extend(from.iter().cloned());
    }
    sources.sort();
    sources.dedup();
    let theory =
        job.has_input("theory").then(|| theory::Verdicts::read(&job.input("theory")?)).transpose()?;
    Ok((Content { params, claims, provenance, tables, figures, measurements, sources, theory }, files))
}

/// A JSON file of an upstream's folder, with its version looked at before its fields.
fn versioned<T: serde::de::DeserializeOwned>(input: &NamedInput, file: &str, version: u32) -> Result<T> {
    let path = input.path.join(file);
    let value: Value = read_json(&path)?;
    let found = value.get("version").cloned().unwrap_or(Value::Null);
    if found != version {
        return Err(bad(format!(
            "{}: {file}: version: {found} is unknown, this program reads {version}",
            input.name
        )));
    }
    serde_json::from_value(value).map_err(|e| bad(format!("{}: {file}: {e}", input.name)))
}

fn unique<'a>(input: &NamedInput, id: &str, mut others: impl Iterator<Item = &'a String>) -> Result<()> {
    let plain = !id.is_empty()
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !id.starts_with('.');
    match (plain, others.any(|o| o == id)) {
        (true, false) => Ok(()),
        (true, true) => Err(bad(format!("{}: id: `{id}` stands twice", input.name))),
        (false, _) => Err(bad(format!("{}: id: `{id}` is no plain word", input.name))),
    }
}

/// The drawing of a figure stage; it goes into the page as it is, so nothing may come with it that acts or calls out.
fn fragment(input: &NamedInput) -> Result<String> {
    let path = input.path.join("figure.html");
    let text = fs::read_to_string(&path).map_err(|e| bad(format!("{}: figure.html: {e}", input.name)))?;
    let lower = text.to_lowercase().replace("http://www.w3.org/2000/svg", "");
    let foreign = [
        "<script",
        "<iframe",
        "<object",
        "<embed",
        "<link",
        "javascript:",
        "http:",
        "https:",
        "@import",
        "url(",
    ];
    match foreign.iter().find(|f| lower.contains(**f)) {
        Some(found) => {
            Err(bad(format!("{}: figure.html: holds `{found}`, which has no place in a report", input.name)))
        }
        None => Ok(text),
    }
}
