//! Bytes → members and pairs of an archive.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::Arc;

use roclip::data::raw::{RawFound, RawReader};
use roclip::data::sample::{Anchor, Captions, Contents, Fields, Found, Labels, SampleReader};
use roclip::data::shard::ShardLimits;
use roclip::data::tar::{BLOCK, Event, Input, TarReader};

/// An archive, read in every way there is. The first byte chooses the fields, and whether headers
/// are given the checksum they should have, without which few mutations would be looked at.
pub fn tar(input: &[u8]) {
    let Some((&choice, archive)) = input.split_first() else { return };
    let archive = &*if choice & 0x80 == 0 { archive.into() } else { sealed(archive) };
    let (fields, limits) = (fields(choice), limits());
    members_end(archive, &limits);
    let all = pairs_close(archive, &fields, &limits);
    let whole = archive.len() as u64;
    let pieces = || Pieces { left: archive, most: 1 + usize::from(choice >> 2 & 0xF) };
    assert_eq!(read(pieces(), &fields, Contents::Read, &limits).0, all, "read in pieces");
    headers_agree(archive, &fields, &limits, &all);
    let mut raw = RawReader::new(archive, limits.skip_bytes);
    let bytes: usize = raw.by_ref().map(|found| size_of(&found)).sum();
    assert!(bytes as u64 <= whole, "{bytes} bytes of members in {whole}");
}

pub fn limits() -> ShardLimits {
    ShardLimits {
        image_bytes: 4096,
        text_bytes: 1024,
        max_caption_bytes: 512,
        skip_bytes: 8192,
        ..ShardLimits::default()
    }
}

pub fn fields(choice: u8) -> Fields {
    let (captions, labels) = match choice & 3 {
        0 => (Captions::Text("txt".into()), Labels::None),
        1 => (Captions::JsonField("caption".into()), Labels::ClsOrJson),
        2 => (Captions::Text("txt;caption".into()), Labels::ClsOrJson),
        _ => (Captions::None, Labels::Cls),
    };
    Fields { captions, labels, ..Fields::default() }
}

/// Gives every block that has the magic of a header the checksum it should have.
pub fn sealed(archive: &[u8]) -> Cow<'_, [u8]> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive.into()
}

/// Members: no more than headers fit in, none beyond the end, no byte read twice.
fn members_end(archive: &[u8], limits: &ShardLimits) {
    let mut reader = TarReader::new(archive, limits.skip_bytes);
    let whole = archive.len() as u64;
    let (mut events, mut read, mut last) = (0, 0, 0);
    let mut data = Vec::new();
    while let Some(event) = reader.next_event().expect("memory can be read") {
        events += 1;
        // A header is told after the damage in front of it, and may be looked at twice.
        assert!(events <= 2 * (archive.len() / BLOCK + 2), "{events} events");
        assert!(reader.position() <= whole);
        let offset = match &event {
            Event::Damage { offset, .. } => *offset,
            Event::Member(member) => {
                data.clear();
                if reader.read_data(member, limits.image_bytes, &mut data).is_ok() {
                    assert_eq!(data.len() as u64, member.size);
                }
                read += data.len() as u64;
                member.offset
            }
        };
        assert!(offset >= last && offset <= whole, "{offset} after {last}");
        last = offset;
    }
    assert!(read <= whole);
    assert_eq!(reader.next_event().expect("memory can be read"), None, "it goes on after its end");
}

/// What a shard yields, and each place from which it could be read again.
pub fn read(
    input: impl Input,
    fields: &Fields,
    contents: Contents,
    limits: &ShardLimits,
) -> (Vec<Found>, Vec<Anchor>) {
    collect(SampleReader::new(input, (&Arc::from("s"), 0), fields, contents, limits))
}

fn collect<R: Input>(mut reader: SampleReader<R>) -> (Vec<Found>, Vec<Anchor>) {
    let before = reader.found();
    let (mut all, mut anchors) = (Vec::new(), Vec::new());
    while let Some(found) = reader.next() {
        all.push(found);
        assert_eq!(reader.found(), before + all.len() as u64, "what was found does not close");
        let anchor = reader.anchor();
        assert!(anchor.found <= reader.found(), "{anchor:?} lies ahead");
        if anchors.last() != Some(&anchor) {
            anchors.push(anchor);
        }
    }
    assert!(reader.next().is_none(), "it goes on after its end");
    (all, anchors)
}

/// Pairs are numbered one after the other and hold no more than the archive; read from the last
/// place from which that is possible, and from one in the middle, the rest is the same.
fn pairs_close(archive: &[u8], fields: &Fields, limits: &ShardLimits) -> Vec<Found> {
    let (all, anchors) = read(archive, fields, Contents::Read, limits);
    let (mut index, mut bytes) = (0, 0);
    for found in &all {
        let id = match found {
            Found::Damage(..) => continue,
            Found::Skipped(id, ..) => id,
            Found::Pair(pair) => {
                bytes += pair.image.len();
                let caption = pair.caption.len() as u64;
                assert!(!pair.image.is_empty() && pair.image.len() as u64 <= limits.image_bytes);
                assert!(caption <= limits.max_caption_bytes);
                assert_eq!(fields.captions == Captions::None, pair.caption.is_empty());
                assert_eq!(fields.labels != Labels::None, pair.label.is_some());
                &pair.id
            }
        };
        assert_eq!(id.index, index, "pairs are not numbered one after the other");
        index += 1;
    }
    assert!(bytes <= archive.len());
    for anchor in [anchors.len() / 2, anchors.len().saturating_sub(1)] {
        let Some(&anchor) = anchors.get(anchor) else { continue };
        let contents = Contents::Read;
        let place = (&Arc::from("s"), 0);
        let mut reader = SampleReader::new(archive, place, fields, contents, limits);
        reader.jump(anchor).expect("the place lies in the archive");
        assert_eq!(collect(reader).0, all[anchor.found as usize..], "from {anchor:?}");
    }
    all
}

/// Without the data the same pairs are seen, and none that is good with them is bad.
fn headers_agree(archive: &[u8], fields: &Fields, limits: &ShardLimits, all: &[Found]) {
    let keys = |found: &[Found], with_skipped: bool| -> Vec<(u32, String)> {
        let key = |found: &Found| match found {
            Found::Pair(pair) => Some((pair.id.index, pair.id.key.to_string())),
            Found::Skipped(id, ..) if with_skipped => Some((id.index, id.key.to_string())),
            _ => None,
        };
        found.iter().filter_map(key).collect()
    };
    let (headers, _) = read(archive, fields, Contents::HeadersOnly, limits);
    assert_eq!(keys(&headers, true), keys(all, true), "other pairs without their data");
    let good = keys(&headers, false);
    assert!(keys(all, false).iter().all(|key| good.contains(key)), "bad without its data");
}

fn size_of(found: &RawFound) -> usize {
    match found {
        RawFound::Sample(sample) => sample.members.iter().map(|(_, data)| data.len()).sum(),
        _ => 0,
    }
}

/// Memory that gives few bytes at a time.
struct Pieces<'a> {
    left: &'a [u8],
    most: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Not the same number each time, and not a divisor of a block.
        let most = self.most * 61 + self.left.len() % 7;
        let most = most.min(buffer.len());
        self.left.read(&mut buffer[..most])
    }
}

impl Input for Pieces<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        self.left.skip(bytes)
    }

    fn remaining(&self) -> Option<u64> {
        self.left.remaining()
    }
}
