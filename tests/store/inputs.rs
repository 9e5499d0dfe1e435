//! The stat cache: what is remembered of the repository's files, and when it does not count.

use std::fs;
use std::os::unix::fs::symlink;

use itpipe::digest::{self, Digest};
use itpipe::stat::{Record, Stat, now};
use itpipe::stat_cache::StatCache;
use itpipe::stat_table::Table;

use crate::{Place, forge, settle, write};

fn open(place: &Place) -> StatCache {
    StatCache::open(&place.cache()).unwrap()
}

#[test]
fn the_cache_says_what_the_store_says() {
    let place = Place::new();
    let root = place.folder("in", &[("a b", "1"), ("d/e", "2"), ("run*", "3"), ("empty/", "")]);
    symlink("d/e", root.join("link")).unwrap();
    let stat = open(&place);
    let top = root.parent().unwrap();
    for rel in ["in", "in/d", "in/d/e", "in/run", "in/empty", "in/link"] {
        let expected = place.store.import(&top.join(rel)).unwrap().digest();
        assert_eq!(stat.path(top, rel).unwrap(), expected, "{rel}");
        assert_eq!(stat.path(top, rel).unwrap(), expected, "{rel}");
    }
    assert_eq!(stat.file(&root.join("run")).unwrap(), Digest::of(b"3"));
    assert!(stat.path(top, "in/none").unwrap_err().to_string().contains("in/none: No such file"));
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_noticed() {
    let place = Place::new();
    let root = place.folder("in", &[("a", "content"), ("b", "x")]);
    settle();
    let stat = open(&place);
    let before = stat.path(&root, "").unwrap();
    stat.save().unwrap();
    forge(&root.join("a"));
    assert_ne!(stat.path(&root, "").unwrap(), before);
    assert_ne!(open(&place).path(&root, "").unwrap(), before);
}

#[test]
fn an_edit_in_the_tick_of_the_reading_is_noticed() {
    // Without git's rule about every tenth round would go wrong on a clock of 4 ms.
    let place = Place::new();
    let root = place.folder("in", &[]);
    let stat = open(&place);
    for round in 0..300u32 {
        let path = root.join("file");
        for content in [round.to_le_bytes(), (!round).to_le_bytes()] {
            fs::write(&path, content).unwrap();
            assert_eq!(stat.file(&path).unwrap(), Digest::of(&content), "round {round}");
        }
    }
}

#[test]
fn a_record_is_trusted_only_when_the_file_is_safely_older() {
    let stat = |mtime, ctime| Stat { dev: 1, ino: 2, size: 3, mtime, ctime };
    let second = 1_000_000_000;
    let record = |stat: Stat, read_at| Record { key: [0; 32], digest: Digest::of(b""), stat, read_at };
    let fine = stat(5 * second + 1, 5 * second + 1);
    assert!(record(fine, 6 * second).holds(&fine));
    assert!(!record(fine, 5 * second + 2).holds(&fine), "the same tick");
    assert!(!record(fine, 4 * second).holds(&fine), "from the future");
    let coarse = stat(5 * second, 5 * second);
    assert!(!record(coarse, 6 * second).holds(&coarse), "a file system that keeps whole seconds");
    assert!(record(coarse, 8 * second).holds(&coarse));
    for other in
        [stat(0, 5 * second + 1), stat(5 * second + 1, 0), Stat { ino: 9, ..fine }, Stat { size: 9, ..fine }]
    {
        assert!(!record(fine, 6 * second).holds(&other));
    }
    assert!(!record(fine, 6 * second).holds(&Stat { dev: 9, ..fine }));
}

#[test]
fn what_was_read_is_remembered_and_moves_with_the_repository() {
    let place = Place::new();
    let repo = place.folder("repo", &[("data/a", "1"), ("data/b", "2")]);
    let cache = repo.join("cache");
    fs::create_dir_all(cache.join("stat")).unwrap();
    settle();
    let stat = StatCache::open(&cache).unwrap();
    let before = stat.path(&repo, "data").unwrap();
    stat.save().unwrap();
    let size = || fs::metadata(cache.join("stat/files")).unwrap().len();
    assert_eq!(size(), 3 * 128);
    let moved = place.path("moved");
    fs::rename(&repo, &moved).unwrap();
    let stat = StatCache::open(&moved.join("cache")).unwrap();
    assert_eq!(stat.path(&moved, "data").unwrap(), before);
    stat.save().unwrap();
    assert_eq!(
        fs::metadata(moved.join("cache/stat/files")).unwrap().len(),
        3 * 128,
        "nothing was read again"
    );
    write(&moved, "data/c", "3");
    let more = stat.path(&moved, "data").unwrap();
    assert_ne!(more, before);
    stat.save().unwrap();
    assert_eq!(fs::metadata(moved.join("cache/stat/files")).unwrap().len(), 4 * 128, "one file was read");
}

#[test]
fn a_torn_or_foreign_table_is_no_error() {
    let place = Place::new();
    let path = place.path("table");
    let key = |i: u8| [i; 32];
    let stat = Stat { dev: 1, ino: 1, size: 1, mtime: 1, ctime: 1 };
    let record = |i: u8| Record { key: key(i), digest: Digest::of(&[i]), stat, read_at: now() };
    let table = Table::open(&path);
    table.put(&[record(1), record(2), record(3)]);
    table.save().unwrap();
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..cut]).unwrap();
        let table = Table::open(&path);
        let kept = (1..4).filter(|&i| table.get(&key(i)).is_some()).count();
        assert_eq!(kept, (cut / 128).saturating_sub(1), "cut at {cut}");
        table.put(&[record(9)]);
        table.save().unwrap();
        assert_eq!(Table::open(&path).get(&key(9)).is_some(), cut == 0 || cut >= 128, "cut at {cut}");
    }
    let mut bent = whole.clone();
    bent[128 + 40] ^= 1;
    fs::write(&path, bent).unwrap();
    let table = Table::open(&path);
    assert!(table.get(&key(1)).is_none() && table.get(&key(2)).is_some());
    fs::write(&path, "something else entirely").unwrap();
    assert!(Table::open(&path).get(&key(1)).is_none());
}

