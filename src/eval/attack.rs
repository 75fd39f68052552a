//! How well attacks on the training data worked.
//!
//! - A backdoor's **ASR**, attack success rate: share of the stamped test pictures of *other*
//!   classes that the model puts into the attacker's (BackdoorBench's; CleanCLIP counts the
//!   attacker's class too, which is told beside it). **RA**, recovered accuracy: share of the same
//!   pictures put into their true class all the same. A model that confuses classes puts some of
//!   these pictures into the attacker's class without any trigger; that share is told, too, as only
//!   what ASR has above it is the attack's.
//! - A targeted attack's **PSR**, poison success rate: share of the chosen pictures for which the
//!   attacker's class is among the k nearest; the margin by which it wins, and how many are put
//!   into their true class.
//!
//! What to stamp, on what and for which class is read from the data set's own `attacks.json`
//! ([`crate::attack::manifest`]); nothing is said twice.

use super::accuracy::{Share, rank};
use super::classifier::Classifier;
use super::pictures::Pictures;
use super::prompts::Prompts;
use crate::attack::manifest::{ATTACKS, Attack, AttackKind, Manifest, TARGETS, TargetLabel};
use crate::attack::trigger::{self, Trigger};
use crate::backend::Backend;
use crate::data::count::count_pairs;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::picture::PictureEdit;
use crate::data::raw::{RawFound, RawReader};
use crate::data::shard::ShardReader;
use crate::encode::Embedder;
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The `k` of a targeted attack's success at k.
pub const SUCCESS_AT: [usize; 3] = [1, 3, 5];
/// `epoch` of the random stream of a stamp: evaluation, not poisoning.
const EVALUATING: u64 = 1;

/// Counts of a backdoor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backdoor {
    /// Of other classes, put into the attacker's.
    pub asr: Share,
    /// Of all classes, put into the attacker's.
    pub with_target_class: Share,
    /// Of other classes, put into their own.
    pub recovered: Share,
    /// Of other classes, put into the attacker's although there is no trigger on them.
    pub without_trigger: Share,
}

impl Backdoor {
    /// Counts the same picture as it is without the trigger.
    pub fn add_clean(&mut self, scores: &[f32], label: u32, target: usize) {
        if label as usize != target {
            self.without_trigger.add(rank(scores, target) < 1);
        }
    }

    /// Counts a stamped picture by its scores for each class; `target` is the attacker's class.
    pub fn add(&mut self, scores: &[f32], label: u32, target: usize) {
        let hit = rank(scores, target) < 1;
        self.with_target_class.add(hit);
        if label as usize != target {
            self.asr.add(hit);
            self.recovered.add(rank(scores, label as usize) < 1);
        }
    }
}

/// Counts of a targeted attack.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targeted {
    /// The attacker's class among the k nearest, for the k of [`SUCCESS_AT`].
    pub success: [Share; SUCCESS_AT.len()],
    /// Of those whose true class is known, put into it.
    pub recovered: Share,
    /// Sum of the margins: cosine to the attacker's class less that to the best other one.
    margins: f64,
}

impl Targeted {
    /// Counts a chosen picture by its cosines to each class.
    pub fn add(&mut self, cosines: &[f32], target: usize, class: Option<usize>) {
        let rank_of_target = rank(cosines, target);
        self.success
            .iter_mut()
            .zip(SUCCESS_AT)
            .for_each(|(share, k)| share.add(rank_of_target < k));
        if let Some(class) = class {
            self.recovered.add(rank(cosines, class) < 1);
        }
        let others = cosines.iter().enumerate().filter(|&(other, _)| other != target);
        let best = others.fold(f32::NEG_INFINITY, |best, (_, &cosine)| best.max(cosine));
        self.margins += f64::from(cosines[target] - best);
    }

    /// Mean margin; above 0 the attacker's class wins.
    pub fn margin(&self) -> f64 {
        self.margins / self.success[0].of as f64
    }
}

/// What became of an attack.
#[derive(Clone, Debug, PartialEq)]
pub enum Success {
    /// Any picture with a trigger.
    Backdoor(Backdoor),
    /// Chosen pictures.
    Targeted(Targeted),
}

/// What BackdoorBench compares two models by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Accuracy on clean pictures.
    pub clean: f64,
    /// Attack success rate.
    pub asr: f64,
    /// Recovered accuracy.
    pub recovered: f64,
}

