//! Which CLIP: open_clip's JSON model configuration, read, checked and written back.
//!
//! A field that would change the function computed and is not built here is refused by name: a
//! configuration is never half understood.

use crate::backend::ops::gelu::Gelu;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// A CLIP model: `model_cfg` of open_clip. Its features have `embed_dim` = `D` values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// `D`, width of the shared embedding.
    pub embed_dim: usize,
    /// OpenAI's approximation of GELU in both towers, as in the `-quickgelu` models.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quick_gelu: bool,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
}

/// A vision transformer with a class token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side of the square pictures, pixels.
    pub image_size: usize,
    /// Residual blocks.
    pub layers: usize,
    /// `C`, values of a token.
    pub width: usize,
    /// Values of one attention head; `width / head_width` heads.
    #[serde(default = "head_width", skip_serializing_if = "is_head_width")]
    pub head_width: usize,
    /// Width of the MLP's hidden layer by `width`; rounded down to whole values.
    #[serde(default = "mlp_ratio", skip_serializing_if = "is_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Side of a square patch, pixels.
    pub patch_size: usize,
}

/// A causal transformer over token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Tokens of the longest caption, start and end tokens included.
    pub context_length: usize,
    /// `V`, number of token ids.
    pub vocab_size: usize,
    /// `C`, values of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Residual blocks.
    pub layers: usize,
    /// Width of the MLP's hidden layer by `width`; rounded down to whole values.
    #[serde(default = "mlp_ratio", skip_serializing_if = "is_mlp_ratio")]
    pub mlp_ratio: f64,
}

/// open_clip's defaults, which its files leave out.
fn head_width() -> usize {
    64
}

fn is_head_width(x: &usize) -> bool {
    *x == head_width()
}

fn mlp_ratio() -> f64 {
    4.0
}

fn is_mlp_ratio(x: &f64) -> bool {
    *x == mlp_ratio()
}

/// See [`ClipConfig::named`].
const NAMED: [(&str, &str); 5] = [
    ("ViT-B-32", include_str!("configs/ViT-B-32.json")),
    ("ViT-B-16", include_str!("configs/ViT-B-16.json")),
    ("ViT-tiny-16", include_str!("configs/ViT-tiny-16.json")),
    ("ViT-micro-4-32px", include_str!("configs/ViT-micro-4-32px.json")),
    ("ViT-nano-8-32px", include_str!("configs/ViT-nano-8-32px.json")),
];

/// No extent may be larger: beyond it are typing errors, and products of extents stay in 64 bits.
const LARGEST: usize = 1 << 16;

impl ClipConfig {
    /// Names of the built-in models; each also exists with `-quickgelu` behind it.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// A built-in model. The first two are open_clip's; the others are small enough to train on a
    /// CPU, with CLIP's whole vocabulary and context, so that captions mean the same to all.
    ///
    /// | name               | pictures, patch | image blocks | text blocks | parameters  |
    /// |--------------------|-----------------|--------------|-------------|-------------|
    /// | `ViT-B-32`         | 224 px, 32      | 12 × 768     | 12 × 512    | 151,277,313 |
    /// | `ViT-B-16`         | 224 px, 16      | 12 × 768     | 12 × 512    | 149,620,737 |
    /// | `ViT-tiny-16`      | 224 px, 16      | 12 × 192     | 6 × 192     | 17,769,025  |
    /// | `ViT-micro-4-32px` | 32 px, 4        | 6 × 192      | 4 × 128     | 9,860,225   |
    /// | `ViT-nano-8-32px`  | 32 px, 8        | 4 × 128      | 3 × 128     | 7,782,401   |
    ///
    /// Blocks are given as number × width. Each also exists with `-quickgelu` behind its name.
    /// `None` where there is none of that name.
    pub fn named(name: &str) -> Option<Self> {
        let (base, quick_gelu) = match name.strip_suffix("-quickgelu") {
            Some(base) => (base, true),
            None => (name, false),
        };
        let (_, text) = NAMED.iter().find(|(name, _)| *name == base)?;
        let config: Self = serde_json::from_str(text).expect("built-in configurations are valid");
        Some(Self { quick_gelu, ..config })
    }

