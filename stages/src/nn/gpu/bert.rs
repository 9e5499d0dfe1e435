//! A BERT with pooler, forward and backward, on an engine. Knows the published order of its parameters and where dropout
//! stands; the gradients come in that order. Rows are tokens: row = example · length + place.

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use super::{Buf, Gemm, Gpu, Tiles};

/// Added to the scores of padding, as the published code does.
const MASKED: f32 = -1e4;

/// Parameters of a layer, and those before and behind all layers.
const OF_LAYER: usize = 16;
const BEFORE: usize = 5;
const BEHIND: usize = 2;

/// The sizes of a network.
#[derive(Clone, Debug)]
pub struct Sizes {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
    pub types: usize,
    pub epsilon: f64,
    pub dropout: f64,
    pub attention_dropout: f64,
}

pub struct Bert {
    sizes: Sizes,
    /// Float32, in the published order: words, positions, types, norm; of each layer query, key, value, dense, norm,
    /// intermediate, output, norm; pooler. Weights before biases.
    parameters: Vec<Buf>,
}

/// A dropout: the key of its random numbers, the bound below which an element is dropped, what kept ones are multiplied
/// by. A bound of 0 drops nothing.
#[derive(Clone, Copy)]
struct Drop {
    key: usize,
    limit: usize,
    kept: f32,
}

impl Drop {
    fn new(p: f64, key: u64) -> Drop {
        Drop { key: key as usize, limit: (p * 2f64.powi(32)) as usize, kept: (1.0 / (1.0 - p)) as f32 }
    }

    const NONE: Drop = Drop { key: 0, limit: 0, kept: 1.0 };
}

/// What the forward pass of a training step leaves for the backward pass.
pub struct Saved {
    n: usize,
    length: usize,
    tokens: Buf,
    embedded: Normed,
    embedded_drop: Drop,
    layers: Vec<Layer>,
    first: Buf,
    pooler: Buf,
    tanh: Buf,
    pooled_drop: Drop,
}

/// A norm over rows: its argument t, its result, its moments, and the dropout before it.
struct Normed {
    t: Buf,
    out: Buf,
    moments: Buf,
    drop: Drop,
}

struct Layer {
    x: Buf,
    /// Weights as reals: query, key and value below each other; dense, intermediate, output.
    weights: [Buf; 4],
    /// Queries, keys, values by head.
    heads: Buf,
    probabilities: Buf,
    dropped: Buf,
    attention_drop: Drop,
    context: Buf,
    attended: Normed,
    /// Before and behind GELU.
    u: Buf,
    g: Buf,
    output: Normed,
}

impl Bert {
    /// Errors: another number of parameters than these sizes have.
    pub fn new(sizes: Sizes, parameters: Vec<Buf>) -> Result<Bert> {
        let expected = BEFORE + OF_LAYER * sizes.layers + BEHIND;
        ensure!(parameters.len() == expected, "bert: {} parameters, expected {expected}", parameters.len());
        Ok(Bert { sizes, parameters })
    }

    fn layer(&self, i: usize) -> &[Buf] {
        &self.parameters[BEFORE + i * OF_LAYER..][..OF_LAYER]
    }

    fn pooler(&self) -> &[Buf] {
        &self.parameters[BEFORE + self.sizes.layers * OF_LAYER..]
    }

