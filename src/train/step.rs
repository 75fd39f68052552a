//! One step, top to bottom: batch → features → match → loss → gradients → parameters. Read this
//! second, after `flow.rs`.

use crate::backend::{Backend, Communicator, Device, Float, View, ViewMut};
use crate::encode::Clip;
use crate::error::Result;
use crate::flow::{Batch, Matches, PackedTokens, SampleId, State};
use crate::matching::{CaptionPool, Objective};
use crate::objective::{ClipLoss, LogitScale, Targets};
use crate::optim::{Optimizer, Schedule, TextUpdate};
use std::path::Path;

/// What every step of a run has in common.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Which loss, and how captions are matched.
    pub objective: Objective,
    /// `K`: images are matched in every K-th epoch.
    pub match_every: u64,
    /// Pairs of one pass: what activations are kept for at a time.
    pub micro_batch: usize,
    /// Passes of a step; the loss is over all their pairs.
    pub accum_freq: usize,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
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
    /// The pairs whose own features are not finite; the whole batch where all features are.
    pub suspects: Vec<SampleId>,
}

/// A model being trained.
pub struct Trainer<D: Device, C: Communicator<D>> {
    device: D,
    comm: C,
    options: StepOptions,
    model: Clip<D>,
    weights: D::Weights,
    pub(super) grads: D::Buf<D::Acc>,
    optimizer: Optimizer<D>,
    loss: ClipLoss<D>,
    logit_scale: LogitScale,
    pool: Option<CaptionPool<D>>,
    /// Pictures and captions of one pass.
    pub(super) pixels: D::Buf<f32>,
    captions: PackedTokens,
    /// `[N, D]` raw features and their gradients.
    image: Features<D>,
    text: Features<D>,
    steps: u64,
}

struct Features<D: Device> {
    raw: D::Buf<D::Act>,
    grad: D::Buf<D::Act>,
}

impl<D: Device> Features<D> {
    fn new(device: &D, len: usize) -> Result<Self> {
        Ok(Self { raw: device.alloc(len)?, grad: device.alloc(len)? })
    }

    /// Pairs whose features are not all finite.
    fn broken_rows(&self, device: &D, width: usize) -> Result<Vec<usize>> {
        let raw = device.to_vec(View::all(&self.raw))?;
        let broken = |row: &[D::Act]| !row.iter().all(|x| x.to_f64().is_finite());
        Ok(raw.chunks(width).enumerate().filter(|(_, row)| broken(row)).map(|(n, _)| n).collect())
    }
}

/// The parts a trainer is put together from.
pub struct Parts<D: Device> {
    /// The encoders, sized for one micro-batch.
    pub model: Clip<D>,
    /// Initial parameters, in the order of the model's table.
    pub weights: D::Weights,
    /// The optimiser, for the same table.
    pub optimizer: Optimizer<D>,
    /// The pool, where the objective has one.
    pub pool: Option<CaptionPool<D>>,
}

impl<D: Device, C: Communicator<D>> Trainer<D, C> {
    /// Puts a trainer together and allocates everything a step needs.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: D, comm: C, parts: Parts<D>, options: StepOptions) -> Result<Self> {
        let Parts { model, weights, optimizer, pool } = parts;
        let (pairs, width) = (options.micro_batch * options.accum_freq, model.config().embed_dim);
        let pixels = options.micro_batch * 3 * model.config().vision_cfg.image_size.pow(2);
        Ok(Self {
            grads: device.alloc(model.params().len())?,
            loss: ClipLoss::new(&device, &comm, pairs, width)?,
            logit_scale: LogitScale { slot: model.params().slot("logit_scale") },
            pixels: device.alloc(pixels)?,
            captions: PackedTokens::new(),
            image: Features::new(&device, pairs * width)?,
            text: Features::new(&device, pairs * width)?,
            steps: 0,
            device,
            comm,
            options,
            model,
            weights,
            optimizer,
            pool,
        })
    }
}

impl<D: Backend, C: Communicator<D>> Trainer<D, C> {
    /// Trains on one batch of `micro_batch · accum_freq` pairs; `epoch` counts from 0. Allocates
    /// nothing after the first of its kind.
    ///
    /// # Errors
    /// Whatever device or communicator refuse. A non-finite loss or gradient is not an error but
    /// [`Outcome::Refused`].
    pub fn step(&mut self, batch: &Batch, epoch: u64) -> Result<Outcome> {
        self.device.clone().run(|| self.step_here(batch, epoch))
    }

