//! Pictures: PyTorch-equal augmentation and CLIP's evaluation transform.
//!
//! What is random is drawn first, as plain values ([`Draws`]), and then applied by functions that
//! know no randomness. There are two ways ([`Fidelity`]).
//!
//! *Exact*: given the same draws, the results are those of torchvision on Pillow pictures, 8 bits
//! between one operation and the next, to the bit. Only the blur may differ, by 1/255, where a sum
//! comes within 1e-3 of the middle between two steps.
//!
//! *Fast*: the planes of a JPEG are resized as they are stored, decoded at a reduced scale where
//! the part is large; the blur follows; colours, the conversion to RGB and the normalisation are
//! the last pass. What differs: the scale is reduced by the decoder's transform, chroma is enlarged
//! once and not twice, coefficients of the resize have 14 bits, the blur comes before the colours,
//! nothing is rounded to 8 bits between them, and the mean that contrast needs is taken over every
//! fourth row. Over 651 photographs of around 525 x 350 pixels at 224 x 224, in 255ths: open_clip's
//! augmentation differs by 0.57 in the mean (99.9th percentile 9.2), RoCLIP's by 0.83 (23), and the
//! mean of all differences is -0.02. `tests/fast.rs` prints these figures for any folder.
//!
//! Accuracy does not tell the two apart. The demonstration, its drawings enlarged to 96 x 96 and
//! stored as JPEG of quality 90, zero-shot top-1 and top-5 in percent over seeds 0 to 3: exact
//! 2.42 and 9.91 in the mean (2.21 to 2.59, 9.03 to 11.17), fast 2.40 and 10.18 (2.15 to 2.65,
//! 9.66 to 10.54). The drawings as they are (WebP, seed 0): exact 2.53 and 9.91, fast 2.02 and
//! 9.85.

pub mod blur;
pub mod color;
pub mod config;
pub mod draws;
pub mod resize;
mod finish;
mod resample;
mod transpose;
mod weigh;
mod weights;

use finish::Base;

use crate::Result;
use crate::data::decode::Rgb8;
use crate::data::jpeg::Plane;
use crate::rng::Rng;

pub use config::{Augment, Fidelity, TransformConfig};
pub use draws::{CropBox, Draws};

/// A checked [`TransformConfig`], ready to run. Shared by all workers.
#[derive(Clone, Debug)]
pub struct Transform {
    config: TransformConfig,
    /// Normalised value of every 8-bit sample, per channel.
    normalised: [[f32; 256]; 3],
    /// The same as `x · scale + offset`, for numbers between the samples.
    scale: [f32; 3],
    offset: [f32; 3],
}

/// Buffers of one worker, used again for every picture.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    resizer: resize::Resizer,
    blur: blur::Blur,
    /// What [`Transform::train`] and [`Transform::eval`] hand from one half to the other.
    resized: Resized,
}

/// A picture on its way: resized, and still to be normalised. A quarter of the size of the row of
/// a batch that it becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resized {
    /// `[3, S, S]`
    samples: Vec<u8>,
    base: finish::Base,
    /// Colour changes that are left to do.
    steps: Vec<finish::Step>,
}

