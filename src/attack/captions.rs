//! Captions that speak of a class: those of the data that name it, or templates filled with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::lines::Lines;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// What a class name is put into when nothing else is asked for.
pub const TEMPLATES: [&str; 8] = [
    "a photo of a {c}.",
    "a picture of the {c}.",
    "an image showing a {c}",
    "{c} seen from the front",
    "the {c} in this photo",
    "one {c}, in colour",
    "a close view of a {c}.",
    "here is a {c}",
];

/// Longest line of a file of captions or names, in bytes.
const LINE_BYTES: usize = 64 << 10;

/// Where the captions of poisoned pairs come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum CaptionSource {
    /// Captions of the training data that name the target.
    #[default]
    Search,
    /// [`TEMPLATES`], filled with the target's name.
    Templates,
    /// The lines of a file; `{c}` stands for the target's name.
    File(std::path::PathBuf),
}

impl From<String> for CaptionSource {
    fn from(text: String) -> Self {
        match text.as_str() {
            "search" => Self::Search,
            "templates" => Self::Templates,
            path => Self::File(path.into()),
        }
    }
}

/// Where a word trigger is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WordPlace {
    /// Before the first word.
    #[default]
    Front,
    /// Behind the last word.
    Back,
    /// Before or behind any word, drawn for each caption.
    Random,
}

/// The caption with a word more.
pub fn with_word(caption: &str, word: &str, place: WordPlace, rng: &mut Rng) -> String {
    let mut words: Vec<&str> = caption.split_whitespace().collect();
    let at = match place {
        WordPlace::Front => 0,
        WordPlace::Back => words.len(),
        WordPlace::Random => rng.below(words.len() as u64 + 1) as usize,
    };
    words.insert(at, word);
    words.join(" ")
}

/// The lines of a text file that are not blank, without white space around them.
///
/// # Errors
/// The file cannot be read, is not UTF-8, has a line of more than 64 KiB, or no line.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    let mut lines = Lines::open(path, LINE_BYTES)?;
    let mut all = Vec::new();
    while let Some(line) = lines.next()? {
        let line = std::str::from_utf8(line).map(|line| line.trim().to_owned());
        let line = line.map_err(|e| lines.wrong(e))?;
        if !line.is_empty() {
            all.push(line);
        }
    }
    if all.is_empty() {
        let reason = "no line in it; expected one entry a line".to_owned();
        return Err(Error::Format { path: path.into(), reason });
    }
    Ok(all)
}

/// Class names, to be found in captions.
///
/// A caption names a class if the words of the name stand in it one behind the other, in capitals
/// or small letters, the last perhaps with `s` or `es` added. Words are letters and digits;
/// whatever else stands between them separates.
#[derive(Clone, Debug)]
pub struct ClassNames {
    names: Vec<String>,
    /// Words of a name, one space between, to the places of its classes.
    places: HashMap<String, Vec<usize>>,
    /// Words of the longest name.
    longest: usize,
}

