//! Goal: weights of open_clip, transformers, torch and OpenAI's kind become the same model with the
//! same bits, and what we write is what these libraries read.
//! Method: files that the libraries wrote of one tiny model, with the features they compute
//! (`golden/make_interop.py`), and the names and shapes of their full models (`fixtures`).

mod damage;
mod program;
mod resnet;

use crate::common::golden;
use roclip::backend::cpu::Cpu;
use roclip::backend::{Device, View, ViewMut};
use roclip::encode::{self, Clip, ClipConfig, Keep};
use roclip::flow::{PackedTokens, Param};
use roclip::interop::export::{self, Export};
use roclip::interop::model::Differences;
use roclip::interop::tensors::{self, Format};
use roclip::interop::{Card, Dtype, Model, Options, Tensor, Tensors, config, names};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Full models that both libraries have: transformers has no ResNet.
const TRANSFORMERS: [&str; 2] = ["ViT-B-32", "ViT-B-16"];
const ALL: [&str; 4] = ["ViT-B-32", "ViT-B-16", "RN50", "RN101"];

/// The tensors of `golden/interop.safetensors` under this prefix.
fn golden_tensors(prefix: &str) -> Tensors<'static> {
    let (all, _) = tensors::read(&golden::folder().join("interop.safetensors")).unwrap();
    let with = |(name, tensor): (String, _)| Some((name.strip_prefix(prefix)?.to_owned(), tensor));
    all.into_iter().filter_map(with).collect()
}

/// The model of `make_interop.py`.
fn tiny() -> Value {
    json!({ "embed_dim": 6, "quick_gelu": true,
        "vision_cfg": { "image_size": 16, "layers": 2, "width": 12, "head_width": 4,
            "patch_size": 8, "mlp_ratio": 2.5 },
        "text_cfg": { "context_length": 9, "vocab_size": 50, "width": 8, "heads": 2,
            "layers": 1 } })
}

/// Files in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn write_tensors(&self, name: &str, tensors: &Tensors<'_>) -> PathBuf {
        self.write(name, safetensors::serialize(tensors, None).unwrap())
    }

    /// Options that name the tiny model, whose heads are too narrow to be told from shapes.
    fn tiny(&self) -> Options {
        let path = self.write("tiny.json", tiny().to_string());
        Options { model: Some(path.to_str().unwrap().into()), quick_gelu: false }
    }

    /// A directory as transformers saves it.
    fn transformers(&self) -> PathBuf {
        self.write_tensors("model.safetensors", &golden_tensors("hf."));
        self.write("config.json", golden::read("interop_hf.json"));
        self.0.path().to_owned()
    }
}

/// Every file of the tiny model, and what it should be.
fn every_kind(files: &Files) -> Vec<(Model, Format, names::Flavour)> {
    use names::Flavour::{HuggingFace, OpenClip};
    let options = files.tiny();
    let golden = |name: &str| golden::folder().join(name);
    let bare = files.write_tensors("bare.safetensors", &golden_tensors("model."));
    let open = |path: &Path| Model::open(path, &options).unwrap();
    vec![
        (open(&bare), Format::Safetensors, OpenClip),
        (open(&golden("interop_bare.pt")), Format::Torch, OpenClip),
        (open(&golden("interop_checkpoint.pt")), Format::Torch, OpenClip),
        (open(&golden("interop_torchscript.pt")), Format::TorchScript, OpenClip),
        (
            Model::open(&files.transformers(), &Options::default()).unwrap(),
            Format::Safetensors,
            HuggingFace,
        ),
    ]
}

