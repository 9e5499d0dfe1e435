//! The appendix: every number with its seeds and stages, every stage with its key, params and inputs. Knows the
//! provenance document.

use maud::{Markup, html};
use serde_json::Value;

use super::{Content, Stage};
use crate::claims::Scope;
use crate::grid::{anchor, decimal};
use crate::stats::Summary;

/// Both sections.
pub fn html(c: &Content) -> Markup {
    html! { (numbers(c)) (stages(c)) }
}

fn numbers(c: &Content) -> Markup {
    html! {
        section id="numbers" {
            h2 { "Every number" }
            @match c.params.scope {
                Scope::Training => {
                    p { "A quantity is data / ratio / method@γ / what. Accuracies are of the test images; the interval is Student's t at 95 %. "
                        code { "peak-gamma" } " is the γ at which a seed's curve in figure 2 is highest, as one reads it off: the tables choose γ on rows held out of the training." }
                }
                Scope::Theory => {
                    p { "A quantity is computation / case / what; figure 4's and theorem 5's are errors. The interval is Student's t at 95 % over replicates; what has none was computed once." }
                }
            }
            div.grid tabindex="0" { table.numbers {
                thead { tr { th scope="col" { "quantity" } th scope="col" { "mean" } th scope="col" { "seeds" } th scope="col" { "from" } } }
                tbody {
                    @for (id, m) in &c.measurements {
                        tr id=(anchor(id)) {
                            th scope="row" { code { (id) } }
                            td {
                                @if let Some(s) = Summary::of(&m.values()) {
                                    (decimal(s.mean, 2, false)) @if !m.unit.is_empty() { " " (m.unit) }
                                    small { @if let Some(h) = s.half_width() { "± " (decimal(h, 2, false)) " " } span.n { "n " (s.n) } }
                                }
                            }
                            td { ul.plain { @for (seed, v) in &m.seeds { li { span.n { (seed) ": " } (decimal(*v, 2, false)) } } } }
                            td.text { ul.plain { @for name in &m.stages { li { (link(c, name)) } } } }
                        }
                    }
                }
            } }
        }
    }
}

/// A stage's name, linked to its entry where it has one.
fn link(c: &Content, name: &str) -> Markup {
    match c.stage(name) {
        Some(id) => html! { a href=(format!("#{id}")) { code { (name) } } },
        None => html! { code { (name) } },
    }
}

fn stages(c: &Content) -> Markup {
    let mut kinds: Vec<&str> = vec![];
    for s in &c.provenance.stages {
        if !kinds.contains(&kind(s)) {
            kinds.push(kind(s));
        }
    }
    html! {
        section id="stages" {
            h2 { "Every stage" }
            p { (c.provenance.stages.len()) " stages led to this page. A key is a digest of everything that may change a result: command, params, code, what compiled it, inputs; an output is the digest of the files it wrote." }
            @for word in kinds {
                @let members: Vec<(usize, &Stage)> = c.provenance.stages.iter().enumerate().filter(|(_, s)| kind(s) == word).collect();
                details open[members.len() <= 6] {
                    summary { b { (word) } " " span.n { (members.len()) @if members.len() == 1 { " stage" } @else { " stages" } } }
                    @if let Some((_, first)) = members.first() { (about(first)) }
                    @for (i, s) in &members { (stage(c, *i, s)) }
                }
            }
            details {
                summary { b { "variables" } " " span.n { "of the profile " (c.provenance.profile) } }
                pre.wide { (serde_json::to_string_pretty(&c.provenance.vars).unwrap_or_default()) }
            }
        }
    }
}

fn kind(s: &Stage) -> &str {
    s.kind.as_deref().unwrap_or("inline")
}

/// What all stages of a kind share.
fn about(s: &Stage) -> Markup {
    html! {
        dl.facts {
            dt { "command" } dd { code { (plain(&s.command)) } }
            dt { "repeatable" } dd { (plain(&s.repeatable)) }
            @if let Some(identity) = &s.identity { dt { "identity" } dd { pre { (identity.trim_end()) } } }
            @if !s.code.is_empty() {
                dt { "code" }
                dd { ul.plain { @for f in &s.code { li { code { (f.path) } " " code.digest { (brief(&f.digest)) } } } } }
            }
        }
    }
}

fn stage(c: &Content, i: usize, s: &Stage) -> Markup {
    html! {
        article.stage id=(format!("s{i}")) {
            h3 { code { (s.name) } }
            dl.facts {
                dt { "key" } dd { code.digest { (s.key) } }
                dt { "output" } dd { code.digest { (s.tree) } }
                @if s.params.as_object().is_some_and(|p| !p.is_empty()) { dt { "params" } dd { code { (s.params.to_string()) } } }
                @for (name, from) in &s.inputs {
                    dt { "input " (name) }
                    dd { @match from {
                        Value::Array(all) => { (all.len()) ": " @for (i, v) in all.iter().enumerate() { @if i > 0 { ", " } (link(c, v.as_str().unwrap_or_default())) } },
                        one => (link(c, one.as_str().unwrap_or_default())),
                    } }
                }
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Null => "—".to_string(),
        other => other.to_string(),
    }
}

/// The beginning of a digest, enough to tell two apart.
fn brief(digest: &str) -> String {
    digest.chars().take(16).collect()
}
