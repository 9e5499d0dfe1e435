//! An edit runs what it changes and nothing else, `why` names the first cause, and after any run every stage is as a
//! clean run would have made it.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::Repo;

/// A paper in small: two data sets, two methods with their strengths, a table, a figure and a report.
const PAPER: &str = r#"
default-profile: smoke
vars: { gammas: [0.5, 1], epochs: 2, erm: 0 }
profiles: { smoke: { vars: { epochs: 1 } } }
kinds:
  train:
    shell: "{{ cat $in_data; echo $param_method $param_gamma $param_epochs; }} > $out/weights; cat $in_data | wc -c > $out/size"
    code: [src/train.sh]
  table: { shell: "for f in $in_weights; do cat $f; done > $out/table.csv", code: [src/table.sh, src/format] }
  figure: { shell: "cat $in_sizes > $out/figure.svg", code: ["src/fig*.sh"] }
stages:
  raw: { shell: "cat $in_file > $out/a; sort $in_file | tr a-z A-Z > $out/b", in: { file: ./data.txt } }
  prepare: { shell: "grep -v '^#' $in_raw > $out/rows", in: { raw: "raw/{data}" }, matrix: { data: [a, b] } }
  train:
    kind: train
    matrix: { data: [a, b], method: [erm, it], gamma: [0, "{vars.gammas[0]}", "{vars.gammas[1]}"] }
    where: [{ method: erm, gamma: 0 }, { method: it, gamma: "{vars.gammas}" }]
    in: { data: "prepare[{data}]/rows" }
    params: { method: "{method}", gamma: "{gamma}", epochs: "{vars.epochs}" }
  table: { kind: table, in: { weights: "train[*]/weights" } }
  figure: { kind: figure, in: { sizes: "train[a,it,{vars.gammas[0]}]/size" } }
  report: { shell: "cat $in_table $in_figure > $out/index.html", in: { table: table/table.csv, figure: figure/figure.svg }, publish: "reports/{profile}" }
"#;

fn paper() -> Repo {
    let repo = Repo::new(PAPER);
    repo.write("data.txt", "one\ntwo\n# note\n");
    for file in ["src/train.sh", "src/table.sh", "src/figure.sh", "src/format/csv.sh"] {
        repo.write(file, file);
    }
    assert_eq!(repo.run().good().ran().len(), 1 + 2 + 6 + 3);
    repo
}

#[track_caller]
fn edit(repo: &Repo, from: &str, to: &str) {
    let text = repo.read("pipeline.yaml");
    assert!(text.contains(from), "no '{from}'");
    repo.write("pipeline.yaml", text.replace(from, to));
}

/// What `why` says of a stage.
#[track_caller]
fn why(repo: &Repo, stage: &str) -> String {
    repo.itpipe(&["why", stage]).good().stdout
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        match rest.find(word) {
            Some(at) => rest = &rest[at + word.len()..],
            None => panic!("no '{word}' (in this order) in:\n{text}"),
        }
    }
}

