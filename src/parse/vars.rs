//! Variables: the profile's values, the overrides of the command line, and variables that use variables.
//! Knows nothing of kinds and stages.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::expression::{self, Scope};
use super::fields::{self, Fields, found};
use super::report::{At, Path, Problem, Shown, Sink, suggest};
use super::yaml::{self, Data, Node};

/// The profile that needs no entry: the variables as they stand.
pub const PLAIN_PROFILE: &str = "paper";

/// Picks the profile and lays its variables and the overrides over those of the file. All profiles are checked, not
/// only the one in force.
pub fn profile_and_nodes(
    root: &Fields,
    profile: Option<&str>,
    overrides: &[(String, String)],
    sink: &mut Sink,
) -> (String, BTreeMap<String, Node>, BTreeMap<String, String>) {
    let top = Path::Root;
    let mut nodes = BTreeMap::new();
    let mut origins = BTreeMap::new();
    if let Some(vars) = root.get("vars") {
        let path = top.key("vars");
        for (key, node) in fields::map(vars, &path, sink).unwrap_or_default() {
            if !fields::check_identifier(&key.text, true) {
                let message = format!("'{}' cannot be the name of a variable", Shown(&key.text));
                let hint = "use letters, digits, '_' and '-', a letter first".to_owned();
                sink.report(key.at, &path.key(&key.text), Problem::hinted(message, hint));
            }
            nodes.insert(key.text.clone(), node.clone());
            origins.insert(key.text.clone(), sink.location(key.at).to_string());
        }
    }
    let profiles = read_profiles(root, &nodes, sink);
    let name = choose(root, profile, &profiles, sink);
    for (key, node) in profiles.get(name.as_str()).copied().unwrap_or_default() {
        if nodes.contains_key(&key.text) {
            nodes.insert(key.text.clone(), node.clone());
            origins.insert(key.text.clone(), format!("{}, profile {name}", sink.location(key.at)));
        }
    }
    for (i, (name, text)) in overrides.iter().enumerate() {
        let source = sink.add_source(&format!("-S {}", Shown(name)));
        let at = At { source, line: 1, column: 1 };
        if overrides[..i].iter().any(|(other, _)| other == name) {
            sink.error(at, &top, "the variable is set twice");
            continue;
        }
        if let Some(mut value) = yaml::parse(text, source, sink) {
            value.at = at;
            match set(&mut nodes, name, value) {
                Ok(()) => {
                    let variable = name.split('.').next().unwrap_or_default();
                    origins.insert(variable.to_owned(), format!("-S {}", Shown(name)));
                }
                Err(problem) => sink.report(at, &top, problem),
            }
        }
    }
    (name, nodes, origins)
}

type Entries<'n> = &'n [(yaml::Key, Node)];

fn read_profiles<'n>(
    root: &Fields<'n>,
    vars: &BTreeMap<String, Node>,
    sink: &mut Sink,
) -> BTreeMap<&'n str, Entries<'n>> {
    let mut profiles = BTreeMap::new();
    let Some(node) = root.get("profiles") else { return profiles };
    let top = Path::Root;
    let path = top.key("profiles");
    for (key, node) in fields::map(node, &path, sink).unwrap_or_default() {
        let path = path.key(&key.text);
        fields::check_name(key, "a profile", &path, sink);
        let mut entries: Entries = &[];
        if let Data::Null = node.data {
            // A profile that changes nothing.
        } else if let Some(fields) = fields::fields(node, &["vars"], &path, sink)
            && let Some(node) = fields.get("vars")
        {
            let path = path.key("vars");
            entries = fields::map(node, &path, sink).unwrap_or_default();
            for (key, _) in entries.iter().filter(|(key, _)| !vars.contains_key(&key.text)) {
                let hint = suggest(&key.text, vars.keys().map(String::as_str));
                let message = format!("there is no variable '{}' under vars to override", Shown(&key.text));
                sink.report(key.at, &path.key(&key.text), Problem::hinted(message, hint));
            }
        }
        profiles.insert(key.text.as_str(), entries);
    }
    profiles
}

/// The profile of the command line, or the default one; either must exist.
fn choose(root: &Fields, asked: Option<&str>, profiles: &BTreeMap<&str, Entries>, sink: &mut Sink) -> String {
    let known =
        || profiles.keys().copied().chain([PLAIN_PROFILE].into_iter().filter(|p| !profiles.contains_key(p)));
    let unknown = |name: &str| {
        Problem::hinted(
            format!("there is no profile '{}'", Shown(name)),
            suggest(name, known().collect::<Vec<_>>()),
        )
    };
    let exists = |name: &str| name == PLAIN_PROFILE || profiles.contains_key(name);
    let top = Path::Root;
    let mut default = PLAIN_PROFILE;
    if let Some(node) = root.get("default-profile") {
        let path = top.key("default-profile");
        if let Some(name) = fields::text(node, &path, sink) {
            if !exists(name) {
                sink.report(node.at, &path, unknown(name));
            }
            default = name;
        }
    }
    let Some(name) = asked else { return default.to_owned() };
    if !exists(name) {
        let source = sink.add_source("--profile");
        sink.report(At { source, line: 1, column: 1 }, &top, unknown(name));
    }
    name.to_owned()
}

