//! Goal: pictures are read as Pillow reads them, and no file can hurt us on the way.
//! Method: files that Pillow wrote and what it reads from them (`golden/make_transform.py`), and a
//! few thousand damaged ones.

use std::time::Duration;

use roclip::data::decode::{DecodeError, DecodeLimits, Encoded, Rgb8, decode};
use roclip::data::jpeg::Scratch;
use roclip::data::ledger::{Fault, Reason};
use roclip::data::transform::CropBox;

use crate::common::pictures::{Pictures, cut, difference};

/// Exact, but for what the rare JPEGs' other decoder does otherwise: it errs by 1/255 a component,
/// and where it upsamples chroma by up to 4/255 once that is RGB.
#[test]
fn decoders_agree_with_pillow() {
    let golden = Pictures::open("decode.safetensors");
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
            "jpeg_cmyk" => (1, 0.1),
            "jpeg_ycck" => (4, 0.5),
            _ => (0, 0.0),
        };
        assert!(max <= bound.0 && mean <= bound.1, "{name}: max {max}, mean {mean}");
    }
}

/// A file that is cut anywhere is refused, as Pillow refuses it; never completed with grey.
#[test]
fn truncated_files_are_refused() {
    let golden = Pictures::open("decode.safetensors");
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
            assert_eq!(Fault::from(&error).reason, Reason::BrokenImage, "{name}");
        }
    }
}

/// Two flips at every position of every file: an error or a picture of the declared size.
#[test]
fn damaged_files_never_panic() {
    let golden = Pictures::open("decode.safetensors");
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
    let reason = |bytes: &[u8]| Fault::from(&decode(bytes, &limits).unwrap_err()).reason;
    assert_eq!(reason(b""), Reason::EmptyImage);
    assert_eq!(reason(b"<!DOCTYPE html><html>"), Reason::UnknownImage);
    assert_eq!(reason(b"GIF89a"), Reason::UnknownImage);
    assert_eq!(reason(&[0xFF; 1001]), Reason::ImageTooLarge);
    assert_eq!(reason(b"\xFF\xD8\xFF\xD9"), Reason::BrokenImage);
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
    let jpeg = b"\xFF\xD8\xFF\xC0\0\x0B\x08\xFF\xFF\xFF\xFF\x01\x01\x11\0\
                 \xFF\xDA\0\x08\x01\x01\0\0\x3F\0\xFF\xD9";
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
    let golden = Pictures::open("decode.safetensors");
    let mut file = golden.bytes("jpeg_progressive.file");
    let limits = DecodeLimits { max_scans: 3, ..DecodeLimits::default() };
    let error = decode(&file, &limits).unwrap_err();
    assert!(error.to_string().contains("scans in one JPEG, limit 3"), "{error}");
    let end = file.len() - 2;
    let scan = b"\xFF\xDA\0\x08\x01\x01\0\0\0\0";
    file.splice(end..end, scan.iter().copied().cycle().take(scan.len() * 100));
    assert!(decode(&file, &DecodeLimits::default()).is_err());
}

/// Whatever the format, a picture whose time is up is given up.
#[test]
fn slow_pictures_are_given_up() {
    let golden = Pictures::open("decode.safetensors");
    let limits = DecodeLimits { max_time: Duration::ZERO, ..DecodeLimits::default() };
    for name in ["jpeg_420", "jpeg_progressive", "jpeg_cmyk"] {
        let error = decode(&golden.bytes(&format!("{name}.file")), &limits).unwrap_err();
        assert_eq!(Fault::from(&error).reason, Reason::TooSlow, "{name}");
    }
}

/// A part of a JPEG is that part of the whole picture; other formats say where it lies.
#[test]
fn parts_are_those_of_the_whole() {
    let golden = Pictures::open("decode.safetensors");
    let part = CropBox { top: 5, left: 3, height: 7, width: 11 };
    let (mut scratch, mut out) = (Scratch::default(), Rgb8::default());
    for name in golden.names(".file").iter().filter(|name| *name != "jpeg_1x1") {
        let file = golden.bytes(&format!("{name}.file"));
        let whole = decode(&file, &DecodeLimits::default()).unwrap();
        let encoded = Encoded::open(&file, &DecodeLimits::default()).unwrap();
        assert_eq!([encoded.width(), encoded.height()], [whole.width, whole.height]);
        let at = encoded.rgb(part, &mut scratch, &mut out).unwrap();
        assert_eq!(cut(&out, at), cut(&whole, part), "{name}");
    }
}
