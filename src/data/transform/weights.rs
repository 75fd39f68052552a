//! How much each sample of a line counts in each resized sample: Pillow's coefficients.
//!
//! Pillow computes them in `f64`, divides by their sum and rounds to 22 bits behind the point; the
//! same operations in the same order give the same integers here.

use std::ops::Range;

use super::resize::Interpolation;
use crate::simd::vectorised;

/// Bits behind the point of a coefficient: 32 less 8 for the sample and 2 for what a cubic filter
/// overshoots.
pub(super) const BITS: u32 = 22;

/// Coefficients that are computed at a time.
const LANES: usize = 8;

/// One axis of a resize.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// The part of the line that is resized, in samples.
    pub window: Range<f64>,
    /// Samples of the line that may count.
    pub samples: Range<usize>,
    /// Samples that the window becomes.
    pub resized: usize,
    /// Those of them that are wanted.
    pub wanted: Range<usize>,
    /// Whether the line is mirrored before it is resized.
    pub mirrored: bool,
}

impl Axis {
    /// A whole line of `samples`, every resized sample wanted.
    pub(super) fn whole(samples: usize, resized: usize, mirrored: bool) -> Self {
        let window = 0.0..samples as f64;
        Self { window, samples: 0..samples, resized, wanted: 0..resized, mirrored }
    }

    /// `length` pixels of a line from `start` on, every resized sample wanted.
    pub(super) fn part(start: u32, length: u32, resized: usize, mirrored: bool) -> Self {
        let samples = start as usize..start as usize + length as usize;
        let window = samples.start as f64..samples.end as f64;
        Self { window, samples, resized, wanted: 0..resized, mirrored }
    }

    /// The same axis, given in pixels, in samples that cover `step` pixels each; the first of the
    /// `count` samples begins at pixel `origin`.
    pub(super) fn of_samples(self, origin: f64, step: f64, count: usize) -> Self {
        let place = |pixel: f64| (pixel - origin) / step;
        let window = place(self.window.start)..place(self.window.end);
        // Casts from `f64` saturate: what lies before the line counts from its beginning.
        let first = (window.start as usize).min(count - 1);
        let end = (window.end.ceil() as usize).clamp(first + 1, count);
        Self { window, samples: first..end, ..self }
    }
}

/// The coefficients of one axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    /// What they were computed for.
    made_for: Option<(Interpolation, Axis)>,
    /// First sample and first coefficient of each resized sample, in the order of the result.
    starts: Vec<(usize, usize)>,
    coefficients: Vec<i32>,
    /// Values of the filter around one resized sample.
    values: Vec<f64>,
}

impl Weights {
    /// Computes the coefficients of `axis`, unless they are there already.
    pub(super) fn set(&mut self, interpolation: Interpolation, axis: Axis) {
        let made_for = Some((interpolation, axis));
        if self.made_for != made_for {
            self.made_for = made_for;
            match interpolation {
                Interpolation::Bilinear => compute(self, Bilinear),
                Interpolation::Bicubic => compute(self, Bicubic),
            }
        }
    }

    /// Resized samples.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// First sample and coefficients of each resized sample.
    #[inline(always)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let ends = self.starts[1..].iter().map(|&(_, begin)| begin);
        let ends = ends.chain([self.coefficients.len()]);
        let places = self.starts.iter().zip(ends);
        places.map(|(&(first, begin), end)| (first, &self.coefficients[begin..end]))
    }

    /// The samples that count anywhere.
    pub(super) fn samples(&self) -> Range<usize> {
        let first = self.iter().map(|(first, _)| first).min().unwrap_or(0);
        let end = self.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        first..end
    }
}

/// The value of a filter at a distance from its middle.
trait Filter {
    const SUPPORT: f64;

    fn at(distance: f64) -> f64;
}

struct Bilinear;

impl Filter for Bilinear {
    const SUPPORT: f64 = 1.0;

    #[inline(always)]
    fn at(distance: f64) -> f64 {
        (1.0 - distance).max(0.0)
    }
}

struct Bicubic;

impl Filter for Bicubic {
    const SUPPORT: f64 = 2.0;

    #[inline(always)]
    fn at(distance: f64) -> f64 {
        let x = distance;
        let near = (1.5 * x - 2.5) * x * x + 1.0;
        let far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
        let tail = if x < 2.0 { far } else { 0.0 };
        if x < 1.0 { near } else { tail }
    }
}

vectorised! {
    fn compute<F: Filter>(weights: &mut Weights, _filter: F) {
        let Weights { made_for, starts, coefficients, values } = weights;
        let Some((_, Axis { window, samples, resized, wanted, mirrored })) = made_for else {
            return;
        };
        starts.clear();
        coefficients.clear();
        // A mirrored line is resized as such, and its samples are counted from the other end. The
        // coefficients of a line that is resized first and mirrored after may differ in a last bit.
        let turn = samples.start + samples.end;
        let start = if *mirrored { turn as f64 - window.end } else { window.start };
        let scale = (window.end - window.start) / *resized as f64;
        let stretch = scale.max(1.0);
        let (support, step) = (F::SUPPORT * stretch, 1.0 / stretch);
        for place in wanted.clone() {
            let centre = start + (place as f64 + 0.5) * scale;
            // Casts from `f64` saturate: what lies before the line counts from its beginning.
            let first = ((centre - support + 0.5) as usize).clamp(samples.start, samples.end - 1);
            let end = ((centre + support + 0.5) as usize).clamp(first + 1, samples.end);
            // Whole groups are computed, what lies behind the last sample for nothing.
            let (count, begin) = (end - first, coefficients.len());
            let padded = count.next_multiple_of(LANES);
            values.resize(padded, 0.0);
            for (group, values) in values.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                for (i, value) in values.iter_mut().enumerate() {
                    let sample = (first + group * LANES + i) as f64;
                    *value = F::at(((sample - centre + 0.5) * step).abs());
                }
            }
            let mut sum = 0.0;
            for value in &values[..count] {
                sum += value;
            }
            coefficients.resize(begin + padded, 0);
            let groups = coefficients[begin..].as_chunks_mut::<LANES>().0;
            for (fixed, values) in groups.iter_mut().zip(values.as_chunks::<LANES>().0) {
                for (fixed, value) in fixed.iter_mut().zip(values) {
                    *fixed = to_fixed(value / sum);
                }
            }
            coefficients.truncate(begin + count);
            if *mirrored {
                coefficients[begin..].reverse();
            }
            starts.push((if *mirrored { turn - end } else { first }, begin));
        }
    }
}

/// Fixed point, rounded half away from zero.
#[inline(always)]
fn to_fixed(weight: f64) -> i32 {
    // At 2⁵² the step between neighbouring numbers is 1: the addition rounds to nearest, and the
    // integer stands in the low bits of the sum.
    const SHIFT: f64 = 4_503_599_627_370_496.0;
    let x = (weight * f64::from(1 << BITS)).abs() + 0.5;
    let shifted = x + SHIFT;
    let truncated = (shifted.to_bits() - u64::from(shifted - SHIFT > x)) as i32;
    if weight < 0.0 { -truncated } else { truncated }
}
