//! Goal: both towers compute open_clip's function, its gradients and its initialisation, under its
//! parameter names.
//! Method: features and every gradient that open_clip 3.3.0 computed in float64 from padded
//! captions (`golden/make_encode.py`), its state dicts' names and shapes, and statistics of what it
//! draws.

use crate::common::tiny::{convert, error, noise, tiny, tiny_resnet, tiny_weights};
use crate::common::{Golden, golden};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Device, Element, View, ViewMut};
use roclip::encode::{self, Clip, ClipConfig, Keep};
use roclip::flow::{PackedTokens, Param};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;

const IMAGES: usize = 3;
const LENGTHS: [usize; 4] = [5, 13, 2, 9];
const START: u32 = 59;
const END: u32 = 60;
const PIXELS: u64 = 1000;
const COTANGENT_IMAGE: u64 = 1001;
const TOKENS: u64 = 1002;
const COTANGENT_TEXT: u64 = 1003;

fn path(name: &str) -> PathBuf {
    golden::root().join("tests").join(name)
}

/// The generator's captions, packed; there they are padded to the context.
fn tiny_captions() -> PackedTokens {
    let context = 13;
    let draws = noise(TOKENS, LENGTHS.len() * context);
    let mut captions = PackedTokens::new();
    for (n, &length) in LENGTHS.iter().enumerate() {
        let id = |&v: &f64| ((v + 1.0) * 32768.0) as u32 % START;
        let mut ids: Vec<u32> = draws[n * context..][..length].iter().map(id).collect();
        (ids[0], ids[length - 1]) = (START, END);
        captions.push(&ids);
    }
    captions
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Image,
    Text,
}

/// Features and gradients (all parameters, flat) of one tower of the tiny model.
fn run<F>(device: &Cpu<F>, which: Which, config: &ClipConfig, room: usize) -> (Vec<F>, Vec<F>)
where
    F: CpuFloat + Element,
{
    let mut clip = Clip::new(device, config, room, Keep::All).unwrap();
    let weights = device.weights(&convert(&tiny_weights(clip.params()))).unwrap();
    let n = if which == Which::Image { IMAGES } else { LENGTHS.len() };
    let mut features = vec![F::default(); n * config.embed_dim];
    let mut grads = vec![F::default(); clip.params().len()];
    let out = ViewMut::all(&mut features);
    if which == Which::Image {
        let images = convert(&noise(PIXELS, IMAGES * 3 * config.vision_cfg.image_size().pow(2)));
        clip.encode_image(device, &weights, View::all(&images), None, out).unwrap();
        let dout = convert(&noise(COTANGENT_IMAGE, n * config.embed_dim));
        let (images, dout) = (View::all(&images), View::all(&dout));
        clip.backward_image(device, &weights, images, None, dout, &mut grads, &mut |_, _| Ok(()))
            .unwrap();
    } else {
        clip.encode_text(device, &weights, &tiny_captions(), out).unwrap();
        let dout = convert(&noise(COTANGENT_TEXT, n * config.embed_dim));
        clip.backward_text(device, &weights, View::all(&dout), &mut grads, &mut |_, _| Ok(()))
            .unwrap();
    }
    (features, grads)
}

