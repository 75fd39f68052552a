//! Resizing 8-bit samples along both axes: Pillow's arithmetic, many samples at a time.
//!
//! As in Pillow the rows come first: each is brought to its new width and rounded to 8 bits, then
//! the columns. A row at a time would leave vector registers half empty, so some rows are turned
//! into a tile whose columns lie together, and one coefficient is multiplied with all of them.

use super::transpose::{Rows, SQUARE, transpose};
use super::weights::{BITS, Weights};
use crate::simd::vectorised;

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
        resampler.run::<3, 32, 96>(source, out);
    }
}

vectorised! {
    /// One plane to another, `[H, W]`.
    pub(super) fn resample_plane(
        resampler: &mut Resampler,
        source: Samples<'_, 1>,
        out: &mut [u8],
    ) {
        resampler.run::<1, 64, 64>(source, out);
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
            let data = &source.data[first * source.stride + columns.start * C..];
            let lines = Rows { data, stride: source.stride, count: T.min(rows.end - first) };
            transpose(lines, [T, columns.len() * C], tile, T);
            sum_rows::<N>(tile, columns.start, across, turned);
            for channel in 0..C {
                let lines = Rows { data: &turned[channel * T..], stride: N, count: wide };
                transpose(lines, [wide, T], &mut middle[channel * wide..], C * wide);
            }
        }
        sum_columns::<C>(middle, rows.start, down, wide, across.len(), out);
    }
}

/// Every resized column of a tile.
#[inline(always)]
fn sum_rows<const N: usize>(tile: &[u8], first: usize, across: &Weights, turned: &mut [u8]) {
    for ((start, weights), out) in across.iter().zip(turned.as_chunks_mut::<N>().0) {
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let columns = &tile[(start - first) * N + group * LANES..];
            *out = weigh(weights, columns, N);
        }
    }
}

/// `Σ weight · line`, of lines that follow each other at `stride`.
#[inline(always)]
fn weigh(weights: &[i32], lines: &[u8], stride: usize) -> [u8; LANES] {
    let mut sums = [HALF; LANES];
    for (&weight, line) in weights.iter().zip(lines.chunks(stride)) {
        let line: &[u8; LANES] = line.first_chunk().expect("lines are whole lanes");
        for i in 0..LANES {
            sums[i] += weight * i32::from(line[i]);
        }
    }
    let mut samples = [0; LANES];
    for i in 0..LANES {
        samples[i] = (sums[i] >> BITS).clamp(0, 255) as u8;
    }
    samples
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
            let lines = &middle[(start - first) * stride + channel * wide..];
            let (groups, rest) = out[channel * plane + y * width..][..width].as_chunks_mut();
            for (group, out) in groups.iter_mut().enumerate() {
                *out = weigh(weights, &lines[group * LANES..], stride);
            }
            if !rest.is_empty() {
                let samples = weigh(weights, &lines[groups.len() * LANES..], stride);
                rest.copy_from_slice(&samples[..rest.len()]);
            }
        }
    }
}
