//! Are the store's bytes what their names say?

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::materialize::READ_ONLY;
use super::{Result, Store, StoreError};
use crate::digest::{self, Digest};
use crate::stat::{Record, Stat, now};
use crate::tree::Tree;

/// Blobs bigger than this are worth asking what other processes know of them.
const REFRESH: u64 = 1 << 20;

/// Trees of at most so many files are remembered.
const SMALL_TREE: u64 = 8;

/// The key of the record of a tree's file number `i`; a record's `stat.dev` is the number of files.
fn nth(tree: &Digest, i: u64) -> [u8; 32] {
    let mut key = *tree.as_bytes();
    key[0] ^= i as u8;
    key
}

/// What the store can say of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blob {
    /// Its bytes are good, and this was its stat then.
    Good(Stat),
    Missing,
    Bad,
}

/// Opens a blob; where its owner may not read it, a stage changed the mode of its input, and it is given back.
pub(super) fn open_blob(path: &Path) -> io::Result<File> {
    File::open(path).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, fs::Permissions::from_mode(READ_ONLY))?;
            File::open(path)
        }
        _ => Err(error),
    })
}

/// Whether everything of a tree can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complete {
    /// All blobs are there and good.
    Whole,
    /// This blob is not there; `path` is empty for the tree itself.
    Missing { path: String, digest: Digest },
    /// This blob's bytes were damaged; it is in quarantine now.
    Damaged { path: String, digest: Digest },
}

/// What [`Store::verify_all`] found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub blobs: u64,
    pub bytes: u64,
    /// Bad blobs, now in quarantine.
    pub bad: Vec<Digest>,
    /// Files among the blobs that are no blobs.
    pub strange: Vec<PathBuf>,
}

impl Store {
    /// Whether the store can serve the whole tree: all blobs are there, and each was not touched since its bytes were
    /// known to be good, or its bytes are read again now. A bad one is quarantined.
    pub fn complete(&self, tree: &Digest) -> bool {
        matches!(self.completeness(tree), Ok(Complete::Whole))
    }

    /// The same with the first blob that is missing or bad.
    pub fn completeness(&self, tree: &Digest) -> Result<Complete> {
        if self.is_whole(tree).unwrap_or(false) {
            return Ok(Complete::Whole);
        }
        let bytes = match self.bytes(tree) {
            Ok(bytes) => bytes,
            Err(StoreError::Absent { digest }) => {
                return Ok(Complete::Missing { path: String::new(), digest });
            }
            Err(StoreError::Damaged { digest }) => {
                return Ok(Complete::Damaged { path: String::new(), digest });
            }
            Err(error) => return Err(error),
        };
        let listing = Tree::decode(&bytes)?;
        let complete = self.completeness_of(&listing)?;
        if complete == Complete::Whole {
            // The listing's own stat vouches for it only if it was looked at a tick after it was written.
            self.check(tree, None)?;
            self.learn(tree, &listing);
        }
        Ok(complete)
    }

    /// Whether a tree of which the files are known is whole, by the stats of its blobs and its own alone. What a digest
    /// lists never changes, so only the stats have to hold. None: not known, or something has to be read.
    fn is_whole(&self, tree: &Digest) -> Option<bool> {
        let n = self.contents.get(&nth(tree, 0))?.stat.dev;
        let vouched = |digest: &Digest, size: Option<u64>| {
            let stat = Stat::at(&self.blob_path(digest)).ok()?;
            Some(self.vouched(digest, &stat) && size.is_none_or(|size| size == stat.size))
        };
        let mut whole = vouched(tree, None)?;
        for i in 0..n {
            let file = self.contents.get(&nth(tree, i))?;
            whole &= vouched(&file.digest, Some(file.stat.size))?;
        }
        Some(whole)
    }

    fn learn(&self, tree: &Digest, listing: &Tree) {
        let files: Vec<_> = listing.files().collect();
        if files.is_empty() || files.len() as u64 > SMALL_TREE {
            return;
        }
        let dev = files.len() as u64;
        let record = |(i, (_, digest, size, _)): (usize, &(&str, Digest, u64, bool))| {
            let stat = Stat { dev, ino: i as u64, size: *size, mtime: 0, ctime: 0 };
            Record { key: nth(tree, i as u64), digest: *digest, stat, read_at: 0 }
        };
        let records: Vec<Record> = files.iter().enumerate().map(record).collect();
        self.contents.put(&records);
    }

    /// The same for the blobs of a tree (or part of one) at hand.
    pub fn completeness_of(&self, tree: &Tree) -> Result<Complete> {
        let files: Vec<_> = tree.files().collect();
        let look = |(path, digest, size, _): &(&str, Digest, u64, bool)| {
            Ok(match self.check(digest, Some(*size))? {
                Blob::Good(_) => None,
                Blob::Missing => Some(Complete::Missing { path: path.to_string(), digest: *digest }),
                Blob::Bad => Some(Complete::Damaged { path: path.to_string(), digest: *digest }),
            })
        };
        let first = match files.len() {
            ..64 => files.iter().map(look).find_map(Result::transpose),
            _ => files.par_iter().with_min_len(64).map(look).find_map_any(Result::transpose),
        };
        // What was read again is remembered; a memory that cannot be kept is no error.
        let _ = self.stats.save();
        first.unwrap_or(Ok(Complete::Whole))
    }

