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
use crate::data::{Counts, Meta, SETS, Set, Split, SplitFiles};
use crate::job::{Job, bad, progress, write_json};

/// The params of prepare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// A set of [`SETS`].
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
}

/// Expected examples per class: a number for all, or a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedParams {
    train: Value,
    test: Value,
}

/// Reads input `files`, writes `examples.safetensors` and `meta.json`.
///
/// Errors: `BadInput` with file and row for what cannot be read or does not fit, with both tables where the counts
/// differ from the expected ones, with both digests where the content does.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let Some(set) = SETS.iter().find(|set| set.name == params.dataset) else {
        let known: Vec<&str> = SETS.iter().map(|set| set.name).collect();
        return Err(bad(format!(
            "params.dataset: `{}` is unknown (there are: {})",
            params.dataset,
            known.join(", ")
        )));
    };
    let expected = params.expected(set)?;
    prepare(set, &params, &expected, &job.input("files")?, job.out())
}

impl Params {
    fn expected(&self, set: &Set) -> Result<[Option<Vec<u64>>; 2]> {
        let classes = set.classes.len();
        let published = [&set.train, &set.test].map(|split| Some(vec![split.per_class; classes]));
        let Some(counts) = &self.counts else {
            return Ok(if self.exact { published } else { [None, None] });
        };
        let read = |name: &str, value: &Value| -> Result<Option<Vec<u64>>> {
            let list = match value {
                Value::Null => return Ok(None),
                Value::Number(_) => vec![value.clone(); classes],
                Value::Array(list) if list.len() == classes => list.clone(),
                _ => {
                    return Err(bad(format!(
                        "params.counts.{name}: a number or {classes} numbers are expected"
                    )));
                }
            };
            let numbers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
            numbers.map(Some).ok_or_else(|| bad(format!("params.counts.{name}: whole numbers are expected")))
        };
        let expected = [read("train", &counts.train)?, read("test", &counts.test)?];
        if self.exact && expected != published {
            return Err(bad("params.counts: differ from the published counts, but `exact` is true"));
        }
        Ok(expected)
    }
}

/// A file of a split and the rows of the arrays that it fills.
struct Part {
    table: Table,
    split: Split,
    rows: Range<usize>,
}

fn prepare(
    set: &Set,
    params: &Params,
    expected: &[Option<Vec<u64>>; 2],
    files: &Path,
    out: &Path,
) -> Result<()> {
    // Labels first: counts that are wrong are told before the first image is decoded.
    let mut parts = Vec::new();
    let (mut labels, mut splits) = (Vec::new(), Vec::new());
    let mut counts = Counts::default();
    for (split, published) in [(Split::Train, &set.train), (Split::Test, &set.test)] {
        let start = labels.len();
        for file in published.files {
            let table = Table::open(&files.join(file))?;
            let rows = labels.len()..labels.len() + table.rows();
            labels.extend(read_labels(set, &table)?);
            parts.push(Part { table, split, rows });
        }
        splits.resize(labels.len(), split as u32);
        if split == Split::Train && undo_order(set, params) {
            let hub = labels[start..].to_vec();
            for (row, label) in hub.iter().enumerate() {
                labels[start + target(set, params, split, row, hub.len())] = *label;
            }
        }
        let mut found = vec![0; set.classes.len()];
        labels[start..].iter().for_each(|&label| found[label as usize] += 1);
        let expected = &expected[usize::from(split == Split::Test)];
        check_counts(set, split, expected.as_deref(), &found)?;
        match split {
            Split::Train => counts.train = found,
            _ => counts.test = found,
        }
    }
    let n_train = splits.iter().filter(|&&split| split == Split::Train as u32).count();
    let n = labels.len();

    let shape = [set.height, set.width, set.channels];
    let packed = Packed::create(&out.join("examples.safetensors"), shape, &labels, &vec![0; n], &splits)?;
    for part in &parts {
        read_images(set, part, &packed, n, |row| {
            let (start, length) =
                if part.split == Split::Train { (0, n_train) } else { (n_train, n - n_train) };
            start + target(set, params, part.split, part.rows.start - start + row, length)
        })?;
    }
    if params.exact {
        let image: usize = shape.iter().product();
        packed.with_images(|pixels| {
            let (train, test) = pixels.split_at(n_train * image);
            check_content(set, Split::Train, &set.train, train, &labels[..n_train])?;
            check_content(set, Split::Test, &set.test, test, &labels[n_train..])
        })??;
    }
    packed.finish()?;
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let meta = Meta {
        dataset: set.name.to_string(),
        variant: params.variant.clone(),
        exact: params.exact,
        note: params.note.clone(),
        height: set.height,
        width: set.width,
        channels: set.channels,
        classes: words(set.classes),
        attributes: words(&["none"]),
        n_attributes: 1,
        counts,
        mean: set.mean.to_vec(),
        std: set.std.to_vec(),
    };
    write_json(&out.join("meta.json"), &meta)
}

