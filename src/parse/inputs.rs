//! References of inputs: stages, patterns, files of the repository, the provenance. Knows nothing of kinds or params.

use super::fields::{self, found};
use super::report::{At, Path, Problem, Shown, Sink};
use super::yaml::{Data, Node};
use crate::pattern::Index;
use crate::pipeline::{Input, Source};

/// Sources of all inputs together; a pattern in a wide matrix can name very many.
const MAX_SOURCES: usize = 20_000_000;

/// What resolving needs to know.
pub struct Resolver<'a> {
    pub index: &'a Index,
    /// Bases that are declared but wrong: whoever names them is not blamed.
    pub broken: &'a dyn Fn(&str) -> bool,
    /// How many sources were found so far.
    pub sources: usize,
}

impl Resolver<'_> {
    /// Reads `in`, evaluated, into inputs sorted by name.
    pub fn inputs(
        &mut self,
        node: &Node,
        is_shell: bool,
        path: &Path,
        sink: &mut Sink,
    ) -> Vec<(String, Input)> {
        let entries = fields::map(node, path, sink).unwrap_or_default();
        let mut inputs = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let path = path.key(&key.text);
            if !fields::check_identifier(&key.text, !is_shell) {
                let message = format!("'{}' cannot be the name of an input", Shown(&key.text));
                let hint = match is_shell {
                    true => "the shell sees it as $in_name: letters, digits and '_', a letter first",
                    false => "use letters, digits, '_' and '-', a letter first",
                };
                sink.report(key.at, &path, Problem::hinted(message, hint.to_owned()));
            }
            if let Some(input) = self.input(node, &path, sink) {
                inputs.push((key.text.clone(), input));
            }
        }
        inputs.sort_by(|(a, _), (b, _)| a.cmp(b));
        inputs
    }

    fn input(&mut self, node: &Node, path: &Path, sink: &mut Sink) -> Option<Input> {
        let (items, is_list) = match &node.data {
            _ if sink.is_full() => return None,
            Data::List(list) => (list.as_slice(), true),
            Data::Text(_) => (std::slice::from_ref(node), false),
            Data::Bad => return None,
            data => {
                let message = format!("expected a stage, a path or a list of them, found {}", found(data));
                sink.error(node.at, path, message);
                return None;
            }
        };
        if items.is_empty() {
            sink.error(node.at, path, "a list input without an item");
            return None;
        }
        let mut sources = Vec::new();
        let mut many = is_list;
        let mut good = true;
        for (i, item) in items.iter().enumerate() {
            let indexed = path.index(i);
            let path = if is_list { &indexed } else { path };
            let result = fields::text(item, path, sink).map(|text| self.reference(text, is_list));
            match result {
                Some(Ok((found, pattern))) => {
                    many |= pattern;
                    sources.extend(found);
                }
                Some(Err(problem)) => {
                    sink.report(item.at, path, problem);
                    good = false;
                }
                None => good = false,
            }
        }
        self.sources += sources.len();
        if self.sources > MAX_SOURCES {
            sink.report(node.at, &Path::Root, too_many());
            return None;
        }
        good &= self.no_doubles(&sources, node.at, path, sink);
        match (good, many) {
            (false, _) => None,
            (true, true) => Some(Input::Many(sources)),
            (true, false) => sources.pop().map(Input::One),
        }
    }

    fn no_doubles(&self, sources: &[Source], at: At, path: &Path, sink: &mut Sink) -> bool {
        if sources.len() < 2 {
            return true;
        }
        let mut seen = std::collections::HashSet::with_capacity(sources.len());
        let doubled = sources.iter().any(|source| !seen.insert(source));
        if doubled {
            sink.error(at, path, "the list has one item twice");
        }
        !doubled
    }

    /// One text: its sources, and whether it is a pattern.
    fn reference(&mut self, text: &str, in_list: bool) -> Result<(Vec<Source>, bool), Problem> {
        if let Some(word) = text.strip_prefix('@') {
            return match (word, in_list) {
                ("provenance", false) => Ok((vec![Source::Provenance], false)),
                ("provenance", true) => Err(Problem::hinted(
                    "'@provenance' cannot be in a list",
                    "make it an input of its own".to_owned(),
                )),
                _ => Err(Problem::hinted(
                    format!("there is no '{}'", Shown(text)),
                    "the only one with '@' is '@provenance'".to_owned(),
                )),
            };
        }
        if text.starts_with("./") {
            return Ok((vec![Source::Repo(fields::inner_path(text)?)], false));
        }
        if text.starts_with(['/', '~', '.']) {
            fields::inner_path(text)?;
            return Err(Problem::hinted(
                format!("'{}' is not the name of a stage", Shown(text)),
                format!("write './{}' for a file of the repository", Shown(text)),
            ));
        }
        let base = text.split(['[', '/']).next().unwrap_or_default();
        if (self.broken)(base) {
            return Err(Problem::Known);
        }
        let found = self.index.find(text).map_err(|problem| match problem {
            Problem::New { message, hint } if !self.index.has_base(base) && text.contains(['/', '.']) => {
                let file = format!("write './{}' for a file of the repository", Shown(text));
                Problem::hinted(message, hint.filter(|hint| hint.starts_with("did")).unwrap_or(file))
            }
            other => other,
        })?;
        let path = match found.path {
            None => None,
            Some(path) => Some(fields::inner_path(&path).map_err(|problem| match problem {
                Problem::New { message, .. } => {
                    Problem::hinted(message, "after 'stage/' stands a path within its output".to_owned())
                }
                known => known,
            })?),
        };
        if self.sources + found.ids.len() > MAX_SOURCES {
            return Err(too_many());
        }
        let sources = found.ids.into_iter().map(|id| Source::Stage { id, path: path.clone() }).collect();
        Ok((sources, found.pattern))
    }
}

fn too_many() -> Problem {
    Problem::hinted(
        format!("the inputs of all stages name more than {MAX_SOURCES} outputs"),
        "let one stage gather them, and the others read that stage".to_owned(),
    )
}
