//! Expressions in texts: `{vars.depth}`, `{vars.table[vars.device]}`, `{axis}`, `{profile}`; `{{` and `}}` are braces.
//! Knows values and scopes; knows no field of the pipeline.
//!
//! A text that is exactly one expression becomes the value itself, of whatever type; elsewhere the value must be a
//! scalar and becomes text. What an expression brings in is never read for expressions again.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;

use super::report::{Path, Problem, Shown, Sink, suggest};
use super::yaml::{Data, Node};
use crate::pipeline::Value;

/// Bytes that one text can grow to.
const MAX_TEXT: usize = 1 << 20;
/// What all expressions of a file may write together, in bytes of memory.
pub const MAX_WRITTEN: usize = 256 << 20;
/// Indices within indices.
const MAX_NESTED: usize = 8;

/// What an expression can name.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub vars: &'a BTreeMap<String, Node>,
    pub profile: &'a Node,
    /// Axes of the matrix with the values of this instance.
    pub axes: &'a [(&'a str, &'a Node)],
    /// What may still be written; one cell for a whole file.
    pub left: &'a Cell<usize>,
}

/// A path to a value: `vars.table[vars.device].size`.
#[derive(Debug, PartialEq)]
pub struct Reference<'t> {
    pub root: &'t str,
    pub steps: Vec<Step<'t>>,
    text: &'t str,
}

#[derive(Debug, PartialEq)]
pub enum Step<'t> {
    Key(&'t str),
    Number(i64),
    Index(Reference<'t>),
}

#[derive(Debug, PartialEq)]
pub enum Part<'t> {
    Text(&'t str),
    Reference(Reference<'t>),
}

/// The value with its expressions replaced. What is wrong is reported and becomes `Data::Bad`.
pub fn evaluate<'n>(node: &'n Node, scope: &Scope, path: &Path, sink: &mut Sink) -> Cow<'n, Node> {
    if !node.dynamic {
        return Cow::Borrowed(node);
    }
    let data = match &node.data {
        _ if sink.is_full() || scope.left.get() == 0 => Data::Bad,
        Data::Text(text) => match expand(text, scope) {
            Ok(data) => data,
            Err(problem) => {
                sink.report(node.at, path, problem);
                Data::Bad
            }
        },
        Data::List(list) => Data::List(
            list.iter()
                .enumerate()
                .map(|(i, n)| evaluate(n, scope, &path.index(i), sink).into_owned())
                .collect(),
        ),
        Data::Map(map) => Data::Map(
            map.iter()
                .map(|(key, n)| (key.clone(), evaluate(n, scope, &path.key(&key.text), sink).into_owned()))
                .collect(),
        ),
        other => other.clone(),
    };
    Cow::Owned(Node::new(node.at, data))
}

fn expand(text: &str, scope: &Scope) -> Result<Data, Problem> {
    let parts = parts(text)?;
    if let [Part::Reference(reference)] = &parts[..] {
        let node = look_up(reference, scope)?;
        spend(size(node), scope)?;
        return match &node.data {
            Data::Bad => Err(Problem::Known),
            data => Ok(data.clone()),
        };
    }
    let mut out = String::with_capacity(text.len());
    for part in &parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Reference(reference) => match &look_up(reference, scope)?.data {
                Data::Text(text) => out.push_str(text),
                data => out.push_str(&scalar(data, reference)?),
            },
        }
        if out.len() > MAX_TEXT {
            return Err(Problem::new(format!("the text grows to more than {MAX_TEXT} bytes")));
        }
    }
    spend(out.len(), scope)?;
    Ok(Data::Text(out))
}

/// The texts that the expressions of a text bring into it.
pub fn values(text: &str, scope: &Scope) -> Result<Vec<String>, Problem> {
    parts(text)?
        .iter()
        .filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Reference(reference) => {
                Some(look_up(reference, scope).and_then(|node| scalar(&node.data, reference)))
            }
        })
        .collect()
}

/// Takes from what may still be written. That it is not enough is reported once: then nothing is left.
fn spend(bytes: usize, scope: &Scope) -> Result<(), Problem> {
    let left = scope.left.get();
    scope.left.set(left.saturating_sub(bytes));
    match left {
        0 => Err(Problem::Known),
        _ if bytes <= left => Ok(()),
        _ => Err(Problem::hinted(
            format!("the expressions of this file write more than {} MiB", MAX_WRITTEN >> 20),
            "look for a variable that repeats another one that repeats another one".to_owned(),
        )),
    }
}

