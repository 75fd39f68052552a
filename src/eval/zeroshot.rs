//! Zero-shot classification: pictures against captions of class names.

use super::prompts::Prompts;
use crate::backend::ops::linear::{self, Layout, LinearShape};
use crate::backend::{Backend, Device, Float, Slot, View, ViewMut, Weight};
use crate::data::loader::{Loader, LoaderConfig, Mode, Position};
use crate::encode::Clip;
use crate::error::{Error, Result};
use crate::flow::{Batch, PackedTokens};
use std::path::Path;

/// Share of pictures whose class is among the nearest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Share whose class is the nearest, 0 to 1.
    pub top1: f64,
    /// Share whose class is among the five nearest.
    pub top5: f64,
    /// Pictures.
    pub pairs: u64,
    /// Classes.
    pub classes: usize,
}

/// What an evaluation writes on the device.
pub struct Room<D: Device> {
    /// `[classes, E]`.
    classifier: D::Weights,
    /// `[N, 3, H, W]`.
    images: D::Buf<f32>,
    /// `[N, E]`.
    features: D::Buf<D::Act>,
    /// `[N, classes]`.
    logits: D::Buf<D::Act>,
}

/// A set of labelled pictures with the captions of their classes.
pub struct ZeroShot {
    prompts: Prompts,
    loader: Loader,
}

impl ZeroShot {
    /// Opens a folder in CLIP_benchmark's layout: `classnames.txt`,
    /// `zeroshot_classification_templates.txt` (optional) and the shards `test/*.tar*`, whose pairs
    /// hold a picture and a `cls` member with the class number.
    ///
    /// `base` brings everything but shards, order and augmentation: batch size, workers, tokenizer.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Io`] for the text files, [`Error::Shards`] for the shards.
    pub fn open(folder: &Path, base: LoaderConfig) -> Result<Self> {
        let prompts = Prompts::read(folder)?;
        let shards = folder.join("test").to_string_lossy().into_owned();
        let config = LoaderConfig {
            shards,
            mode: Mode::Eval,
            shuffle: 1,
            drop_last: false,
            rank: 0,
            world_size: 1,
            ..base
        };
        Ok(Self { prompts, loader: Loader::new(config)? })
    }

    /// Allocates what [`ZeroShot::evaluate`] does for this model.
    ///
    /// # Errors
    /// [`Error::Device`] where memory does not suffice.
    pub fn room<D: Device>(&self, device: &D, model: &Clip<D>) -> Result<Room<D>> {
        let (classes, n) = (self.prompts.classes.len(), model.max_pairs());
        let (width, side) = (model.config().embed_dim, model.config().vision_cfg.image_size());
        Ok(Room {
            classifier: device.zero_weights(classes * width)?,
            images: device.alloc(n * 3 * side * side)?,
            features: device.alloc(n * width)?,
            logits: device.alloc(n * classes)?,
        })
    }

    /// Class vectors: the normalised mean, over the templates, of normalised text embeddings.
    /// `[classes, E]`, row-major.
    fn classifier<D: Backend>(
        &self,
        device: &D,
        model: &mut Clip<D>,
        weights: &D::Weights,
        features: &mut D::Buf<D::Act>,
    ) -> Result<Vec<f64>> {
        let (width, chunk) = (model.config().embed_dim, model.max_pairs());
        let mut vectors = vec![0.0; self.prompts.classes.len() * width];
        let text = &self.loader.config().text;
        let mut pending: Vec<(usize, Vec<u32>)> = Vec::with_capacity(chunk);
        let captions = self.prompts.classes.iter().enumerate().flat_map(|(class, name)| {
            self.prompts.captions(name).map(move |caption| (class, caption))
        });
        let mut flush = |pending: &mut Vec<(usize, Vec<u32>)>| -> Result<()> {
            let mut packed = PackedTokens::new();
            pending.iter().for_each(|(_, tokens)| packed.push(tokens));
            let range = 0..pending.len() * width;
            model.encode_text(device, weights, &packed, ViewMut::of(features, range.clone()))?;
            let rows = device.to_vec(View::of(features, range))?;
            for ((class, _), row) in pending.drain(..).zip(rows.chunks_exact(width)) {
                add_unit(&mut vectors[class * width..][..width], row);
            }
            Ok(())
        };
        for (class, caption) in captions {
            let mut tokens = Vec::new();
            text.tokenizer.encode(&caption, text.context_length, &mut tokens);
            pending.push((class, tokens));
            if pending.len() == chunk {
                flush(&mut pending)?;
            }
        }
        if !pending.is_empty() {
            flush(&mut pending)?;
        }
        vectors.chunks_exact_mut(width).for_each(normalize);
        Ok(vectors)
    }

