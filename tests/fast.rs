//! Goal: the fast way of augmenting shows the model what the exact way shows it, but for roundings.
//! Method: the exact way on the same draws, which equals Pillow and torchvision (`transform.rs`).

use roclip::data::decode::{DecodeLimits, Encoded, Rgb8};
use roclip::data::jpeg::{self, Plane};
use roclip::data::transform::color::Adjust;
use roclip::data::transform::{
    Augment, CropBox, Draws, Fidelity, Resized, Scratch, Transform, TransformConfig,
};
use roclip::rng::{Domain, Rng};

const SIZE: usize = 40;

/// A transform whose rows are samples, 0 to 255.
fn transform(size: usize, augment: Augment, fidelity: Fidelity) -> Transform {
    let mut config = TransformConfig::new(size, augment);
    (config.mean, config.std) = ([0.0; 3], [1.0 / 255.0; 3]);
    config.fidelity = fidelity;
    Transform::new(config).unwrap()
}

fn plain(part: CropBox) -> Draws {
    Draws { flip: false, crop: Some(part), jitter: None, gray: false, blur_sigma: None }
}

fn rgb_row(fidelity: Fidelity, image: &Rgb8, draws: &Draws) -> Vec<f32> {
    let transform = transform(SIZE, Augment::roclip(), fidelity);
    let mut resized = Resized::default();
    let part = draws.part(image.width, image.height);
    transform.augment(image, part, draws, &mut Scratch::default(), &mut resized);
    let mut row = vec![f32::NAN; 3 * SIZE * SIZE];
    transform.finish(&resized, &mut row);
    row
}

fn planes_row(planes: &[Plane; 3], size: [u32; 2], draws: &Draws) -> Vec<f32> {
    let transform = transform(SIZE, Augment::roclip(), Fidelity::Fast);
    let mut resized = Resized::default();
    let part = draws.part(size[0], size[1]);
    transform.augment_planes(planes, part, draws, &mut Scratch::default(), &mut resized);
    let mut row = vec![f32::NAN; 3 * SIZE * SIZE];
    transform.finish(&resized, &mut row);
    row
}

/// Largest and mean difference.
fn difference(a: &[f32], b: &[f32]) -> (f32, f32) {
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    (each.clone().fold(0.0, f32::max), each.sum::<f32>() / a.len() as f32)
}

/// Four rows after another are alike, so that the mean over every fourth row is that of all.
fn picture() -> Rgb8 {
    let side = SIZE as u32;
    let pixel = |i: u32| {
        let (x, y) = (i % side, i / side / 4);
        [x * 6, y * 25, (x * x + y * y * 7) % 256].map(|sample| sample as u8)
    };
    let data = (0..side * side).flat_map(pixel).collect();
    Rgb8 { width: side, height: side, data }
}

/// Where nothing is resized, one colour change differs by what it rounds otherwise. Blends:
/// Pillow truncates where half a step is taken off, 0.5; the mean of contrast and the grey of
/// saturation are rounded, each by 0.5 and the mean twice, times |1 - factor|. Hue: a truncated
/// hue is off by half a 255th of the circle, which is 3 steps of a channel of full range, a
/// truncated saturation by 0.5, and the result is rounded, 0.5. Grey is rounded: 0.5.
#[test]
fn colours_differ_by_roundings() {
    let image = picture();
    let whole = CropBox { top: 0, left: 0, height: SIZE as u32, width: SIZE as u32 };
    let one = |change| Draws { jitter: Some([Some(change), None, None, None]), ..plain(whole) };
    for (name, draws, bound) in [
        ("nothing", plain(whole), 0.0),
        ("darker", one(Adjust::Brightness(0.5537)), 0.5),
        ("brighter", one(Adjust::Brightness(1.4571)), 0.5),
        ("less contrast", one(Adjust::Contrast(0.5)), 1.0),
        ("more contrast", one(Adjust::Contrast(1.5)), 1.0),
        ("pale", one(Adjust::Saturation(0.5)), 0.75),
        ("bright", one(Adjust::Saturation(1.5)), 0.75),
        ("hue up", one(Adjust::Hue(0.1)), 4.0),
        ("hue down", one(Adjust::Hue(-0.083)), 4.0),
        ("gray", Draws { gray: true, ..plain(whole) }, 0.5),
    ] {
        let exact = rgb_row(Fidelity::Exact, &image, &draws);
        let fast = rgb_row(Fidelity::Fast, &image, &draws);
        let (max, mean) = difference(&exact, &fast);
        println!("{name:14} max {max:.3} mean {mean:.3}");
        assert!(max <= bound + 1e-3 && mean <= bound * 0.6 + 1e-3, "{name}: {max}, {mean}");
    }
}

