//! Configurations: transformers' `config.json` ↔ open_clip's, and what shapes of tensors tell.
//!
//! A field of transformers that would change the function and is not built here is refused by name.

use super::tensors::Tensors;
use crate::backend::ops::layernorm::EPS;
use crate::data::transform::config::{CLIP_MEAN, CLIP_STD};
use crate::encode::{ClipConfig, VisionConfig};
use serde::Deserialize;
use serde_json::{Value, json};

/// Mean and standard deviation with which pictures are normalised, red, green, blue.
pub type Normalization = ([f64; 3], [f64; 3]);

/// OpenAI's.
pub const NORMALIZATION: Normalization = (CLIP_MEAN, CLIP_STD);

/// transformers 4 wrote this for the end token and pooled at the largest id instead.
const OLD_EOS: u64 = 2;

/// A tower in `config.json`; what is missing has transformers' defaults.
#[derive(Deserialize)]
struct Tower {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    attention_dropout: Option<f64>,
    dropout: Option<f64>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    eos_token_id: Option<u64>,
}

impl Tower {
    /// `name` of a configuration, under what old files keep in `<name>_dict`.
    fn read(config: &Value, name: &str) -> Result<Self, String> {
        let mut fields = config[name].as_object().cloned().unwrap_or_default();
        if let Some(older) = config[format!("{name}_dict")].as_object() {
            fields.extend(older.clone());
        }
        serde_json::from_value(fields.into()).map_err(|e| format!("{name}: {e}"))
    }

    fn hidden_act(&self) -> &str {
        self.hidden_act.as_deref().unwrap_or("quick_gelu")
    }

    fn check(&self, name: &str) -> Result<(), String> {
        let require = |holds: bool, field: &str, got: String, expected: &str| {
            let reason = format!("{name}.{field} is {got}; only {expected} is built here");
            if holds { Ok(()) } else { Err(reason) }
        };
        let act = self.hidden_act();
        let known = ["gelu", "quick_gelu"].contains(&act);
        require(known, "hidden_act", format!("{act:?}"), "\"gelu\" or \"quick_gelu\"")?;
        let eps = self.layer_norm_eps.unwrap_or(EPS);
        require(eps == EPS, "layer_norm_eps", eps.to_string(), "1e-5")?;
        for (field, value) in
            [("attention_dropout", self.attention_dropout), ("dropout", self.dropout)]
        {
            let value = value.unwrap_or(0.0);
            require(value == 0.0, field, value.to_string(), "0")?;
        }
        let channels = self.num_channels.unwrap_or(3);
        require(channels == 3, "num_channels", channels.to_string(), "3")
    }

    /// `width` and what its blocks hold, with defaults of so many values and heads.
    fn blocks(&self, name: &str, width: usize, heads: usize) -> Result<[usize; 4], String> {
        let width = self.hidden_size.unwrap_or(width);
        let heads = self.num_attention_heads.unwrap_or(heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(format!(
                "{name}.hidden_size is {width}; expected a multiple of {heads} heads"
            ));
        }
        let hidden = self.intermediate_size.unwrap_or(width.saturating_mul(4));
        Ok([width, heads, hidden, self.num_hidden_layers.unwrap_or(12)])
    }
}

/// The ratio whose product with `width`, rounded down, is `hidden`.
fn mlp_ratio(width: usize, hidden: usize) -> f64 {
    let (width, hidden) = (width as f64, hidden as f64);
    let ratio = hidden / width;
    if (width * ratio).floor() == hidden { ratio } else { (hidden + 0.5) / width }
}

