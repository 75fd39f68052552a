//! Shards → batches, on threads, always the same.
//!
//! ```text
//! readers ─turns─▶ sequencer ─groups─▶ workers ─groups─▶ assembler ─▶ Epoch (iterator)
//!  (threads)        (shared)          (threads) ◀─rows──  (shared)
//! ```
//! Readers read whole shards ahead. The sequencer shuffles and numbers the pairs, a few at a time;
//! a worker that has nothing to do takes the next of these groups from it. Workers decode and
//! augment in any order. The assembler takes the groups in theirs, knows which pairs are good, and
//! so which row of which batch each gets; a worker writes it there, straight into the memory that a
//! device copies from. Sequencer and assembler have no threads of their own: the workers run them,
//! each under a lock, so that a pair is not handed from thread to thread. Batches are a pure
//! function of (seed, epoch, shards): one worker or seven, resumed or not. Every queue is bounded,
//! and nothing is allocated for a pair once the buffers that go round are there
//! ([`Epoch::recycle`]).

mod assemble;
mod order;
mod prepare;
mod read;
mod sequence;
mod share;
mod stats;
mod text;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::decode::DecodeLimits;
use super::exclude::Exclusions;
use super::ledger::Entry;
use super::picture::PictureEdit;
use super::pool::BufferPool;
use super::sample::{Captions, Fields};
use super::shard::ShardLimits;
use super::source::{Shard, SourceOptions, fingerprint, list_patterns};
use super::transform::{Augment, Transform, TransformConfig};
use crate::error::{Error, Result};
use crate::flow::{Batch, HostAlloc};
use assemble::{Assembler, Delivery, Ends};
use order::Turns;
use prepare::{Preparer, Spares};
use read::Reading;
use sequence::{GROUP_PAIRS, Sequencer};
use share::Assembly;
use stats::{Clocks, add_since};

pub use order::{Cursor, Held, Position, Sampling};
pub use stats::Stats;
pub use text::{CaptionAugmentation, TextOptions};

/// Assembled batches that wait for the consumer.
const READY_BATCHES: usize = 1;
/// Batches that exist at a time: one that waits, two with the consumer (one is used, one is next),
/// one whose last rows are being written, one that is begun.
pub const BATCHES: usize = READY_BATCHES + 4;
/// Ledger lines kept until they are taken: a shard of nothing but damage must not fill memory.
const MAX_ENTRIES: usize = 100_000;
/// Groups for each worker that are decoded and may wait for an earlier one.
const WINDOW_PER_WORKER: usize = 2;

/// What is done to the picture and the caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Random augmentation, keyed by (seed, epoch, pair).
    Train,
    /// Resize, centre crop, the caption as it is.
    Eval,
}