    /// Looks at one blob, and reads its bytes unless its stat vouches for them.
    pub(super) fn check(&self, digest: &Digest, size: Option<u64>) -> Result<Blob> {
        let path = self.blob_path(digest);
        let stat = match Stat::at(&path) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Blob::Missing),
            Err(error) => return Err(StoreError::io(&path, "looking")(error)),
        };
        if self.vouched(digest, &stat) && size.is_none_or(|size| size == stat.size) {
            return Ok(Blob::Good(stat));
        }
        if stat.size > REFRESH {
            // Another process may have linked it and said so: cheaper to hear than to read the blob.
            self.stats.refresh();
        }
        self.reread(digest)
    }

    pub(super) fn vouched(&self, digest: &Digest, stat: &Stat) -> bool {
        self.stats.get(digest.as_bytes()).is_some_and(|record| record.holds_blob(stat))
    }

    /// Reads a blob's bytes unless its stat vouches for them. The caller must not hold its lock: reading goes on on all
    /// cores, and a core that waits takes up other work, which may want the same lock.
    pub(super) fn reread(&self, digest: &Digest) -> Result<Blob> {
        let path = self.blob_path(digest);
        let file = match open_blob(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Blob::Missing),
            Err(error) => return Err(StoreError::io(&path, "reading")(error)),
        };
        let before = Stat::of(&file).map_err(StoreError::io(&path, "reading"))?;
        if self.vouched(digest, &before) {
            return Ok(Blob::Good(before));
        }
        self.read_through(digest, &path, &file, &before)
    }

    fn read_through(&self, digest: &Digest, path: &Path, file: &File, before: &Stat) -> Result<Blob> {
        let read_at = now();
        let found = digest::open_file(file, before.size).map_err(StoreError::io(path, "reading"))?;
        if found != *digest {
            self.quarantine(digest);
            return Ok(Blob::Bad);
        }
        let _lock = self.locked(digest);
        // A stage may have changed the mode of its input, which is this file: the next one must not see that.
        let mode = file.metadata().map_err(StoreError::io(path, "reading"))?.permissions().mode();
        if mode & 0o7777 != READ_ONLY {
            // In a store that cannot be written, or of another user, nobody of ours has changed it either.
            let _ = file.set_permissions(fs::Permissions::from_mode(READ_ONLY));
        }
        let stat = Stat::of(file).map_err(StoreError::io(path, "reading"))?;
        // Our own links may have changed the ctime meanwhile; a write would have changed the mtime.
        if stat.same_but_ctime(before) {
            self.stats.put(&[Record { key: *digest.as_bytes(), digest: *digest, stat, read_at }]);
        }
        Ok(Blob::Good(stat))
    }

    /// Reads every blob, whatever its stat says. `progress` hears the blobs and bytes done so far, and may be called
    /// from several threads.
    pub fn verify_all(&self, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Verified> {
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
        let (blobs, strange) = self.blobs()?;
        let (done, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let look = |digest: &Digest| {
            let path = self.blob_path(digest);
            let file = match open_blob(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io(&path, "reading")(error)),
            };
            let before = Stat::of(&file).map_err(StoreError::io(&path, "reading"))?;
            let good = matches!(self.read_through(digest, &path, &file, &before)?, Blob::Good(_));
            let size = before.size;
            progress(done.fetch_add(1, Relaxed) + 1, bytes.fetch_add(size, Relaxed) + size);
            Ok((!good).then_some(*digest))
        };
        let bad: Vec<Option<Digest>> = blobs.par_iter().map(look).collect::<Result<_>>()?;
        let _ = self.stats.save();
        let bad = bad.into_iter().flatten().collect();
        Ok(Verified { blobs: done.into_inner(), bytes: bytes.into_inner(), bad, strange })
    }

    /// All blobs, and the files among them that are none.
    pub(crate) fn blobs(&self) -> Result<(Vec<Digest>, Vec<PathBuf>)> {
        let root = self.cache.join("blobs");
        let (mut blobs, mut strange) = (Vec::new(), Vec::new());
        for entry in walkdir::WalkDir::new(&root).min_depth(1).sort_by_file_name() {
            let entry = entry.map_err(|e| StoreError::io(&root, "listing")(e.into()))?;
            if entry.depth() == 1 && entry.file_type().is_dir() {
                continue;
            }
            let hex =
                entry.path().strip_prefix(&root).ok().and_then(|p| p.to_str()).map(|p| p.replace('/', ""));
            match hex.and_then(|hex| Digest::from_hex(hex.as_bytes())) {
                Some(digest) if entry.depth() == 2 && entry.file_type().is_file() => blobs.push(digest),
                _ => strange.push(entry.into_path()),
            }
        }
        Ok((blobs, strange))
    }

    /// Removes a blob; for gc.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<()> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io(&path, "removing")(error))
            }
            _ => Ok(()),
        }
    }
}
