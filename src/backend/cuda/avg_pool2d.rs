//! Launches of `kernels/avg_pool2d.cu`.

use super::api::{AvgPool2dBackward, AvgPool2dForward};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::avg_pool2d::{AvgPool2d, AvgPool2dShape};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use half::bf16;

impl<M: Machine> AvgPool2d for Gpu<M> {
    fn avg_pool2d_forward(
        &self,
        shape: AvgPool2dShape,
        x: View<'_, Self, bf16>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = AvgPool2dForward {
            x: x.ptr(),
            y: y.ptr(),
            lines: (shape.images * (shape.height / 2)) as i64,
            across: int(shape.width / 2),
            width: int(shape.channels),
        };
        self.launch("avg_pool2d::forward", |k| k.avg_pool2d_forward, args)
    }

    fn avg_pool2d_backward(
        &self,
        shape: AvgPool2dShape,
        dy: View<'_, Self, bf16>,
        (write, dx): (Write, ViewMut<'_, Self, bf16>),
    ) -> Result<()> {
        let args = AvgPool2dBackward {
            dy: dy.ptr(),
            dx: dx.ptr(),
            lines: (shape.images * (shape.height / 2)) as i64,
            across: int(shape.width / 2),
            width: int(shape.channels),
            add: (write == Write::Add).into(),
        };
        self.launch("avg_pool2d::backward", |k| k.avg_pool2d_backward, args)
    }
}
