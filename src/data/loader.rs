//! Shards → batches, on threads, always the same.
//!
//! ```text
//! sequencer ──jobs──▶ workers (decode, augment, tokenise) ──▶ assembler ──▶ Epoch (iterator)
//!     └────────────────── slots, in order ─────────────────────▲
//! ```
//! Memory of pictures goes round: rows from the assembler back to the workers, batches from the
//! consumer to the assembler ([`Epoch::recycle`]). Fresh pages cost more than filling them.
//!
//! The sequencer reads the shards, shuffles, and numbers the pairs; each number is a slot that
//! its worker fills. The assembler takes the slots in order, so batches are a pure function of
//! (seed, epoch, shards): one worker or seven, resumed or not. Every channel is bounded.

mod assemble;
mod prepare;
mod sequence;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::decode::DecodeLimits;
use super::ledger::{Entry, Tally};
use super::sample::{Captions, Fields};
use super::shard::ShardLimits;
use super::source::{Shard, SourceOptions, fingerprint, list_shards, redact};
use super::text::eda::Eda;
use super::text::tokenizer::{CONTEXT_LENGTH, Tokenizer};
use super::transform::{Augment, Transform, TransformConfig};
use crate::error::{Error, Result};
use crate::flow::{Batch, HostAlloc, HostBuf};
use assemble::{Assembler, Delivery};
use prepare::Preparer;
use sequence::Sequencer;

/// Assembled batches that wait for the consumer.
const READY_BATCHES: usize = 2;
/// Batches that exist at a time: those that wait, two with the consumer (one is used, one is next),
/// one that is being filled.
pub const BATCHES: usize = READY_BATCHES + 3;
/// Ledger lines kept until they are taken: a shard of nothing but damage must not fill memory.
const MAX_ENTRIES: usize = 100_000;
/// Pairs under way for each worker: being decoded, or decoded and waiting for an earlier one.
const WINDOW_PER_WORKER: usize = 8;

/// What is done to the picture and the caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Random augmentation, keyed by (seed, epoch, pair).
    Train,
    /// Resize, centre crop, the caption as it is.
    Eval,
}

/// When captions are augmented (in [`Mode::Train`], if there is an [`Eda`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaptionAugmentation {
    /// Never.
    Off,
    /// Anew in every epoch.
    #[default]
    FreshEachEpoch,
    /// Once: every epoch sees the same augmented caption, that of epoch 0.
    OncePerRun,
}

/// What becomes of captions.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Turns captions to tokens; it also knows how to cut long ones.
    pub tokenizer: Tokenizer,
    /// Most tokens of a caption. Default 77.
    pub context_length: usize,
    /// Augments captions. Default none.
    pub eda: Option<Eda>,
    /// When it does. Default in every epoch anew.
    pub augmentation: CaptionAugmentation,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            tokenizer: Tokenizer::clip(),
            context_length: CONTEXT_LENGTH,
            eda: None,
            augmentation: CaptionAugmentation::default(),
        }
    }
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
    /// Pairs in the shuffle buffer. 0 keeps shards and pairs in listed order. Default 5000.
    pub shuffle: usize,
    /// Bytes in the shuffle buffer; beyond them it gives out pairs early. Default 1 GiB.
    pub shuffle_bytes: u64,
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
            shuffle: 5000,
            shuffle_bytes: 1 << 30,
            fields: Fields::default(),
            shard_limits: ShardLimits::default(),
            decode_limits: DecodeLimits::default(),
            transform: TransformConfig::new(224, Augment::clip()),
            mode: Mode::Train,
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

/// A place in an epoch, between two batches. Together with the configuration it determines all
/// that follows, so it is all that a checkpoint needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Sequence number of the pair that comes next.
    pub next_seq: u64,
    /// Batches delivered in this epoch.
    pub batches: u64,
    /// What became of the pairs before.
    pub tally: Tally,
}

impl Position {
    /// The start of an epoch.
    pub fn start_of(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }
}

/// Delivers the batches of any epoch from any position.
#[derive(Debug)]
pub struct Loader {
    config: Arc<LoaderConfig>,
    shards: Arc<[Shard]>,
    transform: Arc<Transform>,
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
        let shards: Arc<[Shard]> = list_shards(&config.shards, &config.source)?.into();
        let transform = Arc::new(Transform::new(config.transform.clone())?);
        let is_rereadable = shards.iter().all(Shard::is_rereadable);
        let is_consumed = AtomicBool::new(false);
        Ok(Self { config: Arc::new(config), shards, transform, is_rereadable, is_consumed })
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

