//! Colour changes with the arithmetic of Pillow, which torchvision uses on 8-bit pictures.
//!
//! Every function changes interleaved RGB samples in place and equals Pillow's bit for bit:
//! blends are computed in `f32` and truncated, luminance is the integer formula of ITU-R 601, hue
//! goes through Pillow's 8-bit HSV.

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
    /// Changes `[.., 3]` samples in place.
    pub fn apply(self, rgb: &mut [u8]) {
        match self {
            Self::Brightness(factor) => blend_with(rgb, 0, factor),
            Self::Contrast(factor) => blend_with(rgb, mean_luminance(rgb), factor),
            Self::Saturation(factor) => saturate(rgb, factor),
            Self::Hue(turn) => turn_hue(rgb, turn),
        }
    }
}

/// Replaces every pixel by its luminance, three equal channels.
pub fn grayscale(rgb: &mut [u8]) {
    for pixel in rgb.as_chunks_mut().0 {
        *pixel = [luminance(*pixel); 3];
    }
}

/// ITU-R 601 luminance in 16-bit fixed point, rounded: Pillow's `convert("L")`.
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    let (r, g, b) = (u32::from(r), u32::from(g), u32::from(b));
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

fn mean_luminance(rgb: &[u8]) -> u8 {
    let (pixels, _) = rgb.as_chunks();
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luminance(pixel))).sum();
    (sum as f64 / pixels.len() as f64 + 0.5) as u8
}

/// Pillow's `Image.blend`: from `a` at factor 0 to `b` at 1 and beyond, truncated and clipped.
fn blend(a: u8, b: u8, factor: f32) -> u8 {
    let (a, b) = (f32::from(a), f32::from(b));
    (a + factor * (b - a)) as u8
}

fn blend_with(rgb: &mut [u8], constant: u8, factor: f32) {
    let mut table = [0; 256];
    for (value, blended) in (0..=255).zip(&mut table) {
        *blended = blend(constant, value, factor);
    }
    for sample in rgb {
        *sample = table[usize::from(*sample)];
    }
}

fn saturate(rgb: &mut [u8], factor: f32) {
    for pixel in rgb.as_chunks_mut().0 {
        let (gray, [r, g, b]) = (luminance(*pixel), *pixel);
        *pixel = [blend(gray, r, factor), blend(gray, g, factor), blend(gray, b, factor)];
    }
}

fn turn_hue(rgb: &mut [u8], turn: f64) {
    // torchvision truncates to an integer and lets it wrap around the circle of 256.
    let shift = (turn * 255.0) as i32 as u8;
    let sextants = sextants();
    for pixel in rgb.as_chunks_mut().0 {
        let [h, s, v] = rgb_to_hsv(*pixel);
        *pixel = hsv_to_rgb(&sextants, [h.wrapping_add(shift), s, v]);
    }
}

/// Pillow's `convert("HSV")`. The mixture of `f32` and `f64` is its own and decides the last bit.
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let below_max = |x: u8| f32::from(max - x) / range;
    let (rc, gc, bc) = (below_max(r), below_max(g), below_max(b));
    let h = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    // `h` lies in [-1, 5], so the remainder after 1 is one subtraction.
    let circle = f64::from(h) / 6.0 + 1.0;
    let h = (if circle >= 1.0 { circle - 1.0 } else { circle }) as f32;
    let s = range / f32::from(max);
    [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
}

/// For each 8-bit hue the sixth of the circle it lies in, and how far.
fn sextants() -> [(u8, f32); 256] {
    std::array::from_fn(|h| {
        let position = h as f64 * 6.0 / 255.0;
        let sextant = position.floor();
        ((sextant as u8) % 6, (position - sextant) as f32)
    })
}

/// Pillow's way back from `HSV`.
fn hsv_to_rgb(sextants: &[(u8, f32); 256], [h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let (sextant, f) = sextants[usize::from(h)];
    let fs = f32::from(s) / 255.0;
    let scaled = |x: f64| (f64::from(v) * (1.0 - x) + 0.5) as u8;
    let p = scaled(f64::from(fs));
    let q = scaled(f64::from(fs * f));
    let t = scaled(f64::from(fs) * (1.0 - f64::from(f)));
    match sextant {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
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
        let sextants = sextants();
        assert_eq!(
            sum_over_all(rgb_to_hsv),
            "21b59822901a4f6c8c1eb99c91c22061542a3832d3e257dff997caab79bc666e"
        );
        assert_eq!(
            sum_over_all(|hsv| hsv_to_rgb(&sextants, hsv)),
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
            let mut rgb = colours.as_flattened().to_vec();
            Adjust::Hue(turn).apply(&mut rgb);
            assert_eq!(rgb, expected.as_flattened(), "{turn}");
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
