//! Which stage needs which: cycles, order, upstream, the selection of targets. Knows no key and no state of a run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::parse::{Diagnostic, Diagnostics, Problem, Shown};
use crate::pattern::Index;
use crate::pipeline::{Pipeline, Source, Stage, StageId};

/// A target that names no stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target}: {message}{}", .hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default())]
pub struct Unknown {
    /// The target as it was given.
    pub target: String,
    /// What is wrong with it.
    pub message: String,
    /// The nearest name, or what else to do.
    pub hint: Option<String>,
}

/// The stages of a pipeline and what they need; free of cycles.
#[derive(Clone, Debug)]
pub struct Graph {
    order: Vec<StageId>,
    /// The place of each stage in `order`.
    rank: Vec<u32>,
    inputs: Vec<Vec<StageId>>,
    dependents: Vec<Vec<StageId>>,
}

impl Graph {
    /// Fails on cycles; each is printed `a -> b -> a` (a reads b, b reads a) at the place of its first stage.
    pub fn new(pipeline: &Pipeline) -> Result<Graph, Diagnostics> {
        let inputs: Vec<Vec<StageId>> = pipeline.stages.iter().map(needs).collect();
        let mut dependents = vec![Vec::new(); inputs.len()];
        for (i, needed) in inputs.iter().enumerate() {
            for id in needed {
                dependents[id.index()].push(StageId(i as u32));
            }
        }
        let order = order(&inputs, &dependents);
        if order.len() < inputs.len() {
            return Err(cycles(pipeline, &inputs, &order));
        }
        let mut rank = vec![0; order.len()];
        for (i, id) in order.iter().enumerate() {
            rank[id.index()] = i as u32;
        }
        Ok(Graph { order, rank, inputs, dependents })
    }

    /// All stages, each after what it needs; otherwise in declared order.
    pub fn order(&self) -> &[StageId] {
        &self.order
    }

    /// The stages that this one reads, once each, in declared order.
    pub fn inputs_of(&self, id: StageId) -> &[StageId] {
        &self.inputs[id.index()]
    }

    /// The stages that read this one, in declared order.
    pub fn dependents_of(&self, id: StageId) -> &[StageId] {
        &self.dependents[id.index()]
    }

    /// The targets and everything they need, in `order()`.
    pub fn upstream(&self, targets: &[StageId]) -> Vec<StageId> {
        self.reach(targets, &self.inputs)
    }

    /// The targets and everything that needs them, in `order()`.
    pub fn downstream(&self, targets: &[StageId]) -> Vec<StageId> {
        self.reach(targets, &self.dependents)
    }

