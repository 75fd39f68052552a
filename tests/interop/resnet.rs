//! Goal: CLIP's ResNet goes in and out with its running statistics and counts of batches, and
//! nobody is told that transformers could load it.
//! Method: tiny ResNets through the programs; bits are compared with those of the file before.

use super::Files;
use crate::common::{shards, tiny};
use roclip::encode::{self, ClipConfig};
use roclip::flow::ParamTable;
use roclip::interop::{Dtype, Model, Options, Tensor, Tensors, tensors};
use std::path::Path;
use std::process::{Command, Output};

/// Counts that no other type holds exactly, and that are no counts.
const COUNTS: [i64; 4] = [i64::MAX, -1, (1 << 53) + 1, 0];

fn count(value: i64) -> Tensor<'static> {
    Tensor { dtype: Dtype::I64, shape: vec![], bytes: value.to_le_bytes().to_vec().into() }
}

fn tensors_of(table: &ParamTable, values: &[f32]) -> Tensors<'static> {
    let tensor = |p: roclip::flow::Param| {
        let tensor = Tensor::from_f32(&p.shape, &values[p.slot.range()]);
        (p.name, tensor)
    };
    table.weights().map(tensor).collect()
}

/// The state dict of the tiny ResNet, without counts.
fn bare() -> Tensors<'static> {
    let table = encode::params(&tiny::tiny_resnet()).unwrap();
    let values: Vec<f32> = tiny::tiny_weights(&table).into_iter().map(|x| x as f32).collect();
    tensors_of(&table, &values)
}

fn names_of_counts(tensors: &Tensors<'_>) -> Vec<String> {
    let norms = tensors.keys().filter_map(|name| name.strip_suffix("running_var"));
    norms.map(|norm| format!("{norm}num_batches_tracked")).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn convert(from: &Path, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-model"));
    command.arg("convert").args([from, to]).args(more).output().unwrap()
}

fn converted(from: &Path, to: &Path, more: &[&str]) -> Tensors<'static> {
    let done = convert(from, to, more);
    assert!(done.status.success(), "{}", stderr(&done));
    tensors::read(&to.join("open_clip_model.safetensors")).unwrap().0
}

/// Where the configuration of the tiny ResNet lies, whose heads are too narrow to be told.
fn config(files: &Files) -> String {
    let json = serde_json::to_string(&tiny::tiny_resnet()).unwrap();
    files.write("resnet.json", json).to_str().unwrap().to_owned()
}

/// The files of a model without those of transformers, and a card that says why.
#[track_caller]
fn assert_open_clips_alone(folder: &Path) {
    for file in ["open_clip_model.safetensors", "open_clip_config.json"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    for file in ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"] {
        assert!(!folder.join(file).exists(), "{file}");
    }
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("Transformers cannot load this model") && card.contains("ResNet"));
    assert!(!card.contains("- transformers"), "{card}");
}

#[test]
fn convert_changes_no_bit_of_a_resnet() {
    let files = Files::new();
    let mut before = bare();
    let counts = names_of_counts(&before);
    before.extend(counts.into_iter().zip(COUNTS.into_iter().cycle().map(count)));
    let source = files.write_tensors("resnet.safetensors", &before);
    let (first, second) = (files.path("first"), files.path("second"));
    assert!(converted(&source, &first, &["--model", &config(&files)]) == before);
    // The folder says itself what it is; counts are no floats that could be widened.
    assert!(converted(&first, &second, &["--dtype", "f32"]) == before);
    for folder in [first, second] {
        assert_open_clips_alone(&folder);
        let model = Model::open(&folder, &Options::default()).unwrap();
        assert_eq!(model.config, tiny::tiny_resnet());
        model.check().unwrap();
    }
}

#[test]
fn counts_may_be_missing_but_no_running_statistic() {
    let files = Files::new();
    let (before, model) = (bare(), config(&files));
    let source = files.write_tensors("bare.safetensors", &before);
    let mut after = converted(&source, &files.path("out"), &["--model", &model]);
    let counts = names_of_counts(&before);
    assert_eq!(counts.len(), 3 + 5 * 3 + 4, "the stem's, the blocks', their shortcuts'");
    for name in counts {
        assert_eq!(after.remove(&name), Some(count(0)), "{name}");
    }
    assert!(after == before);
    for name in ["visual.bn2.running_mean", "visual.layer3.0.downsample.1.running_var"] {
        let mut without = before.clone();
        without.remove(name);
        let source = files.write_tensors("without.safetensors", &without);
        let refused = convert(&source, &files.path("none"), &["--model", &model]);
        let expected = format!("tensor {name:?} is missing");
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(&expected), "{}", stderr(&refused));
        assert!(!files.path("none").exists());
    }
    let mut more = before.clone();
    more.insert("visual.bn9.num_batches_tracked".into(), count(1));
    let source = files.write_tensors("more.safetensors", &more);
    let refused = convert(&source, &files.path("none"), &["--model", &model]);
    assert!(stderr(&refused).contains("\"visual.bn9.num_batches_tracked\" has no place"));
}

/// A ResNet with CLIP's vocabulary, all of whose running statistics are a million: what is left of
/// it tells how often they moved.
fn million(files: &Files) -> [String; 2] {
    let json = r#"{ "embed_dim": 12,
        "vision_cfg": { "image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 16,
            "patch_size": null },
        "text_cfg": { "context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2,
            "layers": 1 } }"#;
    let config: ClipConfig = serde_json::from_str(json).unwrap();
    let table = encode::params(&config).unwrap();
    let mut values = encode::init::values(&table, &config, 3);
    table.buffers().for_each(|buffer| values[buffer.slot.range()].fill(1e6));
    let model = files.write("million.json", json);
    let weights = files.write_tensors("million.safetensors", &tensors_of(&table, &values));
    [model, weights].map(|path| path.to_str().unwrap().to_owned())
}

/// Two steps leave 0.9² of what the running statistics were, and add less than a hundredth: no
/// channel of so small a network reaches values of hundreds.
#[test]
fn training_ends_with_running_statistics_and_their_count() {
    let files = Files::new();
    let [model, weights] = million(&files);
    let pattern = shards::write_shards(files.path("").as_path(), 2, 10);
    let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-train"));
    command.args(["--shards", &pattern, "--name", "resnet", "--logs"]).arg(files.path("logs"));
    command.args(["--model", &model, "--pretrained", &weights, "--threads", "1"]);
    command.args(["--batch-size", "10", "--epochs", "1", "--objective", "clip"]);
    let done = command.args(["--text-aug", "none"]).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    let folder = files.path("logs/resnet");
    assert_open_clips_alone(&folder);
    let exported = Model::open(&folder, &Options::default()).unwrap();
    exported.check().unwrap();
    let mut expected = tensors::read(&folder.join("checkpoints/epoch_1.safetensors")).unwrap().0;
    expected.retain(|name, _| !name.starts_with("optimizer.") && !name.starts_with("pool."));
    for name in names_of_counts(&expected) {
        expected.insert(name, count(2));
    }
    assert!(exported.tensors == expected);
    let mut seen = 0;
    for (name, tensor) in expected.iter().filter(|(name, _)| name.contains(".running_")) {
        for value in tensor.to_f32().unwrap() {
            assert!((value / 0.81e6 - 1.0).abs() < 0.01, "{name}: {value}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}
