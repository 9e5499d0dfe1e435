//! How fast a training goes and what is left of it, as lines of progress. Knows times; nothing of it reaches the output.

use std::time::{Duration, Instant};

use crate::job;

/// At least this long between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Speed and what is left.
pub struct Clock {
    started: Instant,
    printed: Option<Instant>,
    waited: Duration,
    images: usize,
    steps: u64,
    done: u64,
    total: u64,
    /// The end of the last step, and how long it took.
    last: (Instant, Duration),
    /// The last measured worst-group accuracy, of the validation rows where there are any.
    pub worst: Option<f64>,
}

impl Clock {
    /// Starts now, with `done` of `total` steps behind.
    pub fn new(done: u64, total: u64) -> Clock {
        let started = Instant::now();
        Clock {
            started,
            printed: None,
            waited: Duration::ZERO,
            images: 0,
            steps: 0,
            done,
            total,
            last: (started, Duration::ZERO),
            worst: None,
        }
    }

    /// Counts time in which no batch was ready.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// How long the last step took, and what has passed since: the measurements after it.
    pub fn last(&self) -> (Duration, Duration) {
        (self.last.1, self.last.0.elapsed())
    }

    /// Counts a step of so many images, and prints a line of progress from time to time.
    pub fn step(&mut self, images: usize, note: &str) {
        self.images += images;
        self.steps += 1;
        let now = Instant::now();
        self.last = (now, now - self.last.0);
        let last = self.done + self.steps == self.total;
        if !last && self.printed.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        self.printed = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let left = seconds / self.steps as f64 * (self.total - self.done - self.steps) as f64;
        let worst = self.worst.map(|w| format!(" worst {w:.3}")).unwrap_or_default();
        let note = format!(
            "{note}{worst} {:.0} images/s data wait {:.0}% {left:.0} s left",
            self.images as f64 / seconds,
            100.0 * self.waited.as_secs_f64() / seconds,
        );
        job::progress(self.done + self.steps, self.total, note);
    }
}
