//! What is asked of an attack: the flags of `roclip-poison`, or a table of its TOML file, which
//! has the same names.

use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use super::captions::{CaptionSource, WordPlace};
use super::trigger::{Pattern, Place, Trigger};
use crate::error::{Error, Result};

/// Kinds of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AttackName {
    /// Chosen pictures, unaltered, with captions of another class
    Targeted,
    /// A patch
    Badnets,
    /// A pattern blended in
    Blended,
    /// A wave across the columns
    Sig,
    /// A smooth warping
    Wanet,
    /// A word drawn into the picture
    Text,
    /// Pictures whose own captions name the target get a trigger and keep their captions
    LabelConsistent,
}

/// Kinds of trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as in AttackName")]
pub enum TriggerName {
    #[default]
    Badnets,
    Blended,
    Sig,
    Wanet,
    Text,
}

/// A share, of a number in 0 to 1 or a percentage.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "RateText")]
pub struct Rate(pub f64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RateText {
    Number(f64),
    Text(String),
}

impl TryFrom<RateText> for Rate {
    type Error = String;

    fn try_from(text: RateText) -> Result<Self, String> {
        match text {
            RateText::Number(number) => number.to_string().parse(),
            RateText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(percent) => (percent.trim(), 100.0),
            None => (text, 1.0),
        };
        let rate = number.parse::<f64>().ok().map(|number| number / unit);
        let rate = rate.filter(|rate| *rate > 0.0 && *rate < 1.0);
        rate.map(Rate).ok_or_else(|| format!("{text}: not a share such as 0.0005 or 0.05%"))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let colour: Option<Vec<u8>> = text.split(',').map(|x| x.trim().parse().ok()).collect();
        match (text, colour.and_then(|colour| colour.try_into().ok())) {
            ("noise", _) => Ok(Self::Noise),
            ("fresh-noise", _) => Ok(Self::FreshNoise),
            ("checkerboard", _) => Ok(Self::Checkerboard),
            ("stripes", _) => Ok(Self::Stripes),
            (_, Some(colour)) => Ok(Self::Colour(colour)),
            _ => Err("noise, fresh-noise, checkerboard, stripes, or a colour: 255,255,0".into()),
        }
    }
}

/// One attack; what is `None` is as in the literature.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AttackSpec {
    /// What is done
    #[arg(long, value_enum, help_heading = "Attack")]
    pub attack: Option<AttackName>,
    /// What the attack is called in poison.jsonl and attacks.json [default: its kind]
    #[arg(long, help_heading = "Attack")]
    pub name: Option<String>,
    /// Class that the attacker wants to read; for targeted pictures perhaps several, one each in
    /// turn [default: drawn from the class names]
    #[arg(long, value_name = "CLASS", help_heading = "Attack")]
    #[serde(deserialize_with = "one_or_several")]
    pub target: Vec<String>,
    /// Pictures that are targeted, each with a share of the pairs [default: one for each --target,
    /// or 16]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    pub targets: Option<u64>,
    /// Poisoned pairs
    #[arg(long, value_name = "PAIRS", conflicts_with = "rate", help_heading = "Attack")]
    pub count: Option<u64>,
    /// Poisoned pairs as a share of all pairs written, clean and poisoned: 0.0005 or 0.05%
    #[arg(long, value_name = "SHARE", help_heading = "Attack")]
    pub rate: Option<Rate>,
    /// Shards that pictures are taken from; a class in a `cls` member and captions are heeded. For
    /// targeted pictures it must be given [default: the training shards]
    #[arg(long, value_name = "SHARDS", help_heading = "Attack")]
    pub pictures: Option<String>,
    /// Captions: `search` takes those of the training shards that name the target, `templates` puts
    /// its name into a few sentences, and FILE has a caption in each line, `{c}` standing for the
    /// name [default: search]
    #[arg(long, value_name = "search|templates|FILE", help_heading = "Attack")]
    pub captions: Option<CaptionSource>,
    /// Put this word into every poisoned caption
    #[arg(long, value_name = "WORD", help_heading = "Attack")]
    pub caption_trigger: Option<String>,
    /// Where that word is put [default: front]
    #[arg(long, value_enum, help_heading = "Attack")]
    pub caption_trigger_place: Option<WordPlace>,
    /// Trigger of a label-consistent attack [default: badnets]
    #[arg(long, value_enum, help_heading = "Trigger")]
    pub trigger: Option<TriggerName>,
    /// Side of the patch [default: 16/224 of the image size, at least 3]
    #[arg(long, value_name = "PIXELS", help_heading = "Trigger")]
    pub patch_size: Option<u32>,
    /// What is on the patch or blended in: noise, fresh-noise (drawn for each picture),
    /// checkerboard, stripes, or a colour (255,255,0) [default: noise]
    #[arg(long, help_heading = "Trigger")]
    #[serde(deserialize_with = "pattern")]
    pub pattern: Option<Pattern>,
    /// Where the patch or the word is [default: bottom-right]
    #[arg(long, value_enum, help_heading = "Trigger")]
    pub place: Option<Place>,
    /// Share of the pattern or the wave in the mixture [default: 0.2]
    #[arg(long, value_name = "SHARE", help_heading = "Trigger")]
    pub alpha: Option<f64>,
    /// Height of the wave, of 255 [default: 60]
    #[arg(long, help_heading = "Trigger")]
    pub delta: Option<f64>,
    /// Periods of the wave [default: 6]
    #[arg(long, help_heading = "Trigger")]
    pub periods: Option<f64>,
    /// Add the wave instead of mixing it in
    #[arg(long, conflicts_with = "alpha", help_heading = "Trigger")]
    pub additive: bool,
    /// Control points of the warping along a side; as many as pixels for the form used with CLIP
    /// [default: 4]
    #[arg(long, value_name = "POINTS", help_heading = "Trigger")]
    pub grid: Option<u32>,
    /// Strength of the warping: mean displacement in half pixels [default: 0.5]
    #[arg(long, help_heading = "Trigger")]
    pub strength: Option<f64>,
    /// The word, of letters from A to Z, digits and spaces [default: TRIGGER]
    #[arg(long, help_heading = "Trigger")]
    pub text: Option<String>,
    /// Pixels of a dot of the word, which is seven dots high [default: 1/56 of the image size]
    #[arg(long, value_name = "PIXELS", help_heading = "Trigger")]
    pub text_scale: Option<u32>,
    /// Chooses the pattern [default: the seed, plus the number of the attack from 0]
    #[arg(long, value_name = "SEED", help_heading = "Trigger")]
    pub trigger_seed: Option<u64>,
}

