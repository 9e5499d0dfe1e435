//! Processes of a stage whose itpipe was killed: found by the lock that they inherited, and ended. Knows no stage.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Ends every process that has the file open, but for this one. Returns how many there were.
///
/// A process is told by its descriptor and not by a number that was written down: a leader may be gone while its
/// children write on, and a number may be another's by now.
pub fn end(lock: &Path) -> io::Result<usize> {
    let lock = fs::metadata(lock)?;
    let me = std::process::id();
    let mut ended = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == me || pid <= 1 || !holds(&process.path(), &lock) {
            continue;
        }
        // SAFETY: a plain system call.
        if unsafe { libc::kill(pid as i32, libc::SIGKILL) } == 0 {
            ended += 1;
        }
    }
    Ok(ended)
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
