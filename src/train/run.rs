//! The loop over steps: from where, until when, what is kept and what is told.

mod parts;

use super::curve;
use super::log::Log;
use super::objective::{Pairs, Part};
use super::report::{Line, Meter, Window};
use super::safe::SafeSet;
use super::step::{Outcome, Refusal, Report, Trainer};
use crate::backend::{Backend, Communicator};
use crate::checkpoint::{Folder, file};
use crate::data::ledger::{Entry, Ledger};
use crate::data::loader::{Epoch, Loader, Position, Stats};
use crate::data::transform::TransformConfig;
use crate::detect::record::{self, Record, RecordWriter};
use crate::error::{Error, Result};
use crate::flow::{Batch, Place, State};
use crate::interop::Card;
use crate::interop::card::Training;
use crate::interop::export::{Export, tensors_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run is kept and told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The folder of the run.
    pub folder: PathBuf,
    /// Passes over the data.
    pub epochs: u64,
    /// Pairs of one epoch, as counted or declared.
    pub samples_per_epoch: u64,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// Epochs between two checkpoints.
    pub save_frequency: u64,
    /// Steps between two checkpoints within an epoch; `None`: none but on a signal.
    pub save_every_steps: Option<u64>,
    /// Whether an epoch's checkpoint is removed once the next is written.
    pub delete_previous: bool,
    /// Refused steps in a row after which the run stops.
    pub max_nonfinite: u64,
    /// Epochs between two evaluations; 0: only after the last.
    pub eval_frequency: u64,
    /// Whether similarities and matches of every pair are written down; see [`record`].
    pub record_matches: bool,
    /// Settings that a run must keep to be the same run, by name; a checkpoint of others is
    /// refused.
    pub identity: BTreeMap<String, String>,
    /// The model's configuration in open_clip's JSON.
    pub model_json: Value,
    /// The command that continues this run.
    pub resume_command: String,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// All epochs are done.
    Finished,
    /// A signal came; the file holds everything up to the last step.
    Interrupted(PathBuf),
}

/// Measures the model: figures by name (`zeroshot-top1`), for the log and `results.jsonl`.
pub type Evaluate<'a, D, C> = dyn FnMut(&mut Trainer<D, C>) -> Result<BTreeMap<String, f64>> + 'a;

/// A run in progress.
pub struct Run<'a, D: Backend, C: Communicator<D>> {
    /// What is trained.
    pub trainer: Trainer<D, C>,
    /// What it is trained on.
    pub loader: Loader,
    /// How.
    pub options: RunOptions,
    /// Where it is told.
    pub log: Log,
    /// Set from outside to stop at the next step.
    pub stop: &'a AtomicBool,
    /// Called every [`RunOptions::eval_frequency`] epochs; `None`: never.
    pub evaluate: Option<Box<Evaluate<'a, D, C>>>,
    folder: Folder,
    position: Position,
    /// Which part of the epoch that is.
    part: usize,
    /// Pairs of this epoch that a step was made of: refused ones are not.
    trained: u64,
    nonfinite: u64,
    /// Which pairs are safe, for an objective that asks.
    safe: Option<SafeSet>,
}

/// A batch with the account that belongs to it: what the loader tells changes with the next one.
struct Fetched {
    batch: Batch,
    position: Position,
    entries: Vec<Entry>,
    stats: Stats,
    /// Seconds waited for it.
    wait: f64,
}

impl Fetched {
    /// The next batch of an epoch, waited for.
    fn next(batches: &mut Epoch) -> Result<Option<Self>> {
        let asked = Instant::now();
        let Some(batch) = batches.next().transpose()? else { return Ok(None) };
        let (position, entries) = (Epoch::position(batches).clone(), batches.take_entries());
        let (stats, wait) = (batches.stats(), asked.elapsed().as_secs_f64());
        Ok(Some(Self { batch, position, entries, stats, wait }))
    }
}

enum Ended {
    Epoch,
    Stopped(PathBuf),
}

impl<'a, D: Backend, C: Communicator<D>> Run<'a, D, C> {
    /// A run from its beginning.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder of checkpoints cannot be made.
    pub fn new(
        trainer: Trainer<D, C>,
        loader: Loader,
        options: RunOptions,
        log: Log,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let folder = Folder::open(&options.folder.join("checkpoints"))?;
        Ok(Self {
            trainer,
            loader,
            options,
            log,
            stop,
            evaluate: None,
            folder,
            position: Position::start_of(0),
            part: 0,
            trained: 0,
            nonfinite: 0,
            safe: None,
        })
    }