    fn reach(&self, from: &[StageId], edges: &[Vec<StageId>]) -> Vec<StageId> {
        let mut seen = vec![false; edges.len()];
        let mut stack = from.to_vec();
        let mut found = Vec::new();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut seen[id.index()], true) {
                found.push(id);
                stack.extend(&edges[id.index()]);
            }
        }
        found.sort_unstable_by_key(|id| self.rank[id.index()]);
        found
    }

    /// Stages by name, base name (all its instances) or pattern (`train[cifar10,*]`), in declared order, once each.
    pub fn select(&self, pipeline: &Pipeline, targets: &[String]) -> Result<Vec<StageId>, Unknown> {
        let index = Index::of(pipeline);
        let mut ids = Vec::new();
        for target in targets {
            if let Some(all) = index.all_of(target) {
                ids.extend(all);
                continue;
            }
            let unknown =
                |message: String, hint| Unknown { target: Shown(target).to_string(), message, hint };
            match index.find(target) {
                Ok(found) if found.path.is_some() => {
                    let hint = "name the stage alone".to_owned();
                    return Err(unknown("a path within an output cannot be a target".to_owned(), Some(hint)));
                }
                Ok(found) => ids.extend(found.ids),
                Err(Problem::New { message, hint }) => return Err(unknown(message, hint)),
                Err(Problem::Known) => {}
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The bases of the given stages and the edges between them, to be drawn: a base for all its instances.
    fn drawing<'p>(&self, pipeline: &'p Pipeline, stages: &[StageId]) -> Drawing<'p> {
        let shown: HashSet<StageId> = stages.iter().copied().collect();
        let mut sorted = stages.to_vec();
        sorted.sort_unstable_by_key(|id| self.rank[id.index()]);
        sorted.dedup();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for &id in &sorted {
            *counts.entry(&pipeline.stage(id).base).or_default() += 1;
        }
        // Backwards, so that a base stands where its last instance does: after what any of them needs.
        let mut bases = Vec::with_capacity(counts.len());
        for &id in sorted.iter().rev() {
            let base = pipeline.stage(id).base.as_str();
            bases.extend(counts.remove(base).map(|count| (base, count)));
        }
        bases.reverse();
        let number: HashMap<&str, usize> =
            bases.iter().enumerate().map(|(i, (base, _))| (*base, i)).collect();
        let mut seen = HashSet::new();
        let mut edges = Vec::new();
        for &id in &sorted {
            let to = number[pipeline.stage(id).base.as_str()];
            for needed in self.inputs_of(id).iter().filter(|id| shown.contains(id)) {
                let from = number[pipeline.stage(*needed).base.as_str()];
                if seen.insert((from, to)) {
                    edges.push((from, to));
                }
            }
        }
        Drawing { bases, edges }
    }

    /// The given stages as text, one base a line after what it needs: `train (12) <- prepare, step`.
    pub fn text(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let drawing = self.drawing(pipeline, stages);
        let mut out = String::new();
        let mut needs = vec![Vec::new(); drawing.bases.len()];
        for (from, to) in &drawing.edges {
            needs[*to].push(drawing.bases[*from].0);
        }
        for (i, needs) in needs.iter().enumerate() {
            out.push_str(&drawing.label(i));
            if !needs.is_empty() {
                out.push_str(" <- ");
                out.push_str(&needs.join(", "));
            }
            out.push('\n');
        }
        out
    }

    /// As a Graphviz digraph, an arrow from what is read to what reads it.
    pub fn dot(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let drawing = self.drawing(pipeline, stages);
        let mut out = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box];\n");
        for (i, (name, _)) in drawing.bases.iter().enumerate() {
            out.push_str(&format!("  \"{name}\" [label=\"{}\"];\n", drawing.label(i)));
        }
        for (from, to) in &drawing.edges {
            out.push_str(&format!("  \"{}\" -> \"{}\";\n", drawing.bases[*from].0, drawing.bases[*to].0));
        }
        out.push_str("}\n");
        out
    }

    /// As a picture.
    pub fn svg(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let drawing = self.drawing(pipeline, stages);
        let labels: Vec<String> = (0..drawing.bases.len()).map(|i| drawing.label(i)).collect();
        svg::draw(&labels, &drawing.edges)
    }

    /// As a Mermaid flowchart, an arrow from what is read to what reads it.
    pub fn mermaid(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let drawing = self.drawing(pipeline, stages);
        let mut out = String::from("flowchart LR\n");
        for i in 0..drawing.bases.len() {
            out.push_str(&format!("  s{i}[\"{}\"]\n", drawing.label(i)));
        }
        for (from, to) in &drawing.edges {
            out.push_str(&format!("  s{from} --> s{to}\n"));
        }
        out
    }

    /// As one JSON document: every stage, those of a matrix one by one, after the stages that it needs.
    pub fn json(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let stage = |id: &StageId| {
            let stage = pipeline.stage(*id);
            let needs: Vec<&str> =
                self.inputs_of(*id).iter().map(|id| pipeline.stage(*id).name.as_str()).collect();
            serde_json::json!({ "stage": stage.name, "of": stage.base, "needs": needs })
        };
        let shown: HashSet<StageId> = stages.iter().copied().collect();
        let all: Vec<_> = self.order().iter().filter(|id| shown.contains(id)).map(stage).collect();
        format!("{:#}\n", serde_json::json!({ "profile": pipeline.profile, "stages": all }))
    }
}

mod svg;

struct Drawing<'p> {
    /// Name and number of instances, each after what it needs.
    bases: Vec<(&'p str, usize)>,
    edges: Vec<(usize, usize)>,
}

