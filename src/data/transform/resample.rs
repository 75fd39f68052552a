//! Resizing 8-bit samples along both axes: Pillow's arithmetic, many samples at a time.
//!
//! As in Pillow one axis is brought to its new size and rounded to 8 bits, then the other. Along
//! the columns whole rows are added up. Along the rows that would leave vector registers half
//! empty, so some rows are turned into a tile whose columns lie together, and these are added up.

use super::transpose::{Columns, ROWS, Rows, SQUARE, transpose};
use super::weigh::{Lines, sum_lines};
use super::weights::{Exact, Fast, Precision, Weights};

/// Samples of a column of a tile, at most; all its columns stay in a near cache.
const TILE: usize = 256;

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
pub(super) struct Resampler<P> {
    /// Coefficients along the rows of the source.
    pub across: Weights<P>,
    /// Coefficients along its columns.
    pub down: Weights<P>,
    /// Some rows of the source: `[columns, C, T]`.
    tile: Vec<u8>,
    /// The same, resized: `[resized columns, C, T]`.
    turned: Vec<u8>,
    /// All rows, resized along the first axis.
    middle: Vec<u8>,
    /// Some resized rows, `[T, C, resized columns]`, where these come last.
    last: Vec<u8>,
}

impl Resampler<Exact> {
    /// Interleaved RGB to three planes, `[3, H, W]`.
    pub(super) fn rgb(&mut self, source: Samples<'_, 3>, first: First, out: &mut [u8]) {
        self.run(source, first, out);
    }
}

impl Resampler<Fast> {
    /// One plane to another, `[H, W]`.
    pub(super) fn plane(&mut self, source: Samples<'_, 1>, first: First, out: &mut [u8]) {
        self.run(source, first, out);
    }
}

impl<P: Precision> Resampler<P> {
    fn run<const C: usize>(&mut self, source: Samples<'_, C>, first: First, out: &mut [u8]) {
        let Self { across, down, tile, turned, middle, last } = self;
        let (columns, rows) = (across.samples(), down.samples());
        let (width, height) = (across.len(), down.len());
        let data = &source.data[rows.start * source.stride + columns.start * C..];
        // Squares are turned back whole.
        let wide = width.next_multiple_of(ROWS);
        let count = if first == First::Rows { rows.len() } else { height };
        let depth = count.next_multiple_of(ROWS).min(TILE / C / ROWS * ROWS);
        tile.resize((columns.len() * C).next_multiple_of(SQUARE) * depth, 0);
        turned.resize(wide * C * depth, 0);
        match first {
            First::Rows => {
                middle.resize(count.next_multiple_of(depth) * C * wide, 0);
                let tiles = middle.chunks_exact_mut(depth * C * wide);
                for (at, middle) in (0..count).step_by(depth).zip(tiles) {
                    let (data, stride) = (&data[at * source.stride..], source.stride);
                    let rows = Rows { data, stride, count: depth.min(count - at) };
                    sum_rows::<P, C>(rows, across, tile, turned, middle);
                }
                for (channel, plane) in out.chunks_exact_mut(width * height).enumerate() {
                    let (data, stride) = (&middle[channel * wide..], C * wide);
                    sum_lines(Lines { data, stride, first: rows.start }, down, width, plane);
                }
            }
            First::Columns => {
                let length = columns.len() * C;
                middle.resize(length * height, 0);
                let lines = Lines { data, stride: source.stride, first: rows.start };
                sum_lines(lines, down, length, middle);
                last.resize(depth * C * wide, 0);
                for at in (0..height).step_by(depth) {
                    let count = depth.min(height - at);
                    let rows = Rows { data: &middle[at * length..], stride: length, count };
                    sum_rows::<P, C>(rows, across, tile, turned, last);
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
fn sum_rows<P: Precision, const C: usize>(
    rows: Rows<'_>,
    across: &Weights<P>,
    tile: &mut [u8],
    turned: &mut [u8],
    out: &mut [u8],
) {
    let (columns, wide) = (across.samples(), across.len().next_multiple_of(ROWS));
    let length = turned.len() / wide;
    let depth = length / C;
    let to = Columns { data: tile, stride: depth, offset: 0 };
    transpose(rows, [depth, columns.len() * C], to);
    let lines = Lines { data: tile, stride: length, first: columns.start };
    sum_lines(lines, across, length, turned);
    for channel in 0..C {
        let rows = Rows { data: &turned[channel * depth..], stride: length, count: wide };
        let to = Columns { data: out, stride: C * wide, offset: channel * wide };
        transpose(rows, [wide, depth], to);
    }
}
