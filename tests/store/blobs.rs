//! Blobs in, blobs out, and damage in between.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use itpipe::cas::{Complete, Link, Store, StoreError};
use itpipe::digest::{self, Digest};
use itpipe::tree::Sub;

use crate::{Place, forge, is_root, settle, write};

const HOWS: [Link; 4] = [Link::Auto, Link::Copy, Link::Hardlink, Link::Reflink];

#[test]
fn a_tree_comes_back_whole_and_read_only() {
    let place = Place::new();
    let big = "b".repeat(300_000);
    let files = [
        ("a", "1"),
        ("d/e/f", "2"),
        ("run*", "#!"),
        ("none", ""),
        ("empty/", ""),
        ("big", &big),
        ("same", "1"),
    ];
    let out = place.folder("out", &files);
    std::os::unix::fs::symlink("d/e", out.join("link")).unwrap();
    let (digest, tree) = place.store.put_tree(&out).unwrap();
    assert_eq!(place.store.tree(&digest).unwrap().as_ref(), Some(&tree));
    assert!(place.store.complete(&digest));
    assert_eq!(tree.size(), 300_005);
    for how in HOWS {
        let dest = place.path(&format!("{how:?}"));
        place.store.materialize(&digest, None, &dest, how).unwrap();
        let Sub::Folder(back) = place.store.import(&dest).unwrap() else { panic!("a file") };
        assert_eq!(back, tree, "{how:?}");
        let mode = |name: &str| fs::metadata(dest.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("a"), mode("run"), mode("big")), (0o444, 0o555, 0o444));
        let links = fs::metadata(dest.join("a")).unwrap().nlink();
        assert_eq!(links > 1, how == Link::Hardlink || how == Link::Auto && links > 1, "{how:?}");
    }
    place.store.export(&digest, Some("d/e/f"), &place.path("kept")).unwrap();
    assert_eq!(fs::metadata(place.path("kept")).unwrap().mode() & 0o600, 0o600);
    place.store.materialize(&digest, Some("link"), &place.path("part"), Link::Copy).unwrap();
    assert_eq!(fs::read_to_string(place.path("part/f")).unwrap(), "2");
}

#[test]
fn equal_contents_are_kept_once_and_blobs_are_read_only() {
    let place = Place::new();
    let many: Vec<(String, String)> = (0..200).map(|i| (format!("f{i}"), format!("{}", i % 3))).collect();
    let files: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (digest, _) = place.store.put_tree(&place.folder("out", &files)).unwrap();
    let (again, _) = place.store.put_tree(&place.folder("out2", &files)).unwrap();
    assert_eq!(digest, again);
    let mut blobs = 0;
    for entry in walkdir::WalkDir::new(place.cache().join("blobs")) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            blobs += 1;
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o444);
        }
    }
    assert_eq!(blobs, 3 + 1);
    assert_eq!(fs::read_dir(place.store.tmp()).unwrap().count(), 0);
}

#[test]
fn a_file_with_a_second_name_is_copied_not_taken() {
    let place = Place::new();
    let out = place.folder("out", &[("a", "text")]);
    fs::hard_link(out.join("a"), place.path("outside")).unwrap();
    let (digest, _) = place.store.put_tree(&out).unwrap();
    fs::write(place.path("outside"), "TEXT").unwrap();
    assert!(place.store.complete(&digest));
    assert_eq!(place.store.bytes(&Digest::of(b"text")).unwrap(), b"text");
}

fn stored(place: &Place, content: &str) -> (Digest, Digest) {
    let (tree, _) =
        place.store.put_tree(&place.folder("out", &[("d/file", content), ("other", "x")])).unwrap();
    settle();
    assert!(place.store.complete(&tree));
    (tree, Digest::of(content.as_bytes()))
}

