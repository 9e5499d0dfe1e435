//! The table stage: evaluated runs → Table 1's and Table 2's layout, the paper's value beside ours. Knows the layouts;
//! how a grid is written stands in `grid.rs`, what a run is in `runs.rs`.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::claims::{Claims, Measurements};
use crate::grid::{Cell, Column, Grid, Row, RowKind};
use crate::job::{self, Job, bad};
use crate::runs::{self, Evaluated, Method, Run, Runs, quantity};
use crate::stats::{self, Summary};

mod groups;

/// The version of `table.json`.
pub const VERSION: u32 = 1;

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Worst-class and average accuracy of ERM and both placements of IT, one data set.
    Table1,
    /// Worst-class accuracy of ERM, IW and IT: the label-shift rows of Table 2.
    Table2Shift,
    /// Worst-group accuracy by data set, network and weight decay: its other rows.
    Table2Groups,
    /// A table of the theory's report, made by `synthetic/show`.
    Theory,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    layout: Layout,
    /// Label shift: the gammas that get rows of their own, beside the best one.
    #[serde(default)]
    gammas: Vec<f64>,
    /// Groups: the axes of the stages that are shown.
    #[serde(default)]
    axes: Vec<String>,
}

/// A table: what `table.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    pub version: u32,
    pub layout: Layout,
    /// A word for anchors, unique among the tables of a report.
    pub id: String,
    pub title: String,
    /// Whether the paper has this table.
    pub in_paper: bool,
    /// What a reader must know of the numbers.
    pub notes: Vec<String>,
    pub grids: Vec<Grid>,
    pub measurements: Measurements,
    /// The data that the numbers were computed from.
    pub sources: Vec<Fidelity>,
}

/// What data a number was computed from, and how faithful they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fidelity {
    pub dataset: String,
    pub variant: String,
    pub exact: bool,
    pub note: String,
}

impl Fidelity {
    /// What a reader must know of numbers that were computed from it; none where it is what was published.
    pub fn remark(&self) -> Option<String> {
        let (name, variant, note) = (dataset_label(&self.dataset), &self.variant, &self.note);
        (!self.exact)
            .then(|| format!("{name} is the variant {variant}, not bit for bit the published one: {note}"))
    }
}

/// Runs the stage. Inputs: `metrics` (evaluate stages), `claims` (the claims file). Output: `table.{html,md,tex,csv,json}`.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let claims = Claims::read(&job.input("claims")?)?;
    let metrics = job.inputs("metrics")?;
    let table = match params.layout {
        Layout::Table2Groups => groups::build(&claims, &crate::groups::read(&metrics, &params.axes)?),
        Layout::Theory => return Err(bad("params: layout: theory is made by synthetic/show")),
        Layout::Table1 | Layout::Table2Shift => build(&params, &claims, &runs::evaluated(&metrics)?)?,
    };
    let out = |name: &str| job.out().join(name);
    job::write(&out("table.html"), html(&table).as_bytes())?;
    job::write(&out("table.md"), table.text(Grid::markdown, "## ", "\n").as_bytes())?;
    job::write(&out("table.tex"), table.text(Grid::latex, "% ", "% ").as_bytes())?;
    job::write(&out("table.csv"), csv(&table).as_bytes())?;
    job::write_json(&out("table.json"), &table)
}

impl Table {
    /// Title, grids and notes as text, through one of the grid's writers.
    pub fn text(&self, grid: impl Fn(&Grid) -> String, title: &str, note: &str) -> String {
        let mut text = format!("{title}{}\n\n", self.title);
        for g in &self.grids {
            text += &grid(g);
            text.push('\n');
        }
        for n in &self.notes {
            text += &format!("{note}{n}\n");
        }
        text
    }
}

/// The fragment that the report shows.
pub fn html(table: &Table) -> String {
    table.grids.iter().map(Grid::html).collect::<Vec<_>>().join("\n")
}

pub fn csv(table: &Table) -> String {
    let mut text = Grid::CSV_HEAD.to_string();
    for grid in &table.grids {
        text += &grid.csv(&table.id);
    }
    text
}

