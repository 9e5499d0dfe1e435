//! The experiments in which other tools (make, ninja, n2, doit, Snakemake, redun, DVC) go stale, serve half an output or
//! run twice, each as a test of the real binary. The table says where; the experiments that no other file has are below.
//!
//! | experiment | wanted | test |
//! |---|---|---|
//! | command changes | reruns | `run::another_command_or_parameter_runs_what_it_changes` |
//! | a used parameter changes | reruns | `run::another_command_or_parameter_runs_what_it_changes` |
//! | an unrelated parameter changes | nothing runs | `run::another_command_or_parameter_runs_what_it_changes` |
//! | a used variable of the environment changes | reruns | `run::a_declared_variable_of_the_environment_is_an_input` |
//! | an undeclared variable | the stage cannot see it | `run::a_stage_sees_the_declared_environment_and_a_short_list` |
//! | an output comes out equal | what follows is cut off | `run::an_equal_output_stops_what_follows` |
//! | `touch` | nothing runs | `run::a_touched_input_runs_nothing` |
//! | an input is put back | the earlier result, nothing runs | `run::an_input_that_was_put_back_takes_the_earlier_result` |
//! | an input edited, size and mtime kept | noticed | `run::an_edit_that_keeps_size_and_time_is_noticed` |
//! | an input replaced by an older file | noticed | `run::an_input_replaced_by_an_older_file_is_noticed` |
//! | tool and children killed | half an output is never taken | `faults::half_an_output_is_never_taken_when_all_is_killed` |
//! | the tool alone killed, rerun at once | no second writer | `faults::a_stage_whose_itpipe_was_killed_is_ended_and_never_joined` |
//! | the tool alone killed | its stages die with it | `faults::the_processes_of_a_killed_itpipe_die_with_it` |
//! | a stage fails half-way | its output is not used | `faults::a_stage_that_fails_half_way_leaves_nothing_but_scratch` |
//! | Ctrl-C | half an output is gone, the next run resumes | `faults::ctrl_c_lets_a_stage_write_a_checkpoint` |
//! | an output deleted by hand | restored or made again | `peers::an_output_deleted_damaged_or_cut_by_hand_is_noticed`, `run::a_published_folder_is_kept_as_the_output` |
//! | an intermediate or final output corrupted, new mtime | repaired, spreads nowhere | `peers::an_output_deleted_damaged_or_cut_by_hand_is_noticed` |
//! | an output corrupted, size and mtime kept | noticed | `peers::a_published_file_edited_with_its_size_and_mtime_kept_is_repaired` |
//! | a stored object corrupted, stat differs | made again | `peers::an_output_deleted_damaged_or_cut_by_hand_is_noticed` |
//! | a stored object corrupted, size and mtime kept | made again | `faults::a_damaged_blob_is_found_set_aside_and_made_again` |
//! | two runs at once in one folder | each result once, both end well | `faults::two_runs_at_once_make_each_result_once`, `peers::many_runs_at_once_agree` |
//! | two runs of unrelated targets | neither waits | `faults::runs_of_unrelated_targets_do_not_wait_for_each_other` |
//! | a cycle | an error that names it | `cli_errors::a_cycle` |
//! | a dependency is missing | before anything runs | `run::a_missing_input_is_found_before_anything_runs` |
//! | two stages write one path | cannot be expressed | `peers::two_stages_cannot_write_one_path` |
//! | two stages publish to one place | an error | `run::two_stages_cannot_be_published_to_one_place` |
//! | exits 0 without its output | an error | `faults::a_stage_must_write_something`, `peers::an_output_that_lacks_what_others_read_is_an_error` |
//! | keep-going, 6 independent, 1 fails | 6 of 6; with the flag it stops | `run::failures_stop_only_what_needs_them` |
//! | disk full | before a stage runs; else an error and a clean rerun | `faults::a_full_disk_is_found_before_a_stage_runs` |
//! | a read-only store | serves; refuses before a stage runs | `faults::a_read_only_store_serves_and_refuses_before_a_stage_runs` |
//! | spaces, unicode, newlines in paths | work | `run::names_with_spaces_and_unicode_work` |
//! | a symlink's target edited, or re-pointed to an older file | noticed | `run::a_symlinked_input_is_what_it_points_to` |
//! | a dependency modified while the stage runs | nothing recorded, the file named | `faults::an_input_that_changes_while_its_stage_runs_is_named_and_nothing_recorded`, `peers::a_dependency_that_changes_and_changes_back_is_noticed_next_time` |
//! | code modified while the stage runs | nothing recorded, the file named | `faults::code_that_changes_while_its_stage_runs_is_named`, `peers::code_that_comes_while_its_stage_runs_is_named` |
//! | files of the last run in a folder output | are not there | `peers::a_folder_output_holds_nothing_of_an_earlier_run` |

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::{Repo, wait_until};

