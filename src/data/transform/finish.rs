//! The last pass of the fast way: colour changes, conversion to RGB and normalisation at once.
//!
//! The operations, their order and the limits of 0 and 255 between them are torchvision's; numbers
//! stay `f32` from the first to the last. Where Pillow truncates to 8 bits, half a step is taken
//! off, which is what truncation takes off on the average.

use super::color::{Adjust, steps};
use super::{Draws, Resized};
use crate::simd::vectorised;

/// Pixels that are worked on at a time: three rows of numbers that stay in the nearest cache.
const BLOCK: usize = 256;

/// What truncation takes off, on the average.
const TRUNCATED: f32 = 0.5;

/// Every how many rows one is read for the mean luminance.
const ROWS: usize = 4;

/// Weights of red, green and blue in the luminance: ITU-R 601.
const LUMINANCE: [f32; 3] = [0.299, 0.587, 0.114];

/// What the three planes of samples hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Base {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Y, Cb, Cr as JPEG has them.
    Ycc,
}

/// A colour change that knows all it needs of the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// From the constant at factor 0 to the pixel at 1 and beyond.
    Blend { constant: f32, factor: f32 },
    /// From the pixel's luminance to the pixel.
    Saturation(f32),
    /// A turn in steps of Pillow's circle of 256.
    Hue(f32),
    /// Luminance in place of colours.
    Gray,
}

impl Resized {
    /// Puts off the colour changes of `draws`, in order.
    pub(super) fn put_off(&mut self, draws: &Draws, size: usize) {
        for change in draws.jitter.iter().flatten().flatten() {
            let step = match *change {
                Adjust::Brightness(factor) => Step::Blend { constant: 0.0, factor },
                Adjust::Contrast(factor) => {
                    // Pillow's mean is an integer.
                    let constant = (mean_luminance(self, size) + 0.5).floor();
                    Step::Blend { constant, factor }
                }
                Adjust::Saturation(factor) => Step::Saturation(factor),
                Adjust::Hue(turn) => Step::Hue(f32::from(steps(turn))),
            };
            self.steps.push(step);
        }
        if draws.gray {
            self.steps.push(Step::Gray);
        }
    }
}

type Block = [[f32; BLOCK]; 3];

vectorised! {
    /// All that was put off, then `x · scale + offset` of each channel.
    pub(super) fn finish(resized: &Resized, scale: [f32; 3], offset: [f32; 3], row: &mut [f32]) {
        let plane = row.len() / 3;
        if resized.base == Base::Ycc && resized.steps.is_empty() {
            return convert(&resized.samples, scale, offset, row);
        }
        let mut block = [[0.0; BLOCK]; 3];
        for at in (0..plane).step_by(BLOCK) {
            let length = BLOCK.min(plane - at);
            load(resized, at, length, &mut block);
            for channel in 0..3 {
                let (scale, offset) = (scale[channel], offset[channel]);
                let row = &mut row[channel * plane + at..][..length];
                for (value, x) in row.iter_mut().zip(&block[channel]) {
                    *value = x * scale + offset;
                }
            }
        }
    }
}

vectorised! {
    /// Mean luminance after the steps so far, over some of the rows.
    fn mean_luminance(resized: &Resized, size: usize) -> f32 {
        let mut block = [[0.0; BLOCK]; 3];
        let mut sums = [0.0; BLOCK];
        let mut pixels = 0;
        for row in (0..size).step_by(ROWS) {
            for at in (0..size).step_by(BLOCK) {
                let length = BLOCK.min(size - at);
                load(resized, row * size + at, length, &mut block);
                let [r, g, b] = &block;
                for i in 0..length {
                    sums[i] += luminance([r[i], g[i], b[i]]);
                }
                pixels += length;
            }
        }
        sums.iter().sum::<f32>() / pixels as f32
    }
}

/// Some pixels after all steps.
#[inline(always)]
fn load(resized: &Resized, at: usize, length: usize, block: &mut Block) {
    let plane = resized.samples.len() / 3;
    for (channel, numbers) in block.iter_mut().enumerate() {
        let samples = &resized.samples[channel * plane + at..][..length];
        for (number, &sample) in numbers.iter_mut().zip(samples) {
            *number = f32::from(sample);
        }
    }
    if resized.base == Base::Ycc {
        to_rgb(block);
    }
    for step in &resized.steps {
        match *step {
            Step::Blend { constant, factor } => blend(block, constant, factor),
            Step::Saturation(factor) => saturate(block, factor),
            Step::Hue(steps) => turn_hue(block, steps),
            Step::Gray => gray(block),
        }
    }
}

