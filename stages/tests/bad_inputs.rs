//! Thirty inputs that are wrong, or unusual and handled: each ends with its message, which names the file and the row, and
//! leaves no output. One table; the details of each kind stand in the tests of its stage.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use image::{ImageBuffer, Luma, LumaA, RgbImage, RgbaImage};
use libjpeg_turbo_rs::precision::compress_12bit;
use libjpeg_turbo_rs::{PixelFormat, Subsampling};
use serde_json::{Value, json};
use stages::data::Examples;
use stages::fetch::{Params, fetch};
use stages::hub::Resolve;
use stages::job::{Fixed, exit_code};
use stages::models::{self, ModelParams, Shape};
use stages::nn::cpu::Cpu;
use stages::prepare;
use stages::rng::Stream;
use support::*;
use tempfile::tempdir;

/// Five birds and what is known of them.
struct Birds {
    images: Vec<Vec<u8>>,
    label: Vec<i64>,
    place: Vec<i64>,
}

impl Birds {
    fn new() -> Birds {
        let images = (0..5).map(|i| jpeg(60 + i, 50, 40)).collect();
        Birds { images, label: vec![0, 1, 1, 0, 1], place: vec![0, 1, 0, 1, 1] }
    }
    fn write(&self, path: &Path) {
        write_columns(path, &self.images, &[("label", self.label.clone()), ("place", self.place.clone())]);
    }
}

const TRAIN: &str = "default/train/0000.parquet";

fn waterbirds(files: &Path, train: &Birds) {
    train.write(&files.join(TRAIN));
    for split in ["validation", "test"] {
        Birds::new().write(&files.join(format!("default/{split}/0000.parquet")));
    }
}

fn params() -> Value {
    json!({"dataset": "waterbirds", "variant": "mirror", "exact": false})
}

/// Prepares Waterbirds whose training rows and files are changed; the error, or how it went well.
fn prepared(rows: impl Fn(&mut Birds), change: impl Fn(&Path), params: Value) -> Result<Examples, String> {
    let folder = tempdir().unwrap();
    let files = folder.path().join("files");
    let mut birds = Birds::new();
    rows(&mut birds);
    waterbirds(&files, &birds);
    change(&files);
    match prepare::run(job(folder.path(), params, &[("files", &files)])) {
        Ok(()) => Ok(Examples::open(&folder.path().join("out")).unwrap()),
        Err(error) => {
            assert_eq!(exit_code(&error), 2, "another run cannot help: {error:#}");
            assert!(!folder.path().join("out/meta.json").exists(), "something was kept: {error:#}");
            assert!(!folder.path().join("out/examples.safetensors").exists(), "{error:#}");
            Err(format!("{error:#}").replace(&format!("{}/", folder.path().display()), ""))
        }
    }
}

fn row_3(image: Vec<u8>) -> impl Fn(&mut Birds) {
    move |birds: &mut Birds| birds.images[3] = image.clone()
}

#[track_caller]
fn fails(result: Result<Examples, String>, says: &str) {
    match result {
        Ok(_) => panic!("it went well, but should say: {says}"),
        Err(text) => assert!(text.contains(says), "no `{says}` in: {text}"),
    }
}

