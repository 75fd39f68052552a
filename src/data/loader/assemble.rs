//! Slots in order → batches, and the account of what is missing from them.

use crossbeam_channel::{Receiver, Sender};

use super::super::ledger::{Entry, Tally};
use super::prepare::Prepared;
use super::sequence::Slot;
use super::{LoaderConfig, MAX_ENTRIES, Position};
use crate::error::Error;
use crate::flow::{Batch, PackedTokens, SampleId};

/// What reaches the consumer, with the ledger's lines that belong before it.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A batch and the position behind it.
    Batch(Batch, Position, Vec<Entry>),
    /// The end of the epoch.
    End(Position, Vec<Entry>),
    /// No shard could be read.
    Failed(Error, Position, Vec<Entry>),
}

pub(super) struct Assembler {
    batch_size: usize,
    image_size: usize,
    drop_last: bool,
    position: Position,
    batch: Batch,
    entries: Vec<Entry>,
    deliver: Sender<Delivery>,
}

impl Assembler {
    pub(super) fn new(config: &LoaderConfig, start: Position, deliver: Sender<Delivery>) -> Self {
        let image_size = config.transform.image_size;
        Self {
            batch_size: config.batch_size,
            image_size,
            drop_last: config.drop_last,
            position: start,
            batch: empty_batch(config.batch_size, image_size),
            entries: Vec::new(),
            deliver,
        }
    }

    pub(super) fn run(mut self, slots: &Receiver<Slot>) {
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
                Slot::Failed(error) => {
                    let failed = Delivery::Failed(error, self.position, self.entries);
                    let _ = self.deliver.send(failed);
                    return;
                }
                Slot::End => return self.finish(),
            }
            if self.batch.len() == self.batch_size && !self.hand_over() {
                return;
            }
        }
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
        self.batch.captions.push(&row.tokens);
        self.batch.labels.extend(row.label);
        self.batch.samples.push(id);
        self.position.next_seq += 1;
        self.tally().seen += 1;
        self.tally().forged_captions += u64::from(row.is_forged);
    }

    /// Whether the consumer is still there.
    fn hand_over(&mut self) -> bool {
        let fresh = empty_batch(self.batch_size, self.image_size);
        let batch = std::mem::replace(&mut self.batch, fresh);
        self.tally().delivered += batch.len() as u64;
        self.position.batches += 1;
        assert!(self.position.tally.closes(), "a pair is unaccounted for: {:?}", self.position);
        let entries = std::mem::take(&mut self.entries);
        self.deliver.send(Delivery::Batch(batch, self.position.clone(), entries)).is_ok()
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

fn empty_batch(batch_size: usize, image_size: usize) -> Batch {
    Batch {
        images: Vec::with_capacity(batch_size * 3 * image_size * image_size),
        image_size,
        captions: PackedTokens::new(),
        labels: Vec::with_capacity(batch_size),
        samples: Vec::with_capacity(batch_size),
    }
}
