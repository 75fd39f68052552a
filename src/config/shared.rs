//! Flags that several programs have, and how all of them say what went wrong.

use super::device::{DeviceName, Work, cores};
use crate::data::sample::{Captions, Fields, Labels};
use crate::data::source::{CacheOptions, SourceOptions};
use crate::error::{Error, Result, printable_lines};
use crate::interop::Options;
use clap::Args as ClapArgs;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Refuses 0.
pub(super) fn at_least_one(flag: &str, n: u64) -> Result<()> {
    let refuse = || Error::Option {
        flag: flag.to_owned(),
        got: n.to_string(),
        expected: "at least 1".to_owned(),
    };
    if n >= 1 { Ok(()) } else { Err(refuse()) }
}

/// How shards come over a network, for every program that reads them.
#[derive(Clone, Debug, ClapArgs)]
pub struct NetworkArgs {
    /// Keep shards read over the network in this directory
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most that it may hold, in GiB; what was used least recently goes first
    #[arg(long, default_value_t = 100, value_name = "GIB", requires = "cache_dir")]
    pub cache_size: u64,
    /// Seconds without a byte after which a read over the network is tried again
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub idle_timeout: u64,
}

impl NetworkArgs {
    /// What these flags ask for.
    ///
    /// # Errors
    /// A value is out of range.
    pub fn options(&self) -> Result<SourceOptions> {
        at_least_one("--cache-size", self.cache_size)?;
        at_least_one("--idle-timeout", self.idle_timeout)?;
        let max_bytes = self.cache_size.saturating_mul(1 << 30);
        let options = SourceOptions {
            idle_timeout: Duration::from_secs(self.idle_timeout),
            cache: self.cache_dir.clone().map(|dir| CacheOptions { dir, max_bytes }),
            ..SourceOptions::default()
        };
        options.validate().map(|()| options)
    }
}

/// Which members of a sample are its picture and its caption.
#[derive(Clone, Debug, ClapArgs)]
pub struct FieldArgs {
    /// Extensions that hold the picture, in order of preference
    #[arg(long, default_value = "jpg;jpeg;png;webp", value_name = "EXTS")]
    pub image_key: String,
    /// Extensions that hold the caption
    #[arg(long, default_value = "txt", value_name = "EXTS")]
    pub text_key: String,
    /// Take the caption from this field of the `json` member instead
    #[arg(long, value_name = "FIELD")]
    pub json_text_key: Option<String>,
}

impl FieldArgs {
    /// What these flags ask for; no labels.
    pub fn fields(&self) -> Fields {
        let captions = match &self.json_text_key {
            Some(field) => Captions::JsonField(field.clone()),
            None => Captions::Text(self.text_key.clone()),
        };
        Fields { image_key: self.image_key.clone(), captions, labels: Labels::None }
    }
}

/// What files of weights do not say.
#[derive(Clone, Debug, ClapArgs)]
pub struct WeightsArgs {
    /// Built-in model or JSON file in open_clip's form [default: the configuration beside the
    /// weights, or what their shapes tell]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// The activation is OpenAI's QuickGELU, which leaves no trace in the weights
    #[arg(long)]
    pub quick_gelu: bool,
}

impl WeightsArgs {
    /// What these flags ask for.
    pub fn options(&self) -> Options {
        Options { model: self.model.clone(), quick_gelu: self.quick_gelu }
    }
}

/// With what a program that trains nothing computes.
#[derive(Clone, Debug, ClapArgs)]
pub struct ComputeArgs {
    /// Pairs computed at a time
    #[arg(long, default_value_t = 64, value_name = "PAIRS")]
    pub batch_size: usize,
    /// Threads that decode pictures
    #[arg(long, default_value_t = 4, value_name = "THREADS")]
    pub workers: usize,
    /// Threads of the CPU engine, and of whatever else is computed [default: all cores]
    #[arg(long, value_name = "THREADS")]
    pub threads: Option<usize>,
    /// Device that computes
    #[arg(long, default_value_t = DeviceName::Cpu, value_name = "cpu|cuda|cuda:N")]
    pub device: DeviceName,
}

impl ComputeArgs {
    /// Refuses numbers out of range, before anything starts.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(&self) -> Result<()> {
        at_least_one("--batch-size", self.batch_size as u64)?;
        at_least_one("--workers", self.workers as u64)?;
        at_least_one("--threads", self.threads() as u64)
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores)
    }

    /// Opens the device and does that on it.
    ///
    /// # Errors
    /// As [`DeviceName::run`].
    pub fn run<W: Work>(&self, work: W) -> Result<W::Done> {
        self.device.run(self.threads, work)
    }
}

/// What was found, to whoever reads it; a reader that has seen enough, as `head`, is no failure.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Tells on standard error why a program ends, without what would deceive a terminal, and gives the
/// exit code: 2 a flag is wrong, 3 training met too many non-finite steps, 1 all else.
pub fn refused(program: &str, error: &Error) -> ExitCode {
    if !matches!(error, Error::Told) {
        eprintln!("{program}: {}", printable_lines(&error.to_string()));
    }
    ExitCode::from(match error {
        Error::Option { .. } => 2,
        Error::NonFinite(_) => 3,
        _ => 1,
    })
}
