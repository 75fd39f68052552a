//! What is trained where whole steps are timed.

use roclip::Result;
use roclip::backend::{Backend, Communicator};
use roclip::encode::{self, Clip, ClipConfig, Keep};
use roclip::flow::{Batch, PackedTokens, SampleId};
use roclip::optim::{AdamWOptions, DecayRule, Optimizer, Schedule, ScheduleKind};
use roclip::train::objective::Objective;
use roclip::train::step::{Parts, StepOptions, Trainer};
use std::ops::RangeInclusive;

/// Tokens of a caption, start and end included.
pub const LENGTHS: RangeInclusive<usize> = 8..=24;
/// Batches that take turns.
pub const BATCHES: usize = 4;

/// Tokens of caption `n` of batch `number`: short ones are more frequent, 13 on average.
///
/// The lesser of two numbers drawn by a congruential generator; `scripts/peers.py` draws the same.
fn length(number: usize, n: usize) -> usize {
    let mut state = (number * 1_000_003 + n) as u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % (LENGTHS.end() - LENGTHS.start() + 1)
    };
    LENGTHS.start() + draw().min(draw())
}

/// [`BATCHES`] batches, which differ.
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn batches<D: Backend>(device: &D, config: &ClipConfig, pairs: usize) -> Result<Vec<Batch>> {
    (0..BATCHES).map(|number| batch(device, config, pairs, number)).collect()
}

fn batch<D: Backend>(
    device: &D,
    config: &ClipConfig,
    pairs: usize,
    number: usize,
) -> Result<Batch> {
    let side = config.vision_cfg.image_size();
    let pixel = |n: usize| (((n + number) * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
    let mut captions = PackedTokens::new();
    for n in 0..pairs {
        let length = length(number, n);
        let id = |t: usize| ((n * 31 + t * 7 + number) % 40_000) as u32;
        let mut ids: Vec<u32> = (0..length).map(id).collect();
        (ids[0], ids[length - 1]) = (49_406, 49_407);
        captions.push(&ids);
    }
    let sample =
        |n| SampleId { shard: "none".into(), shard_index: 0, index: n, key: n.to_string() };
    let mut images = device.host_alloc(pairs * 3 * side * side)?;
    images.iter_mut().enumerate().for_each(|(n, x)| *x = pixel(n));
    Ok(Batch {
        images,
        image_size: side,
        captions,
        labels: Vec::new(),
        samples: (0..pairs as u32).map(sample).collect(),
    })
}

/// Plain CLIP with AdamW, in one pass.
///
/// # Errors
/// [`roclip::Error::Device`] where memory does not suffice.
pub fn trainer<D: Backend, C: Communicator<D>>(
    device: &D,
    comm: C,
    config: &ClipConfig,
    pairs: usize,
) -> Result<Trainer<D, C>> {
    let model = Clip::new(device, config, pairs, Keep::All)?;
    let weights = encode::init(device, config, 0)?;
    let adamw = AdamWOptions::default();
    let optimizer = Optimizer::new(device, model.params(), adamw, DecayRule::ByShape)?;
    let parts = Parts { model, weights, optimizer, pool: None, image_pool: None };
    let options = StepOptions {
        objective: Objective::Clip,
        match_every: 1,
        micro_batch: pairs,
        accum_freq: 1,
        schedule: Schedule::new(ScheduleKind::Const, 1e-6, 0, 1),
        steps_per_epoch: 1,
        bn_sync: false,
    };
    Trainer::new(device.clone(), comm, parts, options)
}
