//! What training saw of every pair, over all epochs that were written down.

use super::record::{self, RecordReader};
use crate::error::Result;
use crate::flow::Place;
use std::path::Path;

/// Sums over a pair's records; 24 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    own: f32,
    best: f32,
    margin: f32,
    likeness: f32,
    steps: u16,
    matched: u16,
    replaced: u16,
    known: u16,
}

impl Seen {
    /// Mean cosine of its picture and its own caption; NaN where it was never trained on.
    pub fn own(&self) -> f32 {
        self.own / f32::from(self.steps)
    }

    /// Mean cosine of its picture and what the pool chose; NaN where it never chose.
    pub fn best(&self) -> f32 {
        self.best / f32::from(self.matched)
    }

    /// Mean of how much nearer the pool's choice was than its own caption; NaN where it never
    /// chose.
    pub fn margin(&self) -> f32 {
        self.margin / f32::from(self.matched)
    }

    /// Share of the times it was matched in which the pool had a nearer caption than its own; NaN
    /// where it was never matched.
    pub fn replaced(&self) -> f32 {
        f32::from(self.replaced) / f32::from(self.matched)
    }

    /// Mean cosine, by the final model, of the captions that the pool chose and its own; NaN where
    /// none is known.
    pub fn likeness(&self) -> f32 {
        self.likeness / f32::from(self.known)
    }

    fn add(&mut self, own: f32, best: f32, likeness: Option<f32>) {
        // A pair met more often than can be counted: the rest is left out of all its means.
        if self.steps == u16::MAX || !own.is_finite() {
            return;
        }
        (self.steps, self.own) = (self.steps + 1, self.own + own);
        if best.is_finite() {
            (self.matched, self.best) = (self.matched + 1, self.best + best);
            self.margin += best - own;
            self.replaced += u16::from(best > own);
        }
        if let Some(likeness) = likeness {
            (self.known, self.likeness) = (self.known + 1, self.likeness + likeness);
        }
    }
}

/// What was seen of each pair.
#[derive(Clone, Debug, Default)]
pub struct Suspicion {
    /// `[N]` sums by pair.
    pub pairs: Vec<Seen>,
    /// The epochs whose files were read.
    pub epochs: Vec<u64>,
    /// Records read.
    pub records: u64,
    /// Records of pairs that are not among the `N`.
    pub others: u64,
}

/// Reads the records in a run's folder, in constant memory but for the sums and 4 bytes a pair.
///
/// `places` `[N]` tells which pairs there are; of [`Place::UNKNOWN`] nothing is known. `likeness`
/// is asked how similar the captions of two of them are.
///
/// # Errors
/// Those of [`RecordReader`].
pub fn suspicion(
    run: &Path,
    places: &[Place],
    likeness: impl Fn(usize, usize) -> f32,
) -> Result<Suspicion> {
    let mut order: Vec<u32> = (0..places.len() as u32).collect();
    order.sort_unstable_by_key(|&row| places[row as usize]);
    let row_of = |place: Place| {
        let found = order.binary_search_by_key(&place, |&row| places[row as usize]);
        found.ok().filter(|_| place != Place::UNKNOWN).map(|at| order[at] as usize)
    };
    let pairs = vec![Seen::default(); places.len()];
    let mut suspicion = Suspicion { pairs, ..Suspicion::default() };
    for (epoch, path) in record::epochs(run)? {
        suspicion.epochs.push(epoch);
        for record in RecordReader::open(&path)? {
            let record = record?;
            suspicion.records += 1;
            let Some(row) = row_of(record.pair) else {
                suspicion.others += 1;
                continue;
            };
            let likeness = row_of(record.from).map(|other| likeness(row, other));
            suspicion.pairs[row].add(record.own, record.best, likeness);
        }
    }
    Ok(suspicion)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::record::{Record, RecordWriter};

    fn place(shard: u32, index: u32) -> Place {
        Place { shard, index }
    }

    #[test]
    fn records_of_all_epochs_are_averaged() {
        assert_eq!(size_of::<Seen>(), 24);
        let dir = tempfile::tempdir().unwrap();
        let (a, b, gone) = (place(1, 0), place(0, 5), place(0, 4));
        let unmatched = |pair, own| Record { pair, own, best: f32::NAN, from: Place::UNKNOWN };
        let epochs: [&[Record]; 3] = [
            &[unmatched(a, 0.25), unmatched(b, 0.5), unmatched(gone, 9.0)],
            &[
                Record { pair: b, own: 0.5, best: 0.25, from: a },
                Record { pair: a, own: -0.25, best: 0.75, from: gone },
            ],
            &[Record { pair: b, own: -1.0, best: 0.5, from: Place::UNKNOWN }],
        ];
        for (epoch, records) in epochs.into_iter().enumerate() {
            let mut writer = RecordWriter::open(dir.path(), epoch as u64, 0).unwrap();
            writer.append(&record::pack(records.iter().copied())).unwrap();
        }
        let places = [a, Place::UNKNOWN, b];
        let got = suspicion(dir.path(), &places, |row, other| (10 * row + other) as f32).unwrap();
        assert_eq!((got.epochs, got.records, got.others), (vec![0, 1, 2], 6, 1));
        let [a, nobody, b] = [0, 1, 2].map(|row| got.pairs[row]);
        assert_eq!((a.own(), a.best(), a.margin(), a.replaced()), (0.0, 0.75, 1.0, 1.0));
        assert_eq!((b.own(), b.best(), b.margin(), b.replaced()), (0.0, 0.375, 0.625, 0.5));
        assert!(a.likeness().is_nan() && b.likeness() == 20.0);
        assert!(
            [nobody.own(), nobody.best(), nobody.margin(), nobody.replaced()]
                .iter()
                .all(|x| x.is_nan())
        );
    }
}
