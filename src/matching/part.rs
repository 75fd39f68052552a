//! Which rows of a pool lie on which rank.

use std::ops::Range;

/// Extents of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// `M`, captions it holds.
    pub rows: usize,
    /// `D`, width of an embedding.
    pub width: usize,
    /// `N`, images of this rank that one lookup asks for.
    pub queries: usize,
    /// Which of its rows are here.
    pub part: PoolPart,
}

/// One of equal parts of a pool, of consecutive rows. The last parts may have fewer rows, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolPart {
    /// Which one: the rank that holds it.
    pub number: usize,
    /// Of how many.
    pub of: usize,
}

impl PoolPart {
    /// All of a pool.
    pub const WHOLE: Self = Self { number: 0, of: 1 };
}

impl PoolShape {
    /// Most rows of a part: what each rank has room for.
    pub(super) fn share(&self) -> usize {
        self.rows.div_ceil(self.part.of)
    }

    /// Rows of the ring that are here.
    pub(super) fn here(&self) -> Range<usize> {
        let share = self.share();
        let start = (self.part.number * share).min(self.rows);
        start..(start + share).min(self.rows)
    }

    /// Of `count` rows, no more than the ring has, that go into it from row `at` on: which come to
    /// lie here, in runs without a gap, and at which row of this part each run begins.
    pub(super) fn runs(&self, at: usize, count: usize) -> [(Range<usize>, usize); 2] {
        let here = self.here();
        // Behind its end the ring begins once more.
        [0, self.rows].map(|lap| {
            let start = at.max(lap + here.start);
            let end = (at + count).min(lap + here.end).max(start);
            (start - at..end - at, start - lap - here.start)
        })
    }
}