impl Shares {
    /// Defence effectiveness rate: ½ is no effect, 1 the best. `undefended` is of the model that
    /// was trained on the same data without the defence.
    ///
    /// Source: Wu et al., "BackdoorBench" (2022; the extended version).
    pub fn der(&self, undefended: &Shares) -> f64 {
        let (asr, clean) = (undefended.asr - self.asr, undefended.clean - self.clean);
        (asr.max(0.0) - clean.max(0.0) + 1.0) / 2.0
    }

    /// Robust improvement rate: as [`Shares::der`], by recovered accuracy.
    pub fn rir(&self, undefended: &Shares) -> f64 {
        let recovered = self.recovered - undefended.recovered;
        (recovered.max(0.0) - (undefended.clean - self.clean).max(0.0) + 1.0) / 2.0
    }
}

/// A chosen picture by its shard and key.
type TargetKey = (Arc<str>, String);

/// A chosen picture's attack, the attacker's class and the true one, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Chosen {
    attack: usize,
    target: usize,
    class: Option<usize>,
}

/// Chosen pictures, and what each is.
type Targets = (Pictures, HashMap<TargetKey, Chosen>);

/// The attacks on a data set, ready to be tried on a model.
pub struct Attacks {
    names: Vec<String>,
    /// Number of the attack, attacker's class, stamped test pictures.
    backdoors: Vec<(usize, usize, Pictures)>,
    /// The same pictures without a trigger.
    clean: Pictures,
    targets: Option<Targets>,
}

impl Attacks {
    /// Opens the attacks of `manifest`, a poisoned data set's `attacks.json` or its folder.
    /// Triggers are stamped on the `test` pictures of `folder`, an evaluation folder with classes
    /// `prompts`: on all of them, or on `sample`, chosen once and for all.
    ///
    /// # Errors
    /// Those of [`Manifest::read`]; [`Error::Format`] where an attacker's class is not among the
    /// classes, or the chosen pictures do not say what they are; those of [`Pictures::open`].
    pub fn open(
        manifest: &Path,
        (folder, prompts): (&Path, &Prompts),
        sample: Option<u64>,
        base: &LoaderConfig,
    ) -> Result<Self> {
        let home = home_of(manifest)?;
        let read = Manifest::read(home)?;
        let path = home.join(ATTACKS);
        let test = folder.join("test").to_string_lossy().into_owned();
        let classes = Some(prompts.classes.len());
        let mut base = LoaderConfig { only: None, edit: None, ..base.clone() };
        let mut backdoors = Vec::new();
        let targets = open_targets(home, &read.attacks, prompts, &base)?;
        if let Some(sample) = sample {
            let pictures = Pictures::open(test.clone(), classes, base.clone())?;
            base.only = Some(Arc::new(choose(pictures.loader(), sample)?));
        }
        let side = read.image_size;
        let edit = PictureEdit::new(move |picture, _| *picture = trigger::square(picture, side));
        let clean = LoaderConfig { edit: Some(edit), ..base.clone() };
        let clean = Pictures::open(test.clone(), classes, clean)?;
        for (number, attack) in read.attacks.iter().enumerate() {
            if let AttackKind::Backdoor { trigger, .. } = &attack.kind {
                let target = class(prompts, &attack.target[0], &path)?;
                let edit = Some(stamp(trigger, side, read.seed));
                let base = LoaderConfig { edit, ..base.clone() };
                backdoors.push((number, target, Pictures::open(test.clone(), classes, base)?));
            }
        }
        let names = read.attacks.into_iter().map(|attack| attack.name).collect();
        Ok(Self { names, backdoors, clean, targets })
    }

