//! Memory that goes round: buffers of encoded pictures, captions and keys.
//!
//! A reader takes a buffer for every member it keeps and whoever has used the member gives it back,
//! so that nothing is allocated for a pair once the pool has filled. Buffers are kept by capacity,
//! in powers of two, and a buffer serves only what is at least half as large: one large picture
//! does not make thousands of small ones heavy.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Smallest and largest capacities kept, as powers of two.
const CLASSES: std::ops::RangeInclusive<u32> = 6..=20;
/// Most bytes that may lie idle in one class.
const CLASS_BYTES: usize = 16 << 20;
/// Most buffers that may lie idle in one class.
const CLASS_BUFFERS: usize = 8192;
/// A larger member gets its memory as its bytes come.
const LARGEST: usize = 1 << *CLASSES.end();

/// Buffers to be used again, shared by threads.
#[derive(Debug)]
pub struct BufferPool {
    classes: Vec<Class>,
}

/// The idle buffers of one capacity: where they go, and where they come from.
type Class = (Sender<Vec<u8>>, Receiver<Vec<u8>>);

impl Default for BufferPool {
    fn default() -> Self {
        let room = |class: u32| (CLASS_BYTES >> class).min(CLASS_BUFFERS);
        Self { classes: CLASSES.map(|class| bounded(room(class))).collect() }
    }
}

impl BufferPool {
    /// A pool that keeps nothing: buffers are allocated and freed.
    pub fn keeping_nothing() -> Self {
        Self { classes: Vec::new() }
    }

    fn class(&self, class: u32) -> Option<&Class> {
        self.classes.get((class - CLASSES.start()) as usize)
    }

    /// An empty buffer for `bytes` bytes. Beyond a mebibyte it is left to grow with what comes: a
    /// size that a stranger claims is no reason to allocate.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes > LARGEST {
            return Vec::with_capacity(LARGEST);
        }
        let class = bytes.next_power_of_two().trailing_zeros().max(*CLASSES.start());
        let idle = self.class(class).and_then(|(_, idle)| idle.try_recv().ok());
        idle.unwrap_or_else(|| Vec::with_capacity(1 << class))
    }

    /// Takes back a buffer; what it holds is forgotten.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let Some(class) = buffer.capacity().checked_ilog2().filter(|c| CLASSES.contains(c)) else {
            return;
        };
        buffer.clear();
        // Where the class is full the buffer is simply freed.
        let _ = self.class(class).map(|(keep, _)| keep.try_send(buffer));
    }

    /// A copy of a text in memory of the pool.
    pub(super) fn text(&self, text: &str) -> String {
        let mut buffer = self.take(text.len());
        buffer.extend_from_slice(text.as_bytes());
        String::from_utf8(buffer).expect("a copy of a text is one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_serves_again_what_is_at_least_half_as_large() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(1000);
        buffer.extend_from_slice(&[1; 1000]);
        let place = buffer.as_ptr();
        pool.give(buffer);
        let (smaller, again) = (pool.take(500), pool.take(513));
        assert_ne!(smaller.as_ptr(), place);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, 0, 1024));
    }

    #[test]
    fn extremes_neither_panic_nor_stay() {
        let pool = BufferPool::default();
        assert_eq!(pool.take(0).capacity(), 64);
        assert_eq!(pool.take(usize::MAX).capacity(), LARGEST);
        let (empty, huge) = (Vec::new(), Vec::with_capacity(4 * LARGEST));
        pool.give(empty);
        pool.give(huge);
        assert!(pool.classes.iter().all(|(_, idle)| idle.is_empty()));
        let nothing = BufferPool::keeping_nothing();
        nothing.give(Vec::with_capacity(64));
        assert_eq!(nothing.take(64).capacity(), 64);
        (0..100).for_each(|_| pool.give(Vec::with_capacity(LARGEST)));
        assert_eq!(pool.classes.last().unwrap().1.len(), CLASS_BYTES / LARGEST);
    }
}
