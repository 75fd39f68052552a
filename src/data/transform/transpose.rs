//! Rows to columns, 8-bit samples.

use crate::simd::avx2_or;

/// Side of the squares that are turned at a time.
pub(super) const SQUARE: usize = 16;

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
    /// From a sample on, all that follows it; the last row again behind the last.
    #[inline(always)]
    fn from(&self, row: usize, column: usize) -> &'a [u8] {
        self.data.get(row.min(self.count - 1) * self.stride + column..).unwrap_or_default()
    }
}

/// The first samples; zeros where there are none.
#[inline(always)]
fn load(samples: &[u8]) -> [u8; SQUARE] {
    samples.first_chunk().copied().unwrap_or_else(|| load_end(samples))
}

#[cold]
fn load_end(samples: &[u8]) -> [u8; SQUARE] {
    let mut padded = [0; SQUARE];
    padded[..samples.len()].copy_from_slice(samples);
    padded
}

/// Turns the first `height` rows, `width` samples of each: `to[x · stride + y] = from[y][x]`.
/// Both are rounded up to whole squares, for which `to` has room.
pub(super) fn transpose(from: Rows<'_>, size: [usize; 2], to: &mut [u8], stride: usize) {
    avx2_or!(by_squares(from, size, to, stride), by_samples(from, size, to, stride));
}

fn by_samples(from: Rows<'_>, [height, width]: [usize; 2], to: &mut [u8], stride: usize) {
    for y in 0..height.next_multiple_of(SQUARE) {
        for x in (0..width).step_by(SQUARE) {
            for (i, sample) in load(from.from(y, x)).into_iter().enumerate() {
                to[(x + i) * stride + y] = sample;
            }
        }
    }
}

/// Sixteen rows of sixteen samples are turned by four rounds of interleaving the first half of the
/// rows with the second.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt")]
fn by_squares(from: Rows<'_>, [height, width]: [usize; 2], to: &mut [u8], stride: usize) {
    use std::arch::x86_64::{_mm_setzero_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8};

    const HALF: usize = SQUARE / 2;
    for x in (0..width).step_by(SQUARE) {
        for y in (0..height).step_by(SQUARE) {
            let mut rows = [_mm_setzero_si128(); SQUARE];
            let all = from.from(y, x).get(..(SQUARE - 1) * from.stride + SQUARE);
            match all.filter(|_| y + SQUARE <= from.count) {
                Some(all) => {
                    for (i, row) in rows.iter_mut().enumerate() {
                        let samples = all[i * from.stride..].first_chunk().expect("all are there");
                        *row = bytemuck::cast::<[u8; SQUARE], _>(*samples);
                    }
                }
                None => {
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = bytemuck::cast(load(from.from(y + i, x)));
                    }
                }
            }
            for _ in 0..4 {
                let before = rows;
                for i in 0..HALF {
                    rows[2 * i] = _mm_unpacklo_epi8(before[i], before[i + HALF]);
                    rows[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + HALF]);
                }
            }
            let mut lines = &mut to[x * stride + y..];
            for &column in &rows {
                let (line, rest) = lines.split_at_mut(stride.min(lines.len()));
                let place: &mut [u8; SQUARE] = line.first_chunk_mut().expect("room for squares");
                *place = bytemuck::cast(column);
                lines = rest;
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
        let cases: [[usize; 3]; 4] = [[16, 16, 16], [32, 40, 32], [64, 17, 50], [16, 3, 1]];
        for [height, width, count] in cases {
            let from = Rows { data: &data[..count * 40], stride: 40, count };
            let stride = height + 5;
            let mut both = [(); 2].map(|()| vec![0; stride * width.next_multiple_of(SQUARE)]);
            transpose(from, [height, width], &mut both[0], stride);
            by_samples(from, [height, width], &mut both[1], stride);
            assert_eq!(both[0], both[1]);
            for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
                assert_eq!(both[0][x * stride + y], data[y.min(count - 1) * 40 + x]);
            }
        }
    }
}
