//! Digests: what a content is called. Knows BLAKE3 and bytes; knows no cache, no tree and no stage.
//!
//! A file's digest is the plain BLAKE3 of its bytes (as `b3sum` prints it). Everything with more than one field goes
//! through [`Encoder`], whose rules are the canonical encoding of every digest that itpipe computes.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use crate::mapped::Mapped;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 digest of 32 bytes; shown, parsed and serialised as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text that is not a digest.
#[derive(Debug, thiserror::Error)]
#[error("'{0}': not a digest: expected 64 lower-case hexadecimal digits")]
pub struct BadDigest(String);

impl Digest {
    /// The digest of these bytes, equal to that of a file that holds them.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(blake3::hash(bytes).into())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 digits: for people, in messages; never a name in the store.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_string()
    }

    /// Parses 64 hexadecimal digits given as bytes.
    pub(crate) fn from_hex(hex: &[u8]) -> Option<Digest> {
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        if hex.len() != 64 {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(bytes))
    }

    /// The 64 digits as bytes, without a heap allocation.
    pub(crate) fn hex(&self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut out = [0u8; 64];
        for (pair, byte) in out.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        out
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The digits are ASCII, so the conversion cannot fail.
        f.pad(std::str::from_utf8(&self.hex()).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = BadDigest;
    fn from_str(text: &str) -> Result<Digest, BadDigest> {
        Digest::from_hex(text.as_bytes()).ok_or_else(|| BadDigest(text.chars().take(80).collect()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The canonical encoding: a sequence of fields, digested with BLAKE3.
///
/// 1. A field is one tag byte, the length of its content as a little-endian `u64`, and the content. So no two
///    sequences of fields have the same bytes: neighbours cannot run together, and an empty field is seen.
/// 2. Tags: `D` domain, `t` UTF-8 text, `b` bytes, `n` a `u64` (little-endian), `h` a digest, `l` the number of fields
///    (or groups of fields) that follow and belong together.
/// 3. The first field is the domain, which names what is encoded and its version: an encoding of one thing is never
///    that of another.
/// 4. What has no order (maps, sets, folders) is encoded sorted by the bytes of its names.
/// 5. Numbers that are not `u64` go in as text, in a form that the caller documents.
#[derive(Clone)]
pub struct Encoder(blake3::Hasher);

impl Encoder {
    /// Begins an encoding; `domain` is a constant such as `itpipe action 1`.
    pub fn new(domain: &str) -> Encoder {
        let mut encoder = Encoder(blake3::Hasher::new());
        encoder.field(b'D', domain.as_bytes());
        encoder
    }

    fn field(&mut self, tag: u8, content: &[u8]) -> &mut Encoder {
        let mut head = [tag; 9];
        head[1..].copy_from_slice(&(content.len() as u64).to_le_bytes());
        self.0.update(&head).update(content);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Encoder {
        self.field(b't', text.as_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.field(b'b', bytes)
    }

    pub fn u64(&mut self, number: u64) -> &mut Encoder {
        self.field(b'n', &number.to_le_bytes())
    }

    pub fn digest(&mut self, digest: &Digest) -> &mut Encoder {
        self.field(b'h', digest.as_bytes())
    }

    /// Says that `count` fields, or groups of fields, follow and belong together.
    pub fn list(&mut self, count: usize) -> &mut Encoder {
        self.field(b'l', &(count as u64).to_le_bytes())
    }

    pub fn finish(&self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Bytes read at once: a thread's buffer stays in its second-level cache, so the digest reads it from there.
const BLOCK: usize = 256 << 10;
/// A file of at least two groups is divided into groups (subtrees of BLAKE3) that all cores share.
const GROUP: u64 = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK]);
}

/// The digest of a file's bytes; follows a symlink. Large files are mapped and digested on all cores.
pub fn file(path: &Path) -> io::Result<Digest> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    open_file(&file, size)
}

/// The digest of an open file that had `size` bytes a moment ago; reads from its start, wherever its offset stands.
pub(crate) fn open_file(file: &File, size: u64) -> io::Result<Digest> {
    if size < 2 * GROUP { sequential(file) } else { parallel(file, size) }
}

fn sequential(file: &File) -> io::Result<Digest> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut hasher = None::<blake3::Hasher>;
        let mut at = 0;
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], at) {
                    Ok(0) => {
                        return Ok(match hasher {
                            None => Digest::of(&buffer[..filled]),
                            Some(mut hasher) => Digest(hasher.update(&buffer[..filled]).finalize().into()),
                        });
                    }
                    Ok(n) => {
                        filled += n;
                        at += n as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            hasher.get_or_insert_with(blake3::Hasher::new).update(&buffer[..filled]);
        }
    })
}

fn parallel(file: &File, size: u64) -> io::Result<Digest> {
    let groups = size.div_ceil(GROUP) as usize;
    let map = Mapped::new(file, size as usize);
    let values: Vec<ChainingValue> = (0..groups)
        .into_par_iter()
        .with_min_len(4)
        .map(|group| {
            let start = group as u64 * GROUP;
            let end = size.min(start + GROUP);
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(start);
            if let Ok(map) = &map {
                map.with(start as usize, end as usize, |bytes| hasher.update(bytes).finalize_non_root())
            } else {
                update_by_reading(&mut hasher, file, start, end)?;
                Ok(hasher.finalize_non_root())
            }
        })
        .collect::<io::Result<_>>()?;
    let (left, right) = halves(&values);
    Ok(Digest(merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).into()))
}

