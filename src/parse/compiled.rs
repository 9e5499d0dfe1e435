//! A pipeline as it was read, kept in the store: a large one is read again only where its text, the profile, the overrides
//! or the program differs. A cache: what cannot be read back is parsed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::digest::{Digest, Encoder};
use crate::pipeline::{
    Command, Input, Kind, Licence, Location, Pipeline, Program, Promise, Repeatable, Source, Stage, StageId,
    Value,
};

/// A smaller text is parsed in less time than a file of its own is worth.
const LARGE: usize = 64 << 10;
/// As many are kept: profiles and overrides that are used in turns.
const KEPT: usize = 8;

/// What the result of reading depends on: the text, its name in messages, what was asked, and this very program. None
/// where it is not worth keeping.
pub fn key(text: &str, file: &str, profile: Option<&str>, overrides: &[(String, String)]) -> Option<Digest> {
    if text.len() < LARGE {
        return None;
    }
    let program = fs::metadata("/proc/self/exe").ok()?;
    let mut encoder = Encoder::new("itpipe compiled pipeline 1");
    for number in
        [program.dev(), program.ino(), program.size(), program.mtime() as u64, program.ctime() as u64]
    {
        encoder.u64(number);
    }
    encoder.text(env!("CARGO_PKG_VERSION")).text(text).text(file);
    encoder.text(profile.unwrap_or_default()).u64(u64::from(profile.is_some())).list(overrides.len());
    overrides.iter().for_each(|(name, value)| _ = encoder.text(name).text(value));
    Some(encoder.finish())
}

/// The pipeline that was kept under this key.
pub fn load(cache: &Path, key: &Digest) -> Option<Pipeline> {
    let bytes = fs::read(cache.join("compiled").join(key.to_string())).ok()?;
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    if Digest::of(body).as_bytes() != sum {
        return None;
    }
    let mut reader = Reader { left: body, file: None, kinds: Vec::new(), kind: 0 };
    let pipeline = Pipeline::take(&mut reader)?;
    reader.left.is_empty().then_some(pipeline)
}

/// Keeps a pipeline. Where that fails only time is lost.
pub fn save(cache: &Path, key: &Digest, pipeline: &Pipeline) {
    let mut out = Vec::new();
    pipeline.put(&mut out);
    let sum = Digest::of(&out);
    out.extend_from_slice(sum.as_bytes());
    let folder = cache.join("compiled");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&folder)?;
        let mut old: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        old.sort_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
        let surplus = old.len().saturating_sub(KEPT - 1);
        old.iter().take(surplus).for_each(|path| _ = fs::remove_file(path));
        let mut file = crate::stat_table::replacement(&folder)?;
        std::io::Write::write_all(&mut file, &out)?;
        file.persist(folder.join(key.to_string()))?;
        Ok(())
    };
    let _ = write();
}

struct Reader<'a> {
    left: &'a [u8],
    /// The file of the last location: nearly always that of the next.
    file: Option<Arc<str>>,
    kinds: Vec<Arc<Kind>>,
    /// The place of the kind of the stage that is read.
    kind: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, n: usize) -> Option<&[u8]> {
        let (bytes, left) = self.left.split_at_checked(n)?;
        self.left = left;
        Some(bytes)
    }
}

/// Bytes in an order that both sides know; a struct is its fields, so that a new field cannot be forgotten.
trait Codec: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Reader) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Codec for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut Reader) -> Option<Self> {
                Some(Self::from_le_bytes(from.bytes(size_of::<Self>())?.try_into().ok()?))
            }
        }
    )*};
}
numbers!(u8, u32, u64, i64, f64);

macro_rules! structs {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Codec for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),* } = self;
                $($field.put(out);)*
            }
            fn take(from: &mut Reader) -> Option<Self> {
                $(let $field = Codec::take(from)?;)*
                Some($name { $($field),* })
            }
        }
    )*};
}
structs! {
    Program { name, build, path, sources, location }
    Licence { name, terms, url, consent, redistribute }
    Promise { sha256, size }
    Kind {
        name, command, identity, code, repeatable, pool, threads, resources, env, fixed, rehearse, alike, expect, timeout,
        retries, location
    }
    Stage { name, base, axes, kind, inputs, params, files, licence, publish, location }
}

impl Codec for Pipeline {
    fn put(&self, out: &mut Vec<u8>) {
        let Pipeline { profile, salt, pools, programs, licences, vars, origins, stages, overridden } = self;
        let mut kinds: Vec<&Arc<Kind>> = stages.iter().map(|stage| &stage.kind).collect();
        kinds.sort_by_key(|kind| Arc::as_ptr(kind));
        kinds.dedup_by_key(|kind| Arc::as_ptr(kind));
        (kinds.len() as u32).put(out);
        kinds.iter().for_each(|kind| Kind::put(kind, out));
        profile.put(out);
        salt.put(out);
        pools.put(out);
        programs.put(out);
        licences.put(out);
        vars.put(out);
        origins.put(out);
        overridden.put(out);
        (stages.len() as u32).put(out);
        for stage in stages {
            let at = kinds.partition_point(|kind| Arc::as_ptr(kind) < Arc::as_ptr(&stage.kind));
            (at as u32).put(out);
            stage.put(out);
        }
    }

