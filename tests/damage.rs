//! Goal: whatever is done to a shard, nothing panics, hangs or runs out of memory, the pairs that
//! were not touched are delivered, those that were are named, and the tally closes.
//! Method: small shards made in memory and damaged in every way we could think of; each run has a
//! deadline. What must survive follows from where the damage was put.

mod claims;

use std::io::Write;

use roclip::data::ledger::Reason;
use roclip::data::loader::{Loader, LoaderConfig, Position};
use roclip::data::sample::{Contents, Fields, Found, SampleReader};
use roclip::data::shard::ShardLimits;
use roclip::rng::{Domain, Rng};

use crate::common::shards::*;

const BLOCK: usize = 512;

/// What the reader of one shard found, without threads and pictures.
#[derive(Debug, Default)]
struct Report {
    kept: Vec<String>,
    skipped: Vec<(String, Reason)>,
    damage: Vec<(u64, Reason)>,
}

fn read(bytes: &[u8]) -> Report {
    let (fields, limits) = (Fields::default(), ShardLimits::default());
    let mut report = Report::default();
    for found in SampleReader::new(bytes, (&"s".into(), 0), &fields, Contents::Read, &limits) {
        match found {
            Found::Pair(pair) => report.kept.push(pair.id.key),
            Found::Skipped(id, _, fault) => report.skipped.push((id.key, fault.reason)),
            Found::Damage(offset, fault) => report.damage.push((offset, fault.reason)),
        }
    }
    report
}

/// Where the header of a member lies.
fn header_of(tar: &[u8], name: &str) -> usize {
    let is_it = |block: &[u8]| block.starts_with(name.as_bytes()) && &block[257..262] == b"ustar";
    tar.chunks(BLOCK).position(is_it).expect("a header of that name") * BLOCK
}

/// Gives a header the checksum it should have.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..BLOCK].iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn set_size(tar: &mut [u8], at: usize, size: u64) {
    let octal = format!("{size:011o}\0").into_bytes();
    let base256 = [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat();
    let field = if octal.len() == 12 { octal } else { base256 };
    tar[at + 124..at + 136].copy_from_slice(&field);
    seal(&mut tar[at..at + BLOCK]);
}

/// An archive whose members may have any header.
fn raw_tar(members: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, typeflag, data) in members {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name);
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[156] = *typeflag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut header);
        tar.extend_from_slice(&header);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

fn without(keys: Vec<String>, lost: u32) -> Vec<String> {
    keys.into_iter().filter(|key| *key != format!("{lost:06}")).collect()
}

#[test]
fn every_byte_of_a_header_flipped_costs_one_pair_at_most_and_names_it() {
    let tar = tar(&members(0, 12));
    for name in ["000000.png", "000005.png", "000005.txt", "000011.txt"] {
        let at = header_of(&tar, name);
        let lost: u32 = name[..6].parse().unwrap();
        for byte in 0..BLOCK {
            for flip in [0x01, 0x80, 0xff] {
                let mut tar = tar.clone();
                tar[at + byte] ^= flip;
                let report = read(&tar);
                if report.damage.is_empty() {
                    assert_eq!(report.kept, keys(0, 12), "{name} byte {byte}");
                    // What ends the field of the checksum: the sum is still the sum.
                    assert!((154..156).contains(&byte), "{name} byte {byte} passed unseen");
                    continue;
                }
                assert_eq!(report.damage, [(at as u64, Reason::DamagedHeader)]);
                assert_eq!(report.kept, without(keys(0, 12), lost), "{name} byte {byte}");
                let named = (format!("{lost:06}"), Reason::DamagedHeader);
                assert_eq!(report.skipped, [named], "{name} byte {byte}");
            }
        }
    }
}

