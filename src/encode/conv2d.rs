//! Convolutions with their place among the parameters. Pictures inside the tower are
//! `[N, side, side, C]`, channels last.

use super::linear::Linear;
use super::{Backward, Pass};
use crate::backend::ops::conv2d::{self, Conv2dShape};
use crate::backend::ops::linear::Layout;
use crate::backend::{Backend, Slot, View, ViewMut, Weight};
use crate::error::Result;
use crate::flow::ParamTable;

/// A convolution of 3 × 3, padded by 1, without bias.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    /// `[O, C, 3, 3]`.
    pub weight: Slot,
    /// `C`.
    pub inputs: usize,
    /// `O`.
    pub outputs: usize,
    /// Side of the square that goes in, pixels.
    pub side: usize,
    /// 1 or 2.
    pub stride: usize,
}

impl Conv2d {
    /// Parameter `{name}weight`.
    pub fn new(
        table: &mut ParamTable,
        name: &str,
        [inputs, outputs]: [usize; 2],
        side: usize,
        stride: usize,
    ) -> Self {
        let weight = table.push(format!("{name}weight"), &[outputs, inputs, 3, 3]);
        Self { weight, inputs, outputs, side, stride }
    }

    /// One of 1 × 1, which is a linear map of every pixel: parameter `{name}weight`
    /// `[O, C, 1, 1]`.
    pub fn pointwise(table: &mut ParamTable, name: &str, [inputs, outputs]: [usize; 2]) -> Linear {
        let weight = table.push(format!("{name}weight"), &[outputs, inputs, 1, 1]);
        Linear { weight, bias: None, inputs, outputs, layout: Layout::OutIn }
    }

    fn shape(&self, images: usize) -> Conv2dShape {
        let Self { inputs, outputs, side, stride, .. } = *self;
        Conv2dShape { images, height: side, width: side, inputs, outputs, stride }
    }

    /// Values that come out for one picture.
    pub fn out_values(&self) -> usize {
        self.side.div_ceil(self.stride).pow(2) * self.outputs
    }

    /// `y` from `x`, of `images` pictures.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        images: usize,
        x: View<'_, D, D::Act>,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let weight = Weight::at(pass.weights, self.weight);
        conv2d::forward(pass.device, self.shape(images), x, weight, y)
    }

    /// From `dy` the weight's gradient, added, and `dx`, overwritten.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        images: usize,
        x: View<'_, D, D::Act>,
        dy: View<'_, D, D::Act>,
        dx: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let (shape, dw) = (self.shape(images), self.weight.grad(pass.grads));
        conv2d::backward_weight(pass.device, shape, x, dy, dw)?;
        let weight = Weight::at(pass.weights, self.weight);
        conv2d::backward_input(pass.device, shape, dy, weight, dx)
    }

    /// [`Conv2d::forward`] of pictures as the loader delivers them, `[N, 3, side, side]`.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn forward_pictures<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        images: usize,
        pictures: View<'_, D, f32>,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let weight = Weight::at(pass.weights, self.weight);
        conv2d::forward_pictures(pass.device, self.shape(images), pictures, weight, y)
    }

    /// The weight's gradient, added; pictures take none.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn backward_pictures<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        images: usize,
        pictures: View<'_, D, f32>,
        dy: View<'_, D, D::Act>,
    ) -> Result<()> {
        let dw = self.weight.grad(pass.grads);
        conv2d::backward_weight_pictures(pass.device, self.shape(images), pictures, dy, dw)
    }
}
