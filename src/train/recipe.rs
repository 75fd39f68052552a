//! What a trainer is made of, before it is made.

use super::step::{Parts, StepOptions};
use crate::backend::{Backend, Communicator, Device};
use crate::encode::{Clip, ClipConfig, Keep};
use crate::error::Result;
use crate::flow::Locks;
use crate::matching::{CaptionPool, PoolPart, PoolShape};
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
    /// Rows of a pool, where the objective has one.
    pub pool_rows: usize,
    /// Whether each rank holds a part of these, not all of them. Results are the same.
    pub shard_pool: bool,
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
        Clip::locked(device, &self.model, self.step.rows(), self.keep, self.locks)
    }

    /// The optimiser, with moments of 0.
    ///
    /// # Errors
    /// Those of [`Optimizer::new`].
    pub fn optimizer<D: Device>(&self, device: &D, model: &Clip<D>) -> Result<Optimizer<D>> {
        Optimizer::new(device, model.params(), self.adamw, self.decay)
    }

    /// What this rank holds of the pools of captions and of images, as far as the objective has
    /// them; not started.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn pools<D: Device>(
        &self,
        device: &D,
        comm: &impl Communicator<D>,
    ) -> Result<[Option<CaptionPool<D>>; 2]> {
        let (objective, rows) = (self.step.objective, self.pool_rows);
        let queries = self.step.pairs();
        let own = PoolPart { number: comm.rank(), of: comm.world_size() };
        let part = if self.shard_pool { own } else { PoolPart::WHOLE };
        let shape = PoolShape { rows, width: self.model.embed_dim, queries, part };
        let room = |number| {
            let is_there = number < objective.pools();
            let variant = objective.variant().unwrap_or_default();
            is_there.then(|| CaptionPool::room(device, variant, shape)).transpose()
        };
        Ok([room(0)?, room(1)?.map(CaptionPool::of_images)])
    }

    /// All parts of a trainer that begins with `weights`, and pools as the objective starts them.
    ///
    /// # Errors
    /// Those of the parts, and of the device.
    pub fn parts<D: Backend>(
        &self,
        device: &D,
        comm: &impl Communicator<D>,
        weights: D::Weights,
        seed: u64,
    ) -> Result<Parts<D>> {
        let model = self.clip(device)?;
        let (optimizer, mut pools) = (self.optimizer(device, &model)?, self.pools(device, comm)?);
        pools.iter_mut().flatten().try_for_each(|pool| pool.start(device, seed))?;
        let [pool, image_pool] = pools;
        Ok(Parts { weights, optimizer, pool, image_pool, model })
    }
}