#[test]
fn a_shard_cut_anywhere_yields_what_is_whole() {
    let tar = tar(&members(0, 6));
    let ends: Vec<usize> = (0..6)
        .map(|n| {
            let at = header_of(&tar, &format!("{n:06}.txt"));
            at + BLOCK + format!("picture number {n} of a small shard").len()
        })
        .collect();
    for length in (1..tar.len()).step_by(37).chain(ends.iter().flat_map(|&end| [end - 1, end])) {
        let whole = ends.iter().filter(|&&end| end <= length).count();
        let report = read(&tar[..length]);
        assert_eq!(report.kept, keys(0, whole as u32), "cut at {length}");
        assert!(report.skipped.len() <= 1, "{report:?}");
        // One block of zeros is taken as the end, as by tarfile.
        let marker = ends[5].next_multiple_of(BLOCK) + BLOCK;
        let is_told = !report.damage.is_empty() || !report.skipped.is_empty();
        assert!(length >= marker || is_told, "cut at {length}");
    }
    for length in [100, 5000, tar.len() / 2, tar.len() - 1500] {
        load_bytes(&tar[..length]);
    }
}

#[test]
fn members_that_are_no_pairs_do_no_harm() {
    let mut members = members(0, 3);
    for name in [
        "000001.pyd",
        "000001.pickle",
        "000001.json",
        "__meta__/x.png",
        "._000001.png",
        "PaxHeader/000001.png",
        "noext",
        "000001.png.exe",
        ".png",
    ] {
        members.insert(3, (name.into(), b"cposix\nsystem\n(S'false'\ntR.".to_vec()));
    }
    let report = read(&tar(&members));
    // `noext` and hidden names belong to no key; `000001.png.exe` is field `png.exe`.
    assert_eq!(report.kept, keys(0, 3));
    assert!(report.skipped.is_empty() && report.damage.is_empty(), "{report:?}");
}

#[test]
fn names_are_keys_and_never_paths() {
    let long = format!("{}.png", "d/".repeat(3000));
    let mut bytes = Vec::new();
    for (name, typeflag) in [(&b"../../x"[..], b'0'), (b"/etc/x", b'0'), (b"link", b'2')] {
        let named = |extension: &[u8]| [name, extension].concat();
        bytes.push((named(b".png"), typeflag, png(1)));
        bytes.push((named(b".txt"), b'0', b"caption".to_vec()));
    }
    bytes[4].2.clear();
    for (name, typeflag) in [("hard.png", b'1'), ("dev.png", b'3'), ("dir.png", b'5')] {
        bytes.push((name.into(), typeflag, Vec::new()));
    }
    bytes.push((b"././@LongLink".to_vec(), b'L', long.into_bytes()));
    bytes.push((b"d.png".to_vec(), b'0', png(2)));
    bytes.push((b"pax".to_vec(), b'x', b"26 path=nul\0in/name/a.txt\n".to_vec()));
    bytes.push((b"a.txt".to_vec(), b'0', b"caption".to_vec()));
    let members: Vec<_> = bytes.iter().map(|(n, t, d)| (&n[..], *t, &d[..])).collect();
    let report = read(&raw_tar(&members));
    assert_eq!(report.kept, ["../../x", "/etc/x"]);
    let reason = |key: &str| report.skipped.iter().find(|(k, _)| k == key).map(|(_, r)| *r);
    for key in ["link", "hard", "dev", "dir"] {
        assert_eq!(reason(key), Some(Reason::NotAFile), "{key}: {report:?}");
    }
    assert!(matches!(report.damage[..], [(_, Reason::NameTooLong)]), "{report:?}");
    assert!(reason("nul\0in/name/a").is_some(), "{report:?}");
}

#[test]
fn captions_and_fields_that_are_missing_double_empty_or_broken() {
    let caption = || b"a caption".to_vec();
    let list: Vec<(&str, Vec<u8>)> = vec![
        ("empty.png", png(0)),
        ("empty.txt", vec![]),
        ("blank.png", png(1)),
        ("blank.txt", b" \n\t ".to_vec()),
        ("bytes.png", png(2)),
        ("bytes.txt", vec![b'a', 0xc3, 0x28]),
        ("nocap.png", png(3)),
        ("noimg.txt", caption()),
        ("zero.png", vec![]),
        ("zero.txt", caption()),
        ("twice.png", png(4)),
        ("twice.png", png(4)),
        ("twice.txt", caption()),
        ("both.png", png(5)),
        ("both.txt", caption()),
        ("both.png", png(6)),
        ("both.txt", caption()),
        ("long.png", png(7)),
        ("long.txt", vec![b'x'; (1 << 20) + 1]),
        ("wordy.png", png(8)),
        ("wordy.txt", vec![b'x'; (64 << 10) + 1]),
        ("most.png", png(9)),
        ("most.txt", vec![b'x'; 64 << 10]),
        ("good.png", png(10)),
        ("good.txt", caption()),
    ];
    let report = read(&tar(&list));
    assert_eq!(report.kept, ["twice", "both", "both", "most", "good"]);
    let expected = [
        ("empty", Reason::EmptyCaption),
        ("blank", Reason::EmptyCaption),
        ("bytes", Reason::CaptionNotUtf8),
        ("nocap", Reason::MissingCaption),
        ("noimg", Reason::MissingImage),
        ("zero", Reason::EmptyImage),
        ("twice", Reason::DuplicateMember),
        ("long", Reason::MemberTooLarge),
        ("wordy", Reason::CaptionTooLong),
    ];
    assert_eq!(report.skipped, expected.map(|(key, reason)| (key.to_owned(), reason)));
    assert!(report.damage.is_empty());
}

