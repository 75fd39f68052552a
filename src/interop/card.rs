//! The model card: a `README.md` with the front matter that model hubs read.
//!
//! It says what is known and what is not. Paths are cut to their last component, for a card is
//! published and the folders of whoever trained are nobody's concern.

use crate::data::ledger::{Entry, Reason};
use crate::encode::ClipConfig;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

/// Settings that a card explains in words or that say nothing about the model.
const QUIET: [&str; 5] = ["list_models", "logs", "plan", "resume", "threads"];

/// What is told about a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Card {
    /// It was trained here.
    Trained(Training),
    /// It came from a file of this name.
    Imported(String),
}

/// How a model was trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Training {
    /// Name of the run.
    pub name: String,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Every setting by name.
    pub settings: BTreeMap<String, String>,
    /// Figures of the last evaluation.
    pub results: BTreeMap<String, Value>,
    /// What the last epoch skipped: pairs and damaged places, by reason.
    pub skipped: BTreeMap<Reason, u64>,
}

/// The lines of a file; none where there is no file.
fn lines(path: &Path, mut each: impl FnMut(&str)) -> Result<()> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.map_err(Error::io("open", path))?,
    };
    for line in BufReader::new(file).lines() {
        each(&line.map_err(Error::io("read", path))?);
    }
    Ok(())
}