/// 1 to 8: images, each in row 3 of the training file.
#[test]
fn images() {
    let at = format!("files/{TRAIN}: row 3: image.bytes: ");
    let none = |_: &Path| {};
    let deep: ImageBuffer<image::Rgb<u16>, Vec<u16>> = ImageBuffer::new(9, 9);
    let grey: ImageBuffer<LumaA<u8>, Vec<u8>> = ImageBuffer::new(9, 9);
    let whole = jpeg(60, 50, 40);
    let inks = include_bytes!("golden/cmyk.jpg").to_vec();
    let twelve = compress_12bit(&[2000; 64], 8, 8, 1, 90, Subsampling::S444).unwrap();
    for (image, says) in [
        (png(deep), "an image of type Rgb16 where colour, 8 bits a channel is expected"),
        (png(RgbaImage::new(9, 9)), "an image of type Rgba8 where colour, 8 bits a channel is expected"),
        (png(grey), "an image of type La8 where colour, 8 bits a channel is expected"),
        (inks, "a JPEG of four inks (CMYK) where grey or red, green, blue is expected"),
        (twelve, "a JPEG of 12 bits a channel where 8 are expected"),
        (whole[..whole.len() / 3].to_vec(), "cannot be decoded: "),
        (png(RgbImage::new(9, 9))[..40].to_vec(), "cannot be decoded: "),
        (b"GIF89a".to_vec(), "neither PNG nor JPEG (6 bytes that start with 474946383961)"),
        (Vec::new(), "neither PNG nor JPEG (0 bytes that start with )"),
    ] {
        fails(prepared(row_3(image), none, params()), &format!("{at}{says}"));
    }
}

/// 9: a grey JPEG among colours is handled: the grey is repeated, as Pillow's convert("RGB") does.
#[test]
fn a_grey_photograph() {
    let grey: ImageBuffer<Luma<u8>, Vec<u8>> = ImageBuffer::from_pixel(40, 30, Luma([77]));
    let bytes =
        libjpeg_turbo_rs::compress(&grey, 40, 30, PixelFormat::Grayscale, 90, Subsampling::S444).unwrap();
    let examples = prepared(row_3(bytes), |_| {}, params()).unwrap();
    assert!(examples.image(3).iter().all(|&v| v == 77));
}

/// 10 to 13: labels and attributes, with the row.
#[test]
fn numbers() {
    let none = |_: &Path| {};
    let label = |value: i64| move |birds: &mut Birds| birds.label[2] = value;
    fails(prepared(label(2), none, params()), &format!("files/{TRAIN}: row 2: label: 2 is not in 0..=1"));
    fails(prepared(label(-1), none, params()), &format!("files/{TRAIN}: row 2: label: -1 is not in 0..=1"));
    let place = |birds: &mut Birds| birds.place[4] = 7;
    fails(prepared(place, none, params()), &format!("files/{TRAIN}: row 4: place: 7 is not in 0..=1"));
    let mut counted = params();
    counted["counts"] = json!({"train": [2, 1, 1, 1]});
    let says = "waterbirds: train: the counts differ\n  group                     expected     found\n  \
                0 landbird, land                 2         1  <-\n";
    fails(prepared(|_| {}, none, counted), says);
}

/// 14 to 21: files and columns.
#[test]
fn files_and_columns() {
    let same = |_: &mut Birds| {};
    let at = format!("files/{TRAIN}: ");
    let cut = |keep: f64| {
        move |files: &Path| {
            let path = files.join(TRAIN);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..(whole.len() as f64 * keep) as usize]).unwrap();
        }
    };
    fails(prepared(same, cut(0.9), params()), &format!("{at}not a readable Parquet file: "));
    fails(prepared(same, cut(0.0), params()), &format!("{at}not a readable Parquet file: "));
    let page = |files: &Path| fs::write(files.join(TRAIN), "<html>sign in</html>").unwrap();
    fails(prepared(same, page, params()), &format!("{at}not a readable Parquet file: "));
    let damaged = |files: &Path| {
        let mut bytes = fs::read(files.join(TRAIN)).unwrap();
        bytes[4..300].fill(0xff);
        fs::write(files.join(TRAIN), bytes).unwrap();
    };
    fails(prepared(same, damaged, params()), &format!("{at}row"));
    let gone = |files: &Path| fs::remove_file(files.join(TRAIN)).unwrap();
    fails(prepared(same, gone, params()), &format!("{at}No such file or directory"));
    let renamed = |files: &Path| {
        let birds = Birds::new();
        write_columns(
            &files.join(TRAIN),
            &birds.images,
            &[("label", birds.label.clone()), ("where", birds.place.clone())],
        );
    };
    fails(
        prepared(same, renamed, params()),
        &format!("{at}no column `place` (there are: image.bytes, image.path, label, where)"),
    );
    let none = |birds: &mut Birds| *birds = Birds { images: vec![], label: vec![], place: vec![] };
    fails(prepared(none, |_| {}, params()), &format!("{at}row 0: missing; the file has no rows"));
    // Another set's files: CelebA's form has no column of this name.
    let mut other = params();
    other["dataset"] = json!("fashion-mnist");
    fails(
        prepared(same, |_| {}, other),
        "files/fashion_mnist/train-00000-of-00001.parquet: No such file or directory",
    );
}

