//! Programs, pools and kinds: how stages are run. Knows nothing of a matrix or of inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::expression::{Scope, evaluate, text_of};
use super::fields::{self, Fields};
use super::report::{At, Path, Problem, Shown, Sink, nearest, suggest};
use super::yaml::{Data, Key, Node};
use crate::pipeline::{Command, Kind, Licence, Program, Repeatable};

/// Pools that exist without being declared.
pub const POOLS: [&str; 4] = ["cpu", "gpu", "gpu-memory", "network"];

/// The fields that say what is run; a stage has them only where it names no kind.
pub const OWN_FIELDS: [&str; 8] = ["run", "shell", "identity", "code", "env", "fixed", "rehearse", "alike"];
/// The fields that a stage may override.
pub const SHARED_FIELDS: [&str; 7] =
    ["repeatable", "pool", "threads", "resources", "timeout", "retries", "expect"];

/// A day is long; a year says that something is mistyped.
const MAX_TIMEOUT: i64 = 366 * 86_400;

/// What reading a kind needs to know.
pub struct Known<'a> {
    pub programs: &'a BTreeMap<String, Program>,
    pub pools: &'a BTreeMap<String, u32>,
    pub licences: &'a BTreeMap<String, Licence>,
}

pub fn pools(root: &Fields, scope: &Scope, sink: &mut Sink) -> BTreeMap<String, u32> {
    let mut pools = BTreeMap::new();
    let Some(node) = root.get("pools") else { return pools };
    let top = Path::Root;
    let path = top.key("pools");
    let node = evaluate(node, scope, &path, sink);
    for (key, node) in fields::map(&node, &path, sink).unwrap_or_default() {
        let path = path.key(&key.text);
        fields::check_name(key, "a pool", &path, sink);
        let capacity = fields::whole(node, 1, 1_000_000, &path, sink).unwrap_or(1);
        pools.insert(key.text.clone(), capacity as u32);
    }
    pools
}

pub fn programs(root: &Fields, scope: &Scope, sink: &mut Sink) -> BTreeMap<String, Program> {
    let mut programs = BTreeMap::new();
    let Some(node) = root.get("programs") else { return programs };
    let top = Path::Root;
    let path = top.key("programs");
    for (key, node) in fields::map(node, &path, sink).unwrap_or_default() {
        let path = path.key(&key.text);
        fields::check_name(key, "a program", &path, sink);
        if let Some(program) = program(key, node, scope, &path, sink) {
            programs.insert(key.text.clone(), program);
        }
    }
    programs
}

fn program(key: &Key, node: &Node, scope: &Scope, path: &Path, sink: &mut Sink) -> Option<Program> {
    let fields = fields::fields(node, &["build", "path", "sources"], path, sink)?;
    let build = fields.get("build").map(|node| shell(node, true, scope, &path.key("build"), sink));
    let sources = fields.get("sources").map(|node| {
        let path = path.key("sources");
        fields::texts(&evaluate(node, scope, &path, sink), &path, sink, fields::glob)
    });
    let Some(file) = fields.get("path") else {
        let hint = "add the executable that the build makes, as path: target/release/name".to_owned();
        sink.report(key.at, path, Problem::hinted("'path' is missing", hint));
        return None;
    };
    let file_path = path.key("path");
    let file = evaluate(file, scope, &file_path, sink);
    let text = fields::text(&file, &file_path, sink)?;
    let file = fields::inner_path(text).map_err(|problem| sink.report(file.at, &file_path, problem)).ok()?;
    Some(Program {
        name: key.text.clone(),
        build: build.unwrap_or(None),
        path: file,
        sources: sources.flatten().unwrap_or_default(),
        location: sink.location(key.at),
    })
}

/// All kinds by name; one that is wrong is there as nothing, so that its stages are not blamed.
pub fn kinds(
    root: &Fields,
    known: &Known,
    scope: &Scope,
    sink: &mut Sink,
) -> BTreeMap<String, Option<Arc<Kind>>> {
    let mut kinds = BTreeMap::new();
    let Some(node) = root.get("kinds") else { return kinds };
    let top = Path::Root;
    let path = top.key("kinds");
    for (key, node) in fields::map(node, &path, sink).unwrap_or_default() {
        let path = path.key(&key.text);
        fields::check_name(key, "a kind", &path, sink);
        let words = [&OWN_FIELDS[..], &SHARED_FIELDS[..]].concat();
        let kind = fields::fields(node, &words, &path, sink)
            .and_then(|fields| kind(key, &fields, known, scope, &path, sink))
            .map(|kind| Arc::new(Kind { name: Some(key.text.clone()), ..kind }));
        kinds.insert(key.text.clone(), kind);
    }
    kinds
}

