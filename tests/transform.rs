//! Goal: pictures reach the model as Pillow and torchvision would hand them over, and no file can
//! hurt us on the way.
//! Method: values that Pillow and torchvision computed (`golden/make_transform.py`), the laws that
//! the random draws must follow, and a few thousand damaged files.

use roclip::data::decode::{DecodeError, DecodeLimits, Rgb8, decode};
use roclip::data::transform::blur::Blur;
use roclip::data::transform::color::{Adjust, grayscale};
use roclip::data::transform::draws::{CropBox, crop_box};
use roclip::data::transform::resize::{Interpolation, Resizer, flip_horizontal};
use roclip::data::transform::{Augment, Draws, Resized, Scratch, Transform, TransformConfig};
use roclip::rng::{Domain, Rng};
use safetensors::SafeTensors;

/// The tensors of one golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }

    /// Names that end in `suffix`, without it.
    fn names(&self, suffix: &str) -> Vec<String> {
        let tensors = self.tensors();
        let names = tensors.names().into_iter();
        let mut names: Vec<_> =
            names.filter_map(|n| n.strip_suffix(suffix)).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).expect("a tensor of that name").data().to_vec()
    }

    /// A `[H, W, 3]` picture.
    fn picture(&self, name: &str) -> Rgb8 {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect("a tensor of that name");
        let &[height, width, 3] = tensor.shape() else { panic!("{name} is no picture") };
        Rgb8 { width: width as u32, height: height as u32, data: tensor.data().to_vec() }
    }
}

/// Largest and mean difference of two pictures, in steps of 1/255.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = pairs.clone().map(u64::from).sum();
    (pairs.max().unwrap_or(0), sum as f64 / ours.len() as f64)
}

/// JPEG: the bound is 4/255 and a mean of 0.5, for the decoders differ in the inverse transform
/// (1/255 a component) and in the upsampling of chroma, whose error the conversion to RGB
/// multiplies by up to 1.77. Without chroma (grey) or conversion (RGB, CMYK) 1/255 is left.
/// PNG and WebP: exact.
#[test]
fn decoders_agree_with_pillow() {
    let golden = Golden::open("decode.safetensors");
    let names = golden.names(".file");
    assert_eq!(names.len(), 31);
    for name in names {
        let ours = decode(&golden.bytes(&format!("{name}.file")), &DecodeLimits::default());
        let ours = ours.unwrap_or_else(|e| panic!("{name}: {e}"));
        let theirs = golden.picture(&format!("{name}.rgb"));
        assert_eq!((ours.width, ours.height), (theirs.width, theirs.height));
        let (max, mean) = difference(&ours.data, &theirs.data);
        println!("{name:26} max {max} mean {mean:.3}");
        let bound = match name.as_str() {
            "jpeg_cmyk" | "jpeg_adobe_rgb" | "jpeg_adobe_rgb_numbered" => (1, 0.1),
            name if name.starts_with("jpeg_grey") => (1, 0.1),
            name if name.starts_with("jpeg") => (4, 0.5),
            _ => (0, 0.0),
        };
        assert!(max <= bound.0 && mean <= bound.1, "{name}: max {max}, mean {mean}");
    }
}

/// A file that is cut anywhere is refused, as Pillow refuses it; never completed with grey.
#[test]
fn truncated_files_are_refused() {
    let golden = Golden::open("decode.safetensors");
    for name in golden.names(".file") {
        let file = golden.bytes(&format!("{name}.file"));
        let whole = decode(&file, &DecodeLimits::default()).expect("it is whole");
        for end in 0..file.len() {
            match decode(&file[..end], &DecodeLimits::default()) {
                Err(_) => {}
                // What is behind the last pixel (PNG's end chunk, bytes after a JPEG) may go.
                Ok(picture) => assert!(picture == whole, "{name} cut at {end} of {}", file.len()),
            }
        }
        if name.starts_with("jpeg") && name != "jpeg_trailing" {
            let error = decode(&file[..file.len() - 1], &DecodeLimits::default()).unwrap_err();
            assert_eq!(error.reason(), "truncated-or-corrupt", "{name}");
        }
    }
}

