//! prepare and subsample, from small generated files with the Hub's columns, from the bundled files, and from the real
//! mirror where there is one.

mod support;

use std::fs;
use std::path::Path;

use image::{GrayImage, ImageBuffer, Luma, RgbImage};
use serde_json::{Value, json};
use stages::data::indices::Indices;
use stages::data::{Examples, Split};
use stages::{prepare, subsample};
use support::*;
use tempfile::{TempDir, tempdir};

fn params(dataset: &str) -> Value {
    json!({"dataset": dataset, "variant": "mirror", "exact": false, "note": "generated"})
}

/// Prepares Fashion-MNIST files with these rows.
fn prepared(train: &[Row], test: &[Row], params: Value) -> (TempDir, anyhow::Result<()>) {
    let folder = tempdir().unwrap();
    let files = fashion_mnist(&folder.path().join("files"), train, test);
    let done = prepare::run(job(folder.path(), params, &[("files", &files)]));
    (folder, done)
}

/// The message of the error for one bad training row among good ones.
fn message(train: &[Row]) -> String {
    let (folder, done) = prepared(train, &good(2), params("fashion-mnist"));
    let error = done.expect_err("an error");
    assert_eq!(stages::job::exit_code(&error), 2, "{error:#}");
    assert!(
        !folder.path().join("out/meta.json").exists()
            && !folder.path().join("out/examples.safetensors").exists()
    );
    let text = format!("{error:#}");
    text.replace(&format!("{}/", folder.path().display()), "")
}

/// Six good rows, of which the row 4 (in the second row group) is this one.
fn with_bad(row: Row) -> Vec<Row> {
    let mut rows = good(6);
    rows[4] = row;
    rows
}

#[test]
fn arrays_hold_the_published_order() {
    let (folder, done) = prepared(&good(7), &good(4), params("fashion-mnist"));
    done.unwrap();
    let examples = Examples::open(&folder.path().join("out")).unwrap();
    assert_eq!(examples.n(), 11);
    assert_eq!(examples.labels(), [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]);
    assert_eq!(examples.splits(), [0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2]);
    for i in 0..11 {
        assert_eq!(examples.image(i), &grey(if i < 7 { i } else { i - 7 } as u32).into_raw()[..], "{i}");
        assert_eq!((examples.attributes()[i], examples.group(i)), (0, examples.labels()[i]));
    }
    let meta = examples.meta();
    assert_eq!((meta.height, meta.width, meta.channels, meta.exact), (28, 28, 1, false));
    assert_eq!(meta.counts.train, [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]);
    assert_eq!((meta.classes.len(), meta.n_attributes, meta.note.as_str()), (10, 1, "generated"));
}

