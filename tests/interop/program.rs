//! Goal: `roclip-model` as a user meets it.
//! Method: runs the program on the golden files and reads what it wrote.

use super::{Files, golden_tensors};
use crate::common::{golden, shards};
use roclip::encode::{self, ClipConfig};
use roclip::interop::{Model, Options, Tensor, Tensors, tensors};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_roclip-model")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn convert_writes_a_directory_and_overwrites_none() {
    let files = Files::new();
    let model = files.tiny().model.unwrap();
    let from = golden::folder().join("interop_torchscript.pt");
    let (from, to) = (from.to_str().unwrap(), files.path("out"));
    let to = to.to_str().unwrap();
    let done = run(&["convert", from, to, "--model", &model, "--dtype", "f32"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("open_clip_model.safetensors"));
    let back = Model::open(to.as_ref(), &Options::default()).unwrap();
    assert!(back.tensors == golden_tensors("model."));
    let card = std::fs::read_to_string(files.path("out/README.md")).unwrap();
    assert!(card.contains("Converted from `interop_torchscript.pt`"), "{card}");

    let again = run(&["convert", from, to, "--model", &model]);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    let forced = run(&["convert", from, to, "--model", &model, "--force"]);
    assert!(forced.status.success(), "{}", stderr(&forced));
    let back = Model::open(to.as_ref(), &Options::default()).unwrap();
    assert!(back.tensors != golden_tensors("model."), "halves are kept without --dtype f32");

    let unnamed = run(&["convert", from, files.path("none").to_str().unwrap()]);
    assert_eq!(unnamed.status.code(), Some(1));
    assert!(stderr(&unnamed).contains("name it with --model"), "{}", stderr(&unnamed));
    assert!(!files.path("none").exists());
}

#[test]
fn inspect_counts_and_names_what_is_missing() {
    let files = Files::new();
    let model = files.tiny().model.unwrap();
    let mut tensors = golden_tensors("model.");
    let whole = files.write_tensors("whole.safetensors", &tensors);
    let json = |path: &std::path::Path, more: &[&str]| {
        let arguments = [&["inspect", path.to_str().unwrap(), "--model", &model], more].concat();
        let output = run(&arguments);
        let json = [&arguments[..], &["--json"]].concat();
        let value: Value = serde_json::from_slice(&run(&json).stdout).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), value)
    };
    let (code, text, value) = json(&whole, &["--sums"]);
    assert_eq!(code, Some(0), "{text}");
    let elements: usize = tensors.values().map(|tensor| tensor.len()).sum();
    assert_eq!(value["parameters"], elements);
    assert!(text.contains("logit_scale  F32 []") && text.contains("  2.5\n"), "{text}");
    assert_eq!(value["tensors"].as_array().unwrap().len(), tensors.len());

    tensors.remove("ln_final.bias");
    let scale = tensors.get_mut("logit_scale").unwrap();
    scale.bytes = f32::NAN.to_le_bytes().to_vec().into();
    let part = files.write_tensors("part.safetensors", &tensors);
    let (code, text, value) = json(&part, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(value["missing"], serde_json::json!(["ln_final.bias"]));
    assert_eq!(value["non_finite"], 1);
    assert!(text.contains("missing: ln_final.bias") && text.contains("1 not finite"), "{text}");
}

/// A model of CLIP's vocabulary with random weights, and its two files.
fn small(files: &Files) -> (PathBuf, String) {
    let json = r#"{ "embed_dim": 12,
        "vision_cfg": { "image_size": 16, "layers": 1, "width": 16, "head_width": 8,
            "patch_size": 8 },
        "text_cfg": { "context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2,
            "layers": 1 } }"#;
    let config: ClipConfig = serde_json::from_str(json).unwrap();
    let table = encode::params(&config).unwrap();
    let values = encode::init::values(&table, &config, 3);
    let tensors: Tensors<'_> = table
        .iter()
        .map(|p| (p.name.clone(), Tensor::from_f32(&p.shape, &values[p.slot.range()])))
        .collect();
    let model = files.write("small.json", json).to_str().unwrap().to_owned();
    (files.write_tensors("small.safetensors", &tensors), model)
}

/// Rows of twelve of a `.npy` file.
fn npy(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[128..]);
    let header = String::from_utf8_lossy(&bytes[10..128]).into_owned();
    assert!(header.contains(&format!("({}, 12)", values.len() / 12)), "{header}");
    values.chunks_exact(12).map(<[f32]>::to_vec).collect()
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Ten pairs in two shards, of which the third has no picture, and what `embed` makes of them.
struct Pairs {
    files: Files,
    weights: PathBuf,
    model: String,
    pattern: PathBuf,
}

impl Pairs {
    fn new() -> Self {
        let files = Files::new();
        let (weights, model) = small(&files);
        let mut members = shards::members(0, 7);
        members[4].1 = b"no picture".to_vec();
        files.write("00.tar", shards::tar(&members));
        files.write("01.tar", shards::tar(&shards::members(7, 10)));
        let pattern = files.path("{00..01}.tar");
        Self { files, weights, model, pattern }
    }

    fn embed(&self, out: &str, more: &[&str]) -> (Output, PathBuf) {
        let out = self.files.path(out);
        let weights = self.weights.to_str().unwrap();
        let common = ["embed", weights, "--model", &self.model, "--threads", "1"];
        let rest = ["--out", out.to_str().unwrap()];
        (run(&[&common[..], &rest, more].concat()), out)
    }

    fn shards(&self, out: &str, more: &[&str]) -> (Output, PathBuf) {
        self.embed(out, &[&["--shards", self.pattern.to_str().unwrap()], more].concat())
    }

