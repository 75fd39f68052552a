//! Coefficients → samples (ITU T.81, A.3.3), equal to libjpeg's `islow` transforms to the bit.
//!
//! The transforms are integer ones: constants of 13 bits, two passes, the first over columns. It
//! keeps 2 bits more than it needs and rounds to nearest; so does the second. At 1/2 and 1/4 every
//! sample is the mean of 2 x 2 or 4 x 4 of the whole transform's, before rounding; at 1/8 it is the
//! block's mean. Legal data never leaves 16 bits; what is not legal wraps or saturates there.

use crate::simd::avx2_or;

/// The coefficients of a block, in the order of [`place`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block(pub [i16; 64]);

impl Default for Block {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// Where a coefficient is kept: rows `r` and `r + 4` in turns, so that one register holds pairs
/// of them for every column, as multiply-and-add wants it.
const fn place(row: usize, column: usize) -> usize {
    row % 4 * 16 + column * 2 + row / 4
}

/// [`place`] by zigzag index (Figure A.6). What is stored past the block lands on its DC
/// coefficient, which is written last.
pub(super) const ORDER: [u8; 256] = {
    let mut order = [0; 256];
    let (mut row, mut column, mut up) = (0_usize, 0_usize, true);
    let mut index = 0;
    while index < 64 {
        order[index] = place(row, column) as u8;
        match (up, row, column) {
            (true, _, 7) => (row, up) = (row + 1, false),
            (true, 0, _) => (column, up) = (column + 1, false),
            (true, _, _) => (row, column) = (row - 1, column + 1),
            (false, 7, _) => (column, up) = (column + 1, true),
            (false, _, 0) => (row, up) = (row + 1, true),
            (false, _, _) => (row, column) = (row + 1, column - 1),
        }
        index += 1;
    }
    order
};

/// A quantisation table, kept as the coefficients are.
pub(super) fn quantisation(zigzag: &[u16; 64]) -> Block {
    let mut table = Block::default();
    for (value, &place) in zigzag.iter().zip(&ORDER) {
        table.0[usize::from(place)] = *value as i16;
    }
    table
}

/// Multiplies of 1/8192: of rows 0 and 4, of 2 and 6, of 1 and 5, of 3 and 7.
type Weights = [[i16; 2]; 4];

/// The 8-point transform: output `k` and `7 - k` are the sum and the difference of an even and an
/// odd part. One set of weights for each `k`.
const EIGHT: [Weights; 4] = [
    [[8192, 8192], [10703, 4433], [11363, 6437], [9633, 2260]],
    [[8192, -8192], [4433, -10704], [9633, -11362], [-2259, -6436]],
    [[8192, -8192], [-4433, 10704], [6437, 2261], [-11362, 9633]],
    [[8192, 8192], [-10703, -4433], [2260, 9633], [-6436, -11363]],
];

/// Means of two neighbours of it.
const FOUR: [Weights; 2] = [
    [[16384, 0], [15137, -6270], [20995, -4926], [7373, -4176]],
    [[16384, 0], [-15137, 6270], [8697, 11893], [-17799, -1730]],
];

/// Means of four neighbours of it. The constant term needs one bit more than there is.
const TWO: [Weights; 1] = [[[16384, 0], [0, 0], [29692, 6967], [-10426, -5906]]];

/// Bits dropped by the first and the second pass.
const EIGHT_BITS: [i32; 2] = [11, 18];
const FOUR_BITS: [i32; 2] = [12, 19];
const TWO_BITS: [i32; 2] = [13, 20];

/// Transforms a row of blocks at `size` (8, 4, 2 or 1) samples a side into `size` rows of `out`,
/// which begin `stride` apart.
pub(super) fn row(blocks: &[Block], quant: &Block, size: usize, out: &mut [u8], stride: usize) {
    if size == 1 {
        for (sample, block) in out.iter_mut().zip(blocks) {
            let mean = block.0[0].wrapping_mul(quant.0[0]);
            *sample = (((i32::from(mean) + 4) >> 3).clamp(-128, 127) + 128) as u8;
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    use avx2::row as fast;
    avx2_or!(fast(blocks, quant, size, out, stride), plain(blocks, quant, size, out, stride))
}

/// [`row`] for sizes 8, 4 and 2 with nothing but plain arithmetic.
fn plain(blocks: &[Block], quant: &Block, size: usize, out: &mut [u8], stride: usize) {
    for (index, block) in blocks.iter().enumerate() {
        let samples = match size {
            8 => plain_block(block, quant, &EIGHT, 0, EIGHT_BITS),
            4 => plain_block(block, quant, &FOUR, 0, FOUR_BITS),
            _ => plain_block(block, quant, &TWO, 1, TWO_BITS),
        };
        for (row, line) in samples.iter().take(size).enumerate() {
            let at = row * stride + index * size;
            out[at..at + size].copy_from_slice(&line[..size]);
        }
    }
}

/// Both passes over one block; `extra`: bits by which rows 0 and 4 count for more.
fn plain_block(
    block: &Block,
    quant: &Block,
    weights: &[Weights],
    extra: u32,
    bits: [i32; 2],
) -> [[u8; 8]; 8] {
    let size = 2 * weights.len();
    // One pass over eight values; the first `size` results count.
    let pass = |values: [i16; 8], bits: i32| {
        let mut results = [0_i16; 8];
        for (k, weights) in weights.iter().enumerate() {
            let part = |pair: usize| {
                let rows = [[0, 4], [2, 6], [1, 5], [3, 7]][pair];
                let product = |i: usize| i32::from(weights[pair][i]) * i32::from(values[rows[i]]);
                product(0).wrapping_add(product(1))
            };
            let even = (part(0) << extra).wrapping_add(part(1)).wrapping_add(1 << (bits - 1));
            let odd = part(2).wrapping_add(part(3));
            let clamp = |v: i32| (v >> bits).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
            results[k] = clamp(even.wrapping_add(odd));
            results[size - 1 - k] = clamp(even.wrapping_sub(odd));
        }
        results
    };
    let mut columns = [[0_i16; 8]; 8];
    for (column, results) in columns.iter_mut().enumerate() {
        *results = pass(
            std::array::from_fn(|row| {
                let at = place(row, column);
                block.0[at].wrapping_mul(quant.0[at])
            }),
            bits[0],
        );
    }
    let mut samples = [[0; 8]; 8];
    for (row, line) in samples.iter_mut().enumerate().take(size) {
        let results = pass(columns.map(|column| column[row]), bits[1]);
        *line = results.map(|v| (v.clamp(-128, 127) + 128) as u8);
    }
    samples
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with 256-bit registers.

    use std::arch::x86_64::*;

    use super::*;

    /// [`super::row`] for sizes 8, 4 and 2.
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt")]
    pub fn row(blocks: &[Block], quant: &Block, size: usize, out: &mut [u8], stride: usize) {
        match size {
            8 => eight(blocks, quant, out, stride),
            4 => fewer::<2>(blocks, quant, &FOUR, FOUR_BITS, out, stride),
            _ => fewer::<1>(blocks, quant, &TWO, TWO_BITS, out, stride),
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn madd(pairs: __m256i, [low, high]: [i16; 2]) -> __m256i {
        let weights = i32::from(low) & 0xFFFF | i32::from(high) << 16;
        _mm256_madd_epi16(pairs, _mm256_set1_epi32(weights))
    }

    /// Dequantised: pairs of rows 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn dequantised(block: &Block, quant: &Block) -> [__m256i; 4] {
        let block: [__m256i; 4] = bytemuck::cast(block.0);
        let quant: [__m256i; 4] = bytemuck::cast(quant.0);
        let mut product = block;
        for (coefficients, table) in product.iter_mut().zip(quant) {
            *coefficients = _mm256_mullo_epi16(*coefficients, table);
        }
        product
    }

    /// One 8-point pass: pairs of 16-bit rows in, eight 32-bit rows out.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn pass<const BITS: i32>(pairs: [__m256i; 4]) -> [__m256i; 8] {
        let round = _mm256_set1_epi32(1 << (BITS - 1));
        let plus = _mm256_add_epi32(madd(pairs[0], EIGHT[0][0]), round);
        let minus = _mm256_add_epi32(madd(pairs[0], EIGHT[1][0]), round);
        let (outer, inner) = (madd(pairs[2], EIGHT[0][1]), madd(pairs[2], EIGHT[1][1]));
        let even = [
            _mm256_add_epi32(plus, outer),
            _mm256_add_epi32(minus, inner),
            _mm256_sub_epi32(minus, inner),
            _mm256_sub_epi32(plus, outer),
        ];
        let mut rows = [_mm256_setzero_si256(); 8];
        for k in 0..4 {
            let odd = _mm256_add_epi32(madd(pairs[1], EIGHT[k][2]), madd(pairs[3], EIGHT[k][3]));
            rows[k] = _mm256_srai_epi32::<BITS>(_mm256_add_epi32(even[k], odd));
            rows[7 - k] = _mm256_srai_epi32::<BITS>(_mm256_sub_epi32(even[k], odd));
        }
        rows
    }

    /// Packs eight rows to 16 bits and transposes them: columns 0 and 4, 1 and 5, 2 and 6, 3 and
    /// 7, the first in the lower half.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn transpose(rows: [__m256i; 8]) -> [__m256i; 4] {
        let rows04 = _mm256_packs_epi32(rows[0], rows[4]);
        let rows15 = _mm256_packs_epi32(rows[1], rows[5]);
        let rows26 = _mm256_packs_epi32(rows[2], rows[6]);
        let rows37 = _mm256_packs_epi32(rows[3], rows[7]);
        let rows02 = _mm256_unpacklo_epi16(rows04, rows26);
        let rows46 = _mm256_unpackhi_epi16(rows04, rows26);
        let rows13 = _mm256_unpacklo_epi16(rows15, rows37);
        let rows57 = _mm256_unpackhi_epi16(rows15, rows37);
        let upper01 = _mm256_unpacklo_epi16(rows02, rows13);
        let upper23 = _mm256_unpackhi_epi16(rows02, rows13);
        let lower01 = _mm256_unpacklo_epi16(rows46, rows57);
        let lower23 = _mm256_unpackhi_epi16(rows46, rows57);
        [
            _mm256_unpacklo_epi64(upper01, lower01),
            _mm256_unpackhi_epi64(upper01, lower01),
            _mm256_unpacklo_epi64(upper23, lower23),
            _mm256_unpackhi_epi64(upper23, lower23),
        ]
    }

    /// The two columns of each register in turns: pairs for the second pass.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn interleave(mut columns: [__m256i; 4]) -> [__m256i; 4] {
        let turns = _mm256_setr_epi8(
            0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5,
            12, 13, 6, 7, 14, 15,
        );
        for column in &mut columns {
            let lanes = _mm256_permute4x64_epi64::<0b11_01_10_00>(*column);
            *column = _mm256_shuffle_epi8(lanes, turns);
        }
        columns
    }

    /// 16-bit rows r and r + 4 → 8-bit rows 0, 1, 4, 5 and 2, 3, 6, 7.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn to_bytes(rows: [__m256i; 4]) -> [[u64; 4]; 2] {
        let middle = _mm256_set1_epi8(-128);
        let first = _mm256_xor_si256(_mm256_packs_epi16(rows[0], rows[1]), middle);
        let second = _mm256_xor_si256(_mm256_packs_epi16(rows[2], rows[3]), middle);
        [bytemuck::cast(first), bytemuck::cast(second)]
    }

