//! BERT's body as one function of (tokens, all its parameters): embeddings, layers of attention and two linear maps with
//! residual, dropout and layer norm, the pooler. Knows parameters by their order, not what they are called.
//!
//! One function for the whole network, as [`super::net`] is. What nothing depends on is not computed: no row for padding,
//! and in the last layer queries and everything after them for the first token of each example alone, which is what the
//! pooler reads. The result is the same function.

use super::attention::Attention;
use super::cpu::Cpu;
use super::dropout::Key;
use super::gemm::{Matrix, Packed, Target, block_rows, multiply};
use super::memory::{Buffer, share, written};
use super::rows::{self, Biased, Drop, GeluBoth, Norm, Times};
use anyhow::{Result, ensure};
use std::ops::Range;

/// Added to the scores of padding, as the published code does.
const MASKED: f32 = -1e4;

// The order of the parameters: tables of words, positions and types, the norm (γ, β); by layer those below, each weight
// or γ followed by its bias or β; the pooler's.
const NORM: usize = 3;
const LAYERS: usize = 5;
const LAYER: usize = 16;
const QUERY: usize = 0;
const KEY: usize = 2;
const VALUE: usize = 4;
const ATTENDED: usize = 6;
const ATTENTION_NORM: usize = 8;
const INNER: usize = 10;
const OUTPUT: usize = 12;
const OUTPUT_NORM: usize = 14;

/// The sizes that its parameters' shapes do not tell.
#[derive(Clone, Debug)]
pub struct Transformer {
    pub cpu: Cpu,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub epsilon: f32,
    pub dropout: f64,
    pub attention_dropout: f64,
}

/// The tokens of a batch without its padding, example after example.
pub struct Batch {
    words: Vec<u32>,
    places: Vec<u32>,
    types: Vec<u32>,
    /// First row of each example, and the end of the last.
    starts: Vec<usize>,
    /// By row, added to the scores; empty where every row counts.
    shift: Vec<f32>,
}

impl Batch {
    /// Of `tokens` [N, 3, length]: numbers of words, of types, and 1 where a token stands, 0 for padding. An example whose
    /// first token is padding is taken whole.
    ///
    /// Errors: a word or type that the tables of these sizes lack.
    pub fn new(tokens: &[u32], length: usize, vocabulary: usize, n_types: usize) -> Result<Batch> {
        let mut batch =
            Batch { words: vec![], places: vec![], types: vec![], starts: vec![0], shift: vec![] };
        let mut shift = vec![];
        for example in tokens.chunks_exact(3 * length) {
            let (words, rest) = example.split_at(length);
            let (types, stands) = rest.split_at(length);
            // A softmax of scores that are all masked is that of the scores.
            let masked = if stands.iter().any(|s| *s != 0) { MASKED } else { 0.0 };
            for i in (0..length).filter(|&i| stands[i] != 0 || stands[0] == 0) {
                for (what, id, size) in [("token", words[i], vocabulary), ("token type", types[i], n_types)] {
                    ensure!((id as usize) < size, "model: input: {what} {id}: there are {size}");
                }
                batch.words.push(words[i]);
                batch.types.push(types[i]);
                batch.places.push(i as u32);
                shift.push(if stands[i] == 0 { masked } else { 0.0 });
            }
            batch.starts.push(batch.words.len());
        }
        if shift.iter().any(|s| *s != 0.0) {
            batch.shift = shift;
        }
        Ok(batch)
    }

    fn rows(&self) -> usize {
        self.words.len()
    }

    fn examples(&self) -> usize {
        self.starts.len() - 1
    }
}

/// What the forward pass leaves for the backward pass.
pub struct Saved {
    key: Option<Key>,
    /// Before and after their norm, and dropout.
    embedded: Buffer,
    layers: Vec<SavedLayer>,
    /// The last layer's first tokens, and the pooler's tanh of them, before dropout.
    first: Buffer,
    pooled: Vec<f32>,
}

struct SavedLayer {
    x: Buffer,
    /// The last layer's queries come from these rows of x.
    first: Option<Buffer>,
    q: Buffer,
    kv: Buffer,
    p: Buffer,
    context: Buffer,
    /// Before the attention's norm, and after.
    s: Buffer,
    middle: Buffer,
    /// Before GELU.
    inner: Buffer,
    /// Before the output's norm.
    t: Buffer,
}

