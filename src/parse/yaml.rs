//! YAML text → a tree of values with their places. The only module that names the YAML crate; knows no field of ours.
//!
//! It reads the events of serde-saphyr's own parser: through its serde layer a file of 5,000 stages takes four times as
//! long, and the first doubled key or unknown anchor would hide all other errors. YAML 1.2 core schema, with merge keys
//! (`<<`), with `1_000` as a number, and without `.inf` and `.nan`, which no key can hold.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, Tag, options,
};

use super::report::{At, Problem, Shown, Sink, Word};

/// A larger file is refused before it is read.
pub const MAX_BYTES: u64 = 16 << 20;
/// Values in one text; what an alias repeats counts each time.
const MAX_VALUES: usize = 2_000_000;
/// Lists and maps within one another.
const MAX_DEPTH: usize = 64;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: At,
    pub data: Data,
    /// Whether a text of this value, or below it, has a brace: only then can it hold an expression.
    pub dynamic: bool,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Data {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Was wrong and is reported already; whoever meets it stays silent.
    Bad,
}

/// A key of a map and its place.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub at: At,
}

impl Node {
    pub fn new(at: At, data: Data) -> Node {
        let dynamic = match &data {
            Data::Text(text) => text.bytes().any(|b| matches!(b, b'{' | b'}')),
            Data::List(list) => list.iter().any(|node| node.dynamic),
            Data::Map(map) => map.iter().any(|(_, node)| node.dynamic),
            _ => false,
        };
        Node { at, data, dynamic }
    }
}

/// Reads one document. A fault of the syntax ends the reading; unknown anchors, doubled keys and numbers out of range
/// come all at once, and the tree then has `Data::Bad` in their places. An empty text is `Data::Null`.
pub fn parse(text: &str, source: u32, sink: &mut Sink) -> Option<Node> {
    // The parser would take a NUL for the end of the text.
    if let Some(byte) = text.find('\0') {
        let line = text[..byte].matches('\n').count() as u32 + 1;
        let column = text[..byte].chars().rev().take_while(|&c| c != '\n').count() as u32 + 1;
        let problem =
            Problem::hinted("there is a NUL byte", "the file must be plain text (UTF-8)".to_owned());
        sink.report_field(At { source, line, column }, String::new(), problem);
        return None;
    }
    let mut builder = Builder {
        source,
        sink,
        stack: Vec::new(),
        anchors: HashMap::new(),
        values: 0,
        documents: 0,
        root: None,
    };
    for event in Parser::new_from_str_with_options(text, parser_options()) {
        let result = match event {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => Err(builder.syntax(&error)),
        };
        if let Err((at, problem)) = result {
            builder.report(at, problem);
            return None;
        }
    }
    let empty = At { source, line: 1, column: 1 };
    Some(builder.root.unwrap_or_else(|| Node::new(empty, Data::Null)))
}

fn parser_options() -> Options {
    let mut options = options! {
        emit_unresolved_aliases: true,
        // Ours comes first and says more.
        flow_nesting_limit: MAX_DEPTH + 1,
        block_nesting_limit: MAX_DEPTH + 1,
    };
    options.set_emit_comments(false);
    options
}

/// A list or map that is not closed yet.
struct Frame {
    at: At,
    open: Open,
    /// The id of its anchor; 0: none.
    anchor: usize,
    /// `Builder::values` when it was opened: what it holds is the difference.
    values: usize,
}

enum Open {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, key: Option<Key> },
}

struct Builder<'a> {
    source: u32,
    sink: &'a mut Sink,
    stack: Vec<Frame>,
    /// Closed values by the id of their anchor, with the number of values they hold.
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
    documents: usize,
    root: Option<Node>,
}

type Fault = (At, Problem);

