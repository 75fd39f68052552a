//! What the benches share: the choice of a device, its clock, and the limits to compare with.

#![allow(dead_code, reason = "not every bench uses every helper")]

use roclip::Result;
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use roclip::backend::{Backend, Device, Float, Slot, View, ViewMut, Weight};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The host.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An emulated GPU.
    Sim,
}

/// Which kernels of a GPU, where an operation has several: see `cuda::Kernels`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs, reason = "said there")]
pub enum Kernels {
    #[default]
    Auto,
    Portable,
    Hopper,
    Plain,
    Int8,
}

#[cfg(any(feature = "cuda", feature = "sim"))]
impl From<Kernels> for roclip::backend::cuda::Kernels {
    fn from(kernels: Kernels) -> Self {
        match kernels {
            Kernels::Auto => Self::Auto,
            Kernels::Portable => Self::Portable,
            Kernels::Hopper => Self::Hopper,
            Kernels::Plain => Self::Plain,
            Kernels::Int8 => Self::Int8,
        }
    }
}

/// Flags of every bench.
#[derive(clap::Args)]
pub struct Flags {
    /// What computes; `cuda` and `sim` need the feature of that name
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Kind,
    /// Which kernels of a GPU, where an operation has several
    #[arg(long, value_enum, default_value = "auto")]
    pub kernels: Kernels,
    /// Also writes the figures to this file, as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

impl Flags {
    /// Runs `work` on the device that was asked for; a CPU gets `threads` threads.
    ///
    /// # Errors
    /// [`roclip::Error::Device`] where there is no such device, and those of `work`.
    pub fn run(&self, threads: usize, work: impl Work) -> Result<()> {
        #[cfg(any(feature = "cuda", feature = "sim"))]
        use roclip::backend::cuda;
        match self.device {
            Kind::Cpu => work.on(&Cpu::<f32>::new(threads)?),
            #[cfg(feature = "cuda")]
            Kind::Cuda => {
                let gpu = cuda::Gpu::new(cuda::Card::open(0)?)?;
                work.on(&gpu.with_kernels(self.kernels.into()))
            }
            #[cfg(feature = "sim")]
            Kind::Sim => {
                let gpu = cuda::Gpu::new(cuda::Emulator::new(cuda::Mode::Eager, 1))?;
                work.on(&gpu.with_kernels(self.kernels.into()))
            }
            #[cfg(not(all(feature = "cuda", feature = "sim")))]
            other => {
                let reason = format!("this was built without the feature for --device {other:?}");
                Err(roclip::Error::Device(reason))
            }
        }
    }

    /// Writes the figures where they were asked for.
    pub fn write(&self, figures: &serde_json::Value) {
        let Some(path) = &self.json else { return };
        let text = serde_json::to_string_pretty(figures).expect("plain numbers and names");
        std::fs::write(path, text).unwrap_or_else(|e| panic!("--json {}: {e}", path.display()));
    }
}

/// What is written once for all devices.
pub trait Work {
    /// Does it on this one.
    ///
    /// # Errors
    /// Whatever the device refuses.
    fn on<D: Backend>(self, device: &D) -> Result<()>;
}

/// Tells how long a device takes.
pub struct Clock<'a, D: Device> {
    device: &'a D,
    /// Read back to wait for everything enqueued.
    flag: D::Buf<u32>,
}

/// How long one wait should last, so that it and the way to the device do not count.
const SAMPLE: Duration = Duration::from_millis(20);
/// Calls enqueued at a time at most; a queue of the driver holds about a thousand.
const CALLS: f64 = 100.0;

impl<'a, D: Device> Clock<'a, D> {
    /// For this device.
    ///
    /// # Errors
    /// [`roclip::Error::Device`] where memory does not suffice.
    pub fn new(device: &'a D) -> Result<Self> {
        Ok(Self { device, flag: device.alloc(1)? })
    }

