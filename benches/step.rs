//! Speed of a whole training step of CLIP on the CPU, against the machine's own matrix product.
//!
//! `cargo bench --bench step -- [MODEL] [PAIRS] [THREADS] [STEPS]` (ViT-B-32, 32, all cores, 3).
//! Prints time and samples a second, the floating-point operations of the step's matrix products
//! (forward and backward, attention included, everything else left out), and what share of the
//! largest square product's rate, measured before and after, that is.

use roclip::backend::cpu::Cpu;
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use roclip::backend::{Slot, Solo, View, ViewMut, Weight};
use roclip::encode::{self, Clip, ClipConfig, Keep};
use roclip::flow::{Batch, PackedTokens, SampleId};
use roclip::matching::Objective;
use roclip::optim::{AdamWOptions, DecayRule, Optimizer, Schedule, ScheduleKind};
use roclip::train::step::{Parts, StepOptions, Trainer};
use std::num::NonZeroUsize;
use std::time::Instant;

/// Tokens of a caption, start and end included: a usual alt text.
const CAPTION: usize = 14;
/// Side of the square product.
const SIDE: usize = 2048;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with("--")).collect();
    let number = |at: usize, or: usize| {
        words.get(at).map_or(or, |w| w.parse().unwrap_or_else(|_| panic!("{w:?} is no number")))
    };
    let name = words.first().map_or("ViT-B-32", String::as_str);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (pairs, threads, steps) = (number(1, 32), number(2, cores), number(3, 3));
    let config = ClipConfig::load(name).unwrap_or_else(|e| panic!("{e}"));
    let device = Cpu::<f32>::new(threads).unwrap_or_else(|e| panic!("{e}"));
    let mut trainer = trainer(&device, &config, pairs);
    let batch = batch(&config, pairs);
    let mut peaks = vec![peak(&device)];
    let mut times: Vec<f64> = (0..=steps)
        .map(|_| {
            let began = Instant::now();
            trainer.step(&batch, 0).unwrap_or_else(|e| panic!("{e}"));
            began.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    peaks.push(peak(&device));
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    let peak = peaks.iter().copied().fold(0.0, f64::max);
    let flop = flop(&config, pairs);
    println!("{name}, {pairs} pairs of {CAPTION} tokens, {threads} threads, {steps} steps");
    println!("median {median:.3} s, least {least:.3} s: {:.2} samples/s", pairs as f64 / median);
    println!(
        "{:.1} GFLOP a step: {:.1} GFLOP/s, {:.0} % of the {SIDE}³ product's {:.1} GFLOP/s",
        flop / 1e9,
        flop / median / 1e9,
        100.0 * flop / median / peak,
        peak / 1e9
    );
}

/// Rate of the square product, best of five, FLOP/s.
fn peak(device: &Cpu) -> f64 {
    let shape = LinearShape { rows: SIDE, inputs: SIDE, outputs: SIDE, layout: Layout::OutIn };
    let (x, w) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let mut y = vec![0.0f32; SIDE * SIDE];
    let best = (0..5).map(|_| {
        let began = Instant::now();
        let weight = Weight::at(&w, Slot { offset: 0, len: w.len() });
        let out = ViewMut::all(&mut y);
        linear::forward(device, shape, View::all(&x), weight, None, None, out)
            .unwrap_or_else(|e| panic!("{e}"));
        began.elapsed().as_secs_f64()
    });
    2.0 * (SIDE as f64).powi(3) / best.fold(f64::INFINITY, f64::min)
}

/// Operations of the matrix products of a step.
///
/// A linear map costs `2·rows·inputs·outputs` forward and twice that backward. Attention is two
/// products of `2·T²·C` forward and five backward, which recomputes the scores; a causal mask
/// halves them. The patch embedding has no gradient by its input.
fn flop(config: &ClipConfig, pairs: usize) -> f64 {
    let (vision, text) = (&config.vision_cfg, &config.text_cfg);
    let patches = (vision.image_size / vision.patch_size).pow(2);
    let pixels = 3 * vision.patch_size.pow(2);
    let linear =
        |rows: usize, inputs: usize, outputs: usize| 2.0 * (rows * inputs * outputs) as f64;
    let block = |tokens: usize, width: usize, hidden: usize, causal: f64| {
        let linears = linear(tokens, width, 4 * width) + 2.0 * linear(tokens, width, hidden);
        3.0 * linears + causal * 7.0 * 2.0 * (tokens * tokens * width) as f64
    };
    let image = vision.layers as f64 * block(patches + 1, vision.width, vision.hidden(), 1.0)
        + 2.0 * linear(patches, pixels, vision.width)
        + 3.0 * linear(1, vision.width, config.embed_dim);
    let caption = text.layers as f64 * block(CAPTION, text.width, text.hidden(), 0.5)
        + 3.0 * linear(1, text.width, config.embed_dim);
    pairs as f64 * (image + caption)
}

fn batch(config: &ClipConfig, pairs: usize) -> Batch {
    let side = config.vision_cfg.image_size;
    let pixel = |n: usize| ((n * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
    let mut captions = PackedTokens::new();
    for n in 0..pairs {
        let mut ids: Vec<u32> = (0..CAPTION).map(|t| ((n * 31 + t * 7) % 40_000) as u32).collect();
        (ids[0], ids[CAPTION - 1]) = (49_406, 49_407);
        captions.push(&ids);
    }
    let sample =
        |n| SampleId { shard: "none".into(), shard_index: 0, index: n, key: n.to_string().into() };
    Batch {
        images: (0..pairs * 3 * side * side).map(pixel).collect(),
        image_size: side,
        captions,
        labels: Vec::new(),
        samples: (0..pairs as u32).map(sample).collect(),
    }
}

fn trainer(device: &Cpu, config: &ClipConfig, pairs: usize) -> Trainer<Cpu, Solo> {
    let build = || {
        let model = Clip::new(device, config, pairs, Keep::All)?;
        let weights = encode::init(device, config, 0)?;
        let adamw = AdamWOptions::default();
        let optimizer = Optimizer::new(device, model.params(), adamw, DecayRule::ByShape)?;
        let parts = Parts { model, weights, optimizer, pool: None };
        let options = StepOptions {
            objective: Objective::Clip,
            match_every: 1,
            micro_batch: pairs,
            accum_freq: 1,
            schedule: Schedule::new(ScheduleKind::Const, 1e-6, 0, 1),
            steps_per_epoch: 1,
        };
        Trainer::new(device.clone(), Solo, parts, options)
    };
    build().unwrap_or_else(|e: roclip::Error| panic!("{e}"))
}
