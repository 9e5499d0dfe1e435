//! sheet: a page of small pictures, a row of examples for each group, to see at a glance whether labels and pixels belong
//! together. Knows pixels; shows nothing of a set whose licence forbids it.

use anyhow::{Context, Result};
use image::{ImageFormat, RgbImage};
use serde::Deserialize;

use crate::data::{Examples, Meta, SETS};
use crate::job::{Job, bad, write, write_json};

/// The params of sheet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Examples of each group, the first ones of the arrays.
    #[serde(default = "ten")]
    columns: usize,
}

fn ten() -> usize {
    10
}

/// Pixels between two pictures.
const GAP: u32 = 2;

/// The largest side of a picture; larger ones are shown smaller, by a whole factor.
const SIDE: usize = 112;

/// Reads input `data`; writes `sheet.png` and `sheet.json`, which names the rows from the top.
///
/// Errors: `BadInput` for texts, and for a set of which no picture may be shown.
pub fn run(job: Job) -> Result<()> {
    let Params { columns } = job.params()?;
    let examples = Examples::open(&job.input("data")?)?;
    let meta = examples.meta();
    if examples.is_text() {
        return Err(bad(format!("inputs.data: {} is a set of texts, which have no pictures", meta.dataset)));
    }
    if !may_be_shown(meta) {
        return Err(bad(format!(
            "inputs.data: {}: no picture of it may be shown\nhint: its licence forbids to pass on any part of it",
            meta.dataset
        )));
    }
    if !(1..=100).contains(&columns) {
        return Err(bad(format!("params.columns: {columns} is not in 1..=100")));
    }
    let groups: Vec<Vec<usize>> = (0..examples.n_groups() as u32)
        .map(|g| (0..examples.n()).filter(|&i| examples.group(i) == g).take(columns).collect())
        .collect();
    let mut png = Vec::new();
    draw(&examples, &groups, columns)
        .write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png)
        .context("sheet.png")?;
    write(&job.out().join("sheet.png"), &png)?;
    let name = |g: usize| match &meta.attributes[..] {
        [_] => meta.classes[g].clone(),
        all => format!("{}, {}", meta.classes[g / all.len()], all[g % all.len()]),
    };
    let rows: Vec<_> = groups
        .iter()
        .enumerate()
        .map(|(g, rows)| serde_json::json!({"group": g, "name": name(g), "rows": rows}))
        .collect();
    let sheet = serde_json::json!({"dataset": meta.dataset, "variant": meta.variant, "note": meta.note, "groups": rows});
    write_json(&job.out().join("sheet.json"), &sheet)
}

/// Whether pictures of a set may be shown: what stands in for a restricted set is our own.
fn may_be_shown(meta: &Meta) -> bool {
    let open = SETS.iter().any(|set| set.name == meta.dataset && set.shown);
    open || meta.variant == "generated"
}

/// The pictures in rows, on white; a group that has fewer leaves white.
fn draw(examples: &Examples, groups: &[Vec<usize>], columns: usize) -> RgbImage {
    let meta = examples.meta();
    let every = meta.height.max(meta.width).div_ceil(SIDE).max(1);
    let (height, width) = (meta.height.div_ceil(every), meta.width.div_ceil(every));
    let size = |n: usize, side: usize| GAP + n as u32 * (side as u32 + GAP);
    let mut page =
        RgbImage::from_pixel(size(columns, width), size(groups.len(), height), image::Rgb([255; 3]));
    for (row, members) in groups.iter().enumerate() {
        for (column, &example) in members.iter().enumerate() {
            let pixels = examples.image(example);
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let at = (y * every * meta.width + x * every) * meta.channels;
                let channel = |c: usize| pixels[at + c.min(meta.channels - 1)];
                let place = (size(column, width) + x as u32, size(row, height) + y as u32);
                page.put_pixel(place.0, place.1, image::Rgb([channel(0), channel(1), channel(2)]));
            }
        }
    }
    page
}
