//! A model as files hold it: configuration, tensors under open_clip's names, normalisation.

use super::config::{self, NORMALIZATION, Normalization};
use super::names::{self, Flavour};
use super::tensors::{self, Format, Tensor, Tensors};
use crate::backend::Device;
use crate::data::loader::{LoaderConfig, Mode, Sampling, TextOptions};
use crate::data::text::tokenizer::VOCAB_SIZE;
use crate::data::transform::{Augment, Fidelity, TransformConfig};
use crate::encode::{self, ClipConfig};
use crate::error::{Error, Result};
use crate::flow::{Param, ParamTable};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files of weights that a directory may hold; the first that is there is read, as open_clip does.
const FILES: [&str; 6] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    INDEX,
    "pytorch_model.bin",
];
/// Which file holds which tensor, where there are several.
const INDEX: &str = "model.safetensors.index.json";
/// Largest configuration or index, bytes.
const MAX_JSON: u64 = 64 << 20;
/// What checkpoints of `roclip-train` hold beside the model.
const OURS: [&str; 3] = ["optimizer.", "pool.", "safe."];
/// Parts of BatchNorm that are no parameters.
const BATCHES: &str = ".num_batches_tracked";

/// What files do not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A built-in model or a JSON file ([`ClipConfig::load`]), instead of what lies beside the
    /// weights or what shapes tell.
    pub model: Option<String>,
    /// The activation is OpenAI's approximation of GELU, whatever else is said; a TorchScript
    /// archive, which OpenAI's models are, implies it where shapes must tell the rest.
    pub quick_gelu: bool,
}

/// A model read from files. Its tensors need not fit its configuration: see
/// [`differences`](Self::differences).
#[derive(Clone, Debug)]
pub struct Model {
    /// The file of weights, or the index of several.
    pub path: PathBuf,
    /// What kind of file it is.
    pub format: Format,
    /// Whose names the tensors had there.
    pub flavour: Flavour,
    /// Which model it is.
    pub config: ClipConfig,
    /// How pictures are normalised.
    pub normalization: Normalization,
    /// The tensors, under open_clip's names.
    pub tensors: Tensors<'static>,
}

/// Where tensors and a configuration disagree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Names without a tensor.
    pub missing: Vec<String>,
    /// Tensors the model has no place for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than the model's, or that are no floats; in words.
    pub misshapen: Vec<String>,
}

impl Differences {
    /// Whether the model can be used.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty()
    }
}

fn format_error(path: &Path) -> impl Fn(String) -> Error + use<> {
    let path = path.to_owned();
    move |reason| Error::Format { path: path.clone(), reason }
}

fn read_json(path: &Path) -> Result<Value> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_JSON {
        return Err(format_error(path)(format!("{length} bytes; expected at most {MAX_JSON}")));
    }
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| format_error(path)(format!("not JSON: {e}")))
}

/// The file that holds a directory's weights; a file is one itself.
fn weights_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let there = FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    there.ok_or_else(|| {
        format_error(path)(format!("no weights in this directory; expected one of {FILES:?}"))
    })
}

/// The tensors of a file, or of all files that an index names.
fn read_tensors(path: &Path) -> Result<(Tensors<'static>, Format)> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return tensors::read(path);
    }
    let (index, wrong) = (read_json(path)?, format_error(path));
    let map = index["weight_map"].as_object();
    let map = map.ok_or_else(|| wrong("no \"weight_map\" of names to files".into()))?;
    let files: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    let files = files.ok_or_else(|| wrong("\"weight_map\" holds what is no file name".into()))?;
    let mut all = Tensors::new();
    for file in files {
        if file.contains(['/', '\\']) || file.starts_with('.') {
            return Err(wrong(format!("file {file:?} is not in the same directory")));
        }
        let (tensors, _) = tensors::read(&path.with_file_name(file))?;
        for (name, tensor) in tensors {
            if all.contains_key(&name) {
                return Err(wrong(format!("two of its files hold tensor {name:?}")));
            }
            all.insert(name, tensor);
        }
    }
    Ok((all, Format::Safetensors))
}

/// Configuration and normalisation that lie beside a file of weights; `None` for what is not
/// there.
fn beside(path: &Path) -> Result<(Option<ClipConfig>, Option<Normalization>)> {
    let is_known = FILES.iter().any(|name| path.file_name().is_some_and(|file| file == *name));
    let file =
        |name: &str| Some(path.with_file_name(name)).filter(|path| is_known && path.is_file());
    if let Some(path) = file("open_clip_config.json") {
        let config = ClipConfig::load(&path.to_string_lossy())?;
        let preprocess = read_json(&path)?["preprocess_cfg"].take();
        let normalization = config::normalization(&preprocess).map_err(format_error(&path))?;
        return Ok((Some(config), Some(normalization)));
    }
    let Some(path) = file("config.json") else { return Ok((None, None)) };
    let config = config::from_hugging_face(&read_json(&path)?).map_err(format_error(&path))?;
    let Some(path) = file("preprocessor_config.json") else { return Ok((Some(config), None)) };
    let normalization = config::normalization(&read_json(&path)?);
    Ok((Some(config), Some(normalization.map_err(format_error(&path))?)))
}

