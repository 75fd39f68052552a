//! `verify`: every header, every checksum, every caption, every picture.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::catch_unwind;
use std::sync::Arc;

use rayon::prelude::*;

use super::super::decode::{DecodeLimits, decode};
use super::super::index::{Checksum, IndexEntry, ShardIndex, local_path, path_beside};
use super::super::ledger::{Entry, Fault, Ledger, Reason, Tally};
use super::super::sample::{Contents, Fields, Found, Pair, SampleReader};
use super::super::shard::{ShardLimits, ShardReader};
use super::super::source::Shard;
use super::{Progress, Report, list_counts, size_of, total_size};
use crate::error::Result;
use crate::flow::SampleId;

/// Pairs, and bytes of pictures, that are decoded at a time by all threads.
const CHUNK_PAIRS: usize = 512;
const CHUNK_BYTES: usize = 64 << 20;

/// What counts as a good pair.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Which members make a pair.
    pub fields: Fields,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// What a picture may cost.
    pub decode: DecodeLimits,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Pairs good (delivered) and bad (skipped) by reason, and faults of shards. Pairs that an
    /// index names and the shard has lost are among the bad.
    pub tally: Tally,
    /// Shards read.
    pub shards: u64,
    /// Shards that have an index to be held against.
    pub indexed: u64,
}

/// Reads shards, decodes every picture on all CPUs, and writes what is wrong to `ledger`, in the
/// order of the shards whatever the number of threads.
///
/// # Errors
/// The ledger cannot be written.
pub fn verify(
    shards: &[Shard],
    options: &VerifyOptions,
    ledger: Option<&mut Ledger>,
    progress: &Progress,
) -> Result<VerifyReport> {
    progress.start(total_size(shards));
    let report = VerifyReport::default();
    let mut verifier = Verifier { options, ledger, report, entries: Vec::new() };
    for (n, shard) in shards.iter().enumerate() {
        verifier.shard(shard, n as u32, progress)?;
        progress.advance(size_of(shard));
        progress.say(verifier.report.tally.seen);
    }
    progress.finish();
    let tally = &verifier.report.tally;
    assert!(tally.closes(), "kept and skipped do not make up what was seen: {tally:?}");
    Ok(verifier.report)
}

struct Verifier<'a> {
    options: &'a VerifyOptions,
    ledger: Option<&'a mut Ledger>,
    report: VerifyReport,
    entries: Vec<Entry>,
}

impl Verifier<'_> {
    fn shard(&mut self, shard: &Shard, number: u32, progress: &Progress) -> Result<()> {
        self.report.shards += 1;
        let mut expected = self.expect(shard, number);
        match ShardReader::open(shard, &self.options.limits, Arc::default()) {
            Err(fault) => self.damage(shard, number, 0, fault),
            Ok(input) => self.pairs(input, (shard, number), expected.as_mut(), progress)?,
        }
        if let Some(expected) = expected {
            self.report.indexed += 1;
            self.close(expected, shard, number);
        }
        self.record()
    }

    /// The index, if there is one of these fields.
    fn expect(&mut self, shard: &Shard, number: u32) -> Option<Expected> {
        let beside = path_beside(local_path(shard).ok()?);
        if !beside.exists() {
            return None;
        }
        match ShardIndex::read(&beside) {
            Ok(index) if index.header.fields == self.options.fields => Some(Expected::new(index)),
            Ok(_) => None,
            Err(error) => {
                let fault = Fault::new(Reason::ChecksumMismatch, format!("its index: {error}"));
                self.damage(shard, number, 0, fault);
                None
            }
        }
    }

    fn pairs(
        &mut self,
        input: ShardReader,
        (shard, number): (&Shard, u32),
        mut expected: Option<&mut Expected>,
        progress: &Progress,
    ) -> Result<()> {
        let (fields, limits) = (&self.options.fields, &self.options.limits);
        let place = (&shard.name, number);
        let mut reader = SampleReader::new(input, place, fields, Contents::Read, limits);
        loop {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK_PAIRS && bytes < CHUNK_BYTES {
                let Some(found) = reader.next() else { break };
                bytes += if let Found::Pair(pair) = &found { pair.image.len() } else { 0 };
                chunk.push(found);
            }
            if chunk.is_empty() {
                return Ok(());
            }
            let faults: Vec<Option<Fault>> =
                chunk.par_iter().map(|found| self.picture_fault(found)).collect();
            for (found, fault) in chunk.into_iter().zip(faults) {
                match found {
                    Found::Pair(pair) => self.pair(pair, fault, expected.as_deref_mut()),
                    Found::Skipped(id, offset, fault) => {
                        if let Some(expected) = expected.as_deref_mut() {
                            expected.meet_bad(&id, offset);
                        }
                        self.skip(&id, offset, fault);
                    }
                    Found::Damage(offset, fault) => {
                        if let Some(expected) = expected.as_deref_mut() {
                            expected.meet_damage();
                        }
                        self.damage(shard, number, offset, fault);
                    }
                }
            }
            self.record()?;
            progress.say(self.report.tally.seen);
        }
    }

    fn picture_fault(&self, found: &Found) -> Option<Fault> {
        let Found::Pair(pair) = found else { return None };
        let decoded = catch_unwind(|| decode(&pair.image, &self.options.decode));
        match decoded {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Fault::from(&error)),
            Err(_) => Some(Fault::new(Reason::BrokenImage, "the decoder panicked")),
        }
    }

    fn pair(&mut self, pair: Pair, fault: Option<Fault>, expected: Option<&mut Expected>) {
        let changed = expected.and_then(|expected| expected.meet(&pair));
        match changed.or(fault) {
            Some(fault) => self.skip(&pair.id, pair.offset, fault),
            None => {
                self.report.tally.seen += 1;
                self.report.tally.delivered += 1;
            }
        }
    }

    /// What only the end of a shard tells: pairs that are gone, and bytes that no pair has.
    fn close(&mut self, expected: Expected, shard: &Shard, number: u32) {
        let Expected { index: ShardIndex { header, entries }, is_found, unlisted, mut news } =
            expected;
        let is_another = !entries.is_empty() && !is_found.contains(&true);
        let lost = entries.iter().zip(is_found).enumerate().filter(|(_, (_, found))| !found);
        for (n, (entry, _)) in lost.filter(|_| !is_another) {
            let id = SampleId {
                shard: Arc::clone(&shard.name),
                shard_index: number,
                index: n as u32,
                key: entry.key.to_string(),
            };
            let fault = Fault::new(Reason::ChecksumMismatch, "in the index and not in the shard");
            self.skip(&id, entry.offset, fault);
            news += 1;
        }
        let sum = local_path(shard).ok().and_then(|path| Checksum::of_file(path).ok());
        let is_told = news > 0 && unlisted == 0 && !is_another;
        if !is_told && sum != Some(header.sha256) {
            let detail = match (is_another, unlisted) {
                (true, _) => "another shard than the one indexed; index it again".into(),
                (_, 0) => "bytes outside of its pairs are not those indexed".into(),
                (_, count) => format!("{count} pairs are not in the index; index it again"),
            };
            self.damage(shard, number, 0, Fault::new(Reason::ChecksumMismatch, detail));
        }
    }

    fn skip(&mut self, id: &SampleId, offset: u64, fault: Fault) {
        self.tell(Entry::pair((0, self.report.tally.seen), id, offset, fault));
    }

    fn damage(&mut self, shard: &Shard, number: u32, offset: u64, fault: Fault) {
        let (name, place) = (Arc::clone(&shard.name), (0, self.report.tally.seen));
        self.tell(Entry::shard(place, name, number, offset, fault));
    }

    fn tell(&mut self, entry: Entry) {
        self.report.tally.count(&entry);
        self.entries.push(entry);
    }

    fn record(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        self.ledger.as_mut().map_or(Ok(()), |ledger| ledger.record(&entries))
    }
}