    /// Tries every attack: its name, and what became of it.
    ///
    /// # Errors
    /// Those of [`Pictures::each`].
    pub fn evaluate<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        classifier: &Classifier,
    ) -> Result<Vec<(String, Success)>> {
        let classes = classifier.classes();
        let empty = |_| Success::Targeted(Targeted::default());
        let mut results: Vec<Success> = (0..self.names.len()).map(empty).collect();
        for (number, backdoor) in self.backdoors(embedder, classifier)? {
            results[number] = Success::Backdoor(backdoor);
        }
        if let Some((pictures, chosen)) = &self.targets {
            pictures.each(embedder, |features, batch| {
                let cosines = classifier.cosines(features);
                for (row, id) in cosines.chunks_exact(classes).zip(&batch.samples) {
                    let known = chosen.get(&(Arc::clone(&id.shard), id.key.clone()));
                    if let Some(Chosen { attack, target, class }) = known
                        && let Success::Targeted(targeted) = &mut results[*attack]
                    {
                        targeted.add(row, *target, *class);
                    }
                }
                Ok(())
            })?;
        }
        Ok(self.names.iter().cloned().zip(results).collect())
    }

    /// Tries the backdoors: the number of each, and what became of it.
    fn backdoors<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        classifier: &Classifier,
    ) -> Result<Vec<(usize, Backdoor)>> {
        let classes = classifier.classes();
        let mut found = vec![Backdoor::default(); self.backdoors.len()];
        if !found.is_empty() {
            self.clean.each(embedder, |features, batch| {
                let cosines = classifier.cosines(features);
                for (row, &label) in cosines.chunks_exact(classes).zip(&batch.labels) {
                    for (backdoor, (_, target, _)) in found.iter_mut().zip(&self.backdoors) {
                        backdoor.add_clean(row, label, *target);
                    }
                }
                Ok(())
            })?;
        }
        for (backdoor, (_, target, pictures)) in found.iter_mut().zip(&self.backdoors) {
            pictures.each(embedder, |features, batch| {
                let cosines = classifier.cosines(features);
                for (row, &label) in cosines.chunks_exact(classes).zip(&batch.labels) {
                    backdoor.add(row, label, *target);
                }
                Ok(())
            })?;
        }
        Ok(self.backdoors.iter().map(|(number, ..)| *number).zip(found).collect())
    }
}

/// The folder of a poisoned data set, named by itself or by its manifest.
fn home_of(manifest: &Path) -> Result<&Path> {
    if manifest.is_dir() {
        return Ok(manifest);
    }
    let is_it = manifest.file_name().is_some_and(|name| name == ATTACKS);
    manifest.parent().filter(|_| is_it).ok_or_else(|| Error::Option {
        flag: "--attacks".into(),
        got: manifest.display().to_string(),
        expected: format!("{ATTACKS} of a poisoned data set, or its directory"),
    })
}

/// The number of a class that an attack names.
fn class(prompts: &Prompts, name: &str, path: &Path) -> Result<usize> {
    prompts.class(name).ok_or_else(|| Error::Format {
        path: path.to_owned(),
        reason: format!(
            "the attacker's class {name:?} is not in the classnames.txt of the evaluation folder"
        ),
    })
}

/// Stamps a picture as poisoned ones were, brought to the same size first.
fn stamp(trigger: &Trigger, side: u32, seed: u64) -> PictureEdit {
    let trigger = trigger.clone();
    PictureEdit::new(move |picture, id| {
        *picture = trigger::square(picture, side);
        trigger.apply(picture, &mut Rng::new(seed, Domain::Stamp, EVALUATING, id.stream()));
    })
}

/// `sample` pairs of those that a loader reads, or all where there are not as many. The choice
/// depends on the shards alone, not on a run's seed: every model is tried on the same.
fn choose(loader: &Loader, sample: u64) -> Result<HashSet<u64>> {
    let config = loader.config();
    let counts = count_pairs(loader.shards(), &config.fields, &config.shard_limits)?;
    let of_shard =
        |(shard, pairs): (usize, u64)| (0..pairs).map(move |index| ((shard as u64) << 32) | index);
    let counts = counts.shards.iter().map(|shard| shard.pairs).enumerate();
    let mut all: Vec<u64> = counts.flat_map(of_shard).collect();
    Rng::new(0, Domain::Evaluation, 1, 0).shuffle(&mut all);
    all.truncate(usize::try_from(sample).unwrap_or(usize::MAX));
    Ok(all.into_iter().collect())
}

