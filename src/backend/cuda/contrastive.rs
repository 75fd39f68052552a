//! Launches of `kernels/contrastive.cu`. The backward stores the weights of one block of rows at a
//! time ([`Machine::BLOCK`]) and multiplies them with the columns.

use super::api::{self, ContrastiveScale, ContrastiveWeights};
use super::machine::{Address, Machine, Matmul, Operand, Output};
use super::{Gpu, int};
use crate::backend::ops::contrastive::{Contrastive, ContrastiveGrads, ContrastiveShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;
use std::ptr::null_mut;

impl<M: Machine> Contrastive for Gpu<M> {
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, bf16>,
        cols: View<'_, Self, bf16>,
        logit_scale: Weight<'_, Self>,
        lse: ViewMut<'_, Self, f32>,
        own: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let bytes = api::ROCLIP_STRIPS as usize * shape.rows * size_of::<f32>();
        let strips = self.scratch(2 * bytes)?;
        let args = api::ContrastiveForward {
            rows: rows.ptr(),
            cols: cols.ptr(),
            logit_scale: logit_scale.master(),
            lse: lse.ptr(),
            own: own.ptr(),
            col_lse: null_mut(),
            strip_max: strips as *mut f32,
            strip_sum: (strips + bytes as Address) as *mut f32,
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
        row_lse: View<'_, Self, f32>,
        col_lse: View<'_, Self, f32>,
        grads: ContrastiveGrads<'_, Self>,
    ) -> Result<()> {
        let drows = grads.rows.at();
        let (most, rows_at_least) = M::BLOCK;
        let block = (most / shape.cols).max(rows_at_least).min(shape.rows);
        let weights = self.scratch(block * shape.cols * size_of::<bf16>())?;
        for first in (0..shape.rows).step_by(block) {
            let n = block.min(shape.rows - first);
            let skipped = (first * shape.width * size_of::<bf16>()) as Address;
            let args = ContrastiveWeights {
                rows: (rows.at() + skipped) as *const bf16,
                cols: cols.ptr(),
                logit_scale: logit_scale.master(),
                row_lse: (row_lse.at() + (first * size_of::<f32>()) as Address) as *const f32,
                col_lse: col_lse.ptr(),
                weights: weights as *mut bf16,
                rows_n: n as i64,
                cols_n: shape.cols as i64,
                total: shape.cols as i64,
                offset: (shape.offset + first) as i64,
                width: int(shape.width),
                kernel: self.kernel(),
            };
            self.launch("contrastive::backward", |k| k.contrastive_weights, args)?;
            let out = Output::Bf16 { to: drows + skipped, addend: None, bias: None };
            let (a, b) = (weights, cols.at());
            let [a, b] = [a, b].map(|at| Operand { at, transposed: false });
            self.matmul(Matmul { m: n, n: shape.width, k: shape.cols, a, b, out })?;
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
