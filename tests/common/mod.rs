//! What several test modules share.

#![allow(dead_code, unused_imports, reason = "not every helper is used by every set of modules")]

pub mod alloc;
pub mod bound;
pub mod flat;
pub mod golden;
#[cfg(feature = "remote")]
pub mod http;
pub mod lazy;
pub mod pictures;
pub mod shards;
pub mod threads_comm;
pub mod tiny;

pub use golden::Golden;