/// Reads the fields of a kind, or those of a stage that says them inline.
pub fn kind(
    key: &Key,
    fields: &Fields,
    known: &Known,
    scope: &Scope,
    path: &Path,
    sink: &mut Sink,
) -> Option<Kind> {
    let before = sink.count();
    let field = |name: &'static str, sink: &mut Sink| {
        fields.get(name).map(|node| evaluate(node, scope, &path.key(name), sink))
    };
    let command = match (fields.get("run"), fields.key("shell"), fields.get("shell")) {
        (Some(_), Some(shell), _) => {
            let hint = "keep 'run' for words without a shell, 'shell' for a line of sh".to_owned();
            sink.report(shell.at, &path.key("shell"), Problem::hinted("there is 'run' as well", hint));
            None
        }
        (Some(node), ..) => {
            let path = path.key("run");
            let node = evaluate(node, scope, &path, sink);
            fields::words(&node, &path, sink)
                .filter(|words| check_words(words, &node, known, &path, sink))
                .map(Command::Argv)
        }
        (None, _, Some(node)) => shell(node, false, scope, &path.key("shell"), sink).map(Command::Shell),
        (None, ..) => {
            let hint = "write run: [program, word, …] or shell: \"a line of sh\"".to_owned();
            sink.report(key.at, path, Problem::hinted("there is nothing to run", hint));
            None
        }
    };
    let identity = field("identity", sink).map(|node| {
        let path = path.key("identity");
        fields::words(&node, &path, sink).filter(|words| check_words(words, &node, known, &path, sink))
    });
    let code = field("code", sink).map(|node| fields::texts(&node, &path.key("code"), sink, fields::glob));
    let mut code = code.flatten().unwrap_or_default();
    if let Some(Command::Argv(words)) = &command {
        // A file of the repository that is handed to a program is code like any other: [python3, ./mean.py]. All are
        // paths in it: a command with another was refused.
        let files = words[1..].iter().filter(|word| word.starts_with("./"));
        let files: Vec<String> = files.filter_map(|word| fields::inner_path(word).ok()).collect();
        code.extend(files.into_iter().filter(|file| !code.contains(file)).collect::<Vec<_>>());
    }
    let env = field("env", sink).map(|node| {
        let env = fields::texts(&node, &path.key("env"), sink, |text| {
            match fields::check_identifier(text, false) {
                true => Ok(text.to_owned()),
                false => {
                    let message = format!("'{}' cannot be the name of an environment variable", Shown(text));
                    let hint = text
                        .split_once('=')
                        .map(|_| "only the name; the value comes from the environment".to_owned());
                    Err(Problem::hinted(message, hint))
                }
            }
        });
        env.map(|mut env| {
            env.sort();
            env.dedup();
            env
        })
    });
    let fixed = field("fixed", sink).and_then(|node| fields::boolean(&node, &path.key("fixed"), sink));
    let rehearse =
        field("rehearse", sink).and_then(|node| fields::boolean(&node, &path.key("rehearse"), sink));
    let alike = field("alike", sink).and_then(|node| {
        let name = |text: &str| match fields::check_identifier(text, true) {
            true => Ok(text.to_owned()),
            false => Err(Problem::new(format!("'{}' cannot be the name of a param", Shown(text)))),
        };
        fields::texts(&node, &path.key("alike"), sink, name)
    });
    let base = Kind {
        name: None,
        command: command.clone().unwrap_or(Command::Shell(String::new())),
        identity: identity.flatten(),
        code,
        repeatable: Repeatable::Bits,
        pool: "cpu".to_owned(),
        threads: 1,
        resources: BTreeMap::new(),
        env: env.flatten().unwrap_or_default(),
        fixed: fixed.unwrap_or(false),
        rehearse: rehearse.unwrap_or(false),
        alike: alike.unwrap_or_default(),
        expect: None,
        timeout: None,
        retries: 0,
        location: sink.location(key.at),
    };
    let kind = overridden(base, fields, known, scope, path, sink);
    (command.is_some() && sink.count() == before).then_some(kind)
}

