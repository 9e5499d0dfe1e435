//! One writer for each action: a lock on its work folder that lives as long as any process of the stage. Knows no
//! stage, no store and no result.
//!
//! The lock is a `flock` on `lock` in the folder. The engine holds its descriptor, and the stage's processes inherit
//! it ([`Lease::pass_to`]), so a stage that outlives a killed engine keeps the lock: nobody starts a second writer
//! beside it. The file says who holds it, with start times, so that a process id used again by someone else is told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process that may have ended, and whose id may have been given to another since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot at its start, from `/proc`: with the boot and the id it names one process.
    pub started: u64,
    pub boot: String,
}

impl Process {
    /// A running process; `None` when there is none with this id.
    pub fn of(pid: i32) -> Option<Process> {
        Some(Process { pid, started: started(pid)?, boot: boot_id() })
    }

    pub fn me() -> Process {
        let pid = std::process::id() as i32;
        Process { pid, started: started(pid).unwrap_or(0), boot: boot_id() }
    }

    /// Whether this very process runs, here.
    pub fn runs(&self) -> bool {
        self.boot == boot_id() && started(self.pid) == Some(self.started)
    }
}

/// The start time is field 22; the name in field 2 may hold anything, so counting begins after its last bracket.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// Who holds a lease, as they wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    pub version: u32,
    pub host: String,
    /// The engine that took the lease.
    pub engine: Process,
    /// The leader of the stage's process group, once it was started.
    pub stage: Option<Process>,
}

const VERSION: u32 = 1;

/// A lease that is ours. Dropping it gives our part up; the lock stays with whatever processes of the stage still run.
#[derive(Debug)]
pub struct Lease {
    file: File,
    holder: Holder,
}

/// The answer to [`acquire`].
#[derive(Debug)]
pub enum Acquired {
    Ours(Lease),
    /// Someone else holds it; `None` when they have not yet said who they are.
    HeldBy(Option<Holder>),
}

/// Tries to take the lease of the action whose work folder this is (made where missing); does not wait.
pub fn acquire(work: &Path) -> io::Result<Acquired> {
    let path = lock_path(work);
    let open = || {
        fs::create_dir_all(work)?;
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let mut file = match open() {
            Ok(file) => file,
            // Whoever ended the action removes its folder: between our two steps, perhaps.
            Err(error) if tries < 1000 && is_between(&error) => continue,
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Acquired::HeldBy(read(&mut file))),
            Err(error) => return Err(error.into()),
        }
        // The folder may have been removed, and made anew, between opening and locking.
        match fs::metadata(&path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut lease =
            Lease { file, holder: Holder { version: VERSION, host, engine: Process::me(), stage: None } };
        lease.write()?;
        return Ok(Acquired::Ours(lease));
    }
}

/// Tries to take the lease until `timeout` has passed or `stop` says so.
pub fn wait(work: &Path, timeout: Duration, stop: &dyn Fn() -> bool) -> io::Result<Acquired> {
    let end = Instant::now() + timeout;
    loop {
        match acquire(work)? {
            Acquired::HeldBy(_) if Instant::now() < end && !stop() => {
                std::thread::sleep(
                    Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())),
                );
            }
            other => return Ok(other),
        }
    }
}

/// Whether anyone holds the lease of this work folder; takes and changes nothing.
pub fn is_held(work: &Path) -> bool {
    let Ok(file) = File::open(lock_path(work)) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
}

fn is_between(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

/// Who has written down last that they hold the lease of this work folder.
pub fn holder(work: &Path) -> Option<Holder> {
    read(&mut File::open(lock_path(work)).ok()?)
}

pub(crate) fn lock_path(work: &Path) -> PathBuf {
    work.join("lock")
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok().filter(|holder: &Holder| holder.version == VERSION)
}

impl Lease {
    fn write(&mut self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.holder)?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&text)
    }

    /// Lets the command's process, and all that it starts, hold the lease too. Other children of this program do not.
    pub fn pass_to(&self, command: &mut Command) {
        let fd = self.file.as_raw_fd();
        // SAFETY: runs in the child between fork and exec, where only async-signal-safe calls are allowed; fcntl is
        // one. The descriptor is open there: the caller keeps the lease until the child was started.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    }

    /// The descriptor of the lock, for an executor that passes it to the stage's processes itself.
    pub fn descriptor(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// Writes down which process group the stage is, after it was started as the leader of a group of its own.
    pub fn started(&mut self, pid: u32) -> io::Result<()> {
        self.holder.stage = Process::of(pid as i32);
        self.write()
    }
}

impl Holder {
    /// Whether the engine that took the lease is on this machine and gone, so that what runs is an orphan.
    pub fn is_orphan(&self) -> bool {
        self.here() && !self.engine.runs()
    }

    /// Whether the holder wrote this on this machine.
    pub fn here(&self) -> bool {
        self.engine.boot == boot_id()
    }

    /// Sends a signal to the stage's process group. `false` when its leader is not running here any more: then the
    /// group's id may be someone else's, and nothing is sent.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(stage) = self.stage.as_ref().filter(|stage| stage.runs()) else { return Ok(false) };
        let Some(group) = Pid::from_raw(stage.pid) else { return Ok(false) };
        match rustix::process::kill_process_group(group, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
