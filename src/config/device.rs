//! The device that a program works on, as `--device` names it.

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda;
use crate::error::Result;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// A device as `--device` names it, in PyTorch's words. A build knows only those it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The CPU.
    Cpu,
    /// The GPU of that number, as `CUDA_VISIBLE_DEVICES` counts; where there is none the first, or
    /// of several ranks each its own.
    #[cfg(feature = "cuda")]
    Cuda(Option<usize>),
    /// An emulated GPU, for tests.
    #[cfg(feature = "sim")]
    Sim,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => return Ok(Self::Cpu),
            #[cfg(feature = "sim")]
            "sim" => return Ok(Self::Sim),
            _ => {}
        }
        let number = match name.split_once(':') {
            None if name == "cuda" => Some(None),
            Some(("cuda", number)) => number.parse::<usize>().ok().map(Some),
            _ => None,
        };
        match number {
            None => Err("expected cpu, cuda or cuda:N".into()),
            #[cfg(feature = "cuda")]
            Some(number) => Ok(Self::Cuda(number)),
            #[cfg(not(feature = "cuda"))]
            Some(_) => Err("this build has no CUDA engine; build it with --features cuda".into()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(None) => f.write_str("cuda"),
            #[cfg(feature = "cuda")]
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
            #[cfg(feature = "sim")]
            Self::Sim => f.write_str("sim"),
        }
    }
}

/// What a program does on whichever device was asked for.
pub trait Work {
    /// What it comes to.
    type Done;

    /// Does it.
    ///
    /// # Errors
    /// Its own.
    fn on<D: Backend>(self, device: D) -> Result<Self::Done>;
}

impl DeviceName {
    /// Opens the device and does that on it. `threads` are the CPU engine's, all cores where that
    /// is `None`.
    ///
    /// # Errors
    /// [`Device`](crate::Error::Device) if there is no such device, no driver, or no such number of
    /// threads; and those of the work.
    pub fn run<W: Work>(self, threads: Option<usize>, work: W) -> Result<W::Done> {
        match self {
            Self::Cpu => work.on(Cpu::<f32>::new(threads.unwrap_or_else(cores))?),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => work.on(cuda::Gpu::new(cuda::Card::open(number.unwrap_or(0))?)?),
            #[cfg(feature = "sim")]
            Self::Sim => work.on(cuda::Gpu::new(cuda::Emulator::new(cuda::Mode::Eager, 0))?),
        }
    }
}

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
