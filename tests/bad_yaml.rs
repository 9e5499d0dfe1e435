//! Every file of `tests/bad_yaml` is wrong, and its whole message stands beside it as a reviewed snapshot.
//!
//! Lines at the top of a file say how it is loaded: `# profile: NAME`, `# set: NAME=VALUE`.

use std::path::{Path, PathBuf};

use itpipe::graph::Graph;
use itpipe::parse;

fn message(file: &Path) -> String {
    let text = std::fs::read(file).unwrap();
    let head: Vec<String> = String::from_utf8_lossy(&text)
        .lines()
        .map_while(|line| line.strip_prefix("# ").map(str::to_owned))
        .collect();
    let profile = head.iter().find_map(|line| line.strip_prefix("profile: "));
    let overrides: Vec<(String, String)> = head
        .iter()
        .filter_map(|line| line.strip_prefix("set: ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let root = file.parent().unwrap();
    match parse::load(root, file, profile, &overrides) {
        Err(errors) => errors.to_string(),
        Ok(pipeline) => match Graph::new(&pipeline) {
            Err(errors) => errors.to_string(),
            Ok(_) => panic!("{} is accepted", file.display()),
        },
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_yaml");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "yaml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_bad_file_has_its_message() {
    let files = files();
    assert!(files.len() >= 40, "only {} files", files.len());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("bad_yaml");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    // All of them are compared before the test fails, so that one run shows every message that changed.
    let wrong: Vec<_> = files
        .iter()
        .filter(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let message = message(file);
            let check = || settings.bind(|| insta::assert_snapshot!(name, message));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err()
        })
        .collect();
    assert!(wrong.is_empty(), "messages changed: {wrong:#?}");
}

#[test]
fn every_message_has_a_place_and_no_path_of_a_machine() {
    for file in files() {
        let message = message(&file);
        let name = file.file_name().unwrap().to_str().unwrap();
        for line in message.lines().filter(|line| !line.starts_with("  hint: ")) {
            let place = [name, "-S ", "--profile"].iter().any(|start| line.starts_with(start));
            assert!(place, "{name}: a line without a place: {line}");
        }
        assert!(!message.contains(env!("CARGO_MANIFEST_DIR")), "{name}: {message}");
    }
}
