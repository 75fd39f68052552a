//! A place in an epoch: all that a checkpoint needs.

use serde::{Deserialize, Serialize};

use super::super::ledger::Tally;
use super::super::sample::Anchor;
use crate::error::{Error, Result};

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

/// How far a lane's shards have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The turn that is being read.
    pub turn: u64,
    /// What its shard has yielded so far: pairs, skipped pairs and damage.
    pub found: u64,
    /// A place, not behind that, from which the shard can be read.
    pub anchor: Anchor,
}

/// A place in a lane, between two batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanePosition {
    /// The lane, from 0.
    pub lane: usize,
    /// Sequence number of the pair that comes next, within the lane.
    pub next_seq: u64,
    /// Good pairs given out in this epoch.
    pub dealt: u64,
    /// What became of the pairs before.
    pub tally: Tally,
    /// How far the shards have been read.
    pub cursor: Cursor,
    /// The shuffle buffer, in its order.
    pub buffer: Vec<Held>,
}

/// A place in an epoch, between two batches. Together with the configuration it determines all
/// that follows, so it is all that a checkpoint needs.
///
/// That of an [`Epoch`](super::Epoch) has the lanes of its rank; those of all ranks are
/// [merged](Self::merge) into the whole one, from which any number of ranks can go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Batches delivered in this epoch.
    pub batches: u64,
    /// The place of each lane, by number; none at the start of an epoch, for all begin there.
    pub lanes: Vec<LanePosition>,
}

impl Position {
    /// The start of an epoch.
    pub fn start_of(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// The start of the same epoch, for another reading of it: pairs are numbered on.
    pub fn rewound(&self) -> Self {
        let begin = |&LanePosition { lane, next_seq, .. }: &LanePosition| LanePosition {
            lane,
            next_seq,
            ..LanePosition::default()
        };
        Self { lanes: self.lanes.iter().map(begin).collect(), ..Self::start_of(self.epoch) }
    }

    /// What became of the pairs before, in all lanes that are here.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.lanes.iter().for_each(|place| sum.add(&place.tally));
        sum
    }

    /// Sequence number of the pair of a lane that comes next; 0 for a lane that is not here.
    pub fn next_seq(&self, lane: usize) -> u64 {
        self.lanes.iter().find(|place| place.lane == lane).map_or(0, |place| place.next_seq)
    }

    /// The whole position, of that many lanes, from those of all ranks.
    ///
    /// # Errors
    /// A lane is missing or there twice, or the ranks are at different places.
    pub fn merge(parts: impl IntoIterator<Item = Self>, lanes: usize) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().unwrap_or_default();
        for part in parts {
            let [one, other] = [&whole, &part].map(|at| (at.epoch, at.batches));
            if one != other {
                return Err(Error::Option {
                    flag: "positions of the ranks".into(),
                    got: format!("{one:?} and {other:?}"),
                    expected: "the same epoch and number of batches".into(),
                });
            }
            whole.lanes.extend(part.lanes);
        }
        whole.lanes.sort_by_key(|place| place.lane);
        let numbers: Vec<usize> = whole.lanes.iter().map(|place| place.lane).collect();
        let is_start = numbers.is_empty() && whole.batches == 0;
        if is_start || numbers.iter().copied().eq(0..lanes) {
            return Ok(whole);
        }
        let (count, is_other) = (numbers.len(), numbers.iter().copied().eq(0..numbers.len()));
        Err(Error::Option {
            flag: "--lanes".into(),
            got: lanes.to_string(),
            expected: if is_other && count > 0 {
                format!("{count}, the number of lanes of the position to go on from")
            } else {
                format!("each of these lanes once in the position, not {numbers:?}")
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(batches: u64, lanes: &[usize]) -> Position {
        let place = |&lane: &usize| LanePosition {
            lane,
            next_seq: 10 + lane as u64,
            tally: Tally { seen: 2, delivered: 2, ..Tally::default() },
            ..LanePosition::default()
        };
        Position { epoch: 3, batches, lanes: lanes.iter().map(place).collect() }
    }

    #[test]
    fn positions_of_all_ranks_make_the_whole() {
        let merged = Position::merge([at(5, &[2, 3]), at(5, &[0, 1])], 4).unwrap();
        assert_eq!(merged, at(5, &[0, 1, 2, 3]));
        assert_eq!((merged.tally().seen, merged.next_seq(2), merged.next_seq(9)), (8, 12, 0));
        let start = Position::merge([Position::start_of(3), Position::start_of(3)], 4).unwrap();
        assert_eq!(start, Position::start_of(3));
        let refused = |parts: &[Position], lanes, part: &str| {
            let refusal = Position::merge(parts.to_vec(), lanes).unwrap_err().to_string();
            assert!(refusal.contains(part), "{refusal}");
        };
        refused(&[at(5, &[0, 1]), at(5, &[3])], 4, "not [0, 1, 3]");
        refused(&[at(5, &[0, 1]), at(5, &[1, 2])], 4, "not [0, 1, 1, 2]");
        refused(&[at(5, &[0, 1]), at(6, &[2, 3])], 4, "(3, 5) and (3, 6)");
        refused(&[at(5, &[0, 1, 2])], 4, "--lanes: 4; expected 3");
        refused(&[at(5, &[])], 4, "--lanes");
    }

    #[test]
    fn a_second_reading_numbers_on() {
        let again = at(5, &[0, 1]).rewound();
        assert_eq!((again.epoch, again.batches, again.tally()), (3, 0, Tally::default()));
        assert_eq!([again.next_seq(0), again.next_seq(1)], [10, 11]);
    }
}
