//! YAML to `Pipeline`: every error at once, each with its place. Knows nothing of keys, files' contents or processes.

//!
//! The steps, each a module: `yaml` (text → tree with places), `vars` (profiles, overrides, variables), `kinds`
//! (programs, pools, kinds), `matrix`, `inputs` and `stages`; `expression` evaluates `{…}`, `fields` reads typed values,
//! `report` collects what is wrong. A step reports and goes on, so that one run shows all mistakes.

pub mod compiled;
mod expression;
mod fields;
mod inputs;
mod kinds;
mod licences;
mod matrix;
mod report;
mod stages;
mod vars;
mod yaml;

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::digest::Digest;
use crate::pipeline::{Location, Pipeline, Value};
use expression::Scope;
use report::{At, Path as Field, Sink};
use yaml::{Data, Node};

pub use report::{Problem, Shown, nearest, suggest};

/// The version of the format that is read here.
const VERSION: i64 = 1;

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
/// command line, their values YAML. Cycles between stages are left to `Graph::new`.
pub fn load(
    root: &Path,
    file: &Path,
    profile: Option<&str>,
    overrides: &[(String, String)],
) -> Result<Pipeline, Diagnostics> {
    load_with(root, file, profile, overrides, None).map(|(pipeline, _)| pipeline)
}

/// The same with the folder of a store, in which a large pipeline may have been kept. Where it was not, and is worth it,
/// the key under which [`compiled::save`] keeps it.
pub fn load_with(
    root: &Path,
    file: &Path,
    profile: Option<&str>,
    overrides: &[(String, String)],
    cache: Option<&Path>,
) -> Result<(Pipeline, Option<Digest>), Diagnostics> {
    let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let text = read(file).map_err(|(message, hint)| {
        let location = Location { file: shown.as_str().into(), line: 0, column: 0 };
        Diagnostics(vec![Diagnostic { location, field: String::new(), message, hint }])
    })?;
    let key = cache.and_then(|_| compiled::key(&text, &shown, profile, overrides));
    if let Some(pipeline) = cache.zip(key).and_then(|(cache, key)| compiled::load(cache, &key)) {
        return Ok((pipeline, None));
    }
    Ok((parse(&text, &shown, profile, overrides)?, key))
}

/// As `load`, from a text; `file` is its name in messages.
pub fn parse(
    text: &str,
    file: &str,
    profile: Option<&str>,
    overrides: &[(String, String)],
) -> Result<Pipeline, Diagnostics> {
    let mut sink = Sink::new(file);
    let pipeline = pipeline(text, profile, overrides, &mut sink);
    sink.finish()?;
    // Nothing is only returned with an error in the sink; should that ever fail, the message still says where.
    pipeline.ok_or_else(|| {
        let location = Location { file: file.into(), line: 1, column: 1 };
        let message = "the file could not be read as a pipeline".to_owned();
        Diagnostics(vec![Diagnostic { location, field: String::new(), message, hint: None }])
    })
}

fn read(file: &Path) -> Result<String, (String, Option<String>)> {
    let mut bytes = Vec::new();
    let handle = std::fs::File::open(file).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                Some("run in the folder that has pipeline.yaml, or name the file".to_owned())
            }
            _ => None,
        };
        (format!("cannot be read: {}", error.to_string().to_lowercase()), hint)
    })?;
    // One byte more than is allowed tells a file that is too large, and works for a pipe too.
    handle
        .take(yaml::MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| (format!("cannot be read: {}", error.to_string().to_lowercase()), None))?;
    if bytes.len() as u64 > yaml::MAX_BYTES {
        return Err((format!("is larger than {} MiB", yaml::MAX_BYTES >> 20), None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count() + 1;
        (format!("is not UTF-8 text (line {line})"), Some("save it as UTF-8".to_owned()))
    })
}

fn pipeline(
    text: &str,
    profile: Option<&str>,
    overrides: &[(String, String)],
    sink: &mut Sink,
) -> Option<Pipeline> {
    const FIELDS: [&str; 10] = [
        "version",
        "default-profile",
        "salt",
        "vars",
        "profiles",
        "pools",
        "programs",
        "licences",
        "kinds",
        "stages",
    ];
    let top = Field::Root;
    let node = yaml::parse(text, 0, sink)?;
    let example = "begin with version: 1 and stages:".to_owned();
    if let Data::Null = node.data {
        sink.report(node.at, &top, Problem::hinted("the file is empty", example));
        return None;
    }
    let root = fields::fields(&node, &FIELDS, &top, sink)?;
    check_version(&node, &root, sink);
    let (profile, nodes, origins) = vars::profile_and_nodes(&root, profile, overrides, sink);
    let profile_node = Node::new(At::default(), Data::Text(profile.clone()));
    let left = Cell::new(expression::MAX_WRITTEN);
    let vars = vars::evaluate(nodes, &profile_node, &left, sink);
    let scope = Scope { vars: &vars, profile: &profile_node, axes: &[], left: &left };

    let salt = root.get("salt").and_then(|node| {
        let path = top.key("salt");
        let node = expression::evaluate(node, &scope, &path, sink);
        fields::text(&node, &path, sink).map(str::to_owned)
    });
    let pools = kinds::pools(&root, &scope, sink);
    let programs = kinds::programs(&root, &scope, sink);
    let licences = licences::licences(&root, &scope, sink);
    let known = kinds::Known { programs: &programs, pools: &pools, licences: &licences };
    let kinds = kinds::kinds(&root, &known, &scope, sink);
    match root.get("stages") {
        None => sink.report(node.at, &top, Problem::hinted("there are no stages", example)),
        Some(Node { data: Data::Null, at, .. }) => {
            sink.report(*at, &top.key("stages"), Problem::new("there are no stages"));
        }
        Some(Node { data: Data::Map(map), at, .. }) if map.is_empty() => {
            sink.report(*at, &top.key("stages"), Problem::new("there are no stages"));
        }
        Some(_) => {}
    }
    let stages = stages::stages(&root, &known, &kinds, &scope, sink);
    stages::check_published(&root, &stages, sink);
    let vars: std::collections::BTreeMap<String, Value> =
        vars.iter().map(|(name, node)| (name.clone(), fields::value(node))).collect();
    let overridden = !overrides.is_empty();
    Some(Pipeline {
        profile,
        salt: salt.unwrap_or_default(),
        pools,
        programs,
        licences,
        vars,
        origins,
        stages,
        overridden,
    })
}

fn check_version(node: &Node, root: &fields::Fields, sink: &mut Sink) {
    let top = Field::Root;
    let path = top.key("version");
    match root.get("version") {
        None => {
            sink.report(
                node.at,
                &top,
                Problem::hinted("'version' is missing", format!("begin with version: {VERSION}")),
            );
        }
        Some(Node { data: Data::Int(VERSION), .. }) => {}
        Some(Node { data: Data::Int(other), at, .. }) => {
            let message = format!("version {other} of the format is not known here");
            sink.report(*at, &path, Problem::hinted(message, format!("this itpipe reads version {VERSION}")));
        }
        Some(node) => {
            fields::whole(node, VERSION, VERSION, &path, sink);
        }
    }
}

#[cfg(test)]
mod tests;
