//! How much each sample of a line counts in each resized sample: Pillow's coefficients.
//!
//! Pillow computes them in `f64`, divides by their sum and rounds to 22 bits behind the point; the
//! same operations in the same order give the same integers here. The fast way keeps 14 bits.

use std::marker::PhantomData;
use std::ops::Range;

use super::resize::Interpolation;
use crate::simd::vectorised;

/// Resized samples whose coefficients are computed at a time.
const LANES: usize = 8;

/// Bits of every part of a coefficient but the first.
pub(super) const PART: u32 = 11;

/// Coefficients of two samples after another, in the form that machines multiply fastest.
pub(super) type Pair = [i16; 2];

/// The fixed-point numbers of a resize. Sums of their products are exact.
pub(super) trait Precision: Clone + std::fmt::Debug + Default {
    /// Bits behind the point of a coefficient.
    const BITS: u32;
    /// 16-bit numbers that make a coefficient, the highest first: 1 or 2.
    const PARTS: usize;

    /// The coefficient `value / sum`. `rest` goes from each coefficient of a resized sample to the
    /// next.
    fn coefficient(value: f64, sum: f64, rest: &mut f64) -> i32;
}

/// Pillow's: 32 bits less 8 for the sample and 2 for what a cubic filter overshoots.
#[derive(Clone, Debug, Default)]
pub(super) struct Exact;

impl Precision for Exact {
    const BITS: u32 = 22;
    const PARTS: usize = 2;

    /// Rounded half away from zero.
    #[inline(always)]
    fn coefficient(value: f64, sum: f64, _: &mut f64) -> i32 {
        // At 2⁵² the step between neighbouring numbers is 1: the addition rounds to nearest, and
        // the integer stands in the low bits of the sum.
        const SHIFT: f64 = 4_503_599_627_370_496.0;
        let x = value / sum * f64::from(1 << Self::BITS);
        let half = x.abs() + 0.5;
        let shifted = half + SHIFT;
        let truncated = (shifted.to_bits() - u64::from(shifted - SHIFT > half)) as i32;
        if x < 0.0 { -truncated } else { truncated }
    }
}

/// 16 bits less 2 for the sign and what a cubic filter overshoots: half the multiplications.
#[derive(Clone, Debug, Default)]
pub(super) struct Fast;

impl Precision for Fast {
    const BITS: u32 = 14;
    const PARTS: usize = 1;

    /// What one coefficient rounds off the next one gets, so that their sum is 1.
    #[inline(always)]
    fn coefficient(value: f64, sum: f64, rest: &mut f64) -> i32 {
        // At 1.5 · 2⁵² as above, for numbers of either sign.
        const SHIFT: f64 = 6_755_399_441_055_744.0;
        let x = value * (f64::from(1 << Self::BITS) / sum) + *rest;
        let shifted = x + SHIFT;
        *rest = x - (shifted - SHIFT);
        shifted.to_bits() as i32
    }
}

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
pub(super) struct Weights<P> {
    /// What they were computed for.
    made_for: Option<(Interpolation, Axis)>,
    /// First sample of each resized sample, in the order of the result.
    starts: Vec<usize>,
    /// Samples that each resized sample has coefficients for, if only zeros.
    taps: usize,
    /// `[resized, taps / 2, parts]`
    pairs: Vec<Pair>,
    /// Where each resized sample lies.
    spans: Vec<Span>,
    /// Values of the filter around some resized samples: `[taps, LANES]`.
    values: Vec<[f64; LANES]>,
    precision: PhantomData<P>,
}

/// The samples under the filter of one resized sample.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    centre: f64,
    first: usize,
    end: usize,
}

impl<P: Precision> Weights<P> {
    /// Computes the coefficients of `axis`, unless they are there already.
    pub(super) fn set(&mut self, interpolation: Interpolation, axis: Axis) {
        let made_for = Some((interpolation, axis));
        if self.made_for != made_for {
            self.made_for = made_for;
            compute(self);
        }
    }

    /// Resized samples.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// First sample and coefficients, `[taps / 2, parts]`, of each resized sample.
    #[inline(always)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[Pair])> {
        let length = self.taps.div_ceil(2) * P::PARTS;
        self.starts.iter().copied().zip(self.pairs.chunks_exact(length))
    }

    /// The samples that count anywhere.
    pub(super) fn samples(&self) -> Range<usize> {
        let first = self.starts.iter().min().copied().unwrap_or(0);
        let end = self.starts.iter().max().map_or(0, |last| last + self.taps);
        first..end
    }

    /// Puts a coefficient into its place.
    #[inline(always)]
    fn put(pairs: &mut [Pair], tap: usize, coefficient: i32) {
        for part in 0..P::PARTS {
            let bits = coefficient >> ((P::PARTS - 1 - part) as u32 * PART);
            let bits = if part == 0 { bits } else { bits & ((1 << PART) - 1) };
            pairs[tap / 2 * P::PARTS + part][tap % 2] = bits as i16;
        }
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
    fn compute<P: Precision>(weights: &mut Weights<P>) {
        match weights.made_for {
            Some((Interpolation::Bilinear, _)) => weights.compute::<Bilinear>(),
            Some((Interpolation::Bicubic, _)) => weights.compute::<Bicubic>(),
            None => {}
        }
    }
}