#[test]
fn damage_that_keeps_size_and_mtime_is_found_and_never_served() {
    for size in [10, 300_000] {
        for how in HOWS {
            let place = Place::new();
            let (tree, blob) = stored(&place, &"b".repeat(size));
            forge(&place.store.blob_path(&blob));
            let dest = place.path("dest");
            let error = place.store.materialize(&tree, None, &dest, how).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { digest } if digest == blob), "{how:?}: {error}");
            assert!(!dest.join("d/file").exists());
            assert!(!place.store.contains(&blob), "quarantined");
            assert_eq!(fs::read_dir(place.cache().join("quarantine")).unwrap().count(), 1);
            assert!(!place.store.complete(&tree));
            // The stage runs again, and all is well.
            let (again, _) = stored(&place, &"b".repeat(size));
            assert_eq!(again, tree);
            place.store.materialize(&tree, None, &place.path("well"), how).unwrap();
        }
    }
}

#[test]
fn completeness_names_what_is_missing_or_damaged() {
    let place = Place::new();
    let (tree, blob) = stored(&place, "content");
    // What is remembered of the tree must not hide what became of its blobs.
    place.store.remember_all();
    assert_eq!(place.again().completeness(&tree).unwrap(), Complete::Whole);
    forge(&place.store.blob_path(&blob));
    let path = "d/file".to_string();
    let found = place.again().completeness(&tree).unwrap();
    assert_eq!(found, Complete::Damaged { path: path.clone(), digest: blob });
    assert_eq!(place.again().completeness(&tree).unwrap(), Complete::Missing { path, digest: blob });
    forge(&place.store.blob_path(&tree));
    let found = place.again().completeness(&tree).unwrap();
    assert_eq!(found, Complete::Damaged { path: String::new(), digest: tree });
    assert_eq!(place.store.tree(&tree).unwrap(), None);
}

#[test]
fn a_put_replaces_a_damaged_blob() {
    let place = Place::new();
    let (_, blob) = stored(&place, "content");
    forge(&place.store.blob_path(&blob));
    place.again().put_bytes(b"content").unwrap();
    assert_eq!(place.store.bytes(&blob).unwrap(), b"content");
}

#[test]
fn a_truncated_blob_is_found() {
    let place = Place::new();
    let (tree, blob) = stored(&place, &"b".repeat(200_000));
    let path = place.store.blob_path(&blob);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(!place.again().complete(&tree));
}

#[test]
fn verify_reads_everything() {
    let place = Place::new();
    let (_, blob) = stored(&place, "content");
    write(&place.cache(), "blobs/ab/stray", "");
    let good = place.store.verify_all(&|_, _| {}).unwrap();
    assert_eq!((good.blobs, good.bad.len(), good.strange.len()), (3, 0, 1));
    forge(&place.store.blob_path(&blob));
    let found = place.again().verify_all(&|_, _| {}).unwrap();
    assert_eq!((found.blobs, found.bad), (3, vec![blob]));
}

#[test]
fn links_renew_the_records_so_that_nothing_is_read_again() {
    let place = Place::new();
    let (tree, blob) = stored(&place, &"b".repeat(300_000));
    place.store.materialize(&tree, None, &place.path("job/in"), Link::Hardlink).unwrap();
    let path = place.store.blob_path(&blob);
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    let vouched = |when: &str| {
        // Unreadable now: whoever reads the bytes again fails. Root reads anything, so a look at the times must do.
        let before = fs::metadata(&path).unwrap();
        assert!(place.again().complete(&tree), "{when}");
        assert!(place.store.complete(&tree), "{when}");
        let table = itpipe::stat_table::Table::open(&place.cache().join("stat/blobs"));
        let record = table.get(blob.as_bytes()).unwrap();
        assert_eq!(record.stat.ctime, before.ctime() * 1_000_000_000 + before.ctime_nsec(), "{when}");
        record.read_at
    };
    let first = vouched("linked");
    place.store.release(&place.path("job")).unwrap();
    assert!(!place.path("job").exists());
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    assert_eq!(vouched("released"), first, "the bytes were not read again");
}

#[test]
fn a_link_that_a_stage_wrote_through_is_not_vouched_for() {
    let place = Place::new();
    let (tree, _) = stored(&place, &"b".repeat(300_000));
    place.store.materialize(&tree, None, &place.path("job/in"), Link::Hardlink).unwrap();
    forge(&place.path("job/in/d/file"));
    place.store.release(&place.path("job")).unwrap();
    assert!(!place.store.complete(&tree));
}