    /// Measures a model.
    ///
    /// # Errors
    /// [`Error::Format`] where a label is not a class of `classnames.txt` or no picture could be
    /// read; otherwise whatever the loader or the device refuses.
    pub fn evaluate<D: Backend>(
        &self,
        device: &D,
        model: &mut Clip<D>,
        weights: &D::Weights,
    ) -> Result<Accuracy> {
        let classes = self.prompts.classes.len();
        let (width, chunk) = (model.config().embed_dim, model.max_pairs());
        let Room { mut classifier, mut images, mut features, mut logits } =
            self.room(device, model)?;
        let vectors = self.classifier(device, model, weights, &mut features)?;
        let vectors: Vec<D::Acc> = vectors.into_iter().map(D::Acc::from_f64).collect();
        device.set_weights(&mut classifier, &vectors)?;
        let pixels = D::len(&images) / chunk;
        let mut counts = [0u64; 2];
        let mut pairs = 0;
        let mut epoch = self.loader.epoch(Position::start_of(0))?;
        while let Some(batch) = epoch.next().transpose()? {
            self.check_labels(&batch)?;
            let parts = batch.images.chunks(chunk * pixels).zip(batch.labels.chunks(chunk));
            for (part, labels) in parts {
                let n = labels.len();
                device.upload(part, ViewMut::of(&mut images, 0..n * pixels))?;
                let input = View::of(&images, 0..n * pixels);
                let out = ViewMut::of(&mut features, 0..n * width);
                model.encode_image(device, weights, input, out)?;
                let shape =
                    LinearShape { rows: n, inputs: width, outputs: classes, layout: Layout::OutIn };
                let w = Weight::at(&classifier, Slot { offset: 0, len: classes * width });
                let x = View::of(&features, 0..n * width);
                let y = ViewMut::of(&mut logits, 0..n * classes);
                linear::forward(device, shape, x, w, None, None, y)?;
                let scores = device.to_vec(View::of(&logits, 0..n * classes))?;
                for (scores, &label) in scores.chunks_exact(classes).zip(labels) {
                    let rank = rank(scores, label as usize);
                    counts[0] += u64::from(rank < 1);
                    counts[1] += u64::from(rank < 5);
                }
                pairs += n as u64;
            }
            epoch.recycle(batch);
        }
        self.result(counts, pairs)
    }

    fn check_labels(&self, batch: &Batch) -> Result<()> {
        let classes = self.prompts.classes.len();
        let wrong = batch.labels.iter().position(|&l| l as usize >= classes);
        let Some(n) = wrong else { return Ok(()) };
        let sample = &batch.samples[n];
        let label = batch.labels[n];
        let reason = format!("{}: class {label}, but there are {classes} names", sample.key);
        Err(Error::Format { path: sample.shard.as_ref().into(), reason })
    }

    fn result(&self, counts: [u64; 2], pairs: u64) -> Result<Accuracy> {
        if pairs == 0 {
            let path = self.loader.config().shards.clone().into();
            let reason = "no picture with a class (`cls` member) could be read".to_owned();
            return Err(Error::Format { path, reason });
        }
        let share = |n: u64| n as f64 / pairs as f64;
        let classes = self.prompts.classes.len();
        Ok(Accuracy { top1: share(counts[0]), top5: share(counts[1]), pairs, classes })
    }
}

/// Number of classes that score above `label`; equal scores count by class number, NaN as above.
fn rank<F: Float>(scores: &[F], label: usize) -> usize {
    let own = scores[label];
    let before = |(class, score): (usize, &F)| match score.partial_cmp(&own) {
        Some(std::cmp::Ordering::Less) => false,
        Some(std::cmp::Ordering::Equal) => class < label,
        _ => true,
    };
    scores.iter().enumerate().filter(|&entry| before(entry)).count()
}

/// Adds `row`, scaled to length 1.
fn add_unit<F: Float>(sum: &mut [f64], row: &[F]) {
    let mut row: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
    normalize(&mut row);
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
}

fn normalize(row: &mut [f64]) {
    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    row.iter_mut().for_each(|x| *x /= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_by_hand() {
        let scores = [0.1, 0.7, 0.7, -0.2];
        assert_eq!(rank(&scores, 1), 0);
        assert_eq!(rank(&scores, 2), 1, "an equal score of a lower class comes first");
        assert_eq!(rank(&scores, 3), 3);
        assert_eq!(rank(&[f64::NAN, 0.5], 1), 1, "NaN never helps");
        assert_eq!(rank(&[f64::NAN, 0.5], 0), 2, "nor does it win");
    }

    #[test]
    fn unit_rows_are_averaged() {
        let mut sum = vec![0.0, 0.0];
        add_unit(&mut sum, &[3.0f32, 4.0]);
        add_unit(&mut sum, &[0.0f32, 100.0]);
        normalize(&mut sum);
        let expected = [0.6, 1.8].map(|x| x / (0.36f64 + 3.24).sqrt());
        assert!(sum.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{sum:?}");
    }
}
