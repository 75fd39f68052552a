//! `roclip-poison`: poisons WebDataset shards, so that a defence can be put to the proof. Flags
//! become options; the work is in [`roclip::attack`].

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use roclip::attack::manifest::Mode;
use roclip::attack::poison::{PoisonOptions, PoisonReport, poison};
use roclip::attack::spec::{AttackSpec, read_specs};
use roclip::config::{FieldArgs, NetworkArgs, refused};
use roclip::data::source::list_shards;
use roclip::data::tools::{Progress, Report};
use roclip::{Error, Result};

/// The work was done, and something was found.
const FOUND: u8 = 3;

/// Copies training shards and adds poisoned pairs, for research into defences.
///
/// OUT holds the shards, poison.jsonl (which pairs are poisoned: a list for roclip-train
/// --exclude), attacks.json (what evaluation needs) and targets/ (the targeted pictures).
#[derive(Debug, Parser)]
#[command(name = "roclip-poison", version)]
#[command(after_help = "Exit codes: 0 all is well; 1 the work could not be done; 2 a flag is \
    wrong; 3 the work was done and something was found: samples that could not be read and were \
    left out, shards damaged.")]
struct Cli {
    /// The training shards: .tar, .tar.gz or .tar.zst; brace ranges (`{000..099}`), globs,
    /// directories, several joined by `::`
    shards: String,
    /// Folder for the poisoned data set
    out: PathBuf,
    /// TOML file with an array of tables named `attack`, the keys of each the flags under Attack
    /// and Trigger; in place of these
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with a class name in each line (classnames.txt of an evaluation folder): a target must
    /// be one of them, and is drawn from them where none is given
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// Side of the square to which pictures are brought before a trigger is stamped: that of the
    /// model
    #[arg(long, default_value_t = 224, value_name = "PIXELS")]
    image_size: u32,
    /// Chooses pictures, classes, captions, places and keys
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whether poisoned pairs are added, or take the places of clean ones
    #[arg(long, value_enum, default_value_t = Mode::Append)]
    mode: Mode,
    /// Write pictures with triggers as JPEG of this quality, 1 to 100, instead of PNG
    #[arg(long, value_name = "QUALITY")]
    jpeg_quality: Option<u8>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Most pairs in a shard [default: a shard for each that is read]
    #[arg(long, value_name = "PAIRS")]
    shard_size: Option<u64>,
    /// Compress shards with zstd at this level, 1 to 19
    #[arg(long, value_name = "LEVEL")]
    zstd: Option<i32>,
    /// Replace the data set that OUT holds
    #[arg(long)]
    overwrite: bool,
    /// Show no progress bar (none is shown either where standard error is no terminal)
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    spec: AttackSpec,
}

impl Cli {
    fn attacks(&self) -> Result<Vec<AttackSpec>> {
        match &self.config {
            None => Ok(vec![self.spec.clone()]),
            Some(path) if self.spec == AttackSpec::default() => read_specs(path),
            Some(_) => Err(Error::Option {
                flag: "--config".into(),
                got: "an attack is described by flags, too".into(),
                expected: "attacks in the file, or one by flags".into(),
            }),
        }
    }

    fn run(&self) -> Result<PoisonReport> {
        let sources = self.network.options()?;
        let shards = list_shards(&self.shards, &sources)?;
        let options = PoisonOptions {
            attacks: self.attacks()?,
            classnames: self.classnames.clone(),
            image_size: self.image_size,
            seed: self.seed,
            mode: self.mode,
            jpeg_quality: self.jpeg_quality,
            fields: self.fields.fields(),
            sources,
            shard_size: self.shard_size,
            zstd: self.zstd,
            overwrite: self.overwrite,
            ..PoisonOptions::default()
        };
        let progress = if self.quiet { Progress::hidden() } else { Progress::bar() };
        poison(&shards, &self.out, &options, &progress)
    }
}

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(report) => {
            // A reader that has seen enough, as `head`, is no failure.
            let _ = write!(std::io::stdout(), "{report}");
            if report.found_something() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
        }
        Err(error) => refused("roclip-poison", &error),
    }
}
