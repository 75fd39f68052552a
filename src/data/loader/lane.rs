//! One lane of an epoch: its threads and the channels to them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::pool::BufferPool;
use super::super::source::Shard;
use super::super::transform::Transform;
use super::assemble::{Assembler, Delivery, Ends};
use super::order::Turns;
use super::position::LanePosition;
use super::prepare::{Preparer, Spares};
use super::read::Reading;
use super::sequence::{GROUP_PAIRS, Sequencer};
use super::share::Assembly;
use super::stats::Clocks;
use super::{BATCHES, LoaderConfig, READY_BATCHES};
use crate::error::{Error, Result};
use crate::flow::Batch;

/// Groups for each worker that are decoded and may wait for an earlier one.
const WINDOW_PER_WORKER: usize = 2;

/// What a lane is made of.
pub(super) struct Plan {
    /// That of a loader of this lane alone.
    pub config: Arc<LoaderConfig>,
    pub shards: Arc<[Shard]>,
    pub turns: Turns,
    pub transform: Arc<Transform>,
    pub pool: Arc<BufferPool>,
    pub clocks: Arc<Clocks>,
    pub is_interruptible: bool,
}

/// The batches of one lane. Dropping it ends its threads.
#[derive(Debug)]
pub(super) struct Lane {
    deliveries: Option<Receiver<Delivery>>,
    /// What has been received and not taken.
    next: Option<Delivery>,
    recycle: Sender<Batch>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    is_interruptible: bool,
}

impl Lane {
    /// Starts the threads that deliver a lane from `start` on.
    pub(super) fn start(plan: Plan, epoch: u64, start: LanePosition) -> Result<Self> {
        let (workers, readers) = (plan.config.workers, plan.config.readers);
        let (recycle, spare_batches) = bounded(BATCHES);
        // Before the channels: should a thread not start, their ends must go first, or those
        // that did start would wait for one another.
        let mut lane = Self {
            deliveries: None,
            next: None,
            recycle,
            threads: Vec::new(),
            stop: Arc::default(),
            is_interruptible: plan.is_interruptible,
        };
        let (turns_in, turns) = bounded(readers);
        let Plan { config, shards, pool, clocks, transform, .. } = plan;
        let reading = Arc::new(Reading {
            config: Arc::clone(&config),
            shards,
            turns: plan.turns,
            pool: Arc::clone(&pool),
            stop: Arc::clone(&lane.stop),
            clocks: Arc::clone(&clocks),
            start: start.cursor,
            next: Mutex::new((start.cursor.turn, Some(turns_in))),
        });
        let sequencer = Sequencer::new(Arc::clone(&reading), (epoch, start.clone()), turns);
        let (deliver, deliveries) = bounded(READY_BATCHES);
        let ends = Ends { deliver, spare_batches };
        let assembler = Assembler::new(&config, (epoch, start), ends, Arc::clone(&pool));
        let window = workers * WINDOW_PER_WORKER;
        let assembly = Assembly::new(assembler, window as u64);
        let shared = Arc::new((Mutex::new(sequencer), assembly));
        for _ in 0..readers {
            let reading = Arc::clone(&reading);
            lane.spawn("reader", move || reading.run())?;
        }
        // What workers hold, what waits, and what is being written.
        let (give, take) = bounded(2 * (window + workers) * GROUP_PAIRS);
        for _ in 0..workers {
            let (config, transform) = (Arc::clone(&config), Arc::clone(&transform));
            let spares = Spares { give: give.clone(), take: take.clone() };
            let mut preparer = Preparer::new(config, transform, Arc::clone(&pool), spares);
            let (shared, clocks) = (Arc::clone(&shared), Arc::clone(&clocks));
            lane.spawn("worker", move || {
                // Whether it ended early or late needs no answer: nobody listens.
                let _ = preparer.run(&shared.0, &shared.1, &clocks);
            })?;
        }
        lane.deliveries = Some(deliveries);
        Ok(lane)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(format!("loader-{name}")).spawn(run);
        let thread = thread.map_err(Error::io("start a thread for", format!("loader {name}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Deliveries that are here: no need to wait for them.
    pub(super) fn ready(&self) -> usize {
        let waiting = self.deliveries.as_ref().map_or(0, Receiver::len);
        waiting + usize::from(self.next.is_some())
    }

    /// Waits for the next delivery; whether it is a batch.
    pub(super) fn wait(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.deliveries.as_ref().and_then(|deliveries| deliveries.recv().ok());
        }
        if self.next.is_none() {
            self.is_interruptible = true;
            self.close();
            unreachable!("the workers end with a word, or by a panic");
        }
        matches!(self.next, Some(Delivery::Batch(..)))
    }

    /// The delivery that was waited for.
    pub(super) fn take(&mut self) -> Option<Delivery> {
        self.next.take()
    }

    /// Takes back a batch that has been used.
    pub(super) fn recycle(&self, batch: Batch) {
        // Where there is no room, or no assembler any more, the memory is simply freed.
        let _ = self.recycle.try_send(batch);
    }

    /// Tells the threads to end.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.deliveries = None;
    }

    /// Ends the threads. A pipe that sends nothing cannot be interrupted: then they are left to
    /// end by themselves, with their next byte or with the process.
    fn close(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            if self.is_interruptible && thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the loader panicked; its message stands above");
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
    }
}
