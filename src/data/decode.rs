//! Encoded bytes → 8-bit RGB, as Pillow's `open(...).convert("RGB")` gives it.
//!
//! The format (JPEG, PNG or WebP) is read from the first bytes, never from a name. Sizes are read
//! from the header and held against [`DecodeLimits`] before anything is allocated, so a small file
//! that declares a huge picture costs nothing.
//!
//! What differs from Pillow, on purpose or for want of anything better:
//! - JPEG: chroma is upsampled by other arithmetic (at most 4/255 per sample); arithmetic coding
//!   is refused; entropy data that cannot be decoded is an error, where libjpeg warns and
//!   delivers grey.
//! - 16-bit grey PNG: the high byte is taken, as for 16-bit colour. Pillow clips at 255, which
//!   turns such a picture white.
//! - GIF, BMP, TIFF, AVIF and HEIC are refused.
//!
//! As in Pillow: alpha is dropped, not blended; the orientation in EXIF is not applied; of an
//! animation the first frame is taken; a file that ends before its picture does is an error.

use std::io::Cursor;

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageResult, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

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
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_pixels: 25_000_000, max_side: 65_535, max_bytes: 64 << 20, max_scans: 64 }
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
}

impl DecodeError {
    /// A short name that never changes, for the ledger and its counts.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotAnImage(_) => "not-an-image",
            Self::TooManyBytes { .. } => "too-many-bytes",
            Self::TooManyPixels { .. } => "too-many-pixels",
            Self::Unsupported(_) => "unsupported",
            Self::Corrupt(_) => "truncated-or-corrupt",
        }
    }
}

/// Decodes a JPEG, PNG or WebP file.
///
/// # Errors
/// [`DecodeError`]: see its variants. Nothing is allocated for a picture beyond `limits`.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => decode_jpeg(bytes, limits),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => decode_png(bytes, limits),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            decode_webp(bytes, limits)
        }
        _ => Err(foreign(bytes)),
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

fn corrupt(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Corrupt(error.to_string())
}

// ---------------------------------------------------------------------------------------- JPEG

/// What a walk over a JPEG's markers tells before anything is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
struct JpegOutline {
    width: u32,
    height: u32,
    components: u8,
    /// Start-of-scan markers.
    scans: usize,
    /// Offset of the name in the Adobe segment, and its colour transform.
    adobe: Option<(usize, u8)>,
}

