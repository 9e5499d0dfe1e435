//! The loop of a run: the only module that sees schedule, results and executor together. One thread decides, worker
//! threads perform actions and send messages.

pub mod attempt;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::action;
use crate::cas::{Complete, Link};
use crate::cli::{Global, RunArgs};
use crate::device::{self, Devices};
use crate::digest::Digest;
use crate::error::Error;
use crate::estimate::{self, Classes};
use crate::event::{self, Event, Summary, View};
use crate::executor::{self, Control, Executor, Job, Update, local::Local};
use crate::job::{Folder, Reach};
use crate::keys::{Keyed, Keys, Output};
use crate::lease::{self, Acquired, Lease};
use crate::licence;
use crate::lock::{self, Locked};
use crate::pipeline::{Kind, Pipeline, Source, Stage, StageId};
use crate::progress;
use crate::publish::{self, Ran, RunFile, Spent};
use crate::rehearsal::{self, Verdict};
use crate::results::ActionResult;
use crate::sandbox;
use crate::schedule::{Entry, GPU, Schedule, State, Step, WHOLE};
use crate::session::Session;
use crate::source;
use crate::watch;
use crate::why::{self, Found};

use attempt::{Attempt, AttemptKey, Bench, Made, Outcome, Said};

/// Room that must be free before the first stage is started.
pub(crate) const FREE_BYTES: u64 = 32 << 20;
/// How long a stage has to write its checkpoint.
const GRACE: Duration = Duration::from_secs(120);
/// How often a stage that another run makes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the deciding thread hears.
pub(crate) enum Message {
    Said(usize, Said),
    Ended(usize, Outcome, f64, Option<Lease>),
    Signal(i32),
}

/// Runs, and with `--watch` again whenever something changes.
pub fn command(global: &Global, args: &RunArgs) -> Result<u8, Error> {
    if !args.watch {
        return run(global, args);
    }
    let stop = watch::Stop::new()?;
    loop {
        let sight = watch::look(global);
        match run(global, args) {
            Ok(code) if code > 128 => return Ok(code),
            Ok(_) => {}
            Err(error) => progress::say(format_args!("itpipe: {error}")),
        }
        progress::say(format_args!("watching for a change; Ctrl-C ends it"));
        if let Some(code) = watch::wait(global, &sight, &stop) {
            return Ok(code);
        }
    }
}

/// Brings the targets up to date. Returns the exit code.
///
/// # Errors
/// What is found before a stage runs: a bad pipeline, a missing input, an unwritable store.
pub fn run(global: &Global, args: &RunArgs) -> Result<u8, Error> {
    let start = Instant::now();
    let mut session = Session::open(global)?;
    if let Some(jobs) = args.jobs {
        session.pipeline.pools.insert("cpu".into(), jobs);
    }
    // What thousands of stages took is given back by the end of the process, unless more runs follow in it.
    let mut session = std::mem::ManuallyDrop::new(session);
    let code = run_session(global, args, &session, start);
    if args.watch {
        // SAFETY: it is not used again.
        unsafe { std::mem::ManuallyDrop::drop(&mut session) };
    }
    code
}

fn run_session(global: &Global, args: &RunArgs, session: &Session, start: Instant) -> Result<u8, Error> {
    let targets = session.select(&args.targets)?;
    let wanted = session.graph.upstream(&targets);
    let publishes = publishes(session, &wanted)?;
    check_inputs(session, &wanted)?;
    licence::demand(session, &wanted, &args.accept_licence)?;
    let mut views = progress::views(global.color, args.json, session.store.cache());
    let mut emit = |event: Event| views.iter_mut().for_each(|view| view.event(&event));
    let classes = Classes::new(session);
    emit(Event::Begun {
        version: event::VERSION,
        profile: session.pipeline.profile.clone(),
        targets: args.targets.clone(),
        stages: wanted.len(),
    });
    let keys = Keys::build(session, &wanted, &mut emit)?;
    keys.check(&wanted)?;
    let reach =
        Reach { root: session.root.clone(), mirror: mirror(args.mirror.as_deref())?, offline: args.offline };
    let mut expected = HashMap::new();
    if wanted.iter().any(|id| session.stage(*id).kind.rehearse) {
        let of = rehearsal::Ground { session, keys: &keys, classes: &classes, reach: &reach };
        match rehearsal::before(&of, &wanted, args.no_rehearsal, &mut views)? {
            Verdict::Go(seconds) => expected = seconds,
            Verdict::Stop(code) => return Ok(code),
        }
    }
    let n = session.pipeline.stages.len();
    let mut run = Run {
        session,
        keys,
        classes: &classes,
        expected,
        schedule: schedule(session, &wanted),
        outputs: vec![None; n],
        keyed: vec![None; n],
        controls: HashMap::new(),
        broken: HashMap::new(),
        seen: completeness(session, &wanted),
        elsewhere: Vec::new(),
        without_gpu: BTreeSet::new(),
        short: BTreeSet::new(),
        gpus: device::names(),
        views,
        publishes,
        reach,
        sources: BTreeMap::new(),
        commit: None,
        checked: false,
        keep: wanted.iter().any(|id| reads_provenance(session, *id)),
        locked: args.locked,
        stop: 0,
        signal: 0,
        fail_fast: args.fail_fast && !args.keep_going,
        json: args.json,
        summary: Summary::default(),
        error: None,
    };
    let ended = run.go();
    // What was recorded before an error stands in the lock too.
    let code = run.finish(start)?;
    ended.map(|()| code)
}

