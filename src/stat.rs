//! What the file system says of a file, and when that vouches for a digest. Knows no path and no blob.
//!
//! A digest is remembered together with the file's device, inode, size, modification time and change time. It counts
//! again only while all of them are the same *and* a change after the digest would have shown in them (git's rule for
//! racily clean entries: a file changed in the very tick in which it was read looks unchanged).

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::digest::Digest;

/// Nanoseconds since 1970.
pub type Nanos = i64;

/// Now, by the clock that also stamps files (which it does in ticks of up to 10 ms).
pub fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as Nanos)
}

/// What tells that a file was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: Nanos,
    pub ctime: Nanos,
}

impl Stat {
    pub(crate) fn new(stat: &rustix::fs::Stat) -> Stat {
        let nanos = |seconds: i64, nanos: u64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos as i64);
        Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size as u64,
            mtime: nanos(stat.st_mtime as _, stat.st_mtime_nsec as _),
            ctime: nanos(stat.st_ctime as _, stat.st_ctime_nsec as _),
        }
    }

    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Stat> {
        Ok(Stat::new(&rustix::fs::fstat(file)?))
    }

    /// Of the file at a path; follows symlinks.
    pub fn at(path: &Path) -> io::Result<Stat> {
        Ok(Stat::new(&rustix::fs::stat(path)?))
    }

    /// Whether a change made after `then` would show: both times are safely older.
    ///
    /// Files are stamped in ticks of at most 10 ms; a file system that keeps whole seconds (or two) has times without
    /// a fraction.
    pub fn settled(&self, then: Nanos) -> bool {
        self.mtime.max(self.ctime).saturating_add(self.tick()) < then
    }

    /// The same for writes that do not set times: they would show in the modification time.
    pub fn written_before(&self, then: Nanos) -> bool {
        self.mtime.saturating_add(self.tick()) < then
    }

    fn tick(&self) -> Nanos {
        let whole = |time: Nanos| time % 1_000_000_000 == 0;
        if whole(self.mtime) && whole(self.ctime) { 2_000_000_000 } else { 20_000_000 }
    }

    /// The same file with the same bytes as far as the writer's times say; only the inode's own record (links,
    /// permissions) may have changed.
    pub fn same_but_ctime(&self, other: &Stat) -> bool {
        Stat { ctime: 0, ..*self } == Stat { ctime: 0, ..*other }
    }
}

/// One remembered digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: [u8; 32],
    pub digest: Digest,
    pub stat: Stat,
    /// When the content began to be read.
    pub read_at: Nanos,
}

impl Record {
    /// Whether a file that now has this `stat` still has this digest.
    pub fn holds(&self, stat: &Stat) -> bool {
        self.stat == *stat && self.stat.settled(self.read_at)
    }

    /// The same for a blob. Its last change is our own rename or link, which touches no byte, so only the time of its
    /// last write must be safely older than the reading.
    pub fn holds_blob(&self, stat: &Stat) -> bool {
        self.stat == *stat && self.stat.written_before(self.read_at)
    }
}
