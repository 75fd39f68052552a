//! What `roclip-detect` left in its folder, as [`crate::detect`] describes it.

use crate::data::exclude::Exclusions;
use crate::data::lines::Lines;
use crate::detect::record::{self, RecordReader};
use crate::detect::{Pair, metrics, places};
use crate::error::{Error, Result};
use crate::flow::Place;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line of a list: a key of 4096 bytes and a path, with escapes, and all scores.
const LINE_BYTES: usize = 128 << 10;
/// Largest `clusters.json` and `detection.json`: a thousand clusters of a hundred long keys.
const JSON_BYTES: u64 = 1 << 30;
/// Captions of the pool that are kept of a suspect.
const CHOSEN: usize = 3;
/// Ends of the ranking at which precision is told, beside those that the data suggest.
const TOPS: [usize; 3] = [10, 100, 1000];

/// `detection.json`, as far as it is told.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Summary {
    /// Pairs that were looked at.
    pub pairs: u64,
    /// Scores that make the ranking.
    pub by: Vec<String>,
    /// Scores that are evidence by themselves, from this value on; what they accuse comes first.
    pub evidence: BTreeMap<String, f32>,
    /// Pairs proposed for quarantine.
    pub quarantined: u64,
    /// How clusters were found and how many there are.
    pub clusters: Counts,
}

/// Clusters in numbers.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Counts {
    pub threshold: f64,
    pub pictures: u64,
    pub captions: u64,
}

/// One pair of the ranking.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Suspect {
    /// Its shard, as listed.
    pub shard: String,
    /// Its key.
    pub key: String,
    /// Its position within the shard.
    pub index: u32,
    /// All in one.
    pub score: f32,
    /// From 1.
    pub rank: u32,
    /// Every score; `None` where nothing is known.
    #[serde(flatten)]
    pub scores: BTreeMap<String, Option<f32>>,
    /// The scores that accuse it most, of those in quarantine.
    #[serde(skip)]
    pub reason: String,
    /// What the truth says, where there is one.
    #[serde(skip)]
    pub poisoned: Option<bool>,
    /// What the pool held nearest to its picture, with the cosine, the nearest first.
    #[serde(skip)]
    pub chosen: Vec<Chosen>,
}

/// A caption of the pool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chosen {
    /// Shard of the pair that it came from.
    pub shard: String,
    /// Its position there.
    pub index: u32,
    /// Cosine of the suspect's picture and this caption, when it was chosen.
    pub cosine: f32,
}

#[derive(Deserialize)]
struct Reason {
    rank: u32,
    reason: String,
}

/// Pairs that are nearly the same on one side.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Cluster {
    /// Pairs in it.
    pub size: u64,
    /// Mean cosine of two of them on the other side.
    pub agreement: Option<f64>,
    /// How many of them contradict a caption; of clusters of pictures.
    pub conflict: Option<f32>,
    /// Some of them, the oddest first.
    pub rows: Vec<Member>,
}

/// A pair of a cluster.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Member {
    /// Its shard, as listed.
    pub shard: String,
    /// Its key.
    pub key: String,
    /// How much less it agrees with the others than these with each other.
    pub oddness: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Clusters {
    pictures: Vec<Cluster>,
    captions: Vec<Cluster>,
}

/// All of it. In memory are 4 bytes for each pair and score.
#[derive(Clone, Debug, Default)]
pub(super) struct Detection {
    pub folder: PathBuf,
    pub summary: Summary,
    /// The first of the ranking, the most suspicious first.
    pub suspects: Vec<Suspect>,
    /// Names of the scores; the last is `score`.
    pub names: Vec<String>,
    /// `[scores][N]`; NaN where nothing is known.
    pub values: Vec<Vec<f32>>,
    /// `[N]` places in the ranking, from 1.
    pub ranks: Vec<u32>,
    /// The truth.
    pub truth: Option<Truth>,
    /// Pictures that are nearly one, the largest cluster first.
    pub pictures: Vec<Cluster>,
    /// Captions that are nearly one.
    pub captions: Vec<Cluster>,
}

