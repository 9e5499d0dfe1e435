//! prepare: a published set's Parquet files -> packed arrays, in the published order, counted and checked. Knows how a
//! set of labelled images is read; what is special about a set stands in `data/`.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use md5::{Digest, Md5};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::data::decode::decode;
use crate::data::packed::Packed;
use crate::data::parquet::Table;
use crate::data::{Counts, Field, Meta, SETS, Set, Split, SplitFiles, TEXTS, group};
use crate::job::{Job, bad, progress, write_json};
use crate::rehearsal;

mod text;
pub mod tokens;

/// The params of prepare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// A set of [`SETS`] or [`TEXTS`].
    dataset: String,
    /// Which form of it the files are: `hub`, `mirror`, `bundled`.
    variant: String,
    /// Whether they hold exactly the published images: then the published counts and digests are demanded.
    exact: bool,
    /// How far they are from that, in words.
    #[serde(default)]
    note: String,
    /// What to expect of a variant that is not exact.
    #[serde(default)]
    counts: Option<ExpectedParams>,
    /// Of texts: tokens of a pair, padding included; 128 without it.
    #[serde(default)]
    sequence: Option<usize>,
}

/// Expected examples per group: a number for all, or a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedParams {
    #[serde(default)]
    train: Value,
    #[serde(default)]
    validation: Value,
    #[serde(default)]
    test: Value,
}

/// Reads input `files` (texts: and `tokenizer`), writes `examples.safetensors` and `meta.json`.
///
/// Errors: `BadInput` with file and row for what cannot be read or does not fit, with both tables where the counts
/// differ from the expected ones, with both digests where the content does.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    if let Some(set) = TEXTS.iter().find(|set| set.name == params.dataset) {
        return text::prepare(set, &params, &job);
    }
    let Some(set) = SETS.iter().find(|set| set.name == params.dataset) else {
        let known = SETS.iter().map(|set| set.name).chain(TEXTS.iter().map(|set| set.name));
        let known: Vec<&str> = known.collect();
        return Err(bad(format!(
            "params.dataset: `{}` is unknown (there are: {})",
            params.dataset,
            known.join(", ")
        )));
    };
    if params.sequence.is_some() {
        return Err(bad(format!("params.sequence: {} is a set of images", set.name)));
    }
    let files = job.input("files")?;
    match job.rehearse() && files.join(rehearsal::FILE).is_file() {
        true => placeholder(set, &params, job.out()),
        false => prepare(set, &params, &files, job.out()),
    }
}

/// A few made up images, where the rehearsal of the source brought no files.
fn placeholder(set: &Set, params: &Params, out: &Path) -> Result<()> {
    let mut real = Counts::default();
    for published in set.splits {
        let expected = params.expected(set.name, published.split, published.counts)?;
        *real.of(published.split) = expected.unwrap_or_else(|| published.counts.to_vec());
    }
    let counts = rehearsal::few(&real);
    let (groups, splits) = rehearsal::rows(&counts);
    let attributes = set.n_attributes();
    let labels: Vec<u32> = groups.iter().map(|group| group / attributes).collect();
    let attributes: Vec<u32> = groups.iter().map(|group| group % attributes).collect();
    let shape = [set.height, set.width, set.channels];
    let packed = Packed::create(&out.join("examples.safetensors"), shape, &labels, &attributes, &splits)?;
    let length: usize = shape.iter().product();
    for row in 0..labels.len() {
        let pixels: Vec<u8> = (0..length).map(|i| ((row + 1) * 31 + i * 7) as u8).collect();
        packed.put(row, &pixels)?;
    }
    packed.finish()?;
    rehearsal::mark(out, &real)?;
    write_json(&out.join("meta.json"), &meta(set, params, counts))
}

