//! `stages synthetic/bench FILE N M RIDGE THREADS DECREMENT`: seconds and objective of the logistic solver, stopped at that
//! decrement, on data from a file, as one JSON line. Its numbers are measurements of this machine and enter no result.

use std::time::Instant;

use anyhow::{Context, Result};

use super::linalg::Matrix;
use super::logistic::{Loss, Stop};
use crate::job::bad;

/// Runs one fit. The file holds N × M features and N scaled labels, little-endian doubles.
pub fn run(words: &[String]) -> Result<()> {
    let [file, n, m, ridge, threads, decrement] = words else {
        return Err(bad("usage: stages synthetic/bench FILE N M RIDGE THREADS DECREMENT"));
    };
    let number = |text: &String| text.parse::<usize>().map_err(|_| bad(format!("{text}: not a number")));
    let (n, m, threads) = (number(n)?, number(m)?, number(threads)?);
    let real = |text: &String| text.parse::<f64>().map_err(|_| bad(format!("{text}: not a number")));
    let (ridge, decrement) = (real(ridge)?, real(decrement)?);
    let bytes = std::fs::read(file).map_err(|e| bad(format!("{file}: {e}")))?;
    let (values, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || values.len() != n * m + n {
        return Err(bad(format!("{file}: {} bytes, {} doubles are expected", bytes.len(), n * m + n)));
    }
    let mut data: Vec<f64> = values.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let scales = data.split_off(n * m);
    let x = Matrix { rows: n, cols: m, data };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build().context("threads")?;
    let loss = Loss { scales, weights: vec![1.0 / n as f64; n], ridge };
    let start = Instant::now();
    let found = pool.install(|| loss.minimise(&x, None, None, Stop { decrement, ..Stop::default() }))?;
    let seconds = start.elapsed().as_secs_f64();
    let line = serde_json::json!({"seconds": seconds, "objective": found.objective, "gradient": found.gradient,
        "iterations": found.iterations});
    println!("{line}");
    Ok(())
}
