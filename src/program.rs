//! Executables that the pipeline builds: built when their sources changed, run from a copy that no later build touches,
//! asked for the identity of a kind. Knows no stage and no key.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::code;
use crate::digest::{self, Digest, Encoder};
use crate::error::{Error, at};
use crate::event::Event;
use crate::pipeline::Program;
use crate::stat_cache::StatCache;

/// The version of the records beside the copies.
const VERSION: u32 = 1;
/// What an identity may print.
const LONGEST_IDENTITY: usize = 256 << 10;

/// A program that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The copy.
    pub path: PathBuf,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// What the last build of a program was made from.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    sources: Digest,
    command: String,
    env: Digest,
    /// Size, modification time in ns and inode of the executable after the build: someone else's build shows in them.
    stamp: (u64, i128, u64),
    executable: Digest,
}

/// Where programs are kept and what tells whether they changed.
pub struct Programs<'a> {
    pub root: &'a Path,
    pub cache: &'a Path,
    pub stat: &'a StatCache,
}

impl Programs<'_> {
    /// The copy of the last build, if nothing asks for a new one. Builds nothing.
    pub fn current(&self, program: &Program) -> Result<Option<Ready>, Error> {
        let sources = code::digest(&self.sources(program)?);
        let record = fs::read(self.record_path(program)).ok();
        let Some(record) = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok()) else {
            return Ok(None);
        };
        let copy = self.copy_path(program, &record.executable);
        let same = record.version == VERSION
            && record.sources == sources
            && record.command == program.build.as_deref().unwrap_or_default()
            && record.env == build_env()
            && Some(record.stamp) == stamp(&self.root.join(&program.path))
            && copy.is_file();
        Ok(same.then_some(Ready { path: copy, digest: record.executable }))
    }

    /// Builds the program if something asks for it, and copies it into the store.
    ///
    /// # Errors
    /// A build that fails, that leaves no executable, or during which a source changed.
    pub fn ensure(&self, program: &Program, event: &mut dyn FnMut(Event)) -> Result<Ready, Error> {
        if let Some(ready) = self.current(program)? {
            return Ok(ready);
        }
        let what = format!("{}: programs.{}", program.location, program.name);
        let executable = self.root.join(&program.path);
        let before = self.sources(program)?;
        if let Some(build) = &program.build {
            event(Event::Building { program: program.name.clone(), command: build.clone() });
            let start = Instant::now();
            let mut shell = Command::new("sh");
            shell.args(["-c", build]).current_dir(self.root).stdin(Stdio::null());
            // The variables that `cargo run` sets for its child describe another package.
            for (name, _) in std::env::vars_os() {
                let name = name.to_string_lossy();
                if name.starts_with("CARGO_PKG_")
                    || name.starts_with("CARGO_MANIFEST_")
                    || name == "CARGO_PRIMARY_PACKAGE"
                {
                    shell.env_remove(&*name);
                }
            }
            // The build writes to our stderr: stdout is for what the user asked for.
            let out = std::io::stderr();
            shell.stdout(Stdio::from(
                rustix::io::dup(&out).map_err(|e| Error::environment(format!("stderr: {e}")))?,
            ));
            let status = shell
                .status()
                .map_err(|e| Error::environment(format!("{what}: '{build}': cannot be started: {e}")))?;
            if !status.success() {
                return Err(Error::input(format!("{what}: '{build}': {status}")));
            }
            let after = self.sources(program)?;
            if let Some((path, _)) =
                after.iter().zip(&before).find(|(a, b)| a != b).map(|(a, _)| a).or_else(|| {
                    let longer = if after.len() > before.len() { &after } else { &before };
                    longer.get(after.len().min(before.len()))
                })
            {
                return Err(Error::input(format!(
                    "{path}: changed while {} was built: nobody can say which version the executable holds\n  hint: run again",
                    program.name
                )));
            }
            let seconds = start.elapsed().as_secs_f64();
            let digest = digest::file(&executable).map_err(|e| missing(&what, program, e))?;
            event(Event::Built { program: program.name.clone(), digest: digest.to_string(), seconds });
        }
        let ready = self.keep(program, &executable).map_err(|e| missing(&what, program, e))?;
        let record = Record {
            version: VERSION,
            sources: code::digest(&before),
            command: program.build.clone().unwrap_or_default(),
            env: build_env(),
            stamp: stamp(&executable).unwrap_or_default(),
            executable: ready.digest,
        };
        let text = serde_json::to_string(&record).unwrap_or_default();
        let path = self.record_path(program);
        write_whole(&path, text.as_bytes()).map_err(at(&path))?;
        Ok(ready)
    }

    fn sources(&self, program: &Program) -> Result<Vec<(String, Digest)>, Error> {
        let what = format!("{}: programs.{}.sources", program.location, program.name);
        digests(self.root, self.stat, &program.sources, &what)
    }

    /// Copies the executable to `programs/<digest>/NAME`: the digest is that of the copy.
    fn keep(&self, program: &Program, executable: &Path) -> std::io::Result<Ready> {
        let folder = self.cache.join("programs");
        fs::create_dir_all(&folder)?;
        let temporary = tempfile::Builder::new().prefix("tmp.").tempdir_in(&folder)?;
        let name = Path::new(&program.path).file_name().unwrap_or(program.name.as_ref());
        let copy = temporary.path().join(name);
        fs::copy(executable, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o555))?;
        let digest = digest::file(&copy)?;
        let path = self.copy_path(program, &digest);
        if !path.is_file() {
            fs::create_dir_all(path.parent().unwrap_or(&folder))?;
            fs::rename(&copy, &path)?;
        }
        Ok(Ready { path, digest })
    }

    fn copy_path(&self, program: &Program, digest: &Digest) -> PathBuf {
        let name = Path::new(&program.path).file_name().unwrap_or(program.name.as_ref());
        self.cache.join("programs").join(digest.to_string()).join(name)
    }

    fn record_path(&self, program: &Program) -> PathBuf {
        self.cache.join("programs").join(format!("{}.json", program.name))
    }

    /// What an identity command prints. Kept per digest of the executable, words, environment and machine; asked again
    /// each run where the executable is not ours (`ready` is none), since nobody tells what it reads.
    pub fn identity(
        &self,
        ready: Option<&Ready>,
        argv: &[String],
        env: &[(String, String)],
    ) -> Result<String, Error> {
        let kept = ready.map(|ready| {
            let mut key = Encoder::new("itpipe identity 1");
            key.digest(&ready.digest).list(argv.len());
            argv.iter().for_each(|word| _ = key.text(word));
            key.list(env.len());
            env.iter().for_each(|(name, value)| _ = key.text(name).text(value));
            key.text(&machine());
            self.cache.join("programs").join("identity").join(key.finish().to_string())
        });
        if let Some(text) = kept.as_ref().and_then(|path| fs::read_to_string(path).ok()) {
            return Ok(text);
        }
        let shown = argv.join(" ");
        let program = ready.map_or_else(|| PathBuf::from(&argv[0]), |ready| ready.path.clone());
        let output = Command::new(&program)
            .args(&argv[1..])
            .env_clear()
            .envs(env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.root)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::input(format!("identity '{shown}': cannot be started: {e}")))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(Error::input(format!(
                "identity '{shown}': {}\n{}",
                output.status,
                stderr.trim_end()
            )));
        }
        if output.stdout.len() > LONGEST_IDENTITY {
            return Err(Error::input(format!(
                "identity '{shown}': printed more than {LONGEST_IDENTITY} bytes"
            )));
        }
        let text = String::from_utf8(output.stdout)
            .map_err(|_| Error::input(format!("identity '{shown}': printed something that is not UTF-8")))?;
        if let Some(path) = kept {
            // Only time is lost where this cannot be written.
            let _ = write_whole(&path, text.as_bytes());
        }
        Ok(text)
    }
}