    /// Continues from a checkpoint: a file, or `latest` for the newest whole one of the run's
    /// folder. Where that folder holds none, the run begins at the beginning and says so, as
    /// open_clip does: a job always started with `--resume latest` needs no second script.
    ///
    /// # Errors
    /// [`Error::Format`] where none verifies, or it belongs to a run with other settings.
    pub fn resume(&mut self, from: &str) -> Result<()> {
        let (path, state) = if from == "latest" {
            let Some(found) = self.folder.latest()? else {
                self.log.info("no checkpoint found to resume; starting from the beginning");
                return Ok(());
            };
            for error in &found.passed_over {
                self.log.warn(format!("passed over {error}"));
            }
            (found.path, found.state)
        } else {
            let path = PathBuf::from(from);
            let state = file::read(&path)?;
            (path, state)
        };
        self.check_identity(&state, &path)?;
        self.trainer.load(&state, &path)?;
        self.position = state.value(&path, "position")?;
        self.trained = state.value(&path, "trained")?;
        self.nonfinite = state.value(&path, "nonfinite")?;
        // Checkpoints of old have no parts.
        self.part = state.value::<Option<usize>>(&path, "part")?.unwrap_or(0);
        self.safe = SafeSet::load(&state, &path)?;
        let (epoch, step) = (self.position.epoch, self.trainer.steps());
        self.log.info(format!("resumed {} (epoch {epoch}, step {step})", path.display()));
        Ok(())
    }

