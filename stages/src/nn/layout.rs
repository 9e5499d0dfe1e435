//! The kernels' layout of images: channels in blocks of 16, [example][block][row][column][16], unused lanes zero.
//! Knows where numbers lie, not what they mean.
//!
//! It is NHWC for up to 16 channels; with more, a pixel's channels lie in several planes. A plane's pixels are 16
//! floats apart whatever the number of channels, so that kernels address them with constants.

use super::simd::BLOCK;

/// One example's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Image {
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Floats from one block of channels to the next.
    pub fn plane(&self) -> usize {
        self.pixels() * BLOCK
    }

    /// Floats of one example.
    pub fn len(&self) -> usize {
        self.blocks() * self.plane()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One example from NHWC.
pub fn from_nhwc(image: Image, from: &[f32], to: &mut [f32]) {
    let Image { channels, .. } = image;
    to.fill(0.0);
    for block in 0..image.blocks() {
        let first = block * BLOCK;
        let n = BLOCK.min(channels - first);
        for pixel in 0..image.pixels() {
            let at = block * image.plane() + pixel * BLOCK;
            to[at..at + n].copy_from_slice(&from[pixel * channels + first..][..n]);
        }
    }
}

/// One example to NHWC.
pub fn to_nhwc(image: Image, from: &[f32], to: &mut [f32]) {
    let Image { channels, .. } = image;
    for block in 0..image.blocks() {
        let first = block * BLOCK;
        let n = BLOCK.min(channels - first);
        for pixel in 0..image.pixels() {
            let at = block * image.plane() + pixel * BLOCK;
            to[pixel * channels + first..][..n].copy_from_slice(&from[at..at + n]);
        }
    }
}
