//! The flags themselves: names, defaults, units.

use super::device::DeviceName;
use super::shared::{FieldArgs, NetworkArgs};
use crate::flow::Locks;
use crate::matching::PoolSize;
use crate::objective::CyclicWeights;
use crate::optim::ScheduleKind;
use crate::train::objective::{Objective, SafeClip};
use clap::{Args as ClapArgs, Parser, ValueEnum};
use std::path::PathBuf;

/// Trains CLIP on image-caption pairs nobody vouches for, matching images to a pool of captions so
/// that planted pairs are not learned (RoCLIP).
#[derive(Clone, Debug, Parser)]
#[command(name = "roclip-train", version, args_override_self = true, allow_negative_numbers = true)]
#[command(after_help = "Exit codes: 0 finished; 1 failed; 2 a flag is wrong; 3 loss or gradients \
    stayed non-finite; 75 stopped by a signal with a checkpoint written (the command that resumes \
    is the last line printed).")]
pub struct Args {
    /// Where pairs come from and how they are read.
    #[command(flatten)]
    pub data: DataArgs,
    /// How pictures and captions are varied.
    #[command(flatten)]
    pub augment: AugmentArgs,
    /// What is trained.
    #[command(flatten)]
    pub model: ModelArgs,
    /// With which loss.
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// With which optimiser.
    #[command(flatten)]
    pub optim: OptimArgs,
    /// How the run is kept and told.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags under "Data".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// TOML file with flags (`batch-size = 64`); the command line overrides it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Training shards: .tar, .tar.gz or .tar.zst; brace ranges (`{000..099}`), globs, directories,
    /// several joined by `::`, or `-` for standard input
    #[arg(long, visible_alias = "train-data", value_name = "PATTERN", required = true)]
    pub shards: String,
    /// Pairs in one epoch; counted when not given, from the shards' indexes (`roclip-shards index`)
    /// or, without these, from their headers (standard input needs it)
    #[arg(long, value_name = "PAIRS")]
    pub train_num_samples: Option<u64>,
    /// Draw shards with replacement instead of reading each once an epoch; an epoch then ends after
    /// --train-num-samples pairs
    #[arg(long)]
    pub dataset_resampled: bool,
    /// How often shards of each `::` pattern are drawn, as in open_clip: `1::2` draws those of the
    /// second twice as often [default: all alike]
    #[arg(long, value_name = "W::W", requires = "dataset_resampled", value_parser = factors)]
    pub train_data_upsampling_factors: Option<Factors>,
    /// Which members of a sample are read.
    #[command(flatten)]
    pub fields: FieldArgs,
    /// Leave out the pairs on this list: keys, one a line, or JSON lines with `key` and perhaps
    /// `shard`, as in skips.jsonl
    #[arg(long, value_name = "FILE")]
    pub exclude: Option<PathBuf>,
    /// How shards come over a network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Skip pictures with more pixels than this; read from the header, before decoding
    #[arg(long, default_value_t = 25_000_000, value_name = "PIXELS")]
    pub max_image_pixels: u64,
    /// Samples in the shuffle buffer; 1 keeps the order of the shards' files
    #[arg(long, default_value_t = 5000, value_name = "SAMPLES")]
    pub shuffle: usize,
    /// Parts that the shards of an epoch are cut into; each rank reads its own. What a run learns
    /// from depends on it, not on the number of ranks, which must divide it [default: the number of
    /// ranks]
    #[arg(long, value_name = "LANES")]
    pub lanes: Option<usize>,
    /// Threads that decode and augment; the batches do not depend on it
    #[arg(long, default_value_t = 4, value_name = "THREADS")]
    pub workers: usize,
    /// Threads that read and unpack shards, each one shard ahead of the other; the batches do not
    /// depend on it
    #[arg(long, default_value_t = 2, value_name = "THREADS")]
    pub readers: usize,
    /// Directory in CLIP_benchmark's layout (classnames.txt, zeroshot_classification_templates.txt,
    /// test/*.tar) on which zero-shot accuracy is measured during training
    #[arg(long, value_name = "DIR")]
    pub zeroshot_data: Option<PathBuf>,
    /// attacks.json of a poisoned data set (`roclip-poison`), or its directory: after every
    /// zero-shot evaluation its attacks are tried, too
    #[arg(long, value_name = "FILE|DIR", requires = "zeroshot_data")]
    pub attacks: Option<PathBuf>,
    /// Test pictures that each trigger is stamped on, the same ones every time
    #[arg(long, default_value_t = 1000, value_name = "PICTURES")]
    pub attack_pictures: u64,
    /// Epochs between two zero-shot evaluations; 0 for only one at the end
    #[arg(long, default_value_t = 1, value_name = "EPOCHS")]
    pub zeroshot_frequency: u64,
}