impl Builder<'_> {
    fn at(&self, span: &Span) -> At {
        At { source: self.source, line: span.start.line() as u32, column: span.start.col() as u32 + 1 }
    }

    fn event(&mut self, event: Event, span: &Span) -> Result<(), Fault> {
        let at = self.at(span);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let hint = "one file holds one pipeline; remove the line '---'".to_owned();
                    return Err((at, Problem::hinted("a second document starts here", hint)));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => self.scalar(text, style, anchor, tag.as_deref(), span),
            Event::SequenceStart(_, anchor, tag) => self.open(at, anchor, Open::List(Vec::new()), tag, "seq"),
            Event::MappingStart(_, anchor, tag) => {
                self.open(at, anchor, Open::Map { entries: Vec::new(), key: None }, tag, "map")
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(id) => self.alias(id, at),
            Event::UnresolvedAlias(name) => {
                let message = format!("there is no anchor '&{}' above", Shown(&name));
                self.report(at, Problem::new(message));
                self.add(Node::new(at, Data::Bad))
            }
            _ => Ok(()),
        }
    }

    /// Counts values, so that aliases of aliases cannot fill the memory.
    fn count(&mut self, values: usize, at: At) -> Result<(), Fault> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values, what the aliases repeat counted each time");
            return Err((at, Problem::hinted(message, "write less, or repeat less with '*'".to_owned())));
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        text: Cow<str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        span: &Span,
    ) -> Result<(), Fault> {
        let at = self.at(span);
        self.count(1, at)?;
        if let Some(Frame { open: Open::Map { key: key @ None, .. }, .. }) = self.stack.last_mut() {
            if style == ScalarStyle::Plain && matches!(&*text, "" | "~") {
                return Err((at, Problem::new("a key is missing before ':'")));
            }
            // A quoted `<<` is a key like any other: the mark is one that no text can hold.
            let text = match &*text {
                "<<" if style == ScalarStyle::Plain => MERGE.to_owned(),
                _ => text.into_owned(),
            };
            *key = Some(Key { text, at });
            return Ok(());
        }
        let plain = style == ScalarStyle::Plain;
        let empty = plain && span.is_empty();
        let data = match tag.map(|tag| (tag, core_tag(tag))) {
            None if plain => resolve(&text),
            None => Ok(Data::Text(text.into_owned())),
            Some((_, Some("str" | "!"))) => Ok(Data::Text(text.into_owned())),
            Some((tag, suffix)) => match (suffix, resolve(&text)) {
                (Some("null"), Ok(data @ Data::Null))
                | (Some("bool"), Ok(data @ Data::Bool(_)))
                | (Some("int"), Ok(data @ Data::Int(_)))
                | (Some("float"), Ok(data @ Data::Float(_))) => Ok(data),
                (Some("float"), Ok(Data::Int(i))) => Ok(Data::Float(i as f64)),
                (_, Err(problem)) => Err(problem),
                _ => Err(wrong_tag(tag)),
            },
        };
        let data = data.unwrap_or_else(|problem| {
            self.report(at, problem);
            Data::Bad
        });
        // An empty value has no place of its own: its key has.
        let at = match self.stack.last() {
            Some(Frame { open: Open::Map { key: Some(key), .. }, .. }) if empty => key.at,
            _ => at,
        };
        let node = Node::new(at, data);
        self.keep(anchor, &node, 1, at)?;
        self.add(node)
    }

    fn open(
        &mut self,
        at: At,
        anchor: usize,
        open: Open,
        tag: Option<Cow<Tag>>,
        expected: &str,
    ) -> Result<(), Fault> {
        self.count(1, at)?;
        if let Some(tag) = tag.as_deref()
            && !matches!(core_tag(tag), Some(suffix) if suffix == expected || suffix == "!")
        {
            self.report(at, wrong_tag(tag));
        }
        if let Some(Frame { open: Open::Map { key: None, .. }, .. }) = self.stack.last() {
            let hint = "text that begins with '[' or '{' needs quotes".to_owned();
            return Err((at, Problem::hinted("a key must be text, not a list or a map", hint)));
        }
        if self.stack.len() == MAX_DEPTH {
            return Err((
                at,
                Problem::new(format!("more than {MAX_DEPTH} lists and maps within one another")),
            ));
        }
        self.stack.push(Frame { at, open, anchor, values: self.values - 1 });
        Ok(())
    }

    fn close(&mut self, end: At) -> Result<(), Fault> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let data = match frame.open {
            Open::List(list) => Data::List(list),
            Open::Map { entries, .. } => self.entries(entries).map_or(Data::Bad, Data::Map),
        };
        let node = Node::new(frame.at, data);
        self.keep(frame.anchor, &node, self.values - frame.values, end)?;
        self.add(node)
    }

    /// Remembers an anchored value.
    fn keep(&mut self, anchor: usize, node: &Node, values: usize, at: At) -> Result<(), Fault> {
        if anchor != 0 {
            self.count(values, at)?;
            self.anchors.insert(anchor, (node.clone(), values));
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, at: At) -> Result<(), Fault> {
        let Some((_, values)) = self.anchors.get(&id) else {
            return Err((at, Problem::new("an anchor that contains itself")));
        };
        let values = *values;
        self.count(values, at)?;
        let node = self.anchors[&id].0.clone();
        if let Some(Frame { open: Open::Map { key: key @ None, .. }, .. }) = self.stack.last_mut() {
            return match node.data {
                Data::Text(text) => {
                    *key = Some(Key { text, at });
                    Ok(())
                }
                _ => Err((at, Problem::new("a key must be text"))),
            };
        }
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<(), Fault> {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame { open: Open::List(list), .. }) => list.push(node),
            Some(Frame { open: Open::Map { entries, key }, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => return Err((node.at, Problem::new("a key must be text"))),
            },
        }
        Ok(())
    }

    /// The entries of a map that is complete: doubled keys are reported and left out, merge keys replaced by what they
    /// name. A key of the map itself wins over a merged one, and an earlier map of a list over a later one. Nothing where a
    /// merge is wrong: what the map would have held is not known.
    fn entries(&mut self, entries: Vec<(Key, Node)>) -> Option<Vec<(Key, Node)>> {
        let has_merge = entries.iter().any(|(key, _)| key.text == MERGE);
        let doubled: Vec<(usize, u32)> = {
            let mut lines: HashMap<&str, u32> = HashMap::with_capacity(entries.len());
            let mut doubled = Vec::new();
            for (i, (key, _)) in entries.iter().enumerate() {
                match lines.entry(&key.text) {
                    Entry::Occupied(first) => doubled.push((i, *first.get())),
                    Entry::Vacant(vacant) => {
                        vacant.insert(key.at.line);
                    }
                }
            }
            doubled
        };
        if doubled.is_empty() && !has_merge {
            return Some(entries);
        }
        for &(i, first) in &doubled {
            let key = &entries[i].0;
            let at = key.at;
            let problem = match key.text.as_str() {
                MERGE => {
                    let hint = "merge several maps as a list: <<: [*a, *b]".to_owned();
                    Problem::hinted("the key '<<' stands here twice", hint)
                }
                text => Problem::hinted(
                    format!("the key '{}' stands here twice", Shown(text)),
                    format!("the first is in line {first}; keep one of them"),
                ),
            };
            self.report(at, problem);
        }
        let mut doubled = doubled.into_iter().map(|(i, _)| i).peekable();
        let mut kept = Vec::with_capacity(entries.len());
        for (i, entry) in entries.into_iter().enumerate() {
            if doubled.next_if_eq(&i).is_none() {
                kept.push(entry);
            }
        }
        if has_merge { self.merge(kept) } else { Some(kept) }
    }

    fn merge(&mut self, entries: Vec<(Key, Node)>) -> Option<Vec<(Key, Node)>> {
        let mut good = true;
        let mut known: std::collections::HashSet<String> =
            entries.iter().filter(|(key, _)| key.text != MERGE).map(|(key, _)| key.text.clone()).collect();
        let mut all = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            if key.text != MERGE {
                all.push((key, node));
                continue;
            }
            let maps = match node.data {
                Data::List(list) => list,
                data => vec![Node { data, ..node }],
            };
            for map in maps {
                match map.data {
                    Data::Map(map) => {
                        all.extend(map.into_iter().filter(|(key, _)| known.insert(key.text.clone())));
                    }
                    Data::Bad => good = false,
                    _ => {
                        good = false;
                        let hint = "write <<: *anchor, with &anchor at a map above".to_owned();
                        self.report(key.at, Problem::hinted("'<<' merges a map or a list of maps", hint));
                    }
                }
            }
        }
        good.then_some(all)
    }

    /// Reports under the field that is being read.
    fn report(&mut self, at: At, problem: Problem) {
        let mut field = String::new();
        for frame in &self.stack {
            match &frame.open {
                Open::List(list) => field.push_str(&format!("[{}]", list.len())),
                Open::Map { key: Some(key), .. } if key.text != MERGE => {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(&Word(&key.text).to_string());
                }
                Open::Map { .. } => {}
            }
        }
        self.sink.report_field(at, field, problem);
    }

    /// The parser's error, in our words where ours say more.
    fn syntax(&self, error: &ScanError) -> Fault {
        let mark = error.marker();
        let at = At { source: self.source, line: mark.line().max(1) as u32, column: mark.col() as u32 + 1 };
        let hinted = |message: &str, hint: &str| Problem::hinted(message, hint.to_owned());
        let problem = match error.kind() {
            ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabAtBlockScalarStart => hinted("a tab in the indentation", "indent with spaces"),
            ErrorKind::ExpectedBlockMappingKey
            | ErrorKind::ExpectedBlockSequenceEntry
            | ErrorKind::InvalidIndentation => hinted(
                "a line that does not fit the indentation above",
                "let the keys of one map begin in one column",
            ),
            ErrorKind::UnclosedQuotedScalar => {
                hinted("a quote that is not closed", "close it, or double it inside '…'")
            }
            ErrorKind::UnclosedFlowCollection { open } => {
                Problem::new(format!("a '{open}' that is not closed"))
            }
            ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
                Problem::new(format!("a '{open}' that is closed by '{close}'"))
            }
            ErrorKind::UnexpectedCharacter { character } => Problem::hinted(
                format!("a value cannot begin with '{}'", character.escape_debug()),
                "put the text in quotes".to_owned(),
            ),
            ErrorKind::RecursionLimitExceeded => {
                Problem::new(format!("more than {MAX_DEPTH} lists and maps within one another"))
            }
            ErrorKind::UnknownQuotedScalarEscape => {
                hinted("an unknown escape in \"…\"", "write \\\\ for a backslash, or use '…'")
            }
            _ => {
                let info = error.info();
                match info.as_str() {
                    text if text.contains("mapping values are not allowed") => hinted(
                        "a ':' that this place does not allow",
                        "text with ': ' needs quotes; or the indentation is wrong",
                    ),
                    text if text.contains("simple key expected") => {
                        hinted("a line without ':' where a key is expected", "write 'name: value'")
                    }
                    text => Problem::new(text.to_owned()),
                }
            }
        };
        (at, problem)
    }
}

