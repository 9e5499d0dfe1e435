//! A repository in a temporary folder and the real binary in it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

/// A repository with a pipeline.
pub struct Repo {
    folder: tempfile::TempDir,
}

/// What a command left.
#[derive(Debug)]
pub struct Out {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Out {
    /// The stages whose command ran to a recorded result, sorted.
    pub fn ran(&self) -> Vec<&str> {
        self.with_word("done")
    }

    /// The stages of the lines that begin with this word, sorted.
    pub fn with_word(&self, word: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .stderr
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(word)?.strip_prefix("  "))
            .map(|rest| rest.split([' ', ':']).next().unwrap_or_default())
            .collect();
        names.sort_unstable();
        names
    }

    /// This, if the command went well.
    #[track_caller]
    pub fn good(self) -> Out {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// This, if the command ended with that code and said that on stderr.
    #[track_caller]
    pub fn bad(self, code: i32, says: &str) -> Out {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(says), "no '{says}' in:\n{}", self.stderr);
        self
    }
}

/// A command that runs.
pub struct Running {
    pub child: Child,
    stderr: NamedTempFile,
    stdout: NamedTempFile,
}

impl Running {
    /// Sends a signal to itpipe alone.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the number is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    pub fn wait(mut self) -> Out {
        let end = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                panic!("still running: {}", fs::read_to_string(self.stderr.path()).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Out {
            code: code(status),
            stdout: fs::read_to_string(self.stdout.path()).unwrap(),
            stderr: fs::read_to_string(self.stderr.path()).unwrap(),
        }
    }

    /// Waits until stderr says that.
    #[track_caller]
    pub fn until_says(&self, text: &str) {
        wait_until(&format!("stderr says '{text}'"), || {
            fs::read_to_string(self.stderr.path()).unwrap_or_default().contains(text)
        });
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for something to become true; a minute at most, since tests share the machine.
#[track_caller]
pub fn wait_until(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !test() {
        assert!(Instant::now() < end, "a minute passed, and still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

impl Repo {
    /// A repository whose pipeline.yaml has these lines after `version: 1`.
    pub fn new(yaml: &str) -> Repo {
        let repo = Repo { folder: tempfile::tempdir().unwrap() };
        repo.pipeline(yaml);
        repo
    }

    /// This repository elsewhere, but for what a run writes; its program is the one that is built, so that nothing is
    /// built. None where it is not.
    pub fn of_this_repository() -> Option<Repo> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let binary = Path::new(env!("CARGO_BIN_EXE_itpipe")).with_file_name("stages");
        if !binary.is_file() {
            return None;
        }
        let repo = Repo { folder: tempfile::tempdir().unwrap() };
        for name in [
            "Cargo.toml",
            "Cargo.lock",
            "claims.yaml",
            "theory.yaml",
            "theory.json",
            "stages",
            "tests",
            "src",
        ] {
            std::os::unix::fs::symlink(root.join(name), repo.path(name)).unwrap();
        }
        fs::create_dir_all(repo.path("target/release")).unwrap();
        std::os::unix::fs::symlink(binary, repo.path("target/release/stages")).unwrap();
        let pipeline = fs::read_to_string(root.join("pipeline.yaml")).unwrap();
        let built: Vec<&str> = pipeline.lines().filter(|line| !line.starts_with("    build:")).collect();
        assert_eq!(built.len() + 1, pipeline.lines().count(), "one program is built");
        repo.write("pipeline.yaml", built.join("\n"));
        Some(repo)
    }

    pub fn pipeline(&self, yaml: &str) {
        self.write("pipeline.yaml", format!("version: 1\n{yaml}"));
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The binary in the repository, without the variables of whoever runs the tests.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_itpipe"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ITPIPE_") || text.starts_with("GITHUB_") || text == "CUDA_VISIBLE_DEVICES" {
                command.env_remove(name);
            }
        }
        command.args(args).current_dir(self.root()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn itpipe(&self, args: &[&str]) -> Out {
        self.with(args, |_| {})
    }

    /// The same with a change to the command, such as a variable.
    pub fn with(&self, args: &[&str], change: impl FnOnce(&mut Command)) -> Out {
        let mut command = self.command(args);
        change(&mut command);
        let output = command.output().unwrap();
        Out {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn run(&self) -> Out {
        self.itpipe(&["run"])
    }

    /// Starts it.
    pub fn spawn(&self, args: &[&str]) -> Running {
        self.spawn_with(args, |_| {})
    }

    /// The same with a change to the command.
    pub fn spawn_with(&self, args: &[&str], change: impl FnOnce(&mut Command)) -> Running {
        let (stdout, stderr) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
        let mut command = self.command(args);
        change(&mut command);
        let child =
            command.stdout(stdout.reopen().unwrap()).stderr(stderr.reopen().unwrap()).spawn().unwrap();
        Running { child, stderr, stdout }
    }

    /// The content of a file of a stage's output, from the store.
    #[track_caller]
    pub fn output(&self, stage: &str, file: &str) -> String {
        let out = self.itpipe(&["cache", "path", stage]).good();
        let line = out.stdout.lines().find(|line| line.split('\t').nth(1) == Some(file));
        let blob = line
            .unwrap_or_else(|| panic!("{stage} has no {file}: {}", out.stdout))
            .split('\t')
            .next()
            .unwrap();
        fs::read_to_string(blob).unwrap()
    }

    /// The lock file, parsed.
    pub fn lock(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("pipeline.lock")).unwrap()
    }

    /// What the lock says of a source, from each of its places.
    pub fn recorded(&self, stage: &str) -> Vec<serde_json::Value> {
        let lock = self.lock();
        let lines = lock["sources"].as_object().unwrap().iter();
        let of = |line: &str| line.rsplit_once(' ').is_some_and(|(name, _)| name == stage);
        lines.filter(|(line, _)| of(line)).map(|(_, source)| source.clone()).collect()
    }

    /// All blobs of the store.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut blobs = Vec::new();
        for folder in fs::read_dir(self.path("cache/blobs")).unwrap().flatten() {
            blobs.extend(fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path()));
        }
        blobs
    }

    /// The blob with this content.
    #[track_caller]
    pub fn blob(&self, content: &str) -> PathBuf {
        let found =
            self.blobs().into_iter().find(|path| fs::read(path).is_ok_and(|b| b == content.as_bytes()));
        found.unwrap_or_else(|| panic!("no blob holds {content:?}"))
    }
}
