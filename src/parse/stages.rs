//! Stages: expansion of the matrix, then every field of every instance. The last step: it sees all the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::expression::{Scope, evaluate};
use super::fields::{self, Fields};
use super::inputs::Resolver;
use super::kinds::{self, Known, OWN_FIELDS, SHARED_FIELDS};
use super::licences;
use super::matrix::{self, MAX_INSTANCES, Matrix};
use super::report::{Path, Problem, Shown, Sink, suggest};
use super::yaml::{Data, Key, Node};
use crate::pattern::{Index, write_name};
use crate::pipeline::{Command, Input, Kind, Promise, Source, Stage, Value};

/// Fields of a stage beside those of a kind.
const FIELDS: [&str; 8] = ["kind", "matrix", "where", "in", "params", "files", "licence", "publish"];
/// The longest name of an instance; it is part of file names.
const MAX_NAME: usize = 200;
/// After so many wrong instances of one stage the others are not looked at.
const MAX_FAILED: usize = 50;
/// Folders that no stage may publish to.
const RESERVED: [&str; 3] = [".git", "cache", "target"];

/// A stage as it is written, with its instances.
struct Base<'n> {
    key: &'n Key,
    fields: Fields<'n>,
    /// Nothing: the matrix is wrong and reported.
    matrix: Option<Matrix>,
}

/// Reads all stages. Where something is wrong it is in `sink`, and the list is not to be used.
pub fn stages(
    root: &Fields,
    known: &Known,
    kinds: &BTreeMap<String, Option<Arc<Kind>>>,
    scope: &Scope,
    sink: &mut Sink,
) -> Vec<Stage> {
    let top = Path::Root;
    let path = top.key("stages");
    let Some(node) = root.get("stages") else { return Vec::new() };
    let entries = fields::map(node, &path, sink).unwrap_or_default();
    let mut left = MAX_INSTANCES;
    let mut bases = Vec::with_capacity(entries.len());
    let words = [&FIELDS[..], &OWN_FIELDS[..], &SHARED_FIELDS[..]].concat();
    for (key, node) in entries {
        let path = path.key(&key.text);
        fields::check_name(key, "a stage", &path, sink);
        let Some(fields) = fields::fields(node, &words, &path, sink) else { continue };
        let matrix = matrix::matrix(&fields, scope, left, &path, sink);
        left -= matrix.as_ref().map_or(1, Matrix::len).min(left);
        bases.push(Base { key, fields, matrix });
    }
    let mut index = Index::default();
    for base in &bases {
        if let Some(matrix) = &base.matrix {
            index.add(&base.key.text, matrix.name_axes(), matrix.rows.clone());
        }
    }
    let declared: HashSet<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
    let broken = |name: &str| !index.has_base(name) && declared.contains(name);
    let mut reader = Reader {
        known,
        kinds,
        scope: *scope,
        resolver: Resolver { index: &index, broken: &broken, sources: 0 },
        last: None,
    };
    let mut stages = Vec::with_capacity(index.len());
    for base in &bases {
        let path = path.key(&base.key.text);
        if let Some(matrix) = &base.matrix {
            let mut failed = 0;
            for instance in 0..matrix.len() {
                let before = sink.count();
                stages.extend(reader.stage(base, matrix, instance, &path, sink));
                // The instances repeat one another's mistakes: some of them show what there is to show.
                failed += usize::from(sink.count() > before);
                if failed == MAX_FAILED {
                    break;
                }
            }
        }
    }
    stages
}

struct Reader<'a> {
    known: &'a Known<'a>,
    kinds: &'a BTreeMap<String, Option<Arc<Kind>>>,
    scope: Scope<'a>,
    resolver: Resolver<'a>,
    /// The kind of the stage before, to be shared by the instances of a matrix.
    last: Option<Arc<Kind>>,
}