/// The folder of `--mirror`, whole.
///
/// # Errors
/// It is not there.
pub fn mirror(dir: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    let found = |dir: &Path| {
        std::fs::canonicalize(dir).map_err(|e| Error::input(format!("--mirror {}: {e}", dir.display())))
    };
    let dir = dir.map(found).transpose()?;
    if let Some(dir) = dir.as_ref().filter(|dir| dir.to_str().is_none()) {
        return Err(Error::input(format!(
            "--mirror {}: the path is not UTF-8\n  hint: rename the folder",
            dir.display()
        )));
    }
    Ok(dir)
}

fn reads_provenance(session: &Session, id: StageId) -> bool {
    session.stage(id).inputs.iter().any(|(_, input)| input.sources().contains(&Source::Provenance))
}

/// The capacities of the pools.
pub fn pools(pipeline: &Pipeline) -> BTreeMap<String, u32> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let gpus = device::names().len() as u32;
    let mut pools = BTreeMap::from([("cpu".into(), cores), ("network".into(), 4), (GPU.into(), gpus)]);
    pools.extend(pipeline.pools.clone());
    pools
}

fn schedule(session: &Session, wanted: &[StageId]) -> Schedule {
    let wanted: BTreeSet<StageId> = wanted.iter().copied().collect();
    let entries: Vec<Entry> = session
        .pipeline
        .iter()
        .map(|(id, stage)| Entry {
            wanted: wanted.contains(&id),
            upstream: session.graph.inputs_of(id).iter().map(|id| id.index()).collect(),
            pool: stage.kind.pool.clone(),
            needs: needs(&stage.kind),
        })
        .collect();
    Schedule::new(&entries, &pools(&session.pipeline))
}

/// What a stage of a kind takes from the pools, in thousandths.
pub(crate) fn needs(kind: &Kind) -> BTreeMap<String, u32> {
    let mut needs = kind.resources.clone();
    let own = if kind.pool == "cpu" { kind.threads.saturating_mul(WHOLE) } else { WHOLE };
    needs.entry(kind.pool.clone()).or_insert(own);
    needs
}

/// Looks on all cores at the outputs that stages are likely to have: those of the lock.
fn completeness(session: &Session, wanted: &[StageId]) -> HashMap<Digest, Complete> {
    let profile = &session.pipeline.profile;
    let locked: Vec<Digest> = wanted
        .iter()
        .filter_map(|id| session.lock.get(profile, &session.stage(*id).name))
        .map(|locked| locked.tree)
        .collect();
    let look = |tree: &Digest| Some((*tree, session.store.completeness(tree).ok()?));
    locked.par_iter().with_min_len(64).filter_map(look).collect()
}

/// Where each wanted stage is published; two to one place are an error.
fn publishes(session: &Session, wanted: &[StageId]) -> Result<BTreeMap<StageId, PathBuf>, Error> {
    let mut places: BTreeMap<PathBuf, StageId> = BTreeMap::new();
    for id in wanted {
        let stage = session.stage(*id);
        let Some(publish) = &stage.publish else { continue };
        let what = format!("{}: {}", stage.location, stage.name);
        let place = publish::place(&session.root, session.store.cache(), publish)
            .map_err(|e| Error { text: format!("{what}: {}", e.text), ..e })?;
        if let Some(other) = places.insert(place, *id) {
            let other = &session.stage(other).name;
            return Err(Error::input(format!(
                "{what}: publish: '{publish}': is also where {other} is published"
            )));
        }
    }
    Ok(places.into_iter().map(|(place, id)| (id, place)).collect())
}