/// Sets a variable, or with `name.key` a value within a map.
fn set(nodes: &mut BTreeMap<String, Node>, name: &str, value: Node) -> Result<(), Problem> {
    let mut parts = name.split('.');
    let first = parts.next().unwrap_or_default();
    if !nodes.contains_key(first) {
        let hint = suggest(first, nodes.keys().map(String::as_str).collect::<Vec<_>>());
        return Err(Problem::hinted(format!("there is no variable '{}'", Shown(first)), hint));
    }
    let dynamic = value.dynamic;
    let Some(mut node) = nodes.get_mut(first) else { return Ok(()) };
    for part in parts {
        node.dynamic |= dynamic;
        let what = found(&node.data);
        let Data::Map(map) = &mut node.data else {
            let message = format!("'{}' has no key '{}': a part of it is {what}", Shown(name), Shown(part));
            return Err(Problem::new(message));
        };
        let Some(at) = map.iter().position(|(key, _)| key.text == part) else {
            let hint = suggest(part, map.iter().map(|(key, _)| key.text.as_str()).collect::<Vec<_>>());
            return Err(Problem::hinted(
                format!("there is no key '{}' in '{}'", Shown(part), Shown(name)),
                hint,
            ));
        };
        node = &mut map[at].1;
    }
    *node = value;
    Ok(())
}

/// Evaluates all variables, each after those that it uses. A cycle is reported once; its variables become `Data::Bad`.
pub fn evaluate(
    nodes: BTreeMap<String, Node>,
    profile: &Node,
    left: &Cell<usize>,
    sink: &mut Sink,
) -> BTreeMap<String, Node> {
    let top = Path::Root;
    let path = top.key("vars");
    let names: Vec<&str> = nodes.keys().map(String::as_str).collect();
    let uses: Vec<Vec<usize>> = nodes
        .values()
        .map(|node| {
            let mut used = Vec::new();
            expression::variables(node, &mut used);
            let mut used: Vec<_> = used.iter().filter_map(|name| names.binary_search(name).ok()).collect();
            used.sort_unstable();
            used.dedup();
            used
        })
        .collect();
    let mut done = BTreeMap::new();
    // Names that no variable has are reported at their use, with the full list to choose from.
    for name in &names {
        done.insert((*name).to_owned(), Node::new(At::default(), Data::Bad));
    }
    for step in sort(&uses) {
        match step {
            Sorted::Next(i) => {
                let name = names[i];
                let scope = Scope { vars: &done, profile, axes: &[], left };
                let node = expression::evaluate(&nodes[name], &scope, &path.key(name), sink).into_owned();
                done.insert(name.to_owned(), node);
            }
            Sorted::Cycle(cycle) => {
                let mut round: Vec<&str> = cycle.iter().map(|&i| names[i]).collect();
                round.push(round[0]);
                let problem = Problem::hinted(
                    format!("variables use one another in a cycle: {}", round.join(" -> ")),
                    "give one of them a value of its own".to_owned(),
                );
                sink.report(nodes[round[0]].at, &path.key(round[0]), problem);
            }
        }
    }
    done
}

enum Sorted {
    Next(usize),
    Cycle(Vec<usize>),
}

/// Every index after those it uses; no recursion, since a chain may be as long as the file.
fn sort(uses: &[Vec<usize>]) -> Vec<Sorted> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; uses.len()];
    let mut sorted = Vec::with_capacity(uses.len());
    let mut in_cycle = vec![false; uses.len()];
    for start in 0..uses.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        let mut stack = vec![(start, 0)];
        while let Some(&mut (i, ref mut next)) = stack.last_mut() {
            if let Some(&used) = uses[i].get(*next) {
                *next += 1;
                match marks[used] {
                    Mark::New => {
                        marks[used] = Mark::Open;
                        stack.push((used, 0));
                    }
                    Mark::Open => {
                        let from = stack.iter().position(|&(i, _)| i == used).unwrap_or_default();
                        let cycle: Vec<usize> = stack[from..].iter().map(|&(i, _)| i).collect();
                        cycle.iter().for_each(|&i| in_cycle[i] = true);
                        sorted.push(Sorted::Cycle(cycle));
                    }
                    Mark::Done => {}
                }
            } else {
                marks[i] = Mark::Done;
                if !in_cycle[i] {
                    sorted.push(Sorted::Next(i));
                }
                stack.pop();
            }
        }
    }
    sorted
}
