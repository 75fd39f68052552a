//! `roclip-detect`: accuses the pairs that a run was trained on. Flags become options; the work is
//! in [`roclip::detect`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use roclip::backend::Backend;
use roclip::config::{ComputeArgs, NetworkArgs, Work, loader_of_run, refused, say};
use roclip::data::loader::LoaderConfig;
use roclip::detect::cluster::ClusterOptions;
use roclip::detect::common::CommonOptions;
use roclip::detect::density::DensityOptions;
use roclip::detect::{BY, DetectOptions, detect};
use roclip::interop::embed::{self, EmbedOptions, What};
use roclip::interop::{Model, Options};
use roclip::{Error, Result};

/// Accuses pairs: scores everything that a run was trained on, ranks it and names the suspects.
#[derive(Debug, Parser)]
#[command(name = "roclip-detect", version)]
#[command(
    after_help = "Exit codes: 0 all is well; 1 the work could not be done; 2 a flag is wrong."
)]
struct Cli {
    /// Folder of a finished run of roclip-train: its model, params.txt and matches/
    run: PathBuf,
    /// The shards, where they are not where the run found them
    #[arg(long, value_name = "PATTERN")]
    shards: Option<String>,
    /// The pairs known to be poisoned, poison.jsonl or another list that --exclude takes: every
    /// score is then held against it
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Suspects to name [default: those against whom there is evidence]
    #[arg(long, value_name = "PAIRS")]
    top: Option<usize>,
    /// Folder for scores.jsonl, quarantine.jsonl, clusters.json, detection.json and features/;
    /// what is there is replaced [default: detect/ in the run's]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What `roclip-model embed --both --thumbnails` made of these pairs, instead of making it
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// Scores that make suspects, among whom a common mark is then looked for
    #[arg(long, value_delimiter = ',', default_values = BY, value_name = "NAMES")]
    by: Vec<String>,
    /// Neighbours of a picture
    #[arg(long, default_value_t = 16, value_name = "PICTURES")]
    neighbours: usize,
    /// Pictures among which neighbours are looked for
    #[arg(long, default_value_t = 2048, value_name = "PICTURES")]
    density_batch: usize,
    /// Least cosine of pictures, or of captions, that are nearly one
    #[arg(long, default_value_t = 0.98, value_name = "COSINE")]
    threshold: f32,
    /// Chooses which pairs are compared
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

fn main() -> ExitCode {
    run(&Cli::parse()).map_or_else(|error| refused("roclip-detect", &error), |()| ExitCode::SUCCESS)
}

fn run(args: &Cli) -> Result<()> {
    let options = options(args)?;
    let output = args.output.clone().unwrap_or_else(|| args.run.join("detect"));
    let features = match &args.features {
        Some(features) => features.clone(),
        None => {
            let features = output.join("features");
            args.compute.run(Embed { args, out: &features })?;
            features
        }
    };
    let findings = detect(&args.run, &features, args.truth.as_deref(), &options)?;
    say(format!("{findings}").trim_end());
    findings.write(&output)?.iter().for_each(|path| say(path.display()));
    Ok(())
}

fn options(args: &Cli) -> Result<DetectOptions> {
    let at_least = |flag: &str, got: usize, least: usize| {
        let wrong = || Error::Option {
            flag: flag.into(),
            got: got.to_string(),
            expected: format!("at least {least}"),
        };
        (got >= least).then_some(got).ok_or_else(wrong)
    };
    args.compute.check()?;
    let neighbours = at_least("--neighbours", args.neighbours, 1)?;
    Ok(DetectOptions {
        density: DensityOptions {
            neighbours,
            batch: at_least("--density-batch", args.density_batch, 2 * neighbours + 1)?,
            seed: args.seed,
        },
        clusters: ClusterOptions {
            threshold: args.threshold,
            seed: args.seed,
            ..ClusterOptions::default()
        },
        common: CommonOptions { seed: args.seed, ..CommonOptions::default() },
        by: args.by.clone(),
        top: args.top,
        threads: args.compute.threads(),
    })
}

/// Features of all pairs by the run's final model, into that folder.
struct Embed<'a> {
    args: &'a Cli,
    out: &'a Path,
}

impl Work for Embed<'_> {
    type Done = ();

    fn on<D: Backend>(self, device: D) -> Result<()> {
        embed(&device, self.args, self.out)
    }
}

fn embed<D: Backend>(device: &D, args: &Cli, out: &Path) -> Result<()> {
    let model = Model::open(&args.run, &Options::default())?;
    let loader = LoaderConfig {
        source: args.network.options()?,
        workers: args.compute.workers,
        ..loader_of_run(&args.run, args.shards.as_deref())?
    };
    let options = EmbedOptions {
        out: out.to_owned(),
        what: What::Both,
        normalize: false,
        thumbnails: true,
        overwrite: true,
        batch_size: args.compute.batch_size,
    };
    let embedded = embed::shards(device, &model, loader, &options)?;
    say(format!("{} rows; {}", embedded.rows, embedded.tally));
    Ok(())
}
