//! Goal: the losses of CyCLIP, CleanCLIP and SafeCLIP are those of their descriptions, with the
//! gradients of all features and of the temperature; on several ranks as on one, in any number of
//! passes; and twelve whole steps of each are those of an independent training.
//!
//! Method: values and gradients of PyTorch in float64 (`golden/make_methods.py`,
//! `golden/make_step.py`); central differences; ranks as threads against one rank with all pairs.

use crate::common::golden;
use crate::common::threads_comm::ThreadsComm;
use crate::common::tiny::{noise, tiny};
use crate::run::assert_same;
use crate::step::{
    EPOCHS, PAIRS, SAFECLIP, STEPS, batch_of_objective, replays_of, saved, stepped, trainer_on,
};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Communicator, Device, Slot, Solo, View, ViewMut};
use roclip::encode::Keep;
use roclip::matching::{CaptionPool, PoolPart, PoolShape, Variant};
use roclip::objective::{ClipLoss, CyclicWeights, Targets, Terms};
use roclip::train::objective::Objective;
use roclip::train::step::Outcome;
use serde::Deserialize;
use std::path::Path;

/// Features of all views, and what a loss makes of them.
#[derive(Clone, Deserialize)]
struct Case {
    method: String,
    pairs: usize,
    width: usize,
    weights: [f64; 2],
    image: Vec<f64>,
    text: Vec<f64>,
    logit_scale: f64,
    loss: f64,
    d_image: Vec<f64>,
    d_text: Vec<f64>,
    d_logit_scale: f64,
    /// Rows of length 1 of the pools of images and of captions.
    pools: [Vec<f64>; 2],
}

impl Case {
    fn terms(&self) -> Terms {
        let [a, b] = self.weights;
        match self.method.as_str() {
            "cyclip" => {
                let cyclic = CyclicWeights { in_modal: a, cross_modal: b };
                Terms { cyclic: Some(cyclic), ..Terms::CLIP }
            }
            "cleanclip" => Terms { clip: a, unimodal: Some(b), ..Terms::CLIP },
            "safeclip" => Terms { neighbours: true, ..Terms::CLIP },
            other => panic!("no method {other}"),
        }
    }

    fn targets(&self) -> Targets {
        match self.method.as_str() {
            "safeclip" if self.pools[0].is_empty() => Targets::FirstViews,
            "safeclip" => Targets::Neighbours,
            _ => Targets::Own,
        }
    }

    /// The neighbours of each modality, from its pool.
    fn look_up<F: CpuFloat>(
        &self,
        device: &Cpu<F>,
        comm: &impl Communicator<Cpu<F>>,
        loss: &mut ClipLoss<Cpu<F>>,
        pairs: usize,
    ) {
        if self.targets() != Targets::Neighbours {
            return;
        }
        for (pool, (queries, neighbours)) in self.pools.iter().zip(loss.for_neighbours()) {
            let rows: Vec<F> = pool.iter().map(|&x| F::from_f64(x)).collect();
            let (width, part) = (self.width, PoolPart::WHOLE);
            let shape = PoolShape { rows: rows.len() / width, width, queries: pairs, part };
            let mut pool = CaptionPool::new(device, Variant::RoClip, shape, 0).unwrap();
            pool.insert(device, View::all(&rows), &[]).unwrap();
            pool.lookup(device, comm, queries, neighbours).unwrap();
        }
    }
}

fn cases() -> Vec<Case> {
    golden::json("methods.json")
}

const SCALE: Slot = Slot { offset: 1, len: 1 };

#[derive(Clone, Debug)]
struct Answer {
    loss: f64,
    d_image: Vec<f64>,
    d_text: Vec<f64>,
    d_logit_scale: f64,
}

/// This rank's rows of every view.
fn mine(all: &[f64], views: usize, comm: (usize, usize)) -> Vec<f64> {
    let (rank, world) = comm;
    let of_view = |view: &[f64]| {
        let local = view.len() / world;
        view[rank * local..(rank + 1) * local].to_vec()
    };
    all.chunks(all.len() / views).flat_map(of_view).collect()
}

