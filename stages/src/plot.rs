//! Line charts with intervals as SVG, through plotters' backend: panels of one look, bytes that depend on the data
//! alone, ink that follows the page's colour. Knows no paper and no run.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::grid::decimal;

/// Two units are one CSS pixel at a panel's natural size: coordinates are integers in plotters.
const UNIT: i32 = 2;
/// A panel's size in units.
pub const PANEL: (i32, i32) = (390 * UNIT, 290 * UNIT);
const LEGEND: i32 = 26 * UNIT;
const MARGIN: (i32, i32, i32, i32) = (26 * UNIT, 66 * UNIT, 40 * UNIT, 46 * UNIT); // top, right, bottom, left

/// Stands for the page's ink until [`finish`] puts `currentColor` there.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_TEXT: &str = "#010203";

/// A colour that is readable on white and on black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

/// What marks a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Circle,
    Square,
    Diamond,
    Triangle,
}

/// A series' look and name.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    pub label: String,
    pub colour: Colour,
    pub mark: Mark,
}

/// One value of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub x: f64,
    pub mean: f64,
    /// Half of the interval's width.
    pub half_width: Option<f64>,
    /// Seed and value.
    pub seeds: Vec<(u64, f64)>,
}

/// Measured values, joined by a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub look: Look,
    pub points: Vec<Point>,
}

/// A line that was not measured here, or holds for every x: dashed.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Shown at the right of the frame; empty: no label.
    pub label: String,
    /// `None`: the page's ink.
    pub colour: Option<Colour>,
    pub points: Vec<(f64, f64)>,
}

/// The horizontal axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub label: String,
    /// Values with their text.
    pub ticks: Vec<(f64, String)>,
    /// Spaced by their logarithm.
    pub log: bool,
}

/// One chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    pub x: Axis,
    /// The vertical axis' unit.
    pub unit: String,
    /// Values that no axis may pass, as 0 and 100.
    pub bounds: (f64, f64),
    /// Intervals as filled bands, for curves along a continuous axis; else as bars, series side by side.
    pub bands: bool,
    pub series: Vec<Series>,
    pub references: Vec<Reference>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// All panels in rows of `columns`, under a legend.
pub fn figure(panels: &[Panel], looks: &[Look], columns: usize, description: &str) -> anyhow::Result<String> {
    let columns = columns.max(1);
    let rows = panels.len().div_ceil(columns) as i32;
    let size = (PANEL.0 * columns as i32, PANEL.1 * rows + LEGEND);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32)).into_drawing_area();
        legend(&root, looks).map_err(drawing)?;
        for (i, panel) in panels.iter().enumerate() {
            let (x, y) = ((i % columns) as i32 * PANEL.0, LEGEND + (i / columns) as i32 * PANEL.1);
            let area = root.clone().shrink((x, y), (PANEL.0 as u32, PANEL.1 as u32));
            draw(&area, panel).map_err(drawing)?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(finish(&svg, size, description))
}

/// One panel alone.
pub fn panel(panel: &Panel, description: &str) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (PANEL.0 as u32, PANEL.1 as u32)).into_drawing_area();
        draw(&root, panel).map_err(drawing)?;
        root.present().map_err(drawing)?;
    }
    Ok(finish(&svg, PANEL, description))
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("drawing: {error}")
}

/// Lets the ink follow the page and the size the place where the figure stands.
fn finish(svg: &str, size: (i32, i32), description: &str) -> String {
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    let body = body.replace(INK_TEXT, "currentColor").replace(" opacity=\"1\"", "");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n\
         <style>.plot{{color:#1c2024}}@media screen and (prefers-color-scheme:dark){{.plot{{color:#e4e7ea}}}}</style>{}",
        size.0,
        size.1,
        escape(description),
        body.replace("\n</text>", "</text>")
    )
}

/// Text for XML, in content and in attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Colour {
    fn rgb(self) -> RGBColor {
        RGBColor(self.0, self.1, self.2)
    }

    /// As CSS writes it.
    pub fn css(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

fn words(size: i32, ink: &impl Color, h: HPos, v: VPos) -> TextStyle<'static> {
    // The backend divides a font's size by 1.24.
    let font = ("system-ui, sans-serif", f64::from(size * UNIT) * 1.24).into_font();
    let mut style = TextStyle::from(font).pos(Pos::new(h, v));
    style.color = ink.to_backend_color();
    style
}

/// Where values lie in a panel.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
}

