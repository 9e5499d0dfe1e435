//! The stages of the pipeline: each reads a `job.json` and writes one output folder. Knows tensors, data sets, tables
//! and figures; knows no cache, no digest of the engine, no graph.

pub mod batches;
pub mod bench;
pub mod check;
pub mod checkpoint;
pub mod claims;
pub mod data;
pub mod evaluate;
pub mod fetch;
pub mod figure;
pub mod geometry;
pub mod grid;
pub mod groups;
pub mod hub;
pub mod identity;
pub mod job;
pub mod loss;
pub mod method;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod optim;
pub mod plot;
pub mod prepare;
pub mod rehearsal;
pub mod report;
pub mod rng;
pub mod runs;
pub mod schedule;
pub mod scores;
pub mod sheet;
pub mod stats;
pub mod subsample;
/// The paper's theory, computed: one stage a file, and what they share.
pub mod synthetic {
    pub mod bench;
    pub mod bound;
    pub mod boundary;
    pub mod descent;
    pub mod direction;
    pub mod errata;
    pub mod figure4;
    pub mod figure6;
    pub mod lbfgs;
    pub mod linalg;
    pub mod logistic;
    pub mod mixture;
    pub mod mlp;
    pub mod nonneg;
    pub mod outcome;
    pub mod peeled;
    pub mod population;
    pub mod separators;
    pub mod shift;
    pub mod show;
    pub mod sweep;
}
pub mod table;
pub mod theory;
pub mod train;
pub mod trained;
pub mod upweight;
