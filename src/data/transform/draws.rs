//! The random choices of one picture, as plain values: drawn here, applied elsewhere.

use super::color::Adjust;
use super::config::Augment;
use crate::rng::Rng;

/// A part of a picture, pixels. It lies within the picture and is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// Everything random about one training picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Draws {
    /// Mirror the picture first.
    pub flip: bool,
    /// The part that is resized, in the coordinates of the (mirrored) picture. `None`: the
    /// evaluation transform's resize and centre crop, mirrored after.
    pub crop: Option<CropBox>,
    /// Colour changes in the order in which they are applied. An entry is `None` where the
    /// strength is 0, as torchvision leaves such a change out.
    pub jitter: Option<[Option<Adjust>; 4]>,
    /// Replace the colours by their luminance.
    pub gray: bool,
    /// Standard deviation of the blur, pixels.
    pub blur_sigma: Option<f64>,
}

impl Draws {
    /// Draws for a picture of `width` by `height`.
    pub fn new(augment: &Augment, width: u32, height: u32, rng: &mut Rng) -> Self {
        Self {
            flip: rng.chance(augment.flip_p),
            crop: augment
                .random_crop
                .then(|| crop_box(width, height, augment.scale, augment.ratio, rng)),
            jitter: rng.chance(augment.jitter_p).then(|| jitter(augment, rng)),
            gray: rng.chance(augment.gray_p),
            blur_sigma: rng
                .chance(augment.blur_p)
                .then(|| rng.range(augment.blur_sigma.0, augment.blur_sigma.1)),
        }
    }

    /// The part of the picture, as it is stored, that has any influence; all of it without a
    /// crop. `width` and `height` are those that the draws were made for.
    pub fn part(&self, width: u32, height: u32) -> CropBox {
        let whole = CropBox { top: 0, left: 0, height, width };
        let part = self.crop.unwrap_or(whole);
        let left = if self.flip { width - part.left - part.width } else { part.left };
        CropBox { left, ..part }
    }
}

/// The rule of torchvision's `RandomResizedCrop.get_params`: ten tries at a part of uniform area
/// and log-uniform aspect, then the largest centred part whose aspect is allowed.
pub fn crop_box(
    width: u32,
    height: u32,
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut Rng,
) -> CropBox {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..10 {
        let target = area * rng.range(scale.0, scale.1);
        let aspect = rng.range(ratio.0.ln(), ratio.1.ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even();
        let h = (target / aspect).sqrt().round_ties_even();
        if w >= 1.0 && w <= f64::from(width) && h >= 1.0 && h <= f64::from(height) {
            let (w, h) = (w as u32, h as u32);
            let top = rng.below(u64::from(height - h) + 1) as u32;
            let left = rng.below(u64::from(width - w) + 1) as u32;
            return CropBox { top, left, height: h, width: w };
        }
    }
    centre(width, height, ratio)
}

/// The largest centred part whose aspect lies within `ratio`. At least one pixel a side, where
/// torchvision would round to none and fail.
fn centre(width: u32, height: u32, ratio: (f64, f64)) -> CropBox {
    let (w, h) = (f64::from(width), f64::from(height));
    let (w, h) = if w / h < ratio.0 {
        (width, (w / ratio.0).round_ties_even() as u32)
    } else if w / h > ratio.1 {
        ((h * ratio.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    CropBox { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// Factors and order of torchvision's `ColorJitter.get_params`.
fn jitter(augment: &Augment, rng: &mut Rng) -> [Option<Adjust>; 4] {
    let mut factor = |strength: f64| {
        (strength > 0.0).then(|| rng.range((1.0 - strength).max(0.0), 1.0 + strength) as f32)
    };
    let brightness = factor(augment.brightness).map(Adjust::Brightness);
    let contrast = factor(augment.contrast).map(Adjust::Contrast);
    let saturation = factor(augment.saturation).map(Adjust::Saturation);
    let hue = (augment.hue > 0.0).then(|| Adjust::Hue(rng.range(-augment.hue, augment.hue)));
    let mut steps = [brightness, contrast, saturation, hue];
    rng.shuffle(&mut steps);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Domain;

    /// torchvision draws from `[max(0, 1 - x), 1 + x]`.
    #[test]
    fn strengths_above_one_give_no_negative_factor() {
        let mut augment = Augment::roclip();
        (augment.brightness, augment.contrast, augment.saturation) = (3.0, 3.0, 3.0);
        let mut rng = Rng::new(7, Domain::Image, 0, 0);
        let mut largest = 0.0f32;
        for _ in 0..200 {
            for step in jitter(&augment, &mut rng).into_iter().flatten() {
                let (Adjust::Brightness(x) | Adjust::Contrast(x) | Adjust::Saturation(x)) = step
                else {
                    continue;
                };
                assert!((0.0..=4.0).contains(&x), "{step:?}");
                largest = largest.max(x);
            }
        }
        assert!(largest > 3.8);
    }
}
