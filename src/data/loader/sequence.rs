//! What decides the order: what the shards yield → the shuffle buffer → numbered groups of pairs.
//!
//! The workers share it: whoever has nothing to do asks for the next group. What happens between
//! two pairs, and is for the assembler to know, goes with them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::vec::IntoIter;

use crossbeam_channel::{Receiver, TryRecvError};

use super::super::ledger::{Entry, Fault};
use super::super::sample::{Found, Pair};
use super::order::Sampling;
use super::position::{Cursor, Held, LanePosition};
use super::prepare::{Answer, Job};
use super::read::{Chunk, Reading, Turn};
use crate::error::Error;
use crate::rng::{Domain, Rng};

/// Pairs of a group. So many are prepared before their rows are written: more would not stay in a
/// core's cache.
pub(super) const GROUP_PAIRS: usize = 4;
/// Slots of a group: where there is nothing but damage there is no pair to end it.
const GROUP_SLOTS: usize = 64;
/// Bits of the number of a pair within its lane; those above have the lane.
const LANE_SHIFT: u32 = 48;

/// What happens next in the order.
pub(super) enum Slot {
    /// A pair enters the shuffle buffer.
    Taken(Held, Cursor),
    /// The pair at this place of the buffer leaves it, for the group's jobs; the last takes its
    /// place.
    Given(u32),
    /// A pair that never got that far, or damage of a shard.
    Lost(Entry, Cursor),
    /// The epoch is over.
    End,
    /// Nothing could be read at all, or what was read before cannot be read again.
    Failed(Error),
}

/// A stretch of the order, and the pairs that are given out in it.
#[derive(Default)]
pub(super) struct Group {
    /// Position among the groups of the epoch.
    pub number: u64,
    pub slots: VecDeque<Slot>,
    /// Pairs to prepare, in order.
    pub jobs: Vec<Job>,
    /// What became of them, in order.
    pub answers: VecDeque<Answer>,
}

/// What the readers have.
enum Next {
    Found(u32, Found, Cursor),
    /// Nothing yet.
    Later,
    /// Nothing any more.
    Nothing,
    /// They were stopped.
    Stopped,
}

pub(super) struct Sequencer {
    reading: Arc<Reading>,
    /// Where to go on, until its shuffle buffer has been read again.
    start: Option<LanePosition>,
    epoch: u64,
    lane: usize,
    seq: u64,
    /// Good pairs given out.
    dealt: u64,
    /// Groups given out.
    groups: u64,
    buffer: Vec<(Pair, Held)>,
    buffer_bytes: u64,
    turns: Receiver<Turn>,
    /// The shard that is taken in.
    turn: Option<Turn>,
    chunk: IntoIter<(Found, Cursor)>,
    /// Pairs met when its turn began.
    met_before: u64,
    /// Turns in a row that yielded no pair.
    in_vain: u64,
    /// Whether a shard made sense.
    is_readable: bool,
    /// Why the first that did not did not.
    first_fault: Option<(u32, Fault)>,
    /// Whether everything has been taken in.
    is_read: bool,
    /// Whether everything has been told.
    is_over: bool,
}

impl Sequencer {
    /// Goes on from `start`, whose shuffle buffer is read again first.
    pub(super) fn new(
        reading: Arc<Reading>,
        (epoch, start): (u64, LanePosition),
        turns: Receiver<Turn>,
    ) -> Self {
        Self {
            reading,
            epoch,
            lane: start.lane,
            seq: start.next_seq,
            dealt: start.dealt,
            is_readable: start.next_seq > 0,
            start: Some(start),
            groups: 0,
            buffer: Vec::new(),
            buffer_bytes: 0,
            turns,
            turn: None,
            chunk: Chunk::new().into_iter(),
            met_before: 0,
            in_vain: 0,
            first_fault: None,
            is_read: false,
            is_over: false,
        }
    }

    /// What comes next, into an empty group; less than a whole one where the readers are behind.
    /// `false` where there is nothing any more.
    pub(super) fn next(&mut self, group: &mut Group) -> bool {
        group.number = self.groups;
        let mut goes_on = true;
        while goes_on && group.jobs.len() < GROUP_PAIRS && group.slots.len() < GROUP_SLOTS {
            goes_on = self.step(group);
        }
        self.groups += 1;
        !group.slots.is_empty()
    }

    /// Whether it can go on at once.
    fn step(&mut self, group: &mut Group) -> bool {
        if let Some(start) = self.start.take()
            && let Err(error) = self.restore(&start)
        {
            return self.end(group, Slot::Failed(error));
        }
        if self.is_over {
            return false;
        }
        if self.is_dealt_out() || (self.is_read && self.buffer.is_empty()) {
            let last = self.last_word();
            return self.end(group, last);
        }
        if self.is_read || self.is_overfull() {
            self.give_out(group);
            return true;
        }
        // Who has pairs in hand does not wait for more.
        match self.next_found(group.slots.is_empty()) {
            Next::Found(shard_index, found, cursor) => self.take(group, shard_index, found, cursor),
            Next::Later => return false,
            Next::Nothing => self.is_read = true,
            Next::Stopped => self.is_over = true,
        }
        true
    }