/// About the memory of a value that is brought in; a scalar alone takes the place of its text.
fn size(node: &Node) -> usize {
    fn inner(node: &Node) -> usize {
        match &node.data {
            Data::Text(text) => 64 + text.len(),
            Data::List(list) => 64 + list.iter().map(inner).sum::<usize>(),
            Data::Map(map) => {
                64 + map.iter().map(|(key, node)| 64 + key.text.len() + inner(node)).sum::<usize>()
            }
            _ => 64,
        }
    }
    match &node.data {
        Data::List(_) | Data::Map(_) => inner(node),
        Data::Text(text) => text.len(),
        _ => 16,
    }
}

fn scalar(data: &Data, reference: &Reference) -> Result<String, Problem> {
    let what = match data {
        Data::Bool(_) | Data::Int(_) | Data::Float(_) => return Ok(text_of(data).unwrap_or_default()),
        Data::Text(text) => return Ok(text.clone()),
        Data::Bad => return Err(Problem::Known),
        Data::Null => "nothing",
        Data::List(_) => "a list",
        Data::Map(_) => "a map",
    };
    Err(Problem::hinted(
        format!("'{{{}}}' is {what}, and only a scalar can be part of a text", Shown(reference.text)),
        "as the whole value, \"{…}\", it keeps its type".to_owned(),
    ))
}

/// The text of a scalar, as in the name of an instance.
pub fn text_of(data: &Data) -> Option<String> {
    Some(match data {
        Data::Text(text) => text.clone(),
        Data::Bool(v) => Value::Bool(*v).to_string(),
        Data::Int(v) => Value::Int(*v).to_string(),
        Data::Float(v) => Value::Float(*v).to_string(),
        _ => return None,
    })
}

fn look_up<'a>(reference: &Reference, scope: &Scope<'a>) -> Result<&'a Node, Problem> {
    let mut steps = reference.steps.iter();
    let mut node: &Node = match reference.root {
        "profile" => scope.profile,
        "vars" => {
            let Some(Step::Key(name)) = steps.next() else {
                return Err(Problem::hinted("'vars' alone is not a value", "write {vars.name}".to_owned()));
            };
            scope.vars.get(*name).ok_or_else(|| {
                let hint = suggest(name, scope.vars.keys().map(String::as_str));
                Problem::hinted(format!("there is no variable '{name}' under vars"), hint)
            })?
        }
        name => match scope.axes.iter().find(|(axis, _)| *axis == name) {
            Some((_, node)) => node,
            None => return Err(unknown_root(reference, scope)),
        },
    };
    for step in steps {
        node = match &node.data {
            Data::Bad => return Err(Problem::Known),
            Data::Map(map) => {
                let key: Cow<str> = match step {
                    Step::Key(key) => (*key).into(),
                    Step::Number(i) => i.to_string().into(),
                    Step::Index(index) => scalar(&look_up(index, scope)?.data, index)?.into(),
                };
                match map.iter().find(|(k, _)| k.text == key) {
                    Some((_, node)) => node,
                    None => {
                        let hint = suggest(&key, map.iter().map(|(k, _)| k.text.as_str()));
                        let message =
                            format!("'{{{}}}': there is no key '{}'", Shown(reference.text), Shown(&key));
                        return Err(Problem::hinted(message, hint));
                    }
                }
            }
            Data::List(list) => {
                let index = match step {
                    Step::Number(i) => Some(*i),
                    Step::Index(index) => match look_up(index, scope)?.data {
                        Data::Int(i) => Some(i),
                        Data::Bad => return Err(Problem::Known),
                        _ => None,
                    },
                    Step::Key(_) => None,
                };
                let Some(index) = index else {
                    let message =
                        format!("'{{{}}}': a list is indexed by a whole number", Shown(reference.text));
                    return Err(Problem::new(message));
                };
                usize::try_from(index).ok().and_then(|i| list.get(i)).ok_or_else(|| {
                    let message = format!("'{{{}}}': there is no item {index}", Shown(reference.text));
                    Problem::hinted(message, format!("the list has {} items, counted from 0", list.len()))
                })?
            }
            _ => {
                let message = format!("'{{{}}}': only a map or a list has parts", Shown(reference.text));
                return Err(Problem::new(message));
            }
        };
    }
    Ok(node)
}