/// Which pairs are poisoned.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    /// `[N]`.
    pub poisoned: Vec<bool>,
    /// Pairs on the list.
    pub listed: u64,
    /// Of these, among the pairs that were looked at.
    pub present: u64,
    /// Of these, proposed for quarantine.
    pub caught: u64,
}

impl Detection {
    /// Reads the folder that `roclip-detect` wrote; the first `most` of the ranking in full.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] where a file is missing or not of that form.
    pub fn read(folder: &Path, truth: Option<&Path>, most: usize) -> Result<Self> {
        let summary: Summary = json(&folder.join("detection.json"))?;
        let Clusters { pictures, captions } = json(&folder.join("clusters.json"))?;
        let mut detection =
            Self { folder: folder.to_owned(), summary, pictures, captions, ..Self::default() };
        let list = truth.map(Exclusions::read).transpose()?;
        let mut known =
            Truth { listed: list.as_ref().map_or(0, |l| l.len() as u64), ..Truth::default() };
        let quarantined = detection.summary.quarantined;
        let mut lines = Lines::open(&folder.join("scores.jsonl"), LINE_BYTES)?;
        while lines.next()?.is_some() {
            let mut pair: Suspect = lines.parse()?;
            detection.take_scores(&pair);
            if let Some(list) = &list {
                let poisoned = list.contains(&pair.shard, &pair.key);
                pair.poisoned = Some(poisoned);
                known.poisoned.push(poisoned);
                known.present += u64::from(poisoned);
                known.caught += u64::from(poisoned && u64::from(pair.rank) <= quarantined);
            }
            if pair.rank as usize <= most {
                detection.suspects.push(pair);
            }
        }
        detection.suspects.sort_by_key(|suspect| suspect.rank);
        detection.truth = list.map(|_| known);
        detection.read_reasons()?;
        Ok(detection)
    }

    /// Scores that the first line does not name are not known, and the other way round.
    fn take_scores(&mut self, pair: &Suspect) {
        if self.names.is_empty() {
            self.names = pair.scores.keys().cloned().chain(["score".to_owned()]).collect();
            self.values = vec![Vec::new(); self.names.len()];
        }
        for (name, values) in self.names.iter().zip(&mut self.values) {
            let score = pair.scores.get(name).copied().flatten();
            values.push(if name == "score" { pair.score } else { score.unwrap_or(f32::NAN) });
        }
        self.ranks.push(pair.rank);
    }

    fn read_reasons(&mut self) -> Result<()> {
        let mut reasons = HashMap::new();
        let mut lines = Lines::open(&self.quarantine(), LINE_BYTES)?;
        while reasons.len() < self.suspects.len() && lines.next()?.is_some() {
            let Reason { rank, reason } = lines.parse()?;
            reasons.insert(rank, reason);
        }
        for suspect in &mut self.suspects {
            suspect.reason = reasons.remove(&suspect.rank).unwrap_or_default();
        }
        Ok(())
    }

    /// The list that `--exclude` takes.
    pub fn quarantine(&self) -> PathBuf {
        self.folder.join("quarantine.jsonl")
    }

    /// The values of a score; `None`: there is no such score.
    pub fn score(&self, name: &str) -> Option<&[f32]> {
        let place = self.names.iter().position(|known| known == name)?;
        Some(&self.values[place])
    }

    /// Pairs against which there is evidence.
    pub fn accused(&self) -> u64 {
        let evidence = self.summary.evidence.iter();
        let known: Vec<_> =
            evidence.filter_map(|(name, least)| Some((self.score(name)?, *least))).collect();
        let is_accused = |row: &usize| known.iter().any(|(values, least)| values[*row] >= *least);
        (0..self.ranks.len()).filter(is_accused).count() as u64
    }

