//! `gelu` on the CPU.

use super::{Cpu, CpuFloat};
use crate::backend::ops::gelu::{Gelu, GeluOp};
use crate::backend::{View, ViewMut};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Elements of one task.
const BLOCK: usize = 1 << 14;

/// Slope of the sigmoid in [`Gelu::Quick`].
const QUICK: f64 = 1.702;

impl<F: CpuFloat> GeluOp for Cpu<F> {
    fn gelu_forward(
        &self,
        kind: Gelu,
        x: View<'_, Self, F>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, y) = (x.slice(), y.slice_mut());
        self.run(|| {
            y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| match kind {
                Gelu::Erf => erf_forward(x, y),
                Gelu::Quick => quick_forward(x, y),
            });
        });
        Ok(())
    }

    fn gelu_backward(
        &self,
        kind: Gelu,
        x: View<'_, Self, F>,
        dy: View<'_, Self, F>,
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, dy, dx) = (x.slice(), dy.slice(), dx.slice_mut());
        self.run(|| {
            let blocks = dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
            blocks.zip(dy.par_chunks(BLOCK)).for_each(|((dx, x), dy)| match kind {
                Gelu::Erf => erf_backward(x, dy, dx),
                Gelu::Quick => quick_backward(x, dy, dx),
            });
        });
        Ok(())
    }
}

vectorised! {
    fn erf_forward<F: CpuFloat>(x: &[F], y: &mut [F]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * x.normal().1;
        }
    }
}

vectorised! {
    fn erf_backward<F: CpuFloat>(x: &[F], dy: &[F], dx: &mut [F]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let (density, below) = x.normal();
            *dx = dy * (below + x * density);
        }
    }
}

vectorised! {
    fn quick_forward<F: CpuFloat>(x: &[F], y: &mut [F]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(x);
        }
    }
}

vectorised! {
    fn quick_backward<F: CpuFloat>(x: &[F], dy: &[F], dx: &mut [F]) {
        let slope = F::from_f64(QUICK);
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let s = sigmoid(x);
            *dx = dy * (s + slope * (x * s * (F::ONE - s)));
        }
    }
}

/// `sigmoid(1.702·x)`.
#[inline(always)]
fn sigmoid<F: CpuFloat>(x: F) -> F {
    F::ONE / (F::ONE + (F::from_f64(-QUICK) * x).exp())
}
