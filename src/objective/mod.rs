//! Embeddings → loss → gradients of embeddings.
//!
//! One loss serves every objective: CLIP's symmetric cross-entropy between the images of a batch
//! and as many texts. What differs is whose texts ([`Targets`]): the images' own captions, or what
//! the caption pool holds nearest to them. A step calls, in this order,
//!
//! 1. [`ClipLoss::normalize_images`] and [`ClipLoss::normalize_texts`],
//! 2. for a matched step, a lookup between the two halves of [`ClipLoss::for_matching`],
//! 3. [`ClipLoss::forward`] and [`ClipLoss::backward`],
//! 4. after the optimiser, [`LogitScale::clamp`],
//! 5. once the device may be waited for, [`ClipLoss::value`].

mod contrastive;
mod logit_scale;

pub use contrastive::{ClipLoss, Targets};
pub use logit_scale::LogitScale;
