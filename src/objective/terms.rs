//! What a loss is the sum of.

pub use crate::backend::ops::cyclic::CyclicWeights;

/// A loss, as a sum of terms. Let `I` and `T` be the embeddings of images and captions, `I'` and
/// `T'` those of a second view of both, `s` the inverse temperature, `CE` the mean cross-entropy of
/// the rows of a square matrix whose right answers are on its diagonal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Weight of CLIP's `(CE(s·I·Tᵀ) + CE(s·T·Iᵀ))/2`.
    pub clip: f64,
    /// Weights of CyCLIP's terms of consistency.
    pub cyclic: Option<CyclicWeights>,
    /// Weight of `(CE(s·I·I'ᵀ) + CE(s·T·T'ᵀ))/2`, which asks that each view of a picture, and of a
    /// caption, be found among the other views of all: one direction each.
    pub unimodal: Option<f64>,
    /// Whether there are steps of [`Targets::Neighbours`](super::Targets), whose loss is none of
    /// the above; then only these have two views.
    pub neighbours: bool,
}

impl Terms {
    /// CLIP's loss and nothing else.
    pub const CLIP: Self = Self { clip: 1.0, cyclic: None, unimodal: None, neighbours: false };

    /// Most views of each pair that the loss compares.
    pub fn views(self) -> usize {
        if self.unimodal.is_some() || self.neighbours { 2 } else { 1 }
    }
}
