//! Zero-shot classification: pictures against captions of class names.

use super::accuracy::{Accuracy, rank};
use super::classifier::Classifier;
use super::pictures::Pictures;
use super::prompts::{Prompts, Templates};
use crate::backend::Backend;
use crate::data::loader::{LoaderConfig, TextOptions};
use crate::encode::Embedder;
use crate::error::Result;
use std::path::Path;

/// A set of labelled pictures with the captions of their classes.
pub struct ZeroShot {
    prompts: Prompts,
    text: TextOptions,
    pictures: Pictures,
}

impl ZeroShot {
    /// Opens a folder in CLIP_benchmark's layout: `classnames.txt`,
    /// `zeroshot_classification_templates.txt` (optional) and the shards `test/*.tar*`, whose pairs
    /// hold a picture and a `cls` member with the class number.
    ///
    /// `base` brings everything but shards, order and augmentation: batch size, workers, tokenizer.
    ///
    /// # Errors
    /// [`crate::Error::Format`] or [`crate::Error::Io`] for the text files,
    /// [`crate::Error::Shards`] for the shards.
    pub fn open(folder: &Path, templates: Templates, base: LoaderConfig) -> Result<Self> {
        let prompts = Prompts::read(folder, templates)?;
        let shards = folder.join("test").to_string_lossy().into_owned();
        let text = base.text.clone();
        let pictures = Pictures::open(shards, Some(prompts.classes.len()), base)?;
        Ok(Self { prompts, text, pictures })
    }

    /// The classes and their captions.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    /// The class vectors of a model.
    ///
    /// # Errors
    /// Those of [`Embedder::texts`].
    pub fn classifier<D: Backend>(&self, embedder: &mut Embedder<'_, D>) -> Result<Classifier> {
        Classifier::of_prompts(&self.prompts, &self.text, embedder)
    }

    /// Measures a model by its class vectors ([`ZeroShot::classifier`]).
    ///
    /// # Errors
    /// Those of [`Pictures::each`].
    pub fn evaluate<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        classifier: &Classifier,
    ) -> Result<Accuracy> {
        let mut accuracy = Accuracy::new(classifier.classes());
        self.pictures.each(embedder, |features, batch| {
            let cosines = classifier.cosines(features);
            let rows = cosines.chunks_exact(classifier.classes());
            for (row, &label) in rows.zip(&batch.labels) {
                accuracy.add(label, rank(row, label as usize));
            }
            Ok(())
        })?;
        Ok(accuracy)
    }
}
