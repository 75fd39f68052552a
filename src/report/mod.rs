//! One offline HTML file: was the data poisoned, and did the defence work?
//!
//! ```text
//! the run's folder ──▶ run ─────────▶ curves, ledger, reproduce ─┐
//! another run's ─────▶ run ───────────▶                          ├─▶ page
//! what roclip-detect left ─▶ detection ─▶ verdict, scores, truth ┤
//! the shards ────────▶ pictures ──────▶ suspects, clusters ──────┘
//! ```
//!
//! Everything that comes from data is hostile. The templates escape every text (a value of another
//! type than `Markup` cannot reach the page unescaped);
//! [`printable`](crate::error::printable) spells out what hides or turns text; pictures are
//! decoded by our own decoder and written anew; and the page forbids itself to fetch or run
//! anything (Content-Security-Policy, no script).
//!
//! What is missing is said in the page: no detection leaves the curves, no truth leaves out the
//! ROC.

mod curves;
mod detection;
mod ledger;
mod page;
mod pictures;
mod plot;
mod reproduce;
mod run;
mod scores;
mod suspects;
mod text;
mod verdict;

pub use verdict::Finding;

use crate::config::loader_of_run;
use crate::data::atomic::AtomicFile;
use crate::data::source::{SourceOptions, list_shards};
use crate::error::{Error, Result};
use detection::Detection;
use maud::html;
use pictures::{Album, Library};
use run::Run;
use std::io::Write;
use std::path::{Path, PathBuf};
use verdict::{Detected, Facts};

/// Folder of a run in which detection is looked for.
const DETECTION: &str = "detect";

/// What is told, and from what.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// Folder of the run.
    pub run: PathBuf,
    /// Folder of another run, drawn beside it.
    pub reference: Option<PathBuf>,
    /// What `roclip-detect` left; `None`: `detect` in the run's folder, where that is there.
    pub detection: Option<PathBuf>,
    /// List of the poisoned pairs, where they are known.
    pub truth: Option<PathBuf>,
    /// The shards; `None`: those the run names.
    pub shards: Option<String>,
    /// How they are reached.
    pub sources: SourceOptions,
    /// Suspects that are shown.
    pub suspects: usize,
    /// Heading of the page; `None`: the run's name.
    pub title: Option<String>,
}

/// A report, made.
#[derive(Clone, Debug)]
pub struct Report {
    /// The page, UTF-8.
    pub html: String,
    /// The verdict.
    pub finding: Finding,
    /// The verdict in words.
    pub sentence: String,
    /// Whether the defence worked, in words.
    pub defence: String,
    /// What could not be told, and why.
    pub notes: Vec<String>,
}

/// Makes the report. In memory are 48 bytes for each step, 4 bytes for each pair and score, and the
/// pictures that are shown.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] where a file that is there cannot be read.
pub fn report(options: &ReportOptions) -> Result<Report> {
    let run = Run::read(&options.run)?;
    let reference = options.reference.as_deref().map(Run::read).transpose()?;
    let mut notes = Vec::new();
    let library = library(options, &mut notes);
    let mut found = find_detection(options)?;
    if let Some(found) = &mut found {
        found.find_chosen(&run.folder)?;
    }
    let album =
        found.as_ref().map_or(Album::default(), |found| library.fetch(&suspects::wanted(found)));
    let detected =
        found.as_ref().map(|found| Detected::new(found, suspects::strongest(found, &album)));
    let facts = Facts { detected, attacks: Facts::attacks(&run, reference.as_ref()) };
    let verdict = facts.verdict();
    let sections = html! {
        (verdict::section(&verdict, &facts, found.as_ref(), &run))
        (curves::section(&run, reference.as_ref()))
        @if let Some(found) = &found {
            (scores::histograms(found))
            (suspects::section(found, &album))
            (suspects::clusters(found, &album))
        } @else {
            (suspects::none())
        }
        (ledger::section(&run))
        @if let Some(found) = &found { (scores::truth(found)) }
        (reproduce::section(&run, &library.shards))
        @if !notes.is_empty() {
            section #notes { h2 { "What could not be told" } ul {
                @for note in &notes { li { (text::shown(note)) } }
            } }
        }
    };
    let title = options.title.as_deref().unwrap_or(&run.name);
    let html = page::page(title, &subtitle(&run), &sections);
    let verdict::Verdict { finding, sentence, defence, .. } = verdict;
    Ok(Report { html, finding, sentence, defence, notes })
}

impl Report {
    /// Writes the page, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(self.html.as_bytes()).map_err(Error::io("write", path))?;
        file.commit()
    }
}

/// What the run is, in a line.
fn subtitle(run: &Run) -> String {
    let setting = |name: &str, word: &str| run.setting(name).map(|value| format!("{word}{value}"));
    let parts = [
        setting("model", ""),
        setting("objective", "objective "),
        setting("epochs", "epochs: "),
        setting("batch_size", "batch size "),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The shards that pictures are taken from; none where they cannot be listed.
fn library(options: &ReportOptions, notes: &mut Vec<String>) -> Library {
    let listed = loader_of_run(&options.run, options.shards.as_deref()).and_then(|config| {
        let shards = list_shards(&config.shards, &options.sources)?;
        let (fields, limits, decode) = (config.fields, config.shard_limits, config.decode_limits);
        Ok(Library { shards, fields, limits, decode })
    });
    listed.unwrap_or_else(|error| {
        notes.push(format!("Pictures and captions are not shown: {error}; give --shards."));
        Library::default()
    })
}

/// What detection left, where it ran.
fn find_detection(options: &ReportOptions) -> Result<Option<Detection>> {
    let usual = options.run.join(DETECTION);
    let there = usual.join("detection.json").exists();
    let folder = options.detection.as_ref().or(there.then_some(&usual));
    let read =
        |folder: &PathBuf| Detection::read(folder, options.truth.as_deref(), options.suspects);
    folder.map(read).transpose()
}