#[test]
fn threads_change_nothing() {
    let folder = tempdir().unwrap();
    let files = fashion_mnist(&folder.path().join("files"), &good(20), &good(9));
    let bytes = [1, 4].map(|threads| {
        let at = folder.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| prepare::run(job(&at, params("fashion-mnist"), &[("files", &files)]))).unwrap();
        (fs::read(at.join("out/examples.safetensors")).unwrap(), fs::read(at.join("out/meta.json")).unwrap())
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn the_hubs_order_of_cifar10_is_undone_for_the_hub_alone() {
    // Ten rows: the Hub's batches 4, 3, 2, 5, 1 of two images each; red says the published place.
    let published = [6, 7, 4, 5, 2, 3, 8, 9, 0, 1u8];
    let rows: Vec<Row> = published.iter().map(|&p| (Some(png(colour(p))), i64::from(p))).collect();
    let folder = tempdir().unwrap();
    let files = folder.path().join("files");
    write_parquet(&files.join("plain_text/train-00000-of-00001.parquet"), "img", &rows, 3);
    write_parquet(&files.join("plain_text/test-00000-of-00001.parquet"), "img", &rows, 3);
    for (variant, expected) in [("hub", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), ("mirror", published)] {
        let at = folder.path().join(variant);
        let params = json!({"dataset": "cifar10", "variant": variant, "exact": false, "note": ""});
        prepare::run(job(&at, params, &[("files", &files)])).unwrap();
        let examples = Examples::open(&at.join("out")).unwrap();
        for (i, &p) in expected.iter().chain(&published).enumerate() {
            assert_eq!(examples.labels()[i], u32::from(p), "{variant} {i}");
            assert_eq!(examples.image(i), &colour(p).into_raw()[..], "{variant} {i}");
        }
    }
}

#[test]
fn bad_rows_are_named() {
    const FILE: &str = "files/fashion_mnist/train-00000-of-00001.parquet";
    let deep: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::new(28, 28);
    let whole = png(grey(1));
    for (row, expected) in [
        ((None, 1), "row 4: image.bytes: null"),
        ((Some(png(deep)), 1), "row 4: image.bytes: an image of type L16 where grey, 8 bits is expected"),
        (
            (Some(png(RgbImage::new(28, 28))), 1),
            "row 4: image.bytes: an image of type Rgb8 where grey, 8 bits is expected",
        ),
        (
            (Some(png(GrayImage::new(32, 32))), 1),
            "row 4: image.bytes: an image of 32x32 where 28x28 is expected",
        ),
        (
            (Some(b"GIF89a".to_vec()), 1),
            "row 4: image.bytes: neither PNG nor JPEG (6 bytes that start with 474946383961)",
        ),
        ((Some(Vec::new()), 1), "row 4: image.bytes: neither PNG nor JPEG (0 bytes that start with )"),
        ((Some(whole.clone()), 10), "row 4: label: 10 is not in 0..=9"),
        ((Some(whole.clone()), -1), "row 4: label: -1 is not in 0..=9"),
    ] {
        assert_eq!(message(&with_bad(row)), format!("{FILE}: {expected}"));
    }
    let torn = message(&with_bad((Some(whole[..whole.len() / 2].to_vec()), 1)));
    assert!(torn.starts_with(&format!("{FILE}: row 4: image.bytes: cannot be decoded: ")), "{torn}");
    assert_eq!(message(&[]), format!("{FILE}: row 0: missing; the file has no rows"));
}

#[test]
fn bad_files_are_named() {
    let folder = tempdir().unwrap();
    let files = fashion_mnist(&folder.path().join("files"), &good(6), &good(2));
    let train = files.join("fashion_mnist/train-00000-of-00001.parquet");
    let run = || {
        let error =
            prepare::run(job(folder.path(), params("fashion-mnist"), &[("files", &files)])).unwrap_err();
        assert_eq!(stages::job::exit_code(&error), 2);
        format!("{error:#}").replace(&format!("{}/", folder.path().display()), "")
    };
    const FILE: &str = "files/fashion_mnist/train-00000-of-00001.parquet";

    let whole = fs::read(&train).unwrap();
    fs::write(&train, &whole[..whole.len() - 100]).unwrap();
    assert!(run().starts_with(&format!("{FILE}: not a readable Parquet file: ")), "{}", run());

    // A footer that is whole over pages that are not.
    let mut damaged = whole.clone();
    damaged[4..200].fill(0xff);
    fs::write(&train, &damaged).unwrap();
    assert!(run().starts_with(&format!("{FILE}: row")), "{}", run());

    write_parquet(&train, "img", &good(2), 3);
    assert_eq!(run(), format!("{FILE}: no column `image.bytes` (there are: img.bytes, img.path, label)"));

    fs::remove_file(&train).unwrap();
    assert_eq!(run(), format!("{FILE}: No such file or directory (os error 2)"));
}

#[test]
fn counts_that_differ_show_both_tables() {
    let mut params = params("fashion-mnist");
    params["counts"] = json!({"train": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0], "test": 1});
    let (_folder, done) = prepared(&good(7), &good(10), params);
    let error = done.unwrap_err().to_string();
    assert!(error.starts_with("fashion-mnist: train: the counts differ\n"), "{error}");
    assert!(error.contains("  6 Shirt                          1         1\n"), "{error}");
    assert!(error.contains("  7 Sneaker                        1         0  <-\n"), "{error}");
}

#[test]
fn exact_demands_the_published_counts() {
    let params = json!({"dataset": "fashion-mnist", "variant": "hub", "exact": true, "note": ""});
    let (_folder, done) = prepared(&good(10), &good(10), params.clone());
    let error = done.unwrap_err().to_string();
    assert!(error.contains("  0 T-shirt/top                 6000         1  <-\n"), "{error}");
    let mut params = params;
    params["counts"] = json!({"train": 1, "test": 1});
    let (_folder, done) = prepared(&good(10), &good(10), params);
    assert_eq!(
        done.unwrap_err().to_string(),
        "params.counts.train: not the published counts of fashion-mnist, but `exact` is true"
    );
}

#[test]
fn unknown_params_are_refused() {
    let (_folder, done) = prepared(&good(1), &good(1), params("fashion-minst"));
    assert_eq!(
        done.unwrap_err().to_string(),
        "params.dataset: `fashion-minst` is unknown (there are: fashion-mnist, cifar10, celeba, waterbirds, multinli)"
    );
}

/// CelebA's files with its columns: signs as labels, three training shards, JPEG of 178x218.
#[test]
fn celeba_from_generated_files() {
    let folder = tempdir().unwrap();
    let files = folder.path().join("files");
    let signs = |numbers: &[i64]| numbers.to_vec();
    let write = |name: &str, blond: &[i64], male: &[i64], seed: u8| {
        let images: Vec<Vec<u8>> = (0..blond.len() as u8).map(|i| jpeg(178, 218, seed + 20 * i)).collect();
        write_columns(
            &files.join("data").join(name),
            &images,
            &[("Blond_Hair", signs(blond)), ("Male", signs(male))],
        );
    };
    write("train-00000-of-00003.parquet", &[-1, 1], &[-1, -1], 10);
    write("train-00001-of-00003.parquet", &[1], &[1], 60);
    write("train-00002-of-00003.parquet", &[-1], &[1], 90);
    write("validation-00000-of-00001.parquet", &[-1], &[-1], 120);
    write("test-00000-of-00001.parquet", &[1], &[-1], 150);
    let params = json!({"dataset": "celeba", "variant": "mirror", "exact": false, "note": "generated",
                        "counts": {"train": 1, "validation": [1, 0, 0, 0]}});
    let data = folder.path().join("data");
    prepare::run(job(&data, params, &[("files", &files)])).unwrap();
    let examples = Examples::open(&data.join("out")).unwrap();
    assert_eq!(examples.splits(), [0, 0, 0, 0, 1, 2]);
    assert_eq!((0..6).map(|i| examples.group(i)).collect::<Vec<_>>(), [0, 2, 3, 1, 0, 2]);
    let meta = examples.meta();
    assert_eq!((meta.height, meta.width, meta.channels, meta.n_attributes), (224, 224, 3, 2));
    assert_eq!(meta.counts.test, [0, 0, 1, 0]);
    for (i, red) in [10, 30, 60, 90, 120, 150].into_iter().enumerate() {
        // The middle of the crop: column 89, row 20 + 89 of the original, up to the loss of JPEG.
        let middle = &examples.image(i)[(112 * 224 + 112) * 3..][..3];
        let expected = [red, 89 / 2, 109 / 2];
        assert!(
            middle.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= 4),
            "{i}: {middle:?} {expected:?}"
        );
    }
    let params = json!({"scheme": "published"});
    subsample::run(job(folder.path(), params, &[("data", &data.join("out"))])).unwrap();
    let indices = Indices::open(&folder.path().join("out"), &examples).unwrap();
    assert_eq!((&indices.train[..], &indices.test[..]), (&[0, 1, 2, 3][..], &[5][..]));
}

