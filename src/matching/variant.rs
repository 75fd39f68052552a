//! The variants of RoCLIP: what the pool holds, and when images are matched to it.

/// A variant of RoCLIP (Yang, Gao, Mirzasoleiman, NeurIPS 2023), which replaces, in every `K`-th
/// epoch, each image's caption by the caption that a pool of recent ones holds nearest to the
/// image. Description and released code are not the same algorithm, and neither guards its edges:
///
/// | | `paper` | `official` | `roclip` |
/// |---|---|---|---|
/// | pool starts as | empty, filled with captions | `N(0, I)` rows, not normalised | as `paper` |
/// | rows returned | of length 1 | as stored, Gaussian rows too | of length 1 |
/// | captions are inserted | at every step | at every step of a matching epoch | at every step |
/// | at the end of the ring | wraps | drops the rest of the batch, starts over | wraps |
/// | matching epochs | every `K`-th, counted from 1 | as `paper` | as `paper`, not the first |
/// | within such an epoch | once the pool holds a row | at once | once the pool is full |
/// | text tower at a matched step | moved by AdamW's state, gradient 0 | as `paper` | frozen |
/// | schedule counts | batches so far | one epoch too many | batches so far |
/// | captions are augmented | at each access | once per run | at each access |
///
/// In all of them a step queries the pool before it inserts, so that no image can be answered with
/// its own caption of that step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// RoCLIP as its authors describe it.
    Paper,
    /// RoCLIP as its authors' released program computes it, mistakes included.
    Official,
    /// RoCLIP as described, with the edges guarded.
    #[default]
    RoClip,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Paper, Self::Official, Self::RoClip];

    /// Whether the pool starts as Gaussian rows that lookups return as they are. Otherwise it
    /// starts empty and holds rows of length 1 only.
    pub fn starts_gaussian(self) -> bool {
        self == Self::Official
    }

    /// Whether the ring wraps within a batch. Otherwise rows past its end are dropped.
    pub fn wraps(self) -> bool {
        self != Self::Official
    }

    /// Whether a step of `epoch`, counted from 1, inserts its captions; `every` is `K`, from 1.
    pub fn inserts_in(self, epoch: u64, every: u64) -> bool {
        match self {
            Self::Official => epoch.is_multiple_of(every),
            Self::Paper | Self::RoClip => true,
        }
    }

    /// Whether a step of `epoch`, counted from 1, is matched while the pool holds `filled` of its
    /// `rows`; `every` is `K`, from 1.
    ///
    /// `roclip` never matches in the first epoch, whose embeddings mean little (`K = 1` would
    /// otherwise match noise with noise), nor from a pool that is not full, whose few captions
    /// would be shared by many images. A step that is not matched is a step of CLIP. As every step
    /// inserts, the pool is full within `rows` captions, whatever their number per epoch.
    pub fn matches_in(self, epoch: u64, every: u64, filled: usize, rows: usize) -> bool {
        let due = epoch.is_multiple_of(every);
        match self {
            Self::Official => due,
            Self::Paper => due && filled > 0,
            Self::RoClip => due && epoch > 1 && filled == rows,
        }
    }

    /// Whether a matched step leaves the text tower alone: parameters, moments and step count.
    /// Otherwise its gradient is zero, and AdamW still moves it.
    pub fn freezes_text(self) -> bool {
        self == Self::RoClip
    }

    /// The step whose learning rate belongs to the update after `step` batches (0 at the first).
    ///
    /// The released program counts `batches · epoch + i` with epochs from 1, which shifts the
    /// schedule by one epoch: a cosine reaches 0 at the first step of the last epoch and rises.
    pub fn schedule_step(self, step: u64, steps_per_epoch: u64) -> u64 {
        match self {
            Self::Official => step + steps_per_epoch,
            Self::Paper | Self::RoClip => step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Variant::{Official, Paper, RoClip};

    /// Epochs 1 to 4 at `K` = 1, 2, 3 with a full pool, written out by hand.
    #[test]
    fn matching_epochs() {
        let matched = |variant: Variant, every| {
            [1, 2, 3, 4].map(|epoch| variant.matches_in(epoch, every, 10, 10))
        };
        for variant in [Paper, Official] {
            assert_eq!(matched(variant, 1), [true; 4]);
            assert_eq!(matched(variant, 2), [false, true, false, true]);
            assert_eq!(matched(variant, 3), [false, false, true, false]);
        }
        assert_eq!(matched(RoClip, 1), [false, true, true, true]);
        assert_eq!(matched(RoClip, 2), [false, true, false, true]);
    }

    #[test]
    fn matching_waits_for_the_pool() {
        let at = |variant: Variant, filled| variant.matches_in(2, 2, filled, 10);
        assert_eq!([0, 1, 9, 10].map(|filled| at(Paper, filled)), [false, true, true, true]);
        assert_eq!([0, 1, 9, 10].map(|filled| at(RoClip, filled)), [false, false, false, true]);
    }

    #[test]
    fn insertion_freezing_and_schedule() {
        let inserts = |variant: Variant| [1, 2, 3, 4].map(|epoch| variant.inserts_in(epoch, 2));
        assert_eq!(inserts(Paper), [true; 4]);
        assert_eq!(inserts(Official), [false, true, false, true]);
        assert_eq!(inserts(RoClip), [true; 4]);
        assert_eq!(Variant::ALL.map(Variant::freezes_text), [false, false, true]);
        assert_eq!(Variant::ALL.map(|v| v.schedule_step(7, 5)), [7, 12, 7]);
    }
}
