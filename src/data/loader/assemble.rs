//! Slots in order → batches, and the account of what is missing from them.

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Entry, Tally};
use super::prepare::Prepared;
use super::sequence::Slot;
use super::{LoaderConfig, MAX_ENTRIES, Position};
use crate::error::{Error, Result};
use crate::flow::{Batch, HostAlloc, HostBuf, PackedTokens, SampleId};

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

pub(super) struct Assembler {
    batch_size: usize,
    image_size: usize,
    drop_last: bool,
    memory: HostAlloc,
    position: Position,
    batch: Batch,
    entries: Vec<Entry>,
    deliver: Sender<Delivery>,
    /// To the workers, for their next pictures.
    spare_rows: Sender<Vec<f32>>,
    /// Pictures of batches that the consumer has used.
    spare_images: Receiver<HostBuf>,
}

impl Assembler {
    pub(super) fn new(
        config: &LoaderConfig,
        start: Position,
        deliver: Sender<Delivery>,
        (spare_rows, spare_images): (Sender<Vec<f32>>, Receiver<HostBuf>),
    ) -> Self {
        let image_size = config.transform.image_size;
        Self {
            batch_size: config.batch_size,
            image_size,
            drop_last: config.drop_last,
            memory: config.memory.clone(),
            position: start,
            batch: Batch::default(),
            entries: Vec::new(),
            deliver,
            spare_rows,
            spare_images,
        }
    }

    pub(super) fn run(mut self, slots: &Receiver<Slot>) {
        if let Err(error) = self.new_batch() {
            return self.fail(error);
        }
        for slot in slots {
            match slot {
                Slot::Pair(id, offset, answer) => {
                    // No answer: the worker has left, for the consumer has.
                    let Ok(prepared) = answer.recv() else { return };
                    match prepared {
                        Ok(row) => self.push(id, row),
                        Err(fault) => {
                            let place = (self.position.epoch, self.position.next_seq);
                            self.ledger(Entry::pair(place, &id, offset, fault));
                        }
                    }
                }
                Slot::Skipped(entry) | Slot::Damage(entry) => self.ledger(entry),
                Slot::Elsewhere => {
                    self.tally().seen += 1;
                    self.tally().other_ranks += 1;
                    self.position.next_seq += 1;
                }
                Slot::Failed(error) => return self.fail(error),
                Slot::End => return self.finish(),
            }
            if self.batch.len() < self.batch_size {
                continue;
            }
            if !self.hand_over() {
                return;
            }
            if let Err(error) = self.new_batch() {
                return self.fail(error);
            }
        }
    }

    fn fail(self, error: Error) {
        let _ = self.deliver.send(Delivery::Failed(error, self.position, self.entries));
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.position.tally
    }

    fn ledger(&mut self, entry: Entry) {
        self.tally().count(&entry);
        self.position.next_seq += u64::from(entry.is_pair());
        if self.entries.len() < MAX_ENTRIES {
            self.entries.push(entry);
        }
    }

    fn push(&mut self, id: SampleId, row: Prepared) {
        self.batch.images.extend_from_slice(&row.image);
        // At the end of an epoch the workers leave first, and the row goes with them.
        let _ = self.spare_rows.try_send(row.image);
        self.batch.captions.push(&row.tokens);
        self.batch.labels.extend(row.label);
        self.batch.samples.push(id);
        self.position.next_seq += 1;
        self.tally().seen += 1;
        self.tally().forged_captions += u64::from(row.is_forged);
    }

    /// Whether the consumer is still there.
    fn hand_over(&mut self) -> bool {
        let batch = std::mem::take(&mut self.batch);
        self.tally().delivered += batch.len() as u64;
        self.position.batches += 1;
        assert!(self.position.tally.closes(), "a pair is unaccounted for: {:?}", self.position);
        let entries = std::mem::take(&mut self.entries);
        self.deliver.send(Delivery::Batch(batch, self.position.clone(), entries)).is_ok()
    }

