//! A layer norm with its place among the parameters.

use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::layernorm::{self, LayerNormStats};
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::flow::ParamTable;

/// `y = (x − mean) / sqrt(var + ε) · weight + bias`, row by row.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// `[2, C]`: `weight` and `bias`, neighbours in the table.
    pub gain_bias: Slot,
}

/// What the backward needs, and what the next layer reads.
pub struct LayerNormActivations<D: Device> {
    /// `[rows]` means and reciprocal deviations.
    pub stats: LayerNormStats<D>,
    /// `[rows, C]`.
    pub y: D::Buf<D::Act>,
}

impl<D: Device> LayerNormActivations<D> {
    /// Room for `rows` rows of `width` values.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, rows: usize, width: usize) -> Result<Self> {
        Ok(Self { stats: LayerNormStats::new(device, rows)?, y: device.alloc(rows * width)? })
    }
}

impl LayerNorm {
    /// `torch.nn.LayerNorm`: parameters `{name}weight` and `{name}bias`, both `[width]`.
    pub fn new(table: &mut ParamTable, name: &str, width: usize) -> Self {
        let weight = table.push(format!("{name}weight"), &[width]);
        let bias = table.push_beside(format!("{name}bias"), &[width]);
        Self { gain_bias: weight.join(bias) }
    }

    /// `acts.y` `[rows, C]` from `x` `[rows, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut LayerNormActivations<D>,
    ) -> Result<()> {
        let weight = Weight::at(pass.weights, self.gain_bias);
        let y = first_mut(&mut acts.y, x.len);
        layernorm::forward(pass.device, x, weight, &mut acts.stats, y)
    }

    /// From `dy` `[rows, C]` the parameters' gradients, added, and `dx` `[rows, C]`, set or added
    /// to.
    ///
    /// # Errors
    /// As [`LayerNorm::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &LayerNormActivations<D>,
        dy: View<'_, D, D::Act>,
        dx: (Write, ViewMut<'_, D, D::Act>),
    ) -> Result<()> {
        let weight = Weight::at(pass.weights, self.gain_bias);
        let dweight = self.gain_bias.grad(pass.grads);
        layernorm::backward(pass.device, x, weight, &acts.stats, dy, dx, dweight)
    }
}

impl<D: Device> LayerNormActivations<D> {
    /// The first `len` values of the output.
    pub fn out(&self, len: usize) -> View<'_, D, D::Act> {
        first(&self.y, len)
    }
}
