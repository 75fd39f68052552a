//! Many processes as one run: who they are, how they meet, what they tell each other besides what
//! devices exchange, and what becomes of the rest when one is gone.
//!
//! Processes are started by others ([`launch`]), and what a step moves is moved by NCCL or MPI
//! (`backend`). What is left is here: a connection of every rank to rank 0, by which ranks agree
//! ([`group`]), and a second one by which each is known to be alive ([`watch`]).

pub mod group;
pub mod launch;
mod link;
pub mod meeting;
mod store;
pub mod watch;
pub mod watched;

pub use group::{Group, GroupOptions, Meeting};
pub use launch::{Launch, Launcher};
pub use meeting::meeting;
pub use watch::{Verdict, Watch};
pub use watched::Watched;
