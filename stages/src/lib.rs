//! The library half of the stages: tests and benches use the same modules as the program.

pub mod models;
pub mod nn;
pub mod rng;
