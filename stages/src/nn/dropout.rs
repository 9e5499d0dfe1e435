//! Dropout's masks, made where they are used and made again in the backward pass instead of being kept. Knows streams of
//! random numbers, not what is dropped.
//!
//! A mask belongs to (seed, step, place, part): which thread makes it does not matter.

use crate::rng::Stream;

/// Decisions that are made at a time.
pub const GROUP: usize = 16;

/// What names the masks of one training pass.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub seed: u64,
    pub step: u64,
}

/// A run of decisions: 16 generators side by side (xoshiro128++, Blackman and Vigna 2021), each started from the named
/// stream.
#[derive(Clone)]
pub struct Mask {
    state: [[u32; GROUP]; 4],
    /// A number below it drops.
    limit: u32,
    kept: f32,
}

impl Mask {
    /// The decisions of a part of a place in the network; each zero with probability `p` in [0, 1), to 32 bits. None
    /// where nothing is dropped.
    pub fn new(key: Option<Key>, place: usize, part: usize, p: f64) -> Option<Mask> {
        let Key { seed, step } = key.filter(|_| p > 0.0)?;
        let mut stream = Stream::new(seed, "dropout", step, (place as u64) << 32 | part as u64);
        let mut state = [[0; GROUP]; 4];
        for words in &mut state {
            words.iter_mut().for_each(|word| *word = stream.bits() as u32);
        }
        Some(Mask { state, limit: (p * 2f64.powi(32)) as u32, kept: (1.0 / (1.0 - p)) as f32 })
    }

    /// What a kept value is multiplied with.
    pub fn kept(&self) -> f32 {
        self.kept
    }

    /// The next factors: 0 or [`Mask::kept`].
    #[inline(always)]
    pub fn factors(&mut self) -> [f32; GROUP] {
        let [a, b, c, d] = &mut self.state;
        let mut factors = [0f32; GROUP];
        for i in 0..GROUP {
            let number = a[i].wrapping_add(d[i]).rotate_left(7).wrapping_add(a[i]);
            let t = b[i] << 9;
            c[i] ^= a[i];
            d[i] ^= b[i];
            b[i] ^= c[i];
            a[i] ^= d[i];
            c[i] ^= t;
            d[i] = d[i].rotate_left(11);
            factors[i] = if number < self.limit { 0.0 } else { self.kept };
        }
        factors
    }

    /// Multiplies a row with its factors; a row takes whole groups.
    #[inline(always)]
    pub fn row(&mut self, row: &mut [f32]) {
        let (groups, rest) = row.as_chunks_mut::<GROUP>();
        for group in groups {
            let factors = self.factors();
            for i in 0..GROUP {
                group[i] *= factors[i];
            }
        }
        if !rest.is_empty() {
            rest.iter_mut().zip(self.factors()).for_each(|(x, f)| *x *= f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_zeroes_its_share_and_keeps_the_mean() {
        let key = Some(Key { seed: 3, step: 4 });
        for p in [0.1, 0.5] {
            let mut row = vec![1.0; 100_001];
            let mut mask = Mask::new(key, 1, 2, p).unwrap();
            mask.row(&mut row);
            let zeros = row.iter().filter(|v| **v == 0.0).count() as f64 / row.len() as f64;
            assert!((zeros - p).abs() < 0.006, "{zeros} zeros of {p}");
            assert!(row.iter().all(|v| *v == 0.0 || *v == (1.0 / (1.0 - p)) as f32));
            // Neighbours and generators are independent: both zero p² of the time.
            for apart in [1, GROUP, 5 * GROUP] {
                let both = row.iter().zip(&row[apart..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
                let share = both as f64 / row.len() as f64;
                assert!((share - p * p).abs() < 0.006, "{share} at {apart} of {p}");
            }
        }
        assert!(Mask::new(key, 1, 2, 0.0).is_none() && Mask::new(None, 1, 2, 0.5).is_none());
    }

    #[test]
    fn masks_are_apart() {
        let first = |seed, step, place, part| {
            let mut row = vec![1.0; 64];
            Mask::new(Some(Key { seed, step }), place, part, 0.5).unwrap().row(&mut row);
            row
        };
        let all =
            [first(0, 0, 0, 0), first(1, 0, 0, 0), first(0, 1, 0, 0), first(0, 0, 1, 0), first(0, 0, 0, 1)];
        for i in 0..all.len() {
            assert_eq!(all[i] == first(0, 0, 0, 0), i == 0);
            assert!((0..i).all(|j| all[i] != all[j]));
        }
    }
}