#[test]
fn many_links_at_once_and_more_than_the_file_system_allows() {
    let place = Place::new();
    let many: Vec<(String, &str)> =
        (0..500).map(|i| (format!("d{}/f{i}", i % 7), ["a", "b"][i % 2])).collect();
    let files: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), *b)).collect();
    let (tree, _) = place.store.put_tree(&place.folder("out", &files)).unwrap();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let (place, tree) = (&place, &tree);
            scope.spawn(move || {
                place.store.materialize(tree, None, &place.path(&format!("job{i}")), Link::Hardlink).unwrap();
            });
        }
    });
    for i in 0..4 {
        let job = place.path(&format!("job{i}"));
        assert_eq!(
            walkdir::WalkDir::new(&job)
                .into_iter()
                .filter(|e| e.as_ref().unwrap().file_type().is_file())
                .count(),
            500
        );
        place.store.release(&job).unwrap();
    }
    assert!(place.store.complete(&tree));
}

#[test]
fn writers_at_once_agree() {
    let place = Place::new();
    let contents: Vec<String> = (0..60).map(|i| format!("{i}").repeat(1 + i * 97)).collect();
    let trees: Vec<Digest> = std::thread::scope(|scope| {
        let puts: Vec<_> = (0..8)
            .map(|i| {
                let (place, contents) = (&place, &contents);
                scope.spawn(move || {
                    let names: Vec<String> = (0..contents.len()).map(|i| format!("f{i}")).collect();
                    let files: Vec<_> =
                        names.iter().zip(contents).map(|(a, b)| (a.as_str(), b.as_str())).collect();
                    let out = place.folder(&format!("out{i}"), &files);
                    // Half of them as other processes would.
                    let store = place.again();
                    if i % 2 == 0 { &place.store } else { &store }.put_tree(&out).unwrap().0
                })
            })
            .collect();
        puts.into_iter().map(|put| put.join().unwrap()).collect()
    });
    assert!(trees.iter().all(|tree| *tree == trees[0]));
    assert!(place.again().complete(&trees[0]));
    assert!(place.store.verify_all(&|_, _| {}).unwrap().bad.is_empty());
    assert_eq!(fs::read_dir(place.store.tmp()).unwrap().count(), 0);
}

#[test]
fn a_program_is_kept_apart_from_later_builds() {
    let place = Place::new();
    let bin = place.folder("target", &[("tool*", "#!/bin/sh\necho one\n")]).join("tool");
    let kept = place.store.put_program(&bin).unwrap();
    fs::write(&bin, "#!/bin/sh\necho two\n").unwrap();
    let said = std::process::Command::new(&kept).output().unwrap();
    assert_eq!(said.stdout, b"one\n");
    assert_eq!(kept.file_name().unwrap(), "tool");
    assert_ne!(place.store.put_program(&bin).unwrap(), kept);
}

#[test]
fn a_version_from_the_future_is_refused() {
    let place = Place::new();
    fs::write(place.cache().join("version"), "itpipe cache 9\n").unwrap();
    let error = Store::open(&place.cache()).err().unwrap().to_string();
    assert!(
        error
            .ends_with("cache/version: version 'itpipe cache 9': this itpipe knows version 'itpipe cache 1'"),
        "{error}"
    );
}

#[test]
fn too_little_space_is_found_up_front() {
    let place = Place::new();
    place.store.check_writable(0).unwrap();
    let error = place.store.check_writable(1 << 60).unwrap_err().to_string();
    assert!(
        error.contains("cache: disk full: ") && error.contains(" MB are free, 1099511627776 MB are needed"),
        "{error}"
    );
}