/// Weights of the patterns of a shard list.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors(pub Vec<f64>);

fn factors(text: &str) -> std::result::Result<Factors, String> {
    let one = |part: &str| part.parse().map_err(|_| format!("{part:?} is no number"));
    text.split("::").map(one).collect::<std::result::Result<_, _>>().map(Factors)
}

/// Which set of image augmentations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aug {
    /// RoCLIP's: flip, random resized crop, colour jitter, grayscale, blur
    Roclip,
    /// open_clip's: random resized crop of 90 to 100 % of the area
    Clip,
    /// CLIP's evaluation transform: resize and centre crop
    None,
}

/// How closely pictures equal those of Pillow and torchvision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FidelityName {
    /// To the bit
    Exact,
    /// Decoded only as large as needed, colours in one pass
    Fast,
}

/// Which augmentation of captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextAug {
    /// EDA: one of synonym replacement, insertion, swap, deletion
    Eda,
    /// Captions as they are
    None,
}

/// Flags under "Augmentation".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Augmentation")]
pub struct AugmentArgs {
    /// Image augmentation
    #[arg(long, value_enum, default_value_t = Aug::Roclip)]
    pub aug: Aug,
    /// Changes to it, as in open_clip: `scale=0.5,1.0 color_jitter_prob=0.4 blur_kernel=3`
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    pub aug_cfg: Vec<String>,
    /// How training pictures are computed: to the bit as Pillow and torchvision do it, or faster,
    /// with differences that neither the eye nor accuracy shows; evaluation is always exact
    #[arg(long, value_enum, default_value_t = FidelityName::Fast)]
    pub fidelity: FidelityName,
    /// Caption augmentation
    #[arg(long, value_enum, default_value_t = TextAug::Eda)]
    pub text_aug: TextAug,
    /// Directory of a WordNet database, for EDA's synonyms [default: where Debian and WNHOME put
    /// it]
    #[arg(long, value_name = "DIR")]
    pub wordnet: Option<PathBuf>,
}

/// What is trained where nothing is said.
const DEFAULT_MODEL: &str = "ViT-B-32";

/// Flags under "Model".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Name of a model (`RN50`, `ViT-B-32`, `ViT-B-16`, or one of the small ones that
    /// `--list-models` prints), or a JSON file in open_clip's form [default: that of --pretrained,
    /// or ViT-B-32]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Start from these weights: a file or directory of open_clip or transformers, an archive of
    /// OpenAI's, a checkpoint of roclip-train (the optimiser starts afresh)
    #[arg(long, value_name = "FILE|DIR")]
    pub pretrained: Option<PathBuf>,
    /// Leave the image tower as it is: no gradient, no weight decay
    #[arg(long)]
    pub lock_image: bool,
    /// But train its last so many groups: 1 the projection, 2 also the last block with its norm,
    /// then one block each, at last the patch embedding. CLIP's ResNet is only locked whole
    #[arg(long, default_value_t = 0, value_name = "GROUPS", requires = "lock_image")]
    pub lock_image_unlocked_groups: usize,
    /// Implied by --lock-image and taken for open_clip's sake: a locked ResNet normalises by its
    /// running statistics, which do not move (open_clip's do without this flag)
    #[arg(long, requires = "lock_image")]
    pub lock_image_freeze_bn_stats: bool,
    /// Leave the text tower as it is: no gradient, no weight decay
    #[arg(long)]
    pub lock_text: bool,
    /// But train its last so many groups: 1 the projection, 2 also the last block with its norm,
    /// then one block each, at last the embeddings
    #[arg(long, default_value_t = 0, value_name = "GROUPS", requires = "lock_text")]
    pub lock_text_unlocked_layers: usize,
    /// Implied by --lock-text and taken for open_clip's sake: layer norms are locked like other
    /// parameters
    #[arg(long, requires = "lock_text")]
    pub lock_text_freeze_layer_norm: bool,
    /// Several ranks: batch norms see the pictures of all ranks as one batch
    #[arg(long)]
    pub use_bn_sync: bool,
    /// Print the names of the models with their sizes, and exit
    #[arg(long)]
    pub list_models: bool,
    /// Device that trains: the CPU, or the N-th NVIDIA GPU (a build with --features cuda)
    #[arg(long, default_value_t = DeviceName::Cpu, value_name = "cpu|cuda|cuda:N")]
    pub device: DeviceName,
    /// Threads of the CPU engine; the result does not depend on it [default: all cores]
    #[arg(long, value_name = "THREADS")]
    pub threads: Option<usize>,
}

