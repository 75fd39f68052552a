//! Which part of which shard a lane reads when.

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

/// Where part `n` of `parts` of a whole begins, and the one before ends.
pub(super) fn edge(whole: u64, n: usize, parts: usize) -> u64 {
    (u128::from(whole) * n as u128 / parts as u128) as u64
}

/// The samples of a shard that a lane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub shard: u32,
    /// The first.
    pub from: u64,
    /// Behind the last; `None` where it reads to the end, wherever that is.
    pub to: Option<u64>,
}

impl Part {
    fn whole(shard: u32) -> Self {
        Self { shard, from: 0, to: None }
    }
}

/// What one lane reads in an epoch, by turn.
#[derive(Debug)]
pub(super) enum Turns {
    /// The part of each turn.
    Once(Vec<Part>),
    /// Running sums of the shards' weights; the lane takes every `lanes`-th draw, from the
    /// `lane`-th on.
    Resampled { seed: u64, epoch: u64, sums: Vec<f64>, lane: u64, lanes: u64 },
}

impl Turns {
    /// Every shard once. Several lanes need the number of samples of each shard.
    pub(super) fn once(
        seed: u64,
        epoch: u64,
        shards: usize,
        shuffled: bool,
        cut: Option<(&[u64], usize, usize)>,
    ) -> Self {
        let mut order: Vec<u32> = (0..shards as u32).collect();
        if shuffled {
            Rng::new(seed, Domain::ShardOrder, epoch, 0).shuffle(&mut order);
        }
        Self::Once(match cut {
            None => order.into_iter().map(Part::whole).collect(),
            Some((samples, lane, lanes)) => cut_out(&order, samples, lane, lanes),
        })
    }

    pub(super) fn resampled(
        seed: u64,
        epoch: u64,
        weights: &[f64],
        (lane, lanes): (usize, usize),
    ) -> Self {
        let sums = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let (lane, lanes) = (lane as u64, lanes as u64);
        Self::Resampled { seed, epoch, sums: sums.collect(), lane, lanes }
    }

    /// What is read in this turn; `None` behind the last.
    pub(super) fn part(&self, turn: u64) -> Option<Part> {
        match self {
            Self::Once(parts) => parts.get(usize::try_from(turn).ok()?).copied(),
            Self::Resampled { seed, epoch, sums, .. } => {
                let total = *sums.last()?;
                // Stream 0 is the order of `Once`.
                let stream = self.draw(turn) + 1;
                let mut rng = Rng::new(*seed, Domain::ShardOrder, *epoch, stream);
                let at = rng.uniform() * total;
                let drawn = sums.partition_point(|&sum| sum <= at);
                Some(Part::whole(drawn.min(sums.len() - 1) as u32))
            }
        }
    }

    /// Number of the draw, among those of all lanes, that is this turn of the lane.
    fn draw(&self, turn: u64) -> u64 {
        match self {
            Self::Once(_) => turn,
            Self::Resampled { lane, lanes, .. } => lane + lanes * turn,
        }
    }

    /// What keys the augmentation of a pair read in this turn: the epoch, and with replacement the
    /// draw, too, since a pair may come again.
    pub(super) fn draw_epoch(&self, epoch: u64, turn: u64) -> u64 {
        match self {
            Self::Once(_) => epoch,
            // Draws know 24 bits of an epoch: spread over them what differs.
            Self::Resampled { .. } => {
                (epoch.rotate_left(32) ^ (self.draw(turn) + 1)).wrapping_mul(MIX) >> 40
            }
        }
    }
}

