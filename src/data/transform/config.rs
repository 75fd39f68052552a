//! What is done to a picture, as data: presets, and fields that can be set from text.

use super::resize::Interpolation;
use crate::{Error, Result};

/// Mean of OpenAI's CLIP training pictures, RGB, after division by 255.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of OpenAI's CLIP training pictures, RGB, after division by 255.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// From a decoded picture to what the image tower reads.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformConfig {
    /// Side of the square result, pixels.
    pub image_size: usize,
    /// Subtracted from each channel, after division by 255.
    pub mean: [f64; 3],
    /// What each channel is divided by then.
    pub std: [f64; 3],
    /// What training does; evaluation always resizes the shorter side and crops the centre.
    pub train: Augment,
    /// How training pictures are computed; evaluation is always exact. Default fast.
    pub fidelity: Fidelity,
}

/// How closely a training picture equals what Pillow and torchvision make of the same draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fidelity {
    /// To the bit, but for the blur, which may differ by 1/255 where a rounding is that close.
    Exact,
    /// As the eye sees it; [`super`] has the differences, and what they do to accuracy.
    #[default]
    Fast,
}

impl Fidelity {
    /// The part of a blur that may be left out; a sample moves by 255 times this at most.
    pub(super) fn blur_tolerance(self) -> f32 {
        match self {
            Self::Exact => 1e-6,
            Self::Fast => 1e-3,
        }
    }
}

