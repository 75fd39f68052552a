//! Gaussian blur of 8-bit pictures: torchvision's `gaussian_blur`.
//!
//! torchvision sums the products of a square kernel in `f32`; here columns and rows are filtered
//! one after the other, which is the same sum in another order. Sums of this length in `f32` differ
//! by less than 1e-3 of a step, so after rounding the results differ by at most 1/255, and only
//! where the exact value lies that close to the middle between two steps.

use crate::simd::vectorised;

/// Samples filtered at a time; a multiple of every vector width.
const LANES: usize = 32;

/// A blur with the buffers that it needs again and again.
#[derive(Clone, Debug, Default)]
pub struct Blur {
    /// Weight at distance 0, 1, 2, … from the centre.
    weights: Vec<f32>,
    /// One row with its reflections at both ends.
    line: Vec<f32>,
    /// All rows after the horizontal pass, with their reflections.
    rows: Vec<f32>,
}

impl Blur {
    /// Blurs planes of `height` by `width` samples in place with a square kernel of `kernel`
    /// pixels a side (odd) and standard deviation `sigma` in pixels. Edges are reflected without
    /// repeating the outermost pixel.
    ///
    /// A reflection must fit into the picture; where it does not, torch raises an error and this
    /// takes the largest kernel that fits. Weights at the ends of the kernel are left out while
    /// their sum is not above `tolerance`: no sample moves by more than 255 times this.
    pub fn apply(
        &mut self,
        planes: &mut [u8],
        [height, width]: [usize; 2],
        kernel: usize,
        sigma: f64,
        tolerance: f32,
    ) {
        self.set_weights(kernel.min(2 * width.min(height) - 1), sigma as f32, tolerance);
        for plane in planes.chunks_exact_mut(height * width) {
            filter(self, plane, width);
        }
    }

    /// Half of torchvision's one-dimensional kernel, without its negligible ends.
    fn set_weights(&mut self, kernel: usize, sigma: f32, tolerance: f32) {
        let density = |x: usize| (-0.5 * (x as f32 / sigma).powi(2)).exp();
        self.weights.clear();
        self.weights.extend((0..=kernel / 2).map(density));
        let sum = self.weights[0] + 2.0 * self.weights[1..].iter().sum::<f32>();
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
        let mut tail = 0.0;
        while self.weights.len() > 1 {
            tail += 2.0 * self.weights[self.weights.len() - 1];
            if tail > tolerance {
                break;
            }
            self.weights.pop();
        }
    }
}

vectorised! {
    /// Both passes over one plane.
    fn filter(blur: &mut Blur, plane: &mut [u8], width: usize) {
        let Blur { weights, line, rows } = blur;
        let (reach, height) = (weights.len() - 1, plane.len() / width);
        // Lines are stored in whole groups of lanes; what lies behind their end is never read back.
        let stride = width.next_multiple_of(LANES);
        line.resize(stride + 2 * reach, 0.0);
        rows.resize(stride * (height + 2 * reach), 0.0);
        let inner = reach * stride..(reach + height) * stride;
        for (row, filtered) in plane.chunks_exact(width).zip(rows[inner].chunks_exact_mut(stride)) {
            for (to, &sample) in line[reach..].iter_mut().zip(row) {
                *to = f32::from(sample);
            }
            reflect(line, reach, width, 1);
            for (at, filtered) in (0..).step_by(LANES).zip(filtered.as_chunks_mut().0) {
                *filtered = convolve(weights, &line[at..], 1);
            }
        }
        reflect(rows, reach, height, stride);
        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
            let (groups, rest) = row.as_chunks_mut();
            for (group, samples) in groups.iter_mut().enumerate() {
                let lines = &rows[y * stride + group * LANES..];
                *samples = round(&convolve(weights, lines, stride));
            }
            if !rest.is_empty() {
                let lines = &rows[y * stride + groups.len() * LANES..];
                let samples = round(&convolve(weights, lines, stride));
                rest.copy_from_slice(&samples[..rest.len()]);
            }
        }
    }
}

/// Of `reach + side + reach` items of `length` numbers, fills the first and the last `reach` with
/// reflections of those between.
#[inline(always)]
fn reflect(items: &mut [f32], reach: usize, side: usize, length: usize) {
    for step in 1..=reach {
        let last = reach + side - 1;
        for (from, to) in [(reach + step, reach - step), (last - step, last + step)] {
            items.copy_within(from * length..(from + 1) * length, to * length);
        }
    }
}

/// `Σ weight(|step|) · line(step)` over steps from minus to plus the reach of the weights, of
/// lines that follow each other at `stride`.
#[inline(always)]
fn convolve(weights: &[f32], lines: &[f32], stride: usize) -> [f32; LANES] {
    let reach = weights.len() - 1;
    let mut sum = *lanes(lines, reach * stride);
    for x in &mut sum {
        *x *= weights[0];
    }
    for (step, &weight) in (1..).zip(&weights[1..]) {
        let before = lanes(lines, (reach - step) * stride);
        let after = lanes(lines, (reach + step) * stride);
        for i in 0..LANES {
            sum[i] += weight * (before[i] + after[i]);
        }
    }
    sum
}

#[inline(always)]
fn lanes(samples: &[f32], at: usize) -> &[f32; LANES] {
    samples[at..].first_chunk().expect("lines are whole groups of lanes")
}

/// Nearest integers, ties to even, of numbers from 0 to 255 (and a rounding error more).
#[inline(always)]
fn round(numbers: &[f32; LANES]) -> [u8; LANES] {
    let mut samples = [0; LANES];
    for (sample, x) in samples.iter_mut().zip(numbers) {
        // At 2²³ the step between neighbouring numbers is 1: the addition rounds, and the integer
        // stands in the low bits of the sum.
        *sample = (x + 8_388_608.0).to_bits() as u8;
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_with_ties_to_even() {
        for i in 0..=255 * 8 {
            let x = i as f32 / 8.0;
            assert_eq!(f32::from(round(&[x; LANES])[1]), x.round_ties_even(), "{x}");
        }
        assert_eq!(round(&[255.0001; LANES]), [255; LANES]);
    }

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let mut items = [9.0, 9.0, 9.0, 0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 9.0];
        reflect(&mut items, 3, 5, 1);
        assert_eq!(items, [3.0, 2.0, 1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]);
    }

    /// A kernel that the picture cannot hold shrinks to the largest that it can.
    #[test]
    fn too_large_a_kernel_shrinks() {
        let picture: Vec<u8> = (0..4 * 5 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let blurred = |kernel| {
            let mut rgb = picture.clone();
            Blur::default().apply(&mut rgb, [4, 5], kernel, 2.0, 1e-6);
            rgb
        };
        assert_eq!(blurred(21), blurred(7));
        assert_ne!(blurred(7), blurred(5));
        let mut pixel = [1, 2, 3];
        Blur::default().apply(&mut pixel, [1, 1], 21, 2.0, 1e-6);
        assert_eq!(pixel, [1, 2, 3]);
    }
}
