//! Several processes as one: what ranks exchange during a step.

use super::{Device, View, ViewMut};
use crate::error::Result;

/// The collective operations of a step. All ranks call the same ones in the same order.
pub trait Communicator<D: Device>: Send {
    /// This process, `0 <= rank < world_size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// Lays the `local` views of all ranks end to end, in rank order.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where another rank is gone.
    fn all_gather(
        &self,
        device: &D,
        local: View<'_, D, D::Act>,
        all: ViewMut<'_, D, D::Act>,
    ) -> Result<()>;

    /// As [`Communicator::all_gather`], for statistics.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where another rank is gone.
    fn all_gather_acc(
        &self,
        device: &D,
        local: View<'_, D, D::Acc>,
        all: ViewMut<'_, D, D::Acc>,
    ) -> Result<()>;

    /// Replaces every rank's values by their sum over ranks, added in rank order.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where another rank is gone.
    fn all_reduce_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()>;
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<D: Device> Communicator<D> for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_gather(
        &self,
        device: &D,
        local: View<'_, D, D::Act>,
        all: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        device.copy(local, all)
    }

    fn all_gather_acc(
        &self,
        device: &D,
        local: View<'_, D, D::Acc>,
        all: ViewMut<'_, D, D::Acc>,
    ) -> Result<()> {
        device.copy(local, all)
    }

    fn all_reduce_sum(&self, _device: &D, _values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        Ok(())
    }
}
