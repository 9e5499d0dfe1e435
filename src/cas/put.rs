//! Into the store: bytes, files and whole folders.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{CWD, RenameFlags};

use super::{Result, Store, StoreError};
use crate::digest::{self, Digest};
use crate::stat::{Record, Stat, now};
use crate::tree::{Entry, Sub, Tree, What};
use crate::walk::{self, Found, Kind};

/// A small file is read once, into memory: digested and written from there.
const SMALL: u64 = 128 << 10;
/// A large file takes longer to digest than the clock that stamps it takes to tick.
const LARGE: u64 = 64 << 20;

impl Store {
    /// Moves a finished output into the store: its files become blobs, the emptied folder stays. The tree is stored
    /// last, so a tree in the store has all its blobs.
    ///
    /// Errors name the file: special files, names that are not UTF-8, symlinks that lead out, a full disk.
    pub fn put_tree(&self, dir: &Path) -> Result<(Digest, Tree)> {
        self.put_found(dir, true)
    }

    /// Copies a file or folder into the store and leaves it as it is.
    pub fn import(&self, path: &Path) -> Result<Sub> {
        if walk::is_folder(path)? {
            return Ok(Sub::Folder(self.put_found(path, false)?.1));
        }
        let meta = fs::metadata(path).map_err(StoreError::io(path, "reading"))?;
        let (digest, record) = self.copy_in(path, meta.len())?;
        self.remember(record.as_slice());
        Ok(Sub::File { digest, size: meta.len(), executable: meta.permissions().mode() & 0o100 != 0 })
    }

    /// Copies a file into the store; the digest of its bytes.
    pub fn put_file(&self, path: &Path) -> Result<Digest> {
        let size = fs::metadata(path).map_err(StoreError::io(path, "reading"))?.len();
        let (digest, record) = self.copy_in(path, size)?;
        self.remember(record.as_slice());
        Ok(digest)
    }

