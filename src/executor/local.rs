//! Jobs as processes of this machine: own process group, sandbox, log, timeout, stop. Knows no key and no store.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::reaper::{self, Reaper};
use super::{Control, End, Executor, Job, Outcome, Update};
use crate::sandbox::{self, Sandbox};

/// Lines of a log that an error shows.
const TAIL: usize = 20;
/// A line longer than this is written in pieces.
const LONGEST_LINE: usize = 64 << 10;
/// Reads in a row before the job is attended to again: one that prints faster than we read must still be stopped.
const READS: usize = 16;
/// How long the pipe may stay open after the group is gone before we stop listening.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs jobs on this machine.
#[derive(Debug)]
pub struct Local {
    /// Whether jobs are confined to their writable folders.
    sandbox: bool,
    /// Ends them should we be killed; where there is none, only their first processes die with us.
    reaper: Option<Reaper>,
}

impl Executor for Local {
    fn run(&self, job: &Job, control: &Control, update: &mut dyn FnMut(Update)) -> Outcome {
        let mut log = match Log::open(job) {
            Ok(log) => log,
            Err(error) => {
                let why = format!("{}: cannot be written: {error}", job.log.display());
                return Outcome { end: End::NotStarted(why), tail: Vec::new() };
            }
        };
        let end = match self.spawn(job) {
            Ok((mut child, pipe)) => {
                update(Update::Started { group: child.id() });
                attend(job, control, &mut child, self.reaper.as_ref(), pipe, &mut log, update)
            }
            Err(error) => {
                let hint = "a program that the pipeline builds stands under programs:, a file of the repository is written \
                            ./path, anything else must be on the PATH";
                End::NotStarted(format!("{}: cannot be started: {error}\n  hint: {hint}", job.argv[0]))
            }
        };
        log.finish();
        Outcome { end, tail: log.tail.into() }
    }
}

impl Local {
    /// `sandbox`: whether jobs are confined to their writable folders.
    pub fn new(sandbox: bool) -> Local {
        Local { sandbox, reaper: Reaper::start().ok() }
    }

    fn spawn(&self, job: &Job) -> io::Result<(Child, File)> {
        let writable: Vec<&Path> = job.writable.iter().map(|p| p.as_path()).collect();
        let sandbox = if self.sandbox { Sandbox::new(&writable)? } else { None };
        let (reader, writer) = pipe()?;
        let mut command = Command::new(program(job));
        command.arg0(&job.argv[0]).args(&job.argv[1..]).current_dir(&job.folder);
        command.env_clear().envs(job.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let rules = sandbox.as_ref().map(Sandbox::descriptor);
        let told = self.reaper.as_ref().map(Reaper::descriptor);
        let (holds, parent) = (job.holds.clone(), std::process::id());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // The signal comes when the thread that forked ends; that thread waits for this child.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::getppid() as u32 != parent {
                    libc::_exit(127);
                }
                if let Some(pipe) = told {
                    reaper::tell(pipe, libc::getpid());
                }
                if holds.iter().any(|&fd| libc::fcntl(fd, libc::F_SETFD, 0) != 0) {
                    return Err(io::Error::last_os_error());
                }
                rules.map_or(Ok(()), sandbox::enter)
            });
        }
        let child = command.spawn()?;
        Ok((child, reader))
    }
}

/// `Command` looks word 0 up on the PATH of the *parent* when its own environment is cleared; the job's PATH decides.
fn program(job: &Job) -> std::path::PathBuf {
    let word = &job.argv[0];
    if word.contains('/') {
        return job.folder.join(word);
    }
    let path = job.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    let found = std::env::split_paths(path).map(|folder| folder.join(word)).find(|file| is_executable(file));
    found.unwrap_or_else(|| word.into())
}

