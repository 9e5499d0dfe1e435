//! Everything that happens in a run, as data. Every view (bars, plain lines, the log of a run) is a consumer of these
//! and of nothing else. Knows no terminal and no file.

use serde::{Deserialize, Serialize};

use crate::estimate::Estimate;

/// One thing that happened. Times are seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A run begins; `stages` of them are wanted.
    Begun { version: u32, profile: String, targets: Vec<String>, stages: usize },
    /// Something the user should know that does not stop the run.
    Warning { text: String },
    /// A program's sources changed; its build writes to the terminal itself.
    Building { program: String, command: String },
    /// The build ended well.
    Built { program: String, digest: String, seconds: f64 },
    /// What a run would do with a stage: `up-to-date` (`cause` is its key), `run` and why, `maybe` after which other,
    /// `stuck` and why; `build` for a program.
    Planned { stage: String, fate: String, cause: String },
    /// What the stages that would run are likely to take.
    Estimate {
        #[serde(flatten)]
        estimate: Estimate,
    },
    /// A long plan is rehearsed: one stage of each of so many classes.
    Rehearsal { classes: usize, stages: usize },
    /// The rehearsal of a stage was started.
    Rehearsing { stage: String },
    /// It passed; one that does not is a `failed` whose error begins with `rehearsal:`.
    Rehearsed { stage: String, seconds: f64 },
    /// A recorded result was taken.
    UpToDate { stage: String, key: String },
    /// Another run makes this action; its result is waited for.
    Elsewhere { stage: String, pid: u32 },
    /// The command of a stage was started. `cause`: why there was no result; `resumed`: its scratch folder had content.
    Started { stage: String, key: String, cause: String, resumed: bool },
    /// A stage reported how far it is.
    Progress { stage: String, done: f64, total: f64, note: String },
    /// Its result is recorded.
    Finished { stage: String, key: String, tree: String, seconds: f64 },
    /// It failed and is tried again.
    Retried { stage: String, attempt: u32, error: String },
    /// It failed. `tail`: the last lines of its log; `log`: path of all of it.
    Failed { stage: String, error: String, tail: Vec<String>, log: String, seconds: f64 },
    /// The user stopped it; its scratch folder is kept.
    Interrupted { stage: String, seconds: f64 },
    /// Not run because of a failure upstream.
    NotRun { stage: String, because: String },
    /// Files of a published folder were written.
    Published { stage: String, path: String, written: usize },
    /// The run ended.
    Ended { summary: Summary },
}

/// The counts that end a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Summary {
    pub ran: usize,
    pub up_to_date: usize,
    pub failed: usize,
    pub not_run: usize,
    pub interrupted: usize,
    pub seconds: f64,
    /// Of the stages that ran and whose time had been estimated: what was estimated, and what it took.
    #[serde(default)]
    pub estimated: f64,
    #[serde(default)]
    pub spent: f64,
    /// `stage` and path of each wanted stage that is published, whether or not it ran.
    pub published: Vec<(String, String)>,
}

/// A consumer of events.
pub trait View {
    /// Called for each event, in order, from one thread.
    fn event(&mut self, event: &Event);

    /// Called now and then while nothing happens, so that a view can say that a long stage is alive.
    fn tick(&mut self) {}
}

/// The version of the event format.
pub const VERSION: u32 = 1;
