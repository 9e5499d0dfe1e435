//! Rehearsals: before the first stage of a long plan, one of each class of stages runs for a moment, on the outputs of
//! rehearsals where there are no real ones. What is broken is found in minutes; nothing that comes of it is a result.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::action;
use crate::cas::{Complete, Store};
use crate::device;
use crate::digest::Digest;
use crate::error::Error;
use crate::estimate::{Classes, Costs, Estimate};
use crate::event::{Event, Summary, View};
use crate::executor::Control;
use crate::job::Reach;
use crate::keys::{Keyed, Keys, Output};
use crate::lease::{self, Acquired, Lease};
use crate::pipeline::{Input, Source, Stage, StageId};
use crate::plan::{Fate, plan_with};
use crate::run::attempt::{Attempt, AttemptKey, Outcome, Said};
use crate::run::{self, FREE_BYTES, Message};
use crate::schedule::{Entry, Schedule, Step};
use crate::session::Session;

pub mod record;

use record::Rehearsed;

/// A plan that takes longer, in seconds, is rehearsed.
const LONG: f64 = 600.0;
/// A rehearsal that passed is not repeated for so long: what it looks for is then as likely to break during the run.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// How often a rehearsal that another run makes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug)]
pub enum Verdict {
    /// The stages may run; the seconds that each is likely to take.
    Go(HashMap<StageId, f64>),
    /// Nothing may run: the exit code.
    Stop(u8),
}

/// What a rehearsal stands on.
pub struct Ground<'a> {
    pub session: &'a Session,
    pub keys: &'a Keys<'a>,
    pub classes: &'a Classes<'a>,
    pub reach: &'a Reach,
}

type Views = [Box<dyn View>];

fn tell(views: &mut Views, event: Event) {
    views.iter_mut().for_each(|view| view.event(&event));
}

/// Estimates what the wanted stages (upstream first) will take and, where that is long or not known, rehearses them.
///
/// # Errors
/// A store that cannot be written, or has less room than the plan is likely to take.
pub fn before(of: &Ground, wanted: &[StageId], skip: bool, views: &mut Views) -> Result<Verdict, Error> {
    let session = of.session;
    let fates = plan_with(session, of.keys, wanted)?;
    let to_run: Vec<StageId> =
        fates.iter().filter(|(_, fate)| !matches!(fate, Fate::UpToDate(_))).map(|(id, _)| *id).collect();
    if to_run.is_empty() {
        return Ok(Verdict::Go(HashMap::new()));
    }
    let costs = Costs::open(session, of.classes);
    let estimate = costs.estimate(&to_run);
    let unknown = |id: &StageId| session.stage(*id).kind.rehearse && costs.of(*id).seconds.is_none();
    let long = estimate.wall > LONG || to_run.iter().any(unknown);
    if !long || skip {
        return Ok(go(of, &costs, &to_run, estimate, views));
    }
    session.store.check_writable(FREE_BYTES)?;
    let cast = Cast::choose(session, of.classes, &fates);
    if !cast.parts.is_empty() {
        tell(views, Event::Rehearsal { classes: cast.parts.len(), stages: to_run.len() });
        let done = perform(of, cast, views)?;
        if done.signal != 0 || done.failed > 0 {
            let summary = Summary {
                failed: done.failed,
                not_run: to_run.len().saturating_sub(done.failed),
                up_to_date: wanted.len() - to_run.len(),
                seconds: done.seconds,
                ..Summary::default()
            };
            tell(views, Event::Ended { summary });
            return Ok(Verdict::Stop(if done.signal != 0 {
                128u8.saturating_add(done.signal as u8)
            } else {
                1
            }));
        }
    }
    // The measured steps tell more than was known before.
    let costs = Costs::open(session, of.classes);
    let estimate = costs.estimate(&to_run);
    session.store.check_writable(FREE_BYTES.max(estimate.bytes))?;
    Ok(go(of, &costs, &to_run, estimate, views))
}

fn go(of: &Ground, costs: &Costs, to_run: &[StageId], estimate: Estimate, views: &mut Views) -> Verdict {
    if estimate.wall > LONG {
        tell(views, Event::Estimate { estimate });
    }
    let known = to_run.iter().filter(|id| of.session.stage(**id).kind.rehearse);
    Verdict::Go(known.filter_map(|id| Some((*id, costs.of(*id).seconds?))).collect())
}

