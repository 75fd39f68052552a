//! What was measured: a table for people, CLIP_benchmark's JSON for programs.
//!
//! A result is an object with `dataset`, `model`, `pretrained`, `task`, `metrics` and `language`;
//! metrics have CLIP_benchmark's names where it has them. Beside a share `x` stands `x_interval`,
//! its 95 % interval by Wilson.

use super::accuracy::{Accuracy, Share, TOP};
use super::attack::{Backdoor, SUCCESS_AT, Shares, Success, Targeted};
use super::probe::Probed;
use super::retrieval::{RECALL_AT, Recall, Recalls};
use crate::data::atomic::AtomicFile;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A number with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// CLIP_benchmark's name, where it has one.
    pub name: String,
    /// Its value; NaN where there was nothing to measure it on.
    pub value: f64,
    /// Where it would lie again, in 95 of 100 cases.
    pub interval: Option<[f64; 2]>,
}

impl Metric {
    fn number(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, interval: None }
    }

    fn share(name: impl Into<String>, share: Share) -> Self {
        Self { name: name.into(), value: share.value(), interval: Some(share.wilson()) }
    }
}

impl Accuracy {
    /// `acc1`, `acc3`, … for as many as there are classes, and `mean_per_class_recall`, each name
    /// behind `prefix`.
    pub fn metrics(&self, prefix: &str) -> Vec<Metric> {
        let classes = self.by_class.len();
        let top = TOP.iter().zip(self.top).filter(|&(&k, _)| k <= classes);
        let mut metrics: Vec<Metric> =
            top.map(|(k, share)| Metric::share(format!("{prefix}acc{k}"), share)).collect();
        let recall = self.mean_per_class_recall();
        metrics.push(Metric::number(format!("{prefix}mean_per_class_recall"), recall));
        metrics
    }
}

impl Recalls {
    /// `image_retrieval_recall@1`, …: captions ask for pictures; `text_retrieval_…`: the reverse.
    pub fn metrics(&self) -> Vec<Metric> {
        let of = |(name, recall): (&str, &Recall)| {
            let at = RECALL_AT.iter().zip(recall.at);
            let mut metrics: Vec<Metric> = at
                .map(|(k, share)| Metric::share(format!("{name}_retrieval_recall@{k}"), share))
                .collect();
            let (mean, median) = (recall.mean_rank, recall.median_rank as f64);
            metrics.push(Metric::number(format!("{name}_retrieval_mean_rank"), mean));
            metrics.push(Metric::number(format!("{name}_retrieval_median_rank"), median));
            metrics
        };
        [("image", &self.image), ("text", &self.text)].into_iter().flat_map(of).collect()
    }
}

impl Probed {
    /// `lp_acc1`, …, on the test pictures; `lp_held_out_acc1` where the penalty was chosen.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.accuracy.metrics("lp_");
        metrics.extend(self.held_out.map(|share| Metric::share("lp_held_out_acc1", share)));
        metrics.push(Metric::number("penalty", self.penalty));
        metrics.push(Metric::number("iterations", self.fit.iterations as f64));
        metrics
    }
}

impl Success {
    /// `asr-NAME`, `recovered-NAME`, … of a backdoor, `psr-NAME`, `margin-NAME`, … of a targeted
    /// attack. `clean` is the accuracy on clean pictures; with `undefended`, the metrics of the
    /// model that was trained without the defence, `der-NAME` and `rir-NAME`.
    pub fn metrics(&self, name: &str, clean: Share, undefended: Option<&Value>) -> Vec<Metric> {
        match self {
            Self::Backdoor(Backdoor { asr, with_target_class, recovered, without_trigger }) => {
                let mut metrics = vec![
                    Metric::share(format!("asr-{name}"), *asr),
                    Metric::share(format!("asr_with_target_class-{name}"), *with_target_class),
                    Metric::share(format!("recovered-{name}"), *recovered),
                    Metric::share(format!("asr_without_trigger-{name}"), *without_trigger),
                ];
                let of = |key: String| undefended.and_then(|metrics| metrics[key].as_f64());
                let before =
                    [of("acc1".into()), of(format!("asr-{name}")), of(format!("recovered-{name}"))];
                if let [Some(clean_before), Some(asr_before), Some(recovered_before)] = before {
                    let before = Shares {
                        clean: clean_before,
                        asr: asr_before,
                        recovered: recovered_before,
                    };
                    let [clean, asr, recovered] = [clean, *asr, *recovered].map(|s| s.value());
                    let now = Shares { clean, asr, recovered };
                    metrics.push(Metric::number(format!("der-{name}"), now.der(&before)));
                    metrics.push(Metric::number(format!("rir-{name}"), now.rir(&before)));
                }
                metrics
            }
            Self::Targeted(targeted) => targeted.metrics(name),
        }
    }
}

