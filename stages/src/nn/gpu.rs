//! Whole networks as sequences of kernels, matrix products and convolutions on an engine. Knows addresses and shapes;
//! knows no driver. The engine is CUDA (`nn/cuda.rs`, a feature), or in tests the same kernels compiled for the processor.
//!
//! An engine does its calls in their order. Nothing here waits for a result.

use std::any::Any;
use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

pub mod bert;
pub mod net;

/// The kernels' text. With `BF16` defined before it, activations are bf16.
pub const SOURCE: &str = concat!(
    include_str!("gpu/common.cu"),
    include_str!("gpu/images.cu"),
    include_str!("gpu/texts.cu"),
    include_str!("gpu/steps.cu")
);

/// Every kernel of [`SOURCE`].
#[rustfmt::skip]
pub const KERNELS: &[&str] = &[
    "cast", "add", "fold", "column_sums", "pack_weight", "unpack_gradient", "norm_sums", "norm_finish", "norm_running",
    "norm_apply", "norm_back_sums", "norm_back_finish", "norm_back", "shortcut", "shortcut_back", "max_pool",
    "max_pool_back", "mean_pixels", "spread", "embed", "norm_rows", "norm_rows_back", "norm_rows_sums", "dropout",
    "split_heads", "merge_heads", "softmax", "softmax_back", "bias_gelu", "gelu_back", "first_rows", "first_rows_back",
    "pool_rows", "pool_rows_back", "same_words", "word_sums", "kind_sums", "clear", "square_sums", "clip", "sgd", "adamw",
];

/// Threads of every block: `THREADS` of the kernels.
pub const THREADS: usize = 256;

/// Blocks of a launch whose threads take several elements: enough to fill any GPU of today.
const BLOCKS: usize = 8192;

/// Memory of an engine: an address, and what keeps it alive.
#[derive(Clone)]
pub struct Buf {
    pub at: u64,
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Buf {
    pub fn new(at: u64, owner: Arc<dyn Any + Send + Sync>) -> Buf {
        Buf { at, owner: Some(owner) }
    }

    /// What a kernel takes for "none".
    pub fn none() -> Buf {
        Buf { at: 0, owner: None }
    }

    /// So many bytes further.
    pub fn after(&self, bytes: usize) -> Buf {
        Buf { at: self.at + bytes as u64, owner: self.owner.clone() }
    }
}

/// What a kernel is given: see `Args` in common.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Args {
    pub p: [u64; 10],
    pub n: [i64; 10],
    pub f: [f32; 8],
}

/// c = alpha · op(a) · op(b) + beta · c, row-major, op a transposition where it says so: c is m × n, k is the inner length.
/// `batch` such products lie behind each other. a and b are reals; c is float32 where it says so, else reals.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transposed: (bool, bool),
    pub alpha: f32,
    pub beta: f32,
    pub batch: usize,
    pub to_float: bool,
}

impl Gemm {
    pub fn new(m: usize, n: usize, k: usize, transposed: (bool, bool)) -> Gemm {
        Gemm { m, n, k, transposed, alpha: 1.0, beta: 0.0, batch: 1, to_float: false }
    }
}

/// A convolution of n images [row][column][channel] with weights [output][tap][input], padding kernel / 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conv {
    pub n: usize,
    /// Height, width, channels.
    pub from: (usize, usize, usize),
    pub to: (usize, usize, usize),
    pub kernel: usize,
    pub stride: usize,
}

/// Which of a convolution's three results is computed of the other two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pass {
    Forward,
    ToInput,
    ToWeights,
}

/// What computes.
pub trait Engine {
    /// Where candle's tensors of this engine lie.
    fn device(&self) -> &Device;

    /// Whether reals are bf16.
    fn half(&self) -> bool;

    /// Memory with anything in it.
    fn alloc(&self, bytes: usize) -> Result<Buf>;

    /// The first element of a contiguous tensor on [`Engine::device`].
    fn address(&self, tensor: &Tensor) -> Result<Buf>;

