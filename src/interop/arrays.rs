//! Arrays of rows on disk, written as they come: `.npy` files, or, of f32, one safetensors file.

use crate::checkpoint::file::publish;
use crate::error::{Error, Result};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Bytes of the header: the number of rows, known at the end, has room in it.
const HEADER: usize = 128;

/// The header of an array of `shape` `[rows, width]` of numbers that NumPy calls `descr`. Source:
/// NumPy's NEP 1, version 1.0.
fn header(descr: &str, [rows, width]: [u64; 2]) -> [u8; HEADER] {
    let shape = format!("({rows}, {width})");
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = [b' '; HEADER];
    header[..10].copy_from_slice(b"\x93NUMPY\x01\x00\x76\x00");
    header[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER - 1] = b'\n';
    header
}

/// A number of an array.
pub(super) trait Number: bytemuck::NoUninit {
    /// What NumPy calls it.
    const DESCR: &str;
}

impl Number for f32 {
    const DESCR: &str = "<f4";
}

impl Number for u8 {
    const DESCR: &str = "|u1";
}

/// An array that grows by rows.
pub(super) struct Rows<T> {
    path: PathBuf,
    file: BufWriter<File>,
    rows: u64,
    width: u64,
    number: PhantomData<T>,
}

impl<T: Number> Rows<T> {
    /// An array without rows, in a file of its own.
    pub fn create(path: PathBuf, width: usize) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let (file, width) = (BufWriter::new(file), width as u64);
        let mut rows = Self { path, file, rows: 0, width, number: PhantomData };
        let none = header(T::DESCR, [0, 0]);
        rows.file.write_all(&none).map_err(Error::io("write", &rows.path))?;
        Ok(rows)
    }

    /// Appends whole rows.
    pub fn push(&mut self, values: &[T]) -> Result<()> {
        self.rows += values.len() as u64 / self.width;
        let bytes = bytemuck::cast_slice(values);
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// The file, a whole `.npy`, with its rows and width.
    pub fn finish(mut self) -> Result<(PathBuf, [u64; 2])> {
        let shape = [self.rows, self.width];
        let patched = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header(T::DESCR, shape)))
            .and_then(|()| self.file.flush());
        patched.map_err(Error::io("write", &self.path))?;
        Ok((self.path, shape))
    }
}

/// Copies finished arrays of f32 by name into one safetensors file.
pub(super) fn join(path: &Path, arrays: &[(&str, (PathBuf, [u64; 2]))]) -> Result<()> {
    let mut entries = serde_json::Map::new();
    let mut end = 0;
    for (name, (_, shape)) in arrays {
        let first = end;
        end += 4 * shape[0] * shape[1];
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [first, end] });
        entries.insert((*name).into(), entry);
    }
    let mut header = serde_json::Value::Object(entries).to_string();
    // The arrays begin at a multiple of eight bytes.
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    publish(path, |scratch| {
        let write = || {
            let mut out = File::create(scratch)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            for (_, (array, _)) in arrays {
                let mut array = File::open(array)?;
                array.seek(SeekFrom::Start(HEADER as u64))?;
                std::io::copy(&mut array, &mut out)?;
            }
            Ok(())
        };
        write().map_err(Error::io("write", path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `numpy.save` (NumPy 2) writes before ten rows of twelve.
    #[test]
    fn the_header_is_the_one_numpy_writes() {
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (10, 12), }";
        let expected = format!("{dict:117}\n");
        let header = |shape| header(f32::DESCR, shape);
        assert_eq!(header([10, 12])[..10], *b"\x93NUMPY\x01\x00v\x00");
        assert_eq!(header([10, 12])[10..], *expected.as_bytes());
        assert_eq!(header([u64::MAX, u64::MAX])[HEADER - 2..], *b" \n", "every size has room");
    }
}
