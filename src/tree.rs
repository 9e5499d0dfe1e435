//! Trees: the sorted listing of a folder, whose digest is an output's identity. Knows no store and no stage.
//!
//! A tree holds files (digest, size, executable or not), symlinks that stay inside it, and folders that are empty
//! (others are implied by their content). Times, owners and other permission bits are not part of it.

use std::path::{Path, PathBuf};

use crate::digest::{Digest, Encoder};

/// What stands at one path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A regular file: the digest of its bytes, their number, and whether its owner may execute it.
    File { digest: Digest, size: u64, executable: bool },
    /// A symlink; its target is relative and stays inside the tree (see [`check_symlink`]).
    Symlink { target: String },
    /// A folder with nothing in it.
    Folder,
}

/// One path of a tree, `/` between its components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub what: What,
}

/// A folder's content, sorted by the bytes of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: Vec<Entry>,
}

/// A path of a tree, symlinks resolved: what a finer input names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sub {
    Folder(Tree),
    File { digest: Digest, size: u64, executable: bool },
}

impl Sub {
    /// The identity that enters a key: a folder's tree digest, or a file's digest, tagged when it is executable.
    pub fn digest(&self) -> Digest {
        match self {
            Sub::Folder(tree) => tree.digest(),
            Sub::File { digest, executable: false, .. } => *digest,
            Sub::File { digest, executable: true, .. } => {
                Encoder::new("itpipe executable file 1").digest(digest).finish()
            }
        }
    }
}

/// Why a folder is no tree, or a path is not in it.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{path}: {what}: only files, folders and symlinks can be kept")]
    Special { path: PathBuf, what: &'static str },
    #[error("{path}: symlink to '{target}': {why}")]
    Symlink { path: PathBuf, target: String, why: &'static str },
    #[error("{path}: the name is not UTF-8: names must be, to mean the same on every machine")]
    NotUtf8 { path: String },
    #[error("{path}: no such path in the output")]
    Absent { path: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("tree {digest}: {why}")]
    Malformed { digest: Digest, why: &'static str },
}

impl TreeError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TreeError + '_ {
        move |source| TreeError::Io { path: path.to_path_buf(), source }
    }
}

/// Says whether a symlink at `path` (inside the tree) may point to `target`.
///
/// The target is relative, and `..` stands only at its start, at most as often as the link lies deep. Then it cannot
/// leave the tree, whatever other symlinks it passes: each of those obeys the same rule.
pub fn check_symlink(path: &str, target: &str) -> Result<(), &'static str> {
    if target.starts_with('/') {
        return Err("an absolute target means something else in every folder");
    }
    let depth = path.matches('/').count();
    let mut ups = 0;
    let mut down = false;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if down => return Err("'..' after a name: write the target without it"),
            ".." => ups += 1,
            _ => down = true,
        }
    }
    if ups > depth { Err("it leads out of the folder") } else { Ok(()) }
}