impl Frame {
    fn of(panel: &Panel) -> Self {
        let scale = |x: f64| if panel.x.log { libm::log10(x) } else { x };
        let xs = panel.series.iter().flat_map(|s| s.points.iter().map(|p| p.x));
        let xs = xs.chain(panel.x.ticks.iter().map(|t| t.0)).map(scale);
        let x = extent(xs).unwrap_or((0.0, 1.0));
        let pad = if x.1 > x.0 { 0.04 * (x.1 - x.0) } else { 0.5 };
        let of_point = |p: &Point| {
            let half = p.half_width.unwrap_or(0.0);
            let ends = [p.mean - half, p.mean + half].map(|v| v.clamp(panel.bounds.0, panel.bounds.1));
            ends.into_iter().chain(p.seeds.iter().map(|s| s.1)).collect::<Vec<_>>()
        };
        let ys = panel.series.iter().flat_map(|s| s.points.iter().flat_map(of_point));
        let ys = ys.chain(panel.references.iter().flat_map(|r| r.points.iter().map(|p| p.1)));
        let y = extent(ys).unwrap_or(panel.bounds);
        let grow = (0.06 * (y.1 - y.0)).max(0.5);
        Frame {
            left: f64::from(MARGIN.3),
            right: f64::from(PANEL.0 - MARGIN.1),
            top: f64::from(MARGIN.0),
            bottom: f64::from(PANEL.1 - MARGIN.2),
            x: (x.0 - pad, x.1 + pad),
            y: ((y.0 - grow).max(panel.bounds.0), (y.1 + grow).min(panel.bounds.1)),
            log: panel.x.log,
        }
    }

    fn at(&self, x: f64, y: f64) -> (i32, i32) {
        let x = if self.log { libm::log10(x) } else { x };
        let y = y.clamp(self.y.0, self.y.1);
        let px = self.left + (x - self.x.0) / (self.x.1 - self.x.0) * (self.right - self.left);
        let py = self.bottom - (y - self.y.0) / (self.y.1 - self.y.0) * (self.bottom - self.top);
        (px.round() as i32, py.round() as i32)
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |all, v| match all {
        None => Some((v, v)),
        Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
    })
}

/// Round values within an interval, at most seven, with the decimals that they need.
fn ticks((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let rough = ((high - low) / 6.0).max(1e-9);
    let power = libm::pow(10.0, libm::floor(libm::log10(rough)));
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * power).find(|s| *s >= rough).unwrap_or(power);
    let digits = (-libm::floor(libm::log10(step))).max(0.0) as usize;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).map(|v| (v, decimal(v, digits, false))).collect()
}

fn draw(area: &Area, panel: &Panel) -> Drawn {
    let frame = Frame::of(panel);
    axes(area, panel, &frame)?;
    for reference in &panel.references {
        dashed(area, &frame, reference)?;
    }
    labels(area, panel, &frame)?;
    if panel.bands {
        panel.series.iter().try_for_each(|one| band(area, &frame, one))?;
    }
    for (i, one) in panel.series.iter().enumerate() {
        // Series side by side where their x agree, so that intervals do not hide each other.
        let shift = (2 * i as i32 - (panel.series.len() as i32 - 1)) * 2 * UNIT;
        series(area, &frame, one, if panel.bands { None } else { Some(shift) })?;
    }
    Ok(())
}

/// The intervals of a curve as one area.
fn band(area: &Area, frame: &Frame, series: &Series) -> Drawn {
    if series.points.len() < 2 || series.points.iter().all(|p| p.half_width.is_none()) {
        return Ok(());
    }
    let edge = |sign: f64| {
        let at = move |p: &Point| frame.at(p.x, p.mean + sign * p.half_width.unwrap_or(0.0));
        series.points.iter().map(at)
    };
    let around: Vec<_> = edge(1.0).chain(edge(-1.0).rev()).collect();
    area.draw(&Polygon::new(around, series.look.colour.rgb().mix(0.16)))
}

/// The references' names at the right of the frame, each at its line's height unless the one above needs the room.
fn labels(area: &Area, panel: &Panel, frame: &Frame) -> Drawn {
    let named = panel.references.iter().filter(|r| !r.label.is_empty());
    let mut at: Vec<(i32, &Reference)> =
        named.filter_map(|r| Some((frame.at(1.0, r.points.last()?.1).1, r))).collect();
    at.sort_by_key(|(y, _)| *y);
    let mut free = i32::MIN;
    for (y, reference) in at {
        let y = y.max(free);
        free = y + 13 * UNIT;
        let ink = reference.colour.map_or(INK, Colour::rgb);
        let style = words(11, &ink.mix(0.95), HPos::Left, VPos::Center);
        area.draw(&Text::new(reference.label.clone(), (frame.right as i32 + 4 * UNIT, y), style))?;
    }
    Ok(())
}