/// Whether this is a file with an executable bit.
pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: two descriptors are written to `ends`, and they are ours alone.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK);
        Ok((File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Sends a signal to the process group of a child that has not been reaped, so that the number is still its own.
fn signal_group(child: &Child, signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(-(child.id() as i32), signal) };
}

/// A descriptor that becomes readable when the process has ended.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

/// Listens to the job until its first process ends, then ends all others of its group.
fn attend(
    job: &Job,
    control: &Control,
    child: &mut Child,
    reaper: Option<&Reaper>,
    mut pipe: File,
    log: &mut Log,
    update: &mut dyn FnMut(Update),
) -> End {
    let ended = match pidfd(child) {
        Ok(fd) => fd,
        Err(error) => {
            signal_group(child, libc::SIGKILL);
            reaper.inspect(|reaper| reaper.ended(child.id()));
            let _ = child.wait();
            return End::NotStarted(format!("cannot be waited for: {error}"));
        }
    };
    let deadline = job.timeout.map(|t| Instant::now() + t);
    let (mut stopped, mut timed_out, mut kill_at) = (0u8, false, None::<Instant>);
    let mut open = true;
    loop {
        let level = control.level();
        if level > stopped {
            stopped = level;
            signal_group(child, if level >= 2 { libc::SIGKILL } else { libc::SIGTERM });
            let at = Instant::now() + job.grace;
            kill_at = (level < 2).then(|| kill_at.map_or(at, |earlier| earlier.min(at)));
        }
        let now = Instant::now();
        if deadline.is_some_and(|d| now >= d) && !timed_out && stopped == 0 {
            timed_out = true;
            signal_group(child, libc::SIGTERM);
            kill_at = Some(now + job.grace);
        }
        if kill_at.is_some_and(|k| now >= k) {
            signal_group(child, libc::SIGKILL);
            kill_at = None;
        }
        let next = [kill_at, deadline.filter(|_| !timed_out && stopped == 0)].into_iter().flatten().min();
        let wait = next.map_or(-1, |t| t.saturating_duration_since(now).as_millis().min(1 << 30) as i32 + 1);
        let mut polled = [ended.as_raw_fd(), control.descriptor(), if open { pipe.as_raw_fd() } else { -1 }]
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: `polled` holds three entries.
        unsafe { libc::poll(polled.as_mut_ptr(), 3, wait) };
        if polled[1].revents != 0 {
            control.clear();
        }
        if polled[2].revents != 0 {
            open = log.read(&mut pipe, update);
        }
        if polled[0].revents != 0 {
            break;
        }
    }
    // The first process is a zombie until `wait`: its number, and so its group's, cannot be another's yet.
    signal_group(child, libc::SIGKILL);
    reaper.inspect(|reaper| reaper.ended(child.id()));
    let status = child.wait();
    crate::orphan::wait_for_group(child.id());
    if let Some(mark) = &job.mark {
        crate::orphan::end_adopted(mark);
    }
    let until = Instant::now() + DRAIN;
    while open && Instant::now() < until {
        let mut polled = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        unsafe { libc::poll(&mut polled, 1, 50) };
        if polled.revents != 0 {
            open = log.read(&mut pipe, update);
        }
    }
    match status {
        _ if timed_out => End::TimedOut,
        // A job that was done before the signal reached it is done.
        Ok(status) if status.code() == Some(0) => End::Exit(0),
        _ if stopped > 0 => End::Stopped,
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exit(code),
            (None, signal) => End::Signal(signal.unwrap_or(0)),
        },
        Err(error) => End::NotStarted(format!("cannot be waited for: {error}")),
    }
}

/// The log of a job: masks secrets, takes progress lines out, keeps the last lines.
struct Log {
    file: File,
    line: Vec<u8>,
    secrets: Vec<Vec<u8>>,
    tail: VecDeque<String>,
    broken: bool,
}

impl Log {
    fn open(job: &Job) -> io::Result<Log> {
        if let Some(folder) = job.log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(job.append)
            .truncate(!job.append)
            .open(&job.log)?;
        let secrets = job.secrets.iter().map(|s| s.clone().into_bytes()).collect();
        Ok(Log { file, line: Vec::new(), secrets, tail: VecDeque::new(), broken: false })
    }

    /// Takes what the pipe has, or a good part of it; false once it is closed.
    fn read(&mut self, pipe: &mut File, update: &mut dyn FnMut(Update)) -> bool {
        let mut buffer = [0u8; 16 << 10];
        for _ in 0..READS {
            match pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.take(&buffer[..n], update),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8], update: &mut dyn FnMut(Update)) {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = self.mask(line);
                match progress(&line) {
                    Some((done, total, note)) => {
                        // Once more: what stood in the line as an escape is a letter now.
                        let note = printable(&self.mask(note.into_bytes()));
                        update(Update::Progress { done, total, note });
                    }
                    None => self.write(line),
                }
            } else if self.line.len() >= LONGEST_LINE {
                // A secret may cross the cut: the longest one less a byte stays behind, masked with what follows.
                let keep = self.secrets.iter().map(Vec::len).max().unwrap_or(1).saturating_sub(1);
                let line = std::mem::take(&mut self.line);
                let masked = self.mask(line);
                let cut = masked.len().saturating_sub(keep);
                self.line = masked[cut..].to_vec();
                self.put(&masked[..cut]);
            }
        }
    }

    fn finish(&mut self) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            let line = self.mask(line);
            self.write(line);
        }
    }

    fn write(&mut self, line: Vec<u8>) {
        self.put(&line);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(printable(&line));
    }

    fn put(&mut self, bytes: &[u8]) {
        if !self.broken && self.file.write_all(bytes).is_err() {
            self.broken = true;
            self.tail.push_back("(the log could not be written: is the disk full?)".into());
        }
    }

    fn mask(&self, mut line: Vec<u8>) -> Vec<u8> {
        for secret in &self.secrets {
            while let Some(at) = line.windows(secret.len()).position(|w| w == secret.as_slice()) {
                line.splice(at..at + secret.len(), *b"***");
            }
        }
        line
    }
}

