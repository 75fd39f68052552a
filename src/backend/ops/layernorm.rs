//! Contract of `layernorm`: each row to mean 0 and variance 1, then a gain and a bias.

use super::require;
use crate::backend::{Device, View, ViewMut, Weight, Write};
use crate::error::Result;

/// Added to the variance; PyTorch's default, which CLIP keeps.
pub const EPS: f64 = 1e-5;

/// Row statistics that the backward needs.
pub struct LayerNormStats<D: Device> {
    /// `[rows]` means.
    pub mean: D::Buf<D::Acc>,
    /// `[rows]` reciprocal standard deviations.
    pub rstd: D::Buf<D::Acc>,
}

impl<D: Device> LayerNormStats<D> {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, rows: usize) -> Result<Self> {
        Ok(Self { mean: device.alloc(rows)?, rstd: device.alloc(rows)? })
    }

    fn rows(&self) -> usize {
        D::len(&self.mean).min(D::len(&self.rstd))
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait LayerNorm: Device {
    /// See [`forward`].
    fn layernorm_forward(
        &self,
        x: View<'_, Self, Self::Act>,
        gain_bias: Weight<'_, Self>,
        stats: &mut LayerNormStats<Self>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward`].
    fn layernorm_backward(
        &self,
        x: View<'_, Self, Self::Act>,
        gain_bias: Weight<'_, Self>,
        stats: &LayerNormStats<Self>,
        dy: View<'_, Self, Self::Act>,
        dx: (Write, ViewMut<'_, Self, Self::Act>),
        dgain_dbias: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

fn check(op: &'static str, x: usize, y: usize, gain_bias: usize, room: usize) -> Result<()> {
    let even = gain_bias > 0 && gain_bias.is_multiple_of(2);
    require(op, even, "gain and bias must be [2, C], C >= 1", || format!("{gain_bias}"))?;
    let width = gain_bias / 2;
    let rows = x / width;
    let whole = rows > 0 && x == rows * width;
    require(op, whole, "x must be [rows, C], rows >= 1", || format!("{x} elements, C = {width}"))?;
    require(op, x == y, "x and y must have one shape", || format!("{x} and {y}"))?;
    require(op, room >= rows, "stats must hold every row", || format!("{room} for {rows} rows"))
}

/// `y = (x − mean(x)) / sqrt(var(x) + ε) · gain + bias`, row by row; the variance is the biased
/// one.
///
/// | name        | shape                               | dtype   |
/// |-------------|-------------------------------------|---------|
/// | `x`, `y`    | `[rows, C]`; `y` is overwritten     | Act     |
/// | `gain_bias` | `[2, C]`, gain first                | weights |
/// | `stats`     | at least `[rows]` each, overwritten | Acc     |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: LayerNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    gain_bias: Weight<'_, D>,
    stats: &mut LayerNormStats<D>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    check("layernorm::forward", x.len, y.len, gain_bias.slot.len, stats.rows())?;
    device.layernorm_forward(x, gain_bias, stats, y)
}

/// Gradients of [`forward`]. `dx` is set or added to (the residual stream's gradient flows past the
/// norm); `dgain_dbias` `[2, C]` is added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward<D: LayerNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    gain_bias: Weight<'_, D>,
    stats: &LayerNormStats<D>,
    dy: View<'_, D, D::Act>,
    dx: (Write, ViewMut<'_, D, D::Act>),
    dgain_dbias: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "layernorm::backward";
    check(op, x.len, dy.len, gain_bias.slot.len, stats.rows())?;
    check(op, x.len, dx.1.len, dgain_dbias.len, stats.rows())?;
    device.layernorm_backward(x, gain_bias, stats, dy, dx, dgain_dbias)
}
