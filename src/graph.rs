//! Which stage needs which: cycles, order, upstream, the selection of targets. Knows no key and no state of a run.

use crate::parse::Diagnostics;
use crate::pipeline::{Pipeline, StageId};

/// A target that names no stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target}: no such stage{}", .hint.as_ref().map(|h| format!("\n  hint: {h}")).unwrap_or_default())]
pub struct Unknown {
    /// The target as it was given.
    pub target: String,
    /// The nearest name, or what else to do.
    pub hint: Option<String>,
}

/// The stages of a pipeline and what they need; free of cycles.
#[derive(Clone, Debug)]
pub struct Graph {
    order: Vec<StageId>,
    inputs: Vec<Vec<StageId>>,
    dependents: Vec<Vec<StageId>>,
}

impl Graph {
    /// Fails on a cycle, which is printed `a -> b -> a` at the place of its first stage.
    pub fn new(pipeline: &Pipeline) -> Result<Graph, Diagnostics> {
        let n = pipeline.stages.len();
        Ok(Graph {
            order: (0..n as u32).map(StageId).collect(),
            inputs: vec![vec![]; n],
            dependents: vec![vec![]; n],
        })
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
        let _ = targets;
        self.order.clone()
    }

    /// The targets and everything that needs them, in `order()`.
    pub fn downstream(&self, targets: &[StageId]) -> Vec<StageId> {
        let _ = targets;
        self.order.clone()
    }

    /// Stages by name, base name (all its instances) or pattern (`train[cifar10,*]`), in declared order, once each.
    pub fn select(&self, pipeline: &Pipeline, targets: &[String]) -> Result<Vec<StageId>, Unknown> {
        let _ = (pipeline, targets);
        Ok(Vec::new())
    }

    /// The given stages as indented text, as Graphviz, as Mermaid; instances of one base are one line with a count.
    pub fn text(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let _ = (pipeline, stages);
        String::new()
    }

    /// As a Graphviz digraph.
    pub fn dot(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let _ = (pipeline, stages);
        String::new()
    }

    /// As a Mermaid flowchart.
    pub fn mermaid(&self, pipeline: &Pipeline, stages: &[StageId]) -> String {
        let _ = (pipeline, stages);
        String::new()
    }
}
