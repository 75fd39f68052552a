//! Contract of `l2norm`: rows to length 1.

use super::require;
use crate::backend::{Device, View, ViewMut, Write};
use crate::error::Result;

/// Rows shorter than this are divided by it instead; `torch.nn.functional.normalize`'s default.
pub const EPS: f64 = 1e-12;

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait L2Norm: Device {
    /// See [`forward`].
    fn l2norm_forward(
        &self,
        width: usize,
        x: View<'_, Self, Self::Act>,
        y: ViewMut<'_, Self, Self::Act>,
        inv_norm: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    fn l2norm_backward(
        &self,
        width: usize,
        y: View<'_, Self, Self::Act>,
        inv_norm: View<'_, Self, Self::Acc>,
        dy: View<'_, Self, Self::Act>,
        write: Write,
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;
}

fn check(op: &'static str, width: usize, lens: &[usize], inv_norm: usize) -> Result<()> {
    let fits = width > 0 && inv_norm > 0 && lens.iter().all(|&l| l == inv_norm * width);
    require(op, fits, "tensors must be [rows, width], inv_norm [rows], rows >= 1", || {
        format!("{lens:?} and {inv_norm}, width {width}")
    })
}

/// `y = x / max(‖x‖₂, ε)`, row by row.
///
/// | name       | shape                                          | dtype |
/// |------------|------------------------------------------------|-------|
/// | `x`, `y`   | `[rows, width]`; `y` is overwritten            | Act   |
/// | `inv_norm` | `[rows]`, overwritten: `1 / max(‖x‖₂, ε)`      | Acc   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: L2Norm>(
    device: &D,
    width: usize,
    x: View<'_, D, D::Act>,
    y: ViewMut<'_, D, D::Act>,
    inv_norm: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    check("l2norm::forward", width, &[x.len, y.len], inv_norm.len)?;
    device.l2norm_forward(width, x, y, inv_norm)
}

/// `dx = (dy − ⟨dy, y⟩·y) · inv_norm`, or `dx +=` that by `write`, as a loss of several terms wants
/// it; exact where `‖x‖₂ > ε`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward<D: L2Norm>(
    device: &D,
    width: usize,
    y: View<'_, D, D::Act>,
    inv_norm: View<'_, D, D::Acc>,
    dy: View<'_, D, D::Act>,
    write: Write,
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    check("l2norm::backward", width, &[y.len, dy.len, dx.len], inv_norm.len)?;
    device.l2norm_backward(width, y, inv_norm, dy, write, dx)
}
