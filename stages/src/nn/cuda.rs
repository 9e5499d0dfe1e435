//! The engine of CUDA: our kernels by NVRTC, products by cuBLAS, convolutions by cuDNN, all on candle's one stream. Knows
//! handles and addresses; knows no network.
//!
//! Memory is taken and freed in the stream's order, so nothing here waits for the GPU but [`Engine::wait`], and
//! [`Engine::upload`] where the GPU is several batches behind.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::cuda_backend::cudarc;
use candle_core::{CpuStorage, Device, Storage, Tensor};
use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::cudnn::{result as dnn, sys as dnn_sys};
use cudarc::driver::{
    CudaEvent, CudaFunction, CudaStream, DevicePtr, PinnedHostSlice, result as driver, sys as driver_sys,
};
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

use super::gpu::{Args, Buf, Conv, Engine, Gemm, Gpu, KERNELS, Pass, SOURCE, THREADS};

/// What a convolution may take as scratch memory.
const WORKSPACE: usize = 1 << 30;

/// Uploads under way at a time.
const UPLOADS: usize = 8;

/// How numbers are held and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    Float32,
    /// Float32, factors rounded to TF32.
    Tf32,
    /// Activations and copies of the weights in bf16, sums in float32.
    Bf16,
}

pub struct Cuda {
    device: Device,
    stream: Arc<CudaStream>,
    arithmetic: Arithmetic,
    functions: HashMap<&'static str, CudaFunction>,
    products: Arc<cudarc::cublas::CudaBlas>,
    convolutions: dnn_sys::cudnnHandle_t,
    plans: RefCell<HashMap<(Pass, Conv), Plan>>,
    uploads: RefCell<Vec<Upload>>,
    next_upload: Cell<usize>,
}

