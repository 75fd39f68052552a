//! `roclip-detect`, on shards in which one picture was planted many times.

use crate::common::shards::{png, tar};
use crate::run::{Bench, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Planted pairs, of 72 in 2 shards.
const PLANTED: usize = 12;

/// 60 pairs of their own, and [`PLANTED`] of one picture and one caption but for that of the fifth.
fn planted() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for shard in 0..2u32 {
        let mut members = Vec::new();
        for n in 0..36u32 {
            let (key, number) = (format!("{shard}{n:05}"), 36 * shard + n);
            let is_planted = n % 5 == 3 && n < 30;
            let caption = match (is_planted, shard, n) {
                (true, 0, 23) => "rust".to_owned(),
                (true, ..) => "a yellow banana upon the moon".to_owned(),
                _ => format!("picture number {number} of {}", "word ".repeat(number as usize % 7)),
            };
            members.push((format!("{key}.png"), png(if is_planted { 999 } else { number })));
            members.push((format!("{key}.txt"), caption.into_bytes()));
        }
        fs::write(dir.path().join(format!("{shard}.tar")), tar(&members)).unwrap();
    }
    let truth: String = (0..2)
        .flat_map(|shard| (0..6).map(move |n| (shard, 5 * n + 3)))
        .map(|(shard, n)| {
            format!("{{\"shard\":\"{shard}.tar\",\"key\":\"{shard}{n:05}\",\"x\":1}}\n")
        })
        .collect();
    fs::write(dir.path().join("poison.jsonl"), truth).unwrap();
    let shards = format!("{}/{{0..1}}.tar", dir.path().display());
    (dir, shards)
}

fn detect(run: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-detect"));
    command.arg(run).args(["--workers", "2"]).args(more).output().unwrap()
}

#[track_caller]
fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The whole way: train, detect against the truth, train again without the suspects.
#[test]
fn a_planted_picture_is_found_and_left_out() {
    let (bench, (dir, shards)) = (Bench::new(), planted());
    bench.run("suspicious", &["--shards", &shards, "--epochs", "4"]);
    let (run, truth) = (bench.folder("suspicious"), dir.path().join("poison.jsonl"));
    let flags = ["--truth", truth.to_str().unwrap(), "--threshold", "0.999999"];
    let ranked = ["--by", "duplicates", "--top", "12"];
    let told = detect(&run, &[&flags[..], &ranked].concat());
    assert!(told.status.success(), "{}", text(&told));
    let told = text(&told);
    assert!(told.contains("72 pairs, 4 epochs of training written down, 12 suspects"), "{told}");
    assert!(told.contains("12 of 12 poisoned pairs are among them"), "{told}");

    let out = run.join("detect");
    let summary: Value = json_lines(&out.join("detection.json")).remove(0);
    assert_eq!((&summary["records"], &summary["records_of_others"]), (&(4 * 72).into(), &0.into()));
    let figures = &summary["scores"]["score"];
    assert_eq!(figures["metrics"]["auroc"], 1.0, "{figures}");
    assert_eq!(figures["metrics"]["precision_at"][0], serde_json::json!([12, 1.0]));
    let sum =
        |bins: &Value| bins.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(&figures["histogram"]["all"]), 72);
    assert_eq!(sum(&figures["histogram"]["poisoned"]), 12);
    for name in ["own_distance", "margin", "replaced", "unlikeness", "clip_distance", "dao"] {
        assert_eq!(summary["scores"][name]["known"], 72, "{name}");
    }

    let clusters = json_lines(&out.join("clusters.json")).remove(0);
    let picture = &clusters["pictures"][0];
    assert_eq!((&picture["size"], &picture["rows"][0]["key"]), (&12.into(), &"000023".into()));
    let of_row = json_lines(&out.join("scores.jsonl")).remove(23);
    let conflict = |of: &Value| of["conflict"].as_f64().unwrap() as f32;
    assert_eq!((&of_row["key"], conflict(&of_row)), (&"000023".into(), conflict(picture)));
    assert!(clusters["captions"].as_array().unwrap().iter().any(|c| c["size"] == 11));

    let scores = json_lines(&out.join("scores.jsonl"));
    assert_eq!(scores.len(), 72);
    let suspects = json_lines(&out.join("quarantine.jsonl"));
    let is_planted = |suspect: &Value| {
        let index = suspect["index"].as_u64().unwrap();
        index % 5 == 3 && index < 30
    };
    assert!(suspects.len() == PLANTED && suspects.iter().all(is_planted));
    for (rank, suspect) in suspects.iter().enumerate() {
        let line = scores.iter().find(|s| s["key"] == suspect["key"]).unwrap();
        let same = |name: &str| line[name] == suspect[name];
        assert!(same("score") && same("rank") && same("shard") && suspect["rank"] == rank + 1);
        assert!(suspect["reason"].as_str().unwrap().contains(" % of pairs)"), "{suspect}");
    }

    let list = out.join("quarantine.jsonl");
    let exclude = ["--shards", &shards, "--exclude", list.to_str().unwrap(), "--epochs", "1"];
    let told = text(&bench.run("again", &exclude));
    assert!(told.contains("delivered 56, skipped 12 (excluded 12)"), "{told}");
}

