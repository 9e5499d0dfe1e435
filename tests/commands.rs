//! Commands that tell of itpipe itself or begin a pipeline, and the views of a run for machines.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::{Repo, wait_until};

#[test]
fn init_writes_a_pipeline_that_runs() {
    let repo = Repo::new("");
    let out = repo.itpipe(&["init", "new"]).good();
    assert_eq!(out.stdout, "new/pipeline.yaml: three stages\nnext: cd new && itpipe run\n");
    let there = |args: &[&str]| repo.with(args, |c| _ = c.current_dir(repo.path("new")));
    let out = there(&["run"]).good();
    assert_eq!(out.ran(), ["numbers", "report", "summary"]);
    assert_eq!(out.stdout, "reports/paper/index.html\n");
    assert!(repo.read("new/reports/paper/index.html").contains("rows 1000\nmean 500.5\n"));
    assert_eq!(there(&["run"]).good().ran(), [""; 0]);
    assert_eq!(there(&["run", "--profile", "tiny"]).good().ran().len(), 3);
    // What is there is kept.
    let yaml = repo.read("new/pipeline.yaml");
    there(&["init"]).bad(2, "pipeline.yaml: is there already\n  hint: ");
    assert_eq!(repo.read("new/pipeline.yaml"), yaml);
    assert_eq!(repo.read("new/.gitignore"), "/cache\n");
    repo.write("old/.gitignore", "target");
    repo.itpipe(&["init", "old"]).good();
    assert_eq!(repo.read("old/.gitignore"), "target\n/cache\n");
}

/// The text of the README between two marks.
fn readme(from: &str, to: &str) -> String {
    let text = include_str!("../README.md");
    let start = text.find(from).unwrap_or_else(|| panic!("no {from:?}")) + from.len();
    text[start..start + text[start..].find(to).unwrap()].to_string()
}

#[test]
fn the_readmes_own_pipeline_runs() {
    let repo = Repo::new("");
    repo.itpipe(&["init", "study"]).good();
    let yaml = repo.read("study/pipeline.yaml");
    repo.write("study/pipeline.yaml", format!("{yaml}{}", readme("below `stages:`\n\n```yaml\n", "```")));
    repo.write("study/mean.py", readme("as `mean.py`:\n\n```python\n", "```"));
    let commands = readme("\nThen `itpipe", "[DESIGN.md]").replace('\n', " ");
    let there = |args: &[&str]| {
        repo.with(args, |c| _ = c.current_dir(repo.path("study")).env("ITPIPE_COLOR", "never"))
    };
    if there(&["run", "mean"]).code != 0 && !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: no python3");
        return;
    }
    let show = there(&["show", "mean"]).good().stdout;
    assert!(show.contains("params.digits = 3") && show.contains("mean.txt"), "{show}");
    let path = there(&["cache", "path", "mean"]).good().stdout;
    assert_eq!(fs::read_to_string(path.split('\t').next().unwrap()).unwrap(), "500.500\n");
    // Every command that the section names is one.
    for command in commands.split('`').step_by(2).map(|c| c.trim_start_matches("itpipe").trim()) {
        if command.is_empty() || command.starts_with("--") || command.contains("--watch") {
            continue;
        }
        there(&command.split(' ').collect::<Vec<_>>()).good();
    }
}

#[test]
fn config_show_names_origins() {
    let repo = Repo::new(
        "vars: { depth: 32, rate: 0.1, deep: { a: 1 } }\nprofiles: { smoke: { vars: { depth: 8 } } }\npools: { gpu: 2 }\nstages: { a: { shell: 'true' } }\n",
    );
    let out = repo
        .with(&["config", "show", "--profile", "smoke", "-S", "deep.a=2"], |c| {
            _ = c.env("ITPIPE_COLOR", "never")
        })
        .good()
        .stdout;
    let rows: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|part| !part.is_empty()).collect())
        .collect();
    let row = |name: &str| {
        rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name}: {out}"))[1..].to_vec()
    };
    assert_eq!(row("profile"), ["smoke", "--profile"]);
    assert_eq!(row("color"), ["never", "ITPIPE_COLOR"]);
    assert_eq!(row("vars.depth"), ["8", "pipeline.yaml:3:30, profile smoke"]);
    assert_eq!(row("vars.rate"), ["0.1", "pipeline.yaml:2:20"]);
    assert_eq!(row("vars.deep"), ["{\"a\":2}", "-S deep.a"]);
    assert_eq!(row("pools.gpu"), ["2", "pools"]);
    assert_eq!(row("pools.network"), ["4", "default"]);
}

