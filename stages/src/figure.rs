//! The figure stage: runs → figures 2 and 3 as SVG, CSV and a fragment of the report. Knows what the figures show; how a
//! chart is drawn stands in `plot.rs`, what a run is in `runs.rs`.

use anyhow::Result;
use maud::{PreEscaped, html};
use serde::{Deserialize, Serialize};

use crate::claims::{Measured, Measurements};
use crate::grid::escape_csv;
use crate::job::{self, Job, bad};
use crate::plot::{self, Axis, Colour, Look, Mark, Panel, Point, Reference, Series};
use crate::runs::{self, AllAngles, Angles, Evaluated, Method, Runs, Shaped, measure, quantity};
use crate::stats::Summary;
use crate::table::{Fidelity, dataset_label, sources};
use crate::theory;

mod groups;

/// The version of `figure.json`.
pub const VERSION: u32 = 1;

/// Which figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Accuracy against gamma.
    Figure2,
    /// Angles against the imbalance ratio.
    Figure3,
    /// Errors against the width of a network, groups that are not classes.
    Figure4b,
    /// The chosen epoch against that width.
    Figure5,
    /// A figure of the theory's report, drawn by `synthetic/show`.
    Theory,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    layout: Layout,
    /// Figure 2: the ratio to show.
    #[serde(default)]
    ratio: Option<u64>,
    /// Figure 3: the gamma to show.
    #[serde(default)]
    gamma: Option<f64>,
    /// Figure 3: the number of classes, half of them majority classes.
    #[serde(default)]
    classes: Option<u32>,
    /// Figures 4b and 5: the axes of the stages that are shown.
    #[serde(default)]
    axes: Vec<String>,
}

/// A figure: what `figure.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    pub version: u32,
    pub layout: Layout,
    /// A word for anchors, unique among the figures of a report.
    pub id: String,
    pub title: String,
    pub caption: String,
    /// The quantities shown and judged.
    pub measurements: Measurements,
    pub sources: Vec<Fidelity>,
}

/// A figure with its charts.
pub struct Drawing {
    pub figure: Figure,
    pub panels: Vec<Panel>,
    pub columns: usize,
}

/// Runs the stage. Inputs: `metrics` (evaluate stages), for figure 3 also `geometry`. Output: `figure.{svg,html,csv,json}`.
pub fn run(job: Job) -> Result<()> {
    let params: Params = job.params()?;
    let inputs = job.inputs("metrics")?;
    let metrics = || runs::evaluated(&inputs);
    let drawing = match params.layout {
        Layout::Figure4b | Layout::Figure5 => {
            groups::draw(params.layout, &crate::groups::read(&inputs, &params.axes)?)?
        }
        Layout::Figure2 => {
            figure2(&metrics()?, params.ratio.ok_or_else(|| bad("params: ratio: missing for figure2"))?)?
        }
        Layout::Figure3 => {
            let gamma = params.gamma.ok_or_else(|| bad("params: gamma: missing for figure3"))?;
            let classes = params.classes.filter(|k| *k >= 4 && k % 2 == 0);
            let classes =
                classes.ok_or_else(|| bad("params: classes: an even number of at least 4 is expected"))?;
            figure3(&metrics()?, &runs::shaped(&job.inputs("geometry")?)?, gamma, classes)?
        }
        Layout::Theory => return Err(bad("params: layout: theory is drawn by synthetic/show")),
    };
    write_drawing(&job, &drawing)
}

/// Writes `figure.{svg,html,csv,json}`.
pub fn write_drawing(job: &Job, drawing: &Drawing) -> Result<()> {
    let looks = looks(&drawing.panels);
    let out = |name: &str| job.out().join(name);
    let svg = plot::figure(&drawing.panels, &looks, drawing.columns, &drawing.figure.title)?;
    job::write(&out("figure.svg"), svg.as_bytes())?;
    job::write(&out("figure.html"), fragment(drawing, &looks)?.as_bytes())?;
    job::write(&out("figure.csv"), csv(drawing).as_bytes())?;
    job::write_json(&out("figure.json"), &drawing.figure)
}

