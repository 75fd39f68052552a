//! `filter`: samples to new shards, but for those that a list or a score excludes.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::exclude::{Exclusions, KeyHash};
use super::super::ledger::Reason;
use super::super::lines::Lines;
use super::super::raw::each_sample;
use super::super::shard::ShardLimits;
use super::super::source::Shard;
use super::super::writer::{ShardWriter, WriterOptions, Written};
use super::{Progress, Report, list_counts, refuse_folder_of};
use crate::error::{Error, Result};

/// Longest line of a score file: a key of 4096 bytes and a number.
const LINE_BYTES: usize = 64 << 10;

/// Which samples are dropped, and where the others go.
#[derive(Clone, Debug, Default)]
pub struct FilterOptions {
    /// Samples on this list match.
    pub exclude: Option<PathBuf>,
    /// Samples whose score lies outside of `min..=max` match.
    pub scores: Option<Scores>,
    /// Keep what matches and drop the rest, instead of the other way round.
    pub keep: bool,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// How shards are written.
    pub writer: WriterOptions,
}

/// A file of scores, and which are good.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `.jsonl` with `{"key": …, "score": …}` in each line; else `key,score`, perhaps under these
    /// names as a first line. Of two scores of one key the later counts.
    pub path: PathBuf,
    /// Least good score.
    pub min: f64,
    /// Greatest good score.
    pub max: f64,
    /// Whether a sample without a score is kept, with [`FilterOptions::keep`] or without.
    pub keep_missing: bool,
}

/// What became of the samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterReport {
    /// Samples read whole.
    pub seen: u64,
    /// Samples written.
    pub kept: u64,
    /// Samples dropped, the next included.
    pub dropped: u64,
    /// Samples without a score.
    pub unscored: u64,
    /// Samples that could not be read whole, and places where a shard is damaged, by reason.
    pub faults: std::collections::BTreeMap<Reason, u64>,
    /// The shards written.
    pub written: Vec<Written>,
}

/// Copies the samples that are kept into new shards in `out`: all their members, byte for byte, in
/// the same order. In memory are one sample, and 16 bytes for each key of a list.
///
/// # Errors
/// A list cannot be read; `out` is the folder of a shard that is read, holds shards already, or
/// cannot be written.
pub fn filter(
    shards: &[Shard],
    out: &Path,
    options: &FilterOptions,
    progress: &Progress,
) -> Result<FilterReport> {
    let rule = Rule::read(options)?;
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    refuse_folder_of(shards, out)?;
    progress.begin(shards);
    let mut writer = ShardWriter::create(out, options.writer.clone())?;
    let mut report = FilterReport::default();
    for shard in shards {
        copy(shard, &rule, options, &mut writer, &mut report)?;
        progress.advance_past(shard, report.kept);
    }
    progress.finish();
    report.written = writer.finish()?;
    assert_eq!(report.seen, report.kept + report.dropped, "a sample is kept or dropped");
    Ok(report)
}

fn copy(
    shard: &Shard,
    rule: &Rule,
    options: &FilterOptions,
    writer: &mut ShardWriter,
    report: &mut FilterReport,
) -> Result<()> {
    let FilterReport { seen, kept, dropped, unscored, faults, .. } = report;
    each_sample(shard, &options.limits, faults, |sample| {
        *seen += 1;
        let verdict = rule.verdict(&shard.name, &sample.key);
        *unscored += u64::from(verdict == Verdict::Unscored);
        let is_kept = match verdict {
            Verdict::Unscored => rule.keep_missing,
            Verdict::Matches => options.keep,
            Verdict::Passes => !options.keep,
        };
        if !is_kept {
            *dropped += 1;
            return Ok(());
        }
        *kept += 1;
        writer.write(&sample.key, &sample.members)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Matches,
    Passes,
    Unscored,
}

struct Rule {
    exclusions: Exclusions,
    /// Whether the score of a key is good.
    scores: Option<HashMap<KeyHash, bool>>,
    keep_missing: bool,
}

impl Rule {
    fn read(options: &FilterOptions) -> Result<Self> {
        let exclusions = options.exclude.as_deref().map(Exclusions::read).transpose()?;
        Ok(Self {
            exclusions: exclusions.unwrap_or_default(),
            scores: options.scores.as_ref().map(read_scores).transpose()?,
            keep_missing: options.scores.as_ref().is_some_and(|scores| scores.keep_missing),
        })
    }

    fn verdict(&self, shard: &str, key: &str) -> Verdict {
        if self.exclusions.contains(shard, key) {
            return Verdict::Matches;
        }
        match self.scores.as_ref().map(|scores| scores.get(&KeyHash::of(key))) {
            None | Some(Some(true)) => Verdict::Passes,
            Some(Some(false)) => Verdict::Matches,
            Some(None) => Verdict::Unscored,
        }
    }
}

#[derive(Deserialize)]
struct Scored {
    key: String,
    score: f64,
}

fn read_scores(scores: &Scores) -> Result<HashMap<KeyHash, bool>> {
    let is_json = scores.path.extension().is_some_and(|e| e == "jsonl" || e == "json");
    let mut lines = Lines::open(&scores.path, LINE_BYTES)?;
    let mut good = HashMap::new();
    let mut is_first = true;
    while let Some(line) = lines.next()? {
        if line.trim_ascii().is_empty() || std::mem::take(&mut is_first) && line == b"key,score" {
            continue;
        }
        let Scored { key, score } = if is_json {
            lines.parse()?
        } else {
            parse_scored(line).ok_or_else(|| lines.wrong("not `key,score` with a number"))?
        };
        good.insert(KeyHash::of(&key), scores.min <= score && score <= scores.max);
    }
    Ok(good)
}

/// `key,score`; a key may be quoted, and has to be if it holds a quotation mark.
fn parse_scored(line: &[u8]) -> Option<Scored> {
    let (key, score) = std::str::from_utf8(line).ok()?.rsplit_once(',')?;
    let key = match key.strip_prefix('"') {
        None => key.into(),
        Some(quoted) => quoted.strip_suffix('"')?.replace("\"\"", "\""),
    };
    Some(Scored { key, score: score.trim().parse().ok()? })
}

impl Report for FilterReport {
    fn found_something(&self) -> bool {
        !self.faults.is_empty()
    }
}

impl fmt::Display for FilterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seen, kept, shards) = (self.seen, self.kept, self.written.len());
        write!(f, "{seen} samples: {kept} kept in {shards} shards, {} dropped", self.dropped)?;
        writeln!(f, "; {} had no score", self.unscored)?;
        if !self.faults.is_empty() {
            writeln!(f, "not read whole, or damage of shards:")?;
        }
        write!(f, "{}", list_counts(self.faults.iter().map(|(reason, n)| (reason.name(), *n))))
    }
}