/// A PNG of one colour whose header promises `side` x `side` pixels.
fn png_bomb(side: u32) -> Vec<u8> {
    let mut bytes = png(0);
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

#[test]
fn pictures_broken_or_absurd_cost_their_pair() {
    let cut = |n: usize| png(1)[..n].to_vec();
    let pictures: [(&str, Vec<u8>, Reason); 6] = [
        ("html", b"<!DOCTYPE html><html>404</html>".to_vec(), Reason::UnknownImage),
        ("half", cut(png(1).len() / 2), Reason::BrokenImage),
        ("head", cut(20), Reason::BrokenImage),
        ("bomb13", png_bomb(13_000), Reason::ImageTooLarge),
        ("bomb2g", png_bomb(0x7fff_ffff), Reason::ImageTooLarge),
        ("none", png_bomb(0), Reason::BrokenImage),
    ];
    let mut list = Vec::new();
    for (key, picture, _) in &pictures {
        list.push((format!("{key}.png"), picture.clone()));
        list.push((format!("{key}.txt"), b"caption".to_vec()));
    }
    list.extend(members(0, 2));
    let outcome = load_bytes(&tar(&list));
    assert_eq!(outcome.keys, keys(0, 2));
    let found: Vec<_> =
        outcome.entries.iter().map(|e| (e.key.as_deref().unwrap(), e.reason)).collect();
    assert_eq!(found, pictures.each_ref().map(|(key, _, reason)| (*key, *reason)));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_shards_whole_and_cut() {
    // More than three of zstd's blocks, each of which is lost as a whole.
    let tar = tar(&members(0, 200));
    for packed in [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
        assert_eq!(load_bytes(&packed).keys, keys(0, 200));
        for part in [1, 3, 5, 7] {
            let outcome = load_bytes(&packed[..packed.len() * part / 8]);
            assert_eq!(outcome.keys, keys(0, outcome.keys.len() as u32));
            assert!(outcome.error.is_some() || !outcome.entries.is_empty());
        }
        let outcome = load_bytes(&packed[..packed.len() * 7 / 8]);
        assert!(outcome.keys.len() >= 50, "{}", outcome.keys.len());
        let mut flipped = packed.clone();
        flipped[packed.len() / 2] ^= 0x10;
        load_bytes(&flipped);
        let mut garbage = packed;
        garbage.extend_from_slice(b"what is this");
        assert_eq!(load_bytes(&garbage).keys, keys(0, 200));
    }
}

#[test]
fn a_bomb_is_stopped_and_what_came_before_is_kept() {
    let mut tar = tar(&members(0, 3));
    tar.truncate(tar.len() - 2 * BLOCK);
    let mut giant = raw_tar(&[(b"zeros.bin", b'0', b"")]);
    set_size(&mut giant, 0, 200 << 20);
    tar.extend_from_slice(&giant[..BLOCK]);
    tar.resize(tar.len() + (200 << 20), 0);
    let packed = zstd::encode_all(&tar[..], 3).unwrap();
    assert!(packed.len() < 100_000);
    let outcome = load_bytes(&packed);
    assert_eq!(outcome.keys, keys(0, 3));
    let reasons: Vec<_> = outcome.entries.iter().map(|e| e.reason).collect();
    assert_eq!(reasons, [Reason::InflationBomb]);
}

#[test]
fn shards_that_are_none_and_lists_with_holes() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_shards(dir.path(), 5, 4);
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    put("01.tar", b"<!DOCTYPE html><title>403</title>");
    put("02.tar", b"");
    std::fs::remove_file(dir.path().join("03.tar")).unwrap();
    let config = LoaderConfig { shuffle: 3, ..plain(&list) };
    let outcome = load(config.clone());
    assert_eq!(outcome.keys.len(), 8);
    let mut found: Vec<_> = outcome.entries.iter().map(|e| (e.shard_index, e.reason)).collect();
    found.sort();
    let expected = [(1, Reason::NotATar), (2, Reason::EmptyShard), (3, Reason::UnreadableShard)];
    assert_eq!(found, expected);

    for name in ["00.tar", "04.tar"] {
        put(name, &[0xa5; 5000]);
    }
    let outcome = load(config);
    let error = outcome.error.unwrap();
    assert!(error.contains("none of 5") && outcome.entries.len() == 5, "{error}");
    // An empty archive is a shard like any other.
    put("00.tar", &[0; 1024]);
    assert!(load(plain(list)).error.is_none());
}

#[test]
fn beyond_the_end_garbage_is_passed_over_and_members_are_found() {
    let whole = tar(&members(0, 3));
    let mut garbage = whole.clone();
    garbage.extend((0..5000u32).map(|n| (n * 31 % 251) as u8));
    let report = read(&garbage);
    assert_eq!((report.kept, report.damage.len()), (keys(0, 3), 0));

    let joined = [whole.clone(), tar(&members(3, 5))].concat();
    let report = read(&joined);
    assert_eq!(report.kept, keys(0, 5));
    assert_eq!(report.damage, [(whole.len() as u64, Reason::DataAfterEnd)]);

    // A page of zeros where data were: two pairs at most lie on it.
    let mut holed = tar(&members(0, 12));
    let at = header_of(&holed, "000005.png");
    holed[at..at + 4096].fill(0);
    let report = read(&holed);
    assert!(report.kept.len() >= 9 && !report.damage.is_empty(), "{report:?}");
}

#[test]
fn random_mutations_end_and_close() {
    let tar = tar(&members(0, 6));
    let mut rng = Rng::new(1, Domain::SampleOrder, 0, 0);
    let mut kept = 0;
    for _ in 0..2000 {
        let bytes = mutate(&tar, &mut rng);
        kept += read(&bytes).kept.len();
    }
    assert!(kept > 2000 * 3, "{kept}");
    for round in 0..120 {
        let bytes = mutate(&tar, &mut rng);
        load_bytes(&if round % 3 == 0 { gzip(&bytes) } else { bytes });
    }
    let packed = gzip(&tar);
    for _ in 0..80 {
        load_bytes(&mutate(&packed, &mut rng));
    }
}

/// Flips, fills, deletes, inserts or moves a few stretches of bytes.
fn mutate(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len() as u64) as usize;
        let end = (at + 1 + rng.below(600) as usize).min(bytes.len());
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at..end].fill(rng.next_u32() as u8),
            2 => bytes[at..end].iter_mut().for_each(|b| *b = rng.next_u32() as u8),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, vec![0; end - at])),
            _ => {
                let part = bytes[at..end].to_vec();
                let to = rng.below((bytes.len() - part.len() + 1) as u64) as usize;
                bytes[to..to + part.len()].copy_from_slice(&part);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

#[test]
fn configurations_that_cannot_work_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let good = plain(write_shards(dir.path(), 1, 1));
    let refused = |config: LoaderConfig| Loader::new(config).unwrap_err().to_string();
    assert!(refused(LoaderConfig { batch_size: 0, ..good.clone() }).contains("--batch-size"));
    assert!(refused(LoaderConfig { workers: 0, ..good.clone() }).contains("--workers"));
    assert!(refused(LoaderConfig { rank: 1, ..good.clone() }).contains("rank 1 of 1"));
    let fields = Fields { image_key: ";".into(), ..Fields::default() };
    assert!(refused(LoaderConfig { fields, ..good.clone() }).contains("--image-key"));
    assert!(refused(LoaderConfig::default()).contains("shards"));
    assert!(Loader::new(good).unwrap().epoch(Position::start_of(9)).is_ok());
}
