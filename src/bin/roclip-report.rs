//! `roclip-report`: one offline HTML file about a run. Flags become options; the work is in
//! [`roclip::report`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use roclip::Result;
use roclip::config::{NetworkArgs, refused, say};
use roclip::error::printable;
use roclip::report::{Finding, ReportOptions, report};

/// The work was done, and something was found.
const FOUND: u8 = 3;

/// Tells whether the data of a run was poisoned and whether the defence worked: one HTML file that
/// needs no network, with curves, scores, ranked suspects and their pictures, clusters, and what
/// was skipped.
#[derive(Debug, Parser)]
#[command(name = "roclip-report", version)]
#[command(
    after_help = "Shards with an index beside them (roclip-shards index) are read only where \
    pictures are shown; others up to the last such place. Exit codes: 0 all is well; 1 the work \
    could not be done; 2 a flag is wrong; 3 the work was done and the data stands out or is known \
    to be poisoned."
)]
struct Cli {
    /// Folder of a run of roclip-train
    run: PathBuf,
    /// Folder of another run, drawn beside it: an undefended one, usually
    #[arg(long, value_name = "RUN")]
    reference: Option<PathBuf>,
    /// What roclip-detect wrote [default: detect/ in the run's folder, where that is there]
    #[arg(long, value_name = "DIR")]
    detection: Option<PathBuf>,
    /// The pairs known to be poisoned: poison.jsonl of roclip-poison, or another list that
    /// --exclude takes
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// The shards, where they are not where the run found them
    #[arg(long, value_name = "PATTERN")]
    shards: Option<String>,
    /// The file to write [default: report.html in the run's folder]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Suspects to show, with their pictures
    #[arg(long, default_value_t = 100, value_name = "PAIRS",
          value_parser = clap::value_parser!(u16).range(1..=2000))]
    suspects: u16,
    /// Heading of the page [default: the run's name]
    #[arg(long)]
    title: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(Finding::Signs | Finding::Poisoned) => ExitCode::from(FOUND),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => refused("roclip-report", &error),
    }
}

fn run(args: Cli) -> Result<Finding> {
    let output = args.output.unwrap_or_else(|| args.run.join("report.html"));
    let made = report(&ReportOptions {
        run: args.run,
        reference: args.reference,
        detection: args.detection,
        truth: args.truth,
        shards: args.shards,
        sources: args.network.options()?,
        suspects: args.suspects.into(),
        title: args.title,
    })?;
    made.write(&output)?;
    let told = [&made.sentence, &made.defence].into_iter().chain(&made.notes);
    let text: String = told.map(|line| printable(line) + "\n").collect();
    say(format!("{text}{}", output.display()));
    Ok(made.finding)
}
