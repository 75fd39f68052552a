//! JPEG for training: only what lies under a part of the picture is transformed, at the scale that
//! is needed, into planes as they are stored or into RGB.
//!
//! Baseline, extended and progressive Huffman coding of 8-bit samples (ITU T.81), grey or three
//! components, sampled by whole numbers. [`Jpeg::rgb`] gives what libjpeg-turbo gives to the bit.
//! Unlike libjpeg it takes nothing that is damaged: data that ends early, codes that do not exist
//! and a missing end-of-image marker are errors. What lies below the part is not looked at.
//!
//! The order: `markers` reads headers, `huffman` bits, `scan` and `progressive`
//! coefficients; `idct` makes samples of them, `color` pixels.

use std::time::Instant;

use super::decode::Rgb8;
use super::transform::draws::CropBox;

mod color;
mod huffman;
mod idct;
mod markers;
mod progressive;
mod scan;

use idct::Block;
use markers::{Colour, Component, Frame, Markers, Scan};
use progressive::Picture;
use scan::{Built, Layout, Position, Span, Units, layouts};

/// Why a JPEG was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JpegError {
    /// The file ends too early or contradicts the format.
    #[error("truncated or corrupt: {0}")]
    Corrupt(&'static str),
    /// A JPEG, but of a kind that is not decoded here.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
    /// [`Budget::deadline`] has passed.
    #[error("decoding took too long")]
    Late,
}

fn corrupt(what: &'static str) -> JpegError {
    JpegError::Corrupt(what)
}

fn unsupported(what: &'static str) -> JpegError {
    JpegError::Unsupported(what)
}

/// What decoding one picture may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Most scans; each may visit every block of the picture again.
    pub max_scans: usize,
    /// When to give up; looked at once per row of MCUs.
    pub deadline: Option<Instant>,
}

impl Budget {
    fn check(&self) -> Result<(), JpegError> {
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(JpegError::Late),
            _ => Ok(()),
        }
    }
}

/// Samples of one component of a part of a picture.
#[derive(Clone, Debug, Default)]
pub struct Plane {
    /// Rows of `stride` samples, then at least 64 to spare. Grows, never shrinks.
    pub data: Vec<u8>,
    /// From one row to the next, samples.
    pub stride: usize,
    /// Samples in a row that belong to the picture; 0 if there is no such component.
    pub width: usize,
    /// Rows that belong to the picture.
    pub height: usize,
    /// Full-size pixels that a sample covers, across and down.
    pub step: [f64; 2],
    /// Where the first sample begins, in full-size pixels from the picture's left and top.
    pub origin: [f64; 2],
}

/// Everything that decoding allocates, kept from picture to picture.
#[derive(Clone, Default)]
pub struct Scratch {
    built: Built,
    /// Coefficients of a row of MCUs, or of the whole picture where it has several scans.
    row: Vec<Block>,
    picture: Picture,
    planes: [Plane; 3],
    lines: color::Lines,
}

/// A JPEG whose headers were read.
#[derive(Clone, Debug)]
pub struct Jpeg<'a> {
    /// Behind the header of the first scan.
    markers: Markers<'a>,
    frame: Frame,
    scan: Scan,
}