    /// The pooled first token [n, hidden] (a new float32 tensor) of tokens [n, 3, length], u32. `key` gives dropout i of
    /// a training step the key of its random numbers; without it nothing is dropped.
    pub fn forward(
        &self,
        gpu: &Gpu,
        tokens: &Buf,
        (n, length): (usize, usize),
        key: Option<&dyn Fn(u64) -> u64>,
    ) -> Result<(Tensor, Saved)> {
        let Sizes { hidden, intermediate, heads, .. } = self.sizes;
        let (rows, d) = (n * length, hidden / heads);
        let mut place = 0;
        let mut drop = |p: f64| {
            place += 1;
            key.filter(|_| p > 0.0).map_or(Drop::NONE, |key| Drop::new(p, key(place)))
        };
        let [words, positions, types, gamma, beta] = &self.parameters[..BEFORE] else { return Err(few()) };
        let none = Buf::none();

        let y = gpu.reals(rows * hidden)?;
        gpu.each("embed", [tokens, words, types, positions, &y], [rows * hidden, hidden, length], [])?;
        let embedded = self.norm(gpu, rows, &y, [&none, &none, gamma, beta], Drop::NONE)?;
        let embedded_drop = drop(self.sizes.dropout);
        if embedded_drop.limit > 0 {
            let Drop { key, limit, kept } = embedded_drop;
            gpu.each("dropout", [&embedded.out], [rows * hidden, key, limit], [kept])?;
        }

        let mut x = embedded.out.clone();
        let mut layers = Vec::with_capacity(self.sizes.layers);
        for i in 0..self.sizes.layers {
            let [wq, bq, wk, bk, wv, bv, wd, bd, g1, b1, wi, bi, wo, bo, g2, b2] = self.layer(i) else {
                return Err(few());
            };
            let (square, bytes) = (hidden * hidden, gpu.size());
            // One product for queries, keys and values.
            let (together, bias) = (gpu.reals(3 * square)?, gpu.floats(3 * hidden)?);
            for (k, (w, b)) in [(wq, bq), (wk, bk), (wv, bv)].into_iter().enumerate() {
                gpu.each("cast", [w, &together.after(k * square * bytes)], [square], [])?;
                gpu.each("fold", [b, &bias.after(k * hidden * 4)], [hidden, 1], [])?;
            }
            let weights = [
                together,
                gpu.as_reals(wd, square)?,
                gpu.as_reals(wi, hidden * intermediate)?,
                gpu.as_reals(wo, hidden * intermediate)?,
            ];
            let (qkv, by_head) = (gpu.reals(3 * rows * hidden)?, gpu.reals(3 * rows * hidden)?);
            linear(gpu, (rows, 3 * hidden, hidden), &x, &weights[0], &qkv)?;
            let sizes = [3 * rows * hidden, hidden, length, heads, 3, rows * hidden];
            gpu.each("split_heads", [&qkv, &bias, &by_head], sizes, [])?;
            let part = |k: usize| by_head.after(k * rows * hidden * bytes);

            let scores = gpu.reals(n * heads * length * length)?;
            let product = Gemm { batch: n * heads, ..Gemm::new(length, length, d, (false, true)) };
            gpu.engine.gemm(&product, &part(0), &part(1), &scores)?;
            let attention_drop = drop(self.sizes.attention_dropout);
            let Drop { key, limit, kept } = attention_drop;
            let dropped = if limit > 0 { gpu.reals(n * heads * length * length)? } else { scores.clone() };
            let behind = if limit > 0 { &dropped } else { &none };
            let f = [1.0 / (d as f32).sqrt(), MASKED, kept];
            gpu.blocks(
                "softmax",
                n * heads * length,
                [&scores, behind, tokens],
                [length, heads * length, key, limit],
                f,
            )?;
            let (context, merged) = (gpu.reals(rows * hidden)?, gpu.reals(rows * hidden)?);
            let product = Gemm { batch: n * heads, ..Gemm::new(length, d, length, (false, false)) };
            gpu.engine.gemm(&product, &dropped, &part(2), &context)?;
            let sizes = [rows * hidden, hidden, length, heads, 1, rows * hidden];
            gpu.each("merge_heads", [&context, &merged], sizes, [])?;

            let y = gpu.reals(rows * hidden)?;
            linear(gpu, (rows, hidden, hidden), &merged, &weights[1], &y)?;
            let attended = self.norm(gpu, rows, &y, [bd, &x, g1, b1], drop(self.sizes.dropout))?;
            let (u, g) = (gpu.reals(rows * intermediate)?, gpu.reals(rows * intermediate)?);
            linear(gpu, (rows, intermediate, hidden), &attended.out, &weights[2], &u)?;
            gpu.each("bias_gelu", [&u, bi, &g], [rows * intermediate, intermediate], [])?;
            let y = gpu.reals(rows * hidden)?;
            linear(gpu, (rows, hidden, intermediate), &g, &weights[3], &y)?;
            let output = self.norm(gpu, rows, &y, [bo, &attended.out, g2, b2], drop(self.sizes.dropout))?;
            let next = output.out.clone();
            layers.push(Layer {
                x,
                weights,
                heads: by_head,
                probabilities: scores,
                dropped,
                attention_drop,
                context: merged,
                attended,
                u,
                g,
                output,
            });
            x = next;
        }

        let [weight, bias] = self.pooler() else { return Err(few()) };
        let (first, y) = (gpu.reals(n * hidden)?, gpu.reals(n * hidden)?);
        gpu.each("first_rows", [&x, &first], [n * hidden, hidden, length], [])?;
        let pooler = gpu.as_reals(weight, hidden * hidden)?;
        linear(gpu, (n, hidden, hidden), &first, &pooler, &y)?;
        let (tanh, (features, out)) = (gpu.floats(n * hidden)?, gpu.tensor(&[n, hidden])?);
        let pooled_drop = drop(self.sizes.dropout);
        let Drop { key, limit, kept } = pooled_drop;
        gpu.each("pool_rows", [&y, bias, &tanh, &out], [n * hidden, hidden, key, limit], [kept])?;
        let tokens = tokens.clone();
        let saved =
            Saved { n, length, tokens, embedded, embedded_drop, layers, first, pooler, tanh, pooled_drop };
        Ok((features, saved))
    }