impl ModelArgs {
    /// What training leaves as it is.
    pub fn locks(&self) -> Locks {
        Locks {
            image: self.lock_image.then_some(self.lock_image_unlocked_groups),
            text: self.lock_text.then_some(self.lock_text_unlocked_layers),
        }
    }

    /// What the model is called: as asked for, or by the weights it comes with.
    pub fn name(&self) -> String {
        let pretrained = self.pretrained.as_ref().map(|path| path.display().to_string());
        self.model.clone().or(pretrained).unwrap_or_else(|| DEFAULT_MODEL.into())
    }
}

/// Flags under "Objective".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Objective")]
pub struct ObjectiveArgs {
    /// clip: no defence; roclip: RoCLIP with the flaws of the released code repaired; paper: as
    /// published; official: as released, flaws included; cyclip: CyCLIP; cleanclip: CleanCLIP,
    /// which fine-tunes --pretrained weights on trusted pairs; safeclip: SafeCLIP
    #[arg(long, default_value_t = Objective::RoClip,
          value_name = "clip|roclip|paper|official|cyclip|cleanclip|safeclip")]
    pub objective: Objective,
    /// Captions in the pool: a number, or a share of the data (`2%`); safeclip has a pool of
    /// pictures as large [default: 2%, with safeclip 256]
    #[arg(long, value_name = "CAPTIONS|PERCENT")]
    pub pool_size: Option<PoolSize>,
    /// Each rank holds a part of the caption pool, not all of it: for pools of millions of rows.
    /// The result does not depend on it
    #[arg(long)]
    pub shard_pool: bool,
    /// Match images to the pool in every K-th epoch; smaller is safer and costs accuracy
    #[arg(long, default_value_t = 2, value_name = "K")]
    pub match_every: u64,
    /// cyclip: weight of the consistency within images and within captions
    #[arg(long, default_value_t = 0.25, value_name = "WEIGHT")]
    pub cyclip_in_modal: f64,
    /// cyclip: weight of the consistency between images and captions
    #[arg(long, default_value_t = 0.25, value_name = "WEIGHT")]
    pub cyclip_cross_modal: f64,
    /// cleanclip: weight of CLIP's loss, between pairs that are not augmented
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT")]
    pub cleanclip_clip: f64,
    /// cleanclip: weight of the losses within images and within captions, between each as it is and
    /// augmented
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT")]
    pub cleanclip_unimodal: f64,
    /// safeclip: epochs at first in which pictures and captions are learned from apart
    #[arg(long, default_value_t = SafeClip::AUTHORS.warmup_epochs, value_name = "EPOCHS")]
    pub safeclip_warmup_epochs: u64,
    /// safeclip: learning rate of the one epoch of CLIP's loss that follows, as a part of --lr
    #[arg(long, default_value_t = SafeClip::AUTHORS.lr_factor, value_name = "FACTOR")]
    pub safeclip_lr_factor: f64,
    /// safeclip: a pair is safe if it belongs to the more similar of two groups with a probability
    /// above this; all others are risky
    #[arg(long, default_value_t = SafeClip::AUTHORS.threshold, value_name = "PROBABILITY")]
    pub safeclip_threshold: f64,
    /// safeclip: share of all pairs that joins the safe ones in each epoch, the most similar first
    #[arg(long, default_value_t = SafeClip::AUTHORS.growth, value_name = "SHARE")]
    pub safeclip_growth: f64,
    /// safeclip: largest share of all pairs that may be safe
    #[arg(long, default_value_t = SafeClip::AUTHORS.most, value_name = "SHARE")]
    pub safeclip_most: f64,
}

impl ObjectiveArgs {
    /// What is minimised, with the weights that were asked for.
    pub fn objective(&self) -> Objective {
        match self.objective {
            Objective::CyClip(_) => Objective::CyClip(CyclicWeights {
                in_modal: self.cyclip_in_modal,
                cross_modal: self.cyclip_cross_modal,
            }),
            Objective::CleanClip { .. } => Objective::CleanClip {
                clip: self.cleanclip_clip,
                unimodal: self.cleanclip_unimodal,
            },
            Objective::SafeClip(_) => Objective::SafeClip(SafeClip {
                warmup_epochs: self.safeclip_warmup_epochs,
                lr_factor: self.safeclip_lr_factor,
                threshold: self.safeclip_threshold,
                growth: self.safeclip_growth,
                most: self.safeclip_most,
            }),
            plain => plain,
        }
    }