    fn step_here(&mut self, batch: &Batch, epoch: u64) -> Result<Outcome> {
        let pairs = self.options.micro_batch * self.options.accum_freq;
        assert_eq!(batch.len(), pairs, "a step takes the number of pairs the trainer was made for");
        let (objective, every, epoch) =
            (self.options.objective, self.options.match_every, epoch + 1);
        let pool = self.pool.as_ref();
        let (filled, rows) = pool.map_or((0, 0), |p| (p.filled(), p.shape().rows));
        let matched = objective.matches_in(epoch, every, filled, rows);
        let targets = if matched { Targets::Matched } else { Targets::Own };

        self.device.zero(ViewMut::all(&mut self.grads))?;
        self.forward(batch)?;
        self.loss.normalize_images(&self.device, &self.comm, View::all(&self.image.raw))?;
        self.loss.normalize_texts(&self.device, &self.comm, View::all(&self.text.raw))?;
        if let (true, Some(pool)) = (matched, &mut self.pool) {
            let (queries, substitutes) = self.loss.for_matching();
            pool.lookup(&self.device, queries, substitutes)?;
        }
        let (weights, slot) = (&self.weights, self.logit_scale.slot);
        let loss = self.loss.forward(&self.device, &self.comm, weights, slot, targets)?;
        if !loss.is_finite() {
            return self.refuse("loss", batch);
        }
        self.backward(batch, targets)?;
        self.comm.all_reduce_sum(&self.device, ViewMut::all(&mut self.grads))?;

        let lr = self
            .options
            .schedule
            .at(objective.schedule_step(self.steps, self.options.steps_per_epoch));
        let freeze = matched && objective.freezes_text();
        let text = if freeze { TextUpdate::Freeze } else { TextUpdate::Train };
        let (weights, grads) = (&mut self.weights, &self.grads);
        let grad_norm = self.optimizer.step(&self.device, weights, grads, lr, text)?;
        if !grad_norm.is_finite() {
            return self.refuse("gradient", batch);
        }
        self.logit_scale.clamp(&self.device, &mut self.weights)?;
        // Only now, so that no caption of this step could have been chosen.
        if let (true, Some(pool)) = (objective.inserts_in(epoch, every), &mut self.pool) {
            pool.insert(&self.device, self.loss.all_texts())?;
        }
        self.steps += 1;
        let logit_scale = self.scale()?;
        Ok(Outcome::Stepped(Report { loss, grad_norm, lr, logit_scale, matched }))
    }

    /// Raw features of all pairs, one micro-batch after another.
    fn forward(&mut self, batch: &Batch) -> Result<()> {
        for part in 0..self.options.accum_freq {
            self.forward_image(batch, part)?;
            self.forward_text(batch, part)?;
        }
        Ok(())
    }

    fn forward_image(&mut self, batch: &Batch, part: usize) -> Result<()> {
        let (n, width) = (self.options.micro_batch, self.model.config().embed_dim);
        let pixels = &batch.images[part * self.pixels_per_pass()..][..self.pixels_per_pass()];
        self.device.upload(pixels, ViewMut::all(&mut self.pixels))?;
        let images = View::all(&self.pixels);
        let out = ViewMut::of(&mut self.image.raw, part * n * width..(part + 1) * n * width);
        self.model.encode_image(&self.device, &self.weights, images, out)
    }

    fn forward_text(&mut self, batch: &Batch, part: usize) -> Result<()> {
        let (n, width) = (self.options.micro_batch, self.model.config().embed_dim);
        self.captions.clear();
        (part * n..(part + 1) * n).for_each(|pair| self.captions.push(batch.captions.get(pair)));
        let out = ViewMut::of(&mut self.text.raw, part * n * width..(part + 1) * n * width);
        self.model.encode_text(&self.device, &self.weights, &self.captions, out)
    }

    fn pixels_per_pass(&self) -> usize {
        D::len(&self.pixels)
    }

