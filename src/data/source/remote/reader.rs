//! The blocking side of a transfer: a [`Read`] that can be stopped and can start anywhere.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use tokio::runtime::Handle;

use super::cache::{Cache, Filling};
use super::fetch::{Fetch, Object, Piece};

/// How often a reader that waits looks whether it should stop.
const STOP_EVERY: Duration = Duration::from_millis(20);
/// Enough to recognise a compression.
const MAGIC_BYTES: usize = 4;

/// Reads an object. Nothing is asked of the server before the first read or skip.
#[derive(Debug)]
pub struct RemoteReader {
    runtime: Handle,
    object: Arc<Object>,
    fetch: Option<Fetch>,
    piece: Vec<u8>,
    used: usize,
    /// Place of the next byte.
    at: u64,
    is_at_end: bool,
    stop: Arc<AtomicBool>,
    keep: Keep,
}

/// What becomes of the bytes besides being read.
#[derive(Debug)]
enum Keep {
    Nothing,
    /// From the first byte on, should reading begin there.
    Ready(Cache, String),
    Filling(Filling),
}

impl RemoteReader {
    pub(super) fn new(
        runtime: Handle,
        object: Object,
        stop: Arc<AtomicBool>,
        cache: Option<(Cache, String)>,
    ) -> Self {
        Self {
            runtime,
            object: Arc::new(object),
            fetch: None,
            piece: Vec::new(),
            used: 0,
            at: 0,
            is_at_end: false,
            stop,
            keep: cache.map_or(Keep::Nothing, |(cache, key)| Keep::Ready(cache, key)),
        }
    }

    /// Place of the next byte.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Bytes left, where the server has told how many there are.
    pub fn remaining(&self) -> Option<u64> {
        self.object.size().map(|size| size.saturating_sub(self.at))
    }

    /// The first bytes of the object, for recognising a compression; the reader stands at byte
    /// `skip` then (or at the end), whose transfer begins at the same time.
    ///
    /// # Errors
    /// The object cannot be read.
    pub fn magic(&mut self, skip: u64) -> io::Result<Vec<u8>> {
        if skip == 0 {
            let bytes = self.fill_buf()?;
            return Ok(bytes[..bytes.len().min(MAGIC_BYTES)].into());
        }
        self.start_at(skip);
        let object = Arc::clone(&self.object);
        let head = Fetch::start(&self.runtime, object, 0, Some(MAGIC_BYTES));
        let mut magic = match self.wait(&head)? {
            Piece::Bytes(magic) => magic,
            Piece::End => Vec::new(),
            Piece::Failed(fault) => return Err(io::Error::other(fault)),
        };
        magic.truncate(MAGIC_BYTES);
        self.at = skip.min(self.object.size().unwrap_or(skip));
        Ok(magic)
    }

    /// Goes to byte `at` without reading what lies between.
    pub fn start_at(&mut self, at: u64) {
        self.fetch = Some(Fetch::start(&self.runtime, Arc::clone(&self.object), at, None));
        (self.piece, self.used) = (Vec::new(), 0);
        (self.at, self.is_at_end) = (at, false);
        if at > 0 || matches!(self.keep, Keep::Filling(_)) {
            self.keep = Keep::Nothing;
        }
    }

    /// Moves on by up to `bytes`; returns by how many. What is on its way is waited for; what
    /// lies beyond it is not fetched.
    ///
    /// # Errors
    /// The object cannot be read on.
    pub fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let bytes = bytes.min(self.remaining().unwrap_or(u64::MAX));
        let options = &self.object.options;
        let window = options.chunk_bytes as u64 * options.read_ahead as u64;
        let is_far = bytes > (self.piece.len() - self.used) as u64 + window;
        let only_whole = self.object.is_whole.load(Ordering::Relaxed);
        if is_far && !only_whole && self.object.size().is_some() {
            self.start_at(self.at + bytes);
            return Ok(bytes);
        }
        let mut left = bytes;
        while left > 0 {
            let here = self.fill_buf()?.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if here == 0 {
                break;
            }
            self.consume(here);
            left -= here as u64;
        }
        Ok(bytes - left)
    }

    fn wait(&self, fetch: &Fetch) -> io::Result<Piece> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("reading was stopped"));
            }
            match fetch.pieces.recv_timeout(STOP_EVERY) {
                Ok(piece) => return Ok(piece),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the transfer ended without a word"));
                }
            }
        }
    }

    /// Puts the next piece in place of the one that is used up.
    fn advance(&mut self) -> io::Result<()> {
        let fetch = match self.fetch.take() {
            Some(fetch) => fetch,
            None => Fetch::start(&self.runtime, Arc::clone(&self.object), self.at, None),
        };
        if !self.piece.is_empty() {
            fetch.recycle(std::mem::take(&mut self.piece));
        }
        self.used = 0;
        let piece = self.wait(&fetch);
        self.fetch = Some(fetch);
        match piece? {
            Piece::Bytes(bytes) => {
                self.piece = bytes;
                self.keep_piece();
            }
            Piece::End => {
                self.is_at_end = true;
                if let Keep::Filling(filling) = std::mem::replace(&mut self.keep, Keep::Nothing) {
                    self.runtime.spawn_blocking(|| filling.finish());
                }
            }
            Piece::Failed(fault) => {
                self.keep = Keep::Nothing;
                return Err(io::Error::other(fault));
            }
        }
        Ok(())
    }

    /// A cache that fails is no reason to read no further: then nothing is kept.
    fn keep_piece(&mut self) {
        if let Keep::Ready(cache, key) = &self.keep {
            // Without a size nobody could tell whether the file is whole.
            let filling = self.object.size().and_then(|size| cache.begin(key, size));
            self.keep = filling.map_or(Keep::Nothing, Keep::Filling);
        }
        if let Keep::Filling(filling) = &mut self.keep
            && filling.write(&self.piece).is_err()
        {
            self.keep = Keep::Nothing;
        }
    }
}

impl BufRead for RemoteReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.used == self.piece.len() && !self.is_at_end {
            self.advance()?;
        }
        Ok(&self.piece[self.used..])
    }

    fn consume(&mut self, bytes: usize) {
        self.used += bytes;
        self.at += bytes as u64;
    }
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
