//! `l2norm` on the CPU. Row sums run in double precision.

use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::l2norm::{EPS, L2Norm};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

impl<F: CpuFloat> L2Norm for Cpu<F> {
    fn l2norm_forward(
        &self,
        width: usize,
        x: View<'_, Self, F>,
        y: ViewMut<'_, Self, F>,
        inv_norm: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, y, inv_norm) = (x.slice(), y.slice_mut(), inv_norm.slice_mut());
        self.run(|| {
            let rows = y.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width));
            rows.zip(inv_norm).for_each(|((y, x), inv_norm)| {
                let norm = dot(x, x).sqrt();
                let inv = 1.0 / if norm < EPS { EPS } else { norm }; // NaN stays
                *inv_norm = F::from_f64(inv);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = F::from_f64(x.to_f64() * inv));
            });
        });
        Ok(())
    }

    fn l2norm_backward(
        &self,
        width: usize,
        y: View<'_, Self, F>,
        inv_norm: View<'_, Self, F>,
        dy: View<'_, Self, F>,
        write: Write,
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (y, inv_norm, dy, dx) = (y.slice(), inv_norm.slice(), dy.slice(), dx.slice_mut());
        self.run(|| {
            let rows = dx.par_chunks_exact_mut(width).zip(y.par_chunks_exact(width));
            let rows = rows.zip(dy.par_chunks_exact(width)).zip(inv_norm);
            rows.for_each(|(((dx, y), dy), inv)| {
                let (along, inv) = (dot(dy, y), inv.to_f64());
                for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                    let before = if write == Write::Add { dx.to_f64() } else { 0.0 };
                    *dx = F::from_f64(before + (dy.to_f64() - along * y.to_f64()) * inv);
                }
            });
        });
        Ok(())
    }
}

vectorised! {
    pub(super) fn dot<F: CpuFloat>(a: &[F], b: &[F]) -> f64 {
        simd::sum(a, b, |a, b| a.to_f64() * b.to_f64())
    }
}