/// Waterbirds' files with its columns, photographs of any size; then an attribute that is missing or out of range.
#[test]
fn waterbirds_from_generated_files() {
    let folder = tempdir().unwrap();
    let files = folder.path().join("files");
    let write = |split: &str, label: &[i64], place: &[i64], attribute: &str| {
        let sizes = [(300, 200), (120, 260), (256, 256)];
        let images: Vec<Vec<u8>> = (0..label.len()).map(|i| jpeg(sizes[i].0, sizes[i].1, 40)).collect();
        let columns =
            [("label", label.to_vec()), (attribute, place.to_vec()), ("bird", vec![7; label.len()])];
        write_columns(&files.join(format!("default/{split}/0000.parquet")), &images, &columns);
    };
    write("train", &[0, 1, 1], &[1, 0, 1], "place");
    write("validation", &[0], &[0], "place");
    write("test", &[1], &[0], "place");
    let params = json!({"dataset": "waterbirds", "variant": "mirror", "exact": false});
    let run = || prepare::run(job(folder.path(), params.clone(), &[("files", &files)]));
    run().unwrap();
    let examples = Examples::open(&folder.path().join("out")).unwrap();
    assert_eq!((0..5).map(|i| examples.group(i)).collect::<Vec<_>>(), [1, 2, 3, 0, 2]);
    // The last training image has the square's size: its middle is cut out, nothing else.
    let middle = &examples.image(2)[(112 * 224 + 112) * 3..][..3];
    assert!(middle.iter().zip([40, 64, 64]).all(|(&a, b)| a.abs_diff(b) <= 4), "{middle:?}");

    write("test", &[1], &[2], "place");
    let error = format!("{:#}", run().unwrap_err());
    assert!(error.ends_with("files/default/test/0000.parquet: row 0: place: 2 is not in 0..=1"), "{error}");
    write("test", &[1], &[1], "where");
    let error = format!("{:#}", run().unwrap_err());
    assert!(
        error.ends_with("no column `place` (there are: image.bytes, image.path, label, where, bird)"),
        "{error}"
    );
}

