//! `roclip-shards filter`.

use std::fs;
use std::path::Path;

use super::{all_members, expect, shards_in};
use crate::common::shards::*;

/// Three shards of four samples; each has members that nobody asks for, too.
fn corpus() -> (tempfile::TempDir, Vec<(String, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    fs::create_dir(dir.path().join("in")).unwrap();
    for shard in 0..3u32 {
        let mut list: Vec<(String, Vec<u8>)> = Vec::new();
        for n in 4 * shard..4 * shard + 4 {
            list.extend(members(n, n + 1));
            list.push((format!("{n:06}.NPY"), vec![n as u8; 700 * n as usize]));
            list.push((format!("{n:06}.seg.json"), b"\0\xff not json".to_vec()));
        }
        list.insert(0, ("__meta__".into(), b"nobody's".to_vec()));
        fs::write(dir.path().join(format!("in/{shard}.tar")), tar(&list)).unwrap();
        list.remove(0);
        all.extend(list);
    }
    (dir, all)
}

fn filtered(dir: &Path, code: i32, more: &[&str]) -> (String, Vec<(String, Vec<u8>)>) {
    let args = [&["filter", "@/in", "@/out", "--overwrite"], more].concat();
    let text = expect(code, dir, &args);
    (text, all_members(&dir.join("out")))
}

/// The members of these samples.
fn of(all: &[(String, Vec<u8>)], wanted: impl Fn(u32) -> bool) -> Vec<(String, Vec<u8>)> {
    let is_wanted = |name: &String| wanted(name[..6].parse().unwrap());
    all.iter().filter(|(name, _)| is_wanted(name)).cloned().collect()
}

#[test]
fn lists_drop_or_keep_whole_samples() {
    let (dir, all) = corpus();
    let root = dir.path();
    fs::write(root.join("keys.txt"), "000001\n000007\r\nnone\n").unwrap();
    let (text, kept) = filtered(root, 0, &["--exclude", "@/keys.txt"]);
    assert!(text.contains("12 samples: 10 kept in 1 shards, 2 dropped"), "{text}");
    assert!(kept == of(&all, |n| n != 1 && n != 7));
    let (_, rest) = filtered(root, 0, &["--exclude", "@/keys.txt", "--keep", "--shard-size", "1"]);
    assert!(rest == of(&all, |n| n == 1 || n == 7));
    assert_eq!(shards_in(&root.join("out")).len(), 2);
    // By shard and key: the same key in another shard stays.
    let lines =
        "{\"shard\":\"in/0.tar\",\"key\":\"000001\"}\n{\"shard\":\"1.tar\",\"key\":\"000002\"}\n";
    fs::write(root.join("pairs.jsonl"), lines).unwrap();
    let (_, kept) = filtered(root, 0, &["--exclude", "@/pairs.jsonl"]);
    assert!(kept == of(&all, |n| n != 1));
}

#[test]
fn what_verify_found_can_be_filtered_out() {
    let (dir, all) = corpus();
    let root = dir.path();
    let path = root.join("in/1.tar");
    let mut bytes = fs::read(&path).unwrap();
    let picture = png(6);
    let at = bytes.windows(picture.len()).position(|w| w == picture).unwrap();
    bytes[at + 45] ^= 1;
    fs::write(&path, bytes).unwrap();
    expect(3, root, &["verify", "@/in", "--ledger", "@/skips.jsonl"]);
    let (_, kept) = filtered(root, 0, &["--exclude", "@/skips.jsonl"]);
    assert!(kept == of(&all, |n| n != 6));
    expect(0, root, &["verify", "@/out"]);
}

#[test]
fn scores_choose_by_their_bounds() {
    let (dir, all) = corpus();
    let root = dir.path();
    let mut csv = "key,score\n".to_owned();
    for n in 0..10 {
        csv += &format!("{n:06},{}\n", f64::from(n) / 10.0 - 0.5);
    }
    csv += "\"with \"\"quotes\"\", and comma\",1e300\n000003,nan\n";
    fs::write(root.join("s.csv"), &csv).unwrap();
    let scores = ["--scores", "@/s.csv", "--min", "-0.4", "--max", "0.2"];
    let (text, kept) = filtered(root, 0, &scores);
    assert!(text.contains("6 kept") && text.contains("2 had no score"), "{text}");
    assert!(kept == of(&all, |n| (1..=7).contains(&n) && n != 3));
    let (_, kept) = filtered(root, 0, &[&scores[..], &["--missing", "keep"]].concat());
    assert!(kept == of(&all, |n| (1..=7).contains(&n) && n != 3 || n >= 10));
    let (_, kept) = filtered(root, 0, &[&scores[..], &["--keep"]].concat());
    assert!(kept == of(&all, |n| [0, 3, 8, 9].contains(&n)));
    let jsonl = "{\"key\":\"000004\",\"score\":2}\n{\"key\":\"000005\",\"score\":1,\"x\":[]}\n";
    fs::write(root.join("s.jsonl"), jsonl).unwrap();
    let (_, kept) = filtered(root, 0, &["--scores", "@/s.jsonl", "--min", "1.5"]);
    assert!(kept == of(&all, |n| n == 4));
}

#[test]
fn hostile_lists_are_errors_and_write_nothing() {
    let (dir, _) = corpus();
    let root = dir.path();
    let cases: [(&str, &[u8], &str); 7] = [
        ("a.csv", b"a,1\nb,2,\n", "line 2"),
        ("b.csv", b"a\n", "line 1"),
        ("c.csv", b"\"a,1\n", "line 1"),
        ("d.csv", b"a,1\n\xff,1\n", "line 2"),
        ("e.csv", &[b'a'; 100_000], "line 1: more than"),
        ("f.jsonl", b"{\"key\":\"a\"}\n", "line 1"),
        ("g.jsonl", b"{\"key\":\"a\",\"score\":\"\0\"}\n", "line 1"),
    ];
    for (name, bytes, part) in cases {
        fs::write(root.join(name), bytes).unwrap();
        let list = format!("@/{name}");
        let text = expect(1, root, &["filter", "@/in", "@/out", "--scores", &list, "--min", "0"]);
        assert!(text.contains(part), "{name}: {text}");
        assert!(!root.join("out").exists());
    }
    fs::write(root.join("k.txt"), "x").unwrap();
    let text = expect(2, root, &["filter", "@/in", "@/in", "--exclude", "@/k.txt", "--overwrite"]);
    assert!(text.contains("another folder"), "{text}");
    assert_eq!(shards_in(&root.join("in")).len(), 3);
}

#[test]
fn damage_costs_its_sample_and_shows_in_the_exit_code() {
    let (dir, all) = corpus();
    let root = dir.path();
    let path = root.join("in/1.tar");
    let mut bytes = fs::read(&path).unwrap();
    let header = bytes.chunks(512).position(|block| block.starts_with(b"000005.txt")).unwrap();
    bytes[512 * header] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(root.join("in/2.tar"), b"<html>").unwrap();
    fs::write(root.join("k.txt"), "000000").unwrap();
    let (text, kept) = filtered(root, 3, &["--exclude", "@/k.txt"]);
    assert!(text.contains("damaged-header 1") && text.contains("not-a-tar 1"), "{text}");
    let intact = of(&all, |n| (1..8).contains(&n));
    assert!(kept.iter().all(|member| intact.contains(member)));
    assert_eq!(kept.len(), intact.len() - 1);
    let (_, kept) = filtered(root, 3, &["--exclude", "@/k.txt", "--zstd", "3"]);
    assert_eq!(kept.len(), intact.len() - 1);
}
