//! Out of the store: trees and files put in place, for a stage to read or a person to keep.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::put::create_new;
use super::verify::{Blob, open_blob};
use super::{Result, Store, StoreError};
use crate::digest::Digest;
use crate::stat::{Record, Stat};
use crate::tree::{Sub, Tree, What};
use crate::walk;

/// How files are put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Reflink, else a read-only hard link, else a copy. Not without a sandbox: an owner can undo read-only.
    Auto,
    /// A copy of its own (a reflink where the file system can).
    Copy,
    /// A read-only hard link, else a copy.
    Hardlink,
    /// A reflink, else a copy.
    Reflink,
}

/// What [`Link`] comes to on this file system.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Reflink,
    Hardlink,
    Copy,
}

/// A small blob is read, checked and written in one go; what is bigger relies on its stat record.
const SMALL: u64 = 128 << 10;
pub(super) const READ_ONLY: u32 = 0o444;
const WRITABLE: u32 = 0o666;

impl Store {
    /// Puts a tree, or the part of it at `sub`, at `dest`, which is not there yet (or is an empty folder). Files are
    /// read-only (0444, or 0555 when executable). A blob that was touched is read again before it is served; a bad one
    /// is an error, and in quarantine.
    pub fn materialize(&self, tree: &Digest, sub: Option<&str>, dest: &Path, how: Link) -> Result<()> {
        let whole = self.tree(tree)?.ok_or(StoreError::Absent { digest: *tree })?;
        match sub {
            None => self.place_tree(&whole, dest, self.way(how), READ_ONLY),
            Some(path) => self.place(&whole.sub(path)?, dest, self.way(how), READ_ONLY),
        }
    }

    /// The same for something at hand.
    pub fn materialize_sub(&self, sub: &Sub, dest: &Path, how: Link) -> Result<()> {
        self.place(sub, dest, self.way(how), READ_ONLY)
    }

    /// Copies a tree, or the part of it at `sub`, to `dest` for a person to keep: writable, sharing nothing.
    pub fn export(&self, tree: &Digest, sub: Option<&str>, dest: &Path) -> Result<()> {
        let whole = self.tree(tree)?.ok_or(StoreError::Absent { digest: *tree })?;
        match sub {
            None => self.place_tree(&whole, dest, self.way(Link::Copy), WRITABLE),
            Some(path) => self.place(&whole.sub(path)?, dest, self.way(Link::Copy), WRITABLE),
        }
    }

    fn way(&self, how: Link) -> Way {
        match how {
            Link::Hardlink => Way::Hardlink,
            _ if self.can_reflink() => Way::Reflink,
            Link::Auto => Way::Hardlink,
            Link::Copy | Link::Reflink => Way::Copy,
        }
    }

    /// Whether files can share their blocks in the store's file system; found out once.
    fn can_reflink(&self) -> bool {
        let known = self.reflink.load(Ordering::Relaxed);
        if known != 0 {
            return known == 1;
        }
        let clone = || {
            let mut from = tempfile::tempfile_in(self.tmp())?;
            from.write_all(&[1; 4096])?;
            Ok::<_, io::Error>(rustix::fs::ioctl_ficlone(tempfile::tempfile_in(self.tmp())?, &from)?)
        };
        let can = clone().is_ok();
        self.reflink.store(if can { 1 } else { 2 }, Ordering::Relaxed);
        can
    }

    fn place(&self, sub: &Sub, dest: &Path, way: Way, mode: u32) -> Result<()> {
        let Sub::File { digest, size, executable } = sub else {
            let Sub::Folder(tree) = sub else { return Ok(()) };
            return self.place_tree(tree, dest, way, mode);
        };
        if let Some(folder) = dest.parent() {
            fs::create_dir_all(folder).map_err(StoreError::io(folder, "making"))?;
        }
        self.place_file(digest, *size, *executable, dest, way, mode)?;
        if way == Way::Hardlink {
            self.placed().insert(dest.to_path_buf(), sub.clone());
        }
        let _ = self.stats.save();
        Ok(())
    }

