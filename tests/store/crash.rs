//! Killed at any moment, the store never holds a result without its blobs, nor a blob that is not whole.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use itpipe::cas::{Complete, Store};
use itpipe::digest::Digest;
use itpipe::lock::{Lock, Locked, Update};
use itpipe::results::Results;

use crate::{result, write};

/// What the killed process does: outputs, results and locks, one after another.
#[test]
fn child() {
    let Ok(place) = std::env::var("STORE_TEST_PLACE") else { return };
    let rounds: u32 = std::env::var("STORE_TEST_ROUNDS").unwrap().parse().unwrap();
    let place = PathBuf::from(place);
    let store = Store::open(&place.join("cache")).unwrap();
    let results = Results::open(store.cache()).unwrap();
    for round in 0..rounds {
        let out = place.join(format!("out-{}-{round}", std::process::id()));
        let unique = out.display().to_string();
        for (file, content) in
            [("a", "the same"), ("d/b", &unique), ("run*", "x"), ("big", &unique.repeat(4000))]
        {
            write(&out, file, content);
        }
        let (tree, _) = store.put_tree(&out).unwrap();
        let key = Digest::of(unique.as_bytes());
        results.record(&store, &result(&store, key, tree)).unwrap();
        let results = [(format!("stage-{}", round % 3), Locked { key, tree })].into();
        Lock::update(&place.join("pipeline.lock"), &Update { profile: "p", results, ..Update::default() })
            .unwrap();
    }
}

fn spawn(place: &Path, rounds: u32, prepare: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["crash::child", "--exact", "--test-threads=1"]);
    command.env("STORE_TEST_PLACE", place).env("STORE_TEST_ROUNDS", rounds.to_string());
    command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null());
    prepare(&mut command);
    command.spawn().unwrap()
}

/// Opens the place as the next run would, and checks every promise. Returns the number of results.
fn check(place: &Path) -> usize {
    let store = Store::open(&place.join("cache")).unwrap();
    let results = Results::open(store.cache()).unwrap();
    for one in results.every() {
        assert_eq!(store.completeness(&one.tree).unwrap(), Complete::Whole);
        assert_eq!(store.manifest(&one.manifest).unwrap().len(), 1);
    }
    let found = store.verify_all(&|_, _| {}).unwrap();
    assert_eq!((found.bad, found.strange), (vec![], vec![]));
    let keys: BTreeSet<Digest> = results.every().iter().map(|one| one.key).collect();
    let lock = Lock::load(&place.join("pipeline.lock")).unwrap();
    for locked in lock.results.values().flat_map(|stages| stages.values()) {
        assert!(keys.contains(&locked.key), "the lock names a result that is not recorded");
    }
    results.len()
}

#[test]
fn killed_at_random_moments() {
    let place = tempfile::tempdir().unwrap();
    let mut recorded = 0;
    // xorshift: the moments differ from run to run only through the machine.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..40 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Two writers at once, one of which is killed.
        let mut victim = spawn(place.path(), 1000, |_| {});
        let mut other = spawn(place.path(), if round % 8 == 0 { 3 } else { 0 }, |_| {});
        std::thread::sleep(Duration::from_micros(2_000 + random % 60_000));
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert!(other.wait().unwrap().success());
        let now = check(place.path());
        assert!(now >= recorded, "results were lost");
        recorded = now;
    }
    assert!(recorded >= 15, "{recorded} results: the writers got nowhere");
}

/// System calls that change what is on the disk.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_openat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_flock,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// Runs the child, and kills it just before its `nth` change, counted from when it opens the store. `true` when it
/// ended by itself first; `None` where processes may not be traced.
#[allow(clippy::zombie_processes)] // waited for by hand, as its tracer
fn run_until(place: &Path, nth: u32) -> Option<bool> {
    let child = spawn(place, 1, |command| {
        // SAFETY: one async-signal-safe system call between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    });
    let leader = child.id() as libc::pid_t;
    let mut seen = 0;
    let mut first = true;
    let mut begun = false;
    loop {
        let mut status = 0;
        // Only children of this thread: other tests wait for theirs.
        // SAFETY: plain system calls on processes that this thread traces; the structure is filled by the kernel.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid == -1 {
            return None;
        }
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if pid == leader {
                assert!(libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) == 0);
                return Some(libc::WIFEXITED(status));
            }
            continue;
        }
        if first {
            let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            // SAFETY: as above.
            if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } == -1 {
                return None;
            }
            first = false;
        }
        let signal = libc::WSTOPSIG(status);
        if signal == libc::SIGTRAP | 0x80 {
            // SAFETY: as above.
            let info = unsafe {
                let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
                let size = std::mem::size_of_val(&info);
                libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &mut info);
                info
            };
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                // SAFETY: at an entry this is the part of the union that is filled.
                let number = unsafe { info.u.entry.nr } as libc::c_long;
                begun |= number == libc::SYS_mkdirat || number == MKDIR;
                if begun && CHANGES.contains(&number) {
                    seen += 1;
                    if seen == nth {
                        // SAFETY: as above.
                        unsafe { libc::kill(leader, libc::SIGKILL) };
                        continue;
                    }
                }
            }
        }
        let pass =
            if signal == libc::SIGTRAP || signal == libc::SIGSTOP || signal & 0x80 != 0 { 0 } else { signal };
        // SAFETY: as above. A process that was just killed is no longer there, which is no error.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, pass) };
    }
}

#[cfg(target_arch = "x86_64")]
const MKDIR: libc::c_long = libc::SYS_mkdir;
#[cfg(not(target_arch = "x86_64"))]
const MKDIR: libc::c_long = libc::SYS_mkdirat;

#[test]
fn killed_before_every_change_of_the_disk() {
    let mut killed = 0;
    let mut results = 0;
    for nth in 1.. {
        let place = tempfile::tempdir().unwrap();
        let Some(ended) = run_until(place.path(), nth) else {
            eprintln!("skipped: processes may not be traced here");
            return;
        };
        // The first changes make the store itself.
        let before = check(place.path());
        results = results.max(before);
        // The next run ends right, and starts no second writer's mess.
        assert!(spawn(place.path(), 1, |_| {}).wait().unwrap().success(), "after a kill before change {nth}");
        assert_eq!(check(place.path()), before + 1, "after a kill before change {nth}");
        assert!(fs::exists(place.path().join("pipeline.lock")).unwrap());
        if ended {
            assert_eq!(before, 1);
            break;
        }
        killed += 1;
        assert!(nth < 2000);
    }
    assert!(killed > 50, "only {killed} changes were seen");
    assert_eq!(results, 1);
}