fn axes(area: &Area, panel: &Panel, frame: &Frame) -> Drawn {
    let (left, right, bottom) = (frame.left as i32, frame.right as i32, frame.bottom as i32);
    let mut title = words(13, &INK, HPos::Left, VPos::Center);
    title.font = title.font.style(FontStyle::Bold);
    area.draw(&Text::new(panel.title.clone(), (left, 11 * UNIT), title))?;
    for (value, text) in ticks(frame.y) {
        let y = frame.at(1.0, value).1;
        area.draw(&PathElement::new(vec![(left, y), (right, y)], INK.mix(0.13).stroke_width(UNIT as u32)))?;
        let style = words(11, &INK.mix(0.8), HPos::Right, VPos::Center);
        area.draw(&Text::new(format!("{text}{}", panel.unit), (left - 5 * UNIT, y), style))?;
    }
    for (value, text) in &panel.x.ticks {
        let x = frame.at(*value, frame.y.0).0;
        area.draw(&PathElement::new(
            vec![(x, bottom), (x, bottom + 4 * UNIT)],
            INK.mix(0.5).stroke_width(UNIT as u32),
        ))?;
        let style = words(11, &INK.mix(0.8), HPos::Center, VPos::Top);
        area.draw(&Text::new(text.clone(), (x, bottom + 6 * UNIT), style))?;
    }
    area.draw(&PathElement::new(
        vec![(left, bottom), (right, bottom)],
        INK.mix(0.5).stroke_width(UNIT as u32),
    ))?;
    let style = words(12, &INK.mix(0.9), HPos::Center, VPos::Bottom);
    area.draw(&Text::new(panel.x.label.clone(), ((left + right) / 2, PANEL.1 - 4 * UNIT), style))?;
    Ok(())
}

/// A line of dashes: the backend knows none.
fn dashed(area: &Area, frame: &Frame, reference: &Reference) -> Drawn {
    const ON: f64 = 5.0 * UNIT as f64;
    const OFF: f64 = 4.0 * UNIT as f64;
    let style = reference.colour.map_or(INK.mix(0.6), |c| c.rgb().mix(0.9)).stroke_width(UNIT as u32 * 3 / 2);
    let points: Vec<(f64, f64)> = reference
        .points
        .iter()
        .map(|(x, y)| frame.at(*x, *y))
        .map(|(x, y)| (f64::from(x), f64::from(y)))
        .collect();
    let mut walked = 0.0;
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let length = libm::hypot(x1 - x0, y1 - y0);
        let at = |d: f64| {
            let t = d / length;
            ((x0 + t * (x1 - x0)).round() as i32, (y0 + t * (y1 - y0)).round() as i32)
        };
        let mut d = 0.0;
        while d < length {
            let phase = (walked + d) % (ON + OFF);
            let (on, next) = if phase < ON { (true, ON - phase) } else { (false, ON + OFF - phase) };
            let end = (d + next.max(1e-6)).min(length);
            if on {
                area.draw(&PathElement::new(vec![at(d), at(end)], style))?;
            }
            d = end;
        }
        walked += length;
    }
    Ok(())
}

/// A curve with its marks; `shift` moves it along x and gives it bars, `None` leaves it where it is, in a band.
fn series(area: &Area, frame: &Frame, series: &Series, shift: Option<i32>) -> Drawn {
    let colour = series.look.colour.rgb();
    let at = |x: f64, y: f64| {
        let (px, py) = frame.at(x, y);
        (px + shift.unwrap_or(0), py)
    };
    let line: Vec<_> = series.points.iter().map(|p| at(p.x, p.mean)).collect();
    area.draw(&PathElement::new(line, colour.mix(0.85).stroke_width(2 * UNIT as u32)))?;
    for point in &series.points {
        if let (Some(half), Some(_)) = (point.half_width, shift) {
            let (low, high) = (at(point.x, point.mean - half), at(point.x, point.mean + half));
            area.draw(&PathElement::new(
                vec![low, high],
                colour.mix(0.55).stroke_width(3 * UNIT as u32 / 2),
            ))?;
        }
        for (_, value) in point.seeds.iter().filter(|_| point.seeds.len() > 1) {
            area.draw(&Circle::new(
                at(point.x, *value),
                3 * UNIT / 2,
                colour.mix(0.7).stroke_width(UNIT as u32),
            ))?;
        }
        mark(area, at(point.x, point.mean), &series.look)?;
    }
    Ok(())
}

fn mark(area: &Area, (x, y): (i32, i32), look: &Look) -> Drawn {
    let style = look.colour.rgb().filled();
    let r = 4 * UNIT;
    match look.mark {
        Mark::Circle => area.draw(&Circle::new((x, y), r, style)),
        Mark::Square => {
            area.draw(&Rectangle::new([(x - r + UNIT, y - r + UNIT), (x + r - UNIT, y + r - UNIT)], style))
        }
        Mark::Diamond => area
            .draw(&Polygon::new(vec![(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)], style)),
        Mark::Triangle => {
            area.draw(&Polygon::new(vec![(x, y - r), (x + r, y + r - UNIT), (x - r, y + r - UNIT)], style))
        }
    }
}

fn legend(area: &Area, looks: &[Look]) -> Drawn {
    let mut x = MARGIN.3;
    for look in looks {
        mark(area, (x, LEGEND / 2), look)?;
        let style = words(12, &INK, HPos::Left, VPos::Center);
        area.draw(&Text::new(look.label.clone(), (x + 9 * UNIT, LEGEND / 2), style))?;
        // About 0.55 em a letter; there are no font metrics here.
        x += (28 + 7 * look.label.chars().count() as i32) * UNIT;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
