//! `roclip-model`: brings weights in and out, and says what they hold. Flags become options; the
//! work is in [`roclip::interop`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use roclip::Result;
use roclip::backend::Backend;
use roclip::config::{ComputeArgs, FieldArgs, NetworkArgs, WeightsArgs, Work, refused, say};
use roclip::data::loader::LoaderConfig;
use roclip::interop::embed::{self, EmbedOptions, Embedded, What};
use roclip::interop::export::{Export, complete};
use roclip::interop::inspect::inspect;
use roclip::interop::{Card, Model};

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
struct ConvertArgs {
    /// Weights: .safetensors, .pt or .bin, an OpenAI archive, a checkpoint of roclip-train, or a
    /// directory of open_clip or transformers
    from: PathBuf,
    /// Directory to write
    to: PathBuf,
    #[command(flatten)]
    weights: WeightsArgs,
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
    weights: WeightsArgs,
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
    weights: WeightsArgs,
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
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    fields: FieldArgs,
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
    outcome.unwrap_or_else(|error| refused("roclip-model", &error))
}

fn run_convert(args: &ConvertArgs) -> Result<ExitCode> {
    let model = Model::open(&args.from, &args.weights.options())?;
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
    let inspection = inspect(&Model::open(&args.path, &args.weights.options())?, args.sums)?;
    if args.json {
        say(inspection.json());
    } else {
        say(format!("{inspection}").trim_end());
    }
    Ok(ExitCode::from(u8::from(!inspection.differences.is_complete())))
}

fn run_embed(args: &EmbedArgs) -> Result<ExitCode> {
    args.compute.check()?;
    let done = args.compute.run(args)?;
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
    let model = Model::open(&args.path, &args.weights.options())?;
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
        batch_size: args.compute.batch_size,
    };
    let Some(shards) = &args.shards else {
        let captions = args.captions.as_deref().expect("clap requires one of the two");
        return embed::captions(device, &model, captions, &options);
    };
    let loader = LoaderConfig {
        shards: shards.clone(),
        source: args.network.options()?,
        workers: args.compute.workers,
        fields: args.fields.fields(),
        ..LoaderConfig::default()
    };
    embed::shards(device, &model, loader, &options)
}
