//! Lists of pairs that are to be left out.
//!
//! A `.jsonl` list has a JSON value in each line: `"key"`, `{"key": …}`, or `{"shard": …,
//! "key": …}` for a pair of one shard only. Lines of the ledger are of the last kind, so
//! `skips.jsonl` is such a list; its lines on damaged shards, which have no key, are passed over.
//! Any other list has a key in each line.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::lines::Lines;
use crate::error::Result;

/// Longest line of a list; those of the ledger have at most a key of 4096 bytes, a path and a
/// detail.
const LINE_BYTES: usize = 64 << 10;

/// A key by its hash: 16 bytes, however long it is. Of a billion keys two share the first 128 bits
/// of a SHA-256 with a chance of 10⁻²⁰, and nobody can make two that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash([u8; 16]);

impl KeyHash {
    pub(crate) fn of(key: &str) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        Self(digest[..16].try_into().expect("a SHA-256 has 32 bytes"))
    }
}

/// A list of pairs, by key or by shard and key; 16 bytes a key in memory.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    everywhere: HashSet<KeyHash>,
    /// Keys of single shards, by their places in `shards`.
    in_shards: HashMap<KeyHash, Vec<u32>>,
    shards: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Key(String),
    Pair { shard: Option<String>, key: Option<String> },
}

impl Exclusions {
    /// Reads a list.
    ///
    /// # Errors
    /// The file cannot be read; a line is longer than 64 KiB, is not UTF-8, or, in a `.jsonl`
    /// list, neither a string nor an object with strings.
    pub fn read(path: &Path) -> Result<Self> {
        let is_json = path.extension().is_some_and(|e| e == "jsonl" || e == "json");
        let mut lines = Lines::open(path, LINE_BYTES)?;
        let mut list = Self::default();
        let mut places = HashMap::new();
        while let Some(line) = lines.next()? {
            if line.trim_ascii().is_empty() {
                continue;
            }
            if !is_json {
                let key = std::str::from_utf8(line).map(str::to_owned);
                list.everywhere.insert(KeyHash::of(&key.map_err(|e| lines.wrong(e))?));
                continue;
            }
            match lines.parse()? {
                Line::Key(key) | Line::Pair { shard: None, key: Some(key) } => {
                    list.everywhere.insert(KeyHash::of(&key));
                }
                Line::Pair { shard: Some(shard), key: Some(key) } => {
                    let place = *places.entry(shard).or_insert_with_key(|shard| {
                        list.shards.push(shard.clone());
                        list.shards.len() as u32 - 1
                    });
                    list.in_shards.entry(KeyHash::of(&key)).or_default().push(place);
                }
                Line::Pair { shard: Some(_), key: None } => {}
                Line::Pair { shard: None, key: None } => {
                    return Err(lines.wrong("no field `key`"));
                }
            }
        }
        Ok(list)
    }

    /// Whether a pair is on the list. Shards are the same if one's path ends in the other's:
    /// `/data/crawl/00001.tar` and `crawl/00001.tar`, or `00001.tar`.
    pub fn contains(&self, shard: &str, key: &str) -> bool {
        let key = KeyHash::of(key);
        let is_same = |place: &u32| is_same_shard(&self.shards[*place as usize], shard);
        self.everywhere.contains(&key)
            || self.in_shards.get(&key).is_some_and(|places| places.iter().any(is_same))
    }

    /// Keys on the list, those of single shards counted once each.
    pub fn len(&self) -> usize {
        self.everywhere.len() + self.in_shards.len()
    }

    /// Whether nothing is on the list.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether two paths may mean one file, seen from different folders.
fn is_same_shard(a: &str, b: &str) -> bool {
    let names = |path: &'_ str| -> Vec<String> {
        path.split('/').filter(|part| !["", ".", ".."].contains(part)).map(Into::into).collect()
    };
    let (a, b) = (names(a), names(b));
    a.ends_with(&b) || b.ends_with(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ledger::{Entry, Fault, Ledger, Reason};
    use crate::flow::SampleId;

    fn list(name: &str, text: impl AsRef<[u8]>) -> Result<Exclusions> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        Exclusions::read(&dir.path().join(name))
    }

    #[test]
    fn lists_of_keys_and_of_pairs() {
        let text = list("a.txt", "\u{feff}one\r\ntwo\n\n\"three\"\n fo\0ur ").unwrap();
        assert_eq!(text.len(), 4);
        for key in ["one", "two", "\"three\"", " fo\0ur "] {
            assert!(text.contains("any.tar", key), "{key}");
        }
        assert!(!text.contains("any.tar", "three") && !text.contains("any.tar", ""));
        let json = "\"one\"\n{\"key\":\"t\\u0000wo\"}\n\
                    {\"shard\":\"d/a.tar\",\"key\":\"three\",\"epoch\":3}\n\
                    {\"shard\":\"b.tar\",\"key\":\"three\"}\n{\"shard\":\"b.tar\",\"seq\":1}\n";
        let json = list("a.jsonl", json).unwrap();
        assert_eq!(json.len(), 3);
        assert!(json.contains("x", "one") && json.contains("x", "t\0wo"));
        for shard in ["d/a.tar", "./d/a.tar", "/c/d/a.tar", "../d/a.tar", "a.tar", "e/b.tar"] {
            assert!(json.contains(shard, "three"), "{shard}");
        }
        for shard in ["e/a.tar", "c.tar", "/c/dd/a.tar", "xa.tar"] {
            assert!(!json.contains(shard, "three"), "{shard}");
        }
    }

    #[test]
    fn the_ledger_is_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skips.jsonl");
        let shard: std::sync::Arc<str> = "s/1.tar".into();
        let key = "a \"quoted\"\nkey";
        let id = SampleId { shard: shard.clone(), shard_index: 0, index: 0, key: key.into() };
        let fault = || Fault::new(Reason::BrokenImage, "");
        let entries = [
            Entry::pair((0, 0), &id, 0, fault()),
            Entry::shard((0, 1), shard, 0, 9, Fault::new(Reason::Truncated, "")),
        ];
        Ledger::open(&path, 0, |_| 0).unwrap().record(&entries).unwrap();
        let list = Exclusions::read(&path).unwrap();
        assert!(list.len() == 1 && list.contains("1.tar", key) && !list.contains("2.tar", key));
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_line() {
        for (name, text, part) in [
            ("a.jsonl", &b"\"a\"\n{\"key\":1}\n"[..], "line 2"),
            ("a.jsonl", b"\"a\"\n{}\n", "line 2: no field"),
            ("a.jsonl", b"key\n", "line 1"),
            ("a.jsonl", b"\"\xff\"\n", "line 1"),
            ("a.txt", b"a\nb\n\xff\n", "line 3"),
            ("a.txt", &[b'k'; (64 << 10) + 1], "line 1: more than 65536 bytes"),
            ("a.jsonl", &[b'['; 60_000], "line 1"),
        ] {
            let message = list(name, text).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(list("a.txt", [b'k'; 64 << 10]).unwrap().len(), 1);
        assert!(list("a.txt", "").unwrap().is_empty());
        assert!(Exclusions::read(Path::new("/nonexistent/a.txt")).is_err());
    }
}