/// How each method looks in every figure.
fn look(method: Method) -> Look {
    let (colour, mark) = match method {
        Method::Erm => (Colour(0x7d, 0x83, 0x8c), Mark::Circle),
        Method::Iw | Method::IwResampled | Method::GroupDro => (Colour(0xb8, 0x79, 0x0f), Mark::Diamond),
        Method::ItFeatures => (Colour(0x2f, 0x80, 0xd2), Mark::Square),
        Method::ItClassifier | Method::ItGroup => (Colour(0xc9, 0x4c, 0x8c), Mark::Triangle),
    };
    Look { label: method.label().to_string(), colour, mark }
}

/// The looks in use, each once.
fn looks(panels: &[Panel]) -> Vec<Look> {
    let mut all: Vec<Look> = vec![];
    for look in panels.iter().flat_map(|p| p.series.iter().map(|s| &s.look)) {
        if !all.contains(look) {
            all.push(look.clone());
        }
    }
    all
}

fn point(x: f64, measured: &Measured) -> Option<Point> {
    let s = Summary::of(&measured.values())?;
    Some(Point { x, mean: s.mean, half_width: s.half_width(), seeds: measured.seeds.clone() })
}

/// Average and worst-class accuracy against gamma at one ratio; gamma 0 is ERM, IW a line.
fn figure2(runs: &Runs<Evaluated>, ratio: u64) -> Result<Drawing> {
    let datasets = runs.datasets();
    let [data] = datasets.as_slice() else {
        return Err(bad(format!(
            "inputs.metrics: figure2 shows one data set, not {}",
            datasets.join(" and ")
        )));
    };
    let mut measurements = runs::accuracies(runs);
    let tempered = [Method::ItFeatures, Method::ItClassifier];
    let gammas = |method: Method| {
        let mut all = runs.gammas(data, ratio, method);
        if all.first().is_some_and(|g| *g != 0.0) && !runs.cell(data, ratio, Method::Erm, 0.0).is_empty() {
            all.insert(0, 0.0);
        }
        all
    };
    let mut panels = vec![];
    for (metric, title) in [("average", "Average accuracy"), ("worst", "Worst-class accuracy")] {
        let id = |method: Method, gamma: f64| quantity(data, ratio, method, &gamma.to_string(), metric);
        let series = |method: &Method| Series {
            look: look(*method),
            points: gammas(*method)
                .iter()
                .filter_map(|g| point(*g, measurements.get(&id(*method, *g))?))
                .collect(),
        };
        let series: Vec<Series> = tempered.iter().map(series).filter(|s| !s.points.is_empty()).collect();
        let line = |method: Method| {
            let mean = Summary::of(&measurements.get(&id(method, 0.0))?.values())?.mean;
            let colour = Some(look(method).colour);
            Some(Reference { label: method.label().into(), colour, points: vec![(0.0, mean), (1.0, mean)] })
        };
        panels.push(Panel {
            title: title.to_string(),
            x: Axis {
                label: "γ, the exponent of T = (n_max / n_k)^γ".to_string(),
                ticks: (0..=5).map(|i| f64::from(i) / 5.0).map(|g| (g, g.to_string())).collect(),
                log: false,
            },
            unit: "%".to_string(),
            bounds: (0.0, 100.0),
            bands: false,
            series,
            references: [line(Method::Erm), line(Method::Iw)].into_iter().flatten().collect(),
        });
        for method in tempered {
            peak_by_seed(&mut measurements, data, ratio, method, metric, &gammas(method));
        }
    }
    if panels.iter().all(|p| p.series.is_empty()) {
        return Err(bad(format!("inputs.metrics: no tempered run at ratio {ratio}")));
    }
    let name = dataset_label(data);
    let figure = Figure {
        version: VERSION,
        layout: Layout::Figure2,
        id: format!("figure2-{data}"),
        title: format!("Figure 2: accuracy against γ, {name} at 1:{ratio}"),
        caption: "Filled marks are means over seeds, hollow circles single seeds, bars 95 % intervals where there are at \
                  least two seeds. γ = 0 is ERM (every T is 1); dashed lines are ERM and IW, which have no γ. The paper \
                  finds the best of both at about 0.5 and does not say which placement of T it shows."
            .to_string(),
        measurements,
        sources: sources(runs.all()),
    };
    Ok(Drawing { figure, panels, columns: 2 })
}

