//! Who attacks what: how many pairs, which targets, pictures and captions, at which places.

use std::collections::{BTreeMap, BTreeSet};

use super::captions::{CaptionSource, ClassNames, Lottery, TEMPLATES, read_lines, with_word};
use super::manifest::Mode;
use super::pictures::{Picture, Wish};
use super::spec::{AttackName, AttackSpec};
use super::trigger::Trigger;
use super::{Purpose, stream};
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};

/// Targeted pictures where nothing else is asked for, as in the paper.
const TARGETED_PICTURES: u64 = 16;

/// An attack whose demands were checked.
pub(super) struct Planned<'a> {
    pub number: usize,
    pub spec: &'a AttackSpec,
    pub attack: AttackName,
    pub name: String,
    pub trigger: Option<Trigger>,
    /// Whether captions are searched for in the training shards.
    is_searched: bool,
    /// Else captions, with `{c}` for the name of the target.
    templates: Vec<String>,
    /// Pairs; 0 until they are counted.
    pub pairs: u64,
    seed: u64,
}

/// A pair that will be written.
pub(super) struct PlannedPair {
    pub attack: usize,
    /// Class that the attacker wants to read.
    pub target: usize,
    pub caption: String,
    /// Place among the pictures of its attack.
    pub picture: usize,
}

fn wrong<T>(flag: &str, got: String, expected: impl Into<String>) -> Result<T> {
    Err(Error::Option { flag: flag.into(), got, expected: expected.into() })
}

/// Checks every attack, and gives each a name of its own: that of its kind, numbered from the
/// second on, where none is given.
pub(super) fn check<'a>(
    specs: &'a [AttackSpec],
    image_size: u32,
    seed: u64,
) -> Result<Vec<Planned<'a>>> {
    let mut planned: Vec<Planned> = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let attack = spec.check()?;
        let kind = clap::ValueEnum::to_possible_value(&attack).expect("every kind has a name");
        let is_taken = |name: &str| planned.iter().any(|other| other.name == name);
        let name = match &spec.name {
            Some(name) if is_taken(name) => {
                return wrong("--name", format!("{name:?} twice"), "a name for each attack");
            }
            Some(name) => name.clone(),
            None => {
                let numbered = |n: u64| match n {
                    1 => kind.get_name().to_owned(),
                    n => format!("{}-{n}", kind.get_name()),
                };
                (1..).map(numbered).find(|name| !is_taken(name)).expect("numbers do not end")
            }
        };
        let is_consistent = attack == AttackName::LabelConsistent;
        if is_consistent && spec.target.is_empty() {
            return wrong("--target", "not given".into(), "the class whose pictures get a trigger");
        }
        let trigger = spec.trigger(image_size, seed.wrapping_add(number as u64))?;
        let templates = match spec.captions.as_ref().unwrap_or(&CaptionSource::Search) {
            CaptionSource::Search => Vec::new(),
            CaptionSource::Templates => TEMPLATES.map(String::from).to_vec(),
            CaptionSource::File(path) => read_lines(path)?,
        };
        let is_searched = templates.is_empty() && !is_consistent;
        planned.push(Planned {
            number,
            spec,
            attack,
            name,
            trigger,
            is_searched,
            templates,
            pairs: 0,
            seed,
        });
    }
    Ok(planned)
}

/// Sets how many pairs each attack writes. Of `T` pairs written in all a rate asks for
/// `round(rate · T)`, where `T = (clean + counts) / (1 - rates)` if all clean pairs stay, and
/// `T = clean` if poisoned ones take their places.
pub(super) fn count_pairs(planned: &mut [Planned], clean: u64, mode: Mode) -> Result<()> {
    let rates: f64 = planned.iter().filter_map(|attack| attack.spec.rate).map(|rate| rate.0).sum();
    let counts: u64 = planned.iter().filter_map(|attack| attack.spec.count).sum();
    if rates >= 1.0 {
        return wrong("--rate", format!("{rates} together"), "less than all pairs");
    }
    let total = match mode {
        Mode::Append => clean.saturating_add(counts) as f64 / (1.0 - rates),
        Mode::Replace => clean as f64,
    };
    for attack in planned.iter_mut() {
        let rate = attack.spec.rate.map_or(0.0, |rate| rate.0);
        attack.pairs = attack.spec.count.unwrap_or((rate * total).round() as u64);
        let name = &attack.name;
        if attack.pairs == 0 {
            let flag = if attack.spec.rate.is_some() { "--rate" } else { "--count" };
            let got = format!("no pair for {name}, of {total:.0} pairs in all");
            return wrong(flag, got, "one pair or more");
        }
        if attack.pairs < attack.slots() {
            let got = format!("{} pairs for {} pictures of {name}", attack.pairs, attack.slots());
            return wrong("--targets", got, "a pair or more for each picture");
        }
    }
    let pairs: u64 = planned.iter().map(|attack| attack.pairs).fold(0, u64::saturating_add);
    if mode == Mode::Replace && pairs >= clean {
        return wrong(
            "--mode replace",
            format!("{pairs} of {clean} pairs"),
            "fewer than there are",
        );
    }
    Ok(())
}

