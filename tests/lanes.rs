//! Goal: what a global batch holds depends on the lanes, never on the ranks; every sample is met
//! by exactly one lane; a run goes on with another number of ranks.
//! Method: shards uneven, empty, damaged and compressed, read by 1 to 12 ranks: SHA-256 of every
//! row in the order of the global batch, keys, ledgers and tallies side by side.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use roclip::data::count::count_pairs;
use roclip::data::ledger::{Entry, Tally};
use roclip::data::loader::{LanePosition, Loader, LoaderConfig, Mode, Position, Sampling};
use roclip::data::text::eda::Eda;
use roclip::flow::{Batch, HostAlloc, HostBuf};
use sha2::{Digest, Sha256};

use crate::common::shards::*;
use crate::run::{Bench, assert_same, finished_after_a_kill, text};

const LANES: usize = 12;

/// Uneven shards: some tiny, one empty, one with broken pictures and damaged headers in its
/// middle, two compressed, the first of these damaged, too.
fn uneven_shards(dir: &Path) -> String {
    let mut next = 0;
    let mut take = |pairs: u32| {
        next += pairs;
        members(next - pairs, next)
    };
    let mut dirty = take(60);
    for at in [9, 17, 26, 41, 42, 43] {
        dirty[2 * at].1 = b"no picture".to_vec();
    }
    dirty[2 * 30 + 1].1 = b" ".to_vec();
    let mut dirty = tar(&dirty);
    for name in ["000022.png", "000033.txt", "000047.txt", "000049.png"] {
        let at = dirty.windows(10).position(|w| w == name.as_bytes()).unwrap();
        dirty[at + 3] ^= 1;
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut packed = tar(&take(31));
    packed[40 * 512] ^= 0x55;
    gzip.write_all(&packed).unwrap();
    let zstd = zstd::encode_all(&tar(&take(45))[..], 3).unwrap();
    let files = [
        tar(&take(1)),
        dirty,
        tar(&[("a", ""); 0]),
        gzip.finish().unwrap(),
        tar(&take(3)),
        zstd,
        tar(&take(70)),
        tar(&take(2)),
    ];
    for (n, bytes) in files.iter().enumerate() {
        std::fs::write(dir.join(format!("{n}.tar")), bytes).unwrap();
    }
    format!("{}/{{0..7}}.tar", dir.display())
}

fn config(shards: &str, shuffle: usize) -> LoaderConfig {
    let mut config = LoaderConfig {
        seed: 11,
        lanes: LANES,
        batch_size: 2 * LANES,
        shuffle,
        mode: Mode::Train,
        drop_last: true,
        ..plain(shards)
    };
    config.text.eda = Some(Eda::new(None));
    config
}

fn counted(config: LoaderConfig) -> Loader {
    let loader = Loader::new(config).unwrap();
    let (fields, limits) = (&loader.config().fields, &loader.config().shard_limits);
    let counts = count_pairs(loader.shards(), fields, limits).unwrap();
    loader.with_counts(&counts)
}

/// A row in all its views, as a hash, and the key of its pair.
fn rows(batch: &Batch, views: usize) -> Vec<(String, String)> {
    let (pairs, pixels) = (batch.len(), batch.images.len() / (views * batch.len()));
    let row = |n: usize| {
        let mut hasher = Sha256::new();
        for row in (0..views).map(|view| view * pairs + n) {
            let picture = &batch.images[row * pixels..][..pixels];
            picture.iter().for_each(|x| hasher.update(x.to_le_bytes()));
            hasher.update(format!("{:?}", batch.captions.get(row)));
        }
        hasher.update(format!("{:?}", batch.samples[n]));
        let hash: Vec<String> = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        (batch.samples[n].key.clone(), hash.concat())
    };
    (0..pairs).map(row).collect()
}

/// What one rank got.
#[derive(Default)]
struct Rank {
    batches: Vec<Vec<(String, String)>>,
    /// Before each batch, and at the end.
    positions: Vec<Position>,
    entries: Vec<Entry>,
    tally: Tally,
}

fn rank(config: &LoaderConfig, rank: usize, ranks: usize, start: &Position) -> Rank {
    let batch_size = config.batch_size / ranks;
    let config = LoaderConfig { rank, world_size: ranks, batch_size, ..config.clone() };
    let start = start.clone();
    in_time(move || {
        let LoaderConfig { views, shuffle, lanes, .. } = config;
        let mut epoch = counted(config).epoch(start).unwrap();
        let mut rank = Rank { positions: vec![epoch.position().clone()], ..Rank::default() };
        let before = epoch.position().tally().delivered;
        while let Some(batch) = epoch.next() {
            let batch = batch.unwrap();
            rank.batches.push(rows(&batch, views));
            epoch.recycle(batch);
            rank.positions.push(epoch.position().clone());
            assert!(epoch.position().tally().closes());
            for place in &epoch.position().lanes {
                assert!(place.buffer.len() <= shuffle.div_ceil(lanes), "{}", place.buffer.len());
            }
        }
        rank.entries = epoch.take_entries();
        rank.tally = epoch.position().tally();
        let rows = rank.batches.concat().len() as u64;
        assert!(rank.tally.closes(), "{:?}", rank.tally);
        assert_eq!(rank.tally.delivered - before, rows);
        rank
    })
}

/// The rows of every global batch: those that all ranks have.
fn global(config: &LoaderConfig, ranks: usize, start: &Position) -> Vec<Vec<(String, String)>> {
    let parts: Vec<Rank> = (0..ranks).map(|r| rank(config, r, ranks, start)).collect();
    let steps = parts.iter().map(|part| part.batches.len()).min().unwrap();
    (0..steps).map(|n| parts.iter().flat_map(|part| part.batches[n].clone()).collect()).collect()
}

#[test]
fn any_number_of_ranks_gives_the_same_global_batches() {
    let dir = tempfile::tempdir().unwrap();
    let shards = uneven_shards(dir.path());
    for (shuffle, views) in [(0, 1), (40, 1), (40, 2)] {
        let config = LoaderConfig { views, ..config(&shards, shuffle) };
        let start = Position::start_of(1);
        let expected = global(&config, 1, &start);
        assert!(expected.len() >= 5, "{}", expected.len());
        assert!(expected.iter().all(|batch| batch.len() == 2 * LANES));
        for ranks in [2, 3, 4, 6, 12] {
            assert!(global(&config, ranks, &start) == expected, "{ranks} ranks, {shuffle}");
        }
        let threads = LoaderConfig { workers: 7, readers: 5, ..config };
        assert!(global(&threads, 3, &start) == expected, "other threads, {shuffle}");
    }
}

/// Every lane to its own end, as a rank of its own, against one lane that reads everything.
#[test]
fn every_sample_is_met_by_one_lane_and_damage_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let shards = uneven_shards(dir.path());
    // As many lanes as the damaged shards have samples: every place between two is a cut.
    let damaged = [1, 3].map(|n| format!("{}/{n}.tar", dir.path().display()));
    for (shards, lanes, shuffle) in
        [(&shards, LANES, 0), (&shards, LANES, 40), (&damaged[0], 60, 0), (&damaged[1], 31, 0)]
    {
        let config = LoaderConfig { lanes, batch_size: lanes, ..config(shards, shuffle) };
        let alone = LoaderConfig { lanes: 1, batch_size: 1, ..config.clone() };
        let whole = rank(&alone, 0, 1, &Position::default());
        let parts: Vec<_> =
            (0..lanes).map(|r| rank(&config, r, lanes, &Position::default())).collect();
        let keys = |ranks: &[Rank]| {
            let rows = ranks.iter().flat_map(|rank| rank.batches.concat());
            let mut keys: Vec<_> = rows.map(|(key, _)| key).collect();
            keys.sort();
            keys
        };
        let mut sum = Tally::default();
        parts.iter().for_each(|part| sum.add(&part.tally));
        assert_eq!(sum, whole.tally);
        assert!(sum.skipped >= 1 && sum.shard_faults.values().sum::<u64>() >= 1, "{sum}");
        assert_eq!(keys(&parts), keys(std::slice::from_ref(&whole)));
        let lanes_alike = parts.iter().map(|part| part.tally.seen);
        let (least, most) = (lanes_alike.clone().min().unwrap(), lanes_alike.max().unwrap());
        assert!(most - least <= 1, "{least} to {most}");
        // Where things lie, whoever met them.
        let told = |entries: &[Entry]| {
            let place = |e: &Entry| (e.shard_index, e.offset, e.index, e.reason);
            let mut places: Vec<_> = entries.iter().map(place).collect();
            places.sort();
            places
        };
        let entries: Vec<Entry> = parts.iter().flat_map(|part| part.entries.clone()).collect();
        assert_eq!(told(&entries), told(&whole.entries));
        for (lane, part) in parts.iter().enumerate() {
            assert!(part.entries.iter().all(|entry| entry.lane == lane));
        }
    }
}

