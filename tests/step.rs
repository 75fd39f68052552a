//! Goal:   a step is the description's step: twelve of them, with open_clip's model and torch's
//!         AdamW, give the same losses, matches and parameters; however many passes hold the pairs;
//!         and after the first of its kind a step allocates nothing.
//! Method: `golden/make_step.py` in float64, replayed through `Trainer`; one run against another; a
//!         counting allocator.

use crate::common::tiny::{noise, tiny, tiny_resnet, tiny_weights};
use crate::common::{alloc, golden};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Backend, Device, Float, Solo};
use roclip::encode::{Clip, ClipConfig, Keep};
use roclip::flow::{Batch, PackedTokens, SampleId, State};
use roclip::matching::{CaptionPool, PoolPart, PoolShape};
use roclip::optim::{AdamWOptions, DecayRule, Optimizer, Schedule, ScheduleKind};
use roclip::train::objective::{Objective, SafeClip};
use roclip::train::step::{Outcome, Parts, Report, StepOptions, Trainer};
use serde::Deserialize;
use std::collections::BTreeMap;

pub const PAIRS: usize = 6;
pub const STEPS: u64 = 4;
pub const EPOCHS: u64 = 3;
const LENGTHS: [usize; PAIRS] = [5, 13, 2, 9, 7, 3];
const START: u32 = 59;
const END: u32 = 60;
const PIXELS: u64 = 2000;
const TOKENS: u64 = 3000;
const PROBE: u64 = 4000;
const VIEW: u64 = 100;

#[derive(Deserialize)]
pub struct GoldenRun {
    pub steps: Vec<GoldenStep>,
    finals: BTreeMap<String, [f64; 3]>,
    drift: f64,
    /// Names of locked parameters.
    #[serde(default)]
    pub locked: Vec<String>,
    /// What torch's own training in bfloat16 is off by.
    #[allow(dead_code, reason = "read with the features of a GPU")]
    pub half: Half,
}

#[derive(Deserialize)]
pub struct GoldenStep {
    pub loss: f64,
    pub grad_norm: f64,
    lr: f64,
    scale: f64,
    pub index: Option<Vec<u32>>,
}

/// Parts of the exact figure.
#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
pub struct Half {
    pub loss: f64,
    pub grad_norm: f64,
}

/// The generator's batch.
pub fn batch(step: u64) -> Batch {
    batch_of(15, step)
}

/// SafeCLIP with epochs of all three kinds.
pub const SAFECLIP: Objective =
    Objective::SafeClip(SafeClip { warmup_epochs: 1, lr_factor: 0.1, ..SafeClip::AUTHORS });

/// As [`batch_of`], in the views that the objective wants: the second is the batch of a later step.
/// The parts of an epoch have as many steps each.
pub fn batch_of_objective(objective: Objective, side: usize, step: u64) -> Batch {
    let mut all = batch_of(side, step);
    let parts = objective.parts(step / STEPS);
    if parts[(step % STEPS) as usize * parts.len() / STEPS as usize].views == 2 {
        let second = batch_of(side, step + VIEW);
        all.images = all.images.iter().chain(&*second.images).copied().collect();
        all.captions.extend(&second.captions);
    }
    all
}

/// As [`batch`], of pictures of that side.
pub fn batch_of(side: usize, step: u64) -> Batch {
    let context = 13;
    let values = noise(PIXELS + step, PAIRS * 3 * side * side);
    let images = values.chunks(3 * side * side).enumerate().flat_map(|(n, image)| {
        let n = n as f64;
        image.iter().map(move |v| ((n + 1.0) / 2.0 * v + n - 2.5) as f32)
    });
    let draws = noise(TOKENS + step, PAIRS * context);
    let mut captions = PackedTokens::new();
    for (n, &length) in LENGTHS.iter().enumerate() {
        let id = |&v: &f64| ((v + 1.0) * 32768.0) as u32 % START;
        let mut ids: Vec<u32> = draws[n * context..][..length].iter().map(id).collect();
        (ids[0], ids[length - 1]) = (START, END);
        captions.push(&ids);
    }
    let sample = |n| SampleId { shard: "a.tar".into(), shard_index: 0, index: n, key: "k".into() };
    let samples = (0..PAIRS as u32).map(sample).collect();
    Batch { images: images.collect(), image_size: side, captions, labels: Vec::new(), samples }
}

/// The generator's trainer, with the pairs of a step in `passes` passes.
fn trainer<F: CpuFloat>(
    objective: Objective,
    passes: usize,
    threads: usize,
) -> Trainer<Cpu<F>, Solo> {
    trainer_on(&Cpu::new(threads).unwrap(), objective, passes, Keep::All)
}

pub fn trainer_on<D: Backend>(
    device: &D,
    objective: Objective,
    passes: usize,
    keep: Keep,
) -> Trainer<D, Solo> {
    trainer_matching(device, objective, 2, passes, keep)
}

