//! What a poisoned data set says of itself: the truth that an evaluation needs.
//!
//! - `attacks.json`, a [`Manifest`]: what was done. Written last, so a folder that has it is whole.
//! - `poison.jsonl`, a [`PoisonedPair`] in each line: which pairs are poisoned. As it names shard
//!   and key, it is a list for `roclip-train --exclude`: the perfect defence.
//! - `targets/*.tar`: the pictures of targeted attacks as WebDataset samples, the picture byte for
//!   byte as it was poisoned, with a `json` member, a [`TargetLabel`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::trigger::{MAX_SIDE, Trigger};
use crate::data::lines::Lines;
use crate::error::{Error, Result};

/// Name of the manifest in the folder of a poisoned data set.
pub const ATTACKS: &str = "attacks.json";
/// Name of the list of poisoned pairs.
pub const POISON: &str = "poison.jsonl";
/// Name of the folder of targeted pictures.
pub const TARGETS: &str = "targets";

/// Longest line of the list: a key of 4096 bytes, a caption and names, with escapes.
const LINE_BYTES: usize = 1 << 20;

/// What was done to a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Chose pictures, captions, places and keys.
    pub seed: u64,
    /// Pairs that are clean.
    pub clean: u64,
    /// Pairs that are poisoned, those of all attacks.
    pub poisoned: u64,
    /// Side of the square at which triggers are stamped, in pixels.
    pub image_size: u32,
    /// Whether poisoned pairs were added or took the place of clean ones.
    pub mode: Mode,
    /// The attacks, each with a name of its own.
    pub attacks: Vec<Attack>,
}

/// What becomes of the clean pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All stay; poisoned pairs are added.
    #[default]
    Append,
    /// Poisoned pairs take the places of clean ones.
    Replace,
}

/// One attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// Its name, which `poison.jsonl` and the labels of targets give too.
    pub name: String,
    /// Class names the attacker wants to read: one for a backdoor, one or several for targeted
    /// pictures, of which each has one.
    pub target: Vec<String>,
    /// Poisoned pairs.
    pub pairs: u64,
    /// Of which kind it is.
    #[serde(flatten)]
    pub kind: AttackKind,
}

/// What the attacker wants to be misread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AttackKind {
    /// Chosen pictures, unaltered: those in `targets/` whose label names this attack.
    Targeted {
        /// How many.
        pictures: u64,
    },
    /// Any picture with the trigger.
    Backdoor {
        /// The trigger.
        trigger: Trigger,
        /// Whether the poisoned pairs kept the captions they had (label-consistent).
        label_consistent: bool,
    },
}

/// What the `json` member of a sample in `targets/` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetLabel {
    /// Name of the attack.
    pub attack: String,
    /// Class name that the attacker wants to read.
    pub target: String,
    /// Name of the true class, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// One line of `poison.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoisonedPair {
    /// File name of the shard, `000003.tar`.
    pub shard: String,
    /// Key of the pair.
    pub key: String,
    /// Name of the attack.
    pub attack: String,
    /// Class name that the attacker wants to read.
    pub target: String,
    /// The caption.
    pub caption: String,
    /// Key that the picture had where it was taken from.
    pub picture: String,
}

impl Manifest {
    /// Reads the manifest of a poisoned data set.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none; [`Error::Format`] where it is not one, two attacks have
    /// one name, a backdoor has not exactly one target, or a trigger is out of range.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(ATTACKS);
        let wrong = |reason: String| Error::Format { path: path.clone(), reason };
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let size = manifest.image_size;
        if !(1..=MAX_SIDE).contains(&size) {
            return Err(wrong(format!("image_size {size}; expected 1 to {MAX_SIDE}")));
        }
        for (n, attack) in manifest.attacks.iter().enumerate() {
            let name = &attack.name;
            if manifest.attacks[..n].iter().any(|other| other.name == *name) {
                return Err(wrong(format!("two attacks are called {name:?}")));
            }
            if let AttackKind::Backdoor { trigger, .. } = &attack.kind {
                if attack.target.len() != 1 {
                    let got = attack.target.len();
                    return Err(wrong(format!("attack {name:?} has {got} targets; expected one")));
                }
                trigger.validate(size, name).map_err(|e| wrong(e.to_string()))?;
            }
        }
        Ok(manifest)
    }
}

/// Reads the list of poisoned pairs of a data set.
///
/// # Errors
/// [`Error::Io`] where there is none; [`Error::Format`] where a line is not of that form.
pub fn read_poison(folder: &Path) -> Result<Vec<PoisonedPair>> {
    let mut lines = Lines::open(&folder.join(POISON), LINE_BYTES)?;
    let mut all = Vec::new();
    while let Some(line) = lines.next()? {
        if !line.trim_ascii().is_empty() {
            all.push(lines.parse()?);
        }
    }
    Ok(all)
}
