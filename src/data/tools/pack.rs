//! `pack`: a list of pictures and captions, or a folder of them, to shards.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::ledger::{Entry, Fault, Ledger, Reason, Tally};
use super::super::shard::ShardLimits;
use super::super::writer::{ShardWriter, WriterOptions, Written};
use super::rows::{self, Caption, Row};
use super::{Progress, Report, list_counts};
use crate::error::{Error, Result};
use crate::flow::SampleId;
use crate::rng::{Domain, Rng};

/// How a list is read and shards are written. Names and defaults of the CSV as in open_clip.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Column with the picture's path. Default `filepath`.
    pub csv_img_key: String,
    /// Column with the caption. Default `title`.
    pub csv_caption_key: String,
    /// What separates columns. Default a tab.
    pub csv_separator: u8,
    /// What paths are relative to. Default the folder of the list.
    pub root: Option<PathBuf>,
    /// Whether paths and links may lead out of that folder.
    pub follow: bool,
    /// Seed by which the order is shuffled; the list is held in memory then. Default the list's
    /// order.
    pub shuffle: Option<u64>,
    /// Largest picture and caption.
    pub limits: ShardLimits,
    /// How shards are written.
    pub writer: WriterOptions,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            csv_img_key: "filepath".into(),
            csv_caption_key: "title".into(),
            csv_separator: b'\t',
            root: None,
            follow: false,
            shuffle: None,
            limits: ShardLimits::default(),
            writer: WriterOptions::default(),
        }
    }
}

/// What became of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackReport {
    /// Rows packed (delivered) and skipped, by reason.
    pub tally: Tally,
    /// The shards written.
    pub written: Vec<Written>,
}

/// Packs a `.csv`, `.tsv` or `.parquet` list, or the pictures below a folder with the `.txt`,
/// `.caption` or `.json` files beside them, into shards in `out`.
///
/// Pictures are copied unchanged; their extension is that of their format. The key of a pair is
/// its position in the list, in nine digits, whatever is skipped or shuffled; its `json` member
/// has its path (in a folder: the `.json` file, if there is one). Skipped rows are written to
/// `skips.jsonl` in `out`.
///
/// # Errors
/// The list cannot be read; `out` holds shards already or cannot be written.
pub fn pack(
    list: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &Progress,
) -> Result<PackReport> {
    let rows = rows::open(list, options)?;
    let folder = rows.folder.canonicalize().map_err(Error::io("open", &rows.folder))?;
    let mut writer = ShardWriter::create(out, options.writer.clone())?;
    let mut ledger = Ledger::open(&out.join("skips.jsonl"), 0, |_| 0)?;
    let files = Files { folder, follow: options.follow, limits: &options.limits };
    let mut report = PackReport::default();
    progress.start(rows.total);
    let mut order = rows.rows;
    if let Some(seed) = options.shuffle {
        let mut all: Vec<Row> = order.collect::<Result<_>>()?;
        Rng::new(seed, Domain::SampleOrder, 0, 0).shuffle(&mut all);
        progress.start(all.len() as u64);
        all.iter_mut().zip(1..).for_each(|(row, place)| row.at = place);
        order = Box::new(all.into_iter().map(Ok));
    }
    for row in order {
        let row = row?;
        let key = format!("{:09}", row.number);
        match files.members(&row) {
            Ok(members) => {
                writer.write(&key, &members)?;
                report.tally.seen += 1;
                report.tally.delivered += 1;
            }
            Err(fault) => {
                let index = u32::try_from(row.number).unwrap_or(u32::MAX);
                let shard = list.to_string_lossy().into();
                let id = SampleId { shard, shard_index: 0, index, key };
                let entry = Entry::pair((0, row.number), &id, 0, fault);
                report.tally.count(&entry);
                ledger.record(&[entry])?;
            }
        }
        progress.reach(row.at);
        progress.say(report.tally.delivered);
    }
    progress.finish();
    report.written = writer.finish()?;
    assert!(report.tally.closes(), "packed and skipped do not make up the list");
    Ok(report)
}

/// Extension and data of each member.
type Members = Vec<(&'static str, Vec<u8>)>;

/// The files that a list may name.
struct Files<'a> {
    /// Without links in it.
    folder: PathBuf,
    follow: bool,
    limits: &'a ShardLimits,
}

