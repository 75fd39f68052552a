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
}

impl Preparer {
    pub(super) fn new(config: Arc<LoaderConfig>, transform: Arc<Transform>, epoch: u64) -> Self {
        Self { config, transform, epoch, scratch: Scratch::default() }
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
        let mut image = vec![0.0; 3 * side * side];
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
