//! prepare for pairs of texts: Parquet files, a table of labels and splits, a tokenizer -> arrays of tokens. Every row of
//! the table is compared with the pair that it speaks of. Knows how such a set is read; its facts stand in `data/`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use super::tokens::{Encoded, Encoder};
use super::{Params, tally};
use crate::data::parquet::Table;
use crate::data::{Counts, Meta, Split, TextSet};
use crate::job::{Job, bad, progress, write, write_json};
use crate::rehearsal;

/// Tokens of a pair, as group DRO has them.
const SEQUENCE: usize = 128;
/// How many pairs are encoded between two progress lines.
const CHUNK: usize = 4096;

/// Words of the vocabulary of BERT (uncased).
const BERT: usize = 30522;

/// A few made up pairs, where the rehearsal of the source brought no files.
fn placeholder(set: &TextSet, params: &Params, sequence: usize, vocabulary: usize, out: &Path) -> Result<()> {
    let mut real = Counts::default();
    for (split, published) in [Split::Train, Split::Validation, Split::Test].into_iter().zip(set.counts) {
        *real.of(split) = params.expected(set.name, split, published)?.unwrap_or_else(|| published.to_vec());
    }
    let counts = rehearsal::few(&real);
    let (groups, splits) = rehearsal::rows(&counts);
    let arrays = Arrays {
        sequence,
        ids: (0..groups.len() * sequence).map(|i| (i * 7919 % vocabulary) as u32).collect(),
        types: (0..groups.len() * sequence).map(|i| u8::from(i % sequence >= sequence / 2)).collect(),
        lengths: vec![sequence as u32; groups.len()],
        labels: groups.iter().map(|group| group / 2).collect(),
        attributes: groups.iter().map(|group| group % 2).collect(),
        splits,
    };
    arrays.write(out)?;
    rehearsal::mark(out, &real)?;
    write_json(&out.join("meta.json"), &meta(set, params, sequence, vocabulary, counts))
}

/// What `examples.safetensors` holds; `ids` and `types` pair after pair.
struct Arrays {
    sequence: usize,
    ids: Vec<u32>,
    types: Vec<u8>,
    lengths: Vec<u32>,
    labels: Vec<u32>,
    attributes: Vec<u32>,
    splits: Vec<u32>,
}

impl Arrays {
    fn write(self, out: &Path) -> Result<()> {
        let n = self.labels.len();
        let bytes = |values: Vec<u32>| values.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let ids = bytes(self.ids);
        let columns = [
            ("label", self.labels),
            ("attribute", self.attributes),
            ("split", self.splits),
            ("length", self.lengths),
        ]
        .map(|(name, values)| (name, bytes(values)));
        let mut views = vec![
            ("input_ids", TensorView::new(Dtype::U32, vec![n, self.sequence], &ids)?),
            ("token_type_ids", TensorView::new(Dtype::U8, vec![n, self.sequence], &self.types)?),
        ];
        for (name, bytes) in &columns {
            views.push((*name, TensorView::new(Dtype::U32, vec![n], bytes)?));
        }
        write(&out.join("examples.safetensors"), &safetensors::serialize(views, None)?)
    }
}

/// What stands in `meta.json`.
fn meta(set: &TextSet, params: &Params, sequence: usize, vocabulary: usize, counts: Counts) -> Meta {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
    Meta {
        dataset: set.name.to_string(),
        variant: params.variant.clone(),
        exact: params.exact,
        note: params.note.clone(),
        height: 0,
        width: 0,
        channels: 0,
        sequence: Some(sequence),
        vocabulary: Some(vocabulary),
        classes: words(set.classes),
        attributes: words(&set.attributes),
        n_attributes: 2,
        counts,
        mean: Vec::new(),
        std: Vec::new(),
    }
}

/// A row of the table of labels and splits.
struct Row {
    label: u32,
    attribute: u32,
    split: u32,
}

/// Reads inputs `files` and `tokenizer`, writes `examples.safetensors` and `meta.json`.
pub fn prepare(set: &TextSet, params: &Params, job: &Job) -> Result<()> {
    let files = job.input("files")?;
    let sequence = params.sequence.unwrap_or(SEQUENCE);
    if !(8..=512).contains(&sequence) {
        return Err(bad(format!("params.sequence: {sequence} is not in 8..=512")));
    }
    let tokenizer = job.input("tokenizer")?;
    if job.rehearse() && (files.join(rehearsal::FILE).is_file() || tokenizer.join(rehearsal::FILE).is_file())
    {
        let there = !tokenizer.join(rehearsal::FILE).is_file();
        let vocabulary = if there { Encoder::open(&tokenizer, sequence)?.vocabulary() } else { BERT };
        return placeholder(set, params, sequence, vocabulary, job.out());
    }
    let encoder = Encoder::open(&tokenizer, sequence)?;
    let metadata = Metadata::open(&files.join(set.metadata))?;
    let pairs = Pairs::open(set, &files)?;
    metadata.compare(set, &pairs)?;
    let rows = &metadata.rows;

    let mut counts = Counts::default();
    for (split, published) in [Split::Train, Split::Validation, Split::Test].into_iter().zip(set.counts) {
        let mut found = vec![0; published.len()];
        for row in rows.iter().filter(|row| row.split == split as u32) {
            found[crate::data::group(row.label, row.attribute, 2) as usize] += 1;
        }
        let expected = params.expected(set.name, split, published)?;
        tally(set.name, split, set.classes, &set.attributes, expected.as_deref(), &found)?;
        match split {
            Split::Train => counts.train = found,
            Split::Validation => counts.validation = found,
            Split::Test => counts.test = found,
        }
    }

    let n = rows.len();
    let (mut ids, mut types) = (Vec::with_capacity(n * sequence), Vec::with_capacity(n * sequence));
    let mut lengths: Vec<u32> = Vec::with_capacity(n);
    for (chunk, pairs) in pairs.texts.chunks(CHUNK).enumerate() {
        let encoded: Vec<Encoded> =
            pairs.par_iter().map(|(first, second)| encoder.encode(first, second)).collect::<Result<_>>()?;
        for pair in encoded {
            ids.extend(pair.ids);
            types.extend(pair.types);
            lengths.push(pair.length);
        }
        progress((chunk * CHUNK + pairs.len()) as u64, n as u64, "pairs");
    }
    let arrays = Arrays {
        sequence,
        ids,
        types,
        lengths,
        labels: rows.iter().map(|row| row.label).collect(),
        attributes: rows.iter().map(|row| row.attribute).collect(),
        splits: rows.iter().map(|row| row.split).collect(),
    };
    arrays.write(job.out())?;
    write_json(&job.out().join("meta.json"), &meta(set, params, sequence, encoder.vocabulary(), counts))
}

