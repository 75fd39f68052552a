//! Shards of labelled pictures → features with their labels.

use crate::backend::Backend;
use crate::data::loader::{Loader, LoaderConfig, Mode, Position, Sampling};
use crate::data::sample::{Captions, Fields, Labels};
use crate::encode::Embedder;
use crate::error::{Error, Result};
use crate::flow::Batch;

/// Pictures, mostly with the numbers of their classes (`cls` members).
pub struct Pictures {
    loader: Loader,
    /// Number of classes; `None` where labels are not read.
    classes: Option<usize>,
}

impl Pictures {
    /// Opens `shards`, whose pictures are of `classes` classes; with `None` no labels are read.
    /// `base` brings everything but shards, order and augmentation: batch size, workers, transform.
    ///
    /// # Errors
    /// [`Error::Shards`] where the list is unusable; [`Error::Option`] for the rest of `base`.
    pub fn open(shards: String, classes: Option<usize>, base: LoaderConfig) -> Result<Self> {
        let labels = if classes.is_some() { Labels::Cls } else { Labels::None };
        let fields = Fields { captions: Captions::None, labels, ..base.fields };
        let loader = Loader::new(in_order(LoaderConfig { shards, fields, ..base }))?;
        Ok(Self { loader, classes })
    }

    /// Every picture once, in the order of the shards: `take` gets features `[n, D]`, not
    /// normalised, and the batch they are of.
    ///
    /// # Errors
    /// [`Error::Format`] where a label is not a class or no picture could be read; otherwise
    /// whatever the loader, the device or `take` refuses.
    pub fn each<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        mut take: impl FnMut(&[f32], &Batch) -> Result<()>,
    ) -> Result<()> {
        let mut epoch = self.loader.epoch(Position::start_of(0))?;
        let mut any = false;
        while let Some(batch) = epoch.next().transpose()? {
            self.check_labels(&batch)?;
            take(&embedder.images(&batch.images)?, &batch)?;
            any |= !batch.is_empty();
            epoch.recycle(batch);
        }
        if any {
            return Ok(());
        }
        let path = self.loader.config().shards.clone().into();
        let what = if self.classes.is_some() { "with a class (`cls` member) " } else { "" };
        let reason = format!("no picture {what}could be read");
        Err(Error::Format { path, reason })
    }

    /// What they are read with.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    fn check_labels(&self, batch: &Batch) -> Result<()> {
        let Some(classes) = self.classes else { return Ok(()) };
        let wrong = batch.labels.iter().position(|&label| label as usize >= classes);
        let Some(n) = wrong else { return Ok(()) };
        let (sample, label) = (&batch.samples[n], batch.labels[n]);
        let reason = format!("{}: class {label}, but there are {classes} names", sample.key);
        Err(Error::Format { path: sample.shard.as_ref().into(), reason })
    }
}

/// Every pair once, as it is, in the order of the shards, in one lane.
pub(super) fn in_order(base: LoaderConfig) -> LoaderConfig {
    LoaderConfig {
        mode: Mode::Eval,
        sampling: Sampling::Once,
        shuffle: 0,
        drop_last: false,
        lanes: 1,
        rank: 0,
        world_size: 1,
        ..base
    }
}