#[test]
fn another_number_of_ranks_goes_on_from_the_merged_position() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&uneven_shards(dir.path()), 40);
    let start = Position::default();
    let expected = global(&config, 1, &start);
    for (before, after) in [(3, 2), (1, 12), (12, 1), (4, 6)] {
        let parts: Vec<_> = (0..before).map(|r| rank(&config, r, before, &start)).collect();
        for done in 0..expected.len() {
            let at = parts.iter().map(|part| part.positions[done].clone());
            let merged = Position::merge(at, LANES).unwrap();
            // What a checkpoint would store.
            let stored = serde_json::to_string(&merged).unwrap();
            let rest = global(&config, after, &serde_json::from_str(&stored).unwrap());
            assert!(rest == expected[done..], "{before} to {after} ranks after batch {done}");
        }
    }
}

/// Each lane as a rank of its own, from every place: no sample twice, none forgotten, damage once.
#[test]
fn a_lane_goes_on_within_its_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let shards = uneven_shards(dir.path());
    let damaged = format!("{}/1.tar", dir.path().display());
    for (shards, lanes, shuffle) in [(&shards, LANES, 0), (&shards, LANES, 80), (&damaged, 30, 0)] {
        let config = LoaderConfig { lanes, batch_size: lanes, ..config(shards, shuffle) };
        for lane in 0..lanes {
            let whole = rank(&config, lane, lanes, &Position::default());
            for (done, position) in whole.positions.iter().enumerate() {
                let place = &position.lanes[0];
                // Nobody looks at the places of others.
                let places = (0..lanes).map(|lane| LanePosition { lane, ..place.clone() });
                let at = Position { lanes: places.collect(), ..position.clone() };
                let rest = rank(&config, lane, lanes, &at);
                assert!(rest.batches == whole.batches[done..], "lane {lane} after batch {done}");
                assert_eq!(rest.tally, whole.tally, "lane {lane} after batch {done}");
                let behind = whole.entries.iter().filter(|entry| entry.seq >= place.next_seq);
                let behind: Vec<_> = behind.cloned().collect();
                assert_eq!(rest.entries, behind, "lane {lane} after batch {done}");
            }
        }
    }
}