    /// A tensor of the host on [`Engine::device`]; the host does not wait for the copy.
    fn upload(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Runs a kernel on so many blocks. The arguments' memory must be alive until all is done, which an engine that frees
    /// in order grants by itself.
    fn launch(&self, kernel: &'static str, blocks: usize, args: &Args) -> Result<()>;

    fn gemm(&self, gemm: &Gemm, a: &Buf, b: &Buf, c: &Buf) -> Result<()>;

    /// `x`, `w` and `y` are the images, weights and results; the pass says which of them is written.
    fn convolve(&self, pass: Pass, conv: &Conv, x: &Buf, w: &Buf, y: &Buf) -> Result<()>;

    /// Waits until all is done.
    fn wait(&self) -> Result<()>;

    /// The most memory that was taken at a time, in bytes.
    fn peak(&self) -> Result<u64>;

    /// Its name, for messages.
    fn name(&self) -> Result<String>;
}

/// An engine with what every network needs of it.
pub struct Gpu {
    pub engine: Box<dyn Engine>,
}

/// How a matrix is cut for sums over its rows.
struct Tiles {
    lanes: usize,
    per_chunk: usize,
    chunks: usize,
    blocks: usize,
}

impl Tiles {
    fn new(rows: usize, columns: usize) -> Tiles {
        let lanes = columns.next_power_of_two().min(32);
        let (groups, at_once) = (columns.div_ceil(lanes), THREADS / lanes);
        // About a thousand blocks where the rows suffice, at least eight rows a thread.
        let chunks = (rows / (8 * at_once)).clamp(1, (1024 / groups).max(1));
        let per_chunk = rows.div_ceil(chunks);
        let chunks = rows.div_ceil(per_chunk);
        Tiles { lanes, per_chunk, chunks, blocks: groups * chunks }
    }
}

impl Gpu {
    pub fn new(engine: Box<dyn Engine>) -> Gpu {
        Gpu { engine }
    }

    pub fn device(&self) -> &Device {
        self.engine.device()
    }

    /// Bytes of a real.
    pub fn size(&self) -> usize {
        if self.engine.half() { 2 } else { 4 }
    }

    pub fn reals(&self, n: usize) -> Result<Buf> {
        self.engine.alloc(n * self.size())
    }

    pub fn floats(&self, n: usize) -> Result<Buf> {
        self.engine.alloc(n * 4)
    }

    /// A float32 tensor with anything in it, and its address.
    pub fn tensor(&self, dims: &[usize]) -> Result<(Tensor, Buf)> {
        // Every caller's next kernel writes all of it.
        let tensor = unsafe { Tensor::empty(dims, DType::F32, self.device())? };
        let buf = self.engine.address(&tensor)?;
        Ok((tensor, buf))
    }

    /// A kernel on so many blocks.
    pub fn blocks<const P: usize, const N: usize, const F: usize>(
        &self,
        kernel: &'static str,
        blocks: usize,
        p: [&Buf; P],
        n: [usize; N],
        f: [f32; F],
    ) -> Result<()> {
        let mut args = Args::default();
        args.p.iter_mut().zip(p).for_each(|(to, buf)| *to = buf.at);
        // Keys of dropout use all 64 bits.
        args.n.iter_mut().zip(n).for_each(|(to, n)| *to = n as i64);
        args.f[..F].copy_from_slice(&f);
        self.engine.launch(kernel, blocks, &args)
    }

    /// A kernel over `n[0]` elements.
    ///
    /// Errors: more elements than the kernels' 32-bit numbers count.
    pub fn each<const P: usize, const N: usize, const F: usize>(
        &self,
        kernel: &'static str,
        p: [&Buf; P],
        n: [usize; N],
        f: [f32; F],
    ) -> Result<()> {
        ensure!(n[0] < 1 << 31, "{kernel}: {} elements at once: too many\nhint: set micro_batch", n[0]);
        self.blocks(kernel, n[0].div_ceil(THREADS).clamp(1, BLOCKS), p, n, f)
    }

    /// Floats as reals: a copy for bf16, the same memory for float32.
    fn as_reals(&self, floats: &Buf, n: usize) -> Result<Buf> {
        if !self.engine.half() {
            return Ok(floats.clone());
        }
        let to = self.reals(n)?;
        self.each("cast", [floats, &to], [n], [])?;
        Ok(to)
    }

    /// Sums over the rows of reals [rows][columns], as a new tensor [columns].
    fn column_sums(&self, x: &Buf, rows: usize, columns: usize) -> Result<Tensor> {
        let t = Tiles::new(rows, columns);
        let parts = self.floats(t.chunks * columns)?;
        self.blocks("column_sums", t.blocks, [x, &parts], [rows, columns, t.lanes, t.per_chunk], [])?;
        let (tensor, to) = self.tensor(&[columns])?;
        self.each("fold", [&parts, &to], [columns, t.chunks], [])?;
        Ok(tensor)
    }

    /// A step of SGD on one parameter; see the kernel.
    pub fn sgd(&self, p: [&Buf; 4], count: usize, nesterov: bool, f: [f32; 3]) -> Result<()> {
        self.each("sgd", p, [count, usize::from(nesterov)], f)
    }

    /// A step of AdamW on one parameter; see the kernel.
    pub fn adamw(&self, p: [&Buf; 5], count: usize, f: [f32; 7]) -> Result<()> {
        self.each("adamw", p, [count], f)
    }

    /// What multiplies gradients so that their global norm is at most `most`: one float.
    pub fn clip(&self, gradients: &[Tensor], most: f64) -> Result<Buf> {
        let blocks = |n: usize| n.div_ceil(8 * THREADS).clamp(1, 256);
        let all: usize = gradients.iter().map(|g| blocks(g.elem_count())).sum();
        let (parts, scale) = (self.floats(all)?, self.floats(1)?);
        let mut done = 0;
        for gradient in gradients {
            let n = gradient.elem_count();
            let from = self.engine.address(gradient)?;
            self.blocks("square_sums", blocks(n), [&from, &parts.after(4 * done)], [n], [])?;
            done += blocks(n);
        }
        self.blocks("clip", 1, [&parts, &scale], [all], [most as f32])?;
        Ok(scale)
    }
}
