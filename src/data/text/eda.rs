//! Easy data augmentation of captions.
//!
//! Source: Wei & Zou, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
//! Classification Tasks" (EMNLP 2019), with the settings of RoCLIP's released code: a tenth of
//! the words, and one of the four operations, chosen uniformly.

use super::wordnet::WordNet;
use crate::rng::Rng;
use std::sync::Arc;

/// Share of the words that an operation changes.
const SHARE: f64 = 0.1;
/// Words that random insertion tries before it gives up.
const INSERTION_TRIES: usize = 10;
/// Second positions that a random swap tries before it gives up.
const SWAP_TRIES: usize = 3;
/// Words beyond these are left out. No text tower reads as many tokens, and the work of one
/// caption stays bounded.
const MOST_WORDS: usize = 1000;

/// Words that are never replaced by a synonym: the 127 English stop words of NLTK's first list.
const STOP_WORDS: &str = "
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves what which who whom this that
    these those am is are was were be been being have has had having do does did doing a an the
    and but if or because as until while of at by for with about against between into through
    during before after above below to from up down in out on off over under again further then
    once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now";

/// What is done to a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    ReplaceBySynonyms,
    InsertSynonyms,
    Swap,
    Delete,
}

impl Operation {
    /// Those that need no synonyms come last.
    const ALL: [Self; 4] =
        [Self::ReplaceBySynonyms, Self::InsertSynonyms, Self::Swap, Self::Delete];
    const WITHOUT_SYNONYMS: [Self; 2] = [Self::Swap, Self::Delete];
}

/// The augmentation. Shared by all threads; all chance comes from the caller's stream.
#[derive(Clone, Debug)]
pub struct Eda {
    wordnet: Option<Arc<WordNet>>,
}

impl Eda {
    /// Without WordNet there are no synonyms: only swap and deletion are drawn, each with
    /// probability 1/2. [`Eda::has_synonyms`] tells, so that a run can say so.
    pub fn new(wordnet: Option<Arc<WordNet>>) -> Self {
        Self { wordnet }
    }

    /// Whether all four operations are drawn. If not, `apt-get install wordnet-base` mends it.
    pub fn has_synonyms(&self) -> bool {
        self.wordnet.is_some()
    }

    /// An altered caption of Latin letters and single spaces: digits, punctuation and accented
    /// letters are lost before anything else happens, as in the released code.
    ///
    /// A caption without Latin letters is returned unchanged; the released code stops there.
    pub fn augment(&self, caption: &str, rng: &mut Rng) -> String {
        let text = latin_only(caption);
        let words: Vec<&str> = text.split_ascii_whitespace().take(MOST_WORDS).collect();
        if words.is_empty() {
            return caption.to_owned();
        }
        let n = (words.len() as f64 * SHARE).max(1.0) as usize;
        let operations: &[Operation] = match self.wordnet {
            Some(_) => &Operation::ALL,
            None => &Operation::WITHOUT_SYNONYMS,
        };
        let words = match operations[below(operations.len(), rng)] {
            Operation::ReplaceBySynonyms => self.replace(words, n, rng),
            Operation::InsertSynonyms => self.insert(words, n, rng),
            Operation::Swap => swap(words, n, rng),
            Operation::Delete => delete(words, rng),
        };
        words.join(" ")
    }

    fn synonyms(&self, word: &str) -> Vec<&str> {
        self.wordnet.as_ref().map_or_else(Vec::new, |wordnet| wordnet.synonyms(word))
    }

    /// Replaces every occurrence of up to `n` distinct words that are no stop words and have
    /// synonyms, each by one of them.
    fn replace<'a>(&'a self, mut words: Vec<&'a str>, n: usize, rng: &mut Rng) -> Vec<&'a str> {
        let mut candidates: Vec<&str> = Vec::new();
        for word in &words {
            if !is_stop_word(word) && !candidates.contains(word) {
                candidates.push(word);
            }
        }
        rng.shuffle(&mut candidates);
        let mut replaced = 0;
        for candidate in candidates {
            if replaced == n {
                break;
            }
            let synonyms = self.synonyms(candidate);
            if synonyms.is_empty() {
                continue;
            }
            let synonym = synonyms[below(synonyms.len(), rng)];
            words.iter_mut().filter(|word| **word == candidate).for_each(|word| *word = synonym);
            replaced += 1;
        }
        words
    }

    /// Inserts, `n` times, the first synonym of a random word before a random word. Which synonym
    /// is first depends on the hash seed in the released code; here it is alphabetical order.
    fn insert<'a>(&'a self, mut words: Vec<&'a str>, n: usize, rng: &mut Rng) -> Vec<&'a str> {
        for _ in 0..n {
            let draw = |_| self.synonyms(words[below(words.len(), rng)]).first().copied();
            let Some(synonym) = (0..INSERTION_TRIES).find_map(draw) else { continue };
            words.insert(below(words.len(), rng), synonym);
        }
        words
    }
}

/// Exchanges two words, `n` times.
fn swap<'a>(mut words: Vec<&'a str>, n: usize, rng: &mut Rng) -> Vec<&'a str> {
    for _ in 0..n {
        let first = below(words.len(), rng);
        let draw = |_| Some(below(words.len(), rng)).filter(|&second| second != first);
        if let Some(second) = (0..SWAP_TRIES).find_map(draw) {
            words.swap(first, second);
        }
    }
    words
}

/// Drops each word with probability [`SHARE`], but never all: then a random one stays. So a single
/// word always does.
fn delete<'a>(words: Vec<&'a str>, rng: &mut Rng) -> Vec<&'a str> {
    let kept: Vec<&str> = words.iter().copied().filter(|_| !rng.chance(SHARE)).collect();
    if kept.is_empty() { vec![words[below(words.len(), rng)]] } else { kept }
}

fn below(n: usize, rng: &mut Rng) -> usize {
    rng.below(n as u64) as usize
}

/// Drops apostrophes, folds case, and turns whatever is no Latin letter into a space.
fn latin_only(caption: &str) -> String {
    let spoken = caption.chars().filter(|c| !matches!(c, '\'' | '’')).flat_map(char::to_lowercase);
    spoken.map(|c| if c.is_ascii_lowercase() { c } else { ' ' }).collect()
}

fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.split_ascii_whitespace().any(|stop| stop == word)
}
