//! Encoded bytes → 8-bit RGB, as Pillow's `open(...).convert("RGB")` gives it.
//!
//! The format (JPEG, PNG or WebP) is read from the first bytes, never from a name. Sizes are read
//! from the header and held against [`DecodeLimits`] before anything is allocated, so a small file
//! that declares a huge picture costs nothing. Of a JPEG only the part that is wanted is decoded.
//!
//! What differs from Pillow, on purpose or for want of anything better:
//! - JPEG of four components (CMYK) or of rare sampling: another decoder takes it, within 9/255
//!   where it was measured; arithmetic coding is refused; entropy data that cannot be decoded is an
//!   error, where libjpeg warns and delivers grey.
//! - 16-bit grey PNG: the high byte is taken, as for 16-bit colour. Pillow clips at 255, which
//!   turns such a picture white.
//! - GIF, BMP, TIFF, AVIF and HEIC are refused.
//!
//! As in Pillow: alpha is dropped, not blended; the orientation in EXIF is not applied; of an
//! animation the first frame is taken; a file that ends before its picture does is an error.

use std::time::{Duration, Instant};

use super::jpeg::{Budget, Jpeg, JpegError, Plane, Scratch};
use super::transform::draws::CropBox;

mod fallback;

use fallback::Late;

/// A decoded picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rgb8 {
    /// `W`, pixels; at least 1.
    pub width: u32,
    /// `H`, pixels; at least 1.
    pub height: u32,
    /// `[H, W, 3]` samples, red first.
    pub data: Vec<u8>,
}

/// What a picture may cost. Checked before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest `width * height`. The default is open_clip's `--max-image-pixels`.
    pub max_pixels: u64,
    /// Longest side, pixels. The default is what a JPEG can hold.
    pub max_side: u32,
    /// Largest encoded size, bytes.
    pub max_bytes: usize,
    /// Most scans of a progressive JPEG: each visits every block of the picture again. Encoders
    /// write about ten.
    pub max_scans: usize,
    /// Longest time that one picture may take; looked at between rows, or between reads.
    pub max_time: Duration,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_pixels: 25_000_000,
            max_side: 65_535,
            max_bytes: 64 << 20,
            max_scans: 64,
            max_time: Duration::from_secs(10),
        }
    }
}

impl DecodeLimits {
    /// Holds a declared size against the limits.
    fn check(&self, width: u32, height: u32) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::Corrupt(format!("the header says {width}x{height} pixels")));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels || width.max(height) > self.max_side {
            let (max_pixels, max_side) = (self.max_pixels, self.max_side);
            return Err(DecodeError::TooManyPixels { width, height, max_pixels, max_side });
        }
        Ok(())
    }
}

/// Why a picture was refused. The pair is skipped and written to the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The first bytes are not those of any picture format.
    #[error("not a picture: it begins with {0:?}")]
    NotAnImage(String),
    /// The encoded file is larger than [`DecodeLimits::max_bytes`].
    #[error("{bytes} encoded bytes exceed the limit of {limit}")]
    TooManyBytes {
        /// Size of the file.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The header declares more pixels than [`DecodeLimits`] allows.
    #[error("{width}x{height} exceeds the limit of {max_pixels} pixels, {max_side} a side")]
    TooManyPixels {
        /// Declared width.
        width: u32,
        /// Declared height.
        height: u32,
        /// [`DecodeLimits::max_pixels`].
        max_pixels: u64,
        /// [`DecodeLimits::max_side`].
        max_side: u32,
    },
    /// A picture, but of a kind this crate does not decode.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The file ends too early or contradicts its format.
    #[error("truncated or corrupt: {0}")]
    Corrupt(String),
    /// Decoding took longer than [`DecodeLimits::max_time`].
    #[error("decoding took longer than {0:?}")]
    TooSlow(Duration),
}

/// An encoded picture whose header was read and held against the limits; the clock is running.
#[derive(Debug)]
pub struct Encoded<'a> {
    bytes: &'a [u8],
    format: Format<'a>,
    width: u32,
    height: u32,
    limits: DecodeLimits,
    deadline: Option<Instant>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and it is not moved about")]
enum Format<'a> {
    Jpeg(Jpeg<'a>),
    /// A JPEG of a kind that is left to another decoder.
    RareJpeg,
    Png,
    WebP,
}

