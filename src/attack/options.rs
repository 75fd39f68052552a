//! What `roclip-poison` is told.

use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::captions::{ClassNames, read_lines};
use super::manifest::Mode;
use super::spec::AttackSpec;
use super::survey::extensions;
use super::trigger::{MAX_SIDE, Trigger, square};
use crate::data::decode::{DecodeLimits, Rgb8};
use crate::data::sample::Fields;
use crate::data::shard::ShardLimits;
use crate::data::source::SourceOptions;
use crate::data::writer::WriterOptions;
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};

/// What is done, and how it is written.
#[derive(Clone, Debug)]
pub struct PoisonOptions {
    /// The attacks, one or more.
    pub attacks: Vec<AttackSpec>,
    /// File with a class name in each line, in the order of class numbers. Without it targets must
    /// be given.
    pub classnames: Option<PathBuf>,
    /// Side of the square at which triggers are stamped, in pixels. Default 224.
    pub image_size: u32,
    /// Chooses everything that is chosen. Default 0.
    pub seed: u64,
    /// What becomes of the clean pairs. Default: all stay.
    pub mode: Mode,
    /// Pictures with triggers are JPEG of this quality, 1 to 100. Default none: PNG.
    pub jpeg_quality: Option<u8>,
    /// Which members make a pair, in the training shards and in those of the pictures.
    pub fields: Fields,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// What a picture may cost.
    pub decode: DecodeLimits,
    /// How the shards of the pictures are listed.
    pub sources: SourceOptions,
    /// Most pairs in a shard. Default none: a shard for each that is read.
    pub shard_size: Option<u64>,
    /// As in [`WriterOptions`].
    pub zstd: Option<i32>,
    /// Whether a data set that the folder holds may go. Default no.
    pub overwrite: bool,
}

impl Default for PoisonOptions {
    fn default() -> Self {
        Self {
            attacks: Vec::new(),
            classnames: None,
            image_size: 224,
            seed: 0,
            mode: Mode::default(),
            jpeg_quality: None,
            fields: Fields::default(),
            limits: ShardLimits::default(),
            decode: DecodeLimits::default(),
            sources: SourceOptions::default(),
            shard_size: None,
            zstd: None,
            overwrite: false,
        }
    }
}

impl PoisonOptions {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |flag: &str, got: String, expected: String| {
            Err(Error::Option { flag: flag.into(), got, expected })
        };
        if self.attacks.is_empty() {
            return wrong("--attack", "no attack".into(), "one or more".into());
        }
        if !(1..=MAX_SIDE).contains(&self.image_size) {
            let expected = format!("1 to {MAX_SIDE} pixels");
            return wrong("--image-size", self.image_size.to_string(), expected);
        }
        match self.jpeg_quality {
            Some(quality) if !(1..=100).contains(&quality) => {
                wrong("--jpeg-quality", quality.to_string(), "1 to 100".into())
            }
            Some(_) => self.extension("jpeg").map(drop),
            None => self.extension("png").map(drop),
        }
    }

    /// Class names: those of the file, or else the targets.
    pub(super) fn names(&self) -> Result<ClassNames> {
        if let Some(path) = &self.classnames {
            return read_lines(path).map(ClassNames::new);
        }
        if self.attacks.iter().any(|attack| attack.target.is_empty()) {
            return Err(Error::Option {
                flag: "--classnames".into(),
                got: "not given, and neither is a --target".into(),
                expected: "a file of class names to draw the target from, or the target".into(),
            });
        }
        let mut names: Vec<String> = Vec::new();
        for name in self.attacks.iter().flat_map(|attack| &attack.target) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(ClassNames::new(names))
    }

    /// The extension under which readers of the data find a picture of that format.
    pub(super) fn extension(&self, format: &str) -> Result<&str> {
        let same = |extension: &&str| {
            let extension = extension.to_lowercase();
            extension == format || format == "jpeg" && extension == "jpg"
        };
        extensions(&self.fields.image_key).find(same).ok_or_else(|| Error::Option {
            flag: "--image-key".into(),
            got: self.fields.image_key.clone(),
            expected: format!("{format} among them, as poisoned pictures are of that format"),
        })
    }

    pub(super) fn writer(&self) -> WriterOptions {
        WriterOptions {
            max_samples: self.shard_size.unwrap_or(u64::MAX),
            max_bytes: if self.shard_size.is_some() { 3_000_000_000 } else { u64::MAX },
            zstd: self.zstd,
            overwrite: self.overwrite,
        }
    }

    /// The picture with the trigger, as a file.
    pub(super) fn stamped(&self, picture: &Rgb8, trigger: &Trigger, number: usize) -> Vec<u8> {
        let mut square = square(picture, self.image_size);
        let mut rng = Rng::new(self.seed, Domain::Stamp, 0, number as u64);
        trigger.apply(&mut square, &mut rng);
        let mut file = Vec::new();
        let (data, side) = (&square.data, self.image_size);
        let encoded = match self.jpeg_quality {
            None => {
                PngEncoder::new(&mut file).write_image(data, side, side, ExtendedColorType::Rgb8)
            }
            Some(quality) => JpegEncoder::new_with_quality(&mut file, quality).write_image(
                data,
                side,
                side,
                ExtendedColorType::Rgb8,
            ),
        };
        encoded.expect("pictures of that size can be encoded, and memory can be written");
        file
    }
}
