//! Bytes → a shard, whatever its compression.

use std::io::{Read, Write};
use std::sync::Arc;

use roclip::data::sample::{Contents, SampleReader};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::Shard;
use roclip::data::tar::Input;

use super::files::Folder;
use super::tar;

/// Bytes read at a time.
const PIECE: usize = 1 << 16;

/// A shard file. The first byte chooses the fields, whether headers are given their checksums, and
/// whether the file is what follows or what a compressor makes of it; the second, where reading
/// goes on in the middle.
pub fn shard(input: &[u8]) {
    let [choice, place, bytes @ ..] = input else { return };
    let bytes = if choice & 0x80 == 0 { bytes.into() } else { tar::sealed(bytes) };
    let bytes = match choice >> 2 & 3 {
        0 | 1 => bytes.into_owned(),
        2 => gzip(&bytes),
        _ => zstd::bulk::compress(&bytes, 1).expect("memory can be compressed"),
    };
    let limits = ShardLimits {
        shard_bytes: if choice & 0x40 == 0 { 8 << 20 } else { 1 << 20 },
        inflation: 100,
        inflation_after: 1 << 20,
        ..tar::limits()
    };
    thread_local!(static FOLDER: Folder = Folder::new());
    let shard = FOLDER.with(|folder| Shard::file(folder.write("shard.tar", &bytes)));
    let open = || ShardReader::open(&shard, &limits, Arc::default());
    let Ok(reader) = open() else { return };
    let is_plain = reader.remaining().is_some();
    let (out, is_whole) = drain(reader);
    if is_plain {
        assert!(out == bytes && is_whole, "a plain file is not read as it lies there");
    } else {
        let most = limits
            .shard_bytes
            .min(limits.inflation_after.max((bytes.len() as u64 + 1) * limits.inflation));
        assert!(out.len() as u64 <= most + PIECE as u64, "{} bytes come out", out.len());
    }
    // Read on from the middle.
    let skip = (out.len() * usize::from(*place) / 256) as u64;
    let mut reader = open().expect("it could be opened before");
    match reader.skip(skip) {
        Ok(skipped) => {
            assert_eq!(skipped, skip);
            let (rest, whole) = drain(reader);
            assert!(rest == out[skip as usize..] || !whole, "another end from the middle");
        }
        // Skipping may meet the damage of which reading tells at the end.
        Err(_) => assert!(!is_whole),
    }
    let fields = tar::fields(*choice);
    let reader = open().expect("it could be opened before");
    let (all, anchors) = tar::read(reader, &fields, Contents::Read, &limits);
    if let Some(&anchor) = anchors.last().filter(|_| is_whole) {
        let place = (&Arc::from("s"), 0);
        let reader = open().expect("it could be opened before");
        let mut reader = SampleReader::new(reader, place, &fields, Contents::Read, &limits);
        reader.jump(anchor).expect("the place lies in the archive");
        let rest: Vec<_> = reader.collect();
        assert_eq!(rest, all[anchor.found as usize..], "from {anchor:?}");
    }
}

/// What can be read, and whether that was all.
fn drain(mut reader: ShardReader) -> (Vec<u8>, bool) {
    let (mut out, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return (out, true),
            Ok(count) => out.extend_from_slice(&piece[..count]),
            Err(_) => return (out, false),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}
