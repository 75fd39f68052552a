//! What is done with bytes that nobody vouches for, and what must hold whatever they are. Each
//! function is the body of one fuzz target, and panics where something does not hold.
//!
//! The fuzzer mutates bytes and looks for new paths through the code. `tests/fuzz_seeds.rs`
//! includes this file, and runs the same bodies on every commit, over seeds and simple mutations.
//! The first bytes of an input choose what is done with the rest.

mod caption;
mod files;
mod lists;
mod picture;
mod shard;
mod tar;
mod weights;

pub use caption::caption;
pub use lists::lists;
pub use picture::picture;
pub use shard::shard;
pub use tar::tar;
pub use weights::{weights_pickle, weights_safetensors};
