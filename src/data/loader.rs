//! Shards → batches, on threads, always the same.
//!
//! ```text
//! readers ─turns─▶ sequencer ─groups─▶ workers ─groups─▶ assembler ─▶ Lane ─▶ Epoch (iterator)
//!  (threads)        (shared)          (threads) ◀─rows──  (shared)
//! ```
//! The pairs of an epoch are cut into lanes, each with all of the above; a rank reads its own, and
//! what a batch holds depends on the lanes, not on the ranks ([`LoaderConfig::lanes`]). Mostly a
//! rank has one lane, whose batches are the epoch's.
//!
//! Readers read whole shards ahead. The sequencer shuffles and numbers the pairs, a few at a time;
//! a worker that has nothing to do takes the next of these groups from it. Workers decode and
//! augment in any order. The assembler takes the groups in theirs, knows which pairs are good, and
//! so which row of which batch each gets; a worker writes it there, straight into the memory that a
//! device copies from. Sequencer and assembler have no threads of their own: the workers run them,
//! each under a lock, so that a pair is not handed from thread to thread. Batches are a pure
//! function of (seed, epoch, shards, lanes): one worker or seven, resumed or not. Every queue is
//! bounded, and nothing is allocated for a pair once the buffers that go round are there
//! ([`Epoch::recycle`]).

mod assemble;
mod epoch;
mod lane;
mod order;
mod position;
mod prepare;
mod read;
mod sequence;
mod share;
mod stats;
mod text;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::count::Counts;
use super::decode::DecodeLimits;
use super::exclude::Exclusions;
use super::picture::PictureEdit;
use super::pool::BufferPool;
use super::sample::{Captions, Fields};
use super::shard::ShardLimits;
use super::source::{Shard, SourceOptions, fingerprint, list_patterns};
use super::transform::{Augment, Transform, TransformConfig};
use crate::error::{Error, Result};
use crate::flow::HostAlloc;
use lane::{Lane, Plan};
use order::{Turns, edge};

pub use epoch::Epoch;
pub use order::Sampling;
pub use position::{Cursor, Held, LanePosition, Position};
pub use stats::Stats;
pub use text::{CaptionAugmentation, TextOptions};

/// Assembled batches that wait for the consumer.
const READY_BATCHES: usize = 1;
/// Batches that exist at a time: one that waits, two with the consumer (one is used, one is next),
/// one whose last rows are being written, one that is begun.
pub const BATCHES: usize = READY_BATCHES + 4;
/// Ledger lines kept until they are taken: a shard of nothing but damage must not fill memory.
const MAX_ENTRIES: usize = 100_000;
/// Most lanes: the number of a pair within its lane keeps 48 bits.
const MAX_LANES: usize = 1 << 16;

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
    /// `L`, parts that the pairs of an epoch are cut into, all alike but for one pair. Every lane
    /// is read, shuffled and resumed on its own, and gives an `L`-th of the rows of a global
    /// batch (that of all ranks); a broken pair's place is filled by the lane's own next one. So
    /// what a global batch holds depends on the lanes, never on the ranks. Several lanes need
    /// [`drop_last`](Self::drop_last) and, where every shard is read once, the number of pairs of
    /// each ([`Loader::with_counts`]). Default 1.
    pub lanes: usize,
    /// Which of the ranks this one is. Default 0.
    pub rank: usize,
    /// `W`, number of ranks, which divides `L`: rank `r` reads lanes `r*L/W..(r+1)*L/W` and gives
    /// their rows in order. Default 1.
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
            lanes: 1,
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
        self.validate_lanes()?;
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

    fn validate_lanes(&self) -> Result<()> {
        let (lanes, ranks, rows) = (self.lanes, self.world_size, self.world_size * self.batch_size);
        let expected = if lanes == 0 || lanes > MAX_LANES {
            format!("1 to {MAX_LANES}")
        } else if !lanes.is_multiple_of(ranks) || !rows.is_multiple_of(lanes) {
            let fits = (1..=rows / ranks).filter(|n| (rows / ranks).is_multiple_of(*n));
            let fits: Vec<_> = fits.take(8).map(|n| (n * ranks).to_string()).collect();
            format!(
                "a multiple of the number of ranks ({ranks}) that divides the {rows} pairs of a \
                 batch of all ranks: {}",
                fits.join(", ")
            )
        } else if lanes > 1 && !self.drop_last {
            "1 where every pair is to be delivered (drop_last false)".into()
        } else {
            return Ok(());
        };
        Err(Error::Option { flag: "--lanes".into(), got: lanes.to_string(), expected })
    }

    /// Lanes of a rank.
    fn lanes_of_rank(&self) -> usize {
        self.lanes / self.world_size
    }

    /// What makes a loader of one of this rank's lanes alone.
    fn of_lane(&self, lane: usize) -> Self {
        let lanes = self.lanes_of_rank();
        let part = |whole: u64, n, parts| edge(whole, n + 1, parts) - edge(whole, n, parts);
        let threads = |whole: usize| part(whole as u64, lane % lanes, lanes).max(1) as usize;
        let mut sampling = self.sampling.clone();
        if let Sampling::Resampled { pairs: Some(pairs), .. } = &mut sampling {
            *pairs = part(*pairs, lane, self.lanes);
        }
        Self {
            batch_size: self.batch_size / lanes,
            workers: threads(self.workers),
            readers: threads(self.readers),
            sampling,
            // None stays none, and some stays some.
            shuffle: self.shuffle.div_ceil(self.lanes),
            shuffle_bytes: self.shuffle_bytes.div_ceil(self.lanes as u64),
            // The rows of several lanes are copied from here into those that a device reads.
            memory: if lanes > 1 { HostAlloc::default() } else { self.memory.clone() },
            ..self.clone()
        }
    }
}

