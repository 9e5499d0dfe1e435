//! The matrix of a stage: its axes, which combinations `where` keeps, and what values may stand in a name.
//! Knows nothing of inputs or params.

use super::expression::{Scope, evaluate, text_of};
use super::fields::{self, Fields, found};
use super::report::{Path, Problem, Shown, Sink, suggest};
use super::yaml::{Data, Key, Node};
use crate::pattern::Axis as NameAxis;

/// Instances of one stage before `where`, and of all stages together.
pub const MAX_INSTANCES: usize = 1_000_000;
/// The longest text of an axis value.
const MAX_VALUE: usize = 100;

/// An axis with its values in declared order; no two have the same text.
pub struct Axis {
    pub name: String,
    pub values: Vec<Node>,
    pub texts: Vec<String>,
    /// Whether the values are written out, so that naming another one is a mistake.
    pub written: bool,
}

/// The instances of a stage.
#[derive(Default)]
pub struct Matrix {
    pub axes: Vec<Axis>,
    /// One index per axis for each instance, the last axis fastest.
    pub rows: Vec<u32>,
}

impl Matrix {
    /// How many instances there are; one where there is no axis.
    pub fn len(&self) -> usize {
        if self.axes.is_empty() { 1 } else { self.rows.len() / self.axes.len() }
    }

    /// The axis names and values of an instance.
    pub fn row(&self, instance: usize) -> Vec<(&str, &Node)> {
        let width = self.axes.len();
        let row = &self.rows[instance * width..(instance + 1) * width];
        self.axes.iter().zip(row).map(|(axis, &i)| (axis.name.as_str(), &axis.values[i as usize])).collect()
    }

    pub fn name_axes(&self) -> Vec<NameAxis> {
        self.axes
            .iter()
            .map(|axis| NameAxis::new(axis.name.clone(), axis.texts.clone(), axis.written))
            .collect()
    }
}

/// The instances of a stage; nothing where something is wrong. `left` is how many instances the file may still have.
pub fn matrix(fields: &Fields, scope: &Scope, left: usize, path: &Path, sink: &mut Sink) -> Option<Matrix> {
    let Some(node) = fields.get("matrix") else {
        if let Some(key) = fields.key("where") {
            sink.error(key.at, &path.key("where"), "there is no matrix for 'where' to choose from");
            return None;
        }
        return Some(Matrix::default());
    };
    let before = sink.count();
    let matrix_path = path.key("matrix");
    let node = &*evaluate(node, scope, &matrix_path, sink);
    let written = fields.get("matrix");
    let entries = fields::map(node, &matrix_path, sink)?;
    if entries.is_empty() {
        sink.error(node.at, &matrix_path, "a matrix without an axis");
        return None;
    }
    let axes: Vec<Axis> = entries
        .iter()
        .enumerate()
        .filter_map(|(i, (key, values))| {
            let written = match written.map(|node| &node.data) {
                Some(Data::Map(map)) => !map[i].1.dynamic,
                _ => false,
            };
            axis(key, values, written, &matrix_path.key(&key.text), sink)
        })
        .collect();
    let clauses = match fields.get("where") {
        None => Vec::new(),
        Some(node) => clauses(node, &axes, scope, &path.key("where"), sink),
    };
    if sink.count() != before || axes.len() != entries.len() {
        return None;
    }
    let product = axes.iter().try_fold(1usize, |product, axis| product.checked_mul(axis.values.len()));
    if product.is_none_or(|n| n > MAX_INSTANCES.min(left)) {
        let size = product.map_or("more than 2^64".to_owned(), |n| n.to_string());
        let message =
            format!("the matrix has {size} combinations, and a pipeline at most {MAX_INSTANCES} stages");
        sink.report(
            node.at,
            &matrix_path,
            Problem::hinted(message, "split it, or make an axis shorter".to_owned()),
        );
        return None;
    }
    let rows = rows(&axes, &clauses);
    if rows.is_empty() {
        let at = fields.key("where").map_or(node.at, |key| key.at);
        let message = "no combination is left";
        sink.report(
            at,
            &path.key("where"),
            Problem::hinted(message, "some alternative must fit the matrix".to_owned()),
        );
        return None;
    }
    Some(Matrix { axes, rows })
}

fn axis(key: &Key, node: &Node, written: bool, path: &Path, sink: &mut Sink) -> Option<Axis> {
    if !fields::check_identifier(&key.text, true) || matches!(key.text.as_str(), "vars" | "profile") {
        let message = format!("'{}' cannot be the name of an axis", Shown(&key.text));
        let hint = "use letters, digits, '_' and '-', a letter first; not 'vars' or 'profile'".to_owned();
        sink.report(key.at, path, Problem::hinted(message, hint));
        return None;
    }
    let list = fields::list(node, "a list", path, sink)?;
    if list.is_empty() {
        sink.error(node.at, path, "an axis without values leaves no instance");
        return None;
    }
    let mut seen = std::collections::HashSet::with_capacity(list.len());
    let mut texts = Vec::with_capacity(list.len());
    let mut good = true;
    for (i, value) in list.iter().enumerate() {
        let path = path.index(i);
        let problem = match text_of(&value.data) {
            None if matches!(value.data, Data::Bad) => Problem::Known,
            None => Problem::new(format!(
                "expected a text, a number or true or false, found {}",
                found(&value.data)
            )),
            Some(text) => match name_text(&text) {
                Err(problem) => problem,
                Ok(()) if !seen.insert(text.clone()) => {
                    Problem::new(format!("the value '{text}' is in the axis twice"))
                }
                Ok(()) => {
                    texts.push(text);
                    continue;
                }
            },
        };
        good = false;
        sink.report(value.at, &path, problem);
    }
    good.then(|| Axis { name: key.text.clone(), values: list.to_vec(), texts, written })
}