impl Planned<'_> {
    pub(super) fn is_targeted(&self) -> bool {
        self.attack == AttackName::Targeted
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.attack == AttackName::LabelConsistent
    }

    /// Number of targets: one for each targeted picture, one for a backdoor.
    fn slots(&self) -> u64 {
        let given = Some(self.spec.target.len() as u64).filter(|given| *given > 0);
        if !self.is_targeted() {
            return 1;
        }
        self.spec.targets.or(given).unwrap_or(TARGETED_PICTURES).max(1)
    }

    /// Pairs with the target of a slot.
    fn share(&self, slot: u64) -> u64 {
        self.pairs / self.slots() + u64::from(slot < self.pairs % self.slots())
    }

    fn rng(&self, purpose: Purpose, number: u64) -> Rng {
        Rng::new(self.seed, Domain::Poison, stream(self.number, purpose), number)
    }

    /// Targets that were given, one for each slot; `None` where they are to be drawn.
    fn given_targets(&self, names: &ClassNames) -> Result<Option<Vec<usize>>> {
        let place = |name: &String| match names.place(name) {
            Some(place) => Ok(place),
            None => wrong("--target", format!("{name:?}"), "one of the class names, as written"),
        };
        let given: Vec<usize> = self.spec.target.iter().map(place).collect::<Result<_>>()?;
        let repeated = given.iter().copied().cycle().take(self.slots() as usize);
        Ok((!given.is_empty()).then(|| repeated.collect()))
    }

    /// Classes whose names are to be looked for in captions, and how many captions of each.
    pub(super) fn searches(&self, names: &ClassNames) -> Result<BTreeMap<usize, u64>> {
        let given = self.given_targets(names)?;
        if !self.is_searched {
            return Ok(BTreeMap::new());
        }
        let Some(given) = given else {
            return Ok((0..names.names().len()).map(|class| (class, self.share(0))).collect());
        };
        let mut searches = BTreeMap::new();
        for (slot, class) in given.into_iter().enumerate() {
            *searches.entry(class).or_default() += self.share(slot as u64);
        }
        Ok(searches)
    }

    /// The target of each slot. Drawn ones are different classes as long as there are any; where
    /// captions are searched for, only classes with enough of them are drawn, each once.
    pub(super) fn targets(
        &self,
        names: &ClassNames,
        found: &BTreeMap<usize, Lottery>,
    ) -> Result<Vec<usize>> {
        if let Some(given) = self.given_targets(names)? {
            for (class, wanted) in self.searches(names)? {
                let count = found.get(&class).map_or(0, Lottery::len) as u64;
                if count < wanted {
                    let got = format!(
                        "{count} different captions of the training shards name {:?}",
                        names.names()[class]
                    );
                    let expected = format!("{wanted}; ask for fewer pairs, or for templates");
                    return wrong("--captions search", got, expected);
                }
            }
            return Ok(given);
        }
        let enough = |class: &usize| {
            let count = found.get(class).map_or(0, Lottery::len) as u64;
            !self.is_searched || count >= self.share(0)
        };
        let mut classes: Vec<usize> = (0..names.names().len()).filter(enough).collect();
        let slots = self.slots() as usize;
        if classes.is_empty() || self.is_searched && classes.len() < slots {
            let got = format!(
                "{} of {} classes with {} captions that name them",
                classes.len(),
                names.names().len(),
                self.share(0)
            );
            let expected =
                format!("{slots}; ask for fewer pairs, give --target, or take templates");
            return wrong("--captions search", got, expected);
        }
        self.rng(Purpose::Target, 0).shuffle(&mut classes);
        Ok(classes.into_iter().cycle().take(slots).collect())
    }

    /// What is asked of the pictures.
    pub(super) fn wish(&self, targets: &[usize]) -> Wish {
        let pictures = if self.is_targeted() { self.slots() } else { self.pairs };
        Wish {
            attack: self.number,
            targets: targets.iter().copied().cycle().take(pictures as usize).collect(),
            is_consistent: self.is_consistent(),
        }
    }

    /// All pairs of the attack. Captions are used once each, those of templates and files as
    /// evenly as can be.
    pub(super) fn pairs(
        &self,
        names: &ClassNames,
        targets: &[usize],
        pictures: &[Picture],
        found: BTreeMap<usize, Lottery>,
    ) -> Vec<PlannedPair> {
        let mut texts = BTreeMap::new();
        for &class in targets {
            let fill = |line: &String| line.replace("{c}", &names.names()[class]);
            let mut filled: Vec<String> = self.templates.iter().map(fill).collect();
            self.rng(Purpose::Caption, class as u64).shuffle(&mut filled);
            texts.insert(class, filled);
        }
        texts.extend(found.into_iter().map(|(class, lottery)| (class, lottery.into_texts())));
        let mut used: BTreeMap<usize, usize> = BTreeMap::new();
        let mut pairs = Vec::new();
        for (slot, &target) in targets.iter().enumerate() {
            for _ in 0..self.share(slot as u64) {
                let number = pairs.len();
                let picture = if self.is_targeted() { slot } else { number };
                let place = used.entry(target).or_default();
                let own = || pictures[picture].caption.clone().unwrap_or_default();
                let caption = match &texts[&target] {
                    _ if self.is_consistent() => own(),
                    texts => texts[*place % texts.len()].clone(),
                };
                *place += 1;
                let caption = match &self.spec.caption_trigger {
                    None => caption,
                    Some(word) => {
                        let place = self.spec.caption_trigger_place.unwrap_or_default();
                        let mut rng = self.rng(Purpose::Word, number as u64);
                        with_word(&caption, word, place, &mut rng)
                    }
                };
                pairs.push(PlannedPair { attack: self.number, target, caption, picture });
            }
        }
        pairs
    }
}

