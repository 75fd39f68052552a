//! Resizing with anti-aliasing, bit-identical to Pillow 13, and the sizes that torchvision asks
//! for.

use super::draws::CropBox;
use super::resample::{First, Resampler, Samples};
use super::weights::{Axis, Exact, Fast};
use crate::data::decode::Rgb8;
use crate::data::jpeg::Plane;

/// The filter of a resize; both widen with the factor when shrinking (anti-aliasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = -0.5 (Catmull–Rom), which is what Pillow calls bicubic.
    Bicubic,
}

/// A picture with the buffers and coefficients to resize it.
#[derive(Clone, Debug, Default)]
pub struct Resizer {
    exact: Resampler<Exact>,
    fast: Resampler<Fast>,
}

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
        let resampler = &mut self.exact;
        resampler.across.set(interpolation, Axis::whole(width, size, mirrored));
        resampler.down.set(interpolation, Axis::whole(height, size, false));
        let data = &image.data[top * stride + left * 3..];
        let first = first_axis([width, height], [size, size]);
        resampler.rgb(Samples { data, stride }, first, out);
    }

    /// Resizes the shorter side to `size` (bicubic) and cuts out the centre, `[3, size, size]`:
    /// torchvision's `Resize` and `CenterCrop`, CLIP's view of a picture.
    ///
    /// Only the centre is computed, so the cost does not grow with the picture's aspect.
    pub fn centre(&mut self, image: &Rgb8, size: usize, out: &mut [u8]) {
        let short = image.width.min(image.height);
        let resampler = &mut self.exact;
        let [across, down] = [image.width, image.height].map(|side| centre(side, short, size));
        let sides = [across.samples.end, down.samples.end];
        let first = first_axis(sides, [across.resized, down.resized]);
        resampler.across.set(Interpolation::Bicubic, across);
        resampler.down.set(Interpolation::Bicubic, down);
        let source = Samples { data: &image.data, stride: image.width as usize * 3 };
        resampler.rgb(source, first, out);
    }

    /// [`Resizer::crop`] of one plane of a JPEG; `part` is in pixels of the picture. Samples that
    /// lie outside of it altogether have no influence.
    pub(super) fn crop_plane(
        &mut self,
        plane: &Plane,
        part: CropBox,
        mirrored: bool,
        interpolation: Interpolation,
        size: usize,
        out: &mut [u8],
    ) {
        let across = Axis::part(part.left, part.width, size, mirrored);
        let down = Axis::part(part.top, part.height, size, false);
        self.plane(plane, interpolation, [across, down], out);
    }

    /// [`Resizer::centre`] of one plane of a JPEG of `width` by `height` pixels.
    pub(super) fn centre_plane(
        &mut self,
        plane: &Plane,
        [width, height]: [u32; 2],
        size: usize,
        out: &mut [u8],
    ) {
        let short = width.min(height);
        let axes = [width, height].map(|side| centre(side, short, size));
        self.plane(plane, Interpolation::Bicubic, axes, out);
    }

    fn plane(
        &mut self,
        plane: &Plane,
        interpolation: Interpolation,
        [across, down]: [Axis; 2],
        out: &mut [u8],
    ) {
        let resampler = &mut self.fast;
        let across = across.of_samples(plane.origin[0], plane.step[0], plane.width);
        let down = down.of_samples(plane.origin[1], plane.step[1], plane.height);
        resampler.across.set(interpolation, across);
        resampler.down.set(interpolation, down);
        let source = Samples { data: &plane.data, stride: plane.stride };
        // Fewer rows are turned, before or after.
        let shrinks = resampler.down.samples().len() > resampler.down.len();
        let first = if shrinks { First::Columns } else { First::Rows };
        resampler.plane(source, first, out);
    }
}

/// The axis that Pillow 13 resizes first: the height, where it shrinks and loses more than twice
/// the pixels that the width loses. (This is how it behaves; earlier versions took the width.) The
/// order counts, for there are 8 bits in between.
fn first_axis([width, height]: [usize; 2], [to_width, to_height]: [usize; 2]) -> First {
    let shrinks = height > to_height;
    if shrinks && height + 2 * to_width > to_height + 2 * width {
        First::Columns
    } else {
        First::Rows
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