/// The two metrics of a layout: word in quantities, header, decimals as printed.
const METRICS: [(&str, &str, usize); 2] = [("worst", "worst class", 1), ("average", "average", 2)];

fn build(params: &Params, claims: &Claims, runs: &Runs<Evaluated>) -> Result<Table> {
    if params.gammas.is_empty() {
        return Err(bad("params: gammas: no value"));
    }
    let (methods, metrics): (&[Method], _) = match params.layout {
        Layout::Table1 => (&[Method::Erm, Method::ItFeatures, Method::ItClassifier], &METRICS[..]),
        Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => {
            (&[Method::Erm, Method::Iw, Method::GroupDro, Method::ItClassifier], &METRICS[..1])
        }
    };
    let datasets = runs.datasets();
    if params.layout == Layout::Table1 && datasets.len() > 1 {
        return Err(bad(format!(
            "inputs.metrics: layout table1 shows one data set, not {}",
            datasets.join(" and ")
        )));
    }
    let plan = Plan { layout: params.layout, claims, runs, methods, metrics, all: runs::accuracies(runs) };
    let mut rows = vec![];
    let mut state = vec![];
    for (data, ratio) in plan.places() {
        plan.rows(&data, ratio, &params.gammas, &mut rows);
        plan.training(&data, ratio, &params.gammas, &mut state);
    }
    let in_paper = rows.iter().any(|r| r.kind == RowKind::Paper);
    let name = datasets.iter().map(|d| dataset_label(d)).collect::<Vec<_>>().join(", ");
    let (id, title, caption) = match params.layout {
        Layout::Table1 if in_paper => (
            format!("table1-{}", datasets[0]),
            format!("Table 1: {name} under label shift"),
            format!("Accuracy in % on the balanced test set, {name}"),
        ),
        Layout::Table1 => (
            format!("table1-{}", datasets[0]),
            format!("{name} in the layout of Table 1 — not in the paper"),
            format!("Accuracy in % on the balanced test set, {name}; the paper has no such table"),
        ),
        Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => (
            "table2-shift".to_string(),
            format!("Table 2, label-shift rows: {name}"),
            "Worst-class accuracy in % on the balanced test set".to_string(),
        ),
    };
    let sources = sources(runs.all());
    Ok(Table {
        version: VERSION,
        layout: params.layout,
        id,
        title,
        in_paper,
        notes: plan.notes(&sources),
        grids: vec![
            Grid { caption, stub: plan.stub("row"), columns: plan.columns(), rows },
            Grid {
                caption: "How far the trainings went: means over seeds at the end of training".to_string(),
                stub: plan.stub("method"),
                columns: ["images", "steps", "epochs", "error, raw logits, %", "error, tempered, %", "loss"]
                    .map(|label| Column { group: String::new(), label: label.to_string() })
                    .to_vec(),
                rows: state,
            },
        ],
        measurements: plan.all,
        sources,
    })
}

/// The data that runs were computed from, each once.
pub fn sources<R: Run>(runs: &[R]) -> Vec<Fidelity> {
    let fidelity = |r: &R| {
        let s = r.source();
        let note = s.note.clone().unwrap_or_default();
        Fidelity { dataset: s.dataset.clone(), variant: s.variant.clone(), exact: s.exact, note }
    };
    let mut all: Vec<Fidelity> = runs.iter().map(fidelity).collect();
    all.sort();
    all.dedup();
    all
}

/// A data set's name as people write it.
pub fn dataset_label(word: &str) -> &str {
    match word {
        "fashion-mnist" => "Fashion-MNIST",
        "cifar10" => "CIFAR-10",
        "celeba" => "CelebA",
        "waterbirds" => "Waterbirds",
        "multinli" => "MultiNLI",
        other => other,
    }
}

/// What every row of a table needs.
struct Plan<'a> {
    layout: Layout,
    claims: &'a Claims,
    runs: &'a Runs<Evaluated>,
    methods: &'a [Method],
    metrics: &'a [(&'a str, &'a str, usize)],
    all: Measurements,
}

