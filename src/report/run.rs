//! What the folder of a run tells, read line by line: lines that do not parse are counted and
//! passed over, for a run may have been killed while it wrote.

use super::ledger::Skips;
use crate::checkpoint::file::peek;
use crate::data::lines::Lines;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longest line of a log: a refused step names its pairs, whose keys may have 4096 bytes each.
const LINE_BYTES: usize = 1 << 26;

/// The figures of a step that are drawn; 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Whether pictures were matched with captions of the pool.
    pub matched: bool,
    /// Pairs of its epoch up to here.
    pub samples: u64,
    pub loss: f32,
    pub lr: f32,
    /// Inverse of the temperature.
    pub logit_scale: f32,
    /// Seconds.
    pub batch_time: f32,
    /// Of these, seconds waited for the batch.
    pub data_time: f32,
    pub samples_per_second: f32,
}

#[derive(Deserialize)]
struct Metric {
    step: u64,
    epoch: u32,
    samples: u64,
    loss: Option<f32>,
    lr: Option<f32>,
    logit_scale: Option<f32>,
    batch_time_s: Option<f32>,
    data_time_s: Option<f32>,
    samples_per_second: Option<f32>,
    pool_similarity: Option<f32>,
}

impl From<Metric> for Step {
    fn from(m: Metric) -> Self {
        let known = |value: Option<f32>| value.unwrap_or(f32::NAN);
        Self {
            step: m.step,
            epoch: m.epoch,
            matched: m.pool_similarity.is_some(),
            samples: m.samples,
            loss: known(m.loss),
            lr: known(m.lr),
            logit_scale: known(m.logit_scale),
            batch_time: known(m.batch_time_s),
            data_time: known(m.data_time_s),
            samples_per_second: known(m.samples_per_second),
        }
    }
}

/// A step that was refused.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Refused {
    /// The last step taken before it.
    pub step: u64,
    /// What was not finite.
    pub what: String,
    /// The pairs that may be to blame, `shard:key`.
    pub samples: Vec<String>,
}

/// Figures of one evaluation, shares from 0 to 1 mostly.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Evaluation {
    /// Epochs done by then.
    pub epoch: f64,
    /// By name: `zeroshot-top1`, `asr-patch`.
    #[serde(flatten)]
    pub figures: BTreeMap<String, Value>,
}

impl Evaluation {
    /// The figure of that name; NaN where it is not there.
    pub fn get(&self, name: &str) -> f64 {
        self.figures.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }
}

/// Pairs of an epoch as the log counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub seen: u64,
    pub delivered: u64,
    pub skipped: u64,
    pub left_over: u64,
}

impl Counted {
    /// Those that no column accounts for.
    pub fn rest(&self) -> i128 {
        let told = [self.delivered, self.skipped, self.left_over].map(i128::from);
        i128::from(self.seen) - told.iter().sum::<i128>()
    }

    /// From the log's words: `Epoch 3 done. Pairs: seen 40, delivered 38, skipped 2 (…)…`.
    fn parse(message: &str) -> Option<(u64, Self)> {
        let (epoch, pairs) = message.strip_prefix("Epoch ")?.split_once(" done. Pairs: ")?;
        let after = |word: &str| -> Option<u64> {
            let rest = pairs.split_once(word)?.1;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let counted = Self {
            seen: after("seen ")?,
            delivered: after("delivered ")?,
            skipped: after("skipped ")?,
            left_over: after("left over ").unwrap_or(0),
        };
        Some((epoch.parse().ok()?, counted))
    }
}

/// What `out.log` tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// `cpu (2 threads)`.
    pub device: Option<String>,
    /// Steps at which the run went on after an interruption.
    pub resumed: Vec<u64>,
    /// By epoch, from 0.
    pub counted: BTreeMap<u64, Counted>,
    /// Time of the first and of the last line.
    pub times: Option<(String, String)>,
    /// Whether the last line but the chart says that the run is complete.
    pub finished: bool,
}

/// A run.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub folder: PathBuf,
    /// Name of its folder.
    pub name: String,
    /// `params.txt`.
    pub settings: BTreeMap<String, String>,
    /// `metrics.jsonl`, ascending; of a step told twice (a resumed run's) the later word.
    pub steps: Vec<Step>,
    /// `results.jsonl`.
    pub evaluations: Vec<Evaluation>,
    /// `nonfinite.jsonl`.
    pub refused: Vec<Refused>,
    /// `skips.jsonl`.
    pub skips: Skips,
    /// `out.log`.
    pub told: Told,
    /// What its last checkpoint says beside the tensors: version, identity.
    pub checkpoint: BTreeMap<String, Value>,
    /// Files that are not there.
    pub missing: Vec<&'static str>,
    /// Lines that do not parse.
    pub unread: u64,
}

