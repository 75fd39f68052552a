//! Resizing 8-bit samples along both axes: Pillow's arithmetic, many samples at a time.
//!
//! As in Pillow one axis is brought to its new size and rounded to 8 bits, then the other. Along
//! the columns whole rows are added up. Along the rows that would leave vector registers half
//! empty, so some rows are turned into a tile whose columns lie together, and one coefficient is
//! multiplied with all of them.

use super::transpose::{Rows, SQUARE, transpose};
use super::weights::{BITS, Weights};
use crate::simd::vectorised;

/// Samples whose sums are kept in registers at a time; a multiple of [`SQUARE`].
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

/// Which axis is resized first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// The width.
    Rows,
    /// The height.
    Columns,
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
    /// All rows, resized along the first axis.
    middle: Vec<u8>,
    /// Some resized rows, `[T, C, resized columns]`, where these come last.
    last: Vec<u8>,
}

vectorised! {
    /// Interleaved RGB to three planes, `[3, H, W]`.
    pub(super) fn resample_rgb(
        resampler: &mut Resampler,
        source: Samples<'_, 3>,
        first: First,
        out: &mut [u8],
    ) {
        resampler.run::<3, 32, 96>(source, first, out);
    }
}

vectorised! {
    /// One plane to another, `[H, W]`.
    pub(super) fn resample_plane(
        resampler: &mut Resampler,
        source: Samples<'_, 1>,
        first: First,
        out: &mut [u8],
    ) {
        resampler.run::<1, 64, 64>(source, first, out);
    }
}

impl Resampler {
    /// `T` rows make a tile, `N = C · T` samples a column of it.
    #[inline(always)]
    fn run<const C: usize, const T: usize, const N: usize>(
        &mut self,
        source: Samples<'_, C>,
        first: First,
        out: &mut [u8],
    ) {
        let Self { across, down, tile, turned, middle, last } = self;
        let (columns, rows) = (across.samples(), down.samples());
        let (width, height) = (across.len(), down.len());
        // Whole squares are turned back.
        let wide = width.next_multiple_of(LANES);
        tile.resize((columns.len() * C).next_multiple_of(SQUARE) * T, 0);
        turned.resize(wide * N, 0);
        let data = &source.data[rows.start * source.stride + columns.start * C..];
        match first {
            First::Rows => {
                middle.resize(rows.len().next_multiple_of(T) * C * wide, 0);
                for (at, middle) in
                    (0..rows.len()).step_by(T).zip(middle.chunks_exact_mut(T * C * wide))
                {
                    let lines = &data[at * source.stride..];
                    let count = T.min(rows.len() - at);
                    let lines = Rows { data: lines, stride: source.stride, count };
                    sum_rows::<C, T, N>(lines, across, tile, turned, middle);
                }
                let planes = out.chunks_exact_mut(width * height);
                for (channel, plane) in planes.enumerate() {
                    let middle = &middle[channel * wide..];
                    sum_columns(middle, C * wide, rows.start, down, width, plane);
                }
            }
            First::Columns => {
                let length = columns.len() * C;
                middle.resize(length * height, 0);
                sum_columns(data, source.stride, rows.start, down, length, middle);
                last.resize(T * C * wide, 0);
                for at in (0..height).step_by(T) {
                    let count = T.min(height - at);
                    let lines = Rows { data: &middle[at * length..], stride: length, count };
                    sum_rows::<C, T, N>(lines, across, tile, turned, last);
                    for (i, row) in last.chunks_exact(wide).take(count * C).enumerate() {
                        let (y, channel) = (at + i / C, i % C);
                        let out = &mut out[(channel * height + y) * width..][..width];
                        out.copy_from_slice(&row[..width]);
                    }
                }
            }
        }
    }
}

/// Up to `T` rows of interleaved channels to the new width: `[T, C, resized columns]`.
#[inline(always)]
fn sum_rows<const C: usize, const T: usize, const N: usize>(
    lines: Rows<'_>,
    across: &Weights,
    tile: &mut [u8],
    turned: &mut [u8],
    out: &mut [u8],
) {
    let (columns, wide) = (across.samples(), turned.len() / N);
    transpose(lines, [T, columns.len() * C], tile, T);
    for ((start, weights), out) in across.iter().zip(turned.as_chunks_mut::<N>().0) {
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let samples = &tile[(start - columns.start) * N + group * LANES..];
            *out = weigh(weights, samples, N);
        }
    }
    for channel in 0..C {
        let lines = Rows { data: &turned[channel * T..], stride: N, count: wide };
        transpose(lines, [wide, T], &mut out[channel * wide..], C * wide);
    }
}

/// All columns to the new height: rows of `length` samples from rows that lie `stride` apart, of
/// which the first is number `first`.
#[inline(always)]
fn sum_columns(
    lines: &[u8],
    stride: usize,
    first: usize,
    down: &Weights,
    length: usize,
    out: &mut [u8],
) {
    for ((start, weights), out) in down.iter().zip(out.chunks_exact_mut(length)) {
        let lines = &lines[(start - first) * stride..];
        let (groups, rest) = out.as_chunks_mut();
        for (group, out) in groups.iter_mut().enumerate() {
            *out = weigh(weights, &lines[group * LANES..], stride);
        }
        if rest.is_empty() {
            continue;
        }
        // The last samples are computed with some before them, so that none behind them are read.
        if let Some(out) = out.last_chunk_mut() {
            *out = weigh(weights, &lines[length - LANES..], stride);
        } else {
            for (x, out) in out.iter_mut().enumerate() {
                let samples = lines[x..].iter().step_by(stride);
                let products = weights.iter().zip(samples).map(|(&w, &s)| w * i32::from(s));
                *out = ((HALF + products.sum::<i32>()) >> BITS).clamp(0, 255) as u8;
            }
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
