//! Reading typed fields from a tree: what was expected, what was found, which keys there are. Knows the rules for names,
//! paths and words of a shell; knows no kind and no stage.

use globset::Glob;

use super::report::{Path, Problem, Shown, Sink, suggest};
use super::yaml::{Data, Key, Node};
use crate::pipeline::Value;

/// A path of the repository or of an output is at most this long.
const MAX_PATH: usize = 1000;

/// What stands there, for a message.
pub fn found(data: &Data) -> String {
    match data {
        Data::Null => "nothing".to_owned(),
        Data::Bool(v) => format!("{v}"),
        Data::Int(v) => format!("the whole number {v}"),
        Data::Float(v) => format!("the number {v:?}"),
        Data::Text(text) => format!("the text '{}'", Shown(text)),
        Data::List(_) => "a list".to_owned(),
        Data::Map(_) => "a map".to_owned(),
        Data::Bad => "a wrong value".to_owned(),
    }
}

fn wrong(node: &Node, expected: &str, path: &Path, sink: &mut Sink) {
    if matches!(node.data, Data::Bad) {
        return;
    }
    let hint = match (&node.data, expected) {
        (Data::Bool(_) | Data::Int(_) | Data::Float(_), "text") => Some("put it in quotes".to_owned()),
        (Data::Text(text), "true or false") if matches!(text.as_str(), "yes" | "on" | "y" | "Yes" | "On") => {
            Some("did you mean true?".to_owned())
        }
        (Data::Text(text), "true or false") if matches!(text.as_str(), "no" | "off" | "n" | "No" | "Off") => {
            Some("did you mean false?".to_owned())
        }
        (Data::Text(text), "a list" | "a list of words") if !text.contains(['[', ']', '\n']) => {
            Some(format!("write [{}]", text.split_whitespace().collect::<Vec<_>>().join(", ")))
        }
        _ => None,
    };
    sink.report(
        node.at,
        path,
        Problem::hinted(format!("expected {expected}, found {}", found(&node.data)), hint),
    );
}

/// The entries of a map.
pub fn map<'n>(node: &'n Node, path: &Path, sink: &mut Sink) -> Option<&'n [(Key, Node)]> {
    match &node.data {
        Data::Map(map) => Some(map),
        _ => {
            wrong(node, "a map", path, sink);
            None
        }
    }
}

/// The entries of a map whose keys are known; an unknown key is an error.
pub fn fields<'n>(node: &'n Node, known: &[&str], path: &Path, sink: &mut Sink) -> Option<Fields<'n>> {
    let entries = map(node, path, sink)?;
    for (key, _) in entries {
        if !known.contains(&key.text.as_str()) && !sink.is_full() {
            let hint = suggest(&key.text, known.iter().copied());
            sink.report(
                key.at,
                &path.key(&key.text),
                Problem::hinted(format!("unknown key '{}'", Shown(&key.text)), hint),
            );
        }
    }
    Some(Fields(entries))
}

/// The entries of a map, by name.
#[derive(Clone, Copy)]
pub struct Fields<'n>(pub &'n [(Key, Node)]);

impl<'n> Fields<'n> {
    pub fn get(&self, name: &str) -> Option<&'n Node> {
        self.0.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    pub fn key(&self, name: &str) -> Option<&'n Key> {
        self.0.iter().find(|(key, _)| key.text == name).map(|(key, _)| key)
    }
}

pub fn text<'n>(node: &'n Node, path: &Path, sink: &mut Sink) -> Option<&'n str> {
    match &node.data {
        Data::Text(text) => Some(text),
        _ => {
            wrong(node, "text", path, sink);
            None
        }
    }
}

pub fn boolean(node: &Node, path: &Path, sink: &mut Sink) -> Option<bool> {
    match node.data {
        Data::Bool(v) => Some(v),
        _ => {
            wrong(node, "true or false", path, sink);
            None
        }
    }
}

/// A whole number from `min` to `max`.
pub fn whole(node: &Node, min: i64, max: i64, path: &Path, sink: &mut Sink) -> Option<i64> {
    match node.data {
        Data::Int(v) if (min..=max).contains(&v) => Some(v),
        Data::Int(v) => {
            sink.error(node.at, path, format!("expected a whole number from {min} to {max}, found {v}"));
            None
        }
        _ => {
            wrong(node, "a whole number", path, sink);
            None
        }
    }
}

/// How much of a pool: a number above 0, of which thousandths count. Returns thousandths.
pub fn amount(node: &Node, path: &Path, sink: &mut Sink) -> Option<u32> {
    let number = match node.data {
        Data::Int(v) => v as f64,
        Data::Float(v) => v,
        _ => {
            wrong(node, "a number", path, sink);
            return None;
        }
    };
    if !(0.001..=1e6).contains(&number) {
        sink.error(node.at, path, format!("expected a number from 0.001 to 1000000, found {number}"));
        return None;
    }
    Some((number * 1000.0).round() as u32)
}