/// Delivers the batches of any epoch from any position.
#[derive(Debug)]
pub struct Loader {
    config: Arc<LoaderConfig>,
    shards: Arc<[Shard]>,
    /// Weight of each shard, where they are drawn.
    weights: Vec<f64>,
    /// Samples of each shard, where they have been counted.
    samples: Option<Arc<[u64]>>,
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
        let (config, pool, samples) = (Arc::new(config), Arc::default(), None);
        Ok(Self { config, shards, weights, samples, transform, pool, is_rereadable, is_consumed })
    }

    /// Tells what its shards hold: without that they cannot be cut into several lanes.
    pub fn with_counts(mut self, counts: &Counts) -> Self {
        self.samples = Some(counts.shards.iter().map(|shard| shard.samples).collect());
        self
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
            samples: self.samples.clone(),
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

    /// The part of a position that is this rank's: of a whole one its lanes, which the start of an
    /// epoch has, too; of its own all.
    ///
    /// # Errors
    /// It is of another number of lanes.
    pub fn own_lanes(&self, position: Position) -> Result<Position> {
        let config = &*self.config;
        let first = config.rank * config.lanes_of_rank();
        let own = first..first + config.lanes_of_rank();
        if position.lanes.iter().map(|place| place.lane).eq(own.clone()) {
            return Ok(position);
        }
        let mut whole = Position::merge([position], config.lanes)?;
        if whole.lanes.is_empty() {
            let place = |lane| LanePosition { lane, ..LanePosition::default() };
            whole.lanes = own.map(place).collect();
        } else {
            whole.lanes = whole.lanes.drain(own).collect();
        }
        Ok(whole)
    }

    /// Starts the threads that deliver an epoch from `start` on: a whole position, the start of an
    /// epoch, or one of this rank. In the middle of an epoch the shuffle buffers are read again,
    /// pair by pair, and the shards that were being read from where they had been; what cannot seek
    /// (a compressed shard) is gone through up to there.
    ///
    /// # Errors
    /// `start` is of another number of lanes; shards are to be cut into lanes, and their pairs
    /// were not counted or a pipe is among them; a pipe would have to be read a second time; a
    /// thread cannot be started.
    pub fn epoch(&self, start: Position) -> Result<Epoch> {
        let config = &*self.config;
        let start = self.own_lanes(start)?;
        self.check_lanes()?;
        let is_begun = start.lanes.iter().any(|place| place.next_seq > 0);
        if !self.is_rereadable && (self.is_consumed.swap(true, Ordering::Relaxed) || is_begun) {
            return Err(Error::Shards {
                pattern: config.shards.clone(),
                reason: "a pipe (standard input or FIFO) can be read only once: a second epoch or \
                         a resumed one needs files"
                    .into(),
            });
        }
        let (number, places) = (start.epoch, start.lanes.clone());
        let mut epoch = Epoch::new(config, &self.pool, start);
        for place in places {
            let plan = self.plan(number, place.lane, &epoch);
            let threads = (plan.config.readers, plan.config.workers);
            epoch.push(Lane::start(plan, number, place)?, threads);
        }
        Ok(epoch)
    }

    /// Whether the shards can be cut into so many lanes.
    fn check_lanes(&self) -> Result<()> {
        let lanes = self.config.lanes;
        let is_counted = self.samples.as_ref().is_some_and(|them| them.len() == self.shards.len());
        let why = if lanes > 1 && !self.is_rereadable {
            "1, for a pipe (standard input or FIFO) cannot be cut"
        } else if lanes > 1 && self.config.sampling == Sampling::Once && !is_counted {
            "1, or the pairs of each shard counted before (`Loader::with_counts`)"
        } else {
            return Ok(());
        };
        let (flag, got) = ("--lanes".into(), lanes.to_string());
        Err(Error::Option { flag, got, expected: why.into() })
    }

    fn plan(&self, number: u64, lane: usize, epoch: &Epoch) -> Plan {
        let LoaderConfig { seed, shuffle, lanes, .. } = *self.config;
        let turns = match self.config.sampling {
            Sampling::Once => {
                let cut = self.samples.as_deref().filter(|_| lanes > 1);
                let cut = cut.map(|samples| (samples, lane, lanes));
                Turns::once(seed, number, self.shards.len(), shuffle > 0, cut)
            }
            Sampling::Resampled { .. } => {
                Turns::resampled(seed, number, &self.weights, (lane, lanes))
            }
        };
        let config = match lanes {
            1 => Arc::clone(&self.config),
            _ => Arc::new(self.config.of_lane(lane)),
        };
        Plan {
            config,
            shards: Arc::clone(&self.shards),
            turns,
            transform: Arc::clone(&self.transform),
            pool: Arc::clone(&self.pool),
            clocks: epoch.clocks(),
            is_interruptible: self.is_rereadable,
        }
    }
}