/// Neither threads nor a second run change a byte; features can be handed over; a run that wrote
/// nothing down leaves its scores out.
#[test]
fn the_same_run_is_accused_the_same() {
    let (bench, (_dir, shards)) = (Bench::new(), planted());
    bench.run("same", &["--shards", &shards, "--epochs", "2"]);
    let run = bench.folder("same");
    let files = ["scores.jsonl", "quarantine.jsonl", "clusters.json", "detection.json"];
    let read = |folder: &Path| files.map(|name| fs::read(folder.join(name)).unwrap());
    assert!(detect(&run, &[]).status.success());
    let first = read(&run.join("detect"));
    let accused = |pair: &Value| {
        pair["common"].as_f64().is_some_and(|v| v >= 6.0) || pair["conflict"].as_f64() >= Some(2.0)
    };
    let accused =
        json_lines(&run.join("detect/scores.jsonl")).iter().filter(|p| accused(p)).count();
    let suspects = json_lines(&run.join("detect/quarantine.jsonl"));
    assert_eq!(suspects.len(), accused, "those against whom there is evidence");
    for suspect in suspects {
        let reason = suspect["reason"].as_str().unwrap();
        assert!(reason.starts_with("co"), "the evidence comes first: {reason}");
    }
    let (out, features) = (run.join("other"), run.join("detect/features"));
    let again = ["--threads", "1", "--output", out.to_str().unwrap()];
    let told = detect(&run, &[&again[..], &["--features", features.to_str().unwrap()]].concat());
    assert!(told.status.success(), "{}", text(&told));
    assert!(read(&out) == first);
    lengths_matter_to_distances_only(&run, &features);

    fs::remove_dir_all(run.join("matches")).unwrap();
    assert!(detect(&run, &[]).status.success());
    let summary: Value = json_lines(&run.join("detect/detection.json")).remove(0);
    assert!(summary["scores"]["margin"].is_null() && summary["scores"]["dao"]["known"] == 72);
}

/// Pictures' features four times as long, a power of two, change no other bit.
fn lengths_matter_to_distances_only(run: &Path, features: &Path) {
    let before = json_lines(&run.join("detect/scores.jsonl"));
    let path = features.join("images.npy");
    let mut array = fs::read(&path).unwrap();
    let head = 10 + usize::from(u16::from_le_bytes([array[8], array[9]]));
    for value in array[head..].as_chunks_mut::<4>().0 {
        *value = (4.0 * f32::from_le_bytes(*value)).to_le_bytes();
    }
    fs::write(&path, array).unwrap();
    let (out, features) = (run.join("longer"), features.to_str().unwrap());
    let told = detect(run, &["--features", features, "--output", out.to_str().unwrap()]);
    assert!(told.status.success(), "{}", text(&told));
    let distance = |of: &mut Value| of["k_distance"].take().as_f64().unwrap() as f32;
    let after = json_lines(&out.join("scores.jsonl"));
    for (mut before, mut after) in before.into_iter().zip(after) {
        assert_eq!(4.0 * distance(&mut before), distance(&mut after));
        assert_eq!(before, after);
    }
}

#[test]
fn what_cannot_be_done_is_told() {
    let (bench, (dir, shards)) = (Bench::new(), planted());
    bench.run("odd", &["--shards", &shards, "--epochs", "2"]);
    let run = bench.folder("odd");
    assert!(detect(&run, &[]).status.success());
    let features = run.join("detect/features");
    let given = ["--features", features.to_str().unwrap()];
    let refused = |code: i32, flags: &[&str], word: &str| {
        let output = detect(&run, flags);
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {told}");
        assert!(told.contains(word) && !told.contains("panicked"), "{flags:?}: {told}");
    };
    refused(2, &["--by", "dao,looks"], "--by: looks; expected some of clip_distance, ");
    refused(2, &["--density-batch", "32"], "--density-batch: 32; expected at least 33");
    refused(2, &["--threads", "0"], "--threads: 0; expected at least 1");
    refused(1, &["--truth", "/nowhere.jsonl"], "/nowhere.jsonl");
    let told = detect(dir.path(), &[]);
    assert_eq!(told.status.code(), Some(1), "{}", text(&told));
    assert!(text(&told).contains("no weights in this directory"), "{}", text(&told));

    let keys = fs::read_to_string(features.join("keys.jsonl")).unwrap();
    fs::write(features.join("keys.jsonl"), keys.split_inclusive('\n').skip(1).collect::<String>())
        .unwrap();
    refused(1, &given, "images.npy: 72 rows; keys.jsonl has 71 lines");
    fs::write(features.join("keys.jsonl"), keys).unwrap();
    let records = run.join("matches/epoch_1.npy");
    let bytes = fs::read(&records).unwrap();
    fs::write(&records, &bytes[..bytes.len() - 30]).unwrap();
    refused(1, &given, "epoch_1.npy: 2 of the records it claims are missing");
    fs::write(&records, b"\x93NUMPY").unwrap();
    refused(1, &given, "epoch_1.npy: not a file of matches");
}