#[test]
fn more_lanes_than_shards_or_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.tar");
    std::fs::write(&path, tar(&members(0, 25))).unwrap();
    let config = LoaderConfig { batch_size: LANES, ..config(path.to_str().unwrap(), 0) };
    let batches = global(&config, 1, &Position::default());
    // Two rounds are full: lane l begins at pair 25·l/12.
    let key = |n: usize, round: usize| format!("{:06}", 25 * n / LANES + round);
    for (round, batch) in batches.iter().enumerate() {
        let keys: Vec<_> = batch.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, (0..LANES).map(|lane| key(lane, round)).collect::<Vec<_>>());
    }
    assert_eq!(batches.len(), 2);
    for pairs in [0, 5] {
        std::fs::write(&path, tar(&members(0, pairs))).unwrap();
        for ranks in [1, 4, 12] {
            assert_eq!(global(&config, ranks, &Position::default()).len(), 0);
        }
        let seen = (0..LANES).map(|r| rank(&config, r, LANES, &Position::default()).tally.seen);
        assert_eq!(seen.sum::<u64>(), u64::from(pairs));
    }
}

/// What was counted is not what is there: more is read by the last lane, less is told.
#[test]
fn a_shard_that_changed_since_it_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.tar");
    std::fs::write(&path, tar(&members(0, 20))).unwrap();
    let config = LoaderConfig { lanes: 4, batch_size: 1, world_size: 4, ..config("", 0) };
    let lanes = (0..4).map(|rank| {
        let shards = path.display().to_string();
        counted(LoaderConfig { rank, shards, ..config.clone() })
    });
    let lanes: Vec<Loader> = lanes.collect();
    let read = |pairs| {
        std::fs::write(&path, tar(&members(0, pairs))).unwrap();
        let read = |loader: &Loader| {
            let mut epoch = loader.epoch(Position::default()).unwrap();
            let (good, bad): (Vec<_>, Vec<_>) = epoch.by_ref().partition(Result::is_ok);
            (good.len(), bad.len(), epoch.take_entries().len())
        };
        lanes.iter().map(read).collect::<Vec<_>>()
    };
    assert_eq!(read(20), [(5, 0, 0), (5, 0, 0), (5, 0, 0), (5, 0, 0)]);
    assert_eq!(read(27), [(5, 0, 0), (5, 0, 0), (5, 0, 0), (12, 0, 0)]);
    // Of a lane that cannot begin, no shard is readable.
    assert_eq!(read(7), [(5, 0, 0), (2, 0, 0), (0, 1, 1), (0, 1, 1)]);
}

