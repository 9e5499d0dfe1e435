//! A vector of floats for each instruction set behind one trait, so that a kernel is written once. Knows no layer.
//!
//! A kernel is a generic `#[inline(always)]` function over [`Vector`]; [`kernel!`](crate::nn::simd::kernel) makes one
//! entry for each instruction set, compiled with its target features, and picks it at run time. The methods are
//! inlined into that entry: only there do they become single instructions.

/// Channels lie in blocks of this many in the kernels' layout, on every instruction set.
pub const BLOCK: usize = 16;

/// # Safety
/// Callers run only on a processor with the instruction set of the implementation, and give pointers to
/// [`Vector::LANES`] floats.
pub trait Vector: Copy {
    /// Divides [`BLOCK`].
    const LANES: usize;
    /// Rows of two vectors whose sums fit in the registers.
    const TALL: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// self · a + b, rounded once where the instruction set can.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// [`Vector::mul_add`] rounded once on every instruction set: slow where it has no such instruction.
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        unsafe { self.mul_add(a, b) }
    }
    /// self where `of` > 0, else 0.
    unsafe fn where_positive(self, of: Self) -> Self;
}

#[cfg(all(target_arch = "x86_64", not(feature = "emulate-avx512")))]
mod avx512 {
    use super::Vector;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const TALL: usize = 14;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx512(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx512(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            unsafe { Avx512(_mm512_fmadd_ps(self.0, a.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(of.0, _mm512_setzero_ps());
                Avx512(_mm512_maskz_mov_ps(positive, self.0))
            }
        }
    }
}

/// AVX-512's kernels, block by block and lane by lane, on a processor that has AVX2 alone: for tests.
#[cfg(all(target_arch = "x86_64", feature = "emulate-avx512"))]
mod avx512 {
    use super::{Avx2, Vector};

    #[derive(Clone, Copy)]
    pub struct Avx512(Avx2, Avx2);

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const TALL: usize = 14;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx512(Avx2::splat(value), Avx2::splat(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx512(Avx2::load(from), Avx2::load(from.add(Avx2::LANES))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                self.0.store(to);
                self.1.store(to.add(Avx2::LANES));
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx512(self.0.add(other.0), self.1.add(other.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx512(self.0.sub(other.0), self.1.sub(other.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx512(self.0.mul(other.0), self.1.mul(other.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Avx512(self.0.max(other.0), self.1.max(other.1)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            unsafe { Avx512(self.0.mul_add(a.0, b.0), self.1.mul_add(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            unsafe { Avx512(self.0.where_positive(of.0), self.1.where_positive(of.1)) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Vector;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const TALL: usize = 6;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx2(_mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(self.0, a.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            unsafe { Avx2(_mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(of.0, _mm256_setzero_ps()), self.0)) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2, avx512::Avx512};

/// Plain Rust: what the compiler makes of it for the baseline of the target.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const TALL: usize = 2;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Portable(from.cast::<[f32; 8]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // Not f32::mul_add, which is a library call where the baseline has no fused instruction.
        Portable(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        // The product is exact in float64.
        Portable(std::array::from_fn(|i| {
            (f64::from(self.0[i]) * f64::from(a.0[i]) + f64::from(b.0[i])) as f32
        }))
    }
    #[inline(always)]
    unsafe fn where_positive(self, of: Self) -> Self {
        self.zip(of, |a, b| if b > 0.0 { a } else { 0.0 })
    }
}

/// `kernel!(name, generic, Args)` defines `unsafe fn name(isa: Isa, args: &Args)`, which calls
/// `generic::<V>(args)` compiled for the instruction set.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $generic:ident, $args:ty) => {
        $(#[$doc])*
        pub unsafe fn $name(isa: $crate::nn::cpu::Isa, args: $args) {
            #[cfg(target_arch = "x86_64")]
            #[cfg_attr(not(feature = "emulate-avx512"), target_feature(enable = "avx512f"))]
            #[cfg_attr(feature = "emulate-avx512", target_feature(enable = "avx2,fma"))]
            unsafe fn avx512(args: $args) {
                unsafe { $generic::<$crate::nn::simd::Avx512>(args) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(args: $args) {
                unsafe { $generic::<$crate::nn::simd::Avx2>(args) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                $crate::nn::cpu::Isa::Avx512 => unsafe { avx512(args) },
                #[cfg(target_arch = "x86_64")]
                $crate::nn::cpu::Isa::Avx2 => unsafe { avx2(args) },
                _ => unsafe { $generic::<$crate::nn::simd::Portable>(args) },
            }
        }
    };
}
pub(crate) use kernel;

/// Floats in a vector of an instruction set.
pub fn lanes(isa: super::cpu::Isa) -> usize {
    match isa {
        super::cpu::Isa::Avx512 => 16,
        super::cpu::Isa::Avx2 | super::cpu::Isa::Portable => 8,
    }
}
