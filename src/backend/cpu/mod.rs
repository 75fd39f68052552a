//! The host as a device.
//!
//! Results have the same bits for every number of threads: work is cut into blocks whose size never
//! depends on the threads, each block has one owner, and sums over blocks run in a fixed order.

mod float;
mod simd;
mod kernel;
mod gemm;
mod adamw;
mod attention;
mod contrastive;
mod embedding;
mod gelu;
mod grad_norm;
mod l2norm;
mod layernorm;
mod linear;
mod memory;
mod conv2d;
mod cyclic;
mod batchnorm;
mod avg_pool2d;
mod attention_pool;
mod patch_embedding;
mod pool;
mod rows;

pub use float::CpuFloat;

use super::{Device, Element, Slot, View, ViewMut, Weight};
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The host. Clones share its threads. `F` is the type of everything: f32 to train, f64 to test.
#[derive(Clone)]
pub struct Cpu<F: CpuFloat = f32> {
    inner: Arc<Inner<F>>,
}

struct Inner<F> {
    pool: rayon::ThreadPool,
    /// For the operations and for the panels of products, one per thread of `pool`; like all
    /// scratch memory grown to the largest use and kept.
    scratch: Vec<[Mutex<Vec<F>>; 2]>,
    /// The panels of a product on all threads.
    panels: Mutex<Vec<F>>,
    /// The parts of a product that is cut along its sums.
    partials: Mutex<Vec<F>>,
    /// Held by whoever has work on the threads. One that waits for its part of an operation takes
    /// up whatever else is queued: another operation would want the same scratch memory.
    turn: Mutex<()>,
    /// See [`Cpu::allocated`].
    allocated: AtomicUsize,
}

/// The first `len` elements of what grows to that length; their content is unspecified.
fn grown<F: CpuFloat>(room: &mut Vec<F>, len: usize) -> &mut [F] {
    if room.len() < len {
        room.resize(len, F::ZERO);
    }
    &mut room[..len]
}

impl<F: CpuFloat> Cpu<F> {
    /// A device of `threads` threads of its own.
    ///
    /// # Errors
    /// [`Error::Device`] where `threads` is 0 or the system refuses to start them.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::Device("a CPU needs at least 1 thread".into()));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|e| Error::Device(format!("cannot start {threads} threads: {e}")))?;
        let scratch = (0..threads).map(|_| Default::default()).collect();
        let (panels, partials, turn, allocated) = Default::default();
        let inner = Inner { pool, scratch, panels, partials, turn, allocated };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.inner.scratch.len()
    }

    /// Bytes of all buffers so far, those that are gone again included: what a plan counts.
    pub fn allocated(&self) -> usize {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// Runs `work` on this device's threads; every parallel loop goes through here.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.inner.pool.current_thread_index().is_some() {
            return work();
        }
        let _turn = self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.pool.install(work)
    }

    /// Lends the current thread `len` elements of unspecified content. Not to be nested, and `work`
    /// must not wait for other threads: a waiting thread takes up other work.
    fn scratch<R>(&self, len: usize, work: impl FnOnce(&mut [F]) -> R) -> R {
        self.lend(0, len, work)
    }

    /// As [`Cpu::scratch`], of which it is independent, for the panels of products.
    fn panels<R>(&self, len: usize, work: impl FnOnce(&mut [F]) -> R) -> R {
        self.lend(1, len, work)
    }

    fn lend<R>(&self, which: usize, len: usize, work: impl FnOnce(&mut [F]) -> R) -> R {
        let thread = rayon::current_thread_index().expect("lent to the device's threads only");
        let room = &self.inner.scratch[thread][which];
        work(grown(&mut room.try_lock().expect("not nested"), len))
    }
}

impl<'a, F: CpuFloat, T: Element> View<'a, Cpu<F>, T> {
    /// The elements.
    pub fn slice(&self) -> &'a [T] {
        &self.buf[self.offset..self.offset + self.len]
    }
}

impl<'a, F: CpuFloat, T: Element> ViewMut<'a, Cpu<F>, T> {
    /// The elements.
    pub fn slice_mut(self) -> &'a mut [T] {
        &mut self.buf[self.offset..self.offset + self.len]
    }
}

impl<'a, F: CpuFloat> Weight<'a, Cpu<F>> {
    /// The elements.
    pub fn slice(&self) -> &'a [F] {
        &self.weights[self.slot.range()]
    }
}

impl<F: CpuFloat> Device for Cpu<F> {
    type Act = F;
    type Acc = F;
    type Buf<T: Element> = Vec<T>;
    type Weights = Vec<F>;

    const ON_HOST: bool = true;

    fn memory(&self) -> Option<u64> {
        memory::available()
    }

    fn name(&self) -> String {
        match self.threads() {
            1 => "cpu (1 thread)".into(),
            n => format!("cpu ({n} threads)"),
        }
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        Cpu::run(self, work)
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Vec<T>> {
        let mut buf = Vec::new();
        buf.try_reserve_exact(len).map_err(|_| {
            let bytes = len.saturating_mul(size_of::<T>());
            Error::Device(format!("no memory for {bytes} bytes; lower the batch size"))
        })?;
        buf.resize(len, T::default());
        self.inner.allocated.fetch_add(len * size_of::<T>(), Ordering::Relaxed);
        Ok(buf)
    }

    fn len<T: Element>(buf: &Vec<T>) -> usize {
        buf.len()
    }

    fn zero<T: Element>(&self, to: ViewMut<'_, Self, T>) -> Result<()> {
        to.slice_mut().fill(T::default());
        Ok(())
    }

    fn copy<T: Element>(&self, from: View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()> {
        to.slice_mut().copy_from_slice(from.slice());
        Ok(())
    }

    fn upload<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        to.slice_mut().copy_from_slice(from);
        Ok(())
    }

    fn upload_act(&self, from: &[f32], to: ViewMut<'_, Self, F>) -> Result<()> {
        assert_eq!(from.len(), to.len, "upload_act: lengths must agree");
        for (to, &from) in to.slice_mut().iter_mut().zip(from) {
            *to = F::from_f64(f64::from(from));
        }
        Ok(())
    }

    fn download<T: Element>(&self, from: View<'_, Self, T>, to: &mut [T]) -> Result<()> {
        to.copy_from_slice(from.slice());
        Ok(())
    }

    fn weights(&self, values: &[F]) -> Result<Vec<F>> {
        let mut weights = self.alloc(values.len())?;
        weights.copy_from_slice(values);
        Ok(weights)
    }

    fn set_weights(&self, weights: &mut Vec<F>, values: &[F]) -> Result<()> {
        weights.copy_from_slice(values);
        Ok(())
    }

    fn read_weights(&self, weights: &Vec<F>, slot: Slot, to: &mut [F]) -> Result<()> {
        to.copy_from_slice(&weights[slot.range()]);
        Ok(())
    }
}
