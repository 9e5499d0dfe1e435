//! Outcomes of the theory's stages → figures and tables of its report, as a layout file describes them. Knows that file's
//! format; what is shown, and beside what, stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::outcome::{self, Outcome};
use crate::claims::{Measured, Measurements};
use crate::figure::{self, Drawing, Figure, write_drawing};
use crate::grid::{Cell, Column, Grid, Row, RowKind};
use crate::job::{self, Job, bad, read_json};
use crate::plot::{Axis, Colour, Look, Mark, Panel, Point, Reference, Series};
use crate::stats::{self, Summary};
use crate::table::{self, Table};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// The figure or table of the layout file.
    part: String,
}

/// The layout file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layouts {
    figures: BTreeMap<String, FigureLayout>,
    tables: BTreeMap<String, TableLayout>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FigureLayout {
    title: String,
    caption: String,
    #[serde(default = "two")]
    columns: usize,
    panels: Vec<PanelLayout>,
}

fn two() -> usize {
    2
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PanelLayout {
    title: String,
    x: String,
    #[serde(default)]
    log: bool,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    bounds: Option<(f64, f64)>,
    series: Vec<SeriesLayout>,
    #[serde(default)]
    lines: Vec<LineLayout>,
}

/// A curve: the quantity's `*` is the horizontal coordinate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeriesLayout {
    label: String,
    /// Place in the palette.
    look: usize,
    y: String,
}

/// A dashed line: constant, or a quantity with `*`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineLayout {
    label: String,
    #[serde(default)]
    value: Option<f64>,
    #[serde(default)]
    y: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableLayout {
    title: String,
    #[serde(default)]
    notes: Vec<String>,
    grids: Vec<GridLayout>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GridLayout {
    caption: String,
    stub: Vec<String>,
    columns: Vec<String>,
    rows: Vec<RowLayout>,
}

/// One row, or with a `*` in its cells one row for each value of it: the labels' `*` is replaced too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowLayout {
    labels: Vec<String>,
    /// Quantities, `a - b` for a paired difference, a number as printed by the paper, or empty.
    cells: Vec<String>,
    #[serde(default = "digits")]
    digits: usize,
}

fn digits() -> usize {
    2
}

/// A search for the upper end of a range went so far and met none.
const NO_END: f64 = 1e9;

/// Colours and marks by number.
const PALETTE: [(Colour, Mark); 9] = [
    (Colour(0x7d, 0x83, 0x8c), Mark::Circle),
    (Colour(0xb8, 0x79, 0x0f), Mark::Diamond),
    (Colour(0x2f, 0x80, 0xd2), Mark::Square),
    (Colour(0xc9, 0x4c, 0x8c), Mark::Triangle),
    (Colour(0x2b, 0x9a, 0x66), Mark::Circle),
    (Colour(0x8e, 0x5b, 0xd0), Mark::Diamond),
    (Colour(0xd1, 0x5a, 0x2b), Mark::Square),
    (Colour(0x1f, 0x9a, 0xa8), Mark::Triangle),
    (Colour(0xa8, 0x8a, 0x2a), Mark::Circle),
];

/// Runs the stage. Inputs: `outcomes` (list of folders), `layout` (file). Output: a figure's or a table's files.
///
/// Errors: `BadInput` for an unknown part, a foreign outcome, a quantity that comes from two stages with one seed, a part
/// of which nothing was measured.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let path = job.input("layout")?;
    let layouts = read_layouts(&path)?;
    let all = gather(&job)?;
    let part = &params.part;
    match (layouts.figures.get(part), layouts.tables.get(part)) {
        (Some(layout), None) => write_drawing(&job, &drawing(part, layout, &all)?),
        (None, Some(layout)) => write_table(&job, &table_of(part, layout, &all)?),
        _ => Err(bad(format!("params: part: `{part}` is no figure or table of the layout file"))),
    }
}

fn read_layouts(path: &Path) -> Result<Layouts> {
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("inputs.layout: {e}")))?;
    serde_saphyr::from_str(&text).map_err(|e| bad(format!("inputs.layout: {e}")))
}

