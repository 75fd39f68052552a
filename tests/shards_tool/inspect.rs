//! `roclip-shards inspect`.

use std::fs;

use super::expect;
use crate::common::shards::*;

fn picture(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(width, height).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn counts_and_quantiles_are_those_of_what_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut list: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 1..=20u32 {
        let format = if n % 2 == 0 { image::ImageFormat::Png } else { image::ImageFormat::WebP };
        list.push((format!("{n}.png"), picture(10 * n, 7 * n, format)));
        list.push((format!("{n}.txt"), "é".repeat(n as usize).into_bytes()));
    }
    list.extend([("x.png".into(), b"<html>".to_vec()), ("x.txt".into(), b"a b".to_vec())]);
    list.extend([("y.png".into(), png(1)), ("y.txt".into(), b" ".to_vec())]);
    list.extend([("z.png".into(), png(1)), ("z.txt".into(), b"dog ".repeat(100).to_vec())]);
    list[1].1 = b"\x1b[31m \xe2\x80\xae\x07".to_vec();
    fs::write(dir.path().join("a.tar"), tar(&list)).unwrap();
    let text = expect(3, dir.path(), &["inspect", "@"]);
    let says = |part: &str| assert!(text.contains(part), "{part:?} in {text}");
    says("22 pairs; 1 cannot be used\n  empty-caption 1\n");
    says("  broken 1\n  png 11\n  webp 10\n");
    // 21 sizes: 12, then 10, 20, ... 200; ranks 1, 2, 11, 20, 21.
    says("width, pixels       10 / 12 / 100 / 190 / 200\n");
    says("height, pixels      7 / 10 / 70 / 133 / 140\n");
    says("captions of more than 77 tokens: 1\n");
    // 100 words, the start and the end.
    says(" / 102\n");
    assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text}");
}

#[test]
fn a_sheet_shows_thumbnails_in_their_cells() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), tar(&members(0, 9))).unwrap();
    let args = ["inspect", "@", "--sheet", "@/s.png", "--rows", "2", "--cols", "3", "--seed", "4"];
    let text = expect(0, dir.path(), &args);
    let sheet = image::open(dir.path().join("s.png")).unwrap().into_rgb8();
    assert_eq!(sheet.dimensions(), (3 * 132 + 4, 2 * 132 + 4));
    for (row, column) in (0..2u32).flat_map(|row| (0..3u32).map(move |column| (row, column))) {
        let place = format!("row {} column {}  ", row + 1, column + 1);
        let line = text.lines().find_map(|line| line.strip_prefix(&place)).unwrap();
        let n: u32 = line[..6].parse().unwrap();
        assert!(line.contains(&format!("picture number {n} ")), "{line}");
        // Green and blue rise over the picture; red tells which one it is.
        let [red, ..] = sheet.get_pixel(column * 132 + 68, row * 132 + 68).0;
        assert_eq!(red, (n * 37) as u8, "{line}");
    }
    assert_eq!(sheet.get_pixel(0, 0).0, [255; 3]);
    assert_eq!(expect(0, dir.path(), &args), text);
    expect(2, dir.path(), &["inspect", "@", "--sheet", "@/s.png", "--rows", "0"]);
    expect(2, dir.path(), &["inspect", "@", "--sheet", "@/s.png", "--cols", "65"]);
}
