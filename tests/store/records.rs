//! The journal of results and the lock file: many writers, torn tails, other versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use itpipe::digest::Digest;
use itpipe::lock::{Lock, Locked, Source, SourceFile, Update};
use itpipe::results::{Accepted, Results, ResultsError};

use crate::{Place, result};

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn tree(place: &Place, name: &str) -> Digest {
    place.store.put_tree(&place.folder("out", &[("file", name)])).unwrap().0
}

#[test]
fn a_result_comes_back_as_it_was_also_in_another_process() {
    let place = Place::new();
    let results = Results::open(&place.cache()).unwrap();
    let other = Results::open(&place.cache()).unwrap();
    assert!(results.is_empty() && results.get(&digest("key")).is_none());
    let mut one = result(&place.store, digest("key"), tree(&place, "1"));
    one.stage = "odd \"name\"\n[ü]".into();
    one.log = Some(place.store.put_bytes(b"log").unwrap());
    one.accepted = Some(Accepted { from: digest("old"), reason: "same\nthing".into() });
    one.facts = [("device".to_string(), "cpu".to_string())].into();
    results.record(&place.store, &one).unwrap();
    assert_eq!(*results.get(&one.key).unwrap(), one);
    assert!(other.get(&one.key).is_none());
    other.reload().unwrap();
    assert_eq!(*other.get(&one.key).unwrap(), one);
    assert_eq!(place.store.manifest(&one.manifest).unwrap(), [("params.seed".to_string(), "1".to_string())]);

    let mut two = result(&place.store, digest("key"), tree(&place, "2"));
    two.profile = "paper".into();
    other.record(&place.store, &two).unwrap();
    results.reload().unwrap();
    assert_eq!(*results.get(&one.key).unwrap(), two, "the latest");
    assert_eq!(results.all(&one.key), [one.clone(), two.clone()]);
    assert_eq!(results.every().len(), 2);
    assert_eq!(results.latest_for_stage("smoke", &one.stage), Some(one));
    assert_eq!(results.latest_for_stage("paper", &two.stage), Some(two));
    assert_eq!(results.latest_for_stage("laptop", "train[a]"), None);
}

#[test]
fn a_result_without_its_blobs_is_refused() {
    let place = Place::new();
    let results = Results::open(&place.cache()).unwrap();
    let good = result(&place.store, digest("key"), tree(&place, "1"));
    for bad in [
        itpipe::results::ActionResult { tree: digest("no"), ..good.clone() },
        itpipe::results::ActionResult { manifest: digest("no"), ..good.clone() },
        itpipe::results::ActionResult { log: Some(digest("no")), ..good.clone() },
    ] {
        assert!(matches!(results.record(&place.store, &bad), Err(ResultsError::Unbacked { .. })));
    }
    assert!(results.is_empty());
}

#[test]
fn a_torn_tail_does_not_count_and_does_not_spoil_what_follows() {
    let place = Place::new();
    let results = Results::open(&place.cache()).unwrap();
    let tree = tree(&place, "1");
    for key in ["a", "b"] {
        results.record(&place.store, &result(&place.store, digest(key), tree)).unwrap();
    }
    let path = place.cache().join("results/journal");
    let whole = fs::read(&path).unwrap();
    let lines: Vec<usize> =
        whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    assert_eq!(lines.len(), 3);
    for cut in (0..whole.len()).filter(|cut| cut % 5 == 0 || lines.iter().any(|line| line.abs_diff(*cut) < 3))
    {
        fs::write(&path, &whole[..cut]).unwrap();
        let results = Results::open(&place.cache()).unwrap();
        let kept = lines[1..].iter().filter(|line| **line <= cut).count();
        assert_eq!(results.len(), kept, "cut at {cut}");
        results.record(&place.store, &result(&place.store, digest("c"), tree)).unwrap();
        assert!(results.get(&digest("c")).is_some(), "cut at {cut}");
        let again = Results::open(&place.cache()).unwrap();
        // A line that lacked only its end is whole again.
        let mended = lines[1..].iter().any(|line| line - 1 == cut);
        assert_eq!(again.len(), kept + 1 + usize::from(mended), "cut at {cut}");
        assert!(again.get(&digest("c")).is_some(), "cut at {cut}");
    }
    for at in [lines[0] + 3, lines[0] + 40, lines[0] + 200] {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        fs::write(&path, bent).unwrap();
        let results = Results::open(&place.cache()).unwrap();
        assert_eq!((results.len(), results.get(&digest("a"))), (1, None), "bent at {at}");
    }
    fs::write(&path, "itpipe results 2\n").unwrap();
    let error = Results::open(&place.cache()).err().unwrap().to_string();
    assert!(
        error.contains("results/journal: not a journal of version 1: this itpipe cannot read it\n  hint: "),
        "{error}"
    );
}

