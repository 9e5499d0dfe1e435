//! Attention of every head of every example, both ways: softmax(q·kᵀ · scale) · v. Knows where queries, keys and values
//! lie, not what made them.
//!
//! A head of an example is one task: its scores, at most a few hundred KiB, stay in the cache from the first product to
//! the last.

use super::cpu::Cpu;
use super::dropout::{Key, Mask};
use super::gemm::{Matrix, Packed, Target, multiply};
use super::memory::{Buffer, Shared, share};
use super::rows::{self, Left, Softmax, SoftmaxBack};

/// The shapes of one attention.
pub struct Attention<'a> {
    pub heads: usize,
    /// Of a head.
    pub width: usize,
    /// By example, its first row of keys and values; the end of the last.
    pub starts: &'a [usize],
    /// Whether each example has a query for every key, or one only.
    pub whole: bool,
    /// By row of keys, added to the scores; empty: nothing.
    pub shift: &'a [f32],
    pub key: Option<Key>,
    pub place: usize,
    pub dropout: f64,
}

/// One head of one example.
struct Head {
    /// Rows of queries and of keys, the first of each.
    queries: usize,
    keys: usize,
    query: usize,
    first: usize,
    /// Its first column among the hidden ones.
    column: usize,
    /// Where its probabilities lie.
    scores: usize,
}

impl Attention<'_> {
    fn hidden(&self) -> usize {
        self.heads * self.width
    }

    fn examples(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of queries of an example.
    fn queries(&self, example: usize) -> usize {
        if self.whole { self.starts[example + 1] - self.starts[example] } else { 1 }
    }

    /// By example, where its heads' probabilities start; the end of the last.
    fn scores(&self) -> Vec<usize> {
        let mut at = 0;
        let mut ends = vec![0];
        for example in 0..self.examples() {
            at += self.heads * self.queries(example) * (self.starts[example + 1] - self.starts[example]);
            ends.push(at);
        }
        ends
    }

    /// Calls `work` for each head; `work` writes only to what belongs to it.
    fn each(&self, cpu: &Cpu, work: impl Fn(&Cpu, usize, Head) + Sync) {
        let alone = cpu.alone();
        let scores = self.scores();
        cpu.for_each(self.examples() * self.heads, |task| {
            let (example, head) = (task / self.heads, task % self.heads);
            let first = self.starts[example];
            let (queries, keys) = (self.queries(example), self.starts[example + 1] - first);
            let head = Head {
                queries,
                keys,
                query: if self.whole { first } else { example },
                first,
                column: head * self.width,
                scores: scores[example] + head * queries * keys,
            };
            work(&alone, task, head);
        });
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    fn mask(&self, task: usize) -> Option<Mask> {
        Mask::new(self.key, self.place, task, self.dropout)
    }

    /// `context` [queries, hidden] from `q` [queries, hidden] and `kv` [keys, 2 · hidden]: keys, then values. Gives the
    /// probabilities, for the way back.
    pub fn forward(&self, cpu: &Cpu, q: &[f32], kv: &[f32], context: &mut [f32]) -> Buffer {
        let hidden = self.hidden();
        let mut p = Buffer::stale(self.scores()[self.examples()]);
        let (to, context) = (p.shared(), share(context));
        self.each(cpu, |alone, task, head| {
            let Head { queries, keys, .. } = head;
            let n = queries * keys;
            let (q, k, v) = self.of(&head, q, kv);
            let p = unsafe { to.part(head.scores, n) };
            multiply(alone, q, &Packed::new(alone, k.t()), Target::new(p, keys), |_, _| ());
            let mut left = Buffer::stale(n);
            let shift = if self.shift.is_empty() { &[] } else { &self.shift[head.first..][..keys] };
            let mask = self.mask(task);
            let left: &mut [f32] = &mut left;
            unsafe {
                let softmax = Softmax { width: keys, scale: self.scale(), shift, mask, p, left };
                rows::softmax(alone.isa, softmax);
            }
            let left = Matrix::new(left, queries, keys, keys);
            let context = unsafe { Target::shared(context.after(head.query * hidden + head.column), hidden) };
            multiply(alone, left, &Packed::new(alone, v), context, |_, _| ());
        });
        p
    }

    /// Given the gradient of `context`, those of `q` and `kv`, to `dq` and `dkv`, and of what was added to their rows:
    /// the sums over them, [3 · hidden].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        cpu: &Cpu,
        q: &[f32],
        kv: &[f32],
        p: &[f32],
        d: &[f32],
        dq: &mut [f32],
        dkv: &mut [f32],
    ) -> Vec<f32> {
        let hidden = self.hidden();
        let mut sums = Buffer::zeroed(self.examples() * 3 * hidden);
        {
            let (dq, dkv, sums) = (share(dq), share(dkv), sums.shared());
            self.each(cpu, |alone, task, head| {
                let Head { queries, keys, query, first, column, .. } = head;
                let n = queries * keys;
                let (q, k, v) = self.of(&head, q, kv);
                let p = &p[head.scores..][..n];
                let d = Matrix::new(&d[query * hidden + column..], queries, self.width, hidden);
                let kept = self.mask(task).map_or(1.0, |mask| mask.kept());
                let (dq, dk, dv) = unsafe {
                    let at = first * 2 * hidden + column;
                    (dq.after(query * hidden + column), dkv.after(at), dkv.after(at + hidden))
                };
                let target = |to: Shared, step: usize| unsafe { Target::shared(to, step) };
                let (mut left, mut scores) = (Buffer::stale(n), Buffer::stale(n));
                unsafe { rows::left(alone.isa, Left { kept, p, left: &mut left }) };
                let left = Matrix::new(&left, queries, keys, keys);
                multiply(alone, left.t(), &Packed::new(alone, d), target(dv, 2 * hidden), |_, _| ());
                multiply(alone, d, &Packed::new(alone, v.t()), Target::new(&mut scores, keys), |_, _| ());
                let d: &mut [f32] = &mut scores;
                let (width, scale) = (keys, self.scale());
                unsafe { rows::softmax_back(alone.isa, SoftmaxBack { width, scale, kept, p, d }) };
                let d = Matrix::new(d, queries, keys, keys);
                multiply(alone, d, &Packed::new(alone, k), target(dq, hidden), |_, _| ());
                multiply(alone, d.t(), &Packed::new(alone, q), target(dk, 2 * hidden), |_, _| ());
                let example = task / self.heads;
                let parts = [(dq, hidden, queries), (dk, 2 * hidden, keys), (dv, 2 * hidden, keys)];
                for (i, (rows, step, count)) in parts.into_iter().enumerate() {
                    let at = (example * 3 + i) * hidden + column;
                    let sums = unsafe { sums.part(at, self.width) };
                    for row in 0..count {
                        let row = unsafe { rows.part(row * step, self.width) };
                        sums.iter_mut().zip(row).for_each(|(s, v)| *s += *v);
                    }
                }
            });
        }
        rows::total(&sums, 3 * hidden)
    }

    /// Queries, keys and values of a head.
    fn of<'a>(&self, head: &Head, q: &'a [f32], kv: &'a [f32]) -> (Matrix<'a>, Matrix<'a>, Matrix<'a>) {
        let hidden = self.hidden();
        let of_keys = |column: usize| {
            let at = head.first * 2 * hidden + column;
            Matrix::new(&kv[at..], head.keys, self.width, 2 * hidden)
        };
        let q = Matrix::new(&q[head.query * hidden + head.column..], head.queries, self.width, hidden);
        (q, of_keys(head.column), of_keys(hidden + head.column))
    }
}