/// Mounts a small tmpfs; `None`, said aloud, where that is not allowed.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(place: &Place, options: &str) -> Option<Small> {
        let path = place.path("small");
        fs::create_dir_all(&path).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Small(path)),
            _ => {
                eprintln!("skipped: no tmpfs can be mounted here");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_leaves_nothing_half_written_and_names_the_file() {
    let place = Place::new();
    let Some(small) = Small::mount(&place, "size=2m") else { return };
    let cache = small.0.join("cache");
    let store = Store::open(&cache).unwrap();
    store.put_bytes(b"before").unwrap();
    let big = place.folder("out", &[("a", "small"), ("big", &"x".repeat(3 << 20))]);
    let error = store.put_tree(&big).unwrap_err().to_string();
    assert!(error.contains("out/big: ") && error.contains("No space left on device"), "{error}");
    assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0, "nothing half-written");
    assert!(big.join("big").exists(), "the output is still there");
    let verified = Store::open(&cache).unwrap().verify_all(&|_, _| {}).unwrap();
    assert!(verified.bad.is_empty() && verified.strange.is_empty());
    let error = store.check_writable(2 << 20).unwrap_err().to_string();
    assert!(error.contains("disk full: ") && error.contains("2 MB are needed\n  hint: "), "{error}");

    // To the last byte: also the journal then takes back what it could not write.
    let results = itpipe::results::Results::open(&cache).unwrap();
    let tree = store.put_tree(&place.folder("tiny", &[("a", "small")])).unwrap().0;
    let one = crate::result(&store, Digest::of(b"key"), tree);
    results.record(&store, &one).unwrap();
    let filler = fs::File::create(small.0.join("filler"));
    let mut filler = filler.unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let mut recorded = 1;
    let error = loop {
        let more = crate::ActionResult { key: Digest::of(&[recorded]), ..one.clone() };
        match results.record(&store, &more) {
            Ok(()) => recorded += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("results/journal: No space left on device"), "{error}");
    assert!(store.check_writable(0).unwrap_err().to_string().contains("disk full: 0 MB are free"));
    drop(filler);
    fs::remove_file(small.0.join("filler")).unwrap();
    assert_eq!(itpipe::results::Results::open(&cache).unwrap().len(), usize::from(recorded));
    results.record(&store, &one).unwrap();
    assert_eq!(itpipe::results::Results::open(&cache).unwrap().len(), usize::from(recorded) + 1);
}

#[test]
fn a_read_only_store_serves_and_says_that_it_cannot_keep() {
    let place = Place::new();
    let (tree, _) = stored(&place, "content");
    let (cache, mount) = (place.cache(), place.path("ro"));
    let _guard;
    let cache = if is_root() {
        // Root ignores permissions, so a read-only mount of the same folder.
        fs::create_dir(&mount).unwrap();
        let run = |args: &[&str]| {
            let paths = [cache.as_path(), mount.as_path()];
            let mut command = std::process::Command::new("mount");
            command.args(args);
            if args[0] == "--bind" {
                command.args(paths)
            } else {
                command.arg(&mount)
            };
            command.output().is_ok_and(|done| done.status.success())
        };
        if !run(&["--bind"]) || !run(&["-o", "remount,ro,bind"]) {
            eprintln!("skipped: nothing can be mounted here");
            return;
        }
        _guard = Small(mount.clone());
        mount
    } else {
        for entry in
            walkdir::WalkDir::new(&cache).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_dir())
        {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o555)).unwrap();
        }
        cache
    };
    let store = Store::open(&cache).unwrap();
    assert!(store.complete(&tree));
    store.materialize(&tree, None, &place.path("dest"), Link::Copy).unwrap();
    assert_eq!(digest::file(&place.path("dest/d/file")).unwrap(), Digest::of(b"content"));
    for error in [store.check_writable(0).unwrap_err(), store.put_bytes(b"new").unwrap_err()] {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains("\n  hint: give a folder that you may write with --cache"));
    }
    itpipe::results::Results::open(&cache).unwrap();
    let fresh = Store::open(&cache.join("below")).err().unwrap();
    assert!(matches!(fresh, StoreError::ReadOnly { .. }), "{fresh}");
    if !is_root() {
        for entry in
            walkdir::WalkDir::new(&cache).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_dir())
        {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
