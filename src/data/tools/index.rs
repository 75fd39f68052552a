//! `index`: an index beside each shard, and `sizes.json` in their folder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::super::index::{Header, ShardIndex, local_path, path_beside, write_sizes};
use super::super::sample::Fields;
use super::super::shard::ShardLimits;
use super::super::source::Shard;
use super::{Progress, Report, size_of, total_size};
use crate::error::{Result, printable};

/// What is indexed, and how.
#[derive(Clone, Debug, Default)]
pub struct IndexOptions {
    /// Which members make a pair.
    pub fields: Fields,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// Write nothing: hold every shard against its index, byte by byte.
    pub check_only: bool,
}

/// What became of the shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexReport {
    /// Pairs of all shards whose index is good now.
    pub pairs: u64,
    /// Shards whose index is good and was left alone.
    pub fresh: u64,
    /// Shards whose index was written.
    pub written: u64,
    /// Shards that have no index, one that is not theirs, or damage; and what of it.
    pub problems: Vec<(String, String)>,
}

enum State {
    Fresh(Header),
    Written(Header),
    Wrong(String),
}

/// Indexes shards, all CPUs at once. A fresh index is left alone.
///
/// # Errors
/// An index or `sizes.json` cannot be written.
pub fn index(shards: &[Shard], options: &IndexOptions, progress: &Progress) -> Result<IndexReport> {
    progress.start(total_size(shards));
    let states: Vec<State> = shards
        .par_iter()
        .map(|shard| {
            let state = if options.check_only { check(shard) } else { renew(shard, options) };
            progress.advance(size_of(shard));
            state
        })
        .collect::<Result<_>>()?;
    progress.finish();
    let mut report = IndexReport::default();
    let mut sizes: BTreeMap<PathBuf, BTreeMap<String, u64>> = BTreeMap::new();
    for (shard, state) in shards.iter().zip(states) {
        let mut problem = |what: String| report.problems.push((shard.name.to_string(), what));
        let header = match state {
            State::Wrong(what) => {
                problem(what);
                continue;
            }
            State::Fresh(header) => {
                report.fresh += 1;
                header
            }
            State::Written(header) => {
                report.written += 1;
                header
            }
        };
        if let Some(fault) = &header.fault {
            problem(format!("{}: {fault}", fault.reason.name()));
        }
        report.pairs += header.pairs;
        let folder = local_path(shard)?.parent().unwrap_or(Path::new(""));
        sizes.entry(folder.into()).or_default().insert(header.shard, header.pairs);
    }
    if !options.check_only {
        sizes.iter().try_for_each(|(folder, counts)| write_sizes(folder, counts))?;
    }
    Ok(report)
}

fn renew(shard: &Shard, options: &IndexOptions) -> Result<State> {
    let path = match local_path(shard) {
        Ok(path) => path,
        Err(error) => return Ok(State::Wrong(error.to_string())),
    };
    let beside = path_beside(path);
    if let Ok(ShardIndex { header, .. }) = ShardIndex::read(&beside)
        && header.fields == options.fields
        && !header.is_stale(path)
    {
        return Ok(State::Fresh(header));
    }
    match ShardIndex::build(shard, &options.fields, &options.limits) {
        Ok(index) => {
            index.write(&beside)?;
            Ok(State::Written(index.header))
        }
        Err(error) => Ok(State::Wrong(error.to_string())),
    }
}

fn check(shard: &Shard) -> Result<State> {
    let state = || -> Result<State> {
        let path = local_path(shard)?;
        let beside = path_beside(path);
        if !beside.exists() {
            return Ok(State::Wrong("no index".into()));
        }
        let header = ShardIndex::read(&beside)?.header;
        Ok(match header.is_altered(path)? {
            true => State::Wrong("changed since it was indexed".into()),
            false => State::Fresh(header),
        })
    };
    Ok(state().unwrap_or_else(|error| State::Wrong(error.to_string())))
}

impl Report for IndexReport {
    fn found_something(&self) -> bool {
        !self.problems.is_empty()
    }
}

impl fmt::Display for IndexReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shard, what) in &self.problems {
            writeln!(f, "{}: {}", printable(shard), printable(what))?;
        }
        write!(f, "{} pairs; indexed {} shards", self.pairs, self.written)?;
        writeln!(f, ", {} were fresh, {} problems", self.fresh, self.problems.len())
    }
}
