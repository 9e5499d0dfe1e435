//! The contract of a stage: one `job.json` in, one folder out. Knows the file's format, the exit codes and how a file
//! is put in place whole; knows no stage.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of `job.json` that this program reads.
const VERSION: u64 = 1;

/// The input is wrong and will be wrong again: exit 2, never retried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Stopped on request after its state was saved in `scratch`: exit 75, may be run again.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request; a checkpoint is kept")]
pub struct Checkpointed;

/// A [`BadInput`] as an error to return: `return Err(bad(format!(…)))`.
pub fn bad(what: impl Display) -> anyhow::Error {
    BadInput(what.to_string()).into()
}

/// The exit code that an error asks for: 2 for [`BadInput`], 75 for [`Checkpointed`], else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_bad = error.is::<BadInput>() || error.chain().any(|e| e.is::<BadInput>());
    let is_checkpointed = error.is::<Checkpointed>() || error.chain().any(|e| e.is::<Checkpointed>());
    match (is_checkpointed, is_bad) {
        (true, _) => 75,
        (false, true) => 2,
        (false, false) => 1,
    }
}

/// One member of a list input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedInput {
    /// The upstream's name, as `train[a,10]`.
    pub name: String,
    /// Its folder, or the file in it that the pipeline asked for.
    pub path: PathBuf,
}

/// What only a stage with fixed (promised) outputs gets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    /// The files to write under `out`, by their path there.
    pub files: BTreeMap<String, Promise>,
    /// The repository's root, where bundled files lie.
    pub root: PathBuf,
    /// A folder that holds the files instead of the network.
    pub mirror: Option<PathBuf>,
    /// No network may be used.
    pub offline: bool,
}

/// What is promised of one file. `None`: not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// 64 hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Length in bytes.
    #[serde(default)]
    pub size: Option<u64>,
}

/// `job.json` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u64,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    inputs: BTreeMap<String, Value>,
    out: PathBuf,
    scratch: PathBuf,
    #[serde(default)]
    rehearse: bool,
    #[serde(default = "one")]
    threads: usize,
    #[serde(default)]
    fixed: Option<Fixed>,
}

fn one() -> usize {
    1
}

enum Input {
    One(PathBuf),
    Many(Vec<NamedInput>),
}

/// A stage's job: its params, where its inputs lie and where its output goes.
pub struct Job {
    params: Value,
    inputs: BTreeMap<String, Input>,
    out: PathBuf,
    scratch: PathBuf,
    rehearse: bool,
    threads: usize,
    fixed: Option<Fixed>,
}

impl Job {
    /// Reads a `job.json`. Relative paths in it are relative to its folder.
    ///
    /// Errors: [`BadInput`] for a file that cannot be read, another version, an unknown or missing field.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|e| bad(format!("{}: {e}", path.display())))?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(""))).with_context(|| path.display().to_string())
    }

    fn parse(text: &[u8], folder: &Path) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(text).map_err(bad)?;
        if raw.version != VERSION {
            return Err(bad(format!("version: {} is unknown, this program reads {VERSION}", raw.version)));
        }
        let inputs = raw
            .inputs
            .into_iter()
            .map(|(name, value)| Ok((name.clone(), Input::parse(&name, value, folder)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            params: raw.params,
            inputs,
            out: folder.join(raw.out),
            scratch: folder.join(raw.scratch),
            rehearse: raw.rehearse,
            threads: raw.threads.max(1),
            fixed: raw.fixed,
        })
    }

    /// The params as the stage's own type, which should deny unknown fields.
    ///
    /// Errors: [`BadInput`] with serde's words for what does not fit.
    pub fn params<P: DeserializeOwned>(&self) -> Result<P> {
        let value =
            if self.params.is_null() { Value::Object(Default::default()) } else { self.params.clone() };
        serde_json::from_value(value).map_err(|e| bad(format!("params: {e}")))
    }

    /// The params as they stand.
    pub fn raw_params(&self) -> &Value {
        &self.params
    }

    /// The path of a single input. Errors: [`BadInput`] if there is no such input, or it is a list.
    pub fn input(&self, name: &str) -> Result<PathBuf> {
        match self.inputs.get(name) {
            Some(Input::One(path)) => Ok(path.clone()),
            Some(Input::Many(_)) => Err(bad(format!("inputs.{name}: a list where one input is expected"))),
            None => Err(self.missing(name)),
        }
    }

    /// The members of a list input, in the pipeline's order; a single input is a list of one, named as the input.
    /// Errors: [`BadInput`] if there is no such input.
    pub fn inputs(&self, name: &str) -> Result<Vec<NamedInput>> {
        match self.inputs.get(name) {
            Some(Input::Many(members)) => Ok(members.clone()),
            Some(Input::One(path)) => Ok(vec![NamedInput { name: name.to_string(), path: path.clone() }]),
            None => Err(self.missing(name)),
        }
    }

    /// Whether the job has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    fn missing(&self, name: &str) -> anyhow::Error {
        let known: Vec<&str> = self.inputs.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
        bad(format!("inputs.{name}: missing (there are: {known})"))
    }

    /// The folder to write to; made by the engine, or by [`write`] when the first file is put there.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// A folder that survives a failure of the same action.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// How many threads the stage may use, at least 1. Never changes a result.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Only check that the work could be done.
    pub fn rehearse(&self) -> bool {
        self.rehearse
    }

    /// The promised files of a source. Errors: [`BadInput`] where the job has none.
    pub fn fixed(&self) -> Result<&Fixed> {
        self.fixed.as_ref().ok_or_else(|| bad("fixed: missing; this kind must be declared `fixed: true`"))
    }
}

