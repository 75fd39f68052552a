//! Page-locked memory between pageable memory and the GPU: copies from it need no wait.

use super::refused;
use crate::backend::cuda::machine::Address;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// Bytes of the room. The uploads of one step, pictures apart, are a small part of it.
const ROOM: usize = 32 << 20;

/// Where pieces start.
const ALIGN: usize = 256;

/// A room filled from front to back; once it is full, whoever comes waits for the queue and starts
/// over at the front.
pub(super) struct Staging {
    room: *mut u8,
    used: usize,
}

// SAFETY: the memory is this struct's own.
unsafe impl Send for Staging {}

impl Staging {
    /// Needs the GPU to be this thread's.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: freed once, on drop.
        let room = unsafe { result::malloc_host(ROOM, 0) };
        Ok(Self { room: room.map_err(refused("page-lock memory"))?.cast(), used: 0 })
    }

    fn piece(&mut self, bytes: usize, stream: sys::CUstream) -> Result<*mut u8> {
        if self.used + bytes > ROOM {
            self.wait(stream)?;
        }
        let at = self.used;
        self.used = (at + bytes).next_multiple_of(ALIGN);
        // SAFETY: at + bytes <= ROOM.
        Ok(unsafe { self.room.add(at) })
    }

    fn wait(&mut self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(stream) }.map_err(refused("run what was enqueued"))?;
        self.used = 0;
        Ok(())
    }

    /// Copies to the GPU once the queue is there; the source may change at once.
    pub(super) fn upload(&mut self, from: &[u8], to: Address, stream: sys::CUstream) -> Result<()> {
        for (i, part) in from.chunks(ROOM).enumerate() {
            let room = self.piece(part.len(), stream)?;
            let to = to + (i * ROOM) as Address;
            // SAFETY: the piece is as long as the part, and stays untouched until the queue is done
            // with it.
            unsafe {
                room.copy_from_nonoverlapping(part.as_ptr(), part.len());
                let staged = std::slice::from_raw_parts(room, part.len());
                result::memcpy_htod_async(to, staged, stream)
                    .map_err(refused("copy to the GPU"))?;
            }
        }
        Ok(())
    }

    /// Waits for the queue and copies from the GPU.
    pub(super) fn download(
        &mut self,
        from: Address,
        to: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<()> {
        for (i, part) in to.chunks_mut(ROOM).enumerate() {
            let room = self.piece(part.len(), stream)?;
            let from = from + (i * ROOM) as Address;
            // SAFETY: the piece is as long as the part; it is read after the wait.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(room, part.len());
                let copied = result::memcpy_dtoh_async(staged, from, stream);
                copied.map_err(refused("copy from the GPU"))?;
            }
            self.wait(stream)?;
            // SAFETY: as above.
            unsafe { part.as_mut_ptr().copy_from_nonoverlapping(room, part.len()) };
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: `new` made it. The driver waits for copies under way.
        let _ = unsafe { result::free_host(self.room.cast::<c_void>()) };
    }
}