/// Holds features and gradients against open_clip's.
///
/// The bound of f32 is twice the error of open_clip's own float32 run, plus one rounding. Rounding
/// errors scale with the unit roundoff, so that of f64 is the same times 2^-29, and twice that, for
/// the reference is itself rounded.
fn matches_open_clip<F: CpuFloat + Element>(which: Which, gelu: &str) {
    let name = format!("encode_{}_{gelu}", format!("{which:?}").to_lowercase());
    let golden = Golden::open(&name);
    let config = tiny(gelu == "quick");
    let (features, grads) = run(&Cpu::<F>::new(2).unwrap(), which, &config, 5);

    let naive = golden.f64("naive_f32");
    let single = size_of::<F>() == 4;
    let scale = if single { 1.0 } else { 2.0 * 2f64.powi(-29) };
    let bound = |naive: f64| scale * (2.0 * naive + f64::from(f32::EPSILON));

    let mut wrong = String::new();
    let mut check = |name: &str, got: &[F], reference: &[f64], bound: f64| {
        let error = error(got, reference);
        if error.is_nan() || error > bound {
            writeln!(wrong, "{name}: error {error:.2e}, bound {bound:.2e}").unwrap();
        }
    };
    check("features", &features, &golden.f64("features"), bound(naive[0]));
    let mut seen = 2; // features and naive_f32
    for param in encode::params(&config).unwrap().iter() {
        let ours = &grads[param.slot.range()];
        let image = param.name.starts_with("visual.");
        if param.name == "logit_scale" || image != (which == Which::Image) {
            assert!(ours.iter().all(|&g| g == F::default()), "{} is not of this tower", param.name);
            continue;
        }
        seen += 1;
        assert!(ours.iter().any(|&g| g != F::default()), "{} has no gradient", param.name);
        let theirs = golden.f64(&format!("grad.{}", param.name));
        check(&param.name, ours, &theirs, bound(naive[1]));
    }
    assert_eq!(seen, golden.names().len(), "every tensor of {name} was compared");
    assert!(wrong.is_empty(), "{name}\n{wrong}");
}

#[test]
fn image_tower_is_open_clips() {
    for gelu in ["erf", "quick"] {
        matches_open_clip::<f64>(Which::Image, gelu);
        matches_open_clip::<f32>(Which::Image, gelu);
    }
}

/// Also the proof that packed captions give what padded ones do: the golden captions were padded.
#[test]
fn text_tower_is_open_clips() {
    for gelu in ["erf", "quick"] {
        matches_open_clip::<f64>(Which::Text, gelu);
        matches_open_clip::<f32>(Which::Text, gelu);
    }
}

/// Neither the number of threads nor room for a larger micro-batch may change a bit.
#[test]
fn bits_depend_on_neither_threads_nor_room() {
    for which in [Which::Image, Which::Text] {
        let config = tiny(false);
        let reference = run(&Cpu::<f32>::new(1).unwrap(), which, &config, 4);
        for (threads, room) in [(2, 4), (3, 4), (1, 9)] {
            let got = run(&Cpu::<f32>::new(threads).unwrap(), which, &config, room);
            assert!(got == reference, "{which:?} with {threads} threads, room for {room}");
        }
    }
}

/// Buffers are used again: a batch after a larger one gives what it gives in a fresh model, and
/// gradients add to those that are there.
#[test]
fn nothing_is_left_over_from_the_last_batch() {
    let (device, config) = (Cpu::<f64>::new(1).unwrap(), tiny(false));
    let run = |clip: &mut Clip<Cpu<f64>>, captions: &PackedTokens, grads: &mut Vec<f64>| {
        let weights = device.weights(&tiny_weights(clip.params())).unwrap();
        let mut out = vec![0.0; captions.len() * config.embed_dim];
        clip.encode_text(&device, &weights, captions, ViewMut::all(&mut out)).unwrap();
        let dout = vec![1.0; out.len()];
        clip.backward_text(&device, &weights, View::all(&dout), grads, &mut |_, _| Ok(())).unwrap();
        out
    };
    let (large, mut small) = (tiny_captions(), PackedTokens::new());
    (2..4).for_each(|n| small.push(large.get(n)));
    let mut used = Clip::new(&device, &config, 4, Keep::All).unwrap();
    let mut fresh = Clip::new(&device, &config, 4, Keep::All).unwrap();
    let len = used.params().len();
    let mut both = vec![0.0; len];
    run(&mut used, &large, &mut both);
    let before = both.clone();
    let after = run(&mut used, &small, &mut both);
    let mut alone = vec![0.0; len];
    assert_eq!(run(&mut fresh, &small, &mut alone), after);
    // One rounding of the sum, and one more where a sum grows in another order.
    let largest = both.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    for i in 0..len {
        assert!((both[i] - before[i] - alone[i]).abs() <= 8.0 * f64::EPSILON * largest, "{i}");
    }
}

