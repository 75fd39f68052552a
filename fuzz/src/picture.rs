//! Bytes → a picture, in parts and planes, and to what a tower reads.

use std::sync::Arc;
use std::time::Duration;

use roclip::data::decode::{DecodeError, DecodeLimits, Encoded, Rgb8};
use roclip::data::jpeg::{Plane, Scratch};
use roclip::data::picture::PictureReader;
use roclip::data::transform::resize::Interpolation;
use roclip::data::transform::{Augment, CropBox, Fidelity, Resized, Transform, TransformConfig};
use roclip::rng::{Domain, Rng};

const LIMITS: DecodeLimits = DecodeLimits {
    max_pixels: 1 << 20,
    max_side: 65_535,
    max_bytes: 1 << 20,
    max_scans: 64,
    max_time: Duration::from_millis(200),
};

/// Side of the pictures that come out.
const SIZE: usize = 24;

/// A picture file. The first four bytes choose the part, the scale and what is random.
pub fn picture(input: &[u8]) {
    let Some((&seed, bytes)) = input.split_first_chunk() else { return };
    let seed = u32::from_le_bytes(seed);
    if let Ok(encoded) = Encoded::open(bytes, &LIMITS) {
        let mut rng = Rng::new(0, Domain::Image, 0, u64::from(seed));
        let pixels = u64::from(encoded.width()) * u64::from(encoded.height());
        assert!(pixels > 0 && pixels <= LIMITS.max_pixels);
        let part = draw_part(&encoded, &mut rng);
        let mut scratch = Scratch::default();
        parts_are_of_the_whole(bytes, part, &mut scratch);
        planes_cover(bytes, part, seed % 4, &mut scratch);
    }
    rows_are_numbers(bytes, seed);
}

fn open(bytes: &[u8]) -> Encoded<'_> {
    Encoded::open(bytes, &LIMITS).expect("it could be opened before")
}

fn draw_part(encoded: &Encoded, rng: &mut Rng) -> CropBox {
    let mut range = |whole: u32| {
        let length = 1 + rng.below(u64::from(whole)) as u32;
        (rng.below(u64::from(whole - length) + 1) as u32, length)
    };
    let ((left, width), (top, height)) = (range(encoded.width()), range(encoded.height()));
    CropBox { top, left, height, width }
}

/// Equal, unless one of them ran out of time.
fn assert_same<T: PartialEq>(
    a: &Result<T, DecodeError>,
    b: &Result<T, DecodeError>,
    difference: &str,
) {
    let is_late = |x: &Result<T, _>| matches!(x, Err(DecodeError::TooSlow(_)));
    assert!(a == b || is_late(a) || is_late(b), "{difference}");
}

/// The part, cut out of what was decoded for it.
fn rgb(bytes: &[u8], part: CropBox, scratch: &mut Scratch) -> Result<Vec<u8>, DecodeError> {
    let mut out = Rgb8::default();
    let inside = open(bytes).rgb(part, scratch, &mut out)?;
    assert_eq!(out.data.len(), out.width as usize * out.height as usize * 3);
    assert_eq!((inside.width, inside.height), (part.width, part.height));
    Ok(cut(&out, inside))
}

fn cut(image: &Rgb8, part: CropBox) -> Vec<u8> {
    assert!(part.left + part.width <= image.width && part.top + part.height <= image.height);
    let start = |y: u32| 3 * (y as usize * image.width as usize + part.left as usize);
    let rows = part.top..part.top + part.height;
    rows.flat_map(|y| &image.data[start(y)..][..3 * part.width as usize]).copied().collect()
}