/// A convolution ready to be run.
#[derive(Clone, Copy)]
struct Plan {
    x: dnn_sys::cudnnTensorDescriptor_t,
    y: dnn_sys::cudnnTensorDescriptor_t,
    w: dnn_sys::cudnnFilterDescriptor_t,
    conv: dnn_sys::cudnnConvolutionDescriptor_t,
    algorithm: Algorithm,
    workspace: usize,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(dnn_sys::cudnnConvolutionFwdAlgo_t),
    ToInput(dnn_sys::cudnnConvolutionBwdDataAlgo_t),
    ToWeights(dnn_sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// Memory that the GPU may read by itself, and when it last did.
struct Upload {
    memory: PinnedHostSlice<u8>,
    read: Option<CudaEvent>,
}

/// The first visible GPU.
///
/// Errors: there is none that can be used, or a library is not the one that the program was built for.
pub fn open(arithmetic: Arithmetic) -> Result<Arc<Gpu>> {
    let cure = "hint: nvidia-smi must show a GPU and a driver for CUDA 13, and CUDA_VISIBLE_DEVICES must leave one; \
                or set device: cpu, for one run with -S device=cpu";
    let device = Device::new_cuda_with_stream(0)
        .map_err(|e| anyhow!("device: cuda: no GPU can be used: {}\n{cure}", first_line(&e)))?;
    let engine = Cuda::new(device, arithmetic).context("device: cuda")?;
    #[allow(clippy::arc_with_non_send_sync)]
    Ok(Arc::new(Gpu::new(Box::new(engine))))
}

/// Candle's errors carry a backtrace.
fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

impl Cuda {
    fn new(device: Device, arithmetic: Arithmetic) -> Result<Cuda> {
        let cuda = device.as_cuda_device()?;
        // There is one stream: nothing has to be ordered by events.
        unsafe { cuda.disable_event_tracking() };
        candle_core::cuda_backend::set_gemm_reduced_precision_f32(arithmetic != Arithmetic::Float32);
        let stream = cuda.cuda_stream();
        keep_freed(&stream)?;
        let (major, minor) = stream.context().compute_capability()?;
        let source = match arithmetic {
            Arithmetic::Bf16 => format!("#define BF16\n{SOURCE}"),
            _ => SOURCE.to_string(),
        };
        let options = vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".to_string()];
        let compiled = compile_ptx_with_opts(source, CompileOptions { options, ..Default::default() });
        let compiled = compiled.map_err(|error| match error {
            CompileError::CompileError { log, .. } => anyhow!("NVRTC: {}", log.to_string_lossy()),
            other => anyhow!("NVRTC: {other}"),
        })?;
        let module = stream.context().load_module(compiled).context("the driver cannot load our kernels")?;
        let mut functions = HashMap::new();
        for &name in KERNELS {
            functions.insert(name, module.load_function(name).with_context(|| format!("kernel {name}"))?);
        }
        let convolutions = dnn::create_handle().map_err(|e| anyhow!("cuDNN: {e}"))?;
        unsafe { dnn::set_stream(convolutions, stream.cu_stream() as *mut _) }?;
        let products = cuda.cublas_handle();
        let (plans, uploads) = (RefCell::default(), RefCell::default());
        let next_upload = Cell::new(0);
        Ok(Cuda {
            device,
            stream,
            arithmetic,
            functions,
            products,
            convolutions,
            plans,
            uploads,
            next_upload,
        })
    }

    fn plan(&self, pass: Pass, conv: &Conv) -> Result<Plan> {
        if let Some(plan) = self.plans.borrow().get(&(pass, *conv)) {
            return Ok(*plan);
        }
        let plan = self
            .make_plan(pass, conv)
            .with_context(|| format!("cuDNN: {pass:?} of {conv:?}, {:?}", self.arithmetic))?;
        self.plans.borrow_mut().insert((pass, *conv), plan);
        Ok(plan)
    }

    fn make_plan(&self, pass: Pass, conv: &Conv) -> Result<Plan> {
        use dnn_sys::cudnnDataType_t::{CUDNN_DATA_BFLOAT16, CUDNN_DATA_FLOAT};
        use dnn_sys::cudnnMathType_t::{CUDNN_DEFAULT_MATH, CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH};
        let nhwc = dnn_sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let (real, math) = match self.arithmetic {
            Arithmetic::Float32 => (CUDNN_DATA_FLOAT, CUDNN_FMA_MATH),
            Arithmetic::Tf32 => (CUDNN_DATA_FLOAT, CUDNN_DEFAULT_MATH),
            Arithmetic::Bf16 => (CUDNN_DATA_BFLOAT16, CUDNN_TENSOR_OP_MATH),
        };
        let Conv { n, from, to, kernel, stride } = *conv;
        let int = |n: usize| n as c_int;
        let (k, s, p) = (int(kernel), int(stride), int(kernel / 2));
        let (x, y) = (dnn::create_tensor_descriptor()?, dnn::create_tensor_descriptor()?);
        let (w, c) = (dnn::create_filter_descriptor()?, dnn::create_convolution_descriptor()?);
        unsafe {
            dnn::set_tensor4d_descriptor(x, nhwc, real, [int(n), int(from.2), int(from.0), int(from.1)])?;
            dnn::set_tensor4d_descriptor(y, nhwc, real, [int(n), int(to.2), int(to.0), int(to.1)])?;
            dnn::set_filter4d_descriptor(w, real, nhwc, [int(to.2), int(from.2), k, k])?;
            let mode = dnn_sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            dnn::set_convolution2d_descriptor(c, p, p, s, s, 1, 1, mode, CUDNN_DATA_FLOAT)?;
            dnn::set_convolution_math_type(c, math)?;
        }
        // The fastest by cuDNN's heuristics that gives the same bits every time.
        macro_rules! choose {
            ($get:path, $a:expr, $b:expr, $to:expr) => {{
                let mut found = [unsafe { std::mem::zeroed() }; 8];
                let mut count = 0;
                let handle = self.convolutions;
                unsafe {
                    $get(handle, $a, $b, c, $to, found.len() as c_int, &mut count, found.as_mut_ptr())
                }?;
                let fits = found.iter().take(count as usize).find(|f| {
                    f.status == dnn_sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && f.determinism == dnn_sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                        && (f.mathType == math || self.arithmetic != Arithmetic::Float32)
                        && f.memory <= WORKSPACE
                });
                let fits = fits.context("no algorithm gives the same bits every time")?;
                // What the heuristics thought of: without it the algorithm may not be the one that was meant.
                unsafe { dnn::set_convolution_math_type(c, fits.mathType) }?;
                fits.algo
            }};
        }
        let handle = self.convolutions;
        let (algorithm, workspace) = match pass {
            Pass::Forward => {
                let algorithm = choose!(dnn::get_convolution_forward_algorithm, x, w, y);
                let size =
                    unsafe { dnn::get_convolution_forward_workspace_size(handle, x, w, c, y, algorithm) }?;
                (Algorithm::Forward(algorithm), size)
            }
            Pass::ToInput => {
                let algorithm = choose!(dnn::get_convolution_backward_data_algorithm, w, y, x);
                let size = unsafe {
                    dnn::get_convolution_backward_data_workspace_size(handle, w, y, c, x, algorithm)
                }?;
                (Algorithm::ToInput(algorithm), size)
            }
            Pass::ToWeights => {
                let algorithm = choose!(dnn::get_convolution_backward_filter_algorithm, x, y, w);
                let size = unsafe {
                    dnn::get_convolution_backward_filter_workspace_size(handle, x, y, c, w, algorithm)
                }?;
                (Algorithm::ToWeights(algorithm), size)
            }
        };
        Ok(Plan { x, y, w, conv: c, algorithm, workspace })
    }

    /// Bytes of the host to an address of the GPU, through memory that the GPU reads by itself.
    fn send(&self, bytes: &[u8], to: u64) -> Result<()> {
        let mut uploads = self.uploads.borrow_mut();
        let at = self.next_upload.get() % UPLOADS;
        self.next_upload.set(at + 1);
        if uploads.len() <= at || uploads[at].memory.len() < bytes.len() {
            let memory = unsafe { self.stream.context().alloc_pinned::<u8>(bytes.len().max(1 << 16)) }?;
            let upload = Upload { memory, read: None };
            if at < uploads.len() {
                let old = std::mem::replace(&mut uploads[at], upload);
                old.read.map_or(Ok(()), |read| read.synchronize())?;
            } else {
                uploads.push(upload);
            }
        }
        let upload = &mut uploads[at];
        if let Some(read) = upload.read.take() {
            read.synchronize()?;
        }
        let staged = &mut upload.memory.as_mut_slice()?[..bytes.len()];
        staged.copy_from_slice(bytes);
        unsafe { driver::memcpy_htod_async(to, staged, self.stream.cu_stream()) }?;
        upload.read = Some(self.stream.record_event(None)?);
        Ok(())
    }
}

/// Where the stream's memory comes from.
fn pool(stream: &CudaStream) -> Result<driver_sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    unsafe { driver_sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device()) }.result()?;
    Ok(pool)
}

