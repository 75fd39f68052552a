//! The learning rate, a pure function of the step.

use crate::error::{Error, Result};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// Shape of the learning rate after its linear warm-up; open_clip's three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Half a cosine, from the full rate at the end of the warm-up to 0 at the end of the run.
    #[default]
    Cosine,
    /// The full rate.
    Const,
    /// The full rate, and a polynomial descent over the last steps.
    ConstCooldown,
}

impl ScheduleKind {
    const ALL: [Self; 3] = [Self::Cosine, Self::Const, Self::ConstCooldown];

    /// Its name on the command line, as open_clip's `--lr-scheduler`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Const => "const",
            Self::ConstCooldown => "const-cooldown",
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|k| k.name() == text).ok_or_else(|| Error::Option {
            flag: "--lr-scheduler".into(),
            got: format!("{text:?}"),
            expected: "cosine, const or const-cooldown".into(),
        })
    }
}

/// The learning rate of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The full rate.
    pub lr: f64,
    /// Steps of the warm-up, in which step `s`, from 0, has rate `lr·(s+1)/warmup`.
    pub warmup: u64,
    /// Steps of the run.
    pub total: u64,
    /// Steps of the descent of [`ScheduleKind::ConstCooldown`], the last of the run.
    pub cooldown: u64,
    /// Power of that descent; 1 is a straight line.
    pub cooldown_power: f64,
    /// Rate at its end.
    pub cooldown_end: f64,
}

impl Schedule {
    /// A schedule without a cooldown.
    pub fn new(kind: ScheduleKind, lr: f64, warmup: u64, total: u64) -> Self {
        Self { kind, lr, warmup, total, cooldown: 0, cooldown_power: 1.0, cooldown_end: 0.0 }
    }

    /// The learning rate of `step`, from 0.
    ///
    /// Behind the end of the run the cosine rises again, as open_clip's does: the released RoCLIP
    /// gets there. A cooldown stays at its end. A run that its warm-up outlasts never leaves it.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        match self.kind {
            ScheduleKind::Const => self.lr,
            ScheduleKind::Cosine => {
                let steps = self.total.saturating_sub(self.warmup).max(1);
                let part = PI * (step - self.warmup) as f64 / steps as f64;
                0.5 * (1.0 + part.cos()) * self.lr
            }
            ScheduleKind::ConstCooldown => {
                let done = (step + self.cooldown).saturating_sub(self.total);
                let left = 1.0 - done as f64 / self.cooldown.max(1) as f64;
                let factor = left.max(0.0).powf(self.cooldown_power);
                factor * (self.lr - self.cooldown_end) + self.cooldown_end
            }
        }
    }
}