impl Plan<'_> {
    /// Data set and ratio of each group of rows, in the paper's order: by ratio, then by data set.
    fn places(&self) -> Vec<(String, u64)> {
        let each =
            |d: String| self.runs.ratios(&d).into_iter().map(move |r| (d.clone(), r)).collect::<Vec<_>>();
        let mut places: Vec<(String, u64)> = self.runs.datasets().into_iter().flat_map(each).collect();
        places.sort_by_key(|(_, ratio)| *ratio);
        places
    }

    fn stub(&self, last: &str) -> Vec<String> {
        match self.layout {
            Layout::Table1 => vec!["ratio".into(), last.into()],
            Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => {
                vec!["label shift".into(), last.into()]
            }
        }
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![];
        for method in self.methods {
            let label = match (self.layout, method) {
                (Layout::Table1, Method::Erm) => "vanilla (ERM)",
                (Layout::Table2Shift | Layout::Theory, Method::ItClassifier) => "IT, as IT(W)",
                _ => method.label(),
            };
            for (_, metric, _) in self.metrics {
                columns.push(match self.layout {
                    Layout::Table1 => Column { group: label.into(), label: (*metric).into() },
                    Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => {
                        Column { group: String::new(), label: label.into() }
                    }
                });
            }
        }
        columns
    }

    fn place_label(&self, data: &str, ratio: u64) -> String {
        match self.layout {
            Layout::Table1 => format!("1:{ratio}"),
            Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => {
                format!("1:{ratio}, {}", dataset_label(data))
            }
        }
    }

    /// The paper's row, ours at each gamma and at the best one, and the paired differences from ERM.
    fn rows(&self, data: &str, ratio: u64, gammas: &[f64], rows: &mut Vec<Row>) {
        let place = self.place_label(data, ratio);
        let mut push = |kind: RowKind, label: String, cells: Vec<Cell>| {
            if cells.iter().any(|c| *c != Cell::Empty) {
                rows.push(Row { kind, labels: vec![place.clone(), label], cells });
            }
        };
        let place_word = match self.layout {
            Layout::Table1 => "table1",
            Layout::Table2Shift | Layout::Table2Groups | Layout::Theory => "table2",
        };
        let printed = self.each(|method, metric, digits| {
            let value = self.claims.printed(place_word, &quantity(data, ratio, method, "best", metric));
            value.map_or(Cell::Empty, |value| Cell::Printed { value, digits })
        });
        push(RowKind::Paper, "paper, best γ".into(), printed);
        let mut names: Vec<(String, String)> =
            gammas.iter().map(|g| (g.to_string(), format!("γ = {g}"))).collect();
        if let Some(label) = self.best_label(data, ratio) {
            names.push(("best".into(), label));
        }
        for (gamma, label) in &names {
            // What has no gamma stands in the first row alone.
            let repeated = |method: Method| gamma != &names[0].0 && !method.tempered();
            let ours = self.each(|method, metric, digits| {
                let id = quantity(data, ratio, method, gamma, metric);
                if repeated(method) { Cell::Empty } else { self.measured(&[&id], digits) }
            });
            push(RowKind::Ours, format!("here, {label}"), ours);
            let differences = self.each(|method, metric, digits| {
                let erm = quantity(data, ratio, Method::Erm, "0", metric);
                let id = quantity(data, ratio, method, gamma, metric);
                // Where the best gamma is 0, IT is ERM and there is nothing to compare.
                let chosen = gamma == "best" && self.runs.best_gamma(data, ratio, method) == Some(0.0);
                if id == erm || repeated(method) || (chosen && method.tempered()) {
                    Cell::Empty
                } else {
                    self.measured(&[&id, &erm], digits)
                }
            });
            push(RowKind::Difference, format!("{label}, minus ERM"), differences);
        }
    }

    fn best_label(&self, data: &str, ratio: u64) -> Option<String> {
        let tempered: Vec<Method> = self.methods.iter().copied().filter(|m| m.tempered()).collect();
        let best: Vec<String> = tempered
            .iter()
            .filter_map(|m| Some(self.runs.best_gamma(data, ratio, *m)?.to_string()))
            .collect();
        (best.len() == tempered.len()).then(|| format!("best γ ({})", best.join(", ")))
    }

    fn each(&self, cell: impl Fn(Method, &str, usize) -> Cell) -> Vec<Cell> {
        let one = |m: &Method| self.metrics.iter().map(|(w, _, d)| cell(*m, w, *d)).collect::<Vec<_>>();
        self.methods.iter().flat_map(one).collect()
    }

    /// One quantity's mean, or two quantities' mean difference paired by seed.
    fn measured(&self, ids: &[&str], digits: usize) -> Cell {
        let found: Option<Vec<_>> = ids.iter().map(|id| self.all.get(*id)).collect();
        let summary = match found.as_deref() {
            Some([one]) => Summary::of(&one.values()),
            Some([a, b]) => Summary::of(&stats::paired(&a.seeds, &b.seeds)),
            _ => None,
        };
        summary.map_or(Cell::Empty, |s| Cell::Measured {
            mean: s.mean,
            half_width: s.half_width(),
            n: s.n,
            digits,
            signed: ids.len() > 1,
            quantities: ids.iter().map(|id| id.to_string()).collect(),
        })
    }

    /// Error, loss and steps of each method at the shown gammas.
    fn training(&self, data: &str, ratio: u64, gammas: &[f64], rows: &mut Vec<Row>) {
        for method in self.methods {
            let shown = if method.tempered() {
                let mut all = gammas.to_vec();
                all.extend(self.runs.best_gamma(data, ratio, *method));
                all.sort_by(f64::total_cmp);
                all.dedup();
                all
            } else {
                vec![0.0]
            };
            for gamma in shown {
                let cell = self.runs.cell(data, ratio, *method, gamma);
                let Some(first) = cell.first() else { continue };
                if first.params.method != *method {
                    continue;
                }
                let label = if method.tempered() {
                    format!("{}, γ = {gamma}", method.label())
                } else {
                    method.label().into()
                };
                let mean = |value: &dyn Fn(&Evaluated) -> Option<f64>, digits: usize| {
                    let values: Option<Vec<f64>> = cell.iter().map(|r| value(r)).collect();
                    let summary = values.and_then(|v| Summary::of(&v));
                    summary.map_or(Cell::Empty, |s| Cell::Plain { value: s.mean, digits })
                };
                let cells = vec![
                    mean(&|r| r.data.n_train.map(|n| n as f64), 0),
                    mean(&|r| Some(r.training.steps as f64), 0),
                    mean(&|r| Some(r.training.epochs as f64), 0),
                    mean(&|r| Some(100.0 * r.training.error_raw), 2),
                    mean(&|r| r.training.error_tempered.map(|e| 100.0 * e).filter(|_| method.tempered()), 2),
                    mean(&|r| r.training.loss, 5),
                ];
                rows.push(Row {
                    kind: RowKind::Plain,
                    labels: vec![self.place_label(data, ratio), label],
                    cells,
                });
            }
        }
    }

    fn notes(&self, sources: &[Fidelity]) -> Vec<String> {
        let mut notes = vec![
            "± is half of the 95 % interval of Student's t over n seeds; one seed has none. Differences are paired by \
             seed. The seeds change initialisation and order, not the examples."
                .to_string(),
            "The best γ is the one of the highest worst-class accuracy on a balanced split held out of the training \
             rows, then of the highest average there, then the smallest; γ = 0 (ERM) is among the candidates: every T \
             is 1 there, and a difference from ERM would be one from itself."
                .to_string(),
        ];
        if self.layout == Layout::Table2Shift {
            notes.push(
                "Group DRO was not run on label shift in the paper, and its strong-ℓ2 column prints 0: not run there, \
                 not run here."
                    .to_string(),
            );
        }
        notes.extend(sources.iter().filter_map(Fidelity::remark));
        notes
    }
}

#[cfg(test)]
mod tests;
