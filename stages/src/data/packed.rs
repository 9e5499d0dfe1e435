//! The writer of `examples.safetensors`: the small arrays first, then the images, put at their rows as they come, so
//! that a set larger than memory can be written. Knows the format; knows no data set.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memmap2::Mmap;

/// A file of arrays that is being written beside its final place.
pub struct Packed {
    path: PathBuf,
    part: PathBuf,
    file: File,
    images: u64,
    image_length: usize,
    n: usize,
}

impl Packed {
    /// Starts a file for `n` images of `shape` (height, width, channels), with labels, attributes and splits.
    pub fn create(
        path: &Path,
        shape: [usize; 3],
        labels: &[u32],
        attributes: &[u32],
        splits: &[u32],
    ) -> Result<Self> {
        let n = labels.len();
        let image_length: usize = shape.iter().product();
        let small = 4 * n;
        let entry = |dtype: &str, shape: &[usize], from: usize, length: usize| serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, from + length]});
        // The four-byte arrays come first so that they are aligned; serde_json keeps this order.
        let header = serde_json::json!({
            "label": entry("U32", &[n], 0, small),
            "attribute": entry("U32", &[n], small, small),
            "split": entry("U32", &[n], 2 * small, small),
            "image": entry("U8", &[n, shape[0], shape[1], shape[2]], 3 * small, n * image_length),
        });
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        for array in [labels, attributes, splits] {
            bytes.extend(array.iter().flat_map(|v| v.to_le_bytes()));
        }
        let part = path.with_extension("safetensors.part");
        let open = || -> Result<File> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&part)?;
            file.set_len((bytes.len() + n * image_length) as u64)?;
            file.write_all_at(&bytes, 0)?;
            Ok(file)
        };
        let file = open().with_context(|| part.display().to_string())?;
        Ok(Self { path: path.to_path_buf(), part, file, images: bytes.len() as u64, image_length, n })
    }

    /// Puts images at consecutive rows from `row` on. `pixels` holds whole images.
    pub fn put(&self, row: usize, pixels: &[u8]) -> Result<()> {
        debug_assert!(row * self.image_length + pixels.len() <= self.n * self.image_length);
        let at = self.images + (row * self.image_length) as u64;
        self.file.write_all_at(pixels, at).with_context(|| self.part.display().to_string())
    }

    /// Gives all the images that were put so far to `read`, as one slice.
    pub fn with_images<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        // SAFETY: the file is ours alone until `finish`, and `put` cannot run while `read` does not call it.
        let map = unsafe { Mmap::map(&self.file)? };
        Ok(read(&map[self.images as usize..]))
    }

    /// Makes the file durable and moves it to its place.
    pub fn finish(self) -> Result<()> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .with_context(|| self.path.display().to_string())
    }
}