    fn take(from: &mut Reader) -> Option<Self> {
        let n = u32::take(from)?;
        for _ in 0..n {
            let kind = Kind::take(from)?;
            from.kinds.push(Arc::new(kind));
        }
        let (profile, salt, pools) = (Codec::take(from)?, Codec::take(from)?, Codec::take(from)?);
        let (programs, licences) = (Codec::take(from)?, Codec::take(from)?);
        let (vars, origins, overridden) = (Codec::take(from)?, Codec::take(from)?, Codec::take(from)?);
        let n = u32::take(from)? as usize;
        let mut stages = Vec::with_capacity(n.min(from.left.len()));
        for _ in 0..n {
            from.kind = u32::take(from)? as usize;
            stages.push(Stage::take(from)?);
        }
        Some(Pipeline { profile, salt, pools, programs, licences, vars, origins, stages, overridden })
    }
}

/// A kind stands once, before all stages; a stage begins with its place there.
impl Codec for Arc<Kind> {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(from: &mut Reader) -> Option<Self> {
        from.kinds.get(from.kind).cloned()
    }
}

impl Codec for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut Reader) -> Option<Self> {
        Some(u8::take(from)? != 0)
    }
}

impl Codec for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(from: &mut Reader) -> Option<Self> {
        let n = u32::take(from)? as usize;
        Some(std::str::from_utf8(from.bytes(n)?).ok()?.to_string())
    }
}

impl<T: Codec> Codec for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(from: &mut Reader) -> Option<Self> {
        Some(if bool::take(from)? { Some(T::take(from)?) } else { None })
    }
}

impl<T: Codec> Codec for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(from: &mut Reader) -> Option<Self> {
        let n = u32::take(from)?;
        // Not reserved by a number that nobody has checked.
        let mut all = Vec::with_capacity((n as usize).min(from.left.len()).min(4096));
        for _ in 0..n {
            all.push(T::take(from)?);
        }
        Some(all)
    }
}

impl<T: Codec> Codec for BTreeMap<String, T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for (name, value) in self {
            name.put(out);
            value.put(out);
        }
    }
    fn take(from: &mut Reader) -> Option<Self> {
        let n = u32::take(from)?;
        (0..n).map(|_| Some((String::take(from)?, T::take(from)?))).collect()
    }
}

impl<T: Codec> Codec for (String, T) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut Reader) -> Option<Self> {
        Some((Codec::take(from)?, Codec::take(from)?))
    }
}

impl Codec for Location {
    fn put(&self, out: &mut Vec<u8>) {
        let Location { file, line, column } = self;
        file.to_string().put(out);
        line.put(out);
        column.put(out);
    }
    fn take(from: &mut Reader) -> Option<Self> {
        let n = u32::take(from)? as usize;
        let before = from.file.take();
        let text = std::str::from_utf8(from.bytes(n)?).ok()?;
        let file = before.filter(|file| **file == *text).unwrap_or_else(|| text.into());
        from.file = Some(file.clone());
        Some(Location { file, line: u32::take(from)?, column: u32::take(from)? })
    }
}

macro_rules! enums {
    ($($name:ident { $($tag:literal => $variant:ident $(($inner:ident))?),* })*) => {$(
        impl Codec for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $(($inner))? => { out.push($tag); $($inner.put(out);)? })*
                }
            }
            fn take(from: &mut Reader) -> Option<Self> {
                Some(match u8::take(from)? {
                    $($tag => { $(let $inner = Codec::take(from)?;)? $name::$variant $(($inner))? })*
                    _ => return None,
                })
            }
        }
    )*};
}
enums! {
    Command { 0 => Argv(words), 1 => Shell(line) }
    Repeatable { 0 => Bits, 1 => Statistical }
    Input { 0 => One(source), 1 => Many(sources) }
    Value { 0 => Null, 1 => Bool(b), 2 => Int(i), 3 => Float(x), 4 => Text(s), 5 => List(list), 6 => Map(map) }
}

impl Codec for Source {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Source::Stage { id, path } => {
                out.push(0);
                id.0.put(out);
                path.put(out);
            }
            Source::Repo(path) => {
                out.push(1);
                path.put(out);
            }
            Source::Provenance => out.push(2),
        }
    }
    fn take(from: &mut Reader) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Source::Stage { id: StageId(u32::take(from)?), path: Codec::take(from)? },
            1 => Source::Repo(Codec::take(from)?),
            2 => Source::Provenance,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = include_str!("../../pipeline.yaml").to_string() + &"#\n".repeat(LARGE);
        for profile in [None, Some("smoke"), Some("laptop")] {
            let overrides = [("depth".to_string(), "20".to_string())];
            let read = crate::parse::parse(&text, "pipeline.yaml", profile, &overrides).unwrap();
            let key = key(&text, "pipeline.yaml", profile, &overrides).unwrap();
            assert!(load(folder.path(), &key).is_none());
            save(folder.path(), &key, &read);
            assert!(load(folder.path(), &key).unwrap() == read);
            // Cut short or damaged it is nothing, and never another pipeline.
            let path = folder.path().join("compiled").join(key.to_string());
            let mut bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            assert!(load(folder.path(), &key).is_none());
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(load(folder.path(), &key).is_none());
        }
    }

    #[test]
    fn another_question_has_another_key() {
        let text = "#\n".repeat(LARGE);
        let all = [
            key(&text, "a", None, &[]),
            key(&text, "b", None, &[]),
            key(&text, "a", Some(""), &[]),
            key(&text, "a", None, &[("x".into(), "1".into())]),
            key(&(text.clone() + "#"), "a", None, &[]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(one.is_some() && all[..i].iter().all(|other| other != one));
        }
        assert_eq!(key("short", "a", None, &[]), None);
    }
}
