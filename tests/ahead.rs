//! Goal:   a step that is handed over and waited for once, its pictures copied ahead, is the same
//!         step, on a device that works late, copies early, and replays what it recorded.
//! Method: such a device ([`Lazy`]) against the CPU, bit for bit; what it was asked for, in order.

use crate::common::lazy::{Event, Habits, Lazy};
use crate::step::{
    EPOCHS, SAFECLIP, STEPS, batch, batch_of_objective, saved, trainer_matching, trainer_on,
};
use roclip::backend::cpu::Cpu;
use roclip::backend::{Backend, Solo, View, ViewMut};
use roclip::encode::Keep;
use roclip::flow::{Batch, PackedTokens, State};
use roclip::train::objective::Objective;
use roclip::train::step::{Outcome, Trainer};

const EVERY_HABIT: [Habits; 4] = [
    Habits { early: true, records: usize::MAX },
    Habits { early: false, records: 4 },
    Habits { early: true, records: 2 },
    Habits { early: false, records: 1 },
];

/// The longest caption of a batch.
const LONGEST: usize = 1;

/// The batches of a run. In the last of each three the longest caption is a shorter one each time.
fn batches(objective: Objective) -> Vec<Batch> {
    let cut = |step: u64| {
        let mut batch = batch_of_objective(objective, 15, step);
        let mut captions = PackedTokens::new();
        for n in 0..batch.captions.len() {
            let ids = batch.captions.get(n);
            let drop = if step % 3 == 2 && n == LONGEST { 1 + step as usize / 3 } else { 0 };
            captions.push(&ids[drop..]);
        }
        batch.captions = captions;
        batch
    };
    (0..EPOCHS * STEPS).map(cut).collect()
}

fn loss(outcome: Outcome) -> f64 {
    match outcome {
        Outcome::Stepped(report) => report.loss,
        Outcome::Refused(refusal) => panic!("{refusal:?}"),
    }
}

/// Uses the encoders for something else, as evaluation does between epochs.
fn evaluate<D: Backend>(trainer: &mut Trainer<D, Solo>) {
    let (device, model, weights) = trainer.for_eval();
    let images = device.buffer(&vec![0.5; 2 * 3 * 15 * 15]).unwrap();
    let mut out = device.alloc(2 * model.config().embed_dim).unwrap();
    model.encode_image(device, weights, View::all(&images), None, ViewMut::all(&mut out)).unwrap();
    let mut captions = PackedTokens::new();
    captions.push(&[59, 7, 60]);
    let out = ViewMut::of(&mut out, 0..model.config().embed_dim);
    model.encode_text(device, weights, &captions, out).unwrap();
}

/// Losses and end of a run whose batches come one step at a time.
fn plain(objective: Objective) -> (Vec<f64>, State) {
    let mut trainer = trainer_on(&Cpu::<f32>::new(1).unwrap(), objective, 1, Keep::All);
    let step = |(n, batch)| loss(trainer.step(batch, n as u64 / STEPS).unwrap());
    let losses = batches(objective).iter().enumerate().map(step).collect();
    (losses, saved(&trainer))
}

#[test]
fn replaying_and_copying_ahead_change_no_bit() {
    for objective in Objective::ALL.into_iter().chain([SAFECLIP]) {
        let expected = plain(objective);
        for (habits, keep) in EVERY_HABIT.into_iter().zip([Keep::All, Keep::Inputs].repeat(2)) {
            let mut trainer = trainer_on(&Lazy::new(habits), objective, 1, keep);
            let (batches, mut losses) = (batches(objective), Vec::new());
            for (n, batch) in batches.iter().enumerate() {
                if n % STEPS as usize == 2 {
                    evaluate(&mut trainer);
                }
                trainer.enqueue(batch, n as u64 / STEPS).unwrap();
                batches.get(n + 1).iter().for_each(|next| trainer.prefetch(next).unwrap());
                losses.push(loss(trainer.finish(batch).unwrap()));
            }
            assert_eq!(losses, expected.0, "{objective}, {habits:?}, {keep:?}");
            assert!(saved(&trainer) == expected.1, "{objective}, {habits:?}, {keep:?}");
        }
    }
}

/// Uploads, then work that was recorded before, then the next pictures; nothing is taken from the
/// device before that. Captions of new lengths cost the records of captions only.
#[test]
fn a_step_asks_for_everything_before_it_waits() {
    let device = Lazy::new(EVERY_HABIT[0]);
    let mut trainer = trainer_on(&device, Objective::Clip, 1, Keep::All);
    let batches = batches(Objective::Clip);
    let mut seen = Vec::new();
    for (n, batch) in batches.iter().enumerate() {
        device.events();
        trainer.enqueue(batch, n as u64 / STEPS).unwrap();
        let enqueued = device.events();
        batches.get(n + 1).iter().for_each(|next| trainer.prefetch(next).unwrap());
        let ahead = device.events();
        trainer.finish(batch).unwrap();
        assert!(device.events().iter().all(|event| *event == Event::Download));
        assert!(ahead.iter().all(|event| *event == Event::UploadAhead));
        assert_eq!(ahead.len(), usize::from(n + 1 < batches.len()));
        // Rates; pictures; starts, tokens, their order and ends of captions.
        let pictures = if n == 0 { Event::Upload } else { Event::WaitUploads };
        assert_eq!(enqueued[0], Event::Upload);
        assert_eq!(enqueued[1], pictures);
        assert!(enqueued[2..6].iter().all(|event| *event == Event::Upload));
        assert_eq!(enqueued.len(), 9);
        for event in &enqueued[6..] {
            let (Event::Recorded(key) | Event::Replayed(key)) = event else { panic!("{event:?}") };
            let is_new = !seen.contains(key);
            assert_eq!(matches!(event, Event::Recorded(_)), is_new);
            seen.push(key.clone());
        }
        let was_replayed = matches!(enqueued[7], Event::Replayed(_));
        assert_eq!(was_replayed, n > 1, "the pictures' work, once for each room");
        assert_eq!(matches!(enqueued[6], Event::Recorded(_)), n == 0 || n % 3 == 2, "step {n}");
    }
}

