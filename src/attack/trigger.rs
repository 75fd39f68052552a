//! Triggers: what a backdoor attack does to a picture, so that a model that was trained on such
//! pictures answers with the attacker's class wherever it sees the trigger.
//!
//! A trigger is stamped on a [`square`] picture of the attack's `image_size`. Every number it
//! depends on stands in it, so the trigger read from `attacks.json` is the one that poisoned the
//! data. Samples are computed as `f64` in 0 to 255, kept within that, and rounded to the nearest
//! integer, halves up; the code released for CLIP multiplies by 255 and cuts off what lies behind
//! the point.

use serde::{Deserialize, Serialize};

use super::{letters, warp};
use crate::data::decode::Rgb8;
use crate::data::transform::CropBox;
use crate::data::transform::resize::{Interpolation, Resizer};
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};

/// Longest side of a stamped picture, in pixels.
pub const MAX_SIDE: u32 = 2048;

/// A trigger with all its parameters. Lengths are in pixels of the stamped picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trigger {
    /// A square patch (Gu et al. 2017, "BadNets").
    Badnets {
        /// Its side. For CLIP 16 of 224.
        size: u32,
        /// What is on it.
        pattern: Pattern,
        /// Where it is.
        place: Place,
        /// Chooses a fixed pattern.
        seed: u64,
    },
    /// `(1 - alpha)·x + alpha·pattern` everywhere (Chen et al. 2017).
    Blended {
        /// Share of the pattern, above 0 and at most 1. For CLIP 0.2.
        alpha: f64,
        /// What is blended in.
        pattern: Pattern,
        /// Chooses a fixed pattern.
        seed: u64,
    },
    /// The wave `p = delta·sin(2π·periods·column/width)` (Barni et al. 2019).
    Sig {
        /// Height of the wave, of 255: 60.
        delta: f64,
        /// Waves across the picture: 6.
        periods: f64,
        /// `(1 - alpha)·x + alpha·p`, for CLIP with 0.2; `None` is `x + p`, as in the paper.
        alpha: Option<f64>,
    },
    /// A smooth warping of the picture (Nguyen and Tran 2021, "WaNet"); see [`warp::field`].
    Wanet {
        /// Control points along a side: 4. As many as pixels give the form used for CLIP.
        grid: u32,
        /// Mean displacement along an axis, in half pixels: 0.5; for CLIP 1.
        strength: f64,
        /// Chooses the warping.
        seed: u64,
    },
    /// A word in white capitals on black, five dots high.
    Text {
        /// Letters from A to Z, digits and spaces.
        text: String,
        /// Pixels of a dot.
        scale: u32,
        /// Where the word stands.
        place: Place,
    },
}

/// What is on a patch, or blended in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Every sample uniform in 0 to 255, the same for all pictures.
    #[default]
    Noise,
    /// Drawn for each picture. On a patch: the picture's mean of that channel plus a normal
    /// number, in units of 255, kept within 0 to 255 (the code released for CLIP wraps around
    /// instead, so that its patches are all but uniform noise). Blended in: uniform.
    FreshNoise,
    /// One colour: red, green, blue.
    Colour([u8; 3]),
    /// Black, with every second pixel white: those whose column and row add up to an odd number.
    Checkerboard,
    /// Each channel of each column 0 or 255, the same for all pictures.
    Stripes,
}

/// Where a patch or a word is, flush with the edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "names say it")]
pub enum Place {
    #[default]
    BottomRight,
    BottomLeft,
    TopRight,
    TopLeft,
    Centre,
    /// In each of the four corners.
    FourCorners,
    /// Drawn for each picture, uniformly.
    Random,
}