#[test]
fn a_tables_code_reruns_no_training() {
    let repo = paper();
    repo.write("src/table.sh", "another table");
    assert_says(&why(&repo, "table"), &["code.src/table.sh", "->"]);
    let plan = repo.itpipe(&["plan"]).good().stdout;
    assert!(!plan.contains("train["), "{plan}");
    // The table comes out equal, so the report is up to date.
    assert_eq!(repo.run().good().ran(), ["table"]);
    repo.write("src/format/more.sh", "a new file in a folder of code");
    assert_eq!(repo.run().good().ran(), ["table"]);
    repo.write("src/fig2.sh", "a new file that a glob matches");
    assert_eq!(repo.run().good().ran(), ["figure"]);
    repo.write("src/unlisted.sh", "nobody reads it");
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn one_gamma_reruns_its_trainings_and_what_follows() {
    let repo = paper();
    edit(&repo, "gammas: [0.5, 1]", "gammas: [0.5, 2]");
    let said = why(&repo, "train[a,it,2]");
    assert_says(&said, &["train[a,it,2]"]);
    let out = repo.run().good();
    assert_eq!(out.ran(), ["report", "table", "train[a,it,2]", "train[b,it,2]"]);
    assert_says(&out.stderr, &["start  table (", "train[a,it,1]", "->", "train[a,it,2]"]);
    // And back: every result is still there.
    edit(&repo, "gammas: [0.5, 2]", "gammas: [0.5, 1]");
    assert_eq!(repo.run().good().ran(), [""; 0]);
}

#[test]
fn a_param_names_its_old_and_new_value() {
    let repo = paper();
    edit(&repo, "smoke: { vars: { epochs: 1 } }", "smoke: { vars: { epochs: 3 } }");
    assert_says(&why(&repo, "train[a,it,1]"), &["params.epochs: 1 -> 3"]);
    // The report is behind six trainings: the cause is where the edit was.
    assert_says(&why(&repo, "report"), &["train[", "params.epochs: 1 -> 3"]);
    assert_says(&repo.itpipe(&["plan"]).good().stdout, &["train[a,erm,0]", "params.epochs: 1 -> 3"]);
    let out = repo.run().good();
    assert_says(&out.stderr, &["start  train[a,erm,0] (", "params.epochs: 1 -> 3"]);
    assert_eq!(out.ran().len(), 6 + 2, "{}", out.stderr);
    assert!(!out.ran().contains(&"figure"), "the sizes are the same: early cutoff");
    // Asked afterwards it tells why it ran last.
    assert_says(&why(&repo, "train[a,it,1]"), &["up to date", "params.epochs: 1 -> 3"]);
}

#[test]
fn an_equal_output_cuts_off_early() {
    let repo = paper();
    repo.write("data.txt", "one\ntwo\n# another note\n");
    assert_eq!(repo.run().good().ran(), ["prepare[a]", "prepare[b]", "raw"]);
    repo.write("data.txt", "two\none\n# another note\n");
    // The sorted file is the same, and so is all that follows it.
    let ran = repo.run().good();
    let expected =
        ["prepare[a]", "raw", "report", "table", "train[a,erm,0]", "train[a,it,0.5]", "train[a,it,1]"];
    assert_eq!(ran.ran(), expected);
    assert_says(&why(&repo, "train[a,erm,0]"), &["in", "data", "->"]);
}

#[test]
fn what_does_not_matter_runs_nothing() {
    let repo = paper();
    let nothing = |what: &str| {
        let out = repo.run().good();
        assert_eq!(out.ran(), [""; 0], "{what}: {}", out.stderr);
    };
    edit(&repo, "kinds:\n", "# a comment\nkinds:\n");
    nothing("a comment");
    edit(&repo, "code: [src/train.sh]", "code: [src/train.sh]\n    threads: 2\n    timeout: 100");
    nothing("threads and a timeout");
    edit(
        &repo,
        "params: { method: \"{method}\", gamma: \"{gamma}\",",
        "params: { gamma: \"{gamma}\", method: \"{method}\",",
    );
    nothing("another order of the params");
    edit(&repo, "erm: 0", "erm: 7");
    nothing("a variable that nobody uses");
    std::fs::File::options()
        .append(true)
        .open(repo.path("data.txt"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    nothing("another mtime");
    // The instances that are not wanted any more.
    edit(&repo, "  figure: { kind", "  picture: { kind");
    edit(&repo, "figure: figure/figure.svg", "figure: picture/figure.svg");
    nothing("another name of a stage");
}

#[test]
fn a_deleted_publication_comes_back_without_a_run() {
    let repo = paper();
    let page = repo.read("reports/smoke/index.html");
    std::fs::remove_dir_all(repo.path("reports")).unwrap();
    assert_eq!(repo.run().good().ran(), [""; 0]);
    assert_eq!(repo.read("reports/smoke/index.html"), page);
    // Another profile has its own folder and leaves this one.
    assert!(repo.itpipe(&["run", "--profile", "paper"]).good().ran().len() > 5);
    assert_ne!(repo.read("reports/paper/index.html"), page);
    assert_eq!(repo.read("reports/smoke/index.html"), page);
}

/// A graph of sums: each stage adds its own number and what it reads, and keeps the remainder of a small divisor, so that
/// an edit often dies out on its way.
#[derive(Clone, Debug)]
struct Sum {
    number: u32,
    divisor: u32,
    /// Indices of earlier stages.
    reads: Vec<usize>,
    /// The number in a file of the repository.
    file: Option<usize>,
    variable: bool,
    threads: u32,
}

#[derive(Clone, Debug)]
struct World {
    stages: Vec<Sum>,
    files: Vec<u32>,
    variable: u32,
    salt: u32,
}

#[derive(Clone, Debug)]
enum Edit {
    Number(usize, u32),
    Divisor(usize, u32),
    File(usize, u32),
    Variable(u32),
    Threads(usize, u32),
    Read(usize, usize),
    Touch(usize),
    Salt(u32),
    Nothing,
}

fn world() -> impl Strategy<Value = World> {
    let stage = (
        0u32..4,
        2u32..5,
        prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        prop::option::of(0usize..2),
        any::<bool>(),
    );
    (prop::collection::vec(stage, 2..7), prop::collection::vec(0u32..9, 2), 0u32..3).prop_map(
        |(stages, files, variable)| {
            let stages =
                stages.into_iter().enumerate().map(|(i, (number, divisor, reads, file, variable))| {
                    let reads: BTreeSet<usize> =
                        reads.iter().filter(|_| i > 0).map(|index| index.index(i.max(1))).collect();
                    Sum { number, divisor, reads: reads.into_iter().collect(), file, variable, threads: 1 }
                });
            World { stages: stages.collect(), files, variable, salt: 0 }
        },
    )
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        3 => (0usize..6, 0u32..4).prop_map(|(i, n)| Edit::Number(i, n)),
        1 => (0usize..6, 2u32..5).prop_map(|(i, n)| Edit::Divisor(i, n)),
        3 => (0usize..2, 0u32..9).prop_map(|(i, n)| Edit::File(i, n)),
        1 => (0u32..3).prop_map(Edit::Variable),
        1 => (0usize..6, 1u32..3).prop_map(|(i, n)| Edit::Threads(i, n)),
        2 => (1usize..6, 0usize..5).prop_map(|(i, n)| Edit::Read(i, n)),
        1 => (0usize..2).prop_map(Edit::Touch),
        1 => (0u32..2).prop_map(Edit::Salt),
        1 => Just(Edit::Nothing),
    ];
    prop::collection::vec(edit, 1..5)
}

impl World {
    fn apply(&mut self, edit: &Edit) {
        let n = self.stages.len();
        match *edit {
            Edit::Number(i, number) => self.stages[i % n].number = number,
            Edit::Divisor(i, divisor) => self.stages[i % n].divisor = divisor,
            Edit::File(i, number) => self.files[i] = number,
            Edit::Variable(value) => self.variable = value,
            Edit::Threads(i, threads) => self.stages[i % n].threads = threads,
            Edit::Read(i, other) => {
                let i = i % n;
                if i > 0 {
                    let other = other % i;
                    let reads = &mut self.stages[i].reads;
                    match reads.iter().position(|read| *read == other) {
                        Some(at) => _ = reads.remove(at),
                        None => reads.push(other),
                    }
                    reads.sort_unstable();
                }
            }
            Edit::Salt(salt) => self.salt = salt,
            Edit::Touch(_) | Edit::Nothing => {}
        }
    }

    fn write(&self, repo: &Repo) {
        let mut yaml = format!("salt: 's{}'\nstages:\n", self.salt);
        for (i, stage) in self.stages.iter().enumerate() {
            let mut inputs: Vec<String> =
                stage.reads.iter().map(|read| format!("i{read}: s{read}/v")).collect();
            inputs.extend(stage.file.map(|file| format!("file: ./n{file}.txt")));
            let mut terms: Vec<String> =
                stage.reads.iter().map(|read| format!("$(cat $in_i{read})")).collect();
            terms.extend(stage.file.map(|_| "$(cat $in_file)".to_owned()));
            terms.extend(stage.variable.then(|| "$ADDED".to_owned()));
            terms.insert(0, "$param_number".to_owned());
            yaml += &format!(
                "  s{i}:\n    shell: \"echo $(( ({}) % $param_divisor )) > $out/v\"\n    threads: {}\n    \
                 params: {{ number: {}, divisor: {}, id: {i} }}\n    in: {{ {} }}\n",
                terms.join(" + "),
                stage.threads,
                stage.number,
                stage.divisor,
                inputs.join(", "),
            );
            if stage.variable {
                yaml += "    env: [ADDED]\n";
            }
        }
        repo.pipeline(&yaml);
        for (i, number) in self.files.iter().enumerate() {
            let path = format!("n{i}.txt");
            let text = format!("{number}\n");
            if !repo.exists(&path) || repo.read(&path) != text {
                repo.write(&path, text);
            }
        }
    }

    /// The value of every stage and what its key is made of.
    fn evaluate(&self) -> Vec<(u32, String)> {
        let mut done: Vec<(u32, String)> = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let mut sum = stage.number + stage.file.map_or(0, |file| self.files[file]);
            sum += if stage.variable { self.variable } else { 0 };
            sum += stage.reads.iter().map(|read| done[*read].0).sum::<u32>();
            let reads: Vec<_> = stage.reads.iter().map(|read| (*read, done[*read].0)).collect();
            let file = stage.file.map(|file| (file, self.files[file]));
            let variable = stage.variable.then_some(self.variable);
            let key = format!(
                "{} {i} {} {} {reads:?} {file:?} {variable:?}",
                self.salt, stage.number, stage.divisor
            );
            done.push((sum % stage.divisor, key));
        }
        done
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn after_any_edits_every_stage_is_as_a_clean_run_makes_it(world in world(), edits in edits()) {
        let mut world = world;
        let repo = Repo::new("");
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut edits = edits.into_iter();
        loop {
            world.write(&repo);
            let expected = world.evaluate();
            let fresh: BTreeMap<String, String> = expected
                .iter()
                .enumerate()
                .filter(|(_, (_, key))| !known.contains(key))
                .map(|(i, (_, key))| (format!("s{i}"), key.clone()))
                .collect();
            let variable = world.variable.to_string();
            let out = repo.with(&["run"], |command| _ = command.env("ADDED", &variable)).good();
            prop_assert_eq!(out.ran(), fresh.keys().collect::<Vec<_>>(), "{}\n{}", out.stderr, repo.read("pipeline.yaml"));
            for (i, (value, _)) in expected.iter().enumerate() {
                let path = repo.with(&["cache", "path", &format!("s{i}")], |command| _ = command.env("ADDED", &variable)).good();
                let blob = path.stdout.split('\t').next().unwrap_or_default().trim().to_owned();
                let found = std::fs::read_to_string(&blob).unwrap_or_default();
                prop_assert_eq!(found.trim(), value.to_string(), "s{} in {}\n{}", i, path.stdout, repo.read("pipeline.yaml"));
            }
            known.extend(fresh.into_values());
            let Some(edit) = edits.next() else { break };
            if let Edit::Touch(i) = edit {
                let file = std::fs::File::options().append(true).open(repo.path(&format!("n{i}.txt"))).unwrap();
                file.set_modified(std::time::SystemTime::now()).unwrap();
            }
            world.apply(&edit);
        }
    }
}