impl Params {
    /// What to expect of a split; `None`: anything.
    fn expected(&self, set: &str, split: Split, published: &[u64]) -> Result<Option<Vec<u64>>> {
        let exact = self.exact.then(|| published.to_vec());
        let Some(counts) = &self.counts else { return Ok(exact) };
        let name = split.name();
        let value = match split {
            Split::Train => &counts.train,
            Split::Validation => &counts.validation,
            Split::Test => &counts.test,
        };
        let groups = published.len();
        let list = match value {
            Value::Null => return Ok(exact),
            Value::Number(_) => vec![value.clone(); groups],
            Value::Array(list) if list.len() == groups => list.clone(),
            _ => return Err(bad(format!("params.counts.{name}: a number or {groups} numbers are expected"))),
        };
        let numbers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
        let numbers =
            numbers.ok_or_else(|| bad(format!("params.counts.{name}: whole numbers are expected")))?;
        if exact.is_some_and(|exact| exact != numbers) {
            return Err(bad(format!(
                "params.counts.{name}: not the published counts of {set}, but `exact` is true"
            )));
        }
        Ok(Some(numbers))
    }
}

/// A split's files and the rows of the arrays that they fill.
struct Part<'a> {
    published: &'a SplitFiles,
    tables: Vec<Table>,
    rows: Range<usize>,
}

/// How many images are decoded before they are written.
const CHUNK: usize = 512;

fn prepare(set: &Set, params: &Params, files: &Path, out: &Path) -> Result<()> {
    // Labels first: counts that are wrong are told before the first image is decoded.
    let mut parts = Vec::new();
    let (mut labels, mut attributes, mut splits) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts = Counts::default();
    for published in set.splits {
        let start = labels.len();
        let mut tables = Vec::new();
        for file in published.files {
            let table = Table::open(&files.join(file))?;
            labels.extend(read_field(&set.label, &table)?);
            match &set.attribute {
                Some(attribute) => attributes.extend(read_field(attribute, &table)?),
                None => attributes.resize(labels.len(), 0),
            }
            tables.push(table);
        }
        let rows = start..labels.len();
        splits.resize(rows.end, published.split as u32);
        for values in [&mut labels, &mut attributes] {
            let stored = values[rows.clone()].to_vec();
            for (row, value) in stored.iter().enumerate() {
                values[start + target(set, params, published.split, row, rows.len())] = *value;
            }
        }
        let mut found = vec![0; published.counts.len()];
        for row in rows.clone() {
            found[group(labels[row], attributes[row], set.n_attributes()) as usize] += 1;
        }
        let expected = params.expected(set.name, published.split, published.counts)?;
        let attributes = set.attribute.as_ref().map_or(&[""][..], |attribute| attribute.names);
        tally(set.name, published.split, set.label.names, attributes, expected.as_deref(), &found)?;
        match published.split {
            Split::Train => counts.train = found,
            Split::Validation => counts.validation = found,
            Split::Test => counts.test = found,
        }
        parts.push(Part { published, tables, rows });
    }

    let shape = [set.height, set.width, set.channels];
    let packed = Packed::create(&out.join("examples.safetensors"), shape, &labels, &attributes, &splits)?;
    for part in &parts {
        let mut start = 0;
        for table in &part.tables {
            read_images(set, table, &packed, part.published.split.name(), labels.len(), |row| {
                part.rows.start + target(set, params, part.published.split, start + row, part.rows.len())
            })?;
            start += table.rows();
        }
    }
    if params.exact {
        let image: usize = shape.iter().product();
        packed.with_images(|pixels| -> Result<()> {
            for part in &parts {
                let pixels = &pixels[part.rows.start * image..part.rows.end * image];
                check_content(set, part.published, pixels, &labels[part.rows.clone()])?;
            }
            Ok(())
        })??;
    }
    packed.finish()?;
    write_json(&out.join("meta.json"), &meta(set, params, counts))
}

/// What stands in `meta.json`.
fn meta(set: &Set, params: &Params, counts: Counts) -> Meta {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    Meta {
        dataset: set.name.to_string(),
        variant: params.variant.clone(),
        exact: params.exact,
        note: params.note.clone(),
        height: set.height,
        width: set.width,
        channels: set.channels,
        sequence: None,
        vocabulary: None,
        classes: words(set.label.names),
        attributes: words(set.attribute.as_ref().map_or(&["none"], |attribute| attribute.names)),
        n_attributes: set.n_attributes(),
        counts,
        mean: set.mean.to_vec(),
        std: set.std.to_vec(),
    }
}

/// Where row `row` of the `rows` rows of a split goes within the split.
fn target(set: &Set, params: &Params, split: Split, row: usize, rows: usize) -> usize {
    match set.published_row {
        // Only the Hub's own files have the Hub's order of rows.
        Some(published_row) if split == Split::Train && params.variant == "hub" => published_row(row, rows),
        _ => row,
    }
}

