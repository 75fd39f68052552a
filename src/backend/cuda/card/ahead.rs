//! Copies beside the work: a second stream, and memory that it copies from without a detour.

use super::refused;
use crate::backend::cuda::machine::Address;
use crate::backend::host::HostMemory;
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::sync::Arc;

/// The stream of copies ahead, and the mark that the stream of work waits for.
pub(super) struct Ahead {
    stream: Arc<CudaStream>,
    done: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Ahead {}
// SAFETY: as above, by several at once.
unsafe impl Sync for Ahead {}

impl Ahead {
    /// Needs the GPU to be this thread's.
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let stream = context.new_stream().map_err(refused("make a stream"))?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let done = result::event::create(flags).map_err(refused("make an event"))?;
        Ok(Self { stream, done })
    }

    /// Starts a copy.
    pub(super) fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        // SAFETY: addresses come from live buffers; the caller keeps the source until it is read.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }
            .map_err(refused("copy to the GPU"))
    }

    /// Has `stream` wait for all copies so far.
    pub(super) fn join(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and event live as long as the card.
        unsafe {
            result::event::record(self.done, self.stream.cu_stream())
                .and_then(|()| result::stream::wait_event(stream, self.done, flags))
        }
        .map_err(refused("wait for copies"))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the driver lets waits under way finish.
        let _ = unsafe { result::event::destroy(self.done) };
    }
}

/// Page-locked memory of the host.
pub(super) struct PageLocked {
    at: *mut f32,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is this struct's own.
unsafe impl Send for PageLocked {}
// SAFETY: as above; reading it needs no more than a shared reference.
unsafe impl Sync for PageLocked {}

impl PageLocked {
    /// `len` zeros. Needs the GPU to be this thread's.
    pub(super) fn new(len: usize, context: Arc<CudaContext>) -> Result<Self> {
        let bytes = len * size_of::<f32>();
        // SAFETY: freed once, on drop; all zero bytes are zeros.
        let at = unsafe {
            let at = result::malloc_host(bytes.max(1), 0).map_err(refused("page-lock memory"))?;
            at.cast::<u8>().write_bytes(0, bytes);
            at.cast()
        };
        Ok(Self { at, len, context })
    }
}

impl HostMemory for PageLocked {
    fn values(&self) -> &[f32] {
        // SAFETY: `len` initialised numbers, for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `new`. The driver waits for copies under way.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}