    fn place_tree(&self, tree: &Tree, dest: &Path, way: Way, mode: u32) -> Result<()> {
        make_folders(tree, dest)?;
        let files: Vec<_> = tree.files().collect();
        let place = |(path, digest, size, executable): &(&str, Digest, u64, bool)| {
            self.place_file(digest, *size, *executable, &dest.join(path), way, mode)
        };
        match files.len() {
            ..16 => files.iter().try_for_each(place)?,
            _ => files.par_iter().with_min_len(16).try_for_each(place)?,
        }
        make_symlinks(tree, dest)?;
        if way == Way::Hardlink {
            self.placed().insert(dest.to_path_buf(), Sub::Folder(tree.clone()));
        }
        let _ = self.stats.save();
        Ok(())
    }

    fn place_file(
        &self,
        digest: &Digest,
        size: u64,
        executable: bool,
        dest: &Path,
        way: Way,
        mode: u32,
    ) -> Result<()> {
        // A link to an empty file saves nothing, and an executable bit would be the blob's, shared with others.
        if way == Way::Hardlink && !executable && size > 0 && self.link(digest, size, dest)? {
            return Ok(());
        }
        let error = |doing| StoreError::io(dest, doing);
        let mode = with_executable(mode, executable);
        if size <= SMALL {
            let bytes = self.bytes(digest)?;
            let mut file = create_new(dest, mode).map_err(error("writing"))?;
            return file.write_all(&bytes).map_err(error("writing"));
        }
        served(self.check(digest, Some(size))?, digest)?;
        let blob = self.blob_path(digest);
        let mut from = open_blob(&blob).map_err(StoreError::io(&blob, "reading"))?;
        let mut to = create_new(dest, mode).map_err(error("writing"))?;
        if way == Way::Reflink && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(());
        }
        io::copy(&mut from, &mut to).map_err(error("copying"))?;
        Ok(())
    }

    /// Makes a hard link, and renews the record: a link changes the blob's ctime. `false` where none can be made.
    fn link(&self, digest: &Digest, size: u64, dest: &Path) -> Result<bool> {
        let blob = self.blob_path(digest);
        let mut good = None;
        loop {
            {
                let _lock = self.locked(digest);
                let vouched = |stat: &Stat| good == Some(*stat) || self.vouched(digest, stat);
                if let Some(before) = Stat::at(&blob).ok().filter(vouched) {
                    if before.size != size {
                        return Err(StoreError::Damaged { digest: *digest });
                    }
                    match fs::hard_link(&blob, dest) {
                        Ok(()) => {}
                        Err(error) => match error.raw_os_error() {
                            Some(libc::EXDEV | libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP) => {
                                return Ok(false);
                            }
                            _ => return Err(StoreError::io(dest, "linking")(error)),
                        },
                    }
                    self.renew(digest, &before)?;
                    return Ok(true);
                }
            }
            // Another process may link it between our looks; each round reads the bytes once.
            good = Some(served(self.check(digest, Some(size))?, digest)?);
        }
    }

    /// The blob had this stat, and was good, when we changed its links: what it has now is our own doing. A write in
    /// between would show in its mtime.
    fn renew(&self, digest: &Digest, before: &Stat) -> Result<()> {
        let blob = self.blob_path(digest);
        let after = Stat::at(&blob).map_err(StoreError::io(&blob, "looking"))?;
        if let Some(known) = self.stats.get(digest.as_bytes()).filter(|_| after.same_but_ctime(before)) {
            self.stats.put(&[Record { stat: after, ..known }]);
        }
        Ok(())
    }

    /// Removes a folder with all that [`Store::materialize`] put in it. Taking links away changes the blobs' ctimes
    /// too, so the records of those that nobody touched meanwhile are renewed.
    pub fn release(&self, folder: &Path) -> Result<()> {
        let mut subs = Vec::new();
        self.placed().retain(|dest, sub| {
            let below = dest.starts_with(folder);
            if below {
                subs.push((dest.clone(), std::mem::replace(sub, Sub::Folder(Tree::default()))));
            }
            !below
        });
        for (dest, sub) in &subs {
            match sub {
                Sub::File { digest, .. } => self.unlink(digest, dest)?,
                Sub::Folder(tree) => {
                    let files: Vec<_> = tree.files().filter(|(_, _, size, run)| *size > 0 && !run).collect();
                    files
                        .par_iter()
                        .with_min_len(64)
                        .try_for_each(|(path, digest, ..)| self.unlink(digest, &dest.join(path)))?;
                }
            }
        }
        if !subs.is_empty() {
            let _ = self.stats.save();
        }
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io(folder, "removing")(error))
            }
            _ => Ok(()),
        }
    }

    fn unlink(&self, digest: &Digest, dest: &Path) -> Result<()> {
        let _lock = self.locked(digest);
        let ours = match rustix::fs::lstat(dest) {
            Ok(stat) => Stat::new(&stat),
            // The stage took it away.
            Err(_) => return Ok(()),
        };
        fs::remove_file(dest).map_err(StoreError::io(dest, "removing"))?;
        if self.vouched(digest, &ours) {
            self.renew(digest, &ours)?;
        }
        Ok(())
    }
}

