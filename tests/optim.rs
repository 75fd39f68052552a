//! Goal: AdamW, clipping and schedules are PyTorch's and open_clip's; a frozen text tower is frozen
//! entirely; a non-finite gradient changes nothing; a saved optimiser goes on in the same bits.
//!
//! Method: runs of `torch.optim.AdamW` with `clip_grad_norm_` in float64; every value of
//! open_clip's schedule functions over small runs; the figures that the released program's counter
//! leads to.

use crate::common::flat::{packed, spread};
use crate::common::golden;
use roclip::Error;
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Device, Slot};
use roclip::flow::{ParamTable, State};
use roclip::matching::Variant;
use roclip::optim::{AdamWOptions, DecayRule, Optimizer, Schedule, ScheduleKind, TextUpdate};
use roclip::rng::{Domain, Rng};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct AdamWGolden {
    shapes: Vec<(String, Vec<usize>)>,
    cases: Vec<AdamWCase>,
}

#[derive(Deserialize)]
struct AdamWCase {
    rule: String,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: Option<f64>,
    initial: Vec<f64>,
    steps: Vec<AdamWStep>,
}

#[derive(Deserialize)]
struct AdamWStep {
    lr: f64,
    grads: Vec<f64>,
    norm: f64,
    params: Vec<f64>,
}

/// After `t` steps `√v̂` is at least `√((1−β₂)/(1−β₂ᵗ)) ≥ 1/√t` times the largest gradient so far,
/// in whose roundings the error of `m̂` is counted: ten roundings make an update wrong by at most
/// `10·√12·lr·ε`. To that each step adds the rounding of the parameter itself, which is below 4.
#[test]
fn pytorch_adamw_and_clipping() {
    let golden: AdamWGolden = golden::json("robust_adamw.json");
    let mut table = ParamTable::default();
    for (name, shape) in &golden.shapes {
        table.push(name, shape);
    }
    let device = Cpu::<f64>::new(1).unwrap();
    let bound = 12.0 * (10.0 * 12.0_f64.sqrt() * 0.12 + 4.0) * f64::EPSILON;
    for case in golden.cases {
        let rule = if case.rule == "by_name" { DecayRule::ByName } else { DecayRule::ByShape };
        let AdamWCase { beta1, beta2, eps, weight_decay, clip: grad_clip_norm, .. } = case;
        let options = AdamWOptions { lr: 1.0, beta1, beta2, eps, weight_decay, grad_clip_norm };
        let mut optimizer = Optimizer::new(&device, &table, options, rule).unwrap();
        let mut weights = device.weights(&spread(&table, &case.initial)).unwrap();
        let mut clipped = 0;
        for (i, step) in case.steps.iter().enumerate() {
            let text = TextUpdate::Train;
            let grads = spread(&table, &step.grads);
            let norm = optimizer.step(&device, &mut weights, &grads, step.lr, text).unwrap();
            assert!((norm - step.norm).abs() <= 20.0 * f64::EPSILON * step.norm);
            clipped += usize::from(case.clip.is_some_and(|clip| norm > clip));
            let params = packed(&table, &read(&device, &weights, table.len()));
            for (a, b) in params.iter().zip(&step.params) {
                assert!((a - b).abs() <= bound, "{}, step {i}: {a} and {b}", case.rule);
            }
        }
        assert!(case.clip.is_none() || (0 < clipped && clipped < case.steps.len()));
    }
}

fn read<F: CpuFloat>(device: &Cpu<F>, weights: &<Cpu<F> as Device>::Weights, len: usize) -> Vec<F> {
    let mut host = vec![F::default(); len];
    device.read_weights(weights, Slot { offset: 0, len }, &mut host).unwrap();
    host
}

#[derive(Deserialize)]
struct ScheduleCase {
    kind: String,
    lr: f64,
    warmup: u64,
    total: u64,
    cooldown: u64,
    power: f64,
    end: f64,
    values: Vec<f64>,
}

/// The formulas hold at most ten operations: ten roundings of the largest rate.
#[test]
fn open_clip_schedules() {
    let cases: Vec<ScheduleCase> = golden::json("robust_schedule.json");
    assert!(cases.len() > 15);
    for case in cases {
        let kind = case.kind.parse::<ScheduleKind>().unwrap();
        assert_eq!(kind.to_string(), case.kind);
        let mut schedule = Schedule::new(kind, case.lr, case.warmup, case.total);
        schedule.cooldown = case.cooldown;
        (schedule.cooldown_power, schedule.cooldown_end) = (case.power, case.end);
        for (step, &value) in case.values.iter().enumerate() {
            let got = schedule.at(step as u64);
            let bound = 10.0 * f64::EPSILON * case.lr;
            assert!((got - value).abs() <= bound, "{schedule:?} at {step}: {got}, want {value}");
        }
    }
    assert!("linear".parse::<ScheduleKind>().is_err());
}

