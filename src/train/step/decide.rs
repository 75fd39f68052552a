//! What a step will be, and what the pools have to do with it.

use super::{StepOptions, Trainer};
use crate::backend::{Backend, Communicator};
use crate::error::Result;
use crate::flow::Batch;
use crate::matching::{CaptionPool, Variant};
use crate::objective::Targets;
use crate::optim::TextUpdate;
use crate::train::objective::{Objective, SafeClip};

/// What was decided before a step began.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub targets: Targets,
    pub lr: f64,
    /// Whether its embeddings enter the pools.
    pub inserts: bool,
}

impl<D: Backend, C: Communicator<D>> Trainer<D, C> {
    /// What the step of `epoch`, from 0, will be; brings its rates to the device.
    pub(super) fn decide(&mut self, epoch: u64) -> Result<Pending> {
        let StepOptions { objective, match_every, schedule, steps_per_epoch, .. } = self.options;
        if let Objective::SafeClip(options) = objective {
            return self.decide_safeclip(options, epoch);
        }
        let (filled, rows) = self.pool().unwrap_or((0, 0));
        let variant = objective.variant();
        let matched = variant.is_some_and(|v| v.matches_in(epoch + 1, match_every, filled, rows));
        let targets = if matched { Targets::Matched } else { Targets::Own };
        let step = variant.map_or(self.steps, |v| v.schedule_step(self.steps, steps_per_epoch));
        let lr = schedule.at(step);
        let freeze = matched && variant.is_some_and(Variant::freezes_text);
        let text = if freeze { TextUpdate::Freeze } else { TextUpdate::Train };
        self.optimizer.prepare(&self.device, lr, text)?;
        let inserts = variant.is_some_and(|v| v.inserts_in(epoch + 1, match_every));
        Ok(Pending { targets, lr, inserts })
    }

    /// Two views of each pair are for each modality alone, one is for CLIP's loss.
    fn decide_safeclip(&mut self, options: SafeClip, epoch: u64) -> Result<Pending> {
        let targets = match (self.views, self.filled()) {
            (1, _) => Targets::Own,
            (_, 0) => Targets::FirstViews,
            _ => Targets::Neighbours,
        };
        let schedule = self.options.schedule;
        let is_low = epoch == options.warmup_epochs;
        let lr = if is_low { schedule.lr * options.lr_factor } else { schedule.at(self.steps) };
        self.optimizer.prepare(&self.device, lr, TextUpdate::Train)?;
        Ok(Pending { targets, lr, inserts: targets.is_unimodal() })
    }

    /// Asks the pools for what the step compares with.
    pub(super) fn look_up(&mut self, targets: Targets) -> Result<()> {
        let pools = [&mut self.image_pool, &mut self.pool];
        match (targets, pools) {
            (Targets::Matched, [_, Some(pool)]) => {
                let (queries, substitutes) = self.loss.for_matching();
                pool.lookup(&self.device, &self.comm, queries, substitutes)
            }
            (Targets::Neighbours, pools) => {
                let lookups = pools.into_iter().flatten().zip(self.loss.for_neighbours());
                for (pool, (queries, neighbours)) in lookups {
                    pool.lookup(&self.device, &self.comm, queries, neighbours)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The step's embeddings, of all ranks, enter the pools.
    pub(super) fn insert(&mut self, batch: &Batch) -> Result<()> {
        let places = self.places.gather(&self.device, &self.comm, batch)?;
        let insert = |pool: &mut Option<CaptionPool<D>>, rows| {
            let insert = |pool: &mut CaptionPool<D>| pool.insert(&self.device, rows, places);
            pool.as_mut().map_or(Ok(()), insert)
        };
        insert(&mut self.pool, self.loss.all_texts())?;
        insert(&mut self.image_pool, self.loss.all_images())
    }
}
