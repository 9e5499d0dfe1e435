//! What is in a tree, what cannot be, and what its digest depends on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use itpipe::tree::{Entry, Sub, Tree, TreeError, What, check_symlink};
use proptest::prelude::*;

use crate::{Place, write};

fn digest(place: &Place, name: &str) -> String {
    place.store.import(&place.path(name)).unwrap().digest().to_string()
}

#[test]
fn order_of_creation_times_and_permissions_do_not_matter_but_content_does() {
    let place = Place::new();
    let files = [("b/c", "2"), ("a", "1"), ("run*", "x"), ("empty/", ""), ("b.c", "3")];
    let a = place.folder("a", &files);
    let reversed: Vec<_> = files.iter().rev().copied().collect();
    place.folder("b", &reversed);
    symlink("b/c", a.join("link")).unwrap();
    symlink("b/c", place.path("b/link")).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH;
    fs::File::open(a.join("a")).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(a.join("a"), mode).unwrap();
    let same = digest(&place, "a");
    assert_eq!(digest(&place, "b"), same);

    type Edit = fn(&std::path::Path);
    let edits: [(&str, Edit); 9] = [
        ("a byte", |root| write(root, "a", "0")),
        ("a name", |root| fs::rename(root.join("a"), root.join("A")).unwrap()),
        ("a file more", |root| write(root, "z", "")),
        ("a file less", |root| fs::remove_file(root.join("b.c")).unwrap()),
        ("the executable bit", |root| write(root, "run", "x")),
        ("an empty folder less", |root| fs::remove_dir(root.join("empty")).unwrap()),
        ("an empty folder filled", |root| write(root, "empty/f", "")),
        ("a symlink's target", |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("a", root.join("link")).unwrap();
        }),
        ("a symlink made a file", |root| {
            fs::remove_file(root.join("link")).unwrap();
            write(root, "link", "2");
        }),
    ];
    for (i, (what, edit)) in edits.into_iter().enumerate() {
        let name = format!("edit{i}");
        let root = place.folder(&name, &files);
        symlink("b/c", root.join("link")).unwrap();
        assert_eq!(digest(&place, &name), same, "{what}: before");
        edit(&root);
        assert_ne!(digest(&place, &name), same, "{what}");
    }
}

#[test]
fn odd_names_are_kept() {
    let place = Place::new();
    let names = ["a b", "zeilen\numbruch", "größe-文", "'\"$(x)`;&", "-n", "...", "a\\b", " "];
    let files: Vec<_> = names.iter().map(|name| (*name, *name)).collect();
    let out = place.folder("out", &files);
    let (tree, _) = place.store.put_tree(&out).unwrap();
    let back = place.path("back");
    place.store.materialize(&tree, None, &back, itpipe::cas::Link::Copy).unwrap();
    for name in names {
        assert_eq!(fs::read_to_string(back.join(name)).unwrap(), name);
    }
    assert_eq!(place.store.import(&back).unwrap().digest(), tree);
}