/// A lane's parts of the shards, laid end to end in this order and cut evenly by their `samples`.
fn cut_out(order: &[u32], samples: &[u64], lane: usize, lanes: usize) -> Vec<Part> {
    let total = samples.iter().sum();
    let (first, last) = (edge(total, lane, lanes), edge(total, lane + 1, lanes));
    let (mut parts, mut start) = (Vec::new(), 0);
    for &shard in order {
        let end = start + samples[shard as usize];
        // A shard without samples, as counted, is read all the same: by the lane that goes on
        // where it lies.
        let is_read = if start < end {
            start.max(first) < end.min(last)
        } else {
            (first..last).contains(&start) || (start == total && lane + 1 == lanes)
        };
        if is_read {
            let to = (last < end).then(|| last - start);
            parts.push(Part { shard, from: first.saturating_sub(start), to });
        }
        start = end;
    }
    parts
}

/// 2⁶⁴ over the golden ratio: multiplying by it spreads what differs over the high bits.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_drawn_by_their_weights() {
        let weights = [1.0, 0.0, 3.0, 1.0];
        let turns = Turns::resampled(5, 2, &weights, (0, 1));
        let mut drawn = [0u32; 4];
        (0..5000).for_each(|turn| drawn[turns.part(turn).unwrap().shard as usize] += 1);
        assert_eq!(drawn[1], 0);
        for (count, weight) in drawn.iter().zip(weights) {
            // Five standard deviations of a binomial count.
            let (p, n) = (weight / 5.0, 5000.0f64);
            let spread = 5.0 * (n * p * (1.0 - p)).sqrt();
            assert!((f64::from(*count) - n * p).abs() <= spread, "{drawn:?}");
        }
        let other = Turns::resampled(5, 3, &weights, (0, 1));
        assert!((0..50).any(|turn| turns.part(turn) != other.part(turn)));
    }

    #[test]
    fn a_pair_drawn_again_is_augmented_anew() {
        let once = Turns::once(0, 4, 3, true, None);
        assert_eq!((once.draw_epoch(4, 0), once.draw_epoch(4, 2)), (4, 4));
        let turns = Turns::resampled(0, 4, &[1.0], (0, 1));
        let mut keys: Vec<u64> = (0..1000).map(|turn| turns.draw_epoch(4, turn)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 1000);
        assert!(keys.iter().all(|key| *key < 1 << 24));
    }

    /// Every sample in one lane, lanes alike but for one sample, ends left open to who comes last.
    #[test]
    fn lanes_cut_evenly_and_every_shard_is_read_to_its_end_once() {
        for samples in [&[7, 0, 1, 30, 0, 2][..], &[0, 3, 0], &[5], &[0, 0], &[1, 1, 1, 1]] {
            let order: Vec<u32> = (0..samples.len() as u32).rev().collect();
            for lanes in 1..=12 {
                let mut read = vec![Vec::new(); samples.len()];
                let mut ends = vec![0; samples.len()];
                let total: u64 = samples.iter().sum();
                for lane in 0..lanes {
                    let mut met = 0;
                    for Part { shard, from, to } in cut_out(&order, samples, lane, lanes) {
                        let to = to.unwrap_or_else(|| {
                            ends[shard as usize] += 1;
                            samples[shard as usize]
                        });
                        met += to - from;
                        read[shard as usize].extend(from..to);
                    }
                    let even = total / lanes as u64;
                    assert!(met == even || met == even + 1, "{samples:?} {lane} of {lanes}");
                }
                let whole = samples.iter().map(|&count| (0..count).collect::<Vec<_>>());
                assert_eq!(read, whole.collect::<Vec<_>>(), "{samples:?}, {lanes} lanes");
                assert!(ends.iter().all(|&count| count == 1), "{samples:?}, {lanes} lanes");
            }
        }
    }

    #[test]
    fn lanes_share_the_draws_of_one() {
        let weights = [1.0, 2.0, 3.0, 4.0, 5.0];
        let one = Turns::resampled(5, 2, &weights, (0, 1));
        for lane in 0..3 {
            let turns = Turns::resampled(5, 2, &weights, (lane, 3));
            for turn in 0..20 {
                let draw = lane as u64 + 3 * turn;
                assert_eq!(turns.part(turn), one.part(draw));
                assert_eq!(turns.draw_epoch(2, turn), one.draw_epoch(2, draw));
            }
        }
    }
}
