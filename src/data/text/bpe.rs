//! Byte pair encoding with CLIP's vocabulary: bytes of one word to token ids.
//!
//! Source: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword
//! units" (ACL 2016); the byte alphabet is that of GPT-2 (Radford et al. 2019).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Read;
use std::sync::LazyLock;

/// The vocabulary, cut to the lines CLIP uses; origin and licence in `assets/CREDITS.md`.
pub(super) const VOCABULARY: &[u8] = include_bytes!("assets/clip_bpe.txt.gz");

/// Ids `0..256` are bytes within a word, `256..512` bytes that end one, then come the merges.
const FIRST_MERGE: u32 = 512;
const MERGES: u32 = 48_894;
/// Words longer than this are not looked up whole; the longest in the vocabulary is shorter.
const LONGEST_WORD: usize = 48;
const NONE: u32 = u32::MAX;

/// FNV-1a by words of eight bytes. What is hashed into the tables comes from the vocabulary
/// alone, so nobody can aim for collisions.
#[derive(Default)]
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type Map<K> = HashMap<K, u32, BuildHasherDefault<Fnv>>;

/// The tables of the encoding.
pub(super) struct Bpe {
    /// Bytes of every token, and whether it ends a word.
    tokens: Vec<(Box<[u8]>, bool)>,
    /// Two adjacent tokens (left in the high half) to the token they merge into. Ids grow with
    /// rank, so the smallest id is the merge to do first.
    merges: Map<u64>,
    /// Words that are a single token.
    words: Map<Box<[u8]>>,
    /// Position of every byte in the byte alphabet.
    alphabet: [u8; 256],
}

/// The byte alphabet: printable bytes first, each group in order of value.
fn byte_order() -> impl Iterator<Item = u8> {
    let printable = |b: &u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    (0..=255).filter(printable).chain((0..=255).filter(move |b| !printable(b)))
}

/// How the vocabulary writes each byte: itself where printable, else a code point from U+0100 on.
fn byte_names() -> HashMap<char, u8> {
    let printable = 188;
    let name = |(place, byte): (usize, u8)| match place.checked_sub(printable) {
        None => (char::from(byte), byte),
        Some(rest) => (char::from_u32(0x100 + rest as u32).expect("below the surrogates"), byte),
    };
    byte_order().enumerate().map(name).collect()
}

/// The vocabulary's file: a line about itself, then a merge a line.
fn vocabulary() -> String {
    let mut text = String::new();
    let mut unpacked = flate2::read::GzDecoder::new(VOCABULARY);
    unpacked.read_to_string(&mut text).expect("the embedded vocabulary is damaged");
    text
}

/// Every token by id, and the merges by rank (`left right`), as the vocabulary writes them.
pub(super) fn written() -> (Vec<String>, Vec<String>) {
    let names = byte_names();
    let mut letters: Vec<(u8, char)> = names.into_iter().map(|(c, byte)| (byte, c)).collect();
    letters.sort_unstable();
    let letter = |byte: u8| letters[usize::from(byte)].1.to_string();
    let merges: Vec<String> = vocabulary().lines().skip(1).map(String::from).collect();
    let within = byte_order().map(letter);
    let ending = byte_order().map(|byte| letter(byte) + "</w>");
    let tokens = within.chain(ending).chain(merges.iter().map(|merge| merge.replace(' ', "")));
    (tokens.collect(), merges)
}