    /// Stores bytes.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let record = self.write_in(&digest, bytes, &self.tmp())?;
        self.remember(record.as_slice());
        Ok(digest)
    }

    /// Stores a manifest: field paths and texts, in order.
    pub fn put_manifest(&self, lines: &[(String, String)]) -> Result<Digest> {
        let text = serde_json::to_vec(lines)
            .map_err(|e| StoreError::io(&self.cache, "encoding a manifest")(e.into()))?;
        self.put_bytes(&text)
    }

    /// Reads what [`Store::put_manifest`] stored.
    pub fn manifest(&self, digest: &Digest) -> Result<Vec<(String, String)>> {
        let path = self.blob_path(digest);
        serde_json::from_slice(&self.bytes(digest)?)
            .map_err(|e| StoreError::io(&path, "reading a manifest")(e.into()))
    }

    /// Keeps a copy of an executable, so that a later build cannot swap it under a running stage.
    pub fn put_program(&self, path: &Path) -> Result<PathBuf> {
        let digest = digest::file(path).map_err(StoreError::io(path, "reading"))?;
        let folder = self.cache.join("programs").join(digest.to_string());
        let to = folder.join(path.file_name().unwrap_or("program".as_ref()));
        if matches!(digest::file(&to), Ok(kept) if kept == digest) {
            return Ok(to);
        }
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder, "making"))?;
        let mut tmp = self.temporary()?;
        let mut from = File::open(path).map_err(StoreError::io(path, "reading"))?;
        io::copy(&mut from, &mut tmp).map_err(StoreError::io(&to, "writing"))?;
        // Looked at again: a build may be writing it at this moment.
        if digest::file(tmp.path()).map_err(StoreError::io(&to, "reading"))? != digest {
            return Err(StoreError::Changed { path: path.to_path_buf() });
        }
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o555))
            .map_err(StoreError::io(&to, "writing"))?;
        // Closed before it has its name: an executable that is open for writing cannot be run.
        tmp.into_temp_path().persist(&to).map_err(|e| StoreError::io(&to, "writing")(e.error))?;
        Ok(to)
    }

    fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let tmp = self.tmp();
        tempfile::NamedTempFile::new_in(&tmp).map_err(|source| match super::is_read_only(&source) {
            true => StoreError::ReadOnly { path: tmp.clone(), source },
            false => StoreError::io(&tmp, "writing")(source),
        })
    }

    fn put_found(&self, dir: &Path, take: bool) -> Result<(Digest, Tree)> {
        let found = walk::list(dir)?;
        let put = |found: Found| {
            let mut record = None;
            let what = match found.kind {
                Kind::File { executable } => {
                    let path = dir.join(&found.path);
                    let digest;
                    // A file with a second name stays reachable by it: it is copied, not taken.
                    (digest, record) = match take && found.links == 1 {
                        true => self.take_in(&path, &found.stat)?,
                        false => self.copy_in(&path, found.stat.size)?,
                    };
                    What::File { digest, size: found.stat.size, executable }
                }
                Kind::Symlink { target } => What::Symlink { target },
                Kind::EmptyFolder => What::Folder,
            };
            Ok((Entry { path: found.path, what }, record))
        };
        let (entries, records): (Vec<_>, Vec<_>) =
            found.into_par_iter().with_min_len(16).map(put).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let tree = Tree::new(entries);
        let encoded = tree.encode();
        let digest = Digest::of(&encoded);
        let last = self.write_in(&digest, &encoded, dir)?;
        let records: Vec<Record> = records.into_iter().flatten().chain(last).collect();
        self.remember(&records);
        Ok((digest, tree))
    }

    fn remember(&self, records: &[Record]) {
        self.stats.put(records);
        // Only a memory of what was read: without it the bytes are read again.
        let _ = self.stats.save();
    }

    /// Makes a file of an output a blob: read-only, digested, renamed.
    fn take_in(&self, path: &Path, listed: &Stat) -> Result<(Digest, Option<Record>)> {
        let error = |doing| StoreError::io(path, doing);
        fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(error("making read-only"))?;
        let file = File::open(path).map_err(error("reading"))?;
        if listed.size >= LARGE && !listed.written_before(now()) {
            // A tick of the clock later its stat vouches for it, which saves reading it once more when it is used.
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        let read_at = now();
        let digest = digest::open_file(&file, listed.size).map_err(error("reading"))?;
        let same = |stat: Stat| match stat.same_but_ctime(listed) {
            true => Ok(stat),
            false => Err(StoreError::Changed { path: path.to_path_buf() }),
        };
        same(Stat::of(&file).map_err(error("reading"))?)?;
        if self.have(&digest, listed.size)? {
            fs::remove_file(path).map_err(error("removing"))?;
            return Ok((digest, None));
        }
        match self.name(path, &digest) {
            Ok(true) => {}
            Ok(false) => return Ok((digest, None)),
            Err(source) if source.kind() == io::ErrorKind::CrossesDevices => {
                let copied = self.copy_in(path, listed.size)?;
                fs::remove_file(path).map_err(error("removing"))?;
                return Ok(copied);
            }
            Err(source) => return Err(error("storing")(source)),
        }
        let stat = match same(Stat::of(&file).map_err(error("reading"))?) {
            Ok(stat) => stat,
            Err(changed) => {
                self.quarantine(&digest);
                return Err(changed);
            }
        };
        Ok((digest, Some(Record { key: *digest.as_bytes(), digest, stat, read_at })))
    }

    /// Copies a file in. The copy is what is digested: the file may change meanwhile.
    fn copy_in(&self, path: &Path, size: u64) -> Result<(Digest, Option<Record>)> {
        let error = |doing| StoreError::io(path, doing);
        let mut from = File::open(path).map_err(error("reading"))?;
        if size <= SMALL {
            let mut bytes = Vec::with_capacity(size as usize + 1);
            from.read_to_end(&mut bytes).map_err(error("reading"))?;
            if bytes.len() as u64 != size {
                return Err(StoreError::Changed { path: path.to_path_buf() });
            }
            let digest = Digest::of(&bytes);
            return Ok((digest, self.write_in(&digest, &bytes, path)?));
        }
        let mut tmp = self.temporary()?;
        if rustix::fs::ioctl_ficlone(&tmp, &from).is_err() {
            io::copy(&mut from, &mut tmp).map_err(error("copying into the store"))?;
        }
        let read_at = now();
        if tmp.as_file().metadata().map_err(error("storing"))?.len() != size {
            return Err(StoreError::Changed { path: path.to_path_buf() });
        }
        let digest = digest::open_file(tmp.as_file(), size).map_err(error("storing"))?;
        Ok((digest, self.finish(tmp, &digest, size, read_at, path)?))
    }

    fn write_in(&self, digest: &Digest, bytes: &[u8], of: &Path) -> Result<Option<Record>> {
        if self.have(digest, bytes.len() as u64)? {
            return Ok(None);
        }
        let mut tmp = self.temporary()?;
        let read_at = now();
        tmp.write_all(bytes).map_err(StoreError::io(of, "writing into the store"))?;
        self.finish(tmp, digest, bytes.len() as u64, read_at, of)
    }

    /// Gives a complete temporary file its name. It vanishes when anything fails.
    fn finish(
        &self,
        tmp: tempfile::NamedTempFile,
        digest: &Digest,
        size: u64,
        read_at: i64,
        of: &Path,
    ) -> Result<Option<Record>> {
        if self.have(digest, size)? {
            return Ok(None);
        }
        let error = || StoreError::io(of, "storing");
        tmp.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(error())?;
        if !self.name(tmp.path(), digest).map_err(error())? {
            return Ok(None);
        }
        let (file, path) = tmp.into_parts();
        // Renamed: nothing is left to remove under the old name.
        let _ = path.keep();
        let stat = Stat::of(&file).map_err(error())?;
        Ok(Some(Record { key: *digest.as_bytes(), digest: *digest, stat, read_at }))
    }

    /// Renames a complete, read-only file to its blob's name; `false` when the blob has come in meanwhile.
    fn name(&self, from: &Path, digest: &Digest) -> io::Result<bool> {
        let to = self.blob_path(digest);
        for _ in 0..3 {
            match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::EXIST) => return fs::remove_file(from).map(|()| false),
                Err(rustix::io::Errno::NOENT) => fs::create_dir_all(to.parent().unwrap_or(&to))?,
                // Not every file system can: then the same bytes replace themselves.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => break,
                Err(error) => return Err(error.into()),
            }
        }
        fs::rename(from, &to).map(|()| true)
    }

    /// Whether the store has this blob and it is good. A bad one is quarantined, so that a good one can come in.
    fn have(&self, digest: &Digest, size: u64) -> Result<bool> {
        Ok(matches!(self.check(digest, Some(size))?, super::verify::Blob::Good(_)))
    }
}

/// Opens a file for writing that nobody has yet.
pub(super) fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}
