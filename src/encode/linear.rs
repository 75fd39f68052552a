//! A linear map with its place among the parameters.

use super::{Backward, Pass};
use crate::backend::ops::linear::{self, Layout, LinearShape};
use crate::backend::{Backend, Slot, View, ViewMut, Weight};
use crate::error::Result;
use crate::flow::ParamTable;

/// `y = x·Wᵀ + b`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[O, I]` or `[I, O]`, by `layout`.
    pub weight: Slot,
    /// `[O]`.
    pub bias: Option<Slot>,
    /// `I`, columns of `x`.
    pub inputs: usize,
    /// `O`, columns of `y`.
    pub outputs: usize,
    /// How the weight lies in memory.
    pub layout: Layout,
}

impl Linear {
    /// `torch.nn.Linear`: parameters `{name}weight` `[O, I]` and `{name}bias` `[O]`.
    pub fn new(table: &mut ParamTable, name: &str, inputs: usize, outputs: usize) -> Self {
        let weight = table.push(format!("{name}weight"), &[outputs, inputs]);
        let bias = Some(table.push(format!("{name}bias"), &[outputs]));
        Self { weight, bias, inputs, outputs, layout: Layout::OutIn }
    }

    /// CLIP's projection `x @ weight`, weight `[I, O]`, without bias.
    pub fn projection(weight: Slot, inputs: usize, outputs: usize) -> Self {
        Self { weight, bias: None, inputs, outputs, layout: Layout::InOut }
    }

    fn shape(&self, values: usize) -> LinearShape {
        let (inputs, outputs, layout) = (self.inputs, self.outputs, self.layout);
        LinearShape { rows: values / inputs, inputs, outputs, layout }
    }

    /// `y` `[rows, O]` from `x` `[rows, I]`, plus `residual` `[rows, O]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        x: View<'_, D, D::Act>,
        residual: Option<View<'_, D, D::Act>>,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let weight = Weight::at(pass.weights, self.weight);
        let bias = self.bias.map(|bias| Weight::at(pass.weights, bias));
        linear::forward(pass.device, self.shape(x.len), x, weight, bias, residual, y)
    }

    /// From `dy` `[rows, O]` the parameters' gradients, added, and `dx` `[rows, I]`, overwritten.
    /// The residual's gradient is `dy` itself.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        x: View<'_, D, D::Act>,
        dy: View<'_, D, D::Act>,
        dx: Option<ViewMut<'_, D, D::Act>>,
    ) -> Result<()> {
        let shape = self.shape(x.len);
        linear::backward_weight(pass.device, shape, x, dy, self.weight.grad(pass.grads))?;
        if let Some(bias) = self.bias {
            linear::backward_bias(pass.device, shape, dy, bias.grad(pass.grads))?;
        }
        let Some(dx) = dx else { return Ok(()) };
        linear::backward_input(pass.device, shape, dy, Weight::at(pass.weights, self.weight), dx)
    }

    /// As [`Linear::backward`], with `residual` `[rows, I]`, the gradient that comes to `x` on
    /// another way, added to `dx`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward_onto<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        x: View<'_, D, D::Act>,
        dy: View<'_, D, D::Act>,
        residual: View<'_, D, D::Act>,
        dx: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.backward(pass, x, dy, None)?;
        // dy·W is a linear map, too, by the same matrix read the other way
        let (inputs, outputs) = (self.outputs, self.inputs);
        let layout = match self.layout {
            Layout::OutIn => Layout::InOut,
            Layout::InOut => Layout::OutIn,
        };
        let shape = LinearShape { rows: dy.len / inputs, inputs, outputs, layout };
        let weight = Weight::at(pass.weights, self.weight);
        linear::forward(pass.device, shape, dy, weight, None, Some(residual), dx)
    }
}