/// Two flips at every position of every file: an error or a picture of the declared size.
#[test]
fn damaged_files_never_panic() {
    let golden = Golden::open("decode.safetensors");
    let limits = DecodeLimits { max_pixels: 100_000, ..DecodeLimits::default() };
    let mut refused = 0;
    for name in golden.names(".file") {
        let file = golden.bytes(&format!("{name}.file"));
        for at in 0..file.len() {
            for flip in [0xFF, 1 << (at % 8)] {
                let mut damaged = file.clone();
                damaged[at] ^= flip;
                match decode(&damaged, &limits) {
                    Ok(Rgb8 { width, height, data }) => {
                        assert_eq!(data.len(), width as usize * height as usize * 3);
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 10_000, "only {refused} were refused");
}

#[test]
fn refusals_have_names() {
    let limits = DecodeLimits { max_bytes: 1000, ..DecodeLimits::default() };
    let reason = |bytes: &[u8]| decode(bytes, &limits).unwrap_err().reason();
    assert_eq!(reason(b""), "empty");
    assert_eq!(reason(b"<!DOCTYPE html><html>"), "not-an-image");
    assert_eq!(reason(b"GIF89a"), "unsupported");
    assert_eq!(reason(&[0xFF; 1001]), "too-many-bytes");
    assert_eq!(reason(b"\xFF\xD8\xFF\xD9"), "truncated-or-corrupt");
    let html = decode(b"<!DOCTYPE html><html>", &limits).unwrap_err();
    assert_eq!(html.to_string(), "not a picture: it begins with \"<!DOCTYPE html><\"");
}

/// Headers that promise more than the limit are refused on the header alone: what follows it is
/// missing or absurd, and is not looked at.
#[test]
fn pixel_bombs_cost_nothing() {
    let png = |width: u32, height: u32| {
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR".to_vec();
        file.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
        file
    };
    let vp8x = |width: u32, height: u32| {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0A\0\0\0\0\0\0\0".to_vec();
        file.extend(&(width - 1).to_le_bytes()[..3]);
        file.extend(&(height - 1).to_le_bytes()[..3]);
        file
    };
    // A canvas of one pixel around a bitstream of 16383 x 16383.
    let mut nested = vp8x(1, 1);
    nested.extend(b"VP8 \x0A\0\0\0\0\0\0\x9D\x01\x2A\xFF\x3F\xFF\x3F");
    let mut framed = vp8x(1, 1);
    framed.extend(b"ANMF\x1D\0\0\0................VP8L\x05\0\0\0\x2F\xFF\xFF\xFF\x0F");
    let jpeg = b"\xFF\xD8\xFF\xC0\0\x0B\x08\xFF\xFF\xFF\xFF\x01\x01\x11\0\xFF\xD9";
    let bombs = [
        png(13_000, 13_000),
        png(u32::MAX, u32::MAX),
        png(70_000, 1),
        vp8x(1 << 24, 1 << 24),
        nested,
        framed,
        jpeg.to_vec(),
    ];
    for (i, bomb) in bombs.iter().enumerate() {
        let error = decode(bomb, &DecodeLimits::default()).unwrap_err();
        assert!(matches!(error, DecodeError::TooManyPixels { .. }), "bomb {i}: {error}");
    }
}

/// Every scan visits every block again, so a file of a few kilobytes could take minutes.
#[test]
fn too_many_scans_are_refused() {
    let golden = Golden::open("decode.safetensors");
    let mut file = golden.bytes("jpeg_progressive.file");
    let end = file.len() - 2;
    let scan = b"\xFF\xDA\0\x08\x01\x01\0\0\0\0";
    file.splice(end..end, scan.iter().copied().cycle().take(scan.len() * 100));
    let error = decode(&file, &DecodeLimits::default()).unwrap_err();
    assert!(error.to_string().contains("scans in one JPEG, limit 64"), "{error}");
}

/// `[H, W, 3]` to `[3, H, W]`.
fn planes(picture: &Rgb8) -> Vec<u8> {
    let channel = |c| picture.data.iter().skip(c).step_by(3).copied();
    channel(0).chain(channel(1)).chain(channel(2)).collect()
}

/// The colour operations are exact; the blur is within 1/255 (see `blur`).
#[test]
fn single_operations_agree_with_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let small = golden.picture("small");
    let size = [small.height as usize, small.width as usize];
    let operation = |name: &str, samples: &mut [u8]| match name {
        "brightness_down" => Adjust::Brightness(0.55).apply(samples),
        "brightness_up" => Adjust::Brightness(1.45).apply(samples),
        "contrast_down" => Adjust::Contrast(0.55).apply(samples),
        "contrast_up" => Adjust::Contrast(1.45).apply(samples),
        "saturation_down" => Adjust::Saturation(0.55).apply(samples),
        "saturation_up" => Adjust::Saturation(1.45).apply(samples),
        "hue_down" => Adjust::Hue(-0.083).apply(samples),
        "hue_up" => Adjust::Hue(0.1).apply(samples),
        "hue_zero" => Adjust::Hue(0.0).apply(samples),
        "gray" => grayscale(samples),
        "flip" => flip_horizontal(samples, size[1]),
        "blur_narrow" => Blur::default().apply(samples, size, 21, 0.1),
        "blur_middle" => Blur::default().apply(samples, size, 21, 0.83),
        "blur_wide" => Blur::default().apply(samples, size, 21, 2.0),
        "blur_small" => Blur::default().apply(samples, size, 3, 0.7),
        _ => panic!("no operation is called {name}"),
    };
    let tensors = golden.tensors();
    let names: Vec<_> = tensors.names().into_iter().filter_map(|n| n.strip_prefix("op.")).collect();
    assert_eq!(names.len(), 15);
    for name in names {
        let mut ours = planes(&small);
        operation(name, &mut ours);
        let (max, mean) = difference(&ours, &planes(&golden.picture(&format!("op.{name}"))));
        println!("{name:16} max {max} mean {mean:.5}");
        let bound = if name.starts_with("blur") { 1 } else { 0 };
        assert!(max <= bound && mean < 0.01, "{name}: max {max}, mean {mean}");
    }
}

const SIZE: usize = 16;
const PARTS: [(&str, CropBox); 6] = [
    ("shrunk", CropBox { top: 5, left: 7, height: 40, width: 50 }),
    ("grown", CropBox { top: 10, left: 12, height: 9, width: 12 }),
    ("same", CropBox { top: 3, left: 4, height: 16, width: 16 }),
    ("whole", CropBox { top: 0, left: 0, height: 47, width: 61 }),
    ("flat", CropBox { top: 20, left: 15, height: 10, width: 44 }),
    ("pixel", CropBox { top: 46, left: 60, height: 1, width: 1 }),
];

#[test]
fn resized_crops_equal_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let large = golden.picture("large");
    let mut resizer = Resizer::default();
    for (name, part) in PARTS {
        for (filter, interpolation) in
            [("bilinear", Interpolation::Bilinear), ("bicubic", Interpolation::Bicubic)]
        {
            let mut ours = [0; 3 * SIZE * SIZE];
            resizer.crop(&large, part, false, interpolation, SIZE, &mut ours);
            let theirs = planes(&golden.picture(&format!("crop.{name}.{filter}")));
            assert_eq!(ours, *theirs, "{name} {filter}");
        }
    }
}

/// The evaluation transform on sizes with odd offsets, extreme aspects and one pixel.
#[test]
fn evaluation_equals_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let names: Vec<_> = golden.names(".file");
    assert_eq!(names.len(), 9);
    for name in names {
        let mut ours = [0; 3 * SIZE * SIZE];
        let image = golden.picture(&format!("{name}.file"));
        Resizer::default().centre(&image, SIZE, &mut ours);
        assert_eq!(ours, *planes(&golden.picture(&format!("{name}.rgb"))), "{name}");
    }
}

/// `ToTensor` and `Normalize`, bit for bit.
#[test]
fn normalisation_equals_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let transform = Transform::new(TransformConfig::new(SIZE, Augment::none())).unwrap();
    let mut out = vec![0.0; 3 * SIZE * SIZE];
    transform.eval(&golden.picture("eval.16x16.file"), &mut Scratch::default(), &mut out);
    let theirs = golden.bytes("normalised.16x16");
    let theirs: Vec<f32> =
        theirs.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(out, theirs);
}

