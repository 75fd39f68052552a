//! Goal: loss, pool, optimiser and schedule together compute CLIP and the three variants of RoCLIP,
//! step by step as their description says.
//!
//! Method: whole runs of two linear towers, written in PyTorch from the description (float64,
//! autograd, `torch.optim.AdamW`), replayed through the real code. Every loss, gradient norm,
//! chosen row, score, learning rate, parameter and pool row is compared after every step.
//!
//! Each golden run carries its `drift`: how far a perturbation of ten roundings in the initial
//! parameters had carried at worst. Two honest computations add up to about ten roundings at each
//! of the 16 steps, so they may differ by 16 drifts; the bound is 100.

use crate::common::flat::{packed, spread};
use crate::common::golden;
use roclip::backend::cpu::Cpu;
use roclip::backend::{Device, Slot, Solo, View, ViewMut};
use roclip::flow::{ParamTable, State};
use roclip::matching::{CaptionPool, PoolPart, PoolShape, Variant};
use roclip::objective::{ClipLoss, LogitScale, Targets, Terms};
use roclip::optim::{AdamWOptions, DecayRule, Optimizer, Schedule, ScheduleKind, TextUpdate};
use roclip::train::objective::Objective;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Golden {
    initial: Vec<f64>,
    gaussian: Vec<f32>,
    batch: usize,
    pool: usize,
    epochs: u64,
    steps_per_epoch: u64,
    every: u64,
    lr: f64,
    warmup: u64,
    weight_decay: f64,
    eps: f64,
    beta1: f64,
    beta2: f64,
    clamped: usize,
    drift: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    epoch: u64,
    x: Vec<f64>,
    y: Vec<f64>,
    lr: f64,
    loss: f64,
    norm: f64,
    head: usize,
    params: Vec<f64>,
    rows: Vec<f64>,
    index: Option<Vec<u32>>,
    score: Option<Vec<f64>>,
}

/// Width of the embeddings.
const D: usize = 4;

/// `y = (x·Wᵀ)·gain + bias`, with its parameters one after the other.
struct Tower {
    inputs: usize,
    at: usize,
}

const IMAGE: Tower = Tower { inputs: 5, at: 0 };
const TEXT: Tower = Tower { inputs: 6, at: (5 + 2) * D };

impl Tower {
    fn forward(&self, params: &[f64], x: &[f64]) -> Vec<f64> {
        let (proj, rest) = params[self.at..].split_at(self.inputs * D);
        let features = x.chunks(self.inputs).flat_map(|x| {
            (0..D).map(move |d| {
                dot(x, &proj[d * self.inputs..][..self.inputs]) * rest[d] + rest[D + d]
            })
        });
        features.collect()
    }

