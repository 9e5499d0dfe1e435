//! Bakes into the program what compiled it: the compiler, the target, the features, the profile and a digest of the
//! locked dependencies. `stages identity` prints it; its text is part of the key of every stage of ours.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    println!("cargo::rerun-if-changed=Cargo.toml");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let rustc = Command::new(variable("RUSTC")).arg("-Vv").output();
    let rustc = rustc.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    // Only the lines that tell one compiler from another; the rest names the machine's LLVM build and host.
    let line =
        |name: &str| rustc.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("unknown").trim().to_string();
    set("IT_RUSTC", &format!("{} {}", line("release:"), line("commit-hash:")));
    set("IT_TARGET", &variable("TARGET"));
    set("IT_TARGET_FEATURES", &variable("CARGO_CFG_TARGET_FEATURE"));
    set("IT_PROFILE", &variable("PROFILE"));
    set("IT_OPT_LEVEL", &variable("OPT_LEVEL"));
    set("IT_RUSTFLAGS", &variable("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " "));
    let mut features: Vec<String> = env::vars()
        .filter_map(|(name, _)| {
            name.strip_prefix("CARGO_FEATURE_").map(|f| f.to_lowercase().replace('_', "-"))
        })
        .collect();
    // hf-hub serves fetch alone, whose results are keyed by what they promise: it is no code of the other kinds.
    features.retain(|feature| feature != "default" && feature != "hf-hub");
    features.sort();
    set("IT_FEATURES", &features.join(","));
    let absent = absent(&read_manifest(&variable("CARGO_MANIFEST_DIR")), &features);
    let read = |name: &str| fs::read_to_string(Path::new(&variable("CARGO_MANIFEST_DIR")).join(name));
    let (lock, manifest) =
        (read("../Cargo.lock").unwrap_or_default(), read("Cargo.toml").unwrap_or_default());
    set("IT_DEPENDENCIES", &closure(&lock, &manifest, &absent, "stages"));
}

fn read_manifest(folder: &str) -> String {
    fs::read_to_string(Path::new(folder).join("Cargo.toml")).unwrap_or_default()
}

/// The optional dependencies whose features are off: the lock names them, the program has them not.
fn absent(manifest: &str, features: &[String]) -> Vec<String> {
    let optional = manifest.lines().filter(|line| line.contains("optional = true"));
    let names = optional.filter_map(|line| Some(line.split_once(" =")?.0.trim().to_string()));
    let is_on = |name: &String| {
        let word = format!("\"dep:{name}\"");
        let mut of = manifest.lines().filter(|line| line.contains(&word));
        of.any(|line| {
            line.split_once(" =").is_some_and(|(feature, _)| features.iter().any(|f| f == feature.trim()))
        })
    };
    names.filter(|name| !is_on(name)).collect()
}

fn set(name: &str, value: &str) {
    println!("cargo::rustc-env={name}={value}");
}

/// The packages that `root` needs, one `name version checksum` a package, joined by `;`. Other members of the
/// workspace, what only they need and what only the tests need are left out, so that none of these retrains a model.
fn closure(lock: &str, manifest: &str, absent: &[String], root: &str) -> String {
    struct Package {
        name: String,
        version: String,
        checksum: String,
        needs: Vec<String>,
    }
    let mut packages: Vec<Package> = Vec::new();
    let mut in_needs = false;
    for line in lock.lines().map(str::trim) {
        let value = |prefix: &str| {
            line.strip_prefix(prefix)
                .and_then(|l| l.strip_prefix(" = "))
                .map(|v| v.trim_matches('"').to_string())
        };
        if line == "[[package]]" {
            let empty = String::new;
            packages.push(Package { name: empty(), version: empty(), checksum: empty(), needs: Vec::new() });
        }
        let Some(package) = packages.last_mut() else { continue };
        if in_needs {
            in_needs = line != "]";
            if in_needs {
                package.needs.push(line.trim_end_matches(',').trim_matches('"').to_string());
            }
        } else if let Some(v) = value("name") {
            package.name = v;
        } else if let Some(v) = value("version") {
            package.version = v;
        } else if let Some(v) = value("checksum") {
            package.checksum = v;
        } else if line == "dependencies = [" {
            in_needs = true;
        }
    }
    // A need is written `name`, `name version` or `name version (source)`, as much as makes it unambiguous.
    let find = |need: &str| {
        let mut words = need.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        packages.iter().position(|p| p.name == name && version.is_none_or(|v| p.version == v))
    };
    let mut left_out = only_tests(manifest);
    left_out.extend(absent.iter().cloned());
    let mut seen: Vec<usize> = find(root).into_iter().collect();
    let mut next = 0;
    while next < seen.len() {
        let needs = packages[seen[next]].needs.iter();
        let needs = needs
            .filter(|need| next > 0 || !left_out.iter().any(|name| need.split(' ').next() == Some(name)));
        for found in needs.filter_map(|need| find(need)).collect::<Vec<_>>() {
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
        next += 1;
    }
    let mut lines: Vec<String> = seen
        .iter()
        .map(|&i| &packages[i])
        .filter(|p| p.name != root)
        .map(|p| format!("{} {} {}", p.name, p.version, p.checksum))
        .collect();
    lines.sort();
    lines.join(";")
}

/// The names under `[dev-dependencies]` that stand under no other heading.
fn only_tests(manifest: &str) -> Vec<String> {
    let (mut tests, mut others) = (Vec::new(), Vec::new());
    let mut heading = "";
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            heading = line;
        } else if let Some((name, _)) = line.split_once(['=', '.']) {
            let list = if heading == "[dev-dependencies]" { &mut tests } else { &mut others };
            list.push(name.trim().to_string());
        }
    }
    tests.retain(|name| !others.contains(name));
    tests
}
