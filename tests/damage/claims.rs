//! Goal: what a header claims without ground costs its own pair and no more.
//! Method: headers with a good checksum and a lie in them. What must survive follows from where
//! the lie stands.

use std::io::Read;

use roclip::data::ledger::Reason;
use roclip::data::shard::ShardLimits;
use roclip::data::tar::{Event, Input, TarReader};

use super::*;

#[test]
fn sizes_that_lie_cost_their_pair() {
    let tar = tar(&members(0, 8));
    let png = header_of(&tar, "000003.png");
    let giants = [(1 << 30) + 1, 8 << 30, 0o77_777_777_777, tar.len() as u64, 1 << 29];
    for size in giants.into_iter().chain([0, 1, 511, 513, 700, 4096]) {
        let mut tar = tar.clone();
        set_size(&mut tar, png, size);
        let report = read(&tar);
        let intact = without(keys(0, 8), 3);
        let neighbours = |key: &String| *key == "000004" || *key == "000005";
        if size > tar.len() as u64 / 2 {
            assert_eq!(report.kept, intact, "size {size}");
            assert_eq!(report.skipped.len(), 1, "size {size}: {report:?}");
        } else {
            // Of a size that fits nobody can say that it is wrong; the picture tells.
            let mut far = intact.clone();
            far.retain(|key| !neighbours(key));
            assert!(far.iter().all(|key| report.kept.contains(key)), "size {size}: {report:?}");
        }
        // The same through a source that does not know its end. What is too large to be skipped
        // is searched, and so is what is small enough to be read; between the two the claim is
        // followed, to the end.
        let outcome = load_bytes(&gzip(&tar));
        let limits = ShardLimits::default();
        if size > limits.image_bytes && size <= limits.skip_bytes {
            assert_eq!(outcome.keys, keys(0, 3), "size {size}");
        } else if size > tar.len() as u64 / 2 {
            assert_eq!(outcome.keys, intact, "size {size}");
        }
    }
    for field in [
        b"99999999999\0",
        b"-0000000001\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"+0000000017\0",
    ] {
        let mut tar = tar.clone();
        tar[png + 124..png + 136].copy_from_slice(field);
        seal(&mut tar[png..png + BLOCK]);
        assert_eq!(read(&tar).kept, without(keys(0, 8), 3));
    }
}

#[test]
fn a_huge_size_in_a_pipe_costs_what_cannot_be_read_twice_and_no_memory() {
    let mut tar = tar(&members(0, 8));
    let at = header_of(&tar, "000003.png");
    // Small enough to be read, so it is put back and searched.
    set_size(&mut tar, at, 60 << 20);
    let outcome = load_bytes(&gzip(&tar));
    assert_eq!(outcome.keys, without(keys(0, 8), 3));
    assert_eq!(outcome.entries.len(), 1);
    assert_eq!(outcome.entries[0].reason, Reason::Truncated);
}

/// An extension larger than any honest one is searched, not skipped: it stands between two pairs
/// and costs neither.
#[test]
fn extensions_that_lie_cost_no_pair() {
    let tar = tar(&members(0, 8));
    let at = header_of(&tar, "000003.png");
    for typeflag in *b"gKxL" {
        for size in [(1 << 20) + 1, 8 << 20, 1 << 30, 8 << 30] {
            let mut lie = raw_tar(&[(b"lie", typeflag, b"")]);
            lie.truncate(BLOCK);
            set_size(&mut lie, 0, size);
            let report = read(&[&tar[..at], &lie, &tar[at..]].concat());
            assert_eq!(report.kept, keys(0, 8), "type {} of {size} bytes", char::from(typeflag));
        }
    }
}

/// A source that does not know where it ends.
struct Pipe<'a>(&'a [u8]);

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Input for Pipe<'_> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<u64> {
        self.0.skip(bytes)
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// Headers that each claim all that follows. The first has to be read to be found out; after that
/// the end is known, and no other is read.
#[test]
fn nested_claims_do_not_multiply_the_work() {
    let mut header = raw_tar(&[(b"a.png", b'0', b"")]);
    header.truncate(BLOCK);
    set_size(&mut header, 0, 60 << 20);
    let mut tar = header.repeat(1000);
    tar.truncate(1000 * BLOCK - 7);
    let mut reader = TarReader::new(Pipe(&tar), 1 << 30);
    let (mut claims, mut read) = (0, 0);
    while let Some(event) = reader.next_event().unwrap() {
        let Event::Member(member) = event else { continue };
        claims += 1;
        read += usize::from(member.fault.is_none());
        let refusal = reader.read_data(&member, 64 << 20, &mut Vec::new()).unwrap_err();
        assert_eq!(refusal.reason, Reason::Truncated);
    }
    assert_eq!((claims, read), (999, 1));
}