#[test]
fn writers_at_once_lose_nothing() {
    let place = Place::new();
    let tree = tree(&place, "1");
    let one = result(&place.store, digest("key"), tree);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (place, one) = (&place, &one);
            scope.spawn(move || {
                let results = Results::open(&place.cache()).unwrap();
                for i in 0..100 {
                    let key = digest(&format!("{writer} {i}"));
                    results
                        .record(&place.store, &itpipe::results::ActionResult { key, ..one.clone() })
                        .unwrap();
                }
            });
        }
    });
    let results = Results::open(&place.cache()).unwrap();
    assert_eq!((results.len(), results.every().len()), (400, 400));
}

#[test]
fn recording_costs_the_same_late_and_reading_back_is_fast() {
    let place = Place::new();
    let tree = tree(&place, "1");
    let one = result(&place.store, digest("key"), tree);
    let results = Results::open(&place.cache()).unwrap();
    results.record(&place.store, &one).unwrap();
    let path = place.cache().join("results/journal");
    // Seconds of the processor, all threads of this process: the machine may be busy with other things.
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let least = |work: &mut dyn FnMut()| {
        // Other tests run in this process, so the least of several.
        (0..5)
            .map(|_| {
                let begin = cpu();
                work();
                cpu() - begin
            })
            .min()
            .unwrap_or_default()
    };
    let mut next = 0;
    let mut record = |results: &Results| {
        least(&mut || {
            for _ in 0..100 {
                next += 1;
                let key = digest(&next.to_string());
                results.record(&place.store, &itpipe::results::ActionResult { key, ..one.clone() }).unwrap();
            }
        })
    };
    let early = record(&results);
    // 100,000 lines as that many records would leave them.
    let text = fs::read(&path).unwrap();
    let header = text.iter().position(|b| *b == b'\n').unwrap() + 1;
    let mut long = text.clone();
    while long.len() < (text.len() - header) * 200 {
        long.extend_from_slice(&text[header..]);
    }
    fs::write(&path, &long).unwrap();
    let mut results = None;
    let read = (0..5).map(|_| {
        let begin = cpu();
        results = Some(Results::open(&place.cache()).unwrap());
        cpu() - begin
    });
    let read = read.min().unwrap_or_default();
    let results = results.unwrap();
    assert!(results.len() > 99_000, "{}", results.len());
    let late = record(&results);
    eprintln!("100 records early {early:?}, late {late:?}; {} results read in {read:?}", results.len());
    // A journal that is rewritten each time takes seconds.
    assert!(late < early * 3 + Duration::from_millis(20), "early {early:?}, late {late:?}");
    assert!(read < Duration::from_millis(500), "{read:?}");
}

fn update<'a>(profile: &'a str, stages: &[(&str, &str)]) -> Update<'a> {
    let results = stages
        .iter()
        .map(|(stage, key)| (stage.to_string(), Locked { key: digest(key), tree: digest("tree") }))
        .collect();
    Update { profile, results, ..Update::default() }
}

