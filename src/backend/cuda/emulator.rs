//! A GPU for tests: kernels run on the CPU, thread by thread.
//!
//! Work waits in a queue as it does on a GPU. [`Mode::Eager`] does everything at once;
//! [`Mode::Lazy`] does nothing before it must, so that memory which is reused, freed or read too
//! early shows. Within a kernel the mode says the same of asynchronous copies and products.

use super::api::{self, RoclipKernels, RoclipStream};
use super::machine::{Address, Block, Machine, Matmul, Output};
use super::{lock, status};
use crate::backend::HostBuf;
use crate::error::{Error, Result};
use half::bf16;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// When asynchronous work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As late as the program's waits allow.
    Lazy,
    /// At once.
    Eager,
    /// Between operations as `Lazy`; within a kernel each piece early or late, by the seed.
    Mixed,
}

/// An emulated GPU.
#[derive(Clone)]
pub struct Emulator {
    mode: Mode,
    seed: u64,
    queue: Arc<Mutex<Queue>>,
    counts: Arc<Counts>,
}

/// What a step should not need.
#[derive(Default)]
struct Counts {
    allocations: AtomicUsize,
    waits: AtomicUsize,
}

type Work = Arc<dyn Fn() -> Result<()> + Send + Sync>;

#[derive(Default)]
struct Queue {
    waiting: Vec<Work>,
    /// Copies ahead that nothing waits for yet.
    ahead: Vec<Work>,
    recording: Option<Vec<Work>>,
    /// What failed first; told by every wait from then on, as a GPU does.
    failed: Option<String>,
}

impl Emulator {
    /// One whose threads take turns in an order drawn from `seed`; its bits also say what fresh
    /// memory holds and which end of it is guarded (`kernels/sim/sim_api.h`).
    pub fn new(mode: Mode, seed: u64) -> Self {
        Self { mode, seed, queue: Arc::default(), counts: Arc::default() }
    }

    /// Allocations on the device so far.
    pub fn allocations(&self) -> usize {
        self.counts.allocations.load(Ordering::Relaxed)
    }

    /// How often the host waited for the device so far.
    pub fn waits(&self) -> usize {
        self.counts.waits.load(Ordering::Relaxed)
    }

    fn push(&self, work: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<()> {
        let mut queue = lock(&self.queue);
        match &mut queue.recording {
            Some(record) => record.push(Arc::new(work)),
            None => queue.waiting.push(Arc::new(work)),
        }
        drop(queue);
        if self.mode == Mode::Eager { self.run() } else { Ok(()) }
    }

    /// Does everything that waits.
    fn run(&self) -> Result<()> {
        let mut queue = lock(&self.queue);
        if queue.failed.is_none() {
            configure(self.mode, self.seed);
            let done = queue.waiting.iter().try_for_each(|work| work());
            queue.failed = done.err().map(|e| e.to_string());
        }
        queue.waiting.clear();
        queue.failed.clone().map_or(Ok(()), |reason| Err(Error::Device(reason)))
    }
}

/// How this thread's launches run from now on.
pub(super) fn configure(mode: Mode, seed: u64) {
    let mode = match mode {
        Mode::Lazy => api::ROCLIP_SIM_LAZY,
        Mode::Eager => api::ROCLIP_SIM_EAGER,
        Mode::Mixed => api::ROCLIP_SIM_MIXED,
    };
    // SAFETY: sets two numbers of this thread's emulation.
    unsafe { api::roclip_sim_configure(mode as i32, seed) };
}

/// The text of this thread's latest failure.
pub(super) fn last_error() -> String {
    // SAFETY: the emulation keeps a terminated text for this thread.
    let text = unsafe { CStr::from_ptr(api::roclip_sim_last_error()) };
    text.to_string_lossy().into_owned()
}

impl Machine for Emulator {
    type Graph = Vec<Work>;

    /// So little that tests meet several blocks both ways, and last ones that are not full.
    const BLOCK: Block = Block { rows: 96, cols: 2048, operand: 12_288, multiple: 16 };

    fn kernels(&self) -> &'static RoclipKernels {
        // SAFETY: a constant table.
        unsafe { &api::roclip_kernels_sim }
    }

    fn name(&self) -> String {
        "sim (an emulated GPU)".into()
    }

    fn memory(&self) -> Option<u64> {
        None
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        configure(self.mode, self.seed);
        self.counts.allocations.fetch_add(1, Ordering::Relaxed);
        // SAFETY: maps memory, filled with what no number should be.
        let at = unsafe { api::roclip_sim_alloc(bytes as u64) };
        if at.is_null() {
            return Err(Error::Device(format!("no memory for {bytes} bytes")));
        }
        Ok(at as Address)
    }

