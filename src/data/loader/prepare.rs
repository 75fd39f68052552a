//! What a worker does: encoded pair → numbers, and later → a row of a batch.
//!
//! A picture is decoded and augmented before it is known whether it is any good, and so before its
//! row in the batch is known. What is left to do then, the last pass over its samples, writes the
//! row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Fault, Reason};
use super::super::picture::PictureReader;
use super::super::pool::BufferPool;
use super::super::sample::{Captions, Pair};
use super::super::text::tokenizer::forged_control_tokens;
use super::super::transform::{Resized, Transform};
use super::sequence::{Group, Sequencer};
use super::share::{Assembly, Gone};
use super::stats::{Clocks, add_since};
use super::{CaptionAugmentation, LoaderConfig, Mode};
use crate::flow::{HostRow, SampleId};
use crate::rng::{Domain, Rng};

/// A pair to prepare.
pub(super) struct Job {
    pub pair: Pair,
    /// Keys the augmentation, with the pair.
    pub draw_epoch: u64,
}

/// A pair, its place in its shard, and what became of it.
pub(super) struct Answer {
    pub id: SampleId,
    pub offset: u64,
    pub outcome: Result<Prepared, Fault>,
}

/// Most views of a pair.
pub(super) const VIEWS: usize = 2;

/// A picture whose row is known.
pub(super) struct Fill {
    pub prepared: Prepared,
    /// Of each view.
    pub rows: [Option<HostRow>; VIEWS],
    /// The batch it belongs to.
    pub batch: u64,
}

/// A view of a pair but for the last pass over its picture.
#[derive(Default)]
pub(super) struct View {
    pub resized: Resized,
    /// Token ids; empty where captions are not read.
    pub tokens: Vec<u32>,
}

/// A pair in the views that are wanted; what lies behind them is of no use.
#[derive(Default)]
pub(super) struct Prepared {
    pub views: [View; VIEWS],
    pub label: Option<u32>,
    /// Whether the caption spelled a control token.
    pub is_forged: bool,
}

/// Prepared pairs whose row has been written: their memory serves again.
#[derive(Clone)]
pub(super) struct Spares {
    pub give: Sender<Prepared>,
    pub take: Receiver<Prepared>,
}

pub(super) struct Preparer {
    config: Arc<LoaderConfig>,
    transform: Arc<Transform>,
    pictures: PictureReader,
    pool: Arc<BufferPool>,
    spares: Spares,
}

impl Preparer {
    pub(super) fn new(
        config: Arc<LoaderConfig>,
        transform: Arc<Transform>,
        pool: Arc<BufferPool>,
        spares: Spares,
    ) -> Self {
        let pictures = PictureReader::new(Arc::clone(&transform), config.decode_limits);
        Self { config, transform, pictures, pool, spares }
    }

    /// Works until there are no more pairs, or nobody wants them.
    pub(super) fn run(
        &mut self,
        sequencer: &Mutex<Sequencer>,
        assembly: &Assembly,
        clocks: &Clocks,
    ) -> Result<(), Gone> {
        let _alarm = assembly.alarm();
        let mut group = Group::default();
        loop {
            let since = Instant::now();
            let is_last = !sequencer.lock()?.next(&mut group);
            add_since(&clocks.prepare_starved, since);
            if is_last {
                return Ok(());
            }
            let since = Instant::now();
            for job in group.jobs.drain(..) {
                group.answers.push_back(self.take(job));
            }
            add_since(&clocks.prepare_busy, since);
            group = assembly.accept(group)?;
            let mut written = None;
            while let Some(fill) = assembly.next_fill(written)? {
                let since = Instant::now();
                written = Some(self.fill(fill));
                add_since(&clocks.prepare_busy, since);
            }
        }
    }

    /// The batch of which a row has been written.
    fn fill(&mut self, fill: Fill) -> u64 {
        let Fill { prepared, rows, batch } = fill;
        for (view, row) in prepared.views.iter().zip(rows) {
            row.into_iter().for_each(|mut row| self.transform.finish(&view.resized, &mut row));
        }
        // Where there are enough, the memory is simply freed.
        let _ = self.spares.give.try_send(prepared);
        batch
    }

    fn take(&mut self, job: Job) -> Answer {
        let Job { pair, draw_epoch } = job;
        // A decoder that panics on some file of a stranger's costs that pair, not the run.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.prepare(&pair, draw_epoch)));
        let outcome = outcome.unwrap_or_else(|_| {
            let (transform, limits) = (Arc::clone(&self.transform), self.config.decode_limits);
            self.pictures = PictureReader::new(transform, limits);
            Err(Fault::new(Reason::BrokenImage, "the decoder panicked"))
        });
        let Pair { id, offset, image, caption, .. } = pair;
        self.pool.give(image);
        self.pool.give(caption.into_bytes());
        Answer { id, offset, outcome }
    }

