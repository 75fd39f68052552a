//! A folder for what can only be read from a file.

use std::path::{Path, PathBuf};

/// A folder that is removed with the process's last thread; each thread has its own.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for temporary files"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in place of what has its name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }
}
