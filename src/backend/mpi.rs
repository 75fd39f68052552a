//! MPI moves what ranks on CPUs exchange. `mpirun` or `srun` started them.
//!
//! A thread of its own sums gradients while the others go on with the backward: MPI gets on with an
//! operation only while somebody is within one of its calls. That thread has started MPI, and ends
//! it. All calls are one after another (`MPI_THREAD_SERIALIZED`), in the order in which they were
//! asked for.

use super::cpu::{Cpu, CpuFloat};
use super::{Communicator, Element, View, ViewMut};
use crate::error::{Error, Result};
use ferrompi::{MpiDatatype, ReduceOp, ThreadLevel};
use std::any::Any;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// All ranks that were started together (`MPI_COMM_WORLD`).
pub struct Mpi {
    world: ferrompi::Communicator,
    /// To the thread; closed, it ends.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Where the sums go that are under way, and how they come back.
    begun: Mutex<Vec<(Range<usize>, Receiver<Summed>)>>,
    /// Room for values on their way, from one step to the next.
    spare: Mutex<Vec<Values>>,
}

type Job = Box<dyn FnOnce(&ferrompi::Communicator) + Send>;
/// A vector of whatever type is summed.
type Values = Box<dyn Any + Send>;
type Summed = Result<Values, ferrompi::Error>;

/// What is there stays whole, whoever panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> Error {
    Error::Device("MPI: its thread has ended".into())
}

fn failed(error: ferrompi::Error) -> Error {
    Error::Device(format!("MPI: {error}"))
}

/// What is sent and what comes, of whatever type, as MPI moves it.
fn bytes<'a, F: CpuFloat, T: Element>(
    local: View<'a, Cpu<F>, T>,
    all: ViewMut<'a, Cpu<F>, T>,
) -> (&'a [u8], &'a mut [u8]) {
    (bytemuck::cast_slice(local.slice()), bytemuck::cast_slice_mut(all.slice_mut()))
}

impl Mpi {
    /// Starts MPI. Once in a process.
    ///
    /// # Errors
    /// [`Error::Distributed`] where MPI does not start, or its library cannot be called from two
    /// threads in turn.
    pub fn start() -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (tell, told) = channel();
        let run = move || {
            let mpi = match ferrompi::Mpi::init_thread(ThreadLevel::Serialized) {
                Ok(mpi) if mpi.thread_level() >= ThreadLevel::Serialized => mpi,
                Ok(_) => {
                    let reason = "MPI serves one thread only (MPI_THREAD_SERIALIZED is needed)";
                    return drop(tell.send(Err(reason.to_owned())));
                }
                Err(error) => return drop(tell.send(Err(error.to_string()))),
            };
            let _ = tell.send(Ok(mpi.world()));
            let world = mpi.world();
            inbox.into_iter().for_each(|job| job(&world));
        };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(run);
        let thread = thread.map_err(|e| Error::Distributed(format!("no thread for MPI: {e}")))?;
        let world = told.recv().unwrap_or_else(|_| Err("its thread has ended".into()));
        let world = world.map_err(|e| Error::Distributed(format!("MPI does not start: {e}")))?;
        Ok(Self {
            world,
            jobs: Some(jobs),
            thread: Some(thread),
            begun: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// Number of processes that MPI knows of.
    pub fn size(&self) -> usize {
        self.world.size() as usize
    }

    /// The smallest spare room that is enough. Steps sum the same places, so that after the first
    /// one there is as much of it as gradients.
    fn room<F: CpuFloat>(&self, len: usize) -> Vec<F> {
        let mut spare = locked(&self.spare);
        let capacity = |room: &Values| room.downcast_ref::<Vec<F>>().map_or(0, Vec::capacity);
        let enough = (0..spare.len()).filter(|&n| capacity(&spare[n]) >= len);
        match enough.min_by_key(|&n| capacity(&spare[n])) {
            Some(n) => *spare.swap_remove(n).downcast().expect("a run has one type"),
            None => Vec::with_capacity(len),
        }
    }

    /// Has the thread sum values over ranks, behind all that it was asked for before.
    fn sum<F: CpuFloat + MpiDatatype>(&self, from: &[F]) -> Result<Receiver<Summed>> {
        let mut values = self.room::<F>(from.len());
        values.clear();
        values.extend_from_slice(from);
        let (tell, told) = channel();
        let job: Job = Box::new(move |world| {
            let summed = world.allreduce_inplace(&mut values, ReduceOp::Sum);
            let _ = tell.send(summed.map(|()| Box::new(values) as Values));
        });
        let jobs = self.jobs.as_ref().expect("open until it is dropped");
        jobs.send(job).map_err(|_| ended())?;
        Ok(told)
    }

    /// The sum that this gives, once it is there.
    fn summed<F: CpuFloat>(&self, told: &Receiver<Summed>, to: &mut [F]) -> Result<()> {
        let summed = told.recv().map_err(|_| ended())?.map_err(failed)?;
        to.copy_from_slice(summed.downcast_ref::<Vec<F>>().expect("a run has one type"));
        locked(&self.spare).push(summed);
        Ok(())
    }

    /// What rank 0 hands in, everywhere.
    ///
    /// # Errors
    /// [`Error::Device`] where another rank is gone.
    pub fn broadcast(&self, mut said: Vec<u8>) -> Result<Vec<u8>> {
        let mut len = [said.len() as u64];
        self.world.broadcast(&mut len, 0).map_err(failed)?;
        said.resize(len[0] as usize, 0);
        self.world.broadcast(&mut said, 0).map_err(failed)?;
        Ok(said)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Its panic stands on standard error.
            let _ = thread.join();
        }
    }
}

impl<F: CpuFloat + MpiDatatype> Communicator<Cpu<F>> for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.size()
    }

    fn is_alone(&self) -> bool {
        false
    }

    fn all_gather<T: Element>(
        &self,
        _: &Cpu<F>,
        local: View<'_, Cpu<F>, T>,
        all: ViewMut<'_, Cpu<F>, T>,
    ) -> Result<()> {
        let (local, all) = bytes(local, all);
        self.world.allgather(local, all).map_err(failed)
    }

    fn all_to_all<T: Element>(
        &self,
        _: &Cpu<F>,
        local: View<'_, Cpu<F>, T>,
        all: ViewMut<'_, Cpu<F>, T>,
    ) -> Result<()> {
        let (local, all) = bytes(local, all);
        self.world.alltoall(local, all).map_err(failed)
    }

    fn all_reduce_sum(&self, _: &Cpu<F>, values: ViewMut<'_, Cpu<F>, F>) -> Result<()> {
        let values = values.slice_mut();
        self.summed(&self.sum(values)?, values)
    }

    fn begin_sum(&self, _: &Cpu<F>, values: ViewMut<'_, Cpu<F>, F>) -> Result<()> {
        let place = values.offset..values.offset + values.len;
        let told = self.sum(values.slice_mut())?;
        locked(&self.begun).push((place, told));
        Ok(())
    }

    fn end_sums(&self, _: &Cpu<F>, values: ViewMut<'_, Cpu<F>, F>) -> Result<()> {
        let start = values.offset;
        let values = values.slice_mut();
        let begun = std::mem::take(&mut *locked(&self.begun));
        begun.into_iter().try_for_each(|(place, told)| {
            self.summed(&told, &mut values[place.start - start..place.end - start])
        })
    }
}
