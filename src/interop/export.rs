//! One directory that open_clip and, for a vision transformer, transformers load.
//!
//! ```text
//! open_clip_model.safetensors  open_clip_config.json                       open_clip, every model
//! model.safetensors  config.json  preprocessor_config.json                 transformers
//! tokenizer.json  tokenizer_config.json  special_tokens_map.json  vocab.json  merges.txt
//! README.md                                                                the model card
//! ```

use super::card::Card;
use super::config::{self, Normalization};
use super::names;
use super::tensors::{Dtype, Tensor, Tensors};
use super::tokenizer;
use crate::checkpoint::file::{publish, write_tensors};
use crate::data::text::tokenizer::VOCAB_SIZE;
use crate::encode::ClipConfig;
use crate::error::{Error, Result};
use crate::flow::State;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What is to be published.
pub struct Export<'a> {
    /// Which model it is.
    pub config: &'a ClipConfig,
    /// How its pictures are normalised.
    pub normalization: Normalization,
    /// Its tensors, under open_clip's names; see [`complete`].
    pub tensors: Tensors<'static>,
    /// What is told about it.
    pub card: Card,
}

/// Adds what a state dict holds beside what a model computes with: the number of `batches` that
/// each BatchNorm saw, an int64 of shape `[]`, where `*.running_var` is there without it. Nothing
/// reads it where a momentum is set, as in every CLIP; 0 where the number is not known.
pub fn complete(tensors: &mut Tensors<'_>, batches: u64) {
    let norms = tensors.keys().filter_map(|name| name.strip_suffix(".running_var"));
    let counts: Vec<_> = norms.map(|norm| format!("{norm}.num_batches_tracked")).collect();
    for name in counts {
        tensors.entry(name).or_insert(Tensor {
            dtype: Dtype::I64,
            shape: Vec::new(),
            bytes: batches.to_le_bytes().to_vec().into(),
        });
    }
}

/// The tensors of a training run of so many steps: running statistics move once a step.
pub fn tensors_of(state: State, steps: u64) -> Tensors<'static> {
    let tensor = |(name, t): (String, crate::flow::HostTensor)| {
        (name, Tensor::from_f32(&t.shape, &t.values))
    };
    let mut tensors: Tensors<'_> = state.tensors.into_iter().map(tensor).collect();
    complete(&mut tensors, steps);
    tensors
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    publish(path, |scratch| std::fs::write(scratch, text).map_err(Error::io("write", scratch)))
}

/// A JSON file's content.
pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON is text") + "\n"
}

impl Export<'_> {
    /// Writes the directory, each file whole or not at all; other files in it are left alone. A
    /// model whose vocabulary is not CLIP's gets no tokenizer, which would not be its own.
    ///
    /// # Errors
    /// [`Error::Option`] where a file is already there and `overwrite` is not set, before anything
    /// is written; [`Error::Format`] where a tensor has no place in transformers' model;
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
        let texts = self.texts();
        let theirs = config::to_hugging_face(self.config)
            .map(|_| names::to_hugging_face(&self.tensors))
            .transpose()
            .map_err(|reason| Error::Format { path: folder.to_owned(), reason })?;
        let mut weights = vec![("open_clip_model.safetensors", &self.tensors)];
        weights.extend(theirs.as_ref().map(|theirs| ("model.safetensors", theirs)));
        let names = weights.iter().map(|(name, _)| name).chain(texts.iter().map(|(name, _)| name));
        let paths: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        if let Some(there) = paths.iter().find(|path| !overwrite && path.exists()) {
            return Err(Error::Option {
                flag: "--force".into(),
                got: format!("{} is there already", there.display()),
                expected: "another directory, or --force to replace the model in it".into(),
            });
        }
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for (name, tensors) in weights {
            write_tensors(&folder.join(name), tensors, HashMap::new())?;
        }
        for (name, text) in texts {
            write_text(&folder.join(name), &text)?;
        }
        Ok(paths)
    }

    /// Name and content of everything but weights.
    fn texts(&self) -> Vec<(&'static str, String)> {
        let (mean, std) = self.normalization;
        let open_clip = self.config.open_clip_json(mean, std);
        let mut texts = vec![("open_clip_config.json", pretty(&open_clip))];
        let theirs = config::to_hugging_face(self.config);
        texts.push(("README.md", self.card.markdown(self.config, theirs.is_some())));
        let Some(theirs) = theirs else { return texts };
        let preprocessor =
            config::preprocessor(self.config.vision_cfg.image_size(), self.normalization);
        texts.push(("config.json", pretty(&theirs)));
        texts.push(("preprocessor_config.json", pretty(&preprocessor)));
        if self.config.text_cfg.vocab_size == VOCAB_SIZE {
            texts.extend(tokenizer::files(self.config.text_cfg.context_length));
        }
        texts
    }
}
