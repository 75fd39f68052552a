//! Goal:   keeping less of a forward changes no bit of a gradient; a plan is what training takes,
//!         byte for byte; what it offers fits, and nothing larger would.
//! Method: one model that keeps everything against one that computes it again; the bytes a device
//!         gave out against the plan, and the towers' against a count by hand; offers against all
//!         there are.

use crate::common::shards;
use crate::common::tiny::{convert, noise, tiny, tiny_weights};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Backend, Device, Solo, View, ViewMut};
use roclip::data::loader::LoaderConfig;
use roclip::data::sample::{Captions, Fields, Labels};
use roclip::data::transform::{Augment, TransformConfig};
use roclip::encode::{self, Clip, ClipConfig, Embedder, EmbedderRoom, Keep, VisionConfig};
use roclip::eval::{Templates, ZeroShot};
use roclip::flow::{Batch, Locks, PackedTokens, SampleId, State};
use roclip::optim::{AdamWOptions, DecayRule, Schedule, ScheduleKind};
use roclip::train::objective::{Objective, SafeClip};
use roclip::train::plan::{Plan, Planner};
use roclip::train::recipe::Recipe;
use roclip::train::step::{Outcome, StepOptions, Trainer};

const PAIRS: usize = 3;

/// The tiny model with towers of three and four blocks.
fn deep() -> ClipConfig {
    let mut config = tiny(false);
    let VisionConfig::Vit(vit) = &mut config.vision_cfg else { panic!("the tiny model is a ViT") };
    (vit.layers, config.text_cfg.layers) = (3, 4);
    config
}

/// Features of both towers, and the gradients that `times` backwards of a second, smaller batch
/// add up to: what an earlier batch left must not be taken for this one's.
fn gradients<F: CpuFloat>(keep: Keep, times: usize) -> [Vec<F>; 3] {
    let (device, config) = (Cpu::<F>::new(2).unwrap(), deep());
    let mut clip = Clip::new(&device, &config, PAIRS, keep).unwrap();
    let weights = device.weights(&convert(&tiny_weights(clip.params()))).unwrap();
    let mut grads = vec![F::default(); clip.params().len()];
    let (mut image, mut text) = (Vec::new(), Vec::new());
    for n in [PAIRS, PAIRS - 1] {
        let pixels = convert(&noise(n as u64, n * 3 * config.vision_cfg.image_size().pow(2)));
        let mut captions = PackedTokens::new();
        (0..n).for_each(|i| captions.push(&[59, (7 * i + n) as u32, 3, 60][i..]));
        image = vec![F::default(); n * config.embed_dim];
        text = image.clone();
        clip.encode_image(&device, &weights, View::all(&pixels), None, ViewMut::all(&mut image))
            .unwrap();
        clip.encode_text(&device, &weights, &captions, ViewMut::all(&mut text)).unwrap();
    }
    let dout = convert(&noise(9, image.len()));
    let pixels =
        convert(&noise(PAIRS as u64 - 1, (PAIRS - 1) * 3 * config.vision_cfg.image_size().pow(2)));
    for _ in 0..times {
        let (pixels, dout) = (View::all(&pixels), View::all(&dout));
        clip.backward_image(&device, &weights, pixels, None, dout, &mut grads, &mut |_, _| Ok(()))
            .unwrap();
        clip.backward_text(&device, &weights, dout, &mut grads, &mut |_, _| Ok(())).unwrap();
    }
    [image, text, grads]
}

