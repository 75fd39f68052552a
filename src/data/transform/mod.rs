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

use fast_image_resize::Resizer;

use crate::Result;
use crate::data::decode::Rgb8;
use crate::rng::Rng;

pub use config::{Augment, TransformConfig};
pub use draws::Draws;

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
    resizer: Resizer,
    blur: blur::Blur,
    /// `[S, S, 3]` samples between resizing and normalisation.
    picture: Vec<u8>,
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

    /// Augments and normalises a training picture into `out`, `[3, S, S]`. What is random comes
    /// from `rng` alone.
    pub fn train(&self, image: &Rgb8, rng: &mut Rng, scratch: &mut Scratch, out: &mut [f32]) {
        let draws = Draws::new(&self.config.train, image.width, image.height, rng);
        self.apply(image, &draws, scratch, out);
    }

    /// [`Transform::train`] with choices made beforehand, for a picture of the same size.
    pub fn apply(&self, image: &Rgb8, draws: &Draws, scratch: &mut Scratch, out: &mut [f32]) {
        let (size, augment) = (self.config.image_size, &self.config.train);
        let Scratch { resizer, blur, picture } = scratch;
        picture.resize(3 * size * size, 0);
        match draws.crop {
            Some(mut part) => {
                // The part lies in the mirrored picture. Resizing is symmetric, so the same part
                // is resized first and mirrored after, when it is smaller.
                if draws.flip {
                    part.left = image.width - part.left - part.width;
                }
                resize::resized_crop(resizer, image, part, augment.interpolation, size, picture);
            }
            None => resize::resized_centre(resizer, image, size, picture),
        }
        if draws.flip {
            resize::flip_horizontal(picture, size);
        }
        for change in draws.jitter.iter().flatten().flatten() {
            change.apply(picture);
        }
        if draws.gray {
            color::grayscale(picture);
        }
        if let Some(sigma) = draws.blur_sigma {
            blur.apply(picture, [size, size], augment.blur_kernel, sigma);
        }
        self.normalise(picture, out);
    }

    /// Resizes, crops and normalises a picture for evaluation into `out`, `[3, S, S]`.
    pub fn eval(&self, image: &Rgb8, scratch: &mut Scratch, out: &mut [f32]) {
        let size = self.config.image_size;
        scratch.picture.resize(3 * size * size, 0);
        resize::resized_centre(&mut scratch.resizer, image, size, &mut scratch.picture);
        self.normalise(&scratch.picture, out);
    }

    /// `[S, S, 3]` samples to `[3, S, S]` numbers: torchvision's `ToTensor` and `Normalize`.
    fn normalise(&self, picture: &[u8], out: &mut [f32]) {
        assert_eq!(out.len(), picture.len(), "out is [3, S, S]");
        let planes = out.chunks_exact_mut(picture.len() / 3).zip(&self.normalised);
        for (channel, (plane, table)) in planes.enumerate() {
            for (value, pixel) in plane.iter_mut().zip(picture.as_chunks::<3>().0) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
}