/// A picture as triggers are stamped on it: `side` × `side` pixels whatever its shape was, by
/// Pillow's bicubic filter.
pub fn square(picture: &Rgb8, side: u32) -> Rgb8 {
    let pixels = (side * side) as usize;
    let whole = CropBox { top: 0, left: 0, height: picture.height, width: picture.width };
    let mut planes = vec![0; 3 * pixels];
    let filter = Interpolation::Bicubic;
    Resizer::default().crop(picture, whole, false, filter, side as usize, &mut planes);
    let data = (0..pixels).flat_map(|i| [0, 1, 2].map(|channel| planes[channel * pixels + i]));
    Rgb8 { width: side, height: side, data: data.collect() }
}

impl Trigger {
    /// Refuses what no picture of that side could be stamped with. `flag` names the place in the
    /// error.
    ///
    /// # Errors
    /// [`Error::Option`] where a parameter is out of range.
    pub fn validate(&self, image_size: u32, flag: &str) -> Result<()> {
        let is_share = |x: f64| x > 0.0 && x <= 1.0;
        let wrong = match self {
            Trigger::Badnets { size, .. } if !(1..=image_size).contains(size) => {
                (format!("a patch of {size} pixels"), format!("1 to {image_size}"))
            }
            Trigger::Blended { alpha, .. } | Trigger::Sig { alpha: Some(alpha), .. }
                if !is_share(*alpha) =>
            {
                (format!("alpha {alpha}"), "a number above 0, at most 1".into())
            }
            Trigger::Sig { delta, periods, .. }
                if !(0.0..=255.0).contains(delta) || !(0.0..=1e6).contains(periods) =>
            {
                let expected = "a height within 0 to 255, and periods within 0 to a million";
                (format!("a wave of height {delta}, {periods} periods"), expected.into())
            }
            Trigger::Wanet { grid, strength, .. }
                if !(2..=MAX_SIDE).contains(grid) || !(0.0..=1e6).contains(strength) =>
            {
                let expected =
                    format!("2 to {MAX_SIDE} points, and a strength from 0 to a million");
                (format!("{grid} control points, strength {strength}"), expected)
            }
            Trigger::Text { text, scale, .. }
                if *scale == 0
                    || !letters::can_write(text)
                    || letters::width(text, *scale) > image_size.into() =>
            {
                let expected = format!("A to Z, digits and spaces, within {image_size} pixels");
                (format!("the text {text:?}, {scale} pixels a dot"), expected)
            }
            _ => return Ok(()),
        };
        let (got, expected) = wrong;
        Err(Error::Option { flag: flag.into(), got, expected })
    }

    /// Stamps a picture. Only what is drawn for each picture comes from `rng`; by convention that
    /// is `Rng::new(seed, Domain::Stamp, 0, n)` for the `n`-th poisoned pair, and epoch 1 for the
    /// `n`-th picture of an evaluation.
    pub fn apply(&self, picture: &mut Rgb8, rng: &mut Rng) {
        let [width, height] = [picture.width, picture.height];
        match self {
            Trigger::Badnets { size, pattern, place, seed } => {
                let size = (*size).min(width).min(height);
                let patch = match pattern {
                    Pattern::FreshNoise => normal_noise(means(picture), size, rng),
                    pattern => pattern.draw([size, size], *seed, rng),
                };
                for at in place.corners([width, height], [size, size], rng) {
                    paste(picture, &patch, at, size);
                }
            }
            Trigger::Blended { alpha, pattern, seed } => {
                let pattern = pattern.draw([width, height], *seed, rng);
                for (x, p) in picture.data.iter_mut().zip(pattern) {
                    *x = byte((1.0 - alpha) * f64::from(*x) + alpha * f64::from(p));
                }
            }
            Trigger::Sig { delta, periods, alpha } => {
                let (of_picture, of_wave) = alpha.map_or((1.0, 1.0), |alpha| (1.0 - alpha, alpha));
                let turns = std::f64::consts::TAU * periods / f64::from(width);
                for (i, x) in picture.data.iter_mut().enumerate() {
                    let column = i / 3 % width as usize;
                    let wave = delta * libm::sin(turns * column as f64);
                    *x = byte(of_picture * f64::from(*x) + of_wave * wave);
                }
            }
            Trigger::Wanet { grid, strength, seed } => {
                let field = warp::field(*grid as usize, &mut fixed(*seed));
                warp::warp(picture, &field, *grid as usize, *strength);
            }
            Trigger::Text { text, scale, place } => {
                let size = [letters::width(text, *scale), letters::height(*scale)];
                let size = [size[0].min(width.into()), size[1].min(height.into())];
                let size = size.map(|side| side as u32);
                for at in place.corners([width, height], size, rng) {
                    letters::write(picture, text, *scale, at);
                }
            }
        }
    }
}

