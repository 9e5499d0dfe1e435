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
    /// The pool in whose queue it waits.
    pub pool: String,
    /// How much it takes of each pool, in thousandths; more than the capacity counts as the whole pool.
    pub needs: BTreeMap<String, u32>,
}

/// The pool whose places are devices, and the one whose capacity each device has for itself.
pub const GPU: &str = "gpu";
pub const GPU_MEMORY: &str = "gpu-memory";
/// One of a pool.
pub const WHOLE: u32 = 1000;

#[derive(Debug)]
struct Pool {
    capacity: u32,
    used: u32,
    /// Longest way to the end first, then declared order.
    queue: BinaryHeap<Place>,
}

type Place = (u32, std::cmp::Reverse<usize>);

/// A GPU: what is free of it, in thousandths, and of its memory, where that has a capacity.
#[derive(Clone, Debug)]
struct Device {
    free: u32,
    memory: Option<u32>,
}

/// What a stage takes while it runs.
#[derive(Clone, Debug, Default)]
struct Needs {
    /// Pools by index, its own first.
    pools: Vec<(usize, u32)>,
    gpu: u32,
    memory: u32,
    /// The devices that it was given.
    devices: Vec<usize>,
}

/// The states of all stages and what may start.
#[derive(Debug)]
pub struct Schedule {
    states: Vec<State>,
    dependents: Vec<Vec<usize>>,
    open: Vec<usize>,
    height: Vec<u32>,
    needs: Vec<Needs>,
    pools: Vec<Pool>,
    devices: Vec<Device>,
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
        let capacity = |name: &str| capacities.get(name).copied().unwrap_or(1).max(1);
        let memory = capacities.get(GPU_MEMORY).map(|gib| gib.saturating_mul(WHOLE));
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut pools: Vec<Pool> = Vec::new();
        let mut needs = Vec::with_capacity(n);
        for entry in entries {
            let mut of = Needs::default();
            let own = entry.needs.get_key_value(&entry.pool);
            let others = entry.needs.iter().filter(|(name, _)| **name != entry.pool);
            for (name, amount) in own.into_iter().chain(others) {
                if name == GPU_MEMORY {
                    of.memory = memory.map_or(0, |memory| memory.min(*amount));
                    continue;
                }
                let index = *names.entry(name).or_insert_with(|| {
                    let capacity = capacity(name).saturating_mul(WHOLE);
                    pools.push(Pool { capacity, used: 0, queue: BinaryHeap::new() });
                    pools.len() - 1
                });
                let mut amount = (*amount).clamp(1, pools[index].capacity);
                if name == GPU {
                    // A share of one device, or some whole ones.
                    amount = if amount > WHOLE { amount.next_multiple_of(WHOLE) } else { amount };
                    of.gpu = amount;
                }
                of.pools.push((index, amount));
            }
            needs.push(of);
        }
        let mut schedule = Schedule {
            states: entries.iter().map(|e| if e.wanted { State::Waiting } else { State::Unwanted }).collect(),
            open: entries.iter().map(|e| e.upstream.len()).collect(),
            height: heights(entries, &dependents),
            dependents,
            needs,
            pools,
            devices: vec![Device { free: WHOLE, memory }; capacity(GPU) as usize],
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
        let mut heads: Vec<(Place, usize)> = Vec::new();
        for (index, pool) in self.pools.iter_mut().enumerate() {
            while let Some(&(_, std::cmp::Reverse(stage))) = pool.queue.peek()
                && self.states[stage] != State::Queued
            {
                pool.queue.pop();
            }
            heads.extend(pool.queue.peek().map(|&place| (place, index)));
        }
        heads.sort_unstable_by(|a, b| b.cmp(a));
        // What the head of a queue waits for is kept for it: later, lighter stages would starve it.
        let mut kept: Vec<usize> = Vec::new();
        for ((_, std::cmp::Reverse(stage)), queue) in heads {
            let needs = &self.needs[stage];
            let room = |&(pool, amount): &(usize, u32)| {
                !kept.contains(&pool) && self.pools[pool].used + amount <= self.pools[pool].capacity
            };
            if needs.pools.iter().all(room) && self.place(stage, &[]).is_some() {
                self.pools[queue].queue.pop();
                return Some(stage);
            }
            kept.extend(needs.pools.iter().map(|(pool, _)| *pool));
        }
        None
    }

    /// Devices with room for a stage, but for those in `not`; none where it must wait, an empty list where it needs none.
    /// The fullest that has room is taken, so that whole ones stay whole.
    pub fn place(&self, stage: usize, not: &[usize]) -> Option<Vec<usize>> {
        let needs = &self.needs[stage];
        let share = needs.gpu.min(WHOLE);
        let wanted = needs.gpu.div_ceil(WHOLE) as usize;
        let room = |device: &Device| {
            device.free >= share && device.memory.is_none_or(|memory| memory >= needs.memory)
        };
        let mut fit: Vec<usize> =
            (0..self.devices.len()).filter(|i| !not.contains(i) && room(&self.devices[*i])).collect();
        fit.sort_by_key(|i| self.devices[*i].free);
        fit.truncate(wanted);
        fit.sort_unstable();
        (fit.len() == wanted).then_some(fit)
    }

    /// How much of each of its devices a stage takes, in thousandths.
    pub fn share(&self, stage: usize) -> u32 {
        self.needs[stage].gpu.min(WHOLE)
    }

    /// Gives devices to a stage that is about to be answered with `Start`.
    pub fn give(&mut self, stage: usize, devices: Vec<usize>) {
        self.needs[stage].devices = devices;
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
        if from == Running || to == Running {
            let needs = &self.needs[stage];
            let (gpu, memory) = (needs.gpu.min(WHOLE), needs.memory);
            for &(pool, amount) in &needs.pools {
                let used = &mut self.pools[pool].used;
                *used = if to == Running { *used + amount } else { *used - amount };
            }
            for &device in &needs.devices {
                let device = &mut self.devices[device];
                let left = |free: u32, taken| if to == Running { free - taken } else { free + taken };
                device.free = left(device.free, gpu);
                device.memory = device.memory.map(|free| left(free, memory));
            }
            self.running = if to == Running { self.running + 1 } else { self.running - 1 };
        }
        if to == Queued
            && let Some(&(own, _)) = self.needs[stage].pools.first()
        {
            self.pools[own].queue.push((self.height[stage], std::cmp::Reverse(stage)));
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
