//! A real GPU: the driver and the libraries, all opened when first asked for.
//!
//! A program that holds this code starts on a machine without any of it and says `no CUDA device`
//! when it is asked for one.

mod ahead;
mod blas;
pub mod nccl;
mod staging;

use super::api::{self, RoclipKernels, RoclipStream};
use super::machine::{Address, Block, Machine, Matmul};
use super::{lock, status};
use crate::backend::HostBuf;
use crate::error::{Error, Result};
use ahead::{Ahead, PageLocked};
use blas::Blas;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaStream, sys};
use staging::Staging;
use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex};

/// One GPU of this machine.
#[derive(Clone)]
pub struct Card {
    inner: Arc<Inner>,
}

struct Inner {
    // Fields are dropped in this order: what lives in the context before the context.
    blas: Blas,
    staging: Mutex<Staging>,
    ahead: Ahead,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Drop for Inner {
    /// What the fields give back belongs to the GPU that is this thread's.
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
    }
}

/// The driver's word for what it refused.
fn refused(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Device(format!("{what}: {error}"))
}

impl Card {
    /// GPUs of this machine, as far as `CUDA_VISIBLE_DEVICES` shows them; 0 where there is none.
    pub fn count() -> usize {
        // SAFETY: opens the driver's library and closes it.
        let is_there = unsafe { sys::is_culib_present() } && result::init().is_ok();
        let count = is_there.then(|| CudaContext::device_count().ok()).flatten();
        count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
    }

    /// GPU number `ordinal`, as `CUDA_VISIBLE_DEVICES` numbers them.
    ///
    /// # Errors
    /// [`Error::Device`]: `no CUDA device` where there is no driver or no such GPU; otherwise what
    /// driver or library lack.
    pub fn open(ordinal: usize) -> Result<Self> {
        let none = |why: String| Error::Device(format!("no CUDA device: {why}"));
        // SAFETY: opens the driver's library and closes it.
        if !unsafe { sys::is_culib_present() } {
            return Err(none("the driver's library, libcuda.so.1, is not on this machine".into()));
        }
        result::init().map_err(|e| none(e.to_string()))?;
        let count = CudaContext::device_count().map_err(|e| none(e.to_string()))?;
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            return Err(none(format!("number {ordinal} was asked for, there are {count}")));
        }
        let context = CudaContext::new(ordinal).map_err(refused("open the GPU"))?;
        let (major, minor) = context.compute_capability().map_err(refused("ask the GPU"))?;
        if major < 8 {
            let reason = format!("compute capability {major}.{minor}, at least 8.0 is needed");
            return Err(none(reason));
        }
        let stream = context.new_stream().map_err(refused("make a stream"))?;
        let (blas, staging) = (Blas::new()?, Mutex::new(Staging::new()?));
        let ahead = Ahead::new(&context)?;
        Ok(Self { inner: Arc::new(Inner { blas, staging, ahead, stream, context }) })
    }

    /// The queue, with the GPU made this thread's.
    fn stream(&self) -> Result<sys::CUstream> {
        self.inner.context.bind_to_thread().map_err(refused("use the GPU"))?;
        Ok(self.inner.stream.cu_stream())
    }
}

unsafe extern "C" {
    /// Of the runtime that the launchers are linked with.
    safe fn cudaGetErrorString(code: i32) -> *const c_char;
}

/// What a launcher's `cudaError_t` means.
fn explain(code: i32) -> String {
    // SAFETY: the runtime answers with a constant, terminated text, whatever the number.
    let text = unsafe { CStr::from_ptr(cudaGetErrorString(code)) };
    text.to_string_lossy().into_owned()
}

/// What was recorded, ready to be started at once.
pub struct Graph {
    card: Card,
    exec: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread, one at a time; `Graph` is not `Sync`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.card.wait().is_ok() {
            // SAFETY: made by `record` and not destroyed before; nothing of it runs any more.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

impl Machine for Card {
    type Graph = Graph;

    /// At most 128 MiB of bf16, from 8 MiB of columns.
    const BLOCK: Block = Block { rows: 8192, cols: 8192, operand: 4 << 20, multiple: 256 };

    fn kernels(&self) -> &'static RoclipKernels {
        // SAFETY: a constant table.
        unsafe { &api::roclip_kernels_cuda }
    }

    fn name(&self) -> String {
        let context = &self.inner.context;
        let name = context.name().unwrap_or_else(|_| "a GPU".into());
        let (major, minor) = context.compute_capability().unwrap_or_default();
        format!("cuda ({name}, compute capability {major}.{minor})")
    }

    fn memory(&self) -> Option<u64> {
        self.stream().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.stream()?;
        // SAFETY: the caller frees it once.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| {
            let free = self.memory().unwrap_or(0) >> 20;
            let mib = bytes >> 20;
            let advice = "lower --batch-size and raise --accum-freq, or use --grad-checkpointing";
            Error::Device(format!("no memory for {mib} MiB, {free} MiB are free ({e}); {advice}"))
        })
    }

    fn free(&self, at: Address, _bytes: usize) {
        // An error was told before or is told by whoever waits next; there is nothing to add here.
        if self.wait().is_ok() {
            // SAFETY: `alloc` gave it, and nothing enqueued uses it any more.
            let _ = unsafe { result::free_sync(at) };
        }
    }

    fn enqueue(
        &self,
        op: &'static str,
        work: impl Fn(RoclipStream) -> i32 + Send + Sync + 'static,
    ) -> Result<()> {
        status(op, work(self.stream()?.cast()), explain)
    }

    fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: addresses come from live buffers.
        unsafe { result::memset_d8_async(at, 0, bytes, stream) }.map_err(refused("zero memory"))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: addresses come from live buffers.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(refused("copy"))
    }

    fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        let stream = self.stream()?;
        lock(&self.inner.staging).upload(from, to, stream)
    }

    fn upload_ahead(&self, from: &[u8], to: Address) -> Result<()> {
        self.stream()?;
        self.inner.ahead.upload(from, to)
    }

    fn wait_uploads(&self) -> Result<()> {
        self.inner.ahead.join(self.stream()?)
    }

    fn host_alloc(&self, len: usize) -> Result<HostBuf> {
        self.stream()?;
        let context = Arc::clone(&self.inner.context);
        PageLocked::new(len, context).map(HostBuf::new)
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        let stream = self.stream()?;
        lock(&self.inner.staging).download(from, to, stream)
    }

    fn wait(&self) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(stream) }.map_err(refused("run what was enqueued"))
    }

    fn matmul(&self, product: Matmul) -> Result<()> {
        self.inner.blas.matmul(product, self.stream()?)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        let stream = self.stream()?;
        let fail = refused("record a step");
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(&fail)?;
        let done = work();
        // SAFETY: as above; also after a failure, or the stream would stay in capture.
        let graph = unsafe { result::stream::end_capture(stream) };
        done?;
        let graph = graph.map_err(&fail)?;
        // SAFETY: the graph is valid, and not needed once it is instantiated.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(&fail)?
        };
        Ok(Graph { card: self.clone(), exec })
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: both live.
        unsafe { result::graph::launch(graph.exec, stream) }.map_err(refused("replay a step"))
    }
}