impl<'a> Encoded<'a> {
    /// Reads the header of a JPEG, PNG or WebP file. Nothing is decoded and nothing allocated.
    ///
    /// # Errors
    /// [`DecodeError`]: see its variants.
    pub fn open(bytes: &'a [u8], limits: &DecodeLimits) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        if bytes.len() > limits.max_bytes {
            return Err(DecodeError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
        }
        let (format, [width, height]) = match bytes {
            [0xFF, 0xD8, 0xFF, ..] => match Jpeg::parse(bytes) {
                Ok(jpeg) => {
                    let size = [jpeg.width(), jpeg.height()];
                    (Format::Jpeg(jpeg), size)
                }
                Err(JpegError::Unsupported(_)) => {
                    (Format::RareJpeg, fallback::jpeg_size(bytes, limits)?)
                }
                Err(error) => return Err(of_jpeg(error, limits)),
            },
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => {
                (Format::Png, fallback::png_size(bytes)?)
            }
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
                (Format::WebP, fallback::webp_size(bytes, limits)?)
            }
            _ => return Err(foreign(bytes)),
        };
        limits.check(width, height)?;
        let deadline = Instant::now().checked_add(limits.max_time);
        Ok(Self { bytes, format, width, height, limits: *limits, deadline })
    }

    /// `jpeg`, `png` or `webp`.
    pub fn format(&self) -> &'static str {
        match self.format {
            Format::Jpeg(_) | Format::RareJpeg => "jpeg",
            Format::Png => "png",
            Format::WebP => "webp",
        }
    }

    /// `W`, pixels; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// `H`, pixels; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Decodes at least `part`, and says where it lies in `out`: a JPEG gives the part alone, the
    /// other formats give the whole picture.
    ///
    /// # Errors
    /// [`DecodeError`]: see its variants. `out` is of no use then.
    ///
    /// # Panics
    /// If the part is empty or does not lie within the picture.
    pub fn rgb(
        &self,
        part: CropBox,
        scratch: &mut Scratch,
        out: &mut Rgb8,
    ) -> Result<CropBox, DecodeError> {
        if let Format::Jpeg(jpeg) = &self.format {
            match jpeg.rgb(part, &self.budget(), scratch, out) {
                Ok(()) => return Ok(CropBox { top: 0, left: 0, ..part }),
                Err(JpegError::Unsupported(_)) => {}
                Err(error) => return Err(of_jpeg(error, &self.limits)),
            }
        }
        let late = Late { deadline: self.deadline, limits: &self.limits };
        match self.format {
            Format::Jpeg(_) | Format::RareJpeg => fallback::jpeg(self.bytes, late, out)?,
            Format::Png => fallback::png(self.bytes, late, out)?,
            Format::WebP => fallback::webp(self.bytes, late, out)?,
        }
        // A decoder may take the end of its time for the end of the file, and deliver what it has.
        late.check()?;
        Ok(part)
    }

    /// Decodes `part` of a JPEG to planes as they are stored, at 1 / 2^`halvings` of its size: see
    /// [`Jpeg::planes`]. False where there are none to be had, and [`Encoded::rgb`] is the way.
    ///
    /// # Errors
    /// [`DecodeError`]: see its variants.
    ///
    /// # Panics
    /// If the part is empty or does not lie within the picture.
    pub fn planes(
        &self,
        part: CropBox,
        halvings: u32,
        scratch: &mut Scratch,
        planes: &mut [Plane; 3],
    ) -> Result<bool, DecodeError> {
        let Format::Jpeg(jpeg) = &self.format else { return Ok(false) };
        match jpeg.planes(part, halvings, &self.budget(), scratch, planes) {
            Ok(()) => Ok(true),
            Err(JpegError::Unsupported(_)) => Ok(false),
            Err(error) => Err(of_jpeg(error, &self.limits)),
        }
    }

    fn budget(&self) -> Budget {
        Budget { max_scans: self.limits.max_scans, deadline: self.deadline }
    }
}

/// Decodes a whole JPEG, PNG or WebP file.
///
/// # Errors
/// [`DecodeError`]: see its variants. Nothing is allocated for a picture beyond `limits`.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8, DecodeError> {
    let encoded = Encoded::open(bytes, limits)?;
    let (width, height) = (encoded.width, encoded.height);
    let mut out = Rgb8::default();
    encoded.rgb(CropBox { top: 0, left: 0, height, width }, &mut Scratch::default(), &mut out)?;
    Ok(out)
}

fn of_jpeg(error: JpegError, limits: &DecodeLimits) -> DecodeError {
    match error {
        JpegError::Corrupt(what) => DecodeError::Corrupt(what.into()),
        JpegError::Unsupported(what) => DecodeError::Unsupported(what.into()),
        JpegError::Late => DecodeError::TooSlow(limits.max_time),
    }
}

/// Names what the bytes are, when they are none of the three formats.
fn foreign(bytes: &[u8]) -> DecodeError {
    let known: [(&[u8], usize, &str); 7] = [
        (b"GIF8", 0, "GIF"),
        (b"BM", 0, "BMP"),
        (b"II*\0", 0, "TIFF"),
        (b"MM\0*", 0, "TIFF"),
        (b"ftypavif", 4, "AVIF"),
        (b"ftyphei", 4, "HEIC"),
        (b"ftypmif1", 4, "HEIC"),
    ];
    for (magic, at, name) in known {
        if bytes.get(at..at + magic.len()) == Some(magic) {
            return DecodeError::Unsupported(format!("{name}; convert to JPEG, PNG or WebP"));
        }
    }
    let head = &bytes[..bytes.len().min(16)];
    DecodeError::NotAnImage(String::from_utf8_lossy(head).into_owned())
}
