//! Slots in order → batches, and the account of what is missing from them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Entry, Fault, Tally};
use super::super::pool::BufferPool;
use super::order::Position;
use super::prepare::{Done, Fill, Prepared};
use super::sequence::Slot;
use super::stats::Clocks;
use super::{LoaderConfig, MAX_ENTRIES};
use crate::error::Error;
use crate::flow::{Batch, HostAlloc, HostRows, SampleId};

/// What reaches the consumer, with the ledger's lines that belong before it.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A batch and the position behind it.
    Batch(Batch, Position, Vec<Entry>),
    /// The end of the epoch.
    End(Position, Vec<Entry>),
    /// No shard could be read, or memory does not suffice.
    Failed(Error, Position, Vec<Entry>),
}

/// Why assembling ends early.
enum Stop {
    /// The consumer has gone, or the workers have.
    Gone,
    Failed(Error),
}

/// The channels of the assembler.
pub(super) struct Ends {
    pub slots: Receiver<Slot>,
    pub done: Receiver<Done>,
    pub fills: Sender<Fill>,
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
    sealed: Option<(Position, Vec<Entry>)>,
}

/// A pair's answer from a worker.
type Answer = (SampleId, u64, Result<Prepared, Fault>);

pub(super) struct Assembler {
    batch_size: usize,
    image_size: usize,
    drop_last: bool,
    memory: HostAlloc,
    position: Position,
    entries: Vec<Entry>,
    /// Answers to the slots from `next_seq` on, as they come.
    answers: VecDeque<Option<Answer>>,
    /// Batches that are not delivered yet; the last one is not full.
    filling: VecDeque<Filling>,
    /// Number of the first of these.
    first: u64,
    ends: Ends,
    pool: Arc<BufferPool>,
    clocks: Arc<Clocks>,
}

impl Assembler {
    pub(super) fn new(
        config: &LoaderConfig,
        start: Position,
        ends: Ends,
        (pool, clocks): (Arc<BufferPool>, Arc<Clocks>),
    ) -> Self {
        Self {
            batch_size: config.batch_size,
            image_size: config.transform.image_size,
            drop_last: config.drop_last,
            memory: config.memory.clone(),
            first: start.batches,
            position: start,
            entries: Vec::new(),
            answers: VecDeque::new(),
            filling: VecDeque::new(),
            ends,
            pool,
            clocks,
        }
    }

