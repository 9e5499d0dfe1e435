//! Processes of a stage whose itpipe was killed: found by the lock that they inherited, and ended. Knows no stage.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::lease;

/// Ends what still runs of the job in this work folder, once its engine is gone. Returns how many processes there were.
///
/// A process is told by its descriptor of the lock and by the job's environment, not by a number that was written down:
/// a leader may be gone while its children write on, a number may be another's by now, and another run of itpipe that
/// took the lock or only looks at it is no orphan.
pub fn end(work: &Path) -> io::Result<usize> {
    let lock = fs::metadata(lease::lock_path(work))?;
    let mut ended = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // Opened before the looks: the signal reaches the process that they are of, or none.
        let Some(opened) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        if !is_of(&process.path(), work) || !holds(&process.path(), &lock) {
            continue;
        }
        // A run writes down that it holds the lease before it starts a stage: what was found is not that one's if the
        // holder is still the one that is gone.
        if !lease::holder(work).is_some_and(|holder| holder.is_orphan()) {
            break;
        }
        ended += usize::from(pidfd_send_signal(&opened, Signal::KILL).is_ok());
    }
    Ok(ended)
}

/// Whether the process has the environment of the job in this folder, by whatever path its engine knew the store.
fn is_of(process: &Path, work: &Path) -> bool {
    let tmp = Path::new(work.file_name().unwrap_or_default()).join("tmp");
    let tmp = tmp.as_os_str().as_encoded_bytes();
    fs::read(process.join("environ")).is_ok_and(|env| env.windows(tmp.len()).any(|part| part == tmp))
}

fn holds(process: &Path, lock: &fs::Metadata) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|meta| (meta.dev(), meta.ino()) == (lock.dev(), lock.ino()))
}

/// Waits, for a second at most, until no process of the group runs: a signal is sent at once and obeyed a moment later,
/// and until then its process may still write. The dead that nobody has buried count as gone.
pub fn wait_for_group(group: u32) {
    for _ in 0..200 {
        // SAFETY: a plain system call; signal 0 only asks whether there is such a group.
        if unsafe { libc::kill(-(group as i32), 0) } != 0 || !runs(group) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn runs(group: u32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let pids = processes.flatten().filter(|p| p.file_name().as_encoded_bytes()[0].is_ascii_digit());
    pids.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok()).any(|stat| {
        // `pid (name) state parent group …`; the name may hold anything, brackets and spaces too.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let state = fields.next();
        fields.nth(1) == Some(group.to_string().as_str()) && !matches!(state, Some("Z" | "X"))
    })
}

/// Makes this process the parent of whatever its descendants leave behind, so that [`end_adopted`] can find it.
pub fn adopt() {
    // SAFETY: plain numbers; a kernel that does not know the option only says so.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Ends the processes that left their job's group (a daemon that called `setsid`) and came to us: our children whose
/// environment has `mark`, which is the job's alone. To be called when the job's first process has ended.
pub fn end_adopted(mark: &str) {
    let me = std::process::id();
    for _ in 0..20 {
        // Children that another thread of ours started stand in the list of that thread.
        let children = fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap_or_default();
        let mut found = false;
        for pid in children.split_whitespace().filter_map(|word| word.parse::<i32>().ok()) {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if !env.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes()) {
                continue;
            }
            found = true;
            // SAFETY: plain system calls; the process is our child, so the number is its own until it is waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
        // What it had started came to us when it ended.
        if !found {
            return;
        }
    }
}