    /// norm(dropout(y + bias) + residual): bias, residual, gamma, beta, the first two where there are any.
    fn norm(
        &self,
        gpu: &Gpu,
        rows: usize,
        y: &Buf,
        [bias, residual, gamma, beta]: [&Buf; 4],
        drop: Drop,
    ) -> Result<Normed> {
        let hidden = self.sizes.hidden;
        let (t, out) = (gpu.reals(rows * hidden)?, gpu.reals(rows * hidden)?);
        let moments = gpu.floats(2 * rows)?;
        gpu.blocks(
            "norm_rows",
            rows,
            [y, bias, residual, gamma, beta, &t, &out, &moments],
            [hidden, drop.key, drop.limit],
            [self.sizes.epsilon as f32, drop.kept],
        )?;
        Ok(Normed { t, out, moments, drop })
    }

    /// The gradients of a norm's gamma and beta, and of its t and its y: the same memory where nothing was dropped.
    fn norm_back(
        &self,
        gpu: &Gpu,
        rows: usize,
        dout: &Buf,
        normed: &Normed,
        gamma: &Buf,
    ) -> Result<([Tensor; 2], Buf, Buf)> {
        let hidden = self.sizes.hidden;
        let tiles = Tiles::new(rows, hidden);
        let parts = gpu.floats(2 * tiles.chunks * hidden)?;
        let sizes = [rows, hidden, tiles.lanes, tiles.per_chunk];
        gpu.blocks("norm_rows_sums", tiles.blocks, [dout, &normed.t, &normed.moments, &parts], sizes, [])?;
        let (both, to) = gpu.tensor(&[2 * hidden])?;
        gpu.each("fold", [&parts, &to], [2 * hidden, tiles.chunks], [])?;
        let Drop { key, limit, kept } = normed.drop;
        let dt = gpu.reals(rows * hidden)?;
        let dy = if limit > 0 { gpu.reals(rows * hidden)? } else { Buf::none() };
        gpu.blocks(
            "norm_rows_back",
            rows,
            [dout, &normed.t, gamma, &normed.moments, &dt, &dy],
            [hidden, key, limit],
            [0.0, kept],
        )?;
        let dy = if limit > 0 { dy } else { dt.clone() };
        Ok(([both.narrow(0, 0, hidden)?, both.narrow(0, hidden, hidden)?], dt, dy))
    }

