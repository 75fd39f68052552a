//! Goal:   training in bf16 on a GPU is the training that PyTorch's autocast does: the same losses
//!         as float64's within twice what torch itself is off by; and the same bits whatever the
//!         order of threads, recorded or not.
//! Method: the twelve steps of `golden/make_step.py`, whose shapes repeat, so that the third of a
//!         kind and all later ones are replayed from a record; on the emulated GPU in both its
//!         modes, and on a real one where the feature is.

use crate::common::golden;
use crate::common::tiny::{tiny, tiny_resnet};
use crate::step::{EPOCHS, GoldenRun, PAIRS, STEPS, batch_of_objective, stepped, trainer_of};
use roclip::backend::Backend;
use roclip::encode::{Clip, ClipConfig, Keep};
use roclip::flow::State;
use roclip::train::objective::Objective;
use std::collections::BTreeMap;

/// Twice torch's error, as the order of additions and what is kept in bf16 differ, and a rounding
/// to bf16 of the loss for where torch was lucky.
fn follows<D: Backend>(device: D, objective: Objective, passes: usize) -> (Vec<u64>, State) {
    follows_of(&tiny(false), "step.json", device, objective, passes)
}

/// The same of CLIP's ResNet, where torch's own error is large: norms over six tiny pictures.
fn resnet_follows<D: Backend>(device: D, objective: Objective) -> (Vec<u64>, State) {
    follows_of(&tiny_resnet(), "step_resnet.json", device, objective, 1)
}

fn follows_of<D: Backend>(
    config: &ClipConfig,
    file: &str,
    device: D,
    objective: Objective,
    passes: usize,
) -> (Vec<u64>, State) {
    let mut runs: BTreeMap<String, GoldenRun> = golden::json(file);
    let golden = runs.remove(objective.name()).unwrap();
    let model = Clip::new(&device, config, objective.views() * PAIRS / passes, Keep::All).unwrap();
    let mut trainer = trainer_of(model, &device, objective, 2);
    let mut losses = Vec::new();
    for (step, expected) in golden.steps.iter().enumerate() {
        let batch = batch_of_objective(objective, config.vision_cfg.image_size(), step as u64);
        let report = stepped(&mut trainer, step as u64, &batch);
        let close = |what: &str, got: f64, expected: f64, torch: f64| {
            let (off, bound) =
                ((got - expected).abs(), expected * (2.0 * torch + 2.0_f64.powi(-9)));
            assert!(
                off <= bound,
                "{what} of step {step}: {got}, expected {expected} ± {bound:.1e}"
            );
        };
        close("loss", report.loss, expected.loss, golden.half.loss);
        close("norm", report.grad_norm, expected.grad_norm, golden.half.grad_norm);
        assert_eq!(report.matched, expected.index.is_some(), "step {step}");
        losses.push(report.loss.to_bits());
    }
    assert_eq!(losses.len() as u64, EPOCHS * STEPS);
    let mut state = State::default();
    trainer.save(&mut state).unwrap();
    (losses, state)
}

#[cfg(feature = "sim")]
mod sim {
    use super::*;
    use crate::run::{Bench, assert_same, text};
    use crate::step::{batch, trainer_on};
    use roclip::backend::cuda::{Emulator, Gpu, Mode};

    /// Another order of threads, late or early asynchronous work, queued or at once: the same bits.
    fn follows_in_every_mode(objective: Objective, passes: usize) {
        let runs = [(Mode::Lazy, 1), (Mode::Eager, 2), (Mode::Lazy, 7)];
        let run =
            |(mode, seed)| follows(Gpu::new(Emulator::new(mode, seed)).unwrap(), objective, passes);
        let [first, rest @ ..] = runs.map(run);
        rest.into_iter().for_each(|other| assert!(other == first, "bits depend on the mode"));
    }

    #[test]
    fn twelve_steps_of_clip() {
        follows_in_every_mode(Objective::Clip, 1);
    }

