//! `roclip-model`: brings weights in and out, and says what they hold. Flags become options; the
//! work is in [`roclip::interop`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use roclip::data::tools::printable;
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

fn main() -> ExitCode {
    let outcome = match &Cli::parse().command {
        Command::Convert(args) => run_convert(args),
        Command::Inspect(args) => run_inspect(args),
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
    complete(&mut tensors);
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
