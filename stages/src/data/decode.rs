//! PNG and JPEG to packed bytes, height by width by channels, in the size that a set publishes. Knows formats and sizes;
//! knows no data set.

use anyhow::{Result, anyhow, bail};
use image::{DynamicImage, ImageFormat, ImageReader};

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
    let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        let start: String = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        bail!("neither PNG nor JPEG ({} bytes that start with {start})", bytes.len());
    }
    // The decoder would turn the four inks into colours by a rule of its own.
    if reader.format() == Some(ImageFormat::Jpeg) && components(bytes) == Some(4) {
        bail!("a JPEG of four inks (CMYK) where grey or red, green, blue is expected");
    }
    reader.decode().map_err(|e| anyhow!("cannot be decoded: {e}"))
}

/// How many components the frame of a JPEG has; `None` where there is no frame.
fn components(bytes: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        let marker = *bytes.get(at + 1)?;
        let length = u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]);
        match marker {
            // Tables and arithmetic conditions have numbers among those of the frames.
            0xc4 | 0xc8 | 0xcc => {}
            // Length, precision, height and width stand before it.
            0xc0..=0xcf => return bytes.get(at + 9).copied(),
            // The scan begins.
            0xda => return None,
            _ => {}
        }
        at += 2 + usize::from(length);
    }
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
