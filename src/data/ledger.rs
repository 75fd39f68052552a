//! What was not delivered, and why: one line for each pair skipped and each shard damaged.
//!
//! The sum closes, always: `seen = delivered + skipped + not asked for + left over`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decode::DecodeError;
use crate::error::{Error, Result};
use crate::flow::SampleId;

/// Longest `detail` kept, in bytes: what a shard says about itself is not trusted to be short.
const DETAIL_BYTES: usize = 240;

/// Why a pair was skipped or a shard is incomplete. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// The shard could not be opened or read on; what was read before is kept.
    UnreadableShard,
    /// The shard has no bytes.
    EmptyShard,
    /// The shard holds no tar header: an error page, a picture, noise.
    NotATar,
    /// The shard decompresses to more than the limits allow; what came before is kept.
    InflationBomb,
    /// A tar header fails its checksum or makes no sense; reading went on at the next good one.
    DamagedHeader,
    /// The shard, or a member, ends too early.
    Truncated,
    /// Members follow the end-of-archive marker; they were read.
    DataAfterEnd,
    /// A member of the pair is a link, a device or a directory.
    NotAFile,
    /// A member is larger than the limit for its kind.
    MemberTooLarge,
    /// The name of a member is longer than any file system allows.
    NameTooLong,
    /// The key occurs again before the pair was complete; the complete occurrence is kept.
    DuplicateMember,
    /// The pair is on the list of those to be left out.
    Excluded,
    /// The pair is for another part of the epoch, or not evaluated: counted, never written down.
    NotAskedFor,
    /// No image member.
    MissingImage,
    /// No caption member, or no caption field in the json.
    MissingCaption,
    /// The caption is nothing but white space.
    EmptyCaption,
    /// The caption is not UTF-8.
    CaptionNotUtf8,
    /// The caption has more bytes than allowed.
    CaptionTooLong,
    /// The json member does not parse.
    BadJson,
    /// A label is wanted and there is none.
    MissingLabel,
    /// The label is not an integer in `0..2³²`.
    BadLabel,
    /// The image member has no bytes.
    EmptyImage,
    /// The image member is of no known format.
    UnknownImage,
    /// The image has more pixels, a longer side or more bytes than allowed.
    ImageTooLarge,
    /// The image does not decode.
    BrokenImage,
    /// The image takes longer to decode than allowed.
    TooSlow,
    /// The bytes are not those that the shard's index was made of.
    ChecksumMismatch,
    /// A path in a list leads out of the folder it is relative to.
    OutsideFolder,
}

impl Reason {
    /// The stable name, as written to the ledger: `damaged-header`.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(Into::into)).unwrap_or_default()
    }
}

/// Why one thing was lost, before it is known when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// The kind of fault.
    pub reason: Reason,
    /// The numbers of this case, for a person.
    pub detail: String,
}

impl Fault {
    /// A fault with its detail, cut to what a ledger line may hold.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > DETAIL_BYTES {
            cut(&mut detail, DETAIL_BYTES);
            detail.push('…');
        }
        Self { reason, detail }
    }
}

impl From<&DecodeError> for Fault {
    fn from(error: &DecodeError) -> Self {
        let reason = match error {
            DecodeError::Empty => Reason::EmptyImage,
            DecodeError::NotAnImage(_) | DecodeError::Unsupported(_) => Reason::UnknownImage,
            DecodeError::TooManyBytes { .. } | DecodeError::TooManyPixels { .. } => {
                Reason::ImageTooLarge
            }
            DecodeError::Corrupt(_) => Reason::BrokenImage,
            DecodeError::TooSlow(_) => Reason::TooSlow,
        };
        Self::new(reason, error.to_string())
    }
}

/// Cuts a text to at most `bytes`, between characters.
pub(super) fn cut(text: &mut String, bytes: usize) {
    let end = (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
}

/// One line of the ledger. With a `key` it is a skipped pair; without, a damaged shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Epoch in which it happened.
    pub epoch: u64,
    /// The lane that met it.
    #[serde(default, skip_serializing_if = "is_first")]
    pub lane: usize,
    /// Sequence number of the pair in its lane; for a shard, of the next pair.
    pub seq: u64,
    /// The shard as listed.
    pub shard: Arc<str>,
    /// Position of the shard in the unshuffled list.
    pub shard_index: u32,
    /// Key of the skipped pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Box<str>>,
    /// Position of the skipped pair in its shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Byte in the (decompressed) shard: header of the pair's first member, or of the damage.
    pub offset: u64,
    /// What happened.
    pub reason: Reason,
    /// Its numbers, for a person.
    pub detail: String,
}

/// As serde asks it.
fn is_first(lane: &usize) -> bool {
    *lane == 0
}

