//! Ranks as threads of one process, which meet at a barrier.

use roclip::backend::{Communicator, Device, Element, Float, View, ViewMut};
use roclip::error::Result;
use std::sync::{Arc, Barrier, Mutex};

/// One rank of a world of threads.
pub struct ThreadsComm {
    rank: usize,
    shared: Arc<Shared>,
}

struct Shared {
    barrier: Barrier,
    /// What each rank handed in last. f64 holds every f32 and every f64.
    values: Mutex<Vec<Vec<f64>>>,
}

impl ThreadsComm {
    /// The ranks of a world; each goes to a thread of its own.
    pub fn world(size: usize) -> Vec<Self> {
        let values = Mutex::new(vec![Vec::new(); size]);
        let shared = Arc::new(Shared { barrier: Barrier::new(size), values });
        (0..size).map(|rank| Self { rank, shared: shared.clone() }).collect()
    }

    /// What all ranks hand in, once all have.
    fn exchange<D: Device, T: Element + Float>(
        &self,
        device: &D,
        local: View<'_, D, T>,
    ) -> Result<Vec<Vec<f64>>> {
        let local = device.to_vec(local)?;
        let local = local.into_iter().map(Float::to_f64).collect();
        self.shared.values.lock().unwrap()[self.rank] = local;
        self.shared.barrier.wait();
        let all = self.shared.values.lock().unwrap().clone();
        self.shared.barrier.wait();
        Ok(all)
    }

    fn gather<D: Device, T: Element + Float>(
        &self,
        device: &D,
        local: View<'_, D, T>,
        all: ViewMut<'_, D, T>,
    ) -> Result<()> {
        let values = self.exchange(device, local)?.concat();
        let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
        device.upload(&values, all)
    }
}

impl<D: Device> Communicator<D> for ThreadsComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.values.lock().unwrap().len()
    }

    fn all_gather(
        &self,
        device: &D,
        local: View<'_, D, D::Act>,
        all: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.gather(device, local, all)
    }

    fn all_gather_acc(
        &self,
        device: &D,
        local: View<'_, D, D::Acc>,
        all: ViewMut<'_, D, D::Acc>,
    ) -> Result<()> {
        self.gather(device, local, all)
    }

    fn all_reduce_sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()> {
        let view = View { buf: &*values.buf, offset: values.offset, len: values.len };
        let ranks = self.exchange(device, view)?;
        let mut sum = vec![0.0; values.len];
        for rank in ranks {
            sum.iter_mut().zip(rank).for_each(|(s, x)| *s += x);
        }
        let sum: Vec<D::Acc> = sum.into_iter().map(D::Acc::from_f64).collect();
        device.upload(&sum, values)
    }
}
