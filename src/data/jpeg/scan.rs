//! Sequential scans (ITU T.81, F.2): one interleaved scan, decoded row by row as far as the part
//! needs it. Blocks beside the part are passed over, rows below it are not looked at.

use super::huffman::{Bits, Codes, END, Pair, PairTable, Pairs, extend, run_and_size};
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
        let (mut at, mut ends) = (0, false);
        while !ends {
            (at, ends) = self.step::<STORE>(bits, at, out);
            if ends {
                break;
            }
            bits.refill();
            (at, ends) = self.step::<STORE>(bits, at, out);
        }
        if STORE {
            out.0[0] = *prediction as i16;
        }
        at < PAST
    }

    /// Decodes one or two AC symbols behind coefficient `at` of the zigzag order. Returns the
    /// position of the last one, and whether the block ends there.
    #[inline(always)]
    fn step<const STORE: bool>(self, bits: &mut Bits, at: u32, out: &mut Block) -> (u32, bool) {
        let pair = Pair::find(self.pairs, bits.bits);
        let next = at + pair.moves();
        // At 63 what seems to be the second symbol may belong to the next block.
        if next >= 63 {
            return self.one::<STORE>(bits, at, out);
        }
        if STORE {
            for (moves, value) in [pair.first(), pair.last(bits.bits)] {
                store(out, at + moves, value);
            }
        }
        bits.take(pair.length());
        (next, pair.ends())
    }

    /// As [`Coder::step`], for one symbol, however long and wherever it leads.
    #[inline(always)]
    fn one<const STORE: bool>(self, bits: &mut Bits, at: u32, out: &mut Block) -> (u32, bool) {
        let (length, symbol) = self.ac.find(bits.bits);
        let Some((moves, size)) = run_and_size(symbol).filter(|_| length > 0) else {
            return (PAST, true);
        };
        bits.take(length);
        if STORE {
            store(out, at + moves, extend(bits.bits, size) as i16);
        }
        bits.take(size);
        if moves == END { (at, true) } else { (at + moves, at + moves >= 63) }
    }
}

/// A position past the block.
const PAST: u32 = 64;