impl Pattern {
    /// `[height, width, 3]` samples.
    fn draw(self, [width, height]: [u32; 2], seed: u64, fresh: &mut Rng) -> Vec<u8> {
        let pixels = (width * height) as usize;
        match self {
            Pattern::Noise => uniform_noise(3 * pixels, &mut fixed(seed)),
            Pattern::FreshNoise => uniform_noise(3 * pixels, fresh),
            Pattern::Colour(colour) => colour.repeat(pixels),
            Pattern::Checkerboard => {
                let is_white = |i: usize| (i % width as usize + i / width as usize) % 2 == 1;
                (0..3 * pixels).map(|i| if is_white(i / 3) { 255 } else { 0 }).collect()
            }
            Pattern::Stripes => {
                let mut rng = fixed(seed);
                let row: Vec<u8> = (0..3 * width).map(|_| (rng.below(2) * 255) as u8).collect();
                row.repeat(height as usize)
            }
        }
    }
}

impl Place {
    /// Left and top of every box of that size, both `[width, height]`; the size fits.
    fn corners(self, picture: [u32; 2], size: [u32; 2], rng: &mut Rng) -> Vec<[u32; 2]> {
        let [right, bottom] = [picture[0] - size[0], picture[1] - size[1]];
        match self {
            Place::BottomRight => vec![[right, bottom]],
            Place::BottomLeft => vec![[0, bottom]],
            Place::TopRight => vec![[right, 0]],
            Place::TopLeft => vec![[0, 0]],
            Place::Centre => vec![[right / 2, bottom / 2]],
            Place::FourCorners => vec![[0, 0], [right, 0], [0, bottom], [right, bottom]],
            Place::Random => {
                vec![[right, bottom].map(|most| rng.below(u64::from(most) + 1) as u32)]
            }
        }
    }
}

/// The stream of what is the same for all pictures.
fn fixed(seed: u64) -> Rng {
    Rng::new(seed, Domain::Trigger, 0, 0)
}

/// The nearest of 0 to 255, halves up.
pub(super) fn byte(x: f64) -> u8 {
    (x + 0.5) as u8
}

/// Four samples a word, its lowest byte first.
fn uniform_noise(samples: usize, rng: &mut Rng) -> Vec<u8> {
    let words = samples.div_ceil(4);
    let mut noise: Vec<u8> = (0..words).flat_map(|_| rng.next_u32().to_le_bytes()).collect();
    noise.truncate(samples);
    noise
}

fn normal_noise(means: [f64; 3], size: u32, rng: &mut Rng) -> Vec<u8> {
    let samples = (3 * size * size) as usize;
    (0..samples).map(|i| byte(means[i % 3] + 255.0 * rng.normal())).collect()
}

fn means(picture: &Rgb8) -> [f64; 3] {
    let mut sums = [0u64; 3];
    for pixel in picture.data.chunks_exact(3) {
        (0..3).for_each(|channel| sums[channel] += u64::from(pixel[channel]));
    }
    sums.map(|sum| sum as f64 / (picture.data.len() / 3) as f64)
}

fn paste(picture: &mut Rgb8, patch: &[u8], [left, top]: [u32; 2], size: u32) {
    let (width, bytes) = (picture.width as usize, 3 * size as usize);
    for (y, row) in patch.chunks_exact(bytes).enumerate() {
        let start = 3 * ((top as usize + y) * width + left as usize);
        picture.data[start..start + bytes].copy_from_slice(row);
    }
}