impl Training {
    /// What the folder of a run of `roclip-train` tells: `params.txt`, `results.jsonl`,
    /// `skips.jsonl`.
    ///
    /// # Errors
    /// [`Error::Io`] where one of them is there and cannot be read.
    pub fn of_run(folder: &Path, steps: u64) -> Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut training = Self { name, steps, ..Self::default() };
        lines(&folder.join("params.txt"), |line| {
            let setting = line.split_once(": ").map(|(name, value)| (name.into(), value.into()));
            training.settings.extend(setting);
        })?;
        lines(&folder.join("results.jsonl"), |line| {
            training.results = serde_json::from_str(line).unwrap_or_default();
        })?;
        let mut epoch = 0;
        lines(&folder.join("skips.jsonl"), |line| {
            let Ok(entry) = serde_json::from_str::<Entry>(line) else { return };
            if std::mem::replace(&mut epoch, entry.epoch) != entry.epoch {
                training.skipped.clear();
            }
            *training.skipped.entry(entry.reason).or_default() += 1;
        })?;
        Ok(training)
    }

    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("unknown", String::as_str)
    }

    fn data(&self) -> String {
        let shards = without_folders(self.setting("shards"));
        let mut text = format!("Image-caption pairs from WebDataset shards `{shards}`. ");
        text += "Pairs like these are collected from the open web; nobody vouched for them.\n";
        if self.skipped.is_empty() {
            return text + "In the last epoch no pair was skipped.\n";
        }
        text += "\nSkipped in the last epoch (`skips.jsonl` of the run names each):\n\n";
        for (reason, count) in &self.skipped {
            let _ = writeln!(text, "- {}: {count}", reason.name());
        }
        text
    }

    fn method(&self) -> String {
        let objective = self.setting("objective");
        let mut text = match objective {
            "clip" => "CLIP's symmetric contrastive loss in every epoch.\n".to_owned(),
            "cyclip" => {
                "CyCLIP (Goel et al., NeurIPS 2022): CLIP's loss, and similarities that are \
                         consistent within and across pictures and captions.\n"
                    .to_owned()
            }
            "cleanclip" => {
                "CleanCLIP (Bansal et al., ICCV 2023): CLIP's loss between pairs as they \
                            are, and each modality's own between them and their augmented views.\n"
                    .to_owned()
            }
            "safeclip" => format!(
                "SafeCLIP (Yang, Gao, Mirzasoleiman, ICML 2024): {} epochs of each modality alone \
                 and one of CLIP's loss at a low learning rate; after these CLIP's loss on pairs \
                 whose picture and caption are alike, and each modality alone on the others.\n",
                self.setting("safeclip_warmup_epochs"),
            ),
            _ => format!(
                "RoCLIP (Yang, Gao, Mirzasoleiman, \"Robust Contrastive Language-Image \
                 Pretraining against Data Poisoning and Backdoor Attacks\", NeurIPS 2023), variant \
                 `{objective}`: in every {}th epoch each image is trained towards the caption that \
                 a pool of recent captions (`--pool-size {}`) holds nearest to it, instead of its \
                 own.\n",
                self.setting("match_every"),
                self.setting("pool_size"),
            ),
        };
        let (aug, text_aug) = (self.setting("aug"), self.setting("text_aug"));
        let _ = writeln!(text, "Augmentation: pictures `{aug}`, captions `{text_aug}`.");
        text
    }

    fn table(&self) -> String {
        let mut text =
            format!("{} optimiser steps.\n\n| setting | value |\n|---|---|\n", self.steps);
        for (name, value) in self.settings.iter().filter(|(name, _)| !QUIET.contains(&&***name)) {
            let _ = writeln!(text, "| `{}` | `{}` |", cell(name), cell(&without_folders(value)));
        }
        text
    }

    fn evaluation(&self) -> String {
        let is_figure = |name: &str| !["epoch", "step"].contains(&name);
        let mut figures = self.results.iter().filter(|(name, _)| is_figure(name)).peekable();
        if figures.peek().is_none() {
            return "The run measured nothing (`--zeroshot-data` was not given).\n".into();
        }
        let mut text = "| figure | value |\n|---|---|\n".to_owned();
        for (name, value) in figures {
            let _ = writeln!(text, "| {} | {} |", cell(name), cell(&value.to_string()));
        }
        text
    }

    fn poisoning(&self) -> String {
        let mut text = match self.setting("objective") {
            "clip" => "**Not defended.** CLIP's loss learns planted image-caption pairs: a few in \
                       a million suffice for a targeted attack or a backdoor.\n"
                .to_owned(),
            "cyclip" => {
                "CyCLIP's loss lowers the success of backdoors somewhat and was not made to \
                         prevent it: take this for a model without a defence.\n"
                    .to_owned()
            }
            "cleanclip" => {
                "Fine-tuned by CleanCLIP, which is to make a poisoned model forget what \
                            triggers have to do with captions. It trusts the pairs it was given.\n"
                    .to_owned()
            }
            "safeclip" => "Defended by SafeCLIP: a planted pair whose picture and caption are not \
                           alike was to be told from the others before any epoch in which pictures \
                           and captions meet at the full learning rate.\n"
                .to_owned(),
            _ => {
                "Defended by RoCLIP: a planted pair is pulled together only in the epochs between \
                  matching ones, and matched with an unrelated caption of the pool in the others.\n"
                    .to_owned()
            }
        };
        text += match self.settings.get("exclude") {
            Some(_) => "A list of pairs was excluded beforehand (`--exclude`).\n",
            None => "No list of pairs was excluded beforehand.\n",
        };
        text += "Captions that spell out a control token were read as plain text.\n\n\
            Not guaranteed: that no planted pair was learned. The defence lowers the success of \
            known attacks; it was not measured on this model unless a figure above says so, and \
            an attacker who knows it may do better. Inspect what the model does on inputs that \
            matter to you.\n";
        text
    }
}

/// Every path of a shard list or setting as its last component.
fn without_folders(value: &str) -> String {
    let last = |part: &str| part.trim_end_matches('/').rsplit('/').next().map(String::from);
    value.split("::").filter_map(last).collect::<Vec<_>>().join("::")
}

/// A text for a cell of a table.
fn cell(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect::<String>().replace(['|', '`'], "\u{a6}")
}

impl Card {
    fn name(&self) -> &str {
        match self {
            Self::Trained(training) => &training.name,
            Self::Imported(file) => file,
        }
    }

