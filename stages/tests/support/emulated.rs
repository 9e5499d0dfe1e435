//! The GPU's kernels on the processor: the same text compiled as C, with naive matrix products and convolutions. Fresh
//! memory is full of NaN, so that what a kernel fails to write shows.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use stages::nn::gpu::{Args, Buf, Conv, Engine, Gemm, Gpu, KERNELS, Pass, SOURCE};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

type Launch = unsafe extern "C" fn(*mut c_void, c_int, u32, *const Args);

pub struct Emulated {
    half: bool,
    kernels: HashMap<&'static str, (usize, c_int)>,
    launch: Launch,
}

/// The compiled kernels keep a block's state in static variables.
static LOCK: Mutex<()> = Mutex::new(());

pub fn gpu(half: bool) -> Arc<Gpu> {
    #[allow(clippy::arc_with_non_send_sync)]
    Arc::new(Gpu::new(Box::new(Emulated::new(half).unwrap())))
}

impl Emulated {
    fn new(half: bool) -> Result<Emulated> {
        let folder = tempfile::tempdir()?;
        let (source, library) = (folder.path().join("kernels.c"), folder.path().join("kernels.so"));
        // Blocks of 64 threads show what 256 would, and switch a quarter as often.
        let text =
            include_str!("emulated.c").replace("KERNELS\n", &SOURCE.replace("THREADS 256", "THREADS 64"));
        std::fs::write(&source, text)?;
        let mut cc = std::process::Command::new("cc");
        cc.args(["-O1", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Werror"]);
        cc.args(half.then_some("-DBF16")).arg("-o").arg(&library).arg(&source).arg("-lm");
        let output = cc.output().context("cc: the tests of the GPU's kernels need a C compiler")?;
        ensure!(output.status.success(), "cc:\n{}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.to_str().context("path")?)?;
        let library = unsafe { dlopen(path.as_ptr(), 2) };
        ensure!(!library.is_null(), "dlopen");
        let find = |name: &str| -> Result<*mut c_void> {
            let name = CString::new(name)?;
            let found = unsafe { dlsym(library, name.as_ptr()) };
            ensure!(!found.is_null(), "{name:?}: no such kernel");
            Ok(found)
        };
        let mut kernels = HashMap::new();
        for &name in KERNELS {
            let waits = unsafe { *(find(&format!("{name}_waits"))? as *const c_int) };
            kernels.insert(name, (find(name)? as usize, waits));
        }
        let launch = unsafe { std::mem::transmute::<*mut c_void, Launch>(find("launch")?) };
        Ok(Emulated { half, kernels, launch })
    }

    fn read(&self, at: &Buf, i: usize) -> f64 {
        unsafe {
            f64::from(match self.half {
                true => f32::from_bits(u32::from(*(at.at as *const u16).add(i)) << 16),
                false => *(at.at as *const f32).add(i),
            })
        }
    }

    fn write(&self, at: &Buf, i: usize, value: f64) {
        let value = value as f32;
        unsafe {
            match self.half {
                true => {
                    let bits = value.to_bits();
                    *(at.at as *mut u16).add(i) = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                }
                false => *(at.at as *mut f32).add(i) = value,
            }
        }
    }
}

impl Engine for Emulated {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn half(&self) -> bool {
        self.half
    }

    fn alloc(&self, bytes: usize) -> Result<Buf> {
        let memory = vec![u64::MAX; bytes.div_ceil(8)];
        Ok(Buf::new(memory.as_ptr() as u64, Arc::new(memory)))
    }

    fn address(&self, tensor: &Tensor) -> Result<Buf> {
        let (storage, layout) = tensor.storage_and_layout();
        let (start, _) = layout.contiguous_offsets().context("a strided tensor")?;
        let at = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => values[start..].as_ptr() as u64,
            Storage::Cpu(CpuStorage::U32(values)) => values[start..].as_ptr() as u64,
            _ => bail!("a tensor of another type"),
        };
        Ok(Buf::new(at, Arc::new(tensor.clone())))
    }

    fn upload(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn launch(&self, kernel: &'static str, blocks: usize, args: &Args) -> Result<()> {
        let (function, waits) = self.kernels.get(kernel).context(kernel)?;
        let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        unsafe { (self.launch)(*function as *mut c_void, *waits, blocks as u32, args) };
        Ok(())
    }

    fn gemm(&self, gemm: &Gemm, a: &Buf, b: &Buf, c: &Buf) -> Result<()> {
        let Gemm { m, n, k, transposed, alpha, beta, batch, to_float } = *gemm;
        for batch in 0..batch {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let mut sum = 0.0;
                for l in 0..k {
                    let x = if transposed.0 { l * m + i } else { i * k + l };
                    let y = if transposed.1 { j * k + l } else { l * n + j };
                    sum += self.read(a, batch * m * k + x) * self.read(b, batch * k * n + y);
                }
                let at = batch * m * n + i * n + j;
                let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * self.read(c, at) };
                let value = f64::from(alpha) * sum + old;
                match to_float {
                    true => unsafe { *(c.at as *mut f32).add(at) = value as f32 },
                    false => self.write(c, at, value),
                }
            }
        }
        Ok(())
    }

    fn convolve(&self, pass: Pass, conv: &Conv, x: &Buf, w: &Buf, y: &Buf) -> Result<()> {
        let Conv { n, from, to, kernel, stride } = *conv;
        let (xs, ws) = (n * from.0 * from.1 * from.2, to.2 * kernel * kernel * from.2);
        let ys = n * to.0 * to.1 * to.2;
        let all = |at: &Buf, n: usize| (0..n).map(|i| self.read(at, i)).collect::<Vec<_>>();
        let zero = |n: usize| vec![0.0; n];
        let mut image = if pass == Pass::ToInput { zero(xs) } else { all(x, xs) };
        let mut weights = if pass == Pass::ToWeights { zero(ws) } else { all(w, ws) };
        let mut result = if pass == Pass::Forward { zero(ys) } else { all(y, ys) };
        for i in 0..n * to.0 * to.1 {
            let (example, row, column) = (i / to.1 / to.0, i / to.1 % to.0, i % to.1);
            for tap in 0..kernel * kernel {
                let r = (row * stride + tap / kernel).wrapping_sub(kernel / 2);
                let q = (column * stride + tap % kernel).wrapping_sub(kernel / 2);
                if r >= from.0 || q >= from.1 {
                    continue;
                }
                let pixel = ((example * from.0 + r) * from.1 + q) * from.2;
                for o in 0..to.2 {
                    let (out, weight) = (i * to.2 + o, (o * kernel * kernel + tap) * from.2);
                    for c in 0..from.2 {
                        match pass {
                            Pass::Forward => result[out] += image[pixel + c] * weights[weight + c],
                            Pass::ToInput => image[pixel + c] += result[out] * weights[weight + c],
                            Pass::ToWeights => weights[weight + c] += result[out] * image[pixel + c],
                        }
                    }
                }
            }
        }
        let (to, values) = match pass {
            Pass::Forward => (y, result),
            Pass::ToInput => (x, image),
            Pass::ToWeights => (w, weights),
        };
        values.into_iter().enumerate().for_each(|(i, v)| self.write(to, i, v));
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn peak(&self) -> Result<u64> {
        bail!("not counted")
    }

    fn name(&self) -> Result<String> {
        Ok("emulated".into())
    }
}
