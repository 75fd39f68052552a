//! How shards are fetched over a network, and what is kept of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Longest time that an option may name.
const MAX_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How remote shards are read (feature `remote`; local ones need none of it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Most time until a connection stands. Default 10 s.
    pub connect_timeout: Duration,
    /// Most time without a single byte. Default 30 s.
    pub idle_timeout: Duration,
    /// Most time for one chunk, all tries and the pauses between them included: a server that
    /// sends a byte now and then is given up, too. Default 10 min.
    pub total_timeout: Duration,
    /// Tries in a row that bring no new byte before the shard is given up. Default 8.
    pub tries: u32,
    /// Pause before the second try; it doubles with each further one, and each is shortened by
    /// up to half at random, so that readers do not come back all at once. Default 100 ms.
    pub backoff: Duration,
    /// Longest such pause. Default 10 s.
    pub max_backoff: Duration,
    /// Bytes asked for at a time. Default 8 MiB.
    pub chunk_bytes: usize,
    /// Chunks of a shard under way or waiting at a time, beside the one that is being read.
    /// Default 4.
    pub read_ahead: usize,
    /// Where whole shards are kept once read. Default nowhere.
    pub cache: Option<CacheOptions>,
    /// Settings of the stores by their names in `object_store` (`aws_endpoint`,
    /// `google_service_account`, `azure_storage_account_name`). They go before the environment
    /// variables of the same names in capitals. Default none.
    pub store: StoreSettings,
}

/// A directory that keeps whole shards. Several processes may share it.
///
/// A shard is kept under the digest of its URL and is not asked about again: what changes at its
/// source under the same name is noticed only once the directory is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The directory; it is made where it is missing.
    pub dir: PathBuf,
    /// Most bytes it may hold; what was used least recently goes first.
    pub max_bytes: u64,
}

/// Names and values of settings; the values may be secrets and are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreSettings(pub BTreeMap<String, String>);

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(600),
            tries: 8,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            chunk_bytes: 8 << 20,
            read_ahead: 4,
            cache: None,
            store: StoreSettings::default(),
        }
    }
}

impl SourceOptions {
    /// Whether every field makes sense.
    ///
    /// # Errors
    /// A count or a time is 0 or beyond all reason.
    pub fn validate(&self) -> Result<()> {
        let wrong = |flag: &str, got: String, expected: &str| {
            Err(Error::Option { flag: flag.into(), got, expected: expected.into() })
        };
        if self.tries == 0 {
            return wrong("tries", "0".into(), "1 or more");
        }
        let times = [self.connect_timeout, self.idle_timeout, self.total_timeout];
        for time in times.into_iter().chain([self.backoff, self.max_backoff]) {
            if time.is_zero() || time > MAX_TIME {
                return wrong("a timeout or pause", format!("{time:?}"), "above 0, at most a week");
            }
        }
        if !(512..=1 << 30).contains(&self.chunk_bytes) {
            return wrong("chunk_bytes", self.chunk_bytes.to_string(), "512 bytes to 1 GiB");
        }
        if self.read_ahead == 0 || self.read_ahead > 1024 {
            return wrong("read_ahead", self.read_ahead.to_string(), "1 to 1024 chunks");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown_and_nonsense_is_refused() {
        let store = StoreSettings([("aws_secret".into(), "hunter2".into())].into());
        let shown = format!("{:?}", SourceOptions { store, ..SourceOptions::default() });
        assert!(shown.contains("aws_secret") && !shown.contains("hunter2"), "{shown}");
        let default = SourceOptions::default;
        default().validate().unwrap();
        for wrong in [
            SourceOptions { tries: 0, ..default() },
            SourceOptions { chunk_bytes: 0, ..default() },
            SourceOptions { chunk_bytes: usize::MAX, ..default() },
            SourceOptions { read_ahead: 0, ..default() },
            SourceOptions { idle_timeout: Duration::ZERO, ..default() },
            SourceOptions { max_backoff: Duration::MAX, ..default() },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