    /// The card of a model; `for_transformers` where transformers can load it, too.
    pub fn markdown(&self, config: &ClipConfig, for_transformers: bool) -> String {
        let mut text = FRONT.to_owned();
        if for_transformers {
            text += "- transformers\n";
        }
        text += "---\n\n";
        let side = config.vision_cfg.image_size();
        let (width, context) = (config.embed_dim, config.text_cfg.context_length);
        let gelu = if config.quick_gelu { "QuickGELU" } else { "GELU" };
        let _ = writeln!(text, "# {}\n\n{LICENSE}", cell(self.name()));
        let _ = writeln!(
            text,
            "A CLIP model: pictures of {side} x {side} pixels and captions of up to {context} \
             tokens to {width} values each, {gelu}. Saved by roclip {}.\n",
            env!("CARGO_PKG_VERSION"),
        );
        text += OPEN_CLIP;
        text += if for_transformers { TRANSFORMERS } else { NO_TRANSFORMERS };
        let unknown = || "Unknown: the weights were imported.\n".to_owned();
        let sections = match self {
            Self::Trained(t) => [t.data(), t.method(), t.table(), t.evaluation(), t.poisoning()],
            Self::Imported(file) => [
                unknown(),
                unknown(),
                format!("Converted from `{}`; no weight was trained here.\n", cell(file)),
                "Nothing was measured.\n".into(),
                IMPORTED.into(),
            ],
        };
        let titles = ["Training data", "Method", "Training", "Evaluation", "Poisoning"];
        for (title, section) in titles.iter().zip(sections) {
            let _ = write!(text, "\n## {title}\n\n{section}");
        }
        text
    }
}

const FRONT: &str = "---
license: other # FILL IN the licence under which you publish this model
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags:
- clip
- open_clip
- zero-shot-image-classification
";

const LICENSE: &str =
    "> **License: fill in.** Nobody has chosen one yet. Before you publish this model, \
write it here and in the front\n> matter (`license:`); it must be compatible with that of the data.
";

const OPEN_CLIP: &str = "```python
import open_clip
model, _, preprocess = open_clip.create_model_and_transforms(\"local-dir:DIR\")
tokenizer = open_clip.get_tokenizer(\"local-dir:DIR\")
```
";

const TRANSFORMERS: &str = "
```python
from transformers import CLIPModel, CLIPProcessor
model, processor = CLIPModel.from_pretrained(\"DIR\"), CLIPProcessor.from_pretrained(\"DIR\")
```

Transformers' tokenizer does not clean captions (mojibake, HTML entities) and obeys control tokens \
that a caption\nspells out; open_clip cleans them.
";

const NO_TRANSFORMERS: &str = "
Transformers cannot load this model: its `CLIPModel` holds vision transformers only, and this \
image tower is a ResNet.
";

const IMPORTED: &str = "**Origin unknown, not checked.** What these weights were trained on, and \
whether someone planted pairs among\nit, cannot be seen from the weights. Reading the file \
executed nothing; that says nothing about what the model learned.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_shows_no_folder_and_breaks_no_table() {
        let settings =
            [("shards", "/home/me/a|b/{0..9}.tar::s3://b/c.tar"), ("exclude", "/x/bad.txt")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let training = Training { settings: settings.into(), ..Default::default() };
        let config = ClipConfig::named("ViT-nano-8-32px").unwrap();
        let card = Card::Trained(training).markdown(&config, true);
        assert!(card.contains("`{0..9}.tar::c.tar`"), "{card}");
        assert!(card.contains("| `exclude` | `bad.txt` |") && card.contains("was excluded"));
        assert!(!card.contains("/home") && !card.contains("/x/"));
        assert_eq!(cell("a|b`c\n"), "a\u{a6}b\u{a6}c");
    }

    #[test]
    fn an_imported_model_is_not_vouched_for() {
        let config = ClipConfig::named("RN50").unwrap();
        let card = Card::Imported("RN50.pt".into()).markdown(&config, false);
        assert!(card.starts_with("---\nlicense: other # FILL IN"));
        assert!(card.contains("## Poisoning\n\n**Origin unknown, not checked.**"), "{card}");
        assert!(!card.contains("- transformers") && !card.contains("import CLIPModel"));
    }
}