#[test]
fn a_run_as_json_is_events_and_nothing_else() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo \"{{\\\"progress\\\":{{\\\"done\\\":1,\\\"total\\\":2,\\\"note\\\":\\\"half\\\"}}}}\"; echo 1 > $out/x', publish: reports }\n  b: { shell: 'exit 4', in: { a: a } }\n",
    );
    let events = |args: &[&str]| -> Vec<serde_json::Value> {
        let out = repo.itpipe(args);
        out.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let names = |events: &[serde_json::Value]| -> Vec<String> {
        events.iter().map(|e| e["event"].as_str().unwrap().to_string()).collect()
    };
    let planned = events(&["plan", "--json"]);
    assert_eq!(names(&planned), ["planned", "planned", "estimate"]);
    assert_eq!(
        (&planned[0]["stage"], &planned[0]["fate"], &planned[1]["fate"]),
        (&"a".into(), &"run".into(), &"maybe".into())
    );
    let run = events(&["run", "--json"]);
    assert_eq!(
        names(&run),
        ["begun", "started", "progress", "finished", "published", "started", "failed", "ended"]
    );
    assert_eq!(run[0]["version"], 1);
    assert_eq!((&run[2]["done"], &run[2]["note"]), (&1.0.into(), &"half".into()));
    assert_eq!((&run[6]["stage"], &run[6]["error"]), (&"b".into(), &"exit 4".into()));
    assert_eq!(run[7]["summary"]["published"][0][1], "reports");
    // The log of a run is made of the same.
    let logs: Vec<_> = fs::read_dir(repo.path("cache/runs")).unwrap().flatten().collect();
    let log = fs::read_to_string(logs[0].path()).unwrap();
    assert_eq!(log.lines().count(), run.len());
}

#[test]
fn github_actions_gets_annotations_and_a_summary() {
    let repo = Repo::new(
        "stages:\n  a: { shell: 'echo 1 > $out/index.html', publish: reports }\n  'b': { shell: 'echo \"50 %, no\"; exit 4' }\n",
    );
    let summary = repo.path("summary.md");
    let out =
        repo.with(&["run"], |c| _ = c.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &summary));
    assert_eq!(out.code, 1);
    assert!(out.stdout.contains("::error title=b failed::exit 4%0A50 %25, no\n"), "{}", out.stdout);
    let text = fs::read_to_string(summary).unwrap();
    assert!(text.starts_with("### itpipe: 1 ran, 1 failed in "), "{text}");
    assert!(text.contains("| b | exit 4 |") && text.contains("- a: `reports/index.html`"), "{text}");
}

#[test]
fn watch_runs_again_what_changed() {
    let repo = Repo::new("stages:\n  a: { shell: 'cp $in_f $out/x', in: { f: ./f.txt } }\n");
    repo.write("f.txt", "one");
    let running = repo.spawn(&["run", "--watch"]);
    running.until_says("watching for a change");
    repo.write("f.txt", "two");
    // The result is recorded before the lock names it.
    wait_until("the edit has run", || repo.output("a", "x") == "two");
    repo.write("pipeline.yaml", "version: 1\nstages: { a: { shel: 'x' } }\n");
    running.until_says("unknown key 'shel'");
    repo.write("pipeline.yaml", "version: 1\nstages: { a: { shell: 'echo three > $out/x' } }\n");
    wait_until("the repair has run", || repo.itpipe(&["plan"]).stdout.starts_with("0 to run"));
    running.signal(libc::SIGINT);
    let out = running.wait();
    assert_eq!(out.code, 130, "{}", out.stderr);
}

