//! Which pair a row of features is.

use super::record;
use crate::data::lines::Lines;
use crate::error::Result;
use crate::flow::Place;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Longest line of the list: a key of 4096 bytes and a path, with escapes.
const LINE_BYTES: usize = 64 << 10;

/// A pair by its names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Pair {
    /// Its shard, as listed.
    pub shard: Arc<str>,
    /// Its key.
    pub key: Box<str>,
    /// Its position within the shard.
    pub index: u32,
}

/// Reads `keys.jsonl` of `roclip-model embed`.
pub(super) fn read(path: &Path) -> Result<Vec<Pair>> {
    let mut lines = Lines::open(path, LINE_BYTES)?;
    let mut shards: HashSet<Arc<str>> = HashSet::new();
    let mut pairs = Vec::new();
    while lines.next()?.is_some() {
        let mut pair: Pair = lines.parse()?;
        match shards.get(&pair.shard) {
            Some(known) => pair.shard = Arc::clone(known),
            None => drop(shards.insert(Arc::clone(&pair.shard))),
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Where pairs lay when the run trained on them: in its shard of the same name, or else in the only
/// one whose file is called the same, for shards are moved. [`Place::UNKNOWN`] of the others, and
/// of all where the run wrote nothing down.
///
/// # Errors
/// Those of [`record::epochs`] and [`record::read_shards`].
pub fn places(run: &Path, pairs: &[Pair]) -> Result<Vec<Place>> {
    if record::epochs(run)?.is_empty() {
        return Ok(vec![Place::UNKNOWN; pairs.len()]);
    }
    let file = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let (mut by_name, mut by_file) = (HashMap::new(), HashMap::new());
    for (name, number) in record::read_shards(run)?.into_iter().zip(0u32..) {
        let entry = by_file.entry(file(&name)).or_insert(Some(number));
        *entry = entry.filter(|&first| first == number);
        by_name.entry(name).or_insert(number);
    }
    let number = |name: &str| by_name.get(name).copied().or_else(|| *by_file.get(&file(name))?);
    let place = |pair: &Pair| match number(&pair.shard) {
        Some(shard) => Place { shard, index: pair.index },
        None => Place::UNKNOWN,
    };
    Ok(pairs.iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::record::RecordWriter;

    #[test]
    fn shards_are_known_by_name_and_moved_ones_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let pair = |shard: &str| Pair { shard: shard.into(), key: "k".into(), index: 7 };
        let pairs = ["new/b.tar", "x/a.tar", "z/a.tar", "y/a.tar", "none.tar"].map(pair);
        assert_eq!(places(dir.path(), &pairs).unwrap(), [Place::UNKNOWN; 5]);
        let names = ["x/a.tar", "old/b.tar", "y/a.tar"];
        record::write_shards(dir.path(), names.into_iter()).unwrap();
        RecordWriter::open(dir.path(), 0, 0).unwrap();
        let shards: Vec<u32> =
            places(dir.path(), &pairs).unwrap().iter().map(|p| p.shard).collect();
        assert_eq!(shards, [1, 0, u32::MAX, 2, u32::MAX]);
    }

    #[test]
    fn a_list_without_positions_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"key\":\"a\",\"shard\":\"s\"}\n").unwrap();
        let told = read(file.path()).unwrap_err().to_string();
        assert!(told.contains("line 1") && told.contains("index"), "{told}");
    }
}