#[test]
fn every_kind_of_file_holds_the_same_bits() {
    let files = Files::new();
    let expected = golden_tensors("model.");
    for (model, format, flavour) in every_kind(&files) {
        let name = model.path.display().to_string();
        assert_eq!((model.format, model.flavour), (format, flavour), "{name}");
        let dtype = if format == Format::TorchScript { Dtype::F16 } else { Dtype::F32 };
        assert!(model.tensors.values().all(|t| t.dtype == dtype), "{name}: bits were changed");
        let wide: Tensors<'_> =
            model.tensors.clone().into_iter().map(|(n, t)| (n, t.widened())).collect();
        assert!(wide == expected, "{name} differs");
        assert_eq!(json!(model.config), tiny(), "{name}");
        model.check().unwrap();
    }
}

/// Rows of length 1.
fn normalized(rows: &[f64], width: usize) -> Vec<f64> {
    let unit = |row: &[f64]| {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / norm).collect::<Vec<_>>()
    };
    rows.chunks_exact(width).flat_map(unit).collect()
}

fn features(model: &Model) -> [Vec<f64>; 2] {
    let golden = golden::Golden::open("interop");
    let device = Cpu::<f32>::new(1).unwrap();
    let mut clip = Clip::new(&device, &model.config, 3, Keep::All).unwrap();
    let weights = device.weights(&model.values(clip.params()).unwrap()).unwrap();
    let images = golden.f32("images");
    let mut captions = PackedTokens::new();
    for row in golden.u32("captions").chunks_exact(9) {
        let end = row.iter().position(|&id| id == 49).unwrap();
        captions.push(&row[..=end]);
    }
    let (mut image, mut text) = (vec![0.0f32; 3 * 6], vec![0.0f32; 3 * 6]);
    clip.encode_image(&device, &weights, View::all(&images), None, ViewMut::all(&mut image))
        .unwrap();
    clip.encode_text(&device, &weights, &captions, ViewMut::all(&mut text)).unwrap();
    [image, text].map(|rows| rows.into_iter().map(f64::from).collect())
}

/// Ours are computed in f32: about a hundred roundings of 6e-8 one after the other, each of
/// random sign, and values of a unit row below 1. So 2e-6 is three times what is to be expected,
/// and a thousandth of what another order of heads or a tensor not transposed makes.
#[test]
fn features_are_those_of_both_libraries() {
    let golden = golden::Golden::open("interop");
    let expected = ["features.image", "features.text"].map(|name| golden.f64(name));
    for (model, ..) in every_kind(&Files::new()) {
        for (ours, theirs) in features(&model).iter().zip(&expected) {
            let (ours, theirs) = (normalized(ours, 6), normalized(theirs, 6));
            let differences = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
            let largest = differences.fold(0.0, f64::max);
            assert!(largest <= 2e-6, "{}: {largest:e}", model.path.display());
        }
    }
}

/// Names, shapes and dtypes of a list, as tensors of zeros: pages nobody touches cost nothing.
fn listed(file: &str) -> Tensors<'static> {
    let path = golden::root().join("tests/fixtures").join(file);
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let shape: Vec<usize> = serde_json::from_str(fields[1]).unwrap();
        let (dtype, size) = match fields[2] {
            "float32" => (Dtype::F32, 4),
            "int64" => (Dtype::I64, 8),
            other => panic!("{other} in {line}"),
        };
        let bytes = vec![0; shape.iter().product::<usize>() * size];
        (fields[0].to_owned(), Tensor { dtype, shape, bytes: bytes.into() })
    };
    std::fs::read_to_string(path).unwrap().lines().map(line).collect()
}

fn shapes(tensors: &Tensors<'_>) -> Vec<(String, Vec<usize>, Dtype)> {
    tensors.iter().map(|(name, t)| (name.clone(), t.shape.clone(), t.dtype)).collect()
}