/// What a [`Loader`] is made of. Names as in open_clip and webdataset.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Shard list, see [`super::source`].
    pub shards: String,
    /// How shards are fetched over a network.
    pub source: SourceOptions,
    /// Key of every random draw. Default 0.
    pub seed: u64,
    /// `N`, pairs of a batch on this rank. Default 64, as in open_clip.
    pub batch_size: usize,
    /// Threads that decode and augment. Default one for each CPU.
    pub workers: usize,
    /// Threads that read shards, each its own; so many shards are read ahead. Default 2.
    pub readers: usize,
    /// How often shards are read within an epoch. Default once.
    pub sampling: Sampling,
    /// Pairs in the shuffle buffer. 0 keeps shards and pairs in listed order. Default 5000.
    pub shuffle: usize,
    /// Bytes in the shuffle buffer; beyond them it gives out pairs early. Default 1 GiB.
    pub shuffle_bytes: u64,
    /// Pairs to be left out; they are skipped and ledgered. Default none.
    pub exclude: Option<Arc<Exclusions>>,
    /// Pairs to be taken, by [`SampleId::stream`](crate::flow::SampleId::stream); all others are
    /// passed over and counted. Default all.
    pub only: Option<Arc<HashSet<u64>>>,
    /// Pairs to be passed over and counted, likewise. Default none.
    pub except: Option<Arc<HashSet<u64>>>,
    /// Which members make a pair.
    pub fields: Fields,
    /// What a shard may cost.
    pub shard_limits: ShardLimits,
    /// What a picture may cost.
    pub decode_limits: DecodeLimits,
    /// What is done to pictures. Default CLIP's at 224 pixels.
    pub transform: TransformConfig,
    /// Train or evaluate. Default train.
    pub mode: Mode,
    /// What is done first to every decoded picture, in [`Mode::Eval`]. Default nothing.
    pub edit: Option<PictureEdit>,
    /// Views of a pair, 1 or 2: as it is alone, and augmented by draws of its own. Default 1.
    pub views: usize,
    /// What is done to captions.
    pub text: TextOptions,
    /// Whether pairs that do not fill a last batch are left over. Default true; evaluation wants
    /// false.
    pub drop_last: bool,
    /// Where the pictures of batches lie. Default ordinary memory.
    pub memory: HostAlloc,
    /// Which of the ranks this one is. Default 0.
    pub rank: usize,
    /// Number of ranks. Pairs are dealt in blocks: rank `r` takes rows `r*N..(r+1)*N` of every
    /// `world_size * N` pairs of the one order. So all ranks together see, step by step, the
    /// batches that one rank would see with that many rows, as long as every picture decodes;
    /// a rank fills the place of one that does not with its own next pair, since it does not
    /// decode what belongs to others. Every pair is dealt to exactly one rank. Default 1.
    pub world_size: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            shards: String::new(),
            source: SourceOptions::default(),
            seed: 0,
            batch_size: 64,
            workers: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            readers: 2,
            sampling: Sampling::Once,
            shuffle: 5000,
            shuffle_bytes: 1 << 30,
            exclude: None,
            only: None,
            except: None,
            fields: Fields::default(),
            shard_limits: ShardLimits::default(),
            decode_limits: DecodeLimits::default(),
            transform: TransformConfig::new(224, Augment::clip()),
            mode: Mode::Train,
            edit: None,
            views: 1,
            text: TextOptions::default(),
            drop_last: true,
            memory: HostAlloc::default(),
            rank: 0,
            world_size: 1,
        }
    }
}

impl LoaderConfig {
    fn validate(&self) -> Result<()> {
        let wrong = |flag: &str, got: String, expected: &str| {
            Err(Error::Option { flag: flag.into(), got, expected: expected.into() })
        };
        if self.batch_size == 0 {
            return wrong("--batch-size", "0".into(), "1 or more");
        }
        if self.workers == 0 || self.workers > 1024 {
            return wrong("--workers", self.workers.to_string(), "1 to 1024");
        }
        if self.readers == 0 || self.readers > 64 {
            return wrong("readers", self.readers.to_string(), "1 to 64");
        }
        if let Sampling::Resampled { pairs: Some(0), .. } = self.sampling {
            return wrong("--train-num-samples", "0".into(), "the pairs of an epoch, 1 or more");
        }
        if !(1..=2).contains(&self.views) || (self.views > 1 && !self.drop_last) {
            let got = format!("{} with drop_last {}", self.views, self.drop_last);
            return wrong("views", got, "1, or 2 and no batch that is not full");
        }
        if self.rank >= self.world_size {
            let got = format!("rank {} of {}", self.rank, self.world_size);
            return wrong("--world-size", got, "more ranks than the number of this one");
        }
        if self.text.context_length < 2 {
            let got = self.text.context_length.to_string();
            return wrong("context_length", got, "2 or more: the start and the end token");
        }
        if self.fields.image_key.trim_matches([';', ' ']).is_empty() {
            return wrong("--image-key", format!("{:?}", self.fields.image_key), "`jpg;png`");
        }
        if let Captions::Text(key) | Captions::JsonField(key) = &self.fields.captions
            && key.trim_matches([';', ' ']).is_empty()
        {
            return wrong("--text-key", format!("{key:?}"), "an extension such as `txt`");
        }
        self.transform.validate()
    }
}

/// Delivers the batches of any epoch from any position.
#[derive(Debug)]
pub struct Loader {
    config: Arc<LoaderConfig>,
    shards: Arc<[Shard]>,
    /// Weight of each shard, where they are drawn.
    weights: Vec<f64>,
    transform: Arc<Transform>,
    pool: Arc<BufferPool>,
    is_rereadable: bool,
    is_consumed: AtomicBool,
}

