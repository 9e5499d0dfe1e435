//! The stages of the pipeline: each reads a `job.json` and writes one output folder. Knows tensors, data sets, tables
//! and figures; knows no cache, no digest of the engine, no graph.

pub mod identity;
pub mod job;
pub mod loss;
pub mod method;
pub mod models;
pub mod nn;
pub mod optim;
pub mod rng;
pub mod schedule;
