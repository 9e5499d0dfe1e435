//! What a plan is likely to cost: time, room on the disk, bytes to bring. From runs of the same class that were measured,
//! from rehearsals, else from what the kind says. Knows results and rehearsals; starts nothing.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Encoder};
use crate::pipeline::{Command, Input, Pipeline, Source, StageId, Value};
use crate::rehearsal::record::{self, Rehearsed};
use crate::results::ActionResult;
use crate::schedule::WHOLE;
use crate::session::Session;

/// The fact of a result that says which class it was.
pub const CLASS: &str = "class";
/// The fact of a result that says how many seconds were estimated before it ran.
pub const ESTIMATED: &str = "estimated";

/// What one run of a stage is likely to take. Nothing: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cost {
    pub seconds: Option<f64>,
    /// Bytes of its output.
    pub bytes: Option<u64>,
    /// Bytes that it brings from elsewhere.
    pub download: Option<u64>,
}

/// What a plan is likely to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Stages that would run.
    pub stages: usize,
    /// Those of them whose time nobody knows.
    pub unknown: usize,
    /// Of all stages together.
    pub seconds: f64,
    /// From the start to the end, in the pools as they are.
    pub wall: f64,
    pub bytes: u64,
    pub download: u64,
}

/// The classes of stages: instances that differ in nothing but params that their kinds call `alike` are of one class.
/// The code is not in it: an edit forgets no measured time.
pub struct Classes<'a> {
    pipeline: &'a Pipeline,
    order: &'a [StageId],
    of: OnceCell<Vec<Digest>>,
}

impl<'a> Classes<'a> {
    /// Computed when first asked for.
    pub fn new(session: &'a Session) -> Classes<'a> {
        Classes { pipeline: &session.pipeline, order: session.graph.order(), of: OnceCell::new() }
    }

    pub fn of(&self, id: StageId) -> Digest {
        self.of.get_or_init(|| classes(self.pipeline, self.order))[id.index()]
    }

    /// As a fact of a result: enough digits to tell the classes of one pipeline apart.
    pub fn fact(&self, id: StageId) -> String {
        self.of(id).to_string()[..16].to_string()
    }
}

fn classes(pipeline: &Pipeline, order: &[StageId]) -> Vec<Digest> {
    let mut all = vec![Digest::of(b""); pipeline.stages.len()];
    for &id in order {
        let stage = pipeline.stage(id);
        let mut encoder = Encoder::new("itpipe class");
        match &stage.kind.command {
            Command::Shell(text) => _ = encoder.text(text),
            Command::Argv(words) => {
                encoder.list(words.len());
                words.iter().for_each(|word| _ = encoder.text(word));
            }
        }
        let params: BTreeMap<&String, &Value> =
            stage.params.iter().filter(|(name, _)| !stage.kind.alike.contains(name)).collect();
        encoder.list(params.len());
        for (name, value) in params {
            encoder.text(name).text(&value.to_json().to_string());
        }
        if let Some(files) = stage.files.as_ref().filter(|_| stage.kind.fixed) {
            files.keys().for_each(|path| _ = encoder.text(path));
        }
        encoder.list(stage.inputs.len());
        for (name, input) in &stage.inputs {
            let mut sources: Vec<Digest> =
                input.sources().iter().map(|source| source_class(source, &all)).collect();
            if matches!(input, Input::Many(_)) {
                // A further seed makes a table no other table.
                sources.sort();
                sources.dedup();
            }
            encoder.text(name).list(sources.len());
            sources.iter().for_each(|source| _ = encoder.digest(source));
        }
        all[id.index()] = encoder.finish();
    }
    all
}

fn source_class(source: &Source, classes: &[Digest]) -> Digest {
    let mut encoder = Encoder::new("itpipe class of a source");
    match source {
        Source::Stage { id, path } => {
            encoder.digest(&classes[id.index()]).text(path.as_deref().unwrap_or_default());
        }
        Source::Repo(path) => _ = encoder.text(path),
        Source::Provenance => _ = encoder.text("@provenance"),
    }
    encoder.finish()
}

/// What is known of the classes.
pub struct Costs<'a> {
    session: &'a Session,
    classes: &'a Classes<'a>,
    /// Number of results, seconds of all, one output.
    measured: HashMap<String, (u32, f64, Digest)>,
    rehearsed: HashMap<String, Cost>,
    /// Bytes of outputs, by class.
    sizes: RefCell<HashMap<String, Option<u64>>>,
}