    /// Gradients of all parameters.
    ///
    /// With several passes the activations of all but the last are gone: beginning with the last,
    /// each other one runs forward again before it runs backward. The loss saw all pairs at once,
    /// so the gradient is that of the whole batch (Gao, Zhang, Han, Callan 2021; open_clip's
    /// `--accum-freq`).
    fn backward(&mut self, batch: &Batch, targets: Targets) -> Result<()> {
        let learns_text = targets == Targets::Own;
        let d_text = learns_text.then(|| ViewMut::all(&mut self.text.grad));
        let d_image = ViewMut::all(&mut self.image.grad);
        let (device, slot) = (&self.device, self.logit_scale.slot);
        let (weights, grads) = (&self.weights, &mut self.grads);
        self.loss.backward(device, weights, slot, targets, d_image, d_text, grads)?;
        let (n, width) = (self.options.micro_batch, self.model.config().embed_dim);
        let passes = self.options.accum_freq;
        for part in (0..passes).rev() {
            let rows = part * n * width..(part + 1) * n * width;
            let is_gone = part + 1 < passes;
            if is_gone {
                self.forward_image(batch, part)?;
            }
            let dout = View::of(&self.image.grad, rows.clone());
            self.model.backward_image(&self.device, &self.weights, dout, &mut self.grads)?;
            if !learns_text {
                continue;
            }
            if is_gone {
                self.forward_text(batch, part)?;
            }
            let dout = View::of(&self.text.grad, rows);
            self.model.backward_text(&self.device, &self.weights, dout, &mut self.grads)?;
        }
        Ok(())
    }

    fn refuse(&self, what: &'static str, batch: &Batch) -> Result<Outcome> {
        let width = self.model.config().embed_dim;
        let mut rows = self.image.broken_rows(&self.device, width)?;
        rows.extend(self.text.broken_rows(&self.device, width)?);
        rows.sort_unstable();
        rows.dedup();
        let suspects = match rows.as_slice() {
            [] => batch.samples.clone(),
            rows => rows.iter().map(|&n| batch.samples[n].clone()).collect(),
        };
        Ok(Outcome::Refused(Refusal { what, suspects }))
    }

    /// `exp(logit_scale)`.
    fn scale(&self) -> Result<f64> {
        let mut value = [D::Acc::default()];
        self.device.read_weights(&self.weights, self.logit_scale.slot, &mut value)?;
        Ok(value[0].to_f64().exp())
    }

    /// What the pool answered in the last step, if that was a matched one.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn matches(&self) -> Result<Option<Matches>> {
        self.pool.as_ref().map(|pool| pool.matches(&self.device)).transpose()
    }

    /// What every step has in common.
    pub fn options(&self) -> &StepOptions {
        &self.options
    }

    /// Pairs of one step, all ranks.
    pub fn pairs_per_step(&self) -> u64 {
        let local = self.options.micro_batch * self.options.accum_freq;
        (local * self.comm.world_size()) as u64
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Captions in the pool and its size; `None` where there is no pool.
    pub fn pool(&self) -> Option<(usize, usize)> {
        self.pool.as_ref().map(|pool| (pool.filled(), pool.shape().rows))
    }

    /// What evaluation needs: the device, the encoders and their parameters.
    pub fn for_eval(&mut self) -> (&D, &mut Clip<D>, &D::Weights) {
        (&self.device, &mut self.model, &self.weights)
    }

    /// The parameters under open_clip's names.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn save_weights(&self, state: &mut State) -> Result<()> {
        for param in self.model.params().iter() {
            let mut values = vec![D::Acc::default(); param.slot.len];
            self.device.read_weights(&self.weights, param.slot, &mut values)?;
            let values = values.into_iter().map(|x| x.to_f64() as f32).collect();
            state.put(param.name.clone(), &param.shape, values);
        }
        Ok(())
    }

    /// Parameters, moments, pool and step count.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn save(&self, state: &mut State) -> Result<()> {
        self.save_weights(state)?;
        self.optimizer.save(&self.device, state)?;
        if let Some(pool) = &self.pool {
            pool.save(&self.device, state)?;
        }
        state.values.insert("step".into(), self.steps.into());
        Ok(())
    }

    /// Takes back what [`Trainer::save`] wrote. `path` names the file in errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where a tensor or field is missing or of another size.
    pub fn load(&mut self, state: &State, path: &Path) -> Result<()> {
        let mut values = vec![D::Acc::default(); self.model.params().len()];
        for param in self.model.params().iter() {
            let tensor = state.tensor(path, &param.name, &param.shape)?;
            let to = &mut values[param.slot.range()];
            to.iter_mut().zip(tensor).for_each(|(to, &x)| *to = D::Acc::from_f64(x.into()));
        }
        self.optimizer.load(&self.device, state, path)?;
        if let Some(pool) = &mut self.pool {
            pool.load(&self.device, state, path)?;
        }
        self.steps = state.value(path, "step")?;
        self.device.set_weights(&mut self.weights, &values)
    }
}