/// Links, devices and directories have no data, whatever size they claim; an unknown type has.
/// Both as in `tarfile`.
#[test]
fn sizes_of_what_has_no_data_are_not_believed() {
    let kinds: [(&[u8], u8); 7] = [
        (b"link.png", b'1'),
        (b"link.png", b'2'),
        (b"link.png", b'3'),
        (b"link.png", b'4'),
        (b"link.png", b'5'),
        (b"link.png", b'6'),
        (b"directory.png/", b'\0'),
    ];
    for (name, typeflag) in kinds {
        let mut archive = raw_tar(&[(name, typeflag, b"")]);
        archive.truncate(BLOCK);
        set_size(&mut archive, 0, 700);
        archive.extend(tar(&members(0, 3)));
        let report = read(&archive);
        assert_eq!(report.kept, keys(0, 3), "type {typeflag}: {report:?}");
        assert!(report.damage.is_empty(), "type {typeflag}: {report:?}");
    }
    // Were the data not passed over, they would be a pair.
    let inside = tar(&members(9, 10));
    let mut archive = raw_tar(&[(b"unknown", b'Z', &inside)]);
    archive.truncate(archive.len() - 2 * BLOCK);
    archive.extend(tar(&members(0, 3)));
    assert_eq!(read(&archive).kept, keys(0, 3));
}

/// A pair whose headers have a checksum but no magic, as before 1988.
fn old_pair(key: &str) -> Vec<u8> {
    let names = [format!("{key}.png"), format!("{key}.txt")];
    let picture = png(1);
    let mut pair =
        raw_tar(&[(names[0].as_bytes(), b'0', &picture), (names[1].as_bytes(), b'0', b"caption")]);
    pair.truncate(pair.len() - 2 * BLOCK);
    for name in names {
        let at = header_of(&pair, &name);
        pair[at + 257..at + 265].fill(0);
        seal(&mut pair[at..at + BLOCK]);
    }
    pair
}

/// In its place a header without magic is one; where any bytes may stand, a sum that is right by
/// chance (of zeros and spaces, say) does not make one.
#[test]
fn a_header_without_magic_counts_only_in_its_place() {
    let whole = tar(&members(0, 3));
    let in_place = [old_pair("old"), whole.clone()].concat();
    let report = read(&in_place);
    assert_eq!(report.kept, ["old", "000000", "000001", "000002"], "{report:?}");

    let mut damaged = raw_tar(&[(b"lost.png", b'0', &old_pair("inside"))]);
    damaged.truncate(damaged.len() - 2 * BLOCK);
    damaged[3] ^= 1;
    damaged.extend(&whole);
    let report = read(&damaged);
    assert_eq!((report.kept, report.skipped), (keys(0, 3), vec![]));
    assert_eq!(report.damage, [(0, Reason::DamagedHeader)]);

    let behind_the_end = [whole, old_pair("behind")].concat();
    let report = read(&behind_the_end);
    assert_eq!((report.kept, report.damage.len()), (keys(0, 3), 0));
}

#[test]
fn extension_headers_that_lie() {
    let good = |key: &str| {
        [(format!("{key}.png"), b'0', png(1)), (format!("{key}.txt"), b'0', b"c".to_vec())]
    };
    for (typeflag, data) in [
        (b'x', &b"12 size=9999999999999\n"[..]),
        (b'x', b"11 size=abc\n"),
        (b'x', b"999 path=a\n"),
        (b'x', b"0 path=a\n"),
        (b'x', b"path"),
        (b'x', b"99999999999999999999999 path=a\n"),
        (b'x', b"22 size=1099511627776\n"),
        (b'x', b""),
        (b'L', b""),
        (b'g', b"9 size=1\n"),
        (b'K', b"x"),
    ] {
        let mut list = good("a").to_vec();
        list.push(("ext".into(), typeflag, data.to_vec()));
        list.extend(good("b"));
        list.extend(good("c"));
        let members: Vec<_> = list.iter().map(|(n, t, d)| (n.as_bytes(), *t, &d[..])).collect();
        let report = read(&raw_tar(&members));
        assert!(report.kept.contains(&"a".to_owned()), "{data:?}: {report:?}");
        assert!(report.kept.contains(&"c".to_owned()), "{data:?}: {report:?}");
    }
}
