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
    let store = tempfile::tempdir().expect("a folder");
    // A run with -S leaves pipeline.lock as it is; the value is the profile's own.
    let out = Command::new(binary)
        .args(["run", "theory", "--profile", "smoke", "-S", "depth=8", "--cache"])
        .arg(store.path())
        .current_dir(root)
        .output()
        .expect("itpipe starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    let page = std::fs::read_to_string(root.join("reports/smoke-theory/index.html")).expect("a page");
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