/// The bundled files through prepare and subsample.
#[test]
fn bundled_files() {
    let folder = tempdir().unwrap();
    let files = root().join("tests/data/hub/datasets/zalando-datasets/fashion_mnist");
    let params = json!({"dataset": "fashion-mnist", "variant": "bundled", "exact": false, "note": "part",
                        "counts": {"train": 200, "test": 60}});
    let data = folder.path().join("data");
    prepare::run(job(&data, params, &[("files", &files)])).unwrap();
    let data = data.join("out");
    let params = json!({"scheme": "step", "ratio": 10, "majority": "first-half", "per_class": 120,
                        "test_per_class": null, "validation_per_class": 20, "seed": 0});
    subsample::run(job(folder.path(), params, &[("data", &data)])).unwrap();
    let examples = Examples::open(&data).unwrap();
    let indices = Indices::open(&folder.path().join("out"), &examples).unwrap();
    assert_eq!(indices.meta.counts.train, [120, 120, 120, 120, 120, 12, 12, 12, 12, 12]);
    assert_eq!((indices.train.len(), indices.validation.len(), indices.test.len()), (660, 200, 600));
    for (rows, split) in [(&indices.train, Split::Train), (&indices.test, Split::Test)] {
        assert!(rows.iter().all(|&row| examples.splits()[row as usize] == split as u32));
    }
    let meta = fs::read_to_string(folder.path().join("out/meta.json")).unwrap();
    assert!(meta.contains("\"ratio\": 10,"), "{meta}");
}

#[test]
fn indices_of_other_arrays_are_refused() {
    let (folder, done) = prepared(&good(7), &good(4), params("fashion-mnist"));
    done.unwrap();
    let examples = Examples::open(&folder.path().join("out")).unwrap();
    let counts = stages::data::Counts::default();
    let meta = stages::data::indices::IndicesMeta {
        ratio: 1.0,
        n_major: 1,
        validation_per_class: 0,
        seed: 0,
        counts,
        majority: vec![],
        minority: vec![],
    };
    let indices = Indices { train: vec![0, 11], validation: vec![], test: vec![], meta };
    indices.write(&folder.path().join("indices")).unwrap();
    let error = Indices::open(&folder.path().join("indices"), &examples).unwrap_err();
    assert!(format!("{error:#}").ends_with("indices.safetensors: train: row 11 of 11"), "{error:#}");
}

fn mirrored(root: &Path, repo: &str, params: Value) -> (TempDir, anyhow::Result<()>) {
    let folder = tempdir().unwrap();
    let files = root.join("datasets").join(repo);
    let done = prepare::run(job(folder.path(), params, &[("files", &files)]));
    (folder, done)
}

#[test]
fn the_real_fashion_mnist_is_exact() {
    let Some(root) = mirror("the_real_fashion_mnist_is_exact") else { return };
    let params = json!({"dataset": "fashion-mnist", "variant": "mirror", "exact": true, "note": ""});
    let (folder, done) = mirrored(&root, "zalando-datasets/fashion_mnist", params);
    done.unwrap();
    let examples = Examples::open(&folder.path().join("out")).unwrap();
    assert_eq!((examples.n(), examples.labels()[0], examples.labels()[60_000]), (70_000, 9, 9));
}

#[test]
fn the_real_cifar10_is_counted() {
    let Some(root) = mirror("the_real_cifar10_is_counted") else { return };
    let params = json!({"dataset": "cifar10", "variant": "mirror", "exact": false, "note": "JPEG",
                        "counts": {"train": 5000, "test": 1000}});
    let (folder, done) = mirrored(&root, "uoft-cs/cifar10", params);
    done.unwrap();
    let examples = Examples::open(&folder.path().join("out")).unwrap();
    // The published mean of the training pixels, which JPEG moves little.
    let mut sums = [0u64; 3];
    (0..50_000).flat_map(|i| examples.image(i).chunks_exact(3)).for_each(|pixel| {
        sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += u64::from(v));
    });
    for (sum, mean) in sums.iter().zip(&examples.meta().mean) {
        let found = *sum as f64 / (50_000.0 * 1024.0 * 255.0);
        assert!((found - mean).abs() < 2e-3, "{found} {mean}");
    }
}
