//! Lists a folder with the stat of everything in it, on all cores. Knows no digest and no store.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};

use crate::stat::Stat;
use crate::tree::{TreeError, check_symlink};

/// Something in the folder; `path` is relative to it, `/` between its components.
#[derive(Clone, Debug)]
pub struct Found {
    pub path: String,
    pub stat: Stat,
    pub kind: Kind,
    /// Hard links to it: above one, someone else can reach it by another name.
    pub links: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File { executable: bool },
    Symlink { target: String },
    EmptyFolder,
}

/// Lists everything below `root`, sorted by the bytes of the paths. What a tree cannot hold is an error that names it:
/// special files, names that are not UTF-8, symlinks that lead out.
pub fn list(root: &Path) -> Result<Vec<Found>, TreeError> {
    let mut found = Vec::new();
    folder(root, "", &mut found)?;
    // Each folder comes sorted; what is left to do is where an empty folder stands among names that go on after its own.
    if !found.is_sorted_by(|a, b| a.path.as_bytes() < b.path.as_bytes()) {
        found.par_sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    }
    Ok(found)
}

enum Item {
    Found(Found),
    Folder(String),
}

/// Enough stats for one core to be worth the hand-over to another.
const CHUNK: usize = 256;

/// Appends what is below `prefix`; returns whether the folder is empty.
fn folder(root: &Path, prefix: &str, out: &mut Vec<Found>) -> Result<bool, TreeError> {
    let path = root.join(prefix);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| TreeError::io(&path)(e.into()))?;
    let mut names: Vec<(CString, bool)> = Vec::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut listing = RawDir::new(&fd, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|e| TreeError::io(&path)(e.into()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type() == FileType::Directory));
        }
    }
    if names.is_empty() {
        return Ok(true);
    }
    names.sort_unstable_by(|a, b| in_paths(a).cmp(in_paths(b)));
    let look = |(name, _): &(CString, bool)| item(&fd, &path, prefix, name);
    let items: Vec<Item> = match names.len() {
        ..=CHUNK => names.iter().map(look).collect::<Result<_, _>>()?,
        _ => names.par_iter().with_min_len(CHUNK).map(look).collect::<Result<_, _>>()?,
    };
    // Closed before going down, so that depth and width cost no open files.
    drop(fd);

    let below = |path: &str| {
        let mut found = Vec::new();
        if folder(root, path, &mut found)? {
            let at = root.join(path);
            let stat = rustix::fs::lstat(&at).map_err(|e| TreeError::io(&at)(e.into()))?;
            let kind = Kind::EmptyFolder;
            found.push(Found { path: path.to_string(), stat: Stat::new(&stat), kind, links: 1 });
        }
        Ok(found)
    };
    let folders = items.par_iter().filter_map(|item| match item {
        Item::Folder(path) => Some(below(path)),
        Item::Found(_) => None,
    });
    let mut folders = folders.collect::<Result<Vec<_>, TreeError>>()?.into_iter();
    for item in items {
        match item {
            Item::Found(found) => out.push(found),
            Item::Folder(_) => out.append(&mut folders.next().unwrap_or_default()),
        }
    }
    Ok(false)
}

/// A name as it stands in the paths of what it names: a folder's goes on with a slash.
fn in_paths((name, folder): &(CString, bool)) -> impl Iterator<Item = &u8> {
    name.to_bytes().iter().chain(folder.then_some(&b'/'))
}

fn item(fd: impl rustix::fd::AsFd, folder: &Path, prefix: &str, name: &CStr) -> Result<Item, TreeError> {
    let at = || folder.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let text = name
        .to_str()
        .map_err(|_| TreeError::NotUtf8 { path: at().as_os_str().as_bytes().escape_ascii().to_string() })?;
    let mut path = String::with_capacity(prefix.len() + 1 + text.len());
    if !prefix.is_empty() {
        path.push_str(prefix);
        path.push('/');
    }
    path.push_str(text);
    let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| TreeError::Io { path: at(), source: error.into() })?;
    let special = |what| Err(TreeError::Special { path: at(), what });
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Ok(Item::Folder(path)),
        FileType::RegularFile => Kind::File { executable: stat.st_mode & 0o100 != 0 },
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&fd, name, Vec::new())
                .map_err(|error| TreeError::Io { path: at(), source: error.into() })?;
            let target = target
                .into_string()
                .map_err(|_| TreeError::NotUtf8 { path: format!("{}: its target", at().display()) })?;
            if let Err(why) = check_symlink(&path, &target) {
                return Err(TreeError::Symlink { path: at(), target, why });
            }
            Kind::Symlink { target }
        }
        FileType::Fifo => return special("a fifo"),
        FileType::Socket => return special("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => return special("a device"),
        _ => return special("a special file"),
    };
    Ok(Item::Found(Found { path, stat: Stat::new(&stat), kind, links: stat.st_nlink }))
}

/// Whether the path is a folder; follows symlinks.
pub(crate) fn is_folder(path: &Path) -> Result<bool, TreeError> {
    let stat = rustix::fs::stat(path).map_err(|error| TreeError::io(path)(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(true),
        FileType::RegularFile => Ok(false),
        _ => Err(TreeError::Special { path: PathBuf::from(path), what: "a special file" }),
    }
}
