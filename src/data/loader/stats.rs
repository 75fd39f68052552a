//! Where the time of an epoch goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time spent by the threads, in nanoseconds, and what passed.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    pub read_busy: AtomicU64,
    pub read_blocked: AtomicU64,
    pub read_bytes: AtomicU64,
    pub prepare_starved: AtomicU64,
    pub prepare_busy: AtomicU64,
    pub consumer_wait: AtomicU64,
    /// Shards that are being read.
    open: Mutex<Vec<Arc<str>>>,
}

pub(super) fn add_since(clock: &AtomicU64, since: Instant) {
    clock.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

impl Clocks {
    fn opened(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader begins with a shard.
    pub(super) fn open(&self, shard: &Arc<str>) {
        self.opened().push(Arc::clone(shard));
    }

    /// A reader is done with it.
    pub(super) fn close(&self, shard: &Arc<str>) {
        let mut opened = self.opened();
        if let Some(at) = opened.iter().position(|open| open == shard) {
            opened.swap_remove(at);
        }
    }

    /// The shards that are being read.
    pub(super) fn open_shards(&self) -> Vec<Arc<str>> {
        self.opened().clone()
    }

    /// Bytes of members that came since then.
    pub(super) fn read(&self, since: Instant, bytes: usize) {
        add_since(&self.read_busy, since);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Of so many readers and workers.
    pub(super) fn stats(
        &self,
        elapsed: Duration,
        (readers, workers): (usize, usize),
        ready_batches: usize,
    ) -> Stats {
        let time = |clock: &AtomicU64| Duration::from_nanos(clock.load(Ordering::Relaxed));
        let share = |clock: &AtomicU64, threads: usize| {
            let whole = elapsed.as_secs_f64() * threads as f64;
            (time(clock).as_secs_f64() / whole.max(1e-9)).min(1.0)
        };
        Stats {
            elapsed,
            consumer_wait: time(&self.consumer_wait),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            read_busy: share(&self.read_busy, readers),
            read_blocked: share(&self.read_blocked, readers),
            prepare_starved: share(&self.prepare_starved, workers),
            prepare_busy: share(&self.prepare_busy, workers),
            ready_batches,
        }
    }
}

/// Where the time of an epoch went, so far.
///
/// The stage that is busy while those before it are blocked is the one that limits the rate; with
/// `consumer_wait` at 0 it is the consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Time since the epoch was started.
    pub elapsed: Duration,
    /// Time in which the consumer waited for a batch.
    pub consumer_wait: Duration,
    /// Bytes of images, captions and keys read from shards.
    pub read_bytes: u64,
    /// Share of the readers' time spent on reading, unpacking and grouping members, `0..=1`.
    pub read_busy: f64,
    /// Share of the readers' time in which the stages behind held them up, `0..=1`.
    pub read_blocked: f64,
    /// Share of the workers' time in which they waited for pairs, `0..=1`: the readers limit the
    /// rate.
    pub prepare_starved: f64,
    /// Share of the workers' time spent on decoding, augmenting and writing pictures and on
    /// captions, `0..=1`. Near 1 with `consumer_wait` above 0, more workers would help.
    pub prepare_busy: f64,
    /// Batches that wait for the consumer now.
    pub ready_batches: usize,
}
