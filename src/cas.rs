//! The content store: blobs by digest, and trees, which are blobs too. Knows no stage, no key and no result.
//!
//! ```text
//! cache/version            the format's version
//!       in-use             a lock: shared by every run, exclusive to gc
//!       blobs/ab/cdef…     contents, read-only, each whole before it has its name
//!       stat/blobs         what each blob's stat was when its bytes were last known to be good
//!       tmp/               what is being written
//!       quarantine/        blobs whose bytes are not what their name says
//!       results/ work/ logs/ programs/
//! ```
//!
//! **Never a lie.** A blob counts as good while its stat (inode, size, mtime, ctime) is the recorded one; otherwise its
//! bytes are digested again before it is served, and a bad one is moved to `quarantine/`. Our own links change the
//! ctime, so each renews the record.
//!
//! **Durability.** A killed process leaves either no blob or a whole one: bytes are complete before the rename that
//! gives them their name, and a result is recorded after its blobs. Nothing is synced to the disk on the way (a stage
//! would wait for it); after a power cut, records of the last two minutes do not count, so what the disk did not get is
//! found when it is asked for, and made again. [`Store::sync`] waits for the disk.

mod materialize;
mod put;
mod verify;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU8;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::FlockOperation;

pub use materialize::{Link, copy};
pub use verify::{Complete, Verified};

use crate::digest::Digest;
use crate::stat::now;
use crate::stat_table::{Table, replacement};
use crate::tree::{Sub, Tree, TreeError};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: not writable: {source}\n  hint: give a folder that you may write with --cache")]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error(
        "{path}: disk full: {free} MB are free, {wanted} MB are needed\n  hint: 'itpipe cache gc' frees what no result needs"
    )]
    Full { path: PathBuf, free: u64, wanted: u64 },
    #[error("{path}: no free inodes left\n  hint: 'itpipe cache gc' frees what no result needs")]
    NoInodes { path: PathBuf },
    #[error("{path}: version '{found}': this itpipe knows version '{VERSION}'")]
    Version { path: PathBuf, found: String },
    #[error("{path}: changed while it was being stored")]
    Changed { path: PathBuf },
    #[error("blob {digest}: not in the store")]
    Absent { digest: Digest },
    #[error("blob {digest}: its bytes were damaged: moved to quarantine")]
    Damaged { digest: Digest },
    #[error("{path}: in use by another run\n  hint: try again when it has ended")]
    InUse { path: PathBuf },
}

impl StoreError {
    pub(crate) fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Io { path: path.to_path_buf(), doing, source }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

const VERSION: &str = "itpipe cache 1";

/// An open store. Safe to share between threads; many processes may have the same one open.
pub struct Store {
    cache: PathBuf,
    stats: Table,
    /// The files of small trees, so that whether a tree is whole can be told without reading it.
    contents: Table,
    /// One lock for the blobs that share a digest's first bits, so that looking, linking and recording are one step.
    locks: Vec<Mutex<()>>,
    /// Whether FICLONE works here: unknown, yes, no.
    reflink: AtomicU8,
    /// What was put in place by hard links, until it is released.
    placed: Mutex<HashMap<PathBuf, Sub>>,
    in_use: Option<File>,
}

impl Store {
    /// Opens the store in `cache`, making the folder where it is missing. A read-only store opens, and can be read.
    pub fn open(cache: &Path) -> Result<Store> {
        let cache = std::path::absolute(cache).map_err(StoreError::io(cache, "finding"))?;
        let made = ["blobs", "stat", "tmp", "results", "work", "logs", "programs"]
            .iter()
            .try_for_each(|folder| fs::create_dir_all(cache.join(folder)));
        match made {
            Err(error) if is_read_only(&error) && cache.join("version").exists() => {}
            Err(source) if is_read_only(&source) => return Err(StoreError::ReadOnly { path: cache, source }),
            Err(error) => return Err(StoreError::io(&cache, "making")(error)),
            Ok(()) => {}
        }
        check_version(&cache)?;
        let path = cache.join("in-use");
        let in_use = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
            Ok(file) => {
                rustix::fs::flock(&file, FlockOperation::LockShared)
                    .map_err(|error| StoreError::io(&path, "locking")(error.into()))?;
                Some(file)
            }
            Err(error) if is_read_only(&error) => None,
            Err(error) => return Err(StoreError::io(&path, "opening")(error)),
        };
        Ok(Store {
            stats: Table::open(&cache.join("stat/blobs")),
            contents: Table::open(&cache.join("stat/trees")),
            locks: (0..64).map(|_| Mutex::new(())).collect(),
            reflink: AtomicU8::new(0),
            placed: Mutex::new(HashMap::new()),
            in_use,
            cache,
        })
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Where a blob is, if the store has it. Ask [`Store::complete`] whether it is good.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let hex = std::str::from_utf8(&hex).unwrap_or_default();
        let mut path = self.cache.join("blobs");
        path.push(&hex[..2]);
        path.push(&hex[2..]);
        path
    }

    /// The folder of an action: its scratch, its job and its lock.
    pub fn work(&self, key: &Digest) -> PathBuf {
        self.cache.join("work").join(key.to_string())
    }

    /// The log of an action.
    pub fn log_path(&self, key: &Digest) -> PathBuf {
        self.cache.join("logs").join(format!("{key}.log"))
    }

    /// Where unfinished things are written; on the file system of the blobs.
    pub fn tmp(&self) -> PathBuf {
        self.cache.join("tmp")
    }

