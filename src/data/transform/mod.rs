//! Pictures: PyTorch-equal augmentation and CLIP's evaluation transform.
//!
//! Given the same random choices, the results are those of torchvision on Pillow pictures, 8 bits
//! between one operation and the next. What is random is drawn first, as plain values ([`Draws`]),
//! and then applied by functions that know no randomness.

pub mod blur;
pub mod color;
pub mod config;
pub mod draws;
pub mod resize;
mod resample;
mod weights;

use crate::Result;
use crate::data::decode::Rgb8;
use crate::rng::Rng;

pub use config::{Augment, TransformConfig};
pub use draws::{CropBox, Draws};

/// A checked [`TransformConfig`], ready to run. Shared by all workers.
#[derive(Clone, Debug)]
pub struct Transform {
    config: TransformConfig,
    /// Normalised value of every 8-bit sample, per channel.
    normalised: [[f32; 256]; 3],
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resized {
    /// `[3, S, S]`
    samples: Vec<u8>,
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
        Ok(Self { config, normalised })
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
        let Scratch { resizer, blur, .. } = scratch;
        let planes = out.planes(size);
        match draws.crop {
            Some(_) => {
                resizer.crop(image, part, draws.flip, augment.interpolation, size, planes);
            }
            None => {
                resizer.centre(image, size, planes);
                if draws.flip {
                    resize::flip_horizontal(planes, size);
                }
            }
        }
        for change in draws.jitter.iter().flatten().flatten() {
            change.apply(planes);
        }
        if draws.gray {
            color::grayscale(planes);
        }
        if let Some(sigma) = draws.blur_sigma {
            blur.apply(planes, [size, size], augment.blur_kernel, sigma);
        }
    }

    /// Resizes a picture for evaluation and crops its centre.
    pub fn centre(&self, image: &Rgb8, scratch: &mut Scratch, out: &mut Resized) {
        let size = self.config.image_size;
        scratch.resizer.centre(image, size, out.planes(size));
    }

    /// The last pass: what is left to do, and torchvision's `ToTensor` and `Normalize`, into a row
    /// of a batch, `[3, S, S]`.
    pub fn finish(&self, resized: &Resized, row: &mut [f32]) {
        assert_eq!(row.len(), resized.samples.len(), "a row is [3, S, S]");
        let plane = row.len() / 3;
        let planes = row.chunks_exact_mut(plane).zip(resized.samples.chunks_exact(plane));
        for ((row, samples), table) in planes.zip(&self.normalised) {
            for (value, &sample) in row.iter_mut().zip(samples) {
                *value = table[usize::from(sample)];
            }
        }
    }
}

impl Resized {
    fn planes(&mut self, size: usize) -> &mut [u8] {
        self.samples.resize(3 * size * size, 0);
        &mut self.samples
    }
}