/// All quantities with their stages.
fn gather(job: &Job) -> Result<Measurements> {
    let mut all = Measurements::new();
    for input in job.inputs("outcomes")? {
        let found: Outcome = read_json(&input.path.join("outcome.json"))?;
        if found.version != outcome::VERSION {
            return Err(bad(format!("{}: version: {} is unknown", input.name, found.version)));
        }
        for (id, quantity) in found.quantities {
            let empty = || Measured { unit: quantity.unit.clone(), seeds: vec![], stages: vec![] };
            let one = all.entry(id.clone()).or_insert_with(empty);
            for (seed, value) in quantity.values {
                if one.seeds.iter().any(|(s, _)| *s == seed) {
                    return Err(bad(format!("{}: {id}: seed {seed} stands twice", input.name)));
                }
                one.seeds.push((seed, value));
                if one.stages.last() != Some(&input.name) {
                    one.stages.push(input.name.clone());
                }
            }
        }
    }
    all.values_mut().for_each(|m| m.seeds.sort_by_key(|(seed, _)| *seed));
    Ok(all)
}

/// What stands for a pattern's `*`, in numeric order: text, number, quantity.
fn matches<'a>(pattern: &str, all: &'a Measurements) -> Vec<(&'a str, f64, &'a Measured)> {
    let Some((head, tail)) = pattern.split_once('*') else { return vec![] };
    let mut found: Vec<(&str, f64, &Measured)> = all
        .iter()
        .filter_map(|(id, m)| {
            let middle = id.strip_prefix(head)?.strip_suffix(tail)?;
            Some((middle, middle.parse().ok()?, m))
        })
        .collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found
}

fn point(x: f64, measured: &Measured) -> Option<Point> {
    let s = Summary::of(&measured.values())?;
    let seeds = if s.n > 1 { measured.seeds.clone() } else { vec![] };
    Some(Point { x, mean: s.mean, half_width: s.half_width(), seeds })
}

fn drawing(id: &str, layout: &FigureLayout, all: &Measurements) -> Result<Drawing> {
    let mut measurements = Measurements::new();
    let mut panels = vec![];
    for p in &layout.panels {
        let mut take = |pattern: &str| -> Vec<Point> {
            let found = matches(pattern, all);
            for (middle, _, m) in &found {
                measurements.insert(pattern.replacen('*', middle, 1), (*m).clone());
            }
            found.iter().filter_map(|(_, x, m)| point(*x, m)).collect()
        };
        let mut series = vec![];
        for s in &p.series {
            let Some((colour, mark)) = PALETTE.get(s.look).copied() else {
                return Err(bad(format!("layout: {id}: look: {} is not in the palette", s.look)));
            };
            let points = take(&s.y);
            if !points.is_empty() {
                series.push(Series { look: Look { label: s.label.clone(), colour, mark }, points });
            }
        }
        let xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p.x)).collect();
        let ends = xs.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        if series.is_empty() {
            continue;
        }
        let mut references = vec![];
        for line in &p.lines {
            let points = match (line.value, &line.y) {
                (Some(v), None) => vec![(ends.0, v), (ends.1, v)],
                (None, Some(pattern)) => take(pattern).iter().map(|p| (p.x, p.mean)).collect(),
                _ => return Err(bad(format!("layout: {id}: {}: either value or y", line.label))),
            };
            if !points.is_empty() {
                references.push(Reference { label: line.label.clone(), colour: None, points });
            }
        }
        panels.push(Panel {
            title: p.title.clone(),
            x: Axis { label: p.x.clone(), ticks: ticks(&xs, p.log), log: p.log },
            unit: p.unit.clone(),
            bounds: p.bounds.unwrap_or((-1e12, 1e12)),
            bands: true,
            series,
            references,
        });
    }
    if panels.is_empty() {
        return Err(bad(format!("inputs.outcomes: nothing of `{id}` was measured")));
    }
    let figure = Figure {
        version: figure::VERSION,
        layout: figure::Layout::Theory,
        id: id.to_string(),
        title: layout.title.clone(),
        caption: layout.caption.clone(),
        measurements,
        sources: vec![],
    };
    Ok(Drawing { figure, panels, columns: layout.columns })
}

