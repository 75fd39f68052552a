//! `linear` on a GPU: products through the library, with bias and residual in their epilogue; the
//! gradient of the bias by `kernels/linear.cu`.

use super::api::{self, LinearBackwardBias};
use super::machine::{Machine, Matmul, Operand, Output};
use super::{Gpu, int};
use crate::backend::ops::linear::{Layout, Linear, LinearShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

impl<M: Machine> Linear for Gpu<M> {
    fn linear_forward(
        &self,
        shape: LinearShape,
        x: View<'_, Self, bf16>,
        w: Weight<'_, Self>,
        b: Option<Weight<'_, Self>>,
        residual: Option<View<'_, Self, bf16>>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let (addend, bias) = (residual.map(|r| r.at()), b.map(|b| b.copy()));
        self.matmul(Matmul {
            m: shape.rows,
            n: shape.outputs,
            k: shape.inputs,
            a: Operand { at: x.at(), transposed: false },
            b: Operand { at: w.copy(), transposed: shape.layout == Layout::OutIn },
            out: Output::Bf16 { to: y.at(), addend, bias },
        })
    }

    fn linear_backward_input(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, bf16>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        self.matmul(Matmul {
            m: shape.rows,
            n: shape.inputs,
            k: shape.outputs,
            a: Operand { at: dy.at(), transposed: false },
            b: Operand { at: w.copy(), transposed: shape.layout == Layout::InOut },
            out: Output::Bf16 { to: dx.at(), addend: None, bias: None },
        })
    }

    fn linear_backward_weight(
        &self,
        shape: LinearShape,
        x: View<'_, Self, bf16>,
        dy: View<'_, Self, bf16>,
        dw: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        // dW is leftᵀ·right, for either layout
        let (left, m, right, n) = match shape.layout {
            Layout::OutIn => (dy.at(), shape.outputs, x.at(), shape.inputs),
            Layout::InOut => (x.at(), shape.inputs, dy.at(), shape.outputs),
        };
        self.matmul(Matmul {
            m,
            n,
            k: shape.rows,
            a: Operand { at: left, transposed: true },
            b: Operand { at: right, transposed: false },
            out: Output::AddF32 { to: dw.at() },
        })
    }

    fn linear_backward_bias(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, bf16>,
        db: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let partial =
            self.scratch(api::ROCLIP_PARTS as usize * shape.outputs * size_of::<f32>())?;
        let args = LinearBackwardBias {
            dy: dy.ptr(),
            db: db.ptr(),
            partial: partial as *mut f32,
            rows: shape.rows as i64,
            width: int(shape.outputs),
        };
        self.launch("linear::backward_bias", |k| k.linear_backward_bias, args)
    }
}