/// With several passes uploads and work alternate: nothing is recorded or copied ahead.
#[test]
fn several_passes_are_not_recorded() {
    let device = Lazy::new(EVERY_HABIT[0]);
    let mut trainer = trainer_on(&device, Objective::RoClip, 2, Keep::All);
    let [first, second] = [0, 1].map(batch);
    device.events();
    trainer.enqueue(&first, 0).unwrap();
    trainer.prefetch(&second).unwrap();
    assert!(device.events().iter().all(|event| *event == Event::Upload));
    loss(trainer.finish(&first).unwrap());
}

/// Two trainers of one device have the same shapes, and records of their own.
#[test]
fn trainers_do_not_share_records() {
    let device = Lazy::new(EVERY_HABIT[0]);
    let expected = plain(Objective::Paper);
    for _ in 0..2 {
        let mut trainer = trainer_on(&device, Objective::Paper, 1, Keep::All);
        for (n, batch) in batches(Objective::Paper).iter().enumerate() {
            loss(trainer.step(batch, n as u64 / STEPS).unwrap());
        }
        assert!(saved(&trainer) == expected.1);
    }
}

/// `paper` matches while the pool fills up: a record of fewer rows is not played for more.
#[test]
fn a_growing_pool_is_searched_whole() {
    fn run<D: Backend>(device: &D) -> Vec<(f64, Option<Vec<u32>>)> {
        let mut trainer = trainer_matching(device, Objective::Paper, 1, 1, Keep::All);
        let mut step = |n| {
            let loss = loss(trainer.step(&batch(n), n / STEPS).unwrap());
            (loss, trainer.matches().map(|matches| matches.index.clone()))
        };
        (0..STEPS).map(&mut step).collect()
    }
    assert_eq!(run(&Lazy::new(EVERY_HABIT[0])), run(&Cpu::<f32>::new(1).unwrap()));
}

/// Whatever was prefetched, a step trains on its own pictures: of other pairs, of the same pairs
/// elsewhere in memory, of other pairs in the same memory; or, one step ago, of the same pairs in
/// the same memory.
#[test]
fn what_was_prefetched_for_another_step_is_not_used() {
    let expected = plain(Objective::Clip);
    for habits in EVERY_HABIT {
        let mut trainer = trainer_on(&Lazy::new(habits), Objective::Clip, 1, Keep::All);
        let mut reused = batch(3);
        for (n, batch) in batches(Objective::Clip).iter().enumerate() {
            let (mut other, pairs) = (batch.clone(), reused.samples.clone());
            other.images.fill(0.25);
            match n % 5 {
                0 => trainer.prefetch(&crate::step::batch(99)).unwrap(),
                1 => trainer.prefetch(&other).unwrap(),
                2 => {
                    reused.samples.iter_mut().for_each(|sample| sample.index += 100);
                    trainer.prefetch(&reused).unwrap();
                    reused.samples = pairs;
                }
                _ => {}
            }
            reused.images.copy_from_slice(&batch.images);
            (reused.captions, reused.samples) = (batch.captions.clone(), batch.samples.clone());
            if n % 5 == 3 {
                trainer.prefetch(&reused).unwrap();
            }
            let outcome = trainer.step(&reused, n as u64 / STEPS).unwrap();
            assert_eq!(loss(outcome), expected.0[n], "step {n}, {habits:?}");
        }
        assert!(saved(&trainer) == expected.1, "{habits:?}");
    }
}

/// The device refuses by itself; the host learns of it later, and the next step, whose pictures
/// were under way, is what it would have been.
#[test]
fn a_refused_step_does_not_disturb_the_next() {
    let expected = plain(Objective::RoClip);
    for habits in EVERY_HABIT {
        let mut trainer = trainer_on(&Lazy::new(habits), Objective::RoClip, 1, Keep::All);
        for (n, batch) in batches(Objective::RoClip).iter().enumerate() {
            let (mut broken, epoch) = (batch.clone(), n as u64 / STEPS);
            broken.images[0] = f32::NAN;
            trainer.enqueue(&broken, epoch).unwrap();
            trainer.prefetch(batch).unwrap();
            let Outcome::Refused(refusal) = trainer.finish(&broken).unwrap() else {
                panic!("a step with NaN was taken");
            };
            assert_eq!((refusal.what, refusal.suspects.len()), ("loss", 1));
            trainer.enqueue(batch, epoch).unwrap();
            assert_eq!(loss(trainer.finish(batch).unwrap()), expected.0[n], "{habits:?}");
        }
        assert!(saved(&trainer) == expected.1, "{habits:?}");
    }
}

#[test]
#[should_panic(expected = "a step begins when the one before is finished")]
fn steps_do_not_overlap() {
    let mut trainer = trainer_on(&Cpu::<f32>::new(1).unwrap(), Objective::Clip, 1, Keep::All);
    trainer.enqueue(&batch(0), 0).unwrap();
    let _ = trainer.enqueue(&batch(1), 0);
}
