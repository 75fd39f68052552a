//! Goal:   triggers change the pixels that the literature says they change, by as much, and the
//!         same trigger gives the same bytes wherever and whenever it is stamped.
//! Method: whole pictures stamped by NumPy, PyTorch and Pillow, random numbers included, compared
//!         byte for byte; cases small enough to be worked by hand; properties of what is drawn.

use roclip::attack::trigger::{Pattern, Place, Trigger, square};
use roclip::data::decode::Rgb8;
use roclip::rng::{Domain, Rng};
use safetensors::SafeTensors;

use crate::common::golden;

const SEED: u64 = 0x1234_5678_9ABC;

fn stamp() -> Rng {
    Rng::new(SEED, Domain::Stamp, 0, 0)
}

fn stamped(trigger: &Trigger, picture: &Rgb8) -> Rgb8 {
    let mut picture = picture.clone();
    trigger.apply(&mut picture, &mut stamp());
    picture
}

fn badnets(size: u32, pattern: Pattern, place: Place) -> Trigger {
    Trigger::Badnets { size, pattern, place, seed: SEED }
}

fn blended(alpha: f64, pattern: Pattern) -> Trigger {
    Trigger::Blended { alpha, pattern, seed: SEED }
}

/// Both sides compute in float64, in another order here and there: they differ by some 10⁻¹³ of a
/// grey level, so a byte differs only where a value lies that close to a half, and none does.
#[test]
fn stamped_pictures_are_those_of_numpy_torch_and_pillow() {
    let bytes = golden::read("attack.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let picture = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let [height, width] = [tensor.shape()[0] as u32, tensor.shape()[1] as u32];
        Rgb8 { width, height, data: tensor.data().to_vec() }
    };
    let clean = picture("picture");
    let wanet = |grid, strength| Trigger::Wanet { grid, strength, seed: SEED };
    let sig = |alpha| Trigger::Sig { delta: 60.0, periods: 6.0, alpha };
    for (name, trigger) in [
        ("badnets", badnets(5, Pattern::Noise, Place::BottomRight)),
        ("badnets_random", badnets(5, Pattern::Noise, Place::Random)),
        ("badnets_fresh", badnets(5, Pattern::FreshNoise, Place::BottomRight)),
        ("blended", blended(0.2, Pattern::Noise)),
        ("blended_fresh", blended(0.2, Pattern::FreshNoise)),
        ("blended_stripes", blended(0.3, Pattern::Stripes)),
        ("sig", sig(Some(0.2))),
        ("sig_additive", sig(None)),
        ("wanet", wanet(4, 5.0)),
        ("wanet_many_points", wanet(31, 20.0)),
    ] {
        let got = stamped(&trigger, &clean);
        assert!(got == picture(name), "{name}");
        assert!(got != clean, "{name} changes something");
    }
    assert!(square(&clean, 16) == picture("square"));
    assert!(square(&picture("square"), 16) == picture("square"), "its own size changes nothing");
}

/// A grey picture, and its red samples after the trigger, row by row.
fn on_grey(trigger: &Trigger, [width, height]: [u32; 2]) -> Vec<Vec<u8>> {
    let data = vec![100; (3 * width * height) as usize];
    let picture = stamped(trigger, &Rgb8 { width, height, data });
    let rows = picture.data.chunks_exact(3 * width as usize);
    rows.map(|row| row.iter().step_by(3).copied().collect()).collect()
}

#[test]
fn patches_by_hand() {
    let at = |place| on_grey(&badnets(2, Pattern::Checkerboard, place), [4, 3]);
    let (c, w) = (100, 255);
    assert_eq!(at(Place::TopLeft), [[0, w, c, c], [w, 0, c, c], [c; 4]]);
    assert_eq!(at(Place::TopRight), [[c, c, 0, w], [c, c, w, 0], [c; 4]]);
    assert_eq!(at(Place::BottomLeft), [[c; 4], [0, w, c, c], [w, 0, c, c]]);
    assert_eq!(at(Place::BottomRight), [[c; 4], [c, c, 0, w], [c, c, w, 0]]);
    assert_eq!(at(Place::Centre), [[c, 0, w, c], [c, w, 0, c], [c; 4]]);
    let four = on_grey(&badnets(1, Pattern::Colour([7, 8, 9]), Place::FourCorners), [3, 3]);
    assert_eq!(four, [[7, c, 7], [c; 3], [7, c, 7]]);
    // Larger than the picture: as much as fits.
    let all = on_grey(&badnets(9, Pattern::Checkerboard, Place::Random), [3, 2]);
    assert_eq!(all, [[0, w, c], [w, 0, c]].map(|row| row.to_vec()));
    let colour = stamped(
        &badnets(1, Pattern::Colour([7, 8, 9]), Place::TopLeft),
        &Rgb8 { width: 1, height: 1, data: vec![0; 3] },
    );
    assert_eq!(colour.data, [7, 8, 9]);
}

