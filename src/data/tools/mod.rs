//! What `roclip-shards` does, one file for each of its commands.
//!
//! Each is a function from options to a report that can be printed, with
//! [`found_something`](Report::found_something) for the exit code. Memory is bounded by what one
//! pair may take, not by the size of the dataset.

pub mod filter;
pub mod index;
pub mod inspect;
pub mod pack;
mod rows;
pub mod verify;

use std::fmt::Display;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::index::local_path;
use super::source::{Shard, Source};
use crate::error::{Error, Result};

/// What a command did, to be printed.
pub trait Report: Display {
    /// Whether the work was done but not all is well: pairs were skipped, shards are damaged,
    /// checksums differ.
    fn found_something(&self) -> bool;
}

/// How far a command is, for a person who waits.
#[derive(Clone, Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows nothing.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// A bar on standard error, if that is a terminal.
    pub fn bar() -> Self {
        let bar = ProgressBar::new(0);
        let form = "{elapsed_precise} [{bar:40}] {percent} % {msg} (about {eta} left)";
        bar.set_style(ProgressStyle::with_template(form).expect("a template of the crate"));
        Self(bar)
    }

    /// For a reading of these shards.
    pub(crate) fn begin(&self, shards: &[Shard]) {
        self.start(total_size(shards));
    }

    /// One of them is read; so many pairs were, of all.
    pub(crate) fn advance_past(&self, shard: &Shard, pairs: u64) {
        self.advance(size_of(shard));
        self.say(pairs);
    }

    fn start(&self, total: u64) {
        self.0.set_length(total);
    }

    fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    fn reach(&self, position: u64) {
        self.0.set_position(position);
    }

    fn say(&self, pairs: u64) {
        self.0.set_message(format!("{pairs} pairs"));
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Refuses to write where one of the shards that are read lies. `out` exists.
pub(crate) fn refuse_folder_of(shards: &[Shard], out: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    for path in shards.iter().filter_map(|shard| local_path(shard).ok()) {
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if real(folder) == real(out) {
            return Err(Error::Option {
                flag: "OUT".into(),
                got: format!("the folder of {}", path.display()),
                expected: "another folder than that of the shards".into(),
            });
        }
    }
    Ok(())
}

/// Size of a shard on disk, in bytes; 0 where it is not known.
fn size_of(shard: &Shard) -> u64 {
    match &shard.source {
        Source::File(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
        _ => 0,
    }
}

fn total_size(shards: &[Shard]) -> u64 {
    shards.iter().map(size_of).sum()
}

/// `  broken-image 2` and so on, one line for each.
pub(crate) fn list_counts<K: Display>(counts: impl IntoIterator<Item = (K, u64)>) -> String {
    counts.into_iter().map(|(name, count)| format!("  {name} {count}\n")).collect()
}