/// Freed memory stays ours: the default gives it back to the system whenever the stream is waited for.
fn keep_freed(stream: &CudaStream) -> Result<()> {
    let mut bytes = u64::MAX;
    let threshold = driver_sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    unsafe { driver::mem_pool::set_attribute(pool(stream)?, threshold, (&raw mut bytes).cast()) }?;
    Ok(())
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // At the end of the program: what fails here fails for nobody.
        for plan in self.plans.borrow().values() {
            unsafe {
                _ = dnn::destroy_tensor_descriptor(plan.x);
                _ = dnn::destroy_tensor_descriptor(plan.y);
                _ = dnn::destroy_filter_descriptor(plan.w);
                _ = dnn::destroy_convolution_descriptor(plan.conv);
            }
        }
        _ = unsafe { dnn::destroy_handle(self.convolutions) };
    }
}

impl Engine for Cuda {
    fn device(&self) -> &Device {
        &self.device
    }

    fn half(&self) -> bool {
        self.arithmetic == Arithmetic::Bf16
    }

    fn alloc(&self, bytes: usize) -> Result<Buf> {
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) }
            .with_context(|| format!("{bytes} bytes of the GPU's memory\nhint: set micro_batch"))?;
        let (at, _) = slice.device_ptr(&self.stream);
        Ok(Buf::new(at, Arc::new(slice)))
    }

    fn address(&self, tensor: &Tensor) -> Result<Buf> {
        let (storage, layout) = tensor.storage_and_layout();
        let (start, _) = layout.contiguous_offsets().context("a strided tensor")?;
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor that is not on the GPU") };
        let at = match storage.slice {
            candle_core::cuda_backend::CudaStorageSlice::F32(ref s) => s.device_ptr(&self.stream).0,
            candle_core::cuda_backend::CudaStorageSlice::U32(ref s) => s.device_ptr(&self.stream).0,
            _ => bail!("a tensor of another type"),
        };
        Ok(Buf::new(at + 4 * start as u64, Arc::new(tensor.clone())))
    }

    fn upload(&self, tensor: &Tensor) -> Result<Tensor> {
        if tensor.device().is_cuda() {
            return Ok(tensor.contiguous()?);
        }
        let tensor = tensor.contiguous()?;
        // The copy below writes all of it.
        let to = unsafe { Tensor::empty(tensor.shape(), tensor.dtype(), &self.device) }?;
        let (storage, layout) = tensor.storage_and_layout();
        let (start, end) = layout.contiguous_offsets().context("a strided tensor")?;
        let bytes: &[u8] = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => bytes_of(&values[start..end]),
            Storage::Cpu(CpuStorage::U32(values)) => bytes_of(&values[start..end]),
            _ => bail!("a tensor of another type"),
        };
        self.send(bytes, self.address(&to)?.at)?;
        Ok(to)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, args: &Args) -> Result<()> {
        let function = self.functions.get(kernel).with_context(|| format!("kernel {kernel}: unknown"))?;
        let grid = u32::try_from(blocks).ok().filter(|&b| b > 0).context("blocks")?;
        let mut arguments = [(&raw const *args).cast_mut().cast::<c_void>()];
        let stream = self.stream.cu_stream();
        let (grid, block) = ((grid, 1, 1), (THREADS as u32, 1, 1));
        unsafe { driver::launch_kernel(function.cu_function(), grid, block, 0, stream, &mut arguments) }
            .with_context(|| format!("kernel {kernel}"))
    }

    fn gemm(&self, gemm: &Gemm, a: &Buf, b: &Buf, c: &Buf) -> Result<()> {
        use blas_sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use blas_sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let Gemm { m, n, k, transposed, alpha, beta, batch, to_float } = *gemm;
        ensure!([m, n, k, batch].iter().all(|&n| n > 0 && n <= c_int::MAX as usize), "cuBLAS: {gemm:?}");
        let (real, compute) = match self.arithmetic {
            Arithmetic::Float32 => (CUDA_R_32F, CUBLAS_COMPUTE_32F),
            Arithmetic::Tf32 => (CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
            Arithmetic::Bf16 => (CUDA_R_16BF, CUBLAS_COMPUTE_32F),
        };
        let result = if to_float { CUDA_R_32F } else { real };
        let op = |transposed: bool| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let int = |n: usize| n as c_int;
        // cuBLAS counts by columns: it sees each of our matrices transposed, and is asked for cᵀ = op(b)ᵀ · op(a)ᵀ.
        let (ld_a, ld_b) = (if transposed.0 { m } else { k }, if transposed.1 { k } else { n });
        unsafe {
            blas::gemm_strided_batched_ex(
                *self.products.handle(),
                op(transposed.1),
                op(transposed.0),
                int(n),
                int(m),
                int(k),
                (&raw const alpha).cast(),
                b.at as *const c_void,
                real,
                int(ld_b),
                (k * n) as i64,
                a.at as *const c_void,
                real,
                int(ld_a),
                (m * k) as i64,
                (&raw const beta).cast(),
                c.at as *mut c_void,
                result,
                int(n),
                (m * n) as i64,
                int(batch),
                compute,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| anyhow!("cuBLAS: {gemm:?}: {e}"))
    }

    fn convolve(&self, pass: Pass, conv: &Conv, x: &Buf, w: &Buf, y: &Buf) -> Result<()> {
        let plan = self.plan(pass, conv)?;
        let workspace = if plan.workspace > 0 { self.alloc(plan.workspace)? } else { Buf::none() };
        let (scratch, size) = (workspace.at as *mut c_void, plan.workspace);
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
        let (xs, ws, ys) = (x.at as *mut c_void, w.at as *mut c_void, y.at as *mut c_void);
        let Plan { x, y, w, conv: c, .. } = plan;
        let handle = self.convolutions;
        unsafe {
            match plan.algorithm {
                Algorithm::Forward(algorithm) => dnn::convolution_forward(
                    handle, one, x, xs, w, ws, c, algorithm, scratch, size, zero, y, ys,
                ),
                Algorithm::ToInput(algorithm) => dnn::convolution_backward_data(
                    handle, one, w, ws, y, ys, c, algorithm, scratch, size, zero, x, xs,
                ),
                Algorithm::ToWeights(algorithm) => dnn::convolution_backward_filter(
                    handle, one, x, xs, y, ys, c, algorithm, scratch, size, zero, w, ws,
                ),
            }
        }
        .map_err(|e| anyhow!("cuDNN: {pass:?} of {conv:?}: {e}"))
    }

    fn wait(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    fn peak(&self) -> Result<u64> {
        let mut bytes = 0u64;
        let most = driver_sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        unsafe { driver::mem_pool::get_attribute(pool(&self.stream)?, most, (&raw mut bytes).cast()) }?;
        Ok(bytes)
    }

    fn name(&self) -> Result<String> {
        Ok(self.stream.context().name()?)
    }
}

fn bytes_of<T: Copy>(values: &[T]) -> &[u8] {
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}
