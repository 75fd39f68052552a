//! What a run tells: open_clip's lines on the terminal and in `out.log`, one JSON object per step
//! in `metrics.jsonl`.

use crate::error::{Error, Result, printable_lines};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// The voice of a run; of a rank that does not speak, none.
pub struct Log {
    files: Option<Files>,
    bar: ProgressBar,
}

struct Files {
    path: PathBuf,
    out: File,
    metrics: File,
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("open", path))
}

impl Log {
    /// Opens `out.log` and `metrics.jsonl` in the run's folder, for appending.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("out.log");
        let out = append(&path)?;
        let metrics = append(&folder.join("metrics.jsonl"))?;
        Ok(Self { files: Some(Files { path, out, metrics }), bar: ProgressBar::hidden() })
    }

    /// That of a rank for which rank 0 speaks.
    pub fn silent() -> Self {
        Self { files: None, bar: ProgressBar::hidden() }
    }

    /// A line in open_clip's form: `2026-11-22,09:00:00 | INFO | …`.
    pub fn info(&mut self, message: impl Display) {
        self.line("INFO", &message);
    }

    /// As [`Log::info`], for what the user should not overlook.
    pub fn warn(&mut self, message: impl Display) {
        self.line("WARNING", &message);
    }

    fn line(&mut self, level: &str, message: &dyn Display) {
        let Some(Files { path, out, .. }) = &mut self.files else { return };
        let time = jiff::Zoned::now().strftime("%Y-%m-%d,%H:%M:%S");
        let line = format!("{time} | {level} | {}", printable_lines(&message.to_string()));
        self.bar.suspend(|| println!("{line}"));
        if let Err(error) = writeln!(out, "{line}") {
            self.bar.suspend(|| eprintln!("cannot write {}: {error}", path.display()));
        }
    }

    /// One object of `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn metric(&mut self, object: &Value) -> Result<()> {
        let Some(Files { path, metrics, .. }) = &mut self.files else { return Ok(()) };
        let path = path.with_file_name("metrics.jsonl");
        writeln!(metrics, "{object}").map_err(Error::io("write", path))
    }

    /// Losses by step, from `metrics.jsonl`; of a step told twice (a resumed run's) the later word.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read.
    pub fn losses(&self) -> Result<Vec<f64>> {
        let Some(Files { path, .. }) = &self.files else { return Ok(Vec::new()) };
        let path = path.with_file_name("metrics.jsonl");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let objects = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let by_step: BTreeMap<u64, f64> =
            objects.filter_map(|o| Some((o["step"].as_u64()?, o["loss"].as_f64()?))).collect();
        Ok(by_step.into_values().collect())
    }

    /// Appends one object to a file of JSON lines in the run's folder.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn append_json(&self, file: &str, object: &Value) -> Result<()> {
        let Some(Files { path, .. }) = &self.files else { return Ok(()) };
        let path = path.with_file_name(file);
        writeln!(append(&path)?, "{object}").map_err(Error::io("write", &path))
    }

    /// Shows a bar of `steps` steps, where standard error is a terminal.
    pub fn start_bar(&mut self, epoch: u64, epochs: u64, done: u64, steps: u64) {
        if self.files.is_none() || !std::io::stderr().is_terminal() {
            return;
        }
        let style = "{msg} {bar:30} {pos}/{len} steps, {eta} left";
        let style = ProgressStyle::with_template(style).expect("the template is constant");
        self.bar =
            ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(4))
                .with_style(style)
                .with_message(format!("epoch {}/{epochs}", epoch + 1))
                .with_position(done);
    }

    /// Moves the bar.
    pub fn advance_bar(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    /// Takes the bar away.
    pub fn end_bar(&mut self) {
        self.bar.finish_and_clear();
    }
}
