//! Table 2's rows of groups that are not classes: worst-group accuracy by data set, network and weight decay, and how far
//! each training went. Knows this layout.

use super::{Fidelity, Layout, Table, VERSION, dataset_label};
use crate::claims::{Claims, Measurements};
use crate::grid::{Cell, Column, Grid, Row, RowKind};
use crate::groups::{self, GroupRun, cell};
use crate::runs::Method;
use crate::stats::{self, Summary};

/// The columns, in the paper's order.
const METHODS: [Method; 4] = [Method::Erm, Method::IwResampled, Method::GroupDro, Method::ItGroup];
/// The values of the axis `decay`, and what they are called.
const DECAYS: [(&str, &str); 2] = [("standard", "no strong ℓ2"), ("strong", "strong ℓ2")];
/// Data sets and networks in the paper's order, then any other.
const PLACES: [(&str, &str, &str); 5] = [
    ("celeba", "resnet50", "ResNet-50"),
    ("waterbirds", "resnet50", "ResNet-50"),
    ("multinli", "bert-base", "BERT base"),
    ("celeba", "wide-resnet50", "wide ResNet-50-2"),
    ("multinli", "bert-large", "BERT large"),
];

fn quantity(place: (&str, &str), decay: &str, method: Method, what: &str) -> String {
    format!("{}/{}/{decay}/{}/{what}", place.0, place.1, method.word())
}

/// The table of all runs; their axes are data, model, decay, method, seed.
pub fn build(claims: &Claims, runs: &[GroupRun]) -> Table {
    let mut places: Vec<(String, String)> =
        runs.iter().map(|r| (r.axis("data").to_string(), r.axis("model").to_string())).collect();
    let rank = |p: &(String, String)| PLACES.iter().position(|q| (q.0, q.1) == (&p.0, &p.1)).unwrap_or(9);
    places.sort_by_key(|p| (rank(p), p.clone()));
    places.dedup();
    let mut all = Measurements::new();
    let (mut rows, mut state) = (vec![], vec![]);
    for place in &places {
        let place = (place.0.as_str(), place.1.as_str());
        let network = PLACES.iter().find(|p| (p.0, p.1) == place).map_or(place.1, |p| p.2);
        let label = format!("{}, {network}", dataset_label(place.0));
        for (decay, _) in DECAYS {
            for method in METHODS {
                let cell = cell(runs, &[("data", place.0), ("model", place.1), ("decay", decay)], method);
                let mut add = |what: &str, value: fn(&GroupRun) -> f64| {
                    groups::measure(&mut all, &quantity(place, decay, method, what), "%", &cell, value);
                };
                add("worst", |r| 100.0 * r.worst);
                add("average", |r| 100.0 * r.average);
                state.extend(training(&label, decay, method, &cell));
            }
        }
        let mut push = |kind: RowKind, name: &str, one: &dyn Fn(Method, &str) -> Cell| {
            let cells = METHODS.iter().flat_map(|m| DECAYS.map(|(decay, _)| one(*m, decay)));
            let cells: Vec<Cell> = cells.collect();
            if cells.iter().any(|c| *c != Cell::Empty) {
                rows.push(Row { kind, labels: vec![label.clone(), name.to_string()], cells });
            }
        };
        push(RowKind::Paper, "paper", &|method, decay| {
            let value = claims.printed("table2", &quantity(place, decay, method, "worst"));
            value.map_or(Cell::Empty, |value| Cell::Printed { value, digits: 1 })
        });
        push(RowKind::Ours, "here", &|m, decay| measured(&all, &[quantity(place, decay, m, "worst")]));
        push(RowKind::Difference, "minus ERM", &|method, decay| match method {
            Method::Erm => Cell::Empty,
            _ => measured(&all, &[method, Method::Erm].map(|m| quantity(place, decay, m, "worst"))),
        });
        push(RowKind::Plain, "here, average", &|m, decay| {
            measured(&all, &[quantity(place, decay, m, "average")])
        });
    }
    let columns = METHODS.iter().flat_map(|m| {
        let label = if *m == Method::IwResampled { "IW" } else { m.label() };
        DECAYS.map(|(_, decay)| Column { group: label.to_string(), label: decay.to_string() })
    });
    let sources = groups::sources(runs);
    let mut notes = vec![
        "± is half of the 95 % interval of Student's t over n seeds; one seed has none. Differences are paired by seed. \
         The average weighs groups by their training examples."
            .to_string(),
        "The weights are those of the epoch with the best worst-group accuracy on the validation split, for every method; \
         the paper does not say which epoch it reports. Its baselines are copied from papers with other protocols."
            .to_string(),
        "IW draws examples of each group equally often, as group DRO's code does.".to_string(),
    ];
    notes.extend(sources.iter().filter_map(Fidelity::remark));
    let names: Vec<String> =
        groups::values(runs, "data").iter().map(|d| dataset_label(d).to_string()).collect();
    Table {
        version: VERSION,
        layout: Layout::Table2Groups,
        id: "table2-groups".to_string(),
        title: format!("Table 2, group rows: {}", names.join(", ")),
        in_paper: rows.iter().any(|r| r.kind == RowKind::Paper),
        notes,
        grids: vec![
            Grid {
                caption: "Worst-group accuracy in % on the test set".to_string(),
                stub: vec!["data, network".into(), "row".into()],
                columns: columns.collect(),
                rows,
            },
            Grid {
                caption: "How far the trainings went: means over seeds".to_string(),
                stub: vec!["data, network".into(), "method".into()],
                columns: ["steps", "epochs", "epoch shown", "error, raw logits, %", "error, tempered, %"]
                    .map(|label| Column { group: String::new(), label: label.to_string() })
                    .to_vec(),
                rows: state,
            },
        ],
        measurements: all,
        sources,
    }
}

