//! `roclip-model`: brings weights in and out, and says what they hold. Flags become options; the
//! work is in [`roclip::interop`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use roclip::backend::Backend;
use roclip::config::{DeviceName, NetworkArgs, Work};
use roclip::data::loader::LoaderConfig;
use roclip::data::sample::{Captions, Fields, Labels};
use roclip::data::tools::printable;
use roclip::interop::embed::{self, EmbedOptions, Embedded, What};
use roclip::interop::export::{Export, complete};
use roclip::interop::inspect::inspect;
use roclip::interop::{Card, Model, Options};
use roclip::{Error, Result};

/// Converts, inspects and runs CLIP models of open_clip, transformers, OpenAI and roclip.
#[derive(Debug, Parser)]
#[command(name = "roclip-model", version)]
#[command(after_help = "Exit codes: 0 all is well; 1 the work could not be done, or a tensor is \
    missing or does not fit; 2 a flag is wrong.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes a directory that open_clip and transformers load, with a model card
    Convert(ConvertArgs),
    /// Tells which tensors a file holds, and whether they are the model they should be
    Inspect(InspectArgs),
    /// Writes the features of pictures and captions, in the order of the shards, and their cosine
    Embed(Box<EmbedArgs>),
}

#[derive(Debug, Args)]
struct Input {
    /// Built-in model or JSON file in open_clip's form [default: the configuration beside the
    /// weights, or what their shapes tell]
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// The activation is OpenAI's QuickGELU, which leaves no trace in the weights
    #[arg(long)]
    quick_gelu: bool,
}

impl Input {
    fn open(&self, path: &Path) -> Result<Model> {
        let options = Options { model: self.model.clone(), quick_gelu: self.quick_gelu };
        Model::open(path, &options)
    }
}

#[derive(Debug, Args)]
struct ConvertArgs {
    /// Weights: .safetensors, .pt or .bin, an OpenAI archive, a checkpoint of roclip-train, or a
    /// directory of open_clip or transformers
    from: PathBuf,
    /// Directory to write
    to: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Type of the weights written: f32, or what they are
    #[arg(long, value_enum, default_value_t = Dtype::Keep)]
    dtype: Dtype,
    /// Replace a model that the directory holds
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    Keep,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Weights, as for `convert`
    path: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Also give SHA-256 and sum of every tensor
    #[arg(long)]
    sums: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct EmbedArgs {
    /// Weights, as for `convert`
    path: PathBuf,
    #[command(flatten)]
    input: Input,
    /// The pairs: .tar, .tar.gz or .tar.zst; brace ranges (`{000..099}`), globs, directories,
    /// several joined by `::`
    #[arg(long, value_name = "PATTERN", required_unless_present = "captions")]
    shards: Option<String>,
    /// A text file with a caption a line, instead of shards
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shards", "images", "both"])]
    captions: Option<PathBuf>,
    /// Folder for images.npy, texts.npy and lists of keys, scores and skipped pairs; or one file,
    /// .npy or .safetensors, with the lists beside it
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// Embed pictures only; captions are not read
    #[arg(long, conflicts_with_all = ["texts", "both"])]
    images: bool,
    /// Embed captions only; a pair whose picture is broken is skipped all the same
    #[arg(long, conflicts_with = "both")]
    texts: bool,
    /// Embed both, and score every pair (the default)
    #[arg(long)]
    both: bool,
    /// Write thumbnails.npy, too: pictures of 32 x 32 pixels, as roclip-detect reads them
    #[arg(long, conflicts_with = "texts")]
    thumbnails: bool,
    /// Bring rows to length 1
    #[arg(long)]
    normalize: bool,
    /// Pairs computed at a time
    #[arg(long, default_value_t = 64, value_name = "PAIRS")]
    batch_size: usize,
    /// Threads that decode pictures
    #[arg(long, default_value_t = 4, value_name = "THREADS")]
    workers: usize,
    /// Threads of the CPU engine [default: all cores]
    #[arg(long, value_name = "THREADS")]
    threads: Option<usize>,
    /// Device that computes
    #[arg(long, default_value_t = DeviceName::Cpu, value_name = "cpu|cuda|cuda:N")]
    device: DeviceName,
    /// Extensions that hold the picture, in order of preference
    #[arg(long, default_value = "jpg;jpeg;png;webp", value_name = "EXTS")]
    image_key: String,
    /// Extensions that hold the caption
    #[arg(long, default_value = "txt", value_name = "EXTS")]
    text_key: String,
    /// Take the caption from this field of the `json` member instead
    #[arg(long, value_name = "FIELD")]
    json_text_key: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    let outcome = match &Cli::parse().command {
        Command::Convert(args) => run_convert(args),
        Command::Inspect(args) => run_inspect(args),
        Command::Embed(args) => run_embed(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("roclip-model: {}", printable(&error.to_string()));
        ExitCode::from(if matches!(error, Error::Option { .. }) { 2 } else { 1 })
    })
}

/// What was found, to whoever reads it; a reader that has seen enough, as `head`, is no failure.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn run_convert(args: &ConvertArgs) -> Result<ExitCode> {
    let model = args.input.open(&args.from)?;
    model.check()?;
    let mut tensors = model.tensors;
    complete(&mut tensors, 0);
    if args.dtype == Dtype::F32 {
        tensors = tensors.into_iter().map(|(name, t)| (name, t.widened())).collect();
    }
    let from = args.from.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (config, normalization) = (&model.config, model.normalization);
    let export = Export { config, normalization, tensors, card: Card::Imported(from) };
    for path in export.write(&args.to, args.force)? {
        say(path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn run_inspect(args: &InspectArgs) -> Result<ExitCode> {
    let inspection = inspect(&args.input.open(&args.path)?, args.sums)?;
    if args.json {
        say(inspection.json());
    } else {
        say(format!("{inspection}").trim_end());
    }
    Ok(ExitCode::from(u8::from(!inspection.differences.is_complete())))
}

fn run_embed(args: &EmbedArgs) -> Result<ExitCode> {
    let done = args.device.run(args.threads, args)?;
    for path in &done.files {
        say(path.display());
    }
    say(format!("{} rows; {}", done.rows, done.tally));
    Ok(ExitCode::SUCCESS)
}

impl Work for &EmbedArgs {
    type Done = Embedded;

    fn on<D: Backend>(self, device: D) -> Result<Embedded> {
        embed_on(&device, self)
    }
}

fn embed_on<D: Backend>(device: &D, args: &EmbedArgs) -> Result<Embedded> {
    let model = args.input.open(&args.path)?;
    let what = match (args.images, args.texts) {
        (true, _) => What::Images,
        (_, true) => What::Texts,
        _ => What::Both,
    };
    let options = EmbedOptions {
        out: args.out.clone(),
        what,
        normalize: args.normalize,
        thumbnails: args.thumbnails,
        overwrite: args.force,
        batch_size: args.batch_size,
    };
    let Some(shards) = &args.shards else {
        let captions = args.captions.as_deref().expect("clap requires one of the two");
        return embed::captions(device, &model, captions, &options);
    };
    let captions = match &args.json_text_key {
        Some(field) => Captions::JsonField(field.clone()),
        None => Captions::Text(args.text_key.clone()),
    };
    let loader = LoaderConfig {
        shards: shards.clone(),
        source: args.network.options()?,
        workers: args.workers,
        fields: Fields { image_key: args.image_key.clone(), captions, labels: Labels::None },
        ..LoaderConfig::default()
    };
    embed::shards(device, &model, loader, &options)
}