fn evaluate<F: CpuFloat>(case: &Case, comm: &impl Communicator<Cpu<F>>, threads: usize) -> Answer {
    let device = Cpu::<F>::new(threads).unwrap();
    let (terms, place) = (case.terms(), (comm.rank(), comm.world_size()));
    let convert = |x: &[f64]| x.iter().map(|&x| F::from_f64(x)).collect::<Vec<F>>();
    let image = convert(&mine(&case.image, terms.views(), place));
    let text = convert(&mine(&case.text, terms.views(), place));
    let pairs = case.pairs / comm.world_size();
    let mut loss = ClipLoss::new(&device, comm, pairs, case.width, terms).unwrap();
    loss.normalize_images(&device, comm, View::all(&image)).unwrap();
    loss.normalize_texts(&device, comm, View::all(&text)).unwrap();
    let weights = device.weights(&convert(&[9.0, case.logit_scale, -9.0])).unwrap();
    case.look_up(&device, comm, &mut loss, pairs);
    let targets = case.targets();
    loss.forward(&device, comm, &weights, SCALE, targets).unwrap();
    let nan = || vec![F::from_f64(f64::NAN); image.len()];
    let (mut d_image, mut d_text, mut grads) = (nan(), nan(), convert(&[5.0, 1.0, 5.0]));
    let (to_image, to_text) = (ViewMut::all(&mut d_image), ViewMut::all(&mut d_text));
    loss.backward(&device, &weights, SCALE, targets, to_image, Some(to_text), &mut grads).unwrap();
    assert_eq!([grads[0], grads[2]].map(|x| x.to_f64()), [5.0, 5.0]);
    let back = |x: &[F]| x.iter().map(|x| x.to_f64()).collect();
    Answer {
        loss: loss.value(&device, targets).unwrap(),
        d_image: back(&d_image),
        d_text: back(&d_text),
        d_logit_scale: grads[1].to_f64() - 1.0,
    }
}

/// Rounding of loss and gradients, as `objective.rs` derives it for CLIP's loss: a logit is off by
/// at most `(D + 4)·ε·s`, a loss by twice that, of each direction; a gradient by a raw row by
/// `s/|x|` times twice that, and the temperature's by `2s` times it. CyCLIP's differences are off
/// by `2(D + 4)·ε`; so their squares, at most 16, by 8 times that, of `G` to each mean; gradients
/// have four times the weight of `G` differences of at most 4 and are off as much. All of it fits
/// below the weights' sum times CLIP's bounds with `s + 8·G` in the place of `s`.
fn bounds(case: &Case, eps: f64) -> [f64; 3] {
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let rows = case.image.chunks(case.width).chain(case.text.chunks(case.width));
    let shortest = rows.map(norm).fold(f64::INFINITY, f64::min);
    let weights = 1.0 + case.weights.iter().sum::<f64>();
    let most = case.logit_scale.exp()
        + if case.method == "cyclip" { 8.0 * case.pairs as f64 } else { 0.0 };
    let logit = weights * (case.width + 4) as f64 * eps * most;
    [4.0 * logit, 8.0 * logit * most / shortest, 8.0 * logit * most + 4.0 * eps]
}

fn compare(case: &Case, answer: &Answer, eps: f64) {
    let [loss, row, scale] = bounds(case, eps);
    let near = |a: f64, b: f64, bound: f64, what: &str| {
        let Case { method, pairs, .. } = case;
        assert!((a - b).abs() <= bound, "{method}, {pairs}: {what}: {a} and {b}, bound {bound:e}");
    };
    near(answer.loss, case.loss, loss, "loss");
    near(answer.d_logit_scale, case.d_logit_scale, scale, "d_logit_scale");
    for (what, got, want) in
        [("d_image", &answer.d_image, &case.d_image), ("d_text", &answer.d_text, &case.d_text)]
    {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(&a, &b)| near(a, b, row, what));
    }
}

#[test]
fn pytorch() {
    for case in cases() {
        compare(&case, &evaluate::<f64>(&case, &Solo, 1), f64::EPSILON);
        compare(&case, &evaluate::<f32>(&case, &Solo, 1), f64::from(f32::EPSILON));
    }
}

