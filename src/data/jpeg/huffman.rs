//! Huffman tables and the reader of entropy-coded bits (ITU T.81, Annexes C and F.2.2).

use super::{JpegError, corrupt};

/// Codes up to this length are looked up at once. Longer ones are rare.
pub(super) const LOOKUP: u32 = 10;
const ENTRIES: usize = 1 << LOOKUP;

/// How far a symbol moves within its block: up to 16 for a run, [`END`] for an end of block.
pub(super) const END: u32 = 128;

/// The codes of one table.
#[derive(Clone)]
pub(super) struct Codes {
    /// The table as the file defines it: counts and symbols. Empty: nothing was built yet.
    definition: Vec<u8>,
    /// By the next [`LOOKUP`] bits: length of the code, symbol << 8; 0 if the code is longer.
    short: Box<[u16; ENTRIES]>,
    /// By length: one past the last code of that length, left-aligned to 16 bits.
    limit: [u32; 17],
    /// By length: index of a code's symbol minus the code.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Default for Codes {
    fn default() -> Self {
        let short = Box::new([0; ENTRIES]);
        Self { definition: Vec::new(), short, limit: [0; 17], offset: [0; 17], symbols: [0; 256] }
    }
}

impl Codes {
    /// Makes these the codes of `definition` unless they are already: most files of a corpus share
    /// the tables of Annex K. Returns whether anything changed.
    pub fn define(&mut self, definition: &[u8]) -> Result<bool, JpegError> {
        if self.definition == definition {
            return Ok(false);
        }
        self.definition.clear();
        self.short.fill(0);
        let (counts, symbols) = definition.split_at(16);
        self.symbols[..symbols.len()].copy_from_slice(symbols);
        // Figure C.2: codes of one length follow each other; a longer one begins where they end.
        let (mut code, mut index) = (0_u32, 0_usize);
        for (length, &count) in (1_u32..).zip(counts) {
            let count = usize::from(count);
            self.offset[length as usize] = index as i32 - code as i32;
            for symbol in &symbols[index..index + count] {
                if code >> length != 0 {
                    return Err(corrupt("a Huffman table with more codes than fit"));
                }
                if length <= LOOKUP {
                    let first = (code as usize) << (LOOKUP - length);
                    let entry = length as u16 | u16::from(*symbol) << 8;
                    self.short[first..first + (1 << (LOOKUP - length))].fill(entry);
                }
                code += 1;
            }
            index += count;
            self.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        self.definition.extend_from_slice(definition);
        Ok(true)
    }

    /// Length and symbol of the code that the bits begin with; length 0 if there is none.
    #[inline(always)]
    pub fn find(&self, bits: u64) -> (u32, u32) {
        let entry = self.short[(bits >> (64 - LOOKUP)) as usize];
        if entry == 0 {
            return self.find_long(bits);
        }
        (u32::from(entry & 0xFF), u32::from(entry >> 8))
    }

    /// Reads the difference of a DC coefficient and adds it to the prediction (F.2.2.1); whether
    /// there is such a code.
    #[inline(always)]
    pub fn dc(&self, bits: &mut Bits, prediction: &mut i32) -> bool {
        bits.refill();
        let (length, size) = self.find(bits.bits);
        // Table F.1 ends at 11 bits; 12 are let through, as more than 55 bits a time are not.
        if length == 0 || size > 12 {
            return false;
        }
        bits.take(length);
        *prediction = prediction.wrapping_add(extend(bits.bits, size));
        bits.take(size);
        true
    }

    /// Reads an AC symbol of a progressive scan (G.1.2.2): run and size. `None` if there is no such
    /// code.
    #[inline(always)]
    pub fn run_and_size(&self, bits: &mut Bits) -> Option<(u32, u32)> {
        bits.refill();
        let (length, symbol) = self.find(bits.bits);
        if length == 0 {
            return None;
        }
        bits.take(length);
        Some((symbol >> 4, symbol & 15))
    }

    /// Figure F.16, begun behind the lengths that the lookup covers.
    #[cold]
    #[inline(never)]
    fn find_long(&self, bits: u64) -> (u32, u32) {
        let next = (bits >> 48) as u32;
        for length in LOOKUP + 1..=16 {
            if next < self.limit[length as usize] {
                let code = (next >> (16 - length)) as i32;
                let index = code + self.offset[length as usize];
                return (length, u32::from(self.symbols[(index & 255) as usize]));
            }
        }
        (0, 0)
    }
}

/// AC symbols of a sequential scan, two at a lookup where their codes are short enough.
#[derive(Clone)]
pub(super) struct Pairs(Box<PairTable>);

/// By the next [`LOOKUP`] bits.
pub(super) type PairTable = [Pair; ENTRIES];

/// What the next [`LOOKUP`] bits begin with: one or two symbols, of which the value of the last
/// may lie behind these bits. A first of two comes with its value. Packed, from the lowest bit:
/// 0..6 length of all, 7 whether the block ends, 8..16 how far they move within the block,
/// 16..24 and 24..32 how far from the last position the values belong, 32..48 the first value,
/// 48..54 and 56..62 bits before the last value, and 63 less its size.
/// If there is but one symbol it is the last, and what is the first is overwritten by it.
#[derive(Clone, Copy)]
pub(super) struct Pair(u64);

impl Pair {
    /// Not even one code is complete: moves past any block.
    const NONE: Self = Self(255 << 8);