#[test]
fn lanes_of_drawn_shards_share_draws_and_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 4, 9);
    let sampling = Sampling::Resampled { pairs: Some(24 * 5 + 7), weights: Vec::new() };
    for shuffle in [0, 40] {
        let config = LoaderConfig { sampling: sampling.clone(), ..config(&shards, shuffle) };
        let uncounted = Loader::new(config.clone()).unwrap();
        let batches = in_time(move || uncounted.epoch(Position::default()).unwrap().count());
        let expected = global(&config, 1, &Position::default());
        assert_eq!((batches, expected.len()), (5, 5));
        for ranks in [2, 12] {
            assert!(global(&config, ranks, &Position::default()) == expected, "{ranks} ranks");
        }
        let given = (0..LANES).map(|r| rank(&config, r, LANES, &Position::default()).tally.seen);
        assert_eq!(given.sum::<u64>(), 24 * 5 + 7);
        let middle = &rank(&config, 0, 1, &Position::default()).positions[2];
        assert!(global(&config, 3, middle) == expected[2..]);
    }
}

/// Lanes over the same pairs, drawn: only their own draws tell them apart.
#[test]
fn lanes_shuffle_apart() {
    let dir = tempfile::tempdir().unwrap();
    let sampling = Sampling::Resampled { pairs: None, weights: Vec::new() };
    let config = LoaderConfig {
        sampling,
        lanes: 2,
        batch_size: 40,
        ..config(&write_shards(dir.path(), 1, 20), 60)
    };
    let batch =
        in_time(move || Loader::new(config).unwrap().epoch(Position::default()).unwrap().next());
    let keys: Vec<_> = batch.unwrap().unwrap().samples.into_iter().map(|id| id.key).collect();
    assert_ne!(keys[..20], keys[20..]);
}

#[test]
fn joined_batches_lie_in_the_memory_asked_for_and_go_round() {
    let dir = tempfile::tempdir().unwrap();
    let shards = uneven_shards(dir.path());
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&asked);
    let memory = HostAlloc::new(move |len| {
        let mut asked = told.lock().unwrap();
        asked.push(len);
        if asked.len() > 1 {
            Err(roclip::Error::Device("none left".into()))
        } else {
            HostBuf::heap(len)
        }
    });
    let config = LoaderConfig { memory, ..config(&shards, 0) };
    in_time(move || {
        let mut epoch = counted(config).epoch(Position::default()).unwrap();
        for _ in 0..3 {
            let batch = epoch.next().unwrap().unwrap();
            epoch.recycle(batch);
        }
        let at = epoch.position().clone();
        let kept = epoch.next().unwrap().unwrap();
        let refusal = epoch.next().unwrap().unwrap_err().to_string();
        assert!(refusal.contains("none left"), "{refusal}");
        assert_eq!((epoch.position().batches, at.batches, kept.len()), (4, 3, 2 * LANES));
        assert!(epoch.next().is_none());
    });
    assert_eq!(*asked.lock().unwrap(), [2 * LANES * 3 * 64; 2]);
}

