//! One step, top to bottom: batch → features → match → loss → gradients → parameters. Read this
//! second, after `flow.rs`.

mod decide;
mod norms;
mod places;
mod state;
mod sums;
mod told;

use super::objective::Objective;
use super::pictures::Pictures;
use crate::backend::ops::batchnorm::Statistics;
use crate::backend::ops::contrastive::ContrastiveWorkspace;
use crate::backend::ops::cyclic::CyclicWorkspace;
use crate::backend::ops::rows;
use crate::backend::{Backend, Communicator, Device, Float, View, ViewMut};
use crate::encode::batchnorm::NormRanks;
use crate::encode::{Clip, TextBatch};
use crate::error::Result;
use crate::flow::{Batch, PackedTokens, SampleId};
use crate::matching::CaptionPool;
use crate::objective::{ClipLoss, LogitScale, Targets};
use crate::optim::{Optimizer, Schedule};
use decide::Pending;
use norms::{NormRoom, SyncedNorms};
use places::Places;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use sums::Sums;

/// What every step of a run has in common.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Which loss, and how captions are matched.
    pub objective: Objective,
    /// `K`: images are matched in every K-th epoch.
    pub match_every: u64,
    /// Pairs of one pass: what activations are kept for at a time, in every view.
    pub micro_batch: usize,
    /// Passes of a step; the loss is over all their pairs.
    pub accum_freq: usize,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Whether batch norms see the pictures of all ranks as one batch.
    pub bn_sync: bool,
}

impl StepOptions {
    /// `N`, pairs of a step.
    pub fn pairs(&self) -> usize {
        self.micro_batch * self.accum_freq
    }

    /// Most pictures of one pass, and captions: the next so many of a step's, which stand view
    /// after view.
    pub fn rows(&self) -> usize {
        self.objective.views() * self.micro_batch
    }
}

/// What a step did.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Parameters were updated.
    Stepped(Report),
    /// Loss or gradients were not finite: nothing was changed, neither parameters nor pool.
    Refused(Refusal),
}

/// Figures of a step.
#[derive(Clone, Debug)]
pub struct Report {
    /// Mean loss over the pairs of all ranks.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// `exp(logit_scale)` after the step: the inverse temperature.
    pub logit_scale: f64,
    /// Whether images were matched to the pool; [`Trainer::matches`] then tells to what.
    pub matched: bool,
}

/// Why a step was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What was not finite.
    pub what: &'static str,
    /// The pairs of this rank whose own features are not finite; the whole batch where all
    /// features are.
    pub suspects: Vec<SampleId>,
    /// Whether these are such pairs.
    pub singled_out: bool,
}

/// A model being trained.
pub struct Trainer<D: Device, C: Communicator<D>> {
    device: D,
    comm: C,
    options: StepOptions,
    model: Clip<D>,
    weights: D::Weights,
    pub(super) grads: D::Buf<D::Acc>,
    sums: Sums,
    optimizer: Optimizer<D>,
    loss: ClipLoss<D>,
    logit_scale: LogitScale,
    pool: Option<CaptionPool<D>>,
    image_pool: Option<CaptionPool<D>>,
    /// Views of each pair in the step under way.
    views: usize,
    /// Pictures and captions of one pass.
    pub(super) pictures: Pictures<D>,
    captions: PackedTokens,
    packed: TextBatch,
    /// `[views·N, D]` raw features and their gradients.
    image: Features<D>,
    text: Features<D>,
    /// `[N]` cosine of each picture and its own caption.
    own: D::Buf<D::Acc>,
    /// Where the pairs of all ranks came from.
    places: Places<D>,
    /// Where batch norms are synchronised.
    norms: Option<NormRoom<D>>,
    steps: u64,
    /// The step under way.
    pending: Option<Pending>,
    /// This trainer among all of the process: its records on the device are its own.
    id: u64,
}

struct Features<D: Device> {
    raw: D::Buf<D::Act>,
    grad: D::Buf<D::Act>,
}

impl<D: Device> Features<D> {
    fn new(device: &D, len: usize) -> Result<Self> {
        Ok(Self { raw: device.alloc(len)?, grad: device.alloc(len)? })
    }
}

/// The parts a trainer is put together from.
pub struct Parts<D: Device> {
    /// The encoders, sized for one pass ([`StepOptions::rows`]).
    pub model: Clip<D>,
    /// Initial parameters, in the order of the model's table.
    pub weights: D::Weights,
    /// The optimiser, for the same table.
    pub optimizer: Optimizer<D>,
    /// The pool of captions, where the objective has one.
    pub pool: Option<CaptionPool<D>>,
    /// The pool of images, likewise.
    pub image_pool: Option<CaptionPool<D>>,
}