    /// Starts the threads that deliver an epoch from `start` on. From the middle of an epoch the
    /// cheap part, reading and shuffling, is done over; nothing before `start` is decoded.
    ///
    /// # Errors
    /// A pipe among the shards would have to be read a second time; a thread cannot be started.
    pub fn epoch(&self, start: Position) -> Result<Epoch> {
        if !self.is_rereadable
            && (self.is_consumed.swap(true, Ordering::Relaxed) || start.next_seq > 0)
        {
            return Err(Error::Shards {
                pattern: redact(&self.config.shards),
                reason: "a pipe (standard input or FIFO) can be read only once: a second epoch or \
                         a resumed one needs files"
                    .into(),
            });
        }
        let workers = self.config.workers;
        let (stop, clocks) = (Arc::new(AtomicBool::new(false)), Arc::new(Clocks::default()));
        let (recycle, spare_images) = bounded(BATCHES);
        // Before the channels: should a thread not start, their ends must go first, or those
        // that did start would wait for one another.
        let mut epoch = Epoch {
            deliveries: None,
            recycle,
            threads: Vec::new(),
            stop: Arc::clone(&stop),
            position: start.clone(),
            entries: Vec::new(),
            is_interruptible: self.is_rereadable,
            clocks: Arc::clone(&clocks),
            started: Instant::now(),
            workers,
        };
        let window = workers * WINDOW_PER_WORKER;
        let (slot_sender, slots) = bounded(window);
        // Every row belongs to a slot that waits or to the one that is being taken.
        let (spare_sender, spare_rows) = bounded(window + 1);
        let (job_sender, jobs) = bounded(workers * 2);
        let (deliver, deliveries) = bounded(READY_BATCHES);
        let sequencer = Sequencer::new(
            Arc::clone(&self.config),
            Arc::clone(&self.shards),
            &start,
            (slot_sender, job_sender),
            (stop, Arc::clone(&clocks)),
        );
        epoch.spawn("sequencer", move || sequencer.run())?;
        for _ in 0..workers {
            let transform = Arc::clone(&self.transform);
            let (config, spare_rows) = (Arc::clone(&self.config), spare_rows.clone());
            let mut preparer = Preparer::new(config, transform, start.epoch, spare_rows);
            let (jobs, clocks) = (jobs.clone(), Arc::clone(&clocks));
            epoch.spawn("worker", move || preparer.run(&jobs, &clocks))?;
        }
        let assembler = Assembler::new(&self.config, start, deliver, (spare_sender, spare_images));
        epoch.spawn("assembler", move || assembler.run(&slots))?;
        epoch.deliveries = Some(deliveries);
        Ok(epoch)
    }
}

/// Time spent by the threads, in nanoseconds.
#[derive(Debug, Default)]
struct Clocks {
    consumer_wait: AtomicU64,
    read_blocked: AtomicU64,
    decode_busy: AtomicU64,
}

fn add_since(clock: &AtomicU64, since: Instant) {
    clock.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

/// Where the time of an epoch went, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Time since the epoch was started.
    pub elapsed: Duration,
    /// Time the consumer waited for batches: what a faster loader would save.
    pub consumer_wait: Duration,
    /// Share of the time in which reading was held up by the stages behind it, `0..=1`. Near 0,
    /// the disk is the bottleneck.
    pub read_blocked: f64,
    /// Share of the workers' time spent on decoding and augmenting, `0..=1`. Near 1 with
    /// `consumer_wait` above 0, more workers would help.
    pub decode_busy: f64,
}

/// The batches of one epoch. Dropping it ends its threads.
#[derive(Debug)]
pub struct Epoch {
    deliveries: Option<Receiver<Delivery>>,
    recycle: Sender<HostBuf>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    position: Position,
    entries: Vec<Entry>,
    is_interruptible: bool,
    clocks: Arc<Clocks>,
    started: Instant,
    workers: usize,
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

    /// Takes back a batch that has been used: the memory of its pictures serves a later batch.
    /// Without this every batch is made of fresh pages of the system, which take a fifth of the
    /// loader's CPU time on small JPEGs.
    pub fn recycle(&self, batch: Batch) {
        // Where there is no room, or no assembler any more, the memory is simply freed.
        let _ = self.recycle.try_send(batch.images);
    }

    /// The ledger's new lines: what was met up to [`position`](Self::position), since last asked.
    /// Beyond 100,000 of them faults are only counted, in the tally.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Where the time went.
    pub fn stats(&self) -> Stats {
        let elapsed = self.started.elapsed();
        let time = |clock: &AtomicU64| Duration::from_nanos(clock.load(Ordering::Relaxed));
        let share = |clock, threads: usize| {
            let whole = elapsed.as_secs_f64() * threads as f64;
            (time(clock).as_secs_f64() / whole.max(1e-9)).min(1.0)
        };
        Stats {
            elapsed,
            consumer_wait: time(&self.clocks.consumer_wait),
            read_blocked: share(&self.clocks.read_blocked, 1),
            decode_busy: share(&self.clocks.decode_busy, self.workers),
        }
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
                unreachable!("the assembler ends with a word, or by a panic");
            }
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.close();
    }
}
