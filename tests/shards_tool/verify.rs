//! `roclip-shards verify`, `index`: every planted defect is found, and nothing else.

use std::fs;
use std::path::Path;

use super::{expect, reasons, run};
use crate::common::shards::*;

/// Where the data of a member begin.
fn data_of(tar: &[u8], name: &str) -> usize {
    let is_it = |block: &[u8]| block.starts_with(name.as_bytes()) && &block[257..262] == b"ustar";
    (tar.chunks(512).position(is_it).unwrap() + 1) * 512
}

/// Six pairs in `a.tar`, six in `b.tar`, which is the one damaged; with an index or without.
fn planted(is_indexed: bool, damage: impl FnOnce(&mut Vec<u8>)) -> (String, Vec<(String, String)>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), tar(&members(0, 6))).unwrap();
    let mut bytes = tar(&members(6, 12));
    fs::write(dir.path().join("b.tar"), &bytes).unwrap();
    if is_indexed {
        expect(0, dir.path(), &["index", "@"]);
    }
    damage(&mut bytes);
    fs::write(dir.path().join("b.tar"), bytes).unwrap();
    let args = ["verify", "@", "--ledger", "@/skips.jsonl"];
    let answer = run(dir.path(), &args);
    let found = reasons(&dir.path().join("skips.jsonl"));
    assert_eq!(answer.code, if found.is_empty() { 0 } else { 3 }, "{}", answer.text);
    (answer.text, found)
}

#[track_caller]
fn finds(is_indexed: bool, damage: impl FnOnce(&mut Vec<u8>), expected: &[(&str, &str)]) {
    let (text, found) = planted(is_indexed, damage);
    let expected: Vec<_> = expected.iter().map(|(k, r)| (k.to_string(), r.to_string())).collect();
    assert_eq!(found, expected, "{text}");
}

fn flip(name: &'static str, at: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let start = data_of(bytes, name);
        bytes[start + at] ^= 1;
    }
}

#[test]
fn nothing_is_found_where_nothing_is() {
    finds(false, |_| {}, &[]);
    finds(true, |_| {}, &[]);
}

#[test]
fn a_changed_picture_or_caption_is_found() {
    finds(false, flip("000008.png", 45), &[("000008", "broken-image")]);
    finds(true, flip("000008.png", 45), &[("000008", "checksum-mismatch")]);
    // A letter for another: only the index knows.
    finds(false, flip("000008.txt", 3), &[]);
    finds(true, flip("000008.txt", 3), &[("000008", "checksum-mismatch")]);
    let bad_text = |bytes: &mut Vec<u8>| {
        let at = data_of(bytes, "000008.txt");
        bytes[at] = 0xff;
    };
    finds(false, bad_text, &[("000008", "caption-not-utf8")]);
    finds(true, bad_text, &[("000008", "caption-not-utf8")]);
}

#[test]
fn bytes_that_no_pair_has_are_found_with_an_index() {
    // The padding behind a member.
    finds(false, flip("000008.txt", 500), &[]);
    finds(true, flip("000008.txt", 500), &[("-", "checksum-mismatch")]);
    // What follows the last one, where there should be zeros: told once.
    for is_indexed in [false, true] {
        let end = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() = 1;
        finds(is_indexed, end, &[("-", "damaged-header")]);
    }
}

#[test]
fn a_broken_header_is_found_and_its_pair_named() {
    let break_header = |name: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let at = data_of(bytes, name) - 512;
            bytes[at] ^= 1;
        }
    };
    for is_indexed in [false, true] {
        let expected = [("-", "damaged-header"), ("000008", "damaged-header")];
        finds(is_indexed, break_header("000008.png"), &expected);
        finds(is_indexed, break_header("000008.txt"), &expected);
    }
}

#[test]
fn a_cut_shard_names_what_it_lost_if_it_has_an_index() {
    let cut = |bytes: &mut Vec<u8>| {
        let at = data_of(bytes, "000009.png") + 10;
        bytes.truncate(at);
    };
    let (_, without) = planted(false, cut);
    assert!(without.contains(&("000009".into(), "truncated".into())), "{without:?}");
    let (_, with) = planted(true, cut);
    let lost = [("000010", "checksum-mismatch"), ("000011", "checksum-mismatch")];
    let lost = lost.map(|(key, reason)| (key.to_owned(), reason.to_owned()));
    assert_eq!(with, [&without[..], &lost].concat());
}

