//! A convolution of a few examples, forward and backward: by Winograd's algorithm where that wins, else from the
//! correlation kernels. Knows PyTorch's weight layout (OIHW) at its border; knows no batch and no norm.

use super::correlate::{self, Tap, Target};
use super::cpu::{Cpu, Form, Isa};
use super::layout::Image;
use super::memory::{Buffer, share};
use super::simd::BLOCK;
use super::weigh;
use super::winograd::Winograd;

/// Everything about a convolution without bias that does not depend on the numbers.
pub struct Conv {
    pub input: Image,
    pub output: Image,
    pub kernel: usize,
    isa: Isa,
    form: Kernels,
}

enum Kernels {
    Direct(Direct),
    Winograd(Winograd),
}

/// Products that are summed one after the other before the sum is put aside: the rounding error of a sum of n numbers in
/// a row is in proportion to √n, that of a sum of sums to the square root of the longer part.
const CHAIN: usize = 128;

struct Direct {
    forward: correlate::Plan,
    /// One for each parity of the input's rows and columns.
    backward: Vec<correlate::Plan>,
    weigh: weigh::Plan,
}

impl Conv {
    /// A square kernel, stride 1 or 2, zero padding of `kernel / 2`. Winograd's algorithm takes at most `group` examples
    /// at once.
    pub fn new(
        cpu: &Cpu,
        input: Image,
        channels: usize,
        (kernel, stride): (usize, usize),
        group: usize,
    ) -> Conv {
        let padding = kernel / 2;
        let size = |n: usize| (n + 2 * padding - kernel) / stride + 1;
        let output = Image { channels, height: size(input.height), width: size(input.width) };
        let tiled = match cpu.form {
            _ if (kernel, stride) != (3, 1) => false,
            Form::Direct => false,
            Form::Winograd => true,
            Form::Fastest => wins(input, output),
        };
        let form = match tiled {
            true => Kernels::Winograd(Winograd::new(cpu.isa, input, output, group)),
            false => Kernels::Direct(Direct::new(cpu.isa, input, output, (kernel, stride))),
        };
        Conv { input, output, kernel, isa: cpu.isa, form }
    }

    /// Examples that one call of [`Conv::forward`], [`Conv::backward`] and [`Conv::weigh`] takes at most.
    pub fn group(&self) -> usize {
        match &self.form {
            Kernels::Direct(_) => 1,
            Kernels::Winograd(winograd) => winograd.group,
        }
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.output.channels * self.input.channels * self.kernel * self.kernel
    }

    /// OIHW weights in the forward kernel's order.
    pub fn pack_forward(&self, cpu: &Cpu, weights: &[f32]) -> Buffer {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        match &self.form {
            Kernels::Direct(direct) => {
                direct.forward.pack(cpu, |tap, i, o| weights[(o * inputs + i) * taps + tap])
            }
            Kernels::Winograd(winograd) => winograd.pack_forward(cpu, weights),
        }
    }

