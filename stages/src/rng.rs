//! One seed -> named streams of random numbers keyed by (seed, purpose, epoch, index); knows nothing of what they are
//! used for.
//!
//! A stream belongs to its name alone: who asks first, how many threads there are and whether a run was resumed do not
//! matter, so nothing of it has to be saved in a checkpoint. All arithmetic is exact or goes through `libm`'s software
//! functions, so the same bits come out on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The context string of the key derivation; another meaning of the stream's name needs another string.
const CONTEXT: &str = "itpipe 2026-11 stages random stream 1";

/// A stream of random numbers. Its order of calls is part of its meaning.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a name. The key is BLAKE3 in key derivation mode over seed, length of the purpose, purpose, epoch,
    /// index (integers as little-endian u64), so that neighbouring fields cannot run together.
    pub fn new(seed: u64, purpose: &str, epoch: u64, index: u64) -> Stream {
        let mut key = blake3::Hasher::new_derive_key(CONTEXT);
        key.update(&seed.to_le_bytes());
        key.update(&(purpose.len() as u64).to_le_bytes());
        key.update(purpose.as_bytes());
        key.update(&epoch.to_le_bytes());
        key.update(&index.to_le_bytes());
        Stream(ChaCha8Rng::from_seed(*key.finalize().as_bytes()))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Uniform in 0..n without bias (Lemire 2019, "Fast random integer generation in an interval"). `n` = 0 gives 0.
    pub fn below(&mut self, n: u64) -> u64 {
        let threshold = if n == 0 { 0 } else { n.wrapping_neg() % n };
        loop {
            let product = u128::from(self.bits()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A draw from the standard normal distribution (Box and Muller 1958, the cosine half: two uniforms a draw, no
    /// hidden state).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// `n` draws from a normal distribution, rounded to f32.
    pub fn normals(&mut self, n: usize, mean: f64, deviation: f64) -> Vec<f32> {
        (0..n).map(|_| (mean + deviation * self.normal()) as f32).collect()
    }

    /// `n` draws, uniform in [low, high), rounded to f32.
    pub fn uniforms(&mut self, n: usize, low: f64, high: f64) -> Vec<f32> {
        (0..n).map(|_| (low + (high - low) * self.uniform()) as f32).collect()
    }

    /// Shuffle in place (Fisher and Yates, from the last place down).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// The numbers 0..n in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        self.shuffle(&mut order);
        order
    }

    /// `n` draws with replacement from 0..weights.len(), with probability proportional to the weight. Weights are not
    /// negative; where their sum is not positive nothing is drawn.
    pub fn draw(&mut self, weights: &[f64], n: usize) -> Vec<u32> {
        let mut total = 0.0;
        let ends: Vec<f64> = weights
            .iter()
            .map(|w| {
                total += w;
                total
            })
            .collect();
        if total.is_nan() || total <= 0.0 {
            return Vec::new();
        }
        // The last place with a positive weight: rounding may carry a draw up to the total itself.
        let last = weights.iter().rposition(|&w| w > 0.0).unwrap_or(0);
        (0..n)
            .map(|_| {
                let at = self.uniform() * total;
                ends.partition_point(|&end| end <= at).min(last) as u32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: stages/tests/golden/rng.py (blake3 of PyPI, ChaCha8 written out, Python's math).
    #[test]
    fn golden_values() {
        let mut s = Stream::new(0, "init", 0, 0);
        assert_eq!(
            [s.bits(), s.bits(), s.bits()],
            [4863081289481642652, 7643993071871317380, 2967614732985343097]
        );
        let mut s = Stream::new(7, "shuffle", 3, 11);
        assert_eq!(
            [s.bits(), s.bits(), s.bits()],
            [10913693292340793952, 9360596294576293217, 10066629389634379858]
        );
        let mut s = Stream::new(7, "shuffle", 3, 11);
        assert_eq!((0..20).fold(0, |_, _| s.bits()), 13396787575437513780);
        let mut s = Stream::new(1, "u", 0, 0);
        assert_eq!([s.uniform(), s.uniform()], [0.9944138448680692, 0.8951859405093893]);
        assert_eq!(Stream::new(1, "p", 0, 0).permutation(10), [9, 7, 0, 1, 8, 3, 5, 2, 4, 6]);
        assert_eq!(
            Stream::new(1, "d", 0, 0).draw(&[0.0, 1.0, 2.0, 5.0], 12),
            [1, 3, 3, 1, 2, 1, 3, 3, 2, 3, 2, 3]
        );
        let mut s = Stream::new(1, "n", 0, 0);
        for expected in [0.8274639415147095, 0.12235196466766808, 0.6635302139522744] {
            assert!((s.normal() - expected).abs() < 1e-14);
        }
        // The bits themselves, as this program gave them first: they must not move between machines.
        assert_eq!(Stream::new(1, "n", 0, 0).normal().to_bits(), 4605628352142612751);
    }

    #[test]
    fn names_are_apart() {
        let first = |s: u64, p: &str, e: u64, i: u64| Stream::new(s, p, e, i).bits();
        let all = [
            first(0, "a", 0, 0),
            first(1, "a", 0, 0),
            first(0, "b", 0, 0),
            first(0, "a", 1, 0),
            first(0, "a", 0, 1),
            first(0, "aa", 0, 0),
            first(0, "", 0, 0),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }

    #[test]
    fn moments() {
        let n = 200_000;
        let mut s = Stream::new(3, "moments", 0, 0);
        let xs: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let tails = xs.iter().filter(|x| x.abs() > 1.96).count() as f64 / n as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02 && (tails - 0.05).abs() < 0.003);
        let mut counts = [0usize; 7];
        for _ in 0..n {
            counts[s.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (c as f64 - n as f64 / 7.0).abs() < 800.0), "{counts:?}");
    }

    // Frequencies of a sampler with weights 1/n_g: each group about equally often, 5 standard deviations of room.
    #[test]
    fn draws_follow_weights() {
        let groups = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        let weights: Vec<f64> = groups.iter().map(|&g| if g == 0 { 1.0 / 8.0 } else { 1.0 / 2.0 }).collect();
        let drawn = Stream::new(5, "resample", 0, 0).draw(&weights, 100_000);
        let rare = drawn.iter().filter(|&&i| groups[i as usize] == 1).count() as f64;
        assert!((rare - 50_000.0).abs() < 5.0 * 158.0, "{rare}");
        assert!(Stream::new(5, "r", 0, 0).draw(&[0.0, 3.0, 0.0], 100).iter().all(|&i| i == 1));
        assert!(Stream::new(5, "r", 0, 0).draw(&[], 3).is_empty());
    }
}