/// A line as one may show it on a terminal: no control characters, not endless.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    // A progress bar of another tool overwrites its line; its last state is what a reader would have seen.
    let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
    let mut out: String =
        text.chars().take(400).map(|c| if c == '\t' || !c.is_control() { c } else { '\u{fffd}' }).collect();
    if text.chars().nth(400).is_some() {
        out.push('…');
    }
    out
}

/// The contract's line `{"progress":{"done":3,"total":10,"note":"epoch 3"}}`.
fn progress(line: &[u8]) -> Option<(f64, f64, String)> {
    if !line.starts_with(b"{\"progress\"") {
        return None;
    }
    let json: serde_json::Value = serde_json::from_slice(line).ok()?;
    let progress = json.get("progress")?;
    let number = |name: &str| progress.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
    let note = progress.get("note").and_then(serde_json::Value::as_str).unwrap_or_default();
    Some((number("done"), number("total"), note.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, change: impl FnOnce(&mut Job)) -> (Outcome, String, Vec<Update>) {
        let folder = tempfile::tempdir().unwrap();
        let mut job = Job {
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: vec![("PATH".into(), std::env::var("PATH").unwrap())],
            folder: folder.path().into(),
            writable: vec![folder.path().into()],
            log: folder.path().join("log"),
            append: false,
            secrets: vec!["s3cret-token".into()],
            timeout: None,
            grace: Duration::from_millis(300),
            holds: Vec::new(),
            mark: None,
        };
        change(&mut job);
        let mut updates = Vec::new();
        let outcome = Local::new(true).run(&job, &Control::new().unwrap(), &mut |u| updates.push(u));
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        (outcome, log, updates)
    }

    #[test]
    fn the_log_has_both_streams_without_secrets_and_without_progress() {
        let script = r#"echo "out s3cret-token"; echo err >&2; echo '{"progress":{"done":1,"total":4,"note":"half s3cret-token s3cret\u002dtoken"}}'; printf end; exit 3"#;
        let (outcome, log, updates) = run(script, |_| {});
        assert_eq!(outcome.end, End::Exit(3));
        assert_eq!(log, "out ***\nerr\nend");
        assert_eq!(outcome.tail, ["out ***", "err", "end"]);
        assert_eq!(updates[1], Update::Progress { done: 1.0, total: 4.0, note: "half *** ***".into() });
    }

    #[test]
    fn a_secret_across_a_cut_of_a_long_line_is_masked() {
        let script =
            format!("head -c {} /dev/zero | tr '\\0' x; printf s3cret-token; printf y", LONGEST_LINE - 5);
        let (_, log, _) = run(&script, |_| {});
        assert!(log.ends_with("xxx***y") && !log.contains("s3cret"), "{}", &log[log.len() - 30..]);
    }

    #[test]
    fn a_background_process_does_not_outlive_its_job() {
        let start = Instant::now();
        let (outcome, log, _) = run("sleep 300 & echo $!", |_| {});
        assert_eq!(outcome.end, End::Exit(0));
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid: i32 = log.trim().parse().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }

    #[test]
    fn a_timeout_ends_a_job_that_ignores_the_polite_signal() {
        let (outcome, _, _) = run("trap '' TERM; while :; do sleep 0.05; done", |job| {
            job.timeout = Some(Duration::from_millis(100))
        });
        assert_eq!(outcome.end, End::TimedOut);
    }

    #[test]
    fn a_missing_executable_is_an_outcome() {
        let (outcome, _, _) = run("", |job| job.argv = vec!["no-such-program".into()]);
        assert!(
            matches!(outcome.end, End::NotStarted(text) if text.starts_with("no-such-program: cannot be started"))
        );
    }

    #[test]
    fn nothing_outside_the_writable_folders_can_be_written() {
        if !sandbox::available() {
            return;
        }
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("kept"), "kept").unwrap();
        let path = elsewhere.path().display();
        let script = format!(
            "echo ok > here; touch {path}/new; echo x > {path}/kept; rm {path}/kept; mv here {path}/here; ln here {path}/x; mkdir {path}/d; cat {path}/kept > copy; echo; cat copy"
        );
        let (_, log, _) = run(&script, |_| {});
        assert!(log.ends_with("\nkept"), "{log}");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(elsewhere.path().join("kept")).unwrap(), "kept");
    }
}
