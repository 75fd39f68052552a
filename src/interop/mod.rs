//! Everyone's weights, in and out.
//!
//! ```text
//! safetensors, .pt, .bin, TorchScript ─▶ Tensors ─▶ open_clip's names ─▶ Model ─▶ one directory
//! ```
//! A file of weights is as untrusted as a shard: nothing it holds is executed, and nothing it
//! claims is believed before it is held against the file's length. Bits stay as they are until
//! someone asks for f32.

pub mod tensors;
mod safetensors;
mod zip;
mod pickle;
mod torch;

pub mod names;
pub mod config;
pub mod model;

mod tokenizer;
pub mod card;
pub mod export;
pub mod inspect;
mod arrays;
pub mod thumbnails;
pub mod embed;

pub use card::Card;
pub use model::{Model, Options};
pub use tensors::{Dtype, Tensor, Tensors};
