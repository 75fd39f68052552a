//! Sequential scans (ITU T.81, F.2): one interleaved scan, decoded row by row as far as the part
//! needs it. Blocks beside the part are passed over, rows below it are not looked at.

use super::huffman::{Bits, Codes, INVALID, Pair, PairTable, Pairs, extend, run_and_size};
use super::idct::{Block, ORDER};
use super::markers::{Component, Markers, Scan, Tables};
use super::{JpegError, corrupt};
use crate::simd::vectorised;

/// Tables that were built, kept from picture to picture.
#[derive(Clone, Default)]
pub(super) struct Built {
    dc: [Codes; 4],
    ac: [Codes; 4],
    pairs: [Pairs; 4],
    /// Whether `pairs` is that of `ac`.
    paired: [bool; 4],
}

impl Built {
    pub fn define_dc(&mut self, tables: &Tables, id: usize) -> Result<(), JpegError> {
        let missing = corrupt("a scan needs a Huffman table that is not there");
        self.dc[id].define(tables.dc[id].ok_or(missing)?).map(|_| ())
    }

    pub fn define_ac(&mut self, tables: &Tables, id: usize) -> Result<(), JpegError> {
        let missing = corrupt("a scan needs a Huffman table that is not there");
        let changed = self.ac[id].define(tables.ac[id].ok_or(missing)?);
        self.paired[id] &= changed == Ok(false);
        changed.map(|_| ())
    }

    /// All tables of a sequential scan.
    pub fn define_all(&mut self, tables: &Tables, scan: &Scan) -> Result<(), JpegError> {
        for &(_, dc, ac) in scan.components() {
            self.define_dc(tables, dc)?;
            self.define_ac(tables, ac)?;
            if !self.paired[ac] {
                self.pairs[ac].build(&self.ac[ac]);
                self.paired[ac] = true;
            }
        }
        Ok(())
    }

    fn coder(&self, dc: usize, ac: usize) -> Coder<'_> {
        Coder { dc: &self.dc[dc], ac: &self.ac[ac], pairs: self.pairs[ac].table() }
    }
}

/// The tables of one component in a scan; `pairs` are for sequential ones.
#[derive(Clone, Copy)]
pub(super) struct Coder<'t> {
    pub dc: &'t Codes,
    pub ac: &'t Codes,
    pairs: &'t PairTable,
}

impl Coder<'_> {
    /// Decodes one block (F.2.2). Without `STORE` nothing but the prediction is kept. Returns
    /// whether the data made sense; what was read is held against the data's end by the caller.
    #[inline(always)]
    pub fn block<const STORE: bool>(
        self,
        bits: &mut Bits,
        prediction: &mut i32,
        out: &mut Block,
    ) -> bool {
        if !self.dc.dc(bits, prediction) {
            return false;
        }
        if STORE {
            out.0 = [0; 64];
        }
        let mut at = 0;
        loop {
            at = self.step::<STORE>(bits, at, out);
            if at >= 63 {
                break;
            }
            bits.refill();
            at = self.step::<STORE>(bits, at, out);
            if at >= 63 {
                break;
            }
        }
        if STORE {
            out.0[0] = *prediction as i16;
        }
        // 63: the last coefficient was coded. From 128: an end of block before it. What lies
        // between went past the block, as does an invalid code.
        at & 64 == 0 && at < 192
    }

    /// Decodes one or two AC symbols behind coefficient `at` of the zigzag order. Returns the
    /// position of the last one; from 63 the block is finished.
    #[inline(always)]
    fn step<const STORE: bool>(self, bits: &mut Bits, at: u32, out: &mut Block) -> u32 {
        let pair = Pair::find(self.pairs, bits.bits);
        if pair.is_empty() {
            return self.one::<STORE>(bits, at, out);
        }
        let (first, last) = (at + pair.first_move(), at + pair.moves());
        if STORE {
            out.0[ORDER[first as usize & 255] as usize & 63] = pair.first_value();
            out.0[ORDER[last as usize & 255] as usize & 63] = pair.value();
        }
        if last >= 63 && first >= 63 {
            // What seemed to be the second symbol belongs to the next block.
            bits.take(pair.first_length());
            return first;
        }
        bits.take(pair.length());
        last
    }

    /// As [`Coder::step`], for one symbol that the pairs do not hold.
    #[inline(always)]
    fn one<const STORE: bool>(self, bits: &mut Bits, at: u32, out: &mut Block) -> u32 {
        let (length, symbol) = self.ac.find(bits.bits);
        let Some((moves, size)) = run_and_size(symbol).filter(|_| length > 0) else {
            return INVALID;
        };
        bits.take(length);
        if STORE {
            let value = extend(bits.bits, size);
            out.0[ORDER[(at + moves) as usize & 255] as usize & 63] = value as i16;
        }
        bits.take(size);
        at + moves
    }
}