impl Loader {
    /// Checks the configuration and lists the shards. No shard is opened.
    ///
    /// # Errors
    /// A field is out of range, or the shard list is unusable.
    pub fn new(config: LoaderConfig) -> Result<Self> {
        config.validate()?;
        let lists = list_patterns(&config.shards, &config.source)?;
        let weights = config.sampling.weights(&lists)?;
        let shards: Arc<[Shard]> = lists.concat().into();
        let transform = Arc::new(Transform::new(config.transform.clone())?);
        let is_rereadable = shards.iter().all(Shard::is_rereadable);
        let is_consumed = AtomicBool::new(false);
        let (config, pool) = (Arc::new(config), Arc::default());
        Ok(Self { config, shards, weights, transform, pool, is_rereadable, is_consumed })
    }

    /// Ends an epoch of shards drawn with replacement after so many pairs, if nothing else was
    /// said; any other epoch ends with its shards.
    pub fn with_epoch_pairs(mut self, count: u64) -> Self {
        if let Sampling::Resampled { pairs, .. } = &mut Arc::make_mut(&mut self.config).sampling {
            pairs.get_or_insert(count);
        }
        self
    }

    /// A loader of the same shards that reads them otherwise. `change` leaves the list of shards,
    /// the sampling and the transform as they are.
    ///
    /// # Errors
    /// A field is out of range.
    pub fn varied(&self, change: impl FnOnce(&mut LoaderConfig)) -> Result<Self> {
        let mut config = Arc::clone(&self.config);
        change(Arc::make_mut(&mut config));
        config.validate()?;
        Ok(Self {
            config,
            shards: Arc::clone(&self.shards),
            weights: self.weights.clone(),
            transform: Arc::clone(&self.transform),
            pool: Arc::clone(&self.pool),
            is_rereadable: self.is_rereadable,
            is_consumed: AtomicBool::new(self.is_consumed.load(Ordering::Relaxed)),
        })
    }

    /// The shards, in listed order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Names the list of shards: the same for the same paths in the same order with the same
    /// sizes ([`fingerprint`]). Two lists may yield other pairs at the same [`Position`], so a run
    /// that is resumed should compare it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.shards)
    }

    /// The configuration.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Starts the threads that deliver an epoch from `start` on. In the middle of an epoch the
    /// shuffle buffer is read again, pair by pair, and the shard that was being read from where it
    /// had been; what cannot seek (a compressed shard) is gone through up to there.
    ///
    /// # Errors
    /// A pipe among the shards would have to be read a second time; a thread cannot be started.
    pub fn epoch(&self, start: Position) -> Result<Epoch> {
        if !self.is_rereadable
            && (self.is_consumed.swap(true, Ordering::Relaxed) || start.next_seq > 0)
        {
            return Err(Error::Shards {
                pattern: self.config.shards.clone(),
                reason: "a pipe (standard input or FIFO) can be read only once: a second epoch or \
                         a resumed one needs files"
                    .into(),
            });
        }
        let (workers, readers) = (self.config.workers, self.config.readers);
        let clocks = Arc::new(Clocks::default());
        let (recycle, spare_batches) = bounded(BATCHES);
        // Before the channels: should a thread not start, their ends must go first, or those
        // that did start would wait for one another.
        let mut epoch = Epoch {
            deliveries: None,
            recycle,
            threads: Vec::new(),
            stop: Arc::default(),
            position: start.clone(),
            entries: Vec::new(),
            is_interruptible: self.is_rereadable,
            clocks: Arc::clone(&clocks),
            started: Instant::now(),
            workers,
            readers,
        };
        let (turn_sender, turns) = bounded(readers);
        let reading = Arc::new(self.reading(&start, turn_sender, &epoch));
        let sequencer = Sequencer::new(Arc::clone(&reading), start.clone(), turns);
        let (deliver, deliveries) = bounded(READY_BATCHES);
        let shared = (Arc::clone(&self.pool), Arc::clone(&clocks));
        let ends = Ends { deliver, spare_batches };
        let assembler = Assembler::new(&self.config, start, ends, shared);
        let window = workers * WINDOW_PER_WORKER;
        let assembly = Assembly::new(assembler, window as u64);
        let shared = Arc::new((Mutex::new(sequencer), assembly));
        for _ in 0..readers {
            let reading = Arc::clone(&reading);
            epoch.spawn("reader", move || reading.run())?;
        }
        // What workers hold, what waits, and what is being written.
        let (give, take) = bounded(2 * (window + workers) * GROUP_PAIRS);
        for _ in 0..workers {
            let (config, transform) = (Arc::clone(&self.config), Arc::clone(&self.transform));
            let spares = Spares { give: give.clone(), take: take.clone() };
            let mut preparer = Preparer::new(config, transform, Arc::clone(&self.pool), spares);
            let (shared, clocks) = (Arc::clone(&shared), Arc::clone(&clocks));
            epoch.spawn("worker", move || {
                // Whether it ended early or late needs no answer: nobody listens.
                let _ = preparer.run(&shared.0, &shared.1, &clocks);
            })?;
        }
        epoch.deliveries = Some(deliveries);
        Ok(epoch)
    }

    fn reading(&self, start: &Position, turns_in: Sender<read::Turn>, epoch: &Epoch) -> Reading {
        let (seed, count) = (self.config.seed, self.shards.len());
        let turns = match self.config.sampling {
            Sampling::Once => Turns::once(seed, start.epoch, count, self.config.shuffle > 0),
            Sampling::Resampled { .. } => Turns::resampled(seed, start.epoch, &self.weights),
        };
        Reading {
            config: Arc::clone(&self.config),
            shards: Arc::clone(&self.shards),
            turns: Arc::new(turns),
            pool: Arc::clone(&self.pool),
            stop: Arc::clone(&epoch.stop),
            clocks: Arc::clone(&epoch.clocks),
            start: start.cursor,
            next: Mutex::new((start.cursor.turn, Some(turns_in))),
        }
    }
}