    fn restore(&mut self, start: &LanePosition) -> Result<(), Error> {
        let pairs = self.reading.fetch(&start.buffer).map_err(|(shard_index, fault)| {
            let pattern = self.reading.shards[shard_index as usize].name.to_string();
            let reason = format!("cannot go on from the middle of an epoch: {fault}");
            Error::Shards { pattern, reason }
        })?;
        self.buffer_bytes = pairs.iter().map(bytes_of).sum();
        self.buffer = pairs.into_iter().zip(start.buffer.iter().copied()).collect();
        self.met_before = self.met();
        Ok(())
    }

    fn end(&mut self, group: &mut Group, last: Slot) -> bool {
        group.slots.push_back(last);
        self.is_over = true;
        false
    }

    fn last_word(&mut self) -> Slot {
        match self.first_fault.take() {
            Some((shard_index, fault)) if !self.is_readable => {
                let Reading { config, shards, .. } = &*self.reading;
                let name = &shards[shard_index as usize].name;
                let whose = match config.lanes {
                    1 => shards.len().to_string(),
                    lanes => format!("those that lane {} of {lanes} reads", self.lane),
                };
                Slot::Failed(Error::Shards {
                    pattern: config.shards.clone(),
                    reason: format!("none of {whose} is readable; {name}: {fault}"),
                })
            }
            _ => Slot::End,
        }
    }

    /// Pairs that were read, good or bad.
    fn met(&self) -> u64 {
        self.seq + self.buffer.len() as u64
    }

    fn next_found(&mut self, waits: bool) -> Next {
        loop {
            if let (Some(turn), Some((found, cursor))) = (&self.turn, self.chunk.next()) {
                return Next::Found(turn.shard_index, found, cursor);
            }
            let Some(turn) = &self.turn else {
                match receive(&self.turns, waits) {
                    Ok(turn) => self.turn = Some(turn),
                    Err(TryRecvError::Empty) => return Next::Later,
                    Err(TryRecvError::Disconnected) => return Next::Nothing,
                }
                continue;
            };
            match receive(&turn.chunks, waits) {
                Ok(chunk) => self.chunk = chunk.into_iter(),
                Err(TryRecvError::Empty) => return Next::Later,
                Err(TryRecvError::Disconnected) => {
                    // It was told before the last chunk's end, or never will be.
                    let Ok(unreadable) = turn.unreadable.recv() else { return Next::Stopped };
                    let shard_index = turn.shard_index;
                    self.turn = None;
                    if self.end_turn(shard_index, unreadable) {
                        return Next::Nothing;
                    }
                }
            }
        }
    }

    /// Whether there is no use in reading on.
    fn end_turn(&mut self, shard_index: u32, unreadable: Option<Fault>) -> bool {
        match unreadable {
            None => self.is_readable = true,
            Some(fault) => _ = self.first_fault.get_or_insert((shard_index, fault)),
        }
        let met = self.met();
        self.in_vain = if met > self.met_before { 0 } else { self.in_vain + 1 };
        self.met_before = met;
        // Drawn with replacement, turns have no end: none that yields a pair in all these, none
        // will.
        let patience = 20 * self.reading.shards.len() as u64 + 100;
        let is_endless = matches!(self.reading.config.sampling, Sampling::Resampled { .. });
        is_endless && self.in_vain >= patience
    }

    /// Whether the pairs of an epoch have been given out, where their number is known.
    fn is_dealt_out(&self) -> bool {
        match self.reading.config.sampling {
            Sampling::Once => false,
            Sampling::Resampled { pairs, .. } => pairs.is_some_and(|pairs| self.dealt >= pairs),
        }
    }

    fn is_overfull(&self) -> bool {
        let config = &self.reading.config;
        self.buffer.len() > config.shuffle || self.buffer_bytes > config.shuffle_bytes
    }

    fn take(&mut self, group: &mut Group, shard_index: u32, found: Found, cursor: Cursor) {
        let place = (self.epoch, self.seq);
        group.slots.push_back(match found {
            Found::Pair(pair) => {
                let held = Held { turn: cursor.turn, index: pair.id.index, offset: pair.offset };
                self.buffer_bytes += bytes_of(&pair);
                self.buffer.push((pair, held));
                Slot::Taken(held, cursor)
            }
            Found::Skipped(id, offset, fault) => {
                self.seq += 1;
                Slot::Lost(Entry::pair(place, &id, offset, fault), cursor)
            }
            Found::Damage(offset, fault) => {
                let shard = Arc::clone(&self.reading.shards[shard_index as usize].name);
                Slot::Lost(Entry::shard(place, shard, shard_index, offset, fault), cursor)
            }
        });
    }

