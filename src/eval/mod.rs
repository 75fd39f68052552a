//! A model → numbers.
//!
//! Features come first, to the host, and every measure is a function of them; only [`Embedder`]
//! knows a device.
//!
//! [`Embedder`]: crate::encode::Embedder

pub mod accuracy;
pub mod prompts;
pub mod pictures;
pub mod classifier;
pub mod zeroshot;
pub mod retrieval;
pub mod lbfgs;
pub mod probe;
pub mod attack;
pub mod results;

pub use accuracy::{Accuracy, Share};
pub use prompts::Templates;
pub use zeroshot::ZeroShot;