    fn backward(&self, params: &[f64], x: &[f64], dy: &[f64], grads: &mut [f64]) {
        let (proj, rest) = params[self.at..].split_at(self.inputs * D);
        let (d_proj, d_rest) = grads[self.at..].split_at_mut(self.inputs * D);
        for (x, dy) in x.chunks(self.inputs).zip(dy.chunks(D)) {
            for d in 0..D {
                let row = d * self.inputs..(d + 1) * self.inputs;
                d_rest[d] += dy[d] * dot(x, &proj[row.clone()]);
                d_rest[D + d] += dy[d];
                d_proj[row].iter_mut().zip(x).for_each(|(g, x)| *g += dy[d] * rest[d] * x);
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn table() -> ParamTable {
    let mut table = ParamTable::default();
    for (tower, proj, inputs) in [("visual", "visual.proj", 5), ("text", "text_projection", 6)] {
        table.push(proj, &[D, inputs]);
        table.push(format!("{tower}.gain"), &[D]);
        table.push(format!("{tower}.bias"), &[D]);
    }
    table.push("logit_scale", &[]);
    table
}

/// All that a run holds.
struct Run {
    objective: Objective,
    device: Cpu<f64>,
    scale: LogitScale,
    weights: <Cpu<f64> as Device>::Weights,
    loss: ClipLoss<Cpu<f64>>,
    pool: CaptionPool<Cpu<f64>>,
    optimizer: Optimizer<Cpu<f64>>,
    schedule: Schedule,
}

impl Run {
    fn new(objective: Objective, golden: &Golden) -> Self {
        let device = Cpu::new(1).unwrap();
        let table = table();
        let (rows, queries, part) = (golden.pool, golden.batch, PoolPart::WHOLE);
        let shape = PoolShape { rows, width: D, queries, part };
        let mut pool =
            CaptionPool::new(&device, objective.variant().unwrap_or_default(), shape, 1).unwrap();
        if objective == Objective::Official {
            let mut state = State::default();
            state.put("pool.values", &[golden.pool, D], golden.gaussian.clone());
            state.put("pool.places", &[golden.pool, 4], vec![65_535.0; 4 * golden.pool]);
            state.values.insert("pool.head".into(), 0.into());
            state.values.insert("pool.filled".into(), golden.pool.into());
            pool.load(&device, &state, Path::new("gaussian")).unwrap();
        }
        let Golden { lr, beta1, beta2, eps, weight_decay, .. } = *golden;
        let options = AdamWOptions { lr, beta1, beta2, eps, weight_decay, grad_clip_norm: None };
        let released = objective == Objective::Official;
        let rule = if released { DecayRule::ByName } else { DecayRule::ByShape };
        let total = golden.epochs * golden.steps_per_epoch;
        Self {
            objective,
            scale: LogitScale { slot: table.slot("logit_scale") },
            weights: device.weights(&spread(&table, &golden.initial)).unwrap(),
            loss: ClipLoss::new(&device, &Solo, golden.batch, D, Terms::CLIP).unwrap(),
            pool,
            optimizer: Optimizer::new(&device, &table, options, rule).unwrap(),
            schedule: Schedule::new(ScheduleKind::Cosine, lr, golden.warmup, total),
            device,
        }
    }

    fn params(&self) -> Vec<f64> {
        let mut flat = vec![0.0; table().len()];
        let all = Slot { offset: 0, len: flat.len() };
        self.device.read_weights(&self.weights, all, &mut flat).unwrap();
        packed(&table(), &flat)
    }

    /// One step; returns loss, norm and whether it was matched.
    fn step(&mut self, every: u64, lr: f64, golden: &Step) -> (f64, f64, bool) {
        let (params, table) = (self.params(), table());
        let Self { objective, device, loss, pool, weights, .. } = self;
        let (variant, slot) = (objective.variant(), self.scale.slot);
        let (image, text) = (IMAGE.forward(&params, &golden.x), TEXT.forward(&params, &golden.y));
        loss.normalize_images(device, &Solo, View::all(&image)).unwrap();
        loss.normalize_texts(device, &Solo, View::all(&text)).unwrap();
        let rows = pool.shape().rows;
        let matches = |v: Variant| v.matches_in(golden.epoch, every, pool.filled(), rows);
        let matched = variant.is_some_and(matches);
        let targets = if matched { Targets::Matched } else { Targets::Own };
        if matched {
            let (images, substitutes) = loss.for_matching();
            pool.lookup(device, &Solo, images, substitutes).unwrap();
        }
        loss.forward(device, &Solo, weights, slot, targets).unwrap();
        let value = loss.value(device, targets).unwrap();
        let (mut d_image, mut d_text) = (vec![0.0; image.len()], vec![0.0; text.len()]);
        let mut flat = vec![0.0; table.len()];
        let (d_image_view, d_text_view) = (ViewMut::all(&mut d_image), ViewMut::all(&mut d_text));
        loss.backward(device, weights, slot, targets, d_image_view, Some(d_text_view), &mut flat)
            .unwrap();
        let mut grads = packed(&table, &flat);
        IMAGE.backward(&params, &golden.x, &d_image, &mut grads);
        TEXT.backward(&params, &golden.y, &d_text, &mut grads);
        if variant.is_some_and(|v| v.inserts_in(golden.epoch, every)) {
            pool.insert(device, loss.all_texts(), &[]).unwrap();
        }
        let frozen = matched && variant.is_some_and(Variant::freezes_text);
        let text = if frozen { TextUpdate::Freeze } else { TextUpdate::Train };
        let grads = spread(&table, &grads);
        let norm = self.optimizer.step(device, weights, &grads, lr, text).unwrap();
        self.scale.clamp(device, weights).unwrap();
        (value, norm, matched)
    }
}

fn replay(objective: Objective) {
    let golden: Golden = golden::json(&format!("robust_run_{objective}.json"));
    let mut run = Run::new(objective, &golden);
    let near = |step: usize, what: &str, got: f64, want: f64, extra: f64| {
        let bound = 100.0 * golden.drift * want.abs().max(1.0) + extra;
        assert!(
            (got - want).abs() <= bound,
            "{objective}, step {step}: {what} is {got}, want {want}, bound {bound:e}"
        );
    };
    for (i, step) in golden.steps.iter().enumerate() {
        let step_of = |v: Variant| v.schedule_step(i as u64, golden.steps_per_epoch);
        let count = objective.variant().map_or(i as u64, step_of);
        let lr = run.schedule.at(count);
        near(i, "lr", lr, step.lr, 0.0);
        let (loss, norm, matched) = run.step(golden.every, lr, step);
        near(i, "loss", loss, step.loss, 0.0);
        near(i, "norm", norm, step.norm, 0.0);
        assert_eq!(matched, step.index.is_some(), "{objective}, step {i}");
        if let (Some(index), Some(score)) = (&step.index, &step.score) {
            let matches = run.pool.matches(&run.device).unwrap();
            assert_eq!(&matches.index, index, "{objective}, step {i}");
            // Scores are handed out in f32.
            let f32 = f64::from(f32::EPSILON);
            let pairs = matches.score.iter().zip(score);
            pairs.for_each(|(&a, &b)| near(i, "score", f64::from(a), b, f32));
        }
        let params = run.params();
        assert_eq!(params.len(), step.params.len());
        params.iter().zip(&step.params).for_each(|(&a, &b)| near(i, "parameter", a, b, 0.0));
        assert_eq!(run.pool.head(), step.head, "{objective}, step {i}");
        assert_eq!(run.pool.filled() * D, step.rows.len(), "{objective}, step {i}");
        let mut state = State::default();
        run.pool.save(&run.device, &Solo, &mut state).unwrap();
        let is_rows = |(name, _): &(&String, _)| *name != "pool.places";
        let rows = &state.tensors.iter().find(is_rows).unwrap().1.values;
        for (&a, &b) in rows.iter().zip(&step.rows) {
            // Rows are saved in f32.
            near(i, "pool row", f64::from(a), b, f64::from(f32::EPSILON) * b.abs());
        }
    }
    let matched = golden.steps.iter().filter(|step| step.index.is_some()).count();
    assert_eq!(matched, if objective == Objective::Clip { 0 } else { 8 });
    assert!(golden.drift < 1e-12);
    assert!(objective != Objective::Paper || golden.clamped > 0, "the clamp was never needed");
}

#[test]
fn clip_run() {
    replay(Objective::Clip);
}

#[test]
fn paper_run() {
    replay(Objective::Paper);
}

#[test]
fn official_run() {
    replay(Objective::Official);
}

#[test]
fn roclip_run() {
    replay(Objective::RoClip);
}