    fn give_out(&mut self, group: &mut Group) {
        // Each choice has its own stream, so there is no state to restore.
        let stream = self.seq | (self.lane as u64) << LANE_SHIFT;
        let mut rng = Rng::new(self.reading.config.seed, Domain::SampleOrder, self.epoch, stream);
        let at = rng.below(self.buffer.len() as u64) as usize;
        let (pair, held) = self.buffer.swap_remove(at);
        self.buffer_bytes -= bytes_of(&pair);
        self.dealt += 1;
        self.seq += 1;
        group.slots.push_back(Slot::Given(at as u32));
        let draw_epoch = self.reading.turns.draw_epoch(self.epoch, held.turn);
        group.jobs.push(Job { pair, draw_epoch });
    }
}

/// A channel that nobody receives from any more keeps what is in it while there is a sender, and a
/// turn that is kept there keeps the reader of its shard waiting for room. So turns end here, with
/// their sender. A reader that was not stopped in time may give one turn more, under the lock that
/// is then taken: the first round makes room for one of each.
impl Drop for Sequencer {
    fn drop(&mut self) {
        self.reading.stop.store(true, Ordering::Relaxed);
        self.turns.try_iter().for_each(drop);
        self.reading.no_more_turns();
        self.turns.try_iter().for_each(drop);
    }
}

/// What a channel has, or, if one `waits`, will have.
fn receive<T>(channel: &Receiver<T>, waits: bool) -> Result<T, TryRecvError> {
    if waits { channel.recv().map_err(|_| TryRecvError::Disconnected) } else { channel.try_recv() }
}

/// What a pair weighs in the shuffle buffer, bookkeeping included.
fn bytes_of(pair: &Pair) -> u64 {
    let texts = pair.caption.len() + pair.id.key.len();
    (pair.image.len() + texts + size_of::<Pair>()) as u64
}

#[cfg(test)]
mod tests {
    use super::super::LoaderConfig;
    use super::super::order::Turns;
    use super::*;
    use crate::data::source::Shard;
    use crate::flow::SampleId;
    use crossbeam_channel::{Sender, bounded};
    use std::sync::Mutex;
    use std::time::Duration;

    fn found(index: u32) -> (Found, Cursor) {
        let id = SampleId { shard: "s".into(), shard_index: 0, index, key: "k".into() };
        let (image, caption) = (vec![1], "c".into());
        (Found::Pair(Pair { id, offset: 0, image, caption, label: None }), Cursor::default())
    }

    fn reading(sender: Option<Sender<Turn>>) -> Arc<Reading> {
        Arc::new(Reading {
            config: Arc::new(LoaderConfig { shuffle: 0, ..LoaderConfig::default() }),
            shards: [Shard::file("s")].into(),
            turns: Turns::once(0, 0, 1, false, None),
            pool: Arc::default(),
            stop: Arc::default(),
            clocks: Arc::default(),
            start: Cursor::default(),
            next: Mutex::new((0, sender)),
        })
    }

    /// The readers have five pairs and are not done.
    #[test]
    fn pairs_in_hand_do_not_wait_for_more() {
        let ((sender, turns), (chunk_sender, chunks)) = (bounded(1), bounded(1));
        let (_tell, unreadable) = bounded(1);
        sender.send(Turn { shard_index: 0, chunks, unreadable }).unwrap();
        chunk_sender.send((0..5).map(found).collect()).unwrap();
        let (tell, told) = bounded(2);
        std::thread::spawn(move || {
            let mut sequencer = Sequencer::new(reading(None), Default::default(), turns);
            for _ in 0..2 {
                let mut group = Group::default();
                assert!(sequencer.next(&mut group));
                tell.send((group.number, group.jobs.len(), group.slots.len())).unwrap();
            }
        });
        let next = || told.recv_timeout(Duration::from_secs(60));
        assert_eq!([next(), next()], [Ok((0, 4, 8)), Ok((1, 1, 2))]);
    }

    /// A reader that is a shard ahead, and has read as much as may wait, when all is over.
    #[test]
    fn a_reader_whose_turn_never_comes_ends() {
        let ((sender, turns), (chunk_sender, chunks)) = (bounded(2), bounded(1));
        let (_tell, unreadable) = bounded(1);
        sender.send(Turn { shard_index: 0, chunks, unreadable }).unwrap();
        chunk_sender.send(Chunk::new()).unwrap();
        let reading = reading(Some(sender));
        let sequencer = Sequencer::new(Arc::clone(&reading), Default::default(), turns);
        let (tell, told) = bounded(1);
        std::thread::spawn(move || {
            let _reading = reading;
            tell.send(chunk_sender.send(Chunk::new()).is_err()).unwrap();
        });
        // It would tell at once if it did not wait.
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        drop(sequencer);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}
