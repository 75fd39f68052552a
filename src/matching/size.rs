//! How many captions the pool holds.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Rows of the caption pool: a number (`21845`) or a share of the training pairs (`2%`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PoolSize {
    /// That many rows.
    Rows(usize),
    /// That share of the training pairs, in percent, rounded to the nearest row.
    Percent(f64),
}

impl Default for PoolSize {
    /// 2 %. RoCLIP's released program holds 21,845 captions of 1,000,000, or 2.2 %.
    fn default() -> Self {
        Self::Percent(2.0)
    }
}

impl PoolSize {
    /// The number of rows for a run over `pairs` training pairs.
    ///
    /// # Errors
    /// [`Error::Option`] where that is none, or more than there are pairs: such a pool would always
    /// hold each image's own caption of the epoch before, which matching is to keep away from it.
    pub fn resolve(self, pairs: usize) -> Result<usize> {
        let rows = match self {
            Self::Rows(rows) => rows,
            Self::Percent(percent) => (pairs as f64 * percent / 100.0).round() as usize,
        };
        let limit = pairs.min(u32::MAX as usize);
        if (1..=limit).contains(&rows) {
            return Ok(rows);
        }
        Err(wrong(
            format!("{self} of {pairs} training pairs is a pool of {rows} rows"),
            format!("a number from 1 to {limit}, or a share that comes to one"),
        ))
    }
}

fn wrong(got: String, expected: String) -> Error {
    Error::Option { flag: "--pool-size".into(), got, expected }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "{rows}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for PoolSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let size = match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse().ok().filter(|p| *p > 0.0 && *p <= 100.0).map(Self::Percent)
            }
            None => text.parse().ok().filter(|rows| *rows > 0).map(Self::Rows),
        };
        size.ok_or_else(|| {
            let expected =
                "a number of captions (21845) or a share of the data above 0% and up to 100% (2%)";
            wrong(format!("{text:?}"), expected.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_shares() {
        assert_eq!("21845".parse::<PoolSize>().unwrap(), PoolSize::Rows(21_845));
        assert_eq!("2.5%".parse::<PoolSize>().unwrap(), PoolSize::Percent(2.5));
        assert_eq!(PoolSize::default().to_string(), "2%");
        assert_eq!(PoolSize::default().resolve(1_000_000).unwrap(), 20_000);
        assert_eq!(PoolSize::Percent(2.1845).resolve(1_000_000).unwrap(), 21_845);
        assert_eq!(PoolSize::Rows(7).resolve(7).unwrap(), 7);
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        for text in ["", "%", "0", "-1", "0%", "-2%", "101%", "NaN%", "inf%", "2 %", "1e3", "two"] {
            let refusal = text.parse::<PoolSize>().unwrap_err().to_string();
            assert!(refusal.contains("--pool-size") && refusal.contains("21845"), "{refusal}");
        }
        for (size, pairs) in [(PoolSize::Rows(8), 7), (PoolSize::Percent(2.0), 24)] {
            let refusal = size.resolve(pairs).unwrap_err().to_string();
            assert!(refusal.contains(&format!("from 1 to {pairs}")), "{refusal}");
        }
        assert!(PoolSize::Percent(100.0).resolve(0).is_err());
    }
}