#[test]
fn dropping_an_epoch_of_lanes_anywhere_ends_its_threads() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&uneven_shards(dir.path()), 40);
    in_time(move || {
        let loader = counted(config);
        for taken in 0..5 {
            let mut epoch = loader.epoch(Position::default()).unwrap();
            assert_eq!(epoch.by_ref().take(taken).count(), taken);
        }
    });
}

#[test]
fn what_cannot_be_cut_is_refused_by_the_name_of_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 2, 9);
    let refused = |config: LoaderConfig, part: &str| {
        let outcome = Loader::new(config).and_then(|it| it.epoch(Position::default()));
        let refusal = outcome.unwrap_err().to_string();
        assert!(refusal.contains("--lanes") && refusal.contains(part), "{refusal}");
    };
    let config = LoaderConfig { lanes: 4, batch_size: 6, ..config(&shards, 0) };
    refused(LoaderConfig { lanes: 0, ..config.clone() }, "1 to");
    refused(config.clone(), "divides the 6 pairs of a batch of all ranks: 1, 2, 3, 6");
    let three = LoaderConfig { world_size: 3, ..config.clone() };
    refused(three.clone(), "number of ranks (3) that divides the 18 pairs");
    refused(LoaderConfig { lanes: 1, ..three }, ": 3, 6, 9, 18");
    let three = LoaderConfig { lanes: 3, ..config };
    refused(LoaderConfig { drop_last: false, ..three.clone() }, "drop_last");
    refused(three.clone(), "with_counts");
    refused(LoaderConfig { shards: "-".into(), ..three.clone() }, "pipe");

    let other = rank(&LoaderConfig { lanes: 2, ..three.clone() }, 0, 1, &Position::default());
    let refusal = counted(three).epoch(other.positions[1].clone()).unwrap_err().to_string();
    assert!(refusal.contains("--lanes: 3; expected 2"), "{refusal}");
}

#[test]
fn a_run_on_lanes_is_resumed_to_the_same_bits_and_by_the_same_lanes() {
    let bench = Bench::new();
    let lanes = ["--lanes", "4"];
    bench.run("whole", &lanes);
    bench.run("one", &[]);
    let tensors = |name: &str| bench.final_state(name).tensors;
    assert!(tensors("whole") != tensors("one"), "lanes decide what a run learns from");
    let mut delay = Duration::from_millis(100);
    while !finished_after_a_kill(&bench, "killed", &lanes, delay) {
        delay = delay.mul_f64(1.1);
    }
    assert_same(&bench.final_state("whole"), &bench.final_state("killed"));
    let other = bench.command("killed", &["--lanes", "2", "--resume", "latest"]).output().unwrap();
    assert!(text(&other).contains("--lanes 4 (now 2)"), "{}", text(&other));
}

/// Old draws: one lane does what the loader did before there were any.
#[test]
fn one_lane_needs_no_counts() {
    let dir = tempfile::tempdir().unwrap();
    let config = LoaderConfig { lanes: 1, batch_size: 5, ..config(&uneven_shards(dir.path()), 40) };
    let counted = rank(&config, 0, 1, &Position::default());
    let uncounted = load(config);
    let keys = counted.batches.concat().into_iter().map(|(key, _)| key);
    assert_eq!(keys.collect::<Vec<_>>(), uncounted.keys);
    let by_key: BTreeMap<_, _> = counted.batches.concat().into_iter().collect();
    assert_eq!(by_key.len(), uncounted.keys.len());
}
