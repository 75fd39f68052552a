//! The one error type. Every message names the place and what to do about it.
//!
//! Input that may happen is an [`Error`]; what cannot happen is an assertion. A bad *pair* is
//! neither: it is skipped and written to the ledger ([`crate::data::ledger`]).

use std::path::{Path, PathBuf};

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
    #[error("cannot {action} {}: {source}", shown(path))]
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
    #[error("shards {:?}: {reason}", redact(pattern))]
    Shards {
        /// The pattern as the user wrote it; the message leaves the secrets of URLs out.
        pattern: String,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// A file that is not a shard (checkpoint, vocabulary, class list) does not hold what it
    /// should.
    #[error("{}: {reason}", shown(path))]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and what to do.
        reason: String,
    },

    /// The device cannot do what was asked.
    #[error("device: {0}")]
    Device(String),

    /// The ranks of a run cannot meet, or one is gone.
    #[error("distributed: {0}")]
    Distributed(String),

    /// This rank met an error, and rank 0 tells of it.
    #[error("see what rank 0 says")]
    Told,

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

/// A shard list or a message as it may be shown: without the passwords of its URLs and without
/// their queries, for the query of a presigned URL is as good as a password.
pub fn redact(text: &str) -> String {
    let patterns = text.split("::").map(|pattern| {
        let words = pattern.split_inclusive(char::is_whitespace);
        words.map(redact_word).collect::<String>()
    });
    patterns.collect::<Vec<_>>().join("::")
}

/// A text from data as a terminal or a page may show it: what could move the cursor, change colours
/// or turn the direction of writing is spelled out.
pub fn printable(text: &str) -> String {
    spelled_out(text, &[])
}

/// Lines of ours with words from data in them: as [`printable`], but lines and columns stay.
pub fn printable_lines(text: &str) -> String {
    spelled_out(text, &['\n', '\t'])
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

fn spelled_out(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let is_format = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..);
        if (c.is_control() || is_format) && !kept.contains(&c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,%+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn redact_word(word: &str) -> String {
    let Some((before, rest)) = word.split_once("://") else { return word.into() };
    let is_http = before.ends_with("http") || before.ends_with("https");
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) if is_http => host.into(),
        // The user of `az://container@account/` is the container.
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => authority.into(),
    };
    // A `?` without fields is a wildcard of an object store.
    let query = path.find('?').filter(|&at| is_http || path[at..].contains('='));
    let path = match query {
        Some(at) => {
            let space = path.trim_end().len();
            format!("{}?…{}", &path[..at], &path[space..])
        }
        None => path.into(),
    };
    format!("{before}://{authority}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_shown() {
        for (text, shown) in [
            ("a b/c?d=1", "a b/c?d=1"),
            ("https://h/a.tar", "https://h/a.tar"),
            ("https://me:pw@h:8/a.tar?X-Sig=1&b=2", "https://h:8/a.tar?…"),
            ("http://h/a?s=1::http://u@h/b?s=2", "http://h/a?…::http://h/b?…"),
            ("http://h?s=a@b/c", "http://h?…"),
            ("GET (https://h/a?s=1 ) failed", "GET (https://h/a?… ) failed"),
            ("s3://b/a?.tar", "s3://b/a?.tar"),
            ("az://box@acc/a?sv=1&sig=2", "az://box@acc/a?…"),
            ("az://box:pw@acc/a", "az://box@acc/a"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        let hostile = "a\u{1b}[31mred\r\n\t\u{7}\u{9b}2J\u{202e}gpj\u{2066}\u{200b}\u{e0041}é 猫";
        let shown = printable(hostile);
        assert_eq!(
            shown,
            "a\\u{1b}[31mred\\r\\n\\t\\u{7}\\u{9b}2J\\u{202e}gpj\\u{2066}\\u{200b}\\u{e0041}é 猫"
        );
        assert_eq!(printable_lines("a\u{1b}\tb\n\u{200b}"), "a\\u{1b}\tb\n\\u{200b}");
    }
}
