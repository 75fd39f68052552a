//! Pre-trains CLIP on image-caption pairs nobody vouches for.
//!
//! The modules stand in the order in which data flows:
//! shards → samples → batch → encoders → pool match → loss → gradients → optimiser → checkpoint.
//! ARCHITECTURE.md draws it, with the rules of who may use whom.

// What every stage may use.
pub mod error;
pub mod rng;
mod simd;
pub mod flow;
pub mod backend;
pub mod distributed;

// The stages; none uses another.
pub mod data;
pub mod encode;
pub mod matching;
pub mod objective;
pub mod optim;
pub mod checkpoint;

// What a defence is tested with.
pub mod attack;

// Everyone's weights.
pub mod interop;

// Who is suspected.
pub mod detect;

// Where the stages meet.
pub mod eval;
pub mod train;
pub mod config;

// What came of it.
pub mod report;

pub use error::{Error, Result};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
