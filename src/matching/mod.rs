//! Embeddings × caption pool → substitutes for the captions.
//!
//! [`Variant`] says in which epochs images are matched and how the variants of the method differ;
//! [`CaptionPool`] holds recent caption embeddings and answers with the nearest; [`PoolSize`] is
//! how a user says how many.

mod pool;
mod size;
mod variant;

pub use pool::{CaptionPool, PoolShape};
pub use size::PoolSize;
pub use variant::Variant;