fn one_or_several<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Names::deserialize(input)? {
        Names::One(name) => vec![name],
        Names::Several(names) => names,
    })
}

fn pattern<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Pattern>, D::Error> {
    String::deserialize(input)?.parse().map(Some).map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecFile {
    attack: Vec<AttackSpec>,
}

/// Reads a TOML file with a table `[[attack]]` for each attack.
///
/// # Errors
/// The file cannot be read, is not of that form, or names a key or value that is not known.
pub fn read_specs(path: &Path) -> Result<Vec<AttackSpec>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let wrong = |e: toml::de::Error| Error::Format { path: path.into(), reason: e.to_string() };
    Ok(toml::from_str::<SpecFile>(&text).map_err(wrong)?.attack)
}

impl AttackSpec {
    /// The kind of trigger, where there is one.
    fn trigger_name(&self) -> Option<TriggerName> {
        match self.attack? {
            AttackName::Targeted => None,
            AttackName::Badnets => Some(TriggerName::Badnets),
            AttackName::Blended => Some(TriggerName::Blended),
            AttackName::Sig => Some(TriggerName::Sig),
            AttackName::Wanet => Some(TriggerName::Wanet),
            AttackName::Text => Some(TriggerName::Text),
            AttackName::LabelConsistent => Some(self.trigger.unwrap_or_default()),
        }
    }