impl<D: ContrastiveWorkspace + CyclicWorkspace, C: Communicator<D>> Trainer<D, C> {
    /// Puts a trainer together and allocates everything a step needs.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: D, comm: C, parts: Parts<D>, options: StepOptions) -> Result<Self> {
        static TRAINERS: AtomicU64 = AtomicU64::new(0);
        let Parts { mut model, weights, optimizer, pool, image_pool } = parts;
        let (pairs, width) = (options.pairs(), model.config().embed_dim);
        let (rows, passes) = (options.rows(), options.accum_freq);
        let pixels = 3 * model.config().vision_cfg.image_size().pow(2);
        let is_synced = options.bn_sync && !comm.is_alone() && model.observed().is_some();
        Ok(Self {
            norms: is_synced.then(|| NormRoom::new(&device, &comm, &model)).transpose()?,
            grads: device.alloc(model.params().len())?,
            sums: Sums::new::<D>(),
            loss: ClipLoss::new(&device, &comm, pairs, width, options.objective.terms())?,
            logit_scale: LogitScale { slot: model.params().slot("logit_scale") },
            pictures: Pictures::new(&device, rows, pixels, passes)?,
            captions: PackedTokens::new(),
            packed: TextBatch::default(),
            image: Features::new(&device, rows * passes * width)?,
            text: Features::new(&device, rows * passes * width)?,
            own: device.alloc(pairs)?,
            places: Places::new(&device, &comm, pairs)?,
            views: options.objective.views(),
            steps: 0,
            pending: None,
            id: TRAINERS.fetch_add(1, Ordering::Relaxed),
            device,
            comm,
            options,
            model,
            weights,
            optimizer,
            pool,
            image_pool,
        })
    }
}

impl<D: Backend, C: Communicator<D>> Trainer<D, C> {
    /// Trains on one batch of `micro_batch · accum_freq` pairs, in as many views as that part of
    /// the `epoch`, which counts from 0, wants ([`Objective::parts`]). Allocates nothing after the
    /// first of its kind.
    ///
    /// # Errors
    /// Whatever device or communicator refuse. A non-finite loss or gradient is not an error but
    /// [`Outcome::Refused`].
    pub fn step(&mut self, batch: &Batch, epoch: u64) -> Result<Outcome> {
        self.device.clone().run(|| {
            self.enqueue_here(batch, epoch)?;
            self.finish(batch)
        })
    }