    /// Finds out before any stage runs whether its result can be kept: the folder can be written and has
    /// `min_free_bytes` to spare.
    pub fn check_writable(&self, min_free_bytes: u64) -> Result<()> {
        for folder in ["tmp", "blobs", "results", "work", "stat"] {
            let path = self.cache.join(folder);
            let probe = tempfile::Builder::new().prefix(".probe").tempfile_in(&path);
            match probe {
                Ok(_) => {}
                Err(source) if is_read_only(&source) => return Err(StoreError::ReadOnly { path, source }),
                Err(source) if source.kind() == io::ErrorKind::StorageFull => break,
                Err(source) => return Err(StoreError::io(&path, "writing")(source)),
            }
        }
        let space = rustix::fs::statvfs(&self.cache)
            .map_err(|error| StoreError::io(&self.cache, "asking for free space")(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < min_free_bytes.max(1) {
            let mb = |bytes: u64| bytes >> 20;
            let wanted = mb(min_free_bytes + (1 << 20) - 1);
            return Err(StoreError::Full { path: self.cache.clone(), free: mb(free), wanted });
        }
        if space.f_files > 0 && space.f_favail == 0 {
            return Err(StoreError::NoInodes { path: self.cache.clone() });
        }
        Ok(())
    }

    /// Writes down what was learnt of blobs and trees. A memory that cannot be kept costs only time.
    pub fn remember_all(&self) {
        let _ = self.stats.save().and_then(|()| self.contents.save());
    }

    /// Waits until the disk has what was stored.
    pub fn sync(&self) -> Result<()> {
        let sync = || rustix::fs::syncfs(File::open(&self.cache)?).map_err(io::Error::from);
        sync().map_err(StoreError::io(&self.cache, "syncing"))
    }

    /// A tree that the store has; `None` when it has not. Its bytes are always checked.
    pub fn tree(&self, digest: &Digest) -> Result<Option<Tree>> {
        match self.bytes(digest) {
            Ok(bytes) => Ok(Some(Tree::decode(&bytes)?)),
            Err(StoreError::Absent { .. } | StoreError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A blob's bytes, checked against its digest.
    pub fn bytes(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Absent { digest: *digest },
            _ => StoreError::io(&path, "reading")(error),
        };
        let small = beginning(&path).map_err(failed)?;
        if Digest::of(&small) == *digest {
            return Ok(small);
        }
        let mut bytes = Vec::new();
        let read = |mut file: File| io::Read::read_to_end(&mut file, &mut bytes);
        verify::open_blob(&path).and_then(read).map_err(failed)?;
        if Digest::of(&bytes) != *digest {
            self.quarantine(digest);
            return Err(StoreError::Damaged { digest: *digest });
        }
        Ok(bytes)
    }

    /// Whether a blob is there; says nothing of its bytes.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Takes this store for gc alone; `InUse` when a run has it open.
    pub(crate) fn exclusive(&self) -> Result<Exclusive<'_>> {
        let path = self.cache.join("in-use");
        let Some(file) = &self.in_use else {
            return Err(StoreError::ReadOnly { path, source: io::ErrorKind::ReadOnlyFilesystem.into() });
        };
        // Whoever starts a process shares its locks with it until it is another program: a moment, not a run.
        for _ in 0..10 {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Exclusive(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::sleep(std::time::Duration::from_millis(20))
                }
                Err(error) => return Err(StoreError::io(&path, "locking")(error.into())),
            }
        }
        // A failed conversion has let the shared lock go.
        let _ = rustix::fs::flock(file, FlockOperation::LockShared);
        Err(StoreError::InUse { path: self.cache.clone() })
    }

    fn locked(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let lock = &self.locks[usize::from(digest.as_bytes()[31]) % self.locks.len()];
        lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Moves a blob whose bytes are not what its name says out of the way. Where that cannot be done (a read-only
    /// store) it stays, and is found bad again.
    fn quarantine(&self, digest: &Digest) {
        let folder = self.cache.join("quarantine");
        let _ = fs::create_dir_all(&folder);
        let _ = fs::rename(self.blob_path(digest), folder.join(format!("{digest}.{}", now())));
    }

    fn placed(&self) -> MutexGuard<'_, HashMap<PathBuf, Sub>> {
        self.placed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Gives the store back to runs when dropped.
pub(crate) struct Exclusive<'a>(&'a File);

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(self.0, FlockOperation::LockShared);
    }
}

pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn check_version(cache: &Path) -> Result<()> {
    let path = cache.join("version");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == VERSION => Ok(()),
        Ok(found) => Err(StoreError::Version { path, found: found.trim_end().chars().take(40).collect() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let write = || {
                let mut file = replacement(&cache.join("tmp"))?;
                io::Write::write_all(&mut file, format!("{VERSION}\n").as_bytes())?;
                file.persist(&path)?;
                // Tells backup programs that everything here can be made again.
                fs::write(cache.join("CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n")
            };
            write().map_err(|source| match is_read_only(&source) {
                true => StoreError::ReadOnly { path: cache.to_path_buf(), source },
                false => StoreError::io(&path, "writing")(source),
            })
        }
        Err(error) => Err(StoreError::io(&path, "reading")(error)),
    }
}
/// What one read brings: all of a tree of a few files, for three system calls instead of six.
fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 4096];
    let length = io::Read::read(&mut verify::open_blob(path)?, &mut buffer)?;
    Ok(buffer[..length].to_vec())
}
