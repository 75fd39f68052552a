//! A GPU as a device: activations in bf16, everything else in f32.
//!
//! `kernels/<op>.cu` computes, `<op>.rs` here hands it addresses, matrix products go to cuBLASLt.
//! A [`Machine`] is what lies below: [`Card`], a real GPU, or [`Emulator`], which runs the same
//! kernels on the CPU so that they can be tested where there is none.
//!
//! Nothing is allocated once every operation has run at its largest shape: scratch memory grows to
//! the largest use and stays. Sums run in an order that depends on shapes alone, so equal inputs
//! give equal bits.

mod machine;
mod memory;
mod replay;
#[cfg(feature = "cuda")]
mod card;
#[cfg(feature = "sim")]
mod emulator;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod selftest;
mod adamw;
mod attention;
mod attention_pool;
mod avg_pool2d;
mod batchnorm;
mod contrastive;
mod conv2d;
mod cyclic;
mod embedding;
mod gelu;
mod grad_norm;
mod l2norm;
mod layernorm;
mod linear;
mod patch_embedding;
mod pool;
mod rows;

#[cfg(feature = "cuda")]
pub use card::{Card, nccl};
#[cfg(feature = "sim")]
pub use emulator::{Emulator, Mode};
pub use machine::{Address, Machine, Matmul, Operand, Output};
pub use memory::{Buffer, Weights};

use super::{Device, Element, HostBuf, Slot, View, ViewMut, Weight};
use crate::error::{Error, Result};
use api::{CastBf16, RoclipKernels, RoclipStream};
use half::bf16;
use memory::{bytes_of, bytes_of_mut};
use replay::{Known, Replays};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What bindgen made of `kernels/roclip.h`, and of the emulation's controls.
#[allow(missing_docs, dead_code, clippy::all, reason = "generated")]
#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, reason = "generated")]
pub(crate) mod api {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Which kernels an operation runs, where it has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Those for the GPU at hand.
    #[default]
    Auto,
    /// Those for every GPU.
    Portable,
    /// Those for compute capability 9.0, where the GPU and the shape allow them.
    Hopper,
    /// Those without what makes them fast, to compare with.
    Plain,
    /// [`Kernels::Hopper`], after a search in 8 bits where an operation has one: faster where
    /// embeddings take all directions alike, slower where few directions hold most of them.
    Int8,
}

/// A GPU as a device. Clones are the same device.
#[derive(Clone)]
pub struct Gpu<M: Machine> {
    machine: M,
    kernels: Kernels,
    inner: Arc<Inner<M>>,
}

struct Inner<M: Machine> {
    /// Shared by all operations, which run one after another.
    scratch: Mutex<Buffer<M, u8>>,
    replays: Mutex<Replays<M::Graph>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A launcher of the table, which the generated code wraps in an option.
type Launcher<A> = Option<unsafe extern "C" fn(RoclipStream, *const A) -> i32>;

/// Bytes left for scratch memory and for what the driver loads; the largest scratch, the candidates
/// of a lookup in the pool, is 512 bytes a query, a quarter of it at 131,072.
const RESERVE: u64 = 256 << 20;

/// Scratch memory holds numbers of any kind.
const SCRATCH_ALIGN: usize = 256;

/// A launcher's arguments on their way to the queue.
struct Args<A>(A);

// SAFETY: addresses on the device, which mean the same to every thread; nobody follows them here.
unsafe impl<A> Send for Args<A> {}
// SAFETY: as above.
unsafe impl<A> Sync for Args<A> {}

impl<A> Args<A> {
    fn ptr(&self) -> *const A {
        &raw const self.0
    }
}

impl<M: Machine> Gpu<M> {
    /// The device that a machine is.
    ///
    /// # Errors
    /// [`Error::Device`] where the machine refuses.
    pub fn new(machine: M) -> Result<Self> {
        let (scratch, replays) = (Mutex::new(Buffer::new(&machine, 0)?), Mutex::default());
        let inner = Arc::new(Inner { scratch, replays });
        Ok(Self { machine, kernels: Kernels::Auto, inner })
    }

