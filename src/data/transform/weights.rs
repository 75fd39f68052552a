//! How much each sample of a line counts in each resized sample: Pillow's coefficients.
//!
//! Pillow computes them in `f64`, divides by their sum and rounds to 22 bits behind the point; the
//! same operations in the same order give the same integers here.

use std::ops::Range;

use super::resize::Interpolation;

/// Bits behind the point of a coefficient: 32 less 8 for the sample and 2 for what a cubic filter
/// overshoots.
pub(super) const BITS: u32 = 22;

/// One axis of a resize.
#[derive(Clone, Debug)]
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
}

/// The coefficients of one axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    /// First sample and first coefficient of each resized sample, in the order of the result.
    starts: Vec<(usize, usize)>,
    coefficients: Vec<i32>,
    /// Values of the filter around one resized sample.
    values: Vec<f64>,
}

impl Weights {
    /// Computes the coefficients of `axis`; what was there before is gone.
    pub(super) fn set(&mut self, interpolation: Interpolation, axis: &Axis) {
        self.starts.clear();
        self.coefficients.clear();
        // A mirrored line is resized as such, and its samples are counted from the other end. The
        // coefficients of a line that is resized first and mirrored after may differ in a last bit.
        let Axis { window, samples, .. } = axis;
        let turn = (samples.start + samples.end) as f64;
        let start = if axis.mirrored { turn - window.end } else { window.start };
        let scale = (window.end - window.start) / axis.resized as f64;
        let stretch = scale.max(1.0);
        let support = interpolation.support() * stretch;
        for place in axis.wanted.clone() {
            let centre = start + (place as f64 + 0.5) * scale;
            // Casts from `f64` saturate: what lies before the line counts from its beginning.
            let first = ((centre - support + 0.5) as usize).clamp(samples.start, samples.end - 1);
            let end = ((centre + support + 0.5) as usize).clamp(first + 1, samples.end);
            self.values.clear();
            self.values.resize(end - first, 0.0);
            sample_filter(interpolation, first, centre, 1.0 / stretch, &mut self.values);
            let sum: f64 = self.values.iter().sum();
            let begin = self.coefficients.len();
            let fixed = self.values.iter().map(|value| to_fixed(value / sum));
            self.coefficients.extend(fixed);
            if axis.mirrored {
                self.coefficients[begin..].reverse();
                self.starts.push((samples.start + samples.end - end, begin));
            } else {
                self.starts.push((first, begin));
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

crate::simd::vectorised! {
    /// The filter at the middle of the sample `first` and of those that follow it; `step` is the
    /// inverse of what stretches the filter.
    fn sample_filter(
        interpolation: Interpolation,
        first: usize,
        centre: f64,
        step: f64,
        values: &mut [f64],
    ) {
        match interpolation {
            Interpolation::Bilinear => {
                for (i, value) in values.iter_mut().enumerate() {
                    let x = (((first + i) as f64 - centre + 0.5) * step).abs();
                    *value = (1.0 - x).max(0.0);
                }
            }
            Interpolation::Bicubic => {
                for (i, value) in values.iter_mut().enumerate() {
                    let x = (((first + i) as f64 - centre + 0.5) * step).abs();
                    let near = (1.5 * x - 2.5) * x * x + 1.0;
                    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
                    let tail = if x < 2.0 { far } else { 0.0 };
                    *value = if x < 1.0 { near } else { tail };
                }
            }
        }
    }
}

/// Fixed point, rounded half away from zero.
fn to_fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << BITS);
    (scaled + 0.5f64.copysign(scaled)) as i32
}