fn missing(what: &str, program: &Program, error: std::io::Error) -> Error {
    let hint = match program.build {
        Some(_) => "the build made no such file: does `path` name what it makes?",
        None => "there is no `build` that would make it",
    };
    Error::input(format!("{what}: {}: {error}\n  hint: {hint}", program.path))
}

/// The files that the patterns name, with their digests.
pub fn digests(
    root: &Path,
    stat: &StatCache,
    patterns: &[String],
    what: &str,
) -> Result<Vec<(String, Digest)>, Error> {
    let files = code::files(root, patterns, what)?;
    let digest = |file: String| {
        let digest =
            stat.file(&root.join(&file)).map_err(|e| Error::input(format!("{what}: {file}: {e}")))?;
        Ok((file, digest))
    };
    files.into_iter().map(digest).collect()
}

/// Writes a file whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".tmp.").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn stamp(path: &Path) -> Option<(u64, i128, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.len(), i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()), meta.ino()))
}

/// The variables that steer compilers; another value asks for another build.
fn build_env() -> Digest {
    let steers = |name: &str| {
        let exact = ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "RUSTC", "CUDA_HOME", "CUDA_PATH"];
        exact.contains(&name)
            || ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"].contains(&name)
            || ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"].iter().any(|p| name.starts_with(p))
    };
    let vars: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .filter(|(name, _)| steers(name))
        .collect();
    let mut encoder = Encoder::new("itpipe build environment 1");
    vars.iter().for_each(|(name, value)| _ = encoder.text(name).text(value));
    encoder.finish()
}

/// What tells this machine's processors and drivers from another's, where they share a store.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = cpu.split("\n\n").next().unwrap_or_default();
    let lines = first
        .lines()
        .filter(|line| ["model", "flags", "Features", "CPU"].iter().any(|p| line.starts_with(p)));
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    format!(
        "{} {}\n{}\n{driver}",
        std::env::consts::ARCH,
        std::env::consts::OS,
        lines.collect::<Vec<_>>().join("\n")
    )
}
