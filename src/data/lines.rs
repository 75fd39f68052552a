//! Text files a line at a time, in bounded memory: what others wrote may have no end of line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Reads a text file line by line.
pub(crate) struct Lines {
    input: BufReader<File>,
    path: PathBuf,
    /// Longest line, in bytes.
    limit: usize,
    /// Lines read so far.
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path, limit: usize) -> Result<Self> {
        let input = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
        Ok(Self { input, path: path.into(), limit, number: 0, line: Vec::new() })
    }

    /// The next line without its end (LF or CRLF) and without a byte-order mark.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>> {
        self.line.clear();
        let most = self.limit as u64 + 2;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut self.line);
        if read.map_err(Error::io("read", &self.path))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.limit {
            return Err(self.wrong(format!("more than {} bytes in one line", self.limit)));
        }
        let mark: &[u8] = if self.number == 1 { b"\xEF\xBB\xBF" } else { b"" };
        Ok(Some(line.strip_prefix(mark).unwrap_or(line)))
    }

    /// What is wrong with the line read last.
    pub(crate) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        wrong_line(&self.path, self.number, what)
    }

    /// The line read last, as JSON.
    pub(crate) fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.line).map_err(|e| self.wrong(e))
    }
}

pub(crate) fn wrong_line(path: &Path, number: u64, what: impl std::fmt::Display) -> Error {
    Error::Format { path: path.into(), reason: format!("line {number}: {what}") }
}
