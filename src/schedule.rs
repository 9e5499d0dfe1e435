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
    upstream: Vec<Vec<usize>>,
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
            upstream: entries.iter().map(|e| e.upstream.clone()).collect(),
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

    /// The stages that a stage reads.
    pub fn upstream(&self, stage: usize) -> &[usize] {
        &self.upstream[stage]
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
mod tests {
    use super::*;

    fn entry(upstream: &[usize]) -> Entry {
        Entry { wanted: true, upstream: upstream.to_vec(), pool: "cpu".into(), weight: 1 }
    }

    fn cpu(n: u32) -> BTreeMap<String, u32> {
        BTreeMap::from([("cpu".to_string(), n)])
    }

    #[test]
    fn a_failure_stops_only_what_follows_it() {
        // 0 -> 1 -> 2, and 3 alone.
        let entries = [entry(&[]), entry(&[0]), entry(&[1]), entry(&[])];
        let mut s = Schedule::new(&entries, &cpu(4));
        assert_eq!((s.next_check(), s.next_check(), s.next_check()), (Some(0), Some(3), None));
        s.apply(0, Step::Miss);
        s.apply(3, Step::Miss);
        assert_eq!(s.next_start(), Some(0), "the longest way first");
        s.apply(0, Step::Start);
        assert_eq!(s.apply(0, Step::Fail), vec![1, 2]);
        assert_eq!(s.state(2), State::NotRun { because: 0 });
        assert_eq!(s.next_start(), Some(3));
        s.apply(3, Step::Start);
        s.apply(3, Step::Done);
        assert!(s.is_finished());
    }

    #[test]
    fn a_pool_is_never_overdrawn_and_a_heavy_stage_gets_all_of_it() {
        let mut entries = vec![entry(&[]), entry(&[]), entry(&[])];
        entries[1].weight = 9;
        let mut s = Schedule::new(&entries, &cpu(2));
        while let Some(i) = s.next_check() {
            s.apply(i, Step::Miss);
        }
        assert_eq!(s.next_start(), Some(0));
        s.apply(0, Step::Start);
        assert_eq!(s.next_start(), None, "1 needs both places");
        s.apply(0, Step::Done);
        assert_eq!(s.next_start(), Some(1));
        s.apply(1, Step::Start);
        assert_eq!(s.next_start(), None);
        s.apply(1, Step::Done);
        assert_eq!(s.next_start(), Some(2));
    }

    #[test]
    fn an_action_held_elsewhere_leaves_its_room_to_others() {
        let entries = [entry(&[]), entry(&[])];
        let mut s = Schedule::new(&entries, &cpu(1));
        while let Some(i) = s.next_check() {
            s.apply(i, Step::Miss);
        }
        assert_eq!(s.next_start(), Some(0));
        s.apply(0, Step::Held);
        assert_eq!(s.next_start(), Some(1));
        s.apply(1, Step::Start);
        s.apply(0, Step::Hit);
        s.apply(1, Step::Done);
        assert!(s.is_finished());
    }

    /// A generator that is good enough for a simulation (Marsaglia, "Xorshift RNGs", 2003).
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    /// One run over a random graph, the order of completions drawn from `seed`. A "result" is a function of the
    /// results upstream, as a key is; the returned text is what a lock would hold.
    fn simulate(entries: &[Entry], fails: &[bool], hits: &[bool], seed: u64) -> (String, usize) {
        let mut random = Random(seed);
        let mut s = Schedule::new(entries, &BTreeMap::from([("cpu".into(), 3), ("gpu".into(), 1)]));
        let mut results: Vec<Option<u64>> = vec![None; entries.len()];
        let (mut running, mut ran) = (Vec::new(), 0);
        while !s.is_finished() {
            while let Some(i) = s.next_check() {
                let inputs = entries[i].upstream.iter().map(|&u| results[u].expect("upstream is done"));
                let result = inputs.fold(i as u64 + 1, |a, b| a.wrapping_mul(31).wrapping_add(b));
                results[i] = Some(result);
                s.apply(i, if hits[i] { Step::Hit } else { Step::Miss });
            }
            while let Some(i) = s.next_start() {
                s.apply(i, Step::Start);
                ran += 1;
                running.push(i);
            }
            let used = |pool: &str| -> u32 {
                running.iter().filter(|&&i| entries[i].pool == pool).map(|&i| entries[i].weight).sum()
            };
            assert!(used("cpu") <= 3 && used("gpu") <= 1);
            if !running.is_empty() {
                let i = running.swap_remove(random.below(running.len()));
                if fails[i] {
                    results[i] = None;
                    s.apply(i, Step::Fail);
                } else {
                    s.apply(i, Step::Done);
                }
            }
        }
        let lock = (0..entries.len())
            .map(|i| format!("{i}: {:?}", s.state(i).has_result().then_some(results[i])))
            .collect::<Vec<_>>();
        (lock.join("\n"), ran)
    }

    #[test]
    fn the_order_of_completions_changes_neither_results_nor_what_ran() {
        for graph in 1..=60u64 {
            let mut random = Random(graph * 0x9e37_79b9);
            let n = 1 + random.below(40);
            let entries: Vec<Entry> = (0..n)
                .map(|i| {
                    let mut upstream: Vec<usize> =
                        (0..random.below(4)).filter_map(|_| (i > 0).then(|| random.below(i))).collect();
                    upstream.sort_unstable();
                    upstream.dedup();
                    let gpu = random.below(4) == 0;
                    let (pool, weight) =
                        if gpu { ("gpu".into(), 1) } else { ("cpu".into(), 1 + random.below(3) as u32) };
                    Entry { wanted: true, upstream, pool, weight }
                })
                .collect();
            let fails: Vec<bool> = (0..n).map(|_| random.below(12) == 0).collect();
            let hits: Vec<bool> = (0..n).map(|_| random.below(3) == 0).collect();
            let first = simulate(&entries, &fails, &hits, 1);
            for seed in 2..30 {
                assert_eq!(
                    simulate(&entries, &fails, &hits, seed * 7919),
                    first,
                    "graph {graph}, seed {seed}"
                );
            }
        }
    }
}