impl Entry {
    /// A skipped pair, of lane 0.
    pub fn pair((epoch, seq): (u64, u64), id: &SampleId, offset: u64, fault: Fault) -> Self {
        Self {
            epoch,
            lane: 0,
            seq,
            shard: Arc::clone(&id.shard),
            shard_index: id.shard_index,
            key: Some(id.key.as_str().into()),
            index: Some(id.index),
            offset,
            reason: fault.reason,
            detail: fault.detail,
        }
    }

    /// Damage of a shard, met before pair `seq` of lane 0.
    pub fn shard(
        (epoch, seq): (u64, u64),
        shard: Arc<str>,
        shard_index: u32,
        offset: u64,
        fault: Fault,
    ) -> Self {
        let Fault { reason, detail } = fault;
        let (lane, key, index) = (0, None, None);
        Self { epoch, lane, seq, shard, shard_index, key, index, offset, reason, detail }
    }

    /// Whether a pair was lost (else: a shard is damaged, which may have cost pairs unseen).
    pub fn is_pair(&self) -> bool {
        self.key.is_some()
    }
}

/// Counts of one epoch up to some point; a pair is in exactly one column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pairs met: groups of members of one key with an image or a caption among them.
    pub seen: u64,
    /// Pairs delivered in batches.
    pub delivered: u64,
    /// Pairs on the ledger.
    pub skipped: u64,
    /// Pairs that nobody asked for here ([`Reason::NotAskedFor`]).
    #[serde(default)]
    pub not_asked_for: u64,
    /// Good pairs that did not fill a last batch (`drop_last`).
    pub left_over: u64,
    /// Delivered captions that spelled a control token, which was read as plain text.
    pub forged_captions: u64,
    /// Skipped pairs by reason.
    pub reasons: BTreeMap<Reason, u64>,
    /// Damaged places in shards, by reason; they are no pairs.
    pub shard_faults: BTreeMap<Reason, u64>,
}

impl Tally {
    /// Whether every pair seen is accounted for.
    pub fn closes(&self) -> bool {
        self.seen == self.delivered + self.skipped + self.left_over + self.not_asked_for
            && self.skipped == self.reasons.values().sum::<u64>()
    }

    /// Adds the counts of others.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.delivered += other.delivered;
        self.skipped += other.skipped;
        self.not_asked_for += other.not_asked_for;
        self.left_over += other.left_over;
        self.forged_captions += other.forged_captions;
        for (to, from) in
            [(&mut self.reasons, &other.reasons), (&mut self.shard_faults, &other.shard_faults)]
        {
            from.iter().for_each(|(reason, count)| *to.entry(*reason).or_default() += count);
        }
    }

    /// Counts an entry; the pair it may stand for becomes seen, and skipped or not asked for.
    pub fn count(&mut self, entry: &Entry) {
        if entry.reason == Reason::NotAskedFor {
            self.seen += 1;
            self.not_asked_for += 1;
        } else if entry.is_pair() {
            self.seen += 1;
            self.skipped += 1;
            *self.reasons.entry(entry.reason).or_default() += 1;
        } else {
            *self.shard_faults.entry(entry.reason).or_default() += 1;
        }
    }
}

/// The totals in one line, for the log: `skipped 3 (broken-image 2, empty-caption 1)`.
impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<Reason, u64>| -> String {
            let parts: Vec<_> = counts.iter().map(|(r, n)| format!("{} {n}", r.name())).collect();
            if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
        };
        write!(f, "seen {}, delivered {}", self.seen, self.delivered)?;
        write!(f, ", skipped {}{}", self.skipped, list(&self.reasons))?;
        if self.not_asked_for > 0 {
            write!(f, ", not asked for {}", self.not_asked_for)?;
        }
        if self.left_over > 0 {
            write!(f, ", left over {}", self.left_over)?;
        }
        if self.forged_captions > 0 {
            write!(f, ", captions with forged control tokens {}", self.forged_captions)?;
        }
        if !self.shard_faults.is_empty() {
            let total: u64 = self.shard_faults.values().sum();
            write!(f, ", faults of shards {total}{}", list(&self.shard_faults))?;
        }
        Ok(())
    }
}

