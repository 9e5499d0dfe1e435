//! Layers that candle lacks, does slowly or whose gradients it drops. Knows tensors, not models, losses or data.

pub mod attention;
pub mod blocks;
pub mod conv;
pub mod correlate;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dropout;
pub mod gemm;
pub mod gpu;
pub mod layout;
pub mod memory;
pub mod net;
pub mod norm;
pub mod op;
pub mod pool;
pub mod rows;
pub mod simd;
pub mod tiles;
pub mod transformer;
pub mod weigh;
pub mod winograd;