/// Whose output stands in for that of a stage that has none yet.
#[derive(Clone, Copy, Debug)]
enum StandIn {
    /// That of a stage of the same class which has run.
    Real(Output),
    /// What the rehearsal of this part writes.
    Part(usize),
}

/// A stage that is rehearsed for its class.
struct Part {
    id: StageId,
    /// With one member of each class in its lists: two would be twice the same run.
    stage: Stage,
    class: Digest,
    upstream: Vec<usize>,
}

/// Which stages are rehearsed, upstream first, and what they read.
struct Cast {
    parts: Vec<Part>,
    real: HashMap<StageId, Output>,
    stand_ins: HashMap<Digest, StandIn>,
}

impl Cast {
    /// The first of each class that has no result. A class of which one has a result under today's code works; what reads
    /// an output that can neither be had nor rehearsed is left out.
    fn choose(session: &Session, classes: &Classes, fates: &[(StageId, Fate)]) -> Cast {
        let mut cast = Cast { parts: Vec::new(), real: HashMap::new(), stand_ins: HashMap::new() };
        for (id, fate) in fates {
            if let Fate::UpToDate(output) = fate {
                cast.real.insert(*id, *output);
                cast.stand_ins.entry(classes.of(*id)).or_insert(StandIn::Real(*output));
            }
        }
        for (id, _) in fates.iter().filter(|(_, fate)| !matches!(fate, Fate::UpToDate(_))) {
            let class = classes.of(*id);
            if !session.stage(*id).kind.rehearse || cast.stand_ins.contains_key(&class) {
                continue;
            }
            if let Some(part) = cast.part(session, classes, *id) {
                cast.stand_ins.insert(class, StandIn::Part(cast.parts.len()));
                cast.parts.push(part);
            }
        }
        cast
    }

    fn part(&self, session: &Session, classes: &Classes, id: StageId) -> Option<Part> {
        let mut stage = session.stage(id).clone();
        let mut upstream = Vec::new();
        for (_, input) in &mut stage.inputs {
            // Of a list the real ones, and one of each class that has none real in it.
            let mut seen: HashSet<Digest> = HashSet::new();
            for source in input.sources() {
                if let Source::Stage { id, .. } = source
                    && self.real.contains_key(id)
                {
                    seen.insert(classes.of(*id));
                }
            }
            let mut kept = Vec::new();
            for source in input.sources() {
                let Source::Stage { id, .. } = source else {
                    kept.push(source.clone());
                    continue;
                };
                if !self.real.contains_key(id) {
                    let class = classes.of(*id);
                    if matches!(input, Input::Many(_)) && !seen.insert(class) {
                        continue;
                    }
                    if let StandIn::Part(part) = self.stand_ins.get(&class)? {
                        upstream.push(*part);
                    }
                }
                kept.push(source.clone());
            }
            if let Input::Many(list) = input {
                *list = kept;
            }
        }
        upstream.sort_unstable();
        upstream.dedup();
        Some(Part { id, stage, class: classes.of(id), upstream })
    }
}

/// How it went.
#[derive(Default)]
struct Done {
    failed: usize,
    signal: i32,
    seconds: f64,
}