impl Files<'_> {
    fn members(&self, row: &Row) -> Result<Members, Fault> {
        let missing = |reason, what: &str| Fault::new(reason, what);
        if row.path.as_os_str().is_empty() {
            return Err(missing(Reason::MissingImage, "the row has no path"));
        }
        let picture = self.read(&row.path, self.limits.image_bytes)?;
        let picture = picture.ok_or_else(|| {
            Fault::new(Reason::MissingImage, format!("{} is not there", row.path.display()))
        })?;
        let format = format_of(&picture)?;
        let mut json = None;
        let caption = match &row.caption {
            Caption::Bytes(bytes) => Some(bytes.clone()),
            Caption::Missing => None,
            Caption::Beside => {
                let beside = |extension| {
                    self.read(&row.path.with_extension(extension), self.limits.text_bytes)
                };
                json = beside("json")?;
                match beside("txt")? {
                    Some(text) => Some(text),
                    None => beside("caption")?.or(json_caption(json.as_deref())?),
                }
            }
        };
        let caption = caption.ok_or_else(|| missing(Reason::MissingCaption, "no caption"))?;
        let json = json.unwrap_or_else(|| {
            json!({ "filepath": row.path.to_string_lossy() }).to_string().into_bytes()
        });
        self.check_caption(&caption)?;
        Ok(vec![(format, picture), ("txt", caption), ("json", json)])
    }

    fn check_caption(&self, caption: &[u8]) -> Result<(), Fault> {
        if caption.len() as u64 > self.limits.max_caption_bytes {
            let detail =
                format!("{} bytes; at most {}", caption.len(), self.limits.max_caption_bytes);
            return Err(Fault::new(Reason::CaptionTooLong, detail));
        }
        let text = std::str::from_utf8(caption)
            .map_err(|e| Fault::new(Reason::CaptionNotUtf8, e.to_string()))?;
        if text.trim().is_empty() {
            return Err(Fault::new(Reason::EmptyCaption, "nothing but white space"));
        }
        Ok(())
    }

    /// The bytes of a file, if it is there. Where a path leads is looked at before it is opened:
    /// a list from elsewhere must not pack the keys of whoever packs it.
    fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
        let name = path.display();
        let unreadable =
            |e: std::io::Error| Fault::new(Reason::MissingImage, format!("{name}: {e}"));
        let real = match self.folder.join(path).canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unreadable(e)),
        };
        if !self.follow && !real.starts_with(&self.folder) {
            let detail =
                format!("{name} leads out of {}; --follow allows it", self.folder.display());
            return Err(Fault::new(Reason::OutsideFolder, detail));
        }
        // Before it is opened: opening a pipe would wait for its other end.
        if !real.metadata().map_err(unreadable)?.is_file() {
            return Err(Fault::new(Reason::NotAFile, format!("{name} is no file")));
        }
        let mut bytes = Vec::new();
        let file = File::open(&real).map_err(unreadable)?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > limit {
            let detail = format!("{name}: more than {limit} bytes");
            return Err(Fault::new(Reason::MemberTooLarge, detail));
        }
        Ok(Some(bytes))
    }
}

/// Extension of a picture, by its first bytes.
fn format_of(picture: &[u8]) -> Result<&'static str, Fault> {
    match picture {
        [] => Err(Fault::new(Reason::EmptyImage, "0 bytes")),
        [0xFF, 0xD8, 0xFF, ..] => Ok("jpg"),
        [0x89, b'P', b'N', b'G', ..] => Ok("png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok("webp"),
        _ => Err(Fault::new(Reason::UnknownImage, "neither JPEG, PNG nor WebP")),
    }
}

/// The field `caption`, as img2dataset has it.
fn json_caption(json: Option<&[u8]>) -> Result<Option<Vec<u8>>, Fault> {
    let Some(json) = json else { return Ok(None) };
    let json: serde_json::Value =
        serde_json::from_slice(json).map_err(|e| Fault::new(Reason::BadJson, e.to_string()))?;
    Ok(json.get("caption").and_then(|text| text.as_str()).map(|text| text.as_bytes().to_vec()))
}

impl Report for PackReport {
    fn found_something(&self) -> bool {
        self.tally.skipped > 0
    }
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { seen, delivered, skipped, reasons, .. } = &self.tally;
        let bytes: u64 = self.written.iter().map(|shard| shard.bytes).sum();
        let shards = self.written.len();
        writeln!(f, "{delivered} of {seen} pairs packed into {shards} shards of {bytes} bytes")?;
        if *skipped > 0 {
            writeln!(f, "{skipped} skipped, listed in skips.jsonl")?;
        }
        write!(f, "{}", list_counts(reasons.iter().map(|(reason, n)| (reason.name(), *n))))
    }
}
