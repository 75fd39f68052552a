//! Encoded picture → augmented and resized, in the buffers of one worker.

use std::sync::Arc;

use super::decode::{DecodeError, DecodeLimits, Encoded, Rgb8};
use super::jpeg::{self, Plane};
use super::transform::{self, CropBox, Draws, Fidelity, Resized, Transform};
use crate::flow::SampleId;
use crate::rng::Rng;

/// What is done to a decoded picture before it is resized; [`SampleId`] keys what is random in it.
#[derive(Clone)]
pub struct PictureEdit(Arc<Change>);

type Change = dyn Fn(&mut Rgb8, &SampleId) + Send + Sync;

impl PictureEdit {
    /// The edit that `change` makes.
    pub fn new(change: impl Fn(&mut Rgb8, &SampleId) + Send + Sync + 'static) -> Self {
        Self(Arc::new(change))
    }

    /// Makes it.
    pub fn apply(&self, picture: &mut Rgb8, id: &SampleId) {
        (self.0)(picture, id);
    }
}

impl std::fmt::Debug for PictureEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PictureEdit")
    }
}

/// Decodes what a crop needs, and augments it. Nothing is allocated for a JPEG once the buffers
/// have grown to the largest.
pub struct PictureReader {
    transform: Arc<Transform>,
    limits: DecodeLimits,
    jpeg: jpeg::Scratch,
    scratch: transform::Scratch,
    rgb: Rgb8,
    planes: [Plane; 3],
}

impl PictureReader {
    /// With empty buffers.
    pub fn new(transform: Arc<Transform>, limits: DecodeLimits) -> Self {
        Self {
            transform,
            limits,
            jpeg: jpeg::Scratch::default(),
            scratch: transform::Scratch::default(),
            rgb: Rgb8::default(),
            planes: Default::default(),
        }
    }

    /// A training picture, all but the last pass ([`Transform::finish`]). What is random comes
    /// from `rng` alone.
    ///
    /// # Errors
    /// [`DecodeError`]: see its variants. `out` is of no use then.
    pub fn train(
        &mut self,
        bytes: &[u8],
        rng: &mut Rng,
        out: &mut Resized,
    ) -> Result<(), DecodeError> {
        let encoded = Encoded::open(bytes, &self.limits)?;
        let config = self.transform.config();
        let (width, height) = (encoded.width(), encoded.height());
        let draws = Draws::new(&config.train, width, height, rng);
        let part = draws.part(width, height);
        if config.fidelity == Fidelity::Fast {
            let halvings = self.transform.halvings(part);
            if encoded.planes(part, halvings, &mut self.jpeg, &mut self.planes)? {
                let scratch = &mut self.scratch;
                self.transform.augment_planes(&self.planes, part, &draws, scratch, out);
                return Ok(());
            }
        }
        let part = encoded.rgb(part, &mut self.jpeg, &mut self.rgb)?;
        self.transform.augment(&self.rgb, part, &draws, &mut self.scratch, out);
        Ok(())
    }

    /// A picture for evaluation: changed by `edit`, resized, its centre, all but the last pass.
    ///
    /// # Errors
    /// [`DecodeError`]: see its variants. `out` is of no use then.
    pub fn eval(
        &mut self,
        bytes: &[u8],
        edit: impl FnOnce(&mut Rgb8),
        out: &mut Resized,
    ) -> Result<(), DecodeError> {
        let encoded = Encoded::open(bytes, &self.limits)?;
        let (width, height) = (encoded.width(), encoded.height());
        let whole = CropBox { top: 0, left: 0, height, width };
        encoded.rgb(whole, &mut self.jpeg, &mut self.rgb)?;
        edit(&mut self.rgb);
        self.transform.centre(&self.rgb, &mut self.scratch, out);
        Ok(())
    }
}
