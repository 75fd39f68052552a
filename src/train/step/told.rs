//! What a trainer tells of itself and of its last step.

use super::{Features, Outcome, Refusal, StepOptions, Trainer};
use crate::backend::ops::batchnorm::Statistics;
use crate::backend::{Backend, Communicator, Device, Float, View};
use crate::encode::{Clip, ClipConfig};
use crate::error::Result;
use crate::flow::{Batch, Matches};
use crate::matching::CaptionPool;

impl<D: Device> Features<D> {
    /// Rows among the first so many numbers that are not all finite.
    fn broken_rows(&self, device: &D, width: usize, len: usize) -> Result<Vec<usize>> {
        let raw = device.to_vec(View::of(&self.raw, 0..len))?;
        let broken = |row: &[D::Act]| !row.iter().all(|x| x.to_f64().is_finite());
        Ok(raw.chunks(width).enumerate().filter(|(_, row)| broken(row)).map(|(n, _)| n).collect())
    }
}

impl<D: Backend, C: Communicator<D>> Trainer<D, C> {
    /// A step whose loss or gradients are not finite.
    pub(super) fn refuse(&self, what: &'static str, batch: &Batch) -> Result<Outcome> {
        let (width, len) = (self.model.config().embed_dim, self.all_rows().end);
        let mut rows = self.image.broken_rows(&self.device, width, len)?;
        rows.extend(self.text.broken_rows(&self.device, width, len)?);
        // Rows are pairs, view after view.
        rows.iter_mut().for_each(|row| *row %= batch.len());
        rows.sort_unstable();
        rows.dedup();
        let suspects = match rows.as_slice() {
            [] => batch.samples.clone(),
            rows => rows.iter().map(|&n| batch.samples[n].clone()).collect(),
        };
        let singled_out = !rows.is_empty();
        Ok(Outcome::Refused(Refusal { what, suspects, singled_out }))
    }

    /// What the pool answered in the last matched step.
    pub fn matches(&self) -> Option<&Matches> {
        self.pool.as_ref().map(CaptionPool::latest)
    }

    /// `[N]` cosine of each picture and its own caption in the last step, matched or not.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn own_similarities(&self) -> Result<Vec<f32>> {
        let own = self.device.to_vec(View::all(&self.own))?;
        Ok(own.into_iter().map(|x| x.to_f64() as f32).collect())
    }

    /// What every step has in common.
    pub fn options(&self) -> &StepOptions {
        &self.options
    }

    /// Pairs of one step, all ranks.
    pub fn pairs_per_step(&self) -> u64 {
        (self.options.pairs() * self.comm.world_size()) as u64
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Rows in a pool and its size; `None` where there is no pool.
    pub fn pool(&self) -> Option<(usize, usize)> {
        self.pool.as_ref().map(|pool| (pool.filled(), pool.shape().rows))
    }

    /// What was built.
    pub fn config(&self) -> &ClipConfig {
        self.model.config()
    }

    /// What evaluation needs: the device, the encoders, which use running statistics until the
    /// next step, and their parameters.
    pub fn for_eval(&mut self) -> (&D, &mut Clip<D>, &D::Weights) {
        self.model.set_statistics(Statistics::Running);
        (&self.device, &mut self.model, &self.weights)
    }
}
