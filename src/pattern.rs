//! Names of stages and patterns over them: `train`, `train[a,0.5]`, `train[a,*]`, `train[*,erm|iw,*]`, `train[*]/path`.
//! Knows the bases and the texts of their axes; knows no value, kind or input.

use std::collections::{HashMap, HashSet};

use crate::parse::{Problem, Shown, nearest, suggest};
use crate::pipeline::{Pipeline, StageId};

/// An axis of a base: its values as they stand in names.
#[derive(Debug)]
pub struct Axis {
    name: String,
    texts: Vec<String>,
    by_text: HashMap<String, u32>,
    /// Whether a value that the axis lacks is a mistake. An axis from a variable may lack it in this profile.
    strict: bool,
    /// For each value the instances that have it, ascending, counted from the first of the base.
    rows: Vec<Vec<u32>>,
}

impl Axis {
    /// The values must differ.
    pub fn new(name: String, texts: Vec<String>, strict: bool) -> Axis {
        let by_text = texts.iter().enumerate().map(|(i, text)| (text.clone(), i as u32)).collect();
        let rows = vec![Vec::new(); texts.len()];
        Axis { name, texts, by_text, strict, rows }
    }
}

/// One name without brackets and its instances, which have consecutive ids.
#[derive(Debug)]
struct Base {
    name: String,
    first: u32,
    count: u32,
    axes: Vec<Axis>,
    /// For each instance the index of its value on each axis.
    values: Vec<u32>,
}

/// All names, to resolve references.
#[derive(Debug, Default)]
pub struct Index {
    bases: Vec<Base>,
    by_name: HashMap<String, usize>,
    instances: HashMap<String, StageId>,
    count: u32,
}

/// What a reference names.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// In declared order; at least one.
    pub ids: Vec<StageId>,
    /// Whether it was a pattern, however many it names.
    pub pattern: bool,
    /// The path within the output.
    pub path: Option<String>,
}

impl Index {
    /// Adds a base with its instances: `values` has one index per axis for each, in declared order. Without axes there
    /// is one stage with the name of the base.
    pub fn add(&mut self, name: &str, mut axes: Vec<Axis>, values: Vec<u32>) {
        let count = if axes.is_empty() { 1 } else { (values.len() / axes.len()) as u32 };
        for (row, values) in values.chunks_exact(axes.len().max(1)).enumerate() {
            for (axis, &value) in axes.iter_mut().zip(values) {
                axis.rows[value as usize].push(row as u32);
            }
            let mut full = String::with_capacity(name.len() + 24);
            write_name(
                &mut full,
                name,
                axes.iter().zip(values).map(|(axis, &v)| axis.texts[v as usize].as_str()),
            );
            self.instances.insert(full, StageId(self.count + row as u32));
        }
        if axes.is_empty() {
            self.instances.insert(name.to_owned(), StageId(self.count));
        }
        self.by_name.insert(name.to_owned(), self.bases.len());
        self.bases.push(Base { name: name.to_owned(), first: self.count, count, axes, values });
        self.count += count;
    }

    /// The index of a pipeline that is read already.
    pub fn of(pipeline: &Pipeline) -> Index {
        let mut index = Index::default();
        for stages in pipeline.stages.chunk_by(|a, b| a.base == b.base) {
            let names = stages[0].axes.iter().map(|(name, _)| name.clone());
            let mut axes: Vec<_> = names.map(|name| Axis::new(name, Vec::new(), true)).collect();
            let mut values = Vec::with_capacity(stages.len() * axes.len());
            for stage in stages {
                for (axis, (_, value)) in axes.iter_mut().zip(&stage.axes) {
                    let text = value.to_string();
                    let next = axis.texts.len() as u32;
                    let value = *axis.by_text.entry(text.clone()).or_insert(next);
                    if value == next {
                        axis.texts.push(text);
                        axis.rows.push(Vec::new());
                    }
                    values.push(value);
                }
            }
            index.add(&stages[0].base, axes, values);
        }
        index
    }