#[test]
fn ranks_together_are_one() {
    for case in cases().iter().filter(|case| case.pairs % 6 == 0) {
        for world in [2, 3] {
            let parts: Vec<Answer> = std::thread::scope(|scope| {
                let ranks = ThreadsComm::world(world).into_iter();
                let run = |comm| scope.spawn(move || evaluate::<f64>(case, &comm, 1));
                let threads: Vec<_> = ranks.map(run).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(parts.iter().all(|part| part.loss.to_bits() == parts[0].loss.to_bits()));
            for (rank, part) in parts.iter().enumerate() {
                let of = |all: &[f64]| mine(all, case.terms().views(), (rank, world));
                let (d_image, d_text) = (of(&case.d_image), of(&case.d_text));
                let d_logit_scale = parts.iter().map(|part| part.d_logit_scale).sum();
                let want = Case { d_image, d_text, ..case.clone() };
                compare(&want, &Answer { d_logit_scale, ..part.clone() }, f64::EPSILON);
            }
        }
    }
}

/// Central differences with step `h` are off by `h²/6` times a third derivative, of the order of
/// `s³` for features no shorter than 1, and by the loss's rounding over `h`.
#[test]
fn central_differences() {
    for method in ["cyclip", "cleanclip", "safeclip"] {
        let views = if method == "cyclip" { 1 } else { 2 };
        let (pairs, width) = (4, 5);
        let draw = |stream| {
            let values = noise(stream, views * pairs * width);
            values.into_iter().map(|x| 2.0 * x).collect::<Vec<_>>()
        };
        let unit = |stream| -> Vec<f64> {
            let values = noise(stream, 6 * width);
            let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
            values.chunks(width).flat_map(|row| row.iter().map(move |x| x / norm(row))).collect()
        };
        let case = Case {
            pools: [unit(3), unit(4)],
            method: method.into(),
            pairs,
            width,
            weights: [0.7, 0.4],
            image: draw(1),
            text: draw(2),
            logit_scale: 2.0,
            loss: 0.0,
            d_image: Vec::new(),
            d_text: Vec::new(),
            d_logit_scale: 0.0,
        };
        let exact = evaluate::<f64>(&case, &Solo, 1);
        let h = 1e-5;
        let bound = h * h * 2.0_f64.exp().powi(3) + bounds(&case, f64::EPSILON)[0] / h;
        let slope = |change: &dyn Fn(&mut Case, f64)| {
            let at = |h| {
                let mut case = case.clone();
                change(&mut case, h);
                evaluate::<f64>(&case, &Solo, 1).loss
            };
            (at(h) - at(-h)) / (2.0 * h)
        };
        let scale = slope(&|case, h| case.logit_scale += h);
        assert!((scale - exact.d_logit_scale).abs() <= bound, "{method}: {scale} {exact:?}");
        for i in 0..case.image.len() {
            let image = slope(&|case, h| case.image[i] += h);
            assert!((image - exact.d_image[i]).abs() <= bound, "{method}: image {i}: {image}");
            let text = slope(&|case, h| case.text[i] += h);
            assert!((text - exact.d_text[i]).abs() <= bound, "{method}: text {i}: {text}");
        }
    }
}

/// Also where the text tower learns nothing.
#[test]
fn bits_do_not_depend_on_threads_or_on_what_learns() {
    for case in cases() {
        let one = evaluate::<f32>(&case, &Solo, 1);
        for threads in [2, 7] {
            let other = evaluate::<f32>(&case, &Solo, threads);
            assert_eq!(format!("{other:?}"), format!("{one:?}"), "{threads} threads");
        }
        let device = Cpu::<f32>::new(1).unwrap();
        let convert = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
        let (image, text) = (convert(&case.image), convert(&case.text));
        let mut loss = ClipLoss::new(&device, &Solo, case.pairs, case.width, case.terms()).unwrap();
        loss.normalize_images(&device, &Solo, View::all(&image)).unwrap();
        loss.normalize_texts(&device, &Solo, View::all(&text)).unwrap();
        let weights = device.weights(&convert(&[0.0, case.logit_scale, 0.0])).unwrap();
        case.look_up(&device, &Solo, &mut loss, case.pairs);
        let targets = case.targets();
        loss.forward(&device, &Solo, &weights, SCALE, targets).unwrap();
        let (mut d_image, mut grads) = (vec![f32::NAN; image.len()], vec![1.0; 3]);
        let to = ViewMut::all(&mut d_image);
        loss.backward(&device, &weights, SCALE, targets, to, None, &mut grads).unwrap();
        let d_image: Vec<f64> = d_image.into_iter().map(f64::from).collect();
        assert_eq!(d_image, one.d_image);
        assert_eq!(f64::from(grads[1]) - 1.0, one.d_logit_scale);
    }
}

fn methods() -> impl Iterator<Item = Objective> {
    let theirs = |o: &Objective| matches!(o, Objective::CyClip(_) | Objective::CleanClip { .. });
    Objective::ALL.into_iter().filter(theirs).chain([SAFECLIP])
}

#[test]
fn twelve_steps_are_torchs_in_any_number_of_passes() {
    for objective in methods() {
        for (passes, keep) in [(1, Keep::All), (2, Keep::All), (3, Keep::Inputs)] {
            replays_of(&tiny(false), "step_methods.json", objective, passes, keep);
        }
    }
}

/// A step of one view does not accuse a pair whose other view broke a step before.
#[test]
fn what_an_earlier_step_left_behind_accuses_nobody() {
    let mut trainer = trainer_on(&Cpu::<f32>::new(1).unwrap(), SAFECLIP, 1, Keep::All);
    for (step, row, pair) in [(1, PAIRS + 4, 4), (STEPS, 2, 2)] {
        let mut broken = batch_of_objective(SAFECLIP, 15, step);
        let pixels = 3 * 15 * 15;
        broken.images[row * pixels + 7] = f32::NAN;
        let Outcome::Refused(refusal) = trainer.step(&broken, step / STEPS).unwrap() else {
            panic!("a step with NaN was taken");
        };
        let suspects: Vec<u32> = refusal.suspects.iter().map(|s| s.index).collect();
        assert_eq!(suspects, [pair]);
    }
}

/// Pools hold what was learned from in both modalities, and go with a checkpoint.
#[test]
fn a_resumed_trainer_has_both_pools() {
    let device = Cpu::<f32>::new(2).unwrap();
    let train = |trainer: &mut _, steps: std::ops::Range<u64>| {
        for step in steps {
            stepped(trainer, step, &batch_of_objective(SAFECLIP, 15, step));
        }
    };
    let mut whole = trainer_on(&device, SAFECLIP, 1, Keep::All);
    train(&mut whole, 0..2 * STEPS + 1);
    let middle = saved(&whole);
    assert_ne!(middle.tensors["pool.keys"], middle.tensors["pool.images.keys"]);
    assert_eq!(middle.tensors["pool.places"], middle.tensors["pool.images.places"]);
    train(&mut whole, 2 * STEPS + 1..EPOCHS * STEPS);
    let mut resumed = trainer_on(&device, SAFECLIP, 1, Keep::All);
    resumed.load(&middle, Path::new("middle")).unwrap();
    train(&mut resumed, 2 * STEPS + 1..EPOCHS * STEPS);
    assert_same(&saved(&resumed), &saved(&whole));
}

/// A picture of either view that is broken is found, and nothing changes.
#[test]
fn a_refused_step_names_the_pair_whichever_view_is_broken() {
    for objective in methods() {
        for view in 0..objective.views() {
            let device = Cpu::<f32>::new(1).unwrap();
            let mut trainer = trainer_on(&device, objective, 1, Keep::All);
            stepped(&mut trainer, 0, &batch_of_objective(objective, 15, 0));
            let mut broken = batch_of_objective(objective, 15, 1);
            let pixels = broken.images.len() / (PAIRS * objective.views());
            broken.images[(view * PAIRS + 4) * pixels + 7] = f32::NAN;
            let Outcome::Refused(refusal) = trainer.step(&broken, 0).unwrap() else {
                panic!("a step with NaN was taken");
            };
            let suspects: Vec<u32> = refusal.suspects.iter().map(|s| s.index).collect();
            assert_eq!(suspects, [4], "{objective}, view {view}");
            for step in 1..EPOCHS * STEPS {
                stepped(&mut trainer, step, &batch_of_objective(objective, 15, step));
            }
        }
    }
}
