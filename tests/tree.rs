//! The engine knows no ML: its whole tree of crates names none.

use std::process::Command;

#[test]
fn the_engine_names_no_ml_crate() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "itpipe", "-e", "all", "--prefix", "none", "-f", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints text");
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"blake3"), "this is not the engine's tree:\n{tree}");
    for banned in
        ["candle", "hf-hub", "tokenizers", "safetensors", "gemm", "parquet", "plotters", "ndarray", "stages"]
    {
        let found: Vec<_> = names.iter().filter(|name| name.starts_with(banned)).collect();
        assert!(found.is_empty(), "the engine's crate tree names {found:?}");
    }
}
