//! Flags → the options of every stage.

use super::Settings;
use super::flags::{Args, Aug, DataArgs, FidelityName, TextAug};
use crate::data::decode::DecodeLimits;
use crate::data::exclude::Exclusions;
use crate::data::loader::{CaptionAugmentation, LoaderConfig, Mode, Sampling, TextOptions};
use crate::data::sample::{Captions, Fields, Labels};
use crate::data::text::eda::Eda;
use crate::data::text::tokenizer::{Tokenizer, Truncation};
use crate::data::text::wordnet::WordNet;
use crate::data::transform::{Augment, Fidelity, TransformConfig};
use crate::encode::ClipConfig;
use crate::error::{Error, Result};
use crate::interop::{Model, Options};
use crate::optim::{AdamWOptions, DecayRule, Schedule, ScheduleKind};
use crate::train::objective::Objective;
use std::sync::Arc;

/// The options of every stage, and what the user should be told about them.
#[derive(Debug)]
pub struct Assembled {
    /// The model.
    pub model: ClipConfig,
    /// The weights it starts from, if not from random ones.
    pub pretrained: Option<Model>,
    /// Training pairs.
    pub loader: LoaderConfig,
    /// Evaluation pairs; the shards are not set yet.
    pub eval: LoaderConfig,
    /// AdamW.
    pub adamw: AdamWOptions,
    /// Which parameters decay.
    pub decay: DecayRule,
    /// Settings a run must keep to be the same run.
    pub identity: Settings,
    /// Sentences for the log.
    pub notes: Vec<String>,
}

/// Settings that decide what a run computes, apart from the optimiser's numbers, which may change
/// when a run is resumed.
const IDENTITY: &[&str] = &[
    "shards",
    "train_num_samples",
    "dataset_resampled",
    "train_data_upsampling_factors",
    "image_key",
    "text_key",
    "json_text_key",
    "exclude",
    "max_image_pixels",
    "shuffle",
    "aug",
    "aug_cfg",
    "fidelity",
    "text_aug",
    "model",
    "objective",
    "pool_size",
    "match_every",
    "batch_size",
    "accum_freq",
    "seed",
];

/// Puts the stages' options together.
///
/// # Errors
/// [`Error::Option`] where a value is out of range; [`Error::Format`] or [`Error::Io`] where a file
/// that a flag names cannot be used.
pub fn assemble(args: &Args, settings: &Settings) -> Result<Assembled> {
    let pretrained = pretrained(args)?;
    let model = match &pretrained {
        Some(pretrained) => pretrained.config.clone(),
        None => ClipConfig::load(&args.model.name())?,
    };
    model.check_locks(args.model.locks())?;
    let objective = args.objective.objective();
    let mut notes = Vec::new();
    let eda = eda(args, &mut notes)?;
    let identity = identity(args, settings, eda.as_ref());
    let loader = loader(args, &model, eda)?;
    let eval = LoaderConfig {
        mode: Mode::Eval,
        views: 1,
        sampling: Sampling::Once,
        exclude: None,
        fields: Fields { captions: Captions::None, labels: Labels::Cls, ..loader.fields.clone() },
        text: TextOptions { eda: None, ..loader.text.clone() },
        ..loader.clone()
    };
    let adamw = adamw(args);
    let decay = match objective {
        Objective::Official => DecayRule::ByName,
        _ => DecayRule::ByShape,
    };
    Ok(Assembled { model, pretrained, loader, eval, adamw, decay, identity, notes })
}

/// Settings a run must keep to be the same run. What does not apply is left out.
fn identity(args: &Args, settings: &Settings, eda: Option<&Eda>) -> Settings {
    let (locks, mut names) = (args.model.locks(), IDENTITY.to_vec());
    if locks.image.is_some() {
        names.extend(["lock_image", "lock_image_unlocked_groups"]);
    }
    if locks.text.is_some() {
        names.extend(["lock_text", "lock_text_unlocked_layers"]);
    }
    if args.model.use_bn_sync {
        names.push("use_bn_sync");
    }
    match args.objective.objective {
        Objective::CyClip(_) => names.extend(["cyclip_in_modal", "cyclip_cross_modal"]),
        Objective::CleanClip { .. } => names.extend(["cleanclip_clip", "cleanclip_unimodal"]),
        Objective::SafeClip(_) => names.extend([
            "safeclip_warmup_epochs",
            "safeclip_lr_factor",
            "safeclip_threshold",
            "safeclip_growth",
            "safeclip_most",
        ]),
        _ => {}
    }
    let setting = |name: &str| Some((name.to_owned(), settings.get(name)?.clone()));
    let mut identity: Settings = names.into_iter().filter_map(setting).collect();
    if let Some(eda) = eda {
        let synonyms = if eda.has_synonyms() { "found" } else { "missing" };
        identity.insert("wordnet".into(), synonyms.into());
    }
    identity
}

