//! Resizing with anti-aliasing, bit-identical to Pillow, and the sizes that torchvision asks for.

use super::draws::CropBox;
use super::resample::{Resampler, Samples, resample_rgb};
use super::weights::Axis;
use crate::data::decode::Rgb8;

/// The filter of a resize; both widen with the factor when shrinking (anti-aliasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = -0.5 (Catmull–Rom), which is what Pillow calls bicubic.
    Bicubic,
}

impl Interpolation {
    /// How far the filter reaches from its middle.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }
}

/// A picture with the buffers and coefficients to resize it.
#[derive(Clone, Debug, Default)]
pub struct Resizer(pub(super) Resampler);

impl Resizer {
    /// Cuts out a part and resizes it to planes, `[3, size, size]`: torchvision's `resized_crop`.
    /// `mirrored` cuts the same pixels out of the mirror image of `image`. Pixels outside the part
    /// have no influence.
    pub fn crop(
        &mut self,
        image: &Rgb8,
        part: CropBox,
        mirrored: bool,
        interpolation: Interpolation,
        size: usize,
        out: &mut [u8],
    ) {
        let [top, left, height, width] =
            [part.top, part.left, part.height, part.width].map(|x| x as usize);
        let stride = image.width as usize * 3;
        let Self(resampler) = self;
        resampler.across.set(interpolation, &Axis::whole(width, size, mirrored));
        resampler.down.set(interpolation, &Axis::whole(height, size, false));
        let data = &image.data[top * stride + left * 3..];
        resample_rgb(resampler, Samples { data, stride }, out);
    }

    /// Resizes the shorter side to `size` (bicubic) and cuts out the centre, `[3, size, size]`:
    /// torchvision's `Resize` and `CenterCrop`, CLIP's view of a picture.
    ///
    /// Only the centre is computed, so the cost does not grow with the picture's aspect.
    pub fn centre(&mut self, image: &Rgb8, size: usize, out: &mut [u8]) {
        let short = image.width.min(image.height);
        let Self(resampler) = self;
        resampler.across.set(Interpolation::Bicubic, &centre(image.width, short, size));
        resampler.down.set(Interpolation::Bicubic, &centre(image.height, short, size));
        let source = Samples { data: &image.data, stride: image.width as usize * 3 };
        resample_rgb(resampler, source, out);
    }
}

/// One side of a picture whose shorter side becomes `size`, of which the centre is wanted.
pub(super) fn centre(side: u32, short: u32, size: usize) -> Axis {
    // torchvision truncates the longer side and rounds the offset half to even.
    let resized = (size as u64 * u64::from(side) / u64::from(short)) as usize;
    let twice = resized - size;
    let offset = twice / 2 + (twice / 2 % 2) * (twice % 2);
    Axis { wanted: offset..offset + size, ..Axis::whole(side as usize, resized, false) }
}

/// Mirrors planes of `size` columns left to right.
pub fn flip_horizontal(planes: &mut [u8], size: usize) {
    for row in planes.chunks_exact_mut(size) {
        row.reverse();
    }
}