#[test]
fn the_lock_is_one_line_for_each_stage_in_a_stable_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.lock");
    assert_eq!(Lock::load(&path).unwrap(), Lock::default());
    assert!(!Lock::update(&path, &update("smoke", &[])).unwrap());
    assert!(!path.exists());
    let mut first = update("smoke", &[("b[1,x]", "1"), ("a", "2")]);
    let file = SourceFile { sha256: "ab".repeat(32), size: 7 };
    let files: BTreeMap<_, _> = [("train/0.parquet".to_string(), file)].into();
    first.sources.insert("fashion-mnist (mirror)".into(), Source { licence: Some("mit".into()), files });
    assert!(Lock::update(&path, &first).unwrap());
    assert!(Lock::update(&path, &update("laptop", &[("a", "3")])).unwrap());
    let d = |name: &str| digest(name).to_string();
    let tree = d("tree");
    let expected = format!(
        r#"{{"version": 1,
"sources": {{
  "fashion-mnist (mirror)": {{"licence":"mit","files":{{"train/0.parquet":{{"sha256":"{}","size":7}}}}}}
}},
"results": {{
"laptop": {{
  "a": {{"key":"{}","tree":"{tree}"}}
}},
"smoke": {{
  "a": {{"key":"{}","tree":"{tree}"}},
  "b[1,x]": {{"key":"{}","tree":"{tree}"}}
}}
}}}}
"#,
        "ab".repeat(32),
        d("3"),
        d("2"),
        d("1"),
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    let lock = Lock::load(&path).unwrap();
    assert_eq!(lock.get("smoke", "a").unwrap().key, digest("2"));
    assert_eq!(lock.get("smoke", "c"), None);

    // Nothing new: nothing written.
    let before = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    assert!(!Lock::update(&path, &first).unwrap());
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()), before);

    // Stages that the pipeline no longer has go.
    let stages: BTreeSet<String> = ["a".to_string()].into();
    assert!(Lock::update(&path, &Update { stages: Some(stages), ..update("smoke", &[]) }).unwrap());
    let lock = Lock::load(&path).unwrap();
    assert_eq!(lock.results["smoke"].len(), 1);
    assert_eq!(lock.results["laptop"].len(), 1);
}

#[test]
fn locks_written_at_once_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.lock");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for i in 0..20 {
                    let stage = format!("s{writer}-{i}");
                    Lock::update(path, &update(["p", "q"][writer % 2], &[(&stage, "k")])).unwrap();
                }
            });
        }
    });
    let lock = Lock::load(&path).unwrap();
    assert_eq!((lock.results["p"].len(), lock.results["q"].len()), (40, 40));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_lock_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.lock");
    let hint = "\n  hint: it is generated: 'git checkout' it, or delete it and run again";
    for (text, message) in [
        (
            "{\"version\": 2, \"more\": 1}",
            "version 2: this itpipe knows version 1\n  hint: a newer itpipe wrote it".to_string(),
        ),
        ("{\"version\": 1,\n\"sources\": {},\n\"results\": {},\n\"x\": 1}", String::new()),
        ("{\"version\": 1", format!("1:13: EOF while parsing an object{hint}")),
        ("", format!("1:0: EOF while parsing a value{hint}")),
        (
            "{\"version\": 1,\n<<<<<<< HEAD\n",
            "2:1: a merge conflict\n  hint: keep either side, then run again".to_string(),
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = Lock::load(&path).unwrap_err().to_string();
        if message.is_empty() {
            assert!(
                error.contains("pipeline.lock:4:")
                    && error.contains("unknown field `x`")
                    && error.ends_with(hint),
                "{error}"
            );
        } else {
            assert!(error.ends_with(&message) && error.contains("pipeline.lock"), "{error}");
        }
        assert!(Lock::update(&path, &update("p", &[("a", "b")])).is_err(), "it is not overwritten");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