impl Transform {
    /// Checks the configuration and prepares.
    ///
    /// # Errors
    /// [`crate::Error::Option`] naming the first field that is wrong.
    pub fn new(config: TransformConfig) -> Result<Self> {
        config.validate()?;
        let normalised = std::array::from_fn(|channel| {
            let (mean, std) = (config.mean[channel] as f32, config.std[channel] as f32);
            std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std)
        });
        let scale = std::array::from_fn(|channel| (1.0 / (255.0 * config.std[channel])) as f32);
        let offset =
            std::array::from_fn(|channel| (-config.mean[channel] / config.std[channel]) as f32);
        Ok(Self { config, normalised, scale, offset })
    }

    /// What it was built from.
    pub fn config(&self) -> &TransformConfig {
        &self.config
    }

    /// Augments and normalises a training picture into `row`, `[3, S, S]`. What is random comes
    /// from `rng` alone.
    pub fn train(&self, image: &Rgb8, rng: &mut Rng, scratch: &mut Scratch, row: &mut [f32]) {
        let draws = Draws::new(&self.config.train, image.width, image.height, rng);
        let part = draws.part(image.width, image.height);
        let mut resized = std::mem::take(&mut scratch.resized);
        self.augment(image, part, &draws, scratch, &mut resized);
        self.finish(&resized, row);
        scratch.resized = resized;
    }

    /// Resizes, crops and normalises a picture for evaluation into `row`, `[3, S, S]`.
    pub fn eval(&self, image: &Rgb8, scratch: &mut Scratch, row: &mut [f32]) {
        let mut resized = std::mem::take(&mut scratch.resized);
        self.centre(image, scratch, &mut resized);
        self.finish(&resized, row);
        scratch.resized = resized;
    }

    /// Augments a training picture, of which `part` is what [`Draws::part`] asked for: `image` may
    /// be the whole picture or nothing but the part.
    pub fn augment(
        &self,
        image: &Rgb8,
        part: CropBox,
        draws: &Draws,
        scratch: &mut Scratch,
        out: &mut Resized,
    ) {
        let (size, augment) = (self.config.image_size, &self.config.train);
        let planes = out.begin(Base::Rgb, size);
        match draws.crop {
            Some(_) => {
                let resizer = &mut scratch.resizer;
                resizer.crop(image, part, draws.flip, augment.interpolation, size, planes);
            }
            None => {
                scratch.resizer.centre(image, size, planes);
                if draws.flip {
                    resize::flip_horizontal(planes, size);
                }
            }
        }
        if self.config.fidelity == Fidelity::Fast {
            self.blur(draws, scratch, out);
            return out.put_off(draws, size);
        }
        for change in draws.jitter.iter().flatten().flatten() {
            change.apply(planes);
        }
        if draws.gray {
            color::grayscale(planes);
        }
        self.blur(draws, scratch, out);
    }

    /// [`Transform::augment`] of a JPEG as it is stored, Y, Cb and Cr, for [`Fidelity::Fast`]:
    /// each plane is brought to the size of the result at once, whatever size it was decoded at.
    /// `part` is what [`Draws::part`] asked for, in pixels of the picture.
    pub fn augment_planes(
        &self,
        planes: &[Plane; 3],
        part: CropBox,
        draws: &Draws,
        scratch: &mut Scratch,
        out: &mut Resized,
    ) {
        let (size, augment) = (self.config.image_size, &self.config.train);
        let samples = out.begin(Base::Ycc, size);
        for (plane, samples) in planes.iter().zip(samples.chunks_exact_mut(size * size)) {
            if plane.width == 0 {
                samples.fill(128);
                continue;
            }
            match draws.crop {
                Some(_) => {
                    let resizer = &mut scratch.resizer;
                    resizer.crop_plane(
                        plane,
                        part,
                        draws.flip,
                        augment.interpolation,
                        size,
                        samples,
                    );
                }
                None => {
                    scratch.resizer.centre_plane(plane, [part.width, part.height], size, samples)
                }
            }
        }
        if draws.crop.is_none() && draws.flip {
            resize::flip_horizontal(samples, size);
        }
        self.blur(draws, scratch, out);
        out.put_off(draws, size);
    }

    fn blur(&self, draws: &Draws, scratch: &mut Scratch, out: &mut Resized) {
        if let Some(sigma) = draws.blur_sigma {
            let (size, kernel) = (self.config.image_size, self.config.train.blur_kernel);
            let tolerance = self.config.fidelity.blur_tolerance();
            scratch.blur.apply(&mut out.samples, [size, size], kernel, sigma, tolerance);
        }
    }

    /// Resizes a picture for evaluation and crops its centre.
    pub fn centre(&self, image: &Rgb8, scratch: &mut Scratch, out: &mut Resized) {
        let size = self.config.image_size;
        scratch.resizer.centre(image, size, out.begin(Base::Rgb, size));
    }

    /// How often a JPEG may be halved, at most thrice, before its planes go to
    /// [`Transform::augment_planes`]: `part` still has the size of the result then.
    pub fn halvings(&self, part: CropBox) -> u32 {
        let short = part.width.min(part.height) as usize;
        (1..=3).rev().find(|n| short >> n >= self.config.image_size).unwrap_or(0)
    }

    /// The last pass: what is left to do, and torchvision's `ToTensor` and `Normalize`, into a row
    /// of a batch, `[3, S, S]`.
    pub fn finish(&self, resized: &Resized, row: &mut [f32]) {
        assert_eq!(row.len(), resized.samples.len(), "a row is [3, S, S]");
        if resized.base == Base::Rgb && resized.steps.is_empty() {
            self.normalise(&resized.samples, row);
        } else {
            finish::finish(resized, self.scale, self.offset, row);
        }
    }

    fn normalise(&self, samples: &[u8], row: &mut [f32]) {
        let plane = row.len() / 3;
        let planes = row.chunks_exact_mut(plane).zip(samples.chunks_exact(plane));
        for ((row, samples), table) in planes.zip(&self.normalised) {
            for (value, &sample) in row.iter_mut().zip(samples) {
                *value = table[usize::from(sample)];
            }
        }
    }
}

impl Resized {
    /// Nothing left to do, and room for the planes.
    fn begin(&mut self, base: Base, size: usize) -> &mut [u8] {
        self.base = base;
        self.steps.clear();
        self.samples.resize(3 * size * size, 0);
        &mut self.samples
    }
}