/// Where a scan stands.
pub(super) struct Position<'a> {
    pub bits: Bits<'a>,
    /// Last DC value of each component (F.2.1.3.1).
    pub prediction: [i32; 3],
    /// MCUs between restart markers, MCUs left before the next, and that one's number.
    interval: usize,
    left: usize,
    number: u8,
}

impl<'a> Position<'a> {
    /// Behind the scan's header.
    pub fn new(markers: &Markers<'a>) -> Self {
        // No picture has that many MCUs.
        let interval = match markers.tables.restart {
            0 => usize::MAX,
            interval => interval,
        };
        let bits = Bits::new(markers.bytes, markers.at);
        Self { bits, prediction: [0; 3], interval, left: interval, number: 0 }
    }

    /// Called before every MCU; tells whether a restart marker was passed.
    #[inline(always)]
    pub fn restart(&mut self) -> Result<bool, JpegError> {
        if self.left == 0 {
            self.bits = self.bits.restart(self.number)?;
            self.prediction = [0; 3];
            self.left = self.interval;
            self.number = self.number.wrapping_add(1);
            self.left -= 1;
            return Ok(true);
        }
        self.left -= 1;
        Ok(false)
    }
}

/// Where the coefficients of one component lie among those of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// Index of the first block.
    pub at: usize,
    /// Blocks in a row, those that only fill up the last MCU included.
    pub wide: usize,
}

/// A block of the MCU.
#[derive(Clone, Copy)]
pub(super) struct Unit<'t> {
    pub component: usize,
    pub coder: Coder<'t>,
    /// Its place for the first MCU.
    pub at: usize,
    /// How much further it is for the next MCU, and for the next row of them.
    pub across: usize,
    pub down: usize,
}

/// The blocks of the MCU, at most 10 (B.2.3).
pub(super) struct Units<'t> {
    list: [Unit<'t>; 10],
    count: usize,
}

impl<'t> Units<'t> {
    /// Of a scan in which the components take turns (A.2.3).
    pub fn interleaved(
        components: &[Component],
        scan: &Scan,
        layouts: &[Layout; 3],
        built: &'t Built,
    ) -> Self {
        let coder = built.coder(0, 0);
        let unit = Unit { component: 0, coder, at: 0, across: 0, down: 0 };
        let mut units = Self { list: [unit; 10], count: 0 };
        for &(component, dc, ac) in scan.components() {
            let (of, Layout { at, wide }) = (components[component], layouts[component]);
            let (coder, across, down) = (built.coder(dc, ac), of.h, wide * of.v);
            for block in 0..of.h * of.v {
                let at = at + block / of.h * wide + block % of.h;
                units.list[units.count] = Unit { component, coder, at, across, down };
                units.count += 1;
            }
        }
        units
    }

    /// Of a scan of one component, whatever its sampling factors (A.2.2).
    pub fn alone(scan: &Scan, layouts: &[Layout; 3], built: &'t Built) -> Self {
        let (component, dc, ac) = scan.components()[0];
        let Layout { at, wide } = layouts[component];
        let coder = built.coder(dc, ac);
        Self { list: [Unit { component, coder, at, across: 1, down: wide }; 10], count: 1 }
    }

    pub fn list(&self) -> &[Unit<'t>] {
        &self.list[..self.count]
    }
}

/// Which MCUs of a row are wanted, of how many.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub first: usize,
    pub end: usize,
    pub mcus: usize,
}

vectorised! {
    /// Decodes one row of MCUs, those of the span into `blocks`.
    pub(super) fn mcu_row(
        position: &mut Position<'_>,
        units: &[Unit<'_>],
        span: Span,
        blocks: &mut [Block],
    ) -> Result<(), JpegError> {
        // A copy that nobody else can see lives in registers.
        let mut local = Position { ..*position };
        let mut sound = true;
        let mut unseen = Block([0; 64]);
        for mcu in 0..span.mcus {
            local.restart()?;
            let mut bits = local.bits;
            if (span.first..span.end).contains(&mcu) {
                let index = mcu - span.first;
                for unit in units {
                    let out = &mut blocks[unit.at + index * unit.across];
                    let prediction = &mut local.prediction[unit.component];
                    sound &= unit.coder.block::<true>(&mut bits, prediction, out);
                }
            } else {
                for unit in units {
                    let prediction = &mut local.prediction[unit.component];
                    sound &= unit.coder.block::<false>(&mut bits, prediction, &mut unseen);
                }
            }
            local.bits = bits;
            if !sound {
                return Err(corrupt("entropy-coded data that no encoder writes"));
            }
        }
        local.bits.check()?;
        *position = local;
        Ok(())
    }
}