impl<'a> Costs<'a> {
    /// Reads the journals of results and rehearsals.
    pub fn open(session: &'a Session, classes: &'a Classes<'a>) -> Costs<'a> {
        let mut measured: HashMap<String, (u32, f64, Digest)> = HashMap::new();
        for ActionResult { facts, seconds, tree, .. } in session.results.every() {
            if let Some(class) = facts.get(CLASS) {
                let entry = measured.entry(class.clone()).or_insert((0, 0.0, tree));
                *entry = (entry.0 + 1, entry.1 + seconds, tree);
            }
        }
        let rehearsed = record::read(session.store.cache());
        let rehearsed = rehearsed.into_iter().map(|Rehearsed { class, cost, .. }| (class, cost)).collect();
        Costs { session, classes, measured, rehearsed, sizes: RefCell::default() }
    }

    /// What a run of this stage is likely to take.
    pub fn of(&self, id: StageId) -> Cost {
        let stage = self.session.stage(id);
        let class = (!self.measured.is_empty() || !self.rehearsed.is_empty()).then(|| self.classes.fact(id));
        let rehearsed =
            class.as_ref().and_then(|class| self.rehearsed.get(class)).copied().unwrap_or_default();
        let measured = class.as_ref().and_then(|class| self.measured.get(class));
        let seconds = measured.map(|(n, seconds, _)| seconds / f64::from(*n));
        let size = |tree: &Digest| Some(self.session.store.tree(tree).ok()??.size());
        let bytes = class.as_ref().zip(measured).and_then(|(class, (.., tree))| {
            *self.sizes.borrow_mut().entry(class.clone()).or_insert_with(|| size(tree))
        });
        let promised = || {
            let files = stage.files.as_ref().filter(|_| stage.kind.fixed)?;
            files.values().map(|promise| promise.size).sum::<Option<u64>>()
        };
        Cost {
            seconds: seconds.or(rehearsed.seconds).or(stage.kind.expect.map(|n| n as f64)),
            bytes: bytes.or(rehearsed.bytes).or_else(promised),
            download: rehearsed.download.or_else(promised),
        }
    }

    /// What running these stages is likely to take; upstream stages come before those that read them.
    pub fn estimate(&self, stages: &[StageId]) -> Estimate {
        let pools = crate::run::pools(&self.session.pipeline);
        let mut estimate = Estimate { stages: stages.len(), ..Estimate::default() };
        let mut ends: HashMap<StageId, f64> = HashMap::new();
        let mut loads: HashMap<String, f64> = HashMap::new();
        for &id in stages {
            let cost = self.of(id);
            let seconds = cost.seconds.unwrap_or(0.0);
            estimate.unknown += usize::from(cost.seconds.is_none());
            estimate.seconds += seconds;
            estimate.bytes += cost.bytes.unwrap_or(0);
            estimate.download += cost.download.unwrap_or(0);
            let before = self.session.graph.inputs_of(id).iter().filter_map(|up| ends.get(up));
            let end = before.fold(0.0, |a: f64, b| a.max(*b)) + seconds;
            ends.insert(id, end);
            estimate.wall = estimate.wall.max(end);
            for (pool, amount) in crate::run::needs(&self.session.stage(id).kind) {
                let capacity = pools.get(&pool).copied().unwrap_or(1).max(1).saturating_mul(WHOLE);
                *loads.entry(pool).or_default() +=
                    seconds * f64::from(amount.min(capacity)) / f64::from(capacity);
            }
        }
        estimate.wall = loads.values().fold(estimate.wall, |a, b| a.max(*b));
        estimate
    }
}