#[test]
fn tables_of_many_processes_come_together_and_stay_small() {
    let place = Place::new();
    let path = place.path("table");
    let stat = Stat { dev: 1, ino: 1, size: 1, mtime: 1, ctime: 1 };
    let record = |i: u64| {
        let digest = Digest::of(&i.to_le_bytes());
        Record { key: *digest.as_bytes(), digest, stat, read_at: now() }
    };
    let (a, b) = (Table::open(&path), Table::open(&path));
    a.put(&[record(1)]);
    b.put(&[record(2)]);
    a.save().unwrap();
    b.save().unwrap();
    a.refresh();
    assert!(a.get(&record(2).key).is_some());
    for _ in 0..8 {
        a.put(&(0..2000).map(record).collect::<Vec<_>>());
        a.save().unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 128 * 16_003);
    let c = Table::open(&path);
    assert_eq!(fs::metadata(&path).unwrap().len(), 128 * 2001, "compacted");
    // The others go on with the new file.
    b.put(&[record(5000)]);
    b.save().unwrap();
    c.refresh();
    assert!(c.get(&record(5000).key).is_some() && c.get(&record(1999).key).is_some());
}

#[test]
fn an_input_that_changes_after_it_was_looked_at_is_named() {
    let place = Place::new();
    let root = place.folder("in", &[("a", "1"), ("d/b", "2"), ("d/c", "3")]);
    let single = place.folder("x", &[("file", "4")]).join("file");
    symlink("file", place.path("x/link")).unwrap();
    settle();
    let stat = open(&place);
    let paths = [root.clone(), single.clone(), place.path("x/link")];
    let take = || stat.snapshot(&paths).unwrap();
    let names = |paths: Vec<std::path::PathBuf>| {
        let top = root.parent().unwrap();
        paths.iter().map(|path| path.strip_prefix(top).unwrap().display().to_string()).collect::<Vec<_>>()
    };

    let seen = take();
    assert_eq!(seen.digests().nth(1), Some(Digest::of(b"4")));
    assert_eq!(names(seen.changed()), Vec::<String>::new());
    fs::File::open(root.join("a"))
        .unwrap()
        .set_times(fs::FileTimes::new().set_modified(std::time::SystemTime::now()))
        .unwrap();
    assert_eq!(names(seen.changed()), Vec::<String>::new(), "a touch is no change");

    forge(&root.join("d/b"));
    assert_eq!(names(seen.changed()), ["in/d/b"]);
    write(&root, "new", "");
    fs::remove_file(root.join("d/c")).unwrap();
    assert_eq!(names(seen.changed()), ["in/d/b", "in/d/c", "in/new"]);
    forge(&single);
    assert_eq!(names(seen.changed()), ["in/d/b", "in/d/c", "in/new", "x/file", "x/link"]);

    let seen = take();
    write(&place.path("x"), "older", "6");
    fs::remove_file(place.path("x/link")).unwrap();
    symlink("older", place.path("x/link")).unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(names(seen.changed()), ["in", "x/link"]);

    // Changed at once, in the very tick.
    write(&place.path("x"), "file", "aaaa");
    let seen = stat.snapshot(&[&single]).unwrap();
    write(&place.path("x"), "file", "bbbb");
    assert_eq!(names(seen.changed()), ["x/file"]);
}

#[test]
fn a_file_that_is_being_written_is_not_remembered() {
    let place = Place::new();
    let root = place.folder("in", &[("big", &"0".repeat(4 << 20))]);
    settle();
    let stat = open(&place);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(root.join("big")).unwrap();
            for i in 0u64.. {
                file.write_at(&i.to_le_bytes(), (i * 4099) % (4 << 20)).unwrap();
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..50 {
            stat.file(&root.join("big")).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(stat.file(&root.join("big")).unwrap(), digest::file(&root.join("big")).unwrap());
    settle();
    assert_eq!(stat.file(&root.join("big")).unwrap(), digest::file(&root.join("big")).unwrap());
}