/// Finds every file of the repository that a stage names and that is missing before anything runs, and hashes the others
/// on all cores.
fn check_inputs(session: &Session, wanted: &[StageId]) -> Result<(), Error> {
    let mut seen = BTreeMap::new();
    for id in wanted {
        for (field, path) in session.stage(*id).named() {
            seen.entry(path).or_insert((*id, field));
        }
    }
    let found: Vec<String> = seen
        .par_iter()
        .filter_map(|(path, (id, field))| {
            let full = session.root.join(path);
            let result = match std::fs::metadata(&full) {
                Ok(meta) if meta.is_dir() => Ok(()),
                Ok(meta) if !meta.is_file() => Err(std::io::Error::other(SPECIAL)),
                Ok(_) => session.stat.file(&full).map(|_| ()),
                Err(error) => Err(error),
            };
            let stage = session.stage(*id);
            result
                .err()
                .map(|error| format!("{}: {}: {field}: ./{path}: {error}", stage.location, stage.name))
        })
        .collect();
    if found.is_empty() { Ok(()) } else { Err(Error::input(found.join("\n"))) }
}

const SPECIAL: &str = "is neither a file nor a folder (a pipe, a socket or a device)";

/// Refuses a source that is neither pinned nor recorded.
fn check_locked(session: &Session, stage: &Stage, key: &Digest) -> Result<(), Error> {
    if !source::is_unpinned(stage) || session.lock.source(&stage.name, key).is_some() {
        return Ok(());
    }
    let lock = session.lock_name();
    Err(Error::input(format!(
        "{}: {}: --locked: neither the pipeline nor {lock} knows the bytes of this source\n  hint: run once without --locked, \
         and commit {lock}",
        stage.location, stage.name
    )))
}

struct Run<'a> {
    session: &'a Session,
    keys: Keys<'a>,
    classes: &'a Classes<'a>,
    /// The seconds that stages are likely to take, where that was asked.
    expected: HashMap<StageId, f64>,
    schedule: Schedule,
    outputs: Vec<Option<Output>>,
    keyed: Vec<Option<Rc<Keyed>>>,
    controls: HashMap<usize, Arc<Control>>,
    /// Stages whose recorded result cannot be served: why.
    broken: HashMap<usize, String>,
    /// What the store said of the trees that the lock names, before anything ran.
    seen: HashMap<Digest, Complete>,
    /// Stages that another run makes, or whose GPU another run holds.
    elsewhere: Vec<usize>,
    /// Stages of which the user knows that they wait for a GPU.
    without_gpu: BTreeSet<usize>,
    /// Kinds, by where they are declared, of which the user knows that they get less of a pool than they ask for.
    short: BTreeSet<crate::pipeline::Location>,
    /// The names of the GPUs, by their place in the pool.
    gpus: Vec<String>,
    views: Vec<Box<dyn View>>,
    publishes: BTreeMap<StageId, PathBuf>,
    reach: Reach,
    sources: BTreeMap<String, lock::Source>,
    commit: Option<Option<String>>,
    /// Whether the store was found writable.
    checked: bool,
    /// Whether the manifests of done stages are needed again, for a provenance.
    keep: bool,
    /// Whether only bytes that the pipeline or its lock knows may come.
    locked: bool,
    /// 0: go on; 1: stages were asked to stop; 2: stages were ended.
    stop: u8,
    signal: i32,
    fail_fast: bool,
    /// Whether stdout is for events alone.
    json: bool,
    summary: Summary,
    /// What ends the run before its time.
    error: Option<Error>,
}

impl<'a> Run<'a> {
    fn emit(&mut self, event: Event) {
        self.views.iter_mut().for_each(|view| view.event(&event));
    }

    fn name(&self, stage: usize) -> String {
        self.session.pipeline.stages[stage].name.clone()
    }

    fn starting(&self) -> bool {
        self.stop == 0 && self.error.is_none() && !(self.fail_fast && self.summary.failed > 0)
    }

