//! Goal: our JPEG decoder gives libjpeg-turbo's pixels, of any part, and no bytes can hurt it.
//! Method: pictures that Pillow decoded (`golden/make_jpeg.py`), parts against the whole, files
//! cut at every byte, and tens of thousands of damaged files.

use crate::common::{alloc, golden};
use roclip::data::decode::Rgb8;
use roclip::data::jpeg::{Budget, Jpeg, JpegError, Plane, Scratch};
use roclip::data::transform::draws::CropBox;
use roclip::rng::{Domain, Rng};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

const BUDGET: Budget = Budget { max_scans: 64, deadline: None };

/// A file with what Pillow made of it.
struct Case {
    name: String,
    file: Vec<u8>,
    rgb: Vec<u8>,
    /// Sums of the planes at 1/2, 1/4 and 1/8; empty where there are none.
    planes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in ["sequential", "progressive"] {
        let bytes = golden::read(&format!("jpeg_{kind}.safetensors"));
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let data = |name: String| tensors.tensor(&name).map(|t| t.data().to_vec());
        for name in tensors.names().into_iter().filter_map(|name| name.strip_suffix(".file")) {
            cases.push(Case {
                name: format!("{kind} {name}"),
                file: data(format!("{name}.file")).expect("the file"),
                rgb: data(format!("{name}.rgb")).expect("its sum"),
                planes: data(format!("{name}.planes")).unwrap_or_default(),
            });
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

/// The cases of these names.
fn some(names: &[&str]) -> Vec<Case> {
    let chosen: Vec<_> =
        cases().into_iter().filter(|case| names.contains(&case.name.as_str())).collect();
    assert_eq!(chosen.len(), names.len());
    chosen
}

fn whole(jpeg: &Jpeg) -> CropBox {
    CropBox { top: 0, left: 0, height: jpeg.height(), width: jpeg.width() }
}

fn rgb(file: &[u8], scratch: &mut Scratch) -> Result<Rgb8, JpegError> {
    let jpeg = Jpeg::parse(file)?;
    let mut out = Rgb8::default();
    jpeg.rgb(whole(&jpeg), &BUDGET, scratch, &mut out)?;
    Ok(out)
}

fn planes(
    file: &[u8],
    part: Option<CropBox>,
    halvings: u32,
    scratch: &mut Scratch,
) -> Result<[Plane; 3], JpegError> {
    let jpeg = Jpeg::parse(file)?;
    let mut planes = Default::default();
    jpeg.planes(part.unwrap_or(whole(&jpeg)), halvings, &BUDGET, scratch, &mut planes)?;
    Ok(planes)
}

/// A number below `n`.
fn below(rng: &mut Rng, n: u32) -> u32 {
    rng.below(u64::from(n)) as u32
}

/// The valid samples of a plane.
fn samples(plane: &Plane) -> impl Iterator<Item = &[u8]> {
    plane.data.chunks(plane.stride.max(1)).take(plane.height).map(|row| &row[..plane.width])
}

#[test]
fn pixels_are_pillows() {
    let mut scratch = Scratch::default();
    let cases = cases();
    assert_eq!(cases.len(), 95);
    for case in cases {
        let ours = rgb(&case.file, &mut scratch).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(Sha256::digest(&ours.data)[..], case.rgb, "{}", case.name);
    }
}

/// libjpeg's own reduced transforms, and its rule for chroma stored at half the size.
#[test]
fn reduced_planes_are_libjpegs() {
    let mut scratch = Scratch::default();
    let cases: Vec<_> = cases().into_iter().filter(|case| !case.planes.is_empty()).collect();
    assert_eq!(cases.len(), 20);
    for case in cases {
        for (halvings, sum) in (1..).zip(case.planes.chunks(32)) {
            let planes = planes(&case.file, None, halvings, &mut scratch).expect("planes");
            let mut hash = Sha256::new();
            planes.iter().flat_map(samples).for_each(|row| hash.update(row));
            assert_eq!(hash.finalize()[..], *sum, "{} at 1/{}", case.name, 1 << halvings);
            let step = f64::from(1 << halvings);
            assert_eq!(planes[0].step, [step; 2]);
        }
    }
}

#[test]
fn a_part_is_the_crop_of_the_whole() {
    let names = ["420", "422", "440", "444"].map(|kind| format!("sequential 17x15_{kind}"));
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.extend(["sequential 17x15_411", "progressive 15x17_422", "sequential 15x17_grey"]);
    let (mut scratch, mut out) = (Scratch::default(), Rgb8::default());
    for case in some(&names) {
        let all = rgb(&case.file, &mut scratch).expect("a picture");
        let jpeg = Jpeg::parse(&case.file).expect("headers");
        let (width, height) = (jpeg.width(), jpeg.height());
        let ranges =
            |n: u32| (0..n).flat_map(move |first| (first + 1..=n).map(move |end| (first, end)));
        for (top, bottom) in ranges(height) {
            for (left, right) in ranges(width) {
                let part = CropBox { top, left, height: bottom - top, width: right - left };
                jpeg.rgb(part, &BUDGET, &mut scratch, &mut out).expect("a part");
                let row =
                    |y: u32| 3 * (y * width + left) as usize..3 * (y * width + right) as usize;
                let crop: Vec<u8> =
                    (top..bottom).flat_map(|y| all.data[row(y)].iter().copied()).collect();
                assert!(out.data == crop, "{} {part:?}", case.name);
            }
        }
    }
}

#[test]
fn planes_of_a_part_lie_where_they_say() {
    let mut scratch = Scratch::default();
    let mut rng = Rng::new(1, Domain::Image, 0, 0);
    let names = ["sequential 33x31_420", "sequential 33x31_440", "progressive 33x31_422"];
    for case in some(&names) {
        let jpeg = Jpeg::parse(&case.file).expect("headers");
        for halvings in 0..4 {
            let all = planes(&case.file, None, halvings, &mut scratch).expect("planes");
            for _ in 0..200 {
                let mut range = |n: u32| {
                    let first = below(&mut rng, n);
                    (first, 1 + below(&mut rng, n - first))
                };
                let ((left, width), (top, height)) = (range(jpeg.width()), range(jpeg.height()));
                let part = CropBox { top, left, height, width };
                let some = planes(&case.file, Some(part), halvings, &mut scratch).expect("planes");
                for (some, all) in some.iter().zip(&all) {
                    assert_eq!(some.step, all.step);
                    assert!(some.step.iter().all(|&step| step <= f64::from(2.max(1 << halvings))));
                    let at = [0, 1].map(|i| (some.origin[i] / some.step[i]) as usize);
                    for (y, row) in samples(some).enumerate() {
                        let theirs = &all.data[(at[1] + y) * all.stride + at[0]..][..row.len()];
                        assert!(row == theirs, "{} {part:?} 1/{}", case.name, 1 << halvings);
                    }
                    let end = [some.width, some.height];
                    let [x, y] = [0, 1]
                        .map(|i| (some.origin[i], some.origin[i] + end[i] as f64 * some.step[i]));
                    assert!(x.0 <= f64::from(left) && x.1 >= f64::from(left + width));
                    assert!(y.0 <= f64::from(top) && y.1 >= f64::from(top + height));
                    assert!(some.data.len() >= some.stride * some.height + 64);
                }
            }
        }
    }
}

#[test]
fn rgb_pictures_become_ycc_planes() {
    let mut scratch = Scratch::default();
    for case in some(&["sequential rgb_adobe", "sequential rgb_names"]) {
        let pixels = rgb(&case.file, &mut scratch).expect("a picture");
        let planes = planes(&case.file, None, 0, &mut scratch).expect("planes");
        for (i, pixel) in pixels.data.chunks(3).enumerate() {
            let [r, g, b] = [0, 1, 2].map(|c| f64::from(pixel[c]));
            let luma = 0.299 * r + 0.587 * g + 0.114 * b;
            let ycc = [luma, (b - luma) / 1.772 + 128.0, (r - luma) / 1.402 + 128.0];
            let at = i / pixels.width as usize * planes[0].stride + i % pixels.width as usize;
            for (plane, expected) in planes.iter().zip(ycc) {
                // Half a step, and what 16 bits behind the point leave out.
                let error = (f64::from(plane.data[at]) - expected).abs();
                assert!(error < 0.51, "{}: {error}", case.name);
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_corrupt() {
    let mut scratch = Scratch::default();
    for case in cases().into_iter().filter(|case| !case.name.ends_with("padded")) {
        for end in 0..case.file.len() {
            let cut = rgb(&case.file[..end], &mut scratch);
            assert!(matches!(cut, Err(JpegError::Corrupt(_))), "{} at {end}: {cut:?}", case.name);
        }
    }
}

/// An end-of-image marker behind the cut does not make up for what is missing.
#[test]
fn scan_data_that_ends_early_is_corrupt() {
    let mut scratch = Scratch::default();
    for case in cases().into_iter().filter(|case| !case.name.ends_with("padded")) {
        let scan = case.file.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("a scan");
        for end in scan + 2..case.file.len() - 2 {
            let mut cut = case.file[..end].to_vec();
            cut.extend([0xFF, 0xD9]);
            let picture = rgb(&cut, &mut scratch);
            assert!(matches!(picture, Err(JpegError::Corrupt(_))), "{} at {end}", case.name);
        }
    }
}

#[test]
fn damaged_files_are_pictures_or_errors_always_the_same() {
    let mut scratch = Scratch::default();
    let mut rng = Rng::new(2, Domain::Image, 0, 0);
    let (mut pictures, mut errors) = (0, 0);
    for case in cases() {
        for _ in 0..600 {
            let mut file = case.file.clone();
            for _ in 0..1 + below(&mut rng, 4) {
                let at = below(&mut rng, file.len() as u32) as usize;
                file[at] = match below(&mut rng, 3) {
                    0 => below(&mut rng, 256) as u8,
                    1 => file[at] ^ 1 << below(&mut rng, 8),
                    _ => 0xFF,
                };
            }
            // The caller's part: no header makes it hold a huge picture.
            let Ok(jpeg) = Jpeg::parse(&file) else {
                errors += 1;
                continue;
            };
            if jpeg.width() * jpeg.height() > 1 << 16 {
                continue;
            }
            let first = rgb(&file, &mut scratch);
            assert!(first == rgb(&file, &mut Scratch::default()), "{}", case.name);
            let _ = planes(&file, None, below(&mut rng, 4), &mut scratch);
            match first {
                Ok(_) => pictures += 1,
                Err(_) => errors += 1,
            }
        }
    }
    assert!(pictures > 1000 && errors > 10_000, "{pictures} pictures, {errors} errors");
}

/// The file with the bytes behind a marker changed.
fn patched(file: &[u8], marker: u8, at: usize, value: u8) -> Vec<u8> {
    let found = file.windows(2).position(|pair| pair == [0xFF, marker]).expect("the marker");
    let mut file = file.to_vec();
    file[found + at] = value;
    file
}

#[test]
fn other_kinds_are_unsupported_by_name() {
    let case = &some(&["sequential 17x15_444"])[0];
    let sof = |at, value| patched(&case.file, 0xC0, at, value);
    let refused = [
        (sof(1, 0xC3), "lossless"),
        (sof(1, 0xC5), "hierarchical"),
        (sof(1, 0xC9), "arithmetic"),
        (sof(4, 12), "8 bits"),
        (sof(6, 0), "DNL"),
        (sof(11, 0x31), ""),
        (patched(&sof(11, 0x21), 0xC0, 14, 0x31), "whole numbers"),
        (sof(13, 1), "share a name"),
    ];
    for (file, word) in refused {
        match rgb(&file, &mut Scratch::default()) {
            Err(JpegError::Unsupported(what)) if what.contains(word) => {}
            Err(JpegError::Corrupt(_)) if word.is_empty() => {}
            other => panic!("{word}: {other:?}"),
        }
    }
}

#[test]
fn contradictions_are_corrupt() {
    let mut scratch = Scratch::default();
    let case = &some(&["sequential 17x15_420"])[0];
    let progressive = &some(&["progressive 15x17_422"])[0];
    let files = [
        ("width 0", patched(&case.file, 0xC0, 8, 0)),
        ("a factor of 0", patched(&case.file, 0xC0, 11, 0x02)),
        ("a table that is not there", patched(&case.file, 0xC0, 12, 3)),
        ("a scan of nobody", patched(&case.file, 0xDA, 5, 9)),
        ("a component twice", patched(&case.file, 0xDA, 7, 1)),
        ("Huffman tables that are not there", patched(&case.file, 0xDA, 6, 0x33)),
        ("a band past the block", patched(&progressive.file, 0xDA, 12, 64)),
        ("bits that are not next", patched(&progressive.file, 0xDA, 13, 0x21)),
        ("bits left out", patched(&progressive.file, 0xDA, 13, 0x31)),
        ("codes that do not fit", patched(&case.file, 0xC4, 5, 3)),
    ];
    for (what, file) in files {
        let got = rgb(&file, &mut scratch);
        assert!(matches!(got, Err(JpegError::Corrupt(_))), "{what}: {got:?}");
    }
}

/// libjpeg smooths such a picture over; a reader of the whole file would see it.
#[test]
fn an_unfinished_picture_is_unsupported() {
    let case = &some(&["progressive 33x31_444"])[0];
    let last = case.file.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("a scan");
    let file = [&case.file[..last], &[0xFF, 0xD9]].concat();
    let got = rgb(&file, &mut Scratch::default());
    assert!(matches!(got, Err(JpegError::Unsupported(_))), "{got:?}");
}

/// A component alone is not interleaved (A.2.2).
#[test]
fn sampling_factors_of_a_grey_picture_mean_nothing() {
    let case = &some(&["sequential 15x17_grey"])[0];
    let other = patched(&case.file, 0xC0, 11, 0x22);
    let scratch = &mut Scratch::default();
    assert_eq!(rgb(&other, scratch), rgb(&case.file, scratch));
}

#[test]
fn restart_markers_must_be_where_they_belong() {
    let mut scratch = Scratch::default();
    let case = &some(&["sequential 33x31_420_restart"])[0];
    rgb(&case.file, &mut scratch).expect("a picture");
    for number in 0..2 {
        let other = patched(&case.file, 0xD0 | number, 1, 0xD5);
        assert!(matches!(rgb(&other, &mut scratch), Err(JpegError::Corrupt(_))));
        let gone = patched(&case.file, 0xD0 | number, 0, 0x00);
        assert!(matches!(rgb(&gone, &mut scratch), Err(JpegError::Corrupt(_))));
        let at = case.file.windows(2).position(|pair| pair == [0xFF, 0xD0 | number]);
        let mut more = case.file.clone();
        more.insert(at.expect("a restart marker"), 0x55);
        assert!(matches!(rgb(&more, &mut scratch), Err(JpegError::Corrupt(_))));
    }
}

#[test]
fn work_is_bounded() {
    let mut scratch = Scratch::default();
    let case = &some(&["progressive 33x31_420"])[0];
    let jpeg = Jpeg::parse(&case.file).expect("headers");
    let mut out = Rgb8::default();
    let few = Budget { max_scans: 3, deadline: None };
    let got = jpeg.rgb(whole(&jpeg), &few, &mut scratch, &mut out);
    assert!(matches!(got, Err(JpegError::Unsupported(_))));
    let past = Instant::now().checked_sub(Duration::from_secs(1));
    let late = Budget { deadline: past, ..BUDGET };
    assert!(past.is_some());
    assert_eq!(jpeg.rgb(whole(&jpeg), &late, &mut scratch, &mut out), Err(JpegError::Late));
}

/// 64 MiB of the smallest segments, of fill bytes, of stray bytes: known before a thousandth part
/// of them is read.
#[test]
fn hostile_headers_cost_nothing() {
    for unit in [&[0xFF, 0xE0, 0, 2][..], &[0xFF], &[0], &[0xFF, 0x01], &[0xFF, 0]] {
        let mut file = vec![0xFF, 0xD8];
        file.extend(unit.iter().copied().cycle().take(64 << 20));
        let start = Instant::now();
        Jpeg::parse(&file).expect_err("no picture");
        assert!(start.elapsed() < Duration::from_millis(20), "{unit:?}: {:?}", start.elapsed());
    }
}

#[test]
fn a_second_picture_allocates_nothing() {
    alloc::alone("jpeg::allocations_of_a_second_picture");
}

#[test]
#[ignore = "run by a_second_picture_allocates_nothing, alone in its process"]
fn allocations_of_a_second_picture() {
    alloc::start();
    let (mut scratch, mut out, mut planes) =
        (Scratch::default(), Rgb8::default(), Default::default());
    let cases = some(&["sequential 33x31_420", "progressive 33x31_420", "sequential separate_22"]);
    let mut round = || {
        for case in &cases {
            let jpeg = Jpeg::parse(&case.file).expect("headers");
            jpeg.rgb(whole(&jpeg), &BUDGET, &mut scratch, &mut out).expect("a picture");
            for halvings in 0..4 {
                jpeg.planes(whole(&jpeg), halvings, &BUDGET, &mut scratch, &mut planes)
                    .expect("planes");
            }
        }
    };
    round();
    let before = alloc::so_far();
    round();
    assert_eq!(alloc::so_far() - before, 0);
}
