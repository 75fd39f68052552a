//! Samples → WebDataset shards: `000000.tar`, `000001.tar`, …
//!
//! The same samples in the same order give the same bytes. A shard has its name only once it is
//! complete; one that is under way is `.000003.tar.<process>-<number>.part`, and is removed on
//! failure.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::atomic::AtomicFile;
use super::index::{SIZES, path_beside};
use super::sample::split_name;
use super::source::SHARD_SUFFIXES;
use super::tar::NAME_BYTES;
use super::tar::write::{append, finish, member_bytes};
use crate::error::{Error, Result};

/// How shards are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Most samples in a shard. Default 10,000.
    pub max_samples: u64,
    /// Most bytes in a shard before compression, unless one sample alone has more. Default 3 GB,
    /// as in webdataset.
    pub max_bytes: u64,
    /// Level of zstd, 1 to 19; the shards are `.tar.zst` then. Default none.
    pub zstd: Option<i32>,
    /// Whether numbered shards that the folder holds may go. Default no: then it must hold none.
    pub overwrite: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { max_samples: 10_000, max_bytes: 3_000_000_000, zstd: None, overwrite: false }
    }
}

/// A shard that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where.
    pub path: PathBuf,
    /// Samples in it.
    pub samples: u64,
    /// Its size on disk, in bytes.
    pub bytes: u64,
}

/// Writes samples into shards, beginning a new one when one is full.
pub struct ShardWriter {
    folder: PathBuf,
    options: WriterOptions,
    open: Option<Open>,
    written: Vec<Written>,
}

/// The shard that is being written.
struct Open {
    output: Output,
    path: PathBuf,
    samples: u64,
    bytes: u64,
    last_key: String,
}

enum Output {
    Plain(AtomicFile),
    Zstd(zstd::Encoder<'static, AtomicFile>),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Plain(file) => file.write(bytes),
            Output::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(file) => file.flush(),
            Output::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl ShardWriter {
    /// Begins to write into a folder, which is made if need be. With
    /// [`WriterOptions::overwrite`] the numbered shards in it are removed first, with their
    /// indices: old and new ones must not be taken for one dataset.
    ///
    /// # Errors
    /// The folder holds shards already, or cannot be made; an option is out of range.
    pub fn create(folder: &Path, options: WriterOptions) -> Result<Self> {
        let wrong = |flag: &str, got: String, expected: &str| {
            Err(Error::Option { flag: flag.into(), got, expected: expected.into() })
        };
        if options.max_samples == 0 {
            return wrong("--shard-size", "0".into(), "1 or more");
        }
        if let Some(level) = options.zstd
            && !(1..=19).contains(&level)
        {
            return wrong("--zstd", level.to_string(), "a level from 1 to 19");
        }
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let path = entry.map_err(Error::io("list", folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !SHARD_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
                continue;
            }
            let is_ours = name.len() > 6 && name.as_bytes()[..6].iter().all(u8::is_ascii_digit);
            if !options.overwrite || !is_ours {
                let got = format!("{} is there already", path.display());
                return wrong("OUT", got, "a folder without shards, or --overwrite for ours");
            }
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            remove_if_there(&path_beside(&path))?;
        }
        if options.overwrite {
            remove_if_there(&folder.join(SIZES))?;
        }
        Ok(Self { folder: folder.into(), options, open: None, written: Vec::new() })
    }

    /// Writes a sample: its key and its members, each with its extension (`jpg`, `seg.png`).
    ///
    /// A sample is not split between shards. One with the key of the sample before begins a new
    /// shard, since a reader would take both for one.
    ///
    /// # Errors
    /// A reader would not find the key and the extension again: a dot in the key's last component,
    /// an empty key or extension, a name that begins with `__` or has more than 4096 bytes. Or the
    /// shard cannot be written.
    pub fn write(
        &mut self,
        key: &str,
        members: &[(impl AsRef<str>, impl AsRef<[u8]>)],
    ) -> Result<()> {
        let mut names = Vec::with_capacity(members.len());
        let mut bytes = 0;
        for (extension, data) in members {
            let (extension, data) = (extension.as_ref(), data.as_ref());
            let name = format!("{key}.{extension}");
            let returns = name.len() <= NAME_BYTES
                && split_name(&name)
                    .is_some_and(|(k, e)| k == key && e.to_lowercase() == extension.to_lowercase());
            if !returns || extension.is_empty() {
                return Err(Error::Format {
                    path: self.folder.clone(),
                    reason: format!(
                        "{name:?} would not be read again as {key:?} and {extension:?}; a key has \
                         no dot in its last component and does not begin with `__`"
                    ),
                });
            }
            bytes += member_bytes(&name, data.len() as u64);
            names.push(name);
        }
        let options = &self.options;
        let is_full = |open: &Open| {
            open.samples >= options.max_samples
                || open.bytes + bytes > options.max_bytes
                || open.last_key == key
        };
        if self.open.as_ref().is_some_and(is_full) {
            self.close()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                self.open.insert(Open::create(&self.folder, &self.options, self.written.len())?)
            }
        };
        for (name, (_, data)) in names.iter().zip(members) {
            append(&mut open.output, name, data.as_ref())
                .map_err(Error::io("write", &open.path))?;
        }
        open.samples += 1;
        open.bytes += bytes;
        key.clone_into(&mut open.last_key);
        Ok(())
    }

    /// Path that the shard written to last has, or will have once it is complete.
    pub fn path(&self) -> Option<&Path> {
        let open = self.open.as_ref().map(|open| &open.path);
        open.or(self.written.last().map(|shard| &shard.path)).map(PathBuf::as_path)
    }

    /// Completes the last shard and tells which were written, in order.
    ///
    /// # Errors
    /// The shard cannot be written.
    pub fn finish(mut self) -> Result<Vec<Written>> {
        self.close()?;
        Ok(self.written)
    }

    /// Completes the shard that is open, if one is; the next sample begins another.
    ///
    /// # Errors
    /// The shard cannot be written.
    pub fn close(&mut self) -> Result<()> {
        let Some(Open { mut output, path, samples, .. }) = self.open.take() else { return Ok(()) };
        finish(&mut output).map_err(Error::io("write", &path))?;
        let file = match output {
            Output::Plain(file) => file,
            Output::Zstd(encoder) => encoder.finish().map_err(Error::io("write", &path))?,
        };
        file.commit()?;
        let bytes = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        self.written.push(Written { path, samples, bytes });
        Ok(())
    }
}

impl Open {
    fn create(folder: &Path, options: &WriterOptions, number: usize) -> Result<Self> {
        let suffix = if options.zstd.is_some() { ".zst" } else { "" };
        let path = folder.join(format!("{number:06}.tar{suffix}"));
        let file = AtomicFile::create(&path)?;
        let output = match options.zstd {
            None => Output::Plain(file),
            Some(level) => {
                let encoder = zstd::Encoder::new(file, level).and_then(|mut encoder| {
                    encoder.include_checksum(true)?;
                    Ok(encoder)
                });
                Output::Zstd(encoder.map_err(Error::io("write", &path))?)
            }
        };
        Ok(Self { output, path, samples: 0, bytes: 0, last_key: String::new() })
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}
