//! The device of a rank, and how it reaches the others.

use super::device::DeviceName;
#[cfg(feature = "mpi")]
use crate::backend::mpi::Mpi;
use crate::backend::{Backend, Communicator, Solo};
use crate::distributed::{Group, GroupOptions, Launch};
#[cfg(any(feature = "mpi", feature = "cuda"))]
use crate::distributed::{Watched, meeting};
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
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(number) => on_gpus(number, launch, options, work),
        #[cfg(feature = "sim")]
        DeviceName::Sim => Err(cannot_talk(name, launch, "one process")),
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
    let device = Cpu::<f32>::new(threads.unwrap_or_else(super::cores))?;
    let mpi = Mpi::start()?;
    if mpi.size() != launch.world_size {
        let expected = "mpirun, or srun with an MPI that it can start (srun --mpi=pmix; srun \
                        --mpi=list names those that there are): MPI sees another number of ranks";
        return Err(cannot_talk(DeviceName::Cpu, launch, expected));
    }
    let mut tell = |said| mpi.broadcast(said);
    let at = meeting(launch, options.timeout, Some(&mut tell))?;
    let group = Group::meet(launch, at, options)?;
    together(group, || Ok((device, mpi)), work)
}

/// Each rank has the GPU of its number on its machine, or the only one that it is shown.
#[cfg(feature = "cuda")]
fn on_gpus<W: RankedWork>(
    number: Option<usize>,
    launch: &Launch,
    options: GroupOptions,
    work: W,
) -> Result<W::Done> {
    use crate::backend::cuda::{Card, Gpu, nccl};
    let at = meeting(launch, options.timeout, None)?;
    let group = Group::meet(launch, at, options)?;
    let (rank, world_size) = (launch.rank, launch.world_size);
    let own = || if Card::count() == 1 { 0 } else { launch.local_rank };
    let watch = group.watch().clone();
    let id = if group.is_first() { nccl::unique_id() } else { Ok(Vec::new()) };
    let id = id.and_then(|id| group.first_has(id));
    let join = || {
        watch.enter("meeting the other ranks' GPUs");
        let card = Card::open(number.unwrap_or_else(own))?;
        let comm = nccl::Nccl::join(&card, &id?, rank, world_size)?;
        Ok((Gpu::new(card)?, comm))
    };
    together(group, join, work)
}

/// Does the work on what `open` gives: from here on an error of one rank is all ranks' end.
#[cfg(any(feature = "mpi", feature = "cuda"))]
fn together<W: RankedWork, D: Backend, C: Communicator<D> + Sync>(
    group: Group,
    open: impl FnOnce() -> Result<(D, C)>,
    work: W,
) -> Result<W::Done> {
    let opened = open().map(|(device, comm)| (device, std::sync::Arc::new(comm)));
    let done = opened.and_then(|(device, comm)| {
        let watched = Watched { comm: comm.clone(), watch: group.watch().clone() };
        let done = work.on(device, watched, &group);
        if done.is_err() {
            // To end in order, it would wait for ranks that will never come.
            std::mem::forget(comm);
        }
        done
    });
    done.map_err(|error| group.fail(error))
}