/// The kind with the shared fields that are given here.
pub fn overridden(
    mut kind: Kind,
    fields: &Fields,
    known: &Known,
    scope: &Scope,
    path: &Path,
    sink: &mut Sink,
) -> Kind {
    for (key, node) in fields.0 {
        let name = key.text.as_str();
        if !SHARED_FIELDS.contains(&name) {
            continue;
        }
        let path = path.key(name);
        let node = evaluate(node, scope, &path, sink);
        let mut whole = |min, max| fields::whole(&node, min, max, &path, sink);
        match name {
            "threads" => kind.threads = whole(1, 4096).map_or(kind.threads, |n| n as u32),
            "retries" => kind.retries = whole(0, 100).map_or(kind.retries, |n| n as u32),
            "expect" => kind.expect = whole(0, MAX_TIMEOUT).map(|n| n as u64),
            "timeout" => kind.timeout = whole(1, MAX_TIMEOUT).map(|n| n as u64),
            "pool" => {
                if let Some(pool) = fields::text(&node, &path, sink) {
                    check_pool(pool, node.at, known, &path, sink);
                    kind.pool = pool.to_owned();
                }
            }
            "resources" => {
                for (key, node) in fields::map(&node, &path, sink).unwrap_or_default() {
                    let path = path.key(&key.text);
                    check_pool(&key.text, key.at, known, &path, sink);
                    if let Some(amount) = fields::amount(node, &path, sink) {
                        kind.resources.insert(key.text.clone(), amount);
                    }
                }
            }
            _ => match fields::text(&node, &path, sink) {
                Some("bits") => kind.repeatable = Repeatable::Bits,
                Some("statistical") => kind.repeatable = Repeatable::Statistical,
                Some(other) => {
                    let message = format!("'{}' is neither bits nor statistical", Shown(other));
                    sink.report(
                        node.at,
                        &path,
                        Problem::hinted(message, suggest(other, ["bits", "statistical"])),
                    );
                }
                None => {}
            },
        }
    }
    kind
}

fn check_pool(pool: &str, at: At, known: &Known, path: &Path, sink: &mut Sink) {
    if POOLS.contains(&pool) || known.pools.contains_key(pool) {
        return;
    }
    let pools = POOLS.into_iter().chain(known.pools.keys().map(String::as_str));
    let hint = match nearest(pool, pools) {
        Some(near) => format!("did you mean '{near}'?"),
        None => "declare it under pools, with its capacity".to_owned(),
    };
    sink.report(at, path, Problem::hinted(format!("there is no pool '{}'", Shown(pool)), hint));
}

/// Every word that begins with `./` is a path in the repository: it is read from there, so it must be one that a key
/// covers.
fn check_words(words: &[String], node: &Node, known: &Known, path: &Path, sink: &mut Sink) -> bool {
    let before = sink.count();
    for (i, word) in words.iter().enumerate() {
        let problem = match word.strip_prefix("./") {
            Some(_) => fields::inner_path(word).err(),
            None if i == 0 => not_a_program(word, known),
            None => None,
        };
        let at = match &node.data {
            Data::List(list) => list[i].at,
            _ => node.at,
        };
        if let Some(problem) = problem {
            sink.report(at, &path.index(i), problem);
        }
    }
    sink.count() == before
}

/// What is wrong with a word 0 that is neither a program of the pipeline nor a name to be found on PATH.
fn not_a_program(word: &str, known: &Known) -> Option<Problem> {
    if known.programs.contains_key(word) || !word.contains(['/', '\\']) {
        return None;
    }
    fields::inner_path(word).err().or_else(|| {
        let message = format!("'{}' is neither a program nor a name on PATH", Shown(word));
        Some(Problem::hinted(message, format!("write './{}' for a file of the repository", Shown(word))))
    })
}

/// A line of shell. What an expression brings into it must be plain words: anything else could end up unquoted.
fn shell(node: &Node, spaces: bool, scope: &Scope, path: &Path, sink: &mut Sink) -> Option<String> {
    let line = fields::text(node, path, sink)?;
    if node.dynamic {
        match unsafe_part(line, spaces, scope) {
            Ok(None) => {}
            Ok(Some(text)) => {
                let message =
                    format!("the value '{}' would stand in the shell line without quotes", Shown(&text));
                let hint = match spaces {
                    true => "use letters, digits and . _ - + = : @ % , / only".to_owned(),
                    false => "give it as a param and write \"$param_name\"".to_owned(),
                };
                sink.report(node.at, path, Problem::hinted(message, hint));
                return None;
            }
            Err(problem) => {
                sink.report(node.at, path, problem);
                return None;
            }
        }
    }
    let node = evaluate(node, scope, path, sink);
    let line = match &node.data {
        Data::Text(line) => line,
        data => &text_of(data)?,
    };
    if line.trim().is_empty() {
        sink.error(node.at, path, "expected a line of shell, found nothing");
        return None;
    }
    Some(line.clone())
}

fn unsafe_part(line: &str, spaces: bool, scope: &Scope) -> Result<Option<String>, Problem> {
    let safe = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '.' | '_' | '-' | '+' | '=' | ':' | '@' | '%' | ',' | '/')
            || (spaces && c == ' ')
    };
    for value in super::expression::values(line, scope)? {
        if !value.chars().all(safe) || (value.is_empty() && !spaces) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
