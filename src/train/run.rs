//! The loop over steps: from where, until when, what is kept and what is told.

mod parts;
mod save;
mod together;

use super::log::Log;
use super::objective::{Pairs, Part};
use super::report::{Line, Meter, Window};
use super::safe::SafeSet;
use super::step::{Outcome, Refusal, Report, Trainer};
use crate::backend::{Backend, Communicator};
use crate::checkpoint::folder::Found;
use crate::checkpoint::{Folder, file};
use crate::data::ledger::Entry;
use crate::data::loader::{Epoch, Loader, Position, Stats};
use crate::distributed::Group;
use crate::error::{Error, Result, printable};
use crate::flow::{Batch, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use together::{Decision, Told};

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
    /// Whether similarities and matches of every pair are written down, as
    /// [`crate::detect::record`] has them.
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
    /// The ranks that train together.
    pub group: &'a Group,
    /// Set from outside to stop at the next step.
    pub stop: &'a AtomicBool,
    /// Called every [`RunOptions::eval_frequency`] epochs; `None`: never.
    pub evaluate: Option<Box<Evaluate<'a, D, C>>>,
    /// On rank 0.
    folder: Option<Folder>,
    position: Position,
    /// Which part of the epoch that is.
    part: usize,
    /// Pairs of this epoch that a step was made of: refused ones are not.
    trained: u64,
    nonfinite: u64,
    /// What was not told to rank 0 yet.
    told: Told,
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
        group: &'a Group,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let open = || Folder::open(&options.folder.join("checkpoints"));
        let folder = group.is_first().then(open).transpose()?;
        Ok(Self {
            trainer,
            loader,
            options,
            log,
            group,
            stop,
            evaluate: None,
            folder,
            position: Position::start_of(0),
            part: 0,
            trained: 0,
            nonfinite: 0,
            told: Told::default(),
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
        let Some((path, state)) = self.find(from)? else {
            self.log.info("no checkpoint found to resume; starting from the beginning");
            return Ok(());
        };
        self.check_identity(&state, &path)?;
        self.trainer.load(&state, &path)?;
        self.position = self.loader.own_lanes(state.value(&path, "position")?)?;
        self.trained = state.value(&path, "trained")?;
        self.nonfinite = state.value(&path, "nonfinite")?;
        // Checkpoints of old have no parts.
        self.part = state.value::<Option<usize>>(&path, "part")?.unwrap_or(0);
        self.safe = SafeSet::load(&state, &path)?;
        let (epoch, step) = (self.position.epoch, self.trainer.steps());
        self.all_have(&path, &state)?;
        self.log.info(format!("resumed {} (epoch {epoch}, step {step})", path.display()));
        Ok(())
    }

    /// The checkpoint that all ranks go on from: rank 0 finds it, the others read the same file.
    fn find(&mut self, from: &str) -> Result<Option<(PathBuf, State)>> {
        if from != "latest" {
            return Ok(Some((from.into(), file::read(Path::new(from))?)));
        }
        let found = self.folder.as_ref().map(Folder::latest).transpose()?.flatten();
        for error in found.iter().flat_map(|found| &found.passed_over) {
            self.log.warn(format!("passed over {error}"));
        }
        let path = self.group.first_has(found.as_ref().map(|found| found.path.clone()))?;
        match (found, path) {
            (Some(Found { path, state, .. }), _) => Ok(Some((path, state))),
            (None, Some(path)) => Ok(Some((path.clone(), file::read(&path)?))),
            (None, None) => Ok(None),
        }
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
        let steps = self.samples(part) / self.trainer.pairs_per_step();
        let mut books = self.open_books()?;
        self.log.start_bar(epoch, self.options.epochs, batches, steps);
        let mut batches = self.open_part(part)?;
        let (mut window, mut began) = (Window::new(), Instant::now());
        let (mut ahead, mut saved) = (None, self.position.batches);
        let is_over = loop {
            let next = self.next(&mut batches, ahead.take())?;
            let decision = self.agree(&mut books, next.as_ref())?;
            if decision == Decision::Stop {
                self.log.end_bar();
                return Ok(Ended::Stopped(self.save_step()?));
            }
            self.save_now_and_then(&mut saved);
            let is_over = next.is_none();
            let (Decision::Step, Some(next)) = (decision, next) else { break is_over };
            let Fetched { batch, position, entries, stats, wait } = next;
            self.enter("step");
            self.trainer.enqueue(&batch, epoch)?;
            ahead = self.fetch_ahead(&mut batches);
            let outcome = {
                // What a device does in between may wait for other ranks'.
                let _waiting = self.group.watch().wait();
                self.trainer.finish(&batch)?
            };
            window.data.add(wait);
            window.batch.add(began.elapsed().as_secs_f64());
            began = Instant::now();
            self.position = position;
            self.note(entries);
            match outcome {
                Outcome::Stepped(report) => {
                    self.record(&batch, &report)?;
                    self.tell(&report, &mut window, stats, part)?;
                }
                Outcome::Refused(refusal) => self.tell_refusal(&refusal)?,
            }
            batches.recycle(batch);
            self.log.advance_bar(self.position.batches);
        };
        self.log.end_bar();
        if is_over {
            self.note(batches.take_entries());
            self.position = batches.position().clone();
        }
        // What came behind the last batch.
        self.agree(&mut books, None)?;
        self.tell_part(part, window.loss)?;
        Ok(Ended::Epoch)
    }

    /// The next batch, waited for if it is not here; none after a signal.
    fn next(
        &self,
        batches: &mut Epoch,
        ahead: Option<Result<Option<Fetched>>>,
    ) -> Result<Option<Fetched>> {
        let (epoch, step) = (self.position.epoch, self.trainer.steps());
        let what = format!("reading, epoch {epoch}, step {step}");
        self.group.watch().enter_telling(what, Box::new(batches.reading()));
        match ahead {
            _ if self.stop.load(Ordering::Relaxed) => Ok(None),
            Some(ahead) => ahead,
            None => Fetched::next(batches),
        }
    }

    /// Tells the watch what this rank does.
    fn enter(&self, what: &str) {
        let (epoch, step) = (self.position.epoch, self.trainer.steps());
        self.group.watch().enter(format!("{what}, epoch {epoch}, step {step}"));
    }

    /// A checkpoint every so many steps, if so asked, unless one of these was `saved` already.
    fn save_now_and_then(&mut self, saved: &mut u64) {
        let done = self.position.batches;
        let is_due = |every: u64| done.is_multiple_of(every) && done > *saved;
        if self.options.save_every_steps.is_some_and(is_due) {
            self.save_or_warn(Self::save_step);
            *saved = done;
        }
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
            tally: &self.tally(),
            ranks: self.group.world_size(),
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
    fn tell_refusal(&mut self, refusal: &Refusal) -> Result<()> {
        self.nonfinite += 1;
        let names = self.all_suspects(refusal)?;
        if !self.group.is_first() {
            return Ok(());
        }
        self.log.append_json(
            "nonfinite.jsonl",
            &json!({ "epoch": self.position.epoch, "step": self.trainer.steps(),
                     "what": refusal.what, "samples": names }),
        )?;
        let (what, limit, count) = (refusal.what, self.options.max_nonfinite, names.len());
        let names: Vec<_> = names.iter().take(3).map(|name| printable(name)).collect();
        let message = format!(
            "the {what} of a step is not finite; nothing was changed ({} of {limit} in a row). \
             {count} of its {} pairs are listed in nonfinite.jsonl: {}, …",
            self.nonfinite,
            self.trainer.pairs_per_step(),
            names.join(", "),
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
        let (epoch, tally) = (self.position.epoch, self.tally());
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
        // The others have the same model, and go on.
        if !self.group.is_first() {
            return Ok(());
        }
        let figures = evaluate(&mut self.trainer)?;
        let text: Vec<String> = figures.iter().map(|(k, v)| format!("{k}: {v:.4}")).collect();
        self.log.info(format!("Eval Epoch: {done} {}", text.join("\t")));
        let mut object = json!(figures);
        object["epoch"] = done.into();
        object["step"] = self.trainer.steps().into();
        self.log.append_json("results.jsonl", &object)
    }
}