impl Reader<'_> {
    fn stage(
        &mut self,
        base: &Base,
        matrix: &Matrix,
        instance: usize,
        path: &Path,
        sink: &mut Sink,
    ) -> Option<Stage> {
        let row = matrix.row(instance);
        let scope = Scope { axes: &row, ..self.scope };
        let fields = &base.fields;
        let mut name = String::new();
        let texts = matrix.axes.iter().zip(&matrix.rows[instance * row.len()..]);
        write_name(&mut name, &base.key.text, texts.map(|(axis, &i)| axis.texts[i as usize].as_str()));
        if name.len() > MAX_NAME {
            let message = format!("the name '{}' is longer than {MAX_NAME} bytes", Shown(&name));
            sink.report(
                base.key.at,
                path,
                Problem::hinted(message, "shorten the values of the matrix".to_owned()),
            );
        }
        let kind = self.kind(base, &scope, path, sink);
        let is_shell = kind.as_ref().is_some_and(|kind| matches!(kind.command, Command::Shell(_)));
        let inputs = match fields.get("in") {
            None => Vec::new(),
            Some(node) => {
                let path = path.key("in");
                let node = evaluate(node, &scope, &path, sink);
                self.resolver.inputs(&node, is_shell, &path, sink)
            }
        };
        let params = params(fields, is_shell, &scope, path, sink);
        let files = files(base, kind.as_deref(), &scope, path, sink);
        let licence = licences::of_stage(fields, kind.as_deref(), self.known.licences, &scope, path, sink);
        let publish = publish(fields, &scope, path, sink);
        Some(Stage {
            name,
            base: base.key.text.clone(),
            axes: row.iter().map(|(name, node)| ((*name).to_owned(), fields::value(node))).collect(),
            kind: kind?,
            inputs,
            params,
            files,
            licence,
            publish,
            location: sink.location(base.key.at),
        })
    }

    fn kind(&mut self, base: &Base, scope: &Scope, path: &Path, sink: &mut Sink) -> Option<Arc<Kind>> {
        let fields = &base.fields;
        let Some(node) = fields.get("kind") else {
            if fields.get("run").is_none() && fields.get("shell").is_none() {
                let hint = "write kind: NAME of one under kinds, or run: [program, word, …], or shell: \"a line of sh\"";
                sink.report(base.key.at, path, Problem::hinted("there is nothing to run", hint.to_owned()));
                return None;
            }
            let kind = kinds::kind(base.key, fields, self.known, scope, path, sink)?;
            return Some(self.share(kind));
        };
        for (key, _) in fields.0.iter().filter(|(key, _)| OWN_FIELDS.contains(&key.text.as_str())) {
            let message = format!("a stage with a kind cannot also say '{}'", key.text);
            let hint = format!(
                "say it in the kind, or leave 'kind' out; a stage may override {}",
                SHARED_FIELDS.join(", ")
            );
            sink.report(key.at, &path.key(&key.text), Problem::hinted(message, hint));
        }
        let kind_path = path.key("kind");
        let node = evaluate(node, scope, &kind_path, sink);
        let name = fields::text(&node, &kind_path, sink)?;
        let Some(kind) = self.kinds.get(name) else {
            let hint = match self.kinds.is_empty() {
                true => Some("there are no kinds; add it under kinds".to_owned()),
                false => suggest(name, self.kinds.keys().map(String::as_str)),
            };
            sink.report(
                node.at,
                &kind_path,
                Problem::hinted(format!("there is no kind '{}'", Shown(name)), hint),
            );
            return None;
        };
        let kind = kind.as_ref()?;
        if !fields.0.iter().any(|(key, _)| SHARED_FIELDS.contains(&key.text.as_str())) {
            return Some(kind.clone());
        }
        let kind = kinds::overridden(Kind::clone(kind), fields, self.known, scope, path, sink);
        Some(self.share(kind))
    }

    fn share(&mut self, kind: Kind) -> Arc<Kind> {
        match &self.last {
            Some(last) if **last == kind => last.clone(),
            _ => self.last.insert(Arc::new(kind)).clone(),
        }
    }
}

