//! Groups in order → batches, and the account of what is missing from them.
//!
//! Whoever brings the group that comes next also takes the rows to be written that follow from it;
//! a batch goes out with its last row.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Entry, Reason, Tally};
use super::super::pool::BufferPool;
use super::position::LanePosition;
use super::prepare::{Answer, Fill, Prepared};
use super::sequence::{Group, Slot};
use super::share::Gone;
use super::{LoaderConfig, MAX_ENTRIES};
use crate::error::Error;
use crate::flow::{Batch, HostAlloc, HostRows, PackedTokens, SampleId};

/// What reaches the consumer, with the ledger's lines that belong before it.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A batch and the position behind it.
    Batch(Batch, LanePosition, Vec<Entry>),
    /// The end of the lane.
    End(LanePosition, Vec<Entry>),
    /// No shard could be read, or memory does not suffice.
    Failed(Error, LanePosition, Vec<Entry>),
}

/// The channels of the assembler.
pub(super) struct Ends {
    pub deliver: Sender<Delivery>,
    /// Batches that the consumer has used.
    pub spare_batches: Receiver<Batch>,
}

/// A batch whose rows are being written.
struct Filling {
    rows: HostRows,
    written: usize,
    /// All but the pictures.
    batch: Batch,
    /// Known once the batch is full.
    sealed: Option<(LanePosition, Vec<Entry>)>,
}

pub(super) struct Assembler {
    batch_size: usize,
    views: usize,
    image_size: usize,
    drop_last: bool,
    memory: HostAlloc,
    epoch: u64,
    position: LanePosition,
    entries: Vec<Entry>,
    /// The groups from `next_group` on, as they come.
    groups: VecDeque<Option<Group>>,
    pub next_group: u64,
    /// Groups that have been gone through, for their memory.
    pub spare_groups: Vec<Group>,
    /// Batches that are not delivered yet; only the last one may not be full.
    filling: VecDeque<Filling>,
    /// Captions of the second view of its pairs, until it is.
    second_captions: PackedTokens,
    /// Number of the first of these.
    first: u64,
    /// Rows that nobody writes yet.
    pub fills: VecDeque<Fill>,
    /// How the epoch ends, once that is known.
    last: Option<Result<(), Error>>,
    /// Whether nobody listens any more.
    pub is_gone: bool,
    ends: Ends,
    pool: Arc<BufferPool>,
}

impl Assembler {
    pub(super) fn new(
        config: &LoaderConfig,
        (epoch, start): (u64, LanePosition),
        ends: Ends,
        pool: Arc<BufferPool>,
    ) -> Self {
        Self {
            batch_size: config.batch_size,
            views: config.views,
            image_size: config.transform.image_size,
            drop_last: config.drop_last,
            memory: config.memory.clone(),
            first: 0,
            epoch,
            position: start,
            entries: Vec::new(),
            groups: VecDeque::new(),
            next_group: 0,
            spare_groups: Vec::new(),
            filling: VecDeque::new(),
            second_captions: PackedTokens::new(),
            fills: VecDeque::new(),
            last: None,
            is_gone: false,
            ends,
            pool,
        }
    }