/// RoCLIP's whole chain from the same draws. Only the blur may differ, by 1/255.
#[test]
fn whole_chains_agree_with_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let large = golden.picture("large");
    let mut config = TransformConfig::new(SIZE, Augment::roclip());
    (config.mean, config.std) = ([0.0; 3], [1.0; 3]);
    let transform = Transform::new(config).unwrap();
    let jitter = [
        Adjust::Contrast(1.3),
        Adjust::Hue(-0.06),
        Adjust::Brightness(0.7),
        Adjust::Saturation(1.4),
    ];
    let chain = |part: usize, flip, gray, sigma| Draws {
        flip,
        crop: Some(PARTS[part].1),
        jitter: Some(jitter.map(Some)),
        gray,
        blur_sigma: Some(sigma),
    };
    let mut scratch = Scratch::default();
    let mut resized = Resized::default();
    for (name, draws) in [
        ("same", chain(2, true, false, 1.1)),
        ("gray", chain(2, false, true, 0.4)),
        ("shrunk", chain(0, true, false, 1.1)),
    ] {
        let mut row = [0.0; 3 * SIZE * SIZE];
        let part = draws.part(large.width, large.height);
        transform.augment(&large, part, &draws, &mut scratch, &mut resized);
        transform.finish(&resized, &mut row);
        let ours = row.map(|x| (x * 255.0).round() as u8);
        let (max, mean) = difference(&ours, &planes(&golden.picture(&format!("chain.{name}"))));
        println!("{name:8} max {max} mean {mean:.3}");
        assert!(max <= 1 && mean <= 0.01, "{name}: max {max}, mean {mean}");
    }
}

