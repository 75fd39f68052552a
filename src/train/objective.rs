//! What a run minimises: the family of methods, in one table.

use crate::error::{Error, Result};
use crate::matching::{PoolSize, Variant};
use crate::objective::{CyclicWeights, Terms};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// What a run minimises.
///
/// | | minimises ([`Terms`]) | views of a pair | pool |
/// |---|---|---|---|
/// | `clip` | CLIP's loss | 1, augmented | none |
/// | `roclip`, `paper`, `official` | CLIP's loss, in some epochs matched | 1 | captions |
/// | `cyclip` | CLIP's loss `+ a·C_in + b·C_cross` | 1 | none |
/// | `cleanclip` | `w1·`CLIP's loss `+ w2·`unimodal | 2: as it is, and augmented | none |
/// | `safeclip` | within modalities, of risky pairs | 2, augmented apart | images, captions |
/// | | CLIP's loss, of safe pairs | 1 | |
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// CLIP (Radford et al. 2021): no defence.
    Clip,
    /// RoCLIP as its authors describe it.
    Paper,
    /// RoCLIP as its authors' released program computes it, mistakes included.
    Official,
    /// RoCLIP as described, with the edges guarded.
    #[default]
    RoClip,
    /// CyCLIP (Goel et al. 2022): similarities are consistent within and across modalities.
    CyClip(CyclicWeights),
    /// CleanCLIP (Bansal et al. 2023), which fine-tunes a poisoned model on trusted pairs, so that
    /// each modality finds its own augmented views, and forgets what a trigger has to do with a
    /// caption.
    CleanClip {
        /// `w1`, of CLIP's loss between views that are not augmented.
        clip: f64,
        /// `w2`, of the mean of both modalities' losses between the views.
        unimodal: f64,
    },
    /// SafeCLIP (Yang et al. 2024): only pairs whose picture and caption are alike teach what goes
    /// with what; the others teach pictures and captions apart.
    SafeClip(SafeClip),
}

/// SafeCLIP's numbers. Its epochs are, in this order:
///
/// 1. some in which each modality learns alone, from all pairs;
/// 2. one of CLIP's loss on all pairs, at a low and constant learning rate;
/// 3. the rest, each in two parts: the risky pairs, each modality alone; then CLIP's loss on the
///    safe ones. Before the first of them a mixture of two Gaussians, fitted to the similarities
///    of all pairs, tells how many are safe; from epoch to epoch there are more.
///
/// Description and released code differ: here the mixture is fitted once, to pairs that are not
/// augmented, and pairs are ranked by similarity, as described; the parts follow each other, and
/// the safe share is limited, as in the code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SafeClip {
    /// Epochs in which each modality learns alone.
    pub warmup_epochs: u64,
    /// Learning rate of the epoch after these, as a part of the full one.
    pub lr_factor: f64,
    /// What the probability to be of the more similar group must exceed.
    pub threshold: f64,
    /// Share of all pairs that becomes safe from one epoch to the next.
    pub growth: f64,
    /// Largest share of all pairs that may be safe.
    pub most: f64,
}

impl SafeClip {
    /// Those of its authors.
    pub const AUTHORS: Self =
        Self { warmup_epochs: 5, lr_factor: 0.01, threshold: 0.9, growth: 0.01, most: 0.85 };
}

/// Which of all pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// All.
    All,
    /// Those that are not safe.
    Risky,
    /// Those that are.
    Safe,
}

/// A stretch of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which pairs are trained on.
    pub pairs: Pairs,
    /// In how many views. SafeCLIP's steps of two views are those of each modality alone.
    pub views: usize,
}

