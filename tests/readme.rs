//! The README's commands on this repository, in its order, from a copy with a store of its own. It needs the program
//! `stages`; where that is not built (the engine's tests alone) there is nothing to run. The commands of the second half
//! run in `commands.rs`.

mod support;

use std::process::Command;
use support::Repo;

#[test]
fn the_readmes_commands_run() {
    let binary = env!("CARGO_BIN_EXE_itpipe");
    let Some(copy) = Repo::of_this_repository() else {
        eprintln!("skipped: `stages` is not built");
        return;
    };
    let readme = include_str!("../README.md");
    let first = &readme[..readme.find("## A pipeline of your own").expect("the second half")];
    let mut ran = Vec::new();
    for line in first.lines().filter_map(|line| line.strip_prefix("    ")) {
        let line = line.split("  #").next().unwrap_or_default().trim();
        let command = match line.strip_prefix("cargo run --release -- ").or(line.strip_prefix("itpipe ")) {
            // This test is part of what it runs.
            None if line.starts_with("cargo test ") => continue,
            // Half an hour with a toolkit to fetch, and a GPU.
            None if line.contains("cuda") => continue,
            None => panic!("the README has a command that no test knows: {line}"),
            // An hour and more, with files that are not here: in small, or what it would do.
            Some("run report --profile laptop --mirror DIR") => "plan report --profile laptop".to_string(),
            Some("run theory") => "plan theory".to_string(),
            Some(command) => command.to_string(),
        };
        let words = command.split(' ').map(|word| word.trim_matches('\''));
        let out = Command::new(binary).args(words).current_dir(copy.root()).output().expect("itpipe starts");
        let (said, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{command}: {said}{stderr}");
        if command == "run report --profile smoke" {
            assert_eq!(said, "reports/smoke/index.html\n");
            if ran.contains(&command) {
                assert!(!stderr.contains("start  "), "it runs again: {stderr}");
            }
        }
        ran.push(command);
    }
    assert!(ran.len() >= 7, "{ran:?}");
    let page = std::fs::read_to_string(copy.root().join("reports/smoke/index.html")).expect("a page");
    assert!(page.contains("Table 2") && page.contains("Reduced: "), "no tables, or no banner");
}
