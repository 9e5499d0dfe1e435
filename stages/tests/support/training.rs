//! A training stage as the engine runs it: made-up arrays, a job.json, the real binary; how to stop and kill it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use stages::data::Counts;
use stages::data::indices::{Indices, IndicesMeta};
use stages::data::packed::Packed;
use stages::rng::Stream;

pub const CLASSES: usize = 4;
pub const SIDE: usize = 12;
/// Tokens of a text, padding included.
pub const LENGTH: usize = 12;

/// A folder with arrays, indices and any number of jobs on them.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Four classes of noisy bars, the first two with `major` training examples each, the others with `minor`; two
    /// attribute values; ten validation examples a class.
    pub fn new(major: usize, minor: usize) -> Bench {
        let (bench, labels, splits) = Bench::start(major, minor);
        let attributes: Vec<u32> = (0..labels.len() as u32).map(|i| i % 2).collect();
        let data = bench.path("data");
        let shape = [SIDE, SIDE, 1];
        let packed =
            Packed::create(&data.join("examples.safetensors"), shape, &labels, &attributes, &splits).unwrap();
        for (row, &label) in labels.iter().enumerate() {
            let mut noise = Stream::new(1, "noise", 0, row as u64);
            let pixel = |i: usize| {
                let bar = (i / SIDE) / 3 == label as usize;
                (noise.uniform() * 200.0) as u8 + if bar { 50 } else { 0 }
            };
            packed.put(row, &(0..SIDE * SIDE).map(pixel).collect::<Vec<u8>>()).unwrap();
        }
        packed.finish().unwrap();
        bench.describe(json!({"height": SIDE, "width": SIDE, "channels": 1, "mean": [0.4], "std": [0.3]}));
        bench
    }

    /// Texts of 3 to LENGTH tokens in two segments, in which a class has its own word more often; otherwise as
    /// [`Bench::new`].
    pub fn texts(major: usize, minor: usize) -> Bench {
        let (bench, labels, splits) = Bench::start(major, minor);
        let attributes: Vec<u32> = (0..labels.len() as u32).map(|i| i % 2).collect();
        let (mut ids, mut types, mut lengths) = (vec![], vec![], vec![]);
        for (row, &label) in labels.iter().enumerate() {
            let mut noise = Stream::new(1, "words", 0, row as u64);
            let length = 3 + noise.below(LENGTH as u64 - 2) as usize;
            lengths.push(length as u32);
            for place in 0..LENGTH {
                let word = if noise.chance(0.3) { 10 + label } else { 10 + noise.below(20) as u32 };
                ids.push(if place == 0 {
                    1
                } else if place < length {
                    word
                } else {
                    0
                });
                types.push(u8::from(place >= length / 2 && place < length));
            }
        }
        let bytes = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let columns = [&labels, &attributes, &splits, &lengths].map(|column| bytes(column));
        let ids = bytes(&ids);
        let n = labels.len();
        let names = ["label", "attribute", "split", "length"];
        let mut views: Vec<(&str, TensorView<'_>)> = names
            .into_iter()
            .zip(&columns)
            .map(|(name, column)| (name, TensorView::new(Dtype::U32, vec![n], column).unwrap()))
            .collect();
        views.push(("input_ids", TensorView::new(Dtype::U32, vec![n, LENGTH], &ids).unwrap()));
        views.push(("token_type_ids", TensorView::new(Dtype::U8, vec![n, LENGTH], &types).unwrap()));
        fs::create_dir_all(bench.path("data")).unwrap();
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(bench.path("data/examples.safetensors"), file).unwrap();
        let meta = json!({
            "height": 0, "width": 0, "channels": 0, "mean": [], "std": [], "sequence": LENGTH, "vocabulary": 30
        });
        bench.describe(meta);
        bench
    }

    /// An empty folder but for the indices, labels and splits.
    fn start(major: usize, minor: usize) -> (Bench, Vec<u32>, Vec<u32>) {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        let (mut labels, mut splits) = (vec![], vec![]);
        for (split, n) in [(0, [major, major, minor, minor]), (1, [10; CLASSES])] {
            for (class, n) in n.into_iter().enumerate() {
                labels.extend(vec![class as u32; n]);
                splits.extend(vec![split; n]);
            }
        }
        let rows = |split: u32| -> Vec<u32> {
            (0..labels.len() as u32).filter(|&i| splits[i as usize] == split).collect()
        };
        let counts = Counts { train: vec![], validation: vec![], test: vec![] };
        let meta = IndicesMeta {
            ratio: major as f64 / minor.max(1) as f64,
            n_major: major as u64,
            validation_per_class: 10,
            seed: 0,
            counts,
            majority: vec![0, 1],
            minority: vec![2, 3],
        };
        let indices = Indices { train: rows(0), validation: rows(1), test: rows(1), meta };
        indices.write(&bench.path("indices")).unwrap();
        (bench, labels, splits)
    }

    /// Writes meta.json.
    fn describe(&self, form: Value) {
        let names: Vec<String> = (0..CLASSES).map(|k| format!("c{k}")).collect();
        let mut meta = json!({
            "dataset": "bars", "variant": "bundled", "exact": false, "note": "made up", "classes": names,
            "attributes": ["even", "odd"], "n_attributes": 2,
            "counts": {"train": [], "validation": [], "test": []}
        });
        meta.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        fs::write(self.path("data/meta.json"), meta.to_string()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the job of a training and gives its folder.
    pub fn job(&self, name: &str, params: &Value, threads: usize) -> PathBuf {
        self.job_with(name, params, threads, json!({}))
    }

    /// With further inputs.
    pub fn job_with(&self, name: &str, params: &Value, threads: usize, more: Value) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(folder.join("scratch")).unwrap();
        let mut inputs = json!({"data": "../data", "indices": "../indices"});
        inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let job = json!({
            "version": 1, "params": params, "inputs": inputs, "out": "out", "scratch": "scratch", "rehearse": false,
            "threads": threads, "fixed": null
        });
        fs::write(folder.join("job.json"), job.to_string()).unwrap();
        folder
    }

    pub fn train(&self, name: &str, params: &Value, threads: usize) -> Output {
        start(&self.job(name, params, threads)).wait_with_output().unwrap()
    }
}

pub fn start(folder: &Path) -> Child {
    start_kind("train", folder)
}

pub fn start_kind(kind: &str, folder: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_stages"))
        .args([kind, "job.json"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn with(mut params: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        params[key] = value.clone();
    }
    params
}

/// All files of an output, by name.
pub fn output(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder.join("out"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    assert_eq!(
        files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
        ["epochs.jsonl", "train.json", "weights.safetensors"]
    );
    files
}

pub fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Trains, killing the process whenever a new checkpoint is there, until it ends by itself. How often it was killed.
pub fn train_under_kills(folder: &Path, most: usize) -> usize {
    let checkpoint = folder.join("scratch/checkpoint.safetensors");
    let mut seen = None;
    for kills in 0.. {
        let mut child = start(folder);
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                return kills;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "a training hangs");
            let now = fs::read(&checkpoint).ok();
            if kills < most && now.is_some() && now != seen {
                seen = now;
                // SIGKILL: nothing of the process runs after it.
                child.kill().unwrap();
                child.wait().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    unreachable!()
}

/// One thread, two, killed and resumed, without checkpoints: the same bits.
pub fn same_bits(name: &str, bench: &Bench, params: &Value) {
    succeeded(&bench.train("whole", params, 1));
    let whole = output(&bench.path("whole"));
    succeeded(&bench.train("two", params, 2));
    assert!(output(&bench.path("two")) == whole, "{name}: two threads give other bits than one");
    let killed = bench.job("killed", params, 2);
    let kills = train_under_kills(&killed, 4);
    assert!(kills >= 2, "{name}: killed {kills} times only");
    assert!(output(&killed) == whole, "{name}: a resumed training gives other bits");
    // Without any checkpoint on the way, too: saving must not change anything.
    let unsaved = with(params.clone(), json!({"checkpoint_every": 0}));
    succeeded(&bench.train("unsaved", &unsaved, 2));
    assert!(output(&bench.path("unsaved"))[2] == whole[2], "{name}: checkpoints change the weights");
}
