//! How many pairs there are, so that nobody has to be asked: from a shard's index where it has a
//! fresh one ([`super::index`]), beside it on a server, too; else from its headers, and data are
//! seeked over.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::index::{Header, path_beside};
use super::ledger::Fault;
use super::sample::{Contents, Fields, Found, SampleReader};
use super::shard::{ShardLimits, ShardReader};
use super::source::{Shard, Source};
use crate::error::{Error, Result};

/// Pairs of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCount {
    /// The shard, as listed.
    pub name: Arc<str>,
    /// Pairs with an image and a caption member; whether these are any good is not looked at.
    pub pairs: u64,
    /// Pairs in all, good or bad: as many as the reader gives numbers to.
    pub samples: u64,
    /// The first damage met, if any.
    pub fault: Option<Fault>,
}

/// Pairs of a list of shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// In listed order.
    pub shards: Vec<ShardCount>,
}

impl Counts {
    /// Pairs of all shards: what an epoch delivers at most, and exactly if none is broken inside.
    pub fn pairs(&self) -> u64 {
        self.shards.iter().map(|shard| shard.pairs).sum()
    }

    /// Full batches of `batch_size` pairs on each of `world_size` ranks that an epoch holds at
    /// most.
    pub fn steps(&self, batch_size: usize, world_size: usize) -> u64 {
        self.pairs() / (batch_size.max(1) * world_size.max(1)) as u64
    }
}

/// Counts the pairs of each shard. A shard that cannot be read counts 0, with its fault.
///
/// # Errors
/// Standard input or a FIFO is among the shards: counting would use it up.
pub fn count_pairs(shards: &[Shard], fields: &Fields, limits: &ShardLimits) -> Result<Counts> {
    let count = |(shard, indexed): (&Shard, Option<Header>)| {
        if shard.source == Source::Stdin || !shard.is_rereadable() {
            return Err(Error::Shards {
                pattern: shard.name.to_string(),
                reason: "a pipe cannot be counted without using it up; give the number of pairs \
                         (--train-num-samples)"
                    .into(),
            });
        }
        // An index of the same fields says what the headers would say.
        let indexed = indexed.or_else(|| local_index(shard)).filter(|it| it.fields == *fields);
        let counted = indexed.map(|Header { pairs, seen, fault, .. }| {
            let name = Arc::clone(&shard.name);
            ShardCount { name, pairs, samples: seen, fault }
        });
        Ok(counted.unwrap_or_else(|| count_shard(shard, fields, limits)))
    };
    let indexes = Header::remote(shards);
    Ok(Counts { shards: shards.iter().zip(indexes).map(count).collect::<Result<_>>()? })
}

/// The header of a local shard's index, if it is fresh.
fn local_index(shard: &Shard) -> Option<Header> {
    let Source::File(path) = &shard.source else { return None };
    Header::read(&path_beside(path)).ok().filter(|header| !header.is_stale(path))
}

/// Counts by the headers of the shard.
pub(super) fn count_shard(shard: &Shard, fields: &Fields, limits: &ShardLimits) -> ShardCount {
    let name = Arc::clone(&shard.name);
    let mut count = ShardCount { name, pairs: 0, samples: 0, fault: None };
    let input = match ShardReader::open(shard, limits, Arc::default()) {
        Ok(input) => input,
        Err(fault) => return ShardCount { fault: Some(fault), ..count },
    };
    let place = (&shard.name, 0);
    for found in SampleReader::new(input, place, fields, Contents::HeadersOnly, limits) {
        match found {
            Found::Pair(_) => (count.pairs, count.samples) = (count.pairs + 1, count.samples + 1),
            Found::Skipped(..) => count.samples += 1,
            Found::Damage(_, fault) => _ = count.fault.get_or_insert(fault),
        }
    }
    count
}
