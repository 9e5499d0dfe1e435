//! The page: markup from content, in the order in which a reader wants it. Knows no file.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::{Content, Deviation, Setting, appendix, theory as beside};
use crate::claims::{Claim, Computation, Further, Judged, Scope, Spread, Verdict};
use crate::grid::{Cell, RowKind, anchor, decimal};
use crate::stats::Summary;
use crate::table::{Fidelity, Layout, dataset_label};
use crate::theory;

const STYLE: &str = include_str!("style.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The whole document.
pub fn html(c: &Content) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (c.params.title) " · " (c.provenance.profile) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.kicker { "profile " b { (c.provenance.profile) } }
                    h1 { (c.params.title) }
                    p.paper { (c.claims.paper) }
                }
                (banner(c))
                (contents(c))
                main {
                    (results(c))
                    (run(c))
                    @for table in &c.tables {
                        section id=(table.id) {
                            h2 { (table.title) }
                            @for grid in &table.grids { (PreEscaped(grid.html())) }
                            ul.notes { @for note in &table.notes { li { (note) } } }
                            p.files { "The same as "
                                @for (i, e) in ["md", "tex", "csv"].iter().enumerate() {
                                    @if i > 0 { ", " } a href=(format!("tables/{}.{e}", table.id)) { (e) }
                                }
                            }
                        }
                    }
                    @for drawn in &c.figures {
                        section id=(drawn.figure.id) {
                            h2 { (drawn.figure.title) }
                            figure {
                                (PreEscaped(&drawn.fragment))
                                figcaption { (drawn.figure.caption) }
                            }
                            @let remarks: Vec<String> = drawn.figure.sources.iter().filter_map(Fidelity::remark).collect();
                            @if !remarks.is_empty() { ul.notes { @for remark in remarks { li { (remark) } } } }
                            p.files { "The same as "
                                a href=(format!("figures/{}.svg", drawn.figure.id)) { "svg" } ", "
                                a href=(format!("figures/{}.csv", drawn.figure.id)) { "csv" }
                            }
                        }
                    }
                    @if let Some(theory) = &c.theory { (beside::section(theory)) }
                    (verdicts(c))
                    (readings(c))
                    (rerun(c))
                    (appendix::html(c))
                }
            }
        }
    }
}

fn banner(c: &Content) -> Markup {
    if c.judges() {
        return html! {};
    }
    html! {
        aside.banner role="note" {
            p { b { "Reduced: " } (c.params.reduced) }
            p { "No verdicts: numbers of a reduced run neither confirm nor contradict the paper's, which stand beside them for orientation." }
        }
    }
}

fn contents(c: &Content) -> Markup {
    html! {
        nav aria-label="Contents" {
            ul {
                li { a href="#results" { "What came out" } }
                li { a href="#run" { "What was run" } }
                @for t in &c.tables { li { a href=(format!("#{}", t.id)) { (short(&t.title)) } } }
                @for f in &c.figures { li { a href=(format!("#{}", f.figure.id)) { (figure_label(c, &f.figure.title)) } } }
                @if c.theory.is_some() { li { a href="#theory" { "The theory" } } }
                li { a href="#verdicts" { "Verdicts" } }
                li { a href="#readings" { "The paper's text" } }
                li { a href="#rerun" { "How to run it" } }
                li { a href="#numbers" { "Every number" } }
                li { a href="#stages" { "Every stage" } }
            }
        }
    }
}

/// A title up to its colon.
fn short(title: &str) -> &str {
    title.split(':').next().unwrap_or(title)
}

/// A figure's title up to its colon, or the whole where another begins likewise.
fn figure_label<'a>(c: &Content, title: &'a str) -> &'a str {
    let alike = c.figures.iter().filter(|f| short(&f.figure.title) == short(title)).count();
    if alike > 1 { title } else { short(title) }
}

/// The paired differences from ERM in the tables of a layout: where, and in words, whichever way they fell.
fn differences(c: &Content, layout: Layout, metric: &str) -> Vec<(String, Markup)> {
    let mut lines = vec![];
    for table in c.tables.iter().filter(|t| t.layout == layout) {
        let Some(grid) = table.grids.first() else { continue };
        for row in grid.rows.iter().filter(|r| r.kind == RowKind::Difference) {
            for (column, cell) in grid.columns.iter().zip(&row.cells) {
                let Cell::Measured { mean, half_width, n, .. } = cell else { continue };
                let (place, method) = match layout {
                    Layout::Table1 if column.label != metric => continue,
                    Layout::Table1 => {
                        let data = table.sources.first().map_or("", |s| dataset_label(&s.dataset));
                        (format!("{}, {data}", row.labels[0]), &column.group)
                    }
                    _ => (row.labels[0].clone(), &column.label),
                };
                let gamma = row.labels[1].strip_suffix(", minus ERM").unwrap_or_default();
                // Only tempered methods have a gamma.
                let what =
                    if method.starts_with("IT") { format!("{method} ({gamma})") } else { method.clone() };
                lines.push((place, difference(&what, *mean, *half_width, *n)));
            }
        }
    }
    lines
}