    /// The size of a pool: as asked for, or as the objective's authors have it.
    pub fn pool_size(&self) -> PoolSize {
        self.pool_size.unwrap_or(self.objective.pool_size())
    }
}

/// Flags under "Optimiser".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Optimiser")]
pub struct OptimArgs {
    /// Pairs per step and process; with --accum-freq, per pass
    #[arg(long, default_value_t = 64, value_name = "PAIRS")]
    pub batch_size: usize,
    /// Passes per step: the loss is that of batch-size x accum-freq pairs, computed exactly, in the
    /// memory of batch-size
    #[arg(long, default_value_t = 1, value_name = "PASSES")]
    pub accum_freq: usize,
    /// Keep only the input of each residual block and run its forward again in the backward: the
    /// same result, bit for bit, in less memory and more time
    #[arg(long)]
    pub grad_checkpointing: bool,
    /// Passes over the data
    #[arg(long, default_value_t = 32, value_name = "EPOCHS")]
    pub epochs: u64,
    /// Peak learning rate
    #[arg(long, default_value_t = 5e-4)]
    pub lr: f64,
    /// AdamW: decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// AdamW: decay of the second moment
    #[arg(long, default_value_t = 0.98)]
    pub beta2: f64,
    /// AdamW: added to the root of the second moment
    #[arg(long, default_value_t = 1e-6)]
    pub eps: f64,
    /// AdamW: decoupled weight decay (not on gains, biases and the temperature)
    #[arg(long, default_value_t = 0.2)]
    pub wd: f64,
    /// Steps over which the learning rate rises from 0
    #[arg(long, default_value_t = 10_000, value_name = "STEPS")]
    pub warmup: u64,
    /// Schedule of the learning rate after the warm-up
    #[arg(long, default_value_t = ScheduleKind::Cosine, value_name = "cosine|const|const-cooldown")]
    pub lr_scheduler: ScheduleKind,
    /// const-cooldown: epochs at the end over which the learning rate falls
    #[arg(long, value_name = "EPOCHS")]
    pub epochs_cooldown: Option<u64>,
    /// const-cooldown: learning rate at the end
    #[arg(long, default_value_t = 0.0)]
    pub lr_cooldown_end: f64,
    /// const-cooldown: power of the polynomial
    #[arg(long, default_value_t = 1.0)]
    pub lr_cooldown_power: f64,
    /// Scale gradients down to this norm where they exceed it [default: no clipping]
    #[arg(long, value_name = "NORM")]
    pub grad_clip_norm: Option<f64>,
}

/// Flags under "Run".
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Print how much memory the run takes and how large --batch-size can be, and exit. Shards are
    /// only read to count the pairs of a --pool-size in percent; --train-num-samples saves that
    #[arg(long)]
    pub plan: bool,
    /// Folder that holds the folders of runs
    #[arg(long, default_value = "./logs", value_name = "DIR")]
    pub logs: PathBuf,
    /// Name of the run and its folder [default: time, model and main settings]
    #[arg(long)]
    pub name: Option<String>,
    /// Seed of everything random; with it, the same run gives the same bits
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Continue from a checkpoint file, or from the newest whole one of --name with `latest`
    #[arg(long, value_name = "latest|FILE")]
    pub resume: Option<String>,
    /// Epochs between two checkpoints
    #[arg(long, default_value_t = 1, value_name = "EPOCHS")]
    pub save_frequency: u64,
    /// Also write a checkpoint every so many steps; the newest replaces the one before
    #[arg(long, value_name = "STEPS")]
    pub save_every_n_steps: Option<u64>,
    /// Remove the checkpoint of the epoch before once a new one is written
    #[arg(long)]
    pub delete_previous_checkpoint: bool,
    /// Do not write matches/epoch_N.npy: of every pair trained on, how similar its picture is to
    /// its own caption and to the pool's nearest, and whose that is; 24 bytes a pair and epoch
    #[arg(long)]
    pub no_record_matches: bool,
    /// End all ranks when one has not got on for so long while others wait for it
    #[arg(long, default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub dist_timeout: u64,
    /// Steps between two lines of the log
    #[arg(long, default_value_t = 100, value_name = "STEPS")]
    pub log_every_n_steps: u64,
    /// Stop after so many steps in a row whose loss or gradients are not finite; such steps change
    /// nothing
    #[arg(long, default_value_t = 3, value_name = "STEPS")]
    pub max_nonfinite_steps: u64,
}
