//! `contrastive` on the CPU: one block of the matrix of logits after the other, made by a product
//! on all threads, then read along its rows and along its columns.

use super::gemm::Mat;
use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::contrastive::{
    Contrastive, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape,
    ContrastiveWorkspace,
};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Rows and columns of a block: tasks for 16 threads in each of its products, and 9 MiB of f32.
const SIDE: usize = 1536;

/// Rows of one task.
const ROWS: usize = 32;

/// Columns of one task.
const COLS: usize = 64;

/// First row or column and number of each block of `n`.
fn blocks(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(SIDE).map(move |first| (first, SIDE.min(n - first)))
}

impl<F: CpuFloat> ContrastiveWorkspace for Cpu<F> {
    /// A block of logits, and a sum for every row of it and for every column.
    fn contrastive_workspace(shape: ContrastiveShape, with_cols: bool) -> usize {
        let rows = SIDE.min(shape.rows);
        rows * SIDE.min(shape.cols) + rows + if with_cols { shape.cols } else { 0 }
    }
}

impl<F: CpuFloat> Contrastive for Cpu<F> {
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, F>,
        cols: View<'_, Self, F>,
        logit_scale: Weight<'_, Self>,
        out: ContrastiveOut<'_, Self>,
        workspace: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (rows, cols, width) = (rows.slice(), cols.slice(), shape.width);
        let scale = F::from_f64(logit_scale.slice()[0].to_f64().exp());
        let side = SIDE.min(shape.rows);
        let (logits, rest) = workspace.slice_mut().split_at_mut(side * SIDE.min(shape.cols));
        let (row_sums, rest) = rest.split_at_mut(side);
        let (row_lse, own) = (out.row_lse.slice_mut(), out.own.slice_mut());
        let mut by_col = out.col_lse.map(|max| Sums::none(max.slice_mut(), rest));
        self.run(|| {
            for (first, m) in blocks(shape.rows) {
                let mut by_row = Sums::none(&mut row_lse[first..first + m], row_sums);
                for (col, n) in blocks(shape.cols) {
                    let logits = &mut logits[..m * n];
                    let r = Mat::rows(&rows[first * width..], width);
                    let c = Mat::cols(&cols[col * width..], width);
                    self.gemm([m, width, n], r, c, Write::Set, logits);
                    logits.par_chunks_mut(n * ROWS).for_each(|l| to_logits(l, scale));
                    by_row.add_rows(logits, n);
                    if let Some(by_col) = &mut by_col {
                        by_col.part(col, n).add_cols(logits);
                    }
                    for (i, own) in own[first..first + m].iter_mut().enumerate() {
                        let mine = shape.offset + first + i;
                        if (col..col + n).contains(&mine) {
                            *own = logits[i * n + mine - col];
                        }
                    }
                }
                by_row.finish();
            }
            by_col.into_iter().for_each(Sums::finish);
        });
        Ok(())
    }

    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, F>,
        cols: View<'_, Self, F>,
        logit_scale: Weight<'_, Self>,
        loss: ContrastiveLoss<'_, Self>,
        grads: ContrastiveGrads<'_, Self>,
        workspace: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (rows, cols, width) = (rows.slice(), cols.slice(), shape.width);
        let [row_lse, col_lse] = [loss.row_lse, loss.col_lse].map(|lse| lse.map(|x| x.slice()));
        let (drows, mut dcols) = (grads.rows.slice_mut(), grads.cols.map(|d| d.slice_mut()));
        let scale = logit_scale.slice()[0].to_f64().exp();
        let factor = F::from_f64(loss.factor * scale / (2.0 * shape.cols as f64));
        let directions = [row_lse, col_lse].iter().flatten().count();
        let scale = F::from_f64(scale);
        let workspace = workspace.slice_mut();
        // the first product of a sum sets, the others add
        let write = |first: usize| if first == 0 { Write::Set } else { Write::Add };
        self.run(|| {
            for (first, m) in blocks(shape.rows) {
                let here = first * width..(first + m) * width;
                let (rows, drows) = (&rows[here.clone()], &mut drows[here]);
                for (col, n) in blocks(shape.cols) {
                    let there = col * width..(col + n) * width;
                    let (cols, weights) = (&cols[there.clone()], &mut workspace[..m * n]);
                    let (r, c) = (Mat::rows(rows, width), Mat::cols(cols, width));
                    self.gemm([m, width, n], r, c, Write::Set, weights);
                    let col_lse = col_lse.map(|lse| &lse[col..col + n]);
                    weights.par_chunks_mut(n).enumerate().for_each(|(i, x)| {
                        let row_lse = row_lse.map(|lse| lse[first + i]);
                        match (row_lse, col_lse) {
                            (Some(row), Some(cols)) => to_weights(x, cols, row, scale, factor),
                            (Some(row), None) => to_row_weights(x, row, scale, factor),
                            (None, Some(cols)) => to_col_weights(x, cols, scale, factor),
                            (None, None) => unreachable!("the contract wants a direction"),
                        }
                        let own = (shape.offset + first + i).wrapping_sub(col);
                        if own < n {
                            (0..directions).for_each(|_| x[own] = x[own] - factor);
                        }
                    });
                    let (w, c) = (Mat::rows(weights, n), Mat::rows(cols, width));
                    self.gemm([m, n, width], w, c, write(col), drows);
                    if let Some(dcols) = &mut dcols {
                        let (w, r) = (Mat::cols(weights, n), Mat::rows(rows, width));
                        self.gemm([n, m, width], w, r, write(first), &mut dcols[there]);
                    }
                }
            }
        });
        if let Some(dlogit_scale) = grads.logit_scale {
            // l is linear in both the row and the scale, so Σⱼ dl[i,j]·l[i,j] = ⟨rows[i], drows[i]⟩
            let sum: f64 = rows.iter().zip(&*drows).map(|(r, d)| r.to_f64() * d.to_f64()).sum();
            dlogit_scale.slice_mut()[0] += F::from_f64(sum);
        }
        Ok(())
    }
}