impl Targeted {
    fn metrics(&self, name: &str) -> Vec<Metric> {
        let success = SUCCESS_AT.iter().zip(self.success);
        let mut metrics: Vec<Metric> = success
            .map(|(k, share)| {
                let at = if *k == 1 { String::new() } else { format!("@{k}") };
                Metric::share(format!("psr{at}-{name}"), share)
            })
            .collect();
        metrics.push(Metric::number(format!("margin-{name}"), self.margin()));
        if self.recovered.of > 0 {
            metrics.push(Metric::share(format!("recovered-{name}"), self.recovered));
        }
        metrics
    }
}

/// One task on one data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The data set.
    pub dataset: String,
    /// The architecture.
    pub model: String,
    /// The weights.
    pub pretrained: String,
    /// `zeroshot_classification`, `zeroshot_retrieval`, `linear_probe` or `attack_success`.
    pub task: &'static str,
    /// Figures, in the order in which they are told.
    pub metrics: Vec<Metric>,
}

impl Record {
    /// The object that CLIP_benchmark writes; what could not be measured is `null`.
    pub fn json(&self) -> Value {
        let mut metrics = Map::new();
        for Metric { name, value, interval } in &self.metrics {
            metrics.insert(name.clone(), json!(value));
            if let Some(interval) = interval {
                metrics.insert(format!("{name}_interval"), json!(interval));
            }
        }
        json!({
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": self.pretrained,
            "task": self.task,
            "metrics": metrics,
            "language": "en",
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.task, self.dataset)?;
        let width = self.metrics.iter().map(|metric| metric.name.len()).max().unwrap_or(0);
        for Metric { name, value, interval } in &self.metrics {
            write!(f, "  {name:width$}  {value:>10.4}")?;
            if let Some([low, high]) = interval {
                write!(f, "   95 % within {low:.4} to {high:.4}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Writes records as CLIP_benchmark does. Where the file's name has `{dataset}` or `{task}`, as in
/// `{dataset}_{task}.json`, each record gets a file of its own; else one record is the file, and of
/// several it is a list. Gives the files.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written.
pub fn write(output: &Path, records: &[Record]) -> Result<Vec<PathBuf>> {
    let pattern = output.to_string_lossy();
    if !pattern.contains("{dataset}") && !pattern.contains("{task}") {
        let json = match records {
            [record] => record.json(),
            records => records.iter().map(Record::json).collect(),
        };
        write_json(output, &json)?;
        return Ok(vec![output.to_owned()]);
    }
    let file = |record: &Record| {
        let dataset = record.dataset.replace('/', "_");
        let path = pattern.replace("{dataset}", &dataset).replace("{task}", record.task);
        write_json(Path::new(&path), &record.json()).map(|()| path.into())
    };
    records.iter().map(file).collect()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    writeln!(file, "{value:#}").map_err(Error::io("write", path))?;
    file.commit()
}

/// The metrics of the attacks on `dataset` in a file that [`write()`] made.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Format`] where it is not JSON or has no
/// such record.
pub fn read_attacks(path: &Path, dataset: &str) -> Result<Value> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let records = if let Value::Array(records) = value { records } else { vec![value] };
    let is_it = |record: &&Value| record["task"] == ATTACK_SUCCESS && record["dataset"] == dataset;
    let record = records.iter().find(is_it);
    let record = record.ok_or_else(|| {
        wrong(format!("no {ATTACK_SUCCESS} on {dataset:?}; measure that model with --attacks, too"))
    })?;
    Ok(record["metrics"].clone())
}

/// The task of an attack's record.
pub const ATTACK_SUCCESS: &str = "attack_success";

#[cfg(test)]
mod tests {
    use super::*;

    fn record(dataset: &str, task: &'static str, metrics: Vec<Metric>) -> Record {
        let [dataset, model, pretrained] = [dataset, "ViT-B-32", "runs/a"].map(String::from);
        Record { dataset, model, pretrained, task, metrics }
    }

    #[test]
    fn few_classes_have_no_top_5() {
        let mut accuracy = Accuracy::new(4);
        accuracy.add(1, 0);
        let names = |accuracy: &Accuracy| -> Vec<String> {
            accuracy.metrics("").into_iter().map(|metric| metric.name).collect()
        };
        assert_eq!(names(&accuracy), ["acc1", "acc3", "mean_per_class_recall"]);
        assert_eq!(names(&Accuracy::new(10)).len(), 5);
    }

    #[test]
    fn one_file_or_one_for_each_task() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = vec![
            // What JSON gives back to the bit.
            Metric { interval: Some([0.25, 0.75]), ..Metric::number("acc1", 0.5) },
            Metric::number("margin-a", f64::NAN),
        ];
        let one = record("wds/cars", "zeroshot_classification", metrics.clone());
        let two = record("cars", ATTACK_SUCCESS, metrics);
        let read = |path: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let plain = dir.path().join("results.json");
        write(&plain, std::slice::from_ref(&one)).unwrap();
        let got = read(&plain);
        let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["dataset", "language", "metrics", "model", "pretrained", "task"]);
        assert_eq!(
            (&got["metrics"]["acc1"], &got["metrics"]["margin-a"]),
            (&json!(0.5), &Value::Null)
        );
        assert!(read_attacks(&plain, "cars").unwrap_err().to_string().contains("--attacks"));
        write(&plain, &[one.clone(), two.clone()]).unwrap();
        assert_eq!(read(&plain), json!([one.json(), two.json()]));
        assert_eq!(read_attacks(&plain, "cars").unwrap(), two.json()["metrics"]);
        assert!(read_attacks(&plain, "pets").is_err());
        let files = write(&dir.path().join("{dataset}_{task}.json"), &[one.clone(), two]).unwrap();
        assert!(files[0].ends_with("wds_cars_zeroshot_classification.json"), "{files:?}");
        assert_eq!(read(&files[0]), one.json());
        assert!(files[1].ends_with("cars_attack_success.json"));
    }

    #[test]
    fn a_reference_gives_the_rates_of_the_defence() {
        let share = |hits, of| Share { hits, of };
        let backdoor = Backdoor {
            asr: share(1, 4),
            with_target_class: share(2, 5),
            recovered: share(2, 4),
            without_trigger: share(3, 4),
        };
        let success = Success::Backdoor(backdoor);
        let undefended = json!({ "acc1": 0.75, "asr-b": 1.0, "recovered-b": 0.0 });
        let value = |metrics: &[Metric], name: &str| {
            metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
        };
        let metrics = success.metrics("b", share(1, 2), Some(&undefended));
        assert_eq!(value(&metrics, "asr-b"), Some(0.25));
        assert_eq!(value(&metrics, "asr_with_target_class-b"), Some(0.4));
        assert_eq!(value(&metrics, "asr_without_trigger-b"), Some(0.75));
        assert_eq!((value(&metrics, "der-b"), value(&metrics, "rir-b")), (Some(0.75), Some(0.625)));
        let metrics = success.metrics("c", share(1, 2), Some(&undefended));
        assert_eq!(value(&metrics, "der-c"), None, "another attack");
    }
}
