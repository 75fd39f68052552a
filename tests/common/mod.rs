//! What several test modules share.

#![allow(dead_code, reason = "not every helper is used by every set of test modules")]

pub mod golden;
pub mod shards;
pub mod threads_comm;

pub use golden::Golden;
