//! Resizing with anti-aliasing, as Pillow does it, and the sizes that torchvision asks for.
//!
//! Both libraries filter one axis after the other and round to 8 bits in between; Pillow takes the
//! columns first, `fast_image_resize` the rows. Each pass errs by at most half a step of its own,
//! and the second passes on the error of the first times the sum of its absolute weights (1 for
//! bilinear, at most 1.25 for bicubic). So each result lies within 1.125 of the exact one, and two
//! results differ by at most 2/255. Only where bicubic overshoots the 8 bits in between, at hard
//! edges that are much enlarged, they may differ by more: the overshoot is clipped after the first
//! axis, and that is another one.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::draws::CropBox;
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
    fn options(self) -> ResizeOptions {
        let filter = match self {
            Self::Bilinear => FilterType::Bilinear,
            Self::Bicubic => FilterType::CatmullRom,
        };
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter))
    }
}

fn view(image: &Rgb8) -> TypedImageRef<'_, U8x3> {
    TypedImageRef::from_buffer(image.width, image.height, &image.data)
        .expect("a picture holds width * height * 3 samples")
}

fn square(size: usize, out: &mut [u8]) -> TypedImage<'_, U8x3> {
    TypedImage::from_buffer(size as u32, size as u32, out).expect("size * size * 3 samples")
}

/// Cuts out a part and resizes it to `[size, size, 3]`: torchvision's `resized_crop`. Pixels
/// outside the part have no influence.
pub fn resized_crop(
    resizer: &mut Resizer,
    image: &Rgb8,
    part: CropBox,
    interpolation: Interpolation,
    size: usize,
    out: &mut [u8],
) {
    let CropBox { top, left, height, width } = part;
    let part = TypedCroppedImage::new(view(image), left, top, width, height)
        .expect("the part lies within the picture");
    resizer
        .resize_typed(&part, &mut square(size, out), &interpolation.options())
        .expect("source and destination are not empty");
}

/// Resizes the shorter side to `size` (bicubic) and cuts out the centre, `[size, size, 3]`:
/// torchvision's `Resize` and `CenterCrop`, CLIP's view of a picture.
///
/// Only the centre is computed, so the cost does not grow with the picture's aspect.
pub fn resized_centre(resizer: &mut Resizer, image: &Rgb8, size: usize, out: &mut [u8]) {
    let short = image.width.min(image.height);
    let (left, width) = centre(image.width, short, size);
    let (top, height) = centre(image.height, short, size);
    let options = Interpolation::Bicubic.options().crop(left, top, width, height);
    resizer
        .resize_typed(&view(image), &mut square(size, out), &options)
        .expect("the centre lies within the picture");
}

/// First pixel and length, in pixels of the source, of the centre along one side.
fn centre(side: u32, short: u32, size: usize) -> (f64, f64) {
    // torchvision truncates the longer side and rounds the offset half to even.
    let resized = size as u64 * u64::from(side) / u64::from(short);
    let twice = resized - size as u64;
    let offset = twice / 2 + (twice / 2 % 2) * (twice % 2);
    let scale = |x: u64| x as f64 * f64::from(side) / resized as f64;
    (scale(offset), scale(size as u64))
}

/// Mirrors `[size, size, 3]` samples left to right.
pub fn flip_horizontal(rgb: &mut [u8], size: usize) {
    for row in rgb.chunks_exact_mut(3 * size) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}
