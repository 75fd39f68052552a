//! What training tells about every pair: `matches/epoch_0.npy` and so on in a run's folder, a
//! record for each pair trained on, in that order. NumPy reads them as they stand, also while the
//! run goes on:
//!
//! | field                      | type     | meaning                                             |
//! |----------------------------|----------|-----------------------------------------------------|
//! | `shard`, `index`           | u32      | the pair: shard of `shards.json`, position within   |
//! | `own`                      | f32      | cosine of its picture and its own caption           |
//! | `best`                     | f32      | cosine of its picture and the pool's nearest caption|
//! | `from_shard`, `from_index` | u32      | the pair which that caption came from               |
//!
//! Where nothing was matched, `best` is NaN and `from_…` are `u32::MAX`; so are these where the
//! caption came from no pair.

use crate::error::{Error, Result};
use crate::flow::Place;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Folder of the records within that of a run.
pub const FOLDER: &str = "matches";
/// Names of the shards, by the numbers in records; a JSON list.
const SHARDS: &str = "shards.json";
/// Bytes before the first record; the number of records has room in it, however large.
const HEADER: usize = 256;
/// Bytes of a record.
const BYTES: usize = 24;
/// What stands before the number of records.
const DESCRIPTION: &str = "{'descr': [('shard', '<u4'), ('index', '<u4'), ('own', '<f4'), \
    ('best', '<f4'), ('from_shard', '<u4'), ('from_index', '<u4')], 'fortran_order': False, \
    'shape': (";

/// A pair in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// The pair.
    pub pair: Place,
    /// Cosine of its picture and its own caption.
    pub own: f32,
    /// Cosine of its picture and the caption that the pool chose; NaN where none was.
    pub best: f32,
    /// Where that caption came from.
    pub from: Place,
}

impl Record {
    fn to_bytes(self) -> [u8; BYTES] {
        let Self { pair, own, best, from } = self;
        let (own, best) = (own.to_bits(), best.to_bits());
        let words = [pair.shard, pair.index, own, best, from.shard, from.index];
        let mut bytes = [0; BYTES];
        let (to, _) = bytes.as_chunks_mut();
        to.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |n: usize| u32::from_le_bytes(words[n]);
        let place = |n| Place { shard: word(n), index: word(n + 1) };
        let [own, best] = [2, 3].map(|n| f32::from_bits(word(n)));
        Self { pair: place(0), own, best, from: place(4) }
    }
}

/// The header of so many records. Source: NumPy's NEP 1, version 1.0.
fn header(rows: u64) -> [u8; HEADER] {
    let dict = format!("{DESCRIPTION}{rows},), }}");
    let mut header = [b' '; HEADER];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..10].copy_from_slice(&(HEADER as u16 - 10).to_le_bytes());
    header[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER - 1] = b'\n';
    header
}

/// The number of records that a header claims; `None`: it is no header of records.
fn rows_of(header: &[u8; HEADER]) -> Option<u64> {
    let text = std::str::from_utf8(&header[10..]).ok()?;
    let (rows, _) = text.strip_prefix(DESCRIPTION)?.split_once(',')?;
    rows.parse().ok().filter(|&rows| *header == self::header(rows))
}

/// The file of an epoch, counted from 0, in a run's folder.
fn path_of(run: &Path, epoch: u64) -> PathBuf {
    run.join(FOLDER).join(format!("epoch_{epoch}.npy"))
}

/// The epochs that a run's folder has records of, in order.
///
/// # Errors
/// [`Error::Io`] where the folder is there and cannot be read.
pub fn epochs(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut epochs = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
        let path = entry.map_err(Error::io("list", &folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("epoch_").and_then(|name| name.strip_suffix(".npy"));
        if let Some(epoch) = number.and_then(|number| number.parse().ok()) {
            epochs.push((epoch, path));
        }
    }
    epochs.sort_unstable();
    Ok(epochs)
}

/// Writes the names of all shards beside the records, by their numbers, unless they stand there.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be made or written.
pub fn write_shards<'a>(run: &Path, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let folder = run.join(FOLDER);
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let path = folder.join(SHARDS);
    let json = format!("{}\n", serde_json::Value::from_iter(names));
    // What a kill tears is made good by the run that resumes, which needs no temporary file.
    if fs::read(&path).is_ok_and(|there| there == json.as_bytes()) {
        return Ok(());
    }
    fs::write(&path, json).map_err(Error::io("write", &path))
}

