//! Gradients → parameters.
//!
//! [`Optimizer`] is AdamW with clipping of the global norm and a text tower that can be frozen;
//! [`DecayRule`] says which parameters decay; [`Schedule`] gives the learning rate of each step.

mod groups;
mod optimizer;
mod schedule;

pub use groups::DecayRule;
pub use optimizer::{AdamWOptions, Optimizer, TextUpdate};
pub use schedule::{Schedule, ScheduleKind};
