//! Random pipelines of one stage that declares everything it can: any change of a declared thing runs it again, and only
//! it; writing the same thing in another way, at another time or place, by another user or on other threads runs nothing.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use support::{Out, Repo};

/// What the stage declares, as values whose text is YAML.
#[derive(Clone, Debug, PartialEq)]
struct Declared {
    script: u8,
    salt: u8,
    params: BTreeMap<String, String>,
    /// The code, a glob over `lib`.
    code: BTreeMap<String, u8>,
    identity: u8,
    env: Option<String>,
    file: u8,
    /// A folder: content and executable bit of each file, and the target of a symlink.
    folder: BTreeMap<String, (u8, bool)>,
    link: u8,
    /// The order of a list input, and the content of one of its sources.
    reversed: bool,
    upstream: u8,
    statistical: bool,
}

/// What `flip` knows, and two that change other stages besides.
const KINDS: u8 = 20;
const SALT: u8 = 1;
const UPSTREAM: u8 = 18;

/// Changes one declared thing; false where that changes nothing here.
fn flip(declared: &mut Declared, what: u8) -> bool {
    let before = declared.clone();
    let first = declared.params.keys().next().cloned().unwrap_or_default();
    match what {
        0 => declared.script += 1,
        SALT => declared.salt += 1,
        2 => _ = declared.params.insert(first, "99".into()),
        3 => _ = declared.params.insert(first, "99.0".into()),
        4 => _ = declared.params.insert(first, "\"99\"".into()),
        5 => _ = declared.params.insert(first, "[99, { deep: 1 }]".into()),
        6 => _ = declared.params.insert("more".into(), "null".into()),
        7 => _ = declared.params.remove(&first),
        8 => *declared.code.entry("a.sh".into()).or_default() += 1,
        9 => _ = declared.code.insert("new.sh".into(), 0),
        10 => declared.identity += 1,
        11 => declared.env = Some("other".into()),
        12 => declared.env = if declared.env.is_none() { Some(String::new()) } else { None },
        13 => declared.file += 1,
        14 => _ = declared.folder.insert("new".into(), (0, false)),
        15 => declared.folder.values_mut().for_each(|(_, executable)| *executable ^= true),
        16 => declared.link += 1,
        17 => declared.reversed ^= true,
        UPSTREAM => declared.upstream += 1,
        _ => declared.statistical ^= true,
    }
    *declared != before
}

/// How the same is written.
#[derive(Clone, Copy, Debug, Default)]
struct Style {
    /// Maps in the opposite order.
    backwards: bool,
    comments: bool,
    /// Quotes and block style where there were none.
    quoted: bool,
    threads: u8,
    pools: bool,
    /// Another name of the kind, and of a stage that nobody reads by its name.
    renamed: bool,
}

fn yaml(declared: &Declared, style: Style) -> String {
    let map = |entries: Vec<(String, String)>| {
        let mut entries: Vec<String> = entries
            .into_iter()
            .map(|(k, v)| if style.quoted { format!("\"{k}\":   {v}") } else { format!("{k}: {v}") })
            .collect();
        if style.backwards {
            entries.reverse();
        }
        format!("{{ {} }}", entries.join(", "))
    };
    let own = |pairs: &[(&str, String)]| map(pairs.iter().map(|(k, v)| (k.to_string(), v.clone())).collect());
    let kind_name = if style.renamed { "other" } else { "k" };
    let list = if declared.reversed { "[v, u]" } else { "[u, v]" };
    let stage = own(&[
        ("kind", kind_name.into()),
        ("params", map(declared.params.clone().into_iter().collect())),
        ("in", own(&[("file", "./file.txt".into()), ("folder", "./folder".into()), ("list", list.into())])),
    ]);
    let kind = own(&[
        ("shell", format!("'echo fixed > $out/x; : {}'", declared.script)),
        ("code", "['lib/*.sh']".into()),
        ("identity", "[./identity.sh]".into()),
        ("env", "[DECLARED]".into()),
        ("repeatable", if declared.statistical { "statistical" } else { "bits" }.into()),
        ("threads", (1 + style.threads % 3).to_string()),
    ]);
    let name = if style.renamed { "renamed" } else { "s" };
    let comment = if style.comments { "# a comment\n\n" } else { "" };
    let mut sections = vec![
        format!("salt: 's{}'\n{comment}", declared.salt),
        format!("kinds:\n  {kind_name}: {kind}\n{comment}"),
        format!(
            "stages:\n  {name}: {stage}\n{comment}  u: {{ shell: 'echo {} > $out/x' }}\n  v: {{ shell: 'echo v > $out/x' }}\n  \
             after: {{ shell: 'cat $in_s/x > $out/x', in: {{ s: {name} }} }}\n",
            declared.upstream
        ),
    ];
    if style.pools {
        sections.push("pools: { cpu: 3 }\n".into());
    }
    if style.backwards {
        sections.reverse();
    }
    sections.concat()
}