#[test]
fn a_pair_taken_out_or_put_in_is_found_with_an_index() {
    let take_out = |bytes: &mut Vec<u8>| {
        let (from, to) = (data_of(bytes, "000008.png") - 512, data_of(bytes, "000009.png") - 512);
        bytes.drain(from..to);
    };
    finds(false, take_out, &[]);
    // What follows lies elsewhere: it cannot be told from pairs put in.
    let (text, found) = planted(true, take_out);
    assert!(found.contains(&("000008".into(), "checksum-mismatch".into())), "{found:?}");
    assert!(text.contains("checksum-mismatch"), "{text}");
    finds(true, |bytes| *bytes = tar(&members(20, 30)), &[("-", "checksum-mismatch")]);
    finds(
        true,
        |bytes| *bytes = b"<html>".to_vec(),
        &[("-", "not-a-tar"), ("-", "checksum-mismatch")],
    );
    finds(true, Vec::clear, &[("-", "empty-shard"), ("-", "checksum-mismatch")]);
}

#[test]
fn an_index_that_cannot_be_read_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), tar(&members(0, 6))).unwrap();
    fs::write(dir.path().join("a.tar.index.jsonl"), "{\"format\":").unwrap();
    let text = expect(3, dir.path(), &["verify", "@", "--ledger", "@/skips.jsonl"]);
    assert!(text.contains("6 good"), "{text}");
    assert_eq!(
        reasons(&dir.path().join("skips.jsonl")),
        [("-".into(), "checksum-mismatch".into())]
    );
}

#[test]
fn the_report_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut list = members(0, 40);
    for n in [3, 17, 30] {
        list[2 * n].1.truncate(50);
        list[2 * n + 3].1 = b" ".to_vec();
    }
    fs::write(dir.path().join("a.tar"), tar(&list)).unwrap();
    let ledger = |threads: &str| {
        let path = dir.path().join(threads);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roclip-shards"));
        command.env("RAYON_NUM_THREADS", threads).arg("verify").arg(dir.path());
        let output = command.arg("--ledger").arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        (output.stdout, fs::read(path).unwrap())
    };
    assert_eq!(ledger("1"), ledger("7"));
    assert_eq!(reasons(&dir.path().join("7")).len(), 6);
}

#[test]
fn index_writes_what_is_missing_and_checks_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let put = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    let says = |code, args: &[&str], part: &str| {
        let text = expect(code, root, args);
        assert!(text.contains(part), "{part}: {text}");
    };
    put("a.tar", &tar(&members(0, 6)));
    put("b.tar", &tar(&members(6, 10)));
    says(3, &["index", "@", "--check-only"], "no index");
    assert!(!root.join("sizes.json").exists());
    says(0, &["index", "@"], "10 pairs; indexed 2 shards, 0 were fresh");
    says(0, &["index", "@"], "indexed 0 shards, 2 were fresh");
    // A list may name a shard more than once; all are indexed at the same time.
    let again = ["@/a.tar"; 16].join("::");
    fs::remove_file(root.join("a.tar.index.jsonl")).unwrap();
    says(0, &["index", &again], "96 pairs");
    says(0, &["index", "@", "--check-only"], "2 were fresh");
    let sizes = fs::read_to_string(root.join("sizes.json")).unwrap();
    let sizes: serde_json::Value = serde_json::from_str(&sizes).unwrap();
    assert_eq!(sizes, serde_json::json!({"a.tar": 6, "b.tar": 4}));
    // Of the same size: only its bytes tell.
    let time = fs::metadata(root.join("b.tar")).unwrap().modified().unwrap();
    let mut other = tar(&members(6, 10));
    flip("000007.png", 45)(&mut other);
    put("b.tar", &other);
    fs::File::options().write(true).open(root.join("b.tar")).unwrap().set_modified(time).unwrap();
    says(3, &["index", "@", "--check-only"], "b.tar: changed since it was indexed");
    put("b.tar", &other[..other.len() - 1024]);
    says(3, &["index", "@"], "b.tar: truncated: no end-of-archive marker");
    says(3, &["index", "@/{a,b,c}.tar"], "c.tar: cannot");
    says(3, &["index", "@", "--text-key", "caption"], "0 pairs; indexed 2 shards");
    assert!(only_whole_files(root));
}

fn only_whole_files(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().ends_with(".part"))
}