/// The index of a shard, and what of it has been met.
struct Expected {
    index: ShardIndex,
    is_found: Vec<bool>,
    /// Good pairs that are not in the index.
    unlisted: u64,
    /// What the index did not foresee and was told by itself.
    news: u64,
}

impl Expected {
    fn new(index: ShardIndex) -> Self {
        let is_found = vec![false; index.entries.len()];
        Self { index, is_found, unlisted: 0, news: 0 }
    }

    /// The entry of the pair with this key that has this byte of the shard.
    fn find(&mut self, id: &SampleId, offset: u64) -> Option<&IndexEntry> {
        let at = self.index.entries.partition_point(|entry| entry.offset <= offset);
        let at = at.checked_sub(1).filter(|&at| *self.index.entries[at].key == *id.key)?;
        self.is_found[at] = true;
        Some(&self.index.entries[at])
    }

    /// Holds a pair against the index.
    fn meet(&mut self, pair: &Pair) -> Option<Fault> {
        match self.find(&pair.id, pair.offset).map(|entry| entry.check(pair)) {
            None => {
                self.unlisted += 1;
                None
            }
            Some(Ok(())) => None,
            Some(Err(fault)) => {
                self.news += 1;
                Some(fault)
            }
        }
    }

    fn meet_bad(&mut self, id: &SampleId, offset: u64) {
        let was_bad = self.find(id, offset).is_some_and(|entry| entry.reason.is_some());
        self.news += u64::from(!was_bad);
    }

    fn meet_damage(&mut self) {
        self.news += u64::from(self.index.header.fault.is_none());
    }
}

impl Report for VerifyReport {
    fn found_something(&self) -> bool {
        self.tally.skipped > 0 || !self.tally.shard_faults.is_empty()
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { seen, delivered, skipped, reasons, shard_faults, .. } = &self.tally;
        writeln!(f, "{} shards, {} of them with an index", self.shards, self.indexed)?;
        writeln!(f, "{seen} pairs: {delivered} good, {skipped} bad")?;
        let named = |counts: &BTreeMap<Reason, u64>| {
            list_counts(counts.iter().map(|(reason, count)| (reason.name(), *count)))
        };
        write!(f, "{}", named(reasons))?;
        if !shard_faults.is_empty() {
            writeln!(f, "faults of shards: {}", shard_faults.values().sum::<u64>())?;
        }
        write!(f, "{}", named(shard_faults))
    }
}
