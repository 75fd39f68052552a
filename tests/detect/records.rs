//! `matches/epoch_N.npy`.

use crate::run::{Bench, assert_same};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Names and bytes of the files of a run that tell of every pair.
pub fn matches(run: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(run.join("matches")).unwrap().flatten();
    let bytes = |file: fs::DirEntry| {
        (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())
    };
    let mut files: Vec<_> = files.map(bytes).collect();
    files.sort();
    files
}

/// A record: shard, index, own, best, shard and index of the match.
type Row = (u32, u32, f32, f32, u32, u32);

/// The records of an epoch, by the rules of the format.
fn rows(bytes: &[u8]) -> Vec<Row> {
    let (start, rest) = bytes.split_at(10);
    assert_eq!(&start[..8], b"\x93NUMPY\x01\x00");
    let (header, data) = rest.split_at(usize::from(u16::from_le_bytes([start[8], start[9]])));
    let header = std::str::from_utf8(header).unwrap().trim_end();
    let fields = ["shard", "index", "own", "best", "from_shard", "from_index"];
    let types = ["<u4", "<u4", "<f4", "<f4", "<u4", "<u4"];
    let field = |(name, kind)| format!("('{name}', '{kind}')");
    let descr: Vec<String> = fields.into_iter().zip(types).map(field).collect();
    let (descr, rows) = (descr.join(", "), data.len() / 24);
    let expected = format!("'descr': [{descr}], 'fortran_order': False, 'shape': ({rows},), ");
    assert_eq!(header, format!("{{{expected}}}"));
    assert_eq!(
        (data.len() % 24, (10 + header.len()) < 256 && bytes.len() == 256 + 24 * rows),
        (0, true)
    );
    let word = |row: &[u8], n: usize| u32::from_le_bytes(row[4 * n..][..4].try_into().unwrap());
    let float = |row: &[u8], n| f32::from_bits(word(row, n));
    let row = |row: &[u8]| {
        (word(row, 0), word(row, 1), float(row, 2), float(row, 3), word(row, 4), word(row, 5))
    };
    data.chunks(24).map(row).collect()
}

/// Every pair once an epoch; in the matched ones as similar as the log says, to captions that the
/// pool, a ring of 12, held before the step.
#[test]
fn every_pair_is_told_of_with_what_the_pool_gave_it() {
    let bench = Bench::new();
    bench.run("told", &[]);
    let files = matches(&bench.folder("told"));
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["epoch_0.npy", "epoch_1.npy", "epoch_2.npy", "epoch_3.npy", "shards.json"]);
    let shards: Vec<String> = serde_json::from_slice(&files[4].1).unwrap();
    assert!(shards.len() == 2 && shards[0].ends_with("/00.tar") && shards[1].ends_with("/01.tar"));
    let steps = bench.lines("told", "metrics.jsonl");
    let mut ring: Vec<(u32, u32)> = Vec::new();
    for epoch in 0..4 {
        let rows = rows(&files[epoch].1);
        let pairs: HashSet<(u32, u32)> = rows.iter().map(|row| (row.0, row.1)).collect();
        assert!(rows.len() == 40 && pairs.len() == 40);
        assert!(pairs.iter().all(|&(shard, index)| shard < 2 && index < 20));
        for (step, rows) in rows.chunks(8).enumerate() {
            assert!(rows.iter().all(|row| row.2.abs() <= 1.0 + 1e-6));
            let told = &steps[5 * epoch + step]["pool_similarity"];
            if epoch % 2 == 0 {
                let unmatched =
                    |row: &Row| row.3.is_nan() && (row.4, row.5) == (u32::MAX, u32::MAX);
                assert!(rows.iter().all(unmatched) && told.is_null());
            } else {
                let mean = rows.iter().map(|row| f64::from(row.3)).sum::<f64>() / 8.0;
                assert!((told.as_f64().unwrap() - mean).abs() < 1e-12, "{told}, {mean}");
                let last = &ring[ring.len() - 12..];
                assert!(
                    rows.iter().all(|row| last.contains(&(row.4, row.5))),
                    "{rows:?}, {last:?}"
                );
            }
            ring.extend(rows.iter().map(|row| (row.0, row.1)));
        }
    }
}

#[test]
fn telling_changes_no_bit_and_can_be_left_out() {
    let bench = Bench::new();
    bench.run("told", &[]);
    bench.run("quiet", &["--no-record-matches"]);
    assert!(!bench.folder("quiet").join("matches").exists());
    assert_same(&bench.final_state("told"), &bench.final_state("quiet"));
    // Begun without, it goes on with what it has, and says so.
    bench.run("late", &["--no-record-matches", "--lr-scheduler", "const", "--epochs", "1"]);
    let epoch = bench.folder("late").join("checkpoints/epoch_1.safetensors");
    assert!(epoch.exists());
    bench.run("late", &["--lr-scheduler", "const", "--epochs", "2", "--resume", "latest"]);
    let names: Vec<_> = matches(&bench.folder("late")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["epoch_1.npy", "shards.json"]);
}

/// At a learning rate that moves no weight, and without augmentation, every step sees what the
/// exported model sees. Bound: cosines of f32 features, whose towers add in the same order in
/// batches of other sizes; what is left is their rounding, below 10⁻⁵.
#[test]
fn own_similarities_are_those_of_the_models_features() {
    let bench = Bench::new();
    // Augmentation off: the pictures of training are those of `embed`.
    let still =
        ["--lr", "1e-30", "--wd", "0", "--aug", "none", "--fidelity", "exact", "--epochs", "2"];
    bench.run("still", &still);
    let folder = bench.folder("still");
    let out = folder.join("features");
    let shards = folder.join("../..").join("{00..01}.tar");
    let embed = std::process::Command::new(env!("CARGO_BIN_EXE_roclip-model"))
        .args(["embed", "--both", "--threads", "1", "--out", out.to_str().unwrap()])
        .args(["--shards", shards.to_str().unwrap(), folder.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(embed.status.success(), "{}", crate::run::text(&embed));
    let scores = fs::read_to_string(out.join("scores.jsonl")).unwrap();
    let scores: Vec<f64> = scores
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["score"].as_f64().unwrap())
        .collect();
    assert_eq!(scores.len(), 40);
    for (_, bytes) in &matches(&bench.folder("still"))[..2] {
        for (shard, index, own, ..) in rows(bytes) {
            let want = scores[(20 * shard + index) as usize];
            assert!((f64::from(own) - want).abs() < 1e-5, "{shard} {index}: {own}, {want}");
        }
    }
}
