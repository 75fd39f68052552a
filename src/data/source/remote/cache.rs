//! Whole shards on the local disk.
//!
//! A file appears under its name only when it is complete, synced and of the right length, and
//! never changes after; so several processes may share the directory without a lock: whoever
//! misses a shard fetches it, and the last to finish replaces an equal file. What is used least
//! recently goes first; who still reads it keeps the file open.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::super::CacheOptions;

const COMPLETE: &str = "shard";
const PARTIAL: &str = "part";
/// A partial file that has not grown for so long was left behind.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Tells apart what this process writes at the same time.
static SERIAL: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug)]
pub(super) struct Cache {
    options: CacheOptions,
}

/// A shard on its way into the cache. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Filling {
    cache: Cache,
    file: File,
    partial: PathBuf,
    key: String,
    written: u64,
    size: u64,
}

/// What a file of the directory is about.
struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    is_complete: bool,
}

impl Cache {
    pub(super) fn new(options: &CacheOptions) -> Self {
        Self { options: options.clone() }
    }

    /// The name under which a URL is kept, its query included; `account` tells apart what the
    /// URL does not.
    pub(super) fn key(url: &str, account: &str) -> String {
        Sha256::digest(format!("{url}\0{account}"))[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The complete shard, if it is here, opened before anybody can delete it; it counts as used
    /// now. The length is part of the name,
    /// so that a file that lost its end in a crash is not taken for whole.
    pub(super) fn find(&self, key: &str) -> Option<File> {
        let kept = self.kept().ok()?;
        let found = kept.into_iter().find(|kept| {
            let name = kept.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            kept.is_complete && name == complete_name(key, kept.bytes)
        })?;
        let file = File::open(&found.path).ok()?;
        // A file system that keeps no times evicts in another order: no harm.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Starts to keep a shard of `size` bytes; `None` where it does not fit or cannot be written.
    pub(super) fn begin(&self, key: &str, size: u64) -> Option<Filling> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{key}-{}-{serial}.{PARTIAL}", std::process::id());
        let partial = self.options.dir.join(name);
        let file = File::options().write(true).create_new(true).open(&partial).ok()?;
        let filling =
            Filling { cache: self.clone(), file, partial, key: key.into(), written: 0, size };
        // Set aside at once, so that others see how much there will be.
        filling.file.set_len(size).ok()?;
        self.make_room().ok()?.then_some(filling)
    }

    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.options.dir)? {
            let path = entry?.path();
            let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
            let is_complete = is(COMPLETE);
            // It may have gone since: then it takes no room.
            if let Ok(metadata) = path.metadata()
                && (is_complete || is(PARTIAL))
            {
                let (bytes, used) = (metadata.len(), metadata.modified()?);
                found.push(Kept { path, bytes, used, is_complete });
            }
        }
        Ok(found)
    }

    /// Deletes until all fits; whether it does.
    fn make_room(&self) -> io::Result<bool> {
        let mut kept = self.kept()?;
        kept.sort_by_key(|kept| kept.used);
        let mut total: u64 = kept.iter().map(|kept| kept.bytes).sum();
        for kept in kept {
            let is_abandoned =
                !kept.is_complete && kept.used.elapsed().is_ok_and(|age| age > ABANDONED);
            if is_abandoned || kept.is_complete && total > self.options.max_bytes {
                total -= kept.bytes;
                remove(&kept.path)?;
            }
        }
        Ok(total <= self.options.max_bytes)
    }
}

fn complete_name(key: &str, bytes: u64) -> String {
    format!("{key}-{bytes}.{COMPLETE}")
}

/// Somebody else may have been faster.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Filling {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        if self.written > self.size {
            return Err(io::Error::other("more bytes than there should be"));
        }
        self.file.write_all(bytes)
    }

    /// Makes the file one that is found, if nothing is missing. A failure only costs the next
    /// reader a transfer.
    pub(super) fn finish(self) {
        if self.written != self.size || self.file.sync_all().is_err() {
            return;
        }
        let name = complete_name(&self.key, self.written);
        if fs::rename(&self.partial, self.cache.options.dir.join(name)).is_ok() {
            let _ = self.cache.make_room();
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // Renamed, it is not there any more.
        let _ = remove(&self.partial);
    }
}