/// All pairs of a set, in the order of its files.
struct Pairs {
    texts: Vec<(String, String)>,
    labels: Vec<u32>,
    /// Where each pair stands, for messages: the first pair of each file.
    files: Vec<(usize, PathBuf)>,
}

impl Pairs {
    fn open(set: &TextSet, folder: &Path) -> Result<Self> {
        let mut all = Self { texts: Vec::new(), labels: Vec::new(), files: Vec::new() };
        for file in set.files {
            let path = folder.join(file);
            let table = Table::open(&path)?;
            let start = all.texts.len();
            all.files.push((start, path));
            let [first, second] = [table.column(set.texts[0])?, table.column(set.texts[1])?];
            let label = table.column(set.label.0)?;
            for (group, (from, _)) in table.groups().into_iter().enumerate() {
                let text = |column, name: &str| -> Result<Vec<String>> {
                    let values = table.bytes(group, column)?.into_iter().enumerate();
                    let words = values.map(|(i, bytes)| {
                        let text = String::from_utf8(bytes.data().to_vec());
                        text.map_err(|_| table.at(from + i, format!("{name}: not UTF-8")))
                    });
                    words.collect()
                };
                let [first, second] = [text(first, set.texts[0])?, text(second, set.texts[1])?];
                all.texts.extend(first.into_iter().zip(second));
                for (i, number) in table.integers(group, label)?.into_iter().enumerate() {
                    let known = usize::try_from(number).ok().and_then(|at| set.label.1.get(at));
                    all.labels.push(*known.ok_or_else(|| {
                        let end = set.label.1.len() - 1;
                        table.at(from + i, format!("{}: {number} is not in 0..={end}", set.label.0))
                    })?);
                }
            }
            if all.texts.len() == start {
                return Err(table.at(0, "missing; the file has no rows"));
            }
        }
        Ok(all)
    }

    /// The file and the row of a pair.
    fn place(&self, pair: usize) -> String {
        let found = self.files.iter().rev().find(|(start, _)| *start <= pair);
        found.map_or_else(String::new, |(start, path)| format!("{}: row {}", path.display(), pair - start))
    }
}

/// Group DRO's table: a row number without a name, `gold_label`, `sentence2_has_negation`, `split`.
struct Metadata {
    path: PathBuf,
    rows: Vec<Row>,
}

const HEADER: &str = ",gold_label,sentence2_has_negation,split";

impl Metadata {
    fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| bad(format!("{}: {e}", path.display())))?;
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some(HEADER) {
            return Err(bad(format!("{}: line 1: `{HEADER}` is expected", path.display())));
        }
        let mut rows = Vec::new();
        let mut last = None;
        for (i, line) in lines.enumerate() {
            let fail = |what: String| bad(format!("{}: line {}: {what}", path.display(), i + 2));
            let numbers: Option<Vec<u32>> =
                line.trim_end().split(',').map(|word| word.parse().ok()).collect();
            let Some([index, label, attribute, split]) = numbers.as_deref() else {
                return Err(fail(format!("four whole numbers are expected, found `{line}`")));
            };
            if last.is_some_and(|last| last >= *index) {
                return Err(fail(format!("number {index} does not rise")));
            }
            last = Some(*index);
            for (name, value, end) in
                [("gold_label", label, 2), ("sentence2_has_negation", attribute, 1), ("split", split, 2)]
            {
                if *value > end {
                    return Err(fail(format!("{name}: {value} is not in 0..={end}")));
                }
            }
            rows.push(Row { label: *label, attribute: *attribute, split: *split });
        }
        Ok(Self { path: path.to_path_buf(), rows })
    }

    /// Whether each row speaks of its pair: the same label, and the attribute that the rule finds.
    fn compare(&self, set: &TextSet, pairs: &Pairs) -> Result<()> {
        let fail = |what: String| {
            let hint = "hint: the table does not belong to these files, or their order is another";
            Err(bad(format!("{}: {what}\n{hint}", self.path.display())))
        };
        if self.rows.len() != pairs.texts.len() {
            return fail(format!("{} rows for {} pairs", self.rows.len(), pairs.texts.len()));
        }
        for (i, row) in self.rows.iter().enumerate() {
            let attribute = u32::from((set.attribute)(&pairs.texts[i].1));
            for (name, here, there) in [
                ("gold_label", row.label, pairs.labels[i]),
                ("sentence2_has_negation", row.attribute, attribute),
            ] {
                if here != there {
                    return fail(format!(
                        "line {}: {name}: {here}, but {there} in {}",
                        i + 2,
                        pairs.place(i)
                    ));
                }
            }
        }
        Ok(())
    }
}