/// The batches of one epoch. Dropping it ends its threads.
#[derive(Debug)]
pub struct Epoch {
    deliveries: Option<Receiver<Delivery>>,
    recycle: Sender<Batch>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    position: Position,
    entries: Vec<Entry>,
    is_interruptible: bool,
    clocks: Arc<Clocks>,
    started: Instant,
    workers: usize,
    readers: usize,
}

impl Epoch {
    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(format!("loader-{name}")).spawn(run);
        let thread = thread.map_err(Error::io("start a thread for", format!("loader {name}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// The place after the last batch delivered (or after the last pair, at the end).
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Whether the next batch, or the news that there is none, is here: no need to wait for it.
    pub fn is_ready(&self) -> bool {
        self.deliveries.as_ref().is_none_or(|deliveries| !deliveries.is_empty())
    }

    /// Takes back a batch that has been used: its memory serves a later batch. Without this every
    /// batch is made of fresh pages of the system, which take a fifth of the loader's CPU time on
    /// small JPEGs.
    pub fn recycle(&self, batch: Batch) {
        // Where there is no room, or no assembler any more, the memory is simply freed.
        let _ = self.recycle.try_send(batch);
    }

    /// The ledger's new lines: what was met up to [`position`](Self::position), since last asked.
    /// Beyond 100,000 of them faults are only counted, in the tally.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Where the time went.
    pub fn stats(&self) -> Stats {
        self.clocks.stats(self.started, self.readers, self.workers)
    }

    fn arrive(&mut self, position: Position, entries: Vec<Entry>) {
        self.position = position;
        let room = MAX_ENTRIES.saturating_sub(self.entries.len());
        self.entries.extend(entries.into_iter().take(room));
    }

    /// Ends the threads. A pipe that sends nothing cannot be interrupted: then they are left to
    /// end by themselves, with their next byte or with the process.
    fn close(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.deliveries = None;
        for thread in self.threads.drain(..) {
            if self.is_interruptible && thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the loader panicked; its message stands above");
            }
        }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let deliveries = self.deliveries.as_ref()?;
        let since = Instant::now();
        let delivery = deliveries.recv();
        add_since(&self.clocks.consumer_wait, since);
        match delivery {
            Ok(Delivery::Batch(batch, position, entries)) => {
                self.arrive(position, entries);
                Some(Ok(batch))
            }
            Ok(Delivery::End(position, entries)) => {
                self.arrive(position, entries);
                self.close();
                None
            }
            Ok(Delivery::Failed(error, position, entries)) => {
                self.arrive(position, entries);
                self.close();
                Some(Err(error))
            }
            Err(_) => {
                self.is_interruptible = true;
                self.close();
                unreachable!("the workers end with a word, or by a panic");
            }
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.close();
    }
}