/// 1,000,000 pairs in batches of 512, 24 epochs, the released program's rate and warm-up.
#[test]
fn the_released_counter_is_one_epoch_ahead() {
    let (epochs, per_epoch) = (24, 1953);
    let total = epochs * per_epoch;
    let schedule = Schedule::new(ScheduleKind::Cosine, 5e-5, 10_000, total);
    let at = |variant: Variant, step| schedule.at(variant.schedule_step(step, per_epoch));
    let near = |a: f64, b: f64| (a - b).abs() <= 10.0 * f64::EPSILON * 5e-5;
    assert!(near(at(Variant::Official, 0), 5e-5 * 1954.0 / 10_000.0));
    assert!(near(at(Variant::Official, total - per_epoch), 0.0));
    let last = at(Variant::Official, total - 1);
    assert!((3.3e-7..3.5e-7).contains(&last), "{last}");
    for variant in [Variant::Paper, Variant::RoClip] {
        assert!(near(at(variant, 0), 5e-9));
        assert!(near(at(variant, 9_999), 5e-5));
        assert!(at(variant, total - 1) < 1e-12);
    }
}

#[test]
fn schedules_stay_finite_at_their_edges() {
    for kind in [ScheduleKind::Cosine, ScheduleKind::Const, ScheduleKind::ConstCooldown] {
        for (warmup, total) in [(0, 0), (0, 1), (7, 7), (9, 7)] {
            for cooldown in [0, 3, 20] {
                let mut schedule = Schedule::new(kind, 1.0, warmup, total);
                (schedule.cooldown, schedule.cooldown_power) = (cooldown, 0.5);
                for step in 0..40 {
                    let lr = schedule.at(step);
                    assert!((0.0..=1.0).contains(&lr), "{schedule:?} at {step}: {lr}");
                }
            }
        }
    }
}

fn table() -> ParamTable {
    let mut table = ParamTable::default();
    table.push("visual.proj", &[2, 3]);
    table.push("text_projection", &[2, 2]);
    table.push("text.bias", &[2]);
    table.push("logit_scale", &[]);
    table
}

/// Elements of the text tower in [`table`].
const TEXT: std::ops::Range<usize> = 6..12;

struct Run {
    device: Cpu<f32>,
    weights: <Cpu<f32> as Device>::Weights,
    optimizer: Optimizer<Cpu<f32>>,
}

impl Run {
    fn new() -> Self {
        let device = Cpu::new(1).unwrap();
        let options = AdamWOptions { grad_clip_norm: Some(1.0), ..AdamWOptions::default() };
        let optimizer = Optimizer::new(&device, &table(), options, DecayRule::default()).unwrap();
        let weights = device.weights(&spread(&table(), &draw(0))).unwrap();
        Self { device, weights, optimizer }
    }

    fn step(&mut self, grads: &[f32], text: TextUpdate) -> f64 {
        let grads = spread(&table(), grads);
        self.optimizer.step(&self.device, &mut self.weights, &grads, 0.1, text).unwrap()
    }

    fn params(&self) -> Vec<f32> {
        packed(&table(), &read(&self.device, &self.weights, table().len()))
    }

    fn state(&self) -> State {
        let mut state = State::default();
        self.optimizer.save(&self.device, &mut state).unwrap();
        state
    }
}

fn draw(stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(11, Domain::Init, 0, stream);
    (0..table().values()).map(|_| rng.normal() as f32).collect()
}

/// The text part of a saved optimiser.
fn text_part(state: &State) -> Vec<(String, Vec<f32>)> {
    let text = state.tensors.iter().filter(|(name, _)| name.contains("text"));
    text.map(|(name, tensor)| (name.clone(), tensor.values.clone())).collect()
}

