//! Embeddings × caption pool → substitutes for the captions.
//!
//! [`Variant`] says in which epochs images are matched and how the variants of the method differ;
//! [`CaptionPool`] holds recent caption embeddings and answers with the nearest, alone or as a
//! [`PoolPart`] on each of several ranks; [`PoolSize`] is how a user says how many.

mod exchange;
mod part;
mod pool;
mod size;
mod variant;

pub use part::{PoolPart, PoolShape};
pub use pool::CaptionPool;
pub use size::PoolSize;
pub use variant::Variant;
