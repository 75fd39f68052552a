//! What ranks tell each other between two steps. Rank 0 keeps the books, a run has one folder, and
//! decides how all go on. A process of its own takes the same way, and talks to nobody.

use super::{Fetched, Run};
use crate::backend::{Backend, Communicator};
use crate::data::ledger::{Entry, Ledger, Tally};
use crate::data::loader::Position;
use crate::detect::record::{self, Record, RecordWriter};
use crate::error::{Error, Result};
use crate::flow::{Batch, Place, State};
use crate::train::step::{Refusal, Report};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::Ordering;

/// How all go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Decision {
    /// With the step of the batch that each has.
    Step,
    /// With what comes after this part of the epoch: a rank has no batch any more.
    End,
    /// Not at all: a rank got a signal.
    Stop,
}

/// What a rank says of itself before each step.
#[derive(Serialize, Deserialize)]
struct Word {
    has_batch: bool,
    stops: bool,
    /// Of the pairs before.
    entries: Vec<Entry>,
    tally: Tally,
    /// What the last step saw of each pair, [`record::pack`]ed.
    #[serde(skip)]
    records: Vec<u8>,
}

impl Word {
    /// Records behind the rest, as they are: there are many of them.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = json(self);
        let len = bytes.len() as u64;
        bytes.extend(&self.records);
        bytes.extend(len.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let split = bytes.split_last_chunk().and_then(|(bytes, len)| {
            bytes.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
        });
        let (word, records) = split.ok_or_else(|| nonsense("a message without a length"))?;
        Ok(Self { records: records.to_vec(), ..parse(word)? })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what ranks say is JSON")
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(nonsense)
}

fn nonsense(what: impl std::fmt::Display) -> Error {
    Error::Distributed(format!("a rank talks nonsense: {what}"))
}

/// What rank 0 writes of every pair.
pub(super) struct Books {
    ledger: Ledger,
    records: Option<RecordWriter>,
}

/// What a rank has not told yet, and what rank 0 knows of others.
#[derive(Default)]
pub(super) struct Told {
    entries: Vec<Entry>,
    records: Vec<u8>,
    /// What became of the pairs of other ranks; on rank 0.
    others: Tally,
}

impl<D: Backend, C: Communicator<D>> Run<'_, D, C> {
    /// Opens the books at the run's position; on rank 0.
    pub(super) fn open_books(&mut self) -> Result<Option<Books>> {
        self.told = Told::default();
        // Where lanes are spread over ranks, rank 0 has to know how far each is.
        let position = self.whole_position()?;
        if !self.group.is_first() {
            return Ok(None);
        }
        let ledger = self.options.folder.join("skips.jsonl");
        let ledger = Ledger::open(&ledger, position.epoch, |lane| position.next_seq(lane))?;
        let records = self.options.record_matches.then(|| self.open_records()).transpose()?;
        Ok(Some(Books { ledger, records }))
    }

    /// Where the pairs of this epoch are told of.
    fn open_records(&mut self) -> Result<RecordWriter> {
        let (folder, trained) = (&self.options.folder, self.trained);
        record::write_shards(folder, self.loader.shards().iter().map(|shard| &*shard.name))?;
        let records = RecordWriter::open(folder, self.position.epoch, trained)?;
        if records.rows() < trained {
            let (path, rows) = (records.path().display(), records.rows());
            self.log.warn(format!("{path} has {rows} of the epoch's first {trained} pairs"));
        }
        Ok(records)
    }

    /// What a step saw of each of its pairs.
    pub(super) fn record(&mut self, batch: &Batch, report: &Report) -> Result<()> {
        self.trained += self.trainer.pairs_per_step();
        if !self.options.record_matches {
            return Ok(());
        }
        let own = self.trainer.own_similarities()?;
        let matches = self.trainer.matches().filter(|_| report.matched);
        let records = batch.samples.iter().enumerate().map(|(n, sample)| Record {
            pair: sample.place(),
            own: own[n],
            best: matches.map_or(f32::NAN, |matches| matches.score[n]),
            from: matches.map_or(Place::UNKNOWN, |matches| matches.from[n]),
        });
        self.told.records = record::pack(records);
        Ok(())
    }