fn params(
    fields: &Fields,
    is_shell: bool,
    scope: &Scope,
    path: &Path,
    sink: &mut Sink,
) -> BTreeMap<String, Value> {
    let Some(node) = fields.get("params") else { return BTreeMap::new() };
    let path = path.key("params");
    // `params: "{vars.settings}"` is fine as long as it is a map.
    let node = evaluate(node, scope, &path, sink);
    let mut params = BTreeMap::new();
    for (key, node) in fields::map(&node, &path, sink).unwrap_or_default() {
        if is_shell && !fields::check_identifier(&key.text, false) {
            let message = format!("'{}' cannot be the name of a param of a shell stage", Shown(&key.text));
            let hint = "the shell sees it as $param_name: letters, digits and '_', a letter first".to_owned();
            sink.report(key.at, &path.key(&key.text), Problem::hinted(message, hint));
        }
        params.insert(key.text.clone(), fields::value(node));
    }
    params
}

fn files(
    base: &Base,
    kind: Option<&Kind>,
    scope: &Scope,
    path: &Path,
    sink: &mut Sink,
) -> Option<BTreeMap<String, Promise>> {
    let (key, node) = match (base.fields.key("files"), base.fields.get("files"), kind) {
        (Some(key), _, Some(kind)) if !kind.fixed => {
            let hint = "remove it, or say fixed: true in the kind of a source".to_owned();
            sink.report(
                key.at,
                &path.key("files"),
                Problem::hinted("only a fixed stage promises files", hint),
            );
            return None;
        }
        (Some(key), Some(node), _) => (key, node),
        (_, _, Some(kind)) if kind.fixed => {
            let hint =
                "add files: { name: { sha256: …, size: … } }, with sha256: null where it is not known yet";
            let message = "a fixed stage promises its files, and 'files' is missing";
            sink.report(base.key.at, path, Problem::hinted(message, hint.to_owned()));
            return None;
        }
        _ => return None,
    };
    let path = path.key("files");
    let node = evaluate(node, scope, &path, sink);
    let entries = fields::map(&node, &path, sink)?;
    if entries.is_empty() {
        sink.error(key.at, &path, "a fixed stage without a file");
    }
    let mut files = BTreeMap::new();
    for (key, node) in entries {
        let path = path.key(&key.text);
        let name = match fields::inner_path(&key.text) {
            Ok(name) => name,
            Err(Problem::New { message, .. }) => {
                let hint = "write it relative to the output of the stage".to_owned();
                sink.report(key.at, &path, Problem::hinted(message, hint));
                continue;
            }
            Err(Problem::Known) => continue,
        };
        if let Some(promise) = promise(key, node, &path, sink) {
            // `a` and `./a` are one file.
            if files.insert(name.clone(), promise).is_some() {
                sink.error(key.at, &path, format!("the file '{}' is promised twice", Shown(&name)));
            }
        }
    }
    for (key, _) in entries {
        let Ok(name) = fields::inner_path(&key.text) else { continue };
        let folder = parents(&name).find(|folder| files.contains_key(*folder));
        if let Some(folder) = folder {
            let message = format!("'{}' is promised as a file and as a folder", Shown(folder));
            sink.error(key.at, &path.key(&key.text), message);
        }
    }
    Some(files)
}

fn promise(key: &Key, node: &Node, path: &Path, sink: &mut Sink) -> Option<Promise> {
    let fields = fields::fields(node, &["sha256", "size"], path, sink)?;
    let sha256 = match fields.get("sha256") {
        None => {
            let hint = "add it, or sha256: null where it is not known yet".to_owned();
            sink.report(key.at, path, Problem::hinted("'sha256' is missing", hint));
            return None;
        }
        Some(Node { data: Data::Null, .. }) => None,
        Some(node) => {
            let path = path.key("sha256");
            let text = fields::text(node, &path, sink)?;
            if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                let message = format!(
                    "expected 64 hex digits, found '{}' ({} characters)",
                    Shown(text),
                    text.chars().count()
                );
                sink.error(node.at, &path, message);
                return None;
            }
            Some(text.to_ascii_lowercase())
        }
    };
    let size = match fields.get("size") {
        None | Some(Node { data: Data::Null, .. }) => None,
        Some(node) => Some(fields::whole(node, 0, i64::MAX, &path.key("size"), sink)? as u64),
    };
    Some(Promise { sha256, size })
}