fn build(config: Value) -> Result<ClipConfig, String> {
    let config: ClipConfig = serde_json::from_value(config).map_err(|e| e.to_string())?;
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

/// The model that transformers' `config.json` describes.
///
/// # Errors
/// The field that is not built here, or that cannot be built, and why.
pub fn from_hugging_face(config: &Value) -> Result<ClipConfig, String> {
    if config["model_type"] != "clip" {
        return Err(format!("model_type is {}; expected \"clip\"", config["model_type"]));
    }
    let [text, vision] = ["text_config", "vision_config"].map(|name| Tower::read(config, name));
    let (text, vision) = (text?, vision?);
    text.check("text_config")?;
    vision.check("vision_config")?;
    if text.hidden_act() != vision.hidden_act() {
        let acts = (vision.hidden_act(), text.hidden_act());
        return Err(format!("vision_config and text_config differ in hidden_act, {acts:?}"));
    }
    let vocab = text.vocab_size.unwrap_or(49_408);
    let eos = text.eos_token_id.unwrap_or(OLD_EOS);
    if eos != OLD_EOS && eos.checked_add(1) != Some(vocab as u64) {
        return Err(format!(
            "text_config.eos_token_id is {eos}; only the last of the {vocab} ids is built here"
        ));
    }
    let [t, t_heads, t_hidden, t_layers] = text.blocks("text_config", 512, 8)?;
    let [v, v_heads, v_hidden, v_layers] = vision.blocks("vision_config", 768, 12)?;
    build(json!({
        "embed_dim": config["projection_dim"].as_u64().unwrap_or(512),
        "quick_gelu": text.hidden_act() == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size.unwrap_or(224),
            "patch_size": vision.patch_size.unwrap_or(32),
            "layers": v_layers, "width": v, "head_width": v / v_heads,
            "mlp_ratio": mlp_ratio(v, v_hidden),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings.unwrap_or(77),
            "vocab_size": vocab, "layers": t_layers, "width": t, "heads": t_heads,
            "mlp_ratio": mlp_ratio(t, t_hidden),
        },
    }))
}

/// Transformers' `config.json`; `None` for a ResNet, which `CLIPModel` cannot hold.
pub fn to_hugging_face(config: &ClipConfig) -> Option<Value> {
    let VisionConfig::Vit(v) = &config.vision_cfg else { return None };
    let t = &config.text_cfg;
    let act = if config.quick_gelu { "quick_gelu" } else { "gelu" };
    let last = t.vocab_size - 1;
    Some(json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "dtype": "float32",
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": t.width, "intermediate_size": t.hidden(),
            "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "max_position_embeddings": t.context_length, "vocab_size": t.vocab_size,
            "projection_dim": config.embed_dim, "hidden_act": act, "layer_norm_eps": EPS,
            "bos_token_id": last.saturating_sub(1), "eos_token_id": last, "pad_token_id": 1,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": v.width, "intermediate_size": v.hidden(),
            "num_hidden_layers": v.layers, "num_attention_heads": v.heads(), "num_channels": 3,
            "image_size": v.image_size, "patch_size": v.patch_size,
            "projection_dim": config.embed_dim, "hidden_act": act, "layer_norm_eps": EPS,
        },
    }))
}

/// Transformers' `preprocessor_config.json`: open_clip's evaluation transform.
pub fn preprocessor(image_size: usize, (mean, std): Normalization) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_convert_rgb": true,
        "do_resize": true, "size": { "shortest_edge": image_size }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": image_size, "width": image_size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": mean, "image_std": std,
    })
}

/// How pictures are normalised, from open_clip's `preprocess_cfg` or transformers'
/// `preprocessor_config.json`; what is missing is OpenAI's.
///
/// # Errors
/// A way to resize that is not built here, or a field that is no three numbers.
pub fn normalization(config: &Value) -> Result<Normalization, String> {
    let plain = [
        ("resize_mode", json!("shortest")),
        ("interpolation", json!("bicubic")),
        ("resample", json!(3)),
    ];
    for (field, expected) in plain {
        let got = &config[field];
        if !got.is_null() && *got != expected {
            return Err(format!("{field} is {got}; only {expected} is built here"));
        }
    }
    let three = |names: [&str; 2], default: [f64; 3]| {
        let value = names.iter().map(|name| &config[name]).find(|value| !value.is_null());
        let Some(value) = value else { return Ok(default) };
        let numbers: Result<[f64; 3], _> = serde_json::from_value(value.clone());
        numbers.map_err(|e| format!("{}: {e}", names[0]))
    };
    let (mean, std) = NORMALIZATION;
    Ok((three(["mean", "image_mean"], mean)?, three(["std", "image_std"], std)?))
}

/// Number of blocks whose `role` there is, under `<prefix>0.`, `<prefix>1.` and so on.
fn count(tensors: &Tensors<'_>, prefix: &str, role: &str) -> usize {
    (0..).take_while(|n| tensors.contains_key(&format!("{prefix}{n}.{role}"))).count()
}

