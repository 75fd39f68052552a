//! Contract of `gelu`: the Gaussian error linear unit, exact or as OpenAI approximated it.

use super::require;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;

/// Which activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `x·Φ(x)` with the error function: `torch.nn.GELU()`, open_clip's default.
    Erf,
    /// `x·sigmoid(1.702·x)`: OpenAI's models, open_clip's `quick_gelu`.
    Quick,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait GeluOp: Device {
    /// See [`forward`].
    fn gelu_forward(
        &self,
        kind: Gelu,
        x: View<'_, Self, Self::Act>,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward`].
    fn gelu_backward(
        &self,
        kind: Gelu,
        x: View<'_, Self, Self::Act>,
        dy: View<'_, Self, Self::Act>,
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;
}

/// `y = gelu(x)`, element by element, overwriting; any shape.
///
/// # Errors
/// [`crate::Error::Shape`]: lengths disagree. Nothing was computed.
pub fn forward<D: GeluOp>(
    device: &D,
    kind: Gelu,
    x: View<'_, D, D::Act>,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let lens = || format!("{} and {}", x.len, y.len);
    require("gelu::forward", x.len == y.len, "x and y must have one shape", lens)?;
    device.gelu_forward(kind, x, y)
}

/// `dx = dy · gelu'(x)`, overwriting; any shape.
///
/// # Errors
/// [`crate::Error::Shape`]: lengths disagree. Nothing was computed.
pub fn backward<D: GeluOp>(
    device: &D,
    kind: Gelu,
    x: View<'_, D, D::Act>,
    dy: View<'_, D, D::Act>,
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let lens = || format!("{}, {} and {}", x.len, dy.len, dx.len);
    let same = x.len == dy.len && x.len == dx.len;
    require("gelu::backward", same, "x, dy and dx must have one shape", lens)?;
    device.gelu_backward(kind, x, dy, dx)
}
