//! What the tests of data stages share: jobs in a temporary folder, Parquet files with the Hub's columns, images.
#![allow(dead_code)]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use libjpeg_turbo_rs::{PixelFormat, Subsampling};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use stages::job::Job;

/// Writes a job into `folder` and opens it. Inputs are given as (name, folder).
pub fn job(folder: &Path, params: Value, inputs: &[(&str, &Path)]) -> Job {
    let inputs: serde_json::Map<String, Value> =
        inputs.iter().map(|(name, path)| (name.to_string(), json!(path))).collect();
    let job = json!({
        "version": 1, "params": params, "inputs": inputs, "out": "out", "scratch": "scratch",
        "rehearse": false, "threads": 2, "fixed": null,
    });
    fs::create_dir_all(folder).unwrap();
    let path = folder.join("job.json");
    fs::write(&path, job.to_string()).unwrap();
    Job::open(&path).unwrap()
}

/// A row of a set of images: the image's bytes (none: a null) and the label.
pub type Row = (Option<Vec<u8>>, i64);

/// Writes rows with the Hub's columns, `group` rows to a row group.
pub fn write_parquet(path: &Path, image: &str, rows: &[Row], group: usize) {
    let schema = format!(
        "message schema {{ optional group {image} {{ optional binary bytes; optional binary path (UTF8); }} \
         optional int64 label; }}"
    );
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    for rows in rows.chunks(group) {
        let mut out = writer.next_row_group().unwrap();
        let bytes: Vec<ByteArray> = rows.iter().filter_map(|r| r.0.clone()).map(ByteArray::from).collect();
        let levels: Vec<i16> = rows.iter().map(|r| if r.0.is_some() { 2 } else { 1 }).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().map(|r| r.1).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
}

/// Writes a set with more columns: `columns` are (name, numbers).
pub fn write_columns(path: &Path, images: &[Vec<u8>], columns: &[(&str, Vec<i64>)]) {
    let fields: String = columns.iter().map(|(name, _)| format!("optional int64 {name};")).collect();
    let image = "optional group image { optional binary bytes; optional binary path (UTF8); }";
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {image} {fields} }}")).unwrap());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut out = writer.next_row_group().unwrap();
    let bytes: Vec<ByteArray> = images.iter().cloned().map(ByteArray::from).collect();
    for (bytes, level) in [(&bytes[..], 2), (&[], 1)] {
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(bytes, Some(&vec![level; images.len()]), None).unwrap();
        column.close().unwrap();
    }
    for (_, numbers) in columns {
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(numbers, Some(&vec![1; images.len()]), None).unwrap();
        column.close().unwrap();
    }
    out.close().unwrap();
    writer.close().unwrap();
}

/// A colour image of this size as JPEG.
pub fn jpeg(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([seed, (x / 2) as u8, (y / 2) as u8]));
    let (width, height) = (width as usize, height as usize);
    libjpeg_turbo_rs::compress(&image, width, height, PixelFormat::Rgb, 75, Subsampling::S420).unwrap()
}

/// An image as PNG.
pub fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A grey 28x28 image that differs by `seed`.
pub fn grey(seed: u32) -> GrayImage {
    GrayImage::from_fn(28, 28, |x, y| image::Luma([(x * 7 + y * 3 + seed * 11) as u8]))
}

/// A colour 32x32 image whose red is `seed` everywhere.
pub fn colour(seed: u8) -> RgbImage {
    RgbImage::from_fn(32, 32, |x, y| image::Rgb([seed, x as u8, y as u8]))
}

/// Fashion-MNIST's two files below `folder`.
pub fn fashion_mnist(folder: &Path, train: &[Row], test: &[Row]) -> PathBuf {
    for (name, rows) in [("train", train), ("test", test)] {
        write_parquet(&folder.join(format!("fashion_mnist/{name}-00000-of-00001.parquet")), "image", rows, 3);
    }
    folder.to_path_buf()
}

/// `n` good rows, labels 0, 1, … in turns.
pub fn good(n: u32) -> Vec<Row> {
    (0..n).map(|i| (Some(png(grey(i))), i64::from(i % 10))).collect()
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The folder that `ITPIPE_TEST_MIRROR` names; without it says that the test is skipped.
pub fn mirror(test: &str) -> Option<PathBuf> {
    let mirror = std::env::var_os("ITPIPE_TEST_MIRROR").map(PathBuf::from);
    if mirror.is_none() {
        eprintln!("{test}: skipped, ITPIPE_TEST_MIRROR is not set");
    }
    mirror
}

/// Writes pairs of texts with MultiNLI's columns that matter, two rows to a row group; no text: a null.
pub fn write_pairs(path: &Path, rows: &[(Option<&str>, &str, i64)]) {
    let schema = "message schema { optional binary premise (UTF8); optional binary hypothesis (UTF8); \
                  optional binary genre (UTF8); optional int64 label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    for rows in rows.chunks(2) {
        let mut out = writer.next_row_group().unwrap();
        let first: Vec<ByteArray> = rows.iter().filter_map(|r| r.0).map(ByteArray::from).collect();
        let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.0.is_some())).collect();
        let second: Vec<ByteArray> = rows.iter().map(|r| ByteArray::from(r.1)).collect();
        let genre = vec![ByteArray::from("fiction"); rows.len()];
        let ones = vec![1; rows.len()];
        for (values, levels) in [(&first, &levels), (&second, &ones), (&genre, &ones)] {
            let mut column = out.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(values, Some(levels), None).unwrap();
            column.close().unwrap();
        }
        let labels: Vec<i64> = rows.iter().map(|r| r.2).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&ones), None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
}