/// For what cannot be mapped: a file of some network file systems, say.
fn update_by_reading(hasher: &mut blake3::Hasher, file: &File, start: u64, end: u64) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = start;
        while at < end {
            let block = BLOCK.min((end - at) as usize);
            // A file that became shorter is an error here, not a digest of something else.
            file.read_exact_at(&mut buffer[..block], at)?;
            hasher.update(&buffer[..block]);
            at += block as u64;
        }
        Ok(())
    })
}

/// BLAKE3's shape: the left subtree is the largest power of two that leaves something on the right.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().next_power_of_two() / 2)
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_digest_is_64_hex_digits_both_ways() {
        let digest = Digest::of(b"abc");
        // b3sum of a file that holds "abc"
        let text = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{text}\"")).unwrap(), digest);
        for bad in ["", "64", &text.to_uppercase(), &format!("{text}0"), &text.replace('6', "g")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_every_shape_have_the_plain_digest() {
        let folder = tempfile::tempdir().unwrap();
        let group = GROUP as usize;
        let sizes = [0, 1, 1023, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 2 * group - 1, 2 * group, 2 * group + 1];
        for size in
            sizes.into_iter().chain([3 * group, 4 * group + 7, 5 * group, 8 * group - 1, 9 * group + 1024])
        {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31 + i / 251) as u8).collect();
            let path = folder.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(file(&path).unwrap(), Digest::of(&bytes), "{size} bytes");
            let mut open = File::open(&path).unwrap();
            io::copy(&mut open, &mut io::sink()).unwrap();
            assert_eq!(
                open_file(&open, size as u64).unwrap(),
                Digest::of(&bytes),
                "{size} bytes, read before"
            );
        }
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 3 * GROUP as usize]).unwrap();
        let error = open_file(&File::open(&path).unwrap(), 4 * GROUP).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Text(String),
        Bytes(Vec<u8>),
        Number(u64),
        List(usize),
    }

    fn encode(domain: &str, fields: &[Field]) -> Digest {
        let mut encoder = Encoder::new(domain);
        for field in fields {
            match field {
                Field::Text(text) => encoder.text(text),
                Field::Bytes(bytes) => encoder.bytes(bytes),
                Field::Number(number) => encoder.u64(*number),
                Field::List(count) => encoder.list(*count),
            };
        }
        encoder.finish()
    }

    fn field() -> impl Strategy<Value = Field> {
        prop_oneof![
            "[ab]{0,3}".prop_map(Field::Text),
            proptest::collection::vec(0u8..3, 0..4).prop_map(Field::Bytes),
            (0u64..4).prop_map(Field::Number),
            (0usize..4).prop_map(Field::List),
        ]
    }

    #[test]
    fn neighbours_cannot_run_together() {
        let text = |t: &str| Field::Text(t.into());
        let of = |fields: &[Field]| encode("d", fields);
        assert_ne!(of(&[text("ab"), text("c")]), of(&[text("a"), text("bc")]));
        assert_ne!(of(&[text("ab")]), of(&[text("ab"), text("")]));
        assert_ne!(of(&[text("a")]), of(&[Field::Bytes(b"a".to_vec())]));
        assert_ne!(encode("d", &[text("x")]), encode("dx", &[]));
    }

    proptest! {
        #[test]
        fn equal_digests_mean_equal_fields(
            a in proptest::collection::vec(field(), 0..5),
            b in proptest::collection::vec(field(), 0..5),
        ) {
            prop_assert_eq!(encode("d", &a) == encode("d", &b), a == b);
        }
    }
}