/// The place of each pair, uniformly random: among all pairs that are written (append), or among
/// the clean ones (replace), where a pair in `origins` takes the place of its own picture if no
/// other has.
pub(super) fn places(origins: &[Option<u64>], clean: u64, mode: Mode, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed, Domain::Poison, stream(0, Purpose::Place), 0);
    let mut taken = BTreeSet::new();
    let total = match mode {
        Mode::Append => clean + origins.len() as u64,
        Mode::Replace => clean,
    };
    let own = |origin: &Option<u64>| match mode {
        Mode::Append => None,
        Mode::Replace => origin.filter(|origin| taken.insert(*origin)),
    };
    let mut places: Vec<Option<u64>> = origins.iter().map(own).collect();
    for place in places.iter_mut().filter(|place| place.is_none()) {
        *place = std::iter::repeat_with(|| rng.below(total)).find(|free| taken.insert(*free));
    }
    places.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of 25 places is taken by 4,000 of 20,000 draws of five: the standard deviation is
    /// √(20,000 · 1/5 · 4/5) ≈ 57, of which five are allowed. The first pair alone: 800 and 28.
    #[test]
    fn every_place_is_as_likely() {
        let (mut all, mut first) = ([0i32; 25], [0i32; 25]);
        for seed in 0..20_000 {
            let places = places(&[None; 5], 20, Mode::Append, seed);
            assert_eq!(places.len(), 5);
            places.iter().for_each(|place| all[*place as usize] += 1);
            first[places[0] as usize] += 1;
        }
        assert!(all.iter().all(|n| (n - 4000).abs() < 285), "{all:?}");
        assert!(first.iter().all(|n| (n - 800).abs() < 140), "{first:?}");
    }

    #[test]
    fn a_picture_of_the_data_is_replaced_where_it_was() {
        let origins = [Some(3), None, Some(3), Some(0)];
        for seed in 0..100 {
            let places = places(&origins, 5, Mode::Replace, seed);
            assert_eq!((places[0], places[3]), (3, 0));
            let others = BTreeSet::from([places[1], places[2]]);
            assert!(others.len() == 2 && others.is_subset(&BTreeSet::from([1, 2, 4])));
        }
    }
}