/// What a model here holds, completed, is open_clip's state dict; and that is all of a model here.
#[test]
fn every_model_holds_what_open_clips_does() {
    for name in ALL {
        let tensors = listed(&format!("openclip_{name}.tsv"));
        let config = ClipConfig::named(name).unwrap();
        let table = encode::params(&config).unwrap();
        let zeros = |param: &Param| vec![0; 4 * param.slot.len].into();
        let tensor = |p: Param| {
            (p.name.clone(), Tensor { dtype: Dtype::F32, bytes: zeros(&p), shape: p.shape })
        };
        let mut ours: Tensors<'_> = table.weights().map(tensor).collect();
        export::complete(&mut ours, 0);
        assert_eq!(shapes(&ours), shapes(&tensors), "{name}");
        let (path, normalization) = (name.into(), config::NORMALIZATION);
        let (format, flavour) = (Format::Safetensors, names::flavour(&tensors));
        assert_eq!(flavour, names::Flavour::OpenClip);
        let model = Model { path, format, flavour, config, normalization, tensors };
        assert_eq!(model.differences().unwrap(), Differences::default(), "{name}");
    }
}

#[test]
fn names_and_shapes_are_those_of_the_libraries_both_ways() {
    for name in TRANSFORMERS {
        let ours = listed(&format!("openclip_{name}.tsv"));
        let theirs = listed(&format!("hf_{name}.tsv"));
        let converted = names::to_hugging_face(&ours).unwrap();
        assert_eq!(shapes(&converted), shapes(&theirs), "{name}");
        let back = names::from_hugging_face(theirs).unwrap();
        assert_eq!(shapes(&back), shapes(&ours), "{name}");
    }
}

#[test]
fn shapes_tell_which_model_it_is() {
    for name in ALL {
        let tensors = listed(&format!("openclip_{name}.tsv"));
        let found = config::infer(&tensors, false).unwrap();
        assert_eq!(Some(&found), ClipConfig::named(name).as_ref());
        let quick = config::infer(&tensors, true).unwrap();
        assert_eq!(Some(quick), ClipConfig::named(&format!("{name}-quickgelu")));
    }
    let none = config::infer(&Tensors::new(), false).unwrap_err();
    assert!(none.contains("\"ln_final.weight\" is missing"), "{none}");
}

#[test]
fn what_is_exported_is_what_was_imported() {
    let files = Files::new();
    let model = every_kind(&files).remove(0).0;
    let (config, normalization) = (&model.config, ([0.5, 0.25, 0.125], [1.0, 2.0, 3.0]));
    let card = Card::Imported("x.pt".into());
    let export = Export { config, normalization, tensors: model.tensors.clone(), card };
    let folder = files.path("out");
    export.write(&folder, false).unwrap();
    let error = export.write(&folder, false).unwrap_err().to_string();
    assert!(error.contains("is there already") && error.contains("--force"), "{error}");
    export.write(&folder, true).unwrap();

    let back = Model::open(&folder, &Options::default()).unwrap();
    assert_eq!((&back.config, back.normalization), (config, normalization));
    assert!(back.tensors == model.tensors);
    // Transformers' files alone say the same, and are what transformers itself would hold.
    std::fs::remove_file(folder.join("open_clip_model.safetensors")).unwrap();
    std::fs::remove_file(folder.join("open_clip_config.json")).unwrap();
    let back = Model::open(&folder, &Options::default()).unwrap();
    assert_eq!((&back.config, back.normalization), (config, normalization));
    assert!(back.tensors == model.tensors);
    let (theirs, _) = tensors::read(&folder.join("model.safetensors")).unwrap();
    assert!(theirs == golden_tensors("hf."));
    assert!(!folder.join("tokenizer.json").exists(), "a vocabulary of 50 is not CLIP's");
}