/// One quantity's mean, or the mean of two quantities' differences paired by seed.
fn measured(all: &Measurements, ids: &[String]) -> Cell {
    let found: Option<Vec<_>> = ids.iter().map(|id| all.get(id)).collect();
    let summary = match found.as_deref() {
        Some([one]) => Summary::of(&one.values()),
        Some([a, b]) => Summary::of(&stats::paired(&a.seeds, &b.seeds)),
        _ => None,
    };
    summary.map_or(Cell::Empty, |s| Cell::Measured {
        mean: s.mean,
        half_width: s.half_width(),
        n: s.n,
        digits: 1,
        signed: ids.len() > 1,
        quantities: ids.to_vec(),
    })
}

fn training(place: &str, decay: &str, method: Method, cell: &[&GroupRun]) -> Option<Row> {
    let mean = |value: &dyn Fn(&GroupRun) -> Option<f64>, digits: usize| {
        let values: Option<Vec<f64>> = cell.iter().map(|r| value(r)).collect();
        let summary = values.and_then(|v| Summary::of(&v));
        summary.map_or(Cell::Empty, |s| Cell::Plain { value: s.mean, digits })
    };
    let name = DECAYS.iter().find(|(word, _)| *word == decay).map_or(decay, |(_, name)| name);
    (!cell.is_empty()).then(|| Row {
        kind: RowKind::Plain,
        labels: vec![place.to_string(), format!("{}, {name}", method.label())],
        cells: vec![
            mean(&|r| Some(r.training.steps as f64), 0),
            mean(&|r| Some(r.training.epochs as f64), 0),
            mean(&|r| Some(r.training.selected_epoch as f64), 1),
            mean(&|r| Some(100.0 * r.training.error_raw), 2),
            mean(&|r| r.training.error_tempered.map(|e| 100.0 * e), 2),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::tests::run;

    #[test]
    fn cells_stand_beside_the_papers() {
        let claims: Claims = serde_json::from_value(serde_json::json!({
            "version": 1, "paper": "p", "margins": {"worst-group": {"size": 4, "reason": "r"}}, "claims": [
                {"kind": "number", "id": "table2.celeba", "where": "w", "quantity": "celeba/resnet50/strong/it-group/worst",
                 "value": 90.1, "unit": "%", "spread": "unknown", "margin": "worst-group"}]}))
        .unwrap();
        let at = |decay| [("data", "celeba"), ("model", "resnet50"), ("decay", decay)];
        let mut runs = vec![];
        for seed in 0..2 {
            runs.push(run(&at("strong"), Method::Erm, seed, 0.5));
            runs.push(run(&at("strong"), Method::ItGroup, seed, 0.75));
        }
        let table = build(&claims, &runs);
        let row = |name: &str| table.grids[0].rows.iter().find(|r| r.labels[1] == name).unwrap();
        assert_eq!(row("paper").cells[7], Cell::Printed { value: 90.1, digits: 1 });
        let shown = |name: &str, at: usize| match &row(name).cells[at] {
            Cell::Measured { mean, n, .. } => Some((*mean, *n)),
            _ => None,
        };
        assert_eq!(
            (shown("here", 1), shown("here", 7), shown("here", 0)),
            (Some((50.0, 2)), Some((75.0, 2)), None)
        );
        assert_eq!((shown("minus ERM", 1), shown("minus ERM", 7)), (None, Some((25.0, 2))));
        assert_eq!(table.grids[1].rows.len(), 2);
        assert!(table.in_paper);
    }
}
