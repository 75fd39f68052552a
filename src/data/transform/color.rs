//! Colour changes with the arithmetic of Pillow, which torchvision uses on 8-bit pictures.
//!
//! Every function changes a picture of three planes, `[3, ..]`, in place and equals Pillow's bit
//! for bit: blends are computed in `f32` and truncated, luminance is the integer formula of ITU-R
//! 601, hue goes through Pillow's 8-bit HSV. Nothing branches, so that loops over pixels vectorise.

use crate::simd::vectorised;

/// One colour change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adjust {
    /// Blend with black: 0 is black, 1 changes nothing.
    Brightness(f32),
    /// Blend with the mean luminance.
    Contrast(f32),
    /// Blend with each pixel's luminance.
    Saturation(f32),
    /// Turn of the hue in full circles, from -0.5 to 0.5.
    Hue(f64),
}

impl Adjust {
    /// Changes `[3, ..]` samples in place.
    pub fn apply(self, planes: &mut [u8]) {
        match self {
            Self::Brightness(factor) => blend_with(planes, 0, factor),
            Self::Contrast(factor) => blend_with(planes, mean_luminance(planes), factor),
            Self::Saturation(factor) => saturate(planes, factor),
            Self::Hue(turn) => turn_hue(planes, steps(turn)),
        }
    }
}

/// A turn of hue in steps of Pillow's circle. torchvision truncates to an integer and lets it wrap
/// around the 256 steps, though its full circle is 255.
pub(super) fn steps(turn: f64) -> u8 {
    (turn * 255.0) as i32 as u8
}

vectorised! {
    /// Replaces every pixel of `[3, ..]` samples by its luminance, three equal channels.
    pub fn grayscale(planes: &mut [u8]) {
        map_pixels(planes, Gray);
    }
}

vectorised! {
    fn blend_with(samples: &mut [u8], constant: u8, factor: f32) {
        for sample in samples {
            *sample = blend(constant, *sample, factor);
        }
    }
}

vectorised! {
    fn saturate(planes: &mut [u8], factor: f32) {
        map_pixels(planes, Saturate(factor));
    }
}

vectorised! {
    fn turn_hue(planes: &mut [u8], steps: u8) {
        map_pixels(planes, Turn(steps));
    }
}

vectorised! {
    fn mean_luminance(planes: &[u8]) -> u8 {
        let pixels = planes.len() / 3;
        let (r, gb) = planes.split_at(pixels);
        let (g, b) = gb.split_at(pixels);
        let mut sum = 0;
        // 2²⁴ pixels of 255 fit into 32 bits.
        for ((r, g), b) in r.chunks(1 << 24).zip(g.chunks(1 << 24)).zip(b.chunks(1 << 24)) {
            let sums = r.iter().zip(g).zip(b).map(|((&r, &g), &b)| u32::from(luminance([r, g, b])));
            sum += u64::from(sums.sum::<u32>());
        }
        (sum as f64 / pixels as f64 + 0.5) as u8
    }
}

/// A change of one pixel. Not a closure, because those are not compiled for the instructions of
/// the function that they are handed to.
trait Change {
    fn apply(&self, pixel: [u8; 3]) -> [u8; 3];
}

#[inline(always)]
fn map_pixels(planes: &mut [u8], change: impl Change) {
    let (r, gb) = planes.split_at_mut(planes.len() / 3);
    let (g, b) = gb.split_at_mut(r.len());
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = change.apply([*r, *g, *b]);
    }
}

struct Gray;

impl Change for Gray {
    #[inline(always)]
    fn apply(&self, pixel: [u8; 3]) -> [u8; 3] {
        [luminance(pixel); 3]
    }
}

struct Saturate(f32);

impl Change for Saturate {
    #[inline(always)]
    fn apply(&self, [r, g, b]: [u8; 3]) -> [u8; 3] {
        let gray = luminance([r, g, b]);
        [blend(gray, r, self.0), blend(gray, g, self.0), blend(gray, b, self.0)]
    }
}

struct Turn(u8);

impl Change for Turn {
    #[inline(always)]
    fn apply(&self, pixel: [u8; 3]) -> [u8; 3] {
        let [h, s, v] = rgb_to_hsv(pixel);
        hsv_to_rgb([h.wrapping_add(self.0), s, v])
    }
}

/// ITU-R 601 luminance in 16-bit fixed point, rounded: Pillow's `convert("L")`.
#[inline(always)]
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    let (r, g, b) = (u32::from(r), u32::from(g), u32::from(b));
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// Pillow's `Image.blend`: from `a` at factor 0 to `b` at 1 and beyond, truncated and clipped.
#[inline(always)]
fn blend(a: u8, b: u8, factor: f32) -> u8 {
    let (a, b) = (f32::from(a), f32::from(b));
    truncate((a + factor * (b - a)).clamp(0.0, 255.0))
}

/// The integer part of a number from 0 to 255, without the cases that a cast has to look at.
#[inline(always)]
fn truncate(x: f32) -> u8 {
    // At 2²³ the step between neighbouring numbers is 1: the addition rounds to nearest.
    const SHIFT: f32 = 8_388_608.0;
    let shifted = x + SHIFT;
    (shifted.to_bits() - u32::from(shifted - SHIFT > x)) as u8
}