/// Smooth planes, and the picture that they are of. `step` pixels a sample of chroma; the planes
/// begin at `origin`, not at the picture's corner.
fn smooth(width: u32, height: u32, steps: [u32; 2], origin: [u32; 2]) -> ([Plane; 3], Rgb8) {
    let value = |channel: usize, x: f64, y: f64| match channel {
        0 => 60.0 + 0.8713 * x + 0.3371 * y,
        1 => 100.0 + 0.3037 * x - 0.2071 * y,
        _ => 150.0 - 0.2539 * x + 0.2963 * y,
    };
    let planes = [steps[0], steps[1], steps[1]].into_iter().enumerate().map(|(channel, step)| {
        let [columns, rows] =
            [(width - origin[0]).div_ceil(step), (height - origin[1]).div_ceil(step)];
        let (wide, step) = (columns as usize + 5, f64::from(step));
        let middle = |i: u32, origin: u32| f64::from(origin) + (f64::from(i) + 0.5) * step;
        let mut data = vec![0; wide * rows as usize + 64];
        for (y, row) in (0..rows).zip(data.chunks_exact_mut(wide)) {
            for (x, sample) in (0..columns).zip(row) {
                *sample = value(channel, middle(x, origin[0]), middle(y, origin[1])).round() as u8;
            }
        }
        let (width, height, origin) = (columns as usize, rows as usize, origin.map(f64::from));
        Plane { data, stride: wide, width, height, step: [step; 2], origin }
    });
    let pixel = |i: u32| {
        let (x, y) = (f64::from(i % width) + 0.5, f64::from(i / width) + 0.5);
        let [luma, cb, cr] = [0, 1, 2].map(|channel| value(channel, x, y));
        let (cb, cr) = (cb - 128.0, cr - 128.0);
        let rgb = [luma + 1.402 * cr, luma - 0.344_136 * cb - 0.714_136 * cr, luma + 1.772 * cb];
        rgb.map(|x| x.round() as u8)
    };
    let data = (0..width * height).flat_map(pixel).collect();
    (planes.collect::<Vec<_>>().try_into().unwrap(), Rgb8 { width, height, data })
}

/// A slope stays a slope at any scale, so planes of any step that begin anywhere must give the
/// picture that RGB gives, but for roundings: a plane's samples and its two passes err by 0.5
/// each, which the conversion multiplies by up to 2.8 in all, and RGB errs by 1.5. Roundings
/// cancel over a channel, but planes that lie half a pixel beside the picture move all of it: by
/// 0.43 (luma), by 0.27 (blue, by chroma). The outermost pixels are left out: there a filter is
/// cut, by another length at another step.
/// The part's sides are such that samples are met at every phase: half-way between two, sums of
/// 8-bit samples would all be rounded the same way.
#[test]
fn planes_of_any_step_lie_where_the_picture_does() {
    let part = CropBox { top: 21, left: 17, height: 87, width: 94 };
    for steps in [[1, 1], [1, 2], [2, 2], [2, 4]] {
        for (flip, origin) in [(false, [0, 0]), (true, [0, 0]), (false, [16, 8]), (true, [8, 16])] {
            let (planes, image) = smooth(131, 120, steps, origin);
            let left = if flip { image.width - part.left - part.width } else { part.left };
            let draws = Draws { flip, ..plain(CropBox { left, ..part }) };
            let exact = rgb_row(Fidelity::Exact, &image, &draws);
            let fast = planes_row(&planes, [image.width, image.height], &draws);
            let inner = |row: &[f32]| -> Vec<f32> {
                let is_inner = |i: usize| (3..SIZE - 3).contains(&i);
                let wanted = |&i: &usize| is_inner(i % SIZE) && is_inner(i / SIZE % SIZE);
                (0..row.len()).filter(wanted).map(|i| row[i]).collect()
            };
            let (max, mean) = difference(&inner(&exact), &inner(&fast));
            println!("steps {steps:?} origin {origin:?} flip {flip}: max {max:.2} mean {mean:.2}");
            assert!(max <= 5.7 && mean <= 0.9, "{steps:?} {origin:?} {flip}: {max}, {mean}");
            let sides = [inner(&exact), inner(&fast)];
            let channel = sides[0].len() / 3;
            for (exact, fast) in sides[0].chunks(channel).zip(sides[1].chunks(channel)) {
                let shift: f32 = fast.iter().zip(exact).map(|(a, b)| a - b).sum();
                let shift = shift / channel as f32;
                assert!(shift.abs() <= 0.1, "{steps:?} {origin:?} {flip}: {shift}");
            }
        }
    }
}