impl Drawing<'_> {
    fn label(&self, i: usize) -> String {
        match self.bases[i] {
            (name, 1) => name.to_owned(),
            (name, n) => format!("{name} ({n})"),
        }
    }
}

fn needs(stage: &Stage) -> Vec<StageId> {
    let mut ids: Vec<StageId> = stage
        .inputs
        .iter()
        .flat_map(|(_, input)| input.sources())
        .filter_map(|source| match source {
            Source::Stage { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Kahn's algorithm, always taking the first declared stage that is ready; stages on or behind a cycle are left out.
fn order(inputs: &[Vec<StageId>], dependents: &[Vec<StageId>]) -> Vec<StageId> {
    let mut missing: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<Reverse<u32>> =
        missing.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| Reverse(i as u32)).collect();
    let mut order = Vec::with_capacity(inputs.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(StageId(i));
        for dependent in &dependents[i as usize] {
            missing[dependent.index()] -= 1;
            if missing[dependent.index()] == 0 {
                ready.push(Reverse(dependent.0));
            }
        }
    }
    order
}

/// One message for each knot of stages that need one another, with a shortest cycle through its first stage.
fn cycles(pipeline: &Pipeline, inputs: &[Vec<StageId>], sorted: &[StageId]) -> Diagnostics {
    let done: HashSet<StageId> = sorted.iter().copied().collect();
    let mut graph = DiGraph::<u32, (), u32>::default();
    let nodes: Vec<NodeIndex<u32>> = (0..inputs.len() as u32).map(|i| graph.add_node(i)).collect();
    for (i, needed) in inputs.iter().enumerate() {
        for id in needed.iter().filter(|id| !done.contains(id)) {
            graph.add_edge(nodes[i], nodes[id.index()], ());
        }
    }
    let mut knots: Vec<Vec<u32>> = kosaraju_scc(&graph)
        .into_iter()
        .map(|knot| knot.into_iter().map(|node| graph[node]).collect::<Vec<_>>())
        .filter(|knot| knot.len() > 1 || inputs[knot[0] as usize].contains(&StageId(knot[0])))
        .collect();
    for knot in &mut knots {
        knot.sort_unstable();
    }
    knots.sort_unstable();
    let diagnostics = knots.iter().map(|knot| {
        let cycle = shortest(knot, inputs);
        let names: Vec<&str> = cycle.iter().map(|&i| pipeline.stages[i as usize].name.as_str()).collect();
        let stage = &pipeline.stages[cycle[0] as usize];
        Diagnostic {
            location: stage.location.clone(),
            field: format!("stages.{}.in", stage.base),
            message: format!("stages read one another in a cycle: {}", round(&names)),
            hint: Some("remove one of these inputs, or split a stage in two".to_owned()),
        }
    });
    Diagnostics(diagnostics.collect())
}

/// `a -> b -> a`; of a very long cycle the middle is left out.
fn round(names: &[&str]) -> String {
    match names.len() {
        0..=20 => names.join(" -> "),
        n => {
            format!("{} -> … {} more … -> {}", names[..10].join(" -> "), n - 20, names[n - 10..].join(" -> "))
        }
    }
}

/// A shortest way from the first stage of a knot back to itself.
fn shortest(knot: &[u32], inputs: &[Vec<StageId>]) -> Vec<u32> {
    let start = knot[0];
    let inside: HashSet<u32> = knot.iter().copied().collect();
    let mut from = HashMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(i) = queue.pop_front() {
        for next in inputs[i as usize].iter().map(|id| id.0).filter(|next| inside.contains(next)) {
            if next == start {
                let mut cycle = vec![start];
                let mut at = i;
                while at != start {
                    cycle.push(at);
                    at = from[&at];
                }
                cycle.push(start);
                cycle.reverse();
                return cycle;
            }
            if next != start && !from.contains_key(&next) {
                from.insert(next, i);
                queue.push_back(next);
            }
        }
    }
    vec![start, start]
}

#[cfg(test)]
mod tests;