impl TransformConfig {
    /// CLIP's normalisation around `train`.
    pub fn new(image_size: usize, train: Augment) -> Self {
        let fidelity = Fidelity::default();
        Self { image_size, mean: CLIP_MEAN, std: CLIP_STD, train, fidelity }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first field that is wrong, and what would be right.
    pub fn validate(&self) -> Result<()> {
        let finite = self.mean.iter().chain(&self.std).all(|x| x.is_finite());
        if !finite || self.std.iter().any(|&s| s <= 0.0) {
            let got = format!("mean {:?}, std {:?}", self.mean, self.std);
            return Err(wrong("image mean and std", &got, "finite numbers, std above 0"));
        }
        if !(1..=4096).contains(&self.image_size) {
            return Err(wrong("image size", &self.image_size.to_string(), "1 to 4096 pixels"));
        }
        self.train.validate()
    }
}

/// The random augmentation of a training picture. The operations are applied in the order of the
/// fields: flip, crop, colour jitter, grayscale, blur.
#[derive(Clone, Debug, PartialEq)]
pub struct Augment {
    /// Probability of a mirror image (`flip_prob`).
    pub flip_p: f64,
    /// Whether a random part is cut out; if not, the evaluation transform's resize and centre crop
    /// take its place, and the next three fields mean nothing (`random_crop`).
    pub random_crop: bool,
    /// Area of the part, as a fraction of the picture's (`scale`).
    pub scale: (f64, f64),
    /// Width over height of the part (`ratio`).
    pub ratio: (f64, f64),
    /// How the part is resized (`interpolation`).
    pub interpolation: Interpolation,
    /// Probability of colour jitter (`color_jitter_prob`).
    pub jitter_p: f64,
    /// Brightness factor from `[max(0, 1 - x), 1 + x]` (`brightness`; all four: `color_jitter`).
    pub brightness: f64,
    /// Contrast factor, likewise (`contrast`).
    pub contrast: f64,
    /// Saturation factor, likewise (`saturation`).
    pub saturation: f64,
    /// Turn of the hue from `[-x, x]`, in full circles (`hue`).
    pub hue: f64,
    /// Probability of grayscale (`gray_scale_prob`).
    pub gray_p: f64,
    /// Probability of a Gaussian blur (`blur_prob`).
    pub blur_p: f64,
    /// Side of the blur's kernel, pixels, odd (`blur_kernel`).
    pub blur_kernel: usize,
    /// Standard deviation of the blur, pixels (`blur_sigma`).
    pub blur_sigma: (f64, f64),
}

/// Every key that [`Augment::set`] takes.
const KEYS: &str = "scale, ratio, color_jitter, color_jitter_prob, gray_scale_prob, flip_prob, \
                    random_crop, interpolation, brightness, contrast, saturation, hue, blur_prob, \
                    blur_kernel, blur_sigma";

impl Augment {
    /// RoCLIP's, in the order and with the numbers of its released code (SimCLR's family, with
    /// the blur applied always).
    pub fn roclip() -> Self {
        Self {
            flip_p: 0.5,
            random_crop: true,
            scale: (0.08, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            interpolation: Interpolation::Bilinear,
            jitter_p: 0.8,
            brightness: 0.5,
            contrast: 0.5,
            saturation: 0.5,
            hue: 0.1,
            gray_p: 0.2,
            blur_p: 1.0,
            blur_kernel: 21,
            blur_sigma: (0.1, 2.0),
        }
    }

    /// open_clip's default: a random part of at least nine tenths, bicubic, and nothing else.
    pub fn clip() -> Self {
        Self {
            flip_p: 0.0,
            scale: (0.9, 1.0),
            interpolation: Interpolation::Bicubic,
            jitter_p: 0.0,
            gray_p: 0.0,
            blur_p: 0.0,
            ..Self::roclip()
        }
    }

    /// No augmentation: training sees what evaluation sees.
    pub fn none() -> Self {
        Self { random_crop: false, ..Self::clip() }
    }

    /// Sets one field from text, as in `--aug-cfg scale=0.5,1.0`. Names are open_clip's where it
    /// has them; each field's documentation gives its own. Ranges are two numbers with a comma.
    ///
    /// # Errors
    /// [`Error::Option`] for an unknown key or a value that does not fit it; nothing is changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut next = self.clone();
        match key {
            "scale" => next.scale = pair(key, value)?,
            "ratio" => next.ratio = pair(key, value)?,
            "color_jitter" => {
                [next.brightness, next.contrast, next.saturation, next.hue] = numbers(key, value)?;
            }
            "color_jitter_prob" => next.jitter_p = number(key, value)?,
            "gray_scale_prob" => next.gray_p = number(key, value)?,
            "flip_prob" => next.flip_p = number(key, value)?,
            "random_crop" => {
                next.random_crop = value.parse().map_err(|_| wrong(key, value, "true or false"))?;
            }
            "interpolation" => {
                next.interpolation = match value {
                    "bilinear" => Interpolation::Bilinear,
                    "bicubic" => Interpolation::Bicubic,
                    _ => return Err(wrong(key, value, "bilinear or bicubic")),
                }
            }
            "brightness" => next.brightness = number(key, value)?,
            "contrast" => next.contrast = number(key, value)?,
            "saturation" => next.saturation = number(key, value)?,
            "hue" => next.hue = number(key, value)?,
            "blur_prob" => next.blur_p = number(key, value)?,
            "blur_kernel" => {
                next.blur_kernel = value.parse().map_err(|_| wrong(key, value, KERNEL))?;
            }
            "blur_sigma" => next.blur_sigma = pair(key, value)?,
            _ => return Err(wrong("--aug-cfg", key, &format!("one of {KEYS}"))),
        }
        next.validate()?;
        *self = next;
        Ok(())
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first field that is wrong, and what would be right.
    pub fn validate(&self) -> Result<()> {
        let range = |key, (low, high): (f64, f64), most: f64| {
            let fits = low > 0.0 && low <= high && high <= most;
            let expected = format!("two numbers low,high with 0 < low <= high <= {most}");
            if fits { Ok(()) } else { Err(wrong(key, &format!("{low},{high}"), &expected)) }
        };
        let within = |key, x: f64, most: f64| {
            let fits = (0.0..=most).contains(&x);
            let expected = format!("a number from 0 to {most}");
            if fits { Ok(()) } else { Err(wrong(key, &x.to_string(), &expected)) }
        };
        range("scale", self.scale, 1.0)?;
        range("ratio", self.ratio, 100.0)?;
        range("blur_sigma", self.blur_sigma, 100.0)?;
        within("flip_prob", self.flip_p, 1.0)?;
        within("color_jitter_prob", self.jitter_p, 1.0)?;
        within("gray_scale_prob", self.gray_p, 1.0)?;
        within("blur_prob", self.blur_p, 1.0)?;
        within("brightness", self.brightness, 100.0)?;
        within("contrast", self.contrast, 100.0)?;
        within("saturation", self.saturation, 100.0)?;
        within("hue", self.hue, 0.5)?;
        if self.blur_kernel.is_multiple_of(2) || self.blur_kernel > 255 {
            return Err(wrong("blur_kernel", &self.blur_kernel.to_string(), KERNEL));
        }
        Ok(())
    }
}

const KERNEL: &str = "an odd number from 1 to 255";

fn wrong(flag: &str, got: &str, expected: &str) -> Error {
    Error::Option { flag: flag.into(), got: format!("{got:?}"), expected: expected.into() }
}

fn number(key: &str, value: &str) -> Result<f64> {
    numbers::<1>(key, value).map(|[x]| x)
}

fn pair(key: &str, value: &str) -> Result<(f64, f64)> {
    numbers(key, value).map(|[low, high]| (low, high))
}

/// `N` finite numbers with commas between them.
fn numbers<const N: usize>(key: &str, value: &str) -> Result<[f64; N]> {
    let parsed: Option<Vec<f64>> =
        value.split(',').map(|x| x.trim().parse().ok().filter(|x: &f64| x.is_finite())).collect();
    parsed.and_then(|p| p.try_into().ok()).ok_or_else(|| {
        let expected = match N {
            1 => "a number".to_owned(),
            _ => format!("{N} numbers with commas between them"),
        };
        wrong(key, value, &expected)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_key_can_be_set() {
        for key in KEYS.split(", ") {
            let value = match key {
                "scale" | "ratio" | "blur_sigma" => "0.5,1.0",
                "color_jitter" => "0.1,0.2,0.3,0.4",
                "random_crop" => "false",
                "interpolation" => "bicubic",
                "blur_kernel" => "3",
                _ => "0.25",
            };
            let mut augment = Augment::roclip();
            augment.set(key, value).unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_ne!(augment, Augment::roclip(), "{key} changed nothing");
        }
    }

    #[test]
    fn a_wrong_value_changes_nothing_and_says_what_is_right() {
        let mut augment = Augment::roclip();
        for (key, value, expected) in [
            ("scale", "0.5", "2 numbers"),
            ("scale", "1.0,0.5", "0 < low <= high"),
            ("scale", "nan,1", "2 numbers"),
            ("ratio", "0,1", "0 < low <= high"),
            ("color_jitter", "0.5,0.5,0.5", "4 numbers"),
            ("color_jitter", "0.5,0.5,0.5,0.6", "0 to 0.5"),
            ("gray_scale_prob", "1.5", "0 to 1"),
            ("blur_kernel", "20", "odd"),
            ("blur_kernel", "-3", "odd"),
            ("interpolation", "lanczos", "bilinear or bicubic"),
            ("random_crop", "yes", "true or false"),
            ("re_prob", "0.5", "one of scale"),
        ] {
            let error = augment.set(key, value).expect_err(key).to_string();
            assert!(error.contains(expected), "{key}={value}: {error}");
            assert_eq!(augment, Augment::roclip());
        }
    }
}