/// Steps 1, 2, freeze, 3: the text tower ends where steps 1, 2, 3 alone bring it, moments and bias
/// correction included. Without freezing, a zero gradient moves it.
#[test]
fn a_frozen_text_tower_stays() {
    let mut zero_text = draw(9);
    zero_text[TEXT].fill(0.0);
    let (mut frozen, mut plain, mut moved) = (Run::new(), Run::new(), Run::new());
    for stream in [1, 2] {
        let grads = draw(stream);
        for run in [&mut frozen, &mut plain, &mut moved] {
            run.step(&grads, TextUpdate::Train);
        }
    }
    let (before, moments) = (frozen.params(), text_part(&frozen.state()));
    frozen.step(&zero_text, TextUpdate::Freeze);
    assert_eq!(frozen.params()[TEXT], before[TEXT]);
    assert_eq!(text_part(&frozen.state()), moments);
    assert_eq!(
        frozen.state().values["optimizer.steps"],
        serde_json::json!({"image": 3, "text": 2})
    );
    let image = |run: &Run| [&run.params()[..TEXT.start], &run.params()[TEXT.end..]].concat();
    assert!(image(&frozen).iter().zip(image(&plain)).all(|(a, b)| *a != b));

    moved.step(&zero_text, TextUpdate::Train);
    assert!(moved.params()[TEXT].iter().zip(&before[TEXT]).all(|(a, b)| a != b));
    assert_eq!(image(&moved), image(&frozen));

    let grads = draw(3);
    frozen.step(&grads, TextUpdate::Train);
    plain.step(&grads, TextUpdate::Train);
    assert_eq!(frozen.params()[TEXT], plain.params()[TEXT]);
    assert_eq!(text_part(&frozen.state()), text_part(&plain.state()));
}

/// A gradient that is not finite, or whose square is not, leaves every bit where it was, and the
/// next step is what it would have been.
#[test]
fn a_non_finite_gradient_changes_nothing() {
    for at in [0, TEXT.start, table().values() - 1] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut run, mut plain) = (Run::new(), Run::new());
            run.step(&draw(1), TextUpdate::Train);
            plain.step(&draw(1), TextUpdate::Train);
            let mut grads = draw(2);
            grads[at] = value;
            for text in [TextUpdate::Train, TextUpdate::Freeze] {
                assert!(!run.step(&grads, text).is_finite());
                assert_eq!((run.params(), run.state()), (plain.params(), plain.state()));
            }
            assert!(run.step(&draw(3), TextUpdate::Train).is_finite());
            plain.step(&draw(3), TextUpdate::Train);
            assert_eq!((run.params(), run.state()), (plain.params(), plain.state()));
        }
    }
}

#[test]
fn a_saved_optimizer_goes_on_in_the_same_bits() {
    let mut run = Run::new();
    for stream in 1..5 {
        let text = if stream == 3 { TextUpdate::Freeze } else { TextUpdate::Train };
        run.step(&draw(stream), text);
    }
    let mut other = Run::new();
    other.weights = other.device.weights(&spread(&table(), &run.params())).unwrap();
    other.optimizer.load(&other.device, &run.state(), Path::new("m")).unwrap();
    assert_eq!(other.state(), run.state());
    for stream in 5..8 {
        run.step(&draw(stream), TextUpdate::Train);
        other.step(&draw(stream), TextUpdate::Train);
        assert_eq!((run.params(), run.state()), (other.params(), other.state()));
    }
}

#[test]
fn a_file_of_another_model_is_refused_and_nothing_changes() {
    let mut run = Run::new();
    run.step(&draw(1), TextUpdate::Train);
    let good = run.state();
    let mut missing = good.clone();
    missing.tensors.remove("optimizer.exp_avg_sq.text.bias");
    let mut reshaped = good.clone();
    reshaped.put("optimizer.exp_avg.visual.proj", &[3, 2], vec![0.0; 6]);
    let mut stepless = good.clone();
    stepless.values.insert("optimizer.steps".into(), serde_json::json!({"image": -1, "text": 0}));
    for state in [missing, reshaped, stepless] {
        let refusal = run.optimizer.load(&run.device, &state, Path::new("m.st")).unwrap_err();
        assert!(matches!(refusal, Error::Format { .. }), "{refusal}");
        assert_eq!(run.state(), good);
    }
}

#[test]
fn options_that_cannot_train_are_refused() {
    let good = AdamWOptions::default();
    good.check().unwrap();
    AdamWOptions::released().check().unwrap();
    for (flag, options) in [
        ("--lr", AdamWOptions { lr: f64::NAN, ..good }),
        ("--beta1", AdamWOptions { beta1: 1.0, ..good }),
        ("--beta2", AdamWOptions { beta2: -0.1, ..good }),
        ("--eps", AdamWOptions { eps: 0.0, ..good }),
        ("--wd", AdamWOptions { weight_decay: -1.0, ..good }),
        ("--grad-clip-norm", AdamWOptions { grad_clip_norm: Some(0.0), ..good }),
    ] {
        let refusal = options.check().unwrap_err().to_string();
        assert!(refusal.starts_with(flag), "{refusal}");
    }
}
