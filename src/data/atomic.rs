//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Tells apart files that threads make for one place at one time.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A file under a temporary name beside its place; dropped before [`commit`](Self::commit), it is
/// gone.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Begins a file that will stand at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{number}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let file = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { path: path.into(), temporary, file })
    }

    /// Puts the file in its place, in place of one that was there.
    pub(crate) fn commit(mut self) -> Result<()> {
        let file = self.file.take().expect("there until it is committed or dropped");
        let written = file.into_inner().map_err(io::IntoInnerError::into_error);
        let written = written.and_then(|file| file.sync_all());
        let renamed = written.and_then(|()| std::fs::rename(&self.temporary, &self.path));
        if renamed.is_err() {
            let _ = std::fs::remove_file(&self.temporary);
        }
        renamed.map_err(Error::io("write", &self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().expect("there until it is committed").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().expect("there until it is committed").flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            drop(file.into_parts());
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
