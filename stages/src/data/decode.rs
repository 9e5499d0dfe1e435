//! PNG and JPEG to packed bytes, height by width by channels, in the size that a set publishes. Knows formats and sizes;
//! knows no data set.

use anyhow::{Context, Result, anyhow, bail};
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use libjpeg_turbo_rs::{Decoder, PixelFormat};

use super::Fit;
use super::resize::{crop, resize};

/// Decodes an image into `out`: `size` (height, width, channels) bytes, rows first, then columns, then channels. One
/// channel is grey, three are red, green, blue. A grey image is repeated where three channels are expected; everything
/// else that is not 8 bits a channel, or has colour where grey is expected, is an error, as is a size that `fit` cannot
/// take.
pub fn decode(bytes: &[u8], fit: Fit, size: [usize; 3], out: &mut [u8]) -> Result<()> {
    let image = open(bytes)?;
    let [height, width, channels] = size;
    let (h, w) = (image.height() as usize, image.width() as usize);
    let pixels = match (image, channels) {
        (DynamicImage::ImageLuma8(pixels), 1) => pixels.into_raw(),
        (DynamicImage::ImageRgb8(pixels), 3) => pixels.into_raw(),
        (DynamicImage::ImageLuma8(pixels), 3) => pixels.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        (image, _) => {
            let expected = if channels == 1 { "grey, 8 bits" } else { "colour, 8 bits a channel" };
            bail!("an image of type {:?} where {expected} is expected", image.color());
        }
    };
    let pixels = match fit {
        Fit::Exact if (h, w) == (height, width) => pixels,
        Fit::Exact => bail!("an image of {w}x{h} where {width}x{height} is expected"),
        Fit::CropThenResize(middle) if h.min(w) >= middle => {
            let square = crop(&pixels, (h, w), (middle, middle), channels);
            resize(&square, (middle, middle), (height, width), channels)
        }
        Fit::CropThenResize(middle) => {
            bail!("an image of {w}x{h} where at least {middle}x{middle} is expected")
        }
        Fit::ResizeThenCrop(square) => {
            let square = (square, square);
            crop(&resize(&pixels, (h, w), square, channels), square, (height, width), channels)
        }
    };
    out.copy_from_slice(&pixels);
    Ok(())
}

/// Decodes an image of any size and type. Errors say what the bytes look like where they are no image.
pub fn open(bytes: &[u8]) -> Result<DynamicImage> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => image::load_from_memory_with_format(bytes, ImageFormat::Png)
            .map_err(|e| anyhow!("cannot be decoded: {e}")),
        Ok(ImageFormat::Jpeg) => jpeg(bytes),
        _ => {
            let start: String = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            bail!("neither PNG nor JPEG ({} bytes that start with {start})", bytes.len());
        }
    }
}

