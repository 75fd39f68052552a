//! Goal: pictures reach the model as Pillow and torchvision would hand them over.
//! Method: values that Pillow and torchvision computed (`golden/make_transform.py`), and the laws
//! that the random draws must follow.

use roclip::data::decode::Rgb8;
use roclip::data::transform::blur::Blur;
use roclip::data::transform::color::{Adjust, grayscale};
use roclip::data::transform::draws::{CropBox, crop_box};
use roclip::data::transform::resize::{Interpolation, Resizer, flip_horizontal};
use roclip::data::transform::{
    Augment, Draws, Fidelity, Resized, Scratch, Transform, TransformConfig,
};
use roclip::rng::{Domain, Rng};
use sha2::{Digest, Sha256};

use crate::common::golden;
use crate::common::pictures::{Pictures, cut, difference, planes};

/// The colour operations are exact; the blur is within 1/255 (see `blur`).
#[test]
fn single_operations_agree_with_torchvision() {
    let golden = Pictures::open("transform.safetensors");
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
        "blur_narrow" => Blur::default().apply(samples, size, 21, 0.1, 1e-6),
        "blur_middle" => Blur::default().apply(samples, size, 21, 0.83, 1e-6),
        "blur_wide" => Blur::default().apply(samples, size, 21, 2.0, 1e-6),
        "blur_small" => Blur::default().apply(samples, size, 3, 0.7, 1e-6),
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
const BOTH: [Fidelity; 2] = [Fidelity::Exact, Fidelity::Fast];
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
    let golden = Pictures::open("transform.safetensors");
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

/// The generator's `noise`: black, white and what lies between.
fn noise(width: u32, height: u32, mut state: u32) -> Rgb8 {
    let mut sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match (state >> 24) as u8 {
            0..64 => 0,
            192.. => 255,
            value => value,
        }
    };
    Rgb8 { width, height, data: (0..3 * width * height).map(|_| sample()).collect() }
}

/// Parts and centres of noise, mirrored or not, shrunk and enlarged, of lines of one pixel and of
/// sizes that no vector divides. A part gives the same whether it comes alone or in its picture.
#[test]
fn every_shape_is_resized_as_by_torchvision() {
    type Case = (u32, u32, u32, Option<[u32; 4]>, usize, String, bool, String);
    let cases: Vec<Case> = golden::json("transform_resize.json");
    assert_eq!(cases.len(), 315);
    let mut resizer = Resizer::default();
    for (seed, width, height, part, size, filter, flip, sum) in cases {
        let image = noise(width, height, seed);
        let mut ours = vec![0; 3 * size * size];
        let filter = match filter.as_str() {
            "bilinear" => Interpolation::Bilinear,
            _ => Interpolation::Bicubic,
        };
        if let Some([top, left, height, width]) = part {
            let crop = Some(CropBox { top, left, height, width });
            let (jitter, gray, blur_sigma) = (None, false, None);
            let draws = Draws { flip, crop, jitter, gray, blur_sigma };
            let part = draws.part(image.width, image.height);
            resizer.crop(&image, part, flip, filter, size, &mut ours);
            let mut alone = vec![0; ours.len()];
            let whole = CropBox { top: 0, left: 0, ..part };
            resizer.crop(&cut(&image, part), whole, flip, filter, size, &mut alone);
            assert_eq!(alone, ours);
        } else {
            resizer.centre(&image, size, &mut ours);
            if flip {
                flip_horizontal(&mut ours, size);
            }
        }
        let digest: String = Sha256::digest(&ours).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, sum, "{width}x{height}, {part:?} to {size}, {filter:?}, flip {flip}");
    }
}

/// The evaluation transform on sizes with odd offsets, extreme aspects and one pixel.
#[test]
fn evaluation_equals_torchvision() {
    let golden = Pictures::open("transform.safetensors");
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
    let golden = Pictures::open("transform.safetensors");
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
    let golden = Pictures::open("transform.safetensors");
    let large = golden.picture("large");
    let mut config = TransformConfig::new(SIZE, Augment::roclip());
    (config.mean, config.std) = ([0.0; 3], [1.0; 3]);
    config.fidelity = Fidelity::Exact;
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
    let golden = Pictures::open("transform.safetensors");
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
    let golden = Pictures::open("transform.safetensors");
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
            for (size, fidelity) in
                [1, 2, 7, 64].into_iter().flat_map(|size| BOTH.map(|fidelity| (size, fidelity)))
            {
                let config = TransformConfig::new(size, train.clone());
                let transform = Transform::new(TransformConfig { fidelity, ..config }).unwrap();
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
    let golden = Pictures::open("transform.safetensors");
    let large = golden.picture("large");
    for fidelity in BOTH {
        let config = TransformConfig::new(32, Augment::roclip());
        let transform = Transform::new(TransformConfig { fidelity, ..config }).unwrap();
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
}