    /// An empty batch, in the memory of a used one where there is any.
    fn new_batch(&mut self) -> Result<()> {
        let side = self.image_size;
        let room = self.batch_size * 3 * side * side;
        let spare = self.spare_images.try_recv().ok().filter(|spare| spare.capacity() >= room);
        let mut images = spare.map_or_else(|| self.memory.empty(room), Ok)?;
        images.clear();
        self.batch = Batch {
            images,
            image_size: side,
            captions: PackedTokens::new(),
            labels: Vec::with_capacity(self.batch_size),
            samples: Vec::with_capacity(self.batch_size),
        };
        Ok(())
    }

    fn finish(mut self) {
        if !self.batch.is_empty() {
            if self.drop_last {
                self.position.tally.left_over += self.batch.len() as u64;
            } else if !self.hand_over() {
                return;
            }
        }
        let _ = self.deliver.send(Delivery::End(self.position, self.entries));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::transform::{Augment, TransformConfig};
    use crossbeam_channel::bounded;

    #[test]
    fn rows_go_back_once_they_are_in_the_batch_and_batches_once_used() {
        let transform = TransformConfig::new(1, Augment::clip());
        let config = LoaderConfig { batch_size: 2, transform, ..LoaderConfig::default() };
        let (deliver, deliveries) = bounded(2);
        let (sender, spare_rows) = bounded(3);
        let (slot_sender, slots) = bounded(4);
        let (recycle, spare_images) = bounded(1);
        // What a used batch still holds, and more room than is needed.
        let used = HostBuf::from(vec![f32::NAN; 100]);
        let used_place = used.as_ptr();
        recycle.send(used).unwrap();
        let mut places = Vec::new();
        for value in [1.0, 2.0] {
            let (reply, answer) = bounded(1);
            let image = vec![value; 3];
            places.push(image.as_ptr());
            let row = Prepared { image, tokens: Vec::new(), label: None, is_forged: false };
            assert!(reply.send(Ok(row)).is_ok());
            let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
            assert!(slot_sender.send(Slot::Pair(id, 0, answer)).is_ok());
        }
        assert!(slot_sender.send(Slot::End).is_ok());
        Assembler::new(&config, Position::default(), deliver, (sender, spare_images)).run(&slots);
        let Ok(Delivery::Batch(batch, ..)) = deliveries.recv() else { panic!("no batch") };
        assert_eq!(batch.images.as_ptr(), used_place);
        assert_eq!(batch.images[..], [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        assert_eq!(spare_rows.iter().map(|row| row.as_ptr()).collect::<Vec<_>>(), places);
    }

    /// The first batch fits, the second does not: the consumer gets one and learns of the other.
    #[test]
    fn memory_comes_from_the_handle_and_its_refusal_is_delivered() {
        let left = std::sync::atomic::AtomicUsize::new(6);
        let memory = HostAlloc::new(move |len| {
            let take = |left: usize| left.checked_sub(len);
            let relaxed = std::sync::atomic::Ordering::Relaxed;
            let taken = left.fetch_update(relaxed, relaxed, take);
            taken.map_err(|_| Error::Device("none left".into()))?;
            HostBuf::heap(len)
        });
        let transform = TransformConfig::new(1, Augment::clip());
        let config = LoaderConfig { batch_size: 2, memory, transform, ..LoaderConfig::default() };
        let (deliver, deliveries) = bounded(2);
        let (slot_sender, slots) = bounded(2);
        for _ in 0..2 {
            let (reply, answer) = bounded(1);
            let (image, tokens) = (vec![0.5; 3], Vec::new());
            let row = Prepared { image, tokens, label: None, is_forged: false };
            assert!(reply.send(Ok(row)).is_ok());
            let id = SampleId { shard: "s".into(), shard_index: 0, index: 0, key: "k".into() };
            assert!(slot_sender.send(Slot::Pair(id, 0, answer)).is_ok());
        }
        let spare = (bounded(1).0, bounded(1).1);
        Assembler::new(&config, Position::default(), deliver, spare).run(&slots);
        let Ok(Delivery::Batch(batch, ..)) = deliveries.recv() else { panic!("no batch") };
        assert_eq!(batch.images[..], [0.5; 6]);
        let Ok(Delivery::Failed(error, ..)) = deliveries.recv() else { panic!("no word") };
        assert_eq!(error.to_string(), "device: none left");
    }
}
