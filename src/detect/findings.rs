//! What was found, as files and as a table.

use super::cluster::Cluster;
use super::metrics::{Metrics, metrics, ranking};
use super::rank::{CONFLICT, EVIDENCE, Score};
use super::{DetectOptions, Pair, suspicion::Suspicion};
use crate::data::atomic::AtomicFile;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bins of a histogram.
pub const BINS: usize = 40;
/// Most clusters of a kind that are listed.
pub const CLUSTERS: usize = 500;
/// Most rows of a cluster that are listed.
pub const MEMBERS: usize = 100;

/// All that was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// How it was.
    pub options: DetectOptions,
    /// `[N]` the pairs.
    pub pairs: Vec<Pair>,
    /// What training saw of them.
    pub seen: Suspicion,
    /// Scores `[N]` of which anything is known.
    pub scores: Vec<Score>,
    /// Their ranks.
    pub ranks: Vec<Vec<f32>>,
    /// `[N]` all in one; the higher, the more suspicious.
    pub combined: Vec<f32>,
    /// Pictures that are nearly one.
    pub pictures: Vec<Cluster>,
    /// Captions that are nearly one.
    pub captions: Vec<Cluster>,
    /// `[N]` which are poisoned, and how many pairs the list of these named.
    pub truth: Option<(Vec<bool>, usize)>,
}

/// A line of `scores.jsonl` or `quarantine.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    pair: Names<'a>,
    index: u32,
    score: f32,
    rank: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    scores: BTreeMap<&'static str, f32>,
}

#[derive(Serialize)]
struct Names<'a> {
    shard: &'a str,
    key: &'a str,
}

impl Findings {
    /// Pairs that go into quarantine.
    pub fn top(&self) -> usize {
        let accused = || self.combined.iter().filter(|&&score| score >= 1.0).count();
        self.options.top.unwrap_or_else(accused).min(self.pairs.len())
    }

    /// Writes the files that [`crate::detect`] describes, each whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be made or written.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let order = ranking(&self.combined);
        let mut rank = vec![0; order.len()];
        order.iter().zip(1..).for_each(|(&row, place)| rank[row as usize] = place);
        let line = |row: usize| Line {
            pair: self.names(row),
            index: self.pairs[row].index,
            score: self.combined[row],
            rank: rank[row],
            reason: None,
            scores: self.scores.iter().map(|score| (score.name, score.values[row])).collect(),
        };
        let suspect = |&row: &u32| Line {
            reason: Some(self.reason(row as usize)),
            scores: BTreeMap::new(),
            ..line(row as usize)
        };
        Ok(vec![
            lines(folder.join("scores.jsonl"), (0..order.len()).map(line))?,
            lines(folder.join("quarantine.jsonl"), order[..self.top()].iter().map(suspect))?,
            lines(folder.join("clusters.json"), [self.clusters()].into_iter())?,
            lines(folder.join("detection.json"), [self.summary()].into_iter())?,
        ])
    }

    fn names(&self, row: usize) -> Names<'_> {
        let Pair { shard, key, .. } = &self.pairs[row];
        Names { shard, key }
    }

    /// The three scores that accuse a pair most: evidence, then what is the rarest.
    fn reason(&self, row: usize) -> String {
        let mut known: Vec<(f32, &Score)> =
            self.ranks.iter().map(|r| r[row]).zip(&self.scores).collect();
        known.retain(|(rank, _)| !rank.is_nan());
        let order = |(rank, score): &(f32, &Score)| rank + score.weight(row).unwrap_or(0.0);
        known.sort_by(|a, b| order(b).total_cmp(&order(a)));
        let part = |(rank, score): &(f32, &Score)| {
            let above = 100.0 * rank;
            format!("{} {:.3} (above {above:.1} % of pairs)", score.name, score.values[row])
        };
        known.iter().take(3).map(part).collect::<Vec<_>>().join(", ")
    }

    fn clusters(&self) -> Value {
        let listed = |cluster: &Cluster| {
            let mut rows: Vec<_> = cluster.rows.iter().zip(&cluster.oddness).collect();
            rows.sort_by(|a, b| b.1.total_cmp(a.1));
            let member = |&(&row, oddness): &(&u32, &f32)| {
                let mut member = json!(self.names(row as usize));
                member["oddness"] = json!(oddness);
                member
            };
            let members: Vec<Value> = rows.iter().take(MEMBERS).map(member).collect();
            json!({ "size": rows.len(), "agreement": cluster.agreement, "rows": members })
        };
        let conflict = self.scores.iter().find(|score| score.name == CONFLICT);
        let of_pictures = |cluster: &Cluster| {
            let mut listed = listed(cluster);
            listed["conflict"] = json!(conflict.map(|c| c.values[cluster.rows[0] as usize]));
            listed
        };
        let pictures: Value = self.pictures.iter().take(CLUSTERS).map(of_pictures).collect();
        let captions: Value = self.captions.iter().take(CLUSTERS).map(listed).collect();
        json!({ "pictures": pictures, "captions": captions })
    }

    /// All scores, the one of all last.
    fn all_scores(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let scores = self.scores.iter().map(|score| (score.name, &score.values[..]));
        scores.chain([("score", &self.combined[..])])
    }

    /// Figures of a score, with a truth: at the number of poisoned pairs, and of suspects.
    fn metrics(&self, values: &[f32]) -> Option<Metrics> {
        let (poisoned, _) = self.truth.as_ref()?;
        let count = poisoned.iter().filter(|&&is| is).count();
        metrics(values, poisoned, &[count, self.top()])
    }

    fn summary(&self) -> Value {
        let DetectOptions { density, clusters, common, by, .. } = &self.options;
        let truth = self.truth.as_ref().map(|(poisoned, listed)| {
            json!({ "listed": listed, "found": poisoned.iter().filter(|&&is| is).count() })
        });
        let scores: serde_json::Map<String, Value> =
            self.all_scores().map(|(name, values)| (name.into(), self.figures(values))).collect();
        json!({
            "pairs": self.pairs.len(),
            "epochs": self.seen.epochs,
            "records": self.seen.records,
            "records_of_others": self.seen.others,
            "density": { "neighbours": density.neighbours, "batch": density.batch,
                         "seed": density.seed },
            "clusters": { "threshold": clusters.threshold, "exact_up_to": clusters.exact_up_to,
                          "pictures": self.pictures.len(), "captions": self.captions.len(),
                          "largest_pictures": self.pictures.first().map_or(0, |c| c.rows.len()),
                          "largest_captions": self.captions.first().map_or(0, |c| c.rows.len()) },
            "common": { "share": common.share, "most": common.most, "ridge": common.ridge },
            "by": by,
            "evidence": EVIDENCE.into_iter().collect::<BTreeMap<_, _>>(),
            "quarantined": self.top(),
            "truth": truth,
            "scores": scores,
        })
    }

    fn figures(&self, values: &[f32]) -> Value {
        let known = || values.iter().copied().filter(|value| !value.is_nan());
        let (min, max) =
            (known().fold(f32::INFINITY, f32::min), known().fold(-f32::INFINITY, f32::max));
        let sum: f64 = known().map(f64::from).sum();
        let count = known().count();
        let bin = |value: f32| {
            let share =
                (f64::from(value) - f64::from(min)) / (f64::from(max) - f64::from(min)).max(1e-30);
            ((share * BINS as f64) as usize).min(BINS - 1)
        };
        let histogram = |of: &dyn Fn(usize) -> bool| {
            let mut bins = [0u64; BINS];
            let chosen = values.iter().enumerate().filter(|(row, v)| !v.is_nan() && of(*row));
            chosen.for_each(|(_, &value)| bins[bin(value)] += 1);
            bins.to_vec()
        };
        let poisoned = self.truth.as_ref().map(|(truth, _)| histogram(&|row| truth[row]));
        json!({
            "known": count,
            "min": min,
            "mean": sum / count as f64,
            "max": max,
            "histogram": { "all": histogram(&|_| true), "poisoned": poisoned },
            "metrics": self.metrics(values),
        })
    }
}