    /// The same device with these kernels, to test or to measure them: before its first use, as
    /// records keep those that they were made with.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// What launchers are told.
    fn kernel(&self) -> i32 {
        let kernel = match self.kernels {
            Kernels::Auto => api::ROCLIP_AUTO,
            Kernels::Portable => api::ROCLIP_PORTABLE,
            Kernels::Hopper => api::ROCLIP_HOPPER,
            Kernels::Plain => api::ROCLIP_PLAIN,
            Kernels::Int8 => api::ROCLIP_INT8,
        };
        kernel as i32
    }

    /// Starts a kernel through its launcher.
    fn launch<A: Copy + 'static>(
        &self,
        op: &'static str,
        launcher: impl Fn(&RoclipKernels) -> Launcher<A>,
        args: A,
    ) -> Result<()> {
        let launcher = launcher(self.machine.kernels()).expect("the table is full");
        let args = Args(args);
        // SAFETY: the arguments are addresses of live buffers whose extents the contract has
        // checked; the queue outlives the call, a buffer waits for the queue before it goes.
        self.machine.enqueue(op, move |stream| unsafe { launcher(stream, args.ptr()) })
    }

    /// Where `bytes` of scratch memory lie; the next operation gets the same.
    fn scratch(&self, bytes: usize) -> Result<Address> {
        let bytes = bytes.next_multiple_of(SCRATCH_ALIGN);
        let mut scratch = lock(&self.inner.scratch);
        if scratch.len < bytes {
            // what was recorded knows the old address
            lock(&self.inner.replays).clear();
            self.machine.wait()?;
            *scratch = Buffer::new(&self.machine, 0)?;
            *scratch = Buffer::new(&self.machine, bytes)?;
        }
        Ok(scratch.at)
    }

    fn matmul(&self, product: Matmul) -> Result<()> {
        self.machine.matmul(product)
    }

    /// Rounds sums to bf16.
    fn round(&self, op: &'static str, from: Address, to: Address, len: usize) -> Result<()> {
        let args = CastBf16 { x: from as *const f32, y: to as *mut bf16, len: len as i64 };
        self.launch(op, |k| k.cast_bf16, args)
    }
}

impl<'a, M: Machine, T: Element> View<'a, Gpu<M>, T> {
    /// Where it lies.
    fn at(&self) -> Address {
        self.buf.at + (self.offset * size_of::<T>()) as Address
    }

    fn ptr(&self) -> *const T {
        self.at() as *const T
    }
}

impl<M: Machine, T: Element> ViewMut<'_, Gpu<M>, T> {
    /// Where it lies.
    fn at(&self) -> Address {
        self.buf.at + (self.offset * size_of::<T>()) as Address
    }

    fn ptr(&self) -> *mut T {
        self.at() as *mut T
    }
}

impl<M: Machine> Weight<'_, Gpu<M>> {
    /// The master values.
    fn master(&self) -> *const f32 {
        View::of(&self.weights.master, self.slot.range()).ptr()
    }

    /// Where the copy in bf16 lies.
    fn copy(&self) -> Address {
        View::of(&self.weights.copy, self.slot.range()).at()
    }
}

impl<M: Machine> Device for Gpu<M> {
    type Act = bf16;
    type Acc = f32;
    type Buf<T: Element> = Buffer<M, T>;
    type Weights = Weights<M>;

    fn name(&self) -> String {
        self.machine.name()
    }

    /// What is free, without the room that operations themselves will take.
    fn memory(&self) -> Option<u64> {
        self.machine.memory().map(|free| free.saturating_sub(RESERVE))
    }

