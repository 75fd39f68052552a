//! Contract of `adamw`: gradients → parameters, with decoupled weight decay and gradient clipping.

use super::require;
use crate::backend::{Device, Slot, View, ViewMut};
use crate::error::Result;

/// Numbers of one row of the rates of [`adamw`].
pub const RATES: usize = 12;

/// The numbers with which one group of parameters is updated.
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

impl AdamWStep {
    /// The row of a group that is left as it is, parameters and moments.
    pub const FROZEN: [f64; RATES] = [0.0; RATES];

    /// The row of these numbers: max_norm (infinity: no clipping), β₁, 1−β₁, β₂, 1−β₂, 1−lr·wd,
    /// lr/(1−β₁ᵗ), 1/√(1−β₂ᵗ), ε, 1 for "is updated", and two zeros. Worked out in double
    /// precision: a device that knew only the rounded β could not subtract it from 1.
    ///
    /// Panics where `step` is 0.
    pub fn rates(&self) -> [f64; RATES] {
        assert!(self.step >= 1, "updates count from 1");
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        [
            self.max_norm.unwrap_or(f64::INFINITY),
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            1.0 - self.lr * self.weight_decay,
            self.lr / correction(self.beta1),
            1.0 / correction(self.beta2).sqrt(),
            self.eps,
            1.0,
            0.0,
            0.0,
        ]
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait AdamW: Device {
    /// See [`adamw`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn adamw(
        &self,
        rates: View<'_, Self, Self::Acc>,
        group: View<'_, Self, u32>,
        grads: View<'_, Self, Self::Acc>,
        norm: View<'_, Self, Self::Acc>,
        weights: &mut Self::Weights,
        exp_avg: ViewMut<'_, Self, Self::Acc>,
        exp_avg_sq: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`clamp`].
    fn clamp(&self, weights: &mut Self::Weights, slot: Slot, low: f64, high: f64) -> Result<()>;
}

/// Updates all parameters in place:
/// `m = β₁m + (1−β₁)g`, `v = β₂v + (1−β₂)g²`,
/// `w = w·(1 − lr·wd) − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)`.
///
/// | name                    | shape                                           | dtype |
/// |-------------------------|-------------------------------------------------|-------|
/// | `rates`                 | `[groups, RATES]`, rows of [`AdamWStep::rates`] | Acc   |
/// | `group`                 | `[⌈P/64⌉]`, each below `groups`                 | u32   |
/// | `grads`                 | `[P]`, all parameters                           | Acc   |
/// | `norm`                  | `[1]`, from `grad_norm`                         | Acc   |
/// | `exp_avg`, `exp_avg_sq` | `[P]`                                           | Acc   |
///
/// Elements `64·i` to `64·i + 63` ([`Slot::ALIGN`]) are updated with row `group[i]` of `rates`.
/// What lies between parameters may be updated with them: from zeros it stays zero.
///
/// **Where `norm` is not finite, nothing changes**: neither parameters nor moments.
/// Source: Loshchilov and Hutter 2019, in the form of `torch.optim.AdamW`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was changed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn adamw<D: AdamW>(
    device: &D,
    rates: View<'_, D, D::Acc>,
    group: View<'_, D, u32>,
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
    require(op, norm.len == 1, "norm must be one value", || format!("{}", norm.len))?;
    let rows = rates.len > 0 && rates.len.is_multiple_of(RATES);
    require(op, rows, "rates must be [groups, 12]", || format!("{}", rates.len))?;
    let blocks = group.len == p.div_ceil(Slot::ALIGN);
    require(op, blocks, "group must be [ceil(P/64)]", || format!("{}, {p}", group.len))?;
    device.adamw(rates, group, grads, norm, weights, exp_avg, exp_avg_sq)
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