/// Runs the parts in the pools of the pipeline. What fails does not keep the others from being looked at.
fn perform(of: &Ground, cast: Cast, views: &mut Views) -> Result<Done, Error> {
    let start = std::time::Instant::now();
    let session = of.session;
    let (sender, receiver) = channel();
    let signals = run::signals(sender.clone())?;
    let secrets = action::secrets();
    let executor = run::executor();
    let bench = run::bench(session, &executor, of.reach, &secrets);
    crate::orphan::adopt();
    let entries: Vec<Entry> = cast
        .parts
        .iter()
        .map(|part| Entry {
            wanted: true,
            upstream: part.upstream.clone(),
            pool: part.stage.kind.pool.clone(),
            needs: run::needs(&part.stage.kind),
        })
        .collect();
    let n = session.pipeline.stages.len();
    let mut stage = Rehearsing {
        of,
        cast: &cast,
        views,
        schedule: Schedule::new(&entries, &run::pools(&session.pipeline)),
        passed: record::read(session.store.cache()).into_iter().map(|one| (one.key, one)).collect(),
        outputs: vec![None; n],
        past: vec![None; n],
        keyed: vec![None; cast.parts.len()],
        controls: HashMap::new(),
        elsewhere: Vec::new(),
        gpus: device::names(),
        stop: 0,
        done: Done::default(),
    };
    stage.stand_in();
    std::thread::scope(|scope| {
        loop {
            while let Some(part) = stage.schedule.next_check() {
                stage.check(part);
            }
            while stage.stop == 0
                && let Some(part) = stage.schedule.next_start()
            {
                if let Some(attempt) = stage.start(part) {
                    let (sender, bench) = (sender.clone(), &bench);
                    scope.spawn(move || run::perform(part, attempt, bench, &sender));
                }
            }
            if stage.schedule.is_finished() || (stage.stop > 0 && stage.schedule.running() == 0) {
                break;
            }
            let wait = if stage.elsewhere.is_empty() { Duration::from_secs(1) } else { LOOK_EVERY };
            match receiver.recv_timeout(wait) {
                Ok(message) => stage.hear(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            stage.views.iter_mut().for_each(|view| view.tick());
            for part in std::mem::take(&mut stage.elsewhere) {
                // Queued again: who made it may have ended.
                stage.schedule.apply(part, Step::Freed);
            }
        }
    });
    signals.close();
    let mut done = stage.done;
    done.seconds = start.elapsed().as_secs_f64();
    Ok(done)
}

struct Rehearsing<'a> {
    of: &'a Ground<'a>,
    cast: &'a Cast,
    views: &'a mut Views,
    schedule: Schedule,
    passed: HashMap<Digest, Rehearsed>,
    /// By stage of the pipeline: real outputs and stand-ins.
    outputs: Vec<Option<Output>>,
    past: Vec<Option<Rc<Keyed>>>,
    keyed: Vec<Option<Rc<Keyed>>>,
    controls: HashMap<usize, Arc<Control>>,
    elsewhere: Vec<usize>,
    gpus: Vec<String>,
    stop: u8,
    done: Done,
}

impl<'a> Rehearsing<'a> {
    fn name(&self, part: usize) -> String {
        self.cast.parts[part].stage.name.clone()
    }

    fn store(&self) -> &'a Store {
        &self.of.session.store
    }

    /// Real outputs, for themselves and for those of their class that have none.
    fn stand_in(&mut self) {
        for (id, _) in self.of.session.pipeline.iter() {
            self.outputs[id.index()] = self.cast.real.get(&id).copied().or_else(|| {
                match self.cast.stand_ins.get(&self.of.classes.of(id))? {
                    StandIn::Real(output) => Some(*output),
                    StandIn::Part(_) => None,
                }
            });
        }
    }

    fn check(&mut self, part: usize) {
        let Part { id, stage, .. } = &self.cast.parts[part];
        match self.of.keys.rehearsal(*id, stage, &self.outputs, &self.past) {
            Ok(keyed) => self.keyed[part] = Some(Rc::new(keyed)),
            Err(error) => return self.fail(part, error.text, Vec::new(), 0.0),
        }
        if !self.take(part) {
            self.schedule.apply(part, Step::Miss);
        }
    }

    /// Takes a rehearsal that passed not long ago.
    fn take(&mut self, part: usize) -> bool {
        let Some(key) = self.keyed[part].as_ref().map(|keyed| keyed.key) else { return false };
        let Some(tree) = self.passed.get(&key).filter(|one| is_fresh(one)).map(|one| one.tree) else {
            return false;
        };
        if !matches!(self.store().completeness(&tree), Ok(Complete::Whole)) {
            return false;
        }
        self.schedule.apply(part, Step::Hit);
        self.set(part, Output { key, tree });
        true
    }

    fn set(&mut self, part: usize, output: Output) {
        let Part { id, class, .. } = &self.cast.parts[part];
        for (member, _) in self.of.session.pipeline.iter() {
            let slot = &mut self.outputs[member.index()];
            if slot.is_none() && self.of.classes.of(member) == *class {
                *slot = Some(output);
            }
        }
        self.past[id.index()] = self.keyed[part].clone();
    }

    fn start(&mut self, part: usize) -> Option<Attempt<'a>> {
        let keyed = self.keyed[part].clone()?;
        let work = self.store().work(&keyed.key);
        let fail = |this: &mut Self, what: String| {
            this.fail(part, what, Vec::new(), 0.0);
            None
        };
        let lease = match lease::acquire(&work) {
            Ok(Acquired::Ours(lease)) => lease,
            Ok(Acquired::HeldBy(_)) => {
                self.schedule.apply(part, Step::Held);
                self.elsewhere.push(part);
                return None;
            }
            Err(error) => return fail(self, format!("{}: {error}", work.display())),
        };
        // Another run may have made it since we looked.
        if let Some(one) = record::read(self.store().cache()).into_iter().rfind(|one| one.key == keyed.key) {
            self.passed.insert(one.key, one);
            if self.take(part) {
                return None;
            }
        }
        let devices = match run::devices(&mut self.schedule, &self.gpus, part) {
            Ok(Some(devices)) => devices,
            Ok(None) => {
                self.schedule.apply(part, Step::Held);
                self.elsewhere.push(part);
                return None;
            }
            Err(error) => return fail(self, format!("its GPU cannot be locked: {error}")),
        };
        let control = match Control::new() {
            Ok(control) => Arc::new(control),
            Err(error) => return fail(self, format!("cannot be started: {error}")),
        };
        self.schedule.apply(part, Step::Start);
        self.controls.insert(part, control.clone());
        let stage = &self.cast.parts[part].stage;
        tell(self.views, Event::Rehearsing { stage: stage.name.clone() });
        let argv = self.of.keys.command(&stage.kind);
        Some(Attempt {
            stage,
            keyed: AttemptKey::from(&*keyed),
            argv,
            lease,
            devices,
            control,
            rehearse: true,
        })
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Signal(signal) => {
                self.done.signal = signal;
                self.stop = 2;
                // There is nothing to keep of a rehearsal.
                self.controls.values().for_each(|control| control.raise(2));
            }
            Message::Said(part, Said::Progress { done, total, note }) => {
                tell(self.views, Event::Progress { stage: self.name(part), done, total, note });
            }
            Message::Said(part, Said::Retry { attempt, error }) => {
                tell(self.views, Event::Retried { stage: self.name(part), attempt, error });
            }
            Message::Ended(part, outcome, seconds, lease) => {
                self.controls.remove(&part);
                self.ended(part, outcome, seconds, lease);
            }
        }
    }

    fn ended(&mut self, part: usize, outcome: Outcome, seconds: f64, lease: Option<Lease>) {
        let Some(key) = self.keyed[part].as_ref().map(|keyed| keyed.key) else { return };
        match outcome {
            Outcome::Done(made) => {
                let one = Rehearsed {
                    version: record::VERSION,
                    key,
                    class: self.of.classes.fact(self.cast.parts[part].id),
                    stage: self.name(part),
                    tree: made.tree,
                    seconds,
                    cost: record::told(&self.store().log_path(&key)),
                    when: now(),
                };
                if let Err(error) = record::append(self.store().cache(), &one) {
                    return self.fail(part, format!("cannot be recorded: {error}"), Vec::new(), seconds);
                }
                self.schedule.apply(part, Step::Done);
                self.set(part, Output { key, tree: made.tree });
                tell(self.views, Event::Rehearsed { stage: self.name(part), seconds });
                let _ = std::fs::remove_dir_all(self.store().work(&key));
            }
            Outcome::Failed { error, tail } => self.fail(part, error, tail, seconds),
            Outcome::Interrupted => _ = self.schedule.apply(part, Step::Interrupt),
        }
        drop(lease);
    }

    fn fail(&mut self, part: usize, error: String, tail: Vec<String>, seconds: f64) {
        self.done.failed += 1;
        let log = self.keyed[part].as_ref().map(|keyed| self.store().log_path(&keyed.key));
        let log = log.filter(|log| log.is_file()).map(|log| run::shown(&self.of.session.root, &log));
        let (stage, error) = (self.name(part), format!("rehearsal: {error}"));
        tell(self.views, Event::Failed { stage, error, tail, log: log.unwrap_or_default(), seconds });
        self.schedule.apply(part, Step::Fail);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn is_fresh(one: &Rehearsed) -> bool {
    now().saturating_sub(one.when) < FRESH.as_millis() as u64
}