    #[test]
    fn twelve_steps_of_cyclip_and_cleanclip() {
        for name in ["cyclip", "cleanclip"] {
            let objective = name.parse().unwrap();
            let [lazy, eager] = [(Mode::Lazy, 1), (Mode::Eager, 2)].map(|(mode, seed)| {
                let device = Gpu::new(Emulator::new(mode, seed)).unwrap();
                follows_of(&tiny(false), "step_methods.json", device, objective, 1)
            });
            assert!(lazy == eager, "bits depend on the mode");
        }
    }

    /// The whole program: masters, moments and a pool in bf16 to the checkpoint and back.
    #[test]
    fn a_run_that_resumes_reaches_the_same_bits() {
        let bench = Bench::new();
        let same = ["--device", "sim", "--lr-scheduler", "const"];
        let told = text(&bench.run("whole", &same));
        assert!(told.contains("Running on sim (an emulated GPU)"), "{told}");
        bench.run("parts", &[&same[..], &["--epochs", "2"]].concat());
        bench.run("parts", &[&same[..], &["--resume", "latest"]].concat());
        assert_same(&bench.final_state("whole"), &bench.final_state("parts"));
        let losses = |name: &str| -> Vec<f64> {
            let steps = bench.lines(name, "metrics.jsonl");
            steps.iter().map(|step| step["loss"].as_f64().unwrap()).collect()
        };
        bench.run("cpu", &["--lr-scheduler", "const"]);
        // bf16 has 2^-9 of error in a rounding; a loss of 8 pairs is an average over dozens
        let (gpu, cpu) = (losses("whole")[0], losses("cpu")[0]);
        assert!((gpu - cpu).abs() < cpu * 2.0_f64.powi(-7), "{gpu} and {cpu}");
    }

    /// From the second step of a kind on, which may record it.
    #[test]
    fn a_step_neither_allocates_on_the_device_nor_waits_for_it() {
        let emulator = Emulator::new(Mode::Lazy, 1);
        let device = Gpu::new(emulator.clone()).unwrap();
        let mut trainer = trainer_on(&device, Objective::RoClip, 1, Keep::All);
        for step in 0..EPOCHS * STEPS {
            let batch = batch(step);
            let before = (emulator.allocations(), emulator.waits());
            trainer.enqueue(&batch, step / STEPS).unwrap();
            let after = (emulator.allocations(), emulator.waits());
            let is_new = [0, STEPS].contains(&step);
            assert!(is_new || after == before, "step {step}: {before:?} became {after:?}");
            trainer.finish(&batch).unwrap();
            assert_eq!(emulator.allocations(), after.0, "finish, step {step}");
        }
    }

    #[test]
    fn twelve_steps_of_roclip() {
        follows_in_every_mode(Objective::RoClip, 1);
    }

    #[test]
    fn twelve_steps_of_a_resnet() {
        let run = |mode, seed| {
            resnet_follows(Gpu::new(Emulator::new(mode, seed)).unwrap(), Objective::RoClip)
        };
        assert!(run(Mode::Lazy, 1) == run(Mode::Eager, 2), "bits depend on the mode");
    }

    #[test]
    fn twelve_steps_of_roclip_in_two_passes() {
        follows_in_every_mode(Objective::RoClip, 2);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use roclip::backend::cuda::{Card, Gpu};

    fn follows_twice(objective: Objective, passes: usize) {
        let card = || Gpu::new(Card::open(0).unwrap()).unwrap();
        let first = follows(card(), objective, passes);
        assert!(follows(card(), objective, passes) == first, "a second run has other bits");
    }

    #[test]
    fn twelve_steps_of_clip() {
        follows_twice(Objective::Clip, 1);
    }

    #[test]
    fn twelve_steps_of_roclip() {
        follows_twice(Objective::RoClip, 1);
    }

    #[test]
    fn twelve_steps_of_a_resnet() {
        let run = || resnet_follows(Gpu::new(Card::open(0).unwrap()).unwrap(), Objective::RoClip);
        assert!(run() == run(), "a second run has other bits");
    }

    #[test]
    fn twelve_steps_of_roclip_in_two_passes() {
        follows_twice(Objective::RoClip, 2);
    }
}