fn publish(fields: &Fields, scope: &Scope, path: &Path, sink: &mut Sink) -> Option<String> {
    let path = path.key("publish");
    let node = evaluate(fields.get("publish")?, scope, &path, sink);
    let folder = match fields::inner_path(fields::text(&node, &path, sink)?) {
        Ok(folder) => folder,
        Err(problem) => {
            sink.report(node.at, &path, problem);
            return None;
        }
    };
    let first = folder.split('/').next().unwrap_or_default();
    if RESERVED.contains(&first) || folder.contains(['*', '?']) {
        let message = format!("'{}' is not a folder to publish to", Shown(&folder));
        sink.report(
            node.at,
            &path,
            Problem::hinted(message, "write for example reports/{profile}".to_owned()),
        );
        return None;
    }
    Some(folder)
}

/// `a/b` and `a` of `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(path.rfind('/'), |&end| path[..end].rfind('/')).map(|end| &path[..end])
}

/// A published folder belongs to one stage, and no stage reads it: otherwise a run would change what it has read.
pub fn check_published(root: &Fields, stages: &[Stage], sink: &mut Sink) {
    let mut published: BTreeMap<&str, &Stage> = BTreeMap::new();
    let top = Path::Root;
    let stages_path = top.key("stages");
    let places: HashMap<&str, &Node> = match root.get("stages").map(|node| &node.data) {
        Some(Data::Map(map)) => map
            .iter()
            .filter_map(|(key, node)| match &node.data {
                Data::Map(map) => Some((key.text.as_str(), Fields(map).get("publish")?)),
                _ => None,
            })
            .collect(),
        _ => return,
    };
    let mut report = |stage: &Stage, problem: Problem| {
        if let Some(node) = places.get(stage.base.as_str()) {
            sink.report(node.at, &stages_path.key(&stage.base).key("publish"), problem);
        }
    };
    for stage in stages {
        let Some(folder) = &stage.publish else { continue };
        let other = published.insert(folder, stage);
        if let Some(other) = other {
            let message = format!(
                "'{}' and '{}' publish to the same folder '{}'",
                other.name,
                stage.name,
                Shown(folder)
            );
            let hint = match other.base == stage.base {
                true => "put an axis into it, as reports/{axis}",
                false => "give each a folder of its own",
            };
            report(stage, Problem::hinted(message, hint.to_owned()));
        }
    }
    for (folder, stage) in &published {
        if let Some((outer, other)) = parents(folder).find_map(|outer| Some((outer, published.get(outer)?))) {
            let message = format!(
                "'{}' is within '{}', to which '{}' publishes",
                Shown(folder),
                Shown(outer),
                other.name
            );
            report(stage, Problem::hinted(message, "give each a folder of its own".to_owned()));
        }
    }
    if published.is_empty() {
        return;
    }
    let within = |path: &str| {
        std::iter::once(path)
            .chain(parents(path))
            .find_map(|folder| published.get(folder).map(|stage| (*stage, folder.to_owned())))
    };
    let mut seen = HashSet::new();
    for stage in stages {
        let repo =
            stage.inputs.iter().flat_map(|(_, input)| Input::sources(input)).filter_map(
                |source| match source {
                    Source::Repo(path) => Some(path.as_str()),
                    _ => None,
                },
            );
        for path in repo.chain(stage.kind.code.iter().map(String::as_str)) {
            if !seen.insert(path) {
                continue;
            }
            let below = format!("{path}/");
            let inside =
                published.range(below.as_str()..).next().filter(|(folder, _)| folder.starts_with(&below));
            let hit = within(path).or_else(|| inside.map(|(folder, stage)| (*stage, (*folder).to_owned())));
            if let Some((publisher, folder)) = hit {
                let message = format!(
                    "it publishes to '{}', and '{}' reads './{}'",
                    Shown(&folder),
                    stage.name,
                    Shown(path)
                );
                let hint = format!("read the stage, as '{}', and not its published copy", publisher.name);
                report(publisher, Problem::hinted(message, hint));
            }
        }
    }
}
