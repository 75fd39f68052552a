//! An index beside each shard: where its pairs lie and what their bytes were.
//!
//! `00000.tar.index.jsonl` holds a header line ([`Header`]) and a line for each pair of the shard
//! ([`IndexEntry`]), good or bad, in the shard's order: line `n + 2` is pair `n`. With it pairs
//! are counted without reading the shard, fetched at random, and a shard that has changed since
//! is noticed. `sizes.json` in the same folder has the counts of all its shards, for open_clip and
//! DataComp.
//!
//! Checksums are SHA-256, not a CRC: whoever serves a shard can make any CRC come out right, and
//! crawls (img2dataset) record the SHA-256 of pictures. With the instructions that CPUs have for
//! it, it keeps up with a disk.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use super::atomic::AtomicFile;
use super::count::count_shard;
use super::ledger::{Fault, Reason};
use super::lines::Lines;
use super::sample::{Captions, Contents, Fields, Found, Pair, SampleReader};
use super::shard::{ShardLimits, ShardReader};
use super::source::{Shard, Source, remote_beside};
use super::tar::Input;
use crate::error::{Error, Result};

/// First field of an index.
const FORMAT: &str = "roclip-shard-index";
const VERSION: u32 = 1;
/// Longest line: a key of 4096 bytes, each escaped as six.
const LINE_BYTES: usize = 32 << 10;
/// Most pairs of one index; shards have thousands. They take at most 600 MB.
pub const MAX_PAIRS: u64 = 1 << 22;
/// Bytes that all keys of one index may have together.
const KEY_BYTES: u64 = 256 << 20;
/// Largest `sizes.json` that is added to.
const SIZES_BYTES: u64 = 64 << 20;
/// What an index is called: the shard's name and this.
pub const SUFFIX: &str = ".index.jsonl";
/// What the counts of a folder are called.
pub const SIZES: &str = "sizes.json";

/// A SHA-256; in files, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// That of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// That of a whole file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Self(hasher.finalize().into())),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let value = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low);
            *byte = value.ok_or_else(|| de::Error::custom("a SHA-256 has hexadecimal digits"))?;
        }
        let whole = text.len() == 64;
        whole.then_some(Self(bytes)).ok_or_else(|| de::Error::custom("a SHA-256 has 64 digits"))
    }
}

/// First line of an index: the shard as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    format: String,
    version: u32,
    /// Name of the shard, without its folder.
    pub shard: String,
    /// Size of the shard as it lies on disk, in bytes.
    pub bytes: u64,
    /// SHA-256 of the shard as it lies on disk.
    pub sha256: Checksum,
    /// Which members made a pair.
    pub fields: Fields,
    /// Pairs with all their members, as [`super::count`] counts them.
    pub pairs: u64,
    /// Pairs in all, good or bad: the lines that follow.
    pub seen: u64,
    /// First damage of the shard, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

impl Header {
    /// Reads the first line of an index; the rest is not looked at.
    ///
    /// # Errors
    /// The file cannot be read, or is no index of this version.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&mut Lines::open(path, LINE_BYTES)?)
    }

    fn parse(lines: &mut Lines) -> Result<Self> {
        if lines.next()?.is_none() {
            return Err(lines.wrong("no header; make the index again"));
        }
        let header: Self = lines.parse()?;
        header.check().map_err(|what| lines.wrong(what))?;
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT || self.version != VERSION {
            let (format, version) = (&self.format, self.version);
            return Err(format!(
                "{format:?} version {version}, where {FORMAT:?} version {VERSION} is read; make \
                 the index again"
            ));
        }
        if self.seen > MAX_PAIRS || self.pairs > self.seen {
            let (pairs, seen) = (self.pairs, self.seen);
            return Err(format!("{pairs} of {seen} pairs; at most {MAX_PAIRS}"));
        }
        Ok(())
    }

    /// The headers of indexes that lie beside shards on a server, if they are of a shard of that
    /// name and size; whether its bytes are those indexed is not asked.
    pub(super) fn remote(shards: &[Shard]) -> Vec<Option<Self>> {
        let header = |(shard, beside): (&Shard, Option<(Vec<u8>, u64)>)| {
            let (bytes, size) = beside?;
            let line = &bytes[..bytes.iter().position(|&byte| byte == b'\n')?];
            let header: Self = serde_json::from_slice(line).ok()?;
            let name = shard.name.rsplit('/').next();
            let is_its = header.bytes == size && name == Some(&header.shard);
            (is_its && header.check().is_ok()).then_some(header)
        };
        let besides = remote_beside(shards, SUFFIX, LINE_BYTES);
        shards.iter().zip(besides).map(header).collect()
    }

    /// Whether the shard at `path` may have changed since: it has another size, or was written
    /// after its index. What this cannot tell, [`is_altered`](Self::is_altered) does.
    pub fn is_stale(&self, path: &Path) -> bool {
        let age = |file: &Metadata| file.modified().ok();
        let index = std::fs::metadata(path_beside(path));
        match (std::fs::metadata(path), index) {
            (Ok(shard), Ok(index)) => shard.len() != self.bytes || age(&shard) > age(&index),
            (Ok(shard), Err(_)) => shard.len() != self.bytes,
            (Err(_), _) => true,
        }
    }

    /// Whether the shard's bytes are others than those indexed; reads all of it.
    ///
    /// # Errors
    /// The shard cannot be read.
    pub fn is_altered(&self, path: &Path) -> Result<bool> {
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        let sum = || Checksum::of_file(path).map_err(Error::io("read", path));
        Ok(size != self.bytes || sum()? != self.sha256)
    }
}

