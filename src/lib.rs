//! The engine of itpipe: a small, ML-free build system. The modules are described in DESIGN.md.

pub mod graph;
pub mod parse;
pub mod pipeline;