/// At most eight of the coordinates, evenly spread.
fn ticks(xs: &[f64], log: bool) -> Vec<(f64, String)> {
    let mut all = xs.to_vec();
    all.sort_by(f64::total_cmp);
    all.dedup();
    let scale = |x: f64| if log { libm::log10(x) } else { x };
    let (Some(first), Some(last)) = (all.first().copied(), all.last().copied()) else { return vec![] };
    let apart = (scale(last) - scale(first)) / 8.0;
    let mut kept: Vec<f64> = vec![];
    for x in all {
        if kept.last().is_none_or(|k| scale(x) - scale(*k) >= apart) {
            kept.push(x);
        }
    }
    kept.into_iter().map(|x| (x, x.to_string())).collect()
}

fn table_of(id: &str, layout: &TableLayout, all: &Measurements) -> Result<Table> {
    let mut measurements = Measurements::new();
    let mut grids = vec![];
    for g in &layout.grids {
        let mut rows = vec![];
        for row in &g.rows {
            let mut stars: Vec<(String, f64)> = vec![];
            let mut seen = BTreeSet::new();
            for pattern in row.cells.iter().flat_map(|c| c.split(" - ")).filter(|c| c.contains('*')) {
                for (middle, x, _) in matches(pattern, all) {
                    if seen.insert(middle.to_string()) {
                        stars.push((middle.to_string(), x));
                    }
                }
            }
            stars.sort_by(|a, b| a.1.total_cmp(&b.1));
            if !row.cells.iter().any(|c| c.contains('*')) {
                stars = vec![(String::new(), 0.0)];
            }
            for (star, _) in &stars {
                let fill = |text: &String| text.replace('*', star);
                let cells: Vec<Cell> =
                    row.cells.iter().map(|c| cell(&fill(c), row.digits, all, &mut measurements)).collect();
                if cells.iter().any(|c| matches!(c, Cell::Measured { .. })) {
                    rows.push(Row {
                        kind: RowKind::Ours,
                        labels: row.labels.iter().map(fill).collect(),
                        cells,
                    });
                }
            }
        }
        if rows.iter().any(|r| r.cells.len() != g.columns.len() || r.labels.len() != g.stub.len()) {
            return Err(bad(format!(
                "layout: {id}: {}: a row has another length than the header",
                g.caption
            )));
        }
        let column = |label: &String| Column { group: String::new(), label: label.clone() };
        if !rows.is_empty() {
            grids.push(Grid {
                caption: g.caption.clone(),
                stub: g.stub.clone(),
                columns: g.columns.iter().map(column).collect(),
                rows,
            });
        }
    }
    if grids.is_empty() {
        return Err(bad(format!("inputs.outcomes: nothing of `{id}` was measured")));
    }
    Ok(Table {
        version: table::VERSION,
        layout: table::Layout::Theory,
        id: id.to_string(),
        title: layout.title.clone(),
        in_paper: false,
        notes: layout.notes.clone(),
        grids,
        measurements,
        sources: vec![],
    })
}

fn cell(text: &str, digits: usize, all: &Measurements, into: &mut Measurements) -> Cell {
    if let Ok(value) = text.parse::<f64>() {
        return Cell::Printed { value, digits };
    }
    let ids: Vec<&str> = text.split(" - ").collect();
    let found: Option<Vec<&Measured>> = ids.iter().map(|id| all.get(*id)).collect();
    let summary = match found.as_deref() {
        Some([one]) => Summary::of(&one.values()),
        Some([a, b]) => Summary::of(&stats::paired(&a.seeds, &b.seeds)),
        _ => None,
    };
    let Some(s) = summary else { return Cell::Empty };
    for (id, m) in ids.iter().zip(found.unwrap_or_default()) {
        into.insert(id.to_string(), m.clone());
    }
    if s.mean >= NO_END {
        return Cell::Empty;
    }
    Cell::Measured {
        mean: s.mean,
        half_width: s.half_width(),
        n: s.n,
        digits,
        signed: ids.len() > 1,
        quantities: ids.iter().map(|id| id.to_string()).collect(),
    }
}

fn write_table(job: &Job, table: &Table) -> Result<()> {
    let out = |name: &str| job.out().join(name);
    job::write(&out("table.html"), table::html(table).as_bytes())?;
    job::write(&out("table.md"), table.text(Grid::markdown, "## ", "\n").as_bytes())?;
    job::write(&out("table.tex"), table.text(Grid::latex, "% ", "% ").as_bytes())?;
    job::write(&out("table.csv"), table::csv(table).as_bytes())?;
    job::write_json(&out("table.json"), table)
}