#[test]
fn what_cannot_be_kept_is_an_error_that_names_it() {
    use std::os::unix::ffi::OsStrExt;
    type Make = fn(&std::path::Path);
    let cases: [(&str, Make); 8] = [
        ("out/pipe: a fifo: only files, folders and symlinks can be kept", |root| {
            rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), 0o600.into()).unwrap();
        }),
        ("out/s/sock: a socket: only files, folders and symlinks can be kept", |root| {
            fs::create_dir(root.join("s")).unwrap();
            std::os::unix::net::UnixListener::bind(root.join("s/sock")).unwrap();
        }),
        ("out/up: symlink to '../x': it leads out of the folder", |root| {
            symlink("../x", root.join("up")).unwrap();
        }),
        ("out/d/up: symlink to '../../x': it leads out of the folder", |root| {
            fs::create_dir(root.join("d")).unwrap();
            symlink("../../x", root.join("d/up")).unwrap();
        }),
        (
            "out/abs: symlink to '/etc/passwd': an absolute target means something else in every folder",
            |root| {
                symlink("/etc/passwd", root.join("abs")).unwrap();
            },
        ),
        ("out/l: symlink to 'a/../..': '..' after a name: write the target without it", |root| {
            symlink("a/../..", root.join("l")).unwrap();
        }),
        (r"out/\xff: the name is not UTF-8: names must be, to mean the same on every machine", |root| {
            write(root, "fine", "");
            fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        }),
        (
            "out/d2/l: its target: the name is not UTF-8: names must be, to mean the same on every machine",
            |root| {
                fs::create_dir(root.join("d2")).unwrap();
                symlink(std::ffi::OsStr::from_bytes(b"\xfe"), root.join("d2/l")).unwrap();
            },
        ),
    ];
    for (message, make) in cases {
        let place = Place::new();
        let out = place.folder("out", &[]);
        make(&out);
        let error = place.store.put_tree(&out).unwrap_err().to_string();
        let prefix = format!("{}/", out.parent().unwrap().display());
        assert_eq!(error.strip_prefix(&prefix), Some(message), "{error}");
    }
}

#[test]
fn a_part_of_a_tree_has_a_digest_of_its_own() {
    let place = Place::new();
    let out =
        place.folder("out", &[("v2/w/weights", "w"), ("v2/meta", "m"), ("v2/run*", "m"), ("v2.1", "x")]);
    symlink("v2", out.join("latest")).unwrap();
    symlink("../v2.1", out.join("v2/up")).unwrap();
    symlink("loop", out.join("loop")).unwrap();
    let (digest, tree) = place.store.put_tree(&out).unwrap();
    let alone = place.folder("alone", &[("weights", "w")]);
    assert_eq!(tree.sub("v2/w").unwrap().digest(), place.store.import(&alone).unwrap().digest());
    assert_eq!(tree.sub("latest/w/").unwrap(), tree.sub("./v2//w").unwrap());
    assert_eq!(tree.sub("v2/meta").unwrap().digest(), itpipe::digest::Digest::of(b"m"));
    assert_ne!(
        tree.sub("v2/run").unwrap().digest(),
        itpipe::digest::Digest::of(b"m"),
        "the executable bit counts"
    );
    assert_eq!(tree.sub("").unwrap().digest(), digest);
    assert_eq!(tree.sub("v2/up").unwrap(), tree.sub("v2.1").unwrap());
    for absent in ["v", "v2/nothing", "v2.1/x", "../v2", "v2/../../v2", "v2/meta/x"] {
        assert!(matches!(tree.sub(absent), Err(TreeError::Absent { .. })), "{absent}");
    }
    let error = tree.sub("v2").unwrap_err().to_string();
    assert_eq!(error, "up: symlink to '../v2.1': it leads out of the folder");
    assert!(tree.sub("loop").is_err());
}

#[test]
fn a_forged_encoding_is_refused() {
    let file = |path: &str| Entry {
        path: path.into(),
        what: What::File { digest: itpipe::digest::Digest::of(b""), size: 0, executable: false },
    };
    let link = |path: &str, to: &str| Entry { path: path.into(), what: What::Symlink { target: to.into() } };
    for (entries, why) in [
        (vec![file("../x")], "a path leads out of it"),
        (vec![file("/x")], "a path leads out of it"),
        (vec![file("a//b")], "a path leads out of it"),
        (vec![file("")], "a path leads out of it"),
        (vec![file("a\0")], "a path leads out of it"),
        (vec![file("a"), file("a")], "its entries are not in order"),
        (vec![file("a"), file("a/b")], "an entry lies inside a file"),
        (vec![file("a"), file("a.b"), file("a/b")], "an entry lies inside a file"),
        (vec![link("a", "b"), file("a/b")], "an entry lies inside a file"),
        (vec![link("a", "/b")], "an absolute target means something else in every folder"),
        (vec![link("a/b", "../../c")], "it leads out of the folder"),
    ] {
        let error = Tree::decode(&Tree::new(entries).encode()).unwrap_err().to_string();
        assert!(error.ends_with(why), "{error}");
    }
    let good = Tree::new(vec![file("a"), link("b", "a")]).encode();
    for end in 0..good.len() {
        assert!(Tree::decode(&good[..end]).is_ok() == (end == 14 || end == 14 + 46), "cut at {end}");
    }
    let newer = String::from_utf8_lossy(&good).replacen("tree 1", "tree 2", 1);
    assert!(Tree::decode(newer.as_bytes()).unwrap_err().to_string().ends_with("not a tree of version 1"));
}

