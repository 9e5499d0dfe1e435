//! A small process beside a run that ends the process groups of its stages when the run is gone, however it went. Knows
//! numbers of groups and nothing else.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// More groups at once than a run has jobs.
const MOST: usize = 4096;

/// The process, through the pipe by which it hears of groups: a number begins one, its negative ends it. When the pipe
/// closes, what was begun and not ended is killed.
#[derive(Debug)]
pub struct Reaper {
    /// None once it is closed.
    pipe: Option<OwnedFd>,
    pid: i32,
}

impl Reaper {
    /// # Errors
    /// No process or descriptor left.
    pub fn start() -> io::Result<Reaper> {
        let mut ends = [0i32; 2];
        // SAFETY: two descriptors are written to `ends`. The child of a process with threads may only make system
        // calls, and that is all that `attend` does.
        unsafe {
            if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::fork() {
                0 => attend(ends[0]),
                pid => {
                    let failed = io::Error::last_os_error();
                    libc::close(ends[0]);
                    let pipe = Some(OwnedFd::from_raw_fd(ends[1]));
                    if pid < 0 { Err(failed) } else { Ok(Reaper { pipe, pid }) }
                }
            }
        }
    }

    /// Where a new group tells its number, between fork and exec: see [`tell`].
    pub fn descriptor(&self) -> RawFd {
        self.pipe.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// To be called while the number is still the group's: before its leader is waited for.
    pub fn ended(&self, group: u32) {
        tell(self.descriptor(), -(group as i32));
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.pipe = None;
        // SAFETY: a plain system call; the child has not been waited for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Tells the reaper a number; only a system call, so that it may stand between fork and exec.
pub fn tell(pipe: RawFd, number: i32) {
    let bytes = number.to_ne_bytes();
    // SAFETY: four bytes are read. So few are written whole or not at all, and a reaper that is gone cannot help.
    unsafe { libc::write(pipe, bytes.as_ptr().cast(), 4) };
}

/// The life of the process. Only system calls, nothing allocated.
///
/// # Safety
/// In a fresh child only.
unsafe fn attend(pipe: RawFd) -> ! {
    // SAFETY: plain system calls on our own descriptors and array.
    unsafe {
        // Out of the terminal's group: Ctrl-C is for the run.
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // A reader of the run's output must not wait for us, nor any lock be held by us.
        libc::dup2(pipe, 0);
        if libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32) != 0 {
            (1..1024).for_each(|fd| _ = libc::close(fd));
        }
        let mut groups = [0i32; MOST];
        let mut number = 0i32;
        loop {
            match libc::read(0, (&raw mut number).cast(), 4) {
                4 if number > 0 => {
                    if let Some(free) = groups.iter_mut().find(|group| **group == 0) {
                        *free = number;
                    }
                }
                4 => groups.iter_mut().filter(|group| **group == -number).for_each(|group| *group = 0),
                -1 if *libc::__errno_location() == libc::EINTR => {}
                _ => break,
            }
        }
        for group in groups.into_iter().filter(|group| *group > 0) {
            libc::kill(-group, libc::SIGKILL);
        }
        libc::_exit(0)
    }
}