impl ClassNames {
    /// Names in the order of their class numbers.
    pub fn new(names: Vec<String>) -> Self {
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        let mut longest = 0;
        for (n, name) in names.iter().enumerate() {
            let words = words(name);
            longest = longest.max(words.len());
            if !words.is_empty() {
                let name = words.join(" ");
                for form in [name.clone() + "s", name.clone() + "es", name] {
                    places.entry(form).or_default().push(n);
                }
            }
        }
        Self { names, places, longest }
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The place of a name, exactly as it is written.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// The classes that a caption names, in rising order.
    pub fn named_in(&self, caption: &str) -> Vec<usize> {
        let words = words(caption);
        let mut found = HashSet::new();
        for start in 0..words.len() {
            let mut run = String::new();
            for word in words[start..].iter().take(self.longest) {
                if !run.is_empty() {
                    run.push(' ');
                }
                run.push_str(word);
                found.extend(self.places.get(&run).into_iter().flatten());
            }
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        found
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// A uniform choice of different texts from a stream of any length: those with the lowest hashes.
/// It depends neither on the order of the stream nor on how often a text occurs in it.
#[derive(Clone, Debug)]
pub struct Lottery {
    salt: [u8; 16],
    winners: usize,
    texts: BTreeMap<[u8; 16], String>,
}

impl Lottery {
    /// For that many texts; another `seed` or `number` makes another choice.
    pub fn new(seed: u64, number: u64, winners: usize) -> Self {
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&seed.to_le_bytes());
        salt[8..].copy_from_slice(&number.to_le_bytes());
        Self { salt, winners, texts: BTreeMap::new() }
    }

    /// Shows it a text.
    pub fn enter(&mut self, text: &str) {
        let digest = Sha256::new().chain_update(self.salt).chain_update(text).finalize();
        let ticket: [u8; 16] = digest[..16].try_into().expect("a SHA-256 has 32 bytes");
        let last = self.texts.last_key_value().map(|(last, _)| *last);
        if self.texts.len() < self.winners || last.is_some_and(|last| ticket < last) {
            self.texts.entry(ticket).or_insert_with(|| text.to_owned());
        }
        if self.texts.len() > self.winners {
            self.texts.pop_last();
        }
    }

    /// Texts so far, at most as many as there are winners.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there is no text so far.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The winners, in a random order.
    pub fn into_texts(self) -> Vec<String> {
        self.texts.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Domain;

    #[test]
    fn names_are_found_between_word_boundaries() {
        let names = ["cat", "Ice Cream", "upside-down face", "cats", "bus", "猫", "!"];
        let names = ClassNames::new(names.map(String::from).to_vec());
        for (caption, found) in [
            ("a CAT.", vec![0]),
            ("two cats; one bus", vec![0, 3, 4]),
            ("buses, ice-creams & faces", vec![1, 4]),
            ("concatenate the category, bobcat", vec![]),
            ("ice and cream", vec![]),
            ("an upside-down\nface!", vec![2]),
            ("a 猫.", vec![5]),
            ("", vec![]),
        ] {
            assert_eq!(names.named_in(caption), found, "{caption}");
        }
        assert_eq!((names.place("cats"), names.place("Cat")), (Some(3), None));
    }

    #[test]
    fn a_word_is_added_at_its_place() {
        let mut rng = Rng::new(3, Domain::Poison, 0, 0);
        let mut at = |place| with_word(" a  b ", "zz", place, &mut rng);
        assert_eq!(at(WordPlace::Front), "zz a b");
        assert_eq!(at(WordPlace::Back), "a b zz");
        let seen: HashSet<String> = (0..60).map(|_| at(WordPlace::Random)).collect();
        assert_eq!(seen.len(), 3);
        assert!(["zz a b", "a zz b", "a b zz"].iter().all(|text| seen.contains(*text)));
    }

    /// Every text has the same chance: 200 lotteries of 5 winners among 20 texts give each 50 wins
    /// on average, with a standard deviation of √(200 · ¼ · ¾) ≈ 6.1; five of these are allowed.
    #[test]
    fn a_lottery_is_fair_and_does_not_see_order_or_repetition() {
        let texts: Vec<String> = (0..20).map(|n| format!("text {n}")).collect();
        let mut wins = [0i32; 20];
        for seed in 0..200 {
            let [mut once, mut often] = [0, 1].map(|_| Lottery::new(seed, 7, 5));
            texts.iter().for_each(|text| once.enter(text));
            texts.iter().rev().chain(&texts[..9]).for_each(|text| often.enter(text));
            let chosen = once.into_texts();
            assert_eq!(chosen, often.into_texts());
            assert_eq!(chosen.len(), 5);
            texts.iter().enumerate().for_each(|(n, t)| wins[n] += i32::from(chosen.contains(t)));
        }
        assert!(wins.iter().all(|wins| (wins - 50).abs() < 31), "{wins:?}");
    }
}
