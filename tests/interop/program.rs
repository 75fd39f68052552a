//! Goal: `roclip-model` as a user meets it.
//! Method: runs the program on the golden files and reads what it wrote.

use super::{Files, golden_tensors};
use crate::common::golden;
use roclip::interop::{Model, Options};
use serde_json::Value;
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
