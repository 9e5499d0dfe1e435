//! Bilinear resizing of packed 8-bit images with antialiasing, bit for bit as Pillow does it (`Resample.c`, 8 bits a
//! channel): the published networks were trained on images that Pillow resized. Rows first, as Pillow always did until
//! version 13, which for a few shapes takes columns first and differs by 1 there. Knows bytes; knows no format.

/// Bits behind the point of a coefficient: 8 bits of a pixel and 2 of headroom are left of 32.
const PRECISION: u32 = 32 - 8 - 2;

/// The input pixels that make up an output pixel: the first one, and their coefficients.
struct Window {
    first: usize,
    coefficients: Vec<i32>,
}

/// The windows of all output pixels along one axis.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // Shrinking widens the filter, so that every input pixel counts.
    let stretch = scale.max(1.0);
    (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let first = ((centre - stretch + 0.5) as i64).max(0) as usize;
            let end = ((centre + stretch + 0.5) as usize).min(from);
            let weight = |x: usize| (1.0 - ((x as f64 - centre + 0.5) / stretch).abs()).max(0.0);
            let sum: f64 = (first..end).map(weight).sum();
            let coefficient = |x| (weight(x) / sum * f64::from(1u32 << PRECISION) + 0.5) as i32;
            Window { first, coefficients: (first..end).map(coefficient).collect() }
        })
        .collect()
}

fn pixel(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes an image of `size` (height, width) with `channels` bytes a pixel to `to` (height, width). Sizes are not 0.
pub fn resize(image: &[u8], size: (usize, usize), to: (usize, usize), channels: usize) -> Vec<u8> {
    let ((height, width), (to_height, to_width)) = (size, to);
    let wide = if width == to_width {
        image.to_vec()
    } else {
        across(image, (height, width), &windows(width, to_width), channels)
    };
    if height == to_height { wide } else { down(&wide, &windows(height, to_height), to_width * channels) }
}

/// Each row by itself.
fn across(image: &[u8], size: (usize, usize), windows: &[Window], channels: usize) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if channels == 3 && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { across_avx2(image, size, windows) };
    }
    match channels {
        3 => across_colour(image, size, windows),
        _ => across_any(image, size, windows, channels),
    }
}

fn across_any(image: &[u8], size: (usize, usize), windows: &[Window], channels: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size.0 * windows.len() * channels);
    for row in image.chunks_exact(size.1 * channels) {
        for window in windows {
            let pixels = row[window.first * channels..].chunks_exact(channels);
            let mut sums = [1 << (PRECISION - 1); 4];
            for (pixel, &coefficient) in pixels.zip(&window.coefficients) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v) * coefficient);
            }
            out.extend(sums[..channels].iter().map(|&sum| pixel(sum)));
        }
    }
    out
}

/// Three channels, read and written four bytes at a time: the fourth is the next pixel's and is not used.
#[inline(always)]
fn across_colour(image: &[u8], size: (usize, usize), windows: &[Window]) -> Vec<u8> {
    let mut padded = image.to_vec();
    padded.push(0);
    let length = windows.len() * 3;
    let mut out = vec![0; size.0 * length + 1];
    for (y, row) in out[..size.0 * length].chunks_exact_mut(length).enumerate() {
        let from = &padded[y * size.1 * 3..][..size.1 * 3 + 1];
        for (window, out) in windows.iter().zip(row.chunks_exact_mut(3)) {
            let mut sums = [1 << (PRECISION - 1); 4];
            let mut at = window.first * 3;
            for &coefficient in &window.coefficients {
                let pixel = [from[at], from[at + 1], from[at + 2], from[at + 3]];
                for c in 0..4 {
                    sums[c] += i32::from(pixel[c]) * coefficient;
                }
                at += 3;
            }
            let bytes = sums.map(pixel);
            out.copy_from_slice(&bytes[..3]);
        }
    }
    out.truncate(size.0 * length);
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn across_avx2(image: &[u8], size: (usize, usize), windows: &[Window]) -> Vec<u8> {
    across_colour(image, size, windows)
}

/// Each column by itself; rows are `length` bytes.
fn down(image: &[u8], windows: &[Window], length: usize) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { down_avx2(image, windows, length) };
    }
    down_any(image, windows, length)
}