    /// The number of stages.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no stage.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there is such a base.
    pub fn has_base(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The ids of a base.
    pub fn all_of(&self, name: &str) -> Option<impl Iterator<Item = StageId> + use<>> {
        let base = &self.bases[*self.by_name.get(name)?];
        Some((base.first..base.first + base.count).map(StageId))
    }

    /// Resolves `base`, `base[…]` and either with `/path`. `base` alone names one stage: a base with instances is
    /// refused, with what to write.
    pub fn find(&self, text: &str) -> Result<Found, Problem> {
        let Parts { base: name, values, path } = Parts::split(text)?;
        let path = path.map(str::to_owned);
        if path.is_none()
            && let Some(&id) = self.instances.get(text)
        {
            return Ok(Found { ids: vec![id], pattern: false, path });
        }
        let Some(&base) = self.by_name.get(name) else { return Err(self.unknown(name)) };
        let base = &self.bases[base];
        let Some(values) = values else {
            if base.axes.is_empty() {
                return Ok(Found { ids: vec![StageId(base.first)], pattern: false, path });
            }
            let message =
                format!("'{name}' has {} instances, one for each {}", base.count, base.axis_names());
            let hint = format!("write '{name}[*]' for all of them, or name one as '{}'", base.example());
            return Err(Problem::hinted(message, hint));
        };
        if base.axes.is_empty() {
            let message = format!("'{name}' has no matrix");
            return Err(Problem::hinted(message, format!("write '{name}'")));
        }
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        let pattern = values.iter().any(|value| value.contains(['*', '|']));
        let ids = base.matching(&values)?;
        Ok(Found { ids, pattern, path })
    }

    fn unknown(&self, name: &str) -> Problem {
        let names = self.bases.iter().map(|base| base.name.as_str());
        Problem::hinted(format!("there is no stage '{}'", Shown(name)), suggest(name, names))
    }

    /// The base name nearest to a word.
    pub fn nearest(&self, word: &str) -> Option<&str> {
        nearest(word, self.bases.iter().map(|base| base.name.as_str()))
    }
}

impl Base {
    fn axis_names(&self) -> String {
        self.axes.iter().map(|axis| axis.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn example(&self) -> String {
        let mut name = String::new();
        let first = self.values.iter().take(self.axes.len());
        write_name(
            &mut name,
            &self.name,
            self.axes.iter().zip(first).map(|(axis, &v)| axis.texts[v as usize].as_str()),
        );
        name
    }

    /// The instances whose values match; a last `*` stands for all axes that follow.
    fn matching(&self, values: &[&str]) -> Result<Vec<StageId>, Problem> {
        let open = values.last() == Some(&"*");
        if values.len() > self.axes.len() || (values.len() < self.axes.len() && !open) {
            let message = format!(
                "'{}' has {} ({}), and {} given",
                self.name,
                plural(self.axes.len(), "axis", "axes"),
                self.axis_names(),
                match values.len() {
                    1 => "1 value is".to_owned(),
                    n => format!("{n} values are"),
                }
            );
            let hint =
                format!("as '{}'; '*' stands for any value, a last '*' for all that follow", self.example());
            return Err(Problem::hinted(message, hint));
        }
        // None: any value.
        let mut wanted: Vec<Option<HashSet<u32>>> = Vec::with_capacity(values.len());
        for (axis, value) in self.axes.iter().zip(values) {
            wanted.push(axis.wanted(value, &self.name)?);
        }
        let fewest =
            wanted.iter().enumerate().filter_map(|(i, set)| Some((i, set.as_ref()?))).min_by_key(
                |(i, set)| set.iter().map(|&v| self.axes[*i].rows[v as usize].len()).sum::<usize>(),
            );
        let width = self.axes.len();
        let matches = |row: &u32| {
            let values = &self.values[*row as usize * width..];
            wanted.iter().zip(values).all(|(set, value)| set.as_ref().is_none_or(|set| set.contains(value)))
        };
        let mut rows: Vec<u32> = match fewest {
            None => (0..self.count).collect(),
            Some((axis, set)) => {
                set.iter().flat_map(|&v| &self.axes[axis].rows[v as usize]).copied().filter(matches).collect()
            }
        };
        rows.sort_unstable();
        if rows.is_empty() {
            let message = format!("no instance of '{}' matches [{}]", self.name, Shown(&values.join(",")));
            let hint = "each value exists, but 'where' or the profile leaves out this combination".to_owned();
            return Err(Problem::hinted(message, hint));
        }
        Ok(rows.into_iter().map(|row| StageId(self.first + row)).collect())
    }
}

impl Axis {
    fn wanted(&self, value: &str, base: &str) -> Result<Option<HashSet<u32>>, Problem> {
        if value == "*" {
            return Ok(None);
        }
        let alternatives: Vec<&str> = value.split('|').map(str::trim).collect();
        let mut set = HashSet::with_capacity(alternatives.len());
        let alone = alternatives.len() == 1;
        for text in alternatives {
            match self.by_text.get(text) {
                Some(&v) => {
                    set.insert(v);
                }
                None if self.strict || alone => {
                    let message =
                        format!("the axis '{}' of '{base}' has no value '{}'", self.name, Shown(text));
                    return Err(Problem::hinted(
                        message,
                        suggest(text, self.texts.iter().map(String::as_str)),
                    ));
                }
                None => {}
            }
        }
        Ok(Some(set))
    }
}

/// Writes `base[v1,v2]`, or `base` where there are no values.
pub fn write_name<'a>(out: &mut String, base: &str, values: impl Iterator<Item = &'a str>) {
    out.push_str(base);
    let mut open = '[';
    for value in values {
        out.push(open);
        out.push_str(value);
        open = ',';
    }
    if open == ',' {
        out.push(']');
    }
}

fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A reference taken apart.
struct Parts<'t> {
    base: &'t str,
    values: Option<&'t str>,
    path: Option<&'t str>,
}

impl<'t> Parts<'t> {
    fn split(text: &'t str) -> Result<Parts<'t>, Problem> {
        let end = text.find(['[', '/']).unwrap_or(text.len());
        let (base, rest) = text.split_at(end);
        let (values, rest) = match rest.strip_prefix('[') {
            None => (None, rest),
            Some(rest) => match rest.split_once(']') {
                Some((values, rest)) => (Some(values), rest),
                None => return Err(Problem::new(format!("'{}' has a '[' that is not closed", Shown(text)))),
            },
        };
        let path = match rest.strip_prefix('/') {
            Some(path) => Some(path),
            None if rest.is_empty() => None,
            None => {
                let message = format!("'{}' goes on after ']'", Shown(text));
                return Err(Problem::hinted(message, "only a '/path' can follow".to_owned()));
            }
        };
        Ok(Parts { base, values, path })
    }
}