/// The names of all shards, as [`write_shards`] left them.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] where the file is no list of texts.
pub fn read_shards(run: &Path) -> Result<Vec<String>> {
    let path = run.join(FOLDER).join(SHARDS);
    let text = fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|e| Error::Format {
        reason: format!("{e}; expected a list of the shards' names"),
        path,
    })
}

/// Records as they stand in a file.
pub fn pack(records: impl Iterator<Item = Record>) -> Vec<u8> {
    records.flat_map(Record::to_bytes).collect()
}

/// The records of an epoch under way.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    file: File,
    rows: u64,
}

impl RecordWriter {
    /// Opens the file of `epoch` in a run's folder to go on after its first `rows` records: later
    /// ones are cut off, and later epochs' files removed, for the resumed run will write them
    /// again, byte for byte. Where there are fewer, it goes on behind them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where records should be kept of a file that holds none.
    pub fn open(run: &Path, epoch: u64, rows: u64) -> Result<Self> {
        for (_, path) in epochs(run)?.into_iter().filter(|(later, _)| *later > epoch) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let (folder, path) = (run.join(FOLDER), path_of(run, epoch));
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(Error::io("open", &path))?;
        let there = file.metadata().map_err(Error::io("read", &path))?.len();
        let rows = rows.min(there.saturating_sub(HEADER as u64) / BYTES as u64);
        if rows > 0 {
            let mut old = [0; HEADER];
            file.read_exact(&mut old).map_err(Error::io("read", &path))?;
            rows_of(&old).ok_or_else(|| no_records(&path))?;
        }
        let mut writer = Self { path, file, rows };
        let end = HEADER as u64 + rows * BYTES as u64;
        let cut = writer.write_header().and_then(|()| writer.file.set_len(end));
        cut.map_err(Error::io("cut", &writer.path))?;
        Ok(writer)
    }

    /// Records in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends [`pack`]ed records and hands them to the operating system: first they, then their
    /// number.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses; [`Error::Format`] where these are no records.
    pub fn append(&mut self, packed: &[u8]) -> Result<()> {
        if !packed.len().is_multiple_of(BYTES) {
            let reason = format!("{} bytes are no records of {BYTES}", packed.len());
            return Err(Error::Format { path: self.path.clone(), reason });
        }
        let end = SeekFrom::Start(HEADER as u64 + self.rows * BYTES as u64);
        let written = self.file.seek(end).and_then(|_| self.file.write_all(packed));
        self.rows += (packed.len() / BYTES) as u64;
        let written = written.and_then(|()| self.write_header());
        written.map_err(Error::io("write", &self.path))
    }

    fn write_header(&mut self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header(self.rows))
    }
}

fn no_records(path: &Path) -> Error {
    let reason = "not a file of matches as roclip-train writes it; move it away";
    Error::Format { path: path.to_owned(), reason: reason.into() }
}

/// Reads the records of an epoch one by one, in constant memory.
#[derive(Debug)]
pub struct RecordReader {
    path: PathBuf,
    file: BufReader<File>,
    left: u64,
}

impl RecordReader {
    /// Opens a file of records.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where it is no file of records.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
        let mut header = [0; HEADER];
        let rows = file.read_exact(&mut header).ok().and_then(|()| rows_of(&header));
        let left = rows.ok_or_else(|| no_records(path))?;
        Ok(Self { path: path.to_owned(), file, left })
    }
}