    #[target_feature(enable = "avx2")]
    fn eight(blocks: &[Block], quant: &Block, out: &mut [u8], stride: usize) {
        for (index, block) in blocks.iter().enumerate() {
            let out = &mut out[8 * index..];
            let columns = transpose(pass::<11>(dequantised(block, quant)));
            let rows = transpose(pass::<18>(interleave(columns)));
            let [[r0, r1, r4, r5], [r2, r3, r6, r7]] = to_bytes(rows);
            for (row, line) in [r0, r1, r2, r3, r4, r5, r6, r7].into_iter().enumerate() {
                out[row * stride..][..8].copy_from_slice(&line.to_le_bytes());
            }
        }
    }

    /// `2 N` samples a side. `4 / N` blocks go through the second pass together: it has lanes for
    /// eight rows.
    #[target_feature(enable = "avx2")]
    fn fewer<const N: usize>(
        blocks: &[Block],
        quant: &Block,
        weights: &[Weights; N],
        bits: [i32; 2],
        out: &mut [u8],
        stride: usize,
    ) {
        let size = 2 * N;
        for (index, group) in blocks.chunks(4 / N).enumerate() {
            let mut rows = [_mm256_setzero_si256(); 8];
            for (rows, block) in rows.chunks_exact_mut(size).zip(group) {
                pass_fewer(dequantised(block, quant), weights, bits[0], rows);
            }
            let columns = interleave(transpose(rows));
            let mut rows = [_mm256_setzero_si256(); 8];
            pass_fewer(columns, weights, bits[1], &mut rows[..size]);
            let [[r0, r1, r4, r5], [r2, r3, r6, r7]] = to_bytes(transpose(rows));
            let rows = [r0, r1, r2, r3, r4, r5, r6, r7].map(u64::to_le_bytes);
            for (i, row) in rows.iter().enumerate().take(size * group.len()) {
                let at = i % size * stride + (index * (4 / N) + i / size) * size;
                out[at..at + size].copy_from_slice(&row[..size]);
            }
        }
    }