/// Several files under an index, as transformers saves large models.
#[test]
fn an_index_names_several_files() {
    let files = Files::new();
    let all = golden_tensors("hf.");
    let half = all.len() / 2;
    let mut map = serde_json::Map::new();
    for (file, part) in [("a.safetensors", 0..half), ("b.safetensors", half..all.len())] {
        let names: Vec<&String> = all.keys().skip(part.start).take(part.len()).collect();
        let tensors = names.iter().map(|name| ((*name).clone(), all[*name].clone())).collect();
        files.write_tensors(file, &tensors);
        map.extend(names.iter().map(|name| ((*name).clone(), json!(file))));
    }
    files.write("config.json", golden::read("interop_hf.json"));
    let index = |map: &Value| {
        files.write("model.safetensors.index.json", json!({ "weight_map": map }).to_string());
        Model::open(files.0.path(), &Options::default())
    };
    let model = index(&Value::Object(map.clone())).unwrap();
    assert!(model.tensors == golden_tensors("model."));
    for (file, words) in [
        (json!("../a.safetensors"), "not in the same directory"),
        (json!("/etc/passwd"), "not in the same directory"),
        (json!(7), "no file name"),
        (json!("none.safetensors"), "cannot open"),
    ] {
        map.insert("logit_scale".into(), file);
        let error = index(&Value::Object(map.clone())).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// What is missing, too much or of another shape is named.
#[test]
fn what_does_not_fit_is_named() {
    let files = Files::new();
    let model = every_kind(&files).remove(0).0;
    let with = |change: &dyn Fn(&mut Tensors<'static>)| {
        let mut tensors = model.tensors.clone();
        change(&mut tensors);
        let model = Model { tensors, ..model.clone() };
        let table = encode::params(&model.config).unwrap();
        let error = model.check().unwrap_err().to_string();
        (error, model.values(&table).err().map(|e| e.to_string()))
    };
    let (error, values) = with(&|t| drop(t.remove("visual.proj")));
    assert!(error.contains("\"visual.proj\" is missing"), "{error}");
    assert!(values.unwrap().contains("\"visual.proj\" is missing"));
    let (error, values) = with(&|t| t.get_mut("visual.proj").unwrap().shape = vec![6, 12]);
    assert!(error.contains("[6, 12]") && error.contains("[12, 6]"), "{error}");
    assert!(values.unwrap().contains("[12, 6]"));
    let (error, values) = with(&|t| t.get_mut("visual.proj").unwrap().dtype = Dtype::I32);
    assert!(error.contains("I32") && values.unwrap().contains("I32"), "{error}");
    let more = Tensor { dtype: Dtype::F32, shape: vec![], bytes: Cow::Borrowed(&[0; 4]) };
    let (error, values) = with(&|t| drop(t.insert("logit_bias".into(), more.clone())));
    assert!(error.contains("\"logit_bias\" has no place") && values.is_none(), "{error}");
}

/// The tokenizer's files hold open_clip's vocabulary in transformers' form.
#[test]
fn the_tokenizer_is_the_one_transformers_saves() {
    let files = Files::new();
    let config = ClipConfig {
        text_cfg: ClipConfig::named("ViT-nano-8-32px").unwrap().text_cfg,
        ..serde_json::from_value(tiny()).unwrap()
    };
    let normalization = config::NORMALIZATION;
    let (tensors, card) = (Tensors::new(), Card::Imported("x".into()));
    Export { config: &config, normalization, tensors, card }.write(files.0.path(), false).unwrap();
    let read = |name: &str| std::fs::read_to_string(files.path(name)).unwrap();
    let json = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
    let digest = |lines: &[String]| {
        let digest = Sha256::digest(lines.join("\n"));
        Value::from(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let mut ours = json("tokenizer.json");
    let vocab = ours["model"]["vocab"].take();
    assert_eq!(json("vocab.json"), vocab);
    let vocab = vocab.as_object().unwrap();
    let mut tokens: Vec<(u64, String)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.clone())).collect();
    tokens.sort_unstable();
    let tokens: Vec<String> = tokens.into_iter().map(|(_, token)| token).collect();
    let merges: Vec<String> = serde_json::from_value(ours["model"]["merges"].take()).unwrap();
    assert_eq!(read("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n")));
    (ours["model"]["vocab"], ours["model"]["merges"]) = (digest(&tokens), digest(&merges));
    assert_eq!(ours, golden::json::<Value>("interop_tokenizer.json"));
}
