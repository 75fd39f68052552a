//! `inspect`: what is in shards, without decoding more pictures than are shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};

use super::super::atomic::AtomicFile;
use super::super::decode::{DecodeLimits, Encoded, decode};
use super::super::ledger::{Fault, Reason, Tally, cut};
use super::super::sample::{Contents, Fields, Found, Pair, SampleReader};
use super::super::shard::{ShardLimits, ShardReader};
use super::super::source::Shard;
use super::super::text::tokenizer::{CONTEXT_LENGTH, Tokenizer};
use super::{Progress, Report, list_counts, size_of, total_size};
use crate::error::{Error, Result, printable};
use crate::rng::{Domain, Rng};

/// Side of a thumbnail and the gap around it, in pixels.
const CELL: u32 = 128;
const GAP: u32 = 4;
/// Most rows and columns of a sheet.
const MAX_CELLS: u32 = 64;
/// Captions shown without a sheet, and how much of each, in bytes.
const CAPTIONS: usize = 8;
const CAPTION_BYTES: usize = 160;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct InspectOptions {
    /// Which members make a pair.
    pub fields: Fields,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// What a picture of the sheet may cost.
    pub decode: DecodeLimits,
    /// Rows and columns of a sheet of thumbnails. Default none.
    pub sheet: Option<[u32; 2]>,
    /// Chooses the pairs that are shown. Default 0.
    pub seed: u64,
}

/// How often each value occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    fn add(&mut self, value: u64) {
        *self.0.entry(value).or_default() += 1;
    }

    /// The least value that at least a share `q` of all values do not exceed; 0 if there are none.
    pub fn quantile(&self, q: f64) -> u64 {
        let total: u64 = self.0.values().sum();
        let rank = ((q * total as f64).ceil() as u64).max(1);
        let mut before = 0;
        let reaches = |(_, count): &(&u64, &u64)| {
            before += **count;
            before >= rank
        };
        self.0.iter().find(reaches).map_or(0, |(value, _)| *value)
    }
}

/// Smallest, 5 %, median, 95 % and largest.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = [0.0, 0.05, 0.5, 0.95, 1.0].map(|q| self.quantile(q).to_string());
        write!(f, "{}", values.join(" / "))
    }
}

/// A pair that is shown.
struct Shown {
    key: String,
    caption: String,
    thumbnail: Option<RgbImage>,
}

/// What is in the shards.
#[derive(Default)]
pub struct InspectReport {
    /// Shards read.
    pub shards: u64,
    /// Bytes of all shards on disk.
    pub bytes: u64,
    /// Pairs whose members are all there (delivered), others (skipped) and faults of shards.
    pub tally: Tally,
    /// Pictures of each format; those of none that is known, or with a broken header, as `broken`.
    pub formats: BTreeMap<&'static str, u64>,
    /// Pixels.
    pub widths: Histogram,
    /// Pixels.
    pub heights: Histogram,
    /// Encoded size, in KiB, rounded up.
    pub kibibytes: Histogram,
    /// Characters.
    pub characters: Histogram,
    /// Tokens, start and end included, as if captions had any length.
    pub tokens: Histogram,
    /// Captions with more tokens than the 77 that CLIP reads.
    pub long: u64,
    /// Columns of the sheet, if there is one.
    columns: Option<usize>,
    shown: Vec<Shown>,
}

/// Reads shards and counts. Pictures are only looked at as far as their size is written, but for
/// those of the sheet.
///
/// # Errors
/// The sheet has no or more than 64 rows or columns.
pub fn inspect(
    shards: &[Shard],
    options: &InspectOptions,
    progress: &Progress,
) -> Result<InspectReport> {
    let sheet = options.sheet;
    if let Some([rows, columns]) = sheet
        && ![rows, columns].iter().all(|n| (1..=MAX_CELLS).contains(n))
    {
        return Err(Error::Option {
            flag: "--rows, --cols".into(),
            got: format!("{rows} x {columns}"),
            expected: format!("1 to {MAX_CELLS} of each"),
        });
    }
    progress.start(total_size(shards));
    let room = sheet.map_or(CAPTIONS, |[rows, columns]| (rows * columns) as usize);
    let mut inspector = Inspector {
        options,
        tokenizer: Tokenizer::clip(),
        tokens: Vec::new(),
        rng: Rng::new(options.seed, Domain::SampleOrder, 0, 0),
        room,
        report: InspectReport::default(),
    };
    inspector.report.columns = sheet.map(|[_, columns]| columns as usize);
    for (n, shard) in shards.iter().enumerate() {
        inspector.shard(shard, n as u32);
        progress.advance(size_of(shard));
        progress.say(inspector.report.tally.seen);
    }
    progress.finish();
    Ok(inspector.report)
}