/// Mean of top, left, height and width of 20 000 boxes against torchvision's 20 000: within five
/// standard errors of the difference.
#[test]
fn random_boxes_follow_torchvision_law() {
    let golden = Golden::open("transform.safetensors");
    let n = 20_000;
    let third = (3.0 / 4.0, 4.0 / 3.0);
    for (name, (width, height), scale, ratio) in [
        ("roclip", (224, 224), (0.08, 1.0), third),
        ("clip", (500, 375), (0.9, 1.0), third),
        ("tall", (40, 300), (0.1, 0.6), (0.5, 2.0)),
    ] {
        let mut rng = Rng::new(11, Domain::Image, 0, 0);
        let (mut sum, mut squares) = ([0.0; 4], [0.0; 4]);
        for _ in 0..n {
            let CropBox { top, left, height: h, width: w } =
                crop_box(width, height, scale, ratio, &mut rng);
            assert!(h >= 1 && w >= 1 && top + h <= height && left + w <= width);
            for (i, x) in [top, left, h, w].map(f64::from).into_iter().enumerate() {
                sum[i] += x;
                squares[i] += x * x;
            }
        }
        let theirs = golden.bytes(&format!("boxes.{name}"));
        let theirs: Vec<f64> =
            theirs.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        for i in 0..4 {
            let mean = sum[i] / f64::from(n);
            let variance = squares[i] / f64::from(n) - mean * mean;
            let error = ((variance + theirs[4 + i].powi(2)) / f64::from(n)).sqrt();
            println!("{name} {i}: {mean:.2} {:.2} ± {error:.3}", theirs[i]);
            assert!((mean - theirs[i]).abs() < 5.0 * error, "{name} {i}: {mean} {}", theirs[i]);
        }
    }
}

/// Where ten tries fail, the box is torchvision's, for every aspect.
#[test]
fn fallback_boxes_equal_torchvision() {
    let golden = Golden::open("transform.safetensors");
    let rows = golden.bytes("fallback");
    let rows: Vec<u32> =
        rows.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
    let mut rng = Rng::new(1, Domain::Image, 0, 0);
    for &[width, height, top, left, h, w] in rows.as_chunks().0 {
        let ours = crop_box(width, height, (5.0, 5.0), (3.0 / 4.0, 4.0 / 3.0), &mut rng);
        assert_eq!(ours, CropBox { top, left, height: h, width: w }, "{width}x{height}");
        // An extreme aspect leaves no other way at the usual areas either.
        if width.max(height) >= 100 * width.min(height) {
            let usual = crop_box(width, height, (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0), &mut rng);
            assert_eq!(usual, ours, "{width}x{height}");
        }
    }
}

