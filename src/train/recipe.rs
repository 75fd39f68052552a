//! What a trainer is made of, before it is made.

use super::step::{Parts, StepOptions};
use crate::backend::{Backend, Device};
use crate::encode::{self, Clip, ClipConfig, Keep};
use crate::error::Result;
use crate::flow::Locks;
use crate::matching::{CaptionPool, PoolShape};
use crate::optim::{AdamWOptions, DecayRule, Optimizer};

/// Everything that decides which buffers a trainer has.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The model.
    pub model: ClipConfig,
    /// What stays of a forward until its backward.
    pub keep: Keep,
    /// What of it stays as it is.
    pub locks: Locks,
    /// Captions of the pool, where the objective has one.
    pub pool_rows: usize,
    /// The optimiser's numbers.
    pub adamw: AdamWOptions,
    /// Which parameters decay.
    pub decay: DecayRule,
    /// What every step has in common.
    pub step: StepOptions,
}

impl Recipe {
    /// The same trainer with other passes.
    pub(super) fn with(&self, micro_batch: usize, accum_freq: usize, keep: Keep) -> Self {
        let step = StepOptions { micro_batch, accum_freq, ..self.step.clone() };
        Self { keep, step, ..self.clone() }
    }

    /// The encoders, with room for one pass.
    ///
    /// # Errors
    /// Those of [`Clip::locked`].
    pub fn clip<D: Device>(&self, device: &D) -> Result<Clip<D>> {
        Clip::locked(device, &self.model, self.step.micro_batch, self.keep, self.locks)
    }

    /// The optimiser, with moments of 0.
    ///
    /// # Errors
    /// Those of [`Optimizer::new`].
    pub fn optimizer<D: Device>(&self, device: &D, model: &Clip<D>) -> Result<Optimizer<D>> {
        Optimizer::new(device, model.params(), self.adamw, self.decay)
    }

    /// The pool, where the objective has one; not started.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn pool<D: Device>(&self, device: &D) -> Result<Option<CaptionPool<D>>> {
        let (objective, rows) = (self.step.objective, self.pool_rows);
        let queries = self.step.micro_batch * self.step.accum_freq;
        let shape = PoolShape { rows, width: self.model.embed_dim, queries };
        objective.has_pool().then(|| CaptionPool::room(device, objective, shape)).transpose()
    }

    /// All parts of a trainer that begins: fresh parameters, and the pool as the objective starts
    /// it.
    ///
    /// # Errors
    /// Those of the parts, and of the device.
    pub fn parts<D: Backend>(&self, device: &D, seed: u64) -> Result<Parts<D>> {
        let model = self.clip(device)?;
        let (optimizer, mut pool) = (self.optimizer(device, &model)?, self.pool(device)?);
        if let Some(pool) = &mut pool {
            pool.start(device, seed)?;
        }
        Ok(Parts { weights: encode::init(device, &self.model, seed)?, optimizer, pool, model })
    }
}
