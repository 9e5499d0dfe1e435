//! `run theory --profile smoke` in this repository, with a store of its own: every stage of the theory runs, and the report
//! is whole. It needs the program `stages`; where that is not built (the engine's tests alone) there is nothing to run.

use std::path::Path;
use std::process::Command;

#[test]
fn the_theory_runs_in_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = Path::new(env!("CARGO_BIN_EXE_itpipe"));
    if !binary.with_file_name("stages").is_file() {
        eprintln!("skipped: `stages` is not built");
        return;
    }
    // The same repository elsewhere, but for what a run writes; the program is there, so that nothing is built.
    let copy = tempfile::tempdir().expect("a folder");
    for name in ["Cargo.toml", "Cargo.lock", "claims.yaml", "theory.yaml", "stages", "tests", "target", "src"]
    {
        std::os::unix::fs::symlink(root.join(name), copy.path().join(name)).expect("a symlink");
    }
    let pipeline = std::fs::read_to_string(root.join("pipeline.yaml")).expect("the pipeline");
    let built: Vec<&str> = pipeline.lines().filter(|line| !line.trim_start().starts_with("build:")).collect();
    assert_eq!(built.len() + 1, pipeline.lines().count(), "one program is built");
    std::fs::write(copy.path().join("pipeline.yaml"), built.join("\n")).expect("a pipeline");
    let out = Command::new(binary)
        .args(["run", "theory", "--profile", "smoke"])
        .current_dir(copy.path())
        .output()
        .expect("itpipe starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    let page = std::fs::read_to_string(copy.path().join("reports/smoke-theory/index.html")).expect("a page");
    for part in
        ["figure1", "theorem1", "theorem2", "theorem3", "theorem45", "figure4a", "figure6", "automatic"]
    {
        assert!(page.contains(&format!("<section id=\"{part}\"")), "no {part}");
    }
    assert!(
        page.contains("Reduced: ") && page.contains("equations (42) and (43)"),
        "no banner, or no errata"
    );
}
