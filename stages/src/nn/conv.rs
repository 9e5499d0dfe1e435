//! A convolution of one example, forward and backward, from the correlation kernels. Knows PyTorch's weight layout
//! (OIHW) at its border; knows no batch and no norm.

use super::correlate::{self, Tap, Target};
use super::cpu::Isa;
use super::layout::Image;
use super::memory::Buffer;
use super::weigh;

/// Everything about a convolution without bias that does not depend on the numbers.
pub struct Conv {
    pub input: Image,
    pub output: Image,
    pub kernel: usize,
    forward: correlate::Plan,
    /// One for each parity of the input's rows and columns.
    backward: Vec<correlate::Plan>,
    weigh: weigh::Plan,
}

impl Conv {
    /// A square kernel, stride 1 or 2, zero padding of `kernel / 2`.
    pub fn new(isa: Isa, input: Image, channels: usize, kernel: usize, stride: usize) -> Conv {
        let padding = kernel / 2;
        let size = |n: usize| (n + 2 * padding - kernel) / stride + 1;
        let output = Image { channels, height: size(input.height), width: size(input.width) };
        let taps: Vec<Tap> = (0..kernel * kernel)
            .map(|t| Tap {
                row: (t / kernel) as isize - padding as isize,
                column: (t % kernel) as isize - padding as isize,
                weights: t,
            })
            .collect();
        let target = Target { image: output, first: (0, 0), step: 1 };
        let rows = (output.height, output.width);
        let forward = correlate::Plan::new(isa, input, target, rows, stride, &taps, taps.len());
        let weigh = weigh::Plan::new(isa, input, output, stride, &taps);
        let backward = (0..stride * stride)
            .map(|parity| {
                backward_plan(isa, input, output, stride, &taps, (parity / stride, parity % stride))
            })
            .collect();
        Conv { input, output, kernel, forward, backward, weigh }
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.output.channels * self.input.channels * self.kernel * self.kernel
    }

    /// OIHW weights in the forward kernel's order.
    pub fn pack_forward(&self, weights: &[f32]) -> Buffer {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        self.forward.pack(|tap, i, o| weights[(o * inputs + i) * taps + tap])
    }

    /// OIHW weights in the order of the gradient with respect to the input: the outputs are its input channels.
    pub fn pack_backward(&self, weights: &[f32]) -> Buffer {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        self.backward[0].pack(|tap, o, i| weights[(o * inputs + i) * taps + tap])
    }

    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Conv::pack_forward`].
    pub unsafe fn forward(&self, input: &[f32], packed: &[f32], output: &mut [f32]) {
        assert!(output.len() >= self.output.len());
        let mut scratch = Buffer::stale(self.forward.scratch());
        unsafe { self.forward.run(input, packed, output.as_mut_ptr(), false, &mut scratch) }
    }

    /// The gradient with respect to the input: written, or added if `add`.
    ///
    /// # Safety
    /// The processor has the instruction set; `packed` is from [`Conv::pack_backward`].
    pub unsafe fn backward(&self, gradient: &[f32], packed: &[f32], dx: &mut [f32], add: bool) {
        assert!(dx.len() >= self.input.len());
        for plan in &self.backward {
            let mut scratch = Buffer::stale(plan.scratch());
            unsafe { plan.run(gradient, packed, dx.as_mut_ptr(), add, &mut scratch) }
        }
    }

    /// Floats of a weight gradient in the kernels' order.
    pub fn weigh_len(&self) -> usize {
        self.weigh.len()
    }

    /// Adds one example's part to `dw`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    pub unsafe fn weigh(&self, input: &[f32], gradient: &[f32], dw: &mut [f32]) {
        unsafe { self.weigh.run(input, gradient, dw) }
    }

    /// A weight gradient from the kernels' order to OIHW.
    pub fn unpack_weights(&self, dw: &[f32], oihw: &mut [f32]) {
        let (inputs, taps) = (self.input.channels, self.kernel * self.kernel);
        for (at, value) in oihw.iter_mut().enumerate() {
            *value = dw[self.weigh.at(at % taps, at / taps % inputs, at / taps / inputs)];
        }
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
    correlate::Plan::new(isa, output, target, rows, 1, &own, taps.len())
}
