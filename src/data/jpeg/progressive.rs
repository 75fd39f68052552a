//! Pictures of several scans: progressive ones (ITU T.81, G.1) and sequential ones that are not
//! interleaved. All coefficients of the picture are kept until the last scan is read.

use super::huffman::{Bits, Codes, extend};
use super::idct::{Block, ORDER};
use super::markers::{Frame, Markers, Scan};
use super::scan::{Built, Coder, Layout, Position, Unit, Units};
use super::{Budget, JpegError, corrupt, unsupported};
use crate::simd::vectorised;

/// Where each component's blocks lie, and how many there are of all.
pub(super) fn layouts(frame: &Frame) -> ([Layout; 3], usize) {
    let (across, down) = frame.mcus();
    let (mut layouts, mut blocks) = ([Layout::default(); 3], 0);
    for (layout, component) in layouts.iter_mut().zip(frame.components()) {
        *layout = Layout { at: blocks, wide: across * component.h };
        blocks += layout.wide * down * component.v;
    }
    (layouts, blocks)
}

/// What is known of every coefficient of a component: the bits still missing, or nothing.
type Known = [[Option<u32>; 64]; 3];

/// Decodes all scans of the picture into `blocks`, which are zero.
pub(super) fn decode(
    markers: &mut Markers,
    frame: &Frame,
    first: Scan,
    built: &mut Built,
    blocks: &mut [Block],
    quant: &mut [Option<[u16; 64]>; 3],
    budget: &Budget,
) -> Result<(), JpegError> {
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
        markers.at = decode_scan(markers, frame, &scan, kind, built, blocks, budget)?;
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
    blocks: &mut [Block],
    budget: &Budget,
) -> Result<usize, JpegError> {
    let (layouts, _) = layouts(frame);
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
        decode_row(&task, &mut position, &mut skip, blocks)?;
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
        blocks: &mut [Block],
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
                let block = &mut blocks[unit.at + task.row * unit.down + mcu * unit.across];
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
                    Kind::AcFirst => ac_first(&mut bits, ac, band, low, skip, block),
                    Kind::AcAgain => ac_again(&mut bits, ac, band, low, skip, block),
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
    bits.refill();
    let (length, size) = codes.find(bits.bits);
    if length == 0 || size > 12 {
        return false;
    }
    bits.take(length);
    *prediction = prediction.wrapping_add(extend(bits.bits, size));
    bits.take(size);
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
    block: &mut Block,
) -> bool {
    if *skip > 0 {
        *skip -= 1;
        return true;
    }
    let mut at = first;
    while at <= last {
        bits.refill();
        let (length, symbol) = codes.find(bits.bits);
        if length == 0 {
            return false;
        }
        bits.take(length);
        let (run, size) = (symbol >> 4, symbol & 15);
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
    block: &mut Block,
) -> bool {
    let bit = 1_i16 << low;
    let mut at = first;
    while *skip == 0 && at <= last {
        bits.refill();
        let (length, symbol) = codes.find(bits.bits);
        if length == 0 {
            return false;
        }
        bits.take(length);
        let (mut run, size) = (symbol >> 4, symbol & 15);
        let value = match (run, size) {
            (15, 0) => 0,
            (_, 0) => {
                *skip = (1 << run) + bits.number(run);
                break;
            }
            (_, 1) => {
                if bits.number(1) == 1 {
                    bit
                } else {
                    -bit
                }
            }
            _ => return false,
        };
        // Coefficients that are zero are counted, the others take their bit.
        while at <= last {
            let coefficient = &mut block.0[place(at)];
            if *coefficient != 0 {
                correct(bits, coefficient, bit);
            } else if run == 0 {
                *coefficient = value;
                break;
            } else {
                run -= 1;
            }
            at += 1;
        }
        if at > last && value != 0 {
            return false;
        }
        at += 1;
    }
    if *skip > 0 {
        for at in at..=last {
            let coefficient = &mut block.0[place(at)];
            if *coefficient != 0 {
                correct(bits, coefficient, bit);
            }
        }
        *skip -= 1;
    }
    true
}

/// Moves a coefficient away from zero if the next bit says so.
#[inline(always)]
fn correct(bits: &mut Bits, coefficient: &mut i16, bit: i16) {
    bits.refill();
    if bits.number(1) == 1 && *coefficient & bit == 0 {
        let step = if *coefficient > 0 { bit } else { -bit };
        *coefficient = coefficient.wrapping_add(step);
    }
}