/// Also where one forward is followed by two backwards: the second finds the first block's
/// activations in the shared room.
fn recomputing_changes_nothing<F: CpuFloat>() {
    for times in [1, 2] {
        let all = gradients::<F>(Keep::All, times);
        assert!(all[2].iter().any(|&g| g != F::default()));
        assert!(all == gradients::<F>(Keep::Inputs, times), "{times} backwards");
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    recomputing_changes_nothing::<f32>();
    recomputing_changes_nothing::<f64>();
}

/// What the towers hold, counted by hand from the tiny configuration.
fn activations(pairs: usize, keep: Keep) -> usize {
    // The blocks' outputs, and what is in one block.
    let stack = |layers: usize, s: usize, c: usize, block: usize| {
        let kept = if keep == Keep::All { layers } else { 1 };
        layers * s * c + kept * block
    };
    let block = |s: usize, c: usize, h: usize, heads: usize| {
        // ln_1, qkv, heads, mid, ln_2; fc, gelu; statistics of two norms; log-sum-exps.
        s * (7 * c + 2 * h + 4 + heads)
    };
    // The stream; dheads, dqkv, dx; dgelu, dfc, dx.
    let dblock = |s: usize, c: usize, h: usize| s * (7 * c + 2 * h);
    let (patches, c, h) = (9 * pairs, 12, 42);
    let s = 10 * pairs;
    let image = patches * (75 + c)
        + s * (2 * c + 2)
        + stack(3, s, c, block(s, c, h, 3))
        + pairs * (2 * c + 2)
        + pairs * 2 * c
        + dblock(s, c, h)
        + s * c
        + patches * c;
    let image_index = pairs + 1 + pairs;
    let (c, h, s) = (10, 40, 13 * pairs);
    let ends = pairs * (2 * c + 2) + pairs * 2 * c;
    let text = s * c + stack(2, s, c, block(s, c, h, 2)) + ends + dblock(s, c, h);
    // Starts; tokens and their order; ends.
    let text_index = pairs + 1 + 2 * s + pairs;
    8 * (image + text) + 4 * (image_index + text_index)
}

fn recipe(model: ClipConfig, objective: Objective, keep: Keep, passes: usize) -> Recipe {
    let step = StepOptions {
        objective,
        match_every: 1,
        micro_batch: PAIRS,
        accum_freq: passes,
        schedule: Schedule::new(ScheduleKind::Const, 1e-3, 0, 9),
        steps_per_epoch: 1,
        bn_sync: false,
    };
    let (adamw, decay) = (AdamWOptions::default(), DecayRule::ByShape);
    let locks = Locks::default();
    Recipe { model, keep, locks, pool_rows: 5, shard_pool: false, adamw, decay, step }
}

fn planner<D: Backend>(recipe: Recipe) -> Planner<'static, D> {
    Planner { recipe, world_size: 1, lanes: 1, evaluation: None }
}

#[test]
fn a_plan_counts_what_one_counts_by_hand() {
    for keep in [Keep::All, Keep::Inputs] {
        let recipe = recipe(tiny(false), Objective::Clip, keep, 2);
        let plan = planner::<Cpu<f64>>(recipe.clone()).plan().unwrap();
        assert_eq!(plan.activations, activations(PAIRS, keep), "{keep:?}");
        let params = recipe.clip(&Cpu::<f64>::new(1).unwrap()).unwrap().params().len();
        assert_eq!([plan.weights, plan.grads], [8 * params, 8 * params]);
        assert_eq!([plan.pool, plan.evaluation], [0, 0]);
        assert_eq!(plan.batch, 4 * PAIRS * 3 * 15 * 15);
        // Five batches, of two passes each.
        assert_eq!(plan.host_batches, 5 * 2 * plan.batch);
        let once = self::recipe(tiny(false), Objective::Clip, keep, 1);
        let once = planner::<Cpu<f64>>(once).plan().unwrap();
        assert_eq!(once.batch, plan.batch, "the host needs no second room for the next step's");
    }
}

/// The model everyone has in mind. Of 16 widths a token that a block writes, one is its output: 12
/// blocks are 192 widths, or 12 + 15 where they share the rest; beside both stand the gradients, 15
/// widths, and the towers' ends.
#[test]
fn recomputing_saves_what_it_should() {
    let activations = |keep| {
        let recipe = recipe(ClipConfig::named("ViT-B-32").unwrap(), Objective::Clip, keep, 1);
        planner::<Cpu<f32>>(recipe).plan().unwrap().activations as f64
    };
    let ratio = activations(Keep::All) / activations(Keep::Inputs);
    assert!(ratio > 4.0 && ratio < (192.0 + 15.0) / (27.0 + 15.0), "{ratio}");
}

fn batch(model: &ClipConfig, pairs: usize, views: usize) -> Batch {
    let side = model.vision_cfg.image_size();
    let mut captions = PackedTokens::new();
    (0..views * pairs).for_each(|n| captions.push(&[59, n as u32, 60]));
    let sample = |n| SampleId { shard: "a.tar".into(), shard_index: 0, index: n, key: "k".into() };
    let samples = (0..pairs as u32).map(sample).collect();
    let images = noise(1, views * pairs * 3 * side * side).into_iter().map(|x| x as f32).collect();
    Batch { images, image_size: side, captions, labels: Vec::new(), samples }
}