#[inline(always)]
fn luminance([r, g, b]: [f32; 3]) -> f32 {
    LUMINANCE[0] * r + LUMINANCE[1] * g + LUMINANCE[2] * b
}

/// [`finish`] of Y, Cb and Cr that nothing else was put off for: a pixel never leaves registers.
#[inline(always)]
fn convert(samples: &[u8], scale: [f32; 3], offset: [f32; 3], row: &mut [f32]) {
    let plane = row.len() / 3;
    let (luma, chroma) = samples.split_at(plane);
    let (cb, cr) = chroma.split_at(plane);
    let (reds, rest) = row.split_at_mut(plane);
    let (greens, blues) = rest.split_at_mut(plane);
    for i in 0..plane {
        let [r, g, b] = rgb([luma[i], cb[i], cr[i]].map(f32::from));
        reds[i] = r * scale[0] + offset[0];
        greens[i] = g * scale[1] + offset[1];
        blues[i] = b * scale[2] + offset[2];
    }
}

/// JFIF's conversion.
#[inline(always)]
fn rgb([y, cb, cr]: [f32; 3]) -> [f32; 3] {
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let r = y + 1.402 * cr;
    let g = y - 0.344_136_3 * cb - 0.714_136_3 * cr;
    let b = y + 1.772 * cb;
    [r.clamp(0.0, 255.0), g.clamp(0.0, 255.0), b.clamp(0.0, 255.0)]
}

#[inline(always)]
fn to_rgb([r, g, b]: &mut Block) {
    for i in 0..BLOCK {
        [r[i], g[i], b[i]] = rgb([r[i], g[i], b[i]]);
    }
}

#[inline(always)]
fn blend(block: &mut Block, constant: f32, factor: f32) {
    let shift = constant - factor * constant - TRUNCATED;
    for x in block.as_flattened_mut() {
        *x = (factor * *x + shift).clamp(0.0, 255.0);
    }
}

#[inline(always)]
fn saturate([r, g, b]: &mut Block, factor: f32) {
    for i in 0..BLOCK {
        let shift = (1.0 - factor) * luminance([r[i], g[i], b[i]]) - TRUNCATED;
        r[i] = (factor * r[i] + shift).clamp(0.0, 255.0);
        g[i] = (factor * g[i] + shift).clamp(0.0, 255.0);
        b[i] = (factor * b[i] + shift).clamp(0.0, 255.0);
    }
}

#[inline(always)]
fn gray([r, g, b]: &mut Block) {
    for i in 0..BLOCK {
        let gray = luminance([r[i], g[i], b[i]]);
        (r[i], g[i], b[i]) = (gray, gray, gray);
    }
}

/// Through HSV with hue and saturation in steps of a 255th, as Pillow has them, and back.
#[inline(always)]
fn turn_hue([r, g, b]: &mut Block, steps: f32) {
    for i in 0..BLOCK {
        let (x, y, z) = (r[i], g[i], b[i]);
        let max = x.max(y).max(z);
        let range = max - x.min(y).min(z);
        // A grey pixel has no hue; divided by something it has one, and no saturation.
        let divisor = range.max(1e-6);
        let (from, ahead) = if max == y { (2.0, z - x) } else { (4.0, x - y) };
        let (from, ahead) = if max == x { (0.0, y - z) } else { (from, ahead) };
        let hue = from + ahead / divisor;
        let hue = if hue < 0.0 { hue + 6.0 } else { hue };
        let hue = (hue * (255.0 / 6.0) - TRUNCATED).max(0.0) + steps;
        let hue = if hue >= 256.0 { hue - 256.0 } else { hue } * (6.0 / 255.0);
        let taken = (range - max * (TRUNCATED / 255.0)).max(0.0);
        r[i] = max - taken * distance(hue, 5.0);
        g[i] = max - taken * distance(hue, 3.0);
        b[i] = max - taken * distance(hue, 1.0);
    }
}

/// How much of the range a channel lies below the maximum, 0 to 1: a trapezium around the circle
/// of six, which rises, stays at 1 for two sixths and falls.
#[inline(always)]
fn distance(hue: f32, shift: f32) -> f32 {
    let place = hue + shift;
    let place = if place >= 6.0 { place - 6.0 } else { place };
    place.min(4.0 - place).clamp(0.0, 1.0)
}
