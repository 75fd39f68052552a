//! The epoch of a rank: its lanes, side by side.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::ledger::Entry;
use super::super::pool::BufferPool;
use super::assemble::{Delivery, emptied};
use super::lane::Lane;
use super::position::{LanePosition, Position};
use super::stats::{Clocks, Stats, add_since};
use super::{BATCHES, LoaderConfig, MAX_ENTRIES};
use crate::error::{Error, Result};
use crate::flow::{Batch, HostAlloc};

/// The batches of one epoch. Dropping it ends its threads.
///
/// It ends with the first of its lanes. Pairs of others that would have filled the next batch are
/// then not seen: neither delivered nor counted.
#[derive(Debug)]
pub struct Epoch {
    /// None once it is over.
    lanes: Vec<Lane>,
    /// Where there are several.
    joint: Option<Joint>,
    /// Of each lane, while they are put together.
    rows: Vec<Batch>,
    position: Position,
    entries: Vec<Entry>,
    clocks: Arc<Clocks>,
    started: Instant,
    /// Readers and workers.
    threads: (usize, usize),
}

impl Epoch {
    /// The epoch of the rank that `config` names, before its lanes are there; `position` has
    /// theirs.
    pub(super) fn new(config: &LoaderConfig, pool: &Arc<BufferPool>, position: Position) -> Self {
        Self {
            lanes: Vec::new(),
            joint: (position.lanes.len() > 1).then(|| Joint::new(config, pool)),
            rows: Vec::new(),
            position,
            entries: Vec::new(),
            clocks: Arc::default(),
            started: Instant::now(),
            threads: (0, 0),
        }
    }

    pub(super) fn clocks(&self) -> Arc<Clocks> {
        Arc::clone(&self.clocks)
    }

    /// The next of its lanes, which runs on so many readers and workers.
    pub(super) fn push(&mut self, lane: Lane, (readers, workers): (usize, usize)) {
        self.lanes.push(lane);
        self.threads = (self.threads.0 + readers, self.threads.1 + workers);
    }

    /// The place after the last batch delivered (or after the last pair, at the end), in the lanes
    /// of this rank.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Whether the next batch, or the news that there is none, is here: no need to wait for it.
    pub fn is_ready(&self) -> bool {
        self.lanes.iter().all(|lane| lane.ready() > 0)
    }

    /// Takes back a batch that has been used: its memory serves a later batch. Without this every
    /// batch is made of fresh pages of the system, which take a fifth of the loader's CPU time on
    /// small JPEGs.
    pub fn recycle(&self, batch: Batch) {
        match (&self.joint, self.lanes.first()) {
            (Some(joint), _) => joint.recycle(batch),
            (None, Some(lane)) => lane.recycle(batch),
            (None, None) => {}
        }
    }

    /// The ledger's new lines: what was met up to [`position`](Self::position), since last asked.
    /// Beyond 100,000 of them faults are only counted, in the tally.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Asked on any thread, names the shards that are being read at that moment.
    pub fn reading(&self) -> impl Fn() -> String + Send + use<> {
        let clocks = self.clocks();
        move || clocks.open_shards().join(", ")
    }

    /// Where the time went.
    pub fn stats(&self) -> Stats {
        let ready = self.lanes.iter().map(Lane::ready).min();
        self.clocks.stats(self.started.elapsed(), self.threads, ready.unwrap_or(0))
    }

    fn arrive(&mut self, at: usize, place: LanePosition, entries: Vec<Entry>) {
        self.position.lanes[at] = place;
        let room = MAX_ENTRIES.saturating_sub(self.entries.len());
        self.entries.extend(entries.into_iter().take(room));
    }

    /// The batch of which every lane has its rows.
    fn batch(&mut self) -> Result<Batch> {
        // Before anything is taken: there may be no memory for it.
        let mut joined = self.joint.as_ref().map(Joint::begin).transpose()?;
        for at in 0..self.lanes.len() {
            if let Some(Delivery::Batch(batch, place, entries)) = self.lanes[at].take() {
                self.arrive(at, place, entries);
                self.rows.push(batch);
            }
        }
        self.position.batches += 1;
        if let (Some(joint), Some(joined)) = (&self.joint, &mut joined) {
            joint.join(&mut self.rows, joined);
            let used = self.lanes.iter().zip(self.rows.drain(..));
            used.for_each(|(lane, batch)| lane.recycle(batch));
        }
        Ok(joined.or_else(|| self.rows.pop()).expect("an epoch that is not over has lanes"))
    }

    /// Takes the last word of each lane that has said it; an error if one failed.
    fn end(&mut self) -> Option<Error> {
        let mut failure = None;
        for at in 0..self.lanes.len() {
            match self.lanes[at].take() {
                Some(Delivery::End(place, entries)) => self.arrive(at, place, entries),
                Some(Delivery::Failed(error, place, entries)) => {
                    self.arrive(at, place, entries);
                    failure = failure.or(Some(error));
                }
                Some(Delivery::Batch(..)) | None => {}
            }
        }
        self.close();
        failure
    }

    /// Ends the threads of all lanes: each is told before one is waited for.
    fn close(&mut self) {
        self.lanes.iter_mut().for_each(Lane::stop);
        self.lanes.clear();
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        if self.lanes.is_empty() {
            return None;
        }
        let since = Instant::now();
        let mut goes_on = true;
        for lane in &mut self.lanes {
            goes_on &= lane.wait();
        }
        add_since(&self.clocks.consumer_wait, since);
        if !goes_on {
            return self.end().map(Err);
        }
        let batch = self.batch();
        if batch.is_err() {
            self.close();
        }
        Some(batch)
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes one batch of those of several lanes.
#[derive(Debug)]
struct Joint {
    views: usize,
    /// Numbers of all its pictures.
    room: usize,
    memory: HostAlloc,
    pool: Arc<BufferPool>,
    /// Batches that the consumer has used.
    used: (Sender<Batch>, Receiver<Batch>),
}

impl Joint {
    fn new(config: &LoaderConfig, pool: &Arc<BufferPool>) -> Self {
        let side = config.transform.image_size;
        Self {
            views: config.views,
            room: config.views * config.batch_size * 3 * side * side,
            memory: config.memory.clone(),
            pool: Arc::clone(pool),
            used: bounded(BATCHES),
        }
    }

    fn recycle(&self, batch: Batch) {
        // Where there is no room the memory is simply freed.
        let _ = self.used.0.try_send(batch);
    }

    fn begin(&self) -> Result<Batch> {
        let spare = self.used.1.try_recv().unwrap_or_default();
        emptied(spare, self.room, &self.memory, &self.pool)
    }

    /// Puts the rows of lanes one behind the other, view after view.
    fn join(&self, lanes: &mut [Batch], joined: &mut Batch) {
        for view in 0..self.views {
            for rows in &*lanes {
                let (pairs, pixels) = (rows.len(), rows.images.len() / self.views);
                joined.images.extend_from_slice(&rows.images[view * pixels..][..pixels]);
                let captions = (view * pairs..(view + 1) * pairs).map(|n| rows.captions.get(n));
                captions.for_each(|tokens| joined.captions.push(tokens));
            }
        }
        for rows in lanes {
            joined.image_size = rows.image_size;
            joined.labels.append(&mut rows.labels);
            joined.samples.append(&mut rows.samples);
        }
    }
}
