//! Captions: cleaning, augmentation (EDA) and tokens.

pub mod clean;
pub mod eda;
pub mod tokenizer;
pub mod wordnet;

mod bpe;
mod ftfy;
mod html;
mod mojibake;
mod unicode;
