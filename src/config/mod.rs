//! The flags of `roclip-train`: raw text → checked configuration, before anything starts.
//!
//! Names are open_clip's where it has them. A file given with `--config` holds the same names as
//! TOML keys; the command line overrides it.

mod assemble;
mod device;
mod ranks;
mod flags;
mod of_run;
mod shared;

pub use assemble::{Assembled, assemble, schedule};
pub use device::{DeviceName, Work, cores};
pub use flags::Args;
pub use of_run::loader_of_run;
pub use ranks::{RankedWork, run_ranks};
pub use shared::{ComputeArgs, FieldArgs, NetworkArgs, WeightsArgs, refused, say};

use shared::at_least_one;

use crate::encode::ClipConfig;
use crate::error::{Error, Result, redact};
use crate::optim::ScheduleKind;
use crate::train::objective::Objective;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Every setting by its name in open_clip's spelling (`batch_size`), as text.
pub type Settings = BTreeMap<String, String>;

/// What the command line amounts to.
#[derive(Debug)]
pub enum Parsed {
    /// Checked arguments, and every setting by name as text.
    Run(Box<Args>, Settings),
    /// Text to print (`--help`, `--version`, `--list-models`), or a complaint; with the exit code.
    Print(String, i32),
}

/// Parses and checks a command line, the program's name first.
///
/// # Errors
/// [`Error::Option`] where a value is out of range, [`Error::Format`] where the `--config` file is
/// not TOML of flags.
pub fn parse(command_line: impl IntoIterator<Item = OsString>) -> Result<Parsed> {
    let mut words: Vec<OsString> = command_line.into_iter().collect();
    if words.iter().any(|w| w == "--list-models") {
        return Ok(Parsed::Print(models(), 0));
    }
    if let Some(file) = config_file(&words) {
        let flags = flags_of(&file)?;
        words.splice(1..1, flags);
    }
    let parsed = Args::command()
        .try_get_matches_from(words)
        .and_then(|m| Ok((Args::from_arg_matches(&m)?, settings(&m))));
    match parsed {
        Ok((args, mut settings)) => {
            // A run is the same run whether its model or pool was named or is the default.
            settings.entry("model".into()).or_insert_with(|| redact(&args.model.name()));
            let pool_size = args.objective.pool_size().to_string();
            settings.entry("pool_size".into()).or_insert(pool_size);
            check(&args).map(|()| Parsed::Run(Box::new(args), settings))
        }
        Err(stop) => Ok(Parsed::Print(stop.render().to_string(), stop.exit_code())),
    }
}

/// The settings in force, defaults included, without the secrets of URLs: they are written to files
/// that people pass on.
fn settings(matches: &ArgMatches) -> Settings {
    let flags = Args::command();
    let ids = flags.get_arguments().map(|arg| arg.get_id().as_str());
    let text = |id: &str| -> Option<String> {
        let words: Vec<_> = matches.try_get_raw(id).ok()??.map(|w| w.to_string_lossy()).collect();
        Some(redact(&words.join(" ")))
    };
    ids.filter_map(|id| Some((id.to_owned(), text(id)?))).collect()
}

/// The models known by name, with their sizes.
fn models() -> String {
    let line = |name: &'static str| {
        let config = ClipConfig::named(name).expect("the list names what it knows");
        let side = config.vision_cfg.image_size();
        let parameters = crate::encode::params(&config).map_or(0, |table| table.values());
        format!("{name:24} {parameters:>11} parameters, {side} pixels\n")
    };
    ClipConfig::names().map(line).collect()
}

fn config_file(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    None
}

/// A TOML file of flags as words of a command line.
fn flags_of(path: &Path) -> Result<Vec<OsString>> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let mut words = Vec::new();
    for (key, value) in table {
        let flag = format!("--{}", key.replace('_', "-"));
        match value {
            toml::Value::Boolean(true) => words.push(flag),
            toml::Value::Boolean(false) => {}
            toml::Value::Array(items) => {
                words.push(flag);
                for item in items {
                    words.push(scalar(&item).ok_or_else(|| wrong(not_a_flag(&key)))?);
                }
            }
            value => {
                words.push(flag);
                words.push(scalar(&value).ok_or_else(|| wrong(not_a_flag(&key)))?);
            }
        }
    }
    Ok(words.into_iter().map(OsString::from).collect())
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(i) => Some(i.to_string()),
        toml::Value::Float(f) => Some(f.to_string()),
        _ => None,
    }
}

fn not_a_flag(key: &str) -> String {
    format!("{key}: expected a text, a number, true or a list of texts (`batch-size = 64`)")
}

