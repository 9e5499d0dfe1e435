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
        let windows = windows(width, to_width);
        let mut out = Vec::with_capacity(height * to_width * channels);
        for row in image.chunks_exact(width * channels) {
            for window in &windows {
                let pixels = row[window.first * channels..].chunks_exact(channels);
                // One more than the channels there are costs less than a loop of unknown length.
                let mut sums = [1 << (PRECISION - 1); 4];
                for (pixel, &coefficient) in pixels.zip(&window.coefficients) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v) * coefficient);
                }
                out.extend(sums[..channels].iter().map(|&sum| pixel(sum)));
            }
        }
        out
    };
    if height == to_height {
        return wide;
    }
    let length = to_width * channels;
    let mut out = Vec::with_capacity(to_height * length);
    let mut sums = vec![0; length];
    for window in windows(height, to_height) {
        sums.fill(1 << (PRECISION - 1));
        for (row, &coefficient) in
            wide[window.first * length..].chunks_exact(length).zip(&window.coefficients)
        {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += i32::from(v) * coefficient);
        }
        out.extend(sums.iter().map(|&sum| pixel(sum)));
    }
    out
}

/// The middle of an image, as torchvision's `center_crop` cuts it (odd rests are rounded half to even). `to` is not
/// larger than `size`.
pub fn crop(image: &[u8], size: (usize, usize), to: (usize, usize), channels: usize) -> Vec<u8> {
    let start = |from: usize, to: usize| ((from - to) as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (start(size.0, to.0), start(size.1, to.1));
    let rows = image.chunks_exact(size.1 * channels).skip(top).take(to.0);
    rows.flat_map(|row| &row[left * channels..][..to.1 * channels]).copied().collect()
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
