//! Digests remembered with the stat of what they were read from: a file of records that many processes append to.
//! Knows no path and no blob.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::FlockOperation;

use crate::digest::Digest;
use crate::stat::{Nanos, Record, Stat};

const HEADER: &[u8; RECORD] = &{
    let mut header = [b' '; RECORD];
    let magic = b"itpipe stat 1";
    let mut i = 0;
    while i < magic.len() {
        header[i] = magic[i];
        i += 1;
    }
    header[RECORD - 1] = b'\n';
    header
};
const RECORD: usize = 128;
/// What a machine that lost power may have promised but not written: records of another boot that are this close to
/// that boot's last one are not trusted (the kernel writes back after about 35 s).
const UNWRITTEN: Nanos = 120_000_000_000;

/// A file of records, appended to by many processes; of several records for a key the last one counts.
///
/// It is a cache: an unreadable one is an empty one, and one that cannot be written is not an error.
pub struct Table {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// By the first word of the key; the whole key is compared.
    index: HashMap<u64, u32, BuildHasherDefault<KeyHasher>>,
    records: Vec<Record>,
    /// Not in the file yet.
    pending: Vec<Record>,
    inode: u64,
    read_to: u64,
}

impl Table {
    /// Reads the table at `path`; a missing one is empty.
    pub fn open(path: &Path) -> Table {
        let mut state = State::default();
        let lines = state.load(path).unwrap_or_default();
        let table = Table { path: path.to_path_buf(), state: RwLock::new(state) };
        if lines > 10_000 + 2 * table.read().index.len() {
            // Only tidiness: the next one tries again.
            let _ = table.compact();
        }
        table
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn get(&self, key: &[u8; 32]) -> Option<Record> {
        self.read().get(key).copied()
    }

    /// Remembers these at once for this process, and for others with the next [`Table::save`].
    pub fn put(&self, records: &[Record]) {
        let mut state = self.write();
        for record in records {
            state.insert(*record);
            state.pending.push(*record);
        }
    }

    /// Takes in what other processes appended since.
    pub fn refresh(&self) {
        let _ = self.write().load(&self.path);
    }

    /// Appends what is new, in one write.
    pub fn save(&self) -> io::Result<()> {
        if self.read().pending.is_empty() {
            return Ok(());
        }
        let mut state = self.write();
        let mut bytes = Vec::with_capacity(state.pending.len() * RECORD);
        for record in &state.pending {
            bytes.extend_from_slice(&encode(record));
        }
        let mut file = lock(&self.path)?;
        let end = file.seek(SeekFrom::End(0))?;
        if end == 0 {
            file.write_all(HEADER)?;
        } else if end % RECORD as u64 != 0 {
            // A write that was cut short: the table goes on after its last whole record.
            file.set_len(end - end % RECORD as u64)?;
        }
        let before = file.seek(SeekFrom::End(0))?;
        file.write_all(&bytes).inspect_err(|_| drop(file.set_len(before)))?;
        state.pending.clear();
        // Where nobody else wrote in between, there is nothing to read back.
        let inode = file.metadata()?.ino();
        if before == RECORD as u64 || (before == state.read_to && inode == state.inode) {
            state.inode = inode;
            state.read_to = before + bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes the table anew with one record for each key.
    fn compact(&self) -> io::Result<()> {
        let file = lock(&self.path)?;
        let mut state = self.write();
        state.load(&self.path)?;
        let mut bytes = HEADER.to_vec();
        for at in state.index.values() {
            bytes.extend_from_slice(&encode(&state.records[*at as usize]));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut new = replacement(folder)?;
        new.write_all(&bytes)?;
        new.persist(&self.path)?;
        drop(file);
        Ok(())
    }
}

/// A temporary file that will replace one which everyone may read.
pub(crate) fn replacement(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mode = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().permissions(mode).tempfile_in(folder)
}

/// Opens the file for appending and holds its lock; begins again when the file was replaced meanwhile.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        match std::fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

impl State {
    /// Reads the records that are new in the file; returns how many records the file has.
    fn load(&mut self, path: &Path) -> io::Result<usize> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let meta = file.metadata()?;
        if meta.ino() != self.inode || meta.len() < self.read_to {
            self.inode = meta.ino();
            self.read_to = 0;
        }
        let lines = meta.len() as usize / RECORD;
        if meta.len() == self.read_to {
            return Ok(lines);
        }
        file.seek(SeekFrom::Start(self.read_to))?;
        let mut header = self.read_to == 0;
        let mut known = true;
        // In pieces: the bytes are as many as the records, and are not needed beside them.
        let first = self.records.len();
        let mut boots: Vec<u64> = Vec::new();
        let mut others: HashMap<u64, Nanos> = HashMap::new();
        let mut buffer = vec![0; 512 * RECORD];
        self.records.reserve(((meta.len() - self.read_to) as usize) / RECORD);
        while known {
            let filled = fill(&mut file, &mut buffer)?;
            let mut whole = buffer[..filled].as_chunks::<RECORD>().0;
            self.read_to += (whole.len() * RECORD) as u64;
            if std::mem::take(&mut header) {
                match whole.split_first() {
                    Some((first, rest)) if first == HEADER => whole = rest,
                    _ => {
                        self.read_to = 0;
                        known = false;
                        whole = &[];
                    }
                }
            }
            for bytes in whole {
                let Some(record) = decode(bytes) else { continue };
                let boot = word(bytes, BOOT);
                let last = others.entry(boot).or_insert(record.read_at);
                *last = (*last).max(record.read_at);
                self.records.push(record);
                boots.push(boot);
            }
            known &= filled == buffer.len();
        }
        others.remove(&boot());
        self.index.reserve(self.records.len() - first);
        for (at, boot) in (first..self.records.len()).zip(boots) {
            let key = word(&self.records[at].key, 0);
            if others.get(&boot).is_none_or(|last| self.records[at].read_at < last - UNWRITTEN) {
                self.index.insert(key, at as u32);
            } else {
                self.index.remove(&key);
            }
        }
        for at in 0..self.pending.len() {
            self.insert(self.pending[at]);
        }
        Ok(lines)
    }

    fn get(&self, key: &[u8; 32]) -> Option<&Record> {
        let at = *self.index.get(&word(key, 0))?;
        Some(&self.records[at as usize]).filter(|record| record.key == *key)
    }

    fn insert(&mut self, record: Record) {
        let next = self.records.len() as u32;
        let at = *self.index.entry(word(&record.key, 0)).or_insert(next);
        match self.records.get_mut(at as usize) {
            Some(known) => *known = record,
            None => self.records.push(record),
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Where a record's numbers stand.
const READ_AT: usize = 104;
const BOOT: usize = 112;
const SUM: usize = 120;

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn encode(record: &Record) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..32].copy_from_slice(&record.key);
    out[32..64].copy_from_slice(record.digest.as_bytes());
    let Stat { dev, ino, size, mtime, ctime } = record.stat;
    let numbers = [dev, ino, size, mtime as u64, ctime as u64, record.read_at as u64, boot()];
    for (to, number) in out[64..SUM].chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    let sum = checksum(&out[..SUM]);
    out[SUM..].copy_from_slice(&sum.to_le_bytes());
    out
}

fn decode(bytes: &[u8; RECORD]) -> Option<Record> {
    if word(bytes, SUM) != checksum(&bytes[..SUM]) {
        return None;
    }
    let (mut key, mut digest) = ([0; 32], [0; 32]);
    key.copy_from_slice(&bytes[..32]);
    digest.copy_from_slice(&bytes[32..64]);
    let stat = Stat {
        dev: word(bytes, 64),
        ino: word(bytes, 72),
        size: word(bytes, 80),
        mtime: word(bytes, 88) as Nanos,
        ctime: word(bytes, 96) as Nanos,
    };
    Some(Record { key, digest: Digest::from_bytes(digest), stat, read_at: word(bytes, READ_AT) as Nanos })
}

/// Against torn writes, not against an adversary: a multiply-rotate over the words.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<8>().0.iter().fold(0x9e37_79b9_7f4a_7c15, |sum, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29)
    })
}

/// This boot of this machine.
fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut word = [0; 8];
        word.copy_from_slice(&Digest::of(&id).as_bytes()[..8]);
        u64::from_le_bytes(word)
    })
}

