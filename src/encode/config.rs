//! Which CLIP: open_clip's JSON model configuration, read, checked and written back.
//!
//! A field that would change the function computed and is not built here is refused by name: a
//! configuration is never half understood.

use crate::backend::ops::gelu::Gelu;
use crate::error::{Error, Result};
use crate::flow::Locks;
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

/// An image tower, told apart by `layers`: a number, or a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VisionConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// CLIP's ResNet.
    ResNet(ResNetConfig),
}

/// CLIP's ResNet with attention pooling: `RN50` and its like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Side of the square pictures, pixels.
    pub image_size: usize,
    /// Blocks of the four stages.
    pub layers: [usize; 4],
    /// Channels behind the stem; the last stage has 32 times as many.
    pub width: usize,
    /// Values of one head of the attention pooling.
    #[serde(default = "head_width", skip_serializing_if = "is_head_width")]
    pub head_width: usize,
    /// Null: there are no patches.
    #[serde(default)]
    pub patch_size: Option<NoPatch>,
}

/// What no JSON value is: a ResNet's `patch_size` can only be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoPatch {}

/// A vision transformer with a class token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
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
const NAMED: [(&str, &str); 8] = [
    ("RN50", include_str!("configs/RN50.json")),
    ("RN101", include_str!("configs/RN101.json")),
    ("ViT-B-32", include_str!("configs/ViT-B-32.json")),
    ("ViT-B-16", include_str!("configs/ViT-B-16.json")),
    ("ViT-tiny-16", include_str!("configs/ViT-tiny-16.json")),
    ("ViT-micro-4-32px", include_str!("configs/ViT-micro-4-32px.json")),
    ("RN-nano-64px", include_str!("configs/RN-nano-64px.json")),
    ("ViT-nano-8-32px", include_str!("configs/ViT-nano-8-32px.json")),
];

/// No extent may be larger: beyond it are typing errors, and products of extents stay in 64 bits.
const LARGEST: usize = 1 << 16;

impl ClipConfig {
    /// Names of the built-in models; each also exists with `-quickgelu` behind it.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// A built-in model. The first four are open_clip's, `RN50` the paper's; the others are small
    /// enough to train on a CPU, with CLIP's whole vocabulary and context, so that captions mean
    /// the same to all.
    ///
    /// | name               | pictures, patch | image blocks | text blocks | parameters  |
    /// |--------------------|-----------------|--------------|-------------|-------------|
    /// | `RN50`             | 224 px          | 16 × 64      | 12 × 512    | 102,007,137 |
    /// | `RN101`            | 224 px          | 33 × 64      | 12 × 512    | 119,688,033 |
    /// | `ViT-B-32`         | 224 px, 32      | 12 × 768     | 12 × 512    | 151,277,313 |
    /// | `ViT-B-16`         | 224 px, 16      | 12 × 768     | 12 × 512    | 149,620,737 |
    /// | `ViT-tiny-16`      | 224 px, 16      | 12 × 192     | 6 × 192     | 17,769,025  |
    /// | `ViT-micro-4-32px` | 32 px, 4        | 6 × 192      | 4 × 128     | 9,860,225   |
    /// | `RN-nano-64px`     | 64 px           | 4 × 16       | 3 × 128     | 8,307,737   |
    /// | `ViT-nano-8-32px`  | 32 px, 8        | 4 × 128      | 3 × 128     | 7,782,401   |
    ///
    /// Blocks are given as number × width, a ResNet's as their number and the stem's width. Each
    /// also exists with `-quickgelu` behind its name.
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
        // Section by section, so that the message can name the section.
        let section = |name: &str| {
            value.get(name).cloned().ok_or_else(|| format!("field {name:?} is missing"))
        };
        let vision = section("vision_cfg")?;
        let vision_cfg = if vision["layers"].is_array() {
            serde_json::from_value(vision).map(VisionConfig::ResNet)
        } else {
            serde_json::from_value(vision).map(VisionConfig::Vit)
        };
        let vision_cfg = vision_cfg.map_err(|e| format!("vision_cfg: {e}"))?;
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
        let t = &self.text_cfg;
        let check = Check { place };
        check.extents(&[
            ("embed_dim", self.embed_dim),
            ("text_cfg.context_length", t.context_length),
            ("text_cfg.vocab_size", t.vocab_size.min(LARGEST)),
            ("text_cfg.width", t.width),
            ("text_cfg.heads", t.heads),
            ("text_cfg.layers", t.layers),
        ])?;
        let many = t.vocab_size <= 1 << 24;
        let got = t.vocab_size.to_string();
        check.require(many, "text_cfg.vocab_size", got, "1 to 16777216".into())?;
        check.mlp_ratio("text_cfg", t.mlp_ratio, t.width)?;
        check.multiple("text_cfg.width", t.width, "text_cfg.heads", t.heads)?;
        match &self.vision_cfg {
            VisionConfig::Vit(vit) => vit.check(&check),
            VisionConfig::ResNet(resnet) => resnet.check(&check),
        }
    }

    /// Whether the model can be locked so.
    ///
    /// # Errors
    /// [`Error::Option`] where part of a ResNet is to be locked; open_clip refuses it, too.
    pub fn check_locks(&self, locks: Locks) -> Result<()> {
        match (&self.vision_cfg, locks.image) {
            (VisionConfig::ResNet(_), Some(unlocked @ 1..)) => Err(Error::Option {
                flag: "--lock-image-unlocked-groups".into(),
                got: unlocked.to_string(),
                expected: "0: CLIP's ResNet is locked whole or not at all".into(),
            }),
            _ => Ok(()),
        }
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
    /// Side of the square pictures, pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.image_size,
            Self::ResNet(resnet) => resnet.image_size,
        }
    }

    /// Tokens of one picture, where its tower attends.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Vit(vit) => (vit.image_size / vit.patch_size).pow(2) + 1,
            Self::ResNet(resnet) => (resnet.image_size / ResNetConfig::SHRINKS).pow(2) + 1,
        }
    }
}

