//! Shards → samples → augmented batches. A library of its own: it knows nothing of training.

pub mod source;
pub mod shard;
pub mod tar;
pub mod pool;
mod lines;
mod atomic;
pub mod index;
pub mod sample;
pub mod ledger;
pub mod decode;
pub mod jpeg;
pub mod transform;
pub mod picture;
pub mod text;
pub mod loader;
pub mod count;
pub mod exclude;
pub mod raw;
pub mod tools;
pub mod writer;
