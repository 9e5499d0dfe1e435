//! What gc keeps, what it removes, and that it tells before it does.

use std::fs;
use std::time::{Duration, SystemTime};

use itpipe::cas::StoreError;
use itpipe::digest::Digest;
use itpipe::gc::{GcError, Options, gc};
use itpipe::lease::{self, Acquired};
use itpipe::lock::{Lock, Locked};
use itpipe::results::Results;

use crate::{Place, result};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn ms(age: Duration) -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().checked_sub(age).unwrap().as_millis()
        as u64
}

fn age(path: &std::path::Path, age: Duration) {
    fs::File::open(path)
        .unwrap()
        .set_times(fs::FileTimes::new().set_modified(SystemTime::now() - age))
        .unwrap();
}

#[test]
fn what_the_lock_or_a_recent_result_needs_stays_and_the_rest_goes() {
    let place = Place::new();
    let (store, cache) = (&place.store, place.cache());
    let results = Results::open(&cache).unwrap();
    let record = |name: &str, old: Duration| {
        let out = place.folder(&format!("out-{name}"), &[("own", name), ("shared", "by all")]);
        let tree = store.put_tree(&out).unwrap().0;
        let mut one = result(store, Digest::of(name.as_bytes()), tree);
        one.started = ms(old);
        one.log = Some(store.put_bytes(format!("log {name}").as_bytes()).unwrap());
        one.manifest = store.put_manifest(&[(name.into(), String::new())]).unwrap();
        results.record(store, &one).unwrap();
        one
    };
    let locked = record("locked", 200 * DAY);
    let recent = record("recent", DAY);
    let old = record("old", 200 * DAY);
    let mut lock = Lock::default();
    let entry = Locked { key: locked.key, tree: locked.tree };
    lock.results.entry("paper".into()).or_default().insert("s".into(), entry);
    // Another pipeline's lock, which names nothing of this, takes nothing away.
    let locks = [Lock::default(), lock];

    let stray = store.put_bytes(b"a killed run's blob").unwrap();
    let held_work = store.work(&Digest::of(b"held"));
    let Acquired::Ours(_lease) = lease::acquire(&held_work).unwrap() else { panic!() };
    let idle_work = store.work(&Digest::of(b"idle"));
    fs::create_dir_all(idle_work.join("scratch")).unwrap();
    fs::write(idle_work.join("scratch/checkpoint"), "12345").unwrap();
    let new_work = store.work(&Digest::of(b"new"));
    fs::create_dir_all(&new_work).unwrap();
    fs::write(store.tmp().join("half"), "123").unwrap();
    fs::write(store.log_path(&old.key), "text").unwrap();
    fs::write(store.log_path(&locked.key), "text").unwrap();
    for path in [
        &held_work,
        &idle_work,
        &store.tmp().join("half"),
        &store.log_path(&old.key),
        &store.log_path(&locked.key),
    ] {
        age(path, 200 * DAY);
    }

    let before = walkdir::WalkDir::new(&cache).into_iter().count();
    let dry = gc(store, &results, &locks, Options::default()).unwrap();
    assert_eq!(walkdir::WalkDir::new(&cache).into_iter().count(), before, "a report removes nothing");
    let counts: Vec<_> = dry.rows().iter().map(|(what, swept)| (*what, swept.count)).collect();
    let expected = [
        ("results", 1),
        ("blobs", 6),
        ("work folders", 1),
        ("logs", 1),
        ("programs", 0),
        ("unfinished writes", 1),
        ("quarantined blobs", 0),
    ];
    assert_eq!(counts, expected);
    assert_eq!((dry.kept_results, dry.kept_blobs, dry.work.bytes, dry.tmp.bytes), (2, 9, 5, 3));
    assert!(dry.bytes() > 12);

    let other = place.again();
    let refused = gc(store, &results, &locks, Options { dry_run: false, ..Options::default() });
    assert!(matches!(refused, Err(GcError::Store(StoreError::InUse { .. }))));
    drop(other);
    let done = gc(store, &results, &locks, Options { dry_run: false, ..Options::default() }).unwrap();
    assert_eq!(done, dry, "what it said is what it did");
    let again = gc(store, &results, &locks, Options::default()).unwrap();
    assert_eq!((again.bytes(), again.kept_results, again.kept_blobs), (0, 2, 9));

    for one in [&locked, &recent] {
        assert!(store.complete(&one.tree));
        assert_eq!(*Results::open(&cache).unwrap().get(&one.key).unwrap(), *one);
        assert!(store.contains(&one.manifest) && store.contains(&one.log.unwrap()));
    }
    assert!(results.get(&old.key).is_none() && !store.contains(&old.tree) && !store.contains(&stray));
    assert!(held_work.exists() && new_work.exists() && !idle_work.exists());
    assert!(store.log_path(&locked.key).exists());
    // The journal that others have open was replaced: they notice.
    results.record(store, &recent).unwrap();
    assert_eq!(Results::open(&cache).unwrap().len(), 3);
}
