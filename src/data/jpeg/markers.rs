//! Headers: from marker to marker (ITU T.81, Annex B).

use super::{JpegError, corrupt, unsupported};

/// Segments and stray bytes allowed between two scans: parsing costs less than a millisecond.
const MAX_SEGMENTS: usize = 4096;
const MAX_STRAY: usize = 1 << 16;

/// One component of the frame (B.2.2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors: blocks of one MCU, across and down.
    pub h: usize,
    pub v: usize,
    /// Which quantisation table.
    pub quant: usize,
}

/// What the components are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    YCbCr,
    Rgb,
}

/// The frame header (B.2.2).
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    pub colour: Colour,
    components: [Component; 3],
    count: usize,
    /// Largest sampling factors.
    pub h_max: usize,
    pub v_max: usize,
}

impl Frame {
    pub fn components(&self) -> &[Component] {
        &self.components[..self.count]
    }

    /// MCUs of an interleaved scan, across and down (A.2.3).
    pub fn mcus(&self) -> (usize, usize) {
        (self.width.div_ceil(8 * self.h_max), self.height.div_ceil(8 * self.v_max))
    }

    /// Samples of a component at full size, across and down (A.1.1).
    pub fn samples(&self, of: &Component) -> (usize, usize) {
        ((self.width * of.h).div_ceil(self.h_max), (self.height * of.v).div_ceil(self.v_max))
    }

