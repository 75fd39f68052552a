//! What a run minimises, and when.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What a run minimises: CLIP's loss, or RoCLIP's in one of three variants.
///
/// RoCLIP (Yang, Gao, Mirzasoleiman, NeurIPS 2023) replaces, in every `K`-th epoch, each image's
/// caption by the caption that a pool of recent ones holds nearest to the image. Description and
/// released code are not the same algorithm, and neither guards its edges:
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
pub enum Objective {
    /// CLIP's loss in every epoch; no pool.
    Clip,
    /// RoCLIP as its authors describe it.
    Paper,
    /// RoCLIP as its authors' released program computes it, mistakes included.
    Official,
    /// RoCLIP as described, with the edges guarded.
    #[default]
    RoClip,
}

impl Objective {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Clip, Self::Paper, Self::Official, Self::RoClip];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Paper => "paper",
            Self::Official => "official",
            Self::RoClip => "roclip",
        }
    }

    /// Whether there is a caption pool at all.
    pub fn has_pool(self) -> bool {
        self != Self::Clip
    }

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
            Self::Clip => false,
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
            Self::Clip => false,
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
            Self::Clip | Self::Paper | Self::RoClip => step,
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|o| o.name() == text).ok_or_else(|| Error::Option {
            flag: "--objective".into(),
            got: format!("{text:?}"),
            expected: "clip, paper, official or roclip".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Objective::{Clip, Official, Paper, RoClip};

    #[test]
    fn names_go_both_ways_and_roclip_is_the_default() {
        for objective in Objective::ALL {
            assert_eq!(objective.to_string().parse::<Objective>().unwrap(), objective);
        }
        assert_eq!(Objective::default(), RoClip);
        let refusal = "RoCLIP".parse::<Objective>().unwrap_err().to_string();
        assert!(refusal.contains("--objective") && refusal.contains("official"), "{refusal}");
    }

    /// Epochs 1 to 4 at `K` = 1, 2, 3 with a full pool, written out by hand.
    #[test]
    fn matching_epochs() {
        let matched = |objective: Objective, every| {
            [1, 2, 3, 4].map(|epoch| objective.matches_in(epoch, every, 10, 10))
        };
        for every in 1..=3 {
            assert_eq!(matched(Clip, every), [false; 4]);
        }
        for objective in [Paper, Official] {
            assert_eq!(matched(objective, 1), [true; 4]);
            assert_eq!(matched(objective, 2), [false, true, false, true]);
            assert_eq!(matched(objective, 3), [false, false, true, false]);
        }
        assert_eq!(matched(RoClip, 1), [false, true, true, true]);
        assert_eq!(matched(RoClip, 2), [false, true, false, true]);
    }

    #[test]
    fn matching_waits_for_the_pool() {
        let at = |objective: Objective, filled| objective.matches_in(2, 2, filled, 10);
        assert_eq!([0, 1, 9, 10].map(|filled| at(Paper, filled)), [false, true, true, true]);
        assert_eq!([0, 1, 9, 10].map(|filled| at(RoClip, filled)), [false, false, false, true]);
    }

    #[test]
    fn insertion_freezing_and_schedule() {
        let inserts =
            |objective: Objective| [1, 2, 3, 4].map(|epoch| objective.inserts_in(epoch, 2));
        assert_eq!(inserts(Clip), [false; 4]);
        assert_eq!(inserts(Paper), [true; 4]);
        assert_eq!(inserts(Official), [false, true, false, true]);
        assert_eq!(inserts(RoClip), [true; 4]);
        assert_eq!(Objective::ALL.map(Objective::freezes_text), [false, false, false, true]);
        assert_eq!(Objective::ALL.map(|o| o.schedule_step(7, 5)), [7, 7, 12, 7]);
        assert_eq!(Objective::ALL.map(Objective::has_pool), [false, true, true, true]);
    }
}
