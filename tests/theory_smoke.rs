//! `run theory --profile smoke` in this repository, with a store of its own: every stage of the theory runs, and the report
//! is whole. It needs the program `stages`; where that is not built (the engine's tests alone) there is nothing to run.

mod support;

use support::Repo;

#[test]
fn the_theory_runs_in_small() {
    let Some(repo) = Repo::of_this_repository() else {
        eprintln!("skipped: `stages` is not built");
        return;
    };
    repo.itpipe(&["run", "theory", "--profile", "smoke"]).good();
    let page = repo.read("reports/smoke-theory/index.html");
    for part in [
        "figure1",
        "theorem1",
        "theorem2",
        "theorem3",
        "theorem45",
        "errata",
        "figure4a",
        "figure6",
        "automatic",
    ] {
        assert!(page.contains(&format!("<section id=\"{part}\"")), "no {part}");
    }
    assert!(
        page.contains("Reduced: ") && page.contains("equations (42) and (43)"),
        "no banner, or no errata"
    );
}