impl Bpe {
    pub(super) fn clip() -> &'static Self {
        static CLIP: LazyLock<Bpe> = LazyLock::new(|| Bpe::parse(&vocabulary()));
        &CLIP
    }

    fn parse(text: &str) -> Self {
        let names = byte_names();
        let mut alphabet = [0; 256];
        let mut tokens: Vec<(Box<[u8]>, bool)> = Vec::new();
        for ends_word in [false, true] {
            for (place, byte) in byte_order().enumerate() {
                alphabet[usize::from(byte)] = place as u8;
                tokens.push((Box::new([byte]), ends_word));
            }
        }
        let mut ids: HashMap<(Box<[u8]>, bool), u32> = tokens.iter().cloned().zip(0..).collect();
        let mut merges = Map::default();
        for (line, id) in text.lines().skip(1).zip(FIRST_MERGE..) {
            let (left, right) = line.split_once(' ').expect("a merge is two tokens");
            let [left, right] = [left, right].map(|token| {
                let (token, ends_word) = match token.strip_suffix("</w>") {
                    Some(token) => (token, true),
                    None => (token, false),
                };
                ids[&(token.chars().map(|c| names[&c]).collect(), ends_word)]
            });
            let (head, tail) = (&tokens[left as usize], &tokens[right as usize]);
            let token = ([&*head.0, &*tail.0].concat().into_boxed_slice(), tail.1);
            ids.insert(token.clone(), id);
            tokens.push(token);
            merges.insert(pair(left, right), id);
        }
        assert_eq!(tokens.len() as u32, FIRST_MERGE + MERGES, "the vocabulary is incomplete");
        let mut bpe = Self { tokens, merges, words: Map::default(), alphabet };
        bpe.find_words();
        bpe
    }

    /// Fills `words`. That a word is in the vocabulary does not say that the merges arrive at it,
    /// so they are asked.
    fn find_words(&mut self) {
        let mut words = Map::default();
        let mut out = Vec::new();
        for (word, _) in self.tokens.iter().filter(|(word, ends)| *ends && word.len() > 1) {
            out.clear();
            self.merge(word, &mut out);
            if let [id] = out[..] {
                words.insert(word.clone(), id);
            }
        }
        self.words = words;
    }

    /// Bytes of a token and whether it ends a word; `None` for ids that are no part of text.
    pub(super) fn token(&self, id: u32) -> Option<(&[u8], bool)> {
        self.tokens.get(id as usize).map(|(bytes, ends_word)| (&**bytes, *ends_word))
    }

    /// Appends the ids of one word. `word` must not be empty.
    pub(super) fn encode(&self, word: &[u8], out: &mut Vec<u32>) {
        if word.len() <= LONGEST_WORD
            && let Some(&id) = self.words.get(word)
        {
            return out.push(id);
        }
        match word.len() {
            ..=LONGEST_WORD => self.merge_short(word, out),
            _ => self.merge(word, out),
        }
    }

    /// [`merge`](Self::merge) of at most [`LONGEST_WORD`] bytes: what merges next is searched for
    /// anew, and nothing is allocated.
    fn merge_short(&self, word: &[u8], out: &mut Vec<u32>) {
        let merged =
            |left: u32, right: u32| self.merges.get(&pair(left, right)).copied().unwrap_or(NONE);
        let mut n = word.len();
        // Tokens, and what each makes with the one behind it.
        let (mut ids, mut made) = ([0; LONGEST_WORD], [NONE; LONGEST_WORD]);
        for (id, &byte) in ids.iter_mut().zip(word) {
            *id = u32::from(self.alphabet[usize::from(byte)]);
        }
        ids[n - 1] += 256;
        for left in 0..n - 1 {
            made[left] = merged(ids[left], ids[left + 1]);
        }
        while let Some((left, &id)) = made[..n - 1].iter().enumerate().min_by_key(|(_, id)| **id)
            && id != NONE
        {
            ids[left] = id;
            ids.copy_within(left + 2..n, left + 1);
            made.copy_within(left + 1..n, left);
            n -= 1;
            if left > 0 {
                made[left - 1] = merged(ids[left - 1], id);
            }
            made[left] = if left + 1 < n { merged(id, ids[left + 1]) } else { NONE };
        }
        out.extend_from_slice(&ids[..n]);
    }

    /// Merges adjacent tokens, lowest rank first and leftmost first within a rank, until no merge
    /// applies. A heap keeps this at `O(n log n)` for a word of `n` bytes.
    fn merge(&self, word: &[u8], out: &mut Vec<u32>) {
        let n = word.len();
        let mut ids: Vec<u32> =
            word.iter().map(|&b| u32::from(self.alphabet[usize::from(b)])).collect();
        ids[n - 1] += 256;
        let mut before: Vec<u32> = (0..n as u32).map(|i| i.wrapping_sub(1)).collect();
        let mut after: Vec<u32> = (1..=n as u32).collect();
        let mut heap = BinaryHeap::with_capacity(n);
        let merged = |left: u32, right: u32| self.merges.get(&pair(left, right)).copied();
        for (i, two) in ids.windows(2).enumerate() {
            heap.extend(merged(two[0], two[1]).map(|id| Reverse((id, i as u32))));
        }
        while let Some(Reverse((id, place))) = heap.pop() {
            let left = place as usize;
            let right = after[left] as usize;
            // An entry is stale when one of its two tokens has meanwhile merged with another; what
            // is gone (NONE) merges with nothing.
            if right >= n || merged(ids[left], ids[right]) != Some(id) {
                continue;
            }
            ids[left] = id;
            ids[right] = NONE;
            let next = after[right] as usize;
            after[left] = next as u32;
            if next < n {
                before[next] = place;
                heap.extend(merged(id, ids[next]).map(|id| Reverse((id, place))));
            }
            if left > 0 {
                let previous = before[left];
                let id = merged(ids[previous as usize], id);
                heap.extend(id.map(|id| Reverse((id, previous))));
            }
        }
        out.extend(ids.into_iter().filter(|&id| id != NONE));
    }
}