/// Writes values a line each.
fn lines(path: PathBuf, values: impl Iterator<Item = impl Serialize>) -> Result<PathBuf> {
    let mut file = AtomicFile::create(&path)?;
    for value in values {
        let written = serde_json::to_writer(&mut file, &value).map_err(std::io::Error::from);
        let written = written.and_then(|()| file.write_all(b"\n"));
        written.map_err(Error::io("write", &path))?;
    }
    file.commit()?;
    Ok(path)
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pairs, epochs, top) = (self.pairs.len(), self.seen.epochs.len(), self.top());
        writeln!(f, "{pairs} pairs, {epochs} epochs of training written down, {top} suspects")?;
        for (kind, clusters) in [("pictures", &self.pictures), ("captions", &self.captions)] {
            let largest = clusters.first().map_or(0, |cluster| cluster.rows.len());
            writeln!(f, "{} clusters of {kind}, the largest of {largest}", clusters.len())?;
        }
        if let Some((poisoned, listed)) = &self.truth {
            let found = poisoned.iter().filter(|&&is| is).count();
            writeln!(f, "{found} of {listed} poisoned pairs are among them")?;
        }
        write!(f, "{:18} {:>10}", "score", "known")?;
        let heads = ["AUROC", "FPR@95", "AP", "P@poison", "P@top", "R@top"];
        if self.truth.is_some() {
            heads.iter().try_for_each(|head| write!(f, " {head:>8}"))?;
        }
        writeln!(f)?;
        for (name, values) in self.all_scores() {
            let known = values.iter().filter(|value| !value.is_nan()).count();
            write!(f, "{name:18} {known:>10}")?;
            if let Some(m) = self.metrics(values) {
                let (precision, recall) = (&m.precision_at, &m.recall_at);
                let figures = [m.auroc, m.fpr_at_95_tpr, m.average_precision];
                let at = [precision[0].1, precision[1].1, recall[1].1];
                figures.iter().chain(&at).try_for_each(|figure| write!(f, " {figure:>8.4}"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
