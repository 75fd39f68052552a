//! A communicator whose waiting is told.

use super::watch::Watch;
use crate::backend::{Communicator, Device, Element, View, ViewMut};
use crate::error::Result;
use std::sync::Arc;

/// A communicator that tells the watch when it may wait for other ranks, so that whoever keeps them
/// waiting can be told from those who wait.
pub struct Watched<C> {
    /// What exchanges.
    pub comm: Arc<C>,
    /// Who is told.
    pub watch: Watch,
}

impl<D: Device, C: Communicator<D> + Sync> Communicator<D> for Watched<C> {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world_size(&self) -> usize {
        self.comm.world_size()
    }

    fn is_alone(&self) -> bool {
        self.comm.is_alone()
    }

    fn all_gather<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        let _waiting = self.watch.wait();
        self.comm.all_gather(device, local, all)
    }

    fn all_to_all<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        let _waiting = self.watch.wait();
        self.comm.all_to_all(device, local, all)
    }

    fn all_reduce_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        let _waiting = self.watch.wait();
        self.comm.all_reduce_sum(device, values)
    }

    fn begin_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        self.comm.begin_sum(device, values)
    }

    fn end_sums(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        let _waiting = self.watch.wait();
        self.comm.end_sums(device, values)
    }
}