/// Every test that the table names is one.
#[test]
fn the_table_names_tests_that_are_there() {
    let table = include_str!("peers.rs");
    let rows = table.lines().filter_map(|line| line.strip_prefix("//! | "));
    let mut named = BTreeSet::new();
    for row in rows.skip(1) {
        let tests: Vec<&str> = row.split('`').filter(|part| part.contains("::")).collect();
        assert!(!tests.is_empty(), "a row without a test: {row}");
        named.extend(tests);
    }
    for test in &named {
        let (file, name) = test.split_once("::").unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("{file}.rs"));
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(&format!("#[test]\nfn {name}()")), "{test} is no test");
    }
    assert!(named.len() >= 30, "{}", named.len());
}

const CHAIN: &str = "stages:\n  a: { shell: 'echo aaa > $out/x' }\n  b: { shell: 'cat $in_a/x > $out/x; echo b >> $out/x', in: { a: a } }\n";

#[test]
fn an_output_deleted_damaged_or_cut_by_hand_is_noticed() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("deleted", |blob| fs::remove_file(blob).unwrap()),
        ("edited", |blob| fs::write(blob, "xyz\n").unwrap()),
        ("longer", |blob| fs::File::options().append(true).open(blob).unwrap().write_all(b"more").unwrap()),
        ("cut", |blob| fs::File::options().write(true).open(blob).unwrap().set_len(2).unwrap()),
    ];
    for (what, damage) in damages {
        // An intermediate output: it is made again, and since it comes out equal nothing spreads.
        for (content, stage) in [("aaa\n", "a"), ("aaa\nb\n", "b")] {
            let repo = Repo::new(CHAIN);
            repo.run().good();
            let blob = repo.blob(content);
            fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
            damage(&blob);
            let out = repo.run().good();
            assert_eq!(out.ran(), [stage], "{what}: {}", out.stderr);
            assert_eq!(repo.output("b", "x"), "aaa\nb\n", "{what}");
            assert_eq!(repo.run().good().ran(), [""; 0], "{what}");
        }
    }
}

#[test]
fn a_published_file_edited_with_its_size_and_mtime_kept_is_repaired() {
    let repo = Repo::new("stages: { r: { shell: 'echo right > $out/index.html', publish: reports } }\n");
    repo.run().good();
    // So much later that the record of the file is trusted.
    std::thread::sleep(std::time::Duration::from_millis(30));
    repo.run().good();
    let page = repo.path("reports/index.html");
    let time = fs::metadata(&page).unwrap().modified().unwrap();
    fs::write(&page, "wrong\n").unwrap();
    fs::File::options().write(true).open(&page).unwrap().set_modified(time).unwrap();
    let out = repo.run().good();
    assert_eq!((out.ran(), repo.read("reports/index.html").as_str()), (vec![], "right\n"));
}

#[test]
fn many_runs_at_once_agree() {
    let mut yaml = String::from("stages:\n");
    for i in 0..8 {
        let input = if i < 2 { String::new() } else { format!(", in: {{ a: s{} }}", i - 2) };
        let script = if i < 2 { "echo first" } else { "cat $in_a/x" };
        yaml += &format!("  s{i}: {{ shell: '{script} > $out/x; echo {i} >> $out/x; sleep 0.02'{input} }}\n");
    }
    let (repo, clean) = (Repo::new(&yaml), Repo::new(&yaml));
    clean.run().good();
    let running: Vec<_> = (0..5).map(|_| repo.spawn(&["run"])).collect();
    let mut ran: Vec<String> = Vec::new();
    for one in running {
        ran.extend(one.wait().good().ran().iter().map(|name| name.to_string()));
    }
    ran.sort();
    assert_eq!(ran, (0..8).map(|i| format!("s{i}")).collect::<Vec<_>>(), "each once");
    assert_eq!(repo.read("pipeline.lock"), clean.read("pipeline.lock"));
    assert!(repo.itpipe(&["cache", "verify"]).good().stdout.contains("blobs"));
}

