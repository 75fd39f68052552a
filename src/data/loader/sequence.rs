//! The one thread that decides the order: what the shards yield → the shuffle buffer → numbered
//! slots.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Entry, Fault};
use super::super::sample::{Found, Pair};
use super::super::source::Shard;
use super::LoaderConfig;
use super::order::{Cursor, Held, Position, Sampling, Turns};
use super::prepare::Job;
use super::read::{Reading, Turn};
use super::stats::{Clocks, add_since};
use crate::error::Error;
use crate::flow::SampleId;
use crate::rng::{Domain, Rng};

/// What happens next in the order.
pub(super) enum Slot {
    /// A pair enters the shuffle buffer.
    Taken(Held, Cursor),
    /// The pair at this place of the buffer leaves it; the last takes its place. If it belongs to
    /// this rank, a worker has it.
    Given { at: u32, is_ours: bool },
    /// A pair that never got that far; no entry if another rank tells it.
    Skipped(Option<Entry>, Cursor),
    /// Damage of a shard, likewise.
    Damage(Option<Entry>, Cursor),
    /// The epoch is over.
    End,
    /// Nothing could be read at all, or what was read before cannot be read again.
    Failed(Error),
}

/// The consumer has gone.
struct Gone;

pub(super) struct Sequencer {
    config: Arc<LoaderConfig>,
    shards: Arc<[Shard]>,
    turns: Arc<Turns>,
    epoch: u64,
    seq: u64,
    /// Good pairs dealt to the ranks.
    dealt: u64,
    buffer: Vec<(Pair, Held)>,
    buffer_bytes: u64,
    slots: Sender<Slot>,
    jobs: Sender<Job>,
    clocks: Arc<Clocks>,
}

impl Sequencer {
    pub(super) fn new(
        reading: &Reading,
        start: &Position,
        (slots, jobs): (Sender<Slot>, Sender<Job>),
    ) -> Self {
        Self {
            config: Arc::clone(&reading.config),
            shards: Arc::clone(&reading.shards),
            turns: Arc::clone(&reading.turns),
            epoch: start.epoch,
            seq: start.next_seq,
            dealt: start.dealt,
            buffer: Vec::new(),
            buffer_bytes: 0,
            slots,
            jobs,
            clocks: Arc::clone(&reading.clocks),
        }
    }

    /// Goes on from `start`, whose shuffle buffer is read again first.
    pub(super) fn run(mut self, reading: &Reading, start: &Position, turns: &Receiver<Turn>) {
        // `Gone` needs no answer: nobody listens.
        let _ = match reading.fetch(&start.buffer) {
            Ok(pairs) => {
                self.buffer_bytes = pairs.iter().map(bytes_of).sum();
                self.buffer = pairs.into_iter().zip(start.buffer.iter().copied()).collect();
                self.read_all(turns)
            }
            Err((shard_index, fault)) => {
                let failure = Error::Shards {
                    pattern: self.shards[shard_index as usize].name.to_string(),
                    reason: format!("cannot go on from the middle of an epoch: {fault}"),
                };
                self.send(Slot::Failed(failure))
            }
        };
    }