impl Model {
    /// Reads a file of weights, or the directory of a model: open_clip's or transformers',
    /// safetensors or what `torch.save` wrote, OpenAI's TorchScript archives, checkpoints of
    /// `roclip-train`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where a file is damaged or of no known kind, or nothing
    /// tells which model it is; [`Error::Option`] where `model` is neither a name nor a file.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let path = weights_of(path)?;
        let wrong = format_error(&path);
        let (mut tensors, format) = read_tensors(&path)?;
        tensors.retain(|name, _| !OURS.iter().any(|prefix| name.starts_with(prefix)));
        let flavour = names::flavour(&tensors);
        if flavour == Flavour::HuggingFace {
            tensors = names::from_hugging_face(tensors).map_err(&wrong)?;
        }
        let (found, normalization) = beside(&path)?;
        let config = match (&options.model, found) {
            (Some(model), _) => ClipConfig::load(model)?,
            (None, Some(found)) => found,
            (None, None) => {
                let quick_gelu = format == Format::TorchScript;
                config::infer(&tensors, quick_gelu).map_err(|reason| {
                    wrong(format!(
                        "its tensors do not tell which model it is ({reason}); name it \
                        with --model"
                    ))
                })?
            }
        };
        let quick_gelu = config.quick_gelu || options.quick_gelu;
        let config = ClipConfig { quick_gelu, ..config };
        let normalization = normalization.unwrap_or(NORMALIZATION);
        Ok(Self { path, format, flavour, config, normalization, tensors })
    }

    /// Where its tensors and its configuration disagree.
    ///
    /// # Errors
    /// [`Error::Option`] where the configuration cannot be built.
    pub fn differences(&self) -> Result<Differences> {
        let table = encode::params(&self.config)?;
        let mut differences = Differences::default();
        let mut expected = BTreeSet::new();
        for Param { name, shape, .. } in table.weights() {
            match self.tensors.get(&name) {
                None => differences.missing.push(name.clone()),
                Some(tensor) => differences.misshapen.extend(misfit(&name, &shape, tensor)),
            }
            expected.insert(name);
        }
        let is_unexpected = |name: &&String| {
            let norm = name.strip_suffix(BATCHES).map(|norm| format!("{norm}.running_var"));
            !expected.contains(*name) && norm.is_none_or(|norm| !expected.contains(&norm))
        };
        differences.unexpected = self.tensors.keys().filter(is_unexpected).cloned().collect();
        Ok(differences)
    }

    /// Whether its tensors are the model, all of it and nothing else.
    ///
    /// # Errors
    /// [`Error::Format`] with the first tensor that is missing, does not fit or is too much.
    pub fn check(&self) -> Result<()> {
        let Differences { missing, unexpected, misshapen } = self.differences()?;
        let missing = missing.first().map(|name| format!("tensor {name:?} is missing"));
        let unexpected = unexpected.first();
        let unexpected =
            unexpected.map(|name| format!("tensor {name:?} has no place in the model"));
        match misshapen.into_iter().next().or(missing).or(unexpected) {
            None => Ok(()),
            Some(what) => Err(format_error(&self.path)(format!(
                "{what}; is it another model? Name it with --model"
            ))),
        }
    }

    /// How pairs are read for it to be looked at: its view of pictures, its context length, every
    /// pair once, in the order of the shards.
    pub fn evaluation(&self, base: LoaderConfig) -> LoaderConfig {
        let (mean, std) = self.normalization;
        let size = self.config.vision_cfg.image_size();
        let transform = TransformConfig {
            mean,
            std,
            fidelity: Fidelity::Exact,
            ..TransformConfig::new(size, Augment::none())
        };
        let context_length = self.config.text_cfg.context_length;
        LoaderConfig {
            sampling: Sampling::Once,
            shuffle: 0,
            mode: Mode::Eval,
            drop_last: false,
            text: TextOptions { context_length, eda: None, ..TextOptions::default() },
            transform,
            ..base
        }
    }

    /// Whether the embedded tokenizer is its own. `flag` asked for captions; `instead` says what
    /// else could be asked for.
    ///
    /// # Errors
    /// [`Error::Option`] where it has another number of token ids.
    pub fn check_vocabulary(&self, flag: &str, instead: &str) -> Result<()> {
        let vocab = self.config.text_cfg.vocab_size;
        if vocab == VOCAB_SIZE {
            return Ok(());
        }
        Err(Error::Option {
            flag: flag.into(),
            got: format!("a model with {vocab} token ids"),
            expected: format!("CLIP's vocabulary of {VOCAB_SIZE}{instead}"),
        })
    }

    /// Its parameters as one flat buffer in the order of `table`, that of its configuration.
    ///
    /// # Errors
    /// [`Error::Format`] with the first name whose tensor is missing or does not fit.
    pub fn values(&self, table: &ParamTable) -> Result<Vec<f32>> {
        let mut values = vec![0.0; table.weights_len()];
        for param in table.weights() {
            let to = &mut values[param.slot.range()];
            to.copy_from_slice(&self.tensor(&param.name, &param.shape)?);
        }
        Ok(values)
    }

    /// Its parameters on a device.
    ///
    /// # Errors
    /// Those of [`values`](Self::values); [`Error::Device`] where memory does not suffice.
    pub fn weights<D: Device>(&self, device: &D) -> Result<D::Weights> {
        encode::weights(device, &self.values(&encode::params(&self.config)?)?)
    }

    /// The tensor of that name and shape as f32.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or does not fit.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = format_error(&self.path);
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| wrong(format!("tensor {name:?} is missing")))?;
        match (misfit(name, shape, tensor), tensor.to_f32()) {
            (None, Some(values)) => Ok(values),
            (misfit, _) => Err(wrong(misfit.unwrap_or_default())),
        }
    }
}

/// What is wrong with a tensor that should have this shape and hold floats.
fn misfit(name: &str, shape: &[usize], tensor: &Tensor<'_>) -> Option<String> {
    let (dtype, got) = (tensor.dtype, &tensor.shape);
    let fits = got == shape && tensor.is_float();
    let reason =
        || format!("tensor {name:?} is {dtype:?} {got:?}; the model needs floats, {shape:?}");
    (!fits).then(reason)
}