/// A pair of the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The key of its members.
    pub key: Box<str>,
    /// Header of its first member, in bytes from the start of the (decompressed) shard.
    pub offset: u64,
    /// Bytes from there to the next pair or the end of the archive.
    pub length: u64,
    /// SHA-256 of the image member; none if the pair is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Checksum>,
    /// SHA-256 of the caption as delivered, in UTF-8; none if the pair is bad or captions are not
    /// read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<Checksum>,
    /// Why the pair is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl IndexEntry {
    /// Holds a pair's bytes against their checksums.
    ///
    /// # Errors
    /// They differ, or the pair was bad when the index was made.
    pub fn check(&self, pair: &Pair) -> Result<(), Fault> {
        let differs = |part: &str| Fault::new(Reason::ChecksumMismatch, part);
        if self.image.is_none() {
            return Err(differs("the index has it as a bad pair"));
        }
        if self.image != Some(Checksum::of(&pair.image)) {
            return Err(differs("the image is not the one indexed"));
        }
        if self.caption.is_some_and(|sum| sum != Checksum::of(pair.caption.as_bytes())) {
            return Err(differs("the caption is not the one indexed"));
        }
        Ok(())
    }
}

/// The index of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    /// The shard as a whole.
    pub header: Header,
    /// Its pairs, good or bad, in order.
    pub entries: Vec<IndexEntry>,
}

/// The local file of a shard.
///
/// # Errors
/// The shard is none: a pipe, or far away.
pub fn local_path(shard: &Shard) -> Result<&Path> {
    match &shard.source {
        Source::File(path) if shard.is_rereadable() => Ok(path),
        _ => Err(Error::Shards {
            pattern: shard.name.to_string(),
            reason: "only local files have an index; copy the shard first".into(),
        }),
    }
}

/// Where the index of the shard at `path` lies.
pub fn path_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(SUFFIX);
    path.with_file_name(name)
}

/// Whether a file is what `index` writes beside shards, and so no shard.
pub(super) fn is_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(SUFFIX) || name == SIZES
}

impl ShardIndex {
    /// Makes the index of a shard: reads all of it. Damage is no error; it costs its pairs.
    ///
    /// # Errors
    /// The shard is no local file, cannot be read, or holds more than [`MAX_PAIRS`].
    pub fn build(shard: &Shard, fields: &Fields, limits: &ShardLimits) -> Result<Self> {
        let path = local_path(shard)?;
        let bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        let sha256 = Checksum::of_file(path).map_err(Error::io("read", path))?;
        let count = count_shard(shard, fields, limits);
        let entries = list_pairs(shard, fields, limits)?;
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            shard: path.file_name().unwrap_or_default().to_string_lossy().into(),
            bytes,
            sha256,
            fields: fields.clone(),
            pairs: count.pairs,
            seen: entries.len() as u64,
            fault: count.fault,
        };
        Ok(Self { header, entries })
    }

    /// Writes the index; one that was there is replaced, whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        let mut line = |json: serde_json::Result<String>| {
            let json = json.map_err(std::io::Error::from);
            json.and_then(|json| writeln!(file, "{json}")).map_err(Error::io("write", path))
        };
        line(serde_json::to_string(&self.header))?;
        self.entries.iter().try_for_each(|entry| line(serde_json::to_string(entry)))?;
        file.commit()
    }

    /// Reads an index. What it says is checked for sense, and not believed beyond
    /// [`MAX_PAIRS`] pairs.
    ///
    /// # Errors
    /// The file cannot be read; a line is too long, does not parse or contradicts another.
    pub fn read(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path, LINE_BYTES)?;
        let header = Header::parse(&mut lines)?;
        let mut entries: Vec<IndexEntry> = Vec::new();
        let (mut end, mut key_bytes) = (0, 0);
        while lines.next()?.is_some() {
            let entry: IndexEntry = lines.parse()?;
            if entries.len() as u64 == header.seen {
                return Err(lines.wrong(format!("more than the {} pairs announced", header.seen)));
            }
            if entry.offset < end {
                return Err(lines.wrong(format!("byte {} belongs to two pairs", entry.offset)));
            }
            end =
                entry.offset.checked_add(entry.length).ok_or_else(|| lines.wrong("no such end"))?;
            key_bytes += entry.key.len() as u64;
            if key_bytes > KEY_BYTES {
                return Err(lines.wrong(format!("more than {KEY_BYTES} bytes of keys")));
            }
            entries.push(entry);
        }
        if (entries.len() as u64) < header.seen {
            let (got, seen) = (entries.len(), header.seen);
            return Err(lines.wrong(format!("the last; {got} of {seen} pairs are listed")));
        }
        Ok(Self { header, entries })
    }

    /// Reads pair `n` of the shard, the `shard_index`-th of the list, from its place: a plain file
    /// is seeked, a compressed one read up to there. The bytes are held against their checksums.
    ///
    /// # Errors
    /// The pair is bad, cannot be read, or is not the one indexed.
    ///
    /// # Panics
    /// If there is no entry `n`.
    pub fn fetch(
        &self,
        (shard, shard_index): (&Shard, u32),
        n: usize,
        limits: &ShardLimits,
    ) -> Result<Pair, Fault> {
        let entry = &self.entries[n];
        let gone = |what: &str| Fault::new(Reason::ChecksumMismatch, what);
        let mut input = ShardReader::open(shard, limits, Arc::default())?;
        let skipped = input.skip(entry.offset).map_err(|e| super::tar::io_fault(&e))?;
        if skipped < entry.offset {
            return Err(gone("the shard ends before this pair"));
        }
        let place = (&shard.name, shard_index);
        let fields = &self.header.fields;
        let mut reader = SampleReader::new(input, place, fields, Contents::Read, limits);
        // Damage behind the pair is told before it.
        let mut pair = match reader.find(|found| !matches!(found, Found::Damage(..))) {
            Some(Found::Pair(pair)) => pair,
            Some(Found::Skipped(_, _, fault) | Found::Damage(_, fault)) => return Err(fault),
            None => return Err(gone("no pair lies there any more")),
        };
        if *pair.id.key != *entry.key {
            return Err(gone("another pair lies there"));
        }
        entry.check(&pair)?;
        (pair.offset, pair.id.index) = (entry.offset, n as u32);
        Ok(pair)
    }
}

