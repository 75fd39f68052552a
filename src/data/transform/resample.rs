//! Resizing 8-bit samples along both axes: Pillow's arithmetic, many samples at a time.
//!
//! As in Pillow the rows come first: each is brought to its new width and rounded to 8 bits, then
//! the columns. A row at a time would leave vector registers half empty, so some rows are turned
//! into a tile whose columns lie together, and one coefficient is multiplied with all of them.

use super::weights::{BITS, Weights};
use crate::simd::vectorised;

/// Side of the squares that are transposed.
const SQUARE: usize = 16;

/// Samples whose vertical sums are kept in registers at a time; a multiple of [`SQUARE`].
const LANES: usize = 32;

/// Half of the last bit that is kept.
const HALF: i32 = 1 << (BITS - 1);

/// A picture in memory: rows of `C` interleaved channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Samples<'a, const C: usize> {
    pub data: &'a [u8],
    /// From one row to the next, in samples.
    pub stride: usize,
}

/// Resizes, with the buffers that it needs again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Resampler {
    /// Coefficients along the rows of the source.
    pub across: Weights,
    /// Coefficients along its columns.
    pub down: Weights,
    /// Some rows of the source: `[columns, C, T]`.
    tile: Vec<u8>,
    /// The same, resized: `[resized columns, C, T]`.
    turned: Vec<u8>,
    /// All rows: `[rows, C, resized columns]`.
    middle: Vec<u8>,
}

vectorised! {
    /// Interleaved RGB to three planes, `[3, H, W]`.
    pub(super) fn resample_rgb(
        resampler: &mut Resampler,
        source: Samples<'_, 3>,
        out: &mut [u8],
    ) {
        resampler.run::<3, 16, 48>(source, out);
    }
}

impl Resampler {
    /// `T` rows make a tile, `N = C · T` samples a column of it.
    #[inline(always)]
    fn run<const C: usize, const T: usize, const N: usize>(
        &mut self,
        source: Samples<'_, C>,
        out: &mut [u8],
    ) {
        let Self { across, down, tile, turned, middle } = self;
        let (columns, rows) = (across.samples(), down.samples());
        let wide = across.len().next_multiple_of(LANES);
        tile.resize((columns.len() * C).next_multiple_of(SQUARE) * T, 0);
        turned.resize(wide * N, 0);
        middle.resize(rows.len().next_multiple_of(T) * C * wide, 0);
        for (first, middle) in rows.clone().step_by(T).zip(middle.chunks_exact_mut(T * C * wide)) {
            let lines: [&[u8]; T] = std::array::from_fn(|i| {
                let row = (first + i).min(rows.end - 1) * source.stride;
                &source.data[row + columns.start * C..row + columns.end * C]
            });
            turn(&lines, tile);
            sum_rows::<C, N>(tile, columns.start, across, turned);
            turn_back::<C, T>(turned, middle);
        }
        sum_columns::<C>(middle, rows.start, down, wide, across.len(), out);
    }
}

/// Rows to columns: `tile[j][i] = lines[i][j]`.
#[inline(always)]
fn turn<const T: usize>(lines: &[&[u8]; T], tile: &mut [u8]) {
    for (square, columns) in tile.chunks_exact_mut(SQUARE * T).enumerate() {
        for part in (0..T).step_by(SQUARE) {
            let rows = std::array::from_fn(|i| load(lines[part + i], square * SQUARE));
            for (column, turned) in columns.chunks_exact_mut(T).zip(transpose(rows)) {
                column[part..part + SQUARE].copy_from_slice(&turned);
            }
        }
    }
}

/// Samples of a line; zeros behind its end.
#[inline(always)]
fn load(line: &[u8], at: usize) -> [u8; SQUARE] {
    let line = &line[at..];
    match line.first_chunk() {
        Some(samples) => *samples,
        None => {
            let mut samples = [0; SQUARE];
            samples[..line.len()].copy_from_slice(line);
            samples
        }
    }
}

/// Every resized column of a tile.
#[inline(always)]
fn sum_rows<const C: usize, const N: usize>(
    tile: &[u8],
    first: usize,
    across: &Weights,
    turned: &mut [u8],
) {
    for ((start, weights), out) in across.iter().zip(turned.as_chunks_mut::<N>().0) {
        let columns = &tile.as_chunks::<N>().0[start - first..];
        let mut sums = [HALF; N];
        for (&weight, column) in weights.iter().zip(columns) {
            for i in 0..N {
                sums[i] += weight * i32::from(column[i]);
            }
        }
        *out = sums.map(clip);
    }
}

/// A resized tile back to rows, its channels one after the other.
#[inline(always)]
fn turn_back<const C: usize, const T: usize>(turned: &[u8], rows: &mut [u8]) {
    let wide = turned.len() / (C * T);
    for channel in 0..C {
        for part in (0..T).step_by(SQUARE) {
            for at in (0..wide).step_by(SQUARE) {
                let columns =
                    std::array::from_fn(|i| load(&turned[(at + i) * C * T + channel * T..], part));
                for (i, row) in transpose(columns).into_iter().enumerate() {
                    let place = ((part + i) * C + channel) * wide + at;
                    rows[place..place + SQUARE].copy_from_slice(&row);
                }
            }
        }
    }
}

/// Every resized row of the picture.
#[inline(always)]
fn sum_columns<const C: usize>(
    middle: &[u8],
    first: usize,
    down: &Weights,
    wide: usize,
    width: usize,
    out: &mut [u8],
) {
    let (stride, plane) = (C * wide, out.len() / C);
    for (y, (start, weights)) in down.iter().enumerate() {
        for channel in 0..C {
            let out = &mut out[channel * plane + y * width..][..width];
            for (at, out) in (0..).step_by(LANES).zip(out.chunks_mut(LANES)) {
                let rows = middle[(start - first) * stride + channel * wide + at..].chunks(stride);
                let mut sums = [HALF; LANES];
                for (&weight, row) in weights.iter().zip(rows) {
                    let row: &[u8; LANES] = row.first_chunk().expect("rows are whole lanes");
                    for i in 0..LANES {
                        sums[i] += weight * i32::from(row[i]);
                    }
                }
                let sums = sums.map(clip);
                match out.as_mut_array() {
                    Some(out) => *out = sums,
                    None => out.copy_from_slice(&sums[..out.len()]),
                }
            }
        }
    }
}

/// From fixed point to a sample.
#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Four rounds of interleaving the first half of the rows with the second.
#[inline(always)]
fn transpose(mut rows: [[u8; SQUARE]; SQUARE]) -> [[u8; SQUARE]; SQUARE] {
    for _ in 0..4 {
        let before = rows;
        for i in 0..SQUARE / 2 {
            for j in 0..SQUARE / 2 {
                rows[2 * i][2 * j] = before[i][j];
                rows[2 * i][2 * j + 1] = before[i + 8][j];
                rows[2 * i + 1][2 * j] = before[i][j + 8];
                rows[2 * i + 1][2 * j + 1] = before[i + 8][j + 8];
            }
        }
    }
    rows
}
