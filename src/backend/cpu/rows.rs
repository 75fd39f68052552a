//! `rows` on the CPU.

use super::l2norm::dot;
use super::{Cpu, CpuFloat};
use crate::backend::ops::rows::Rows;
use crate::backend::{View, ViewMut};
use crate::error::Result;
use rayon::prelude::*;

impl<F: CpuFloat> Rows for Cpu<F> {
    fn rows_gather(
        &self,
        width: usize,
        x: View<'_, Self, F>,
        index: View<'_, Self, u32>,
        out: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, index, out) = (x.slice(), index.slice(), out.slice_mut());
        self.run(|| {
            out.par_chunks_exact_mut(width).zip(index).for_each(|(out, &i)| {
                out.copy_from_slice(&x[i as usize * width..][..width]);
            });
        });
        Ok(())
    }

    fn rows_scatter(
        &self,
        width: usize,
        dout: View<'_, Self, F>,
        index: View<'_, Self, u32>,
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let dx = dx.slice_mut();
        self.run(|| dx.par_chunks_exact_mut(width).for_each(|dx| dx.fill(F::ZERO)));
        for (dout, &i) in dout.slice().chunks_exact(width).zip(index.slice()) {
            dx[i as usize * width..][..width].copy_from_slice(dout);
        }
        Ok(())
    }

    fn rows_dot(
        &self,
        width: usize,
        a: View<'_, Self, F>,
        b: View<'_, Self, F>,
        out: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (a, b, out) = (a.slice(), b.slice(), out.slice_mut());
        self.run(|| {
            let rows = a.par_chunks_exact(width).zip(b.par_chunks_exact(width));
            rows.zip(out).for_each(|((a, b), out)| *out = F::from_f64(dot(a, b)));
        });
        Ok(())
    }
}