/// Says whether `path` can be a path of a tree: relative, normal components only, no NUL.
pub fn is_normal(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The first bytes of an encoded tree; the number is the version of the format.
const MAGIC: &[u8] = b"itpipe tree 1\n";

impl Tree {
    /// Sorts the entries. They come from a listing: each path once, none of them inside a file.
    pub fn new(mut entries: Vec<Entry>) -> Tree {
        entries.sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Tree { entries }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files: path, digest, size, executable.
    pub fn files(&self) -> impl Iterator<Item = (&str, Digest, u64, bool)> {
        self.entries.iter().filter_map(|entry| match entry.what {
            What::File { digest, size, executable } => Some((entry.path.as_str(), digest, size, executable)),
            _ => None,
        })
    }

    /// The bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files().map(|(_, _, size, _)| size).sum()
    }

    /// The digest of the encoding: that of the blob under which the store keeps the tree.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// The bytes that stand for the tree: a magic line with the version, then each entry in order as a kind (`f` file,
    /// `x` executable, `l` symlink, `d` empty folder), the length of the path (`u32`) and the path, and for a file
    /// its size (`u64`) and digest, for a symlink the length (`u32`) and bytes of its target; all little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(MAGIC.len() + self.entries.iter().map(|e| e.path.len() + 48).sum::<usize>());
        out.extend_from_slice(MAGIC);
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        };
        for entry in &self.entries {
            out.push(match entry.what {
                What::File { executable: false, .. } => b'f',
                What::File { executable: true, .. } => b'x',
                What::Symlink { .. } => b'l',
                What::Folder => b'd',
            });
            text(&mut out, &entry.path);
            match &entry.what {
                What::File { digest, size, .. } => {
                    out.extend_from_slice(&size.to_le_bytes());
                    out.extend_from_slice(digest.as_bytes());
                }
                What::Symlink { target } => text(&mut out, target),
                What::Folder => {}
            }
        }
        out
    }

    /// Reads what [`Tree::encode`] wrote, and checks all that a reader relies on: the version, the order, that no path
    /// and no symlink leads out, that nothing lies inside a file.
    pub fn decode(bytes: &[u8]) -> Result<Tree, TreeError> {
        let bad = |why| TreeError::Malformed { digest: Digest::of(bytes), why };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("not a tree of version 1"))?;
        let mut reader = Reader(rest);
        let mut entries: Vec<Entry> = Vec::new();
        while !reader.0.is_empty() {
            let entry = reader.entry().ok_or_else(|| bad("it ends in the middle of an entry"))?;
            if !is_normal(&entry.path) {
                return Err(bad("a path leads out of it"));
            }
            if let What::Symlink { target } = &entry.what {
                check_symlink(&entry.path, target).map_err(bad)?;
            }
            if entries.last().is_some_and(|last| last.path.as_bytes() >= entry.path.as_bytes()) {
                return Err(bad("its entries are not in order"));
            }
            entries.push(entry);
        }
        let tree = Tree { entries };
        if tree.entries.iter().any(|entry| tree.has_leaf_above(&entry.path)) {
            return Err(bad("an entry lies inside a file"));
        }
        Ok(tree)
    }

    fn position(&self, path: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path.as_bytes()))
    }

    fn has_leaf_above(&self, path: &str) -> bool {
        path.match_indices('/').any(|(at, _)| self.position(&path[..at]).is_ok())
    }

    /// What stands at `path`, symlinks resolved inside the tree. Empty or `.` is the whole tree.
    pub fn sub(&self, path: &str) -> Result<Sub, TreeError> {
        let absent = || TreeError::Absent { path: path.to_string() };
        let mut wanted: Vec<String> = parts(path).map(str::to_string).rev().collect();
        let mut here: Vec<String> = Vec::new();
        let mut hops = 0;
        while let Some(part) = wanted.pop() {
            if part == ".." {
                here.pop().ok_or_else(absent)?;
                continue;
            }
            here.push(part);
            let Ok(at) = self.position(&here.join("/")) else { continue };
            match &self.entries[at].what {
                What::Symlink { target } => {
                    hops += 1;
                    if hops > 40 {
                        return Err(TreeError::Symlink {
                            path: PathBuf::from(path),
                            target: target.clone(),
                            why: "too many symlinks",
                        });
                    }
                    here.pop();
                    wanted.extend(parts(target).map(str::to_string).rev());
                }
                What::File { digest, size, executable } => {
                    return match wanted.is_empty() {
                        true => Ok(Sub::File { digest: *digest, size: *size, executable: *executable }),
                        false => Err(absent()),
                    };
                }
                What::Folder => {
                    return if wanted.is_empty() { Ok(Sub::Folder(Tree::default())) } else { Err(absent()) };
                }
            }
        }
        if here.is_empty() {
            return Ok(Sub::Folder(self.clone()));
        }
        self.folder(&here.join("/")).map(Sub::Folder).ok_or_else(absent)?.checked()
    }

    /// The entries below `path`, which is a folder that is not empty.
    fn folder(&self, path: &str) -> Option<Tree> {
        let prefix = format!("{path}/");
        let first = self.entries.partition_point(|entry| entry.path.as_bytes() < prefix.as_bytes());
        let entries: Vec<Entry> = self.entries[first..]
            .iter()
            .take_while(|entry| entry.path.starts_with(&prefix))
            .map(|entry| Entry { path: entry.path[prefix.len()..].to_string(), what: entry.what.clone() })
            .collect();
        (!entries.is_empty()).then_some(Tree { entries })
    }
}

impl Sub {
    /// A part of a tree may hold a symlink that leads to another part: then it does not stand alone.
    fn checked(self) -> Result<Sub, TreeError> {
        if let Sub::Folder(tree) = &self {
            for entry in &tree.entries {
                if let What::Symlink { target } = &entry.what {
                    check_symlink(&entry.path, target).map_err(|why| TreeError::Symlink {
                        path: PathBuf::from(&entry.path),
                        target: target.clone(),
                        why,
                    })?;
                }
            }
        }
        Ok(self)
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<String> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn entry(&mut self) -> Option<Entry> {
        let kind = self.take(1)?[0];
        let path = self.text()?;
        let what = match kind {
            b'f' | b'x' => What::File {
                size: u64::from_le_bytes(self.take(8)?.try_into().ok()?),
                digest: Digest::from_bytes(self.take(32)?.try_into().ok()?),
                executable: kind == b'x',
            },
            b'l' => What::Symlink { target: self.text()? },
            b'd' => What::Folder,
            _ => return None,
        };
        Some(Entry { path, what })
    }
}
