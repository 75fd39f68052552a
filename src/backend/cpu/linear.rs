//! `linear` on the CPU.

use super::gemm::{Mat, parts};
use super::{Cpu, CpuFloat};
use crate::backend::ops::linear::{Layout, Linear, LinearShape};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Columns that one task sums up.
const COLS: usize = 64;

impl<F: CpuFloat> Linear for Cpu<F> {
    fn linear_forward(
        &self,
        shape: LinearShape,
        x: View<'_, Self, F>,
        w: Weight<'_, Self>,
        b: Option<Weight<'_, Self>>,
        residual: Option<View<'_, Self, F>>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (i, o) = (shape.inputs, shape.outputs);
        let (x, y, b) = (x.slice(), y.slice_mut(), b.map(|b| b.slice()));
        let residual = residual.map(|r| r.slice());
        let w = match shape.layout {
            Layout::OutIn => Mat::cols(w.slice(), i),
            Layout::InOut => Mat::rows(w.slice(), o),
        };
        let write = self.run(|| start(y, o, b, residual));
        self.gemm([shape.rows, i, o], Mat::rows(x, i), w, write, y);
        Ok(())
    }

    fn linear_backward_input(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, F>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (i, o) = (shape.inputs, shape.outputs);
        let (dy, dx) = (dy.slice(), dx.slice_mut());
        let w = match shape.layout {
            Layout::OutIn => Mat::rows(w.slice(), i),
            Layout::InOut => Mat::cols(w.slice(), o),
        };
        self.gemm([shape.rows, o, i], Mat::rows(dy, o), w, Write::Set, dx);
        Ok(())
    }

    fn linear_backward_weight(
        &self,
        shape: LinearShape,
        x: View<'_, Self, F>,
        dy: View<'_, Self, F>,
        dw: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        // dW is leftᵀ·right, for either layout
        let (left, left_width, right, width) = match shape.layout {
            Layout::OutIn => (dy.slice(), shape.outputs, x.slice(), shape.inputs),
            Layout::InOut => (x.slice(), shape.inputs, dy.slice(), shape.outputs),
        };
        let (left, right) = (Mat::cols(left, left_width), Mat::rows(right, width));
        let (extents, dw) = ([left_width, shape.rows, width], dw.slice_mut());
        if parts(left_width, shape.rows) == 1 {
            self.gemm(extents, left, right, Write::Add, dw);
        } else {
            self.product_in_parts(extents, left, right.transposed(), dw, |part, dw| {
                dw.iter_mut().zip(part).for_each(|(dw, &part)| *dw += part);
            });
        }
        Ok(())
    }

    fn linear_backward_bias(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, F>,
        db: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (dy, db) = (dy.slice(), db.slice_mut());
        self.run(|| {
            db.par_chunks_mut(COLS).enumerate().for_each(|(block, db)| {
                sum_rows(dy, shape.outputs, block * COLS, db);
            });
        });
        Ok(())
    }
}

/// Lays bias and residual where the product is to be added; says whether there was any.
fn start<F: CpuFloat>(y: &mut [F], width: usize, b: Option<&[F]>, residual: Option<&[F]>) -> Write {
    let rows = y.par_chunks_exact_mut(width);
    match (b, residual) {
        (None, None) => return Write::Set,
        (Some(b), None) => rows.for_each(|y| y.copy_from_slice(b)),
        (None, Some(r)) => {
            rows.zip(r.par_chunks_exact(width)).for_each(|(y, r)| y.copy_from_slice(r));
        }
        (Some(b), Some(r)) => rows.zip(r.par_chunks_exact(width)).for_each(|(y, r)| {
            y.iter_mut().zip(b).zip(r).for_each(|((y, &b), &r)| *y = b + r);
        }),
    }
    Write::Add
}

vectorised! {
    /// Adds to `to` the sums of columns `first..` of `x`, in groups of rows to keep the error of
    /// long sums small.
    fn sum_rows<F: CpuFloat>(x: &[F], width: usize, first: usize, to: &mut [F]) {
        let cols = to.len();
        for group in x.chunks(64 * width) {
            let mut sum = [F::ZERO; COLS];
            for row in group.chunks_exact(width) {
                for (sum, &x) in sum[..cols].iter_mut().zip(&row[first..first + cols]) {
                    *sum += x;
                }
            }
            for (to, &sum) in to.iter_mut().zip(&sum) {
                *to += sum;
            }
        }
    }
}
