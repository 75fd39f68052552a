//! Decoders of others: PNG, WebP, and the JPEGs that ours does not take. They decode the whole
//! picture.

use std::io::{BufRead, Cursor, Error, ErrorKind, Read, Seek, SeekFrom};
use std::time::Instant;

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageResult, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{DecodeError, DecodeLimits, Rgb8};

fn corrupt(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Corrupt(error.to_string())
}

// --------------------------------------------------------------------------------------- Clock

/// Reads between two looks at the clock.
const READS: u32 = 64;

/// When a decoder is given up.
#[derive(Clone, Copy)]
pub(super) struct Late<'a> {
    pub deadline: Option<Instant>,
    pub limits: &'a DecodeLimits,
}

impl Late<'_> {
    fn has_passed(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Bytes that can be read until the deadline.
    fn reader<'b>(&self, bytes: &'b [u8]) -> Timed<'b> {
        Timed { bytes: Cursor::new(bytes), deadline: self.deadline, reads: 0 }
    }

    pub(super) fn check(&self) -> Result<(), DecodeError> {
        match self.has_passed() {
            true => Err(DecodeError::TooSlow(self.limits.max_time)),
            false => Ok(()),
        }
    }

    fn or_corrupt(&self, error: impl std::fmt::Display) -> DecodeError {
        self.check().err().unwrap_or_else(|| corrupt(error))
    }
}

struct Timed<'a> {
    bytes: Cursor<&'a [u8]>,
    deadline: Option<Instant>,
    reads: u32,
}

impl Timed<'_> {
    fn check(&mut self) -> std::io::Result<()> {
        self.reads += 1;
        let looks = self.reads.is_multiple_of(READS);
        match self.deadline {
            Some(deadline) if looks && Instant::now() > deadline => {
                Err(Error::new(ErrorKind::TimedOut, "decoding took too long"))
            }
            _ => Ok(()),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.check()?;
        self.bytes.read(buffer)
    }
}

impl BufRead for Timed<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.check()?;
        self.bytes.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
    }
}

impl Seek for Timed<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.bytes.seek(to)
    }
}

// ---------------------------------------------------------------------------------------- JPEG

