//! Launches of `kernels/l2norm.cu`.

use super::api::{L2normBackward, L2normForward};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::l2norm::{EPS, L2Norm};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use half::bf16;

impl<M: Machine> L2Norm for Gpu<M> {
    fn l2norm_forward(
        &self,
        width: usize,
        x: View<'_, Self, bf16>,
        y: ViewMut<'_, Self, bf16>,
        inv_norm: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = L2normForward {
            x: x.ptr(),
            y: y.ptr(),
            inv_norm: inv_norm.ptr(),
            rows: inv_norm.len as i64,
            width: int(width),
            eps: EPS as f32,
        };
        self.launch("l2norm::forward", |k| k.l2norm_forward, args)
    }

    fn l2norm_backward(
        &self,
        width: usize,
        y: View<'_, Self, bf16>,
        inv_norm: View<'_, Self, f32>,
        dy: View<'_, Self, bf16>,
        write: Write,
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = L2normBackward {
            y: y.ptr(),
            inv_norm: inv_norm.ptr(),
            dy: dy.ptr(),
            dx: dx.ptr(),
            rows: inv_norm.len as i64,
            width: int(width),
            add: i32::from(write == Write::Add),
        };
        self.launch("l2norm::backward", |k| k.l2norm_backward, args)
    }
}
