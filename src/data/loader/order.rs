//! Which shard is read when, and the place in that order: all that a checkpoint needs.

use serde::{Deserialize, Serialize};

use super::super::ledger::Tally;
use super::super::sample::Anchor;
use super::super::source::Shard;
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};

/// How often shards are read within an epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sampling {
    /// Every shard once: an epoch is every pair once.
    #[default]
    Once,
    /// Shards are drawn with replacement, without end (open_clip's `--dataset-resampled`).
    Resampled {
        /// Pairs of an epoch on all ranks together (`--train-num-samples`); `None` has no end.
        pairs: Option<u64>,
        /// Weight of the shards of each `::` pattern, as in open_clip's
        /// `--train-data-upsampling-factors`; empty where all weigh the same.
        weights: Vec<f64>,
    },
}

impl Sampling {
    /// The weight of each shard: that of its pattern. Empty where shards are not drawn.
    pub(super) fn weights(&self, lists: &[Vec<Shard>]) -> Result<Vec<f64>> {
        let Self::Resampled { weights, .. } = self else { return Ok(Vec::new()) };
        let fits = weights.is_empty() || weights.len() == lists.len();
        let valid = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
        if !fits || !valid || (!weights.is_empty() && weights.iter().sum::<f64>() <= 0.0) {
            return Err(Error::Option {
                flag: "--train-data-upsampling-factors".into(),
                got: format!("{weights:?}"),
                expected: format!("{} numbers joined by `::`, one for each pattern", lists.len()),
            });
        }
        let weight = |at: usize| weights.get(at).copied().unwrap_or(1.0);
        Ok(lists
            .iter()
            .enumerate()
            .flat_map(|(at, list)| list.iter().map(move |_| weight(at)))
            .collect())
    }
}

/// The shards of one epoch by turn.
#[derive(Debug)]
pub(super) enum Turns {
    /// The shard of each turn.
    Once(Vec<u32>),
    /// Running sums of the shards' weights.
    Resampled { seed: u64, epoch: u64, sums: Vec<f64> },
}

impl Turns {
    pub(super) fn once(seed: u64, epoch: u64, shards: usize, shuffled: bool) -> Self {
        let mut order: Vec<u32> = (0..shards as u32).collect();
        if shuffled {
            Rng::new(seed, Domain::ShardOrder, epoch, 0).shuffle(&mut order);
        }
        Self::Once(order)
    }

    pub(super) fn resampled(seed: u64, epoch: u64, weights: &[f64]) -> Self {
        let sums = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self::Resampled { seed, epoch, sums: sums.collect() }
    }

    /// The shard read in this turn; `None` behind the last.
    pub(super) fn shard(&self, turn: u64) -> Option<u32> {
        match self {
            Self::Once(order) => order.get(usize::try_from(turn).ok()?).copied(),
            Self::Resampled { seed, epoch, sums } => {
                let total = *sums.last()?;
                // Stream 0 is the order of `Once`.
                let mut rng = Rng::new(*seed, Domain::ShardOrder, *epoch, turn + 1);
                let at = rng.uniform() * total;
                let drawn = sums.partition_point(|&sum| sum <= at);
                Some(drawn.min(sums.len() - 1) as u32)
            }
        }
    }

    /// What keys the augmentation of a pair read in this turn: the epoch, and with replacement the
    /// turn, too, since a pair may come again.
    pub(super) fn draw_epoch(&self, epoch: u64, turn: u64) -> u64 {
        match self {
            Self::Once(_) => epoch,
            // Draws know 24 bits of an epoch: spread over them what differs.
            Self::Resampled { .. } => (epoch.rotate_left(32) ^ (turn + 1)).wrapping_mul(MIX) >> 40,
        }
    }
}

/// 2⁶⁴ over the golden ratio: multiplying by it spreads what differs over the high bits.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// A pair that was read and waits in the shuffle buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The turn in which it was read.
    pub turn: u64,
    /// Its position in its shard.
    pub index: u32,
    /// Where it begins in the (decompressed) shard.
    pub offset: u64,
}

/// How far the shards have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The turn that is being read.
    pub turn: u64,
    /// What its shard has yielded so far: pairs, skipped pairs and damage.
    pub found: u64,
    /// A place, not behind that, from which the shard can be read.
    pub anchor: Anchor,
}

/// A place in an epoch, between two batches. Together with the configuration it determines all
/// that follows, so it is all that a checkpoint needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Sequence number of the pair that comes next.
    pub next_seq: u64,
    /// Batches delivered in this epoch.
    pub batches: u64,
    /// Good pairs dealt to the ranks in this epoch.
    pub dealt: u64,
    /// What became of the pairs before.
    pub tally: Tally,
    /// How far the shards have been read.
    pub cursor: Cursor,
    /// The shuffle buffer, in its order.
    pub buffer: Vec<Held>,
}

impl Position {
    /// The start of an epoch.
    pub fn start_of(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_drawn_by_their_weights() {
        let weights = [1.0, 0.0, 3.0, 1.0];
        let turns = Turns::resampled(5, 2, &weights);
        let mut drawn = [0u32; 4];
        (0..5000).for_each(|turn| drawn[turns.shard(turn).unwrap() as usize] += 1);
        assert_eq!(drawn[1], 0);
        for (count, weight) in drawn.iter().zip(weights) {
            // Five standard deviations of a binomial count.
            let (p, n) = (weight / 5.0, 5000.0f64);
            let spread = 5.0 * (n * p * (1.0 - p)).sqrt();
            assert!((f64::from(*count) - n * p).abs() <= spread, "{drawn:?}");
        }
        let other = Turns::resampled(5, 3, &weights);
        assert!((0..50).any(|turn| turns.shard(turn) != other.shard(turn)));
    }

    #[test]
    fn a_pair_drawn_again_is_augmented_anew() {
        let once = Turns::once(0, 4, 3, true);
        assert_eq!((once.draw_epoch(4, 0), once.draw_epoch(4, 2)), (4, 4));
        let turns = Turns::resampled(0, 4, &[1.0]);
        let mut keys: Vec<u64> = (0..1000).map(|turn| turns.draw_epoch(4, turn)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 1000);
        assert!(keys.iter().all(|key| *key < 1 << 24));
    }
}
