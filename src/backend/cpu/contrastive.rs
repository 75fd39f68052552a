//! `contrastive` on the CPU: blocks of rows × tiles of columns, the softmax's sums running along.

use super::gemm::Mat;
use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::contrastive::{Contrastive, ContrastiveGrads, ContrastiveShape};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 32;

/// Columns of one tile.
const COLS: usize = 256;

impl<F: CpuFloat> Contrastive for Cpu<F> {
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, F>,
        cols: View<'_, Self, F>,
        logit_scale: Weight<'_, Self>,
        lse: ViewMut<'_, Self, F>,
        own: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (rows, cols) = (rows.slice(), cols.slice());
        let (lse, own) = (lse.slice_mut(), own.slice_mut());
        let scale = F::from_f64(logit_scale.slice()[0].to_f64().exp());
        self.run(|| {
            let blocks = lse.par_chunks_mut(ROWS).zip(own.par_chunks_mut(ROWS));
            let blocks = blocks.zip(rows.par_chunks(ROWS * shape.width)).enumerate();
            blocks.for_each(|(block, ((lse, own), rows))| {
                let first = shape.offset + block * ROWS;
                self.scratch(ROWS * COLS, |tile| {
                    forward(self, shape.width, first, rows, cols, scale, tile, lse, own);
                });
            });
        });
        Ok(())
    }

    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, F>,
        cols: View<'_, Self, F>,
        logit_scale: Weight<'_, Self>,
        row_lse: View<'_, Self, F>,
        col_lse: View<'_, Self, F>,
        grads: ContrastiveGrads<'_, Self>,
    ) -> Result<()> {
        let (rows, cols, drows) = (rows.slice(), cols.slice(), grads.rows.slice_mut());
        let (row_lse, col_lse) = (row_lse.slice(), col_lse.slice());
        let scale = logit_scale.slice()[0].to_f64().exp();
        let weight = F::from_f64(scale / (2.0 * shape.cols as f64));
        let scale = F::from_f64(scale);
        self.run(|| {
            let blocks = drows.par_chunks_mut(ROWS * shape.width).enumerate();
            blocks.for_each(|(block, drows)| {
                let first = block * ROWS;
                let n = drows.len() / shape.width;
                let rows = Block {
                    width: shape.width,
                    first: shape.offset + first,
                    rows: &rows[first * shape.width..][..drows.len()],
                    lse: &row_lse[first..first + n],
                };
                self.scratch(ROWS * COLS, |tile| {
                    backward(self, &rows, cols, col_lse, scale, weight, tile, drows);
                });
            });
        });
        if let Some(dlogit_scale) = grads.logit_scale {
            // l is linear in both the row and the scale, so Σⱼ dl[i,j]·l[i,j] = ⟨rows[i], drows[i]⟩
            let sum: f64 = rows.iter().zip(&*drows).map(|(r, d)| r.to_f64() * d.to_f64()).sum();
            dlogit_scale.slice_mut()[0] += F::from_f64(sum);
        }
        Ok(())
    }
}

/// Log-sum-exp and own logit of one block of rows, the first of which belongs to column `first`.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
fn forward<F: CpuFloat>(
    cpu: &Cpu<F>,
    width: usize,
    first: usize,
    rows: &[F],
    cols: &[F],
    scale: F,
    tile: &mut [F],
    lse: &mut [F],
    own: &mut [F],
) {
    let mut max = [F::NEG_INFINITY; ROWS];
    let mut sum = [0.0; ROWS];
    for (at, cols) in cols.chunks(COLS * width).enumerate() {
        let (at, n) = (at * COLS, cols.len() / width);
        let (r, c) = (Mat::rows(rows, width), Mat::cols(cols, width));
        cpu.gemm_here([lse.len(), width, n], r, c, Write::Set, tile, n);
        for (i, logits) in tile.chunks_exact_mut(n).take(lse.len()).enumerate() {
            let here = to_logits(logits, scale);
            let top = if here > max[i] { here } else { max[i] };
            let before = sum[i] * (max[i] - top).exp().to_f64();
            sum[i] = before + exponentials(logits, top).to_f64();
            max[i] = top;
            if (at..at + n).contains(&(first + i)) {
                own[i] = logits[first + i - at];
            }
        }
    }
    for ((lse, max), sum) in lse.iter_mut().zip(max).zip(sum) {
        *lse = F::from_f64(max.to_f64() + sum.ln());
    }
}

/// Some rows: their vectors, the column that belongs to the first, and their log-sum-exps.
struct Block<'a, F> {
    width: usize,
    first: usize,
    rows: &'a [F],
    lse: &'a [F],
}

/// `drows = weight · Σⱼ (exp(l − row_lse) + exp(l − col_lse) − 2δ) · cols[j]` for one block.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
fn backward<F: CpuFloat>(
    cpu: &Cpu<F>,
    block: &Block<F>,
    cols: &[F],
    col_lse: &[F],
    scale: F,
    weight: F,
    tile: &mut [F],
    drows: &mut [F],
) {
    let (width, m) = (block.width, block.lse.len());
    let mut write = Write::Set;
    let tiles = cols.chunks(COLS * width).zip(col_lse.chunks(COLS));
    for (at, (cols, col_lse)) in tiles.enumerate() {
        let (at, n) = (at * COLS, col_lse.len());
        let (r, c) = (Mat::rows(block.rows, width), Mat::cols(cols, width));
        cpu.gemm_here([m, width, n], r, c, Write::Set, tile, n);
        for (i, logits) in tile.chunks_exact_mut(n).take(m).enumerate() {
            weights(logits, col_lse, block.lse[i], scale, weight);
            let own = (block.first + i).wrapping_sub(at);
            if own < n {
                logits[own] = logits[own] - weight - weight;
            }
        }
        cpu.gemm_here(
            [m, n, width],
            Mat::rows(tile, n),
            Mat::rows(cols, width),
            write,
            drows,
            width,
        );
        write = Write::Add;
    }
}

vectorised! {
    /// From inner products: `x = weight · (exp(l − row_lse) + exp(l − col_lse))`, `l = scale·x`.
    fn weights<F: CpuFloat>(x: &mut [F], col_lse: &[F], row_lse: F, scale: F, weight: F) {
        for (x, &col_lse) in x.iter_mut().zip(col_lse) {
            let l = *x * scale;
            *x = weight * ((l - row_lse).exp() + (l - col_lse).exp());
        }
    }
}

vectorised! {
    /// Scales to logits and returns the largest.
    fn to_logits<F: CpuFloat>(x: &mut [F], scale: F) -> F {
        x.iter_mut().for_each(|x| *x *= scale);
        simd::max(x)
    }
}

vectorised! {
    /// `Σ exp(l − top)`.
    fn exponentials<F: CpuFloat>(l: &[F], top: F) -> F {
        simd::sum(l, l, |l, _| (l - top).exp())
    }
}
