//! Gaussian blur of 8-bit pictures: torchvision's `gaussian_blur`.
//!
//! torchvision sums the products of a square kernel in `f32`; here columns and rows are filtered
//! one after the other, which is the same sum in another order. Sums of this length in `f32` differ
//! by less than 1e-3 of a step, so after rounding the results differ by at most 1/255, and only
//! where the exact value lies that close to the middle between two steps.

use crate::simd::vectorised;

/// Weights whose sum falls below this are left out at the ends of the kernel: together they move
/// no sample by more than 255 times this.
const NEGLIGIBLE: f32 = 1e-6;

/// Samples filtered at a time; a multiple of every vector width.
const LANES: usize = 32;

/// A blur with the buffers that it needs again and again.
#[derive(Clone, Debug, Default)]
pub struct Blur {
    /// Weight at distance 0, 1, 2, … from the centre.
    weights: Vec<f32>,
    /// One row with its reflections at both ends.
    padded: Vec<f32>,
    /// All rows after the horizontal pass.
    rows: Vec<f32>,
}

impl Blur {
    /// Blurs planes of `height` by `width` samples in place with a square kernel of `kernel`
    /// pixels a side (odd) and standard deviation `sigma` in pixels. Edges are reflected without
    /// repeating the outermost pixel.
    ///
    /// A reflection must fit into the picture; where it does not, torch raises an error and this
    /// takes the largest kernel that fits.
    pub fn apply(
        &mut self,
        planes: &mut [u8],
        [height, width]: [usize; 2],
        kernel: usize,
        sigma: f64,
    ) {
        self.set_weights(kernel.min(2 * width.min(height) - 1), sigma as f32);
        for plane in planes.chunks_exact_mut(height * width) {
            filter(self, plane, width);
        }
    }

    /// Half of torchvision's one-dimensional kernel, without its negligible ends.
    fn set_weights(&mut self, kernel: usize, sigma: f32) {
        let density = |x: usize| (-0.5 * (x as f32 / sigma).powi(2)).exp();
        self.weights.clear();
        self.weights.extend((0..=kernel / 2).map(density));
        let sum = self.weights[0] + 2.0 * self.weights[1..].iter().sum::<f32>();
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
        let mut tail = 0.0;
        while self.weights.len() > 1 {
            tail += 2.0 * self.weights[self.weights.len() - 1];
            if tail > NEGLIGIBLE {
                break;
            }
            self.weights.pop();
        }
    }
}

vectorised! {
    /// Both passes over one plane.
    fn filter(blur: &mut Blur, plane: &mut [u8], width: usize) {
        let Blur { weights, padded, rows } = blur;
        let (reach, height) = (weights.len() - 1, plane.len() / width);
        // Rows are stored in whole groups of lanes; what lies behind their end is never read back.
        let stride = width.next_multiple_of(LANES);
        padded.resize(stride + 2 * reach, 0.0);
        rows.resize(stride * height, 0.0);
        for (row, filtered) in plane.chunks_exact(width).zip(rows.chunks_exact_mut(stride)) {
            pad(row, reach, padded);
            for (at, filtered) in (0..).step_by(LANES).zip(filtered.as_chunks_mut().0) {
                *filtered = convolve(weights, |step| lanes(padded, at + reach.wrapping_add_signed(step)));
            }
        }
        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
            for (at, row) in (0..).step_by(LANES).zip(row.chunks_mut(LANES)) {
                let sums = convolve(weights, |step| {
                    lanes(rows, reflect(y as isize + step, height) * stride + at)
                });
                let sums = sums.map(round);
                row.copy_from_slice(&sums[..row.len()]);
            }
        }
    }
}

/// Index of a row or column in a side of `side`, reflected at both ends.
#[inline(always)]
fn reflect(at: isize, side: usize) -> usize {
    let last = side as isize - 1;
    (last - (last - at.abs()).abs()) as usize
}

/// One row as `f32`, with `reach` reflected samples before and after it.
#[inline(always)]
fn pad(row: &[u8], reach: usize, padded: &mut [f32]) {
    for (to, &sample) in padded[reach..].iter_mut().zip(row) {
        *to = f32::from(sample);
    }
    for step in 1..=reach as isize {
        let (before, after) = (-step, row.len() as isize - 1 + step);
        for at in [before, after] {
            padded[reach.wrapping_add_signed(at)] = f32::from(row[reflect(at, row.len())]);
        }
    }
}

#[inline(always)]
fn lanes(samples: &[f32], at: usize) -> &[f32; LANES] {
    samples[at..].first_chunk().expect("lines are whole groups of lanes")
}

/// `Σ weight(|step|) · line(step)` over steps from minus to plus the reach of the weights.
#[inline(always)]
fn convolve<'a>(weights: &[f32], line: impl Fn(isize) -> &'a [f32; LANES]) -> [f32; LANES] {
    let mut sum = line(0).map(|x| x * weights[0]);
    for (step, &weight) in (1..).zip(&weights[1..]) {
        let (before, after) = (line(-step), line(step));
        for i in 0..LANES {
            sum[i] += weight * (before[i] + after[i]);
        }
    }
    sum
}

/// Nearest integer, ties to even, of a number from 0 to 255 (and a rounding error more).
#[inline(always)]
fn round(x: f32) -> u8 {
    // At 2²³ the step between neighbouring numbers is 1: the addition rounds, and the integer
    // stands in the low bits of the sum.
    (x + 8_388_608.0).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_with_ties_to_even() {
        for i in 0..=255 * 8 {
            let x = i as f32 / 8.0;
            assert_eq!(f32::from(round(x)), x.round_ties_even(), "{x}");
        }
        assert_eq!(round(255.0001), 255);
    }

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let row: Vec<usize> = (-3..8).map(|x| reflect(x, 5)).collect();
        assert_eq!(row, [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]);
        assert_eq!(reflect(0, 1), 0);
    }

    /// A kernel that the picture cannot hold shrinks to the largest that it can.
    #[test]
    fn too_large_a_kernel_shrinks() {
        let picture: Vec<u8> = (0..4 * 5 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let blurred = |kernel| {
            let mut rgb = picture.clone();
            Blur::default().apply(&mut rgb, [4, 5], kernel, 2.0);
            rgb
        };
        assert_eq!(blurred(21), blurred(7));
        assert_ne!(blurred(7), blurred(5));
        let mut pixel = [1, 2, 3];
        Blur::default().apply(&mut pixel, [1, 1], 21, 2.0);
        assert_eq!(pixel, [1, 2, 3]);
    }
}