/// Adds each seed's best gamma on the test set, as read off the curve: the first highest. Only seeds that have every gamma
/// and whose curve is not flat.
fn peak_by_seed(
    all: &mut Measurements,
    data: &str,
    ratio: u64,
    method: Method,
    metric: &str,
    gammas: &[f64],
) {
    if gammas.len() < 3 {
        return;
    }
    let curves: Vec<Measured> = gammas
        .iter()
        .filter_map(|g| all.get(&quantity(data, ratio, method, &g.to_string(), metric)).cloned())
        .collect();
    let Some(first) = curves.first() else { return };
    let best = |seed: u64| {
        let of = |m: &Measured| m.seeds.iter().find(|(s, _)| *s == seed).map(|(_, v)| *v);
        let values: Vec<f64> = curves.iter().map(of).collect::<Option<_>>()?;
        let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let flat = values.iter().all(|v| *v == top);
        values.iter().position(|v| *v == top && !flat).map(|i| (seed, gammas[i]))
    };
    let seeds: Vec<(u64, f64)> = first.seeds.iter().filter_map(|(seed, _)| best(*seed)).collect();
    if curves.len() == gammas.len() && !seeds.is_empty() {
        let stages = curves.iter().flat_map(|c| c.stages.iter().cloned()).collect();
        let id = format!("{data}/{ratio}/{}/peak-gamma/{metric}", method.word());
        all.insert(id, Measured { unit: String::new(), seeds, stages });
    }
}

/// What figure 3 may have measured: word in quantities, title, where it stands.
const VECTORS: [(&str, &str, fn(&AllAngles) -> Angles); 3] = [
    ("classifier", "classifier rows", |a| a.classifier),
    ("means-centred", "class means, centred", |a| a.means_centred),
    ("means-uncentred", "class means, uncentred", |a| a.means_uncentred),
];

/// Average angles among majority and among minority classes against the ratio, beside the theory.
fn figure3(metrics: &Runs<Evaluated>, runs: &Runs<Shaped>, gamma: f64, classes: u32) -> Result<Drawing> {
    let datasets = runs.datasets();
    let [data] = datasets.as_slice() else {
        return Err(bad(format!(
            "inputs.geometry: figure3 shows one data set, not {}",
            datasets.join(" and ")
        )));
    };
    let ratios = runs.ratios(data);
    let methods = [Method::Erm, Method::ItFeatures, Method::ItClassifier];
    let at = gamma.to_string();
    let mut measurements = Measurements::new();
    let mut panels = vec![];
    for (word, title, vectors) in VECTORS {
        for (half, of) in [
            ("majority", (|a: Angles| a.majority) as fn(Angles) -> Option<f64>),
            ("minority", |a: Angles| a.minority),
        ] {
            let what = format!("{word}/{half}-angle");
            let angle = |r: &Shaped| of(vectors(&r.angles));
            let mut series = vec![];
            for method in methods {
                let mut points = vec![];
                for ratio in &ratios {
                    let id = quantity(data, *ratio, method, &at, &what);
                    measure(&mut measurements, &id, "deg", &runs.cell(data, *ratio, method, gamma), angle);
                    points.extend(measurements.get(&id).and_then(|m| point(*ratio as f64, m)));
                    if let Some(best) = metrics.best_gamma(data, *ratio, method).filter(|_| method.tempered())
                    {
                        let id = quantity(data, *ratio, method, "best", &what);
                        measure(&mut measurements, &id, "deg", &runs.cell(data, *ratio, method, best), angle);
                    }
                }
                if !points.is_empty() {
                    series.push(Series { look: look(method), points });
                }
            }
            panels.push(Panel {
                title: format!("{}: {title}", if half == "majority" { "Majority" } else { "Minority" }),
                x: Axis {
                    label: "imbalance ratio R = n_max / n_min".to_string(),
                    ticks: ratios.iter().map(|r| (*r as f64, r.to_string())).collect(),
                    log: true,
                },
                unit: "°".to_string(),
                bounds: (0.0, 180.0),
                bands: false,
                series,
                references: lines(&ratios, classes, half == "majority", word == "classifier"),
            });
        }
    }
    let figure = Figure {
        version: VERSION,
        layout: Layout::Figure3,
        id: "figure3".to_string(),
        title: format!("Figure 3: angles among classes against the imbalance ratio, {}", dataset_label(data)),
        caption: format!(
            "Average pairwise angle among the majority and among the minority classes at γ = {gamma}. Dashed in ink: the \
             paper's lines arccos(−1/(K−1)) = {:.2}° and arccos(−1/(K/2−1)) = {:.2}° for K = {classes}, with the minus \
             signs that its text lost. Dashed in colour, for classifier rows: the closed forms of theorem 3's problems at \
             every R. The paper does not say which vectors it shows; all three are here.",
            theory::degrees(theory::simplex(classes)),
            theory::degrees(theory::simplex(classes / 2)),
        ),
        measurements,
        sources: sources(runs.all()),
    };
    Ok(Drawing { figure, panels, columns: 2 })
}

