//! The one thread that reads: shards in order → pairs in a buffer → slots with numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::ledger::{Entry, Fault};
use super::super::sample::{Contents, Found, Pair, SampleReader};
use super::super::shard::ShardReader;
use super::super::source::Shard;
use super::prepare::{Job, Prepared};
use super::{Clocks, LoaderConfig, Position, add_since};
use crate::error::Error;
use crate::flow::SampleId;
use crate::rng::{Domain, Rng};

/// What stands at a place of the order. Every slot but `Damage` and the last is one pair.
pub(super) enum Slot {
    /// A pair under way to a worker, which answers.
    Pair(SampleId, u64, Receiver<Result<Prepared, Fault>>),
    /// A pair that never got that far.
    Skipped(Entry),
    /// Damage of a shard.
    Damage(Entry),
    /// A pair of another rank.
    Elsewhere,
    /// Every shard has been read.
    End,
    /// Nothing could be read at all.
    Failed(Error),
}

/// The consumer has gone.
struct Gone;

pub(super) struct Sequencer {
    config: Arc<LoaderConfig>,
    shards: Arc<[Shard]>,
    epoch: u64,
    /// Slots before this number were delivered before the run was interrupted.
    first_seq: u64,
    seq: u64,
    /// Good pairs dealt to the ranks.
    dealt: u64,
    rng: Rng,
    buffer: Vec<Pair>,
    buffer_bytes: u64,
    slots: Sender<Slot>,
    jobs: Sender<Job>,
    stop: Arc<AtomicBool>,
    clocks: Arc<Clocks>,
}

impl Sequencer {
    pub(super) fn new(
        config: Arc<LoaderConfig>,
        shards: Arc<[Shard]>,
        start: &Position,
        (slots, jobs): (Sender<Slot>, Sender<Job>),
        (stop, clocks): (Arc<AtomicBool>, Arc<Clocks>),
    ) -> Self {
        let rng = Rng::new(config.seed, Domain::SampleOrder, start.epoch, 0);
        Self {
            config,
            shards,
            epoch: start.epoch,
            first_seq: start.next_seq,
            seq: 0,
            dealt: 0,
            rng,
            buffer: Vec::new(),
            buffer_bytes: 0,
            slots,
            jobs,
            stop,
            clocks,
        }
    }

    pub(super) fn run(mut self) {
        // `Gone` needs no answer: nobody listens.
        let _ = self.read_all();
    }

    fn read_all(&mut self) -> Result<(), Gone> {
        let mut order: Vec<u32> = (0..self.shards.len() as u32).collect();
        if self.config.shuffle > 0 {
            Rng::new(self.config.seed, Domain::ShardOrder, self.epoch, 0).shuffle(&mut order);
        }
        let (mut readable, mut first_fault) = (0, None);
        for shard_index in order {
            match self.read_shard(shard_index)? {
                None => readable += 1,
                Some(fault) => _ = first_fault.get_or_insert((shard_index, fault)),
            }
        }
        while !self.buffer.is_empty() {
            self.give_out()?;
        }
        let last = match first_fault {
            Some((shard_index, fault)) if readable == 0 => {
                let name = &self.shards[shard_index as usize].name;
                let count = self.shards.len();
                Slot::Failed(Error::Shards {
                    pattern: self.config.shards.clone(),
                    reason: format!("none of {count} is readable; {name}: {fault}"),
                })
            }
            _ => Slot::End,
        };
        self.send(last)
    }

    /// Reads a shard to its end; a fault if not even the beginning made sense.
    fn read_shard(&mut self, shard_index: u32) -> Result<Option<Fault>, Gone> {
        let shards = Arc::clone(&self.shards);
        let shard = &shards[shard_index as usize];
        let config = Arc::clone(&self.config);
        let limits = &config.shard_limits;
        let input = match ShardReader::open(shard, limits, Arc::clone(&self.stop)) {
            Ok(input) => input,
            Err(fault) => {
                self.damage(shard_index, 0, fault.clone())?;
                return Ok(Some(fault));
            }
        };
        let place = (&shard.name, shard_index);
        let mut reader = SampleReader::new(input, place, &config.fields, Contents::Read, limits);
        let mut first_fault = None;
        for found in &mut reader {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Gone);
            }
            match found {
                Found::Pair(pair) => self.take_in(pair)?,
                Found::Skipped(id, offset, fault) => self.skip(&id, offset, fault)?,
                Found::Damage(offset, fault) => {
                    first_fault.get_or_insert(fault.clone());
                    self.damage(shard_index, offset, fault)?;
                }
            }
        }
        Ok(first_fault.filter(|_| !reader.is_readable()))
    }

    /// Into the shuffle buffer, which gives out as much as it has too much.
    fn take_in(&mut self, pair: Pair) -> Result<(), Gone> {
        self.buffer_bytes += bytes_of(&pair);
        self.buffer.push(pair);
        while self.buffer.len() > self.config.shuffle
            || self.buffer_bytes > self.config.shuffle_bytes
        {
            self.give_out()?;
        }
        Ok(())
    }

    fn give_out(&mut self) -> Result<(), Gone> {
        let at = self.rng.below(self.buffer.len() as u64) as usize;
        let pair = self.buffer.swap_remove(at);
        self.buffer_bytes -= bytes_of(&pair);
        let is_ours = self.next_is_ours();
        self.dealt += 1;
        self.seq += 1;
        if self.seq <= self.first_seq {
            return Ok(());
        }
        if !is_ours {
            return self.send(Slot::Elsewhere);
        }
        let (reply, answer) = bounded(1);
        self.send(Slot::Pair(pair.id.clone(), pair.offset, answer))?;
        let since = Instant::now();
        let sent = self.jobs.send(Job { pair, reply });
        add_since(&self.clocks.read_blocked, since);
        sent.map_err(|_| Gone)
    }

    fn skip(&mut self, id: &SampleId, offset: u64, fault: Fault) -> Result<(), Gone> {
        let entry = Entry::pair((self.epoch, self.seq), id, offset, fault);
        self.seq += 1;
        if self.seq <= self.first_seq {
            return Ok(());
        }
        self.send(if self.next_is_ours() { Slot::Skipped(entry) } else { Slot::Elsewhere })
    }

    fn damage(&mut self, shard_index: u32, offset: u64, fault: Fault) -> Result<(), Gone> {
        if self.seq < self.first_seq || !self.next_is_ours() {
            return Ok(());
        }
        let shard = Arc::clone(&self.shards[shard_index as usize].name);
        let place = (self.epoch, self.seq);
        self.send(Slot::Damage(Entry::shard(place, shard, shard_index, offset, fault)))
    }

    /// Whether the next good pair is dealt to this rank; what is ledgered goes with it, so that
    /// exactly one rank tells it.
    fn next_is_ours(&self) -> bool {
        let block = self.dealt / self.config.batch_size as u64;
        block % self.config.world_size as u64 == self.config.rank as u64
    }

    fn send(&self, slot: Slot) -> Result<(), Gone> {
        let since = Instant::now();
        let sent = self.slots.send(slot);
        add_since(&self.clocks.read_blocked, since);
        sent.map_err(|_| Gone)
    }
}

/// What a pair weighs in the shuffle buffer, bookkeeping included.
fn bytes_of(pair: &Pair) -> u64 {
    let texts = pair.caption.len() + pair.id.key.len();
    (pair.image.len() + texts + size_of::<Pair>()) as u64
}
