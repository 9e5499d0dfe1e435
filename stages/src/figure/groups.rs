//! Figures 4(b) and 5: CelebA with a ResNet-10 of growing width. Knows these two figures.

use anyhow::Result;

use super::{Drawing, Figure, Layout, VERSION, look, point};
use crate::claims::Measurements;
use crate::groups::{self, GroupRun, cell};
use crate::job::bad;
use crate::plot::{Axis, Panel, Series};
use crate::runs::Method;
use crate::table::dataset_label;

const METHODS: [Method; 3] = [Method::Erm, Method::IwResampled, Method::ItGroup];

fn quantity(data: &str, width: &str, method: Method, what: &str) -> String {
    format!("{data}/resnet10-{width}/{}/{what}", method.word())
}

/// Average and worst-group test error against the width (figure 4b), or the epoch that was chosen (figure 5). The runs'
/// axes are data, width, method, seed.
pub fn draw(layout: Layout, runs: &[GroupRun]) -> Result<Drawing> {
    let datasets = groups::values(runs, "data");
    let [data] = datasets.as_slice() else {
        return Err(bad(format!("inputs.metrics: one data set is expected, not {}", datasets.join(" and "))));
    };
    let widths = groups::values(runs, "width");
    let numbers: Option<Vec<f64>> = widths.iter().map(|w| w.parse().ok()).collect();
    let numbers = numbers.ok_or_else(|| bad("inputs.metrics: a width is not a number"))?;
    let mut measurements = Measurements::new();
    type Value = fn(&GroupRun) -> f64;
    let whats: &[(&str, &str, &str, Value)] = match layout {
        Layout::Figure5 => &[("best-epoch", "Best epoch by worst-group validation accuracy", "", |r| {
            r.training.selected_epoch as f64
        })],
        _ => &[
            ("average-error", "Average test error", "%", |r| 100.0 * (1.0 - r.average)),
            ("worst-error", "Worst-group test error", "%", |r| 100.0 * (1.0 - r.worst)),
            ("worst", "Worst-group test accuracy", "%", |r| 100.0 * r.worst),
        ],
    };
    let epochs = runs.iter().map(|r| r.training.epochs).max().unwrap_or(1) as f64;
    let mut panels = vec![];
    for (what, title, unit, value) in whats {
        let mut series = vec![];
        for method in METHODS {
            let mut points = vec![];
            for (width, x) in widths.iter().zip(&numbers) {
                let id = quantity(data, width, method, what);
                let cell = cell(runs, &[("data", data), ("width", width)], method);
                groups::measure(&mut measurements, &id, unit, &cell, value);
                points.extend(measurements.get(&id).and_then(|m| point(*x, m)));
            }
            if !points.is_empty() {
                series.push(Series { look: look(method), points });
            }
        }
        // The accuracies are measured for the claims; the errors are what the figure shows.
        if *what != "worst" {
            panels.push(Panel {
                title: title.to_string(),
                x: Axis {
                    label: "width of the ResNet-10 (channels of the stem)".to_string(),
                    ticks: numbers.iter().zip(&widths).map(|(x, w)| (*x, w.clone())).collect(),
                    log: false,
                },
                unit: unit.to_string(),
                bounds: if layout == Layout::Figure5 { (0.0, epochs) } else { (0.0, 100.0) },
                bands: false,
                series,
                references: vec![],
            });
        }
    }
    let name = dataset_label(data);
    let (id, title, caption) = match layout {
        Layout::Figure5 => (
            "figure5",
            format!("Figure 5: the best epoch by width, {name}"),
            "The epoch with the highest worst-group accuracy on the validation split. The paper: ERM and IW stop early, IT \
             trains long.",
        ),
        _ => (
            "figure4b",
            format!("Figure 4(b): test error against width, {name}"),
            "Errors of the epoch with the highest worst-group accuracy on the validation split; the average weighs groups by \
             their training examples. The paper's \"errors\" of 85.0 (IW, width 20) and 86.7 (IT, width 100) are accuracies.",
        ),
    };
    let figure = Figure {
        version: VERSION,
        layout,
        id: id.to_string(),
        title,
        caption: caption.to_string(),
        measurements,
        sources: groups::sources(runs),
    };
    Ok(Drawing { figure, panels, columns: 2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::tests::run;

    #[test]
    fn errors_and_epochs_by_width() {
        let mut runs = vec![];
        for (width, worst) in [("10", 0.5), ("100", 0.75)] {
            for seed in 0..2 {
                runs.push(run(&[("data", "celeba"), ("width", width)], Method::ItGroup, seed, worst));
            }
        }
        let drawing = draw(Layout::Figure4b, &runs).unwrap();
        assert_eq!(drawing.panels.len(), 2);
        let points = &drawing.panels[1].series[0].points;
        assert_eq!(points.iter().map(|p| (p.x, p.mean)).collect::<Vec<_>>(), [(10.0, 50.0), (100.0, 25.0)]);
        assert_eq!(drawing.figure.measurements["celeba/resnet10-100/it-group/worst"].values(), [75.0, 75.0]);
        let drawing = draw(Layout::Figure5, &runs).unwrap();
        assert_eq!(drawing.panels[0].series[0].points[0].mean, 1.5);
    }
}
