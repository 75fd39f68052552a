//! Gaussian blur of 8-bit pictures: torchvision's `gaussian_blur`.
//!
//! torchvision sums the products of a square kernel in `f32`; here columns and rows are filtered
//! one after the other, which is the same sum in another order. Sums of this length in `f32` differ
//! by less than 1e-3 of a step, so after rounding the results differ by at most 1/255, and only
//! where the exact value lies that close to the middle between two steps.

/// Weights whose sum falls below this are left out at either end of the kernel: together they move
/// no sample by more than 255 times this.
const NEGLIGIBLE: f32 = 1e-7;

/// Samples filtered at a time; a multiple of every vector width.
const LANES: usize = 16;

/// A blur with the buffers that it needs again and again.
#[derive(Clone, Debug, Default)]
pub struct Blur {
    /// Weight at distance 0, 1, 2, … from the centre.
    weights: Vec<f32>,
    /// One row with its reflections at both ends.
    padded: Vec<f32>,
    /// All rows after the horizontal pass.
    rows: Vec<f32>,
    /// One row after the vertical pass.
    line: Vec<f32>,
}

impl Blur {
    /// Blurs `[height, width, 3]` samples in place with a square kernel of `kernel` pixels a side
    /// (odd) and standard deviation `sigma` in pixels. Edges are reflected without repeating the
    /// outermost pixel.
    ///
    /// A reflection must fit into the picture; where it does not, torch raises an error and this
    /// takes the largest kernel that fits.
    pub fn apply(
        &mut self,
        rgb: &mut [u8],
        [height, width]: [usize; 2],
        kernel: usize,
        sigma: f64,
    ) {
        assert_eq!(rgb.len(), height * width * 3, "a picture of {height}x{width}");
        self.set_weights(kernel.min(2 * width.min(height) - 1), sigma as f32);
        let reach = self.weights.len() - 1;
        // Rows are stored in whole groups of lanes; what lies behind their end is never read back.
        let stride = (3 * width).next_multiple_of(LANES);
        self.padded.resize(stride + 6 * reach, 0.0);
        self.rows.resize(stride * height, 0.0);
        self.line.resize(stride, 0.0);

        for (row, filtered) in rgb.chunks_exact(3 * width).zip(self.rows.chunks_exact_mut(stride)) {
            pad(row, width, reach, &mut self.padded);
            let padded = &self.padded;
            convolve(filtered, &self.weights, |step| {
                &padded[3 * reach.wrapping_add_signed(step)..][..stride]
            });
        }
        for (y, row) in rgb.chunks_exact_mut(3 * width).enumerate() {
            let rows = &self.rows;
            convolve(&mut self.line, &self.weights, |step| {
                &rows[reflect(y as isize + step, height) * stride..][..stride]
            });
            for (sample, &x) in row.iter_mut().zip(&self.line) {
                *sample = round(x);
            }
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

/// Index of a row or column in a side of `side`, reflected at both ends.
fn reflect(at: isize, side: usize) -> usize {
    let last = side as isize - 1;
    (last - (last - at.abs()).abs()) as usize
}

/// One row of pixels as `f32`, with `reach` reflected pixels before and after it.
fn pad(row: &[u8], width: usize, reach: usize, padded: &mut [f32]) {
    let reach = reach as isize;
    let edge = |padded: &mut [f32], x: isize| {
        let from = 3 * reflect(x, width);
        let to = 3 * (x + reach) as usize;
        for channel in 0..3 {
            padded[to + channel] = f32::from(row[from + channel]);
        }
    };
    (-reach..0).for_each(|x| edge(padded, x));
    for (to, &sample) in padded[3 * reach as usize..].iter_mut().zip(row) {
        *to = f32::from(sample);
    }
    (0..reach).for_each(|x| edge(padded, width as isize + x));
}

/// `out = Σ weight(|step|) · line(step)` over steps from minus to plus the reach of the weights.
fn convolve<'a>(out: &mut [f32], weights: &[f32], line: impl Fn(isize) -> &'a [f32]) {
    let lanes = |step: isize, start: usize| -> &'a [f32; LANES] {
        line(step)[start..].first_chunk().expect("lines are whole groups of lanes")
    };
    for (group, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let start = group * LANES;
        let mut sum = *lanes(0, start);
        sum.iter_mut().for_each(|x| *x *= weights[0]);
        for (step, &weight) in (1..).zip(&weights[1..]) {
            let (before, after) = (lanes(-step, start), lanes(step, start));
            for i in 0..LANES {
                sum[i] += weight * (before[i] + after[i]);
            }
        }
        *out = sum;
    }
}

/// Nearest integer, ties to even, of a number from 0 to 255 (and a rounding error more).
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
