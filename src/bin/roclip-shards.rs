//! `roclip-shards`: makes, indexes, inspects, verifies and filters WebDataset shards. Flags become
//! options; the work is in [`roclip::data::tools`].

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use roclip::config::{FieldArgs, NetworkArgs, refused};
use roclip::data::decode::DecodeLimits;
use roclip::data::ledger::Ledger;
use roclip::data::shard::ShardLimits;
use roclip::data::source::{Shard, list_shards};
use roclip::data::tools::filter::{FilterOptions, Scores, filter};
use roclip::data::tools::index::{IndexOptions, index};
use roclip::data::tools::inspect::{InspectOptions, inspect};
use roclip::data::tools::pack::{PackOptions, pack};
use roclip::data::tools::verify::{VerifyOptions, verify};
use roclip::data::tools::{Progress, Report};
use roclip::data::writer::WriterOptions;
use roclip::{Error, Result};

/// The work was done, and something was found.
const FOUND: u8 = 3;

/// Makes, indexes, inspects, verifies and filters WebDataset shards of image-caption pairs.
#[derive(Debug, Parser)]
#[command(name = "roclip-shards", version)]
#[command(after_help = "Exit codes: 0 all is well; 1 the work could not be done; 2 a flag is \
    wrong; 3 the work was done and something was found: pairs skipped, shards damaged, an index \
    missing or not of its shard, checksums that differ.")]
struct Cli {
    /// Show no progress bar (none is shown either where standard error is no terminal)
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Packs a CSV, TSV or Parquet list of pictures and captions, or a folder of pictures with
    /// .txt, .caption or .json files beside them, into shards; pictures are copied unchanged
    Pack(PackArgs),
    /// Writes an index beside each shard and sizes.json in its folder; fresh ones are left alone
    Index(IndexArgs),
    /// Tells what is in shards: counts, sizes, captions, thumbnails
    Inspect(InspectArgs),
    /// Reads everything: headers, checksums of the index, captions; decodes every picture
    Verify(VerifyArgs),
    /// Copies samples into new shards, but for those that a list or a score excludes
    Filter(FilterArgs),
}

#[derive(Debug, Args)]
struct PackArgs {
    /// The list, or the folder
    input: PathBuf,
    /// Folder for the shards and for skips.jsonl, the list of what was not packed
    out: PathBuf,
    /// Column with the path of the picture, relative to the list
    #[arg(long, visible_alias = "img-key", default_value = "filepath", value_name = "COLUMN")]
    csv_img_key: String,
    /// Column with the caption
    #[arg(long, visible_alias = "caption-key", default_value = "title", value_name = "COLUMN")]
    csv_caption_key: String,
    /// What separates the columns [default: a tab]
    #[arg(long, default_value = "\t", value_name = "CHARACTER", hide_default_value = true)]
    csv_separator: String,
    /// Folder that paths are relative to [default: that of the list]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Let paths and links lead out of that folder
    #[arg(long)]
    follow: bool,
    /// Shuffle the list by this seed; it is held in memory then
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    #[command(flatten)]
    writer: WriterArgs,
}