fn write(repo: &Repo, declared: &Declared, style: Style) {
    repo.pipeline(&yaml(declared, style));
    for folder in ["lib", "folder"] {
        let _ = fs::remove_dir_all(repo.path(folder));
    }
    for (name, content) in &declared.code {
        repo.write(&format!("lib/{name}"), content.to_string());
    }
    repo.write("lib/not-code.txt", format!("{style:?}"));
    repo.write("identity.sh", format!("#!/bin/sh\necho compiler {}\n", declared.identity));
    fs::set_permissions(repo.path("identity.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    repo.write("file.txt", declared.file.to_string());
    for (name, (content, executable)) in &declared.folder {
        let path = format!("folder/{name}");
        repo.write(&path, content.to_string());
        let mode = if *executable { 0o755 } else { 0o644 };
        fs::set_permissions(repo.path(&path), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink(format!("to{}", declared.link), repo.path("folder/link")).unwrap();
}

/// Where and by whom it is run.
#[derive(Clone, Copy, Debug, Default)]
struct Around {
    moved: bool,
    user: bool,
    jobs: Option<u8>,
    /// Other times of all files.
    touched: bool,
    undeclared: bool,
}

/// The binary where every user can start it.
fn binary() -> PathBuf {
    static COPY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = COPY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_itpipe"), folder.path().join("itpipe")).unwrap();
        folder
    });
    folder.path().join("itpipe")
}

fn run(repo: &Repo, declared: &Declared, around: Around) -> Out {
    // SAFETY: a plain system call.
    let root = unsafe { libc::geteuid() } == 0;
    let place = tempfile::tempdir().unwrap();
    let there = place.path().join("elsewhere");
    let here = if around.moved || (around.user && root) {
        let copied = Command::new("cp").arg("-a").arg(repo.root()).arg(&there).status();
        assert!(copied.unwrap().success());
        there
    } else {
        repo.root().to_path_buf()
    };
    if around.touched {
        let time = SystemTime::now() - Duration::from_secs(12345);
        for file in ["file.txt", "pipeline.yaml", "lib/a.sh", "folder/f"] {
            // A file that is not there has no time.
            let _ = fs::File::options().append(true).open(here.join(file)).and_then(|f| f.set_modified(time));
        }
    }
    repo.with(&["run"], |command| {
        if around.user && root {
            let owned = Command::new("chown").args(["-R", "-h", "12345:12345"]).arg(place.path()).status();
            assert!(owned.unwrap().success());
            let own = command.get_args().map(std::ffi::OsStr::to_os_string).collect::<Vec<_>>();
            let mut other = Command::new(binary());
            other.args(own).uid(12345).gid(12345).env("USER", "somebody").env("HOME", place.path());
            std::mem::swap(command, &mut other);
        }
        command.current_dir(&here);
        if let Some(jobs) = around.jobs {
            command.env("ITPIPE_JOBS", (1 + jobs % 4).to_string());
            command.env("RAYON_NUM_THREADS", (1 + jobs % 3).to_string());
        }
        if around.undeclared {
            command.env("UNDECLARED", "x").env("LANG", "C").env("TZ", "Asia/Tokyo");
        }
        match &declared.env {
            Some(value) => _ = command.env("DECLARED", value),
            None => _ = command.env_remove("DECLARED"),
        }
    })
}

fn declared() -> impl Strategy<Value = Declared> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        (-1e3..1e3).prop_map(|x: f64| format!("{x:?}")),
        "[a-z \u{e9}:#{]{0,6}".prop_map(|text| serde_json::to_string(&text.replace('{', "{{")).unwrap()),
        Just("true".to_string()),
        Just("[1, 2]".to_string()),
        Just("{ b: 1, a: [x] }".to_string()),
    ];
    (
        prop::collection::btree_map("[a-d]", leaf, 1..4),
        prop::collection::btree_map("[a-c]\\.sh", 0u8..3, 1..3),
        prop::option::of("[ -~]{0,8}"),
        prop::collection::btree_map("[fg]", (0u8..3, any::<bool>()), 1..3),
        (any::<bool>(), any::<bool>(), 0u8..3),
    )
        .prop_map(|(params, code, env, folder, (reversed, statistical, n))| Declared {
            script: n,
            salt: n,
            params,
            code,
            identity: n,
            env,
            file: n,
            folder,
            link: n,
            reversed,
            upstream: n,
            statistical,
        })
}

