//! Collecting what is wrong: places, field paths, the nearest word. Knows neither YAML nor any field.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::{Diagnostic, Diagnostics};
use crate::pipeline::Location;

/// After so many the reading ends.
const MAX_SHOWN: usize = 100;

/// A place: which text (0 the file, n the n-th override), line and column from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub source: u32,
    pub line: u32,
    pub column: u32,
}

/// The field that is being read; it lives on the stack, so that a good file costs no text.
#[derive(Clone, Copy)]
pub enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => write!(f, "{}", Word(key)),
            Path::Key(parent, key) => write!(f, "{parent}.{}", Word(key)),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A key in a field path: in quotes where it is no plain word, so that `files.'a.b'` is not `files.a.b`.
pub struct Word<'a>(pub &'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match !self.0.is_empty() && self.0.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
            true => write!(f, "{}", Shown(self.0)),
            false => write!(f, "'{}'", Shown(self.0)),
        }
    }
}

/// Text from the file on one line and not too long: control characters escaped.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.0.chars().enumerate() {
            if i == 80 {
                return f.write_str("…");
            }
            if c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// What is wrong with one value, without its place.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// To be reported.
    New { message: String, hint: Option<String> },
    /// Follows from something that is reported already.
    Known,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Problem {
        Problem::New { message: message.into(), hint: None }
    }

    pub fn hinted(message: impl Into<String>, hint: impl Into<Option<String>>) -> Problem {
        Problem::New { message: message.into(), hint: hint.into() }
    }
}

/// The errors so far.
pub struct Sink {
    /// The file, then the overrides.
    sources: Vec<Arc<str>>,
    found: Vec<(At, Diagnostic)>,
    seen: HashSet<(At, String)>,
    reports: usize,
}

impl Sink {
    pub fn new(file: &str) -> Sink {
        Sink { sources: vec![file.into()], found: Vec::new(), seen: HashSet::new(), reports: 0 }
    }

    /// Another text to which places can point; it is shown by this name alone.
    pub fn add_source(&mut self, name: &str) -> u32 {
        self.sources.push(name.into());
        (self.sources.len() - 1) as u32
    }

    pub fn location(&self, at: At) -> Location {
        let file = self.sources[at.source as usize].clone();
        match at.source {
            0 => Location { file, line: at.line, column: at.column },
            _ => Location { file, line: 0, column: 0 },
        }
    }

    /// One message per place and field: the instances of a matrix repeat the mistake of their stage.
    pub fn report(&mut self, at: At, path: &Path, problem: Problem) {
        if problem != Problem::Known {
            self.report_field(at, path.to_string(), problem);
        }
    }

    /// As `report`, with the path as text.
    pub fn report_field(&mut self, at: At, field: String, problem: Problem) {
        let Problem::New { message, hint } = problem else { return };
        self.reports += 1;
        if self.is_full() || !self.seen.insert((at, field.clone())) {
            return;
        }
        let location = self.location(at);
        self.found.push((at, Diagnostic { location, field, message, hint }));
    }

    pub fn error(&mut self, at: At, path: &Path, message: impl Into<String>) {
        self.report(at, path, Problem::new(message));
    }

    /// Whether more would not be shown: then the rest of the file need not be read, and no nearest word be searched.
    pub fn is_full(&self) -> bool {
        self.found.len() == MAX_SHOWN
    }

    /// How many were reported, those of other instances of a stage included.
    pub fn count(&self) -> usize {
        self.reports
    }

    /// All of them in the order of the file, or nothing.
    pub fn finish(mut self) -> Result<(), Diagnostics> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(at, _)| *at);
        let mut list: Vec<_> = self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect();
        if list.len() == MAX_SHOWN {
            let location = Location { file: self.sources[0].clone(), line: 0, column: 0 };
            let message = format!("more than {MAX_SHOWN} errors; these are the first that were found");
            list.push(Diagnostic { location, field: String::new(), message, hint: None });
        }
        Err(Diagnostics(list))
    }
}

/// The word of `known` that is nearest to `word`, where one is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0 => return None,
        n if n > 200 => return None,
        1..=5 => 1,
        6..=8 => 2,
        n => (n / 3).min(4),
    };
    let lower = word.to_lowercase();
    let letters = letters(&lower);
    let near = |other: &str| {
        let other = if other.bytes().any(|b| b.is_ascii_uppercase()) { &other.to_lowercase() } else { other };
        // A change moves two counts at most: most of thousands of names are told apart without the distance.
        let apart: u32 = letters.iter().zip(self::letters(other)).map(|(a, b)| a.abs_diff(b)).sum();
        if other.len().abs_diff(lower.len()) > 4 * limit || apart as usize > 2 * limit {
            return None;
        }
        let same = lower.bytes().zip(other.bytes()).take_while(|(a, b)| a == b && a.is_ascii()).count();
        let distance = strsim::osa_distance(&lower[same..], &other[same..]);
        (distance <= limit && distance < other.chars().count()).then_some(distance)
    };
    // `inputs` for `in`: a longer or shorter form of the same word is the last thing to be meant.
    let form = |other: &str| {
        (other.len() >= 2 && word.starts_with(other)) || (word.len() >= 3 && other.starts_with(word))
    };
    known
        .into_iter()
        .filter_map(|other| Some((near(other).or_else(|| form(other).then_some(usize::MAX))?, other)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// How often each letter stands in a text, bytes that share five bits counted together.
fn letters(text: &str) -> [u32; 32] {
    let mut counts = [0; 32];
    for byte in text.bytes() {
        counts[usize::from(byte & 31)] += 1;
    }
    counts
}

/// `did you mean 'x'?`, or else the words there are, when they are few.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(word, known.clone()) {
        return Some(format!("did you mean '{near}'?"));
    }
    let words: Vec<_> = known.into_iter().take(25).collect();
    match words.len() {
        0 | 25.. => None,
        1 => Some(format!("there is only {}", words[0])),
        _ => Some(format!("there are {}", words.join(", "))),
    }
}