/// One that matches in every `match_every`-th epoch.
pub fn trainer_matching<D: Backend>(
    device: &D,
    objective: Objective,
    match_every: u64,
    passes: usize,
    keep: Keep,
) -> Trainer<D, Solo> {
    let model = Clip::new(device, &tiny(false), objective.views() * PAIRS / passes, keep).unwrap();
    trainer_of(model, device, objective, match_every)
}

/// One whose steps have as many passes as the model's room asks for.
pub fn trainer_of<D: Backend>(
    model: Clip<D>,
    device: &D,
    objective: Objective,
    match_every: u64,
) -> Trainer<D, Solo> {
    let values: Vec<_> = tiny_weights(model.params()).into_iter().map(Float::from_f64).collect();
    let adamw = AdamWOptions { lr: 0.002, grad_clip_norm: Some(0.5), ..AdamWOptions::default() };
    let (width, part) = (model.config().embed_dim, PoolPart::WHOLE);
    let shape = PoolShape { rows: 9, width, queries: PAIRS, part };
    let pool = |number| {
        let variant = objective.variant().unwrap_or_default();
        (number < objective.pools()).then(|| CaptionPool::new(device, variant, shape, 0).unwrap())
    };
    let micro_batch = model.max_pairs() / objective.views();
    let parts = Parts {
        weights: device.weights(&values).unwrap(),
        optimizer: Optimizer::new(device, model.params(), adamw, DecayRule::ByShape).unwrap(),
        pool: pool(0),
        image_pool: pool(1).map(CaptionPool::of_images),
        model,
    };
    let options = StepOptions {
        objective,
        match_every,
        micro_batch,
        accum_freq: PAIRS / micro_batch,
        schedule: Schedule::new(ScheduleKind::Cosine, adamw.lr, 3, EPOCHS * STEPS),
        steps_per_epoch: STEPS,
        bn_sync: false,
    };
    Trainer::new(device.clone(), Solo, parts, options).unwrap()
}

#[track_caller]
pub fn stepped<D: Backend>(trainer: &mut Trainer<D, Solo>, step: u64, batch: &Batch) -> Report {
    match trainer.step(batch, step / STEPS).unwrap() {
        Outcome::Stepped(report) => report,
        Outcome::Refused(refusal) => panic!("step {step}: {refusal:?}"),
    }
}

fn replays(objective: Objective, passes: usize) {
    replays_of(&tiny(false), "step.json", objective, passes, Keep::All);
}

pub fn replays_of(
    config: &ClipConfig,
    file: &str,
    objective: Objective,
    passes: usize,
    keep: Keep,
) {
    let mut runs: BTreeMap<String, GoldenRun> = golden::json(file);
    let device = Cpu::<f64>::new(2).unwrap();
    let model = Clip::new(&device, config, objective.views() * PAIRS / passes, keep).unwrap();
    replay(&runs.remove(objective.name()).unwrap(), trainer_of(model, &device, objective, 2));
}

/// Bound: the golden's own drift. Its run, begun one part in 2⁴⁰ away (4,096 times float64's
/// rounding), ends that far away; rounding in another order stays well within.
pub fn replay(golden: &GoldenRun, mut trainer: Trainer<Cpu<f64>, Solo>) {
    let close = |got: f64, expected: f64, what: &str| {
        let error = (got - expected).abs() / expected.abs().max(1.0);
        assert!(error <= golden.drift, "{what}: {got}, expected {expected} ({error:.1e})");
    };
    let side = trainer.for_eval().1.config().vision_cfg.image_size();
    assert_eq!(golden.steps.len() as u64, EPOCHS * STEPS);
    for (step, expected) in golden.steps.iter().enumerate() {
        let batch = batch_of_objective(trainer.options().objective, side, step as u64);
        let report = stepped(&mut trainer, step as u64, &batch);
        close(report.loss, expected.loss, &format!("loss of step {step}"));
        close(report.grad_norm, expected.grad_norm, &format!("norm of step {step}"));
        close(report.lr, expected.lr, &format!("rate of step {step}"));
        close(report.logit_scale, expected.scale, &format!("scale of step {step}"));
        assert_eq!(report.matched, expected.index.is_some(), "step {step}");
        let matches = trainer.matches().filter(|_| report.matched);
        assert_eq!(matches.map(|m| &m.index), expected.index.as_ref(), "step {step}");
    }
    let (device, model, weights) = trainer.for_eval();
    assert_eq!(golden.finals.len(), model.params().weights().count());
    for (stream, param) in model.params().weights().enumerate() {
        let mut x = vec![0.0; param.slot.len];
        device.read_weights(weights, param.slot, &mut x).unwrap();
        let dot = |v: &[f64]| x.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
        let probe = noise(PROBE + stream as u64, x.len());
        let got = [dot(&vec![1.0; x.len()]), dot(&x), dot(&probe)];
        for (got, expected) in got.into_iter().zip(golden.finals[&param.name]) {
            close(got, expected, &param.name);
        }
    }
}

