//! Launches of `kernels/contrastive.cu`. The backward stores the weights of one block of rows and
//! columns at a time ([`Machine::BLOCK`]) and multiplies them with the block's columns and rows.

use super::api::{self, ContrastiveScale, ContrastiveWeights};
use super::machine::{Address, Machine, Matmul, Operand, Output};
use super::{Gpu, SCRATCH_ALIGN, int};
use crate::backend::ops::contrastive::{
    Contrastive, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape,
    ContrastiveWorkspace,
};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;
use std::ptr::{null, null_mut};

/// How the backward cuts its matrix of weights, and what it keeps in the workspace beside a block
/// of them.
#[derive(Clone, Copy)]
struct Blocks {
    shape: ContrastiveShape,
    /// Of one block, at most.
    rows: usize,
    /// Of one block, at most.
    cols: usize,
}

impl Blocks {
    fn of<M: Machine>(shape: ContrastiveShape) -> Self {
        let (rows, cols) = (M::BLOCK.rows, M::BLOCK.cols(shape.width));
        Self { shape, rows: rows.min(shape.rows), cols: cols.min(shape.cols) }
    }

    /// Bytes of: weights in bf16 `[rows, cols]`; gradients in f32 of one block of rows, and of all
    /// columns.
    fn bytes(&self, with_cols: bool) -> [usize; 3] {
        let cols = if with_cols { self.shape.cols } else { 0 };
        let f32s = |rows: usize| rows * self.shape.width * size_of::<f32>();
        [self.rows * self.cols * size_of::<bf16>(), f32s(self.rows), f32s(cols)]
            .map(|bytes| bytes.next_multiple_of(SCRATCH_ALIGN))
    }
}

/// Bytes of one of the forward's two tables: a number for every strip and row, or column.
fn strips(shape: ContrastiveShape, with_cols: bool) -> usize {
    let most = if with_cols { shape.rows.max(shape.cols) } else { shape.rows };
    api::ROCLIP_STRIPS as usize * most * size_of::<f32>()
}

/// Row `row` of a matrix of that many elements `T` a row.
fn row<T>(at: Address, row: usize, width: usize) -> Address {
    at + (row * width * size_of::<T>()) as Address
}

/// Element `at` of a column; nowhere of none.
fn from(column: *const f32, at: usize) -> *const f32 {
    if column.is_null() { column } else { column.wrapping_add(at) }
}

impl<M: Machine> ContrastiveWorkspace for Gpu<M> {
    /// On a card, for `D` = 512 and 1,024: 208 and 224 MiB (0.22 and 0.24 GB) with the columns of
    /// `N = G = 32,768`, of which 144 and 96 MiB are the same at every `N` and `G` and the rest is
    /// `4·G·D` bytes; the forward needs `512·max(N, G)` bytes of it.
    fn contrastive_workspace(shape: ContrastiveShape, with_cols: bool) -> usize {
        let backward: usize = Blocks::of::<M>(shape).bytes(with_cols).iter().sum();
        backward.max(2 * strips(shape, with_cols)) / size_of::<f32>()
    }
}