    pub(super) fn keep(&mut self, group: Group) {
        let at = (group.number - self.next_group) as usize;
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || None);
        }
        self.groups[at] = Some(group);
    }

    pub(super) fn count_row(&mut self, batch: u64) {
        // A batch that is left over is gone.
        let filling = self.filling.get_mut((batch - self.first) as usize);
        filling.into_iter().for_each(|filling| filling.written += 1);
    }

    /// Goes on until the next group is not there, or rows have to be written first.
    pub(super) fn advance(&mut self) -> Result<(), Gone> {
        self.deliver_ready()?;
        while self.last.is_none()
            && let Some(Some(group)) = self.groups.front()
        {
            if group.slots.is_empty() {
                let group = self.groups.pop_front().flatten();
                self.spare_groups.extend(group);
                self.next_group += 1;
                continue;
            }
            match self.has_room() {
                Ok(true) => self.next_slot(),
                // Batches in memory are counted: no more may be on their way.
                Ok(false) => break,
                Err(error) => self.end(Err(error)),
            }
        }
        self.deliver_ready()
    }

    /// Whether there is a batch to fill; one is begun if that may be.
    fn has_room(&mut self) -> Result<bool, Error> {
        if self.filling.back().is_some_and(|filling| filling.sealed.is_none()) {
            return Ok(true);
        }
        if self.filling.len() > 1 {
            return Ok(false);
        }
        self.new_batch().map(|()| true)
    }

    fn next_slot(&mut self) {
        let Some(Some(group)) = self.groups.front_mut() else { return };
        match group.slots.pop_front() {
            Some(Slot::Taken(held, cursor)) => {
                self.position.buffer.push(held);
                self.position.cursor = cursor;
            }
            Some(Slot::Given(at)) => {
                let answer = group.answers.pop_front().expect("a worker answers every job");
                self.position.buffer.swap_remove(at as usize);
                self.position.dealt += 1;
                self.answer(answer);
            }
            Some(Slot::Lost(entry, cursor)) => {
                self.position.cursor = cursor;
                self.ledger(entry);
            }
            Some(Slot::Failed(error)) => self.end(Err(error)),
            Some(Slot::End) => self.finish(),
            None => {}
        }
    }

    /// A pair becomes a row or a line of the ledger.
    fn answer(&mut self, Answer { id, offset, outcome }: Answer) {
        match outcome {
            Ok(prepared) => self.push(id, prepared),
            Err(fault) => {
                let place = (self.epoch, self.position.next_seq);
                self.ledger(Entry::pair(place, &id, offset, fault));
                self.pool.give(id.key.into_bytes());
            }
        }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.position.tally
    }

    fn ledger(&mut self, mut entry: Entry) {
        entry.lane = self.position.lane;
        self.tally().count(&entry);
        self.position.next_seq += u64::from(entry.is_pair());
        if entry.reason != Reason::NotAskedFor && self.entries.len() < MAX_ENTRIES {
            self.entries.push(entry);
        }
    }

    fn push(&mut self, id: SampleId, prepared: Prepared) {
        let batch_number = self.first + self.filling.len() as u64 - 1;
        let Filling { rows, batch, .. } = self.filling.back_mut().expect("there is room");
        let [first, second] = &prepared.views;
        batch.captions.push(&first.tokens);
        if self.views > 1 {
            self.second_captions.push(&second.tokens);
        }
        batch.labels.extend(prepared.label);
        batch.samples.push(id);
        let mut row = || Some(rows.next_row().expect("a batch has a row for each of its pairs"));
        let rows = [row(), if self.views > 1 { row() } else { None }];
        let is_full = batch.len() == self.batch_size;
        self.tally().forged_captions += u64::from(prepared.is_forged);
        self.tally().seen += 1;
        self.position.next_seq += 1;
        self.fills.push_back(Fill { prepared, rows, batch: batch_number });
        if is_full {
            self.seal();
        }
    }

    /// No more rows for the last batch.
    fn seal(&mut self) {
        let filling = self.filling.back_mut().expect("it is there");
        filling.batch.captions.extend(&self.second_captions);
        self.second_captions.clear();
        self.position.tally.delivered += filling.batch.len() as u64;
        assert!(self.position.tally.closes(), "a pair is unaccounted for: {:?}", self.position);
        filling.sealed = Some((self.position.clone(), std::mem::take(&mut self.entries)));
    }

    /// Hands over the batches, in order, whose rows are all written, and behind the last one how
    /// it ended.
    fn deliver_ready(&mut self) -> Result<(), Gone> {
        while let Some(first) = self.filling.front()
            && first.sealed.is_some()
            && first.written == first.batch.len()
        {
            let Filling { rows, mut batch, sealed, .. } =
                self.filling.pop_front().expect("it is there");
            let (position, entries) = sealed.expect("it is sealed");
            batch.images = rows.into_buf().expect("a row is dropped before it is reported");
            self.first += 1;
            self.deliver(Delivery::Batch(batch, position, entries))?;
        }
        if self.filling.is_empty()
            && let Some(last) = self.last.take()
        {
            let (position, entries) =
                (std::mem::take(&mut self.position), std::mem::take(&mut self.entries));
            self.deliver(match last {
                Ok(()) => Delivery::End(position, entries),
                Err(error) => Delivery::Failed(error, position, entries),
            })?;
            self.is_gone = true;
        }
        if self.is_gone { Err(Gone) } else { Ok(()) }
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), Gone> {
        self.is_gone |= self.ends.deliver.send(delivery).is_err();
        if self.is_gone { Err(Gone) } else { Ok(()) }
    }

    /// Begins a batch, in the memory of a used one where there is any.
    fn new_batch(&mut self) -> Result<(), Error> {
        let side = self.image_size;
        let room = self.views * self.batch_size * 3 * side * side;
        let spare = self.ends.spare_batches.try_recv().unwrap_or_default();
        let mut batch = emptied(spare, room, &self.memory, &self.pool)?;
        let images = std::mem::take(&mut batch.images);
        batch.image_size = side;
        self.filling.push_back(Filling {
            rows: images.into_views(3 * side * side, self.views, self.batch_size),
            written: 0,
            batch,
            sealed: None,
        });
        Ok(())
    }

    /// What was begun is a batch, or left over.
    fn finish(&mut self) {
        let begun = self.filling.back().filter(|filling| filling.sealed.is_none());
        let rest = begun.map_or(0, |filling| filling.batch.len() as u64);
        if rest > 0 && !self.drop_last {
            self.seal();
        } else {
            self.tally().left_over += rest;
        }
        self.end(Ok(()));
    }

    /// Nothing more comes; the full batches still go out.
    fn end(&mut self, last: Result<(), Error>) {
        self.filling.retain(|filling| filling.sealed.is_some());
        self.fills.retain(|fill| fill.batch < self.first + self.filling.len() as u64);
        self.last = Some(last);
    }
}