    /// Seconds that `calls` calls take, each, with one wait behind them.
    ///
    /// # Errors
    /// Those of `body`, and what the wait tells.
    pub fn time(&self, calls: usize, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            body()?;
        }
        self.device.download(View::all(&self.flag), &mut [0])?;
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    }

    /// Seconds of a call, least first: as many samples as fit a third of a second, three at least
    /// (one where a call takes more than a second), after two calls that do not count.
    ///
    /// # Errors
    /// Those of [`Clock::time`].
    pub fn times(&self, mut body: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        self.time(1, &mut body)?;
        let once = self.time(1, &mut body)?;
        let calls = (SAMPLE.as_secs_f64() / once).clamp(1.0, CALLS) as usize;
        let least = if once > 1.0 { 1 } else { 3 };
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < least || start.elapsed() < Duration::from_millis(333) {
            times.push(self.time(calls, &mut body)?);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// Rate of the product of two squares through the `linear` operation, the best one, FLOP/s.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn product(&self, side: usize) -> Result<f64>
    where
        D: Backend,
    {
        let shape = LinearShape { rows: side, inputs: side, outputs: side, layout: Layout::OutIn };
        let device = self.device;
        let (x, w) = (acts(device, side * side)?, Params::new(device, side * side)?);
        let mut y = acts(device, side * side)?;
        let times = self.times(|| {
            linear::forward(device, shape, View::all(&x), w.all(), None, None, ViewMut::all(&mut y))
        })?;
        Ok(2.0 * (side as f64).powi(3) / times[0])
    }

    /// Rate of a copy within the device, the best one, bytes read and written a second.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn copy(&self, bytes: usize) -> Result<f64> {
        let from = self.device.alloc::<u8>(bytes)?;
        let mut to = self.device.alloc::<u8>(bytes)?;
        let times = self.times(|| self.device.copy(View::all(&from), ViewMut::all(&mut to)))?;
        Ok(2.0 * bytes as f64 / times[0])
    }
}

/// Numbers between −1 and 1, always the same.
pub fn values(len: usize) -> Vec<f32> {
    let mut state = len as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Random rows of length 1, whose elements were as good as normal before: a matrix product needs
/// less power, and is faster, where bits are less random than those of trained embeddings.
pub fn unit_rows(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    // xorshift64*; four uniform numbers of 16 bits add up to what is nearly normal
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        sum as f32 - 2.0 * 65_535.0
    };
    let mut values: Vec<f32> = (0..rows * width).map(|_| next()).collect();
    for row in values.chunks_mut(width) {
        let inverse = row.iter().map(|x| x * x).sum::<f32>().sqrt().recip();
        row.iter_mut().for_each(|x| *x *= inverse);
    }
    values
}

/// Activations with these values.
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn acts_of<D: Device>(device: &D, values: &[f32]) -> Result<D::Buf<D::Act>> {
    let mut buf = device.alloc(values.len())?;
    device.upload_act(values, ViewMut::all(&mut buf))?;
    Ok(buf)
}

/// Activations with [`values`].
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn acts<D: Device>(device: &D, len: usize) -> Result<D::Buf<D::Act>> {
    acts_of(device, &values(len))
}

/// Values in the precision of gradients and statistics.
fn accs_on_host<D: Device>(values: Vec<f32>) -> Vec<D::Acc> {
    values.into_iter().map(|x| D::Acc::from_f64(x.into())).collect()
}

/// Gradients, moments or statistics with [`values`].
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn accs<D: Device>(device: &D, len: usize) -> Result<D::Buf<D::Acc>> {
    device.buffer(&accs_on_host::<D>(values(len)))
}

/// The same number `len` times.
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn filled<D: Device>(device: &D, value: f64, len: usize) -> Result<D::Buf<D::Acc>> {
    device.buffer(&vec![D::Acc::from_f64(value); len])
}

/// One parameter.
pub struct Params<D: Device> {
    /// All there is.
    pub weights: D::Weights,
    len: usize,
}

impl<D: Device> Params<D> {
    /// With [`values`].
    ///
    /// # Errors
    /// [`roclip::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, len: usize) -> Result<Self> {
        Self::of(device, values(len))
    }

    /// With these values.
    ///
    /// # Errors
    /// [`roclip::Error::Device`] where memory does not suffice.
    pub fn of(device: &D, values: Vec<f32>) -> Result<Self> {
        let len = values.len();
        Ok(Self { weights: device.weights(&accs_on_host::<D>(values))?, len })
    }

    /// One number.
    ///
    /// # Errors
    /// [`roclip::Error::Device`] where memory does not suffice.
    pub fn scalar(device: &D, value: f64) -> Result<Self> {
        Ok(Self { weights: device.weights(&[D::Acc::from_f64(value)])?, len: 1 })
    }

    /// Its place.
    pub fn slot(&self) -> Slot {
        Slot { offset: 0, len: self.len }
    }

    /// Its first `len` values, for reading.
    pub fn first(&self, len: usize) -> Weight<'_, D> {
        Weight::at(&self.weights, Slot { offset: 0, len })
    }

    /// For reading.
    pub fn all(&self) -> Weight<'_, D> {
        Weight::at(&self.weights, self.slot())
    }
}
