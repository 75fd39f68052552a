//! Shards → samples → augmented batches. A library of its own: it knows nothing of training.

// What the stages share.
pub mod ledger;
pub mod pool;
pub(crate) mod atomic;
pub(crate) mod lines;

// Shards to pairs.
pub mod source;
pub mod shard;
pub mod tar;
pub mod sample;

// Pairs to numbers.
pub mod decode;
pub mod jpeg;
pub mod transform;
pub mod picture;
pub mod text;

// To batches.
pub mod exclude;
pub mod loader;
pub mod count;

// Shards as files to be made and looked after.
pub mod index;
pub mod raw;
pub mod writer;
pub mod tools;