    pub(super) fn run(mut self) {
        let last = match self.assemble() {
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Gone) => return,
        };
        if self.deliver_all().is_err() {
            return;
        }
        let (position, entries) = (self.position, self.entries);
        // The consumer may have gone.
        let _ = self.ends.deliver.send(match last {
            Ok(()) => Delivery::End(position, entries),
            Err(error) => Delivery::Failed(error, position, entries),
        });
    }

    fn assemble(&mut self) -> Result<(), Stop> {
        self.new_batch()?;
        loop {
            match self.ends.slots.recv().map_err(|_| Stop::Gone)? {
                Slot::Taken(held, cursor) => {
                    self.position.buffer.push(held);
                    self.position.cursor = cursor;
                    continue;
                }
                Slot::Given { at, is_ours } => self.given(at, is_ours)?,
                Slot::Skipped(entry, cursor) => {
                    self.position.cursor = cursor;
                    match entry {
                        Some(entry) => self.ledger(entry),
                        None => self.elsewhere(),
                    }
                }
                Slot::Damage(entry, cursor) => {
                    self.position.cursor = cursor;
                    entry.into_iter().for_each(|entry| self.ledger(entry));
                }
                Slot::Failed(error) => return Err(Stop::Failed(error)),
                Slot::End => {
                    self.finish();
                    return Ok(());
                }
            }
            if self.current().batch.len() == self.batch_size {
                self.seal();
                self.deliver_ready()?;
                self.new_batch()?;
            }
        }
    }

    /// A pair has left the shuffle buffer; if it is ours, it becomes a row or a line of the ledger.
    fn given(&mut self, at: u32, is_ours: bool) -> Result<(), Stop> {
        self.position.buffer.swap_remove(at as usize);
        self.position.dealt += 1;
        if !is_ours {
            self.elsewhere();
            return Ok(());
        }
        let (id, offset, outcome) = self.answer()?;
        match outcome {
            Ok(prepared) => self.push(id, prepared),
            Err(fault) => {
                let place = (self.position.epoch, self.position.next_seq);
                self.ledger(Entry::pair(place, &id, offset, fault));
                self.pool.give(id.key.into_bytes());
                Ok(())
            }
        }
    }

    /// The answer to the slot `next_seq`; meanwhile full batches go out.
    fn answer(&mut self) -> Result<Answer, Stop> {
        loop {
            if let Some(answer) = self.answers.front_mut().and_then(Option::take) {
                return Ok(answer);
            }
            self.receive()?;
            self.deliver_ready()?;
        }
    }

    /// One report of a worker.
    fn receive(&mut self) -> Result<(), Stop> {
        match self.ends.done.recv().map_err(|_| Stop::Gone)? {
            Done::Pair { seq, id, offset, outcome } => {
                let at = (seq - self.position.next_seq) as usize;
                if self.answers.len() <= at {
                    self.answers.resize_with(at + 1, || None);
                }
                self.answers[at] = Some((id, offset, outcome));
            }
            Done::Row(batch) => self.filling[(batch - self.first) as usize].written += 1,
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.position.tally
    }

    /// Goes on to the next slot of a pair.
    fn next_seq(&mut self) {
        self.position.next_seq += 1;
        self.answers.pop_front();
    }

    fn ledger(&mut self, entry: Entry) {
        self.tally().count(&entry);
        if entry.is_pair() {
            self.next_seq();
        }
        if self.entries.len() < MAX_ENTRIES {
            self.entries.push(entry);
        }
    }

    fn elsewhere(&mut self) {
        self.tally().seen += 1;
        self.tally().other_ranks += 1;
        self.next_seq();
    }

    fn current(&mut self) -> &mut Filling {
        self.filling.back_mut().expect("there is always a batch to fill")
    }

    fn push(&mut self, id: SampleId, prepared: Prepared) -> Result<(), Stop> {
        let batch_number = self.first + self.filling.len() as u64 - 1;
        let Filling { rows, batch, .. } = self.current();
        batch.captions.push(&prepared.tokens);
        batch.labels.extend(prepared.label);
        batch.samples.push(id);
        let row = rows.next_row().expect("a batch has a row for each of its pairs");
        self.tally().forged_captions += u64::from(prepared.is_forged);
        self.tally().seen += 1;
        self.next_seq();
        let fill = Fill { prepared, row, batch: batch_number };
        self.ends.fills.send(fill).map_err(|_| Stop::Gone)
    }

    /// No more rows for the current batch.
    fn seal(&mut self) {
        let pairs = self.current().batch.len() as u64;
        self.tally().delivered += pairs;
        self.position.batches += 1;
        assert!(self.position.tally.closes(), "a pair is unaccounted for: {:?}", self.position);
        let entries = std::mem::take(&mut self.entries);
        let position = self.position.clone();
        self.current().sealed = Some((position, entries));
    }

    /// Hands over the batches, in order, whose rows are all written.
    fn deliver_ready(&mut self) -> Result<(), Stop> {
        while let Some(first) = self.filling.front()
            && first.sealed.is_some()
            && first.written == first.rows.len()
        {
            let Filling { rows, mut batch, sealed, .. } =
                self.filling.pop_front().expect("it is there");
            let (position, entries) = sealed.expect("it is sealed");
            batch.images = rows.into_buf().expect("a row is dropped before it is reported");
            self.first += 1;
            let delivery = Delivery::Batch(batch, position, entries);
            self.ends.deliver.send(delivery).map_err(|_| Stop::Gone)?;
            self.clocks.ready_batches.store(self.ends.deliver.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// An empty batch, in the memory of a used one where there is any.
    fn new_batch(&mut self) -> Result<(), Stop> {
        // Batches in memory are counted: no more may be on their way than the last but one.
        while self.filling.len() > 1 {
            self.receive()?;
            self.deliver_ready()?;
        }
        let side = self.image_size;
        let room = self.batch_size * 3 * side * side;
        let mut batch = self.ends.spare_batches.try_recv().unwrap_or_default();
        batch.captions.clear();
        batch.labels.clear();
        for sample in batch.samples.drain(..) {
            self.pool.give(sample.key.into_bytes());
        }
        let images = if batch.images.capacity() >= room {
            std::mem::take(&mut batch.images)
        } else {
            self.memory.empty(room).map_err(Stop::Failed)?
        };
        batch.image_size = side;
        self.filling.push_back(Filling {
            rows: images.into_rows(3 * side * side),
            written: 0,
            batch,
            sealed: None,
        });
        Ok(())
    }

    /// What was begun is a batch, or left over.
    fn finish(&mut self) {
        let rest = self.current().batch.len() as u64;
        if rest == 0 || self.drop_last {
            self.tally().left_over += rest;
            self.filling.pop_back();
        } else {
            self.seal();
        }
    }

    /// Waits for the rows of every full batch and hands them over.
    fn deliver_all(&mut self) -> Result<(), Stop> {
        self.filling.retain(|filling| filling.sealed.is_some());
        self.deliver_ready()?;
        while !self.filling.is_empty() {
            self.receive()?;
            self.deliver_ready()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::Cursor;
    use super::super::order::Held;
    use super::*;
    use crate::data::transform::{Augment, TransformConfig};
    use crate::flow::HostBuf;
    use crossbeam_channel::bounded;

    /// Two batches of two pairs, whose answers come in another order than their slots; the test
    /// plays the worker.
    fn assemble(memory: HostAlloc, spare: Option<Batch>) -> Receiver<Delivery> {
        let transform = TransformConfig::new(1, Augment::clip());
        let config = LoaderConfig { batch_size: 2, memory, transform, ..LoaderConfig::default() };
        let (slot_sender, slots) = bounded(16);
        let (report, done) = bounded(16);
        let (fill_sender, fills) = bounded(16);
        let (deliver, deliveries) = bounded(8);
        let (recycle, spare_batches) = bounded(1);
        spare.into_iter().for_each(|batch| recycle.send(batch).unwrap());
        for seq in [1, 0, 3, 2] {
            let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
            // The first token tells the pair.
            let outcome = Ok(Prepared { tokens: vec![seq as u32], ..Prepared::default() });
            report.send(Done::Pair { seq, id, offset: 0, outcome }).unwrap();
        }
        for turn in 0..4 {
            let held = Held { turn, index: 0, offset: 0 };
            let taken = Slot::Taken(held, Cursor { turn, ..Cursor::default() });
            assert!(slot_sender.send(taken).is_ok());
            assert!(slot_sender.send(Slot::Given { at: 0, is_ours: true }).is_ok());
        }
        assert!(slot_sender.send(Slot::End).is_ok());
        let worker = std::thread::spawn(move || {
            for Fill { prepared, mut row, batch } in fills {
                row.fill(prepared.tokens[0] as f32);
                drop(row);
                report.send(Done::Row(batch)).unwrap();
            }
        });
        let ends = Ends { slots, done, fills: fill_sender, deliver, spare_batches };
        let shared = (Arc::default(), Arc::default());
        Assembler::new(&config, Position::default(), ends, shared).run();
        worker.join().unwrap();
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
