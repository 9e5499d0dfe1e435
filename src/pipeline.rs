//! What a pipeline is once it has been read: programs, kinds, stages and their inputs, as plain data.
//! Knows neither YAML nor a matrix nor a profile's overrides, and no digest, process or file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A value as a person wrote it. `1` and `1.0` are different values; a map has no order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "serde_json::Value", try_from = "serde_json::Value")]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a point or an exponent; always finite.
    Float(f64),
    /// Text.
    Text(String),
    /// An ordered list.
    List(Vec<Value>),
    /// A map from text to values, sorted by key.
    Map(BTreeMap<String, Value>),
}

impl Value {
    /// The value as plain JSON; whole numbers stay whole and `1.0` stays `1.0`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => (*f).into(),
            Value::Text(s) => s.as_str().into(),
            Value::List(list) => list.iter().map(Value::to_json).collect(),
            Value::Map(map) => {
                serde_json::Value::Object(map.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
            }
        }
    }

    /// What the value is, in a reader's words: `a whole number`, `a list`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl From<Value> for serde_json::Value {
    fn from(value: Value) -> Self {
        value.to_json()
    }
}

impl TryFrom<serde_json::Value> for Value {
    type Error = String;

    /// Fails on a whole number outside `i64`.
    fn try_from(json: serde_json::Value) -> Result<Self, String> {
        use serde_json::Value as Json;
        Ok(match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(b),
            Json::Number(n) => match n.as_i64() {
                Some(i) => Value::Int(i),
                None if n.is_f64() => Value::Float(n.as_f64().unwrap_or_default()),
                None => return Err(format!("the whole number {n} does not fit in 64 bits")),
            },
            Json::String(s) => Value::Text(s),
            Json::Array(list) => {
                Value::List(list.into_iter().map(Value::try_from).collect::<Result<_, _>>()?)
            }
            Json::Object(map) => Value::Map(
                map.into_iter().map(|(k, v)| Ok((k, Value::try_from(v)?))).collect::<Result<_, String>>()?,
            ),
        })
    }
}

/// The text used in the name of an instance and inside other text: text as it is, `0.1`, `1e-10`, `true`, `null`;
/// a list or a map as one line of JSON.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(i) => write!(f, "{i}"),
            // `Debug` keeps the point of 1.0, so that 1 and 1.0 have different texts as they have different keys.
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Text(s) => f.write_str(s),
            Value::List(_) | Value::Map(_) => write!(f, "{}", self.to_json()),
        }
    }
}

/// Where something was written. `line` and `column` count from 1, columns in characters; line 0: no place in a file
/// (an override of the command line), only `file` is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file as the user named it, or `-S name`.
    pub file: Arc<str>,
    /// Line from 1, or 0.
    pub line: u32,
    /// Column from 1, or 0.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => f.write_str(&self.file),
            (line, column) => write!(f, "{}:{line}:{column}", self.file),
        }
    }
}

/// The place of a stage in `Pipeline::stages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId(pub u32);

impl StageId {
    /// The index into `Pipeline::stages`.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Everything that `pipeline.yaml` says for one profile.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The profile in force.
    pub profile: String,
    /// Enters every key; changing it reruns everything.
    pub salt: String,
    /// Capacities that were written; the engine knows the defaults.
    pub pools: BTreeMap<String, u32>,
    /// Executables that the pipeline builds itself, by name.
    pub programs: BTreeMap<String, Program>,
    /// Licences of sources, by id.
    pub licences: BTreeMap<String, Licence>,
    /// The variables in force, after the profile and the overrides.
    pub vars: BTreeMap<String, Value>,
    /// Where each variable has its value from, in a reader's words.
    pub origins: BTreeMap<String, String>,
    /// Instances in declared order; the axes of a matrix vary with the last one fastest.
    pub stages: Vec<Stage>,
    /// Whether a variable was set on the command line; such runs do not write the lock.
    pub overridden: bool,
}

impl Pipeline {
    /// The stage with this id. Ids come from this pipeline only.
    pub fn stage(&self, id: StageId) -> &Stage {
        &self.stages[id.index()]
    }

    /// Every stage with its id, in declared order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (StageId, &Stage)> {
        self.stages.iter().enumerate().map(|(i, stage)| (StageId(i as u32), stage))
    }
}

/// An executable that the pipeline builds.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Word 0 of a kind's `run`.
    pub name: String,
    /// A shell line that makes `path`; none: the file is there already.
    pub build: Option<String>,
    /// The executable, relative to the repository.
    pub path: String,
    /// Files and folders whose change asks for a new build.
    pub sources: Vec<String>,
    /// Where it is declared.
    pub location: Location,
}

