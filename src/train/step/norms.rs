//! Batch norms that see the pictures of all ranks (`--use-bn-sync`).

use crate::backend::ops::batchnorm::{self, BatchNormStats};
use crate::backend::{Communicator, Device, View, ViewMut};
use crate::encode::Clip;
use crate::encode::batchnorm::NormRanks;
use crate::error::Result;
use std::cell::RefCell;

/// Room for the statistics of a norm, this rank's and those of all.
pub(super) struct NormRoom<D: Device> {
    local: D::Buf<D::Acc>,
    all: D::Buf<D::Acc>,
}

impl<D: Device> NormRoom<D> {
    /// For any norm of a model.
    pub fn new(device: &D, comm: &impl Communicator<D>, model: &Clip<D>) -> Result<Self> {
        let channels = model.params().buffers().map(|buffer| buffer.slot.len).max().unwrap_or(0);
        let all = device.alloc(comm.world_size() * 2 * channels)?;
        Ok(Self { local: device.alloc(2 * channels)?, all })
    }
}

/// The ranks of a communicator.
pub(super) struct SyncedNorms<'a, D: Device, C> {
    comm: &'a C,
    room: RefCell<&'a mut NormRoom<D>>,
}

impl<'a, D: Device, C: Communicator<D>> SyncedNorms<'a, D, C> {
    /// Until they are asked for again.
    pub fn new(comm: &'a C, room: &'a mut NormRoom<D>) -> Self {
        Self { comm, room: RefCell::new(room) }
    }
}

impl<D: batchnorm::BatchNorm, C: Communicator<D>> NormRanks<D> for SyncedNorms<'_, D, C> {
    fn world_size(&self) -> usize {
        self.comm.world_size()
    }

    fn merge(&self, device: &D, stats: &mut BatchNormStats<D>) -> Result<()> {
        let mut room = self.room.borrow_mut();
        let NormRoom { local, all } = &mut **room;
        let (channels, ranks) = (D::len(&stats.mean), self.comm.world_size());
        let pair = 2 * channels;
        device.copy(View::all(&stats.mean), ViewMut::of(local, 0..channels))?;
        device.copy(View::all(&stats.var), ViewMut::of(local, channels..pair))?;
        let to = ViewMut::of(all, 0..ranks * pair);
        self.comm.all_gather(device, View::of(local, 0..pair), to)?;
        batchnorm::merge(device, View::of(all, 0..ranks * pair), stats)
    }

    fn sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        self.comm.all_reduce_sum(device, values)
    }
}