    /// Starts copying the pictures of the batch that comes next, while the device computes; nothing
    /// where a step has several passes. The step that is enqueued next may all the same be
    /// another's; then this was in vain. `batch` must stay as it is until its own is finished.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn prefetch(&mut self, batch: &Batch) -> Result<()> {
        self.pictures.prefetch(&self.device, batch)
    }

    /// The first half of [`Trainer::step`]: hands all of the step's work to the device and does not
    /// wait for it. [`Trainer::finish`] comes next.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn enqueue(&mut self, batch: &Batch, epoch: u64) -> Result<()> {
        self.device.clone().run(|| self.enqueue_here(batch, epoch))
    }

    /// The uploads, and then three pieces of work, each a function of its key and of device memory,
    /// so that the device may replay them. Captions and pictures stand in different ones: the
    /// captions' lengths are new in almost every step, whereas the pictures' piece, most of the
    /// work, is always the same.
    ///
    /// With several passes, uploads come in between, and with several ranks the ranks' exchange:
    /// then nothing is recorded.
    fn enqueue_here(&mut self, batch: &Batch, epoch: u64) -> Result<()> {
        let (pairs, objective) = (self.options.pairs(), self.options.objective);
        self.views = batch.captions.len() / pairs;
        let is_meant = objective.parts(epoch).iter().any(|part| part.views == self.views);
        let got = [batch.len(), batch.captions.len()];
        assert!(is_meant, "epoch {epoch} has no step of {} views", self.views);
        assert_eq!(got, [pairs, self.views * pairs], "a step takes the trainer's number of pairs");
        assert!(self.pending.is_none(), "a step begins when the one before is finished");
        self.model.set_statistics(Statistics::Batch);
        let pending = self.decide(epoch)?;
        let targets = pending.targets;
        let looks_up = matches!(targets, Targets::Matched | Targets::Neighbours);
        let is_one_pass = self.options.accum_freq == 1;
        if is_one_pass {
            self.pictures.take(&self.device, batch)?;
            self.upload_captions(batch, 0)?;
        }
        let (id, kind) = (self.id, targets as u64);
        let TextBatch { tokens, longest, .. } = self.packed;
        let [tokens, longest, filled] =
            [tokens, longest, if looks_up { self.filled() } else { 0 }].map(|n| n as u64);
        let (device, room) = (self.device.clone(), self.pictures.current() as u64);
        let is_recorded = is_one_pass && self.comm.is_alone();
        let run = |key: &[u64], work: &mut dyn FnMut() -> Result<()>| {
            if is_recorded { device.replay(key, work) } else { work() }
        };
        run(&[id, 0, tokens, longest, self.views as u64], &mut || self.read_texts(batch))?;
        run(&[id, 1, room, kind, filled], &mut || self.learn_images(batch, targets))?;
        run(&[id, 2, tokens, longest, kind], &mut || self.learn_texts(batch, targets))?;
        self.pending = Some(pending);
        Ok(())
    }

    fn filled(&self) -> usize {
        self.pool.as_ref().map_or(0, CaptionPool::filled)
    }

    /// Whether gradients flow into the text tower.
    fn learns_texts(&self, targets: Targets) -> bool {
        targets != Targets::Matched && !self.model.locks().whole_text()
    }

    fn passes(&self) -> usize {
        self.options.accum_freq
    }

    /// The rows of pass `part` among the features of all.
    fn rows(&self, part: usize) -> Range<usize> {
        let values = self.views * self.options.micro_batch * self.model.config().embed_dim;
        part * values..(part + 1) * values
    }

    /// The rows of all passes.
    fn all_rows(&self) -> Range<usize> {
        0..self.rows(self.passes()).start
    }

    fn upload_captions(&mut self, batch: &Batch, part: usize) -> Result<()> {
        let n = self.views * self.options.micro_batch;
        self.captions.clear();
        (part * n..(part + 1) * n).for_each(|row| self.captions.push(batch.captions.get(row)));
        self.packed = self.model.upload_captions(&self.device, &self.captions)?;
        Ok(())
    }

    fn forward_image(&mut self, batch: &Batch, part: usize) -> Result<()> {
        if self.passes() > 1 {
            let which = (part, self.passes());
            self.pictures.upload(&self.device, batch, which)?;
        }
        let (images, rows) = (self.pictures.view(), self.rows(part));
        let out = ViewMut::of(&mut self.image.raw, rows);
        let ranks = self.norms.as_mut().map(|room| SyncedNorms::new(&self.comm, room));
        let ranks = ranks.as_ref().map(|ranks| ranks as &dyn NormRanks<D>);
        self.model.encode_image(&self.device, &self.weights, images, ranks, out)
    }

    fn forward_text(&mut self, batch: &Batch, part: usize) -> Result<()> {
        if self.passes() > 1 {
            self.upload_captions(batch, part)?;
        }
        let rows = self.rows(part);
        let out = ViewMut::of(&mut self.text.raw, rows);
        self.model.encode_captions(&self.device, &self.weights, out)
    }

    /// Embeddings of all captions.
    fn read_texts(&mut self, batch: &Batch) -> Result<()> {
        (0..self.passes()).try_for_each(|part| self.forward_text(batch, part))?;
        let raw = View::of(&self.text.raw, self.all_rows());
        self.loss.normalize_texts(&self.device, &self.comm, raw)
    }

    /// Embeddings of all pictures, the loss, and the gradients of all that leads to the pictures'.
    ///
    /// With several passes the activations of all but the last are gone: beginning with the last,
    /// each other one runs forward again before it runs backward. The loss saw all pairs at once,
    /// so the gradient is that of the whole batch (Gao, Zhang, Han, Callan 2021; open_clip's
    /// `--accum-freq`). A tower that is locked whole has no such passes.
    fn learn_images(&mut self, batch: &Batch, targets: Targets) -> Result<()> {
        self.device.zero(ViewMut::all(&mut self.grads))?;
        self.model.forget_batches(&self.device)?;
        (0..self.passes()).try_for_each(|part| self.forward_image(batch, part))?;
        let all = self.all_rows();
        let raw = View::of(&self.image.raw, all.clone());
        self.loss.normalize_images(&self.device, &self.comm, raw)?;
        let (images, texts) = (self.loss.images(), self.loss.texts());
        let (width, own) = (self.model.config().embed_dim, ViewMut::all(&mut self.own));
        rows::dot(&self.device, width, images, texts, own)?;
        self.look_up(targets)?;
        let (device, weights, slot) = (&self.device, &self.weights, self.logit_scale.slot);
        self.loss.forward(device, &self.comm, weights, slot, targets)?;
        let learns_texts = self.learns_texts(targets);
        let d_image = ViewMut::of(&mut self.image.grad, all.clone());
        let d_text = learns_texts.then(|| ViewMut::of(&mut self.text.grad, all));
        self.loss.backward(device, weights, slot, targets, d_image, d_text, &mut self.grads)?;
        let passes = if self.model.locks().whole_image() { 0 } else { self.passes() };
        for part in (0..passes).rev() {
            if part + 1 < passes {
                self.forward_image(batch, part)?;
            }
            let (images, dout) =
                (self.pictures.view(), View::of(&self.image.grad, self.rows(part)));
            let (device, weights) = (&self.device, &self.weights);
            let mut complete = |grads: &mut _, place| match part {
                0 => self.sums.complete((device, &self.comm), grads, place),
                _ => Ok(()),
            };
            let (grads, model) = (&mut self.grads, &mut self.model);
            let ranks = self.norms.as_mut().map(|room| SyncedNorms::new(&self.comm, room));
            let ranks = ranks.as_ref().map(|ranks| ranks as &dyn NormRanks<D>);
            model.backward_image(device, weights, images, ranks, dout, grads, &mut complete)?;
        }
        let image = if passes > 0 { self.model.params().image() } else { 0..0 };
        self.sums.rest((&self.device, &self.comm), &mut self.grads, image)
    }

    /// The gradients of all that leads to the captions' embeddings, where they are learned from,
    /// and the update, running statistics included. Where a gradient is not finite, which includes
    /// every step whose loss is not ([`ClipLoss::backward`]), the update leaves everything as it
    /// was, and so does the clamp, within whose limits the temperature was before.
    fn learn_texts(&mut self, batch: &Batch, targets: Targets) -> Result<()> {
        let passes = if self.learns_texts(targets) { self.passes() } else { 0 };
        for part in (0..passes).rev() {
            if part + 1 < passes {
                self.forward_text(batch, part)?;
            }
            let dout = View::of(&self.text.grad, self.rows(part));
            let (device, weights) = (&self.device, &self.weights);
            let mut complete = |grads: &mut _, place| match part {
                0 => self.sums.complete((device, &self.comm), grads, place),
                _ => Ok(()),
            };
            let grads = &mut self.grads;
            self.model.backward_text(device, weights, dout, grads, &mut complete)?;
        }
        let image = self.model.params().image();
        let learned = match passes {
            0 => [self.logit_scale.slot.range(), 0..0],
            _ => [0..image.start, image.end..self.model.params().len()],
        };
        for place in learned {
            self.sums.rest((&self.device, &self.comm), &mut self.grads, place)?;
        }
        self.sums.end((&self.device, &self.comm), &mut self.grads)?;
        if let Some(observed) = self.model.observed() {
            self.comm.all_reduce_sum(&self.device, observed)?;
        }
        self.optimizer.enqueue(&self.device, &mut self.weights, &self.grads)?;
        let (norm, batches) = (self.optimizer.norm(), self.passes() * self.comm.world_size());
        self.model.update_running(&self.device, batches, norm, &mut self.weights)?;
        self.logit_scale.clamp(&self.device, &mut self.weights)
    }

    /// The second half of [`Trainer::step`]: waits for the device and tells what became of the step
    /// that was enqueued with this `batch`.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn finish(&mut self, batch: &Batch) -> Result<Outcome> {
        let Pending { targets, lr, inserts } =
            self.pending.take().expect("a step is enqueued before it is finished");
        let (loss, grad_norm) =
            (self.loss.value(&self.device, targets)?, self.optimizer.finish(&self.device)?);
        if !loss.is_finite() {
            assert!(!grad_norm.is_finite(), "the device made an update of a loss of {loss}");
            return self.refuse("loss", batch);
        }
        if !grad_norm.is_finite() {
            return self.refuse("gradient", batch);
        }
        let matched = targets == Targets::Matched;
        if let (true, Some(pool)) = (matched, &mut self.pool) {
            pool.matches(&self.device)?;
        }
        // Only now, so that nothing of this step could have been chosen.
        if inserts {
            self.insert(batch)?;
        }
        self.steps += 1;
        let logit_scale = self.scale()?;
        Ok(Outcome::Stepped(Report { loss, grad_norm, lr, logit_scale, matched }))
    }

    /// `exp(logit_scale)`.
    fn scale(&self) -> Result<f64> {
        let mut value = [D::Acc::default()];
        self.device.read_weights(&self.weights, self.logit_scale.slot, &mut value)?;
        Ok(value[0].to_f64().exp())
    }
}
