//! Digests of the repository's files, computed once: by path, as long as their stat holds. Knows no store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::digest::{self, Digest};
use crate::stat::{Nanos, Record, Stat, now};
use crate::stat_table::Table;
use crate::tree::{Entry, Sub, Tree, TreeError, What};
use crate::walk::{self, Found, Kind};

/// Remembered digests of files outside the store. Safe to share between threads; processes share it through its file.
pub struct StatCache {
    table: Table,
    /// Paths below it are remembered relative to it, so that a moved repository keeps what it knows.
    root: PathBuf,
}

impl StatCache {
    /// Opens `stat/files` in the cache folder; a missing one is empty.
    pub fn open(cache: &Path) -> io::Result<StatCache> {
        let cache = std::path::absolute(cache)?;
        let root = cache.parent().unwrap_or(&cache).to_path_buf();
        Ok(StatCache { table: Table::open(&cache.join("stat/files")), root })
    }

    /// The digest of a file's bytes; follows symlinks.
    pub fn file(&self, path: &Path) -> io::Result<Digest> {
        let stat = Stat::at(path)?;
        let (digest, record) = self.read(path, &stat)?;
        self.table.put(record.as_slice());
        Ok(digest)
    }

    /// The identity of a file or folder below `root`: what [`Sub::digest`] says of it. `rel` itself may be a symlink.
    pub fn path(&self, root: &Path, rel: &str) -> Result<Digest, TreeError> {
        Ok(self.look(&root.join(rel))?.digest())
    }

    /// The content of a file or folder, digests taken from the cache where they hold.
    pub fn look(&self, path: &Path) -> Result<Sub, TreeError> {
        self.observe(path, None)
    }

    /// Looks at the inputs of a stage, to be looked at again after it: see [`Snapshot::changed`].
    pub fn snapshot<P: AsRef<Path>>(&self, paths: &[P]) -> Result<Snapshot<'_>, TreeError> {
        let mut seen = Vec::with_capacity(paths.len());
        for path in paths {
            let taken = now();
            let mut stats = Vec::new();
            let sub = self.observe(path.as_ref(), Some(&mut stats))?;
            seen.push(Seen { path: path.as_ref().to_path_buf(), digest: sub.digest(), sub, stats, taken });
        }
        Ok(Snapshot { cache: self, seen })
    }

    /// Writes what is new. A cache that cannot be written only costs time, so the caller may ignore the error.
    pub fn save(&self) -> io::Result<()> {
        self.table.save()
    }

    fn observe(&self, path: &Path, stats: Option<&mut Vec<Stat>>) -> Result<Sub, TreeError> {
        let error = || TreeError::io(path);
        if walk::is_folder(path)? {
            let found = walk::list(path)?;
            if let Some(stats) = stats {
                stats.extend(found.iter().map(|found| found.stat));
            }
            return Ok(Sub::Folder(self.tree(path, found)?));
        }
        let raw = rustix::fs::stat(path).map_err(|e| error()(e.into()))?;
        let stat = Stat::new(&raw);
        let (digest, record) = self.read(path, &stat).map_err(error())?;
        self.table.put(record.as_slice());
        if let Some(stats) = stats {
            stats.push(stat);
        }
        Ok(Sub::File { digest, size: stat.size, executable: raw.st_mode & 0o100 != 0 })
    }

    fn tree(&self, root: &Path, found: Vec<Found>) -> Result<Tree, TreeError> {
        let prefix = self.prefix(root).map_err(TreeError::io(root))?;
        // Nearly always all of them are known: that path makes nothing but a list of digests.
        let mut digests: Vec<Option<Digest>> = Vec::new();
        let known = |found: &Found| self.known(&key(&prefix, &found.path), &found.stat);
        found.par_iter().with_min_len(256).map(known).collect_into_vec(&mut digests);
        let read = |(found, digest): (&Found, &mut Option<Digest>)| {
            if digest.is_some() || !matches!(found.kind, Kind::File { .. }) {
                return Ok(None);
            }
            let path = root.join(&found.path);
            let (now, record) = read(&path, key(&prefix, &found.path)).map_err(TreeError::io(&path))?;
            *digest = Some(now);
            Ok(record)
        };
        let files = found.par_iter().zip(digests.par_iter_mut()).with_min_len(16).map(read);
        let records: Vec<Record> = files.filter_map(Result::transpose).collect::<Result<_, TreeError>>()?;
        self.table.put(&records);
        let entry = |(found, digest): (Found, Option<Digest>)| {
            let what = match (found.kind, digest) {
                (Kind::File { executable }, Some(digest)) => {
                    What::File { digest, size: found.stat.size, executable }
                }
                (Kind::Symlink { target }, _) => What::Symlink { target },
                // A file has its digest by now.
                (Kind::EmptyFolder | Kind::File { .. }, _) => What::Folder,
            };
            Entry { path: found.path, what }
        };
        Ok(Tree::new(found.into_iter().zip(digests).map(entry).collect()))
    }

    /// The digest, and a record where there is something new to remember.
    fn read(&self, path: &Path, stat: &Stat) -> io::Result<(Digest, Option<Record>)> {
        let key = key(&self.prefix(path)?, "");
        match self.known(&key, stat) {
            Some(digest) => Ok((digest, None)),
            None => read(path, key),
        }
    }

    fn known(&self, key: &[u8; 32], stat: &Stat) -> Option<Digest> {
        self.table.get(key).filter(|record| record.holds(stat)).map(|record| record.digest)
    }

    /// What a path, and all below it, begin with in the table.
    fn prefix(&self, path: &Path) -> io::Result<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::absolute(path)?;
        let (tag, path) = match path.strip_prefix(&self.root) {
            Ok(below) => (b'r', below),
            Err(_) => (b'a', path.as_path()),
        };
        let path = path.as_os_str().as_bytes();
        Ok([&[tag], path.strip_suffix(b"/").unwrap_or(path)].concat())
    }
}