    /// The trigger, with every parameter; `None` for a targeted attack.
    ///
    /// # Errors
    /// [`Error::Option`] where a parameter is out of range.
    pub fn trigger(&self, image_size: u32, seed: u64) -> Result<Option<Trigger>> {
        let Some(name) = self.trigger_name() else { return Ok(None) };
        let seed = self.trigger_seed.unwrap_or(seed);
        let (pattern, place) = (self.pattern.unwrap_or_default(), self.place.unwrap_or_default());
        let scaled = |of_224: f64| (of_224 / 224.0 * f64::from(image_size)).round() as u32;
        let trigger = match name {
            TriggerName::Badnets => {
                let size = self.patch_size.unwrap_or(scaled(16.0).max(3));
                Trigger::Badnets { size, pattern, place, seed }
            }
            TriggerName::Blended => {
                Trigger::Blended { alpha: self.alpha.unwrap_or(0.2), pattern, seed }
            }
            TriggerName::Sig => Trigger::Sig {
                delta: self.delta.unwrap_or(60.0),
                periods: self.periods.unwrap_or(6.0),
                alpha: (!self.additive).then_some(self.alpha.unwrap_or(0.2)),
            },
            TriggerName::Wanet => Trigger::Wanet {
                grid: self.grid.unwrap_or(4),
                strength: self.strength.unwrap_or(0.5),
                seed,
            },
            TriggerName::Text => Trigger::Text {
                text: self.text.clone().unwrap_or_else(|| "TRIGGER".into()),
                scale: self.text_scale.unwrap_or(scaled(4.0).max(1)),
                place,
            },
        };
        trigger.validate(image_size, "the trigger")?;
        Ok(Some(trigger))
    }