impl Objective {
    /// All of them, with the weights of their authors.
    pub const ALL: [Self; 7] = [
        Self::Clip,
        Self::Paper,
        Self::Official,
        Self::RoClip,
        Self::CyClip(CyclicWeights { in_modal: 0.25, cross_modal: 0.25 }),
        Self::CleanClip { clip: 1.0, unimodal: 1.0 },
        Self::SafeClip(SafeClip::AUTHORS),
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Paper => "paper",
            Self::Official => "official",
            Self::RoClip => "roclip",
            Self::CyClip(_) => "cyclip",
            Self::CleanClip { .. } => "cleanclip",
            Self::SafeClip(_) => "safeclip",
        }
    }

    /// The loss.
    pub fn terms(self) -> Terms {
        match self {
            Self::Clip | Self::Paper | Self::Official | Self::RoClip => Terms::CLIP,
            Self::CyClip(weights) => Terms { cyclic: Some(weights), ..Terms::CLIP },
            Self::CleanClip { clip, unimodal } => {
                Terms { clip, unimodal: Some(unimodal), ..Terms::CLIP }
            }
            Self::SafeClip(_) => Terms { neighbours: true, ..Terms::CLIP },
        }
    }

    /// Most views of each pair that a step needs.
    pub fn views(self) -> usize {
        self.terms().views()
    }

    /// What `epoch`, from 0, consists of.
    pub fn parts(self, epoch: u64) -> &'static [Part] {
        const ONE: &[Part] = &[Part { pairs: Pairs::All, views: 1 }];
        const TWO: &[Part] = &[Part { pairs: Pairs::All, views: 2 }];
        const APART: &[Part] =
            &[Part { pairs: Pairs::Risky, views: 2 }, Part { pairs: Pairs::Safe, views: 1 }];
        match self {
            Self::SafeClip(options) => match epoch.cmp(&options.warmup_epochs) {
                Ordering::Less => TWO,
                Ordering::Equal => ONE,
                Ordering::Greater => APART,
            },
            _ if self.views() == 2 => TWO,
            _ => ONE,
        }
    }

    /// Whether the first view of a pair is the pair as it is. Otherwise it is augmented; a second
    /// one always is.
    pub fn first_view_is_plain(self) -> bool {
        matches!(self, Self::CleanClip { .. })
    }

    /// Which variant of RoCLIP it is.
    pub fn variant(self) -> Option<Variant> {
        match self {
            Self::Clip | Self::CyClip(_) | Self::CleanClip { .. } | Self::SafeClip(_) => None,
            Self::Paper => Some(Variant::Paper),
            Self::Official => Some(Variant::Official),
            Self::RoClip => Some(Variant::RoClip),
        }
    }

    /// Number of pools: of captions, and of images.
    pub fn pools(self) -> usize {
        if matches!(self, Self::SafeClip(_)) { 2 } else { usize::from(self.variant().is_some()) }
    }

    /// How large a pool is where nothing is said: as its authors have it.
    pub fn pool_size(self) -> PoolSize {
        if matches!(self, Self::SafeClip(_)) { PoolSize::Rows(256) } else { PoolSize::default() }
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
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|o| o.name() == text).ok_or_else(|| Error::Option {
            flag: "--objective".into(),
            got: format!("{text:?}"),
            expected: format!("one of {}", names()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_roclip_is_the_default() {
        for objective in Objective::ALL {
            assert_eq!(objective.to_string().parse::<Objective>().unwrap(), objective);
        }
        assert_eq!(Objective::default(), Objective::RoClip);
        let refusal = "RoCLIP".parse::<Objective>().unwrap_err().to_string();
        assert!(refusal.contains("--objective") && refusal.contains("official"), "{refusal}");
    }

    #[test]
    fn every_variant_is_an_objective() {
        let variants = Objective::ALL.into_iter().filter_map(Objective::variant);
        assert_eq!(variants.collect::<Vec<_>>(), Variant::ALL);
        assert_eq!(Objective::ALL.map(Objective::pools), [0, 1, 1, 1, 0, 0, 2]);
        assert_eq!(Objective::ALL.map(Objective::views), [1, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn only_safeclip_has_epochs_in_parts() {
        for objective in Objective::ALL {
            let views: Vec<usize> = objective.parts(6).iter().map(|part| part.views).collect();
            let is_safeclip = objective.name() == "safeclip";
            assert_eq!(views, if is_safeclip { vec![2, 1] } else { vec![objective.views()] });
        }
        let safeclip = Objective::SafeClip(SafeClip { warmup_epochs: 2, ..SafeClip::AUTHORS });
        let all = |views| [Part { pairs: Pairs::All, views }];
        assert_eq!([0, 1, 2].map(|epoch| safeclip.parts(epoch)), [all(2), all(2), all(1)]);
        assert_eq!(safeclip.parts(3).last().unwrap().pairs, Pairs::Safe);
    }
}