impl<'a> Jpeg<'a> {
    /// Reads the headers up to the first scan; nothing is decoded, nothing allocated.
    ///
    /// # Errors
    /// [`JpegError::Corrupt`] and [`JpegError::Unsupported`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JpegError> {
        let (markers, frame, scan) = Markers::headers(bytes)?;
        Ok(Self { markers, frame, scan })
    }

    /// `W`, pixels; at least 1.
    pub fn width(&self) -> u32 {
        self.frame.width as u32
    }

    /// `H`, pixels; at least 1.
    pub fn height(&self) -> u32 {
        self.frame.height as u32
    }

    /// Decodes a part to the planes Y, Cb and Cr at 1 / 2^`halvings` of its size, `halvings` at
    /// most 3. A component that is stored smaller than Y is scaled down less, as long as it is not
    /// coarser than Y: [`Plane::step`] says what came out. A plane covers the part and reaches
    /// beyond it to the borders of blocks. A grey picture has Y alone. A picture stored as RGB is
    /// converted, by libjpeg's rounding.
    ///
    /// # Errors
    /// All of [`JpegError`].
    ///
    /// # Panics
    /// If the part is empty or does not lie within the picture.
    pub fn planes(
        &self,
        part: CropBox,
        halvings: u32,
        budget: &Budget,
        scratch: &mut Scratch,
        planes: &mut [Plane; 3],
    ) -> Result<(), JpegError> {
        let regions = self.frame.components().iter().map(|component| {
            let size = block_size(&self.frame, component, halvings);
            Region::new(&self.frame, component, part, size, 0)
        });
        let regions = collect(regions);
        self.decode(&regions, budget, scratch, planes)?;
        for plane in &mut planes[self.frame.components().len()..] {
            (plane.width, plane.height) = (0, 0);
        }
        if self.frame.colour == Colour::Rgb {
            if planes.iter().any(|p| p.step != planes[0].step || p.stride != planes[0].stride) {
                return Err(unsupported("RGB with components of different sizes"));
            }
            color::rgb_to_ycc(planes);
        }
        Ok(())
    }

    /// Decodes a part to RGB, equal to libjpeg-turbo's to the bit: `islow` transform, smooth
    /// ("fancy") upsampling, its conversion of colours.
    ///
    /// # Errors
    /// All of [`JpegError`].
    ///
    /// # Panics
    /// If the part is empty or does not lie within the picture.
    pub fn rgb(
        &self,
        part: CropBox,
        budget: &Budget,
        scratch: &mut Scratch,
        out: &mut Rgb8,
    ) -> Result<(), JpegError> {
        let mut planes = std::mem::take(&mut scratch.planes);
        let regions = self.frame.components().iter();
        let regions =
            collect(regions.map(|component| Region::new(&self.frame, component, part, 8, 1)));
        let decoded = self.decode(&regions, budget, scratch, &mut planes);
        if decoded.is_ok() {
            color::to_rgb(&self.frame, &regions, &planes, part, &mut scratch.lines, out);
        }
        scratch.planes = planes;
        decoded
    }

    /// Decodes one region of each component.
    fn decode(
        &self,
        regions: &[Region; 3],
        budget: &Budget,
        scratch: &mut Scratch,
        planes: &mut [Plane; 3],
    ) -> Result<(), JpegError> {
        let components = self.frame.components();
        for ((component, region), plane) in components.iter().zip(regions).zip(&mut *planes) {
            region.prepare(&self.frame, component, plane);
        }
        if self.frame.progressive || self.scan.components().len() < components.len() {
            let decoded = self.decode_scans(regions, budget, scratch, planes);
            scratch.picture.trim();
            return decoded;
        }
        self.decode_rows(regions, budget, scratch, planes)
    }

    /// One interleaved scan: row by row of MCUs.
    fn decode_rows(
        &self,
        regions: &[Region; 3],
        budget: &Budget,
        scratch: &mut Scratch,
        planes: &mut [Plane; 3],
    ) -> Result<(), JpegError> {
        let components = self.frame.components();
        let mut quant = [Block::default(); 3];
        for (table, component) in quant.iter_mut().zip(components) {
            let missing = corrupt("a quantisation table is not there");
            let zigzag = self.markers.tables.quant[component.quant].as_ref().ok_or(missing)?;
            *table = idct::quantisation(zigzag);
        }
        scratch.built.define_all(&self.markers.tables, &self.scan)?;
        if !self.markers.ends() {
            return Err(corrupt("the JPEG ends before its end-of-image marker"));
        }
        let (mcus, _) = self.frame.mcus();
        let (columns, rows) = mcus_under(components, regions);
        let span = Span { first: columns[0], end: columns[1], mcus };
        // The row's coefficients: those of a component together, row by row of its blocks.
        let (layouts, blocks) = layouts(components, (span.end - span.first, 1));
        let units = Units::interleaved(components, &self.scan, &layouts, &scratch.built);
        if scratch.row.len() < blocks {
            scratch.row.resize(blocks, Block::default());
        }
        let mut position = Position::new(&self.markers);
        for row in 0..rows[1] {
            budget.check()?;
            let wanted = row >= rows[0];
            let span = if wanted { span } else { Span { first: 0, end: 0, ..span } };
            scan::mcu_row(&mut position, units.list(), span, &mut scratch.row)?;
            for (c, of) in components.iter().enumerate().filter(|_| wanted) {
                let Layout { at, wide } = layouts[c];
                for v in 0..of.v {
                    let first = at + v * wide + regions[c].x - span.first * of.h;
                    let blocks = &scratch.row[first..];
                    regions[c].fill(row * of.v + v, blocks, &quant[c], &mut planes[c]);
                }
            }
        }
        Ok(())
    }

    /// Several scans: all coefficients of the picture first.
    fn decode_scans(
        &self,
        regions: &[Region; 3],
        budget: &Budget,
        scratch: &mut Scratch,
        planes: &mut [Plane; 3],
    ) -> Result<(), JpegError> {
        let (layouts, _) = layouts(self.frame.components(), self.frame.mcus());
        let (mut markers, mut quant) = (self.markers.clone(), [None; 3]);
        let (built, picture) = (&mut scratch.built, &mut scratch.picture);
        let (frame, scan) = (&self.frame, self.scan);
        progressive::decode(&mut markers, frame, scan, built, picture, &mut quant, budget)?;
        for (c, plane) in planes.iter_mut().enumerate().take(frame.components().len()) {
            let quant = quant[c].ok_or(corrupt("a quantisation table is not there"))?;
            let (quant, region) = (idct::quantisation(&quant), &regions[c]);
            for row in region.y..region.y + region.high {
                let at = layouts[c].at + row * layouts[c].wide + region.x;
                region.fill(row, &picture.blocks[at..], &quant, plane);
            }
        }
        Ok(())
    }
}

