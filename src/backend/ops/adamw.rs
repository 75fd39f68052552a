//! Contract of `adamw`: gradients → parameters, with decoupled weight decay and gradient clipping.

use super::require;
use crate::backend::{Device, Slot, View, ViewMut};
use crate::error::Result;

/// One call's numbers; the same for all slots of the call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1, for the bias correction.
    pub step: u64,
    /// Gradients are scaled by `min(1, max_norm / (norm + 1e-6))`, as
    /// `torch.nn.utils.clip_grad_norm_` does; `None`: not at all.
    pub max_norm: Option<f64>,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait AdamW: Device {
    /// See [`adamw`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn adamw(
        &self,
        step: AdamWStep,
        slots: &[Slot],
        grads: View<'_, Self, Self::Acc>,
        norm: View<'_, Self, Self::Acc>,
        weights: &mut Self::Weights,
        exp_avg: ViewMut<'_, Self, Self::Acc>,
        exp_avg_sq: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`clamp`].
    fn clamp(&self, weights: &mut Self::Weights, slot: Slot, low: f64, high: f64) -> Result<()>;
}

/// Updates the parameters at `slots` in place:
/// `m = β₁m + (1−β₁)g`, `v = β₂v + (1−β₂)g²`,
/// `w = w·(1 − lr·wd) − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)`.
///
/// | name                    | shape                      | dtype |
/// |-------------------------|----------------------------|-------|
/// | `grads`                 | `[P]`, all parameters      | Acc   |
/// | `norm`                  | `[1]`, from `grad_norm`    | Acc   |
/// | `exp_avg`, `exp_avg_sq` | `[P]`                      | Acc   |
///
/// **Where `norm` is not finite, nothing changes**: neither parameters nor moments.
/// Source: Loshchilov and Hutter 2019, in the form of `torch.optim.AdamW`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was changed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn adamw<D: AdamW>(
    device: &D,
    step: AdamWStep,
    slots: &[Slot],
    grads: View<'_, D, D::Acc>,
    norm: View<'_, D, D::Acc>,
    weights: &mut D::Weights,
    exp_avg: ViewMut<'_, D, D::Acc>,
    exp_avg_sq: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let (op, p) = ("adamw", grads.len);
    require(op, exp_avg.len == p && exp_avg_sq.len == p, "moments must be as grads", || {
        format!("{}, {}, {p}", exp_avg.len, exp_avg_sq.len)
    })?;
    require(op, norm.len == 1 && step.step >= 1, "norm must be one value, step >= 1", || {
        format!("{}, {}", norm.len, step.step)
    })?;
    let inside = slots.iter().all(|s| s.offset + s.len <= p);
    require(op, inside, "slots must lie within grads", || format!("{p}"))?;
    device.adamw(step, slots, grads, norm, weights, exp_avg, exp_avg_sq)
}

/// Limits the parameters at `slot` to `[low, high]`.
///
/// # Errors
/// [`crate::Error::Shape`]: `low > high`.
pub fn clamp<D: AdamW>(
    device: &D,
    weights: &mut D::Weights,
    slot: Slot,
    low: f64,
    high: f64,
) -> Result<()> {
    require("clamp", low <= high, "low <= high", || format!("{low}, {high}"))?;
    device.clamp(weights, slot, low, high)
}
