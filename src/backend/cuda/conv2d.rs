//! Launches of `kernels/conv2d.cu`.

use super::api::{self, Conv2dForward, Conv2dForwardPictures};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::conv2d::{Conv2d, Conv2dShape, TAPS};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

/// Pixels that are worth a partial sum of their own.
const PART: usize = 512;

/// Into how many parts the sum over pixels of a gradient of weights is cut: with what is cut of
/// the weights themselves, enough to keep every GPU busy.
fn parts(shape: Conv2dShape) -> usize {
    let tiles = |channels: usize| channels.div_ceil(api::ROCLIP_CONV_TILE as usize);
    let most = api::ROCLIP_PARTS as usize / (tiles(shape.outputs) * tiles(shape.inputs));
    shape.pixels_out().div_ceil(PART).min(most.max(1))
}

impl<M: Machine> Gpu<M> {
    /// Room for weights in the order of the kernels: `[rows, channels rounded up, 3, 3]`.
    fn conv2d_packed(&self, rows: usize, channels: usize) -> Result<*mut bf16> {
        let depth = api::ROCLIP_CONV_DEPTH as usize;
        let len = rows * channels.next_multiple_of(depth) * TAPS;
        Ok(self.scratch(len * size_of::<bf16>())? as *mut bf16)
    }

    /// Room for so many partial sums of the gradient of the weights.
    fn conv2d_partial(&self, shape: Conv2dShape, parts: usize) -> Result<*mut f32> {
        let len = parts * shape.outputs * shape.inputs * TAPS;
        Ok(self.scratch(len * size_of::<f32>())? as *mut f32)
    }
}

impl<M: Machine> Conv2d for Gpu<M> {
    fn conv2d_forward(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, bf16>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = Conv2dForward {
            x: x.ptr(),
            w: w.copy() as *const bf16,
            y: y.ptr(),
            packed: self.conv2d_packed(shape.outputs, shape.inputs)?,
            images_n: shape.images as i64,
            height: int(shape.height),
            width: int(shape.width),
            inputs: int(shape.inputs),
            outputs: int(shape.outputs),
            stride: int(shape.stride),
            kernel: self.kernel(),
        };
        self.launch("conv2d::forward", |k| k.conv2d_forward, args)
    }

    fn conv2d_backward_input(
        &self,
        shape: Conv2dShape,
        dy: View<'_, Self, bf16>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = api::Conv2dBackwardInput {
            dy: dy.ptr(),
            w: w.copy() as *const bf16,
            dx: dx.ptr(),
            packed: self.conv2d_packed(shape.inputs, shape.outputs)?,
            images_n: shape.images as i64,
            height: int(shape.height),
            width: int(shape.width),
            inputs: int(shape.inputs),
            outputs: int(shape.outputs),
            kernel: self.kernel(),
        };
        self.launch("conv2d::backward_input", |k| k.conv2d_backward_input, args)
    }

    fn conv2d_backward_weight(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, bf16>,
        dy: View<'_, Self, bf16>,
        dw: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let parts = parts(shape);
        let args = api::Conv2dBackwardWeight {
            x: x.ptr(),
            dy: dy.ptr(),
            dw: dw.ptr(),
            partial: self.conv2d_partial(shape, parts)?,
            images_n: shape.images as i64,
            height: int(shape.height),
            width: int(shape.width),
            inputs: int(shape.inputs),
            outputs: int(shape.outputs),
            stride: int(shape.stride),
            parts: int(parts),
            kernel: self.kernel(),
        };
        self.launch("conv2d::backward_weight", |k| k.conv2d_backward_weight, args)
    }

    fn conv2d_forward_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = Conv2dForwardPictures {
            images: images.ptr(),
            w: w.copy() as *const bf16,
            y: y.ptr(),
            images_n: shape.images as i64,
            height: int(shape.height),
            width: int(shape.width),
            outputs: int(shape.outputs),
            stride: int(shape.stride),
            kernel: self.kernel(),
        };
        self.launch("conv2d::forward_pictures", |k| k.conv2d_forward_pictures, args)
    }

    fn conv2d_backward_weight_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        dy: View<'_, Self, bf16>,
        dw: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let parts = parts(shape);
        let args = api::Conv2dBackwardWeightPictures {
            images: images.ptr(),
            dy: dy.ptr(),
            dw: dw.ptr(),
            partial: self.conv2d_partial(shape, parts)?,
            images_n: shape.images as i64,
            height: int(shape.height),
            width: int(shape.width),
            outputs: int(shape.outputs),
            stride: int(shape.stride),
            parts: int(parts),
            kernel: self.kernel(),
        };
        let op = "conv2d::backward_weight_pictures";
        self.launch(op, |k| k.conv2d_backward_weight_pictures, args)
    }
}
