//! Contract of `avg_pool2d`: each 2 × 2 pixels to their mean, channels last.

use super::require;
use crate::backend::{Device, View, ViewMut, Write};
use crate::error::Result;

/// Extents of what goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvgPool2dShape {
    /// `N`, number of pictures.
    pub images: usize,
    /// `H`, rows of pixels; even.
    pub height: usize,
    /// `W`, columns of pixels; even.
    pub width: usize,
    /// `C`.
    pub channels: usize,
}

impl AvgPool2dShape {
    fn check(&self, op: &'static str, x: usize, y: usize) -> Result<()> {
        let (height, width) = (self.height, self.width);
        let some = self.images > 0 && height > 0 && width > 0 && self.channels > 0;
        require(op, some, "every extent must be at least 1", || format!("{self:?}"))?;
        let even = height.is_multiple_of(2) && width.is_multiple_of(2);
        require(op, even, "height and width must be even", || format!("{self:?}"))?;
        let values = self.images * height * width * self.channels;
        require(op, x == values, "x must be [N, H, W, C]", || format!("{x} for {self:?}"))?;
        require(op, y == values / 4, "y must be [N, H/2, W/2, C]", || format!("{y} for {self:?}"))
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait AvgPool2d: Device {
    /// See [`forward`].
    fn avg_pool2d_forward(
        &self,
        shape: AvgPool2dShape,
        x: View<'_, Self, Self::Act>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward`].
    fn avg_pool2d_backward(
        &self,
        shape: AvgPool2dShape,
        dy: View<'_, Self, Self::Act>,
        dx: (Write, ViewMut<'_, Self, Self::Act>),
    ) -> Result<()>;
}

/// `y[n, i, j] = (x[n, 2i, 2j] + x[n, 2i, 2j+1] + x[n, 2i+1, 2j] + x[n, 2i+1, 2j+1]) / 4`, channel
/// by channel; `torch.nn.AvgPool2d(2)`.
///
/// | name | shape                           | dtype |
/// |------|---------------------------------|-------|
/// | `x`  | `[N, H, W, C]`                  | Act   |
/// | `y`  | `[N, H/2, W/2, C]`, overwritten | Act   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: AvgPool2d>(
    device: &D,
    shape: AvgPool2dShape,
    x: View<'_, D, D::Act>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    shape.check("avg_pool2d::forward", x.len, y.len)?;
    device.avg_pool2d_forward(shape, x, y)
}

/// Gradient of [`forward`]: a quarter of `dy` `[N, H/2, W/2, C]` for each pixel of `dx`
/// `[N, H, W, C]`, which is set or added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward<D: AvgPool2d>(
    device: &D,
    shape: AvgPool2dShape,
    dy: View<'_, D, D::Act>,
    dx: (Write, ViewMut<'_, D, D::Act>),
) -> Result<()> {
    shape.check("avg_pool2d::backward", dx.1.len, dy.len)?;
    device.avg_pool2d_backward(shape, dy, dx)
}