/// Walks from marker to marker up to the end of the picture. No entropy data is decoded.
///
/// A file that ends before its end-of-image marker was cut: Pillow raises on it, while a decoder
/// that only looks at the bits may deliver a picture whose lower part is grey.
fn jpeg_outline(bytes: &[u8]) -> Result<JpegOutline, DecodeError> {
    let cut = || corrupt("the JPEG ends before its end-of-image marker");
    let mut outline = JpegOutline::default();
    let mut at = 2;
    loop {
        at += bytes[at..].iter().position(|&b| b == 0xFF).ok_or_else(cut)?;
        at += bytes[at..].iter().position(|&b| b != 0xFF).ok_or_else(cut)?;
        let marker = bytes[at];
        at += 1;
        match marker {
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Ok(outline),
            _ => {}
        }
        let length = bytes.get(at..at + 2).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = bytes.get(at + 2..at + length.max(2)).ok_or_else(cut)?;
        match (marker, segment) {
            // Huffman tables, an extension and arithmetic tables share the numbers of frames.
            (0xC4 | 0xC8 | 0xCC, _) => {}
            (0xC0..=0xCF, [_, h1, h0, w1, w0, components, ..]) if outline.components == 0 => {
                outline.height = u32::from(u16::from_be_bytes([*h1, *h0]));
                outline.width = u32::from(u16::from_be_bytes([*w1, *w0]));
                outline.components = *components;
            }
            (0xDA, _) => outline.scans += 1,
            (0xEE, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => {
                outline.adobe = Some((at + 2, *transform));
            }
            _ => {}
        }
        at += length.max(2);
    }
}

fn decode_jpeg(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8, DecodeError> {
    let outline = jpeg_outline(bytes)?;
    if outline.components == 0 {
        return Err(corrupt("the JPEG has no frame header"));
    }
    limits.check(outline.width, outline.height)?;
    if outline.scans > limits.max_scans {
        let (scans, most) = (outline.scans, limits.max_scans);
        return Err(DecodeError::Unsupported(format!("{scans} scans in one JPEG, limit {most}")));
    }
    match outline {
        // Adobe's transform 0 on three components means that they are RGB already. The decoder
        // takes it for CMYK; without the name it assumes YCbCr, and it converts nothing when
        // asked for what it assumes.
        JpegOutline { components: 3, adobe: Some((name, 0)), .. } => {
            let mut nameless = bytes.to_vec();
            nameless[name] = b'-';
            run_jpeg(&nameless, &outline, limits, true)
        }
        _ => run_jpeg(bytes, &outline, limits, false),
    }
}

/// Decodes to RGB, or, `as_stored`, without any conversion of colours.
fn run_jpeg(
    bytes: &[u8],
    outline: &JpegOutline,
    limits: &DecodeLimits,
    as_stored: bool,
) -> Result<Rgb8, DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(limits.max_side as usize)
        .set_max_height(limits.max_side as usize)
        .jpeg_set_max_scans(limits.max_scans);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(corrupt)?;
    let (width, height) = (outline.width, outline.height);
    if decoder.dimensions() != Some((width as usize, height as usize)) {
        return Err(corrupt("the JPEG declares its size twice"));
    }
    let stored = decoder.input_colorspace().filter(|_| as_stored);
    decoder.set_options(options.jpeg_set_out_colorspace(stored.unwrap_or(ColorSpace::RGB)));
    let mut data = vec![0; width as usize * height as usize * 3];
    decoder.decode_into(&mut data).map_err(corrupt)?;
    Ok(Rgb8 { width, height, data })
}

// ----------------------------------------------------------------------------------------- PNG

fn decode_png(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8, DecodeError> {
    let header = bytes.get(12..24).ok_or_else(|| corrupt("the PNG ends within its header"))?;
    if &header[..4] != b"IHDR" {
        return Err(corrupt("the PNG does not begin with its header"));
    }
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let (width, height) = (word(4), word(8));
    limits.check(width, height)?;
    // What lies beside the pixels (profiles, text) may unpack to this much and no more.
    let mut alloc = Limits::default();
    alloc.max_alloc = Some(64 << 20);
    read(PngDecoder::with_limits(Cursor::new(bytes), alloc))
}

/// Runs a decoder of the `image` crate and brings its samples to 8-bit RGB.
fn read<D: ImageDecoder>(decoder: ImageResult<D>) -> Result<Rgb8, DecodeError> {
    let decoder = decoder.map_err(corrupt)?;
    let ((width, height), colours) = (decoder.dimensions(), decoder.color_type());
    let pixels = width as usize * height as usize;
    let mut samples = vec![0; pixels * usize::from(colours.bytes_per_pixel())];
    decoder.read_image(&mut samples).map_err(corrupt)?;
    // `high` is the high byte of a 16-bit sample, which the crate stores in native order.
    let high = usize::from(cfg!(target_endian = "little"));
    let data = match colours {
        ColorType::Rgb8 => samples,
        ColorType::L8 => pick(&samples, 1, [0; 3]),
        ColorType::La8 => pick(&samples, 2, [0; 3]),
        ColorType::Rgba8 => pick(&samples, 4, [0, 1, 2]),
        ColorType::L16 => pick(&samples, 2, [high; 3]),
        ColorType::La16 => pick(&samples, 4, [high; 3]),
        ColorType::Rgb16 => pick(&samples, 6, [high, high + 2, high + 4]),
        ColorType::Rgba16 => pick(&samples, 8, [high, high + 2, high + 4]),
        other => return Err(DecodeError::Unsupported(format!("{other:?} samples"))),
    };
    Ok(Rgb8 { width, height, data })
}

/// Takes three bytes out of every pixel of `stride` bytes.
fn pick(samples: &[u8], stride: usize, [r, g, b]: [usize; 3]) -> Vec<u8> {
    let mut data = Vec::with_capacity(samples.len() / stride * 3);
    for pixel in samples.chunks_exact(stride) {
        data.extend_from_slice(&[pixel[r], pixel[g], pixel[b]]);
    }
    data
}

// ---------------------------------------------------------------------------------------- WebP

fn decode_webp(bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8, DecodeError> {
    check_webp(&bytes[12..], limits, true)?;
    read(WebPDecoder::new(Cursor::new(bytes)))
}

/// Holds every size that a WebP file declares against the limits: that of the canvas and those of
/// the bitstreams, which a decoder may unpack before it compares them with the canvas.
fn check_webp(mut chunks: &[u8], limits: &DecodeLimits, top: bool) -> Result<(), DecodeError> {
    let u14 = |b: &[u8]| u32::from(u16::from_le_bytes([b[0], b[1]]) & 0x3FFF);
    let u24 = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], 0]);
    while let Some((header, rest)) = chunks.split_at_checked(8) {
        let size = u32::from_le_bytes(header[4..].try_into().expect("four bytes")) as usize;
        let body = &rest[..size.min(rest.len())];
        match (&header[..4], body) {
            (b"VP8X", [_, _, _, _, size @ ..]) if size.len() >= 6 => {
                limits.check(u24(size) + 1, u24(&size[3..]) + 1)?;
            }
            (b"VP8 ", [_, _, _, 0x9D, 0x01, 0x2A, size @ ..]) if size.len() >= 4 => {
                limits.check(u14(size), u14(&size[2..]))?;
            }
            (b"VP8L", [0x2F, a, b, c, d, ..]) => {
                let bits = u32::from_le_bytes([*a, *b, *c, *d]);
                limits.check((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)?;
            }
            // A frame of an animation: sixteen bytes of its own, then chunks as above.
            (b"ANMF", body) if top && body.len() > 16 => check_webp(&body[16..], limits, false)?,
            _ => {}
        }
        chunks = &rest[(size + size % 2).min(rest.len())..];
    }
    Ok(())
}
