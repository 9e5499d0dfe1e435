//! Actions and their keys: the manifest of all that may change a stage's bytes, hashed and printed by one traversal.
//! Knows no store, no schedule and no process; the digests are handed to it.

use std::collections::BTreeMap;

use crate::digest::{Digest, Encoder};
use crate::pipeline::{Command, Kind, Promise, Repeatable, Stage, Value};

/// The version of the manifest; a change of meaning must change it, and with it every key.
pub const FORMAT: &str = "1";

/// Whose contents an input has, as far as the stage can see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputDigest {
    /// One file or folder; where it came from is not visible to the stage.
    One(Digest),
    /// A list: the name of each source is visible to the stage.
    Many(Vec<(String, Digest)>),
}

/// A stage with everything that its key is made of.
#[derive(Debug)]
pub struct Action<'a> {
    pub stage: &'a Stage,
    /// The pipeline's salt.
    pub salt: &'a str,
    /// Digest of word 0 where it is a file of the repository.
    pub program: Option<Digest>,
    /// Every file of `code` with its digest, sorted by path.
    pub code: &'a [(String, Digest)],
    /// What the identity command printed.
    pub identity: Option<&'a str>,
    /// The declared environment variables with their values.
    pub env: &'a [(String, Option<String>)],
    /// The inputs in the order of the stage's.
    pub inputs: &'a [(String, InputDigest)],
}

/// What a key is made of: a field path and its value per line, in the order in which they are hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub lines: Vec<(String, String)>,
}

impl Manifest {
    /// The key: the digest of the lines.
    pub fn key(&self) -> Digest {
        let mut encoder = Encoder::new("itpipe action");
        for (field, value) in &self.lines {
            encoder.text(field);
            encoder.text(value);
        }
        encoder.finish()
    }

    fn push(&mut self, field: impl Into<String>, value: impl Into<String>) {
        self.lines.push((field.into(), value.into()));
    }
}

/// A field whose value is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub field: String,
    /// None: the field is new.
    pub old: Option<String>,
    /// None: the field is gone.
    pub new: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |value: &Option<String>| value.as_deref().map_or("(none)".to_string(), flat);
        let (old, new) = (show(&self.old), show(&self.new));
        // What two long texts have in common at the start is left out, but for a few characters.
        let same = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
        let long = old.chars().count().max(new.chars().count()) > SHOWN;
        let skip = if long && same > SHOWN / 2 { same - SHOWN / 6 } else { 0 };
        write!(f, "{}: {} -> {}", self.field, cut(&old, skip), cut(&new, skip))
    }
}

/// Characters of a value that are shown.
const SHOWN: usize = 120;

fn cut(text: &str, skip: usize) -> String {
    let begin = if skip > 0 { "…" } else { "" };
    let shown: String = text.chars().skip(skip).take(SHOWN).collect();
    let end = if text.chars().nth(skip + SHOWN).is_some() { "…" } else { "" };
    format!("{begin}{shown}{end}")
}

/// A value on one line, with short digests.
fn flat(value: &str) -> String {
    let words = value.trim_end().split(' ').map(|word| match word.parse::<Digest>() {
        Ok(digest) => digest.short(),
        Err(_) => word.to_string(),
    });
    words.collect::<Vec<_>>().join(" ").replace('\n', " ⏎ ")
}

impl Action<'_> {
    /// The manifest. A fixed stage whose promises are all known is nothing but its promises.
    pub fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::default();
        manifest.push("format", FORMAT);
        let stage = self.stage;
        if let Some(files) = stage.files.as_ref().filter(|_| stage.kind.fixed) {
            let pinned = !files.is_empty() && files.values().all(|promise| promise.sha256.is_some());
            if !pinned {
                // What decides what comes is part of the key; how the downloader is written is not.
                manifest.push("salt", self.salt);
                push_command(&mut manifest, &stage.kind.command);
                push_map(&mut manifest, "params", &stage.params);
                push_env(&mut manifest, self.env);
                push_inputs(&mut manifest, self.inputs);
            }
            push_promises(&mut manifest, files);
            return manifest;
        }
        manifest.push("salt", self.salt);
        push_command(&mut manifest, &stage.kind.command);
        if let Some(program) = self.program {
            manifest.push("program", program.to_string());
        }
        push_map(&mut manifest, "params", &stage.params);
        for (path, digest) in self.code {
            manifest.push(format!("code.{path}"), digest.to_string());
        }
        if let Some(identity) = self.identity {
            manifest.push("identity", identity);
        }
        push_env(&mut manifest, self.env);
        push_inputs(&mut manifest, self.inputs);
        manifest.push("repeatable", stage.kind.repeatable.to_string());
        manifest
    }
}

/// Whether a fixed stage promises every digest.
pub fn is_pinned(stage: &Stage) -> bool {
    let known =
        |files: &BTreeMap<String, Promise>| !files.is_empty() && files.values().all(|p| p.sha256.is_some());
    stage.kind.fixed && stage.files.as_ref().is_some_and(known)
}

fn push_command(manifest: &mut Manifest, command: &Command) {
    match command {
        Command::Shell(text) => manifest.push("shell", text),
        Command::Argv(words) => {
            for (i, word) in words.iter().enumerate() {
                manifest.push(format!("run[{i}]"), word);
            }
        }
    }
}

fn push_env(manifest: &mut Manifest, env: &[(String, Option<String>)]) {
    for (name, value) in env {
        manifest.push(format!("env.{name}"), env_text(name, value.as_deref()));
    }
}