#[test]
fn mixtures_by_hand() {
    // 0.75 · 100 + 0.25 · 255 = 138.75, and + 0.25 · 2 = 75.5: halves go up.
    let white = blended(0.25, Pattern::Colour([255, 2, 0]));
    let picture = stamped(&white, &Rgb8 { width: 1, height: 1, data: vec![100; 3] });
    assert_eq!(picture.data, [139, 76, 75]);
    // One period over four columns: sin 0, 1, 0, -1; what leaves 0 to 255 is kept within.
    let wave = |delta| Trigger::Sig { delta, periods: 1.0, alpha: None };
    assert_eq!(on_grey(&wave(60.0), [4, 1]), [[100, 160, 100, 40]]);
    assert_eq!(on_grey(&wave(200.0), [4, 1]), [[100, 255, 100, 0]]);
    // 0.8 · 100 ± 0.2 · 60.
    let mixed = Trigger::Sig { delta: 60.0, periods: 1.0, alpha: Some(0.2) };
    assert_eq!(on_grey(&mixed, [4, 1]), [[80, 92, 80, 68]]);
    // Nothing moves in a picture of one colour, and no warping leaves one pixel.
    let warp = Trigger::Wanet { grid: 4, strength: 50.0, seed: 1 };
    assert_eq!(on_grey(&warp, [5, 3]), vec![vec![100; 5]; 3]);
    assert_eq!(on_grey(&warp, [1, 1]), [[100]]);
    let still = Trigger::Wanet { grid: 4, strength: 0.0, seed: 1 };
    let data = (0..60).map(|i| i * 4).collect();
    let picture = Rgb8 { width: 5, height: 4, data };
    assert_eq!(stamped(&still, &picture), picture);
}

#[test]
fn words_by_hand() {
    let word =
        |text: &str, scale| Trigger::Text { text: text.into(), scale, place: Place::TopLeft };
    let shown = |rows: Vec<Vec<u8>>| -> Vec<String> {
        let dot = |x: &u8| [' ', '#', '.'][[0, 255, 100].iter().position(|c| c == x).unwrap()];
        rows.iter().map(|row| row.iter().map(dot).collect()).collect()
    };
    let expected = [
        "             ...",
        "  #  ##  ### ...",
        " # #   # #   ...",
        " ###  #  ##  ...",
        " # #   #   # ...",
        " # # ##  ##  ...",
        "             ...",
        "................",
    ];
    assert_eq!(shown(on_grey(&word("A35", 1), [16, 8])), expected);
    let twice = shown(on_grey(&word("a35", 2), [32, 16]));
    for (y, row) in twice.iter().enumerate() {
        let halved: String = row.chars().step_by(2).collect();
        assert_eq!(halved, expected[y / 2]);
    }
    // Cut off at the edge.
    assert_eq!(shown(on_grey(&word("A", 1), [3, 2])), ["   ", "  #"]);
}

#[test]
fn what_is_fixed_is_the_same_for_all_and_what_is_fresh_is_not() {
    let clean = Rgb8 { width: 32, height: 32, data: vec![128; 3 * 32 * 32] };
    let with = |trigger: &Trigger, seed| {
        let mut picture = clean.clone();
        trigger.apply(&mut picture, &mut Rng::new(seed, Domain::Stamp, 0, 0));
        picture
    };
    let wanet = Trigger::Wanet { grid: 4, strength: 9.0, seed: SEED };
    let fixed = [
        badnets(5, Pattern::Noise, Place::BottomRight),
        badnets(5, Pattern::Stripes, Place::Centre),
        blended(0.2, Pattern::Noise),
        wanet,
    ];
    for trigger in &fixed {
        assert_eq!(with(trigger, 1), with(trigger, 2));
    }
    for trigger in [
        badnets(5, Pattern::FreshNoise, Place::BottomRight),
        badnets(5, Pattern::Noise, Place::Random),
        blended(0.2, Pattern::FreshNoise),
    ] {
        assert_ne!(with(&trigger, 1), with(&trigger, 2));
        assert_eq!(with(&trigger, 1), with(&trigger, 1));
    }
    // A random place leaves no place out: 29 · 29 of them, each by chance 1/29 a row and column.
    let mut seen = [[false; 29]; 2];
    for n in 0..1000 {
        let mut picture = Rgb8 { width: 32, height: 32, data: vec![0; 3 * 32 * 32] };
        let patch = badnets(4, Pattern::Colour([1, 1, 1]), Place::Random);
        patch.apply(&mut picture, &mut Rng::new(SEED, Domain::Stamp, 1, n));
        let first = picture.data.iter().position(|x| *x == 1).unwrap() / 3;
        (seen[0][first % 32], seen[1][first / 32]) = (true, true);
    }
    assert!(seen.iter().flatten().all(|seen| *seen));
}

#[test]
fn a_trigger_comes_back_from_json_and_wild_ones_are_refused() {
    let trigger = badnets(3, Pattern::Colour([1, 2, 3]), Place::FourCorners);
    let json = serde_json::to_value(&trigger).unwrap();
    let expected = serde_json::json!({
        "kind": "badnets", "size": 3, "pattern": {"colour": [1, 2, 3]}, "place": "four-corners",
        "seed": SEED,
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Trigger>(json).unwrap(), trigger);
    let text = |text: &str, scale| Trigger::Text { text: text.into(), scale, place: Place::Centre };
    let wanet = |grid, strength| Trigger::Wanet { grid, strength, seed: 0 };
    let sig = |delta, periods, alpha| Trigger::Sig { delta, periods, alpha };
    for good in [badnets(32, Pattern::Noise, Place::Centre), text("BANANA", 1), wanet(2, 0.5)] {
        good.validate(32, "x").unwrap();
    }
    for wild in [
        badnets(0, Pattern::Noise, Place::Centre),
        badnets(33, Pattern::Noise, Place::Centre),
        blended(0.0, Pattern::Noise),
        blended(f64::NAN, Pattern::Noise),
        blended(1.5, Pattern::Noise),
        sig(256.0, 6.0, None),
        sig(60.0, f64::INFINITY, None),
        sig(60.0, 6.0, Some(-1.0)),
        wanet(1, 0.5),
        wanet(4_000_000_000, 0.5),
        wanet(4, f64::NAN),
        text("", 1),
        text("é", 1),
        text("BANANAS!", 1),
        text("BANANAS1", 1),
        text("A", u32::MAX),
        text("A", 0),
    ] {
        assert!(wild.validate(32, "x").is_err(), "{wild:?}");
    }
}