/// Sums of exponentials of rows or columns, each relative to the largest so far.
struct Sums<'a, F> {
    max: &'a mut [F],
    sum: &'a mut [F],
}

impl<'a, F: CpuFloat> Sums<'a, F> {
    fn none(max: &'a mut [F], sum: &'a mut [F]) -> Self {
        let sum = &mut sum[..max.len()];
        max.fill(F::NEG_INFINITY);
        sum.fill(F::ZERO);
        Self { max, sum }
    }

    fn part(&mut self, first: usize, n: usize) -> Sums<'_, F> {
        Sums { max: &mut self.max[first..first + n], sum: &mut self.sum[first..first + n] }
    }

    /// Takes logits of rows of `n` columns in.
    fn add_rows(&mut self, logits: &[F], n: usize) {
        let rows = self.max.par_iter_mut().zip(self.sum.par_iter_mut());
        rows.zip(logits.par_chunks(n)).with_min_len(ROWS).for_each(|((max, sum), logits)| {
            let top = larger(*max, largest(logits));
            *sum = *sum * (*max - top).exp() + exponentials(logits, top);
            *max = top;
        });
    }

    /// Takes logits of these columns in, of any number of rows.
    fn add_cols(&mut self, logits: &[F]) {
        let n = self.max.len();
        let cols = self.max.par_chunks_mut(COLS).zip(self.sum.par_chunks_mut(COLS)).enumerate();
        cols.for_each(|(task, (max, sum))| add_columns(&logits[task * COLS..], n, max, sum));
    }

    /// Leaves the logarithms in place of the maxima.
    fn finish(self) {
        for (max, sum) in self.max.iter_mut().zip(self.sum) {
            *max = F::from_f64(max.to_f64() + sum.to_f64().ln());
        }
    }
}

/// The larger number; a NaN comes in through the exponentials.
#[inline(always)]
fn larger<F: CpuFloat>(a: F, b: F) -> F {
    if b > a { b } else { a }
}

vectorised! {
    /// Scales inner products to logits.
    fn to_logits<F: CpuFloat>(x: &mut [F], scale: F) {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

vectorised! {
    /// The largest of a row.
    fn largest<F: CpuFloat>(l: &[F]) -> F {
        simd::max(l)
    }
}

vectorised! {
    /// `Σ exp(l − top)`.
    fn exponentials<F: CpuFloat>(l: &[F], top: F) -> F {
        simd::sum(l, l, |l, _| (l - top).exp())
    }
}

vectorised! {
    /// Takes the first columns of rows of `n` into as many maxima and sums; in groups of rows, to
    /// keep the error of long sums small.
    fn add_columns<F: CpuFloat>(l: &[F], n: usize, max: &mut [F], sum: &mut [F]) {
        let cols = max.len();
        let mut top = [F::NEG_INFINITY; COLS];
        top[..cols].copy_from_slice(max);
        for row in l.chunks(n) {
            for (top, &l) in top[..cols].iter_mut().zip(row) {
                *top = larger(*top, l);
            }
        }
        for ((max, sum), &top) in max.iter_mut().zip(&mut *sum).zip(&top) {
            *sum *= (*max - top).exp();
            *max = top;
        }
        for group in l.chunks(COLS * n) {
            let mut sums = [F::ZERO; COLS];
            for row in group.chunks(n) {
                for ((sum, &top), &l) in sums[..cols].iter_mut().zip(&top).zip(row) {
                    *sum += (l - top).exp();
                }
            }
            for (sum, &group) in sum.iter_mut().zip(&sums) {
                *sum += group;
            }
        }
    }
}

vectorised! {
    /// From inner products: `x = factor · (exp(l − row_lse) + exp(l − col_lse))`, `l = scale·x`.
    fn to_weights<F: CpuFloat>(x: &mut [F], col_lse: &[F], row_lse: F, scale: F, factor: F) {
        for (x, &col_lse) in x.iter_mut().zip(col_lse) {
            let l = *x * scale;
            *x = factor * ((l - row_lse).exp() + (l - col_lse).exp());
        }
    }
}

vectorised! {
    /// As [`to_weights`], of the rows' direction alone.
    fn to_row_weights<F: CpuFloat>(x: &mut [F], row_lse: F, scale: F, factor: F) {
        x.iter_mut().for_each(|x| *x = factor * (*x * scale - row_lse).exp());
    }
}

vectorised! {
    /// As [`to_weights`], of the columns' direction alone.
    fn to_col_weights<F: CpuFloat>(x: &mut [F], col_lse: &[F], scale: F, factor: F) {
        for (x, &col_lse) in x.iter_mut().zip(col_lse) {
            *x = factor * (*x * scale - col_lse).exp();
        }
    }
}
