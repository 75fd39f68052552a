//! Ranks as threads of one process, which meet at a barrier.

use roclip::backend::{Communicator, Device, Element, Float, View, ViewMut};
use roclip::error::Result;
use std::sync::{Arc, Barrier, Mutex};

/// One rank of a world of threads.
pub struct ThreadsComm {
    rank: usize,
    is_alone: bool,
    shared: Arc<Shared>,
}

struct Shared {
    barrier: Barrier,
    /// What each rank handed in last.
    values: Mutex<Vec<Vec<u8>>>,
}

impl ThreadsComm {
    /// The ranks of a world; each goes to a thread of its own.
    pub fn world(size: usize) -> Vec<Self> {
        let values = Mutex::new(vec![Vec::new(); size]);
        let shared = Arc::new(Shared { barrier: Barrier::new(size), values });
        let is_alone = size == 1;
        (0..size).map(|rank| Self { rank, is_alone, shared: shared.clone() }).collect()
    }

    /// A single rank, which exchanges all the same.
    pub fn with_itself() -> Self {
        let rank = Self::world(1).pop().expect("one rank");
        Self { is_alone: false, ..rank }
    }

    /// What all ranks hand in, once all have.
    fn exchange<D: Device, T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
    ) -> Result<Vec<Vec<T>>> {
        let local = device.to_vec(local)?;
        self.shared.values.lock().unwrap()[self.rank] = bytemuck::cast_slice(&local).to_vec();
        self.shared.barrier.wait();
        let all = self.shared.values.lock().unwrap().clone();
        self.shared.barrier.wait();
        Ok(all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
    }
}

impl<D: Device> Communicator<D> for ThreadsComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.values.lock().unwrap().len()
    }

    fn is_alone(&self) -> bool {
        self.is_alone
    }

    fn all_gather<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        device.upload(&self.exchange(device, local)?.concat(), all)
    }

    fn all_to_all<T: Element>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        let ranks = self.exchange(device, local)?;
        let block = local.len / ranks.len();
        let mine = ranks.iter().flat_map(|rank| &rank[self.rank * block..][..block]);
        device.upload(&mine.copied().collect::<Vec<_>>(), all)
    }

    fn all_reduce_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        let ranks = self.exchange(device, values.view())?;
        let mut sum = vec![0.0; values.len];
        for rank in ranks {
            sum.iter_mut().zip(rank).for_each(|(s, x)| *s += x.to_f64());
        }
        let sum: Vec<D::Acc> = sum.into_iter().map(D::Acc::from_f64).collect();
        device.upload(&sum, values)
    }

    fn begin_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        self.all_reduce_sum(device, values)
    }

    fn end_sums(&self, _: &D, _: ViewMut<'_, D, D::Acc>) -> Result<()> {
        Ok(())
    }
}