    /// Looks up in the records of training what the pool chose for the suspects.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] where records are there and cannot be read.
    pub fn find_chosen(&mut self, run: &Path) -> Result<()> {
        let epochs = record::epochs(run)?;
        if epochs.is_empty() {
            return Ok(());
        }
        let names = record::read_shards(run)?;
        let pair = |s: &Suspect| Pair {
            shard: s.shard.as_str().into(),
            key: s.key.as_str().into(),
            index: s.index,
        };
        let places = places(run, &self.suspects.iter().map(pair).collect::<Vec<_>>())?;
        let rows: HashMap<Place, usize> =
            places.into_iter().zip(0..).filter(|(place, _)| *place != Place::UNKNOWN).collect();
        for (_, path) in epochs {
            for record in RecordReader::open(&path)? {
                let record = record?;
                let row = rows.get(&record.pair);
                let shard = names.get(record.from.shard as usize);
                let (Some(&row), Some(shard)) = (row, shard) else { continue };
                let (index, cosine) = (record.from.index, record.best);
                let chosen = Chosen { shard: shard.clone(), index, cosine };
                self.suspects[row].add_chosen(chosen);
            }
        }
        Ok(())
    }

    /// Figures of every score against the truth.
    pub fn metrics(&self) -> Vec<(&str, metrics::Metrics)> {
        let Some(truth) = &self.truth else { return Vec::new() };
        let of = |(name, values): (&'_ String, &Vec<f32>)| {
            let figures = metrics::metrics(values, &truth.poisoned, &self.tops())?;
            Some((name.clone(), figures))
        };
        let all: Vec<_> = self.names.iter().zip(&self.values).filter_map(of).collect();
        let name = |name: &str| self.names.iter().find(|known| *known == name).map(String::as_str);
        all.into_iter().filter_map(|(n, figures)| Some((name(&n)?, figures))).collect()
    }

    /// Numbers of first pairs at which precision and recall are told.
    pub fn tops(&self) -> Vec<usize> {
        let poisoned = self.truth.as_ref().map_or(0, |truth| truth.present);
        let suggested = [poisoned, self.summary.quarantined].map(|n| n as usize);
        let mut tops: Vec<usize> = TOPS.into_iter().chain(suggested).collect();
        tops.retain(|top| (1..=self.ranks.len()).contains(top));
        tops.sort_unstable();
        tops.dedup();
        tops
    }
}