fn unknown_root(reference: &Reference, scope: &Scope) -> Problem {
    let name = reference.root;
    let message = format!("'{{{}}}': there is no '{name}' here", Shown(reference.text));
    let hint = if scope.vars.contains_key(name) {
        format!("did you mean '{{vars.{name}}}'?")
    } else {
        let words = scope.axes.iter().map(|(axis, _)| *axis).chain(["profile", "vars"]);
        match super::report::nearest(name, words) {
            Some(near) => format!("did you mean '{near}'?"),
            None => {
                let axes: Vec<_> = scope.axes.iter().map(|(axis, _)| *axis).collect();
                let axes =
                    if axes.is_empty() { String::new() } else { format!("an axis ({}), ", axes.join(", ")) };
                format!("write {axes}vars.… or profile; a brace is '{{{{', as in ${{{{{name}}}}}")
            }
        }
    };
    Problem::hinted(message, hint)
}

/// The variables that a value names, to find the order in which to evaluate them. Faults are left to `evaluate`.
pub fn variables<'n>(node: &'n Node, found: &mut Vec<&'n str>) {
    if !node.dynamic {
        return;
    }
    match &node.data {
        Data::Text(text) => {
            for part in parts(text).unwrap_or_default() {
                if let Part::Reference(reference) = part {
                    roots(&reference, found);
                }
            }
        }
        Data::List(list) => list.iter().for_each(|node| variables(node, found)),
        Data::Map(map) => map.iter().for_each(|(_, node)| variables(node, found)),
        _ => {}
    }
}

fn roots<'t>(reference: &Reference<'t>, found: &mut Vec<&'t str>) {
    if let ("vars", Some(Step::Key(name))) = (reference.root, reference.steps.first()) {
        found.push(name);
    }
    for step in &reference.steps {
        if let Step::Index(index) = step {
            roots(index, found);
        }
    }
}

/// Splits a text into literal text and references.
pub fn parts(text: &str) -> Result<Vec<Part<'_>>, Problem> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(brace) = rest.find(['{', '}']) {
        let (before, tail) = rest.split_at(brace);
        if tail.starts_with("{{") || tail.starts_with("}}") {
            parts.push(Part::Text(&rest[..=brace]));
            rest = &tail[2..];
            continue;
        }
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        if tail.starts_with('}') {
            return Err(Problem::hinted(
                "a '}' without a '{' before it",
                "write '}}' for a brace".to_owned(),
            ));
        }
        let Some(end) = tail.find('}') else {
            return Err(Problem::hinted("a '{' that is not closed", "write '{{' for a brace".to_owned()));
        };
        let inside = &tail[1..end];
        let trimmed = inside.trim();
        let (reference, after) = reference(trimmed, 0).ok_or_else(|| not_an_expression(inside))?;
        if !after.is_empty() {
            return Err(not_an_expression(inside));
        }
        parts.push(Part::Reference(reference));
        rest = &tail[end + 1..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn not_an_expression(inside: &str) -> Problem {
    Problem::hinted(
        format!("'{{{}}}' is not an expression", Shown(inside)),
        "write {vars.name}, {vars.map[vars.key]}, {axis} or {profile}, and '{{' for a brace".to_owned(),
    )
}

fn reference(text: &str, depth: usize) -> Option<(Reference<'_>, &str)> {
    if depth == MAX_NESTED {
        return None;
    }
    let (root, mut rest) = word(text)?;
    if !root.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let mut steps = Vec::new();
    loop {
        if let Some(tail) = rest.strip_prefix('.') {
            let (key, tail) = word(tail)?;
            steps.push(Step::Key(key));
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('[') {
            let tail = tail.trim_start();
            let (step, tail) = match tail.starts_with(|c: char| c.is_ascii_digit()) {
                true => {
                    let (digits, tail) = word(tail)?;
                    (Step::Number(digits.parse().ok()?), tail)
                }
                false => {
                    let (index, tail) = reference(tail, depth + 1)?;
                    (Step::Index(index), tail)
                }
            };
            steps.push(step);
            rest = tail.trim_start().strip_prefix(']')?;
        } else {
            let length = text.len() - rest.len();
            return Some((Reference { root, steps, text: &text[..length] }, rest));
        }
    }
}

/// A name: letters, digits, `_`, `-`.
fn word(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}
