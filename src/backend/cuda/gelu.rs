//! Launches of `kernels/gelu.cu`.

use super::Gpu;
use super::api::{GeluBackward, GeluForward};
use super::machine::Machine;
use crate::backend::ops::gelu::{Gelu, GeluOp};
use crate::backend::{View, ViewMut};
use crate::error::Result;
use half::bf16;

impl<M: Machine> GeluOp for Gpu<M> {
    fn gelu_forward(
        &self,
        kind: Gelu,
        x: View<'_, Self, bf16>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let quick = (kind == Gelu::Quick).into();
        let args = GeluForward { x: x.ptr(), y: y.ptr(), len: x.len as i64, quick };
        self.launch("gelu::forward", |k| k.gelu_forward, args)
    }

    fn gelu_backward(
        &self,
        kind: Gelu,
        x: View<'_, Self, bf16>,
        dy: View<'_, Self, bf16>,
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let (len, quick) = (x.len as i64, (kind == Gelu::Quick).into());
        let args = GeluBackward { x: x.ptr(), dy: dy.ptr(), dx: dx.ptr(), len, quick };
        self.launch("gelu::backward", |k| k.gelu_backward, args)
    }
}
