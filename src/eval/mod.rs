//! A model → numbers.

pub mod prompts;
pub mod zeroshot;

pub use zeroshot::{Accuracy, ZeroShot};