impl Input {
    fn parse(name: &str, value: Value, folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Member {
            name: String,
            path: PathBuf,
        }
        match value {
            Value::String(path) => Ok(Self::One(folder.join(path))),
            Value::Array(_) => {
                let members: Vec<Member> =
                    serde_json::from_value(value).map_err(|e| bad(format!("inputs.{name}: {e}")))?;
                let members =
                    members.into_iter().map(|m| NamedInput { name: m.name, path: folder.join(m.path) });
                Ok(Self::Many(members.collect()))
            }
            _ => Err(bad(format!("inputs.{name}: a path or a list of names and paths is expected"))),
        }
    }
}

/// Prints a line that moves the engine's progress bar; the last one always, others at most five a second.
pub fn progress(done: u64, total: u64, note: impl Display) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    {
        // A poisoned lock still holds a time.
        let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if done != total && last.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        *last = Some(Instant::now());
    }
    let line = serde_json::json!({"progress": {"done": done, "total": total, "note": note.to_string()}});
    // A reader that went away is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn stop_flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Default::default)
}

/// From now on SIGTERM only sets the flag that [`stop_requested`] reads.
pub fn watch_stop() -> Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stop_flag().clone())
        .context("cannot watch for SIGTERM")?;
    Ok(())
}

/// Whether a checkpoint was asked for; a stage that can, saves it and returns [`Checkpointed`].
pub fn stop_requested() -> bool {
    stop_flag().load(Ordering::Relaxed)
}

/// Reads a JSON file into a type. Errors: [`BadInput`], with the path.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(|e| bad(format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| bad(format!("{}: {e}", path.display())))
}

/// Puts a file in place whole: writes beside it, then renames. Makes the folder where it is missing.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| Ok(file.write_all(bytes)?))
}

/// As [`write`], the bytes being written by `fill`.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let attempt = || -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".part");
        let part = path.with_file_name(name);
        let mut file = BufWriter::new(File::create(&part)?);
        fill(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        fs::rename(&part, path)?;
        Ok(())
    };
    attempt().with_context(|| path.display().to_string())
}

/// Writes a value as canonical JSON, see [`canonical`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, canonical(value)?.as_bytes())
}

/// Canonical JSON: keys sorted, two blanks of indentation, one newline at the end. Equal values give equal bytes.
/// A float that is not a number or infinite becomes `null`.
pub fn canonical(value: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    let mut text = serde_json::to_string_pretty(&value)?;
    text.push('\n');
    Ok(text)
}

/// A number for JSON: 10.0 as 10, 2.5 as 2.5.
pub fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Job> {
        Job::parse(text.as_bytes(), Path::new("/job"))
    }

    #[test]
    fn reads_the_contract() {
        let job = parse(
            r#"{"version":1,"params":{"gamma":0},"inputs":{"data":"in/data","metrics":[{"name":"e[a,10]","path":"in/metrics/0"}]},
                "out":"out","scratch":"scratch","rehearse":false,"threads":2,"fixed":null}"#,
        )
        .unwrap();
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct P {
            gamma: f64,
        }
        assert_eq!(job.params::<P>().unwrap().gamma, 0.0);
        assert_eq!(job.input("data").unwrap(), Path::new("/job/in/data"));
        let members = job.inputs("metrics").unwrap();
        assert_eq!(members[0].name, "e[a,10]");
        assert_eq!(members[0].path, Path::new("/job/in/metrics/0"));
        assert_eq!((job.threads(), job.rehearse(), job.out()), (2, false, Path::new("/job/out")));
        let error = job.input("indices").unwrap_err();
        assert_eq!(error.to_string(), "inputs.indices: missing (there are: data, metrics)");
        assert_eq!(exit_code(&error), 2);
        assert_eq!(exit_code(&job.fixed().unwrap_err().context("fetch")), 2);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let error = parse(r#"{"version":2,"out":"o","scratch":"s"}"#).err().unwrap();
        assert_eq!(error.to_string(), "version: 2 is unknown, this program reads 1");
        let error = parse(r#"{"version":1,"out":"o","scratch":"s","colour":1}"#).err().unwrap();
        assert!(error.to_string().starts_with("unknown field `colour`"), "{error}");
        let job = parse(r#"{"version":1,"out":"o","scratch":"s","params":{"sede":0}}"#).unwrap();
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct P {
            #[serde(default)]
            #[allow(dead_code)]
            seed: u64,
        }
        let error = job.params::<P>().err().unwrap();
        assert_eq!(error.to_string(), "params: unknown field `sede`, expected `seed`");
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
        assert_eq!(exit_code(&anyhow::Error::from(Checkpointed).context("train")), 75);
        assert_eq!(exit_code(&bad("x").context("a").context("b")), 2);
    }

    #[test]
    fn canonical_json_does_not_depend_on_order() {
        let a: Value = serde_json::from_str(r#"{"b":{"y":1,"x":[{"q":1,"p":2}]},"a":0.1}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":0.1,"b":{"x":[{"p":2,"q":1}],"y":1}}"#).unwrap();
        assert_eq!(canonical(&a).unwrap(), canonical(&b).unwrap());
        assert!(canonical(&a).unwrap().starts_with("{\n  \"a\": 0.1,\n"));
    }

    #[test]
    fn a_file_is_there_whole_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.txt");
        write(&path, b"one").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        let error = write_with(&path, |file| {
            file.write_all(b"tw")?;
            anyhow::bail!("torn")
        });
        assert!(error.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }
}
