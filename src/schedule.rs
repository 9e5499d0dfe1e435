//! What may happen next: the state of every stage, the pools, and the one function that changes a state.
//! Pure: no file, thread or clock, and no idea of what a key or a process is.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Where a stage stands. Every change passes through [`Schedule::apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not asked for by the targets of this run.
    Unwanted,
    /// Some upstream stage is not done.
    Waiting,
    /// Everything upstream is done: its key can be computed, so that it can be looked up.
    Ready,
    /// Looked up and not there: waits for room in its pool.
    Queued,
    /// Another run of itpipe is making this very action: waits for its result, holds no room.
    Elsewhere,
    /// Its command is running and holds room in its pool.
    Running,
    /// A recorded result was taken.
    UpToDate,
    /// It ran in this run, and its result is recorded.
    Ran,
    /// It ran, or could not be started, and has no result.
    Failed,
    /// Stopped by the user with its checkpoint kept.
    Interrupted,
    /// Not run, since this upstream stage has no result.
    NotRun {
        /// Index of the first stage that failed or was interrupted.
        because: usize,
    },
}

impl State {
    /// Whether dependents can use a result.
    pub fn has_result(self) -> bool {
        matches!(self, State::UpToDate | State::Ran)
    }

    /// Whether nothing more happens to the stage in this run.
    pub fn is_final(self) -> bool {
        use State::*;
        matches!(self, Unwanted | UpToDate | Ran | Failed | Interrupted | NotRun { .. })
    }
}

/// What happened to a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The look-up found a result.
    Hit,
    /// The look-up found none.
    Miss,
    /// It was about to start, and another run holds its action.
    Held,
    /// The other run let go without a result.
    Freed,
    /// Its command was started.
    Start,
    /// Its command ended and the result is recorded.
    Done,
    /// Its command failed, or it could not be looked up or started.
    Fail,
    /// The user stopped it.
    Interrupt,
}

/// One stage, as far as the schedule needs to know it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whether the targets need it.
    pub wanted: bool,
    /// Indices of the stages it reads, once each.
    pub upstream: Vec<usize>,
    /// The pool it takes from.
    pub pool: String,
    /// How much it takes; more than the capacity counts as the whole pool.
    pub weight: u32,
}

#[derive(Debug)]
struct Pool {
    capacity: u32,
    used: u32,
    /// Longest way to the end first, then declared order.
    queue: BinaryHeap<(u32, std::cmp::Reverse<usize>)>,
}

/// The states of all stages and what may start.
#[derive(Debug)]
pub struct Schedule {
    states: Vec<State>,
    dependents: Vec<Vec<usize>>,
    open: Vec<usize>,
    height: Vec<u32>,
    pool_of: Vec<usize>,
    weight: Vec<u32>,
    pools: Vec<Pool>,
    ready: VecDeque<usize>,
    unfinished: usize,
    running: usize,
}

impl Schedule {
    /// `entries` in an order where each stage follows what it reads is not needed, but the graph must have no cycle;
    /// the upstream of a wanted stage is wanted. A pool without a capacity has 1.
    pub fn new(entries: &[Entry], capacities: &BTreeMap<String, u32>) -> Schedule {
        let n = entries.len();
        let mut dependents = vec![Vec::new(); n];
        for (i, entry) in entries.iter().enumerate().filter(|(_, e)| e.wanted) {
            entry.upstream.iter().for_each(|&u| dependents[u].push(i));
        }
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut pools = Vec::new();
        let mut pool_of = Vec::with_capacity(n);
        for entry in entries {
            let index = *names.entry(&entry.pool).or_insert_with(|| {
                let capacity = capacities.get(&entry.pool).copied().unwrap_or(1).max(1);
                pools.push(Pool { capacity, used: 0, queue: BinaryHeap::new() });
                pools.len() - 1
            });
            pool_of.push(index);
        }
        let weight =
            entries.iter().zip(&pool_of).map(|(e, &p)| e.weight.clamp(1, pools[p].capacity)).collect();
        let mut schedule = Schedule {
            states: entries.iter().map(|e| if e.wanted { State::Waiting } else { State::Unwanted }).collect(),
            open: entries.iter().map(|e| e.upstream.len()).collect(),
            height: heights(entries, &dependents),
            dependents,
            pool_of,
            weight,
            pools,
            ready: VecDeque::new(),
            unfinished: entries.iter().filter(|e| e.wanted).count(),
            running: 0,
        };
        for i in 0..n {
            if schedule.states[i] == State::Waiting && schedule.open[i] == 0 {
                schedule.states[i] = State::Ready;
                schedule.ready.push_back(i);
            }
        }
        schedule
    }

