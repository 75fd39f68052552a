//! Goal:   SafeCLIP tells pairs apart as it should, trains on each kind as what it is, and a run
//!         that was cut anywhere ends in the same bits.
//! Method: scikit-learn's mixtures (`golden/make_mixture.py`); the program, on pictures of four
//!         colours some of which have the caption of another, cut at every epoch and at random.

use crate::common::golden;
use crate::common::shards::tar;
use crate::run::{Bench, assert_same, finished_after_a_kill, text};
use roclip::checkpoint::file;
use roclip::flow::{Place, State};
use roclip::rng::{Domain, Rng};
use roclip::train::mixture::Mixture;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

#[derive(Deserialize)]
struct Mixtures {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    values: Vec<f64>,
    weights: [f64; 2],
    means: [f64; 2],
    variances: [f64; 2],
    points: Vec<f64>,
    posteriors: Vec<f64>,
}

/// Both go through the same rounds, some hundred at most, each of which rounds sums of 250 terms:
/// parts in 10¹¹, were they to add up. A fit that took a round more or less, or another start,
/// would be off by the square root of its tolerance.
#[test]
fn mixtures_are_scikit_learns() {
    let golden: Mixtures = golden::json("mixture.json");
    assert_eq!(golden.cases.len(), 5);
    for case in golden.cases {
        let mixture = Mixture::fit(&case.values).unwrap();
        let close = |got: f64, expected: f64, what: &str| {
            let bound = 1e-10 * expected.abs().max(1.0);
            assert!((got - expected).abs() <= bound, "{}: {what}: {got}, {expected}", case.name);
        };
        for (part, n) in [(mixture.low, 0), (mixture.high, 1)] {
            close(part.weight, case.weights[n], "weight");
            close(part.mean, case.means[n], "mean");
            close(part.variance, case.variances[n], "variance");
        }
        for (&x, &posterior) in case.points.iter().zip(&case.posteriors) {
            // A distance of 100 standard deviations carries a rounding of the mean 10⁴ times.
            assert!((mixture.posterior(x) - posterior).abs() <= 1e-6, "{}: {x}", case.name);
        }
    }
}

/// Pairs in each of two shards.
const PAIRS: u32 = 180;

/// Every 27th has the caption of another colour; one has no picture.
fn is_planted(n: u32) -> bool {
    n % 27 == 4
}

const BROKEN: u32 = 40;

fn shards(dir: &Path) -> String {
    let colours = [("red", [220, 30, 30]), ("green", [20, 200, 40]), ("blue", [30, 40, 230])];
    let colours = [&colours[..], &[("white", [240, 240, 240])]].concat();
    for shard in 0..2 {
        let mut members = Vec::new();
        for n in PAIRS * shard..PAIRS * (shard + 1) {
            let (name, rgb) = colours[n as usize % 4];
            let name = if is_planted(n) { colours[(n as usize + 1) % 4].0 } else { name };
            let picture = image::RgbImage::from_fn(12, 10, |x, y| {
                image::Rgb(rgb.map(|c: u8| c.saturating_sub((x * 3 + y * n % 7) as u8)))
            });
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            let bytes = if n == BROKEN { vec![0; 9] } else { bytes.into_inner() };
            members.push((format!("{n:06}.png"), bytes));
            members.push((format!("{n:06}.txt"), format!("something {name}").into_bytes()));
        }
        fs::write(dir.join(format!("{shard}.tar")), tar(&members)).unwrap();
    }
    format!("{}/{{0..1}}.tar", dir.display())
}

/// Two epochs of each modality alone, one of CLIP's loss, three of safe and risky pairs.
const FLAGS: [&str; 16] = [
    "--objective",
    "safeclip",
    "--epochs",
    "6",
    "--safeclip-warmup-epochs",
    "2",
    "--safeclip-lr-factor",
    "1",
    "--safeclip-growth",
    "0.02",
    "--aug",
    "clip",
    "--log-every-n-steps",
    "1",
    "--lr",
    "0.004",
];

struct Poisoned {
    bench: Bench,
    shards: String,
}

impl Poisoned {
    fn new() -> Self {
        let bench = Bench::new();
        let shards = shards(&bench.path(""));
        Self { bench, shards }
    }

    fn flags<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&FLAGS[..], &["--shards", &self.shards], more].concat()
    }

    fn run(&self, name: &str, more: &[&str]) -> String {
        text(&self.bench.run(name, &self.flags(more)))
    }

    fn state(&self, name: &str, epoch: u32) -> State {
        let path = format!("checkpoints/epoch_{epoch}.safetensors");
        file::read(&self.bench.folder(name).join(path)).unwrap()
    }
}

/// The safe pairs of a checkpoint by number.
fn safe(state: &State) -> BTreeSet<u32> {
    let n = state.tensors["safe.places"].shape[0];
    let places = state.places(Path::new("x"), "safe.places", n).unwrap();
    places.into_iter().map(|Place { shard, index }| PAIRS * shard + index).collect()
}