    fn prepare(&mut self, pair: &Pair, draw_epoch: u64) -> Result<Prepared, Fault> {
        // What a spare holds of another pair is overwritten.
        let mut prepared = self.spares.take.try_recv().unwrap_or_default();
        for (number, view) in prepared.views[..self.config.views].iter_mut().enumerate() {
            if let Err(fault) = self.prepare_view(pair, draw_epoch, number, view) {
                let _ = self.spares.give.try_send(prepared);
                return Err(fault);
            }
        }
        prepared.is_forged = forged_control_tokens(&pair.caption) > 0;
        prepared.label = pair.label;
        Ok(prepared)
    }

    fn prepare_view(
        &mut self,
        pair: &Pair,
        draw_epoch: u64,
        number: usize,
        view: &mut View,
    ) -> Result<(), Fault> {
        let (mode, of_image, of_caption) = match number {
            0 => (self.config.mode, Domain::Image, Domain::Caption),
            _ => (Mode::Train, Domain::SecondImage, Domain::SecondCaption),
        };
        let outcome = match mode {
            Mode::Train => {
                let mut rng = rng(self.config.seed, of_image, draw_epoch, pair);
                self.pictures.train(&pair.image, &mut rng, &mut view.resized)
            }
            Mode::Eval => {
                let edit = self.config.edit.as_ref();
                let edit =
                    |rgb: &mut _| edit.into_iter().for_each(|edit| edit.apply(rgb, &pair.id));
                self.pictures.eval(&pair.image, edit, &mut view.resized)
            }
        };
        outcome.map_err(|error| Fault::from(&error))?;
        view.tokens.clear();
        if self.config.fields.captions != Captions::None {
            let augmented = match mode {
                Mode::Train => self.augmented_caption(pair, draw_epoch, of_caption),
                Mode::Eval => None,
            };
            self.tokens(augmented.as_deref().unwrap_or(&pair.caption), &mut view.tokens);
        }
        Ok(())
    }

    /// Writes the token ids of a caption, or of its lines one after the other.
    fn tokens(&self, caption: &str, tokens: &mut Vec<u32>) {
        let text = &self.config.text;
        if !text.lines {
            return text.tokenizer.encode(caption, text.context_length, tokens);
        }
        let mut line_tokens = Vec::new();
        for line in caption.lines().filter(|line| !line.trim().is_empty()) {
            text.tokenizer.encode(line, text.context_length, &mut line_tokens);
            tokens.extend_from_slice(&line_tokens);
        }
    }

    fn augmented_caption(&self, pair: &Pair, draw_epoch: u64, domain: Domain) -> Option<String> {
        let epoch = match self.config.text.augmentation {
            CaptionAugmentation::Off => return None,
            CaptionAugmentation::FreshEachEpoch => draw_epoch,
            CaptionAugmentation::OncePerRun => 0,
        };
        let eda = self.config.text.eda.as_ref()?;
        Some(eda.augment(&pair.caption, &mut rng(self.config.seed, domain, epoch, pair)))
    }
}

fn rng(seed: u64, domain: Domain, epoch: u64, pair: &Pair) -> Rng {
    Rng::new(seed, domain, epoch, pair.id.stream())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::transform::{Augment, TransformConfig};
    use crate::flow::HostBuf;
    use crossbeam_channel::bounded;

    #[test]
    fn what_was_used_before_is_used_again_and_leaves_no_trace() {
        let mut picture = std::io::Cursor::new(Vec::new());
        let noise = image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 31 + y * 57) as u8; 3]));
        noise.write_to(&mut picture, image::ImageFormat::Png).unwrap();
        let picture = picture.into_inner();
        let pair = || {
            let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
            let (caption, image) = ("a caption".into(), picture.clone());
            Pair { id, offset: 0, image, caption, label: None }
        };
        for mode in [Mode::Train, Mode::Eval] {
            let transform = TransformConfig::new(8, Augment::roclip());
            let config = LoaderConfig { transform, mode, ..LoaderConfig::default() };
            let transform = Arc::new(Transform::new(config.transform.clone()).unwrap());
            let (give, take) = bounded(1);
            let spares = Spares { give, take };
            let pool = Arc::<BufferPool>::default();
            let config = Arc::new(config);
            let mut preparer = Preparer::new(config, transform, pool, spares.clone());
            let run = |preparer: &mut Preparer| {
                let job = Job { pair: pair(), draw_epoch: 0 };
                let prepared = preparer.take(job).outcome.unwrap();
                let mut rows = HostBuf::heap(3 * 64).unwrap().into_rows(3 * 64);
                let rows_of_views = [rows.next_row(), None];
                let tokens = prepared.views[0].tokens.clone();
                preparer.fill(Fill { prepared, rows: rows_of_views, batch: 0 });
                (rows.into_buf().unwrap(), tokens)
            };
            let first = run(&mut preparer);
            let mut used = spares.take.recv().unwrap();
            used.views[0].tokens.fill(7);
            let other = image::RgbImage::from_pixel(1, 1, image::Rgb([200; 3]));
            let mut bytes = std::io::Cursor::new(Vec::new());
            other.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            preparer
                .pictures
                .eval(&bytes.into_inner(), |_| (), &mut used.views[0].resized)
                .unwrap();
            spares.give.send(used).unwrap();
            assert_eq!(run(&mut preparer), first);
        }
    }
}