fn list_pairs(shard: &Shard, fields: &Fields, limits: &ShardLimits) -> Result<Vec<IndexEntry>> {
    let refuse = |reason: String| Error::Shards { pattern: shard.name.to_string(), reason };
    let input = match ShardReader::open(shard, limits, Arc::default()) {
        Err(fault) if fault.reason == Reason::UnreadableShard => {
            return Err(refuse(fault.to_string()));
        }
        Err(_) => return Ok(Vec::new()),
        Ok(input) => input,
    };
    let mut entries: Vec<IndexEntry> = Vec::new();
    let mut reader = SampleReader::new(input, (&shard.name, 0), fields, Contents::Read, limits);
    for found in &mut reader {
        let entry = match found {
            Found::Pair(pair) => IndexEntry {
                offset: pair.offset,
                image: Some(Checksum::of(&pair.image)),
                caption: (fields.captions != Captions::None)
                    .then(|| Checksum::of(pair.caption.as_bytes())),
                ..blank(pair.id.key.into())
            },
            Found::Skipped(id, offset, fault) => {
                IndexEntry { offset, reason: Some(fault.reason), ..blank(id.key.into()) }
            }
            Found::Damage(..) => continue,
        };
        if entries.len() as u64 == MAX_PAIRS {
            return Err(refuse(format!("more than {MAX_PAIRS} pairs in one shard")));
        }
        entries.push(entry);
    }
    let mut end = reader.position();
    for entry in entries.iter_mut().rev() {
        entry.length = end.saturating_sub(entry.offset);
        end = entry.offset;
    }
    Ok(entries)
}

fn blank(key: Box<str>) -> IndexEntry {
    IndexEntry { key, offset: 0, length: 0, image: None, caption: None, reason: None }
}

/// Adds the pairs of these shards to `sizes.json` in `folder`; of other shards named there, those
/// that still exist stay.
///
/// # Errors
/// The file is there and is not an object of numbers, or cannot be written.
pub fn write_sizes(folder: &Path, counts: &BTreeMap<String, u64>) -> Result<()> {
    let path = folder.join(SIZES);
    let mut sizes = match File::open(&path) {
        Ok(file) => {
            let sizes = serde_json::from_reader(std::io::BufReader::new(file.take(SIZES_BYTES)));
            let wrong = |e| Error::Format { path: path.clone(), reason: format!("{e}; remove it") };
            sizes.map_err(wrong)?
        }
        Err(_) => BTreeMap::new(),
    };
    sizes.retain(|name: &String, _: &mut u64| folder.join(name).exists());
    sizes.extend(counts.clone());
    let mut file = AtomicFile::create(&path)?;
    serde_json::to_writer_pretty(&mut file, &sizes)
        .map_err(|e| Error::io("write", &path)(e.into()))?;
    file.commit()
}
