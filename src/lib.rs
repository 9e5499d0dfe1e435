//! The engine of itpipe: a small, ML-free build system. The modules are described in DESIGN.md.

pub mod cas;
pub mod digest;
pub mod gc;
pub mod graph;
pub mod lease;
pub mod lock;
pub mod parse;
pub mod pattern;
pub mod pipeline;
pub mod results;
pub mod stat;
pub mod stat_cache;
pub mod tree;
pub mod walk;