struct Inspector<'a> {
    options: &'a InspectOptions,
    tokenizer: Tokenizer,
    tokens: Vec<u32>,
    rng: Rng,
    /// Pairs that are shown at most.
    room: usize,
    report: InspectReport,
}

impl Inspector<'_> {
    fn shard(&mut self, shard: &Shard, number: u32) {
        self.report.shards += 1;
        self.report.bytes += size_of(shard);
        let (fields, limits) = (&self.options.fields, &self.options.limits);
        let input = match ShardReader::open(shard, limits, Arc::default()) {
            Ok(input) => input,
            Err(fault) => return self.damage(&fault),
        };
        let place = (&shard.name, number);
        for found in SampleReader::new(input, place, fields, Contents::Read, limits) {
            match found {
                Found::Pair(pair) => self.pair(&pair),
                Found::Skipped(_, _, Fault { reason, .. }) => {
                    let tally = &mut self.report.tally;
                    (tally.seen, tally.skipped) = (tally.seen + 1, tally.skipped + 1);
                    *tally.reasons.entry(reason).or_default() += 1;
                }
                Found::Damage(_, fault) => self.damage(&fault),
            }
        }
    }

    fn damage(&mut self, fault: &Fault) {
        *self.report.tally.shard_faults.entry(fault.reason).or_default() += 1;
    }

    fn pair(&mut self, pair: &Pair) {
        let report = &mut self.report;
        (report.tally.seen, report.tally.delivered) =
            (report.tally.seen + 1, report.tally.delivered + 1);
        let size = picture_size(&pair.image);
        *report.formats.entry(size.map_or("broken", |(format, ..)| format)).or_default() += 1;
        if let Some((_, width, height)) = size {
            report.widths.add(u64::from(width));
            report.heights.add(u64::from(height));
        }
        report.kibibytes.add((pair.image.len() as u64).div_ceil(1024));
        report.characters.add(pair.caption.chars().count() as u64);
        self.tokenizer.encode(&pair.caption, usize::MAX, &mut self.tokens);
        report.tokens.add(self.tokens.len() as u64);
        report.long += u64::from(self.tokens.len() > CONTEXT_LENGTH);
        self.show(pair);
    }

    /// Keeps each pair with the same chance, whatever their number (reservoir sampling).
    fn show(&mut self, pair: &Pair) {
        let place = match self.report.shown.len() {
            filled if filled < self.room => filled,
            _ => self.rng.below(self.report.tally.delivered) as usize,
        };
        if place >= self.room {
            return;
        }
        let mut caption = pair.caption.clone();
        if caption.len() > CAPTION_BYTES {
            cut(&mut caption, CAPTION_BYTES);
            caption.push('…');
        }
        let thumbnail = self
            .options
            .sheet
            .and_then(|_| thumbnail(&pair.image, CELL, &self.options.decode).ok());
        let shown = Shown { key: pair.id.key.to_string(), caption, thumbnail };
        match self.report.shown.get_mut(place) {
            Some(old) => *old = shown,
            None => self.report.shown.push(shown),
        }
    }
}

/// Format, width and height in pixels, from the header alone; `None` if it makes no sense.
pub fn picture_size(bytes: &[u8]) -> Option<(&'static str, u32, u32)> {
    let limits = DecodeLimits { max_pixels: u64::MAX, ..DecodeLimits::default() };
    let encoded = Encoded::open(bytes, &limits).ok()?;
    Some((encoded.format(), encoded.width(), encoded.height()))
}