/// 22 to 24: params.
#[test]
fn wrong_params() {
    let with = |name: &str, value: Value| {
        let mut params = params();
        params[name] = value;
        prepared(|_| {}, |_| {}, params)
    };
    fails(with("dataset", json!("waterbird")), "params.dataset: `waterbird` is unknown (there are: ");
    fails(with("exact", json!(true)), "waterbirds: train: the counts differ");
    fails(with("sequence", json!(128)), "params.sequence: waterbirds is a set of images");
}

/// 25 to 27: where a source lies.
#[test]
fn places() {
    let folder = tempdir().unwrap();
    let hub = Resolve::new("http://127.0.0.1:1", None, Default::default(), Default::default());
    let fails = |change: Value, files: Value, says: &str| {
        let mut params =
            json!({"repo": "o/n", "repo_type": "model", "variant": "hub", "revision": "0".repeat(40)});
        params.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let params: Params = serde_json::from_value(params).unwrap();
        let fixed = json!({"files": files, "root": "/", "mirror": null, "offline": false});
        let fixed: Fixed = serde_json::from_value(fixed).unwrap();
        let error =
            fetch(&params, &fixed, false, &hub, folder.path(), &folder.path().join("out")).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(format!("{error:#}").contains(says), "{error:#}");
    };
    let file = json!({"model.safetensors": {}});
    fails(
        json!({"revision": "main"}),
        file.clone(),
        "params.revision: `main` is no commit: 40 hexadecimal digits",
    );
    fails(json!({"revision": null}), file, "params.revision: missing: a file that has no URL of its own");
    fails(json!({}), json!({"../x": {}}), "fixed.files: `../x` is not a path inside the repository");
}

/// 28 to 31: weights.
#[test]
fn weights() {
    let folder = tempdir().unwrap();
    let shape = Shape { classes: 2, channels: 3, height: 32, width: 32 };
    let model = |params: Value| {
        let params: ModelParams = serde_json::from_value(params).unwrap();
        let mut init = |name: &str| Stream::new(0, name, 0, 0);
        models::build(&params, shape, Cpu::new(1).unwrap(), &mut init).unwrap()
    };
    let resnet = model(json!({"family": "resnet50", "width": 2}));
    let published =
        |repo: &str| root().join("tests/data/generated/models").join(repo).join("model.safetensors");
    let load = |path: PathBuf| format!("{:#}", resnet.load_pretrained(&path).unwrap_err());
    let says = load(published("timm/wide_resnet50_2.tv_in1k"));
    assert!(
        says.contains(
            "weights of another model:\n  layer1.0.bn1.bias: shape [4] in the file, [2] in the model"
        ),
        "{says}"
    );
    let says = load(published("google-bert/bert-base-uncased"));
    assert!(says.contains("conv1.weight: missing from the file"), "{says}");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(published("timm/resnet50.tv_in1k")).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(load(path.clone()).contains("model.safetensors: not a safetensors file"), "{}", load(path));
    assert!(load(folder.path().join("none")).contains("none: weights cannot be read"));
    resnet.load_pretrained(&published("timm/resnet50.tv_in1k")).unwrap();
}