/// Differences in words, by place.
fn by_place(title: &str, lines: &[(String, Markup)]) -> Markup {
    let mut places: Vec<&String> = lines.iter().map(|(p, _)| p).collect();
    places.dedup();
    html! {
        @if !lines.is_empty() {
            p { (title) }
            dl.results {
                @for place in places {
                    dt { (place) }
                    dd { ul { @for (_, line) in lines.iter().filter(|(p, _)| p == place) { li { (line) } } } }
                }
            }
        }
    }
}

/// What came out, in words.
fn results(c: &Content) -> Markup {
    let worst = differences(c, Layout::Table2Shift, "");
    let average = differences(c, Layout::Table1, "average");
    html! {
        section id="results" {
            h2 { "What came out" }
            @if c.params.scope == Scope::Theory {
                (outcome(c))
            } @else if worst.is_empty() && average.is_empty() {
                p { "No method was run beside ERM on the same seeds." }
            } @else {
                (by_place("Worst-class accuracy on the balanced test set, minus ERM's, paired by seed:", &worst))
                (by_place("Average accuracy on the balanced test set, minus ERM's, paired by seed:", &average))
            }
        }
    }
}

/// What the theory's claims came to, those first that do not hold.
fn outcome(c: &Content) -> Markup {
    if !c.judges() {
        return html! { p { "Figures and tables below; a reduced run judges nothing." } };
    }
    let all = c.verdicts();
    let of =
        |wanted: fn(&Verdict) -> bool| all.iter().filter(move |j| wanted(&j.verdict)).collect::<Vec<_>>();
    let parts = [
        ("Contradicted by the computation", of(|v| *v == Verdict::Contradicted)),
        ("Open", of(|v| matches!(v, Verdict::Inconclusive(_) | Verdict::NotRun))),
        ("Confirmed", of(|v| *v == Verdict::Match)),
    ];
    html! {
        dl.results {
            @for (title, judged) in parts.iter().filter(|(_, j)| !j.is_empty()) {
                dt { (title) " (" (judged.len()) ")" }
                dd { ul { @for j in judged { li { a href=(format!("#c-{}", j.claim.id())) { (j.claim.place()) } } } } }
            }
        }
    }
}

/// The value of each quantity that shows a reading.
fn shown(c: &Content, quantities: &[String]) -> Markup {
    html! {
        @if !quantities.is_empty() {
            p { span.label { "computed" } " "
                @for (i, id) in quantities.iter().enumerate() {
                    @if i > 0 { "; " }
                    code { (id) } " = "
                    @match c.measurements.get(id).and_then(|m| Some((m, Summary::of(&m.values())?))) {
                        Some((m, s)) => {
                            a href=(format!("#{}", anchor(id))) { (decimal(s.mean, 3, false)) }
                            @if !m.unit.is_empty() { " " (m.unit) }
                        },
                        None => "not in this run",
                    }
                }
            }
        }
    }
}

fn difference(what: &str, mean: f64, half: Option<f64>, n: usize) -> Markup {
    let value = decimal(mean, 1, true);
    let (interval, word) = match half {
        None => (String::new(), "one seed, so no interval"),
        Some(h) => {
            let word = match (mean - h > 0.0, mean + h < 0.0) {
                _ if mean == 0.0 && h == 0.0 => "equal to ERM on every seed",
                (true, _) => "above ERM",
                (_, true) => "below ERM",
                _ => "not told apart from ERM",
            };
            (format!(" ± {}", decimal(h, 1, false)), word)
        }
    };
    html! { (what) ": " b { (value) (interval) " points" } " — " (word) @if n > 1 { " (" (n) " seeds)" } }
}