impl Iterator for RecordReader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut bytes = [0; BYTES];
        let read = self.file.read_exact(&mut bytes).map_err(|e| {
            let missing = std::mem::take(&mut self.left) + 1;
            let reason = format!("{missing} of the records it claims are missing: {e}");
            Error::Format { path: self.path.clone(), reason }
        });
        Some(read.map(|()| Record::from_bytes(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32) -> Record {
        let pair = Place { shard: n / 3, index: n };
        let from = if n == 2 { Place::UNKNOWN } else { Place { shard: 7, index: !n } };
        Record { pair, own: n as f32 / 8.0, best: -0.5, from }
    }

    fn read(path: &Path) -> Vec<Record> {
        RecordReader::open(path).unwrap().map(Result::unwrap).collect()
    }

    /// A file is cut back to where a run resumes, and then gets the bytes it had.
    #[test]
    fn a_resumed_file_ends_in_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let all = || (0..9).map(record);
        let mut writer = RecordWriter::open(dir.path(), 3, 0).unwrap();
        for step in 0..3 {
            writer.append(&pack(all().skip(3 * step).take(3))).unwrap();
            assert_eq!(read(writer.path()).len(), 3 * step + 3, "whole after every step");
        }
        let whole = fs::read(writer.path()).unwrap();
        assert_eq!(read(writer.path()), all().collect::<Vec<_>>());
        fs::write(path_of(dir.path(), 4), "of a later epoch").unwrap();
        fs::write(path_of(dir.path(), 2), "of an earlier epoch").unwrap();
        for (keep, there) in [(0, 9), (3, 9), (6, 9), (9, 9), (6, 5)] {
            let torn = &whole[..HEADER + there * BYTES + if there < 9 { 11 } else { 0 }];
            fs::write(writer.path(), torn).unwrap();
            let mut resumed = RecordWriter::open(dir.path(), 3, keep).unwrap();
            let kept = resumed.rows() as usize;
            assert_eq!(kept, there.min(keep as usize));
            resumed.append(&pack(all().skip(kept))).unwrap();
            assert_eq!(fs::read(writer.path()).unwrap(), whole, "{keep}");
        }
        let left: Vec<u64> = epochs(dir.path()).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(left, [2, 3], "later epochs are gone");
    }

    #[test]
    fn what_is_no_file_of_records_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = RecordWriter::open(dir.path(), 0, 0).unwrap();
        writer.append(&pack((0..3).map(record))).unwrap();
        assert!(writer.append(&[0; 23]).is_err());
        let (path, whole) = (path_of(dir.path(), 0), fs::read(path_of(dir.path(), 0)).unwrap());
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let told: Vec<_> = RecordReader::open(&path).unwrap().collect();
        assert_eq!(told.len(), 3, "the iteration ends");
        assert!(told[2].as_ref().unwrap_err().to_string().contains("1 of the records"));
        for bytes in [&b""[..], b"\x93NUMPY\x01\x00", &[b' '; 400]] {
            fs::write(&path, bytes).unwrap();
            assert!(RecordReader::open(&path).is_err());
        }
        assert!(RecordWriter::open(dir.path(), 0, 2).is_err(), "nothing of someone else's is cut");
        RecordWriter::open(dir.path(), 0, 0).unwrap();
        assert_eq!(read(&path), []);
        let most = header(u64::MAX);
        assert_eq!((rows_of(&most), most[HEADER - 2]), (Some(u64::MAX), b' '));
    }

    #[test]
    fn shards_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a/\"0\".tar", "b.tar"];
        write_shards(dir.path(), names.into_iter()).unwrap();
        assert_eq!(read_shards(dir.path()).unwrap(), names);
        fs::write(dir.path().join(FOLDER).join(SHARDS), "[1]").unwrap();
        assert!(read_shards(dir.path()).unwrap_err().to_string().contains("shards.json"));
        write_shards(dir.path(), names.into_iter()).unwrap();
        assert_eq!(read_shards(dir.path()).unwrap(), names, "a torn file is made good");
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 1);
    }
}