/// Keys are words of digests: good hashes already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.as_chunks::<8>().0 {
            self.0 ^= u64::from_le_bytes(*chunk);
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::now;

    #[test]
    fn the_last_minutes_of_another_boot_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let stat = Stat { dev: 1, ino: 1, size: 1, mtime: 1, ctime: 1 };
        let second = 1_000_000_000;
        let mut bytes = HEADER.to_vec();
        let mut add = |name: u8, age: Nanos, boot: Option<u64>| {
            let record =
                Record { key: [name; 32], digest: Digest::of(&[name]), stat, read_at: now() - age * second };
            let mut line = encode(&record);
            if let Some(boot) = boot {
                line[BOOT..SUM].copy_from_slice(&boot.to_le_bytes());
                let sum = checksum(&line[..SUM]);
                line[SUM..].copy_from_slice(&sum.to_le_bytes());
            }
            bytes.extend_from_slice(&line);
        };
        add(1, 1000, Some(7));
        add(2, 700, Some(7));
        add(3, 600, Some(7));
        add(4, 10, Some(8));
        add(5, 10, None);
        add(6, 900, None);
        add(6, 600, Some(7));
        std::fs::write(&path, bytes).unwrap();
        let table = Table::open(&path);
        let kept: Vec<u8> = (1..7).filter(|name| table.get(&[*name; 32]).is_some()).collect();
        assert_eq!(kept, [1, 5]);
    }
}