    /// OIHW weights in the order of the gradient with respect to the input: the outputs are its input channels.
    pub fn pack_backward(&self, cpu: &Cpu, weights: &[f32]) -> Buffer {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        match &self.form {
            Kernels::Direct(direct) => {
                direct.backward[0].pack(cpu, |tap, o, i| weights[(o * inputs + i) * taps + tap])
            }
            Kernels::Winograd(winograd) => winograd.pack_backward(cpu, weights),
        }
    }

    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Conv::pack_forward`].
    pub unsafe fn forward(&self, input: &[f32], packed: &[f32], output: &mut [f32]) {
        assert!(input.len() / self.input.len() * self.output.len() <= output.len());
        match &self.form {
            Kernels::Direct(direct) => {
                let mut scratch = Buffer::stale(direct.forward.scratch());
                unsafe { direct.forward.run(input, packed, output.as_mut_ptr(), false, &mut scratch) }
            }
            Kernels::Winograd(winograd) => unsafe { winograd.forward(self.isa, input, packed, output) },
        }
    }

    /// The gradient with respect to the input: written, or added if `add`.
    ///
    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Conv::pack_backward`].
    pub unsafe fn backward(&self, gradient: &[f32], packed: &[f32], dx: &mut [f32], add: bool) {
        assert!(gradient.len() / self.output.len() * self.input.len() <= dx.len());
        match &self.form {
            Kernels::Direct(direct) => {
                for plan in &direct.backward {
                    let mut scratch = Buffer::stale(plan.scratch());
                    unsafe { plan.run(gradient, packed, dx.as_mut_ptr(), add, &mut scratch) }
                }
            }
            Kernels::Winograd(winograd) => unsafe { winograd.backward(self.isa, gradient, packed, dx, add) },
        }
    }

    /// Floats of the sums that [`Conv::weigh`] adds to.
    pub fn sums(&self) -> usize {
        match &self.form {
            Kernels::Direct(direct) => direct.weigh.len(),
            Kernels::Winograd(winograd) => winograd.sums(),
        }
    }

    /// Adds the examples' part of the weights' gradient to `sums`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    pub unsafe fn weigh(&self, input: &[f32], gradient: &[f32], sums: &mut [f32]) {
        match &self.form {
            Kernels::Direct(direct) => unsafe { direct.weigh.run(input, gradient, sums) },
            Kernels::Winograd(winograd) => unsafe { winograd.weigh(self.isa, input, gradient, sums) },
        }
    }

    /// Floats of a weight gradient in the kernels' order: [tap][input channel][output channel], both filled up to whole
    /// blocks.
    pub fn gradient(&self) -> usize {
        self.kernel * self.kernel * self.input.blocks() * self.output.blocks() * BLOCK * BLOCK
    }

    /// Whether the sums of [`Conv::weigh`] are the gradient itself, without [`Conv::fold`].
    pub fn sums_are_gradient(&self) -> bool {
        matches!(self.form, Kernels::Direct(_))
    }

    /// The gradient that the sums stand for, in the kernels' order; added to `dw`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    pub unsafe fn fold(&self, sums: &[f32], dw: &mut [f32]) {
        match &self.form {
            Kernels::Direct(_) => dw.iter_mut().zip(sums).for_each(|(d, s)| *d += s),
            Kernels::Winograd(winograd) => unsafe { winograd.fold(self.isa, sums, dw) },
        }
    }

    /// A weight gradient from the kernels' order to OIHW.
    pub fn unpack_weights(&self, cpu: &Cpu, dw: &[f32], oihw: &mut [f32]) {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        let (rows, columns) = (self.input.blocks() * BLOCK, self.output.blocks() * BLOCK);
        assert!(dw.len() >= self.gradient() && oihw.len() >= self.weights());
        let all = share(oihw);
        cpu.for_each(self.output.blocks(), |block| {
            let first = block * BLOCK;
            let n = BLOCK.min(self.output.channels - first);
            let oihw = unsafe { all.part(first * inputs * taps, n * inputs * taps) };
            for (i, tap) in (0..inputs * taps).map(|at| (at / taps, at % taps)) {
                for (o, value) in dw[(tap * rows + i) * columns + first..][..n].iter().enumerate() {
                    oihw[(o * inputs + i) * taps + tap] = *value;
                }
            }
        });
    }
}

/// Whether Winograd's algorithm is the faster one: measured, `benches/README.md`.
fn wins(input: Image, output: Image) -> bool {
    input.channels >= BLOCK && output.channels >= BLOCK
}

impl Direct {
    fn new(isa: Isa, input: Image, output: Image, (kernel, stride): (usize, usize)) -> Direct {
        let padding = kernel / 2;
        // A 1×1 kernel knows no rows: one long one fills the blocks of pixels better.
        let flat = |image: Image| match (kernel, stride) {
            (1, 1) => Image { height: 1, width: image.pixels(), ..image },
            _ => image,
        };
        let (input, output) = (flat(input), flat(output));
        let taps: Vec<Tap> = (0..kernel * kernel)
            .map(|t| Tap {
                row: (t / kernel) as isize - padding as isize,
                column: (t % kernel) as isize - padding as isize,
                weights: t,
            })
            .collect();
        let target = Target { image: output, first: (0, 0), step: 1 };
        let rows = (output.height, output.width);
        let forward = correlate::Plan::new(isa, input, target, rows, stride, &taps, taps.len(), CHAIN);
        let weigh = weigh::Plan::new(isa, input, output, stride, &taps, CHAIN);
        let backward = (0..stride * stride)
            .map(|parity| {
                backward_plan(isa, input, output, stride, &taps, (parity / stride, parity % stride))
            })
            .collect();
        Direct { forward, backward, weigh }
    }
}

/// dx[r · stride + a] = Σ over taps that reach it of dy[r + (a − tap) / stride] · w[tap].
fn backward_plan(
    isa: Isa,
    input: Image,
    output: Image,
    stride: usize,
    taps: &[Tap],
    (a, b): (usize, usize),
) -> correlate::Plan {
    let (s, a_, b_) = (stride as isize, a as isize, b as isize);
    let reach = |t: &&Tap| (a_ - t.row).rem_euclid(s) == 0 && (b_ - t.column).rem_euclid(s) == 0;
    let own: Vec<Tap> = taps
        .iter()
        .filter(reach)
        .map(|t| Tap { row: (a_ - t.row) / s, column: (b_ - t.column) / s, weights: t.weights })
        .collect();
    let target = Target { image: input, first: (a, b), step: stride };
    let size = |n: usize, first: usize| n.saturating_sub(first).div_ceil(stride);
    let rows = (size(input.height, a), size(input.width, b));
    correlate::Plan::new(isa, output, target, rows, 1, &own, taps.len(), CHAIN)
}