/// The ledger on disk: JSON lines, those of a lane in the order (epoch, seq).
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Ledger {
    /// Opens `path` to go on from pair `next_seq(lane)` of each lane in that epoch: earlier lines
    /// stay, later ones are cut off, for the resumed run will write them again, byte for byte.
    /// Epoch 0 and nothing but 0 starts afresh.
    ///
    /// # Errors
    /// The file cannot be opened, read or cut.
    pub fn open(path: &Path, epoch: u64, next_seq: impl Fn(usize) -> u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
        let is_before = |entry: Entry| (entry.epoch, entry.seq) < (epoch, next_seq(entry.lane));
        let (keep, behind) = split(&file, is_before).map_err(Error::io("read", path))?;
        file.set_len(keep).map_err(Error::io("cut", path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        file.write_all(&behind).map_err(Error::io("write", path))?;
        Ok(Self { path: path.into(), file: BufWriter::new(file) })
    }

    /// Appends entries and hands them to the operating system.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, entries: &[Entry]) -> Result<()> {
        for entry in entries {
            serde_json::to_writer(&mut self.file, entry)
                .map_err(std::io::Error::from)
                .and_then(|()| self.file.write_all(b"\n"))
                .map_err(Error::io("write", &self.path))?;
        }
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}

/// Length of the leading lines that stay, and the lines behind these that stay, too: those of
/// lanes that were ahead. A line that is not whole does not stay.
fn split(file: &File, stays: impl Fn(Entry) -> bool) -> std::io::Result<(u64, Vec<u8>)> {
    let mut lines = BufReader::new(file);
    let (mut keep, mut behind, mut is_leading) = (0, Vec::new(), true);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let stays = line.ends_with(b"\n") && serde_json::from_slice(&line).is_ok_and(&stays);
        is_leading &= stays;
        if is_leading {
            keep += line.len() as u64;
        } else if stays {
            behind.extend_from_slice(&line);
        }
        line.clear();
    }
    Ok((keep, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64, seq: u64, key: Option<&str>) -> Entry {
        let id = SampleId {
            shard: "a.tar".into(),
            shard_index: 3,
            index: 7,
            key: key.unwrap_or_default().into(),
        };
        let mut entry =
            Entry::pair((epoch, seq), &id, 512, Fault::new(Reason::BrokenImage, "\"\n\0"));
        if key.is_none() {
            (entry.key, entry.index) = (None, None);
        }
        entry
    }

    #[test]
    fn reopening_keeps_what_lies_before_the_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skips.jsonl");
        let all = [entry(0, 1, Some("x")), entry(0, 4, None), entry(1, 0, Some("../../y"))];
        Ledger::open(&path, 0, |_| 0).unwrap().record(&all).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 3);
        for (line, entry) in whole.lines().zip(&all) {
            assert_eq!(&serde_json::from_str::<Entry>(line).unwrap(), entry);
        }
        for (epoch, seq, kept) in [(2, 0, 3), (1, 0, 2), (0, 4, 1), (0, 2, 1), (0, 0, 0)] {
            std::fs::write(&path, whole.clone() + "{\"epoch\":0,\"se").unwrap();
            Ledger::open(&path, epoch, |_| seq).unwrap().record(&all[kept..]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{epoch} {seq}");
        }
    }

    #[test]
    fn each_lane_is_cut_back_to_its_own_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skips.jsonl");
        let lines = [(0, 0, 9), (1, 0, 1), (1, 2, 7), (1, 0, 2), (1, 2, 8), (1, 1, 0)];
        let of = |&(epoch, lane, seq)| Entry { lane, ..entry(epoch, seq, Some("x")) };
        Ledger::open(&path, 0, |_| 0).unwrap().record(&lines.each_ref().map(of)).unwrap();
        Ledger::open(&path, 1, |lane| [2, 0, 9][lane]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let left = text.lines().map(|line| {
            let Entry { epoch, lane, seq, .. } = serde_json::from_str(line).unwrap();
            (epoch, lane, seq)
        });
        assert_eq!(left.collect::<Vec<_>>(), [(0, 0, 9), (1, 0, 1), (1, 2, 7), (1, 2, 8)]);
        assert!(!text.lines().next().unwrap().contains("lane"), "{text}");
    }

    #[test]
    fn tally_closes_only_if_every_pair_is_somewhere() {
        let mut tally = Tally::default();
        tally.count(&entry(0, 0, Some("x")));
        tally.count(&entry(0, 1, None));
        assert!(tally.closes());
        assert_eq!((tally.seen, tally.skipped), (1, 1));
        let text = tally.to_string();
        assert!(text.contains("skipped 1 (broken-image 1)") && text.contains("shards 1"), "{text}");
        tally.seen += 1;
        assert!(!tally.closes());
        tally.left_over += 1;
        assert!(tally.closes());
        let mut sum = tally.clone();
        sum.add(&tally);
        assert!(sum.closes());
        assert_eq!((sum.seen, sum.skipped, sum.left_over), (4, 2, 2));
        assert_eq!(sum.shard_faults, [(Reason::BrokenImage, 2)].into());
        tally.skipped += 1;
        tally.seen += 1;
        assert!(!tally.closes());
    }

    #[test]
    fn details_are_cut_between_characters() {
        let fault = Fault::new(Reason::NotATar, "ä".repeat(500));
        assert_eq!(fault.detail.chars().count(), DETAIL_BYTES / 2 + 1);
        assert_eq!(Reason::CaptionNotUtf8.name(), "caption-not-utf8");
        assert_eq!(Reason::CaptionTooLong.name(), "caption-too-long");
    }
}
