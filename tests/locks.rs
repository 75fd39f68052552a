//! Goal:   fine-tuning as open_clip locks it: what is locked keeps every bit, moments included, and
//!         counts in no norm; what is not is trained as if the rest were constants; on CPUs of any
//!         precision, in every objective, stopped and resumed.
//! Method: `golden/make_step.py`, open_clip's own locks under torch's AdamW in float64, replayed
//!         through `Trainer`; gradients of a locked model against those of one that is not; files
//!         that `roclip-train` writes.

use crate::common::golden;
use crate::common::tiny::{noise, tiny, tiny_resnet, tiny_weights};
use crate::run::{Bench, assert_same, text};
use crate::step::{EPOCHS, GoldenRun, PAIRS, STEPS, batch, batch_of, replay, saved, stepped};
use crate::step::{batch_of_objective, trainer_matching, trainer_of};
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::batchnorm::Statistics;
use roclip::backend::{Backend, Device, Solo, View, ViewMut};
use roclip::encode::{Clip, ClipConfig, Keep};
use roclip::flow::{Locks, ParamTable, State, Tower};
use roclip::train::objective::Objective;
use roclip::train::step::Trainer;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The generator's runs.
const RUNS: [(&str, Objective, Locks); 5] = [
    ("image but 1", Objective::Clip, Locks { image: Some(1), text: None }),
    ("image but 3", Objective::RoClip, Locks { image: Some(3), text: None }),
    ("text but 2", Objective::RoClip, Locks { image: None, text: Some(2) }),
    ("text", Objective::RoClip, Locks { image: None, text: Some(0) }),
    ("both", Objective::Clip, Locks { image: Some(0), text: Some(0) }),
];

fn names(table: &ParamTable) -> Vec<&str> {
    table.iter().filter(|param| param.locked).map(|param| param.name.as_str()).collect()
}

#[test]
fn twelve_locked_steps_are_torchs() {
    let golden: BTreeMap<String, GoldenRun> = golden::json("step_locked.json");
    assert_eq!(golden.len(), RUNS.len());
    for (name, objective, locks) in RUNS {
        for (passes, keep) in [(1, Keep::All), (2, Keep::Inputs)] {
            let device = Cpu::<f64>::new(2).unwrap();
            let model = Clip::locked(&device, &tiny(false), PAIRS / passes, keep, locks).unwrap();
            let (mut got, mut expected) = (names(model.params()), golden[name].locked.clone());
            got.sort_unstable();
            expected.sort_unstable();
            assert_eq!(got, expected, "{name}");
            replay(&golden[name], trainer_of(model, &device, objective, 2));
        }
    }
}

/// Every gradient of a batch, where `locks` hold.
fn gradients(config: &ClipConfig, locks: Locks, keep: Keep) -> (ParamTable, Vec<f32>) {
    let device = Cpu::<f32>::new(2).unwrap();
    let mut clip = Clip::locked(&device, config, PAIRS, keep, locks).unwrap();
    let values: Vec<f32> = tiny_weights(clip.params()).iter().map(|&v| v as f32).collect();
    let (weights, batch) = (device.weights(&values).unwrap(), batch(0));
    let mut out = vec![0.0; PAIRS * config.embed_dim];
    let mut grads = vec![0.0; clip.params().len()];
    let dout: Vec<f32> = noise(9, out.len()).iter().map(|&v| v as f32).collect();
    let pixels = batch.images.to_vec();
    let (images, dout) = (View::all(&pixels), View::all(&dout));
    clip.encode_image(&device, &weights, images, None, ViewMut::all(&mut out)).unwrap();
    clip.encode_text(&device, &weights, &batch.captions, ViewMut::all(&mut out)).unwrap();
    clip.backward_image(&device, &weights, images, None, dout, &mut grads, &mut |_, _| Ok(()))
        .unwrap();
    clip.backward_text(&device, &weights, dout, &mut grads, &mut |_, _| Ok(())).unwrap();
    (clip.params().clone(), grads)
}

