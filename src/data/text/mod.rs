//! Captions: cleaning, augmentation (EDA) and tokens.

pub mod clean;
pub mod tokenizer;

mod bpe;
mod ftfy;
mod html;
mod mojibake;
mod unicode;