    /// One pass of [`fewer`].
    #[target_feature(enable = "avx2")]
    #[inline]
    fn pass_fewer<const N: usize>(
        pairs: [__m256i; 4],
        weights: &[Weights; N],
        bits: i32,
        rows: &mut [__m256i],
    ) {
        let round = _mm256_set1_epi32(1 << (bits - 1));
        let (extra, bits) = (_mm_cvtsi32_si128(i32::from(N == 1)), _mm_cvtsi32_si128(bits));
        for (k, [w04, w26, w15, w37]) in weights.iter().enumerate() {
            let constant = _mm256_add_epi32(_mm256_sll_epi32(madd(pairs[0], *w04), extra), round);
            let even = _mm256_add_epi32(constant, madd(pairs[2], *w26));
            let odd = _mm256_add_epi32(madd(pairs[1], *w15), madd(pairs[3], *w37));
            rows[k] = _mm256_sra_epi32(_mm256_add_epi32(even, odd), bits);
            rows[2 * N - 1 - k] = _mm256_sra_epi32(_mm256_sub_epi32(even, odd), bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Domain, Rng};

    /// What [`row`] chooses on this machine gives the plain code's bits, for data that no encoder
    /// writes, too.
    #[test]
    fn both_ways_give_the_same_bits() {
        let mut rng = Rng::new(1, Domain::Image, 0, 0);
        for round in 0..2000 {
            let bits = 1 + round % 16;
            let mut block = || {
                let mut block = Block::default();
                let some = 1 + rng.below(64) as usize;
                block.0[..some].fill_with(|| (rng.next_u32() as i16) >> (16 - bits));
                block
            };
            let (blocks, quant) = (std::array::from_fn::<_, 5, _>(|_| block()), block());
            for size in [8, 4, 2] {
                let stride = 5 * size + 3;
                let (mut ours, mut theirs) = ([7; 43 * 8], [7; 43 * 8]);
                row(&blocks, &quant, size, &mut ours, stride);
                plain(&blocks, &quant, size, &mut theirs, stride);
                assert_eq!(ours, theirs, "size {size}, round {round}");
            }
        }
    }

    /// Figure A.6: each of the 64 places once, and the first row of the figure.
    #[test]
    fn the_zigzag_order_is_the_standards() {
        let mut places = ORDER[..64].to_vec();
        let row: Vec<_> = [0, 1, 5, 6, 14, 15, 27, 28].map(|i| usize::from(ORDER[i])).to_vec();
        assert_eq!(row, (0..8).map(|column| place(0, column)).collect::<Vec<_>>());
        places.sort_unstable();
        assert_eq!(places, (0..64).collect::<Vec<u8>>());
    }
}