    fn keys() -> Vec<String> {
        shards::keys(0, 10).into_iter().filter(|key| key != "000002").collect()
    }
}

#[test]
fn embed_keeps_the_order_and_scores_every_pair() {
    let pairs = Pairs::new();
    let (done, both) = pairs.shards("both", &["--batch-size", "4"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let keys: Vec<Value> =
        json_lines(&both.join("keys.jsonl")).iter().map(|line| line["key"].clone()).collect();
    assert_eq!(keys, Pairs::keys(), "a broken picture has no row");
    assert_eq!(json_lines(&both.join("skips.jsonl"))[0]["key"], "000002");
    let (images, texts) = (npy(&both.join("images.npy")), npy(&both.join("texts.npy")));
    assert_eq!((images.len(), texts.len()), (9, 9));
    for (n, line) in json_lines(&both.join("scores.jsonl")).iter().enumerate() {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let (a, b) = (&images[n], &texts[n]);
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!((line["score"].as_f64().unwrap() - cosine).abs() < 1e-12, "{line}");
    }
    let names = std::fs::read_dir(&both).unwrap().count();
    assert_eq!(names, 5, "no temporary file stays");

    let scores = both.join("scores.jsonl");
    let mut filter = Command::new(env!("CARGO_BIN_EXE_roclip-shards"));
    filter
        .arg("filter")
        .arg(&pairs.pattern)
        .arg(pairs.files.path("kept"))
        .arg("--scores")
        .arg(scores);
    let filtered = filter.args(["--min", "-1"]).output().unwrap();
    let text = String::from_utf8_lossy(&filtered.stdout);
    assert!(text.contains("10 samples: 9 kept") && text.contains("1 had no score"), "{text}");
}

#[test]
fn embed_writes_the_same_rows_in_every_form() {
    let pairs = Pairs::new();
    let (done, both) = pairs.shards("both", &[]);
    assert!(done.status.success(), "{}", stderr(&done));
    let (images, texts) = (npy(&both.join("images.npy")), npy(&both.join("texts.npy")));
    // Captions alone, a line each, are the same rows.
    let number = |key: &String| key.parse::<u32>().unwrap();
    let line = |key| format!("picture number {} of a small shard", number(key));
    let captions: Vec<String> = Pairs::keys().iter().map(line).collect();
    let list = pairs.files.write("captions.txt", captions.join("\n"));
    let list = ["--captions", list.to_str().unwrap(), "--batch-size", "5"];
    let (done, lines) = pairs.embed("lines.npy", &list);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(npy(&lines), texts);
    assert_eq!(json_lines(&pairs.files.path("lines.keys.jsonl"))[8]["key"], "9");

    // One file, rows of length 1.
    let (done, single) = pairs.shards("single.safetensors", &["--normalize"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let (single, _) = tensors::read(&single).unwrap();
    assert_eq!(single["images"].shape, [9, 12]);
    for (unit, row) in single["texts"].to_f32().unwrap().chunks_exact(12).zip(&texts) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(unit.iter().zip(row).all(|(u, x)| (u - x / norm).abs() < 1e-6));
    }
    let (again, _) = pairs.shards("both", &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    let (two, _) = pairs.shards("two.npy", &[]);
    assert!(stderr(&two).contains("holds one array"), "{}", stderr(&two));
    let (images_only, path) = pairs.shards("one.npy", &["--images", "--batch-size", "2"]);
    assert!(images_only.status.success(), "{}", stderr(&images_only));
    assert_eq!(npy(&path), images, "batches change no bit");
}

/// Whether all values are the same but for two steps of the learning rate below, 1e-30, which is
/// lost in any weight but 0.
fn almost_the_same(a: &Tensors<'_>, b: &Tensors<'_>) -> bool {
    a.keys().eq(b.keys())
        && a.values().zip(b.values()).all(|(a, b)| {
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-29)
        })
}

/// At a learning rate below every rounding the model that a run ends with is the one it began with.
#[test]
fn training_starts_from_other_weights() {
    let files = Files::new();
    let (weights, model) = small(&files);
    let pattern = shards::write_shards(files.path("").as_path(), 2, 10);
    let train = |name: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-train"));
        command.args(["--shards", &pattern, "--name", name, "--logs"]).arg(files.path("logs"));
        command.args(["--batch-size", "10", "--epochs", "1", "--lr", "1e-30", "--wd", "0"]);
        command.args(["--objective", "clip", "--text-aug", "none", "--threads", "1"]);
        (command.args(more).output().unwrap(), files.path("logs").join(name))
    };
    let weights = weights.to_str().unwrap();
    let (done, first) = train("first", &["--pretrained", weights, "--model", &model]);
    assert!(done.status.success(), "{}", stderr(&done));
    let expected = tensors::read(weights.as_ref()).unwrap().0;
    let back = Model::open(&first, &Options::default()).unwrap();
    assert!(almost_the_same(&back.tensors, &expected));
    // The run's folder is a model that transformers' files and a card describe.
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert!(first.join(name).exists(), "{name}");
    }
    let card = std::fs::read_to_string(first.join("README.md")).unwrap();
    assert!(card.contains("# first\n") && card.contains("**Not defended.**"), "{card}");
    assert!(card.contains("2 optimiser steps") && card.contains("| `batch_size` | `10` |"));

    let (done, second) = train("second", &["--pretrained", first.to_str().unwrap()]);
    assert!(done.status.success(), "{}", stderr(&done));
    let back = Model::open(&second, &Options::default()).unwrap();
    assert!(almost_the_same(&back.tensors, &expected));
    let (done, _) = train("third", &["--pretrained", weights, "--model", "ViT-nano-8-32px"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(stderr(&done).contains("the model needs floats"), "{}", stderr(&done));
}
