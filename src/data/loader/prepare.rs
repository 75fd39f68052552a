//! What a worker does: encoded pair → numbers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::super::decode::{DecodeError, decode};
use super::super::ledger::{Fault, Reason};
use super::super::sample::{Captions, Pair};
use super::super::text::tokenizer::forged_control_tokens;
use super::super::transform::{Scratch, Transform};
use super::{CaptionAugmentation, Clocks, LoaderConfig, Mode, add_since};
use crate::rng::{Domain, Rng};

/// A pair to prepare, and where the answer goes.
pub(super) struct Job {
    pub pair: Pair,
    pub reply: Sender<Result<Prepared, Fault>>,
}

/// A row of a batch.
pub(super) struct Prepared {
    /// `[3, H, W]`
    pub image: Vec<f32>,
    /// Token ids; empty where captions are not read.
    pub tokens: Vec<u32>,
    pub label: Option<u32>,
    /// Whether the caption spelled a control token.
    pub is_forged: bool,
}

pub(super) struct Preparer {
    config: Arc<LoaderConfig>,
    transform: Arc<Transform>,
    epoch: u64,
    scratch: Scratch,
    /// Rows that have been copied into their batch.
    spare_rows: Receiver<Vec<f32>>,
}

impl Preparer {
    pub(super) fn new(
        config: Arc<LoaderConfig>,
        transform: Arc<Transform>,
        epoch: u64,
        spare_rows: Receiver<Vec<f32>>,
    ) -> Self {
        Self { config, transform, epoch, scratch: Scratch::default(), spare_rows }
    }

    pub(super) fn run(&mut self, jobs: &Receiver<Job>, clocks: &Clocks) {
        for Job { pair, reply } in jobs {
            let since = Instant::now();
            // A decoder that panics on some file of a stranger's costs that pair, not the run.
            let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare(&pair)));
            let prepared = prepared.unwrap_or_else(|_| {
                self.scratch = Scratch::default();
                Err(Fault::new(Reason::BrokenImage, "the decoder panicked"))
            });
            add_since(&clocks.decode_busy, since);
            if reply.send(prepared).is_err() {
                return;
            }
        }
    }

    fn prepare(&mut self, pair: &Pair) -> Result<Prepared, Fault> {
        let picture = decode(&pair.image, &self.config.decode_limits)
            .map_err(|e| Fault::new(reason_of(&e), e.to_string()))?;
        let side = self.transform.config().image_size;
        // A spare row still holds another picture; the transform overwrites all of it.
        let mut image = self.spare_rows.try_recv().unwrap_or_else(|_| vec![0.0; 3 * side * side]);
        match self.config.mode {
            Mode::Train => {
                let mut rng = self.rng(Domain::Image, self.epoch, pair);
                self.transform.train(&picture, &mut rng, &mut self.scratch, &mut image);
            }
            Mode::Eval => self.transform.eval(&picture, &mut self.scratch, &mut image),
        }
        let mut tokens = Vec::new();
        if self.config.fields.captions != Captions::None {
            let text = &self.config.text;
            match self.augmented_caption(pair) {
                Some(caption) => text.tokenizer.encode(&caption, text.context_length, &mut tokens),
                None => text.tokenizer.encode(&pair.caption, text.context_length, &mut tokens),
            }
        }
        let is_forged = forged_control_tokens(&pair.caption) > 0;
        Ok(Prepared { image, tokens, label: pair.label, is_forged })
    }

    fn augmented_caption(&self, pair: &Pair) -> Option<String> {
        let epoch = match self.config.text.augmentation {
            _ if self.config.mode == Mode::Eval => return None,
            CaptionAugmentation::Off => return None,
            CaptionAugmentation::FreshEachEpoch => self.epoch,
            CaptionAugmentation::OncePerRun => 0,
        };
        let eda = self.config.text.eda.as_ref()?;
        Some(eda.augment(&pair.caption, &mut self.rng(Domain::Caption, epoch, pair)))
    }

    fn rng(&self, domain: Domain, epoch: u64, pair: &Pair) -> Rng {
        Rng::new(self.config.seed, domain, epoch, pair.id.stream())
    }
}

fn reason_of(error: &DecodeError) -> Reason {
    match error {
        DecodeError::Empty => Reason::EmptyImage,
        DecodeError::NotAnImage(_) | DecodeError::Unsupported(_) => Reason::UnknownImage,
        DecodeError::TooManyBytes { .. } | DecodeError::TooManyPixels { .. } => {
            Reason::ImageTooLarge
        }
        DecodeError::Corrupt(_) => Reason::BrokenImage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::transform::{Augment, TransformConfig};
    use crate::flow::SampleId;
    use crossbeam_channel::bounded;

    #[test]
    fn a_spare_row_is_used_again_and_leaves_no_trace() {
        let mut picture = std::io::Cursor::new(Vec::new());
        let noise = image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 31 + y * 57) as u8; 3]));
        noise.write_to(&mut picture, image::ImageFormat::Png).unwrap();
        let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
        let (caption, image) = ("a caption".into(), picture.into_inner());
        let pair = Pair { id, offset: 0, image, caption, label: None };
        for mode in [Mode::Train, Mode::Eval] {
            let transform = TransformConfig::new(8, Augment::roclip());
            let config = LoaderConfig { transform, mode, ..LoaderConfig::default() };
            let transform = Arc::new(Transform::new(config.transform.clone()).unwrap());
            let (sender, spare_rows) = bounded(1);
            let mut preparer = Preparer::new(Arc::new(config), transform, 0, spare_rows);
            let fresh = preparer.prepare(&pair).unwrap().image;
            let dirty = vec![f32::NAN; fresh.len()];
            let place = dirty.as_ptr();
            sender.send(dirty).unwrap();
            let again = preparer.prepare(&pair).unwrap().image;
            assert_eq!(again.as_ptr(), place);
            assert_eq!(again, fresh);
        }
    }
}
