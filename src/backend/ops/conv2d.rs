//! Contract of `conv2d`: the 3 × 3 convolutions of CLIP's ResNet, padded by one pixel, without
//! bias, channels last. Those of 1 × 1 are `linear`, those of a ViT `patch_embedding` and `linear`.

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Pixels of the kernel, `3 × 3`.
pub const TAPS: usize = 9;

/// Extents of a convolution. Weights are `[O, C, 3, 3]`, as `torch.nn.Conv2d` stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// `N`, number of pictures.
    pub images: usize,
    /// `H`, rows of pixels that go in.
    pub height: usize,
    /// `W`, columns of pixels that go in.
    pub width: usize,
    /// `C`, channels that go in.
    pub inputs: usize,
    /// `O`, channels that come out.
    pub outputs: usize,
    /// Pixels between two places of the kernel, 1 or 2.
    pub stride: usize,
}

impl Conv2dShape {
    /// `[H', W']`, rows and columns that come out: `⌈H / stride⌉`, `⌈W / stride⌉`.
    pub fn out(&self) -> [usize; 2] {
        [self.height.div_ceil(self.stride), self.width.div_ceil(self.stride)]
    }

    /// `N·H·W`, pixels that go in.
    pub fn pixels_in(&self) -> usize {
        self.images * self.height * self.width
    }

    /// `N·H'·W'`, pixels that come out.
    pub fn pixels_out(&self) -> usize {
        let [height, width] = self.out();
        self.images * height * width
    }

    fn check(&self, op: &'static str, x: usize, w: usize, y: usize) -> Result<()> {
        let extents = [self.images, self.height, self.width, self.inputs, self.outputs];
        let some = extents.iter().all(|&extent| extent > 0) && [1, 2].contains(&self.stride);
        require(op, some, "extents must be at least 1, the stride 1 or 2", || format!("{self:?}"))?;
        let fits = x == self.pixels_in() * self.inputs;
        require(op, fits, "x must be [N, H, W, C]", || format!("{x} for {self:?}"))?;
        let fits = w == self.outputs * self.inputs * TAPS;
        require(op, fits, "W must be [O, C, 3, 3]", || format!("{w} for {self:?}"))?;
        let fits = y == self.pixels_out() * self.outputs;
        require(op, fits, "y must be [N, H', W', O]", || format!("{y} for {self:?}"))
    }

    fn check_pictures(&self, op: &'static str, x: usize, w: usize, y: usize) -> Result<()> {
        require(op, self.inputs == 3, "pictures have 3 channels", || format!("{self:?}"))?;
        self.check(op, x, w, y)
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Conv2d: Device {
    /// See [`forward`].
    fn conv2d_forward(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, Self::Act>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_input`].
    fn conv2d_backward_input(
        &self,
        shape: Conv2dShape,
        dy: View<'_, Self, Self::Act>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_weight`].
    fn conv2d_backward_weight(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, Self::Act>,
        dy: View<'_, Self, Self::Act>,
        dw: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`forward_pictures`].
    fn conv2d_forward_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_weight_pictures`].
    fn conv2d_backward_weight_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        dy: View<'_, Self, Self::Act>,
        dw: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// `y[n, i, j, o] = Σ W[o, c, a, b] · x[n, s·i + a − 1, s·j + b − 1, c]` over `c`, `a` and `b`,
/// with zeros outside the picture; `s` is the stride. `18·N·H'·W'·C·O` operations.
///
/// | name | shape                         | dtype   |
/// |------|-------------------------------|---------|
/// | `x`  | `[N, H, W, C]`                | Act     |
/// | `w`  | `[O, C, 3, 3]`                | weights |
/// | `y`  | `[N, H', W', O]`, overwritten | Act     |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: Conv2d>(
    device: &D,
    shape: Conv2dShape,
    x: View<'_, D, D::Act>,
    w: Weight<'_, D>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    shape.check("conv2d::forward", x.len, w.slot.len, y.len)?;
    device.conv2d_forward(shape, x, w, y)
}

/// Gradient of [`forward`] by `x`, overwritten. Only of stride 1: CLIP's ResNet shrinks by
/// averages, and pictures take no gradient.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_input<D: Conv2d>(
    device: &D,
    shape: Conv2dShape,
    dy: View<'_, D, D::Act>,
    w: Weight<'_, D>,
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "conv2d::backward_input";
    require(op, shape.stride == 1, "the stride must be 1", || format!("{shape:?}"))?;
    shape.check(op, dx.len, w.slot.len, dy.len)?;
    device.conv2d_backward_input(shape, dy, w, dx)
}

/// Gradient of [`forward`] by `W`, `dw` `[O, C, 3, 3]`, added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_weight<D: Conv2d>(
    device: &D,
    shape: Conv2dShape,
    x: View<'_, D, D::Act>,
    dy: View<'_, D, D::Act>,
    dw: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    shape.check("conv2d::backward_weight", x.len, dw.len, dy.len)?;
    device.conv2d_backward_weight(shape, x, dy, dw)
}

/// [`forward`] of pictures as the loader delivers them, `images` `[N, 3, H, W]`, which are rounded
/// to activations first.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward_pictures<D: Conv2d>(
    device: &D,
    shape: Conv2dShape,
    images: View<'_, D, f32>,
    w: Weight<'_, D>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    shape.check_pictures("conv2d::forward_pictures", images.len, w.slot.len, y.len)?;
    device.conv2d_forward_pictures(shape, images, w, y)
}

/// Gradient of [`forward_pictures`] by `W`, `dw` `[O, 3, 3, 3]`, added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_weight_pictures<D: Conv2d>(
    device: &D,
    shape: Conv2dShape,
    images: View<'_, D, f32>,
    dy: View<'_, D, D::Act>,
    dw: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    shape.check_pictures("conv2d::backward_weight_pictures", images.len, dw.len, dy.len)?;
    device.conv2d_backward_weight_pictures(shape, images, dy, dw)
}
