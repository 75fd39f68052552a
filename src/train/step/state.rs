//! A trainer to a checkpoint and back.

use super::Trainer;
use crate::backend::{Backend, Communicator, Float};
use crate::error::Result;
use crate::flow::State;
use crate::matching::CaptionPool;
use std::path::Path;

impl<D: Backend, C: Communicator<D>> Trainer<D, C> {
    /// The parameters and running statistics under open_clip's names.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    pub fn save_weights(&self, state: &mut State) -> Result<()> {
        for param in self.model.params().weights() {
            let mut values = vec![D::Acc::default(); param.slot.len];
            self.device.read_weights(&self.weights, param.slot, &mut values)?;
            let values = values.into_iter().map(|x| x.to_f64() as f32).collect();
            state.put(param.name.clone(), &param.shape, values);
        }
        Ok(())
    }

    /// Parameters, moments, pools and step count. All of them are the same on each rank, but for
    /// pools in parts: while one rank saves, all others [`Trainer::hand_over`] theirs.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses, or another rank is gone.
    pub fn save(&self, state: &mut State) -> Result<()> {
        self.save_weights(state)?;
        self.optimizer.save(&self.device, state)?;
        self.pools().try_for_each(|pool| pool.save(&self.device, &self.comm, state))?;
        state.values.insert("step".into(), self.steps.into());
        Ok(())
    }

    /// What this rank does in another's [`Trainer::save`].
    ///
    /// # Errors
    /// As [`Trainer::save`].
    pub fn hand_over(&self) -> Result<()> {
        self.pools().try_for_each(|pool| pool.hand_over(&self.device, &self.comm))
    }

    fn pools(&self) -> impl Iterator<Item = &CaptionPool<D>> {
        [&self.pool, &self.image_pool].into_iter().flatten()
    }

    /// Takes back what [`Trainer::save`] wrote. `path` names the file in errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where a tensor or field is missing or of another size.
    pub fn load(&mut self, state: &State, path: &Path) -> Result<()> {
        let mut values = vec![D::Acc::default(); self.model.params().weights_len()];
        for param in self.model.params().weights() {
            let tensor = state.tensor(path, &param.name, &param.shape)?;
            let to = &mut values[param.slot.range()];
            to.iter_mut().zip(tensor).for_each(|(to, &x)| *to = D::Acc::from_f64(x.into()));
        }
        self.optimizer.load(&self.device, state, path)?;
        let pools = [&mut self.pool, &mut self.image_pool];
        pools.into_iter().flatten().try_for_each(|pool| pool.load(&self.device, state, path))?;
        self.steps = state.value(path, "step")?;
        self.device.set_weights(&mut self.weights, &values)
    }
}
