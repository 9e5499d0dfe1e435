//! Licences, and the licence of a source. Knows these fields alone.

use std::collections::BTreeMap;

use super::expression::{Scope, evaluate};
use super::fields::{self, Fields};
use super::report::{Path, Problem, Shown, Sink, suggest};
use super::yaml::{Key, Node};
use crate::pipeline::{Kind, Licence};

pub fn licences(root: &Fields, scope: &Scope, sink: &mut Sink) -> BTreeMap<String, Licence> {
    let mut licences = BTreeMap::new();
    let Some(node) = root.get("licences") else { return licences };
    let top = Path::Root;
    let path = top.key("licences");
    let node = evaluate(node, scope, &path, sink);
    for (key, node) in fields::map(&node, &path, sink).unwrap_or_default() {
        let path = path.key(&key.text);
        fields::check_name(key, "a licence", &path, sink);
        if let Some(licence) = licence(key, node, &path, sink) {
            licences.insert(key.text.clone(), licence);
        }
    }
    licences
}

fn licence(key: &Key, node: &Node, path: &Path, sink: &mut Sink) -> Option<Licence> {
    let fields = fields::fields(node, &["name", "terms", "url", "consent", "redistribute"], path, sink)?;
    let mut text = |name: &str| {
        fields.get(name).and_then(|node| fields::text(node, &path.key(name), sink).map(str::to_owned))
    };
    let (name, terms, url) = (text("name"), text("terms"), text("url"));
    let mut truth = |name: &str, without: bool| {
        fields.get(name).map_or(Some(without), |node| fields::boolean(node, &path.key(name), sink))
    };
    let (consent, redistribute) = (truth("consent", false)?, truth("redistribute", true)?);
    let Some(name) = name else {
        sink.error(key.at, path, "'name' is missing: what people call the licence");
        return None;
    };
    if consent && terms.is_none() {
        sink.error(key.at, path, "'terms' is missing: what a person is to accept");
    }
    Some(Licence { name, terms: terms.unwrap_or_default(), url, consent, redistribute })
}

/// The licence of a stage, which must be a source.
pub fn of_stage(
    fields: &Fields,
    kind: Option<&Kind>,
    licences: &BTreeMap<String, Licence>,
    scope: &Scope,
    path: &Path,
    sink: &mut Sink,
) -> Option<String> {
    let (key, node) = (fields.key("licence")?, fields.get("licence")?);
    let path = path.key("licence");
    if kind.is_some_and(|kind| !kind.fixed) {
        let hint = "remove it, or say fixed: true in the kind of a source".to_owned();
        sink.report(key.at, &path, Problem::hinted("only a fixed stage has a licence", hint));
        return None;
    }
    let node = evaluate(node, scope, &path, sink);
    let id = fields::text(&node, &path, sink)?;
    if !licences.contains_key(id) {
        let hint = suggest(id, licences.keys().map(String::as_str));
        let hint = hint.or_else(|| Some("declare it under licences".to_owned()));
        sink.report(node.at, &path, Problem::hinted(format!("there is no licence '{}'", Shown(id)), hint));
        return None;
    }
    Some(id.to_owned())
}