/// Stands for a plain `<<` in the tree while it is built; a text cannot hold a NUL.
const MERGE: &str = "\0<<";

/// `str`, `int`, … of `!!str`; `!` of the tag that means "not resolved".
fn core_tag(tag: &Tag) -> Option<&str> {
    match (tag.handle(), tag.suffix()) {
        ("tag:yaml.org,2002:", suffix) => Some(suffix),
        ("", "!") | ("!", "") => Some("!"),
        _ => None,
    }
}

fn wrong_tag(tag: &Tag) -> Problem {
    let text = format!("{}{}", tag.handle(), tag.suffix()).replace("tag:yaml.org,2002:", "!!");
    Problem::hinted(
        format!("the tag '{}' is unknown or does not fit this value", Shown(&text)),
        "remove it; text that begins with '!' needs quotes".to_owned(),
    )
}

/// A plain scalar by the core schema.
fn resolve(text: &str) -> Result<Data, Problem> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Data::Null,
        "true" | "True" | "TRUE" => Data::Bool(true),
        "false" | "False" | "FALSE" => Data::Bool(false),
        _ => match text.as_bytes()[0] {
            b'0'..=b'9' | b'+' | b'-' | b'.' => number(text)?.unwrap_or_else(|| Data::Text(text.to_owned())),
            _ => Data::Text(text.to_owned()),
        },
    })
}