/// Only the Hub's own files have the Hub's order of rows.
fn undo_order(set: &Set, params: &Params) -> bool {
    set.published_row.is_some() && params.variant == "hub"
}

/// Where row `row` of the `rows` rows of a split goes within the split.
fn target(set: &Set, params: &Params, split: Split, row: usize, rows: usize) -> usize {
    match set.published_row {
        Some(published_row) if split == Split::Train && undo_order(set, params) => published_row(row, rows),
        _ => row,
    }
}

fn read_labels(set: &Set, table: &Table) -> Result<Vec<u32>> {
    let column = table.column(set.label)?;
    let mut labels = Vec::with_capacity(table.rows());
    for group in 0..table.groups().len() {
        for value in table.integers(group, column)? {
            match u32::try_from(value) {
                Ok(label) if (label as usize) < set.classes.len() => labels.push(label),
                _ => {
                    let what = format!("{}: {value} is not in 0..={}", set.label, set.classes.len() - 1);
                    return Err(table.at(labels.len(), what));
                }
            }
        }
    }
    if labels.is_empty() {
        return Err(table.at(0, "missing; the file has no rows"));
    }
    Ok(labels)
}

/// Decodes a file's images, one row group at a time, and puts each at the row that `target` gives for its row here.
fn read_images(
    set: &Set,
    part: &Part,
    packed: &Packed,
    n: usize,
    target: impl Fn(usize) -> usize + Sync,
) -> Result<()> {
    let column = part.table.column(set.image)?;
    let length = set.height * set.width * set.channels;
    for (group, (first, rows)) in part.table.groups().into_iter().enumerate() {
        let images = part.table.bytes(group, column)?;
        let mut pixels = vec![0; rows * length];
        // The first failing row in file order is told, whatever the order of the threads.
        let failed = pixels.par_chunks_exact_mut(length).zip(&images).enumerate().find_map_first(
            |(i, (out, bytes))| {
                let error = decode(bytes.data(), set.height, set.width, set.channels, out).err()?;
                Some(part.table.at(first + i, format!("{}: {error:#}", set.image)))
            },
        );
        if let Some(error) = failed {
            return Err(error);
        }
        let ordered = (1..rows).all(|i| target(first + i) == target(first) + i);
        if ordered && rows > 0 {
            packed.put(target(first), &pixels)?;
        } else {
            for (i, image) in pixels.chunks_exact(length).enumerate() {
                packed.put(target(first + i), image)?;
            }
        }
        progress((part.rows.start + first + rows) as u64, n as u64, part.split.name());
    }
    Ok(())
}

/// Compares the counts of a split; an error shows both tables.
fn check_counts(set: &Set, split: Split, expected: Option<&[u64]>, found: &[u64]) -> Result<()> {
    let Some(expected) = expected.filter(|expected| *expected != found) else { return Ok(()) };
    let mut table = format!("{}: {}: the counts differ\n", set.name, split.name());
    let _ = writeln!(table, "  {:<14} {:>9} {:>9}", "label", "expected", "found");
    for (label, class) in set.classes.iter().enumerate() {
        let mark = if expected[label] == found[label] { "" } else { "  <-" };
        let _ = writeln!(table, "  {label} {class:<12} {:>9} {:>9}{mark}", expected[label], found[label]);
    }
    table.push_str(
        "hint: these are not the files that this variant describes; choose the variant that they are",
    );
    Err(bad(table))
}

/// Compares the pixels and labels of a split with the published digests.
fn check_content(
    set: &Set,
    split: Split,
    published: &SplitFiles,
    pixels: &[u8],
    labels: &[u32],
) -> Result<()> {
    let Some(content) = &published.content else { return Ok(()) };
    // An idx1 file: magic number, length, one byte a label.
    let mut idx = [0, 0, 8, 1].to_vec();
    idx.extend((labels.len() as u32).to_be_bytes());
    idx.extend(labels.iter().map(|&label| label as u8));
    for (what, found, expected) in
        [("pixels", md5(pixels), content.pixels), ("labels", md5(&idx), content.labels)]
    {
        if found != expected {
            return Err(bad(format!(
                "{}: {}: {what}: md5 {found}, the published one is {expected}\n\
                 hint: the content or the order of the rows is not the published one: `exact` must be false",
                set.name,
                split.name()
            )));
        }
    }
    Ok(())
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