impl<P: Precision> Weights<P> {
    #[inline(always)]
    fn compute<F: Filter>(&mut self) {
        let Self { made_for, starts, taps, pairs, spans, values, .. } = self;
        let Some((_, axis)) = made_for else {
            return;
        };
        let Axis { window, samples, resized, wanted, mirrored } = axis;
        // A mirrored line is resized as such, and its samples are counted from the other end. The
        // coefficients of a line that is resized first and mirrored after may differ in a last bit.
        let turn = samples.start + samples.end;
        let start = if *mirrored { turn as f64 - window.end } else { window.start };
        let scale = (window.end - window.start) / *resized as f64;
        let stretch = scale.max(1.0);
        let (support, step) = (F::SUPPORT * stretch, 1.0 / stretch);
        spans.clear();
        for place in wanted.clone() {
            let centre = start + (place as f64 + 0.5) * scale;
            // Casts from `f64` saturate: what lies before the line counts from its beginning.
            let first = ((centre - support + 0.5) as usize).clamp(samples.start, samples.end - 1);
            let end = ((centre + support + 0.5) as usize).clamp(first + 1, samples.end);
            spans.push(Span { centre, first, end });
        }
        *taps = spans.iter().map(|span| span.end - span.first).max().unwrap_or(1);
        *taps = taps.next_multiple_of(2).min(samples.len());
        values.resize(*taps, [0.0; LANES]);
        starts.clear();
        let length = taps.div_ceil(2) * P::PARTS;
        pairs.clear();
        pairs.resize(spans.len() * length, [0; 2]);
        for (spans, pairs) in spans.chunks(LANES).zip(pairs.chunks_mut(LANES * length)) {
            let (mut group, mut from) = ([spans[0]; LANES], [0; LANES]);
            group[..spans.len()].copy_from_slice(spans);
            for (from, span) in from.iter_mut().zip(&group) {
                *from = span.first.min(samples.end - *taps);
            }
            let sums = evaluate::<F>(&group, &from, step, values);
            let mut rest = [0.0; LANES];
            for (tap, values) in values.iter().enumerate() {
                let tap = if *mirrored { *taps - 1 - tap } else { tap };
                let mut fixed = [0; LANES];
                for lane in 0..LANES {
                    fixed[lane] = P::coefficient(values[lane], sums[lane], &mut rest[lane]);
                }
                for (pairs, fixed) in pairs.chunks_exact_mut(length).zip(fixed) {
                    Self::put(pairs, tap, fixed);
                }
            }
            let first = |from: usize| if *mirrored { turn - from - *taps } else { from };
            starts.extend(from[..spans.len()].iter().map(|&from| first(from)));
        }
    }
}

/// Values of the filter at each sample from `from` on, and their sums.
#[inline(always)]
fn evaluate<F: Filter>(
    spans: &[Span; LANES],
    from: &[usize; LANES],
    step: f64,
    values: &mut [[f64; LANES]],
) -> [f64; LANES] {
    let centres = spans.map(|span| span.centre);
    let [firsts, ends] = [spans.map(|span| span.first as f64), spans.map(|span| span.end as f64)];
    let mut samples = from.map(|from| from as f64);
    let mut sums = [0.0; LANES];
    for values in values {
        for lane in 0..LANES {
            let sample = samples[lane];
            let value = F::at(((sample - centres[lane] + 0.5) * step).abs());
            let counts = (sample >= firsts[lane]) & (sample < ends[lane]);
            values[lane] = if counts { value } else { 0.0 };
            sums[lane] += values[lane];
            samples[lane] += 1.0;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients<P: Precision>(interpolation: Interpolation, axis: &Axis) -> Vec<Vec<i32>> {
        let mut weights = Weights::<P>::default();
        weights.set(interpolation, axis.clone());
        let whole = |parts: &[Pair]| -> [i32; 2] {
            [0, 1].map(|i| parts.iter().fold(0, |sum, part| (sum << PART) + i32::from(part[i])))
        };
        let one = |(_, pairs): (usize, &[Pair])| -> Vec<i32> {
            pairs.chunks_exact(P::PARTS).flat_map(whole).collect()
        };
        weights.iter().map(one).collect()
    }

    /// A coefficient is rounded to nearest after what the one before it left, at most a half.
    #[test]
    fn fast_coefficients_are_exact_ones_rounded_and_add_up_to_one() {
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for (samples, resized, mirrored) in
                [(1, 5, false), (7, 7, true), (5, 33, true), (375, 224, false), (4000, 31, true)]
            {
                let axis = Axis::whole(samples, resized, mirrored);
                let fast = coefficients::<Fast>(interpolation, &axis);
                let exact = coefficients::<Exact>(interpolation, &axis);
                assert_eq!((fast.len(), exact.len()), (resized, resized));
                for (fast, exact) in fast.iter().zip(&exact) {
                    assert_eq!(fast.iter().sum::<i32>(), 1 << Fast::BITS);
                    for (fast, exact) in fast.iter().zip(exact) {
                        let apart = (fast << (Exact::BITS - Fast::BITS)) - exact;
                        assert!(apart.abs() <= 1 << (Exact::BITS - Fast::BITS), "{apart}");
                    }
                }
            }
        }
    }
}