    fn parse(code: u8, body: &[u8]) -> Result<Self, JpegError> {
        match code {
            0xC0..=0xC2 => {}
            0xC3 => return Err(unsupported("lossless JPEG")),
            0xC5..=0xC7 => return Err(unsupported("hierarchical JPEG")),
            _ => return Err(unsupported("arithmetic coding")),
        }
        let &[precision, h1, h0, w1, w0, count, ref list @ ..] = body else {
            return Err(corrupt("the frame header is too short"));
        };
        let height = usize::from(u16::from_be_bytes([h1, h0]));
        let width = usize::from(u16::from_be_bytes([w1, w0]));
        let count = usize::from(count);
        if precision != 8 {
            return Err(unsupported("samples of more than 8 bits"));
        }
        if height == 0 {
            return Err(unsupported("a height that follows the picture (DNL)"));
        }
        if width == 0 || count == 0 || list.len() != 3 * count {
            return Err(corrupt("the frame header contradicts itself"));
        }
        if count != 1 && count != 3 {
            return Err(unsupported("neither 1 nor 3 components"));
        }
        let mut components = [Component::default(); 3];
        for (component, bytes) in components.iter_mut().zip(list.chunks_exact(3)) {
            let (h, v) = (usize::from(bytes[1] >> 4), usize::from(bytes[1] & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || bytes[2] > 3 {
                return Err(corrupt("the frame header contradicts itself"));
            }
            *component = Component { id: bytes[0], h, v, quant: usize::from(bytes[2]) };
        }
        if count == 1 {
            // One component alone is never interleaved, whatever its factors say (A.2.2).
            (components[0].h, components[0].v) = (1, 1);
        }
        let all = &components[..count];
        let [h_max, v_max] = [all.iter().map(|c| c.h).max(), all.iter().map(|c| c.v).max()];
        let (h_max, v_max) = (h_max.expect("a component"), v_max.expect("a component"));
        if all.iter().any(|c| h_max % c.h != 0 || v_max % c.v != 0) {
            return Err(unsupported("sampling by other than whole numbers"));
        }
        if all.iter().map(|c| c.h * c.v).sum::<usize>() > 10 {
            return Err(corrupt("more than 10 blocks in an MCU"));
        }
        let ids = [all[0].id, components[1].id, components[2].id];
        if count == 3 && (ids[0] == ids[1] || ids[0] == ids[2] || ids[1] == ids[2]) {
            return Err(unsupported("components that share a name"));
        }
        let progressive = code == 0xC2;
        let colour = Colour::Grey;
        Ok(Self { width, height, progressive, colour, components, count, h_max, v_max })
    }

    /// libjpeg's rules: JFIF means YCbCr; then Adobe's word counts; then the components' names.
    fn set_colour(&mut self, jfif: bool, adobe: Option<u8>) {
        let names = self.components.map(|c| c.id);
        self.colour = match (self.count, jfif, adobe) {
            (1, _, _) => Colour::Grey,
            (_, true, _) => Colour::YCbCr,
            (_, _, Some(0)) => Colour::Rgb,
            (_, _, None) if names == *b"RGB" => Colour::Rgb,
            _ => Colour::YCbCr,
        };
    }
}

/// Tables in force at a point of the file (B.2.4). Huffman tables are slices of it: 16 counts,
/// then as many symbols as they add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables<'a> {
    /// In zigzag order.
    pub quant: [Option<[u16; 64]>; 4],
    pub dc: [Option<&'a [u8]>; 4],
    pub ac: [Option<&'a [u8]>; 4],
    /// MCUs between restart markers; 0: there are none.
    pub restart: usize,
}

impl<'a> Tables<'a> {
    fn define_quant(&mut self, mut body: &'a [u8]) -> Result<(), JpegError> {
        let short = || corrupt("a quantisation table is too short");
        while let Some((&head, rest)) = body.split_first() {
            let (wide, id) = (usize::from(head >> 4), usize::from(head & 15));
            if wide > 1 || id > 3 {
                return Err(corrupt("a quantisation table of no known kind"));
            }
            let (values, rest) = rest.split_at_checked(64 << wide).ok_or_else(short)?;
            let value = |i: usize| match wide {
                0 => u16::from(values[i]),
                _ => u16::from_be_bytes([values[2 * i], values[2 * i + 1]]),
            };
            self.quant[id] = Some(std::array::from_fn(value));
            body = rest;
        }
        Ok(())
    }

    fn define_huffman(&mut self, mut body: &'a [u8]) -> Result<(), JpegError> {
        let short = || corrupt("a Huffman table is too short");
        while let Some((&head, rest)) = body.split_first() {
            let counts = rest.get(..16).ok_or_else(short)?;
            let symbols: usize = counts.iter().map(|&n| usize::from(n)).sum();
            if symbols > 256 {
                return Err(corrupt("a Huffman table of more than 256 symbols"));
            }
            let (table, rest) = rest.split_at_checked(16 + symbols).ok_or_else(short)?;
            let id = usize::from(head & 15);
            let slot = match head >> 4 {
                0 => self.dc.get_mut(id),
                1 => self.ac.get_mut(id),
                _ => None,
            };
            *slot.ok_or(corrupt("a Huffman table of no known kind"))? = Some(table);
            body = rest;
        }
        Ok(())
    }
}

/// The scan header (B.2.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    /// Index into the frame's components, tables for DC and AC.
    list: [(usize, usize, usize); 3],
    count: usize,
    /// First and last coefficient, in zigzag order.
    pub band: (usize, usize),
    /// Bit position before and after: `Ah`, `Al`.
    pub high: u32,
    pub low: u32,
}

impl Scan {
    /// `(component, DC table, AC table)` of each component.
    pub fn components(&self) -> &[(usize, usize, usize)] {
        &self.list[..self.count]
    }

    fn parse(frame: &Frame, body: &[u8]) -> Result<Self, JpegError> {
        let bad = || corrupt("the scan header contradicts itself or the frame");
        let (&count, rest) = body.split_first().ok_or_else(bad)?;
        let count = usize::from(count);
        if !(1..=frame.count).contains(&count) || rest.len() != 2 * count + 3 {
            return Err(bad());
        }
        let mut list = [(0, 0, 0); 3];
        let mut after = 0;
        for (entry, bytes) in list.iter_mut().zip(rest[..2 * count].chunks_exact(2)) {
            let found = frame.components().iter().position(|c| c.id == bytes[0]);
            let component = found.ok_or_else(bad)?;
            let (dc, ac) = (usize::from(bytes[1] >> 4), usize::from(bytes[1] & 15));
            // Components stand in the frame's order (B.2.3), hence each at most once.
            if component < after || dc > 3 || ac > 3 {
                return Err(bad());
            }
            after = component + 1;
            *entry = (component, dc, ac);
        }
        let [first, last, bits] = [0, 1, 2].map(|i| rest[2 * count + i]);
        let band = (usize::from(first), usize::from(last));
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let scan = Self { list, count, band, high, low };
        if frame.progressive {
            let fits = if first == 0 { last == 0 } else { count == 1 && first <= last };
            if !fits || last > 63 || low > 13 || high != 0 && high != low + 1 {
                return Err(bad());
            }
        }
        Ok(scan)
    }
}

/// Walks from marker to marker. Tables are kept up to date on the way.
#[derive(Clone, Debug)]
pub(super) struct Markers<'a> {
    pub bytes: &'a [u8],
    /// Where the next marker is looked for.
    pub at: usize,
    pub tables: Tables<'a>,
    /// Bytes skipped that belong to no segment.
    stray: usize,
}

impl<'a> Markers<'a> {
    /// Reads up to the first scan: its header, and its entropy data begin at `self.at`.
    pub fn headers(bytes: &'a [u8]) -> Result<(Self, Frame, Scan), JpegError> {
        if !bytes.starts_with(&[0xFF, 0xD8]) {
            return Err(corrupt("no start-of-image marker"));
        }
        let mut markers = Self { bytes, at: 2, tables: Tables::default(), stray: 0 };
        let (mut frame, mut jfif, mut adobe) = (None, false, None);
        for _ in 0..MAX_SEGMENTS {
            let (code, body) = markers.segment()?;
            match (code, body) {
                (0xC0..=0xCF, _) if !matches!(code, 0xC4 | 0xC8 | 0xCC) => {
                    let twice = frame.replace(Frame::parse(code, body)?).is_some();
                    if twice {
                        return Err(corrupt("two frame headers"));
                    }
                }
                (0xDA, _) => {
                    let mut frame = frame.ok_or(corrupt("a scan before the frame header"))?;
                    frame.set_colour(jfif, adobe);
                    let scan = Scan::parse(&frame, body)?;
                    return Ok((markers, frame, scan));
                }
                (0xD9, _) => return Err(corrupt("no picture before the end-of-image marker")),
                (0xE0, [b'J', b'F', b'I', b'F', 0, ..]) if body.len() >= 14 => jfif = true,
                (0xEE, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => {
                    adobe = Some(*transform);
                }
                _ => {}
            }
        }
        Err(unsupported("thousands of header segments"))
    }

    /// The next scan of the same frame, or `None` at the end of the image.
    pub fn next_scan(&mut self, frame: &Frame) -> Result<Option<Scan>, JpegError> {
        for _ in 0..MAX_SEGMENTS {
            match self.segment()? {
                (0xDA, body) => return Scan::parse(frame, body).map(Some),
                (0xD9, _) => return Ok(None),
                (code @ 0xC0..=0xCF, _) if !matches!(code, 0xC4 | 0xC8 | 0xCC) => {
                    return Err(corrupt("two frame headers"));
                }
                _ => {}
            }
        }
        Err(unsupported("thousands of header segments"))
    }

    /// The next marker's code and its segment (B.1.1.4); tables are taken in.
    fn segment(&mut self) -> Result<(u8, &'a [u8]), JpegError> {
        let cut = || corrupt("the JPEG ends before its end-of-image marker");
        let code = self.marker()?;
        if matches!(code, 0x01 | 0xD0..=0xD9) {
            return Ok((code, &[]));
        }
        let rest = &self.bytes[self.at..];
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or_else(cut)?));
        if length < 2 {
            return Err(corrupt("a segment shorter than its own length"));
        }
        let body = rest.get(2..length).ok_or_else(cut)?;
        self.at += length;
        match (code, body) {
            (0xC4, _) => self.tables.define_huffman(body)?,
            (0xDB, _) => self.tables.define_quant(body)?,
            (0xDD, &[high, low]) => {
                self.tables.restart = usize::from(u16::from_be_bytes([high, low]));
            }
            (0xDD, _) => return Err(corrupt("a restart interval of no known length")),
            _ => {}
        }
        Ok((code, body))
    }

    /// The next marker's code. Fill bytes and what entropy decoding left over are skipped.
    fn marker(&mut self) -> Result<u8, JpegError> {
        let cut = || corrupt("the JPEG ends before its end-of-image marker");
        while self.stray <= MAX_STRAY {
            let rest = self.bytes.get(self.at..).ok_or_else(cut)?;
            let (&[first, second], _) = rest.split_first_chunk().ok_or_else(cut)?;
            if first == 0xFF && !matches!(second, 0x00 | 0xFF) {
                self.at += 2;
                return Ok(second);
            }
            self.at += 1;
            self.stray += 1;
        }
        Err(corrupt("more than 64 KiB of stray bytes"))
    }

    /// Whether an end-of-image marker follows. Entropy data holds none, so the last one counts.
    pub fn ends(&self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        rest.windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
    }
}