type Parameters<'a> = &'a [&'a [f32]];

impl Transformer {
    /// How many parameters there are.
    pub fn parameters(&self) -> usize {
        LAYERS + self.layers * LAYER + 2
    }

    /// The pooled first tokens [N, hidden].
    pub fn forward(&self, batch: &Batch, w: Parameters<'_>, key: Option<Key>) -> (Vec<f32>, Saved) {
        let (hidden, n) = (self.hidden, batch.examples());
        let mut embedded = Buffer::stale(batch.rows() * hidden);
        let to = embedded.shared();
        self.cpu.for_each(batch.rows().div_ceil(rows::ROWS), |part| {
            for row in part * rows::ROWS..batch.rows().min((part + 1) * rows::ROWS) {
                let of = |table: usize, ids: &[u32]| &w[table][ids[row] as usize * hidden..][..hidden];
                let (word, place, of_type) = (of(0, &batch.words), of(1, &batch.places), of(2, &batch.types));
                let to = unsafe { to.part(row * hidden, hidden) };
                for i in 0..hidden {
                    to[i] = (word[i] + of_type[i]) + place[i];
                }
            }
        });
        let mut x = Buffer::stale(batch.rows() * hidden);
        self.norm(w, NORM).join(&self.cpu, &mut embedded, &[], (None, 0, 0.0), &[], &mut x);
        rows::drop(&self.cpu, (key, 1, self.dropout), hidden, &mut x);
        let mut layers = vec![];
        for layer in 0..self.layers {
            let (saved, out) = self.layer(batch, layer, w, key, x);
            layers.push(saved);
            x = out;
        }
        let mut pooled = vec![0.0; n * hidden];
        let target = Target::new(&mut pooled, hidden);
        let pooler = LAYERS + self.layers * LAYER;
        self.linear(Matrix::of(&x, hidden), w[pooler], hidden, target, |_, _| ());
        for row in pooled.chunks_exact_mut(hidden) {
            row.iter_mut().zip(w[pooler + 1]).for_each(|(y, b)| *y = libm::tanhf(*y + b));
        }
        let mut features = pooled.clone();
        rows::drop(&self.cpu, self.pooler_drop(key), hidden, &mut features);
        (features, Saved { key, embedded, layers, first: x, pooled })
    }

    /// The gradients of all parameters, in their order, given that of the pooled first tokens.
    pub fn backward(&self, batch: &Batch, w: Parameters<'_>, saved: Saved, mut d: Vec<f32>) -> Vec<Vec<f32>> {
        let Saved { key, embedded, layers, first, pooled } = saved;
        let (hidden, n) = (self.hidden, batch.examples());
        let mut gradients = vec![vec![]; self.parameters()];
        rows::drop(&self.cpu, self.pooler_drop(key), hidden, &mut d);
        d.iter_mut().zip(&pooled).for_each(|(d, t)| *d *= 1.0 - t * t);
        let pooler = LAYERS + self.layers * LAYER;
        let of_pooler = Matrix::of(&d, hidden);
        gradients[pooler] = self.weigh(of_pooler, &self.pack(&first, hidden));
        gradients[pooler + 1] = rows::total(&d, hidden);
        let mut dx = Buffer::stale(n * hidden);
        self.back(of_pooler, w[pooler], hidden, Target::new(&mut dx, hidden), |_, _| ());
        for (layer, saved) in layers.into_iter().enumerate().rev() {
            dx = self.layer_back(batch, layer, w, key, saved, dx, &mut gradients);
        }
        rows::drop(&self.cpu, (key, 1, self.dropout), hidden, &mut dx);
        let sums = self.norm(w, NORM).part(&self.cpu, &embedded, (None, 0, 0.0), &mut dx, &mut []);
        self.keep(&mut gradients[NORM..], &sums);
        for (table, ids) in [&batch.words, &batch.places, &batch.types].into_iter().enumerate() {
            gradients[table] = self.scatter(w[table].len(), ids, &dx);
        }
        gradients
    }

    fn pooler_drop(&self, key: Option<Key>) -> Drop {
        (key, 2 + 3 * self.layers, self.dropout)
    }

    fn norm<'a>(&self, w: &[&'a [f32]], at: usize) -> Norm<'a> {
        Norm { gamma: w[at], beta: w[at + 1], epsilon: self.epsilon }
    }

    /// γ's and β's gradients; gives what comes after them.
    fn keep<'a>(&self, gradients: &mut [Vec<f32>], sums: &'a [f32]) -> &'a [f32] {
        for (gradient, sums) in gradients.iter_mut().zip(sums.chunks_exact(self.hidden)).take(2) {
            *gradient = sums.to_vec();
        }
        &sums[2 * self.hidden..]
    }

    /// x · wᵀ, for a weight [outputs, columns of x].
    fn linear(
        &self,
        x: Matrix<'_>,
        w: &[f32],
        outputs: usize,
        to: Target,
        then: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) {
        let inputs = w.len() / outputs;
        multiply(&self.cpu, x, &Packed::new(&self.cpu, Matrix::of(w, inputs).t()), to, then);
    }

    /// d · w: the way back to the inputs, for a weight [columns of d, inputs].
    fn back(
        &self,
        d: Matrix<'_>,
        w: &[f32],
        inputs: usize,
        to: Target,
        then: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) {
        multiply(&self.cpu, d, &Packed::new(&self.cpu, Matrix::of(w, inputs)), to, then);
    }

    fn pack(&self, x: &[f32], columns: usize) -> Packed {
        Packed::new(&self.cpu, Matrix::of(x, columns))
    }

    /// dᵀ · x: the gradient of a weight.
    fn weigh(&self, d: Matrix<'_>, x: &Packed) -> Vec<f32> {
        let (outputs, inputs) = (d.columns(), x.columns());
        // SAFETY: the product writes every element.
        unsafe {
            written(outputs * inputs, |to| {
                multiply(&self.cpu, d.t(), x, Target::shared(to, inputs), |_, _| ());
            })
        }
    }

    /// The gradient of a table of `len` floats whose rows `ids` were taken.
    fn scatter(&self, len: usize, ids: &[u32], d: &[f32]) -> Vec<f32> {
        let hidden = self.hidden;
        let (part, columns) = (1 << 16, 64);
        // SAFETY: every element is set to 0.
        let mut table = unsafe {
            written(len, |to| {
                self.cpu.for_each(len.div_ceil(part), |i| {
                    let len = part.min(len - i * part);
                    std::ptr::write_bytes(to.at(i * part), 0, len);
                });
            })
        };
        let to = share(&mut table);
        self.cpu.for_each(hidden.div_ceil(columns), |i| {
            let here = i * columns..hidden.min((i + 1) * columns);
            for (d, id) in d.chunks_exact(hidden).zip(ids) {
                let to = unsafe { to.part(*id as usize * hidden + here.start, here.len()) };
                to.iter_mut().zip(&d[here.clone()]).for_each(|(t, d)| *t += d);
            }
        });
        table
    }

    fn attention<'a>(&self, batch: &'a Batch, layer: usize, key: Option<Key>) -> Attention<'a> {
        Attention {
            heads: self.heads,
            width: self.hidden / self.heads,
            starts: &batch.starts,
            whole: layer + 1 < self.layers,
            shift: &batch.shift,
            key,
            place: 2 + 3 * layer,
            dropout: self.attention_dropout,
        }
    }

    fn layer(
        &self,
        batch: &Batch,
        layer: usize,
        w: Parameters<'_>,
        key: Option<Key>,
        x: Buffer,
    ) -> (SavedLayer, Buffer) {
        let (cpu, hidden, inside) = (&self.cpu, self.hidden, self.intermediate);
        let w = &w[LAYERS + layer * LAYER..][..LAYER];
        let all = batch.rows();
        let last = layer + 1 == self.layers;
        let first = last.then(|| self.firsts(batch, &x));
        let from = first.as_ref().unwrap_or(&x);
        let n = from.len() / hidden;
        let buffer = |columns: usize| Buffer::stale(n * columns);
        let (mut q, mut kv) = (buffer(hidden), Buffer::stale(all * 2 * hidden));
        for (at, x, to, step) in [
            (QUERY, from, q.shared(), hidden),
            (KEY, &x, kv.shared(), 2 * hidden),
            (VALUE, &x, unsafe { kv.shared().after(hidden) }, 2 * hidden),
        ] {
            let target = unsafe { Target::shared(to, step) };
            self.linear(Matrix::of(x, hidden), w[at], hidden, target, |rows, columns| {
                for row in rows {
                    let x = unsafe { to.part(row * step + columns.start, columns.len()) };
                    let bias = &w[at + 1][columns.clone()];
                    unsafe { rows::biased(cpu.isa, Biased { bias, x, out: &mut [] }) };
                }
            });
        }
        let mut context = buffer(hidden);
        let p = self.attention(batch, layer, key).forward(cpu, &q, &kv, &mut context);
        let (mut s, mut middle) = (buffer(hidden), buffer(hidden));
        self.linear(
            Matrix::of(&context, hidden),
            w[ATTENDED],
            hidden,
            Target::new(&mut s, hidden),
            |_, _| (),
        );
        let drop = (key, 3 + 3 * layer, self.dropout);
        self.norm(w, ATTENTION_NORM).join(cpu, &mut s, w[ATTENDED + 1], drop, from, &mut middle);
        let (mut inner, mut active) = (buffer(inside), buffer(inside));
        {
            let (inner, active) = (inner.shared(), active.shared());
            let target = unsafe { Target::shared(inner, inside) };
            self.linear(Matrix::of(&middle, hidden), w[INNER], inside, target, |rows, columns| {
                for row in rows {
                    let at = row * inside + columns.start;
                    let (x, out) = unsafe { (inner.part(at, columns.len()), active.part(at, columns.len())) };
                    let bias = &w[INNER + 1][columns.clone()];
                    unsafe { rows::biased(cpu.isa, Biased { bias, x, out }) };
                }
            });
        }
        let (mut t, mut out) = (buffer(hidden), buffer(hidden));
        self.linear(Matrix::of(&active, inside), w[OUTPUT], hidden, Target::new(&mut t, hidden), |_, _| ());
        let drop = (key, 4 + 3 * layer, self.dropout);
        self.norm(w, OUTPUT_NORM).join(cpu, &mut t, w[OUTPUT + 1], drop, &middle, &mut out);
        (SavedLayer { x, first, q, kv, p, context, s, middle, inner, t }, out)
    }

    /// The rows of the first tokens.
    fn firsts(&self, batch: &Batch, x: &[f32]) -> Buffer {
        let hidden = self.hidden;
        let mut first = Buffer::stale(batch.examples() * hidden);
        for (to, start) in first.chunks_exact_mut(hidden).zip(&batch.starts) {
            to.copy_from_slice(&x[start * hidden..][..hidden]);
        }
        first
    }

    #[allow(clippy::too_many_arguments)]
    fn layer_back(
        &self,
        batch: &Batch,
        layer: usize,
        w: Parameters<'_>,
        key: Option<Key>,
        saved: SavedLayer,
        mut d: Buffer,
        gradients: &mut [Vec<f32>],
    ) -> Buffer {
        let SavedLayer { x, first, q, kv, p, context, s, middle, mut inner, t } = saved;
        let (cpu, hidden, inside) = (&self.cpu, self.hidden, self.intermediate);
        let gradients = &mut gradients[LAYERS + layer * LAYER..][..LAYER];
        let w = &w[LAYERS + layer * LAYER..][..LAYER];
        let all = batch.rows();
        let n = d.len() / hidden;
        let buffer = |columns: usize| Buffer::stale(n * columns);

        let mut dy = buffer(hidden);
        let drop = (key, 4 + 3 * layer, self.dropout);
        let sums = self.norm(w, OUTPUT_NORM).part(cpu, &t, drop, &mut d, &mut dy);
        gradients[OUTPUT + 1] = self.keep(&mut gradients[OUTPUT_NORM..], &sums).to_vec();
        std::mem::drop(t);
        let mut active = buffer(inside);
        {
            let (inner, active) = (inner.shared(), active.shared());
            let part = rows::ROWS * inside;
            cpu.for_each((n * inside).div_ceil(part), |i| {
                let len = part.min(n * inside - i * part);
                let (x, out) = unsafe { (inner.part(i * part, len), active.part(i * part, len)) };
                unsafe { rows::gelu_both(cpu.isa, GeluBoth { x, out }) };
            });
        }
        gradients[OUTPUT] = self.weigh(Matrix::of(&dy, hidden), &self.pack(&active, inside));
        // Its memory is that of the gradient from here on.
        let mut dinner = active;
        let high = block_rows(cpu.isa, n);
        let mut sums = Buffer::zeroed(n.div_ceil(high) * inside);
        {
            let (to, sums) = (dinner.shared(), sums.shared());
            let target = unsafe { Target::shared(to, inside) };
            self.back(Matrix::of(&dy, hidden), w[OUTPUT], inside, target, |rows, columns| {
                let sums = unsafe { sums.part(rows.start / high * inside + columns.start, columns.len()) };
                for row in rows {
                    let at = row * inside + columns.start;
                    let d = unsafe { to.part(at, columns.len()) };
                    let factor = &inner[at..][..columns.len()];
                    unsafe { rows::times(cpu.isa, Times { d, factor, sums: &mut *sums }) };
                }
            });
        }
        gradients[INNER + 1] = rows::total(&sums, inside);
        gradients[INNER] = self.weigh(Matrix::of(&dinner, inside), &self.pack(&middle, hidden));
        self.back(Matrix::of(&dinner, inside), w[INNER], hidden, Target::sum(&mut d, hidden), |_, _| ());
        std::mem::drop((dinner, inner, middle));

        let drop = (key, 3 + 3 * layer, self.dropout);
        let sums = self.norm(w, ATTENTION_NORM).part(cpu, &s, drop, &mut d, &mut dy);
        gradients[ATTENDED + 1] = self.keep(&mut gradients[ATTENTION_NORM..], &sums).to_vec();
        gradients[ATTENDED] = self.weigh(Matrix::of(&dy, hidden), &self.pack(&context, hidden));
        let mut dcontext = context;
        self.back(
            Matrix::of(&dy, hidden),
            w[ATTENDED],
            hidden,
            Target::new(&mut dcontext, hidden),
            |_, _| (),
        );
        std::mem::drop((dy, s));

        let (mut dq, mut dkv) = (buffer(hidden), Buffer::stale(all * 2 * hidden));
        let attention = self.attention(batch, layer, key);
        let sums = attention.backward(cpu, &q, &kv, &p, &dcontext, &mut dq, &mut dkv);
        for (at, sums) in [QUERY, KEY, VALUE].into_iter().zip(sums.chunks_exact(hidden)) {
            gradients[at + 1] = sums.to_vec();
        }
        std::mem::drop((q, kv, p, dcontext));
        let of_keys = Matrix::new(&dkv, all, hidden, 2 * hidden);
        let of_values = Matrix::new(&dkv[hidden..], all, hidden, 2 * hidden);
        let packed = self.pack(&x, hidden);
        gradients[KEY] = self.weigh(of_keys, &packed);
        gradients[VALUE] = self.weigh(of_values, &packed);
        let queries = Matrix::of(&dq, hidden);
        gradients[QUERY] = match &first {
            Some(first) => self.weigh(queries, &self.pack(first, hidden)),
            None => self.weigh(queries, &packed),
        };
        std::mem::drop(packed);
        self.back(queries, w[QUERY], hidden, Target::sum(&mut d, hidden), |_, _| ());
        let mut dx = match first {
            None => d,
            Some(_) => {
                let mut dx = x;
                dx.fill(0.0);
                for (from, start) in d.chunks_exact(hidden).zip(&batch.starts) {
                    dx[start * hidden..][..hidden].copy_from_slice(from);
                }
                dx
            }
        };
        self.back(of_keys, w[KEY], hidden, Target::sum(&mut dx, hidden), |_, _| ());
        self.back(of_values, w[VALUE], hidden, Target::sum(&mut dx, hidden), |_, _| ());
        dx
    }
}
