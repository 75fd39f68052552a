//! The device of a rank, and how it reaches the others.

use super::device::DeviceName;
use crate::backend::{Backend, Communicator, Solo};
use crate::distributed::{Group, GroupOptions, Launch};
use crate::error::{Error, Result};

/// What one of several processes does on whichever device was asked for.
pub trait RankedWork {
    /// What it comes to.
    type Done;

    /// Does it.
    ///
    /// # Errors
    /// Its own.
    fn on<D: Backend, C: Communicator<D>>(
        self,
        device: D,
        comm: C,
        group: &Group,
    ) -> Result<Self::Done>;
}

/// Meets the other ranks of this launch, opens the device of this one and does that on it. An
/// error, once ranks have met, ends all of them, and rank 0 tells of it; `options` say who is told
/// elsewhere.
///
/// # Errors
/// [`Error::Option`] where ranks on this device cannot talk in this build;
/// [`Error::Distributed`] where they do not meet; those of [`DeviceName::run`] and of the work.
pub fn run_ranks<W: RankedWork>(
    name: DeviceName,
    threads: Option<usize>,
    launch: &Launch,
    options: GroupOptions,
    work: W,
) -> Result<W::Done> {
    match name {
        _ if launch.world_size == 1 => name.run(threads, OnOne(work)),
        DeviceName::Cpu => on_cpus(threads, launch, options, work),
        #[cfg(any(feature = "cuda", feature = "sim"))]
        _ => Err(cannot_talk(name, launch, "one process for each run, or --device cpu")),
    }
}

/// A process of its own.
struct OnOne<W>(W);

impl<W: RankedWork> super::Work for OnOne<W> {
    type Done = W::Done;

    fn on<D: Backend>(self, device: D) -> Result<W::Done> {
        self.0.on(device, Solo, &Group::solo())
    }
}

fn cannot_talk(name: DeviceName, launch: &Launch, expected: &str) -> Error {
    Error::Option {
        flag: format!("--device {name}"),
        got: format!("{} ranks, started by {}", launch.world_size, launch.launcher),
        expected: expected.into(),
    }
}

#[cfg(not(feature = "mpi"))]
fn on_cpus<W: RankedWork>(
    _: Option<usize>,
    launch: &Launch,
    _: GroupOptions,
    _: W,
) -> Result<W::Done> {
    let expected = "one process, as this build has no MPI (build it with --features mpi)";
    Err(cannot_talk(DeviceName::Cpu, launch, expected))
}

#[cfg(feature = "mpi")]
fn on_cpus<W: RankedWork>(
    threads: Option<usize>,
    launch: &Launch,
    options: GroupOptions,
    work: W,
) -> Result<W::Done> {
    use crate::backend::cpu::Cpu;
    use crate::backend::mpi::Mpi;
    use crate::distributed::{Watched, meeting};
    use std::sync::Arc;
    let mpi = Arc::new(Mpi::start()?);
    if mpi.size() != launch.world_size {
        let expected = "mpirun, or srun with an MPI that it can start (srun --mpi=pmix; srun \
                        --mpi=list names those that there are): MPI sees another number of ranks";
        return Err(cannot_talk(DeviceName::Cpu, launch, expected));
    }
    let mut tell = |said| mpi.broadcast(said);
    let at = meeting(launch, options.timeout, Some(&mut tell))?;
    let group = Group::meet(launch, at, options)?;
    let comm = Watched { comm: Arc::clone(&mpi), watch: group.watch().clone() };
    let device = Cpu::<f32>::new(threads.unwrap_or_else(super::cores))?;
    work.on(device, comm, &group).map_err(|error| {
        // To end MPI in order, it would wait for ranks that will never come.
        std::mem::forget(mpi);
        group.fail(error)
    })
}
