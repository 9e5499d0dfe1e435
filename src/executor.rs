//! What it means to run a job: a command in a folder, its log, how it ended. Knows no key, no store, no schedule.

pub mod local;
mod reaper;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// One command to run.
#[derive(Debug)]
pub struct Job {
    /// The words; word 0 is a path or is found on the PATH of `env`.
    pub argv: Vec<String>,
    /// All of the command's environment.
    pub env: Vec<(String, String)>,
    /// Where it runs.
    pub folder: PathBuf,
    /// Folders that it may write to, where the machine can enforce that.
    pub writable: Vec<PathBuf>,
    /// The file that gets its stdout and stderr.
    pub log: PathBuf,
    /// Whether the log is continued (a retry) or begun anew.
    pub append: bool,
    /// Texts that must not reach the log.
    pub secrets: Vec<String>,
    /// It is ended after this time.
    pub timeout: Option<Duration>,
    /// How long it may take to write a checkpoint after SIGTERM.
    pub grace: Duration,
    /// Descriptors that every process of the job inherits: the locks of what the job holds, its lease first. Whoever
    /// has them open is part of the job.
    pub holds: Vec<RawFd>,
    /// A variable of `env`, as `NAME=value`, that no other job has: it tells processes that left the group.
    pub mark: Option<String>,
}

/// What a running job says.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The process group of the job exists.
    Started {
        /// Its number.
        group: u32,
    },
    /// It wrote a line of JSON with `progress`.
    Progress { done: f64, total: f64, note: String },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exit(i32),
    /// By a signal that we did not send.
    Signal(i32),
    /// By us, since it ran longer than its timeout.
    TimedOut,
    /// By us, since the user stopped the run.
    Stopped,
    /// It could not be started: why.
    NotStarted(String),
}

/// How a job ended, and the end of its log.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    /// The last lines of its log, without progress lines.
    pub tail: Vec<String>,
}

/// Something that can run jobs.
pub trait Executor: Sync {
    /// Runs the job to its end on the calling thread. A job that fails is an `Outcome`, not an error; no process of the
    /// job is left when this returns.
    fn run(&self, job: &Job, control: &Control, update: &mut dyn FnMut(Update)) -> Outcome;
}

/// How the deciding thread stops a job that another thread runs.
#[derive(Debug)]
pub struct Control {
    level: AtomicU8,
    wake: OwnedFd,
}

impl Control {
    /// # Errors
    /// No descriptor left.
    pub fn new() -> io::Result<Control> {
        // SAFETY: a plain system call; the descriptor is ours alone.
        let wake = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Control { level: AtomicU8::new(0), wake })
    }

    /// 1: end with a checkpoint if you can; 2: end now.
    pub fn raise(&self, level: u8) {
        self.level.fetch_max(level, Ordering::SeqCst);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from `one`. A full counter means that the reader is woken already.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), 8) };
    }

    /// The highest level that was raised.
    pub fn level(&self) -> u8 {
        self.level.load(Ordering::SeqCst)
    }

    /// Readable once a level was raised and not yet cleared.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Forgets the wake-up, not the level.
    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes are written to `count`.
        unsafe { libc::read(self.wake.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    }
}