impl Run {
    /// Reads the folder of a run; 48 bytes a step stay in memory.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no such folder or a file cannot be read, [`Error::Format`]
    /// where there is no trace of a run in it.
    pub fn read(folder: &Path) -> Result<Self> {
        std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
        let whole = std::path::absolute(folder).map_err(Error::io("find", folder))?;
        let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut run = Self { folder: folder.to_owned(), name, ..Self::default() };
        let mut settings = BTreeMap::new();
        run.lines("params.txt", |line| {
            let (name, value) = line.split_once(": ")?;
            settings.insert(name.to_owned(), value.to_owned());
            Some(())
        })?;
        let mut steps: Vec<Step> = Vec::new();
        run.lines("metrics.jsonl", |line| {
            let step = Step::from(parse::<Metric>(line)?);
            steps.truncate(steps.partition_point(|earlier| earlier.step < step.step));
            steps.push(step);
            Some(())
        })?;
        let (mut evaluations, mut refused) = (Vec::new(), Vec::new());
        run.lines("results.jsonl", |line| parse(line).map(|e| evaluations.push(e)))?;
        run.lines("nonfinite.jsonl", |line| parse(line).map(|r| refused.push(r)))?;
        let mut skips = Skips::default();
        run.lines("skips.jsonl", |line| parse(line).map(|entry| skips.add(&entry)))?;
        let mut told = Told::default();
        run.lines("out.log", |line| {
            told.hear(line);
            Some(())
        })?;
        // Runs refuse steps only when something is wrong, and measure only when asked to.
        run.missing.retain(|file| *file != "nonfinite.jsonl");
        if run.missing.contains(&"params.txt") && run.missing.contains(&"metrics.jsonl") {
            let reason = "no params.txt and no metrics.jsonl; give the folder of a run, \
                          <logs>/<name>";
            return Err(Error::Format { path: folder.to_owned(), reason: reason.into() });
        }
        run.checkpoint = last_checkpoint(&folder.join("checkpoints"));
        // A run killed between its evaluation and its checkpoint measures that epoch again.
        evaluations.reverse();
        let mut epochs = Vec::new();
        evaluations.retain(|e: &Evaluation| {
            !epochs.contains(&e.epoch.to_bits()) && {
                epochs.push(e.epoch.to_bits());
                true
            }
        });
        evaluations.reverse();
        Ok(Self { settings, steps, evaluations, refused, skips, told, ..run })
    }

    /// Hands each line of a file on; counts those that were of no use.
    fn lines(
        &mut self,
        file: &'static str,
        mut each: impl FnMut(&str) -> Option<()>,
    ) -> Result<()> {
        let path = self.folder.join(file);
        if !path.exists() {
            self.missing.push(file);
            return Ok(());
        }
        let mut lines = Lines::open(&path, LINE_BYTES)?;
        while let Some(line) = lines.next()? {
            let used =
                line.is_empty() || std::str::from_utf8(line).ok().and_then(&mut each).is_some();
            self.unread += u64::from(!used);
        }
        Ok(())
    }

    /// A setting by its name in `params.txt`.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// Epochs, from 0, in which pictures were matched with the pool.
    pub fn matched_epochs(&self) -> BTreeSet<u32> {
        self.steps.iter().filter(|step| step.matched).map(|step| step.epoch).collect()
    }

    /// Place of each step in epochs: 2.5 is the middle of the third.
    pub fn at(&self) -> impl Fn(&Step) -> f64 + '_ {
        let pairs = self.steps.iter().map(|step| step.samples).max().unwrap_or(1).max(1) as f64;
        move |step| f64::from(step.epoch) + step.samples as f64 / pairs
    }

    /// As [`Run::at`], by the number of a step.
    pub fn at_step(&self, step: u64) -> Option<f64> {
        let after = self.steps.partition_point(|earlier| earlier.step < step);
        let step = self.steps.get(after).or(self.steps.last())?;
        Some(self.at()(step))
    }

    /// Names of the figures that were ever measured, sorted.
    pub fn figures(&self) -> BTreeSet<&str> {
        let numbers = |e: &'_ Evaluation| -> Vec<_> {
            e.figures.iter().filter(|f| f.1.is_number()).map(|f| f.0.clone()).collect()
        };
        let all: BTreeSet<String> = self.evaluations.iter().flat_map(numbers).collect();
        let known = self.evaluations.iter().flat_map(|e| e.figures.keys());
        known.filter(|name| all.contains(*name) && *name != "step").map(String::as_str).collect()
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Option<T> {
    serde_json::from_str(line).ok()
}