fn push_inputs(manifest: &mut Manifest, inputs: &[(String, InputDigest)]) {
    for (name, input) in inputs {
        match input {
            InputDigest::One(digest) => manifest.push(format!("inputs.{}", word(name)), digest.to_string()),
            InputDigest::Many(list) => {
                for (i, (source, digest)) in list.iter().enumerate() {
                    manifest.push(format!("inputs.{}[{i}]", word(name)), format!("{source} {digest}"));
                }
            }
        }
    }
}

fn push_promises(manifest: &mut Manifest, files: &BTreeMap<String, Promise>) {
    for (path, promise) in files {
        let sha256 = promise.sha256.as_deref().unwrap_or("unknown");
        let size = promise.size.map_or("unknown".to_string(), |size| size.to_string());
        manifest.push(format!("files.{path}"), format!("{sha256} {size}"));
    }
}

fn push_map(manifest: &mut Manifest, field: &str, map: &BTreeMap<String, Value>) {
    for (name, value) in map {
        push_value(manifest, format!("{field}.{}", word(name)), value);
    }
}

/// One line per leaf, so that a change names the very leaf. Leaves are JSON: `1`, `1.0` and `"1"` differ.
fn push_value(manifest: &mut Manifest, field: String, value: &Value) {
    match value {
        Value::List(list) if !list.is_empty() => {
            for (i, value) in list.iter().enumerate() {
                push_value(manifest, format!("{field}[{i}]"), value);
            }
        }
        Value::Map(map) if !map.is_empty() => push_map(manifest, &field, map),
        leaf => manifest.push(field, leaf.to_json().to_string()),
    }
}

/// A name as part of a field path: as it is, or in quotes where it could be read as two parts.
fn word(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-/+@".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => name.to_string(),
        false => serde_json::Value::from(name).to_string(),
    }
}

/// What a key says of a variable; of one that looks like a secret only a digest, since manifests are kept and shown.
fn env_text(name: &str, value: Option<&str>) -> String {
    match value {
        None => "unset".to_string(),
        Some(value) if is_secret(name) => format!("secret {}", Digest::of(value.as_bytes())),
        Some(value) => serde_json::Value::from(value).to_string(),
    }
}

/// Whether a variable with this name holds something that must not be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let ends = ["TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS"];
    ends.iter().any(|end| name == *end || name.ends_with(&format!("_{end}"))) || name.contains("_TOKEN_")
}

/// The values of the declared variables in our own environment.
pub fn declared_env(kind: &Kind) -> Vec<(String, Option<String>)> {
    let value = |name: &String| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let mut env: Vec<_> = kind.env.iter().map(|name| (name.clone(), value(name))).collect();
    // The order in which they are declared means nothing.
    env.sort();
    env.dedup();
    env
}

/// Our own variables that a stage may see without declaring them, and the values that no log may show.
pub fn inherited_env(names: &[&str]) -> Vec<(String, String)> {
    let value = |name: &&str| std::env::var_os(name).and_then(|v| v.into_string().ok());
    names.iter().filter_map(|name| Some((name.to_string(), value(name)?))).collect()
}

/// Shorter values of secret variables are not looked for: they would be found in ordinary text.
pub const SHORTEST_SECRET: usize = 6;

/// The values of all variables of ours that look like secrets.
pub fn secrets() -> Vec<String> {
    let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let lines = |value: String| value.lines().map(str::to_string).chain([value.clone()]).collect::<Vec<_>>();
    // A log is masked line by line, so each line of a key that has several counts.
    let mut secrets: Vec<String> = vars
        .filter(|(name, _)| is_secret(name))
        .flat_map(|(_, value)| lines(value))
        .filter(|text| text.len() >= SHORTEST_SECRET)
        .collect();
    // The longest first: one may be part of another.
    secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
    secrets.dedup();
    secrets
}

/// What differs, in the order in which a reader looks for a cause: what he wrote, then code, then what came from
/// upstream.
pub fn changes(old: &[(String, String)], new: &[(String, String)]) -> Vec<Change> {
    let before: BTreeMap<&str, &str> = old.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let after: BTreeMap<&str, &str> = new.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let text = |value: Option<&&str>| value.map(|v| v.to_string());
    let mut changes: Vec<Change> = new
        .iter()
        .filter(|(field, value)| before.get(field.as_str()) != Some(&value.as_str()))
        .map(|(field, value)| Change {
            field: field.clone(),
            old: text(before.get(field.as_str())),
            new: Some(value.clone()),
        })
        .chain(
            old.iter()
                .filter(|(field, _)| !after.contains_key(field.as_str()))
                .map(|(field, value)| Change { field: field.clone(), old: Some(value.clone()), new: None }),
        )
        .collect();
    changes.sort_by_key(|change| rank(&change.field));
    changes
}

fn rank(field: &str) -> usize {
    const ORDER: [&str; 10] =
        ["format", "salt", "run", "shell", "program", "params", "files", "env", "code", "identity"];
    let head = field.split(['.', '[']).next().unwrap_or_default();
    ORDER.iter().position(|name| *name == head).unwrap_or(ORDER.len())
}

/// How a repeatable class compares two results of one key.
pub fn must_be_equal(repeatable: Repeatable) -> bool {
    repeatable == Repeatable::Bits
}

#[cfg(test)]
mod tests;
