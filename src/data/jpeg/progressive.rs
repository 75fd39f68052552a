//! Pictures of several scans: progressive ones (ITU T.81, G.1) and sequential ones that are not
//! interleaved. All coefficients of the picture are kept until the last scan is read.

use super::huffman::{Bits, Codes, extend};
use super::idct::{Block, ORDER};
use super::markers::{Frame, Markers, Scan};
use super::scan::{Built, Coder, Position, Unit, Units, layouts};
use super::{Budget, JpegError, corrupt, unsupported};
use crate::simd::vectorised;

/// Most blocks whose memory is kept for the next picture: 17 MiB.
const KEPT: usize = 1 << 17;

/// The coefficients of a whole picture: 2 bytes for each, and 8 bytes for each block.
#[derive(Clone, Default)]
pub(super) struct Picture {
    pub blocks: Vec<Block>,
    /// By zigzag index, from the lowest bit: which AC coefficients a progressive scan has set.
    nonzero: Vec<u64>,
}

impl Picture {
    /// Makes room for so many blocks, all zero.
    fn clear(&mut self, blocks: usize) {
        self.blocks.clear();
        self.blocks.resize(blocks, Block::default());
        self.nonzero.clear();
        self.nonzero.resize(blocks, 0);
    }

    /// Gives the memory of an unusually large picture back.
    pub fn trim(&mut self) {
        if self.blocks.len() > KEPT {
            *self = Self::default();
        }
    }
}

/// What is known of every coefficient of a component: the bits still missing, or nothing.
type Known = [[Option<u32>; 64]; 3];

/// Decodes all scans of the picture.
pub(super) fn decode(
    markers: &mut Markers,
    frame: &Frame,
    first: Scan,
    built: &mut Built,
    picture: &mut Picture,
    quant: &mut [Option<[u16; 64]>; 3],
    budget: &Budget,
) -> Result<(), JpegError> {
    picture.clear(layouts(frame.components(), frame.mcus()).1);
    let mut known: Known = [[None; 64]; 3];
    let mut next = Some(first);
    let mut scans = 0;
    while let Some(scan) = next {
        scans += 1;
        if scans > budget.max_scans {
            return Err(unsupported("more scans than the limit"));
        }
        for &(component, ..) in scan.components() {
            // A component keeps the table that was in force at its first scan, as in libjpeg.
            let id = frame.components()[component].quant;
            quant[component] = quant[component].or(markers.tables.quant[id]);
        }
        let kind = kind(&scan, frame, &mut known)?;
        match kind {
            Kind::Sequential => built.define_all(&markers.tables, &scan)?,
            Kind::DcFirst => {
                for &(_, dc, _) in scan.components() {
                    built.define_dc(&markers.tables, dc)?;
                }
            }
            Kind::AcFirst | Kind::AcAgain => {
                built.define_ac(&markers.tables, scan.components()[0].2)?;
            }
            Kind::DcAgain => {}
        }
        markers.at = decode_scan(markers, frame, &scan, kind, built, picture, budget)?;
        next = markers.next_scan(frame)?;
    }
    let known = &known[..frame.components().len()];
    // libjpeg smooths a picture of which these are not known exactly; nobody writes such files.
    if known.iter().any(|known| known[..10].iter().any(|&bits| bits != Some(0))) {
        return Err(unsupported("a progressive picture that was never finished"));
    }
    Ok(())
}

/// What a scan codes.
#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    /// Progressive: coefficients for the first time, or one bit more of them.
    DcFirst,
    DcAgain,
    AcFirst,
    AcAgain,
}

/// The kind of a scan, which must go on where others of its component have ended (G.1.1.1).
fn kind(scan: &Scan, frame: &Frame, known: &mut Known) -> Result<Kind, JpegError> {
    let (first, last) = if frame.progressive { scan.band } else { (0, 63) };
    let (high, low) = if frame.progressive { (scan.high, scan.low) } else { (0, 0) };
    for &(component, ..) in scan.components() {
        for bits in &mut known[component][first..=last] {
            if *bits != (high > 0).then_some(high) {
                return Err(corrupt("a scan that does not go on where the last one ended"));
            }
            *bits = Some(low);
        }
    }
    Ok(match (frame.progressive, first, high) {
        (false, ..) => Kind::Sequential,
        (_, 0, 0) => Kind::DcFirst,
        (_, 0, _) => Kind::DcAgain,
        (_, _, 0) => Kind::AcFirst,
        (_, _, _) => Kind::AcAgain,
    })
}

/// Decodes one scan; returns where its data ends.
fn decode_scan(
    markers: &Markers,
    frame: &Frame,
    scan: &Scan,
    kind: Kind,
    built: &Built,
    picture: &mut Picture,
    budget: &Budget,
) -> Result<usize, JpegError> {
    let (layouts, _) = layouts(frame.components(), frame.mcus());
    let (units, (across, down)) = match scan.components() {
        &[(component, ..)] => {
            let (width, height) = frame.samples(&frame.components()[component]);
            let units = Units::alone(scan, &layouts, built);
            (units, (width.div_ceil(8), height.div_ceil(8)))
        }
        _ => (Units::interleaved(frame.components(), scan, &layouts, built), frame.mcus()),
    };
    let mut position = Position::new(markers);
    let mut skip = 0;
    for row in 0..down {
        budget.check()?;
        let task = Task { scan, kind, units: units.list(), row, across };
        decode_row(&task, &mut position, &mut skip, picture)?;
    }
    Ok(position.bits.at())
}