fn pair(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_vocabulary_is_the_one_credited() {
        let digest = Sha256::digest(VOCABULARY);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "718fe77c45b6c0db44c21ae951809fe0f3fe84ece02fc78e6ab994ca689c6dc0");
    }

    /// What `merge` relies on: a token is made by one merge only, after both of its parts, so
    /// that taking the lowest id first equals merging all occurrences of a pair at once.
    #[test]
    fn every_merge_makes_a_new_token_from_older_ones() {
        let bpe = Bpe::clip();
        let distinct: std::collections::HashSet<_> = bpe.tokens.iter().collect();
        assert_eq!(distinct.len(), bpe.tokens.len());
        assert_eq!(bpe.merges.len(), MERGES as usize);
        for (&parts, &id) in &bpe.merges {
            assert!((parts >> 32) < u64::from(id) && (parts & 0xFFFF_FFFF) < u64::from(id));
        }
        assert!(bpe.tokens.iter().all(|(bytes, _)| bytes.len() <= LONGEST_WORD));
    }

    /// The definition, slowly: find the lowest-ranked pair, merge all its occurrences, repeat.
    fn merge_by_definition(bpe: &Bpe, word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> =
            word.iter().map(|&b| u32::from(bpe.alphabet[usize::from(b)])).collect();
        *ids.last_mut().unwrap() += 256;
        loop {
            let known = |two: &[u32]| bpe.merges.get(&pair(two[0], two[1])).copied();
            let Some(best) = ids.windows(2).filter_map(known).min() else { return ids };
            let mut next = Vec::new();
            let mut i = 0;
            while i < ids.len() {
                let here = ids.get(i..i + 2).and_then(known) == Some(best);
                next.push(if here { best } else { ids[i] });
                i += if here { 2 } else { 1 };
            }
            ids = next;
        }
    }

    #[test]
    fn both_ways_equal_the_definition() {
        use crate::rng::{Domain, Rng};
        let bpe = Bpe::clip();
        let mut rng = Rng::new(11, Domain::Caption, 0, 0);
        for alphabet in
            [&b"a"[..], b"ab", b"ehlost", b"abcdefghijklmnopqrstuvwxyz", b"\xe3\x81\x82"]
        {
            for _ in 0..300 {
                let length = 1 + rng.below(60);
                let letter = |_| alphabet[rng.below(alphabet.len() as u64) as usize];
                let word: Vec<u8> = (0..length).map(letter).collect();
                let mut out = Vec::new();
                bpe.encode(&word, &mut out);
                let expected = merge_by_definition(bpe, &word);
                assert_eq!(out, expected, "{word:?}");
                out.clear();
                bpe.merge(&word, &mut out);
                assert_eq!(out, expected, "{word:?}");
            }
        }
    }
}