/// What a walk over a JPEG's markers tells before anything is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
struct JpegOutline {
    width: u32,
    height: u32,
    components: u8,
    /// Blocks of the component that has most.
    blocks: u64,
    /// Bytes that belong to no header.
    coded: u64,
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
    let (mut at, mut headers) = (2, 0);
    loop {
        at += bytes[at..].iter().position(|&b| b == 0xFF).ok_or_else(cut)?;
        at += bytes[at..].iter().position(|&b| b != 0xFF).ok_or_else(cut)?;
        let marker = bytes[at];
        at += 1;
        match marker {
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 => {
                outline.coded = (at - headers) as u64;
                return Ok(outline);
            }
            _ => {}
        }
        let length = bytes.get(at..at + 2).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = bytes.get(at + 2..at + length.max(2)).ok_or_else(cut)?;
        match (marker, segment) {
            // Huffman tables, an extension and arithmetic tables share the numbers of frames.
            (0xC4 | 0xC8 | 0xCC, _) => {}
            (0xC0..=0xCF, [_, h1, h0, w1, w0, components, rest @ ..])
                if outline.components == 0 =>
            {
                outline.height = u32::from(u16::from_be_bytes([*h1, *h0]));
                outline.width = u32::from(u16::from_be_bytes([*w1, *w0]));
                outline.components = *components;
                outline.blocks = most_blocks([outline.width, outline.height], rest);
            }
            (0xDA, _) => outline.scans += 1,
            (0xEE, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => {
                outline.adobe = Some((at + 2, *transform));
            }
            _ => {}
        }
        at += length.max(2);
        headers += length.max(2);
    }
}

/// Blocks of the component that has most, by the frame header's list of components.
fn most_blocks([width, height]: [u32; 2], components: &[u8]) -> u64 {
    let factors = |of: &[u8]| [u64::from(of[1] >> 4), u64::from(of[1] & 15)];
    let components = components.chunks_exact(3).map(factors);
    let most = components.clone().fold([1, 1], |[h, v], of| [h.max(of[0]), v.max(of[1])]);
    let blocks =
        |samples: u32, factor: u64, most: u64| (u64::from(samples) * factor).div_ceil(8 * most);
    components
        .map(|[h, v]| blocks(width, h, most[0]) * blocks(height, v, most[1]))
        .max()
        .unwrap_or(0)
}

/// What the header of a JPEG declares.
pub(super) fn jpeg_size(bytes: &[u8], limits: &DecodeLimits) -> Result<[u32; 2], DecodeError> {
    checked_outline(bytes, limits).map(|outline| [outline.width, outline.height])
}

fn checked_outline(bytes: &[u8], limits: &DecodeLimits) -> Result<JpegOutline, DecodeError> {
    let outline = jpeg_outline(bytes)?;
    if outline.components == 0 {
        return Err(corrupt("the JPEG has no frame header"));
    }
    limits.check(outline.width, outline.height)?;
    if outline.scans > limits.max_scans {
        let (scans, most) = (outline.scans, limits.max_scans);
        return Err(DecodeError::Unsupported(format!("{scans} scans in one JPEG, limit {most}")));
    }
    // A block takes a bit at the least. The decoder makes up what is missing, without a look at the
    // clock.
    if outline.coded.saturating_mul(8) < outline.blocks {
        let (coded, blocks) = (outline.coded, outline.blocks);
        return Err(corrupt(format!("{coded} bytes cannot hold {blocks} blocks")));
    }
    Ok(outline)
}

/// A JPEG whose size was read.
pub(super) fn jpeg(bytes: &[u8], late: Late, out: &mut Rgb8) -> Result<(), DecodeError> {
    let outline = checked_outline(bytes, late.limits)?;
    match outline {
        // Adobe's transform 0 on three components means that they are RGB already. The decoder
        // takes it for CMYK; without the name it assumes YCbCr, and it converts nothing when
        // asked for what it assumes.
        JpegOutline { components: 3, adobe: Some((name, 0)), .. } => {
            let mut nameless = bytes.to_vec();
            nameless[name] = b'-';
            run_jpeg(&nameless, &outline, late, true, out)
        }
        _ => run_jpeg(bytes, &outline, late, false, out),
    }
}

/// Decodes to RGB, or, `as_stored`, without any conversion of colours.
fn run_jpeg(
    bytes: &[u8],
    outline: &JpegOutline,
    late: Late,
    as_stored: bool,
    out: &mut Rgb8,
) -> Result<(), DecodeError> {
    let limits = late.limits;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(limits.max_side as usize)
        .set_max_height(limits.max_side as usize)
        .jpeg_set_max_scans(limits.max_scans);
    let mut decoder = JpegDecoder::new_with_options(late.reader(bytes), options);
    decoder.decode_headers().map_err(|e| late.or_corrupt(e))?;
    let (width, height) = (outline.width, outline.height);
    if decoder.dimensions() != Some((width as usize, height as usize)) {
        return Err(corrupt("the JPEG declares its size twice"));
    }
    let stored = decoder.input_colorspace().filter(|_| as_stored);
    decoder.set_options(options.jpeg_set_out_colorspace(stored.unwrap_or(ColorSpace::RGB)));
    (out.width, out.height) = (width, height);
    out.data.resize(width as usize * height as usize * 3, 0);
    decoder.decode_into(&mut out.data).map_err(|e| late.or_corrupt(e))
}

// ----------------------------------------------------------------------------------------- PNG

/// What the header of a PNG declares.
pub(super) fn png_size(bytes: &[u8]) -> Result<[u32; 2], DecodeError> {
    let header = bytes.get(12..24).ok_or_else(|| corrupt("the PNG ends within its header"))?;
    if &header[..4] != b"IHDR" {
        return Err(corrupt("the PNG does not begin with its header"));
    }
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    Ok([word(4), word(8)])
}

/// A PNG whose size was read.
pub(super) fn png(bytes: &[u8], late: Late, out: &mut Rgb8) -> Result<(), DecodeError> {
    // What lies beside the pixels (profiles, text) may unpack to this much and no more.
    let mut alloc = Limits::default();
    alloc.max_alloc = Some(64 << 20);
    read(PngDecoder::with_limits(late.reader(bytes), alloc), late, out)
}

/// Runs a decoder of the `image` crate and brings its samples to 8-bit RGB.
fn read<D: ImageDecoder>(
    decoder: ImageResult<D>,
    late: Late,
    out: &mut Rgb8,
) -> Result<(), DecodeError> {
    let decoder = decoder.map_err(|e| late.or_corrupt(e))?;
    let colours = decoder.color_type();
    (out.width, out.height) = decoder.dimensions();
    let pixels = out.width as usize * out.height as usize;
    let length = pixels * usize::from(colours.bytes_per_pixel());
    if colours == ColorType::Rgb8 {
        out.data.resize(length, 0);
        return decoder.read_image(&mut out.data).map_err(|e| late.or_corrupt(e));
    }
    let mut samples = vec![0; length];
    decoder.read_image(&mut samples).map_err(|e| late.or_corrupt(e))?;
    // `high` is the high byte of a 16-bit sample, which the crate stores in native order.
    let high = usize::from(cfg!(target_endian = "little"));
    let (stride, channels) = match colours {
        ColorType::L8 => (1, [0; 3]),
        ColorType::La8 => (2, [0; 3]),
        ColorType::Rgba8 => (4, [0, 1, 2]),
        ColorType::L16 => (2, [high; 3]),
        ColorType::La16 => (4, [high; 3]),
        ColorType::Rgb16 => (6, [high, high + 2, high + 4]),
        ColorType::Rgba16 => (8, [high, high + 2, high + 4]),
        other => return Err(DecodeError::Unsupported(format!("{other:?} samples"))),
    };
    out.data.clear();
    for pixel in samples.chunks_exact(stride) {
        out.data.extend_from_slice(&channels.map(|channel| pixel[channel]));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------- WebP

/// What the headers of a WebP file declare; every one of them is held against the limits.
pub(super) fn webp_size(bytes: &[u8], limits: &DecodeLimits) -> Result<[u32; 2], DecodeError> {
    check_webp(&bytes[12..], limits, true)?;
    WebPDecoder::new(Cursor::new(bytes)).map(|d| d.dimensions().into()).map_err(corrupt)
}

/// A WebP file whose sizes were read.
pub(super) fn webp(bytes: &[u8], late: Late, out: &mut Rgb8) -> Result<(), DecodeError> {
    read(WebPDecoder::new(late.reader(bytes)), late, out)
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