/// Each probability and the mean of each factor, within five standard errors.
#[test]
fn draws_follow_their_laws() {
    let n = 20_000;
    let augment = Augment::roclip();
    let mut rng = Rng::new(5, Domain::Image, 0, 0);
    let (mut flips, mut jitters, mut grays, mut sigma) = (0, 0, 0, 0.0);
    let mut factors = [0.0; 4];
    let mut first = [0; 4];
    for _ in 0..n {
        let draws = Draws::new(&augment, 224, 224, &mut rng);
        flips += u32::from(draws.flip);
        grays += u32::from(draws.gray);
        let drawn = draws.blur_sigma.expect("the blur is always applied");
        assert!((0.1..2.0).contains(&drawn));
        sigma += drawn;
        for (place, step) in draws.jitter.iter().flatten().flatten().enumerate() {
            let (kind, factor, low, high) = match *step {
                Adjust::Brightness(x) => (0, f64::from(x), 0.5, 1.5),
                Adjust::Contrast(x) => (1, f64::from(x), 0.5, 1.5),
                Adjust::Saturation(x) => (2, f64::from(x), 0.5, 1.5),
                Adjust::Hue(x) => (3, x, -0.1, 0.1),
            };
            assert!((low..=high).contains(&factor), "{step:?}");
            factors[kind] += (factor - low) / (high - low);
            first[kind] += u32::from(place == 0);
        }
        jitters += u32::from(draws.jitter.is_some());
    }
    let n = f64::from(n);
    let follows = |count: u32, of: f64, p: f64| {
        assert!((f64::from(count) - of * p).abs() < 5.0 * (of * p * (1.0 - p)).sqrt(), "{count}");
    };
    follows(flips, n, 0.5);
    follows(jitters, n, 0.8);
    follows(grays, n, 0.2);
    first.iter().for_each(|&count| follows(count, f64::from(jitters), 0.25));
    let uniform = |sum: f64, count: f64| {
        assert!((sum / count - 0.5).abs() < 5.0 * (1.0 / 12.0 / count).sqrt(), "{sum}/{count}");
    };
    factors.iter().for_each(|&sum| uniform(sum, f64::from(jitters)));
    uniform((sigma - 0.1 * n) / 1.9, n);
}

/// No picture that decodes can stop a worker, whatever its shape and whatever is asked for.
#[test]
fn every_shape_passes_every_preset() {
    let shapes = [(1, 1), (1, 2), (2, 1), (2000, 8), (8, 2000), (65_535, 1), (1, 65_535), (3, 5)];
    let mut scratch = Scratch::default();
    for (width, height) in shapes {
        let data = (0..width * height * 3).map(|i| (i % 251) as u8).collect();
        let image = Rgb8 { width, height, data };
        for train in [Augment::roclip(), Augment::clip(), Augment::none()] {
            for size in [1, 2, 7, 64] {
                let transform = Transform::new(TransformConfig::new(size, train.clone())).unwrap();
                let mut out = vec![f32::NAN; 3 * size * size];
                for sample in 0..4 {
                    let mut rng = Rng::new(3, Domain::Image, 0, sample);
                    transform.train(&image, &mut rng, &mut scratch, &mut out);
                    assert!(out.iter().all(|x| x.is_finite()), "{width}x{height} at {size}");
                }
                transform.eval(&image, &mut scratch, &mut out);
                assert!(out.iter().all(|x| x.is_finite()), "{width}x{height} at {size}");
            }
        }
    }
}

/// The same stream gives the same picture, whatever the worker did before.
#[test]
fn training_pictures_depend_on_their_stream_alone() {
    let golden = Golden::open("transform.safetensors");
    let large = golden.picture("large");
    let transform = Transform::new(TransformConfig::new(32, Augment::roclip())).unwrap();
    let picture = |sample, scratch: &mut Scratch| {
        let mut out = vec![0.0; 3 * 32 * 32];
        transform.train(&large, &mut Rng::new(1, Domain::Image, 2, sample), scratch, &mut out);
        out
    };
    let mut used = Scratch::default();
    for sample in 0..20 {
        let fresh = picture(sample, &mut Scratch::default());
        assert_eq!(picture(sample, &mut used), fresh);
        assert_ne!(picture(sample + 1, &mut used), fresh);
    }
}