    fn check_identity(&self, state: &State, path: &Path) -> Result<()> {
        let theirs: BTreeMap<String, String> = state.value(path, "identity")?;
        let ours = &self.options.identity;
        let nothing = String::new();
        let names = theirs.keys().chain(ours.keys().filter(|k| !theirs.contains_key(*k)));
        let differ = |name: &&String| theirs.get(*name) != ours.get(*name);
        let differences: Vec<String> = names
            .filter(differ)
            .map(|name| {
                let value =
                    |from: &BTreeMap<String, String>| from.get(name).unwrap_or(&nothing).clone();
                format!("--{} {} (now {})", name.replace('_', "-"), value(&theirs), value(ours))
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "made with {}; a run resumes only with the settings it began with",
            differences.join(", ")
        );
        Err(Error::Format { path: path.to_owned(), reason })
    }

    /// Trains to the end, or until [`Run::stop`] is set.
    ///
    /// # Errors
    /// Whatever stages refuse; [`Error::NonFinite`] after too many refused steps in a row.
    pub fn run(mut self) -> Result<End> {
        while self.position.epoch < self.options.epochs {
            if let Ended::Stopped(path) = self.train_epoch()? {
                self.log.info(format!("stopped by a signal; saved {}", path.display()));
                self.log.info(format!("resume with: {}", self.options.resume_command));
                return Ok(End::Interrupted(path));
            }
            self.end_epoch()?;
        }
        self.finish()?;
        Ok(End::Finished)
    }

    fn train_part(&mut self, part: Part) -> Result<Ended> {
        let Position { epoch, batches, .. } = self.position;
        let ledger = self.options.folder.join("skips.jsonl");
        let mut ledger = Ledger::open(&ledger, epoch, |lane| self.position.next_seq(lane))?;
        let mut records = self.open_records()?;
        let steps = self.samples(part) / self.trainer.pairs_per_step();
        self.log.start_bar(epoch, self.options.epochs, batches, steps);
        let mut batches = self.open_part(part)?;
        let (mut window, mut began) = (Window::new(), Instant::now());
        let mut coming = Fetched::next(&mut batches);
        while let Some(Fetched { batch, position, entries, stats, wait }) = coming? {
            self.trainer.enqueue(&batch, epoch)?;
            let ahead = self.fetch_ahead(&mut batches);
            let outcome = self.trainer.finish(&batch)?;
            window.data.add(wait);
            window.batch.add(began.elapsed().as_secs_f64());
            began = Instant::now();
            self.position = position;
            ledger.record(&entries)?;
            match outcome {
                Outcome::Stepped(report) => {
                    self.record(records.as_mut(), &batch, &report)?;
                    self.tell(&report, &mut window, stats, part)?;
                }
                Outcome::Refused(refusal) => self.tell_refusal(&refusal, &batch)?,
            }
            batches.recycle(batch);
            self.log.advance_bar(self.position.batches);
            if self.stop.load(Ordering::Relaxed) {
                self.log.end_bar();
                return Ok(Ended::Stopped(self.save_step()?));
            }
            if self
                .options
                .save_every_steps
                .is_some_and(|n| self.position.batches.is_multiple_of(n))
            {
                self.save_or_warn(Self::save_step);
            }
            coming = ahead.unwrap_or_else(|| Fetched::next(&mut batches));
        }
        ledger.record(&batches.take_entries())?;
        self.log.end_bar();
        self.position = batches.position().clone();
        self.tell_part(part, window.loss)?;
        Ok(Ended::Epoch)
    }

    /// The batch after the one that the device works on, its pictures on their way there; `None`
    /// where the loader is not as far, for the step under way must be told without delay. What it
    /// finds out, an error or the end, is for after that step.
    fn fetch_ahead(&mut self, batches: &mut Epoch) -> Option<Result<Option<Fetched>>> {
        let next = batches.is_ready().then(|| Fetched::next(batches))?;
        Some(next.and_then(|next| {
            next.map(|next| self.trainer.prefetch(&next.batch).map(|()| next)).transpose()
        }))
    }

    /// Where the pairs of this epoch are told of, if they are to be.
    fn open_records(&mut self) -> Result<Option<RecordWriter>> {
        if !self.options.record_matches {
            return Ok(None);
        }
        let (folder, trained) = (&self.options.folder, self.trained);
        record::write_shards(folder, self.loader.shards().iter().map(|shard| &*shard.name))?;
        let records = RecordWriter::open(folder, self.position.epoch, trained)?;
        if records.rows() < trained {
            let (path, rows) = (records.path().display(), records.rows());
            self.log.warn(format!("{path} has {rows} of the epoch's first {trained} pairs"));
        }
        Ok(Some(records))
    }

    /// What a step saw of each of its pairs.
    fn record(
        &mut self,
        records: Option<&mut RecordWriter>,
        batch: &Batch,
        report: &Report,
    ) -> Result<()> {
        self.trained += batch.len() as u64;
        let Some(records) = records else { return Ok(()) };
        let own = self.trainer.own_similarities()?;
        let matches = self.trainer.matches().filter(|_| report.matched);
        records.append(batch.samples.iter().enumerate().map(|(n, sample)| Record {
            pair: sample.place(),
            own: own[n],
            best: matches.map_or(f32::NAN, |matches| matches.score[n]),
            from: matches.map_or(Place::UNKNOWN, |matches| matches.from[n]),
        }))
    }

    /// A step's figures: to `metrics.jsonl`, and every so often to the log.
    fn tell(
        &mut self,
        report: &Report,
        window: &mut Window,
        stats: Stats,
        part: Part,
    ) -> Result<()> {
        self.nonfinite = 0;
        let samples_per_epoch = self.samples(part);
        window.loss.add(report.loss);
        let line = Line {
            epoch: self.position.epoch,
            step: self.trainer.steps(),
            batches: self.position.batches,
            pairs_per_step: self.trainer.pairs_per_step(),
            samples_per_epoch,
            report,
            matches: self.trainer.matches().filter(|_| report.matched),
            pool: self.trainer.pool(),
            tally: &self.position.tally(),
            stats,
        };
        self.log.metric(&line.json(window))?;
        let last = self.position.batches == samples_per_epoch / line.pairs_per_step;
        if self.position.batches.is_multiple_of(self.options.log_every) || last {
            self.log.info(line.text(window));
            window.restart();
        }
        Ok(())
    }

    /// Names the pairs of a refused step, and gives up after too many in a row.
    fn tell_refusal(&mut self, refusal: &Refusal, batch: &Batch) -> Result<()> {
        self.nonfinite += 1;
        let names: Vec<String> = refusal.suspects.iter().map(ToString::to_string).collect();
        self.log.append_json(
            "nonfinite.jsonl",
            &json!({ "epoch": self.position.epoch, "step": self.trainer.steps(),
                     "what": refusal.what, "samples": names }),
        )?;
        let (what, limit) = (refusal.what, self.options.max_nonfinite);
        let some = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let message = format!(
            "the {what} of a step is not finite; nothing was changed ({} of {limit} in a row). {} \
             of its {} pairs are listed in nonfinite.jsonl: {some}, …",
            self.nonfinite,
            names.len(),
            batch.len()
        );
        if self.nonfinite < limit {
            self.log.warn(message);
            return Ok(());
        }
        let advice = "Lower --lr, lengthen --warmup or set --grad-clip-norm, and resume from the \
                      last checkpoint";
        Err(Error::NonFinite(format!("{message}\n{advice}: {}", self.options.resume_command)))
    }

    fn tell_part(&mut self, part: Part, loss: Meter) -> Result<()> {
        let (epoch, tally) = (self.position.epoch, self.position.tally());
        if tally.delivered == 0 && part.pairs == Pairs::All {
            let pattern = self.loader.config().shards.clone();
            let reason = format!("no batch could be filled in epoch {epoch}: {tally}");
            return Err(Error::Shards { pattern, reason });
        }
        let (part, loss) = (part.pairs, loss.mean());
        self.log.info(format!("Epoch {epoch}{part} done. Pairs: {tally}. Mean loss: {loss:.4}"));
        if tally.delivered == 0 {
            self.log.warn(format!("epoch {epoch}{part} has no full batch, and so no step"));
        }
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<()> {
        self.position = Position::start_of(self.position.epoch + 1);
        (self.part, self.trained) = (0, 0);
        let (done, last) = (self.position.epoch, self.position.epoch == self.options.epochs);
        let every = self.options.eval_frequency;
        if last || (every > 0 && done.is_multiple_of(every)) {
            self.eval(done)?;
        }
        if last {
            self.save_epoch()?;
        } else if done.is_multiple_of(self.options.save_frequency) {
            self.save_or_warn(Self::save_epoch);
        }
        Ok(())
    }

    fn eval(&mut self, done: u64) -> Result<()> {
        let Some(evaluate) = &mut self.evaluate else { return Ok(()) };
        let figures = evaluate(&mut self.trainer)?;
        let text: Vec<String> = figures.iter().map(|(k, v)| format!("{k}: {v:.4}")).collect();
        self.log.info(format!("Eval Epoch: {done} {}", text.join("\t")));
        let mut object = json!(figures);
        object["epoch"] = done.into();
        object["step"] = self.trainer.steps().into();
        self.log.append_json("results.jsonl", &object)
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        self.trainer.save(&mut state)?;
        let mut put = |name: &str, value: Value| state.values.insert(name.into(), value);
        put("position", json!(self.position));
        put("part", json!(self.part));
        put("trained", json!(self.trained));
        put("nonfinite", json!(self.nonfinite));
        put("identity", json!(self.options.identity));
        put("model", self.options.model_json.clone());
        put("version", json!(env!("CARGO_PKG_VERSION")));
        self.safe.iter().for_each(|safe| safe.save(&mut state));
        Ok(state)
    }

    fn save_step(&mut self) -> Result<PathBuf> {
        let path = self.folder.step(self.trainer.steps());
        file::write(&path, &self.state()?)?;
        self.folder.drop_steps_but(&path)?;
        Ok(path)
    }

    fn save_epoch(&mut self) -> Result<PathBuf> {
        let epoch = self.position.epoch;
        let path = self.folder.epoch(epoch);
        file::write(&path, &self.state()?)?;
        self.folder.drop_steps_but(&path)?;
        if self.options.delete_previous {
            let previous = self.folder.epoch(epoch.saturating_sub(self.options.save_frequency));
            match std::fs::remove_file(&previous) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", previous)(e));
                }
                _ => {}
            }
        }
        Ok(path)
    }

    /// A checkpoint that cannot be written (a full disk) leaves the last one and the training
    /// alone.
    fn save_or_warn(&mut self, save: fn(&mut Self) -> Result<PathBuf>) {
        if let Err(error) = save(self) {
            self.log.warn(format!("no checkpoint this time, training goes on: {error}"));
        }
    }

    /// The model as others read it, and the curve of the loss.
    fn finish(&mut self) -> Result<()> {
        let mut state = State::default();
        self.trainer.save_weights(&mut state)?;
        let folder = &self.options.folder;
        let TransformConfig { mean, std, .. } = self.loader.config().transform;
        let training = Training::of_run(folder, self.trainer.steps())?;
        let export = Export {
            config: self.trainer.config(),
            normalization: (mean, std),
            tensors: tensors_of(state, self.trainer.steps()),
            card: Card::Trained(training),
        };
        export.write(folder, true)?;
        let losses = self.log.losses()?;
        let chart = curve::draw("loss by step", &losses);
        self.log.info(format!("finished after {} steps\n{chart}", self.trainer.steps()));
        self.log.info(format!("model: {} (opens in open_clip as local-dir:)", folder.display()));
        Ok(())
    }
}
