//! Layers that candle lacks, does slowly or whose gradients it drops. Knows tensors, not models, losses or data.

pub mod cpu;