#[test]
fn names_and_shapes_are_open_clips() {
    let models = [
        ("ViT-B-32", 151_277_313),
        ("ViT-B-16", 149_620_737),
        ("RN50", 102_007_137),
        ("RN101", 119_688_033),
    ];
    for (name, total) in models {
        let list = std::fs::read_to_string(path(&format!("fixtures/openclip_{name}.tsv"))).unwrap();
        let table = encode::params(&ClipConfig::named(name).unwrap()).unwrap();
        let line = |p: &Param| format!("{}\t{:?}\tfloat32", p.name, p.shape);
        let is_buffer = |line: &&str| line.contains("running_") || line.contains("num_batches");
        let (buffers, params): (Vec<&str>, Vec<&str>) = list.lines().partition(is_buffer);
        assert_eq!(table.iter().map(line).collect::<Vec<_>>(), params, "{name}");
        let counts = buffers.iter().filter(|line| line.contains("num_batches"));
        let ours: Vec<_> = table.buffers().map(|buffer| line(&buffer)).collect();
        assert_eq!(2 * counts.count(), ours.len(), "{name}");
        let theirs = buffers.iter().filter(|line| line.contains("running_"));
        assert_eq!(ours, theirs.copied().collect::<Vec<_>>(), "{name}");
        assert_eq!(table.values(), total, "{name}");
    }
}

/// The table of the built-in models states these.
#[test]
fn built_in_models_have_the_documented_sizes() {
    let sizes = ClipConfig::names().map(|name| {
        let config = ClipConfig::named(name).unwrap();
        (name, encode::params(&config).unwrap().values())
    });
    let documented = [
        ("RN50", 102_007_137),
        ("RN101", 119_688_033),
        ("ViT-B-32", 151_277_313),
        ("ViT-B-16", 149_620_737),
        ("ViT-tiny-16", 17_769_025),
        ("ViT-micro-4-32px", 9_860_225),
        ("RN-nano-64px", 8_307_737),
        ("ViT-nano-8-32px", 7_782_401),
    ];
    assert_eq!(sizes.collect::<Vec<_>>(), documented);
    let quick = ClipConfig::named("ViT-B-32-quickgelu").unwrap();
    assert!(quick.quick_gelu);
    assert_eq!(ClipConfig { quick_gelu: false, ..quick }, ClipConfig::named("ViT-B-32").unwrap());
}

/// Mean of x, |x|, x² and x⁴ of every tensor over many seeds, ours against open_clip's; together
/// they tell a uniform from a normal distribution. The bound is five standard errors of the
/// difference; constants must agree to the rounding of f32.
#[test]
fn initial_values_are_distributed_as_open_clips() {
    distributed_as_open_clips(tiny(false), "encode_init.json");
    distributed_as_open_clips(tiny_resnet(), "resnet_init.json");
}

fn distributed_as_open_clips(config: ClipConfig, file: &str) {
    let golden: Value = serde_json::from_slice(&golden::read(file)).unwrap();
    let table = encode::params(&config).unwrap();
    let models: Vec<Vec<f32>> =
        (0..300).map(|seed| encode::init::values(&table, &config, seed)).collect();
    assert_eq!(golden.as_object().unwrap().len(), table.weights().count());
    for param in table.weights() {
        let theirs = &golden[&param.name];
        let draws = || models.iter().flat_map(|m| &m[param.slot.range()]).map(|&x| f64::from(x));
        let n = draws().count() as f64;
        let errors = (1.0 / n + 1.0 / theirs["n"].as_f64().unwrap()).sqrt();
        let powers: [fn(f64) -> f64; 4] = [|x| x, f64::abs, |x| x.powi(2), |x| x.powi(4)];
        for (i, power) in powers.iter().enumerate() {
            let number = |j: usize| theirs["stats"][i][j].as_f64().unwrap();
            let (mean, deviation) = (number(0), number(1));
            let ours = draws().map(power).sum::<f64>() / n;
            let bound = 5.0 * deviation * errors + 4.0 * f64::from(f32::EPSILON) * mean.abs();
            let name = &param.name;
            assert!((ours - mean).abs() <= bound, "{name}, power {i}: {ours} for {mean} ± {bound}");
        }
    }
    assert_eq!(models[7], encode::init::values(&table, &config, 7));
    assert_ne!(models[7], models[8]);
}

