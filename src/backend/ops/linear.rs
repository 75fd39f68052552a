//! Contract of `linear`: `y = x·Wᵀ + b (+ residual)`, and its three gradients.

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[O, I]`, as `torch.nn.Linear` stores it.
    OutIn,
    /// `[I, O]`, as CLIP stores its projections (`x @ proj`).
    InOut,
}

/// Extents of a linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// `I`, columns of `x`.
    pub inputs: usize,
    /// `O`, columns of `y`.
    pub outputs: usize,
    /// How `W` lies in memory.
    pub layout: Layout,
}

impl LinearShape {
    fn check(&self, op: &'static str, x: usize, y: usize, w: usize) -> Result<()> {
        let (r, i, o) = (self.rows, self.inputs, self.outputs);
        require(op, r > 0 && i > 0 && o > 0, "extents must be at least 1", || format!("{self:?}"))?;
        require(op, x == r * i, "x must be [rows, inputs]", || format!("{x} for {self:?}"))?;
        require(op, y == r * o, "y must be [rows, outputs]", || format!("{y} for {self:?}"))?;
        require(op, w == i * o, "W must hold inputs*outputs", || format!("{w} for {self:?}"))
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Linear: Device {
    /// See [`forward`].
    fn linear_forward(
        &self,
        shape: LinearShape,
        x: View<'_, Self, Self::Act>,
        w: Weight<'_, Self>,
        b: Option<Weight<'_, Self>>,
        residual: Option<View<'_, Self, Self::Act>>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_input`].
    fn linear_backward_input(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, Self::Act>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_weight`].
    fn linear_backward_weight(
        &self,
        shape: LinearShape,
        x: View<'_, Self, Self::Act>,
        dy: View<'_, Self, Self::Act>,
        dw: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward_bias`].
    fn linear_backward_bias(
        &self,
        shape: LinearShape,
        dy: View<'_, Self, Self::Act>,
        db: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// `y = x·Wᵀ + b + residual`; `b` and `residual` are 0 where absent.
///
/// | name       | shape                                   | dtype   |
/// |------------|-----------------------------------------|---------|
/// | `x`        | `[rows, I]`                             | Act     |
/// | `w`        | `[O, I]` or `[I, O]`, by `shape.layout` | weights |
/// | `b`        | `[O]`                                   | weights |
/// | `residual` | `[rows, O]`                             | Act     |
/// | `y`        | `[rows, O]`, overwritten                | Act     |
///
/// Cost: `2·rows·I·O` flop.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: Linear>(
    device: &D,
    shape: LinearShape,
    x: View<'_, D, D::Act>,
    w: Weight<'_, D>,
    b: Option<Weight<'_, D>>,
    residual: Option<View<'_, D, D::Act>>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "linear::forward";
    shape.check(op, x.len, y.len, w.slot.len)?;
    let bias = b.map_or(shape.outputs, |b| b.slot.len);
    require(op, bias == shape.outputs, "b must be [outputs]", || format!("{bias}, {shape:?}"))?;
    let extra = residual.map_or(y.len, |r| r.len);
    require(op, extra == y.len, "residual must be [rows, outputs]", || format!("{extra}"))?;
    device.linear_forward(shape, x, w, b, residual, y)
}

/// `dx = dy·W`, overwriting. Shapes as in [`forward`].
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_input<D: Linear>(
    device: &D,
    shape: LinearShape,
    dy: View<'_, D, D::Act>,
    w: Weight<'_, D>,
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    shape.check("linear::backward_input", dx.len, dy.len, w.slot.len)?;
    device.linear_backward_input(shape, dy, w, dx)
}

/// `dW += dyᵀ·x`, in the layout of `W`. Shapes as in [`forward`].
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_weight<D: Linear>(
    device: &D,
    shape: LinearShape,
    x: View<'_, D, D::Act>,
    dy: View<'_, D, D::Act>,
    dw: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    shape.check("linear::backward_weight", x.len, dy.len, dw.len)?;
    device.linear_backward_weight(shape, x, dy, dw)
}

/// `db += column sums of dy`. Shapes as in [`forward`].
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_bias<D: Linear>(
    device: &D,
    shape: LinearShape,
    dy: View<'_, D, D::Act>,
    db: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "linear::backward_bias";
    let (y, b) = (shape.rows * shape.outputs, db.len);
    require(op, dy.len == y, "dy must be [rows, outputs]", || format!("{} != {y}", dy.len))?;
    require(op, b == shape.outputs, "db must be [outputs]", || format!("{b}, {shape:?}"))?;
    device.linear_backward_bias(shape, dy, db)
}