    /// `index` is the lookup's.
    fn new(index: usize, first: Symbol, second: Option<Symbol>) -> Self {
        let value = extend(at_top(index) << first.code, first.size) as i16;
        let (skip, start) = second.map_or((0, 0), |_| (first.code + first.size, first.moves));
        let last = second.unwrap_or(first);
        let skip = skip + last.code;
        let ends = last.moves == END;
        let moves = if ends { start } else { start + last.moves };
        // An end of block writes past the block.
        let places = [first.moves, start + last.moves].map(u64::from);
        let counts = u64::from(skip + last.size) | u64::from(ends) << 7 | u64::from(moves) << 8;
        let values = u64::from(skip) << 48 | u64::from(63 - last.size) << 56;
        let first = places[0] << 16 | u64::from(value as u16) << 32;
        Self(counts | first | places[1] << 24 | values)
    }

    /// The entry for the next bits.
    #[inline(always)]
    pub fn find(table: &PairTable, bits: u64) -> Self {
        table[(bits >> (64 - LOOKUP)) as usize]
    }

    /// Only the low six bits count.
    #[inline(always)]
    pub fn length(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub fn ends(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    #[inline(always)]
    pub fn moves(self) -> u32 {
        (self.0 >> 8) as u32 & 255
    }

    /// Where the first value belongs, and it.
    #[inline(always)]
    pub fn first(self) -> (u32, i16) {
        ((self.0 >> 16) as u32 & 255, (self.0 >> 32) as i16)
    }

    /// Where the last value belongs, and it. `bits` are those of the lookup.
    #[inline(always)]
    pub fn last(self, bits: u64) -> (u32, i16) {
        let bits = bits << (self.0 >> 48 & 63);
        // EXTEND without a mask: a negative value is the complement of its magnitude.
        let negative = !((bits as i64) >> 63);
        let magnitude = (bits ^ negative as u64) >> 1 >> (self.0 >> 56);
        ((self.0 >> 24) as u32 & 255, ((magnitude as i64 ^ negative) - negative) as i16)
    }
}

/// An AC symbol: bits of its code and of its value, and how far it moves.
#[derive(Clone, Copy)]
struct Symbol {
    code: u32,
    size: u32,
    moves: u32,
}

/// How far an AC symbol moves and how many bits its value has, if it may stand in a sequential
/// scan of 8-bit samples (F.1.2.2). One bit more than Table F.2 has is let through, as by libjpeg.
#[inline(always)]
pub(super) fn run_and_size(symbol: u32) -> Option<(u32, u32)> {
    match (symbol >> 4, symbol & 15) {
        (0, 0) => Some((END, 0)),
        (15, 0) => Some((16, 0)),
        (_, 0 | 12..) => None,
        (run, size) => Some((run + 1, size)),
    }
}

impl Default for Pairs {
    fn default() -> Self {
        Self(Box::new([Pair::NONE; ENTRIES]))
    }
}

impl Pairs {
    pub fn build(&mut self, codes: &Codes) {
        let symbol = |index: usize, room: u32| {
            let entry = codes.short[index];
            let (code, symbol) = (u32::from(entry & 0xFF), u32::from(entry >> 8));
            let (moves, size) = run_and_size(symbol)?;
            (entry != 0 && code <= room).then_some(Symbol { code, size, moves })
        };
        for (index, pair) in self.0.iter_mut().enumerate() {
            *pair = symbol(index, LOOKUP).map_or(Pair::NONE, |first| {
                let room = LOOKUP.checked_sub(first.code + first.size);
                let room = room.filter(|_| first.moves != END);
                let rest = |room| index << (LOOKUP - room) & (ENTRIES - 1);
                Pair::new(index, first, room.and_then(|room| symbol(rest(room), room)))
            });
        }
    }

    pub fn table(&self) -> &PairTable {
        &self.0
    }
}

/// The bits that a lookup's index stands for.
fn at_top(index: usize) -> u64 {
    (index as u64) << (64 - LOOKUP)
}

/// The value of `size` bits at the top of `bits` (F.2.2.1, EXTEND); `size` is at most 16.
#[inline(always)]
pub(super) fn extend(bits: u64, size: u32) -> i32 {
    let value = (bits >> 1 >> (63 - size)) as i32;
    let negative = !((bits as i64) >> 63) as i32;
    value + (negative & (1 - (1 << size)))
}

/// Reads the bits of one scan. It is small and copied, so that it can live in registers.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    /// The next bits, the first one on top.
    pub bits: u64,
    /// How many of them there are.
    count: u32,
    /// How many of those stand for data that is not there: behind a marker, zeros follow.
    made_up: u32,
    data: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8], at: usize) -> Self {
        Self { bits: 0, count: 0, made_up: 0, data, at }
    }