impl<M: Machine> Contrastive for Gpu<M> {
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, bf16>,
        cols: View<'_, Self, bf16>,
        logit_scale: Weight<'_, Self>,
        out: ContrastiveOut<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (at, bytes) = (workspace.at(), strips(shape, out.col_lse.is_some()));
        let args = api::ContrastiveForward {
            rows: rows.ptr(),
            cols: cols.ptr(),
            logit_scale: logit_scale.master(),
            lse: out.row_lse.ptr(),
            own: out.own.ptr(),
            col_lse: out.col_lse.map_or(null_mut(), |x| x.ptr()),
            strip_max: at as *mut f32,
            strip_sum: (at + bytes as Address) as *mut f32,
            rows_n: shape.rows as i64,
            cols_n: shape.cols as i64,
            offset: shape.offset as i64,
            width: int(shape.width),
            kernel: self.kernel(),
        };
        self.launch("contrastive::forward", |k| k.contrastive_forward, args)
    }

    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, bf16>,
        cols: View<'_, Self, bf16>,
        logit_scale: Weight<'_, Self>,
        loss: ContrastiveLoss<'_, Self>,
        grads: ContrastiveGrads<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (op, blocks) = ("contrastive::backward", Blocks::of::<M>(shape));
        let [weights, drows_bytes, dcols_bytes] = blocks.bytes(grads.cols.is_some());
        let sums = workspace.at() + weights as Address;
        let dcols = grads.cols.map(|to| (sums + drows_bytes as Address, to.at()));
        let all = ContrastiveWeights {
            rows: rows.ptr(),
            cols: cols.ptr(),
            logit_scale: logit_scale.master(),
            row_lse: loss.row_lse.map_or(null(), |x| x.ptr()),
            col_lse: loss.col_lse.map_or(null(), |x| x.ptr()),
            weights: workspace.at() as *mut bf16,
            rows_n: shape.rows as i64,
            cols_n: shape.cols as i64,
            total: shape.cols as i64,
            factor: loss.factor as f32,
            offset: shape.offset as i64,
            width: int(shape.width),
            kernel: self.kernel(),
        };
        if let Some((sums, _)) = dcols {
            self.machine.zero(sums, dcols_bytes)?;
        }
        let drows = grads.rows.at();
        for first in (0..shape.rows).step_by(blocks.rows) {
            let n = blocks.rows.min(shape.rows - first);
            self.machine.zero(sums, drows_bytes)?;
            for col in (0..shape.cols).step_by(blocks.cols) {
                let extents = [n, blocks.cols.min(shape.cols - col)];
                self.add_block(&all, [first, col], extents, sums, dcols.map(|(sums, _)| sums))?;
            }
            self.round(op, sums, row::<bf16>(drows, first, shape.width), n * shape.width)?;
        }
        if let Some((sums, to)) = dcols {
            self.round(op, sums, to, shape.cols * shape.width)?;
        }
        let Some(dlogit_scale) = grads.logit_scale else { return Ok(()) };
        let args = ContrastiveScale {
            rows: rows.ptr(),
            drows: drows as *const bf16,
            dlogit_scale: dlogit_scale.ptr(),
            partial: self.scratch(api::ROCLIP_PARTS as usize * size_of::<f32>())? as *mut f32,
            len: rows.len as i64,
        };
        self.launch("contrastive::backward", |k| k.contrastive_scale, args)
    }
}

impl<M: Machine> Gpu<M> {
    /// Makes the weights of the block that begins at a row and a column, and adds its part of the
    /// gradients: of the block's rows to `drows`, of its columns to their place in `dcols`.
    fn add_block(
        &self,
        all: &ContrastiveWeights,
        [first, col]: [usize; 2],
        [n, cols_n]: [usize; 2],
        drows: Address,
        dcols: Option<Address>,
    ) -> Result<()> {
        let width = all.width as usize;
        let rows = row::<bf16>(all.rows as Address, first, width);
        let cols = row::<bf16>(all.cols as Address, col, width);
        let block = ContrastiveWeights {
            rows: rows as *const bf16,
            cols: cols as *const bf16,
            row_lse: from(all.row_lse, first),
            col_lse: from(all.col_lse, col),
            rows_n: n as i64,
            cols_n: cols_n as i64,
            offset: all.offset + first as i64 - col as i64,
            ..*all
        };
        self.launch("contrastive::backward", |k| k.contrastive_weights, block)?;
        let product = |transposed, [m, k]: [usize; 2], b, to| Matmul {
            m,
            n: width,
            k,
            a: Operand { at: all.weights as Address, transposed },
            b: Operand { at: b, transposed: false },
            out: Output::AddF32 { to },
        };
        self.matmul(product(false, [n, cols_n], cols, drows))?;
        let Some(dcols) = dcols else { return Ok(()) };
        self.matmul(product(true, [cols_n, n], rows, row::<f32>(dcols, col, width)))
    }
}