/// What [`decode_row`] has to do.
struct Task<'a> {
    scan: &'a Scan,
    kind: Kind,
    units: &'a [Unit<'a>],
    row: usize,
    /// MCUs in a row.
    across: usize,
}

vectorised! {
    /// Decodes one row of MCUs. `skip`: blocks to come that have ended already (`EOBRUN`).
    fn decode_row(
        task: &Task<'_>,
        position: &mut Position<'_>,
        skip: &mut u32,
        picture: &mut Picture,
    ) -> Result<(), JpegError> {
        let low = task.scan.low;
        let band = task.scan.band;
        for mcu in 0..task.across {
            if position.restart()? {
                *skip = 0;
            }
            let mut bits = position.bits;
            let mut sound = true;
            for unit in task.units {
                let at = unit.at + task.row * unit.down + mcu * unit.across;
                let block = &mut picture.blocks[at];
                let prediction = &mut position.prediction[unit.component];
                let Coder { dc, ac, .. } = unit.coder;
                sound &= match task.kind {
                    Kind::Sequential => {
                        unit.coder.block::<true>(&mut bits, prediction, block)
                    }
                    Kind::DcFirst => dc_first(&mut bits, dc, prediction, low, block),
                    Kind::DcAgain => {
                        bits.refill();
                        block.0[0] |= (bits.number(1) << low) as i16;
                        true
                    }
                    Kind::AcFirst => {
                        let block = (block, &mut picture.nonzero[at]);
                        ac_first(&mut bits, ac, band, low, skip, block)
                    }
                    Kind::AcAgain => {
                        let block = (block, &mut picture.nonzero[at]);
                        ac_again(&mut bits, ac, band, low, skip, block)
                    }
                };
            }
            position.bits = bits;
            if !sound {
                return Err(corrupt("entropy-coded data that no encoder writes"));
            }
        }
        position.bits.check()
    }
}

/// G.1.2.1: the DC coefficient without its `low` last bits.
#[inline(always)]
fn dc_first(
    bits: &mut Bits,
    codes: &Codes,
    prediction: &mut i32,
    low: u32,
    block: &mut Block,
) -> bool {
    if !codes.dc(bits, prediction) {
        return false;
    }
    block.0[0] = (*prediction << low) as i16;
    true
}

/// Index of a coefficient within its block.
#[inline(always)]
fn place(zigzag: usize) -> usize {
    usize::from(ORDER[zigzag & 63]) & 63
}

/// G.1.2.2: AC coefficients without their `low` last bits.
#[inline(always)]
fn ac_first(
    bits: &mut Bits,
    codes: &Codes,
    (first, last): (usize, usize),
    low: u32,
    skip: &mut u32,
    (block, nonzero): (&mut Block, &mut u64),
) -> bool {
    if *skip > 0 {
        *skip -= 1;
        return true;
    }
    let mut at = first;
    while at <= last {
        let Some((run, size)) = codes.run_and_size(bits) else { return false };
        match (run, size) {
            (15, 0) => at += 16,
            (_, 0) => {
                *skip = (1 << run) - 1 + bits.number(run);
                return true;
            }
            _ => {
                at += run as usize;
                if at > last {
                    return false;
                }
                block.0[place(at)] = (extend(bits.bits, size) << low) as i16;
                bits.take(size);
                *nonzero |= 1 << (at & 63);
                at += 1;
            }
        }
    }
    true
}

/// G.1.2.3: one bit more of every AC coefficient.
#[inline(always)]
fn ac_again(
    bits: &mut Bits,
    codes: &Codes,
    (first, last): (usize, usize),
    low: u32,
    skip: &mut u32,
    (block, nonzero): (&mut Block, &mut u64),
) -> bool {
    let bit = 1_i16 << low;
    // What lies ahead in the band, one bit for each coefficient, as in `nonzero`.
    let mut ahead = u64::MAX << first & u64::MAX >> (63 - last);
    while *skip == 0 && ahead != 0 {
        let Some((run, size)) = codes.run_and_size(bits) else { return false };
        let value = match (run, size) {
            (15, 0) => 0,
            (_, 0) => {
                *skip = (1 << run) + bits.number(run);
                break;
            }
            (_, 1) => [-bit, bit][bits.number(1) as usize],
            _ => return false,
        };
        // The symbol ends at the zero behind a run of zeros; what is not zero on the way to it
        // takes a bit.
        let mut zeros = ahead & !*nonzero;
        for _ in 0..run {
            zeros &= zeros.wrapping_sub(1);
        }
        let end = zeros & zeros.wrapping_neg();
        let passed = end.wrapping_sub(1);
        correct(bits, block, ahead & passed & *nonzero, bit);
        ahead &= !(passed | end);
        if value != 0 {
            if end == 0 {
                return false;
            }
            block.0[place(end.trailing_zeros() as usize)] = value;
            *nonzero |= end;
        }
    }
    if *skip > 0 {
        correct(bits, block, ahead & *nonzero, bit);
        *skip -= 1;
    }
    true
}

/// Moves each of these coefficients away from zero if its bit says so.
#[inline(always)]
fn correct(bits: &mut Bits, block: &mut Block, mut which: u64, bit: i16) {
    while which != 0 {
        bits.refill();
        let count = which.count_ones().min(48);
        let mut word = bits.bits;
        for _ in 0..count {
            let coefficient = &mut block.0[place(which.trailing_zeros() as usize)];
            let moves = (word >> 63) as i16;
            let sign = *coefficient >> 15;
            *coefficient = coefficient.wrapping_add(((moves * bit) ^ sign) - sign);
            word <<= 1;
            which &= which - 1;
        }
        bits.take(count);
    }
}