/// The paper's two lines, and for classifier rows the closed form of IT(W) between the smallest and the largest ratio.
fn lines(ratios: &[u64], classes: u32, majority: bool, closed: bool) -> Vec<Reference> {
    let (Some(first), Some(last)) = (ratios.first(), ratios.last()) else { return vec![] };
    let (first, last) = (*first as f64, *last as f64);
    let flat = |label: &str, cosine: f64| {
        let angle = theory::degrees(cosine);
        Reference { label: label.to_string(), colour: None, points: vec![(first, angle), (last, angle)] }
    };
    let mut all =
        vec![flat("−1/(K−1)", theory::simplex(classes)), flat("−1/(K/2−1)", theory::simplex(classes / 2))];
    if closed && last > first {
        const PIECES: i32 = 48;
        let at = |i: i32| first * libm::pow(last / first, f64::from(i) / f64::from(PIECES));
        let cosine = |r: f64| theory::it_classifier(classes, r);
        let angle = |r: f64| theory::degrees(if majority { cosine(r).majority } else { cosine(r).minority });
        all.push(Reference {
            label: String::new(),
            colour: Some(look(Method::ItClassifier).colour),
            points: (0..=PIECES).map(|i| (at(i), angle(at(i)))).collect(),
        });
    }
    all
}

/// Legend and panels, for the report.
fn fragment(drawing: &Drawing, looks: &[Look]) -> Result<String> {
    let title = &drawing.figure.title;
    let panels: Vec<String> = drawing
        .panels
        .iter()
        .map(|p| plot::panel(p, &format!("{title}: {}", p.title)))
        .collect::<Result<_>>()?;
    let markup = html! {
        ul.legend {
            @for look in looks { li { span.mark style=(format!("color:{}", look.colour.css())) { (glyph(look.mark)) } " " (look.label) } }
        }
        div.panels { @for panel in &panels { (PreEscaped(panel)) } }
    };
    Ok(markup.into_string())
}

fn glyph(mark: Mark) -> &'static str {
    match mark {
        Mark::Circle => "●",
        Mark::Square => "■",
        Mark::Diamond => "◆",
        Mark::Triangle => "▲",
    }
}

/// Every value shown: means with their intervals, single seeds, lines.
fn csv(drawing: &Drawing) -> String {
    let mut text = "figure,panel,series,x,kind,seed,value,half_width\n".to_string();
    let mut line = |fields: [&str; 8]| {
        text += &fields.map(escape_csv).join(",");
        text.push('\n');
    };
    let id = drawing.figure.id.as_str();
    for panel in &drawing.panels {
        for series in &panel.series {
            for p in &series.points {
                let (x, half) = (p.x.to_string(), p.half_width.map(|h| h.to_string()).unwrap_or_default());
                let name = &series.look.label;
                line([id, &panel.title, name, &x, "mean", "", &p.mean.to_string(), &half]);
                for (seed, value) in &p.seeds {
                    line([id, &panel.title, name, &x, "seed", &seed.to_string(), &value.to_string(), ""]);
                }
            }
        }
        for reference in &panel.references {
            let name = if reference.label.is_empty() { "closed form, IT(W)" } else { &reference.label };
            for (x, y) in &reference.points {
                line([id, &panel.title, name, &x.to_string(), "line", "", &y.to_string(), ""]);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
