//! Rows to columns, 8-bit samples.

use crate::simd::avx2_or;

/// Side of the squares that are turned.
pub(super) const SQUARE: usize = 16;

/// Rows that are turned at a time: two squares.
pub(super) const ROWS: usize = 2 * SQUARE;

/// Rows of samples in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub data: &'a [u8],
    /// From one row to the next, in samples.
    pub stride: usize,
    /// Rows that there are.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// A row and all that follows it; the last row again behind the last.
    #[inline(always)]
    fn from(&self, row: usize) -> &'a [u8] {
        &self.data[row.min(self.count - 1) * self.stride..]
    }
}

/// Samples of a row from `x` on; zeros where there are none.
#[inline(always)]
fn load(row: &[u8], x: usize) -> [u8; SQUARE] {
    let samples = row.get(x..x + SQUARE).and_then(|samples| samples.first_chunk());
    samples.copied().unwrap_or_else(|| load_end(row, x))
}

#[cold]
fn load_end(row: &[u8], x: usize) -> [u8; SQUARE] {
    let mut padded = [0; SQUARE];
    let samples = row.get(x..).unwrap_or_default();
    padded[..samples.len()].copy_from_slice(samples);
    padded
}

/// Where turned rows go.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    pub data: &'a mut [u8],
    /// From one to the next, in samples.
    pub stride: usize,
    /// First sample of each that is written.
    pub offset: usize,
}

/// Turns the first `height` rows, `width` samples of each: `to[x][y] = from[y][x]`. The height is
/// rounded up to whole [`ROWS`], the width to whole squares, for which `to` has room.
pub(super) fn transpose(from: Rows<'_>, size: [usize; 2], to: Columns<'_>) {
    avx2_or!(by_squares(from, size, to), by_samples(from, size, to));
}

fn by_samples(from: Rows<'_>, [height, width]: [usize; 2], to: Columns<'_>) {
    for y in 0..height.next_multiple_of(ROWS) {
        for x in (0..width).step_by(SQUARE) {
            for (i, sample) in load(from.from(y), x).into_iter().enumerate() {
                to.data[(x + i) * to.stride + to.offset + y] = sample;
            }
        }
    }
}

/// Twice sixteen rows of sixteen samples are turned by four rounds of interleaving the first half
/// of each sixteen rows with the second.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt")]
fn by_squares(from: Rows<'_>, [height, width]: [usize; 2], to: Columns<'_>) {
    use std::arch::x86_64::{
        _mm256_set_m128i, _mm256_setzero_si256, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
    };

    const HALF: usize = SQUARE / 2;
    for y in (0..height).step_by(ROWS) {
        let mut rows = [from.data; ROWS];
        let mut whole = [[].as_slice(); ROWS];
        for i in 0..ROWS {
            rows[i] = from.from(y + i);
            whole[i] = rows[i].as_chunks::<SQUARE>().0;
        }
        for (x, columns) in
            (0..width).step_by(SQUARE).zip(to.data.chunks_exact_mut(SQUARE * to.stride))
        {
            let mut squares = [_mm256_setzero_si256(); SQUARE];
            // No row is shorter than the last.
            if x / SQUARE < whole[ROWS - 1].len() {
                for (i, both) in squares.iter_mut().enumerate() {
                    let (low, high) = (whole[i][x / SQUARE], whole[i + SQUARE][x / SQUARE]);
                    *both = _mm256_set_m128i(bytemuck::cast(high), bytemuck::cast(low));
                }
            } else {
                for (i, both) in squares.iter_mut().enumerate() {
                    let (low, high) = (load(rows[i], x), load(rows[i + SQUARE], x));
                    *both = _mm256_set_m128i(bytemuck::cast(high), bytemuck::cast(low));
                }
            }
            for _ in 0..4 {
                let before = squares;
                for i in 0..HALF {
                    squares[2 * i] = _mm256_unpacklo_epi8(before[i], before[i + HALF]);
                    squares[2 * i + 1] = _mm256_unpackhi_epi8(before[i], before[i + HALF]);
                }
            }
            for (i, &samples) in squares.iter().enumerate() {
                let column = &mut columns[i * to.stride + to.offset + y..];
                let place: &mut [u8; ROWS] = column.first_chunk_mut().expect("room for squares");
                *place = bytemuck::cast(samples);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every size, with rows that end at the end of the data and rows that have to be repeated.
    #[test]
    fn both_ways_turn_alike() {
        let data: Vec<u8> = (0..50 * 40).map(|i| (i * 89 % 251) as u8).collect();
        let cases: [[usize; 3]; 4] = [[32, 16, 32], [32, 40, 32], [64, 17, 50], [32, 3, 1]];
        for [height, width, count] in cases {
            let from = Rows { data: &data[..count * 40], stride: 40, count };
            let (offset, stride) = (3, height + 5);
            let mut both = [(); 2].map(|()| vec![0; stride * width.next_multiple_of(SQUARE)]);
            let [one, other] = &mut both;
            transpose(from, [height, width], Columns { data: one, stride, offset });
            by_samples(from, [height, width], Columns { data: other, stride, offset });
            assert_eq!(both[0], both[1]);
            for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
                assert_eq!(both[0][x * stride + offset + y], data[y.min(count - 1) * 40 + x]);
            }
        }
    }
}