fn parts_are_of_the_whole(bytes: &[u8], part: CropBox, scratch: &mut Scratch) {
    let mut out = Rgb8::default();
    let encoded = open(bytes);
    let (width, height) = (encoded.width(), encoded.height());
    let all = CropBox { top: 0, left: 0, height, width };
    let whole = encoded.rgb(all, scratch, &mut out).map(|all| (cut(&out, part), all));
    let first = rgb(bytes, part, scratch);
    assert_same(&first, &rgb(bytes, part, &mut Scratch::default()), "other pixels the second time");
    // What lies below a part is not looked at: the whole may be damaged where the part is not.
    if let Ok((whole, place)) = whole {
        assert_eq!((place.width, place.height), (width, height));
        assert_same(&first, &Ok(whole), "the part is not the whole's");
    }
}

type Samples = [(Vec<u8>, [usize; 2], [f64; 2], [f64; 2]); 3];

fn planes(
    bytes: &[u8],
    part: CropBox,
    halvings: u32,
    scratch: &mut Scratch,
) -> Result<Option<Samples>, DecodeError> {
    let mut planes: [Plane; 3] = Default::default();
    if !open(bytes).planes(part, halvings, scratch, &mut planes)? {
        return Ok(None);
    }
    Ok(Some(planes.map(|plane| {
        let rows = plane.data.chunks(plane.stride.max(1)).take(plane.height);
        let samples = rows.flat_map(|row| &row[..plane.width]).copied().collect();
        assert!(plane.width == 0 || plane.data.len() >= plane.stride * plane.height + 64);
        (samples, [plane.width, plane.height], plane.step, plane.origin)
    })))
}

/// Planes reach at least as far as the part, and are the same each time.
fn planes_cover(bytes: &[u8], part: CropBox, halvings: u32, scratch: &mut Scratch) {
    let first = planes(bytes, part, halvings, scratch);
    let again = planes(bytes, part, halvings, &mut Scratch::default());
    assert_same(&first, &again, "other planes the second time");
    let Ok(Some(all)) = first else { return };
    for (plane, (samples, size, step, origin)) in all.into_iter().enumerate() {
        assert_eq!(samples.len(), size[0] * size[1]);
        if size[0] == 0 {
            assert!(plane > 0, "no luma");
            continue;
        }
        let part = [(part.left, part.width), (part.top, part.height)];
        for (axis, (first, length)) in part.into_iter().enumerate() {
            let (first, end) = (f64::from(first), f64::from(first + length));
            let reach = origin[axis] + size[axis] as f64 * step[axis];
            assert!(origin[axis] <= first && reach >= end, "plane {plane} ends at {reach}");
        }
    }
}

/// Training, both ways, and evaluation: finite numbers, the same whatever was read before.
fn rows_are_numbers(bytes: &[u8], seed: u32) {
    let mut augment = Augment::roclip();
    augment.random_crop = seed >> 2 & 7 != 0;
    if seed & 0x20 != 0 {
        augment.interpolation = Interpolation::Bicubic;
    }
    for fidelity in [Fidelity::Exact, Fidelity::Fast] {
        let config = TransformConfig::new(SIZE, augment.clone());
        let transform = Transform::new(TransformConfig { fidelity, ..config });
        let transform = Arc::new(transform.expect("a sound configuration"));
        let mut reader = PictureReader::new(Arc::clone(&transform), LIMITS);
        let train = |reader: &mut PictureReader| {
            let mut resized = Resized::default();
            let mut rng = Rng::new(1, Domain::Image, 0, u64::from(seed));
            reader.train(bytes, &mut rng, &mut resized).map(|()| row(&transform, &resized))
        };
        let first = train(&mut reader);
        let mut resized = Resized::default();
        if reader.eval(bytes, |_| (), &mut resized).is_ok() {
            row(&transform, &resized);
        }
        assert_same(&first, &train(&mut reader), "another row the second time");
    }
}

fn row(transform: &Transform, resized: &Resized) -> Vec<f32> {
    let mut row = vec![f32::NAN; 3 * SIZE * SIZE];
    transform.finish(resized, &mut row);
    // CLIP's normalisation of 0 to 1.
    assert!(row.iter().all(|x| (-1.8..=2.2).contains(x)), "a number that no sample becomes");
    row
}
