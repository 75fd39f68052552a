//! The learned temperature.

use crate::backend::ops::adamw;
use crate::backend::{Backend, Slot};
use crate::error::Result;

/// The learned temperature of the loss: logits are cosines times `exp(logit_scale)`.
///
/// Source: CLIP (Radford et al. 2021, section 2.5) and open_clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitScale {
    /// Where the parameter `logit_scale` lies.
    pub slot: Slot,
}

impl LogitScale {
    /// Value before the first step, `ln(1/0.07)`.
    pub fn init() -> f64 {
        (1.0_f64 / 0.07).ln()
    }

    /// Largest value, `ln 100`: logits never exceed 100 times a cosine.
    pub fn max() -> f64 {
        100.0_f64.ln()
    }

    /// Limits the parameter to `[0, ln 100]`; to be called after each step of the optimiser.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn clamp<D: Backend>(self, device: &D, weights: &mut D::Weights) -> Result<()> {
        adamw::clamp(device, weights, self.slot, 0.0, Self::max())
    }
}