    /// Lines of the ledger, to be told.
    pub(super) fn note(&mut self, entries: Vec<Entry>) {
        self.told.entries.extend(entries);
    }

    /// What became of this epoch's pairs; on rank 0 of those of all ranks, as last told.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.position.tally();
        tally.add(&self.told.others);
        tally
    }

    /// Tells what there is to tell, and learns how all go on.
    pub(super) fn agree(
        &mut self,
        books: &mut Option<Books>,
        next: Option<&Fetched>,
    ) -> Result<Decision> {
        let (entries, records) =
            (std::mem::take(&mut self.told.entries), std::mem::take(&mut self.told.records));
        let stops = self.stop.load(Ordering::Relaxed);
        let mine = Word {
            has_batch: next.is_some(),
            stops,
            entries,
            tally: self.position.tally(),
            records,
        };
        let words = if self.group.world_size() == 1 {
            vec![mine]
        } else {
            let told = self.group.gather(mine.to_bytes())?;
            told.iter().map(|word| Word::from_bytes(word)).collect::<Result<_>>()?
        };
        // What others hand in is ignored.
        let first = self.group.is_first();
        let decision = if first { self.decide(books, words)? } else { Decision::End };
        self.group.first_has(decision)
    }

    /// What rank 0 makes of what all say.
    fn decide(&mut self, books: &mut Option<Books>, words: Vec<Word>) -> Result<Decision> {
        let Some(Books { ledger, records }) = books else {
            return Err(nonsense("only rank 0 decides"));
        };
        self.told.others = Tally::default();
        for (rank, word) in words.iter().enumerate() {
            ledger.record(&word.entries)?;
            if let Some(records) = records {
                records.append(&word.records)?;
            }
            if rank > 0 {
                self.told.others.add(&word.tally);
            }
        }
        Ok(if words.iter().any(|word| word.stops) {
            Decision::Stop
        } else if words.iter().all(|word| word.has_batch) {
            Decision::Step
        } else {
            Decision::End
        })
    }

    /// The pairs that a step was refused for, on rank 0. Where some rank singled pairs out, those
    /// of the others are cleared.
    pub(super) fn all_suspects(&self, mine: &Refusal) -> Result<Vec<String>> {
        let names: Vec<String> = mine.suspects.iter().map(ToString::to_string).collect();
        let told = self.group.gather(json(&(mine.singled_out, names)))?;
        let told = told.iter().map(|told| parse(told)).collect::<Result<Vec<(bool, Vec<_>)>>>()?;
        let any = told.iter().any(|(singled_out, _)| *singled_out);
        let suspects = told.into_iter().filter(|(singled_out, _)| *singled_out == any);
        Ok(suspects.flat_map(|(_, names)| names).collect())
    }

    /// Whether all ranks read the same checkpoint.
    pub(super) fn all_have(&self, path: &Path, state: &State) -> Result<()> {
        let what = |state: &State| json(&["step", "position"].map(|name| state.values.get(name)));
        let told = self.group.gather(what(state))?;
        let Some(rank) = told.iter().position(|theirs| *theirs != what(state)) else {
            return Ok(());
        };
        let path = path.display();
        Err(Error::Distributed(format!(
            "rank {rank} has another checkpoint at {path} than rank 0; is --logs the same folder \
             on all machines?"
        )))
    }

    /// The position of all lanes, on rank 0; on others, of their own. All ranks ask for it.
    pub(super) fn whole_position(&self) -> Result<Position> {
        if self.group.world_size() == 1 {
            return Ok(self.position.clone());
        }
        let told = self.group.gather(json(&self.position))?;
        if !self.group.is_first() {
            return Ok(self.position.clone());
        }
        let parts = told.iter().map(|part| parse(part)).collect::<Result<Vec<_>>>()?;
        Position::merge(parts, self.loader.config().lanes)
    }
}