/// A plane that is missing is grey; a picture of one sample is enlarged; none of it panics.
#[test]
fn odd_planes_pass() {
    let one = |value| Plane {
        data: vec![value; 1 + 64],
        stride: 1,
        width: 1,
        height: 1,
        step: [8.0; 2],
        origin: [0.0; 2],
    };
    let planes = [one(90), Plane::default(), Plane::default()];
    for crop in [Some(CropBox { top: 1, left: 2, height: 3, width: 1 }), None] {
        let (jitter, gray, blur_sigma) = (None, false, Some(1.5));
        let draws = Draws { flip: true, crop, jitter, gray, blur_sigma };
        let row = planes_row(&planes, [5, 7], &draws);
        assert!(row.iter().all(|x| (x - 90.0).abs() < 0.01), "{crop:?}");
    }
}

/// Halved as often as the part stays as large as the result.
#[test]
fn parts_are_halved_while_they_are_large_enough() {
    let transform = transform(224, Augment::clip(), Fidelity::Fast);
    let halvings = |width, height| transform.halvings(CropBox { top: 0, left: 0, height, width });
    let sides = [223, 447, 448, 895, 896, 1791, 1792, 60_000];
    assert_eq!(sides.map(|side| halvings(side, 60_000)), [0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(halvings(60_000, 448), 1);
}

/// Prints the difference on photographs of your own:
/// `ROCLIP_PHOTOS=folder cargo test --release --test main -- --ignored --nocapture photographs`.
#[test]
#[ignore = "needs a folder of JPEG files"]
fn difference_on_photographs() {
    let folder = std::env::var_os("ROCLIP_PHOTOS").expect("ROCLIP_PHOTOS names a folder");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for (name, augment) in [("clip", Augment::clip()), ("roclip", Augment::roclip())] {
        let [exact, fast] =
            [Fidelity::Exact, Fidelity::Fast].map(|f| transform(224, augment.clone(), f));
        let (mut counts, mut sum, mut signed, mut values) = ([0u64; 2560], 0.0, 0.0, 0u64);
        for (n, file) in files.iter().enumerate() {
            let Some([a, b]) = both_rows(&std::fs::read(file).unwrap(), &exact, &fast, n) else {
                continue;
            };
            for (a, b) in a.iter().zip(&b) {
                let difference = f64::from((a - b).abs());
                counts[(difference * 10.0) as usize] += 1;
                (sum, signed) = (sum + difference, signed + f64::from(b - a));
            }
            values += a.len() as u64;
        }
        let percentile = |p: f64| {
            let mut below = 0;
            let is_above = |count: &u64| {
                below += count;
                below as f64 > p * values as f64
            };
            counts.iter().position(is_above).unwrap_or_default() as f64 / 10.0
        };
        let (mean, shift) = (sum / values as f64, signed / values as f64);
        let [median, most] = [percentile(0.5), percentile(0.999)];
        let pictures = values / (3 * 224 * 224);
        println!(
            "{name}: {pictures} pictures, in 255ths: mean {mean:.2}, shift {shift:+.2}, \
                  median {median:.1}, 99.9th percentile {most:.1}"
        );
    }
}

fn both_rows(file: &[u8], exact: &Transform, fast: &Transform, n: usize) -> Option<[Vec<f32>; 2]> {
    let encoded = Encoded::open(file, &DecodeLimits::default()).ok()?;
    let (width, height) = (encoded.width(), encoded.height());
    let mut rng = Rng::new(1, Domain::Image, 0, n as u64);
    let draws = Draws::new(&exact.config().train, width, height, &mut rng);
    let part = draws.part(width, height);
    let (mut decoding, mut scratch) = (jpeg::Scratch::default(), Scratch::default());
    let (mut image, mut planes, mut resized) =
        (Rgb8::default(), <[Plane; 3]>::default(), Resized::default());
    let at = encoded.rgb(part, &mut decoding, &mut image).ok()?;
    let mut rows = [(); 2].map(|()| vec![0.0; 3 * 224 * 224]);
    exact.augment(&image, at, &draws, &mut scratch, &mut resized);
    exact.finish(&resized, &mut rows[0]);
    if !encoded.planes(part, fast.halvings(part), &mut decoding, &mut planes).ok()? {
        return None;
    }
    fast.augment_planes(&planes, part, &draws, &mut scratch, &mut resized);
    fast.finish(&resized, &mut rows[1]);
    Some(rows)
}