    fn go(&mut self) -> Result<(), Error> {
        let (sender, receiver) = channel();
        let session = self.session;
        let reach = self.reach.clone();
        let secrets = action::secrets();
        let executor = executor();
        let bench = bench(session, &executor, &reach, &secrets);
        let signals = signals(sender.clone())?;
        std::thread::scope(|scope| {
            loop {
                while self.starting()
                    && let Some(stage) = self.schedule.next_check()
                {
                    self.check(stage);
                }
                while self.starting()
                    && let Some(stage) = self.schedule.next_start()
                {
                    if let Some(attempt) = self.start(stage) {
                        let (sender, bench) = (sender.clone(), &bench);
                        scope.spawn(move || perform(stage, attempt, bench, &sender));
                    }
                }
                if self.schedule.is_finished() || (!self.starting() && self.schedule.running() == 0) {
                    break;
                }
                self.listen(&receiver);
            }
        });
        signals.close();
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Looks one stage up.
    fn check(&mut self, stage: usize) {
        let id = StageId(stage as u32);
        let keyed = match self.keys.key(id, &self.outputs, &self.keyed) {
            Ok(keyed) => Rc::new(keyed),
            Err(error) => return self.fail(stage, error.text, Vec::new(), 0.0, false),
        };
        if self.locked
            && let Err(error) = check_locked(self.session, self.session.stage(id), &keyed.key)
        {
            self.error = Some(error);
            self.schedule.apply(stage, Step::Fail);
            return;
        }
        self.keyed[stage] = Some(keyed);
        if !self.take(stage) {
            self.schedule.apply(stage, Step::Miss);
        }
    }

    /// Takes the recorded result, if there is one that the store can serve.
    fn take(&mut self, stage: usize) -> bool {
        let Some(keyed) = self.keyed[stage].clone() else { return false };
        // Once a stage has run, time has passed: each tree is looked at when it is needed.
        let seen = if self.checked { None } else { Some(&self.seen) };
        let of = &self.session.pipeline.stages[stage];
        match why::look_for(self.session, of, &keyed.key, seen) {
            Found::Whole(output) => self.outputs[stage] = Some(output),
            Found::Nothing => return false,
            Found::Broken(why) => {
                // The first look tells more: a damaged blob is gone at the second.
                self.broken.entry(stage).or_insert(why);
                return false;
            }
        }
        self.schedule.apply(stage, Step::Hit);
        self.summary.up_to_date += 1;
        self.emit(Event::UpToDate { stage: self.name(stage), key: keyed.key.to_string() });
        self.done(stage);
        true
    }

    /// Whatever follows from a stage having its result.
    fn done(&mut self, stage: usize) {
        let id = StageId(stage as u32);
        let of = self.session.stage(id);
        if let Some(key) = self.outputs[stage].map(|output| output.key)
            && let Some(came) = source::came(self.session, of, &key)
        {
            self.sources.insert(lock::place(&of.name, &key), came);
        }
        if let Err(error) = self.publish(id) {
            self.error.get_or_insert(error);
        }
        if !self.keep && !self.publishes.contains_key(&id) {
            self.keyed[stage] = None;
        }
    }

    /// Makes a stage ready to be performed, unless another run performs it.
    fn start(&mut self, stage: usize) -> Option<Attempt<'a>> {
        if !self.checked {
            if let Err(error) = self.session.store.check_writable(FREE_BYTES) {
                self.error = Some(error.into());
                self.schedule.apply(stage, Step::Fail);
                return None;
            }
            crate::orphan::adopt();
            self.checked = true;
        }
        let keyed = self.keyed[stage].clone()?;
        let lease = match self.acquire(stage, &keyed) {
            Ok(Some(lease)) => lease,
            Ok(None) => return None,
            Err(error) => {
                self.fail(stage, error.text, Vec::new(), 0.0, false);
                return None;
            }
        };
        let devices = match devices(&mut self.schedule, &self.gpus, stage) {
            Ok(Some(devices)) => devices,
            Ok(None) => {
                drop(lease);
                // Looked at again as one that another run makes: both wait for that run.
                self.schedule.apply(stage, Step::Held);
                self.elsewhere.push(stage);
                if self.without_gpu.insert(stage) {
                    let text = format!("{}: waits for a GPU that another run holds", self.name(stage));
                    self.emit(Event::Warning { text });
                }
                return None;
            }
            Err(error) => {
                self.fail(stage, format!("its GPU cannot be locked: {error}"), Vec::new(), 0.0, false);
                return None;
            }
        };
        let control = match Control::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                self.fail(stage, format!("cannot be started: {error}"), Vec::new(), 0.0, false);
                return None;
            }
        };
        let of = &self.session.pipeline.stages[stage];
        let cause = match self.broken.remove(&stage) {
            Some(why) => why,
            None => why::cause(self.session, &of.name, &keyed).to_string(),
        };
        let resumed = Folder(self.session.store.work(&keyed.key)).resumes();
        self.schedule.apply(stage, Step::Start);
        self.controls.insert(stage, control.clone());
        self.emit(Event::Started { stage: of.name.clone(), key: keyed.key.to_string(), cause, resumed });
        self.say_what_is_short(stage);
        let argv = self.keys.command(&of.kind);
        let keyed = AttemptKey::from(&*keyed);
        Some(Attempt { stage: of, keyed, argv, lease, devices, control, rehearse: false })
    }

    /// A kind that asks for more of a pool than there is runs with all of it, which the user is told once.
    fn say_what_is_short(&mut self, stage: usize) {
        let kind = &self.session.pipeline.stages[stage].kind;
        if kind.resources.is_empty() || !self.short.insert(kind.location.clone()) {
            return;
        }
        let pools = pools(&self.session.pipeline);
        for (name, amount) in &kind.resources {
            // What no one measured, a GPU's memory, has no end.
            let Some(there) = pools.get(name.as_str()).map(|there| (*there).max(1)) else { continue };
            if *amount > there.saturating_mul(WHOLE) {
                let (name, asked) = (name, f64::from(*amount) / f64::from(WHOLE));
                let text = format!(
                    "{}: asks for {asked} of the pool {name}, which has {there}: it runs with all of it",
                    self.name(stage)
                );
                self.emit(Event::Warning { text });
            }
        }
    }

    /// The lease of an action; none when another run holds it or has just made its result.
    fn acquire(&mut self, stage: usize, keyed: &Keyed) -> Result<Option<Lease>, Error> {
        let work = self.session.store.work(&keyed.key);
        match lease::acquire(&work).map_err(crate::error::at(&work))? {
            Acquired::Ours(lease) => {
                // Another run may have recorded it since we looked.
                self.session.results.reload().map_err(Error::environment)?;
                if self.take(stage) {
                    let _ = std::fs::remove_dir_all(&work);
                    return Ok(None);
                }
                if self.schedule.state(stage) == State::Elsewhere {
                    self.schedule.apply(stage, Step::Freed);
                    return Ok(None);
                }
                Ok(Some(lease))
            }
            Acquired::HeldBy(holder) => {
                let orphan = holder.as_ref().is_some_and(|holder| holder.is_orphan());
                let ended = if orphan { crate::orphan::end(&work).unwrap_or(0) } else { 0 };
                if self.schedule.state(stage) != State::Elsewhere {
                    self.schedule.apply(stage, Step::Held);
                    self.elsewhere.push(stage);
                    let pid = holder.map_or(0, |holder| holder.engine.pid as u32);
                    if ended > 0 {
                        let text = format!(
                            "{}: a process of a killed run was still at work and was ended",
                            self.name(stage)
                        );
                        self.emit(Event::Warning { text });
                    } else if !orphan && pid != std::process::id() {
                        // Held by ourselves: another stage of this run is the same action.
                        self.emit(Event::Elsewhere { stage: self.name(stage), pid });
                    }
                }
                Ok(None)
            }
        }
    }

    fn listen(&mut self, receiver: &Receiver<Message>) {
        let wait = if self.elsewhere.is_empty() { Duration::from_secs(1) } else { LOOK_EVERY };
        match receiver.recv_timeout(wait) {
            Ok(message) => {
                self.hear(message);
                while let Ok(message) = receiver.try_recv() {
                    self.hear(message);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        // Also when there is much to hear: one stage that talks must not hide another that is silent.
        self.views.iter_mut().for_each(|view| view.tick());
        if !self.starting() {
            return;
        }
        for stage in std::mem::take(&mut self.elsewhere) {
            let Some(keyed) = self.keyed[stage].clone() else { continue };
            if let Err(error) = self.acquire(stage, &keyed) {
                self.fail(stage, error.text, Vec::new(), 0.0, false);
            }
            if self.schedule.state(stage) == State::Elsewhere {
                self.elsewhere.push(stage);
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Signal(signal) => {
                self.signal = signal;
                self.stop = (self.stop + 1).min(2);
                self.controls.values().for_each(|control| control.raise(self.stop));
                if self.stop == 1 && self.schedule.running() > 0 {
                    let text = "stopping: stages may write a checkpoint; once more ends them at once".into();
                    self.emit(Event::Warning { text });
                }
            }
            Message::Said(stage, Said::Progress { done, total, note }) => {
                self.emit(Event::Progress { stage: self.name(stage), done, total, note });
            }
            Message::Said(stage, Said::Retry { attempt, error }) => {
                self.emit(Event::Retried { stage: self.name(stage), attempt, error });
            }
            Message::Ended(stage, outcome, seconds, lease) => {
                self.controls.remove(&stage);
                self.ended(stage, outcome, seconds);
                if lease.is_some()
                    && self.schedule.state(stage) == State::Ran
                    && let Some(key) = self.outputs[stage].map(|output| output.key)
                {
                    // Removed while the lease is held: who opened it meanwhile sees that it is gone and makes it anew.
                    let _ = std::fs::remove_dir_all(self.session.store.work(&key));
                }
                drop(lease);
            }
        }
    }

    fn ended(&mut self, stage: usize, outcome: Outcome, seconds: f64) {
        match outcome {
            Outcome::Done(made) => match self.record(stage, &made) {
                Ok(()) => {
                    self.schedule.apply(stage, Step::Done);
                    self.summary.ran += 1;
                    let output = self.outputs[stage];
                    self.emit(Event::Finished {
                        stage: self.name(stage),
                        key: output.map(|o| o.key.to_string()).unwrap_or_default(),
                        tree: made.tree.to_string(),
                        seconds,
                    });
                    self.done(stage);
                }
                Err(error) => self.fail(stage, error.text, Vec::new(), seconds, true),
            },
            Outcome::Failed { error, tail } => self.fail(stage, error, tail, seconds, true),
            Outcome::Interrupted => {
                self.summary.interrupted += 1;
                self.emit(Event::Interrupted { stage: self.name(stage), seconds });
                self.not_run(stage, Step::Interrupt);
            }
        }
    }

    /// What is worth telling beside a result: its class, and what was estimated.
    fn facts(&mut self, stage: usize, seconds: f64) -> BTreeMap<String, String> {
        let id = StageId(stage as u32);
        let mut facts = BTreeMap::from([(estimate::CLASS.to_string(), self.classes.fact(id))]);
        if let Some(estimated) = self.expected.get(&id) {
            self.summary.estimated += estimated;
            self.summary.spent += seconds;
            facts.insert(estimate::ESTIMATED.into(), format!("{estimated:.3}"));
        }
        facts
    }

    fn record(&mut self, stage: usize, made: &Made) -> Result<(), Error> {
        let session = self.session;
        let keyed =
            self.keyed[stage].clone().ok_or_else(|| Error::environment("a stage without a key ended"))?;
        let of = &session.pipeline.stages[stage];
        if source::is_unpinned(of) {
            // What it may bring is for the lock to say: where that is newer than the store, so is what comes.
            source::demand(session, of, &keyed.key, &made.files)?;
        } else if let Some(before) = session.results.get(&keyed.key)
            && before.tree != made.tree
            && action::must_be_equal(of.kind.repeatable)
        {
            return Err(Error::input(format!(
                "a kind that is repeatable: bits made other bytes for the same key ({} before, {} now): nothing is \
                 recorded\n  hint: find what it does not declare, or say repeatable: statistical",
                before.tree.short(),
                made.tree.short()
            )));
        }
        let manifest = session.store.put_manifest(&keyed.manifest.lines)?;
        let result = ActionResult {
            key: keyed.key,
            tree: made.tree,
            stage: of.name.clone(),
            kind: of.kind.name.clone().unwrap_or_default(),
            profile: session.pipeline.profile.clone(),
            manifest,
            log: made.log,
            repeatable: of.kind.repeatable.to_string(),
            seconds: made.seconds,
            started: made.started,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            itpipe: env!("CARGO_PKG_VERSION").into(),
            commit: self.commit.get_or_insert_with(|| commit(&session.root)).clone(),
            accepted: None,
            remote: None,
            facts: self.facts(stage, made.seconds).into_iter().chain(source::fact(of, &made.files)).collect(),
        };
        session.results.record(&session.store, &result).map_err(Error::environment)?;
        self.outputs[stage] = Some(Output { key: keyed.key, tree: made.tree });
        Ok(())
    }

    fn fail(&mut self, stage: usize, error: String, tail: Vec<String>, seconds: f64, ran: bool) {
        self.summary.failed += 1;
        let log = match &self.keyed[stage] {
            Some(keyed) if ran => self.session.store.log_path(&keyed.key),
            _ => PathBuf::new(),
        };
        let log = if log.is_file() { shown(&self.session.root, &log) } else { String::new() };
        self.emit(Event::Failed { stage: self.name(stage), error, tail, log, seconds });
        self.not_run(stage, Step::Fail);
    }

    fn not_run(&mut self, stage: usize, step: Step) {
        let because = self.name(stage);
        for other in self.schedule.apply(stage, step) {
            self.summary.not_run += 1;
            // Hundreds of lines that say the same hide the one that matters.
            if self.summary.not_run <= 20 {
                self.emit(Event::NotRun { stage: self.name(other), because: because.clone() });
            }
        }
    }

    fn publish(&mut self, id: StageId) -> Result<(), Error> {
        let Some(to) = self.publishes.get(&id).cloned() else { return Ok(()) };
        let Some(output) = self.outputs[id.index()] else { return Ok(()) };
        let session = self.session;
        let tree = session.store.tree(&output.tree)?.ok_or_else(|| {
            Error::environment(format!("tree {}: not in the store any more\n  hint: run again", output.tree))
        })?;
        let written = publish::publish(&session.store, &session.stat, &tree, &to, |files| {
            let stages = self.ran(id);
            let mut cost = Spent::default();
            for ran in &stages {
                cost.spent += ran.seconds;
                cost.estimated += ran.estimated.unwrap_or(0.0);
                cost.spent_of_estimated += ran.estimated.map_or(0.0, |_| ran.seconds);
            }
            RunFile {
                version: 1,
                stage: session.stage(id).name.clone(),
                profile: session.pipeline.profile.clone(),
                tree: output.tree.to_string(),
                files,
                cost,
                stages,
            }
        })?;
        let page =
            if tree.files().any(|(path, ..)| path == "index.html") { to.join("index.html") } else { to };
        let path = shown(&session.root, &page);
        let stage = session.stage(id).name.clone();
        if written > 0 {
            self.emit(Event::Published { stage: stage.clone(), path: path.clone(), written });
        }
        self.summary.published.push((stage, path));
        Ok(())
    }

    /// When, where and how long each stage behind this one ran.
    fn ran(&self, id: StageId) -> Vec<Ran> {
        let upstream = self.session.graph.upstream(&[id]);
        let ran = upstream.iter().filter_map(|id| {
            let output = self.outputs[id.index()]?;
            let result = self.session.results.get(&output.key)?;
            Some(Ran {
                name: self.session.stage(*id).name.clone(),
                key: output.key.to_string(),
                started: result.started,
                seconds: result.seconds,
                estimated: result.facts.get(estimate::ESTIMATED).and_then(|text| text.parse().ok()),
                host: result.host.clone(),
                commit: result.commit.clone(),
                itpipe: result.itpipe.clone(),
            })
        });
        ran.collect()
    }

    /// Writes the lock and says how it went.
    fn finish(mut self, start: Instant) -> Result<u8, Error> {
        for stage in self.schedule.idle() {
            if self.schedule.state(stage) != State::Waiting || self.stop > 0 || self.fail_fast {
                self.summary.not_run += 1;
            }
        }
        let locked = self.write_lock();
        // Only time is lost where these cannot be written.
        let _ = self.session.stat.save();
        self.session.store.remember_all();
        self.summary.seconds = start.elapsed().as_secs_f64();
        let summary = self.summary.clone();
        self.emit(Event::Ended { summary });
        if !self.json {
            let mut out = std::io::stdout().lock();
            // A reader that has gone ends no run.
            self.summary.published.iter().for_each(|(_, path)| _ = writeln!(out, "{path}"));
        }
        locked?;
        Ok(match self.signal {
            0 if self.summary.failed > 0 => 1,
            0 => 0,
            signal => 128u8.saturating_add(signal as u8),
        })
    }

    fn write_lock(&self) -> Result<(), Error> {
        let session = self.session;
        if session.pipeline.overridden {
            return Ok(());
        }
        let profile = session.pipeline.profile.as_str();
        let results: BTreeMap<String, Locked> = session
            .pipeline
            .iter()
            .filter_map(|(id, stage)| {
                let output = self.outputs[id.index()]?;
                Some((stage.name.clone(), Locked { key: output.key, tree: output.tree }))
            })
            .collect();
        let stages: BTreeSet<String> =
            session.pipeline.stages.iter().map(|stage| stage.name.clone()).collect();
        let before = session.lock.results.get(profile);
        let same = results.iter().all(|(name, locked)| before.and_then(|b| b.get(name)) == Some(locked))
            && before.is_none_or(|b| b.keys().all(|name| stages.contains(name)))
            && self.sources.iter().all(|(name, source)| session.lock.sources.get(name) == Some(source));
        if same {
            return Ok(());
        }
        let update = lock::Update { profile, results, stages: Some(stages), sources: self.sources.clone() };
        lock::Lock::update(&session.lock_path(), &update).map_err(Error::environment)?;
        Ok(())
    }
}

/// The executor of this machine, made when the first stage starts: a run with nothing to do starts no process.
struct Lazy(OnceLock<Local>, bool);

impl Executor for Lazy {
    fn run(&self, job: &Job, control: &Control, update: &mut dyn FnMut(Update)) -> executor::Outcome {
        self.0.get_or_init(|| Local::new(self.1)).run(job, control, update)
    }
}

pub(crate) fn executor() -> impl Executor {
    Lazy(OnceLock::new(), sandbox::available())
}

/// What all attempts of a run work with.
pub(crate) fn bench<'b>(
    session: &'b Session,
    executor: &'b dyn Executor,
    reach: &'b Reach,
    secrets: &'b [String],
) -> Bench<'b> {
    Bench {
        store: &session.store,
        stat: &session.stat,
        executor,
        reach,
        // Whoever owns a read-only file can make it writable, so without a sandbox each stage gets copies of its own.
        link: if sandbox::available() { Link::Auto } else { Link::Copy },
        secrets,
        grace: GRACE,
    }
}

/// Holds the devices that the schedule has room on and no other run holds; none where there are too few now.
pub(crate) fn devices(
    schedule: &mut Schedule,
    gpus: &[String],
    stage: usize,
) -> std::io::Result<Option<Devices>> {
    let share = schedule.share(stage);
    let mut elsewhere = Vec::new();
    while let Some(places) = schedule.place(stage, &elsewhere) {
        // Where none is to be seen, a stage that needs one says so best.
        if places.is_empty() || gpus.is_empty() {
            return Ok(Some(Devices::default()));
        }
        let name = |place: &usize| gpus.get(*place).cloned().unwrap_or_else(|| place.to_string());
        let names: Vec<String> = places.iter().map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(devices) = Devices::take(&names, share)? {
            schedule.give(stage, places);
            return Ok(Some(devices));
        }
        // One of several is the one that is held; without the first, all are tried in turn.
        elsewhere.push(places[0]);
    }
    Ok(None)
}

/// A path as the user would write it.
pub(crate) fn shown(root: &std::path::Path, path: &std::path::Path) -> String {
    let here = std::env::current_dir().unwrap_or_else(|_| root.to_path_buf());
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

pub(crate) fn perform(stage: usize, attempt: Attempt<'_>, bench: &Bench<'_>, sender: &Sender<Message>) {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // A receiver that is gone has stopped listening: nothing is left to be told.
        attempt.perform(bench, &mut |said| _ = sender.send(Message::Said(stage, said)))
    }));
    let message = match done {
        Ok((outcome, seconds, lease)) => Message::Ended(stage, outcome, seconds, Some(lease)),
        Err(_) => {
            let error = "a bug of itpipe: its worker ended".to_string();
            Message::Ended(stage, Outcome::Failed { error, tail: Vec::new() }, 0.0, None)
        }
    };
    let _ = sender.send(message);
}

/// Sends a message for each signal that asks us to stop.
pub(crate) fn signals(sender: Sender<Message>) -> Result<signal_hook::iterator::Handle, Error> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| Error::environment(format!("signals: {e}")))?;
    let handle = signals.handle();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(Message::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(handle)
}

/// The commit that is checked out, read without a process; none outside a repository.
fn commit(root: &std::path::Path) -> Option<String> {
    let mut git = root.ancestors().map(|folder| folder.join(".git")).find(|git| git.exists())?;
    if git.is_file() {
        let text = std::fs::read_to_string(&git).ok()?;
        git = git.parent()?.join(text.trim().strip_prefix("gitdir: ")?);
    }
    let head = std::fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().to_string()) };
    let common =
        std::fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |c| git.join(c.trim()));
    if let Ok(commit) = std::fs::read_to_string(common.join(name)) {
        return Some(commit.trim().to_string());
    }
    let packed = std::fs::read_to_string(common.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| line.strip_suffix(name)?.split_whitespace().next().map(str::to_string))
}