#[derive(Debug, Args)]
struct IndexArgs {
    #[command(flatten)]
    input: Input,
    /// Write nothing: hold every shard against its index, byte by byte
    #[arg(long)]
    check_only: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    #[command(flatten)]
    input: Input,
    /// Write thumbnails of some pairs as one PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Rows of the sheet
    #[arg(long, default_value_t = 8, requires = "sheet")]
    rows: u32,
    /// Columns of the sheet
    #[arg(long, default_value_t = 8, requires = "sheet")]
    cols: u32,
    /// Chooses which pairs are shown
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    input: Input,
    /// Write what is wrong to this file, a JSON line for each bad pair and damaged place
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Most pixels of a good picture
    #[arg(long, default_value_t = 25_000_000, value_name = "PIXELS")]
    max_image_pixels: u64,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// The shards (see `index --help`)
    shards: String,
    #[command(flatten)]
    network: NetworkArgs,
    /// Folder for the new shards
    out: PathBuf,
    /// Drop samples on this list: a key in each line, or a .jsonl with "key" or {"shard", "key"} in
    /// each, such as skips.jsonl
    #[arg(long, value_name = "FILE")]
    exclude: Option<PathBuf>,
    /// Drop samples by score: `key,score` in each line, or a .jsonl with {"key", "score"}
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
    /// Least score that passes
    #[arg(long, allow_negative_numbers = true, requires = "scores", value_name = "SCORE")]
    min: Option<f64>,
    /// Greatest score that passes
    #[arg(long, allow_negative_numbers = true, requires = "scores", value_name = "SCORE")]
    max: Option<f64>,
    /// What happens to samples without a score
    #[arg(long, value_enum, requires = "scores", default_value_t = Missing::Drop)]
    missing: Missing,
    /// Keep what would be dropped, and drop the rest
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    writer: WriterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Missing {
    Keep,
    Drop,
}

#[derive(Debug, Args)]
struct WriterArgs {
    /// Most pairs in a shard
    #[arg(long, default_value_t = 10_000, value_name = "PAIRS")]
    shard_size: u64,
    /// Most bytes in a shard, before compression
    #[arg(long, default_value_t = 3_000_000_000, value_name = "BYTES")]
    max_shard_bytes: u64,
    /// Compress shards with zstd at this level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    zstd: Option<i32>,
    /// Remove the numbered shards that OUT holds
    #[arg(long)]
    overwrite: bool,
}

impl WriterArgs {
    fn options(&self) -> WriterOptions {
        WriterOptions {
            max_samples: self.shard_size,
            max_bytes: self.max_shard_bytes,
            zstd: self.zstd,
            overwrite: self.overwrite,
        }
    }
}

#[derive(Debug, Args)]
struct Input {
    /// The shards: .tar, .tar.gz or .tar.zst; brace ranges (`{000..099}`), globs, directories,
    /// several joined by `::`
    shards: String,
    #[command(flatten)]
    fields: FieldArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

impl Input {
    fn shards(&self) -> Result<Vec<Shard>> {
        list_shards(&self.shards, &self.network.options()?)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let progress = if cli.quiet { Progress::hidden() } else { Progress::bar() };
    let report = match &cli.command {
        Command::Pack(args) => run_pack(args, &progress),
        Command::Index(args) => run_index(args, &progress),
        Command::Inspect(args) => run_inspect(args, &progress),
        Command::Verify(args) => run_verify(args, &progress),
        Command::Filter(args) => run_filter(args, &progress),
    };
    match report {
        Ok(report) => {
            // A reader that has seen enough, as `head`, is no failure.
            let _ = write!(std::io::stdout(), "{report}");
            if report.found_something() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
        }
        Err(error) => refused("roclip-shards", &error),
    }
}

type Done = Result<Box<dyn Report>>;

fn run_pack(args: &PackArgs, progress: &Progress) -> Done {
    let &[csv_separator] = args.csv_separator.replace("\\t", "\t").as_bytes() else {
        return Err(Error::Option {
            flag: "--csv-separator".into(),
            got: format!("{:?}", args.csv_separator),
            expected: "one ASCII character".into(),
        });
    };
    let options = PackOptions {
        csv_img_key: args.csv_img_key.clone(),
        csv_caption_key: args.csv_caption_key.clone(),
        csv_separator,
        root: args.root.clone(),
        follow: args.follow,
        shuffle: args.shuffle,
        limits: ShardLimits::default(),
        writer: args.writer.options(),
    };
    Ok(Box::new(pack(&args.input, &args.out, &options, progress)?))
}

fn run_index(args: &IndexArgs, progress: &Progress) -> Done {
    let fields = args.input.fields.fields();
    let options = IndexOptions { fields, check_only: args.check_only, ..Default::default() };
    Ok(Box::new(index(&args.input.shards()?, &options, progress)?))
}

fn run_inspect(args: &InspectArgs, progress: &Progress) -> Done {
    let options = InspectOptions {
        fields: args.input.fields.fields(),
        sheet: args.sheet.as_ref().map(|_| [args.rows, args.cols]),
        seed: args.seed,
        ..Default::default()
    };
    let report = inspect(&args.input.shards()?, &options, progress)?;
    args.sheet.as_ref().map_or(Ok(()), |path| report.write_sheet(path))?;
    Ok(Box::new(report))
}

fn run_verify(args: &VerifyArgs, progress: &Progress) -> Done {
    let shards = args.input.shards()?;
    let decode = DecodeLimits { max_pixels: args.max_image_pixels, ..Default::default() };
    let options =
        VerifyOptions { fields: args.input.fields.fields(), decode, ..Default::default() };
    let mut ledger = args.ledger.as_ref().map(|path| Ledger::open(path, 0, |_| 0)).transpose()?;
    Ok(Box::new(verify(&shards, &options, ledger.as_mut(), progress)?))
}

fn run_filter(args: &FilterArgs, progress: &Progress) -> Done {
    if args.exclude.is_none() && args.scores.is_none() {
        return Err(Error::Option {
            flag: "filter".into(),
            got: "neither --exclude nor --scores".into(),
            expected: "one of them, or both".into(),
        });
    }
    let scores = args.scores.clone().map(|path| Scores {
        path,
        min: args.min.unwrap_or(f64::NEG_INFINITY),
        max: args.max.unwrap_or(f64::INFINITY),
        keep_missing: args.missing == Missing::Keep,
    });
    let options = FilterOptions {
        exclude: args.exclude.clone(),
        scores,
        keep: args.keep,
        limits: ShardLimits::default(),
        writer: args.writer.options(),
    };
    let shards = list_shards(&args.shards, &args.network.options()?)?;
    Ok(Box::new(filter(&shards, &args.out, &options, progress)?))
}
