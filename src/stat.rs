//! What the file system says of a file, remembered: a table from a key to (stat, digest). Knows no path and no blob.
//!
//! A digest is remembered together with the file's device, inode, size, modification time and change time. It counts
//! again only while all of them are the same *and* a change after the digest would have shown in them (git's rule for
//! racily clean entries: a file changed in the very tick in which it was read looks unchanged).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;

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

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
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
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(&bytes)?;
        new.persist(&self.path)?;
        drop(file);
        Ok(())
    }
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
        let mut bytes = Vec::with_capacity((meta.len() - self.read_to) as usize);
        file.seek(SeekFrom::Start(self.read_to))?;
        file.read_to_end(&mut bytes)?;
        let mut whole = bytes.as_chunks::<RECORD>().0;
        if self.read_to == 0 {
            match whole.split_first() {
                Some((header, rest)) if header == HEADER => whole = rest,
                _ => return Ok(0),
            }
            self.read_to = RECORD as u64;
        }
        self.read_to += (whole.len() * RECORD) as u64;

        let ours = boot();
        let mut others: HashMap<u64, Nanos> = HashMap::new();
        for bytes in whole {
            let boot = word(bytes, BOOT);
            if boot != ours && word(bytes, SUM) == checksum(&bytes[..SUM]) {
                let read_at = word(bytes, READ_AT) as Nanos;
                let last = others.entry(boot).or_insert(read_at);
                *last = (*last).max(read_at);
            }
        }
        self.index.reserve(whole.len().saturating_sub(self.index.len()));
        self.records.reserve(whole.len());
        for bytes in whole {
            let Some(record) = decode(bytes) else { continue };
            let boot = word(bytes, BOOT);
            if boot == ours || others.get(&boot).is_none_or(|last| record.read_at < last - UNWRITTEN) {
                self.insert(record);
            } else {
                self.index.remove(&word(&record.key, 0));
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