/// What the newest checkpoint says of itself, as far as it can be read: it is not needed.
fn last_checkpoint(folder: &Path) -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let stepped = files.filter_map(|file| {
        let values = peek(&file.path()).ok()?.values;
        Some((values.get("position")?["epoch"].as_u64()?, values))
    });
    stepped.max_by_key(|(epoch, _)| *epoch).map(|(_, values)| values).unwrap_or_default()
}

impl Told {
    /// A line `time | level | message`.
    fn hear(&mut self, line: &str) {
        let mut parts = line.splitn(3, " | ");
        let (Some(time), Some(_), Some(message)) = (parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        match &mut self.times {
            Some((_, last)) => time.clone_into(last),
            times => *times = Some((time.into(), time.into())),
        }
        if let Some(device) = message.strip_prefix("Running on ") {
            self.device = Some(device.into());
        } else if message.starts_with("resumed ") {
            let step = message.rsplit_once(", step ").and_then(|(_, s)| s.strip_suffix(')'));
            self.resumed.extend(step.and_then(|step| step.parse::<u64>().ok()));
        } else if let Some((epoch, counted)) = Counted::parse(message) {
            self.counted.insert(epoch, counted);
        } else if message.starts_with("finished after ") {
            self.finished = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_resumed_run_is_told_once() {
        let metric = |step: u64, epoch: u64, loss: &str, similarity: &str| {
            format!(
                "{{\"step\":{step},\"epoch\":{epoch},\"samples\":{},\"loss\":{loss},\
                 \"pool_similarity\":{similarity}}}\n",
                8 * (step - 2 * epoch)
            )
        };
        let metrics = metric(1, 0, "4.0", "null")
            + &metric(2, 0, "3.0", "null")
            + &metric(3, 1, "9.0", "null")
            + &metric(2, 0, "2.5", "null")
            + &metric(3, 1, "null", "0.5")
            + "{\"step\":4,\"epo";
        let log = "T1 | INFO | Running on cpu (2 threads)\nT2 | INFO | resumed a (epoch 9, step 3)/\
                   c.safetensors (epoch 0, step 1)\nT3 | INFO | Epoch 0 done. Pairs: seen 20, \
                   delivered 16, skipped 1 (broken-image 1), left over 3. Mean loss: 3\nchart\n";
        let results = "{\"epoch\":1,\"asr-x\":0.5}\n{\"epoch\":1,\"asr-x\":0.25,\"note\":\"a\"}\n";
        let dir = folder(&[
            ("metrics.jsonl", &metrics),
            ("out.log", log),
            ("results.jsonl", results),
            ("params.txt", "shards: a: b\nlr: 1\n"),
        ]);
        let run = Run::read(dir.path()).unwrap();
        let losses: Vec<_> = run.steps.iter().map(|s| (s.step, s.loss)).collect();
        assert_eq!(losses[..2], [(1, 4.0), (2, 2.5)]);
        assert!(losses.len() == 3 && losses[2].1.is_nan());
        assert_eq!((run.unread, run.matched_epochs()), (1, BTreeSet::from([1])));
        assert_eq!(run.steps.iter().map(run.at()).collect::<Vec<_>>(), [0.5, 1.0, 1.5]);
        assert_eq!((run.at_step(2), run.at_step(99)), (Some(1.0), Some(1.5)));
        assert_eq!(run.setting("shards"), Some("a: b"));
        assert_eq!((run.evaluations.len(), run.evaluations[0].get("asr-x")), (1, 0.25));
        assert_eq!(run.figures(), BTreeSet::from(["asr-x"]));
        let Told { device, resumed, counted, times, finished } = run.told;
        assert_eq!(
            (device.as_deref(), resumed, finished),
            (Some("cpu (2 threads)"), vec![1], false)
        );
        assert_eq!(times, Some(("T1".into(), "T3".into())));
        let expected = Counted { seen: 20, delivered: 16, skipped: 1, left_over: 3 };
        assert_eq!((counted[&0], counted[&0].rest()), (expected, 0));
        assert_eq!(run.missing, ["skips.jsonl"]);
    }

    #[test]
    fn what_is_no_run_is_refused() {
        let told = Run::read(folder(&[("a", "")]).path()).unwrap_err().to_string();
        assert!(told.contains("params.txt"), "{told}");
        assert!(Run::read(Path::new("/nonexistent")).is_err());
        let (huge, none) = ("Epoch 1 done. Pairs: seen 99999999999999999999999,", "Epoch x done.");
        assert!(Counted::parse(huge).is_none() && Counted::parse(none).is_none());
    }
}