/// The pixels that libjpeg-turbo finds, bit for bit, which the published networks saw. Where that would warn and fill in
/// (a file that is cut off, a broken code), this is an error.
fn jpeg(bytes: &[u8]) -> Result<DynamicImage> {
    let mut decoder = Decoder::new(bytes).map_err(|e| anyhow!("cannot be decoded: {e}"))?;
    let format = match decoder.header().components.len() {
        1 => PixelFormat::Grayscale,
        3 => PixelFormat::Rgb,
        // The decoder would turn the four inks into colours by a rule of its own.
        4 => bail!("a JPEG of four inks (CMYK) where grey or red, green, blue is expected"),
        n => bail!("a JPEG of {n} components where grey or red, green, blue is expected"),
    };
    // The decoder would scale 12 bits down without a word.
    let bits = decoder.header().precision;
    if bits != 8 {
        bail!("a JPEG of {bits} bits a channel where 8 are expected");
    }
    decoder.set_output_format(format);
    decoder.set_stop_on_warning(true);
    let image = decoder.decode_image().map_err(|e| anyhow!("cannot be decoded: {e}"))?;
    let (width, height) = (u32::try_from(image.width)?, u32::try_from(image.height)?);
    match format {
        PixelFormat::Grayscale => GrayImage::from_raw(width, height, image.data).map(Into::into),
        _ => RgbImage::from_raw(width, height, image.data).map(Into::into),
    }
    .context("cannot be decoded: the decoder's pixels are not of its size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, ImageFormat, Luma, RgbImage};

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn exact(bytes: &[u8], size: [usize; 3], out: &mut [u8]) -> Result<()> {
        decode(bytes, Fit::Exact, size, out)
    }

    #[test]
    fn rows_columns_channels() {
        let colour = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let mut out = [0; 18];
        exact(&png(colour), [2, 3, 3], &mut out).unwrap();
        assert_eq!(out, [0, 0, 9, 1, 0, 9, 2, 0, 9, 0, 1, 9, 1, 1, 9, 2, 1, 9]);
    }

    // Expected values: stages/tests/golden/jpeg.py (Pillow): shape and md5 of the pixels.
    #[test]
    fn jpeg_equals_pillow() {
        use md5::{Digest, Md5};
        const GOLDEN: &[(&str, (u32, u32, u8), &str)] = &[
            ("420", (45, 37, 3), "a4cc1aaeae9bbc1c1001473f04279c71"),
            ("422", (33, 50, 3), "956132fbe411d254c838d0e3f0636b21"),
            ("444", (31, 29, 3), "3b469e4f211f8b984a723e49604a72a5"),
            ("progressive", (45, 37, 3), "61da3b01e52e49a113c896fc0327bfb5"),
            ("poor", (40, 47, 3), "232567fc6dcce761f980966af2360946"),
            ("grey", (21, 43, 1), "5c592413b3e06e0d443c45cf6fcbc5e7"),
        ];
        for &(name, shape, expected) in GOLDEN {
            let path = format!("{}/tests/golden/jpeg/{name}.jpg", env!("CARGO_MANIFEST_DIR"));
            let image = open(&std::fs::read(path).unwrap()).unwrap();
            assert_eq!((image.height(), image.width(), image.color().channel_count()), shape, "{name}");
            let found: String = Md5::digest(image.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    /// A file that is cut off anywhere is an error, never a grey rest.
    #[test]
    fn a_jpeg_is_whole() {
        for name in ["420", "progressive", "grey"] {
            let path = format!("{}/tests/golden/jpeg/{name}.jpg", env!("CARGO_MANIFEST_DIR"));
            let whole = std::fs::read(path).unwrap();
            // What is missing at the very end may be padding and the marker of the end.
            for length in 3..whole.len() - 8 {
                let error =
                    open(&whole[..length]).expect_err(&format!("{name}: {length} of {}", whole.len()));
                assert!(error.to_string().starts_with("cannot be decoded: "), "{name}: {length}: {error}");
            }
        }
    }

    #[test]
    fn grey_is_repeated_colour_is_refused() {
        let grey = png(GrayImage::from_raw(2, 1, vec![7, 8]).unwrap());
        let mut out = [0; 6];
        exact(&grey, [1, 2, 3], &mut out).unwrap();
        assert_eq!(out, [7, 7, 7, 8, 8, 8]);
        let colour = png(RgbImage::new(2, 1));
        let error = exact(&colour, [1, 2, 1], &mut [0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "an image of type Rgb8 where grey, 8 bits is expected");
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let deep: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::new(2, 1);
        let error = exact(&png(deep), [1, 2, 1], &mut [0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "an image of type L16 where grey, 8 bits is expected");
        let error = exact(&png(GrayImage::new(2, 2)), [1, 2, 1], &mut [0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "an image of 2x2 where 2x1 is expected");
        let error = exact(b"<html>", [1, 2, 1], &mut [0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "neither PNG nor JPEG (6 bytes that start with 3c68746d6c3e)");
        let whole = png(GrayImage::from_fn(20, 20, |x, y| Luma([(x * y) as u8])));
        let error = exact(&whole[..whole.len() / 2], [20, 20, 1], &mut [0; 400]).unwrap_err();
        assert!(error.to_string().starts_with("cannot be decoded: "), "{error}");
    }

    #[test]
    fn sizes_are_made_to_fit() {
        // A left half of 10 and a right half of 90, 8 wide and 4 high.
        let halves = png(GrayImage::from_fn(8, 4, |x, _| Luma([if x < 4 { 10 } else { 90 }])));
        let mut out = [0; 4];
        decode(&halves, Fit::CropThenResize(4), [2, 2, 1], &mut out).unwrap();
        // The filter reaches over the border; the values are Pillow's.
        assert_eq!(out, [21, 79, 21, 79]);
        decode(&halves, Fit::ResizeThenCrop(4), [2, 2, 1], &mut out).unwrap();
        assert_eq!(out, [20, 80, 20, 80]);
        let error = decode(&halves, Fit::CropThenResize(5), [2, 2, 1], &mut out).unwrap_err();
        assert_eq!(error.to_string(), "an image of 8x4 where at least 5x5 is expected");
    }
}
