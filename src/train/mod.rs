//! Where the stages meet: the step, the loop over steps, and what a run tells.

mod pictures;
pub mod objective;
pub mod mixture;
pub mod safe;
pub mod step;
pub mod recipe;
pub mod plan;
pub mod run;
pub mod report;
pub mod log;
pub mod curve;
