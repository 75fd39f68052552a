//! Samples with all their members, whatever these are: for copying, not for training.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::ledger::{Fault, Reason};
use super::sample::split_name;
use super::shard::{ShardLimits, ShardReader};
use super::source::Shard;
use super::tar::{Event, Input, Member, TarReader, io_fault};
use crate::error::Result;

/// Most bytes that the members of one sample may have together.
const SAMPLE_BYTES: u64 = 256 << 20;

/// Consecutive members of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSample {
    /// The key.
    pub key: String,
    /// Header of its first member, in bytes from the start of the (decompressed) shard.
    pub offset: u64,
    /// Extension, as it is written in the shard, and data of each member, in the shard's order.
    pub members: Vec<(String, Vec<u8>)>,
}

/// What a shard yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawFound {
    /// A sample, whole.
    Sample(RawSample),
    /// The key and place of a sample that cannot be read whole, and why.
    Skipped(String, u64, Fault),
    /// Damage at a byte of the shard.
    Damage(u64, Fault),
}

/// Hands the samples of a shard that can be read whole to `work`, in order; what is wrong with
/// others, or with the shard, is counted.
///
/// # Errors
/// Those of `work`.
pub fn each_sample(
    shard: &Shard,
    limits: &ShardLimits,
    faults: &mut BTreeMap<Reason, u64>,
    mut work: impl FnMut(RawSample) -> Result<()>,
) -> Result<()> {
    let mut count = |fault: Fault| *faults.entry(fault.reason).or_default() += 1;
    let input = match ShardReader::open(shard, limits, Arc::default()) {
        Ok(input) => input,
        Err(fault) => {
            count(fault);
            return Ok(());
        }
    };
    for found in RawReader::new(input, limits.skip_bytes) {
        match found {
            RawFound::Sample(sample) => work(sample)?,
            RawFound::Skipped(_, _, fault) | RawFound::Damage(_, fault) => count(fault),
        }
    }
    Ok(())
}

/// Iterates over the samples of a shard. Members that belong to no sample (no dot in their name,
/// hidden files, `__meta__`) are passed over.
pub struct RawReader<R> {
    tar: TarReader<R>,
    sample: Option<RawSample>,
    /// What is wrong with it.
    fault: Option<Fault>,
    bytes: u64,
    queue: VecDeque<RawFound>,
    is_done: bool,
}

impl<R: Input> RawReader<R> {
    /// Reads a shard from its start; `skip_limit` as in [`TarReader::new`].
    pub fn new(input: R, skip_limit: u64) -> Self {
        Self {
            tar: TarReader::new(input, skip_limit),
            sample: None,
            fault: None,
            bytes: 0,
            queue: VecDeque::new(),
            is_done: false,
        }
    }

    fn step(&mut self) {
        match self.tar.next_event() {
            Ok(Some(Event::Member(member))) => self.on_member(&member),
            Ok(Some(Event::Damage { offset, fault })) => {
                self.queue.push_back(RawFound::Damage(offset, fault));
            }
            Ok(None) => self.finish(),
            Err(failure) => {
                let damage = RawFound::Damage(self.tar.position(), io_fault(&failure));
                self.queue.push_back(damage);
                self.finish();
            }
        }
    }

    fn on_member(&mut self, member: &Member) {
        let name = self.tar.name();
        let Some((key, extension)) = split_name(name) else {
            if let Some(fault) = &member.fault {
                self.queue.push_back(RawFound::Damage(member.offset, fault.clone()));
            }
            return;
        };
        let (key, extension) = (key.to_owned(), extension.to_owned());
        // As in `sample`: a field that occurs twice begins a new sample.
        let goes_on = self.sample.as_ref().is_some_and(|sample| {
            let is_other = |(e, _): &(String, _)| e.to_lowercase() != extension.to_lowercase();
            sample.key == key && sample.members.iter().all(is_other)
        });
        if !goes_on {
            self.end_sample();
            let offset = member.offset;
            self.sample = Some(RawSample { key, offset, members: Vec::new() });
        }
        let data = self.read(member);
        let Some(sample) = &mut self.sample else { return };
        match data {
            Ok(data) => {
                self.bytes += data.len() as u64;
                sample.members.push((extension, data));
            }
            Err(fault) => {
                self.fault.get_or_insert(fault);
                sample.members.clear();
            }
        }
    }

    fn read(&mut self, member: &Member) -> Result<Vec<u8>, Fault> {
        if let Some(fault) = self.fault.as_ref().or(member.fault.as_ref()) {
            return Err(fault.clone());
        }
        if !member.is_file {
            return Err(Fault::new(Reason::NotAFile, format!("{} is no file", self.tar.name())));
        }
        let mut data = Vec::new();
        self.tar.read_data(member, SAMPLE_BYTES - self.bytes, &mut data)?;
        Ok(data)
    }

    fn end_sample(&mut self) {
        self.bytes = 0;
        let found = match (self.sample.take(), self.fault.take()) {
            (Some(sample), Some(fault)) => RawFound::Skipped(sample.key, sample.offset, fault),
            (Some(sample), None) => RawFound::Sample(sample),
            (None, _) => return,
        };
        self.queue.push_back(found);
    }

    fn finish(&mut self) {
        self.end_sample();
        self.is_done = true;
        if self.tar.headers() == 0 && !self.tar.is_empty_archive() {
            let fault = Fault::new(Reason::NotATar, "no tar header in it; is it an error page?");
            self.queue = [RawFound::Damage(0, fault)].into();
        }
    }
}

impl<R: Input> Iterator for RawReader<R> {
    type Item = RawFound;

    fn next(&mut self) -> Option<RawFound> {
        while !self.is_done && (self.queue.is_empty() || self.tar.headers() == 0) {
            self.step();
        }
        self.queue.pop_front()
    }
}
