//! The graph as a picture: columns by the longest way from a source, curves between them. Knows the drawing alone.

use std::fmt::Write as _;

// In pixels.
const COLUMN_GAP: f64 = 48.0;
const ROW: f64 = 36.0;
const BOX: f64 = 24.0;
const LETTER: f64 = 7.3;
const MARGIN: f64 = 12.0;

/// `labels`, each after what it needs, and the edges between them.
pub fn draw(labels: &[String], edges: &[(usize, usize)]) -> String {
    let mut column = vec![0usize; labels.len()];
    for i in 0..labels.len() {
        let before = edges.iter().filter(|(_, to)| *to == i).map(|(from, _)| column[*from] + 1);
        column[i] = before.max().unwrap_or(0);
    }
    let columns = column.iter().max().map_or(0, |last| last + 1);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); columns];
    (0..labels.len()).for_each(|i| rows[column[i]].push(i));
    // Each box near the mean of what it reads: few curves cross.
    let mut y = vec![0.0f64; labels.len()];
    for members in &mut rows {
        let mean = |i: usize| {
            let from: Vec<f64> = edges.iter().filter(|(_, to)| *to == i).map(|(from, _)| y[*from]).collect();
            if from.is_empty() { i as f64 } else { from.iter().sum::<f64>() / from.len() as f64 }
        };
        let means: Vec<f64> = members.iter().map(|&i| mean(i)).collect();
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|&a, &b| means[a].total_cmp(&means[b]));
        *members = order.iter().map(|&at| members[at]).collect();
        members.iter().enumerate().for_each(|(row, &i)| y[i] = MARGIN + row as f64 * ROW);
    }
    let width = |i: usize| labels[i].chars().count() as f64 * LETTER + 16.0;
    let mut x = Vec::with_capacity(columns);
    let mut right = MARGIN;
    for members in &rows {
        x.push(right);
        right += members.iter().map(|&i| width(i)).fold(0.0, f64::max) + COLUMN_GAP;
    }
    let (w, h) = (
        (right - COLUMN_GAP + MARGIN).max(2.0 * MARGIN),
        MARGIN * 2.0 + rows.iter().map(Vec::len).max().unwrap_or(0) as f64 * ROW - (ROW - BOX),
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
         font-family=\"ui-monospace, monospace\" font-size=\"12\">\n<style>text {{ fill: #111 }} rect {{ fill: #f4f4f5; \
         stroke: #71717a }} path {{ fill: none; stroke: #a1a1aa }} @media (prefers-color-scheme: dark) {{ text {{ fill: \
         #eee }} rect {{ fill: #27272a }} }}</style>\n"
    );
    for &(from, to) in edges {
        let (x0, y0) = (x[column[from]] + width(from), y[from] + BOX / 2.0);
        let (x1, y1) = (x[column[to]], y[to] + BOX / 2.0);
        let middle = x1 - COLUMN_GAP / 2.0;
        let _ = writeln!(
            out,
            "<path d=\"M{x0:.0} {y0:.0}C{middle:.0} {y0:.0} {middle:.0} {y1:.0} {x1:.0} {y1:.0}\"/>"
        );
    }
    for (i, label) in labels.iter().enumerate() {
        let (left, top) = (x[column[i]], y[i]);
        let label = label.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            out,
            "<rect x=\"{left:.0}\" y=\"{top:.0}\" width=\"{:.0}\" height=\"{BOX}\" rx=\"4\"/><text x=\"{:.0}\" \
             y=\"{:.0}\">{label}</text>",
            width(i),
            left + 8.0,
            top + 16.0
        );
    }
    out + "</svg>\n"
}