#[test]
fn two_stages_cannot_write_one_path() {
    // No stage names the place of its output, and the same name in two outputs is two files.
    let repo = Repo::new("stages:\n  a: { shell: 'echo a > $out/x' }\n  b: { shell: 'echo b > $out/x' }\n");
    repo.run().good();
    assert_eq!((repo.output("a", "x").as_str(), repo.output("b", "x").as_str()), ("a\n", "b\n"));
    for key in ["out", "outs", "output", "outputs"] {
        repo.pipeline(&format!("stages: {{ a: {{ shell: 'echo a > $out/x', {key}: shared/x }} }}\n"));
        repo.run().bad(2, &format!("stages.a.{key}: unknown key '{key}'"));
    }
}

#[test]
fn an_output_that_lacks_what_others_read_is_an_error() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo > $out/other' }\n  b: { shell: 'cp $in_a $out', in: { a: a/x } }\n",
    );
    let out = repo.run().bad(1, "in.a: a: x: no such path in the output");
    assert_eq!(out.ran(), ["a"]);
    assert!(repo.lock()["results"]["paper"].get("b").is_none());
}

#[test]
fn a_dependency_that_changes_and_changes_back_is_noticed_next_time() {
    let script = "echo > $scratch/begun; while grep -q one $in_d && [ ! -e $scratch/go ]; do sleep 0.01; done; cat $in_d > $out/x";
    let repo = Repo::new(&format!("stages: {{ a: {{ shell: '{script}', in: {{ d: ./data }} }} }}\n"));
    repo.write("data", "one\n");
    let running = repo.spawn(&["run"]);
    let scratch = || Some(fs::read_dir(repo.path("cache/work")).ok()?.next()?.ok()?.path().join("scratch"));
    wait_until("the stage has begun", || scratch().is_some_and(|s| s.join("begun").exists()));
    // The copy in the folder of the stage is the one of the key; the edit comes after.
    repo.write("data", "two\n");
    fs::write(scratch().unwrap().join("go"), "").unwrap();
    running.wait().bad(1, "data: changed while the stage ran: nothing is recorded");
    let out = repo.run().good();
    assert_eq!((out.ran(), repo.output("a", "x").as_str()), (vec!["a"], "two\n"));
    // What stands there now is what counts: the first content has no result, for nothing was recorded.
    repo.write("data", "one\n");
    let out = repo.run().good();
    assert_eq!((out.ran(), repo.output("a", "x").as_str()), (vec!["a"], "one\n"));
}

#[test]
fn code_that_comes_while_its_stage_runs_is_named() {
    let repo =
        Repo::new("kinds: { k: { run: [./go.sh], code: ['lib/*.sh'] } }\nstages: { a: { kind: k } }\n");
    repo.write(
        "go.sh",
        "#!/bin/sh\necho > scratch/begun; while [ ! -e scratch/go ]; do sleep 0.01; done; cat $(dirname $0)/lib/*.sh > out/x\n",
    );
    fs::set_permissions(repo.path("go.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    repo.write("lib/a.sh", "one\n");
    let running = repo.spawn(&["run"]);
    let scratch = || Some(fs::read_dir(repo.path("cache/work")).ok()?.next()?.ok()?.path().join("scratch"));
    wait_until("the stage has begun", || scratch().is_some_and(|s| s.join("begun").exists()));
    repo.write("lib/b.sh", "two\n");
    fs::write(scratch().unwrap().join("go"), "").unwrap();
    running.wait().bad(1, "lib/b.sh: changed while the stage ran: nothing is recorded");
    fs::remove_file(repo.path("lib/b.sh")).unwrap();
    let out = repo.run().good();
    assert_eq!((out.ran(), repo.output("a", "x").as_str()), (vec!["a"], "one\n"));
}

#[test]
fn a_folder_output_holds_nothing_of_an_earlier_run() {
    let repo = Repo::new(
        "stages: { a: { retries: 1, shell: 'ls $out > $scratch/seen; mkdir $out/d; echo 1 > $out/d/old; [ -e $scratch/again ] || {{ echo > $scratch/again; exit 1; }}; cp $scratch/seen $out/seen' } }\n",
    );
    repo.run().good();
    assert_eq!(repo.output("a", "seen"), "", "the second try begins with an empty folder");
    repo.pipeline("stages: { a: { shell: 'echo new > $out/new' } }\n");
    repo.run().good();
    let listing = repo.itpipe(&["cache", "path", "a"]).good().stdout;
    assert!(listing.trim_end().ends_with("\tnew") && listing.lines().count() == 1, "{listing}");
}