fn style() -> impl Strategy<Value = Style> {
    (any::<[bool; 5]>(), any::<u8>()).prop_map(|([backwards, comments, quoted, pools, renamed], threads)| {
        Style { backwards, comments, quoted, threads, pools, renamed }
    })
}

fn around() -> impl Strategy<Value = Around> {
    (any::<[bool; 4]>(), prop::option::of(any::<u8>())).prop_map(
        |([moved, user, touched, undeclared], jobs)| Around { moved, user, jobs, touched, undeclared },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn what_is_declared_flips_the_key_and_nothing_else_does(
        declared in declared(),
        styles in prop::collection::vec((style(), around()), 3),
        flips in prop::collection::vec(0..KINDS, 4),
    ) {
        let repo = Repo::new("stages: {}\n");
        fs::set_permissions(repo.root(), fs::Permissions::from_mode(0o755)).unwrap();
        let plain = Style::default();
        write(&repo, &declared, plain);
        let first = run(&repo, &declared, Around::default()).good();
        prop_assert_eq!(first.ran(), ["after", "s", "u", "v"]);
        for (style, around) in styles {
            write(&repo, &declared, style);
            let out = run(&repo, &declared, around).good();
            prop_assert_eq!(out.ran(), [""; 0], "{:?} {:?}: {}", style, around, out.stderr);
        }
        let mut known = BTreeSet::new();
        for what in flips {
            let mut changed = declared.clone();
            if !flip(&mut changed, what) {
                continue;
            }
            write(&repo, &changed, plain);
            let out = run(&repo, &changed, Around::default()).good();
            let expected: &[&str] = match what {
                SALT => &["after", "s", "u", "v"],
                UPSTREAM => &["s", "u"],
                _ => &["s"],
            };
            // Drawn again it is known.
            let expected = if known.insert(what) { expected } else { &[] };
            prop_assert_eq!(out.ran(), expected, "{}: {}", what, out.stderr);
            write(&repo, &declared, plain);
            let back = run(&repo, &declared, Around::default()).good();
            prop_assert_eq!(back.ran(), [""; 0], "{} and back: {}", what, back.stderr);
        }
    }
}

/// Each kind of change once, whatever the random ones were.
#[test]
fn every_declared_thing_flips_the_key() {
    let declared = Declared {
        script: 0,
        salt: 0,
        params: [("p".to_string(), "1".to_string())].into(),
        code: [("a.sh".to_string(), 0)].into(),
        identity: 0,
        env: Some("value".into()),
        file: 0,
        folder: [("f".to_string(), (0, false))].into(),
        link: 0,
        reversed: false,
        upstream: 0,
        statistical: false,
    };
    let repo = Repo::new("stages: {}\n");
    write(&repo, &declared, Style::default());
    run(&repo, &declared, Around::default()).good();
    for what in 0..KINDS {
        let mut changed = declared.clone();
        assert!(flip(&mut changed, what), "{what}");
        write(&repo, &changed, Style::default());
        let out = run(&repo, &changed, Around::default()).good();
        assert!(out.ran().contains(&"s"), "{what}: {}", out.stderr);
        assert!(what == SALT || !out.ran().contains(&"after"), "{what}: {}", out.stderr);
    }
}