#[test]
fn watch_looks_at_the_script_that_a_stage_runs() {
    let repo = Repo::new("stages: { a: { run: [./go.sh] } }\n");
    repo.write("go.sh", "#!/bin/sh\necho one > out/x\n");
    fs::set_permissions(repo.path("go.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let running = repo.spawn(&["run", "--watch"]);
    running.until_says("watching for a change");
    repo.write("go.sh", "#!/bin/sh\necho two > out/x\n");
    wait_until("the edit has run", || repo.output("a", "x") == "two\n");
    running.signal(libc::SIGINT);
    assert_eq!(running.wait().code, 130);
}

#[test]
fn schema_completions_man_and_pictures() {
    let repo = Repo::new("stages:\n  a: { shell: 'x' }\n  'b': { shell: 'x', in: { a: a } }\n");
    let schema: serde_json::Value = serde_json::from_str(&repo.itpipe(&["schema"]).good().stdout).unwrap();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    for shell in ["bash", "zsh", "fish"] {
        assert!(repo.itpipe(&["completions", shell]).good().stdout.contains("fail-fast"), "{shell}");
    }
    let man = repo.itpipe(&["man"]).good().stdout;
    assert!(man.contains(".TH itpipe 1") && man.contains("Exit codes"), "{man}");
    let svg = repo.itpipe(&["graph", "--format", "svg"]).good().stdout;
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!((svg.matches("<rect x=").count(), svg.matches("<path d=").count()), (2, 1));
}

/// Runs it with a terminal of 100 columns on stderr; returns what the terminal got.
fn on_a_terminal(repo: &Repo, args: &[&str], no_color: bool) -> String {
    use std::io::Read;
    use std::os::fd::FromRawFd;
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: two descriptors are written; name and settings are not asked for.
    let (ours, theirs) = unsafe {
        let done = libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size);
        assert_eq!(done, 0);
        (fs::File::from_raw_fd(ours), fs::File::from_raw_fd(theirs))
    };
    let mut command = repo.command(args);
    command.env("TERM", "xterm").env_remove("NO_COLOR").stderr(theirs);
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    // The command has the other end open as long as it lives.
    drop(command);
    let mut text = Vec::new();
    let mut ours = ours;
    // EIO is how a terminal whose other end is closed ends.
    let _ = ours.read_to_end(&mut text);
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap()
}

#[test]
fn a_terminal_gets_bars_and_colours_and_a_pipe_plain_lines() {
    let yaml = "stages:\n  a: { shell: 'echo \"{{\\\"progress\\\":{{\\\"done\\\":1,\\\"total\\\":2,\\\"note\\\":\\\"half\\\"}}}}\"; sleep 1.2; echo 1 > $out/x' }\n  b: { shell: 'cp $in_a/x $out', in: { a: a } }\n";
    let repo = Repo::new(yaml);
    let text = on_a_terminal(&repo, &["run"], false);
    // A bar with the stage, its note and how far it is; one for all; then lines that stay.
    assert!(text.contains("[==========>         ] a half"), "{text:?}");
    assert!(text.contains("/2 stages"), "{text:?}");
    assert!(text.contains("\x1b[32m    done\x1b[0m  a ("), "{text:?}");
    assert!(text.trim_end().ends_with(" s") && text.contains("2 ran in "), "{text:?}");
    let plain = Repo::new(yaml);
    let text = on_a_terminal(&plain, &["run"], true);
    assert!(!text.contains("\x1b[32m"), "{text:?}");
    // Nothing to do: one line, no bar.
    let text = on_a_terminal(&plain, &["run"], true);
    assert!(!text.contains('[') && text.starts_with("2 up to date in "), "{text:?}");
    let piped = Repo::new(yaml);
    let text = piped.run().good().stderr;
    let mut steady = String::new();
    for line in text.lines() {
        let cut = line.rfind('(').or(line.rfind(" in ")).unwrap_or(line.len());
        steady += if line.contains("start") { line } else { &line[..cut] };
        steady += "\n";
    }
    assert_eq!(
        steady,
        "   start  a (no result yet)\n    done  a \n   start  b (no result yet)\n    done  b \n2 ran\n"
    );
}
