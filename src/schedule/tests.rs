use super::*;

fn entry(upstream: &[usize]) -> Entry {
    Entry { wanted: true, upstream: upstream.to_vec(), pool: "cpu".into(), needs: need("cpu", 1) }
}

fn need(pool: &str, n: u32) -> BTreeMap<String, u32> {
    BTreeMap::from([(pool.to_string(), n * WHOLE)])
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
    entries[1].needs = need("cpu", 9);
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
    let mut s = Schedule::new(
        entries,
        &BTreeMap::from([("cpu".into(), 3), ("gpu".into(), 2), ("gpu-memory".into(), 24)]),
    );
    let mut results: Vec<Option<u64>> = vec![None; entries.len()];
    let (mut running, mut ran) = (Vec::new(), 0);
    let mut on: Vec<Vec<usize>> = vec![Vec::new(); entries.len()];
    while !s.is_finished() {
        while let Some(i) = s.next_check() {
            let inputs = entries[i].upstream.iter().map(|&u| results[u].expect("upstream is done"));
            let result = inputs.fold(i as u64 + 1, |a, b| a.wrapping_mul(31).wrapping_add(b));
            results[i] = Some(result);
            s.apply(i, if hits[i] { Step::Hit } else { Step::Miss });
        }
        while let Some(i) = s.next_start() {
            let devices = s.place(i, &[]).expect("a stage that may start has a place");
            on[i] = devices.clone();
            s.give(i, devices);
            s.apply(i, Step::Start);
            ran += 1;
            running.push(i);
        }
        let need = |i: usize, pool: &str| entries[i].needs.get(pool).copied().unwrap_or(0);
        let used = |pool: &str| -> u32 { running.iter().map(|&i| need(i, pool)).sum() };
        assert!(used("cpu") <= 3 * WHOLE && used("gpu") <= 2 * WHOLE);
        for device in 0..2 {
            let there = || running.iter().filter(|&&i| on[i].contains(&device));
            assert!(there().map(|&i| need(i, "gpu").min(WHOLE)).sum::<u32>() <= WHOLE);
            assert!(there().map(|&i| need(i, "gpu-memory")).sum::<u32>() <= 24 * WHOLE);
        }
        for &i in &running {
            assert_eq!(on[i].len() as u32, need(i, "gpu").div_ceil(WHOLE));
        }
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
                    (0..random.below(4)).filter(|_| i > 0).map(|_| random.below(i)).collect();
                upstream.sort_unstable();
                upstream.dedup();
                let mut needs = need("cpu", 1 + random.below(3) as u32);
                let gpu = random.below(3) == 0;
                if gpu {
                    needs.insert("gpu".into(), [300, 500, 1000, 2000][random.below(4)]);
                    needs.insert("gpu-memory".into(), [4000, 10000, 24000][random.below(3)]);
                }
                let pool = if gpu { "gpu".into() } else { "cpu".into() };
                Entry { wanted: true, upstream, pool, needs }
            })
            .collect();
        let fails: Vec<bool> = (0..n).map(|_| random.below(12) == 0).collect();
        let hits: Vec<bool> = (0..n).map(|_| random.below(3) == 0).collect();
        let first = simulate(&entries, &fails, &hits, 1);
        for seed in 2..30 {
            assert_eq!(simulate(&entries, &fails, &hits, seed * 7919), first, "graph {graph}, seed {seed}");
        }
    }
}

#[test]
fn shares_are_packed_so_that_whole_devices_stay_whole() {
    let gpu = |amount: u32, memory: u32| Entry {
        wanted: true,
        upstream: Vec::new(),
        pool: "gpu".into(),
        needs: BTreeMap::from([("gpu".into(), amount), ("gpu-memory".into(), memory)]),
    };
    let entries = [gpu(250, 8000), gpu(500, 8000), gpu(250, 20_000), gpu(1000, 1), gpu(3000, 0)];
    let mut s = Schedule::new(&entries, &BTreeMap::from([("gpu".into(), 3), ("gpu-memory".into(), 24)]));
    while let Some(i) = s.next_check() {
        s.apply(i, Step::Miss);
    }
    let mut placed = Vec::new();
    while let Some(i) = s.next_start() {
        let devices = s.place(i, &[]).unwrap();
        placed.push((i, devices.clone()));
        s.give(i, devices);
        s.apply(i, Step::Start);
    }
    // The third has no room in the memory of the first device; the last waits for all three.
    assert_eq!(placed, [(0, vec![0]), (1, vec![0]), (2, vec![1]), (3, vec![2])]);
    assert_eq!((s.place(3, &[]), s.place(1, &[])), (None, None), "no device has the room, or the memory");
    for (i, _) in placed {
        s.apply(i, Step::Done);
    }
    assert_eq!(s.place(1, &[0]), Some(vec![1]), "a device that another run holds is passed over");
    assert_eq!((s.next_start(), s.place(4, &[])), (Some(4), Some(vec![0, 1, 2])));
}

#[test]
fn the_longest_way_starts_first() {
    // 0 stands alone and is declared first; 1 -> 2 -> 3 takes three times as long.
    let entries = [entry(&[]), entry(&[]), entry(&[1]), entry(&[2])];
    let mut schedule = Schedule::new(&entries, &cpu(1));
    while let Some(stage) = schedule.next_check() {
        schedule.apply(stage, Step::Miss);
    }
    assert_eq!(schedule.next_start(), Some(1));
}