impl Suspect {
    fn add_chosen(&mut self, new: Chosen) {
        let same = |old: &&mut Chosen| (&old.shard, old.index) == (&new.shard, new.index);
        match self.chosen.iter_mut().find(same) {
            Some(old) => old.cosine = old.cosine.max(new.cosine),
            None => self.chosen.push(new),
        }
        self.chosen.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
        self.chosen.truncate(CHOSEN);
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(Error::io("open", path))?.take(JSON_BYTES);
    let wrong = |e: serde_json::Error| Error::Format {
        path: path.to_owned(),
        reason: format!("{e}; run roclip-detect again"),
    };
    let value: Value = serde_json::from_reader(BufReader::new(file)).map_err(wrong)?;
    serde_json::from_value(value).map_err(wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    /// A folder as `roclip-detect` leaves it, of 40 pairs of which the last ones are suspects.
    pub fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let summary = "{\"pairs\":40,\"epochs\":[0],\"by\":[\"margin\"],\
            \"evidence\":{\"margin\":19},\"quarantined\":4,\
            \"clusters\":{\"threshold\":0.98,\"pictures\":1,\"captions\":0}}";
        fs::write(dir.path().join("detection.json"), summary).unwrap();
        let clusters = r#"{"pictures":[{"size":3,"agreement":0.25,"conflict":2.5,"rows":[
            {"shard":"a.tar","key":"k39","oddness":0.5},
            {"shard":"a.tar","key":"k3","oddness":null}]}],"captions":[]}"#;
        fs::write(dir.path().join("clusters.json"), clusters).unwrap();
        let (mut scores, mut quarantine) = (String::new(), String::new());
        for n in 0..40u32 {
            let margin = if n == 0 { "null".into() } else { (n % 20).to_string() };
            let (score, rank) = (f64::from(n) / 64.0, 40 - n);
            scores += &format!(
                "{{\"shard\":\"a.tar\",\"key\":\"k{n}\",\"index\":{n},\"score\":{score},\
                 \"rank\":{rank},\"margin\":{margin}}}\n"
            );
            if rank <= 4 {
                let line = format!("\"key\":\"k{n}\",\"rank\":{rank},\"reason\":\"r{rank}\"");
                quarantine = format!("{{\"shard\":\"a.tar\",{line}}}\n{quarantine}");
            }
        }
        fs::write(dir.path().join("scores.jsonl"), scores).unwrap();
        fs::write(dir.path().join("quarantine.jsonl"), quarantine).unwrap();
        let truth = "{\"shard\":\"a.tar\",\"key\":\"k39\"}\n{\"shard\":\"a.tar\",\"key\":\"k20\"}\n\
                     {\"shard\":\"gone.tar\",\"key\":\"k1\"}\n";
        fs::write(dir.path().join("poison.jsonl"), truth).unwrap();
        dir
    }

    #[test]
    fn a_folder_is_read() {
        let dir = folder();
        let found = Detection::read(dir.path(), Some(&dir.path().join("poison.jsonl")), 6).unwrap();
        let ranked: Vec<_> = found.suspects.iter().map(|s| (s.rank, &*s.key, &*s.reason)).collect();
        assert_eq!(ranked[..2], [(1, "k39", "r1"), (2, "k38", "r2")]);
        assert_eq!(ranked[5], (6, "k34", ""));
        assert_eq!(found.names, ["margin", "score"]);
        assert!(found.score("margin").unwrap()[0].is_nan() && found.score("x").is_none());
        assert_eq!(found.score("score").unwrap()[32], 0.5);
        let truth = found.truth.as_ref().unwrap();
        assert_eq!((truth.listed, truth.present, truth.caught), (3, 2, 1));
        assert_eq!(found.suspects[0].poisoned, Some(true));
        assert_eq!(found.suspects[1].poisoned, Some(false));
        assert_eq!(found.tops(), [2, 4, 10]);
        // By `score` the poisoned pairs are first and 20th of 40, before 38 and 20 clean ones.
        let figures = found.metrics();
        let (name, score) = &figures[1];
        assert_eq!((*name, score.auroc), ("score", (38.0 + 20.0) / 76.0));
        assert_eq!(found.pictures[0].rows[1].oddness, None);
        // A margin of 19 is reached by pairs 19 and 39.
        assert_eq!(found.accused(), 2);
    }

    #[test]
    fn what_is_not_of_that_form_is_refused() {
        for file in ["detection.json", "clusters.json", "scores.jsonl", "quarantine.jsonl"] {
            let dir = folder();
            fs::write(dir.path().join(file), "{\"score\":\"x\"}\n").unwrap();
            let told = Detection::read(dir.path(), None, 6).unwrap_err().to_string();
            assert!(told.contains(file), "{told}");
            fs::remove_file(dir.path().join(file)).unwrap();
            assert!(Detection::read(dir.path(), None, 6).is_err(), "{file}");
        }
    }

    #[test]
    fn the_nearest_captions_of_the_pool_are_kept_once_each() {
        let mut suspect = Suspect::default();
        for (index, cosine) in [(1, 0.5), (2, 0.25), (1, 0.75), (3, 0.125), (4, 0.625)] {
            suspect.add_chosen(Chosen { shard: "a".into(), index, cosine });
        }
        let kept: Vec<_> = suspect.chosen.iter().map(|c| (c.index, c.cosine)).collect();
        assert_eq!(kept, [(1, 0.75), (4, 0.625), (2, 0.25)]);
    }
}