    fn read_all(&mut self, turns: &Receiver<Turn>) -> Result<(), Gone> {
        let (mut is_readable, mut first_fault) = (self.seq > 0, None);
        // Drawn with replacement, turns have no end: none that yields a pair in all these, none
        // will.
        let patience = 20 * self.shards.len() as u64 + 100;
        let mut in_vain = 0;
        for Turn { shard_index, chunks, unreadable } in turns {
            let before = self.seq + self.buffer.len() as u64;
            for (found, cursor) in chunks.into_iter().flatten() {
                self.take(shard_index, found, cursor)?;
                if self.is_over() {
                    return self.send(Slot::End);
                }
            }
            match unreadable.recv() {
                Ok(None) => is_readable = true,
                Ok(Some(fault)) => _ = first_fault.get_or_insert((shard_index, fault)),
                Err(_) => return Err(Gone),
            }
            in_vain = if self.seq + self.buffer.len() as u64 > before { 0 } else { in_vain + 1 };
            if in_vain >= patience && matches!(self.config.sampling, Sampling::Resampled { .. }) {
                break;
            }
        }
        while !self.buffer.is_empty() && !self.is_over() {
            self.give_out()?;
        }
        let last = match first_fault {
            Some((shard_index, fault)) if !is_readable => {
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

    /// Whether the pairs of an epoch have been dealt, where their number is given.
    fn is_over(&self) -> bool {
        match self.config.sampling {
            Sampling::Once => false,
            Sampling::Resampled { pairs, .. } => pairs.is_some_and(|pairs| self.dealt >= pairs),
        }
    }

    fn take(&mut self, shard_index: u32, found: Found, cursor: Cursor) -> Result<(), Gone> {
        match found {
            Found::Pair(pair) => self.take_in(pair, cursor),
            Found::Skipped(id, offset, fault) => self.skip(&id, offset, fault, cursor),
            Found::Damage(offset, fault) => self.damage(shard_index, offset, fault, cursor),
        }
    }

    /// Into the shuffle buffer, which gives out as much as it has too much.
    fn take_in(&mut self, pair: Pair, cursor: Cursor) -> Result<(), Gone> {
        let held = Held { turn: cursor.turn, index: pair.id.index, offset: pair.offset };
        self.buffer_bytes += bytes_of(&pair);
        self.buffer.push((pair, held));
        self.send(Slot::Taken(held, cursor))?;
        while !self.is_over()
            && (self.buffer.len() > self.config.shuffle
                || self.buffer_bytes > self.config.shuffle_bytes)
        {
            self.give_out()?;
        }
        Ok(())
    }

    fn give_out(&mut self) -> Result<(), Gone> {
        // Each choice has its own stream, so there is no state to restore.
        let mut rng = Rng::new(self.config.seed, Domain::SampleOrder, self.epoch, self.seq);
        let at = rng.below(self.buffer.len() as u64) as usize;
        let (pair, held) = self.buffer.swap_remove(at);
        self.buffer_bytes -= bytes_of(&pair);
        let is_ours = self.next_is_ours();
        self.dealt += 1;
        self.seq += 1;
        self.send(Slot::Given { at: at as u32, is_ours })?;
        if !is_ours {
            return Ok(());
        }
        let draw_epoch = self.turns.draw_epoch(self.epoch, held.turn);
        let since = Instant::now();
        let sent = self.jobs.send(Job { seq: self.seq - 1, pair, draw_epoch });
        add_since(&self.clocks.order_blocked, since);
        sent.map_err(|_| Gone)
    }

    fn skip(
        &mut self,
        id: &SampleId,
        offset: u64,
        fault: Fault,
        cursor: Cursor,
    ) -> Result<(), Gone> {
        let place = (self.epoch, self.seq);
        self.seq += 1;
        let entry = self.next_is_ours().then(|| Entry::pair(place, id, offset, fault));
        self.send(Slot::Skipped(entry, cursor))
    }

    fn damage(
        &mut self,
        shard_index: u32,
        offset: u64,
        fault: Fault,
        cursor: Cursor,
    ) -> Result<(), Gone> {
        let place = (self.epoch, self.seq);
        let shard = || Arc::clone(&self.shards[shard_index as usize].name);
        let entry =
            self.next_is_ours().then(|| Entry::shard(place, shard(), shard_index, offset, fault));
        self.send(Slot::Damage(entry, cursor))
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
        add_since(&self.clocks.order_blocked, since);
        sent.map_err(|_| Gone)
    }
}

/// What a pair weighs in the shuffle buffer, bookkeeping included.
fn bytes_of(pair: &Pair) -> u64 {
    let texts = pair.caption.len() + pair.id.key.len();
    (pair.image.len() + texts + size_of::<Pair>()) as u64
}