/// The table's key of the file `below` a prefix, or at it.
fn key(prefix: &[u8], below: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prefix);
    if !below.is_empty() {
        hasher.update(if prefix.len() > 1 { b"/" } else { b"" }).update(below.as_bytes());
    }
    hasher.finalize().into()
}

fn read(path: &Path, key: [u8; 32]) -> io::Result<(Digest, Option<Record>)> {
    let read_at = now();
    let file = File::open(path)?;
    let before = Stat::of(&file)?;
    let digest = digest::open_file(&file, before.size)?;
    let after = Stat::of(&file)?;
    // A file that changes while it is read gets the digest that was read, and is not remembered.
    let record = (before == after).then_some(Record { key, digest, stat: after, read_at });
    Ok((digest, record))
}

/// The inputs of a stage as they were when its key was computed.
pub struct Snapshot<'a> {
    cache: &'a StatCache,
    seen: Vec<Seen>,
}

struct Seen {
    path: PathBuf,
    digest: Digest,
    sub: Sub,
    stats: Vec<Stat>,
    taken: Nanos,
}

impl Snapshot<'_> {
    /// The identities, in the order of the paths.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.seen.iter().map(|seen| seen.digest)
    }

    /// The paths whose content is no longer what it was, file by file; a path that cannot be read any more counts as
    /// changed. A file that was only touched is read again and does not count.
    pub fn changed(&self) -> Vec<PathBuf> {
        self.seen.iter().flat_map(|seen| seen.changed(self.cache)).collect()
    }
}

impl Seen {
    fn changed(&self, cache: &StatCache) -> Vec<PathBuf> {
        let settled = self.stats.iter().all(|stat| stat.settled(self.taken));
        if settled && matches!(self.touched(), Ok(false)) {
            return Vec::new();
        }
        match cache.look(&self.path) {
            Ok(sub) if sub.digest() == self.digest => Vec::new(),
            Ok(Sub::Folder(now)) => match &self.sub {
                Sub::Folder(then) => {
                    differences(then, &now).into_iter().map(|rel| self.path.join(rel)).collect()
                }
                Sub::File { .. } => vec![self.path.clone()],
            },
            _ => vec![self.path.clone()],
        }
    }

    /// Whether any stat differs, without reading a file.
    fn touched(&self) -> Result<bool, TreeError> {
        let Sub::Folder(tree) = &self.sub else {
            return Ok(Stat::at(&self.path).map_err(TreeError::io(&self.path))? != self.stats[0]);
        };
        let found = walk::list(&self.path)?;
        let same = found.len() == self.stats.len()
            && found
                .iter()
                .zip(&self.stats)
                .zip(tree.entries())
                .all(|((found, stat), entry)| found.stat == *stat && found.path == entry.path);
        Ok(!same)
    }
}

/// The paths that differ between two trees.
pub fn differences(a: &Tree, b: &Tree) -> Vec<String> {
    let (mut a, mut b) = (a.entries().iter().peekable(), b.entries().iter().peekable());
    let mut out = Vec::new();
    loop {
        let path = match (a.peek(), b.peek()) {
            (None, None) => return out,
            (Some(x), Some(y)) if x == y => None,
            (Some(x), Some(y)) => {
                Some(if x.path.as_bytes() <= y.path.as_bytes() { &x.path } else { &y.path })
            }
            (Some(x), None) => Some(&x.path),
            (None, Some(y)) => Some(&y.path),
        };
        let Some(path) = path else {
            a.next();
            b.next();
            continue;
        };
        a.next_if(|x| x.path == *path);
        b.next_if(|y| y.path == *path);
        out.push(path.clone());
    }
}