#[inline(always)]
fn store(out: &mut Block, at: u32, value: i16) {
    out.0[ORDER[at as usize & 255] as usize & 63] = value;
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

/// Where each component's blocks lie in an area of so many MCUs across and down, and how many
/// blocks there are of all.
pub(super) fn layouts(
    components: &[Component],
    (across, down): (usize, usize),
) -> ([Layout; 3], usize) {
    let (mut layouts, mut blocks) = ([Layout::default(); 3], 0);
    for (layout, component) in layouts.iter_mut().zip(components) {
        *layout = Layout { at: blocks, wide: across * component.h };
        blocks += layout.wide * down * component.v;
    }
    (layouts, blocks)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Domain, Rng};

    fn below(rng: &mut Rng, n: usize) -> usize {
        rng.below(n as u64) as usize
    }

    /// A table as files define it: these symbols in random order, with codes of random lengths.
    fn table(rng: &mut Rng, mut symbols: Vec<u8>) -> Vec<u8> {
        for i in 1..symbols.len() {
            symbols.swap(i, below(rng, i + 1));
        }
        if below(rng, 2) == 0 {
            // The end of block has the shortest code.
            let end = symbols.iter().position(|&symbol| symbol == 0).expect("a zero");
            symbols.swap(0, end);
        }
        loop {
            let (mut room, mut counts) = (1, [0_u8; 16]);
            let mut rest = symbols.len();
            for (length, count) in (1..).zip(&mut counts) {
                room *= 2;
                let most = rest.min(room - 1).min(255);
                let some =
                    if length == 16 { most } else { below(rng, most.min(1 << (length / 2)) + 1) };
                (*count, room, rest) = (some as u8, room - some, rest - some);
            }
            if rest == 0 {
                return [&counts[..], &symbols].concat();
            }
        }
    }

    /// Length and code of each symbol, by Annex C.
    fn codes(table: &[u8]) -> [(u32, u32); 256] {
        let (mut codes, mut code, mut at) = ([(0, 0); 256], 0, 16);
        for (length, &count) in (1..).zip(&table[..16]) {
            for _ in 0..count {
                codes[usize::from(table[at])] = (length, code);
                (code, at) = (code + 1, at + 1);
            }
            code <<= 1;
        }
        codes
    }

    /// Writes bits, the first one first, and zeros behind 0xFF.
    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        last: u32,
        count: u32,
    }

    impl Writer {
        fn put(&mut self, (length, bits): (u32, u32)) {
            for i in (0..length).rev() {
                (self.last, self.count) = (self.last << 1 | bits >> i & 1, self.count + 1);
                if self.count == 8 {
                    self.bytes.push(self.last as u8);
                    self.bytes.extend((self.last == 0xFF).then_some(0));
                    (self.last, self.count) = (0, 0);
                }
            }
        }

        /// A symbol with a value of so many bits (F.1.2.1.1).
        fn symbol(&mut self, code: (u32, u32), value: i32, size: u32) {
            self.put(code);
            let bits = if value < 0 { value + (1 << size) - 1 } else { value };
            self.put((size, bits as u32));
        }
    }

    /// Bits of a value (Table F.1).
    fn size(value: i32) -> u32 {
        32 - value.unsigned_abs().leading_zeros()
    }

    /// Encodes a block of coefficients in zigzag order (F.1.2).
    fn encode(
        out: &mut Writer,
        [dc, ac]: [&[(u32, u32); 256]; 2],
        block: &[i32; 64],
        dc_before: i32,
    ) {
        let difference = block[0] - dc_before;
        out.symbol(dc[size(difference) as usize], difference, size(difference));
        let mut run = 0;
        for &value in &block[1..] {
            if value == 0 {
                run += 1;
                continue;
            }
            for _ in 0..run / 16 {
                out.put(ac[0xF0]);
            }
            out.symbol(ac[(run % 16) << 4 | size(value) as usize], value, size(value));
            run = 0;
        }
        if run > 0 {
            out.put(ac[0]);
        }
    }

    /// Blocks come back as they were encoded, whatever the codes: an end of block of 16 bits,
    /// values of 11, and symbols that end a block in the middle of a lookup included.
    #[test]
    fn blocks_are_those_that_were_encoded() {
        let mut rng = Rng::new(1, Domain::Image, 0, 0);
        for _ in 0..400 {
            let dc = table(&mut rng, (0..=12).collect());
            let run_and_size = |n: u8| (n / 11) << 4 | (n % 11 + 1);
            let ac = table(&mut rng, (0..176).map(run_and_size).chain([0, 0xF0]).collect());
            let codes = [&codes(&dc), &codes(&ac)];
            let mut built = Built::default();
            built.dc[0].define(&dc).expect("a DC table");
            built.ac[0].define(&ac).expect("an AC table");
            built.pairs[0].build(&built.ac[0]);
            let (mut blocks, mut file) = ([[0_i32; 64]; 20], Writer::default());
            let mut before = 0;
            for block in &mut blocks {
                let density = [64, below(&mut rng, 65)][below(&mut rng, 2)];
                let bits = 1 + below(&mut rng, 11);
                for value in block.iter_mut() {
                    let some = rng.next_u32() as i32 >> (31 - bits);
                    let wanted = below(&mut rng, 64) < density;
                    *value = if wanted { some.max(1 - (1 << bits)) } else { 0 };
                }
                encode(&mut file, codes, block, before);
                before = block[0];
            }
            file.put((7, 127));
            let mut bits = [Bits::new(&file.bytes, 0); 2];
            let (mut predictions, mut out) = ([0; 2], [Block([7; 64]); 2]);
            for block in &blocks {
                let [ours, passed] = &mut bits;
                let coder = built.coder(0, 0);
                assert!(coder.block::<true>(ours, &mut predictions[0], &mut out[0]));
                assert!(coder.block::<false>(passed, &mut predictions[1], &mut out[1]));
                let read: [_; 64] =
                    std::array::from_fn(|i| i32::from(out[0].0[usize::from(ORDER[i])]));
                assert_eq!(read, *block);
                assert_eq!(predictions, [block[0]; 2]);
            }
            assert!(bits.iter().all(|bits| bits.check().is_ok()));
        }
    }
}