/// Three steps, of which the later are matched, allocate what the plan says and no byte more.
fn trains_as_planned<F: CpuFloat>(objective: Objective, keep: Keep, passes: usize) {
    recipe_trains_as_planned::<F>(&recipe(deep(), objective, keep, passes));
}

fn recipe_trains_as_planned<F: CpuFloat>(recipe: &Recipe) -> Plan {
    let device = Cpu::<F>::new(1).unwrap();
    let StepOptions { objective, accum_freq: passes, .. } = recipe.step;
    let keep = recipe.keep;
    let plan = planner::<Cpu<F>>(recipe.clone()).plan().unwrap();
    let weights = encode::init(&device, &recipe.model, 7).unwrap();
    let parts = recipe.parts(&device, &Solo, weights, 7).unwrap();
    let mut trainer = Trainer::new(device.clone(), Solo, parts, recipe.step.clone()).unwrap();
    for epoch in 0..3 {
        for part in objective.parts(epoch) {
            let batch = batch(&recipe.model, PAIRS * passes, part.views);
            assert!(matches!(trainer.step(&batch, epoch).unwrap(), Outcome::Stepped(_)));
        }
    }
    let pixels = 3 * recipe.model.vision_cfg.image_size().pow(2);
    let batch = objective.views() * PAIRS * passes * pixels * size_of::<f32>();
    assert_eq!(plan.host_batches, 5 * batch, "{objective}");
    assert_eq!(device.allocated(), plan.allocated(), "{objective} {keep:?} {passes}");
    let mut state = State::default();
    trainer.save(&mut state).unwrap();
    let saved: usize = state.tensors.values().map(|tensor| 4 * tensor.values.len()).sum();
    assert_eq!(plan.host_checkpoint, 2 * saved, "{objective}: the file and its content");
    plan
}

/// A tower that is locked whole has room for no backward; the other has as before.
#[test]
fn locked_towers_take_what_was_planned_which_is_less() {
    let plain = recipe(deep(), Objective::RoClip, Keep::All, 2);
    let [all, image, text, both, part] =
        [(None, None), (Some(0), None), (None, Some(0)), (Some(0), Some(0)), (Some(2), Some(2))]
            .map(|(image, text)| Recipe { locks: Locks { image, text }, ..plain.clone() })
            .map(|recipe| recipe_trains_as_planned::<f32>(&recipe).activations);
    assert!(both < image.min(text) && image.max(text) < all);
    assert_eq!((all - image) + (all - text), all - both);
    assert_eq!(part, all);
}

#[test]
fn training_takes_what_was_planned() {
    let safeclip = Objective::SafeClip(SafeClip { warmup_epochs: 1, ..SafeClip::AUTHORS });
    for objective in Objective::ALL.into_iter().chain([safeclip]) {
        for (keep, passes) in [(Keep::All, 1), (Keep::All, 3), (Keep::Inputs, 2)] {
            trains_as_planned::<f32>(objective, keep, passes);
            trains_as_planned::<f64>(objective, keep, passes);
        }
    }
}

#[test]
fn evaluation_takes_what_was_planned() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("test")).unwrap();
    std::fs::write(dir.path().join("classnames.txt"), "cat\ndog\n").unwrap();
    let members = [("0.png", shards::png(1)), ("0.cls", b"1".to_vec())];
    std::fs::write(dir.path().join("test/0.tar"), shards::tar(&members)).unwrap();
    let mut model = deep();
    let VisionConfig::Vit(vit) = &mut model.vision_cfg else { panic!("the tiny model is a ViT") };
    (model.text_cfg.vocab_size, vit.image_size) = (49_408, 10);
    let base = shards::plain("");
    let base = LoaderConfig {
        fields: Fields { captions: Captions::None, labels: Labels::Cls, ..base.fields },
        transform: TransformConfig::new(10, Augment::none()),
        ..base
    };
    let zeroshot = ZeroShot::open(dir.path(), Templates::Folder, base).unwrap();
    let (device, recipe) =
        (Cpu::<f32>::new(1).unwrap(), recipe(model, Objective::Clip, Keep::All, 1));
    let mut planner = planner::<Cpu<f32>>(recipe.clone());
    planner.evaluation = Some(Box::new(|device, model| EmbedderRoom::new(device, model).map(drop)));
    let plan = planner.plan().unwrap();
    let weights = encode::init(&device, &recipe.model, 7).unwrap();
    let mut parts = recipe.parts(&device, &Solo, weights, 7).unwrap();
    let before = device.allocated();
    let mut embedder = Embedder::new(&device, &mut parts.model, &parts.weights).unwrap();
    let classifier = zeroshot.classifier(&mut embedder).unwrap();
    zeroshot.evaluate(&mut embedder, &classifier).unwrap();
    assert_eq!(device.allocated() - before, plan.evaluation);
    assert!(plan.evaluation > 0);
}