impl VitConfig {
    fn check(&self, check: &Check) -> Result<()> {
        check.extents(&[
            ("vision_cfg.image_size", self.image_size),
            ("vision_cfg.layers", self.layers),
            ("vision_cfg.width", self.width),
            ("vision_cfg.head_width", self.head_width),
            ("vision_cfg.patch_size", self.patch_size),
        ])?;
        check.mlp_ratio("vision_cfg", self.mlp_ratio, self.width)?;
        let head = ("vision_cfg.head_width", self.head_width);
        check.multiple("vision_cfg.width", self.width, head.0, head.1)?;
        let patch = ("vision_cfg.patch_size", self.patch_size);
        check.multiple("vision_cfg.image_size", self.image_size, patch.0, patch.1)
    }

    /// Width of the MLP's hidden layer.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.width / self.head_width
    }
}

impl ResNetConfig {
    /// Pixels of a side that become one.
    pub const SHRINKS: usize = 32;

    fn check(&self, check: &Check) -> Result<()> {
        let [a, b, c, d] = self.layers;
        check.extents(&[
            ("vision_cfg.image_size", self.image_size),
            ("vision_cfg.layers[0]", a),
            ("vision_cfg.layers[1]", b),
            ("vision_cfg.layers[2]", c),
            ("vision_cfg.layers[3]", d),
            ("vision_cfg.width", self.width),
            ("vision_cfg.head_width", self.head_width),
        ])?;
        let whole = "pixels that become one";
        check.multiple("vision_cfg.image_size", self.image_size, whole, Self::SHRINKS)?;
        check.multiple(
            "vision_cfg.width",
            self.width,
            "channels in front of the stem's last",
            2,
        )?;
        let head = ("vision_cfg.head_width", self.head_width);
        check.multiple("32 * vision_cfg.width", self.channels(), head.0, head.1)
    }

    /// Channels of the last stage.
    pub fn channels(&self) -> usize {
        32 * self.width
    }

    /// Heads of the attention pooling.
    pub fn heads(&self) -> usize {
        self.channels() / self.head_width
    }
}

impl TextConfig {
    /// Width of the MLP's hidden layer.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }
}

/// Refuses values, and says where they stand.
struct Check<'a> {
    place: &'a str,
}

impl Check<'_> {
    fn require(&self, holds: bool, field: &str, got: String, expected: String) -> Result<()> {
        let flag = format!("{field}{}", self.place);
        if holds { Ok(()) } else { Err(Error::Option { flag, got, expected }) }
    }

    fn extents(&self, extents: &[(&str, usize)]) -> Result<()> {
        extents.iter().try_for_each(|&(field, value)| {
            let expected = format!("1 to {LARGEST}");
            self.require((1..=LARGEST).contains(&value), field, value.to_string(), expected)
        })
    }

    fn multiple(&self, field: &str, value: usize, of: &str, part: usize) -> Result<()> {
        let expected = format!("a multiple of {of}, {part}");
        self.require(value.is_multiple_of(part), field, value.to_string(), expected)
    }

    fn mlp_ratio(&self, section: &str, ratio: f64, width: usize) -> Result<()> {
        let whole = ratio <= 64.0 && (width as f64 * ratio) >= 1.0;
        let expected = format!("at most 64, and at least 1/width = 1/{width}");
        self.require(whole, &format!("{section}.mlp_ratio"), ratio.to_string(), expected)
    }
}