fn entry() -> impl Strategy<Value = (String, What)> {
    let what = prop_oneof![
        (any::<[u8; 2]>(), any::<bool>()).prop_map(|(bytes, executable)| What::File {
            digest: itpipe::digest::Digest::of(&bytes),
            size: 2,
            executable
        }),
        "[ab]{1,2}".prop_map(|target| What::Symlink { target }),
        Just(What::Folder),
    ];
    ("[ab.]?[ab]/?[ab]?[ab]", what)
}

/// Drops what could not stand in one folder: entries below a leaf.
fn possible(entries: Vec<(String, What)>) -> Vec<Entry> {
    let map: BTreeMap<String, What> =
        entries.into_iter().filter(|(path, _)| !path.starts_with('/')).collect();
    let above = |path: &str| path.match_indices('/').any(|(at, _)| map.contains_key(&path[..at]));
    map.iter()
        .filter(|(path, _)| !above(path))
        .map(|(path, what)| Entry { path: path.clone(), what: what.clone() })
        .collect()
}

proptest! {
    #[test]
    fn equal_digests_mean_equal_trees(
        a in proptest::collection::vec(entry(), 0..6).prop_map(possible),
        b in proptest::collection::vec(entry(), 0..6).prop_map(possible),
    ) {
        let (a, b) = (Tree::new(a), Tree::new(b));
        prop_assert_eq!(a.digest() == b.digest(), a == b);
    }

    #[test]
    fn a_tree_survives_its_encoding(entries in proptest::collection::vec(entry(), 0..12).prop_map(possible)) {
        let tree = Tree::new(entries);
        prop_assert_eq!(Tree::decode(&tree.encode()).unwrap(), tree);
    }

    #[test]
    fn a_part_and_the_rest_are_the_whole(entries in proptest::collection::vec(entry(), 1..12).prop_map(possible)) {
        let tree = Tree::new(entries);
        let mut seen = 0;
        for name in ["a", "b", "aa", "ab", "ba", "bb", ".a", ".b"] {
            if let Ok(Sub::Folder(part)) = tree.sub(name) {
                for entry in part.entries() {
                    let whole = tree.entries().iter().any(|e| e.path.ends_with(&format!("/{}", entry.path)) && e.what == entry.what);
                    prop_assert!(whole);
                    seen += 1;
                }
            }
        }
        prop_assert!(seen <= 8 * tree.entries().len());
    }

    /// Follows symlinks as the kernel does, in a model: nothing that the rule allows leaves the folder.
    #[test]
    fn allowed_symlinks_stay_inside(links in proptest::collection::btree_map("[ab](/[ab]){0,2}", "(\\.\\./){0,2}[ab](/[ab]){0,2}", 0..6)) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("x/y/root");
        fs::create_dir_all(&root).unwrap();
        for (path, target) in &links {
            if check_symlink(path, target).is_ok() {
                let at = root.join(path);
                // What lies below a symlink is not in a tree.
                let clear = at.ancestors().skip(1).take_while(|up| *up != root).all(|up| !up.is_symlink() );
                if clear && fs::create_dir_all(at.parent().unwrap()).is_ok() {
                    let _ = symlink(target, &at);
                }
            }
        }
        let root = root.canonicalize().unwrap();
        for path in links.keys() {
            if let Ok(real) = root.join(path).canonicalize() {
                prop_assert!(real.starts_with(&root), "{path} -> {}", real.display());
            }
        }
    }
}