/// A backward stops where nothing further is trained, and not before.
#[test]
fn gradients_of_what_is_locked_are_zero_and_the_others_as_ever() {
    let config = tiny(false);
    let (_, all) = gradients(&config, Locks::default(), Keep::All);
    for keep in [Keep::All, Keep::Inputs] {
        // the towers have five groups and four
        for groups in 0..=6 {
            let locks = Locks { image: Some(groups), text: Some(groups) };
            let (table, grads) = gradients(&config, locks, keep);
            for param in table.iter().filter(|param| param.tower() != Tower::Shared) {
                let range = param.slot.range();
                if param.locked {
                    assert!(grads[range].iter().all(|&g| g == 0.0), "{groups}: {}", param.name);
                } else {
                    assert!(grads[range.clone()] == all[range], "{groups}: {}", param.name);
                }
            }
            assert_eq!(names(&table).is_empty(), groups >= 5);
        }
    }
}

/// Weights and moments of locked parameters are those of `before`, to the bit; all others moved.
#[track_caller]
fn assert_locked(table: &ParamTable, before: &State, after: &State, what: &str) {
    let bits = |state: &State, name: &str| -> Vec<u32> {
        state.tensors[name].values.iter().map(|x| x.to_bits()).collect()
    };
    for param in table.iter() {
        for kind in ["", "optimizer.exp_avg.", "optimizer.exp_avg_sq."] {
            let name = format!("{kind}{}", param.name);
            let same = bits(before, &name) == bits(after, &name);
            assert_eq!(same, param.locked, "{what}: {name}");
        }
    }
}

fn locked_trainer(objective: Objective, locks: Locks) -> Trainer<Cpu<f32>, Solo> {
    locked_trainer_on(Cpu::new(1).unwrap(), objective, locks)
}

fn locked_trainer_on<D: Backend>(
    device: D,
    objective: Objective,
    locks: Locks,
) -> Trainer<D, Solo> {
    let model =
        Clip::locked(&device, &tiny(false), objective.views() * PAIRS, Keep::All, locks).unwrap();
    trainer_of(model, &device, objective, 2)
}

fn train<D: Backend>(trainer: &mut Trainer<D, Solo>, steps: std::ops::Range<u64>) {
    let batch = |step| batch_of_objective(trainer.options().objective, 15, step);
    let batches: Vec<_> = steps.map(|step| (step, batch(step))).collect();
    batches.iter().for_each(|(step, batch)| _ = stepped(trainer, *step, batch));
}

#[test]
fn what_is_locked_keeps_its_bits_and_runs_resume_to_theirs() {
    for objective in Objective::ALL {
        for (image, text) in [(Some(0), None), (Some(2), Some(1)), (None, Some(0))] {
            let locks = Locks { image, text };
            let what = format!("{objective} {locks:?}");
            let mut trainer = locked_trainer(objective, locks);
            let before = saved(&trainer);
            train(&mut trainer, 0..6);
            let middle = saved(&trainer);
            train(&mut trainer, 6..EPOCHS * STEPS);
            let after = saved(&trainer);
            let table = trainer.for_eval().1.params().clone();
            assert_locked(&table, &before, &after, &what);
            let mut resumed = locked_trainer(objective, locks);
            resumed.load(&middle, Path::new("middle")).unwrap();
            train(&mut resumed, 6..EPOCHS * STEPS);
            assert_same(&saved(&resumed), &after);
        }
    }
}

/// A GPU that replays what it recorded, emulated, over the end of the first matched epoch.
#[cfg(feature = "sim")]
#[test]
fn what_is_locked_keeps_its_bits_on_a_gpu() {
    use roclip::backend::cuda::{Emulator, Gpu, Mode};
    for (image, text) in [(Some(0), Some(2)), (Some(3), Some(0))] {
        let device = Gpu::new(Emulator::new(Mode::Eager, 0)).unwrap();
        let locks = Locks { image, text };
        let mut trainer = locked_trainer_on(device, Objective::RoClip, locks);
        let before = saved(&trainer);
        train(&mut trainer, 0..2 * STEPS + 1);
        let after = saved(&trainer);
        assert_locked(trainer.for_eval().1.params(), &before, &after, &format!("{locks:?}"));
    }
}