    /// The parameters' gradients in the published order, given that of the features.
    pub fn backward(&self, gpu: &Gpu, saved: Saved, dfeatures: &Buf) -> Result<Vec<Tensor>> {
        let Sizes { hidden, intermediate, heads, .. } = self.sizes;
        let Saved {
            n,
            length,
            tokens,
            embedded,
            embedded_drop,
            mut layers,
            first,
            pooler,
            tanh,
            pooled_drop,
        } = saved;
        let (rows, d, bytes) = (n * length, hidden / heads, gpu.size());
        let mut out: Vec<Option<Tensor>> = (0..self.parameters.len()).map(|_| None).collect();

        let behind = BEFORE + OF_LAYER * self.sizes.layers;
        let Drop { key, limit, kept } = pooled_drop;
        let (dy, dfirst) = (gpu.reals(n * hidden)?, gpu.reals(n * hidden)?);
        gpu.each("pool_rows_back", [dfeatures, &tanh, &dy], [n * hidden, hidden, key, limit], [kept])?;
        out[behind] = Some(weight_gradient(gpu, (n, hidden, hidden), &dy, &first)?);
        out[behind + 1] = Some(gpu.column_sums(&dy, n, hidden)?);
        gpu.engine.gemm(&Gemm::new(n, hidden, hidden, (false, false)), &dy, &pooler, &dfirst)?;
        let mut dx = gpu.reals(rows * hidden)?;
        gpu.each("first_rows_back", [&dfirst, &dx], [rows * hidden, hidden, length], [])?;

        while let Some(layer) = layers.pop() {
            let vars = self.layer(layers.len());
            let at = BEFORE + layers.len() * OF_LAYER;
            let mut set = |i: usize, gradient: Tensor| out[at + i] = Some(gradient);
            let Layer { x, weights, heads: by_head, probabilities, dropped, context, .. } = &layer;

            let ([dgamma, dbeta], dt, dy) = self.norm_back(gpu, rows, &dx, &layer.output, &vars[14])?;
            set(14, dgamma);
            set(15, dbeta);
            set(12, weight_gradient(gpu, (rows, hidden, intermediate), &dy, &layer.g)?);
            set(13, gpu.column_sums(&dy, rows, hidden)?);
            let du = gpu.reals(rows * intermediate)?;
            let product = Gemm::new(rows, intermediate, hidden, (false, false));
            gpu.engine.gemm(&product, &dy, &weights[3], &du)?;
            gpu.each("gelu_back", [&du, &layer.u], [rows * intermediate], [])?;
            set(10, weight_gradient(gpu, (rows, intermediate, hidden), &du, &layer.attended.out)?);
            set(11, gpu.column_sums(&du, rows, intermediate)?);
            join(gpu, (rows, hidden, intermediate), &du, &weights[2], &dt)?;

            let ([dgamma, dbeta], dt, dy) = self.norm_back(gpu, rows, &dt, &layer.attended, &vars[8])?;
            set(8, dgamma);
            set(9, dbeta);
            set(6, weight_gradient(gpu, (rows, hidden, hidden), &dy, context)?);
            set(7, gpu.column_sums(&dy, rows, hidden)?);
            let (dmerged, dcontext) = (gpu.reals(rows * hidden)?, gpu.reals(rows * hidden)?);
            gpu.engine.gemm(&Gemm::new(rows, hidden, hidden, (false, false)), &dy, &weights[1], &dmerged)?;
            let sizes = [rows * hidden, hidden, length, heads, 1, rows * hidden];
            gpu.each("split_heads", [&dmerged, &Buf::none(), &dcontext], sizes, [])?;

            let part = |of: &Buf, k: usize| of.after(k * rows * hidden * bytes);
            let batch = n * heads;
            let dheads = gpu.reals(3 * rows * hidden)?;
            let dscores = gpu.reals(batch * length * length)?;
            let product = Gemm { batch, ..Gemm::new(length, length, d, (false, true)) };
            gpu.engine.gemm(&product, &dcontext, &part(by_head, 2), &dscores)?;
            let product = Gemm { batch, ..Gemm::new(length, d, length, (true, false)) };
            gpu.engine.gemm(&product, dropped, &dcontext, &part(&dheads, 2))?;
            let Drop { key, limit, kept } = layer.attention_drop;
            let f = [1.0 / (d as f32).sqrt(), 0.0, kept];
            gpu.blocks(
                "softmax_back",
                batch * length,
                [&dscores, probabilities],
                [length, 0, key, limit],
                f,
            )?;
            let product = Gemm { batch, ..Gemm::new(length, d, length, (false, false)) };
            gpu.engine.gemm(&product, &dscores, &part(by_head, 1), &part(&dheads, 0))?;
            let product = Gemm { batch, ..Gemm::new(length, d, length, (true, false)) };
            gpu.engine.gemm(&product, &dscores, &part(by_head, 0), &part(&dheads, 1))?;
            let dqkv = gpu.reals(3 * rows * hidden)?;
            let sizes = [3 * rows * hidden, hidden, length, heads, 3, rows * hidden];
            gpu.each("merge_heads", [&dheads, &dqkv], sizes, [])?;
            let dweights = weight_gradient(gpu, (rows, 3 * hidden, hidden), &dqkv, x)?;
            let dbiases = gpu.column_sums(&dqkv, rows, 3 * hidden)?;
            for k in 0..3 {
                set(2 * k, dweights.narrow(0, k * hidden, hidden)?);
                set(2 * k + 1, dbiases.narrow(0, k * hidden, hidden)?);
            }
            join(gpu, (rows, hidden, 3 * hidden), &dqkv, &weights[0], &dt)?;
            dx = dt;
        }

        if embedded_drop.limit > 0 {
            let Drop { key, limit, kept } = embedded_drop;
            gpu.each("dropout", [&dx], [rows * hidden, key, limit], [kept])?;
        }
        let ([dgamma, dbeta], dt, _) = self.norm_back(gpu, rows, &dx, &embedded, &self.parameters[3])?;
        let Sizes { vocabulary, positions, types, .. } = self.sizes;
        let (dwords, to) = gpu.tensor(&[vocabulary, hidden])?;
        gpu.each("clear", [&to], [vocabulary * hidden], [])?;
        let links = gpu.floats(2 * rows)?;
        gpu.each("same_words", [&tokens, &links], [rows, length], [])?;
        gpu.blocks("word_sums", rows, [&dt, &tokens, &links, &to], [rows, length, hidden], [])?;
        let kinds = |count: usize, by_place: usize| -> Result<Tensor> {
            let (tensor, to) = gpu.tensor(&[count, hidden])?;
            let sizes = [count * hidden, rows, length, hidden, by_place];
            gpu.each("kind_sums", [&dt, &tokens, &to], sizes, [])?;
            Ok(tensor)
        };
        let before = [dwords, kinds(positions, 1)?, kinds(types, 0)?, dgamma, dbeta];
        out.iter_mut().zip(before).for_each(|(to, gradient)| *to = Some(gradient));
        out.into_iter().map(|gradient| gradient.with_context(few)).collect()
    }
}

