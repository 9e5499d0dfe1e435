//! Buffers of floats that are kept for the next step instead of being given back: a fresh large buffer costs a page
//! fault every 4 KiB, which took a tenth of a training step. Knows sizes only.

use std::collections::BTreeMap;
use std::sync::Mutex;

static FREE: Mutex<BTreeMap<usize, Vec<memmap2::MmapMut>>> = Mutex::new(BTreeMap::new());

/// `len` floats, page-aligned, returned to the common store when dropped.
pub struct Buffer {
    /// None only while it is being dropped.
    memory: Option<memmap2::MmapMut>,
    len: usize,
}

impl Buffer {
    /// Contents are whatever the last user left: for buffers that are written before they are read.
    ///
    /// Aborts as an allocation does when the system has no memory left.
    pub fn stale(len: usize) -> Buffer {
        // Sizes are rounded so that batches of nearly the same length share; where these lengths vary more, the smallest
        // of up to twice the size serves, so that the store does not grow by every length.
        let bytes = (len.max(1) * 4).next_multiple_of(1 << 16);
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        let kept = free.range_mut(bytes..=2 * bytes).find_map(|(_, kept)| kept.pop());
        std::mem::drop(free);
        let memory = kept.unwrap_or_else(|| {
            let Ok(map) = memmap2::MmapMut::map_anon(bytes) else {
                std::alloc::handle_alloc_error(std::alloc::Layout::new::<[f32; BLOCK_OF_LAYOUT]>())
            };
            // Only a wish: a kernel without huge pages serves small ones.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            map
        });
        Buffer { memory: Some(memory), len }
    }

    pub fn zeroed(len: usize) -> Buffer {
        let mut buffer = Buffer::stale(len);
        buffer.fill(0.0);
        buffer
    }

    /// For kernels whose threads write to disjoint parts.
    pub fn shared(&mut self) -> Shared {
        Shared(self.as_mut_ptr())
    }
}

const BLOCK_OF_LAYOUT: usize = 1 << 14;

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // Page-aligned, at least `len` floats long, and any bits are a float.
        match &self.memory {
            Some(map) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.len) },
            None => &[],
        }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Some(map) => unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len) },
            None => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
            free.entry(memory.len()).or_default().push(memory);
        }
    }
}

/// A pointer that threads may share: each writes only to the part that its index owns.
#[derive(Clone, Copy)]
pub struct Shared(*mut f32);

unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `at` lies inside the buffer, and no other thread touches what is written through the pointer.
    pub unsafe fn at(self, at: usize) -> *mut f32 {
        unsafe { self.0.add(at) }
    }

    /// # Safety
    /// `at` lies inside the buffer.
    pub unsafe fn after(self, at: usize) -> Shared {
        Shared(unsafe { self.at(at) })
    }

    /// # Safety
    /// As [`Shared::at`], for `len` floats.
    pub unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        unsafe { std::slice::from_raw_parts_mut(self.at(at), len) }
    }
}

/// `len` floats that `write` fills, all of them: without the pass that zeroing them first would be.
///
/// # Safety
/// `write` writes every one.
pub unsafe fn written(len: usize, write: impl FnOnce(Shared)) -> Vec<f32> {
    let mut floats = Vec::with_capacity(len);
    write(Shared(floats.as_mut_ptr()));
    unsafe { floats.set_len(len) };
    floats
}

/// A part of a slice that another thread's `&mut` part does not overlap.
pub fn share(slice: &mut [f32]) -> Shared {
    Shared(slice.as_mut_ptr())
}

/// Keeps the memory of freed tensors in the process: candle frees each one, and the system then takes the pages away and
/// gives them back as zeros, which took an eighth of a BERT's training step. Peak memory grows by a few percent.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // <malloc.h>; a wish, whose refusal costs time alone.
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_MAX: i32 = -4;
        // SAFETY: both only tell the allocator when to give memory back.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, i32::MAX);
            mallopt(M_MMAP_MAX, 0);
        }
    }
}
