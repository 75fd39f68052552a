//! Everything a run must keep ↔ disk.
//!
//! A checkpoint is one safetensors file: the model under open_clip's names, moments under
//! `optimizer.*`, the pool under `pool.*`, and the rest (step, loader position, seed,
//! configuration) as JSON in the file's metadata, under a SHA-256 of all of it. One file, so that
//! publishing it is one rename.

pub mod file;
pub mod folder;

pub use folder::{Folder, Found};
