//! Indices beside shards.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use roclip::data::count::{ShardCount, count_pairs};
use roclip::data::index::{Header, ShardIndex, path_beside, write_sizes};
use roclip::data::ledger::Reason;
use roclip::data::sample::{Captions, Contents, Fields, Found, Pair, SampleReader};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::Shard;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::shards::*;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build(path: &Path) -> ShardIndex {
    let index =
        ShardIndex::build(&Shard::file(path), &Fields::default(), &ShardLimits::default()).unwrap();
    index.write(&path_beside(path)).unwrap();
    let again = ShardIndex::read(&path_beside(path)).unwrap();
    assert_eq!(again, index);
    index
}

fn count(path: &Path) -> ShardCount {
    let counts =
        count_pairs(&[Shard::file(path)], &Fields::default(), &ShardLimits::default()).unwrap();
    counts.shards.into_iter().next().unwrap()
}

/// Good, bad, long-named and foreign members.
fn mixed() -> Vec<(String, Vec<u8>)> {
    let mut list = members(0, 3);
    list.push(("blank.png".into(), png(3)));
    list.push(("blank.txt".into(), b" ".to_vec()));
    list.push(("lone.json".into(), b"{}".to_vec()));
    list.push((format!("{}.png", "k".repeat(150)), png(4)));
    list.push((format!("{}.txt", "k".repeat(150)), b"a long name".to_vec()));
    list.push(("noimage.txt".into(), b"a caption".to_vec()));
    list.extend(members(7, 9));
    list
}

/// The same with long names as GNU tar writes them, or in PAX.
fn archive(members: &[(String, Vec<u8>)], is_pax: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        let is_long = is_pax && name.len() > 100;
        if is_long {
            builder.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        }
        let name = if is_long { "short" } else { name };
        builder.append_data(&mut header, name, &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn compressed(tar: &[u8]) -> [(&'static str, Vec<u8>); 3] {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(tar).unwrap();
    let zstd = zstd::encode_all(tar, 3).unwrap();
    [("a.tar", tar.to_vec()), ("a.tar.gz", gzip.finish().unwrap()), ("a.tar.zst", zstd)]
}

/// The pairs of a shard, read in order.
fn pairs(path: &Path) -> Vec<Pair> {
    let (shard, limits) = (Shard::file(path), ShardLimits::default());
    let input = ShardReader::open(&shard, &limits, Default::default()).unwrap();
    let fields = Fields::default();
    let place = (&shard.name, 5);
    let reader = SampleReader::new(input, place, &fields, Contents::Read, &limits);
    reader
        .filter_map(|found| match found {
            Found::Pair(pair) => Some(pair),
            _ => None,
        })
        .collect()
}

#[test]
fn an_index_says_where_pairs_lie_and_what_they_were() {
    for is_pax in [false, true] {
        check_places(&mixed(), is_pax);
    }
}

fn check_places(list: &[(String, Vec<u8>)], is_pax: bool) {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(list, is_pax);
    // What the `tar` crate says of each member: header and end of data.
    let mut archive = tar::Archive::new(&tar[..]);
    let places: Vec<(String, u64)> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|e| (e.path().unwrap().display().to_string(), e.raw_header_position()))
        .collect();
    for (name, bytes) in compressed(&tar) {
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let index = build(&path);
        let header = &index.header;
        assert_eq!((header.shard.as_str(), header.bytes), (name, bytes.len() as u64));
        assert_eq!(header.sha256.to_string(), hex(&bytes));
        assert_eq!((header.pairs, header.seen), (7, 8));
        let mut end = 0;
        for (n, entry) in index.entries.iter().enumerate() {
            let member = |ext: &str| {
                let name = format!("{}.{ext}", entry.key);
                list.iter().find(|(n, _)| *n == name).map(|(_, data)| data)
            };
            let first = if member("png").is_some() { "png" } else { "txt" };
            let name = format!("{}.{first}", entry.key);
            let at = places.iter().find(|(n, _)| *n == name).unwrap().1;
            // A long name has two blocks in front: its own header and 512 bytes of name.
            let extension = if entry.key.len() > 100 { 2 * 512 } else { 0 };
            assert_eq!(entry.offset, at - extension, "{name}");
            assert!(n == 0 || entry.offset == end || entry.key.starts_with("kk"), "{name}");
            end = entry.offset + entry.length;
            if entry.reason.is_none() {
                let sums = (entry.image.unwrap().to_string(), entry.caption.unwrap().to_string());
                assert_eq!(sums, (hex(member("png").unwrap()), hex(member("txt").unwrap())));
            }
        }
        assert_eq!(end, tar.len() as u64);
        let reasons: Vec<_> = index.entries.iter().filter_map(|e| e.reason).collect();
        assert_eq!(reasons, [Reason::EmptyCaption, Reason::MissingImage]);
    }
}

#[test]
fn a_fetched_pair_is_the_one_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in compressed(&archive(&mixed(), true)) {
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let (index, shard) = (build(&path), Shard::file(&path));
        let fetch = |n| index.fetch((&shard, 5), n, &ShardLimits::default());
        let mut all = pairs(&path);
        while let Some(pair) = all.pop() {
            assert_eq!(fetch(pair.id.index as usize), Ok(pair));
        }
        assert_eq!(fetch(3).unwrap_err().reason, Reason::EmptyCaption);
        // One bit of the last picture: only that pair is refused.
        let mut altered = bytes.clone();
        if name.ends_with(".tar") {
            let png = png(8);
            let at = altered.windows(png.len()).position(|window| window == png).unwrap();
            altered[at + 20] ^= 1;
            fs::write(&path, &altered).unwrap();
            assert_eq!(fetch(7).unwrap_err().reason, Reason::ChecksumMismatch);
            assert!(fetch(6).is_ok());
        }
        for cut in [bytes.len() / 3, 0] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(fetch(6).is_err());
        }
    }
}

fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_shard_that_changed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let bytes = tar(&members(0, 4));
    fs::write(&path, &bytes).unwrap();
    let header = build(&path).header;
    set_time(&path, 0);
    set_time(&path_beside(&path), 0);
    assert!(!header.is_stale(&path) && !header.is_altered(&path).unwrap());
    set_time(&path, 1);
    assert!(header.is_stale(&path) && !header.is_altered(&path).unwrap());
    let mut other = bytes.clone();
    other[600] ^= 1;
    fs::write(&path, &other).unwrap();
    set_time(&path, 0);
    assert!(!header.is_stale(&path) && header.is_altered(&path).unwrap());
    fs::write(&path, [&bytes[..], &[0; 512]].concat()).unwrap();
    set_time(&path, 0);
    assert!(header.is_stale(&path) && header.is_altered(&path).unwrap());
    fs::remove_file(&path).unwrap();
    assert!(header.is_stale(&path) && header.is_altered(&path).is_err());
}

/// Shards sound and damaged; the index must change no count.
#[test]
fn an_index_saves_the_counting_and_changes_no_count() {
    let dir = tempfile::tempdir().unwrap();
    let whole = archive(&mixed(), false);
    let mut cases: Vec<Vec<u8>> = compressed(&whole).into_iter().map(|(_, bytes)| bytes).collect();
    for at in (0..whole.len()).step_by(700) {
        cases.push(whole[..at].to_vec());
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        cases.push(flipped);
    }
    cases.push(b"<html>404</html>".to_vec());
    for (n, bytes) in cases.iter().enumerate() {
        let path = dir.path().join(format!("{n}.tar"));
        fs::write(&path, bytes).unwrap();
        let plain = count(&path);
        build(&path);
        assert_eq!(count(&path), plain, "case {n}");
    }
    // That it is read at all: a number no shard has, believed while fresh, of these fields only.
    let path = dir.path().join("0.tar");
    let text = fs::read_to_string(path_beside(&path)).unwrap();
    assert!(text.contains(r#""pairs":7"#));
    fs::write(path_beside(&path), text.replace(r#""pairs":7"#, r#""pairs":5"#)).unwrap();
    assert_eq!(count(&path).pairs, 5);
    let fields = Fields { captions: Captions::Text("caption".into()), ..Fields::default() };
    let shards = [Shard::file(&path)];
    assert_eq!(count_pairs(&shards, &fields, &ShardLimits::default()).unwrap().pairs(), 0);
    set_time(&path_beside(&path), 0);
    assert_eq!(count(&path).pairs, 7);
    fs::write(path_beside(&path), b"{").unwrap();
    assert_eq!(count(&path).pairs, 7);
}

fn index_text(dir: &Path) -> (PathBuf, Vec<Value>) {
    let path = dir.join("a.tar");
    fs::write(&path, tar(&members(0, 3))).unwrap();
    build(&path);
    let text = fs::read_to_string(path_beside(&path)).unwrap();
    (path_beside(&path), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn a_hostile_index_is_an_error_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sound) = index_text(dir.path());
    let refused = |lines: &[Value], part: &str| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, text).unwrap();
        let message = ShardIndex::read(&path).unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
    };
    let changes: [(usize, &str, Value, &str); 10] = [
        (0, "format", json!("zip"), "line 1: \"zip\""),
        (0, "version", json!(2), "version 2"),
        (0, "seen", json!(u64::MAX), "at most"),
        (0, "pairs", json!(4), "4 of 3"),
        (0, "pairs", json!(-1), "line 1"),
        (0, "sha256", json!("é".repeat(32)), "hexadecimal"),
        (1, "image", json!("00"), "64 digits"),
        (2, "offset", json!(0), "line 3: byte 0 belongs to two pairs"),
        (3, "length", json!(u64::MAX), "line 4: no such end"),
        (2, "key", json!("k".repeat(40_000)), "line 3: more than 32768 bytes"),
    ];
    for (line, field, value, part) in changes {
        let mut lines = sound.clone();
        lines[line][field] = value;
        refused(&lines, part);
    }
    refused(&sound[..3], "2 of 3");
    refused(&[&sound[..], &sound[3..]].concat(), "line 5: more than the 3");
    refused(&[], "no header");
    for bytes in [&b"\0\xff\n"[..], &[b'['; 30_000], &[b'{'; 1 << 20], b"\n\n"] {
        fs::write(&path, bytes).unwrap();
        assert!(ShardIndex::read(&path).is_err() && Header::read(&path).is_err());
    }
}

#[test]
fn sizes_are_added_to_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = || fs::read_to_string(dir.path().join("sizes.json")).unwrap();
    for name in ["a.tar", "b.tar"] {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    let add = |name: &str, n| write_sizes(dir.path(), &[(name.to_owned(), n)].into());
    add("gone.tar", 1).unwrap();
    add("a.tar", 7).unwrap();
    add("b.tar", 8).unwrap();
    let read: Value = serde_json::from_str(&sizes()).unwrap();
    assert_eq!(read, json!({"a.tar": 7, "b.tar": 8}));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    fs::write(dir.path().join("sizes.json"), "[1]").unwrap();
    assert!(add("a.tar", 9).unwrap_err().to_string().contains("remove it"));
}