fn few() -> anyhow::Error {
    anyhow::anyhow!("bert: a parameter is missing")
}

/// y [m, n] = x [m, k] · wᵀ, w [n, k].
fn linear(gpu: &Gpu, (m, n, k): (usize, usize, usize), x: &Buf, w: &Buf, y: &Buf) -> Result<()> {
    gpu.engine.gemm(&Gemm::new(m, n, k, (false, true)), x, w, y)
}

/// dyᵀ · x as a new tensor [n, k], of dy [m, n] and x [m, k].
fn weight_gradient(gpu: &Gpu, (m, n, k): (usize, usize, usize), dy: &Buf, x: &Buf) -> Result<Tensor> {
    let (tensor, to) = gpu.tensor(&[n, k])?;
    let product = Gemm { to_float: true, ..Gemm::new(n, k, m, (true, false)) };
    gpu.engine.gemm(&product, dy, x, &to)?;
    Ok(tensor)
}

/// dx [m, n] += dy [m, k] · w [k, n]: the gradient of a product's argument, added to that which passed it by. What read
/// dx's memory before has had its turn.
fn join(gpu: &Gpu, (m, n, k): (usize, usize, usize), dy: &Buf, w: &Buf, dx: &Buf) -> Result<()> {
    gpu.engine.gemm(&Gemm { beta: 1.0, ..Gemm::new(m, n, k, (false, false)) }, dy, w, dx)
}
