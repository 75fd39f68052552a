//! Embeddings → loss → gradients of embeddings.
//!
//! One loss serves every objective: CLIP's symmetric cross-entropy between the images of a batch
//! and as many texts, and what a method adds to it ([`Terms`]). What differs, too, is whose texts
//! ([`Targets`]): the images' own captions, or what the caption pool holds nearest to them; or
//! whether a step's loss lies within each modality. A step calls, in this order,
//!
//! 1. [`ClipLoss::normalize_images`] and [`ClipLoss::normalize_texts`],
//! 2. for a matched step, a lookup between the two halves of [`ClipLoss::for_matching`], for one of
//!    neighbours one for each modality between those of [`ClipLoss::for_neighbours`],
//! 3. [`ClipLoss::forward`] and [`ClipLoss::backward`],
//! 4. after the optimiser, [`LogitScale::clamp`],
//! 5. once the device may be waited for, [`ClipLoss::value`].

mod gathered;
mod logit_scale;
mod loss;
mod terms;
mod unimodal;

pub use logit_scale::LogitScale;
pub use loss::{ClipLoss, Lookup, Targets};
pub use terms::{CyclicWeights, Terms};