/// The plan of other passes.
fn total(recipe: &Recipe, micro_batch: usize, accum_freq: usize, keep: Keep) -> u64 {
    let step = StepOptions { micro_batch, accum_freq, ..recipe.step.clone() };
    let recipe = Recipe { keep, step, ..recipe.clone() };
    planner::<Cpu<f32>>(recipe).plan().unwrap().total() as u64
}

#[test]
fn the_largest_batch_is_the_largest() {
    let recipe = recipe(tiny(false), Objective::RoClip, Keep::All, 2);
    let planner = planner::<Cpu<f32>>(recipe.clone());
    for keep in [Keep::All, Keep::Inputs] {
        for size in [1, 2, 3, 4, 7, 8, 100] {
            let memory = total(&recipe, size, 2, keep);
            assert_eq!(planner.largest_batch(keep, memory), size);
            assert_eq!(planner.largest_batch(keep, memory - 1), size - 1);
        }
    }
    assert_eq!(planner.largest_batch(Keep::All, 0), 0);
}

/// With memory for so much and no more, the refusal offers exactly that.
#[test]
fn offers_fit_and_nothing_larger_does() {
    let mut recipe = recipe(tiny(false), Objective::RoClip, Keep::All, 2);
    recipe.step.micro_batch = 30;
    let refusal = |recipe: &Recipe, memory: u64| {
        let error = planner::<Cpu<f32>>(recipe.clone()).check(memory).err();
        error.map_or("taken".into(), |error| error.to_string())
    };
    let all = total(&recipe, 30, 2, Keep::All);
    assert_eq!(refusal(&recipe, all), "taken");
    let told = refusal(&recipe, all - 1);
    assert!(told.starts_with("--batch-size: 30 pairs a pass take "), "{told}");
    assert!(told.contains("expected --grad-checkpointing (the same result"), "{told}");
    // 20 divides 60, as 15 does; no number between them.
    assert!(told.contains("--batch-size 20 --accum-freq 3 (the same loss"), "{told}");
    assert!(!told.contains("--grad-checkpointing (the same loss"), "one is enough: {told}");
    let told = refusal(&recipe, total(&recipe, 20, 3, Keep::All) - 1);
    assert!(told.contains("--batch-size 15 --accum-freq 4 ("), "{told}");
    let told = refusal(&recipe, total(&recipe, 15, 4, Keep::All));
    assert!(told.contains("--batch-size 15 --accum-freq 4 ("), "{told}");
    let one = total(&recipe, 1, 60, Keep::All);
    let told = refusal(&recipe, one - 1);
    assert!(!told.contains("same result"), "{told}");
    let size: usize =
        told.split("--batch-size ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(told.contains(" --grad-checkpointing (the same loss"), "{told}");
    assert!(total(&recipe, size, 60 / size, Keep::Inputs) < one);
    recipe.keep = Keep::Inputs;
    let told = refusal(&recipe, total(&recipe, 30, 2, Keep::Inputs) - 1);
    assert!(
        !told.contains("checkpointing") && told.contains("--batch-size 20 --accum-freq 3"),
        "{told}"
    );
    recipe.keep = Keep::All;
    let memory = total(&recipe, 1, 60, Keep::Inputs) - 1;
    let told = refusal(&recipe, memory);
    let most = planner::<Cpu<f32>>(recipe.clone()).largest_batch(Keep::Inputs, memory);
    assert!(most > planner::<Cpu<f32>>(recipe.clone()).largest_batch(Keep::All, memory));
    assert!(told.contains(&format!("at most --batch-size {most} --grad-checkpointing")), "{told}");
    assert!(refusal(&recipe, 1000).contains("a smaller --model: no --batch-size fits"));
}