/// Under which terms a source comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// What people call it.
    pub name: String,
    /// What it says, in a line or two; empty where its name says all.
    pub terms: String,
    /// Where it can be read.
    pub url: Option<String>,
    /// Whether a person must accept it before anything comes under it.
    pub consent: bool,
    /// Whether what is made from it may be passed on.
    pub redistribute: bool,
}

/// What a stage runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Words, no shell: word 0 is a program, an executable on PATH, or `./repo/path`.
    Argv(Vec<String>),
    /// One line for `sh -c`.
    Shell(String),
}

/// What a kind promises of two runs of one action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Repeatable {
    /// The same bytes.
    Bits,
    /// The same distribution.
    Statistical,
}

impl fmt::Display for Repeatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Repeatable::Bits => "bits",
            Repeatable::Statistical => "statistical",
        })
    }
}

/// How a stage is run, with the overrides of the stage applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// The name under `kinds`; none where the stage says it inline.
    pub name: Option<String>,
    /// What to run.
    pub command: Command,
    /// A command whose stdout enters the key.
    pub identity: Option<Vec<String>>,
    /// Files, folders and globs of the repository whose bytes enter the key.
    pub code: Vec<String>,
    /// What two runs of one action have in common.
    pub repeatable: Repeatable,
    /// The pool in whose queue a run waits.
    pub pool: String,
    /// How much of the pool `cpu` a run takes, and `threads` of the job.
    pub threads: u32,
    /// What a run takes from pools, in thousandths; what is not said is 1 of its own pool, or `threads` where that is
    /// `cpu`.
    pub resources: BTreeMap<String, u32>,
    /// Environment variables that the stage sees and whose values enter the key.
    pub env: Vec<String>,
    /// A source: its result is promised by `Stage::files`.
    pub fixed: bool,
    /// Whether the kind can be rehearsed.
    pub rehearse: bool,
    /// Params that change neither what a rehearsal finds nor, by much, how long a run takes: `seed`.
    pub alike: Vec<String>,
    /// Seconds that a run is expected to take, as long as none was measured.
    pub expect: Option<u64>,
    /// Seconds after which a run is ended.
    pub timeout: Option<u64>,
    /// How often a failed run is tried again.
    pub retries: u32,
    /// Where it is declared.
    pub location: Location,
}

/// One step of the pipeline: one action, one output tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// `name`, or `name[v1,v2]` for an instance of a matrix.
    pub name: String,
    /// The name without `[…]`.
    pub base: String,
    /// The values of the matrix, in the declared order of the axes.
    pub axes: Vec<(String, Value)>,
    /// How it is run.
    pub kind: Arc<Kind>,
    /// Inputs by name, in the order of their names.
    pub inputs: Vec<(String, Input)>,
    /// Parameters, all expressions resolved.
    pub params: BTreeMap<String, Value>,
    /// The promised files of a fixed stage, by path in the output.
    pub files: Option<BTreeMap<String, Promise>>,
    /// The licence of a source, by id.
    pub licence: Option<String>,
    /// A folder of the repository that gets a copy of the output.
    pub publish: Option<String>,
    /// Where it is declared.
    pub location: Location,
}

impl Stage {
    /// The files and folders of the repository that it names itself, each with the field that does: its inputs, and word
    /// 0 of what it runs.
    pub fn named(&self) -> impl Iterator<Item = (String, &str)> {
        let inputs = self.inputs.iter().flat_map(|(name, input)| {
            input.sources().iter().filter_map(move |source| match source {
                Source::Repo(path) => Some((format!("in.{name}"), path.as_str())),
                _ => None,
            })
        });
        let run = match &self.kind.command {
            Command::Argv(words) => words.first(),
            Command::Shell(_) => None,
        };
        let identity = self.kind.identity.as_ref().and_then(|words| words.first());
        let scripts = [("run", run), ("identity", identity)].into_iter();
        inputs.chain(scripts.filter_map(|(field, word)| Some((field.to_string(), word?.strip_prefix("./")?))))
    }
}

/// One named input of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// One source; the name of an upstream stage stays unknown to the stage.
    One(Source),
    /// A list or a pattern; the stage sees the names of the upstream stages.
    Many(Vec<Source>),
}

impl Input {
    /// The sources, one or many, in order.
    pub fn sources(&self) -> &[Source] {
        match self {
            Input::One(source) => std::slice::from_ref(source),
            Input::Many(sources) => sources,
        }
    }
}

/// Where an input comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The output tree of a stage, or one path of it.
    Stage {
        /// The upstream stage.
        id: StageId,
        /// A path in its output; none: all of it.
        path: Option<String>,
    },
    /// A file or folder of the repository, relative to its root, without `./`.
    Repo(String),
    /// The document that the engine writes: stages, keys, params, digests.
    Provenance,
}

/// What a fixed stage promises of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// SHA-256, 64 lower-case hex digits; none: not known yet.
    pub sha256: Option<String>,
    /// Size in bytes, where it is known.
    pub size: Option<u64>,
}