/// A picture brought to a square of `side` pixels, its longer side that long.
///
/// # Errors
/// Why it does not decode.
pub(crate) fn thumbnail(bytes: &[u8], side: u32, limits: &DecodeLimits) -> Result<RgbImage, Fault> {
    let broken = || Fault::new(Reason::BrokenImage, "its decoder panicked");
    let decoded = std::panic::catch_unwind(|| decode(bytes, limits)).map_err(|_| broken())?;
    let picture = decoded.map_err(|error| Fault::from(&error))?;
    let (width, height) = (picture.width, picture.height);
    let picture = RgbImage::from_raw(width, height, picture.data).expect("three bytes a pixel");
    let longer = width.max(height);
    let scaled =
        |length: u32| (u64::from(length) * u64::from(side)).div_ceil(u64::from(longer)).max(1);
    Ok(imageops::thumbnail(&picture, scaled(width) as u32, scaled(height) as u32))
}

impl InspectReport {
    /// Writes the sheet of thumbnails as a PNG. A picture that does not decode is a red square.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_sheet(&self, path: &Path) -> Result<()> {
        let columns = self.columns.unwrap_or(1);
        let rows = self.shown.len().div_ceil(columns).max(1);
        let side = |cells: usize| cells as u32 * (CELL + GAP) + GAP;
        let mut sheet = RgbImage::from_pixel(side(columns), side(rows), Rgb([255; 3]));
        let broken = RgbImage::from_pixel(CELL, CELL, Rgb([200, 40, 40]));
        for (n, shown) in self.shown.iter().enumerate() {
            let picture = shown.thumbnail.as_ref().unwrap_or(&broken);
            let corner = |cell: usize, length: u32| side(cell) + (CELL - length) / 2;
            let x = corner(n % columns, picture.width());
            let y = corner(n / columns, picture.height());
            imageops::replace(&mut sheet, picture, x.into(), y.into());
        }
        let mut file = AtomicFile::create(path)?;
        PngEncoder::new(&mut file)
            .write_image(&sheet, sheet.width(), sheet.height(), ExtendedColorType::Rgb8)
            .map_err(|e| Error::io("write", path)(std::io::Error::other(e)))?;
        file.commit()
    }
}

impl Report for InspectReport {
    fn found_something(&self) -> bool {
        self.tally.skipped > 0 || !self.tally.shard_faults.is_empty()
    }
}

impl fmt::Display for InspectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { delivered, skipped, reasons, shard_faults, .. } = &self.tally;
        let named = |counts: &BTreeMap<Reason, u64>| {
            list_counts(counts.iter().map(|(reason, count)| (reason.name(), *count)))
        };
        writeln!(f, "{} shards, {} bytes", self.shards, self.bytes)?;
        writeln!(f, "{delivered} pairs; {skipped} cannot be used")?;
        write!(f, "{}", named(reasons))?;
        if !shard_faults.is_empty() {
            writeln!(f, "faults of shards:")?;
        }
        write!(f, "{}", named(shard_faults))?;
        writeln!(f, "formats of pictures:")?;
        write!(f, "{}", list_counts(self.formats.iter().map(|(name, count)| (*name, *count))))?;
        writeln!(f, "smallest / 5 % / median / 95 % / largest:")?;
        writeln!(f, "  width, pixels       {}", self.widths)?;
        writeln!(f, "  height, pixels      {}", self.heights)?;
        writeln!(f, "  picture, KiB        {}", self.kibibytes)?;
        writeln!(f, "  caption, characters {}", self.characters)?;
        writeln!(f, "  caption, tokens     {}", self.tokens)?;
        writeln!(f, "captions of more than {CONTEXT_LENGTH} tokens: {}", self.long)?;
        for (n, Shown { key, caption, .. }) in self.shown.iter().enumerate() {
            if let Some(columns) = self.columns {
                write!(f, "row {} column {}  ", n / columns + 1, n % columns + 1)?;
            }
            writeln!(f, "{}  {}", printable(key), printable(caption))?;
        }
        Ok(())
    }
}