/// Copies a file or folder that is not in the store: a private, read-only copy, reflinked where the file system can.
/// What a tree cannot hold is an error.
pub fn copy(from: &Path, dest: &Path) -> Result<()> {
    let one = |from: &Path, dest: &Path, executable: bool| {
        let mut source = File::open(from).map_err(StoreError::io(from, "reading"))?;
        let mode = with_executable(READ_ONLY, executable);
        let mut to = create_new(dest, mode).map_err(StoreError::io(dest, "writing"))?;
        if rustix::fs::ioctl_ficlone(&to, &source).is_err() {
            io::copy(&mut source, &mut to).map_err(StoreError::io(dest, "copying"))?;
        }
        Ok(())
    };
    if !walk::is_folder(from)? {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(from).map_err(StoreError::io(from, "reading"))?.permissions().mode();
        return one(from, dest, mode & 0o100 != 0);
    }
    fs::create_dir_all(dest).map_err(StoreError::io(dest, "making"))?;
    let found = walk::list(from)?;
    for item in &found {
        let path = dest.join(&item.path);
        let folder = match item.kind {
            walk::Kind::EmptyFolder => path.as_path(),
            _ => path.parent().unwrap_or(dest),
        };
        fs::create_dir_all(folder).map_err(StoreError::io(folder, "making"))?;
    }
    found.par_iter().with_min_len(16).try_for_each(|item| match &item.kind {
        walk::Kind::File { executable } => one(&from.join(&item.path), &dest.join(&item.path), *executable),
        walk::Kind::Symlink { target } => {
            let path = dest.join(&item.path);
            std::os::unix::fs::symlink(target, &path).map_err(StoreError::io(&path, "making"))
        }
        walk::Kind::EmptyFolder => Ok(()),
    })
}

fn served(blob: Blob, digest: &Digest) -> Result<Stat> {
    match blob {
        Blob::Good(stat) => Ok(stat),
        Blob::Missing => Err(StoreError::Absent { digest: *digest }),
        Blob::Bad => Err(StoreError::Damaged { digest: *digest }),
    }
}

/// Who may read may execute.
fn with_executable(mode: u32, executable: bool) -> u32 {
    if executable { mode | (mode & 0o444) >> 2 } else { mode }
}

fn make_folders(tree: &Tree, dest: &Path) -> Result<()> {
    fs::create_dir_all(dest).map_err(StoreError::io(dest, "making"))?;
    let mut last = "";
    for entry in tree.entries() {
        let folder = match entry.what {
            What::Folder => entry.path.as_str(),
            _ => entry.path.rsplit_once('/').map_or("", |(folder, _)| folder),
        };
        if folder != last {
            let path = dest.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io(&path, "making"))?;
            last = folder;
        }
    }
    Ok(())
}

fn make_symlinks(tree: &Tree, dest: &Path) -> Result<()> {
    for entry in tree.entries() {
        if let What::Symlink { target } = &entry.what {
            let path = dest.join(&entry.path);
            std::os::unix::fs::symlink(target, &path).map_err(StoreError::io(&path, "making"))?;
        }
    }
    Ok(())
}