/// The model whose tensors, under open_clip's names, have these shapes; heads are 64 wide, as
/// OpenAI's are. The activation leaves no trace.
///
/// # Errors
/// The tensor that is missing or has too few dimensions, or what cannot be built.
pub fn infer(tensors: &Tensors<'_>, quick_gelu: bool) -> Result<ClipConfig, String> {
    let extent = |name: &str, dim: usize| {
        let shape = tensors.get(name).map(|tensor| &tensor.shape);
        let shape = shape.ok_or_else(|| format!("tensor {name:?} is missing"))?;
        shape.get(dim).copied().ok_or_else(|| format!("tensor {name:?} has shape {shape:?}"))
    };
    let side = |name: &str| -> Result<usize, String> { Ok((extent(name, 0)?.max(1) - 1).isqrt()) };
    let width = extent("ln_final.weight", 0)?;
    let vision = if tensors.contains_key("visual.proj") {
        let v = extent("visual.conv1.weight", 0)?;
        let patch = extent("visual.conv1.weight", 2)?;
        let layers = count(tensors, "visual.transformer.resblocks.", "ln_1.weight");
        let hidden = extent("visual.transformer.resblocks.0.mlp.c_fc.weight", 0)?;
        let image = patch.saturating_mul(side("visual.positional_embedding")?);
        json!({ "image_size": image, "patch_size": patch, "layers": layers, "width": v,
            "mlp_ratio": mlp_ratio(v, hidden) })
    } else {
        let image = side("visual.attnpool.positional_embedding")?.saturating_mul(32);
        let layers =
            [1, 2, 3, 4].map(|n| count(tensors, &format!("visual.layer{n}."), "conv1.weight"));
        let width = extent("visual.layer1.0.conv1.weight", 0)?;
        json!({ "image_size": image, "patch_size": null, "layers": layers, "width": width })
    };
    let hidden = extent("transformer.resblocks.0.mlp.c_fc.weight", 0)?;
    build(json!({
        "embed_dim": extent("text_projection", 1)?,
        "quick_gelu": quick_gelu,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": extent("positional_embedding", 0)?,
            "vocab_size": extent("token_embedding.weight", 0)?,
            "width": width, "heads": width / 64,
            "layers": count(tensors, "transformer.resblocks.", "ln_1.weight"),
            "mlp_ratio": mlp_ratio(width, hidden),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_transformer_comes_back_from_transformers_form() {
        for name in ClipConfig::names() {
            for name in [name.to_owned(), format!("{name}-quickgelu")] {
                let config = ClipConfig::named(&name).unwrap();
                if let Some(theirs) = to_hugging_face(&config) {
                    assert_eq!(from_hugging_face(&theirs), Ok(config), "{name}");
                }
            }
        }
    }

    #[test]
    fn every_width_of_an_mlp_has_a_ratio() {
        for width in 1..200 {
            for hidden in 1..800 {
                let floor = (width as f64 * mlp_ratio(width, hidden)) as usize;
                assert_eq!(floor, hidden, "{width} {hidden}");
            }
        }
    }

    /// Fields by hand from transformers' documentation of `CLIPConfig`.
    #[test]
    fn what_would_change_the_function_is_refused_by_name() {
        let bare = json!({ "model_type": "clip" });
        let config = from_hugging_face(&bare).unwrap();
        assert_eq!(Some(config), ClipConfig::named("ViT-B-32-quickgelu"), "transformers' defaults");
        let gelu = json!({ "hidden_act": "gelu" });
        let old = json!({ "model_type": "clip", "text_config": { "eos_token_id": 2 },
            "text_config_dict": gelu, "vision_config": gelu });
        assert_eq!(from_hugging_face(&old).ok(), ClipConfig::named("ViT-B-32"));
        for (section, field, value) in [
            ("text_config", "hidden_act", json!("gelu_new")),
            ("vision_config", "hidden_act", json!("gelu")),
            ("text_config", "layer_norm_eps", json!(1e-6)),
            ("vision_config", "attention_dropout", json!(0.1)),
            ("text_config", "dropout", json!(0.1)),
            ("vision_config", "num_channels", json!(1)),
            ("text_config", "eos_token_id", json!(5)),
            ("text_config", "hidden_size", json!(500)),
            ("vision_config", "patch_size", json!(31)),
            ("vision_config", "patch_size", json!("31")),
        ] {
            let mut config = bare.clone();
            config[section] = json!({ field: value });
            let error = from_hugging_face(&config).unwrap_err();
            let told = error.contains(section) || error.contains("image_size");
            assert!(told && (error.contains(field) || error.contains("31")), "{field}: {error}");
        }
        assert!(from_hugging_face(&json!({ "model_type": "siglip" })).is_err());
        let squash = json!({ "resize_mode": "squash" });
        assert!(normalization(&squash).unwrap_err().contains("squash"));
        assert!(normalization(&json!({ "mean": [0.5, 0.5] })).is_err());
        assert_eq!(normalization(&json!({})), Ok(NORMALIZATION));
    }
}