#[test]
fn a_caption_of_another_picture_is_risky() {
    let poisoned = Poisoned::new();
    let told = poisoned.run("poisoned", &[]);
    for epoch in [3, 4, 5] {
        let safe = safe(&poisoned.state("poisoned", epoch));
        assert!(!safe.contains(&BROKEN) && !safe.iter().any(|&n| is_planted(n)), "{safe:?}");
        // There are more that are alike, but no more than 85 % may be safe.
        assert_eq!(safe.len(), 305, "{told}");
        let line = format!("Epoch {epoch}: safe 305 of 359 pairs (85.0 %)");
        assert!(told.contains(&line), "{told}");
    }
    assert!(told.contains("(85.0 %); similarities: "), "{told}");
    assert!(!poisoned.state("poisoned", 2).tensors.contains_key("safe.places"));

    // Of 8 pairs each, 44 steps in the first epochs; then 6 of risky pairs and 38 of safe ones.
    let steps = poisoned.bench.lines("poisoned", "metrics.jsonl");
    assert_eq!(steps.len(), 6 * 44, "{told}");
    let risky =
        "Epoch 3, risky pairs done. Pairs: seen 360, delivered 48, skipped 1 (unknown-image 1)";
    let rest = ["not asked for 305, left over 6", "not asked for 55, left over 1"];
    assert!(told.contains(&format!("{risky}, {}", rest[0])), "{told}");
    let safe = "Epoch 3, safe pairs done. Pairs: seen 360, delivered 304, skipped 0";
    assert!(told.contains(&format!("{safe}, {}", rest[1])), "{told}");
    assert!(told.contains("Train Epoch: 3 [ 8/55 (15%)]"), "{told}");
    assert!(told.contains("Train Epoch: 3 [304/305 (100%)]"), "{told}");
    let lr: Vec<f64> = steps.iter().map(|step| step["lr"].as_f64().unwrap()).collect();
    assert!(lr[88..132].iter().all(|&lr| lr == 0.004), "the full rate, times 1: {lr:?}");
    assert!(lr[132] < lr[87] && lr[87] < 0.004, "the schedule goes on behind: {lr:?}");

    // Of the broken pair one line an epoch, of the parts of an epoch none.
    let skips = poisoned.bench.lines("poisoned", "skips.jsonl");
    let epochs: Vec<_> = skips.iter().map(|line| line["epoch"].as_u64().unwrap()).collect();
    assert_eq!(epochs, [0, 1, 2, 3, 4, 5]);
    assert!(skips.iter().all(|line| line["key"] == "000040"));
    // Records have every pair that was trained on, in both parts.
    let records = fs::metadata(poisoned.bench.folder("poisoned").join("matches/epoch_4.npy"));
    assert_eq!(records.unwrap().len(), 256 + 24 * 352);
}

#[test]
fn a_run_cut_after_any_epoch_or_anywhere_ends_in_the_same_bits() {
    let poisoned = Poisoned::new();
    let began = Instant::now();
    poisoned.run("whole", &[]);
    let (whole, expected) = (began.elapsed(), poisoned.state("whole", 6));
    for epoch in 1..6 {
        let name = format!("from{epoch}");
        let from = poisoned.bench.folder("whole");
        let from = from.join(format!("checkpoints/epoch_{epoch}.safetensors"));
        poisoned.run(&name, &["--resume", from.to_str().unwrap()]);
        assert_same(&poisoned.state(&name, 6), &expected);
    }
    let mut rng = Rng::new(51, Domain::SampleOrder, 0, 0);
    let flags = poisoned.flags(&[]);
    let ledger = |name: &str| fs::read(poisoned.bench.folder(name).join("skips.jsonl")).unwrap();
    let (mut kills, mut runs) = (0, 0);
    while kills < 6 {
        runs += 1;
        let name = format!("killed{runs}");
        let delay = |rng: &mut Rng| whole.mul_f64(rng.range(0.0, 0.8));
        while !finished_after_a_kill(&poisoned.bench, &name, &flags, delay(&mut rng)) {
            kills += 1;
        }
        assert_same(&poisoned.state(&name, 6), &expected);
        assert_eq!(ledger(&name), ledger("whole"));
    }
}

#[test]
fn neither_threads_nor_workers_change_a_bit() {
    let poisoned = Poisoned::new();
    poisoned.run("one", &[]);
    poisoned.run("many", &["--threads", "3", "--workers", "5"]);
    assert_same(&poisoned.state("one", 6), &poisoned.state("many", 6));
}

#[test]
fn what_cannot_be_done_is_told() {
    let poisoned = Poisoned::new();
    let refused = |flags: &[&str], word: &str| {
        let flags = poisoned.flags(flags);
        let output = poisoned.bench.command("never", &flags).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(word), "{told}");
        assert!(!poisoned.bench.folder("never").exists());
    };
    refused(
        &["--safeclip-warmup-epochs", "5"],
        "--safeclip-warmup-epochs: 5 of 6 epochs; expected",
    );
    refused(&["--safeclip-threshold", "1.5"], "--safeclip-threshold: 1.5; expected a number from");
    refused(&["--safeclip-growth", "NaN"], "--safeclip-growth: NaN");
    refused(&["--dataset-resampled"], "--dataset-resampled: the flag; expected nothing with");
    // The pool of the authors has 256 rows, more than there are pairs.
    let flags: Vec<&str> = FLAGS.into_iter().chain(["--pool-size", "256"]).collect();
    let output = poisoned.bench.command("never", &flags).output().unwrap();
    assert!(text(&output).contains("--pool-size: 256 of 40 training pairs"), "{}", text(&output));
    let told = poisoned.run("none", &["--safeclip-threshold", "1", "--safeclip-growth", "0"]);
    assert!(told.contains("safe 0 of 359") && told.contains("no pair is safe"), "{told}");
    assert!(told.contains("epoch 3, safe pairs has no full batch"), "{told}");
}
