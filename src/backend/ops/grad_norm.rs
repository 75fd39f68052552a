//! Contract of `grad_norm`: the Euclidean norm of all gradients together.

use super::require;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;

/// What the device must be able to do. Call [`grad_norm`], which checks, not this.
pub trait GradNorm: Device {
    /// See [`grad_norm`].
    fn grad_norm(
        &self,
        grads: View<'_, Self, Self::Acc>,
        norm: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// `norm[0] = ‖grads‖₂`, summed in a fixed order: the same bits for every number of threads. A
/// non-finite gradient gives a non-finite norm.
///
/// # Errors
/// [`crate::Error::Shape`]: nothing to sum, or `norm` is not one value.
pub fn grad_norm<D: GradNorm>(
    device: &D,
    grads: View<'_, D, D::Acc>,
    norm: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let fits = grads.len > 0 && norm.len == 1;
    require("grad_norm", fits, "norm must be one value, grads at least one", || {
        format!("{}, {}", grads.len, norm.len)
    })?;
    device.grad_norm(grads, norm)
}