pub fn list<'n>(node: &'n Node, expected: &str, path: &Path, sink: &mut Sink) -> Option<&'n [Node]> {
    match &node.data {
        Data::List(list) => Some(list),
        _ => {
            wrong(node, expected, path, sink);
            None
        }
    }
}

/// Words of a command: text or whole numbers, at least one, none with a NUL.
pub fn words(node: &Node, path: &Path, sink: &mut Sink) -> Option<Vec<String>> {
    let items = list(node, "a list of words", path, sink)?;
    if items.is_empty() {
        sink.error(node.at, path, "expected a list of words, found an empty list");
        return None;
    }
    let before = sink.count();
    let mut words = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        match &item.data {
            Data::Int(v) => words.push(v.to_string()),
            _ => words.extend(text(item, &path, sink).map(str::to_owned)),
        }
        if words.last().is_some_and(|word| word.contains('\0')) {
            sink.error(item.at, &path, "a word cannot hold a NUL");
        }
    }
    if sink.count() != before || words.len() != items.len() {
        return None;
    }
    if words[0].trim().is_empty() {
        sink.error(items[0].at, &path.index(0), "the first word names the program, and it is empty");
        return None;
    }
    Some(words)
}

/// A list of texts, each through `check`.
pub fn texts(
    node: &Node,
    path: &Path,
    sink: &mut Sink,
    check: impl Fn(&str) -> Result<String, Problem>,
) -> Option<Vec<String>> {
    let items = list(node, "a list", path, sink)?;
    let before = sink.count();
    let mut all = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        if let Some(text) = text(item, &path, sink) {
            match check(text) {
                Ok(text) => all.push(text),
                Err(problem) => sink.report(item.at, &path, problem),
            }
        }
    }
    (sink.count() == before && all.len() == items.len()).then_some(all)
}

/// A path within the repository or an output, `./` and a last `/` removed: no `..`, not absolute, nothing odd.
pub fn inner_path(text: &str) -> Result<String, Problem> {
    let shown = Shown(text);
    let path = text.strip_prefix("./").unwrap_or(text);
    let path = path.strip_suffix('/').unwrap_or(path);
    let inside = "write it relative to the root of the repository".to_owned();
    if text.starts_with('/')
        || text.starts_with('~')
        || text.get(1..3).is_some_and(|s| s == ":\\" || s == ":/")
    {
        return Err(Problem::hinted(format!("the path '{shown}' is absolute"), inside));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Problem::hinted(format!("the path '{shown}' leads out with '..'"), inside));
    }
    if path.is_empty() || path == "." {
        return Err(Problem::new(format!(
            "the path '{shown}' is the whole folder; name a file or folder in it"
        )));
    }
    if path.split('/').any(|part| part.is_empty() || part == ".") {
        return Err(Problem::new(format!("the path '{shown}' has an empty part or a '.'")));
    }
    if path.contains('\\') || path.chars().any(char::is_control) {
        return Err(Problem::new(format!("the path '{shown}' has a backslash or a control character")));
    }
    if path.len() > MAX_PATH {
        return Err(Problem::new(format!("the path '{shown}' is longer than {MAX_PATH} bytes")));
    }
    Ok(path.to_owned())
}

/// A path of the repository, perhaps with `*`, `?` and `[…]`.
pub fn glob(text: &str) -> Result<String, Problem> {
    let path = inner_path(text)?;
    match Glob::new(&path) {
        Ok(_) => Ok(path),
        Err(error) => {
            Err(Problem::new(format!("'{}' is not a pattern of paths: {}", Shown(text), error.kind())))
        }
    }
}

/// The name of a stage, kind, program, pool or profile: letters, digits, `.`, `_`, `-`; a letter or digit first.
pub fn check_name(key: &Key, what: &str, path: &Path, sink: &mut Sink) -> bool {
    let text = &key.text;
    let good = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if !good {
        let message = format!("'{}' cannot be the name of {what}", Shown(text));
        let hint = "use letters, digits, '.', '_' and '-', a letter or digit first, at most 100".to_owned();
        sink.report(key.at, path, Problem::hinted(message, hint));
    }
    good
}

/// The name of a variable, axis, input or environment variable: letters, digits and `_`, no digit first; `-` where
/// `dash` allows it.
pub fn check_identifier(text: &str, dash: bool) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (dash && c == '-'))
}

/// The plain value. `Data::Bad` becomes null: the pipeline is refused anyway.
pub fn value(node: &Node) -> Value {
    match &node.data {
        Data::Null | Data::Bad => Value::Null,
        Data::Bool(v) => Value::Bool(*v),
        Data::Int(v) => Value::Int(*v),
        Data::Float(v) => Value::Float(*v),
        Data::Text(text) => Value::Text(text.clone()),
        Data::List(list) => Value::List(list.iter().map(value).collect()),
        Data::Map(map) => Value::Map(map.iter().map(|(key, node)| (key.text.clone(), value(node))).collect()),
    }
}