fn encode_text_error(captions: &PackedTokens) -> String {
    let (device, config) = (Cpu::<f32>::new(1).unwrap(), tiny(false));
    let mut clip = Clip::new(&device, &config, 4, Keep::All).unwrap();
    let weights = encode::init(&device, &config, 1).unwrap();
    let mut out = vec![0.0; captions.len().max(1) * config.embed_dim];
    let result = clip.encode_text(&device, &weights, captions, ViewMut::all(&mut out));
    result.expect_err("refused").to_string()
}

#[test]
fn captions_that_cannot_be_read_are_refused() {
    let packed = |captions: &[&[u32]]| {
        let mut packed = PackedTokens::new();
        captions.iter().for_each(|caption| packed.push(caption));
        packed
    };
    let long = [1u32; 14];
    let cases = [
        (packed(&[]), "0 captions"),
        (packed(&[&[1u32][..]; 5]), "5 captions, max_pairs 4"),
        (packed(&[&[1, 2], &[]]), "caption 1 from token 2 to 2"),
        (packed(&[&[1], &long]), "caption 1 from token 1 to 15, context 13"),
        (packed(&[&[1, 2], &[3, 61]]), "id 61 at token 3, vocabulary 61"),
        (PackedTokens { tokens: vec![1; 3], cu_seqlens: vec![0, 2] }, "3 tokens"),
        (PackedTokens { tokens: vec![1; 3], cu_seqlens: vec![1, 3] }, "3 tokens"),
        (PackedTokens { tokens: vec![1; 3], cu_seqlens: vec![0, 4, 2, 3] }, "token 4 to 2"),
        (PackedTokens { tokens: vec![], cu_seqlens: vec![] }, "0 captions"),
    ];
    for (captions, expected) in cases {
        let message = encode_text_error(&captions);
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn pictures_of_another_size_or_number_are_refused() {
    let (device, config) = (Cpu::<f32>::new(1).unwrap(), tiny(false));
    let mut clip = Clip::new(&device, &config, 2, Keep::All).unwrap();
    let weights = encode::init(&device, &config, 1).unwrap();
    for values in [0, 674, 676, 3 * 675] {
        let (images, mut out) = (vec![0.0; values], vec![0.0; 7]);
        let out = ViewMut::all(&mut out);
        let result = clip.encode_image(&device, &weights, View::all(&images), None, out);
        let message = result.expect_err("refused").to_string();
        assert!(message.contains(&format!("{values} values, 675 a picture")), "{message}");
    }
    let none = Clip::new(&device, &config, 0, Keep::All).err().expect("refused").to_string();
    assert!(none.contains("max_pairs 0"), "{none}");
}

#[test]
#[should_panic(expected = "backward_image without encode_image")]
fn a_backward_needs_its_forward() {
    let (device, config) = (Cpu::<f32>::new(1).unwrap(), tiny(false));
    let mut clip = Clip::new(&device, &config, 1, Keep::All).unwrap();
    let weights = encode::init(&device, &config, 1).unwrap();
    let mut grads = vec![0.0; clip.params().len()];
    let dout = vec![0.0; 7];
    let _ = clip.backward_image(
        &device,
        &weights,
        View::all(&dout),
        None,
        View::all(&dout),
        &mut grads,
        &mut |_, _| Ok(()),
    );
}

/// The message with which a configuration file is refused.
fn refusal(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    ClipConfig::load(file.path().to_str().unwrap()).expect_err("refused").to_string()
}

/// The tiny configuration with one value replaced or added.
fn edited(section: &str, field: &str, value: Value) -> String {
    let mut config = serde_json::to_value(tiny(false)).unwrap();
    config[section][field] = value;
    config.to_string()
}

#[test]
fn configurations_that_cannot_be_built_are_refused_by_name() {
    use serde_json::json;
    let vision = |field: &str, value| refusal(&edited("vision_cfg", field, value));
    let text = |field: &str, value| refusal(&edited("text_cfg", field, value));
    let resnet = |field: &str, value| {
        let mut config = serde_json::to_value(tiny_resnet()).unwrap();
        config["vision_cfg"][field] = value;
        refusal(&config.to_string())
    };
    let cases = [
        (vision("ls_init_value", json!(1e-4)), "vision_cfg: unknown field `ls_init_value`"),
        (vision("pool_type", json!("avg")), "expected one of `image_size`, `layers`"),
        (text("no_causal_mask", json!(true)), "text_cfg: unknown field `no_causal_mask`"),
        (vision("layers", json!([3, 4, 6, 3])), "vision_cfg: unknown field `mlp_ratio`"),
        (vision("patch_size", Value::Null), "vision_cfg: invalid type: null"),
        (resnet("patch_size", json!(32)), "vision_cfg: "),
        (resnet("layers", json!([1, 1, 1])), "vision_cfg: invalid length 3"),
        (resnet("layers", json!([1, 0, 1, 1])), "vision_cfg.layers[1]"),
        (resnet("image_size", json!(48)), "48; expected a multiple of pixels that become one, 32"),
        (resnet("width", json!(3)), "3; expected a multiple of"),
        (resnet("head_width", json!(24)), "64; expected a multiple of vision_cfg.head_width, 24"),
        (vision("patch_size", json!(4)), "vision_cfg.image_size"),
        (vision("head_width", json!(5)), "12; expected a multiple of vision_cfg.head_width, 5"),
        (vision("width", json!(0)), "0; expected 1 to 65536"),
        (vision("mlp_ratio", json!(0.01)), "vision_cfg.mlp_ratio"),
        (text("heads", json!(3)), "10; expected a multiple of text_cfg.heads, 3"),
        (text("vocab_size", json!(1u64 << 25)), "33554432; expected 1 to 16777216"),
        (text("layers", json!(-2)), "text_cfg: invalid value: integer `-2`"),
        (refusal("{\"embed_dim\": 4}"), "\"vision_cfg\" is missing"),
        (refusal("{"), "not JSON"),
        (ClipConfig::load("ViT-B-33").expect_err("refused").to_string(), "ViT-B-32, ViT-B-16"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn configurations_are_written_as_open_clip_reads_them() {
    let config = ClipConfig::named("ViT-B-32-quickgelu").unwrap();
    let written = config.open_clip_json([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]);
    let expected = serde_json::json!({
        "model_cfg": {
            "embed_dim": 512,
            "quick_gelu": true,
            "vision_cfg": { "image_size": 224, "layers": 12, "width": 768, "patch_size": 32 },
            "text_cfg": {
                "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
            },
        },
        "preprocess_cfg": { "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6] },
    });
    assert_eq!(written, expected);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), written.to_string()).unwrap();
    assert_eq!(ClipConfig::load(file.path().to_str().unwrap()).unwrap(), config);
    let tiny = tiny(true);
    std::fs::write(file.path(), serde_json::to_string(&tiny).unwrap()).unwrap();
    assert_eq!(ClipConfig::load(file.path().to_str().unwrap()).unwrap(), tiny);
}