fn collect(regions: impl Iterator<Item = Region>) -> [Region; 3] {
    let mut array = [Region::default(); 3];
    array.iter_mut().zip(regions).for_each(|(slot, region)| *slot = region);
    array
}

/// Samples a side of a component's block: as few as leave it no coarser than 2^`halvings` pixels.
fn block_size(frame: &Frame, of: &Component, halvings: u32) -> usize {
    assert!(halvings <= 3, "a block has no less than one sample");
    let step = (frame.h_max / of.h).max(frame.v_max / of.v);
    ((8 * step) >> halvings).clamp(1, 8)
}

/// MCUs that hold all regions: first and end, across and down.
fn mcus_under(components: &[Component], regions: &[Region; 3]) -> ([usize; 2], [usize; 2]) {
    let (mut columns, mut rows) = ([usize::MAX, 0], [usize::MAX, 0]);
    for (of, region) in components.iter().zip(regions) {
        columns[0] = columns[0].min(region.x / of.h);
        columns[1] = columns[1].max((region.x + region.wide).div_ceil(of.h));
        rows[0] = rows[0].min(region.y / of.v);
        rows[1] = rows[1].max((region.y + region.high).div_ceil(of.v));
    }
    (columns, rows)
}

/// Blocks of one component that are transformed.
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    /// The first block, across and down.
    x: usize,
    y: usize,
    /// Blocks across and down.
    wide: usize,
    high: usize,
    /// Samples a side of a block.
    size: usize,
}

impl Region {
    /// The blocks under a part, and under `margin` samples around it where these are stored coarser
    /// than pixels.
    fn new(frame: &Frame, of: &Component, part: CropBox, size: usize, margin: usize) -> Self {
        let [left, top, width, height] =
            [part.left, part.top, part.width, part.height].map(|n| n as usize);
        assert!(width > 0 && height > 0, "an empty part");
        assert!(left + width <= frame.width && top + height <= frame.height, "a part outside");
        let range = |first: usize, end: usize, factor: usize, max: usize, samples: usize| {
            let margin = if factor == max { 0 } else { margin };
            let first = (first * factor / max).saturating_sub(margin);
            let end = ((end * factor).div_ceil(max) + margin).min(samples);
            (first / 8, end.div_ceil(8) - first / 8)
        };
        let (across, down) = frame.samples(of);
        let (x, wide) = range(left, left + width, of.h, frame.h_max, across);
        let (y, high) = range(top, top + height, of.v, frame.v_max, down);
        Self { x, y, wide, high, size }
    }

    /// Makes room for the region's samples and says where they lie.
    fn prepare(&self, frame: &Frame, of: &Component, plane: &mut Plane) {
        let (across, down) = frame.samples(of);
        let end = |blocks: usize, samples: usize| {
            (blocks * self.size).min((samples * self.size).div_ceil(8))
        };
        plane.stride = self.wide * self.size;
        plane.width = end(self.x + self.wide, across) - self.x * self.size;
        plane.height = end(self.y + self.high, down) - self.y * self.size;
        let step = |max: usize, factor: usize| (max * 8) as f64 / (factor * self.size) as f64;
        plane.step = [step(frame.h_max, of.h), step(frame.v_max, of.v)];
        let origin = [self.x, self.y].map(|block| (block * self.size) as f64);
        plane.origin = [origin[0] * plane.step[0], origin[1] * plane.step[1]];
        let samples = plane.stride * self.high * self.size + 64;
        if plane.data.len() < samples {
            plane.data.resize(samples, 0);
        }
    }

    /// Transforms one row of the picture's blocks if it belongs here; `blocks` begin with the
    /// region's first.
    fn fill(&self, row: usize, blocks: &[Block], quant: &Block, plane: &mut Plane) {
        if (self.y..self.y + self.high).contains(&row) {
            let at = (row - self.y) * self.size * plane.stride;
            let out = &mut plane.data[at..at + self.size * plane.stride];
            idct::row(&blocks[..self.wide], quant, self.size, out, plane.stride);
        }
    }
}