/// As many groups as there are, or more, leave nothing locked.
#[test]
fn locks_of_everything_are_no_locks() {
    let mut plain =
        trainer_matching(&Cpu::<f32>::new(1).unwrap(), Objective::RoClip, 2, 1, Keep::All);
    let mut locked = locked_trainer(Objective::RoClip, Locks { image: Some(9), text: Some(9) });
    train(&mut plain, 0..6);
    train(&mut locked, 0..6);
    assert_same(&saved(&plain), &saved(&locked));
}

/// Features, and running statistics behind a step, are those of evaluation.
#[test]
fn a_locked_resnet_normalises_by_running_statistics_that_stay() {
    let (device, config) = (Cpu::<f32>::new(2).unwrap(), tiny_resnet());
    let locks = Locks { image: Some(0), text: None };
    let features = |locks: Locks, statistics: Statistics| -> Vec<f32> {
        let mut clip = Clip::locked(&device, &config, PAIRS, Keep::All, locks).unwrap();
        clip.set_statistics(statistics);
        let values: Vec<f32> = tiny_weights(clip.params()).iter().map(|&v| v as f32).collect();
        let weights = device.weights(&values).unwrap();
        let images = batch_of(64, 0).images.to_vec();
        let mut out = vec![0.0; PAIRS * config.embed_dim];
        let to = ViewMut::all(&mut out);
        clip.encode_image(&device, &weights, View::all(&images), None, to).unwrap();
        out
    };
    let expected = features(Locks::default(), Statistics::Running);
    assert!(features(locks, Statistics::Batch) == expected);
    assert!(features(Locks::default(), Statistics::Batch) != expected);
    let model = Clip::locked(&device, &config, PAIRS, Keep::All, locks).unwrap();
    let mut trainer = trainer_of(model, &device, Objective::Clip, 2);
    let before = saved(&trainer);
    (0..2).for_each(|step| _ = stepped(&mut trainer, step, &batch_of(64, step)));
    let after = saved(&trainer);
    for buffer in trainer.for_eval().1.params().buffers() {
        assert_eq!(before.tensors[&buffer.name], after.tensors[&buffer.name], "{}", buffer.name);
    }
    assert_locked(trainer.for_eval().1.params(), &before, &after, "ResNet");
    let error =
        Clip::locked(&device, &config, PAIRS, Keep::All, Locks { image: Some(1), text: None });
    let told = error.err().unwrap().to_string();
    assert!(told.starts_with("--lock-image-unlocked-groups: 1; expected 0"), "{told}");
}

/// From flags to files: the locked tower of `--pretrained` weights comes out as it went in, and
/// only the same locks resume the run.
#[test]
fn flags_lock_and_are_part_of_the_run() {
    let bench = Bench::new();
    let model = bench.deep_model();
    bench.run("first", &["--model", &model]);
    let weights = bench.folder("first").join("open_clip_model.safetensors");
    let image = ["--lock-image", "--lock-image-unlocked-groups", "1"];
    let text_flags = ["--lock-text", "--lock-text-freeze-layer-norm"];
    let from = ["--model", &model, "--pretrained", weights.to_str().unwrap()];
    let flags = [&from[..], &image, &text_flags].concat();
    bench.run("tuned", &flags);
    let (before, after) = (bench.final_state("first"), bench.final_state("tuned"));
    let mut moved = 0;
    for (name, tensor) in after.tensors.iter().filter(|(name, _)| !name.starts_with("optimizer.")) {
        if let Some(old) = before.tensors.get(name).filter(|_| !name.starts_with("pool.")) {
            let trained = ["visual.proj", "logit_scale"].contains(&name.as_str());
            assert_eq!(tensor != old, trained, "{name}");
            moved += usize::from(trained);
        }
    }
    assert_eq!(moved, 2);
    let params = fs::read_to_string(bench.folder("tuned").join("params.txt")).unwrap();
    for line in ["lock_image: true\n", "lock_image_unlocked_groups: 1\n", "lock_text: true\n"] {
        assert!(params.contains(line), "{params}");
    }
    let others = [&from[..], &image, &["--resume", "latest"]].concat();
    let told = text(&bench.command("tuned", &others).output().unwrap());
    assert!(told.contains("--lock-text true (now )"), "{told}");
    let alone = text(&bench.command("never", &image[1..]).output().unwrap());
    assert!(alone.contains("--lock-image"), "{alone}");
    assert!(!bench.folder("never").exists());
}