fn read_field(field: &Field, table: &Table) -> Result<Vec<u32>> {
    let column = table.column(field.column)?;
    let mut values = Vec::with_capacity(table.rows());
    for group in 0..table.groups().len() {
        for number in table.integers(group, column)? {
            values.push(field.value(number).map_err(|what| table.at(values.len(), what))?);
        }
    }
    if values.is_empty() {
        return Err(table.at(0, "missing; the file has no rows"));
    }
    Ok(values)
}

/// Decodes a file's images, one row group at a time, and puts each at the row that `target` gives for its row here.
fn read_images(
    set: &Set,
    table: &Table,
    packed: &Packed,
    split: &str,
    n: usize,
    target: impl Fn(usize) -> usize + Sync,
) -> Result<()> {
    let column = table.column(set.image)?;
    let size = [set.height, set.width, set.channels];
    let length: usize = size.iter().product();
    let mut pixels = vec![0; CHUNK * length];
    for (group, (first, _)) in table.groups().into_iter().enumerate() {
        let images = table.bytes(group, column)?;
        for (chunk, images) in images.chunks(CHUNK).enumerate() {
            let first = first + chunk * CHUNK;
            let pixels = &mut pixels[..images.len() * length];
            // The first failing row in file order is told, whatever the order of the threads.
            let rows = pixels.par_chunks_exact_mut(length).zip(images).enumerate();
            let failed = rows.find_map_first(|(i, (out, bytes))| {
                let error = decode(bytes.data(), set.fit, size, out).err()?;
                Some(table.at(first + i, format!("{}: {error:#}", set.image)))
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if (1..images.len()).all(|i| target(first + i) == target(first) + i) {
                packed.put(target(first), pixels)?;
            } else {
                for (i, image) in pixels.chunks_exact(length).enumerate() {
                    packed.put(target(first + i), image)?;
                }
            }
            progress((target(first) + images.len()) as u64, n as u64, split);
        }
    }
    Ok(())
}

/// Compares the counts of a split; an error shows both tables.
fn tally(
    set: &str,
    split: Split,
    classes: &[&str],
    attributes: &[&str],
    expected: Option<&[u64]>,
    found: &[u64],
) -> Result<()> {
    let Some(expected) = expected.filter(|expected| *expected != found) else { return Ok(()) };
    let mut table = format!("{set}: {}: the counts differ\n", split.name());
    let name = |g: usize| match attributes {
        [_] => format!("{g} {}", classes[g]),
        _ => format!("{g} {}, {}", classes[g / attributes.len()], attributes[g % attributes.len()]),
    };
    let width = (0..expected.len()).map(|g| name(g).len()).max().unwrap_or(0).max(24);
    let _ = writeln!(table, "  {:<width$} {:>9} {:>9}", "group", "expected", "found");
    for (g, (expected, found)) in expected.iter().zip(found).enumerate() {
        let mark = if expected == found { "" } else { "  <-" };
        let _ = writeln!(table, "  {:<width$} {expected:>9} {found:>9}{mark}", name(g));
    }
    table.push_str(
        "hint: these are not the files that this variant describes; choose the variant that they are",
    );
    Err(bad(table))
}

/// Compares the pixels and labels of a split with the published digests.
fn check_content(set: &Set, published: &SplitFiles, pixels: &[u8], labels: &[u32]) -> Result<()> {
    // An idx1 file: magic number, length, one byte a label.
    let idx = || -> Vec<u8> {
        let length = (labels.len() as u32).to_be_bytes();
        [0, 0, 8, 1].into_iter().chain(length).chain(labels.iter().map(|&label| label as u8)).collect()
    };
    let content = &published.content;
    let pixels = content.pixels.map(|expected| ("pixels", md5(pixels), expected));
    let labels = content.labels.map(|expected| ("labels", md5(&idx()), expected));
    for (what, found, expected) in [pixels, labels].into_iter().flatten() {
        if found != expected {
            return Err(bad(format!(
                "{}: {}: {what}: md5 {found}, the published one is {expected}\n\
                 hint: the content or the order of the rows is not the published one: `exact` must be false",
                set.name,
                published.split.name()
            )));
        }
    }
    Ok(())
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