fn run(c: &Content) -> Markup {
    // What the paper does not say cannot be contradicted.
    let differs = |s: &Setting| s.paper != "not stated" && words(&s.paper) != words(&s.here);
    html! {
        section id="run" {
            h2 { "What was run" }
            div.grid tabindex="0" { table.words {
                caption { "Settings; those that differ from appendix E are marked" }
                thead { tr { th scope="col" { "setting" } th scope="col" { "paper" } th scope="col" { "here" } } }
                tbody {
                    @for s in &c.params.settings {
                        tr.differs[differs(s)] {
                            th scope="row" { (s.what) }
                            td.text { (words(&s.paper)) }
                            td.text { @if differs(s) { mark { (words(&s.here)) } } @else { (words(&s.here)) } }
                        }
                    }
                }
            } }
            @if !c.params.deviations.is_empty() {
                div.grid tabindex="0" { table.words {
                    caption { "Deviations that hold in every profile, each with its reason" }
                    thead { tr { th scope="col" { "what" } th scope="col" { "paper" } th scope="col" { "here" } th scope="col" { "why" } } }
                    tbody { @for d in &c.params.deviations { (deviation(d)) } }
                } }
            }
            @if !c.sources.is_empty() { h3 { "Data" } }
            ul {
                @for s in &c.sources {
                    li {
                        b { (dataset_label(&s.dataset)) } ", variant " code { (s.variant) } ": "
                        @if s.exact { "as published" } @else { "not the published data set as a whole" }
                        @if !s.note.is_empty() { " (" (s.note) ")" }
                        "."
                        @if !s.exact { " Its tables and figures carry this note." }
                    }
                }
            }
        }
    }
}

fn deviation(d: &Deviation) -> Markup {
    html! { tr { th scope="row" { (d.what) } td.text { (d.paper) } td.text { (d.here) } td.text { (d.why) } } }
}

/// A value as a person would write it: `a, b` for a list, `name x, rate 0.1` for a map.
fn words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_string(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", words(v))).collect::<Vec<_>>().join(" · ")
        }
        other => other.to_string(),
    }
}

fn verdicts(c: &Content) -> Markup {
    if !c.judges() {
        return html! {
            section id="verdicts" {
                h2 { "Verdicts" }
                p { "None: this run is reduced. The " (c.claims.claims.len()) " claims of " code { "claims.yaml" }
                    ", with margins fixed before any run, are judged in the unreduced profile." }
            }
        };
    }
    let all = c.verdicts();
    let count = |f: fn(&Verdict) -> bool| all.iter().filter(|j| f(&j.verdict)).count();
    let drawn = |claim: &Claim| matches!(claim, Claim::Number { spread, .. } if *spread != Spread::Exact);
    html! {
        section id="verdicts" {
            h2 { "Verdicts" }
            p {
                (count(|v| *v == Verdict::Match)) " match, "
                (count(|v| *v == Verdict::Contradicted)) " contradicted, "
                (count(|v| matches!(v, Verdict::Inconclusive(_)))) " inconclusive, "
                (count(|v| *v == Verdict::NotRun)) " not run, of " (all.len()) " claims. The margins were fixed before any run."
                @if all.iter().any(|j| drawn(j.claim)) {
                    " The paper's number is one draw of unknown spread (figure 4(b)'s the mean of two), so that the test's variance is s²(1 + 1/n). "
                    "The seeds differ in initialisation and order, not in the examples that are kept, as the paper's draw may: that part of the spread is in no interval."
                }
            }
            div.grid tabindex="0" { table.claims {
                thead { tr {
                    th scope="col" { "claim" } th scope="col" { "paper" } th scope="col" { "here" } th scope="col" { "margin" } th.stub scope="col" { "verdict" }
                } }
                tbody { @for judged in &all { (verdict(c, judged)) } }
            } }
            h3 { "Margins" }
            dl { @for (name, m) in &c.claims.margins { dt { (name) ": " (m.size) } dd { (m.reason) "." } } }
        }
    }
}

/// A verdict's class and words.
pub fn words_of(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Match => ("match", "match".to_string()),
        Verdict::Contradicted => ("contradicted", "contradicted".to_string()),
        Verdict::Inconclusive(Further::Seeds(n)) => ("open", format!("inconclusive: {n} more seeds")),
        Verdict::Inconclusive(Further::NoNumber) => {
            ("open", "inconclusive: no number of seeds settles it".to_string())
        }
        Verdict::Inconclusive(Further::Unknown) => {
            ("open", "inconclusive: one seed shows no spread".to_string())
        }
        Verdict::NotRun => ("none", "not run".to_string()),
    }
}