    fn free(&self, at: Address, bytes: usize) {
        // what failed is told by whoever waits for a result
        let _ = self.run();
        // SAFETY: `alloc` gave it, and nothing that knows it waits any more.
        let written_beside = unsafe { api::roclip_sim_free(at as *mut c_void) } != 0;
        let told = std::thread::panicking();
        assert!(told || !written_beside, "a kernel wrote beside a buffer of {bytes} bytes");
    }

    fn enqueue(
        &self,
        op: &'static str,
        work: impl Fn(RoclipStream) -> i32 + Send + Sync + 'static,
    ) -> Result<()> {
        self.push(move || status(op, work(null_mut()), |_| last_error()))
    }

    fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        self.push(move || {
            // SAFETY: addresses come from live buffers.
            unsafe { (at as *mut u8).write_bytes(0, bytes) };
            Ok(())
        })
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.push(move || {
            // SAFETY: addresses come from live buffers.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        })
    }

    fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        self.push(copy_of(from, to))
    }

    fn upload_ahead(&self, from: &[u8], to: Address) -> Result<()> {
        lock(&self.queue).ahead.push(Arc::new(copy_of(from, to)));
        if self.mode == Mode::Eager { self.wait_uploads() } else { Ok(()) }
    }

    fn wait_uploads(&self) -> Result<()> {
        let mut queue = lock(&self.queue);
        let ahead = std::mem::take(&mut queue.ahead);
        queue.waiting.extend(ahead);
        drop(queue);
        if self.mode == Mode::Eager { self.run() } else { Ok(()) }
    }

    fn host_alloc(&self, len: usize) -> Result<HostBuf> {
        HostBuf::heap(len)
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.wait()?;
        // SAFETY: addresses come from live buffers.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from as *const u8, to.len()) };
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.counts.waits.fetch_add(1, Ordering::Relaxed);
        self.run()
    }

    fn matmul(&self, product: Matmul) -> Result<()> {
        self.push(move || {
            // SAFETY: addresses come from live buffers whose extents the contract has checked.
            unsafe { multiply(product) };
            Ok(())
        })
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Work>> {
        self.run()?;
        lock(&self.queue).recording = Some(Vec::new());
        let done = work();
        let record = lock(&self.queue).recording.take().expect("set above");
        done.map(|()| record)
    }

    fn replay(&self, graph: &Vec<Work>) -> Result<()> {
        lock(&self.queue).waiting.extend(graph.iter().cloned());
        if self.mode == Mode::Eager { self.run() } else { Ok(()) }
    }
}

/// Brings to the device what `from` holds now.
fn copy_of(from: &[u8], to: Address) -> impl Fn() -> Result<()> + Send + Sync + 'static {
    let from = from.to_vec();
    move || {
        // SAFETY: addresses come from live buffers.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }
}

/// The product as a library would do it: bf16 factors, sums in f32, one rounding.
unsafe fn multiply(p: Matmul) {
    let read = |x: super::Operand, [rows, cols]: [usize; 2], row: usize, col: usize| {
        let at = if x.transposed { col * rows + row } else { row * cols + col };
        // SAFETY: within the factor's extents.
        unsafe { *(x.at as *const bf16).add(at) }.to_f32()
    };
    let b: Vec<f32> = (0..p.k * p.n).map(|i| read(p.b, [p.k, p.n], i / p.n, i % p.n)).collect();
    let mut row = vec![0.0; p.n];
    for i in 0..p.m {
        row.fill(0.0);
        for (l, b) in b.chunks_exact(p.n).enumerate() {
            let a = read(p.a, [p.m, p.k], i, l);
            row.iter_mut().zip(b).for_each(|(sum, &b)| *sum += a * b);
        }
        for (j, &sum) in row.iter().enumerate() {
            // SAFETY: within the result's extents.
            unsafe { write(p.out, i * p.n + j, j, sum) };
        }
    }
}

/// One element of a product.
unsafe fn write(out: Output, at: usize, column: usize, sum: f32) {
    let read = |from: Option<Address>, at: usize| {
        // SAFETY: the caller's.
        from.map_or(0.0, |from| unsafe { *(from as *const bf16).add(at) }.to_f32())
    };
    match out {
        Output::Bf16 { to, addend, bias } => {
            let sum = sum + read(addend, at) + read(bias, column);
            // SAFETY: the caller's.
            unsafe { *(to as *mut bf16).add(at) = bf16::from_f32(sum) };
        }
        // SAFETY: the caller's.
        Output::AddF32 { to } => unsafe { *(to as *mut f32).add(at) += sum },
        // SAFETY: the caller's.
        Output::SubF32 { to } => unsafe { *(to as *mut f32).add(at) -= sum },
    }
}
