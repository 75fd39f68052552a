//! `linear` on the CPU: blocks of rows, each one matrix product.

use super::gemm::{Mat, gemm};
use super::{Cpu, CpuFloat};
use crate::backend::ops::linear::{Layout, Linear, LinearShape};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use rayon::prelude::*;

/// Rows of one matrix product.
const ROWS: usize = 256;

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
        self.run(|| {
            y.par_chunks_mut(ROWS * o).enumerate().for_each(|(block, y)| {
                let (first, rows) = (block * ROWS, y.len() / o);
                let write = start(y, b, residual.map(|r| &r[first * o..][..rows * o]));
                gemm([rows, i, o], Mat::rows(&x[first * i..], i), w, write, y, o);
            });
        });
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
        self.run(|| {
            dx.par_chunks_mut(ROWS * i).enumerate().for_each(|(block, dx)| {
                let dy = Mat::rows(&dy[block * ROWS * o..], o);
                gemm([dx.len() / i, o, i], dy, w, Write::Set, dx, i);
            });
        });
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
        let dw = dw.slice_mut();
        self.run(|| {
            dw.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, dw)| {
                let left = Mat::cols(&left[block * ROWS..], left_width);
                let extents = [dw.len() / width, shape.rows, width];
                gemm(extents, left, Mat::rows(right, width), Write::Add, dw, width);
            });
        });
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
fn start<F: CpuFloat>(y: &mut [F], b: Option<&[F]>, residual: Option<&[F]>) -> Write {
    if let Some(residual) = residual {
        y.copy_from_slice(residual);
    }
    let Some(b) = b else { return if residual.is_some() { Write::Add } else { Write::Set } };
    for y in y.chunks_exact_mut(b.len()) {
        match residual {
            Some(_) => y.iter_mut().zip(b).for_each(|(y, &b)| *y += b),
            None => y.copy_from_slice(b),
        }
    }
    Write::Add
}

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
