//! Several processes as one: what ranks exchange during a step.

use super::{Device, Element, View, ViewMut};
use crate::error::Result;

/// The collective operations of a step. All ranks call the same ones in the same order.
///
/// As the device's, they may only be enqueued when they return. [`crate::Error::Device`] where
/// another rank is gone.
pub trait Communicator<D: Device>: Send {
    /// This process, `0 <= rank < world_size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// Whether nothing need be exchanged. A single rank of a communicator that moves data may say
    /// no: then it exchanges with itself whatever several would, to test and to time that.
    fn is_alone(&self) -> bool {
        self.world_size() == 1
    }

    /// Lays the `local` views of all ranks, of equal lengths, end to end, in rank order.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_gather<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()>;

    /// Sends the `n`-th of the equal blocks of `local`, of which there are as many as ranks, to
    /// rank `n`, and lays the blocks that come, from each rank one, end to end, in rank order.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_to_all<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()>;

    /// Replaces every rank's values by their sum over ranks: the same bits on each, and the same
    /// again for the same values.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_reduce_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()>;

    /// As [`Communicator::all_reduce_sum`], but beside whatever the device does next. Until
    /// [`Communicator::end_sums`] nobody touches these values, and no rank calls anything but this
    /// and [`Communicator::all_reduce_sum`], for other values.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn begin_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()>;

    /// The sums that were begun, all of parts of `values`, are there. Values that are begun in
    /// other pieces may get other bits.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn end_sums(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()>;
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

    fn all_gather<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        device.copy(local, all)
    }

    fn all_to_all<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        device.copy(local, all)
    }

    fn all_reduce_sum(&self, _: &D, _: ViewMut<'_, D, D::Acc>) -> Result<()> {
        Ok(())
    }

    fn begin_sum(&self, _: &D, _: ViewMut<'_, D, D::Acc>) -> Result<()> {
        Ok(())
    }

    fn end_sums(&self, _: &D, _: ViewMut<'_, D, D::Acc>) -> Result<()> {
        Ok(())
    }
}