#[inline(always)]
fn down_any(image: &[u8], windows: &[Window], length: usize) -> Vec<u8> {
    /// Columns at a time: their sums stay in registers.
    const LANES: usize = 32;
    let mut out = vec![0; windows.len() * length];
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(length)) {
        let rows = &image[window.first * length..];
        let mut blocks = out.chunks_exact_mut(LANES);
        let mut at = 0;
        for out in &mut blocks {
            let mut sums = [1 << (PRECISION - 1); LANES];
            for (row, &coefficient) in rows.chunks_exact(length).zip(&window.coefficients) {
                let row = &row[at..at + LANES];
                for i in 0..LANES {
                    sums[i] += i32::from(row[i]) * coefficient;
                }
            }
            for i in 0..LANES {
                out[i] = pixel(sums[i]);
            }
            at += LANES;
        }
        for (i, out) in blocks.into_remainder().iter_mut().enumerate() {
            let column = rows.chunks_exact(length).map(|row| i32::from(row[at + i]));
            let terms = column.zip(&window.coefficients).map(|(v, &coefficient)| v * coefficient);
            *out = pixel((1 << (PRECISION - 1)) + terms.sum::<i32>());
        }
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn down_avx2(image: &[u8], windows: &[Window], length: usize) -> Vec<u8> {
    down_any(image, windows, length)
}

/// The middle of an image, as torchvision's `center_crop` cuts it (odd rests are rounded half to even). `to` is not
/// larger than `size`.
pub fn crop(image: &[u8], size: (usize, usize), to: (usize, usize), channels: usize) -> Vec<u8> {
    let start = |from: usize, to: usize| ((from - to) as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (start(size.0, to.0), start(size.1, to.1));
    let mut out = Vec::with_capacity(to.0 * to.1 * channels);
    for row in image.chunks_exact(size.1 * channels).skip(top).take(to.0) {
        out.extend_from_slice(&row[left * channels..][..to.1 * channels]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: usize, width: usize, channels: usize) -> Vec<u8> {
        let value = |i: usize| ((i as u64 * 2_654_435_761) >> 7) as u8;
        (0..height * width * channels).map(value).collect()
    }

    // Expected values: stages/tests/golden/resize.py (Pillow): md5 of the resized bytes.
    #[test]
    fn equals_pillow() {
        use md5::{Digest, Md5};
        for (size, to, channels, expected) in GOLDEN {
            let image = resize(&picture(size.0, size.1, *channels), *size, *to, *channels);
            let found: String = Md5::digest(&image).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(&found, expected, "{size:?} to {to:?}, {channels} channels");
        }
    }

    type Case = ((usize, usize), (usize, usize), usize, &'static str);
    const GOLDEN: &[Case] = &[
        ((218, 178), (224, 224), 3, "93f16e6da4ae79db3a506d7baaef4cf8"),
        ((178, 178), (224, 224), 3, "63c3cbf61c4d7ce94d80f096da8d4039"),
        ((300, 417), (256, 256), 3, "98d09be052204101292e51a23d3767d4"),
        ((300, 290), (256, 256), 3, "6d7f5b80649c036919a6022a96b80090"),
        ((28, 28), (32, 32), 1, "f44269b0ccd13c0d452f97db0920f6c1"),
        ((31, 1), (7, 5), 3, "cf31f5c2cbb35e864b46aa4714dabff9"),
        ((64, 64), (64, 16), 1, "273bd14ec2bafd6108d0bbaf683c1f2f"),
        ((1, 1), (3, 2), 3, "4d6b3a3fe11603f363a683705799bce8"),
    ];

    #[test]
    fn the_middle() {
        let image: Vec<u8> = (0..20).collect();
        // Four rows of five: a rest of 1 column starts at 0 (half to even), a rest of 3 at 2.
        assert_eq!(crop(&image, (4, 5), (2, 4), 1), [5, 6, 7, 8, 10, 11, 12, 13]);
        assert_eq!(crop(&image, (4, 5), (2, 2), 1), [7, 8, 12, 13]);
        assert_eq!(crop(&image, (4, 5), (4, 5), 1), image);
    }
}