/// Whether a text may stand in the name of an instance: letters and digits of any script and `. _ - + = : @ % ~ ( )`,
/// spaces within. So a name is one line, is no path and no pattern, and can be taken apart again.
pub fn name_text(text: &str) -> Result<(), Problem> {
    let hint = "use letters, digits and . _ - + = : @ % ~ ( ), and spaces within".to_owned();
    let shown = Shown(text);
    if text.is_empty() {
        return Err(Problem::hinted("an empty text cannot be the value of an axis", hint));
    }
    if text.len() > MAX_VALUE {
        return Err(Problem::new(format!("the value '{shown}' is longer than {MAX_VALUE} bytes")));
    }
    let good = |c: char| {
        c.is_alphanumeric()
            || matches!(c, '.' | '_' | '-' | '+' | '=' | ':' | '@' | '%' | '~' | '(' | ')' | ' ')
    };
    if let Some(c) = text.chars().find(|&c| !good(c)) {
        let message = format!("the value '{shown}' cannot stand in a name: it has '{}'", c.escape_debug());
        return Err(Problem::hinted(message, hint));
    }
    if text.trim() != text {
        return Err(Problem::hinted(format!("the value '{shown}' begins or ends with a space"), hint));
    }
    if text.bytes().all(|b| b == b'.') {
        return Err(Problem::hinted(format!("the value '{shown}' is only dots"), hint));
    }
    Ok(())
}

/// One alternative of `where`: for some axes the indices of the values that it keeps.
type Clause = Vec<(usize, Vec<bool>)>;

fn clauses(node: &Node, axes: &[Axis], scope: &Scope, path: &Path, sink: &mut Sink) -> Vec<Clause> {
    let written = !node.dynamic;
    let node = evaluate(node, scope, path, sink);
    match &node.data {
        Data::List(list) => list
            .iter()
            .enumerate()
            .filter_map(|(i, node)| clause(node, axes, written, &path.index(i), sink))
            .collect(),
        Data::Map(_) => clause(&node, axes, written, path, sink).into_iter().collect(),
        Data::Bad => Vec::new(),
        data => {
            let message = format!("expected a map or a list of maps, found {}", found(data));
            let hint = "a map: all of it must hold; a list of maps: any of them".to_owned();
            sink.report(node.at, path, Problem::hinted(message, hint));
            Vec::new()
        }
    }
}

fn clause(node: &Node, axes: &[Axis], written: bool, path: &Path, sink: &mut Sink) -> Option<Clause> {
    let entries = fields::map(node, path, sink)?;
    if entries.is_empty() {
        sink.error(node.at, path, "a condition without an axis keeps everything; leave 'where' out");
        return None;
    }
    let mut clause = Vec::with_capacity(entries.len());
    for (key, node) in entries {
        let path = path.key(&key.text);
        let Some(i) = axes.iter().position(|axis| axis.name == key.text) else {
            let hint = suggest(&key.text, axes.iter().map(|axis| axis.name.as_str()));
            let message = format!("the matrix has no axis '{}'", Shown(&key.text));
            sink.report(key.at, &path, Problem::hinted(message, hint));
            continue;
        };
        let values = match &node.data {
            Data::List(list) => list.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut kept = vec![false; axes[i].values.len()];
        for (n, value) in values.iter().enumerate() {
            let at = axes[i].values.iter().position(|other| same(&other.data, &value.data));
            match at {
                Some(at) => kept[at] = true,
                // A value that this profile does not have is no mistake where a variable says what there is.
                None if axes[i].written && written && !matches!(value.data, Data::Bad) => {
                    let indexed = path.index(n);
                    let path = if matches!(node.data, Data::List(_)) { &indexed } else { &path };
                    let text = text_of(&value.data).unwrap_or_default();
                    let message =
                        format!("the axis '{}' has no such value: {}", key.text, found(&value.data));
                    let hint = match axes[i].texts.iter().position(|other| *other == text) {
                        Some(same) => Some(format!("there is {}", found(&axes[i].values[same].data))),
                        None => suggest(&text, axes[i].texts.iter().map(String::as_str)),
                    };
                    sink.report(value.at, path, Problem::hinted(message, hint));
                }
                None => {}
            }
        }
        clause.push((i, kept));
    }
    Some(clause)
}

/// Equal values; a whole number equals the same number with a fraction.
fn same(a: &Data, b: &Data) -> bool {
    match (a, b) {
        (Data::Text(a), Data::Text(b)) => a == b,
        (Data::Bool(a), Data::Bool(b)) => a == b,
        (Data::Int(a), Data::Int(b)) => a == b,
        (Data::Float(a), Data::Float(b)) => a == b,
        (Data::Int(i), Data::Float(x)) | (Data::Float(x), Data::Int(i)) => *i as f64 == *x,
        _ => false,
    }
}

fn rows(axes: &[Axis], clauses: &[Clause]) -> Vec<u32> {
    let mut rows = Vec::new();
    let mut row = vec![0u32; axes.len()];
    loop {
        let kept = |clause: &Clause| clause.iter().all(|(axis, kept)| kept[row[*axis] as usize]);
        if clauses.is_empty() || clauses.iter().any(kept) {
            rows.extend_from_slice(&row);
        }
        let Some(axis) = (0..axes.len()).rev().find(|&i| (row[i] as usize) + 1 < axes[i].values.len()) else {
            return rows;
        };
        row[axis] += 1;
        row[axis + 1..].fill(0);
    }
}
