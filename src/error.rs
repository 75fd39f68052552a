//! The one error type. Every message names the place and what to do about it.
//!
//! Input that may happen is an [`Error`]; what cannot happen is an assertion. A bad *pair* is
//! neither: it is skipped and written to the ledger ([`crate::data::ledger`]).

use std::path::PathBuf;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can stop an operation of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation was handed shapes that its contract refuses. Nothing was computed.
    #[error("{op}: {rule}; got {got}")]
    Shape {
        /// Name of the operation, as in `backend::ops`.
        op: &'static str,
        /// The rule of the contract that was broken.
        rule: &'static str,
        /// The numbers that broke it.
        got: String,
    },

    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: "open", "read", "rename".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's own word.
        source: std::io::Error,
    },

    /// A flag or configuration value is wrong; found before anything starts.
    #[error("{flag}: {got}; expected {expected}")]
    Option {
        /// The flag (`--batch-size`) or the field (`vision_cfg.width in model.json`).
        flag: String,
        /// What was given.
        got: String,
        /// What would be right.
        expected: String,
    },

    /// The list of shards is unusable: nothing matches, or a pattern is malformed.
    #[error("shards {pattern:?}: {reason}")]
    Shards {
        /// The pattern as the user wrote it.
        pattern: String,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// A file that is not a shard (checkpoint, vocabulary, class list) does not hold what it
    /// should.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and what to do.
        reason: String,
    },

    /// The device cannot do what was asked.
    #[error("device: {0}")]
    Device(String),

    /// Training met a non-finite loss or gradient too many times in a row.
    #[error("{0}")]
    NonFinite(String),
}

impl Error {
    /// Wraps an I/O error with what was attempted and where; made for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