#[test]
fn twelve_steps_of_clip_are_torchs() {
    replays(Objective::Clip, 1);
}

#[test]
fn twelve_steps_of_roclip_are_the_descriptions() {
    replays(Objective::RoClip, 1);
}

/// Batch norms in training, running statistics and all, whether or not blocks run forward twice.
#[test]
fn twelve_steps_of_a_resnet_are_torchs() {
    for keep in [Keep::All, Keep::Inputs] {
        replays_of(&tiny_resnet(), "step_resnet.json", Objective::Clip, 1, keep);
        replays_of(&tiny_resnet(), "step_resnet.json", Objective::RoClip, 1, keep);
    }
}

/// The loss sees all pairs of a step: two and three passes are one.
#[test]
fn passes_do_not_change_the_contrastive_result() {
    replays(Objective::RoClip, 2);
    replays(Objective::Clip, 3);
}

pub fn saved<D: Backend>(trainer: &Trainer<D, Solo>) -> State {
    let mut state = State::default();
    trainer.save(&mut state).unwrap();
    state
}

/// A step that cannot be taken leaves parameters, moments, pool and counts as they were, whether
/// its images have their own captions or, as in the second epoch, the pool's.
#[test]
fn a_refused_step_changes_nothing() {
    for (value, good) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
        .into_iter()
        .flat_map(|value| [(value, 1), (value, STEPS), (value, STEPS + 1)])
    {
        let mut trainer = trainer::<f32>(Objective::RoClip, 1, 2);
        (0..good).for_each(|step| _ = stepped(&mut trainer, step, &batch(step)));
        let before = saved(&trainer);
        let mut broken = batch(good);
        let pixels = broken.images.len() / PAIRS;
        broken.images[4 * pixels + 7] = value;
        let Outcome::Refused(refusal) = trainer.step(&broken, good / STEPS).unwrap() else {
            panic!("a step with {value} was taken");
        };
        assert_eq!(refusal.what, "loss");
        let suspects: Vec<u32> = refusal.suspects.iter().map(|s| s.index).collect();
        assert_eq!(suspects, [4], "the pair with the broken picture, and no other");
        assert_eq!(saved(&trainer), before);
        let report = stepped(&mut trainer, good, &batch(good));
        assert_eq!(report.matched, good >= STEPS);
        assert_ne!(saved(&trainer), before);
    }
}

/// Nor does it move running statistics.
#[test]
fn a_refused_step_of_a_resnet_changes_nothing() {
    let (device, config) = (Cpu::<f32>::new(2).unwrap(), tiny_resnet());
    let model = Clip::new(&device, &config, PAIRS, Keep::All).unwrap();
    let mut trainer = trainer_of(model, &device, Objective::Clip, 2);
    stepped(&mut trainer, 0, &batch_of(64, 0));
    let before = saved(&trainer);
    let mut broken = batch_of(64, 1);
    broken.images[7] = f32::NAN;
    let Outcome::Refused(refusal) = trainer.step(&broken, 0).unwrap() else {
        panic!("a step with NaN was taken");
    };
    // the norms carry it to every picture of the batch
    assert_eq!((refusal.what, refusal.suspects.len()), ("loss", PAIRS));
    assert!(saved(&trainer) == before);
    stepped(&mut trainer, 1, &batch_of(64, 1));
    let running = |state: &State| state.tensors["visual.bn1.running_mean"].clone();
    assert!(running(&saved(&trainer)) != running(&before));
}

#[test]
fn steps_allocate_nothing() {
    alloc::alone("step::steps_allocate_nothing_alone");
}

#[test]
#[ignore = "runs alone, from the test above"]
fn steps_allocate_nothing_alone() {
    let plain = [(Objective::RoClip, 1), (Objective::RoClip, 2), (Objective::Clip, 1)];
    for (objective, passes) in plain.into_iter().chain([(SAFECLIP, 1), (SAFECLIP, 2)]) {
        alloc::start();
        // One thread: which of several first needs its share of scratch memory is chance.
        let mut trainer = trainer::<f32>(objective, passes, 1);
        let batch = |step| batch_of_objective(objective, 15, step);
        let batches: Vec<Batch> = (0..EPOCHS * STEPS).map(batch).collect();
        // Epoch 1 has steps of CLIP only; epoch 2 is matched. SafeCLIP's pools are empty once.
        for (step, batch) in batches.iter().enumerate() {
            let before = alloc::so_far();
            trainer.enqueue(batch, step as u64 / STEPS).unwrap();
            batches.get(step + 1).iter().for_each(|next| trainer.prefetch(next).unwrap());
            assert!(matches!(trainer.finish(batch).unwrap(), Outcome::Stepped(_)));
            let count = alloc::so_far() - before;
            let first_of_its_kind =
                [0, STEPS as usize].contains(&step) || objective == SAFECLIP && step == 1;
            assert!(
                first_of_its_kind || count == 0,
                "{objective} step {step}: {count} allocations"
            );
        }
    }
}