    /// The state of a stage.
    pub fn state(&self, stage: usize) -> State {
        self.states[stage]
    }

    /// Whether every wanted stage has come to an end.
    pub fn is_finished(&self) -> bool {
        self.unfinished == 0
    }

    /// How many stages hold room in a pool.
    pub fn running(&self) -> usize {
        self.running
    }

    /// A stage to look up, if there is one; it must be answered with `Hit`, `Miss` or `Fail`.
    pub fn next_check(&mut self) -> Option<usize> {
        self.ready.pop_front()
    }

    /// A stage that has room to run, if there is one; it must be answered with `Start`, `Hit`, `Held` or `Fail`.
    pub fn next_start(&mut self) -> Option<usize> {
        for pool in &mut self.pools {
            while let Some(&(_, std::cmp::Reverse(stage))) = pool.queue.peek() {
                if self.states[stage] != State::Queued {
                    pool.queue.pop();
                    continue;
                }
                // The head of a queue waits for its room: a later, lighter stage would starve it.
                if pool.used + self.weight[stage] > pool.capacity {
                    break;
                }
                pool.queue.pop();
                return Some(stage);
            }
        }
        None
    }

    /// The only place where a state changes. Returns the stages that will not run because of this step, in order.
    ///
    /// # Panics
    /// On a step that the state does not allow: a bug of the caller, never of the pipeline's author.
    pub fn apply(&mut self, stage: usize, step: Step) -> Vec<usize> {
        use State::*;
        let from = self.states[stage];
        let to = match (from, step) {
            (Ready | Queued | Elsewhere, Step::Hit) => UpToDate,
            (Ready, Step::Miss) | (Elsewhere, Step::Freed) => Queued,
            (Queued, Step::Held) => Elsewhere,
            (Queued, Step::Start) => Running,
            (Running, Step::Done) => Ran,
            (Ready | Queued | Elsewhere | Running, Step::Fail) => Failed,
            (Ready | Queued | Elsewhere | Running | Waiting, Step::Interrupt) => Interrupted,
            (from, step) => unreachable!("stage {stage}: {step:?} while {from:?}"),
        };
        let pool = &mut self.pools[self.pool_of[stage]];
        if from == Running {
            pool.used -= self.weight[stage];
            self.running -= 1;
        }
        if to == Running {
            pool.used += self.weight[stage];
            self.running += 1;
        }
        if to == Queued {
            pool.queue.push((self.height[stage], std::cmp::Reverse(stage)));
        }
        self.states[stage] = to;
        if !to.is_final() {
            return Vec::new();
        }
        self.unfinished -= 1;
        if to.has_result() {
            for &dependent in &self.dependents[stage] {
                self.open[dependent] -= 1;
                if self.open[dependent] == 0 && self.states[dependent] == Waiting {
                    self.states[dependent] = Ready;
                    self.ready.push_back(dependent);
                }
            }
            return Vec::new();
        }
        let mut not_run = Vec::new();
        let mut reach = self.dependents[stage].clone();
        while let Some(next) = reach.pop() {
            if self.states[next] == Waiting {
                self.states[next] = NotRun { because: stage };
                self.unfinished -= 1;
                not_run.push(next);
                reach.extend(&self.dependents[next]);
            }
        }
        not_run.sort_unstable();
        not_run
    }

    /// The wanted stages that have not come to an end and hold no room, in order: what an interrupted run leaves.
    pub fn idle(&self) -> Vec<usize> {
        (0..self.states.len())
            .filter(|&i| !self.states[i].is_final() && self.states[i] != State::Running)
            .collect()
    }
}

/// The number of stages on the longest way from each stage to an end: what is on the critical path starts first.
fn heights(entries: &[Entry], dependents: &[Vec<usize>]) -> Vec<u32> {
    let mut open: Vec<usize> = dependents.iter().map(Vec::len).collect();
    let mut height = vec![0u32; entries.len()];
    let mut stack: Vec<usize> = (0..entries.len()).filter(|&i| entries[i].wanted && open[i] == 0).collect();
    while let Some(i) = stack.pop() {
        for &u in &entries[i].upstream {
            height[u] = height[u].max(height[i] + 1);
            open[u] -= 1;
            if open[u] == 0 {
                stack.push(u);
            }
        }
    }
    height
}

#[cfg(test)]
mod tests;