fn verdict(c: &Content, judged: &Judged) -> Markup {
    let signed = matches!(judged.claim, Claim::Ordering { .. });
    let (class, text) = words_of(&judged.verdict);
    let margin = c.claims.margins.get(judged.claim.margin()).map(|m| m.size.to_string()).unwrap_or_default();
    html! {
        tr id=(format!("c-{}", judged.claim.id())) {
            th scope="row" { (judged.claim.place()) @if let Some(note) = judged.claim.note() { small { (note) } } }
            td { (judged.claim.says()) }
            td {
                @if let Some(ours) = judged.ours {
                    @let href = judged.claim.quantities().first().map(|q| format!("#{}", anchor(q))).unwrap_or_default();
                    a href=(href) { (decimal(ours.mean, 2, signed)) }
                    small {
                        @match judged.half_width {
                            Some(h) => { "± " (decimal(h, 2, false)) " " span.n { "n " (ours.n) } },
                            None if judged.claim.computed() => "computed",
                            None => { span.n { "n " (ours.n) } },
                        }
                    }
                } @else { "–" }
            }
            td { (margin) }
            td.verdict.(class) { (text) }
        }
    }
}

fn readings(c: &Content) -> Markup {
    html! {
        section id="readings" {
            h2 { "Wrong, missing or ambiguous in the paper, and how it is read here" }
            @for r in &c.claims.readings {
                article.reading {
                    h3 { (r.r#where) }
                    p { span.label { "printed" } " " (r.printed) }
                    p { span.label { "read as" } " " (r.reading) }
                    @match r.computed {
                        Some(Computation::Arccos) => (arccos()),
                        Some(Computation::ClosedForms) => (closed_forms()),
                        None => {}
                    }
                    (shown(c, &r.quantities))
                }
            }
        }
    }
}

const CLASSES: u32 = 10;

fn arccos() -> Markup {
    let line = |name: &str, cosine: f64| {
        html! { tr { th scope="row" { (name) }
        td { (decimal(theory::degrees(-cosine), 2, false)) "°" } td { (decimal(theory::degrees(cosine), 2, false)) "°" } } }
    };
    html! {
        div.grid tabindex="0" { table {
            caption { "Computed for K = " (CLASSES) }
            thead { tr { th scope="col" { "line" } th scope="col" { "as printed" } th scope="col" { "with the minus" } } }
            tbody { (line("arccos(±1/(K−1))", theory::simplex(CLASSES))) (line("arccos(±1/(K/2−1))", theory::simplex(CLASSES / 2))) }
        } }
    }
}

fn closed_forms() -> Markup {
    let angle = |cosine: f64| format!("{}°", decimal(theory::degrees(cosine), 2, false));
    html! {
        div.grid tabindex="0" { table {
            caption { "Computed for K = " (CLASSES) ": angles between classifier rows" }
            thead { tr { th scope="col" { "R" } th scope="col" { "IT(H), every pair" } th scope="col" { "IT(W), majority" } th scope="col" { "IT(W), minority" } } }
            tbody {
                @for ratio in [1u32, 2, 5, 10, 20, 50, 100, 1000] {
                    @let cosines = theory::it_classifier(CLASSES, f64::from(ratio));
                    tr { th scope="row" { (ratio) }
                        td { (angle(theory::simplex(CLASSES))) } td { (angle(cosines.majority)) } td { (angle(cosines.minority)) } }
                }
            }
        } }
    }
}

fn rerun(c: &Content) -> Markup {
    let profile = &c.provenance.profile;
    let var = |name: &str| c.provenance.vars.get(name);
    let variants = var("variants").and_then(Value::as_object);
    let mirror = variants.is_some_and(|v| v.values().any(|v| v == "mirror"));
    let mirror = if mirror && c.params.scope == Scope::Training { " --mirror DIR" } else { "" };
    let target = if c.params.scope == Scope::Theory { "theory" } else { "report" };
    let program = match var("program").and_then(Value::as_str) {
        None | Some("default") => String::new(),
        Some(other) => format!(" -S program={other}"),
    };
    html! {
        section id="rerun" {
            h2 { "How to run it" }
            pre { "cargo run --release -- run " (target) " --profile " (profile) (mirror) (program) }
            @if !mirror.is_empty() { p { code { "DIR" } " holds the files in the Hub's own layout; their digests are pinned, and another file is refused." } }
            p { "What is up to date is not run again. Why a stage would run, its log, and what it is made of:" }
            pre {
                "target/release/itpipe why STAGE --profile " (profile) "\n"
                "target/release/itpipe log STAGE --profile " (profile)
            }
            p { "This page is a function of its inputs alone. When, where and for how long each stage ran stands in "
                a href="run.json" { "run.json" } " beside it." }
        }
    }
}
