//! Goal: shards drawn with replacement, weighted sources, and going on in the middle of a shard.
//! Method: what must hold of counts; SHA-256 of batches, whole and resumed; bytes that were read
//! before are destroyed, so that a loader that reads them again would show it.

use std::collections::BTreeMap;

use roclip::data::exclude::Exclusions;
use roclip::data::ledger::Reason;
use roclip::data::loader::{Held, LoaderConfig, Mode, Position, Sampling};

use crate::common::shards::*;

fn drawn(shards: String, pairs: u64, weights: Vec<f64>) -> LoaderConfig {
    let sampling = Sampling::Resampled { pairs: Some(pairs), weights };
    LoaderConfig { seed: 3, sampling, shuffle: 7, mode: Mode::Train, ..plain(shards) }
}

#[test]
fn an_epoch_of_drawn_shards_ends_after_its_pairs_and_the_next_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let config = drawn(write_shards(dir.path(), 3, 5), 42, Vec::new());
    let first = load(config.clone());
    assert_eq!((first.keys.len(), first.tally.delivered), (42, 42));
    let second = load_from(config, Position::start_of(1));
    assert_ne!(first.keys, second.keys);
}

/// Each shard holds one pair, so a pair comes as often as its shard is drawn.
#[test]
fn weights_decide_how_often_a_source_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, from) in [("a", 0), ("b", 10), ("c", 20)] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        for n in from..from + 2 {
            let path = dir.path().join(folder).join(format!("{n}.tar"));
            std::fs::write(path, tar(&members(n, n + 1))).unwrap();
        }
    }
    let at = |folder: &str| dir.path().join(folder).display().to_string();
    let shards = ["a", "b", "c"].map(at).join("::");
    let outcome = load(drawn(shards.clone(), 600, vec![1.0, 0.0, 3.0]));
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    outcome.keys.iter().for_each(|key| *counts.entry(key).or_default() += 1);
    let keys = keys(0, 2).into_iter().chain(self::keys(20, 22));
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), keys.collect::<Vec<_>>());
    let first: u32 = counts.iter().filter(|(key, _)| **key < "000010").map(|(_, n)| n).sum();
    // A quarter of 600, give or take five standard deviations.
    assert!(first.abs_diff(150) <= 54, "{counts:?}");
    for weights in [vec![1.0, 2.0], vec![1.0, -1.0, 1.0], vec![0.0; 3]] {
        let config = drawn(shards.clone(), 6, weights);
        let refusal = roclip::data::loader::Loader::new(config).unwrap_err().to_string();
        assert!(refusal.contains("--train-data-upsampling-factors"), "{refusal}");
    }
}

#[test]
fn a_pair_drawn_again_is_augmented_anew() {
    let dir = tempfile::tempdir().unwrap();
    let config = LoaderConfig {
        batch_size: 1,
        shuffle: 0,
        ..drawn(write_shards(dir.path(), 1, 1), 8, Vec::new())
    };
    let mut hashes = load(config).hashes;
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 8);
}

#[test]
fn drawn_shards_go_on_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let config = drawn(write_shards(dir.path(), 3, 5), 42, vec![1.0]);
    let whole = load(config.clone());
    for (done, position) in whole.positions.iter().enumerate() {
        let rest = load_from(LoaderConfig { readers: 3, ..config.clone() }, position.clone());
        assert_eq!(rest.hashes, whole.hashes[done + 1..], "after batch {done}");
        assert_eq!(rest.tally, whole.tally, "after batch {done}");
    }
}

/// Drawn shards that hold nothing would be drawn for ever.
#[test]
fn drawing_from_nothing_ends() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("0.tar"), tar(&[("a", ""); 0])).unwrap();
    let shards = dir.path().join("0.tar").display().to_string();
    let outcome = load(drawn(shards, 10, Vec::new()));
    assert_eq!(outcome.keys.len(), 0);
}

/// What lies before the place of reading, and does not wait in the shuffle buffer, is destroyed.
#[test]
fn going_on_reads_nothing_again_that_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 2, 20);
    let config = LoaderConfig { shuffle: 3, seed: 5, mode: Mode::Train, ..plain(shards) };
    let whole = load(config.clone());
    let mut destroyed = 0;
    for (done, position) in whole.positions.iter().enumerate() {
        let copy = tempfile::tempdir().unwrap();
        let mut order: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        order.sort_by_key(|entry| entry.path());
        // Which shard a turn read is told by the pairs: shard 0 holds those below 20.
        let first = if whole.keys[0].as_str() < "000020" { 0 } else { 1 };
        for (number, entry) in order.iter().enumerate() {
            let turn = if number == first { 0 } else { 1 };
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let place = &position.lanes[0];
            let read = match place.cursor.turn {
                now if turn < now => bytes.len() as u64,
                now if turn == now => place.cursor.anchor.offset,
                _ => 0,
            };
            // Two headers, a picture and a short caption.
            let end = |held: &Held| {
                let picture = png(number as u32 * 20 + held.index).len().next_multiple_of(512);
                held.offset + picture as u64 + 3 * 512
            };
            let held = place.buffer.iter().filter(|held| held.turn == turn);
            let held: Vec<_> = held.map(|held| held.offset..end(held)).collect();
            let is_held = |at: u64| held.iter().any(|pair| pair.contains(&at));
            for at in (0..read.min(bytes.len() as u64)).filter(|&at| !is_held(at)) {
                bytes[at as usize] = 0xEE;
                destroyed += 1;
            }
            std::fs::write(copy.path().join(entry.file_name()), bytes).unwrap();
        }
        let shards = format!("{}/{{00..01}}.tar", copy.path().display());
        let rest = load_from(LoaderConfig { shards, ..config.clone() }, position.clone());
        assert_eq!(rest.keys, whole.keys[whole.keys.len() - rest.keys.len()..]);
        assert_eq!(rest.tally, whole.tally, "after batch {done}");
    }
    assert!(destroyed > 100_000, "{destroyed}");
}

#[test]
fn what_is_on_a_list_is_left_out_and_ledgered() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 2, 5);
    let list = dir.path().join("list.jsonl");
    let second = dir.path().join("01.tar").display().to_string();
    let lines = format!("\"000003\"\n{{\"shard\":\"{second}\",\"key\":\"000006\"}}\n");
    std::fs::write(&list, lines + "{\"shard\":\"elsewhere.tar\",\"key\":\"000001\"}\n").unwrap();
    let exclude = Some(std::sync::Arc::new(Exclusions::read(&list).unwrap()));
    let outcome = load(LoaderConfig { exclude, ..plain(shards) });
    assert_eq!(outcome.tally.reasons, [(Reason::Excluded, 2)].into());
    let left_out: Vec<_> = outcome.entries.iter().map(|e| e.key.as_deref().unwrap()).collect();
    assert_eq!(left_out, ["000003", "000006"]);
    assert_eq!(outcome.keys.len(), 8);
}
