//! Random graphs and random edits: after any run every stage equals a clean run's, and exactly the actions that were
//! never performed before ran.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::Repo;

#[derive(Clone, Debug)]
struct Stage {
    /// Indices of earlier stages.
    upstream: Vec<usize>,
    param: u8,
    /// What it does: take all in, take only the first line of each, or ignore its inputs (so that what follows is cut
    /// off).
    op: u8,
    /// Whether it reads the file.
    file: bool,
}

#[derive(Clone, Debug)]
enum Edit {
    Param(usize, u8),
    Op(usize, u8),
    File(u8),
    ReadsFile(usize),
    Rewire(usize, usize),
    Comment,
    Touch,
    Nothing,
}

const OPS: [&str; 3] = [
    "for d in $in_all; do cat $d/x; done > $out/x; echo $param_p >> $out/x",
    "for d in $in_all; do head -n 1 $d/x; done > $out/x; echo $param_p >> $out/x",
    "echo fixed > $out/x",
];
const ALONE: [&str; 3] = ["echo $param_p > $out/x", "echo one $param_p > $out/x", "echo fixed > $out/x"];

/// What one action is made of, as this test knows it without the engine.
type Made = (String, u8, Vec<(String, String)>, Option<String>);

/// The action and the output of every stage.
fn model(stages: &[Stage], file: u8) -> Vec<(Made, String)> {
    let mut all: Vec<(Made, String)> = Vec::new();
    for stage in stages {
        let read: Vec<(String, String)> =
            stage.upstream.iter().map(|&u| (format!("s{u}"), all[u].1.clone())).collect();
        let script = script(stage);
        let mut output = String::new();
        match stage.op {
            0 => read.iter().for_each(|(_, text)| output += text),
            1 => read
                .iter()
                .for_each(|(_, text)| output += &format!("{}\n", text.lines().next().unwrap_or(""))),
            _ => {}
        }
        output += &match (stage.op, read.is_empty()) {
            (2, _) => "fixed\n".to_string(),
            (1, true) => format!("one {}\n", stage.param),
            _ => format!("{}\n", stage.param),
        };
        let content = stage.file.then(|| file.to_string());
        if let Some(content) = &content {
            output += &format!("{content}\n");
        }
        all.push(((script, stage.param, read, content), output));
    }
    all
}

fn script(stage: &Stage) -> String {
    let ops = if stage.upstream.is_empty() { ALONE } else { OPS };
    let file = if stage.file { "; cat $in_file >> $out/x" } else { "" };
    format!("{}{file}", ops[stage.op as usize])
}

fn yaml(stages: &[Stage], comments: usize) -> String {
    let mut yaml = format!("{}stages:\n", "# a comment\n".repeat(comments));
    for (i, stage) in stages.iter().enumerate() {
        let names: Vec<String> = stage.upstream.iter().map(|u| format!("s{u}")).collect();
        let mut inputs = Vec::new();
        if !names.is_empty() {
            inputs.push(format!("all: [{}]", names.join(", ")));
        }
        if stage.file {
            inputs.push("file: ./file.txt".into());
        }
        yaml += &format!(
            "  s{i}: {{ shell: '{}', in: {{ {} }}, params: {{ p: {} }} }}\n",
            script(stage),
            inputs.join(", "),
            stage.param
        );
    }
    yaml
}

fn stages() -> impl Strategy<Value = Vec<Stage>> {
    let one =
        (proptest::collection::vec(any::<proptest::sample::Index>(), 0..3), 0u8..3, 0u8..3, any::<bool>());
    proptest::collection::vec(one, 2..8).prop_map(|drawn| {
        let stage =
            |(i, (upstream, param, op, file)): (usize, (Vec<proptest::sample::Index>, u8, u8, bool))| {
                let upstream: BTreeSet<usize> = match i {
                    0 => BTreeSet::new(),
                    i => upstream.iter().map(|index| index.index(i)).collect(),
                };
                Stage { upstream: upstream.into_iter().collect(), param, op, file }
            };
        drawn.into_iter().enumerate().map(stage).collect()
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0usize..8, 0u8..3).prop_map(|(i, p)| Edit::Param(i, p)),
        (0usize..8, 0u8..3).prop_map(|(i, o)| Edit::Op(i, o)),
        (0u8..3).prop_map(Edit::File),
        (0usize..8).prop_map(Edit::ReadsFile),
        (1usize..8, 0usize..8).prop_map(|(i, j)| Edit::Rewire(i, j)),
        Just(Edit::Comment),
        Just(Edit::Touch),
        Just(Edit::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_edit_the_state_is_that_of_a_clean_run(
        mut stages in stages(),
        edits in proptest::collection::vec(edit(), 1..6),
    ) {
        let repo = Repo::new("stages: {}\n");
        let (mut file, mut comments) = (0u8, 0);
        let mut performed: BTreeSet<Made> = BTreeSet::new();
        for edit in [Edit::Nothing].into_iter().chain(edits) {
            let n = stages.len();
            match edit {
                Edit::Param(i, p) => stages[i % n].param = p,
                Edit::Op(i, op) => stages[i % n].op = op,
                Edit::File(content) => file = content,
                Edit::ReadsFile(i) => stages[i % n].file ^= true,
                Edit::Rewire(i, j) => {
                    let i = i % n;
                    if i > 0 {
                        let mut upstream: BTreeSet<usize> = stages[i].upstream.iter().copied().collect();
                        if !upstream.remove(&(j % i)) {
                            upstream.insert(j % i);
                        }
                        stages[i].upstream = upstream.into_iter().collect();
                    }
                }
                Edit::Comment => comments += 1,
                Edit::Touch | Edit::Nothing => {}
            }
            // Written again each time: another time, the same bytes unless they were edited.
            repo.write("file.txt", format!("{file}\n"));
            repo.pipeline(&yaml(&stages, comments));
            let model = model(&stages, file);
            let out = repo.run().good();
            let name = |i: usize| format!("s{i}");
            let by_name: BTreeMap<String, &Made> = model.iter().enumerate().map(|(i, (made, _))| (name(i), made)).collect();
            let ran: Vec<Made> = out.ran().iter().map(|stage| by_name[*stage].clone()).collect();
            let new: BTreeSet<Made> = model.iter().map(|(made, _)| made.clone()).filter(|m| !performed.contains(m)).collect();
            prop_assert_eq!(ran.len(), new.len(), "each new action once\n{}", out.stderr);
            prop_assert_eq!(ran.into_iter().collect::<BTreeSet<_>>(), new.clone());
            performed.extend(new);
            for (i, (_, output)) in model.iter().enumerate() {
                prop_assert_eq!(&repo.output(&name(i), "x"), output);
            }
            let clean = Repo::new(&yaml(&stages, 0));
            clean.write("file.txt", format!("{file}\n"));
            clean.itpipe(&["run", "-j", "3"]).good();
            prop_assert_eq!(clean.read("pipeline.lock"), repo.read("pipeline.lock"));
        }
    }
}