    /// A built-in model by name, or a JSON file: open_clip's model configuration, or an
    /// `open_clip_config.json`, of which `model_cfg` is read (how pictures are normalised is not
    /// the model's concern).
    ///
    /// # Errors
    /// [`Error::Option`]: neither a built-in name nor a file, or a value that cannot be built;
    /// [`Error::Io`]; [`Error::Format`]: not such a JSON, or a field that is not built here.
    pub fn load(path_or_name: &str) -> Result<Self> {
        if let Some(config) = Self::named(path_or_name) {
            return Ok(config);
        }
        let path = Path::new(path_or_name);
        if !path.is_file() {
            let names: Vec<&str> = Self::names().collect();
            return Err(Error::Option {
                flag: "model".into(),
                got: format!("{path_or_name:?} is neither a built-in model nor a file"),
                expected: format!(
                    "one of {} (each also with -quickgelu), or a JSON file",
                    names.join(", ")
                ),
            });
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let config =
            Self::parse(&text).map_err(|reason| Error::Format { path: path.to_owned(), reason })?;
        config.check(&format!(" in {}", path.display()))?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let value = value.get("model_cfg").cloned().unwrap_or(value);
        let vision = &value["vision_cfg"];
        if vision["layers"].is_array() || vision.get("patch_size").is_some_and(Value::is_null) {
            return Err(
                "vision_cfg describes a ResNet (layers is a list, or patch_size is null); \
                        only vision transformers are built: give layers and patch_size as numbers"
                    .into(),
            );
        }
        // Section by section, so that the message can name the section.
        let section = |name: &str| {
            value.get(name).cloned().ok_or_else(|| format!("field {name:?} is missing"))
        };
        let vision_cfg: VisionConfig = serde_json::from_value(section("vision_cfg")?)
            .map_err(|e| format!("vision_cfg: {e}"))?;
        let text_cfg: TextConfig =
            serde_json::from_value(section("text_cfg")?).map_err(|e| format!("text_cfg: {e}"))?;
        let rest: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        Ok(Self { vision_cfg, text_cfg, ..rest })
    }

    /// Whether every value can be built, and they fit each other.
    ///
    /// # Errors
    /// [`Error::Option`] with the field, its value and what would be right.
    pub fn validate(&self) -> Result<()> {
        self.check("")
    }

    fn check(&self, place: &str) -> Result<()> {
        let (v, t) = (&self.vision_cfg, &self.text_cfg);
        let extents = [
            ("embed_dim", self.embed_dim),
            ("vision_cfg.image_size", v.image_size),
            ("vision_cfg.layers", v.layers),
            ("vision_cfg.width", v.width),
            ("vision_cfg.head_width", v.head_width),
            ("vision_cfg.patch_size", v.patch_size),
            ("text_cfg.context_length", t.context_length),
            ("text_cfg.vocab_size", t.vocab_size.min(LARGEST)),
            ("text_cfg.width", t.width),
            ("text_cfg.heads", t.heads),
            ("text_cfg.layers", t.layers),
        ];
        let require = |holds: bool, field: &str, got: String, expected: String| {
            let flag = format!("{field}{place}");
            if holds { Ok(()) } else { Err(Error::Option { flag, got, expected }) }
        };
        for (field, value) in extents {
            let expected = format!("1 to {LARGEST}");
            require((1..=LARGEST).contains(&value), field, value.to_string(), expected)?;
        }
        let many = t.vocab_size <= 1 << 24;
        require(many, "text_cfg.vocab_size", t.vocab_size.to_string(), "1 to 16777216".into())?;
        let ratios = [("vision_cfg", v.mlp_ratio, v.width), ("text_cfg", t.mlp_ratio, t.width)];
        for (section, ratio, width) in ratios {
            let whole = ratio <= 64.0 && (width as f64 * ratio) >= 1.0;
            let expected = format!("at most 64, and at least 1/width = 1/{width}");
            require(whole, &format!("{section}.mlp_ratio"), ratio.to_string(), expected)?;
        }
        let divides = |whole: usize, part: usize| whole.is_multiple_of(part);
        let got = v.width.to_string();
        let expected = format!("a multiple of vision_cfg.head_width, {}", v.head_width);
        require(divides(v.width, v.head_width), "vision_cfg.width", got, expected)?;
        let got = v.image_size.to_string();
        let expected = format!("a multiple of vision_cfg.patch_size, {}", v.patch_size);
        require(divides(v.image_size, v.patch_size), "vision_cfg.image_size", got, expected)?;
        let expected = format!("a multiple of text_cfg.heads, {}", t.heads);
        require(divides(t.width, t.heads), "text_cfg.width", t.width.to_string(), expected)
    }

    /// The activation of both towers.
    pub fn gelu(&self) -> Gelu {
        if self.quick_gelu { Gelu::Quick } else { Gelu::Erf }
    }

    /// The content of `open_clip_config.json`, with which open_clip loads the model; `mean` and
    /// `std` are those with which the pictures were normalised, red, green, blue.
    pub fn open_clip_json(&self, mean: [f64; 3], std: [f64; 3]) -> Value {
        json!({ "model_cfg": self, "preprocess_cfg": { "mean": mean, "std": std } })
    }
}

impl VisionConfig {
    /// Width of the MLP's hidden layer.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.width / self.head_width
    }
}

impl TextConfig {
    /// Width of the MLP's hidden layer.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }
}
