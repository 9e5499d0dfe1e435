//! Large files read through a map, without the danger of one: a file that shrinks meanwhile is an error, not the end of
//! the process. Knows no digest.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// A file mapped for reading.
pub struct Mapped {
    start: *const u8,
    length: usize,
}

// SAFETY: the map is only read.
unsafe impl Sync for Mapped {}

thread_local! {
    /// The map that this thread reads, and whether a part of it was gone.
    static READING: Cell<(usize, usize, bool)> = const { Cell::new((0, 0, false)) };
}

impl Mapped {
    /// Maps the first `length` bytes of a file. An error where the file system cannot: the caller reads instead.
    pub fn new(file: &File, length: usize) -> io::Result<Mapped> {
        static HANDLER: OnceLock<bool> = OnceLock::new();
        if !HANDLER.get_or_init(handle) {
            return Err(io::Error::other("SIGBUS cannot be handled"));
        }
        // SAFETY: a new map at a place of the kernel's choice; it is ours until `drop`.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped { start: start.cast(), length })
    }

    /// Calls `read` with the bytes from `from` up to `to`; an error where the file became shorter meanwhile, whatever
    /// `read` saw.
    pub fn with<T>(&self, from: usize, to: usize, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        assert!(from <= to && to <= self.length);
        // One call instead of a fault for every few pages; where it fails, the faults do the work.
        // SAFETY: within the map.
        unsafe { libc::madvise(self.start.add(from) as *mut _, to - from, libc::MADV_POPULATE_READ) };
        READING.set((self.start as usize, self.length, false));
        // SAFETY: within the map, which lives as long as `self`. What another process writes there meanwhile can change
        // a digest and nothing else: the bytes are numbers, whatever they are.
        let out = read(unsafe { std::slice::from_raw_parts(self.start.add(from), to - from) });
        let gone = READING.replace((0, 0, false)).2;
        if gone { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(out) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the map is ours and no slice of it is left.
        unsafe { libc::munmap(self.start as *mut _, self.length) };
    }
}

/// Makes a page that is gone a page of zeros, and notes it. Any other SIGBUS ends the process, as without us.
fn handle() -> bool {
    extern "C" fn on_bus_error(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        const PAGE: usize = 4096;
        // SAFETY: the kernel's own record. The system calls are safe in a handler; the thread-local is const-made and has
        // no destructor, so that reading it is a plain load.
        unsafe {
            let address = (*info).si_addr() as usize;
            let (start, length, _) = READING.get();
            if (start..start + length).contains(&address) {
                let page = address / PAGE * PAGE;
                let zeros = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let end = start + length.next_multiple_of(PAGE);
                if libc::mmap(page as *mut _, end - page, libc::PROT_READ, zeros, -1, 0) != libc::MAP_FAILED {
                    READING.set((start, length, true));
                    return;
                }
            }
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
    }
    // SAFETY: a zeroed `sigaction` is a valid one; the handler has the three arguments that SA_SIGINFO promises.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_under_the_map_is_an_error() {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut path, &vec![7u8; 1 << 20]).unwrap();
        let map = Mapped::new(path.as_file(), 1 << 20).unwrap();
        assert_eq!(
            map.with(0, 1 << 20, |bytes| bytes.iter().map(|&b| u64::from(b)).sum::<u64>()).unwrap(),
            7 << 20
        );
        let sum = map.with(0, 1 << 20, |bytes| {
            path.as_file().set_len(5000).unwrap();
            bytes.iter().map(|&b| u64::from(b)).sum::<u64>()
        });
        assert_eq!(sum.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(map.with(0, 4096, |bytes| bytes[4095]).unwrap(), 7);
    }
}
