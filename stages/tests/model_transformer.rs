//! The transformer's operations and the whole of it: gradients against finite differences on every instruction set, on odd
//! shapes, with dropout and padding; the same bits for any number of threads and any padding.

use stages::nn::attention::Attention;
use stages::nn::cpu::{Cpu, Isa};
use stages::nn::dropout::Key;
use stages::nn::rows::{self, Biased, GeluBoth, Norm};
use stages::nn::transformer::{Batch, Transformer};
use stages::rng::Stream;

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::tested().unwrap().into_iter().map(|isa| Cpu::with_isa(isa, 2).unwrap())
}

fn values(name: &str, n: usize) -> Vec<f32> {
    Stream::new(1, name, 0, 0).uniforms(n, -1.0, 1.0)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The derivative of `value` at `x` along a direction, by central differences, against its gradient; values of about 1,
/// in float32.
fn check(what: &str, x: &[f32], gradient: &[f32], h: f32, value: impl Fn(&[f32]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let direction = values(&format!("direction of {what}"), x.len());
    let at = |h: f32| value(&x.iter().zip(&direction).map(|(x, d)| x + h * d).collect::<Vec<_>>());
    let slope = |h: f32| (at(h) - at(-h)) / (2.0 * f64::from(h));
    // Richardson's: without the error of second order.
    let measured = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
    let computed = dot(gradient, &direction);
    let norm = dot(gradient, gradient).sqrt();
    assert!(
        // What rounding leaves of the values of four points, where the gradient is small.
        (measured - computed).abs() <= 2e-3 * norm + 4e-6 / f64::from(h),
        "{what}: {measured} measured, {computed} computed, norm {norm}"
    );
}

const KEY: Option<Key> = Some(Key { seed: 5, step: 6 });

#[test]
fn gradients_of_norm_residual_and_dropout() {
    for cpu in cpus() {
        for (n, width) in [(1, 1), (7, 37), (129, 48)] {
            let one = |name: &str, n: usize| values(&format!("{name} {width}"), n);
            let (y, residual, bias) = (one("y", n * width), one("residual", n * width), one("bias", width));
            let (gamma, beta, weights) = (one("gamma", width), one("beta", width), one("weights", n * width));
            let drop = (KEY, 3, 0.2);
            let run = |y: &[f32], residual: &[f32], bias: &[f32], gamma: &[f32], beta: &[f32]| {
                let norm = Norm { gamma, beta, epsilon: 0.1 };
                let (mut y, mut out) = (y.to_vec(), vec![0.0; n * width]);
                norm.join(&cpu, &mut y, bias, drop, residual, &mut out);
                (y, dot(&out, &weights))
            };
            let (sum, _) = run(&y, &residual, &bias, &gamma, &beta);
            let (mut d, mut dy) = (weights.clone(), vec![0.0; n * width]);
            let norm = Norm { gamma: &gamma, beta: &beta, epsilon: 0.1 };
            let sums = norm.part(&cpu, &sum, drop, &mut d, &mut dy);
            let h = 1e-2;
            check("y", &y, &dy, h, |y| run(y, &residual, &bias, &gamma, &beta).1);
            check("residual", &residual, &d, h, |r| run(&y, r, &bias, &gamma, &beta).1);
            check("gamma", &gamma, &sums[..width], h, |g| run(&y, &residual, &bias, g, &beta).1);
            check("beta", &beta, &sums[width..2 * width], h, |b| run(&y, &residual, &bias, &gamma, b).1);
            check("bias", &bias, &sums[2 * width..], h, |b| run(&y, &residual, b, &gamma, &beta).1);
        }
    }
}

#[test]
fn gradient_of_gelu() {
    for cpu in cpus() {
        let n = 1001;
        let x: Vec<f32> = values("gelu", n).iter().map(|x| 4.0 * x).collect();
        let gelu = |x: &[f32]| {
            let (mut x, mut out) = (x.to_vec(), vec![0.0; n]);
            unsafe { rows::biased(cpu.isa, Biased { bias: &vec![0.0; n], x: &mut x, out: &mut out }) };
            out
        };
        let out = gelu(&x);
        for (x, y) in x.iter().zip(&out) {
            let x = f64::from(*x);
            let exact = x * 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
            assert!((f64::from(*y) - exact).abs() < 1e-6, "{x}: {y}, exactly {exact}");
        }
        let (mut derivative, mut again) = (x.clone(), vec![0.0; n]);
        unsafe { rows::gelu_both(cpu.isa, GeluBoth { x: &mut derivative, out: &mut again }) };
        assert_eq!(out, again);
        check("gelu", &x, &derivative, 1e-3, |x| gelu(x).iter().map(|y| f64::from(*y)).sum());
    }
}

#[test]
fn gradients_of_attention() {
    for cpu in cpus() {
        for (heads, width, lengths, whole) in
            [(1, 1, vec![1], true), (3, 8, vec![7, 1, 21], true), (2, 20, vec![5, 33], false)]
        {
            let mut starts = vec![0];
            lengths.iter().for_each(|length| starts.push(starts[starts.len() - 1] + length));
            let (keys, hidden) = (starts[lengths.len()], heads * width);
            let queries = if whole { keys } else { lengths.len() };
            let mut shift = vec![0.0; keys];
            shift[keys / 2] = -1e4;
            let attention = Attention {
                heads,
                width,
                starts: &starts,
                whole,
                shift: &shift,
                key: KEY,
                place: 4,
                dropout: 0.2,
            };
            let (q, kv) = (values("q", queries * hidden), values("kv", keys * 2 * hidden));
            let weights = values("weights", queries * hidden);
            let run = |q: &[f32], kv: &[f32]| {
                let mut context = vec![0.0; queries * hidden];
                let p = attention.forward(&cpu, q, kv, &mut context);
                (p, dot(&context, &weights))
            };
            let (p, _) = run(&q, &kv);
            let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
            let sums = attention.backward(&cpu, &q, &kv, &p, &weights, &mut dq, &mut dkv);
            check("q", &q, &dq, 1e-2, |q| run(q, &kv).1);
            check("kv", &kv, &dkv, 1e-2, |kv| run(&q, kv).1);
            for (i, rows) in [dq.chunks(hidden), dkv.chunks(2 * hidden), dkv[hidden..].chunks(2 * hidden)]
                .into_iter()
                .enumerate()
            {
                let mut exact = vec![0f64; hidden];
                rows.for_each(|row| exact.iter_mut().zip(row).for_each(|(e, v)| *e += f64::from(*v)));
                for (sum, exact) in sums[i * hidden..(i + 1) * hidden].iter().zip(exact) {
                    assert!((f64::from(*sum) - exact).abs() < 1e-5, "{sum}, exactly {exact}");
                }
            }
        }
    }
}

const WORDS: usize = 30;

fn transformer(cpu: &Cpu, hidden: usize, dropout: f64) -> Transformer {
    let (layers, heads, intermediate) = (3, 3, 2 * hidden - 5);
    let cpu = cpu.clone();
    Transformer {
        cpu,
        hidden,
        layers,
        heads,
        intermediate,
        epsilon: 0.1,
        dropout,
        attention_dropout: dropout,
    }
}

/// Parameters in the transformer's order.
fn parameters(t: &Transformer) -> Vec<Vec<f32>> {
    let (hidden, inside) = (t.hidden, t.intermediate);
    let mut sizes = vec![WORDS * hidden, 40 * hidden, 2 * hidden, hidden, hidden];
    for _ in 0..t.layers {
        sizes.extend([hidden * hidden, hidden].repeat(4));
        sizes.extend([hidden, hidden, inside * hidden, inside, hidden * inside, hidden, hidden, hidden]);
    }
    sizes.extend([hidden * hidden, hidden]);
    let one = |(i, n): (usize, usize)| {
        let scale = if n > 2 * inside { 1.0 / (hidden as f32).sqrt() } else { 0.5 };
        let values = values(&format!("parameter {i}"), n);
        // Norms' weights around 1.
        let shift = if n == hidden && i % 2 == 1 && scale == 0.5 { 0.7 } else { 0.0 };
        values.into_iter().map(|v| shift + scale * v).collect()
    };
    sizes.into_iter().enumerate().map(one).collect()
}

/// [N, 3, length] with `stands(example, place)`.
fn tokens(n: usize, length: usize, stands: impl Fn(usize, usize) -> bool) -> Vec<u32> {
    let mut tokens = vec![];
    for i in 0..n {
        tokens.extend((0..length).map(|t| ((i * 7 + t * t * 3) % WORDS) as u32));
        tokens.extend((0..length).map(|t| u32::from(t > 2)));
        tokens.extend((0..length).map(|t| u32::from(stands(i, t))));
    }
    tokens
}

fn features(t: &Transformer, tokens: &[u32], length: usize, w: &[Vec<f32>]) -> Vec<f32> {
    let w: Vec<&[f32]> = w.iter().map(Vec::as_slice).collect();
    t.forward(&Batch::new(tokens, length, WORDS, 2).unwrap(), &w, KEY).0
}

fn run(t: &Transformer, tokens: &[u32], length: usize, w: &[Vec<f32>]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let batch = Batch::new(tokens, length, WORDS, 2).unwrap();
    let w: Vec<&[f32]> = w.iter().map(Vec::as_slice).collect();
    let (features, saved) = t.forward(&batch, &w, KEY);
    let d = values("weights", features.len());
    (features, t.backward(&batch, &w, saved, d))
}

/// Every parameter's, with padding at the end, inside, and before the first token.
#[test]
fn gradients_of_the_whole() {
    for cpu in cpus() {
        for (n, length, hidden) in [(1, 1, 6), (5, 9, 24), (3, 37, 51)] {
            let t = transformer(&cpu, hidden, 0.1);
            let tokens = tokens(n, length, |i, at| match i {
                0 => true,
                1 => at < 3,
                2 => at != 1,
                3 => at > 1,
                _ => false,
            });
            let w = parameters(&t);
            let (_, gradients) = run(&t, &tokens, length, &w);
            assert_eq!(gradients.len(), t.parameters());
            let portable = transformer(&Cpu::with_isa(Isa::Portable, 2).unwrap(), hidden, 0.1);
            let (_, others) = run(&portable, &tokens, length, &w);
            for (i, gradient) in gradients.iter().enumerate() {
                let apart: Vec<f32> = gradient.iter().zip(&others[i]).map(|(a, b)| a - b).collect();
                let (apart, norm) = (dot(&apart, &apart).sqrt(), dot(gradient, gradient).sqrt());
                assert!(
                    apart <= 1e-5 * norm + 1e-6,
                    "{:?} {hidden}, parameter {i}: {apart} of {norm}",
                    cpu.isa
                );
                check(&format!("{:?} {hidden}, parameter {i}", cpu.isa), &w[i], gradient, 1.6e-2, |x| {
                    let mut w = w.clone();
                    w[i] = x.to_vec();
                    let features = features(&t, &tokens, length, &w);
                    dot(&features, &values("weights", features.len()))
                });
            }
        }
    }
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|v| v.to_bits()).collect()
}

#[test]
fn the_bits_depend_on_neither_threads_nor_padding() {
    for cpu in cpus() {
        let stands = |i: usize, at: usize| at < 30 - i;
        let run = |threads: usize, length: usize| {
            let t = transformer(&Cpu::with_isa(cpu.isa, threads).unwrap(), 48, 0.1);
            let (features, gradients) = run(&t, &tokens(7, length, stands), length, &parameters(&t));
            (bits(&[features]), bits(&gradients))
        };
        let one = run(1, 30);
        assert!((2..=4).all(|threads| run(threads, 30) == one));
        assert!(run(2, 39) == one);
    }
}

#[test]
fn unknown_tokens_are_named() {
    let error = |tokens: &[u32]| Batch::new(tokens, 2, 10, 2).err().unwrap().to_string();
    assert_eq!(error(&[3, 10, 0, 0, 1, 1]), "model: input: token 10: there are 10");
    assert_eq!(error(&[3, 4, 0, 2, 1, 1]), "model: input: token type 2: there are 2");
}