/// The rules a type cannot express.
fn check(args: &Args) -> Result<()> {
    let rule = |holds: bool, flag: &str, got: String, expected: &str| {
        let (flag, expected) = (flag.to_owned(), expected.to_owned());
        if holds { Ok(()) } else { Err(Error::Option { flag, got, expected }) }
    };
    let o = &args.optim;
    at_least_one("--batch-size", o.batch_size as u64)?;
    at_least_one("--accum-freq", o.accum_freq as u64)?;
    at_least_one("--epochs", o.epochs)?;
    at_least_one("--workers", args.data.workers as u64)?;
    at_least_one("--readers", args.data.readers as u64)?;
    args.data.network.options()?;
    at_least_one("--shuffle", args.data.shuffle as u64)?;
    at_least_one("--match-every", args.objective.match_every)?;
    at_least_one("--save-frequency", args.run.save_frequency)?;
    at_least_one("--log-every-n-steps", args.run.log_every_n_steps)?;
    at_least_one("--max-nonfinite-steps", args.run.max_nonfinite_steps)?;
    at_least_one("--threads", args.model.threads.unwrap_or(1) as u64)?;
    at_least_one("--save-every-n-steps", args.run.save_every_n_steps.unwrap_or(1))?;
    let positive = |flag: &str, x: f64| {
        rule(x.is_finite() && x > 0.0, flag, x.to_string(), "a finite number above 0")
    };
    let not_negative = |flag: &str, x: f64| {
        rule(x.is_finite() && x >= 0.0, flag, x.to_string(), "a finite number, 0 or above")
    };
    positive("--lr", o.lr)?;
    let weights = &args.objective;
    not_negative("--cyclip-in-modal", weights.cyclip_in_modal)?;
    not_negative("--cyclip-cross-modal", weights.cyclip_cross_modal)?;
    not_negative("--cleanclip-clip", weights.cleanclip_clip)?;
    not_negative("--cleanclip-unimodal", weights.cleanclip_unimodal)?;
    check_safeclip(args)?;
    assemble::adamw(args).check()?;
    not_negative("--lr-cooldown-end", o.lr_cooldown_end)?;
    positive("--lr-cooldown-power", o.lr_cooldown_power)?;
    let cooldown = o.epochs_cooldown.unwrap_or(0);
    let cools = o.lr_scheduler == ScheduleKind::ConstCooldown;
    rule(
        if cools { (1..=o.epochs).contains(&cooldown) } else { o.epochs_cooldown.is_none() },
        "--epochs-cooldown",
        o.epochs_cooldown.map_or("nothing".into(), |n| n.to_string()),
        "1 to --epochs with --lr-scheduler const-cooldown, and nothing without it",
    )?;
    let named = args.run.name.is_some() || args.run.resume.as_deref() != Some("latest");
    rule(named, "--resume latest", "no --name".into(), "--name of the run to continue")?;
    let name = args.run.name.as_deref().unwrap_or("x");
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    rule(plain, "--name", format!("{name:?}"), "a plain folder name, without / and leading dot")
}

/// SafeCLIP's shares are shares, and it has epochs enough to tell pairs apart and use it.
fn check_safeclip(args: &Args) -> Result<()> {
    let (o, epochs) = (&args.objective, args.optim.epochs);
    let wrong = |flag: &str, got: String, expected: String| {
        Err(Error::Option { flag: flag.into(), got, expected })
    };
    for (flag, share) in [
        ("--safeclip-lr-factor", o.safeclip_lr_factor),
        ("--safeclip-threshold", o.safeclip_threshold),
        ("--safeclip-growth", o.safeclip_growth),
        ("--safeclip-most", o.safeclip_most),
    ] {
        if !(0.0..=1.0).contains(&share) {
            return wrong(flag, share.to_string(), "a number from 0 to 1".into());
        }
    }
    if !matches!(o.objective, Objective::SafeClip(_)) {
        return Ok(());
    }
    if o.safeclip_warmup_epochs.saturating_add(1) >= epochs {
        let got = format!("{} of {epochs} epochs", o.safeclip_warmup_epochs);
        let expected = "at least 2 less than --epochs: pairs are told apart after one more epoch, \
                        and then trained on as what they are";
        return wrong("--safeclip-warmup-epochs", got, expected.into());
    }
    if args.data.dataset_resampled {
        let expected = "nothing with --objective safeclip, whose epochs have every pair once";
        return wrong("--dataset-resampled", "the flag".into(), expected.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_hold_no_secret_of_a_url() {
        let words = ["roclip-train", "--shards", "a.tar::https://me:pw@h/b.tar?sig=1"];
        let Ok(Parsed::Run(args, settings)) = parse(words.map(OsString::from)) else {
            panic!("not parsed");
        };
        assert_eq!(settings["shards"], "a.tar::https://h/b.tar?…");
        assert_eq!(args.data.shards, words[2]);
    }
}