    /// Fills up to at least 56 bits.
    #[inline(always)]
    pub fn refill(&mut self) {
        if let Some(Some(bytes)) = self.data.get(self.at..).map(|rest| rest.first_chunk()) {
            let word = u64::from_be_bytes(*bytes);
            // Whether a byte is 0xFF: only then does adding 1 to it carry out of its top bit.
            let inverse = !word;
            let ones = 0x0101_0101_0101_0101_u64;
            if inverse.wrapping_sub(ones) & word & ones << 7 == 0 {
                self.bits |= word >> self.count;
                self.at += ((63 - self.count) >> 3) as usize;
                self.count |= 56;
                return;
            }
        }
        *self = self.refill_slowly();
    }

    /// Byte by byte: takes the stuffed zero behind 0xFF away (F.1.2.3), and stops at a marker.
    /// By value, or else the reader could not live in registers.
    #[inline(never)]
    fn refill_slowly(mut self) -> Self {
        while self.count < 56 {
            let byte = match self.data.get(self.at..).unwrap_or_default() {
                [0xFF, 0x00, ..] => {
                    self.at += 2;
                    0xFF
                }
                [byte, ..] if *byte != 0xFF => {
                    self.at += 1;
                    *byte
                }
                _ => {
                    self.made_up += 8;
                    0
                }
            };
            self.bits |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    /// Takes bits that were looked at. Only the low six bits of `length` count.
    #[inline(always)]
    pub fn take(&mut self, length: u32) {
        self.bits <<= length & 63;
        self.count = self.count.wrapping_sub(length & 63);
    }

    /// The next `size` bits, at most 16, as a number.
    #[inline(always)]
    pub fn number(&mut self, size: u32) -> u32 {
        let number = (self.bits >> 1 >> (63 - size)) as u32;
        self.take(size);
        number
    }

    /// Whether more was taken than there was.
    pub fn check(&self) -> Result<(), JpegError> {
        if self.count < self.made_up {
            return Err(corrupt("the entropy-coded data ends too early"));
        }
        Ok(())
    }

    /// Passes the restart marker of that number (F.2.2.5), which must follow here.
    #[inline(never)]
    pub fn restart(mut self, number: u8) -> Result<Self, JpegError> {
        self.check()?;
        let rest = self.data.get(self.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        let follows = fill > 0 && rest.get(fill) == Some(&(0xD0 | number & 7));
        if self.count - self.made_up >= 8 || !follows {
            return Err(corrupt("a restart marker is not where it must be"));
        }
        self.at += fill + 1;
        (self.bits, self.count, self.made_up) = (0, 0, 0);
        Ok(self)
    }

    /// Where the data ends that was not even looked at: a marker lies there or behind.
    pub fn at(&self) -> usize {
        self.at
    }
}
