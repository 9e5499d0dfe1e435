//! Which instruction set and how many threads the kernels use. Knows the processor, not what is computed on it.
//!
//! Results are the same bits for any number of threads (fixed chunks, reduced in a fixed order), per instruction set.

use anyhow::{Result, bail};
use std::sync::Arc;

/// The environment variable that forces an instruction set: `avx512`, `avx2` or `portable`.
pub const ISA_VARIABLE: &str = "ITPIPE_ISA";

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    /// All of them, fastest first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Whether this processor has it. The feature `emulate-avx512` computes AVX-512's kernels with AVX2.
    pub fn available(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", not(feature = "emulate-avx512")))]
            Isa::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(all(target_arch = "x86_64", feature = "emulate-avx512"))]
            Isa::Avx512 => Isa::Avx2.available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
            Isa::Portable => true,
        }
    }

    /// What a test has to pass on: the one that `ITPIPE_ISA` names, else all that this processor has.
    ///
    /// Errors: those of [`detect`](Self::detect); a test does not pass for want of a processor.
    pub fn tested() -> Result<Vec<Isa>> {
        match std::env::var_os(ISA_VARIABLE) {
            Some(wanted) if !wanted.is_empty() => Ok(vec![Isa::detect()?]),
            _ => Ok(Isa::ALL.into_iter().filter(|isa| isa.available()).collect()),
        }
    }

    /// The one that `ITPIPE_ISA` names, else the fastest that this processor has.
    ///
    /// Errors: an unknown name, or one that this processor lacks.
    pub fn detect() -> Result<Isa> {
        let available = Isa::ALL.into_iter().filter(|isa| isa.available());
        match std::env::var(ISA_VARIABLE) {
            Ok(wanted) if !wanted.is_empty() => {
                let names: Vec<_> = available.clone().map(Isa::name).collect();
                match available.clone().find(|isa| isa.name() == wanted) {
                    Some(isa) => Ok(isa),
                    None => bail!(
                        "{ISA_VARIABLE}: {wanted}: not available here\nthis processor has: {}",
                        names.join(", ")
                    ),
                }
            }
            _ => Ok(available.clone().next().unwrap_or(Isa::Portable)),
        }
    }
}

/// The environment variable that forces a form of 3×3 convolutions: `direct` or `winograd`. It is for tests and
/// measurements; a key tells runs with it apart.
pub const FORM_VARIABLE: &str = "ITPIPE_CONVOLUTION";

/// How 3×3 convolutions of stride 1 are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By Winograd's algorithm where the shape lets it win.
    Fastest,
    Direct,
    /// By Winograd's algorithm whatever the shape.
    Winograd,
}

impl Form {
    /// The one that `ITPIPE_CONVOLUTION` names, else the fastest.
    ///
    /// Errors: an unknown name.
    pub fn detect() -> Result<Form> {
        match std::env::var(FORM_VARIABLE).as_deref() {
            Ok("direct") => Ok(Form::Direct),
            Ok("winograd") => Ok(Form::Winograd),
            Err(_) | Ok("") => Ok(Form::Fastest),
            Ok(other) => bail!("{FORM_VARIABLE}: {other}: unknown\nthere are: direct, winograd"),
        }
    }
}

/// An instruction set, a form of convolutions and a pool of threads; cheap to clone.
#[derive(Clone)]
pub struct Cpu {
    pub isa: Isa,
    pub form: Form,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Cpu {
    /// `threads` workers (0 counts as 1) on the detected instruction set and form.
    ///
    /// Errors: `ITPIPE_ISA` or `ITPIPE_CONVOLUTION` names what is not there; the system refuses threads.
    pub fn new(threads: usize) -> Result<Cpu> {
        Ok(Cpu::with_isa(Isa::detect()?, threads)?.with_form(Form::detect()?))
    }

    /// With the fastest form of convolutions.
    ///
    /// Errors: the system refuses threads.
    pub fn with_isa(isa: Isa, threads: usize) -> Result<Cpu> {
        let pool = match threads {
            0 | 1 => None,
            n => Some(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(n).build()?)),
        };
        Ok(Cpu { isa, form: Form::Fastest, pool })
    }

    pub fn with_form(self, form: Form) -> Cpu {
        Cpu { form, ..self }
    }

    /// The same instruction set without the pool, for work inside a task.
    pub fn alone(&self) -> Cpu {
        Cpu { pool: None, ..self.clone() }
    }

    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Calls `work` once for each index below `n`, spread over the threads. Which thread runs which index is not
    /// fixed: `work` must write only to what its index owns.
    pub fn for_each(&self, n: usize, work: impl Fn(usize) + Sync) {
        use rayon::prelude::*;
        match &self.pool {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(&work)),
            _ => (0..n).for_each(work),
        }
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} threads, {:?}", self.isa.name(), self.threads(), self.form)
    }
}