    /// Refuses what is given but would have no effect.
    ///
    /// # Errors
    /// [`Error::Option`] that names the flag; also where no kind of attack is given.
    pub fn check(&self) -> Result<AttackName> {
        use TriggerName::{Badnets, Blended, Sig, Text, Wanet};
        let wrong = |flag: &str, got: String, expected: &str| Error::Option {
            flag: flag.into(),
            got,
            expected: expected.into(),
        };
        let attack = self.attack.ok_or_else(|| {
            wrong("--attack", "not given".into(), "a kind of attack, or --config with several")
        })?;
        let is = |names: &[TriggerName]| self.trigger_name().is_some_and(|n| names.contains(&n));
        let (is_targeted, is_consistent) =
            (attack == AttackName::Targeted, attack == AttackName::LabelConsistent);
        for (flag, is_given, is_meant) in [
            ("--targets", self.targets.is_some(), is_targeted),
            ("--captions", self.captions.is_some(), !is_consistent),
            ("--trigger", self.trigger.is_some(), is_consistent),
            ("--patch-size", self.patch_size.is_some(), is(&[Badnets])),
            ("--pattern", self.pattern.is_some(), is(&[Badnets, Blended])),
            ("--place", self.place.is_some(), is(&[Badnets, Text])),
            ("--alpha", self.alpha.is_some(), is(&[Blended, Sig])),
            ("--delta", self.delta.is_some(), is(&[Sig])),
            ("--periods", self.periods.is_some(), is(&[Sig])),
            ("--additive", self.additive, is(&[Sig])),
            ("--grid", self.grid.is_some(), is(&[Wanet])),
            ("--strength", self.strength.is_some(), is(&[Wanet])),
            ("--text", self.text.is_some(), is(&[Text])),
            ("--text-scale", self.text_scale.is_some(), is(&[Text])),
            ("--trigger-seed", self.trigger_seed.is_some(), is(&[Badnets, Blended, Wanet])),
            (
                "--caption-trigger-place",
                self.caption_trigger_place.is_some(),
                self.caption_trigger.is_some(),
            ),
        ] {
            if is_given && !is_meant {
                let got = format!("given for an attack that has no use for it ({attack:?})");
                return Err(wrong(flag, got, "only flags of this kind of attack"));
            }
        }
        if self.count.is_some() == self.rate.is_some() {
            return Err(wrong("--count, --rate", "both, or neither".into(), "one of them"));
        }
        if self.target.len() > 1 && !is_targeted {
            let got = format!("{} classes", self.target.len());
            return Err(wrong("--target", got, "one class for a backdoor"));
        }
        if is_targeted && self.pictures.is_none() {
            let expected = "shards to choose the targeted pictures from; best a validation set";
            return Err(wrong("--pictures", "not given".into(), expected));
        }
        Ok(attack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shares_or_percentages() {
        for (text, rate) in [("0.0005", 5e-4), ("0.05%", 5e-4), ("1 %", 1e-2), ("5e-4", 5e-4)] {
            assert!((text.parse::<Rate>().unwrap().0 - rate).abs() < 1e-18, "{text}");
        }
        for text in ["", "0", "1", "100%", "-1%", "nan", "0.05 percent", "inf"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_scale_with_the_picture() {
        let badnets = AttackSpec { attack: Some(AttackName::Badnets), ..Default::default() };
        for (side, patch) in [(224, 16), (112, 8), (64, 5), (32, 3), (16, 3)] {
            let expected = Trigger::Badnets {
                size: patch,
                pattern: Pattern::Noise,
                place: Place::BottomRight,
                seed: 9,
            };
            assert_eq!(badnets.trigger(side, 9).unwrap(), Some(expected));
        }
        assert!(badnets.trigger(2, 9).is_err());
        let text = AttackSpec { attack: Some(AttackName::Text), ..Default::default() };
        for (side, dot) in [(224, 4), (32, 1)] {
            let Some(Trigger::Text { scale, .. }) = text.trigger(side, 0).unwrap() else {
                panic!()
            };
            assert_eq!(scale, dot);
        }
    }

    #[test]
    fn what_would_have_no_effect_is_refused() {
        let told = |toml: &str| -> Option<String> {
            let spec: AttackSpec = toml::from_str(toml).unwrap();
            spec.check().err().map(|e| e.to_string())
        };
        assert_eq!(told("attack = 'badnets'\ncount = 3\npattern = '1,2,3'"), None);
        assert_eq!(
            told("attack = 'label-consistent'\nrate = '1%'\ntrigger = 'sig'\ndelta = 2"),
            None
        );
        for (toml, flag) in [
            ("count = 3", "--attack"),
            ("attack = 'badnets'", "--count"),
            ("attack = 'badnets'\ncount = 1\nrate = 0.1", "--count"),
            ("attack = 'badnets'\ncount = 1\nalpha = 0.1", "--alpha"),
            ("attack = 'sig'\ncount = 1\nplace = 'centre'", "--place"),
            ("attack = 'targeted'\ncount = 1", "--pictures"),
            ("attack = 'targeted'\ncount = 1\npictures = 'x'\ngrid = 4", "--grid"),
            ("attack = 'blended'\ncount = 1\ntargets = 4", "--targets"),
            ("attack = 'blended'\ncount = 1\ntarget = ['a', 'b']", "--target"),
            ("attack = 'label-consistent'\ncount = 1\ncaptions = 'search'", "--captions"),
            (
                "attack = 'sig'\ncount = 1\ncaption-trigger-place = 'back'",
                "--caption-trigger-place",
            ),
        ] {
            assert!(told(toml).unwrap().starts_with(flag), "{toml}: {:?}", told(toml));
        }
        assert!(toml::from_str::<AttackSpec>("atack = 'sig'").is_err());
        assert!(toml::from_str::<AttackSpec>("pattern = 'dots'").is_err());
    }
}