/// A batch without pairs and with room for so many numbers: in the memory of a used one where
/// that suffices.
pub(super) fn emptied(
    mut batch: Batch,
    room: usize,
    memory: &HostAlloc,
    pool: &BufferPool,
) -> Result<Batch, Error> {
    batch.captions.clear();
    batch.labels.clear();
    for sample in batch.samples.drain(..) {
        pool.give(sample.key.into_bytes());
    }
    if batch.images.capacity() < room {
        batch.images = memory.empty(room)?;
    }
    batch.images.clear();
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::super::position::{Cursor, Held};
    use super::super::share::Assembly;
    use super::*;
    use crate::data::transform::{Augment, TransformConfig};
    use crate::flow::HostBuf;
    use crossbeam_channel::bounded;
    use std::sync::atomic::Ordering;

    /// Two batches of two pairs, whose groups come in another order than their numbers; the test
    /// plays the worker.
    fn assemble(memory: HostAlloc, spare: Option<Batch>) -> Receiver<Delivery> {
        let transform = TransformConfig::new(1, Augment::clip());
        let config = LoaderConfig { batch_size: 2, memory, transform, ..LoaderConfig::default() };
        let (deliver, deliveries) = bounded(8);
        let (recycle, spare_batches) = bounded(1);
        spare.into_iter().for_each(|batch| recycle.send(batch).unwrap());
        let ends = Ends { deliver, spare_batches };
        let assembler = Assembler::new(&config, Default::default(), ends, Arc::default());
        let assembly = Assembly::new(assembler, 8);
        for number in [1, 0, 3, 2, 4] {
            let mut group = Group { number, ..Group::default() };
            if number == 4 {
                group.slots.push_back(Slot::End);
            } else {
                let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
                // The first token tells the pair.
                let mut prepared = Prepared::default();
                prepared.views[0].tokens.push(number as u32);
                let outcome = Ok(prepared);
                group.answers.push_back(Answer { id, offset: 0, outcome });
                let held = Held { turn: number, index: 0, offset: 0 };
                let cursor = Cursor { turn: number, ..Cursor::default() };
                group.slots.extend([Slot::Taken(held, cursor), Slot::Given(0)]);
            }
            let mut written = None;
            let Ok(_) = assembly.accept(group) else { break };
            while let Ok(Some(fill)) = assembly.next_fill(written) {
                let Fill { prepared, rows: [row, _], batch } = fill;
                row.unwrap().fill(prepared.views[0].tokens[0] as f32);
                written = Some(batch);
            }
        }
        deliveries
    }

    #[test]
    fn rows_stand_in_the_order_of_the_slots_and_used_memory_is_used_again() {
        // What a used batch still holds, and more room than is needed.
        let images = HostBuf::from(vec![f32::NAN; 100]);
        let place = images.as_ptr();
        let samples =
            vec![SampleId { shard: "old".into(), shard_index: 0, index: 0, key: "old".into() }];
        let used = Batch { images, samples, labels: vec![9], ..Batch::default() };
        let deliveries = assemble(HostAlloc::default(), Some(used));
        let Ok(Delivery::Batch(first, position, _)) = deliveries.recv() else { panic!("no batch") };
        assert_eq!(first.images.as_ptr(), place);
        assert_eq!(first.images[..], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!((first.len(), first.captions.len(), first.labels.len()), (2, 2, 0));
        assert_eq!((position.next_seq, position.cursor.turn), (2, 1));
        let Ok(Delivery::Batch(second, ..)) = deliveries.recv() else { panic!("no batch") };
        assert_eq!(second.images[..], [2.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
        assert!(matches!(deliveries.recv(), Ok(Delivery::End(..))));
    }

    /// The first batch fits, the second does not: the consumer gets one and learns of the other.
    #[test]
    fn memory_comes_from_the_handle_and_its_refusal_is_delivered() {
        let left = std::sync::atomic::AtomicUsize::new(6);
        let memory = HostAlloc::new(move |len| {
            let take = |left: usize| left.checked_sub(len);
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            taken.map_err(|_| Error::Device("none left".into()))?;
            HostBuf::heap(len)
        });
        let deliveries = assemble(memory, None);
        let Ok(Delivery::Batch(batch, ..)) = deliveries.recv() else { panic!("no batch") };
        assert_eq!(batch.images[..], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let Ok(Delivery::Failed(error, ..)) = deliveries.recv() else { panic!("no word") };
        assert_eq!(error.to_string(), "device: none left");
    }
}