/// Pillow's `convert("HSV")`. The mixture of `f32` and `f64` is its own and decides the last bit.
#[inline(always)]
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    // Where all are equal, hue and saturation are 0 whatever they are divided by.
    let range = f32::from(max - min);
    let divisor = range.max(1.0);
    let rc = f32::from(max - r) / divisor;
    let gc = f32::from(max - g) / divisor;
    let bc = f32::from(max - b) / divisor;
    let (ahead, behind) = if g == max { (rc, bc) } else { (gc, rc) };
    let (ahead, behind) = if r == max { (bc, gc) } else { (ahead, behind) };
    let from = if g == max { 2.0 } else { 4.0 };
    let from = if r == max { 0.0 } else { from };
    let h = (from + f64::from(ahead) - f64::from(behind)) as f32;
    // `h` lies in [-1, 5], so the remainder after 1 is one subtraction.
    let circle = f64::from(h) * (1.0 / 6.0) + 1.0;
    let h = (circle - if circle >= 1.0 { 1.0 } else { 0.0 }) as f32;
    let s = range / f32::from(max.max(1));
    [truncate_product(h), truncate_product(s), max]
}

/// The integer part of `255 · x`, exactly multiplied, of a number from 0 to 1.
#[inline(always)]
fn truncate_product(x: f32) -> u8 {
    // As in `truncate`.
    const SHIFT: f64 = 4_503_599_627_370_496.0;
    let x = f64::from(x) * 255.0;
    let shifted = x + SHIFT;
    (shifted.to_bits() - u64::from(shifted - SHIFT > x)) as u8
}

/// Pillow's way back from `HSV`.
///
/// Pillow computes with fractions of 255 in `f32` and `f64` and rounds. All three of its products
/// are `v · (255² - s · w) / 255²` with an integer `w`, and none lies half-way between two
/// integers, for `2 · v · (255² - s · w)` is even and an odd multiple of `255²` is not. So integers
/// give the same.
#[inline(always)]
fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    let position = u32::from(h) * 6;
    let sextant = position / 255;
    let within = position - sextant * 255;
    let p = scaled(s, v, 255);
    let q = scaled(s, v, within);
    let t = scaled(s, v, 255 - within);
    // A hue of 255 has gone all the way round: sextant 6 is 0.
    let is = |a, b| (sextant == a) | (sextant == b);
    let r = if is(2, 3) { p } else { v };
    let r = if sextant == 1 { q } else { r };
    let r = if sextant == 4 { t } else { r };
    let g = if is(1, 2) { v } else { p };
    let g = if is(0, 6) { t } else { g };
    let g = if sextant == 3 { q } else { g };
    let b = if is(3, 4) { v } else { p };
    let b = if sextant == 2 { t } else { b };
    let b = if sextant == 5 { q } else { b };
    [r, g, b]
}

/// `v · (255² - s · w) / 255²`, rounded.
#[inline(always)]
fn scaled(s: u8, v: u8, w: u32) -> u8 {
    ((u32::from(v) * (255 * 255 - u32::from(s) * w) + 255 * 255 / 2) / (255 * 255)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// SHA-256 over the answers for all 2²⁴ colours, the first channel turning slowest. The
    /// expected sums are those of Pillow 13.0.0 (`make_transform.py` prints them).
    fn sum_over_all(mut convert: impl FnMut([u8; 3]) -> [u8; 3]) -> String {
        let mut hash = Sha256::new();
        for a in 0..=255 {
            let mut plane = Vec::with_capacity(3 << 16);
            for b in 0..=255 {
                for c in 0..=255 {
                    plane.extend_from_slice(&convert([a, b, c]));
                }
            }
            hash.update(&plane);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hsv_equals_pillow_on_every_colour() {
        assert_eq!(
            sum_over_all(rgb_to_hsv),
            "21b59822901a4f6c8c1eb99c91c22061542a3832d3e257dff997caab79bc666e"
        );
        assert_eq!(
            sum_over_all(hsv_to_rgb),
            "1d9c2d26d34e85a68dec9d8d87ce0fdcce636d7b8eaec88f7baad6b85cdf4b3b"
        );
    }

    /// `adjust_hue` of torchvision 0.29.2 on a Pillow picture of these four pixels, at turns where
    /// 255 and 256 steps to the circle are not the same, nor truncation and rounding.
    #[test]
    fn a_turn_of_hue_is_in_steps_of_a_255th() {
        let colours = [[200, 30, 60], [10, 250, 130], [90, 90, 255], [255, 255, 0]];
        for (turn, expected) in [
            (-0.5, [[31, 200, 170], [250, 11, 123], [253, 255, 90], [6, 0, 255]]),
            (0.25, [[154, 200, 31], [11, 16, 250], [255, 90, 175], [0, 255, 120]]),
            (0.5, [[31, 200, 162], [250, 11, 135], [255, 249, 90], [0, 6, 255]]),
        ] {
            let planes = |colours: [[u8; 3]; 4]| {
                let plane = |channel: usize| colours.map(|colour| colour[channel]);
                [plane(0), plane(1), plane(2)].concat()
            };
            let mut ours = planes(colours);
            Adjust::Hue(turn).apply(&mut ours);
            assert_eq!(ours, planes(expected), "{turn}");
        }
    }

    #[test]
    fn luminance_equals_pillow_on_every_colour() {
        assert_eq!(
            sum_over_all(|rgb| [luminance(rgb); 3]),
            "7a9ac148696cc08e69745e510ad1a228f087fb9a7bcddb6601fa66e09b516c0b"
        );
    }

    /// Every pair of samples, at factors inside and outside 0..1.
    #[test]
    fn blend_equals_pillow_on_every_pair() {
        let mut hash = Sha256::new();
        for factor in [0.0, 0.3, 0.5, 0.77, 1.0, 1.25, 1.4999] {
            for a in 0..=255 {
                let row: Vec<u8> = (0..=255).map(|b| blend(a, b, factor)).collect();
                hash.update(&row);
            }
        }
        let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, "572811988bfdb442a22d1331921c5d4b076b10cad4388a42f9b886c9705e44bb");
    }
}