/// A number, or nothing where the text only begins like one (`1.2.3`, `2024-01-01`, `007`, `-`).
fn number(text: &str) -> Result<Option<Data>, Problem> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let negative = text.starts_with('-');
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(Problem::new(format!("a number must be finite, found {text}")));
    }
    // An underscore stands between two digits, as in 1_000.
    let bytes = unsigned.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_alphanumeric);
    if bytes.iter().enumerate().any(|(i, &b)| b == b'_' && !(i > 0 && digit(i - 1) && digit(i + 1))) {
        return Ok(None);
    }
    let plain: Cow<str> = match unsigned.contains('_') {
        true => unsigned.replace('_', "").into(),
        false => unsigned.into(),
    };
    let (radix, digits) = match plain.get(..2) {
        Some("0x") => (16, &plain[2..]),
        Some("0o") => (8, &plain[2..]),
        Some("0b") => (2, &plain[2..]),
        _ => (10, &plain[..]),
    };
    if !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)) {
        if radix == 10 && digits.len() > 1 && digits.starts_with('0') {
            return Ok(None);
        }
        let signed = if negative { format!("-{digits}") } else { digits.to_owned() };
        return match i64::from_str_radix(&signed, radix) {
            Ok(i) => Ok(Some(Data::Int(i))),
            Err(_) => Err(Problem::new(format!("the whole number {} does not fit in 64 bits", Shown(text)))),
        };
    }
    let (mantissa, exponent) = match plain.find(['e', 'E']) {
        Some(e) => (&plain[..e], Some(&plain[e + 1..])),
        None => (&plain[..], None),
    };
    let good_mantissa = mantissa.bytes().any(|b| b.is_ascii_digit())
        && mantissa.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && mantissa.bytes().filter(|&b| b == b'.').count() <= 1;
    let good_exponent = exponent.is_none_or(|e| {
        let digits = e.strip_prefix(['+', '-']).unwrap_or(e);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    });
    if !good_mantissa || !good_exponent {
        return Ok(None);
    }
    match plain.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(Some(Data::Float(if negative { -x } else { x }))),
        Ok(_) => Err(Problem::new(format!("the number {} is larger than 1.8e308", Shown(text)))),
        Err(_) => Ok(None),
    }
}
