//! Goal:   with `--use-bn-sync` ranks train a ResNet as one process does: losses, weights, running
//!         statistics.
//! Method: ranks as threads, in float64, against one rank with all pairs in as many passes; without
//!         the flag norms see less, and the same comparison fails.

use crate::common::tiny::tiny_resnet;
use crate::sharded::on_ranks;
use crate::step::{PAIRS, batch_of};
use roclip::backend::cpu::Cpu;
use roclip::backend::{Communicator, Solo};
use roclip::encode::{self, Keep};
use roclip::flow::{Batch, Locks, PackedTokens, State};
use roclip::optim::{AdamWOptions, DecayRule, Schedule, ScheduleKind};
use roclip::train::objective::Objective;
use roclip::train::recipe::Recipe;
use roclip::train::step::{Outcome, StepOptions, Trainer};

const STEPS: u64 = 3;
const SIDE: usize = 64;

/// With ε = 1 AdamW moves a weight by its gradient times the learning rate, and errors stay small.
pub fn recipe(ranks: usize, passes: usize, keep: Keep, bn_sync: bool) -> Recipe {
    let step = StepOptions {
        // In several passes pairs stand in other places of the pool.
        objective: if passes == 1 { Objective::RoClip } else { Objective::Clip },
        match_every: 2,
        micro_batch: PAIRS / ranks / passes,
        accum_freq: passes,
        schedule: Schedule::new(ScheduleKind::Const, 0.1, 0, STEPS),
        steps_per_epoch: 1,
        bn_sync,
    };
    let adamw = AdamWOptions { lr: 0.1, eps: 1.0, ..AdamWOptions::default() };
    Recipe {
        model: tiny_resnet(),
        keep,
        locks: Locks::default(),
        pool_rows: 9,
        shard_pool: false,
        adamw,
        decay: DecayRule::ByShape,
        step,
    }
}

/// Of the pairs of a step, those of a rank: of each pass its share.
fn share(all: &Batch, [rank, ranks, passes]: [usize; 3]) -> Batch {
    let (of_pass, own) = (PAIRS / passes, PAIRS / passes / ranks);
    let rows = (0..passes).flat_map(|pass| (0..own).map(move |n| pass * of_pass + rank * own + n));
    let (rows, image) = (rows.collect::<Vec<_>>(), 3 * SIDE * SIDE);
    let mut captions = PackedTokens::new();
    rows.iter().for_each(|&row| captions.push(all.captions.get(row)));
    let images = rows.iter().flat_map(|row| &all.images[row * image..][..image]).copied();
    let samples = rows.iter().map(|&row| all.samples[row].clone()).collect();
    Batch { images: images.collect(), image_size: SIDE, captions, labels: Vec::new(), samples }
}

/// Losses, and what is saved.
fn train(recipe: &Recipe, comm: impl Communicator<Cpu<f64>>) -> (Vec<f64>, State) {
    let device = Cpu::<f64>::new(1).unwrap();
    let which = [comm.rank(), comm.world_size(), recipe.step.accum_freq];
    let weights = encode::init(&device, &recipe.model, 7).unwrap();
    let parts = recipe.parts(&device, &comm, weights, 7).unwrap();
    let mut trainer = Trainer::new(device, comm, parts, recipe.step.clone()).unwrap();
    let losses = (0..STEPS).map(|step| {
        let batch = share(&batch_of(SIDE, step), which);
        let Outcome::Stepped(report) = trainer.step(&batch, step).unwrap() else {
            panic!("step {step} was refused");
        };
        report.loss
    });
    let (losses, mut state) = (losses.collect(), State::default());
    if which[0] == 0 {
        trainer.save(&mut state).unwrap();
    }
    (losses, state)
}

/// Largest differences of losses and of what was saved, in float32.
fn apart(recipe: &Recipe, ranks: usize, alone: &(Vec<f64>, State)) -> [f64; 2] {
    let trained = on_ranks(ranks, |comm| train(recipe, comm));
    let most = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let losses = trained.iter().flat_map(|(losses, _)| losses.iter().zip(&alone.0));
    let tensors = alone.1.tensors.iter().flat_map(|(name, tensor)| {
        let other = &trained[0].1.tensors[name];
        other.values.iter().zip(&tensor.values).map(|(&a, &b)| (f64::from(a), f64::from(b)))
    });
    [most(&mut losses.map(|(&a, &b)| (a, b))), most(&mut { tensors })]
}

/// Bounds: float64's rounding of 2⁻⁵³ in sums of up to 2¹⁵ terms (pixels of six pictures), carried
/// through some ten norms and three steps, each of which may double it: 2⁻²⁵; what is saved is
/// rounded to 2⁻²⁴ of values of at most 16.
#[test]
fn ranks_share_their_statistics() {
    for (passes, keep, worlds) in [(1, Keep::All, &[2, 3, 6][..]), (2, Keep::Inputs, &[3])] {
        let alone = train(&recipe(1, passes, keep, false), Solo);
        for &ranks in worlds {
            let [losses, saved] = apart(&recipe(ranks, passes, keep, true), ranks, &alone);
            assert!(losses < 2f64.powi(-25), "losses of {ranks} ranks: {losses:e}");
            assert!(saved <= 2f64.powi(-20), "weights of {ranks} ranks: {saved:e}");
        }
        let [losses, saved] = apart(&recipe(3, passes, keep, false), 3, &alone);
        assert!(losses > 1e-3 && saved > 1e-3, "without: {losses:e}, {saved:e}");
    }
}