    /// Runs `work` when a key is new; records it, and replays the record, from the second time on.
    fn replay(&self, key: &[u64], work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let known = match lock(&self.inner.replays).get(key) {
            Some(Known::Recorded(graph)) => return self.machine.replay(graph),
            Some(Known::Once) => true,
            None => false,
        };
        // Not with the lock held: scratch memory that grows forgets all records.
        if !known {
            work()?;
            lock(&self.inner.replays).put(key, Known::Once);
            return Ok(());
        }
        let graph = self.machine.record(work)?;
        self.machine.replay(&graph)?;
        lock(&self.inner.replays).put(key, Known::Recorded(graph));
        Ok(())
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<M, T>> {
        let buffer = Buffer::new(&self.machine, len)?;
        self.machine.zero(buffer.at, buffer.bytes())?;
        Ok(buffer)
    }

    fn len<T: Element>(buf: &Buffer<M, T>) -> usize {
        buf.len
    }

    fn zero<T: Element>(&self, to: ViewMut<'_, Self, T>) -> Result<()> {
        self.machine.zero(to.at(), to.len * size_of::<T>())
    }

    fn copy<T: Element>(&self, from: View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()> {
        assert_eq!(from.len, to.len, "copy: lengths must agree");
        self.machine.copy(from.at(), to.at(), from.len * size_of::<T>())
    }

    fn upload<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        assert_eq!(from.len(), to.len, "upload: lengths must agree");
        self.machine.upload(bytes_of(from), to.at())
    }

    fn upload_ahead<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        assert_eq!(from.len(), to.len, "upload_ahead: lengths must agree");
        self.machine.upload_ahead(bytes_of(from), to.at())
    }

    fn wait_uploads(&self) -> Result<()> {
        self.machine.wait_uploads()
    }

    fn host_alloc(&self, len: usize) -> Result<HostBuf> {
        self.machine.host_alloc(len)
    }

    fn upload_act(&self, from: &[f32], to: ViewMut<'_, Self, bf16>) -> Result<()> {
        let rounded: Vec<bf16> = from.iter().map(|&x| bf16::from_f32(x)).collect();
        self.upload(&rounded, to)
    }

    fn download<T: Element>(&self, from: View<'_, Self, T>, to: &mut [T]) -> Result<()> {
        assert_eq!(from.len, to.len(), "download: lengths must agree");
        self.machine.download(from.at(), bytes_of_mut(to))
    }

    fn weights(&self, values: &[f32]) -> Result<Weights<M>> {
        let mut weights = self.zero_weights(values.len())?;
        self.set_weights(&mut weights, values)?;
        Ok(weights)
    }

    fn zero_weights(&self, len: usize) -> Result<Weights<M>> {
        Ok(Weights { master: self.alloc(len)?, copy: self.alloc(len)? })
    }

    fn set_weights(&self, weights: &mut Weights<M>, values: &[f32]) -> Result<()> {
        self.upload(values, ViewMut::all(&mut weights.master))?;
        let (from, to) = (weights.master.at as *const f32, weights.copy.at as *mut bf16);
        let args = CastBf16 { x: from, y: to, len: values.len() as i64 };
        self.launch("cast_bf16", |k| k.cast_bf16, args)
    }

    fn read_weights(&self, weights: &Weights<M>, slot: Slot, to: &mut [f32]) -> Result<()> {
        self.download(View::of(&weights.master, slot.range()), to)
    }
}

/// The launchers' integers; a model whose width passes 2³¹ fits no memory.
fn int(x: usize) -> i32 {
    i32::try_from(x).expect("an extent below 2^31")
}

/// What a launcher's or a library's status means.
fn status(op: &str, code: i32, explain: impl FnOnce(i32) -> String) -> Result<()> {
    match code {
        0 => Ok(()),
        api::ROCLIP_REFUSED => {
            let reason = "this GPU cannot do that shape (too long a sequence, too wide a head)";
            Err(Error::Device(format!("{op}: {reason}")))
        }
        code => Err(Error::Device(format!("{op}: {}", explain(code)))),
    }
}