/// The chosen pictures of all targeted attacks.
fn open_targets(
    home: &Path,
    attacks: &[Attack],
    prompts: &Prompts,
    base: &LoaderConfig,
) -> Result<Option<Targets>> {
    if !attacks.iter().any(|attack| matches!(attack.kind, AttackKind::Targeted { .. })) {
        return Ok(None);
    }
    let folder: PathBuf = home.join(TARGETS);
    let pictures = Pictures::open(folder.to_string_lossy().into_owned(), None, base.clone())?;
    let mut chosen = HashMap::new();
    for shard in pictures.loader().shards() {
        let path = PathBuf::from(shard.name.as_ref());
        let wrong = |reason: String| Error::Format { path: path.clone(), reason };
        let reader = ShardReader::open(shard, &base.shard_limits, Arc::default());
        let reader = reader.map_err(|fault| wrong(fault.detail))?;
        for found in RawReader::new(reader, base.shard_limits.skip_bytes) {
            let sample = match found {
                RawFound::Sample(sample) => sample,
                RawFound::Skipped(_, _, fault) | RawFound::Damage(_, fault) => {
                    return Err(wrong(fault.detail));
                }
            };
            let wrong = |reason: String| wrong(format!("{}: {reason}", sample.key));
            let json = sample.members.iter().find(|(extension, _)| extension == "json");
            let (_, json) = json.ok_or_else(|| wrong("no json member".into()))?;
            let label: TargetLabel =
                serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
            let is_it = |attack: &Attack| {
                attack.name == label.attack && matches!(attack.kind, AttackKind::Targeted { .. })
            };
            let attack = attacks.iter().position(is_it).ok_or_else(|| {
                wrong(format!("{:?} is no targeted attack of {ATTACKS}", label.attack))
            })?;
            let target = class(prompts, &label.target, &path)?;
            let class = label.class.as_deref().and_then(|name| prompts.class(name));
            let key = (Arc::clone(&shard.name), sample.key.clone());
            chosen.insert(key, Chosen { attack, target, class });
        }
    }
    Ok(Some((pictures, chosen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(hits: u64, of: u64) -> Share {
        Share { hits, of }
    }

    /// Four stamped pictures of three classes; the attacker wants class 2.
    #[test]
    fn a_backdoor_by_hand() {
        let mut backdoor = Backdoor::default();
        for (scores, label) in
            [([0.1, 0.2, 0.9], 0), ([0.8, 0.2, 0.1], 0), ([0.1, 0.2, 0.9], 2), ([0.5, 0.1, 0.5], 1)]
        {
            backdoor.add(&scores, label, 2);
        }
        let expected = Backdoor {
            asr: share(1, 3),
            with_target_class: share(2, 4),
            recovered: share(1, 3),
            without_trigger: share(1, 2),
        };
        for (scores, label) in [([0.1, 0.2, 0.9], 1), ([0.1, 0.2, 0.9], 2), ([0.3, 0.2, 0.1], 1)] {
            backdoor.add_clean(&scores, label, 2);
        }
        assert_eq!(backdoor, expected);
        backdoor.add(&[f32::NAN; 3], 0, 2);
        assert_eq!((backdoor.asr, backdoor.recovered), (share(1, 4), share(1, 4)));
    }

    #[test]
    fn a_targeted_attack_by_hand() {
        let mut targeted = Targeted::default();
        targeted.add(&[0.25, 0.5, 0.125, 0.0], 1, Some(0));
        targeted.add(&[0.5, 0.125, 0.25, 0.375], 1, Some(0));
        targeted.add(&[0.5, 0.25, 0.0, 0.375], 1, None);
        assert_eq!(targeted.success, [share(1, 3), share(2, 3), share(3, 3)]);
        assert_eq!(targeted.recovered, share(1, 2));
        // 0.5 - 0.25, 0.125 - 0.5, 0.25 - 0.5: exact.
        assert_eq!(targeted.margin(), (0.25 - 0.375 - 0.25) / 3.0);
    }

    /// A defence that takes 75 points of success for 25 of accuracy.
    #[test]
    fn defence_rates_by_hand() {
        let undefended = Shares { clean: 0.75, asr: 1.0, recovered: 0.0 };
        let defended = Shares { clean: 0.5, asr: 0.25, recovered: 0.5 };
        assert_eq!(defended.der(&undefended), (0.75 - 0.25 + 1.0) / 2.0);
        assert_eq!(defended.rir(&undefended), (0.5 - 0.25 + 1.0) / 2.0);
        // Worse success and better accuracy both count as no change.
        assert_eq!(undefended.der(&defended), 0.5);
        assert_eq!(undefended.rir(&defended), 0.5);
    }
}