/// The weights to start from: all that the model needs, and nothing else.
fn pretrained(args: &Args) -> Result<Option<Model>> {
    let Some(path) = &args.model.pretrained else { return Ok(None) };
    let options = Options { model: args.model.model.clone(), quick_gelu: false };
    let model = Model::open(path, &options)?;
    model.check().map(|()| Some(model))
}

/// The optimiser's numbers.
pub(super) fn adamw(args: &Args) -> AdamWOptions {
    let o = &args.optim;
    AdamWOptions {
        lr: o.lr,
        beta1: o.beta1,
        beta2: o.beta2,
        eps: o.eps,
        weight_decay: o.wd,
        grad_clip_norm: o.grad_clip_norm,
    }
}

fn eda(args: &Args, notes: &mut Vec<String>) -> Result<Option<Eda>> {
    if args.augment.text_aug == TextAug::None {
        return Ok(None);
    }
    let wordnet = WordNet::find(args.augment.wordnet.as_deref())?;
    notes.push(match &wordnet {
        Some(found) => format!("EDA takes synonyms from WordNet in {}", found.dir().display()),
        None => {
            "no WordNet found: EDA only swaps and deletes words. Install one (Debian and Ubuntu: \
                 apt-get install wordnet-base) or name it with --wordnet"
                .to_owned()
        }
    });
    Ok(Some(Eda::new(wordnet.map(Arc::new))))
}

fn sampling(data: &DataArgs) -> Sampling {
    if !data.dataset_resampled {
        return Sampling::Once;
    }
    let factors = data.train_data_upsampling_factors.clone();
    Sampling::Resampled {
        pairs: data.train_num_samples,
        weights: factors.map_or(Vec::new(), |factors| factors.0),
    }
}

fn loader(args: &Args, model: &ClipConfig, eda: Option<Eda>) -> Result<LoaderConfig> {
    let (data, objective) = (&args.data, args.objective.objective());
    let official = objective == Objective::Official;
    let truncation = if official { Truncation::DropEnd } else { Truncation::KeepEnd };
    let augmentation = match (args.augment.text_aug, official) {
        (TextAug::None, _) => CaptionAugmentation::Off,
        (TextAug::Eda, true) => CaptionAugmentation::OncePerRun,
        (TextAug::Eda, false) => CaptionAugmentation::FreshEachEpoch,
    };
    Ok(LoaderConfig {
        shards: data.shards.clone(),
        seed: args.run.seed,
        batch_size: args.optim.batch_size * args.optim.accum_freq,
        workers: data.workers,
        readers: data.readers,
        sampling: sampling(data),
        source: data.network.options()?,
        exclude: data.exclude.as_deref().map(Exclusions::read).transpose()?.map(Arc::new),
        shuffle: data.shuffle,
        fields: data.fields.fields(),
        decode_limits: DecodeLimits { max_pixels: data.max_image_pixels, ..Default::default() },
        transform: transform(args, model.vision_cfg.image_size())?,
        mode: if objective.first_view_is_plain() { Mode::Eval } else { Mode::Train },
        views: objective.views(),
        text: TextOptions {
            tokenizer: Tokenizer::clip().with_truncation(truncation),
            context_length: model.text_cfg.context_length,
            eda,
            lines: false,
            augmentation,
        },
        ..LoaderConfig::default()
    })
}

fn transform(args: &Args, image_size: usize) -> Result<TransformConfig> {
    let mut train = match args.augment.aug {
        Aug::Roclip => Augment::roclip(),
        Aug::Clip => Augment::clip(),
        Aug::None => Augment::none(),
    };
    for change in &args.augment.aug_cfg {
        let (key, value) = change.split_once('=').ok_or_else(|| Error::Option {
            flag: "--aug-cfg".into(),
            got: format!("{change:?}"),
            expected: "KEY=VALUE, for example scale=0.5,1.0".into(),
        })?;
        train.set(key, value)?;
    }
    let fidelity = match args.augment.fidelity {
        FidelityName::Exact => Fidelity::Exact,
        FidelityName::Fast => Fidelity::Fast,
    };
    Ok(TransformConfig { fidelity, ..TransformConfig::new(image_size, train) })
}

/// The learning rate of a run of `steps_per_epoch` steps an epoch.
pub fn schedule(args: &Args, steps_per_epoch: u64) -> Schedule {
    let o = &args.optim;
    let total = steps_per_epoch * o.epochs;
    let plain = Schedule::new(o.lr_scheduler, o.lr, o.warmup, total);
    match o.lr_scheduler {
        ScheduleKind::ConstCooldown => Schedule {
            cooldown: o.epochs_cooldown.unwrap_or(0) * steps_per_epoch,
            cooldown_power: o.lr_cooldown_power,
            cooldown_end: o.lr_cooldown_end,
            ..plain
        },
        ScheduleKind::Cosine | ScheduleKind::Const => plain,
    }
}
