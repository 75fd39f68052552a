//! Lists of pictures and captions: CSV, Parquet, or a folder.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::super::lines::wrong_line;
use super::pack::PackOptions;
use crate::error::{Error, Result};

/// Most bytes of one record of a CSV: an unclosed quotation mark makes one of all that follows.
const RECORD_BYTES: usize = 1 << 20;
const RECORD_FIELDS: usize = 4096;
/// Folders that end so hold pictures.
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// A picture that is to be packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Position in the list, from 0.
    pub number: u64,
    /// Path as the list has it.
    pub path: PathBuf,
    pub caption: Caption,
    /// How much of [`Rows::total`] is behind this row.
    pub at: u64,
}

/// Where a caption is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caption {
    /// Here, though perhaps not in UTF-8.
    Bytes(Vec<u8>),
    /// In a file of the picture's name.
    Beside,
    /// The row ends before its column.
    Missing,
}

pub(super) struct Rows {
    pub rows: Box<dyn Iterator<Item = Result<Row>>>,
    /// Length of the list, in whatever [`Row::at`] counts.
    pub total: u64,
    /// What paths are relative to.
    pub folder: PathBuf,
}

pub(super) fn open(list: &Path, options: &PackOptions) -> Result<Rows> {
    let root = |folder: &Path| options.root.clone().unwrap_or_else(|| folder.into());
    if list.is_dir() {
        let paths = list_folder(list, options.follow)?;
        let total = paths.len() as u64;
        let row = |(n, path): (usize, PathBuf)| {
            let number = n as u64;
            Ok(Row { number, path, caption: Caption::Beside, at: number + 1 })
        };
        let rows = Box::new(paths.into_iter().enumerate().map(row));
        return Ok(Rows { rows, total, folder: root(list) });
    }
    let folder = list.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (rows, total): (Box<dyn Iterator<Item = _>>, u64) =
        if list.extension().is_some_and(|extension| extension == "parquet") {
            parquet(list, options)?
        } else {
            let total = std::fs::metadata(list).map_err(Error::io("open", list))?.len();
            (Box::new(Csv::open(list, options)?), total)
        };
    Ok(Rows { rows, total, folder: root(folder) })
}

/// The pictures below a folder, sorted, as paths from there.
fn list_folder(root: &Path, follow: bool) -> Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    let mut folders = vec![PathBuf::new()];
    let mut visited = HashSet::new();
    while let Some(folder) = folders.pop() {
        let here = root.join(&folder);
        // A link may lead back up.
        if follow && !visited.insert(here.canonicalize().map_err(Error::io("list", &here))?) {
            continue;
        }
        for entry in std::fs::read_dir(&here).map_err(Error::io("list", &here))? {
            let entry = entry.map_err(Error::io("list", &here))?;
            let kind = entry.file_type().map_err(Error::io("list", &here))?;
            let path = folder.join(entry.file_name());
            if kind.is_dir() || follow && kind.is_symlink() && root.join(&path).is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|e| PICTURES.iter().any(|picture| e.eq_ignore_ascii_case(picture)))
            {
                pictures.push(path);
            }
        }
    }
    pictures.sort();
    Ok(pictures)
}

/// The columns of path and caption among these.
fn columns(list: &Path, names: &[String], options: &PackOptions) -> Result<[usize; 2]> {
    let find = |flag: &str, wanted: &String| {
        names.iter().position(|name| name == wanted).ok_or_else(|| Error::Option {
            flag: flag.into(),
            got: format!("no column {wanted:?} in {}", list.display()),
            expected: format!(
                "one of {names:?}; or another --csv-separator than {:?}",
                char::from(options.csv_separator)
            ),
        })
    };
    let path = find("--csv-img-key", &options.csv_img_key)?;
    Ok([path, find("--csv-caption-key", &options.csv_caption_key)?])
}

struct Csv {
    input: BufReader<File>,
    path: PathBuf,
    parser: csv_core::Reader,
    record: Vec<u8>,
    /// End of each field in `record`.
    ends: Vec<usize>,
    fields: usize,
    columns: [usize; 2],
    number: u64,
    bytes: u64,
}

impl Csv {
    fn open(path: &Path, options: &PackOptions) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let parser = csv_core::ReaderBuilder::new().delimiter(options.csv_separator).build();
        let mut csv = Self {
            input: BufReader::with_capacity(1 << 16, file),
            path: path.into(),
            parser,
            record: vec![0; RECORD_BYTES],
            ends: vec![0; RECORD_FIELDS],
            fields: 0,
            columns: [0; 2],
            number: 0,
            bytes: 0,
        };
        if !csv.read()? {
            return Err(wrong_line(path, 1, "no header with the names of the columns"));
        }
        let name = |n| String::from_utf8_lossy(csv.field(n).unwrap_or_default()).into_owned();
        let mut names: Vec<String> = (0..csv.fields).map(name).collect();
        if let Some(first) = names[0].strip_prefix('\u{feff}') {
            names[0] = first.into();
        }
        csv.columns = columns(path, &names, options)?;
        Ok(csv)
    }

    fn field(&self, n: usize) -> Option<&[u8]> {
        let start = if n == 0 { 0 } else { self.ends[n - 1] };
        (n < self.fields).then(|| &self.record[start..self.ends[n]])
    }

    /// Reads a record; whether there was one.
    fn read(&mut self) -> Result<bool> {
        use csv_core::ReadRecordResult as Outcome;
        let line = self.parser.line();
        let (mut bytes, mut fields) = (0, 0);
        loop {
            let input = self.input.fill_buf().map_err(Error::io("read", &self.path))?;
            let (record, ends) = (&mut self.record[bytes..], &mut self.ends[fields..]);
            let (outcome, read, wrote, ended) = self.parser.read_record(input, record, ends);
            self.input.consume(read);
            self.bytes += read as u64;
            (bytes, fields) = (bytes + wrote, fields + ended);
            match outcome {
                Outcome::InputEmpty => {}
                Outcome::Record => break,
                Outcome::End => return Ok(false),
                Outcome::OutputFull | Outcome::OutputEndsFull => {
                    let what = format!(
                        "a record of more than {RECORD_BYTES} bytes or {RECORD_FIELDS} fields; is \
                         a quotation mark not closed?"
                    );
                    return Err(wrong_line(&self.path, line, what));
                }
            }
        }
        self.fields = fields;
        Ok(true)
    }

    fn row(&mut self) -> Result<Option<Row>> {
        if !self.read()? {
            return Ok(None);
        }
        let [path, caption] = self.columns.map(|n| self.field(n).map(<[u8]>::to_vec));
        let caption = caption.map_or(Caption::Missing, Caption::Bytes);
        let path = path_of(path.unwrap_or_default());
        self.number += 1;
        Ok(Some(Row { number: self.number - 1, path, caption, at: self.bytes }))
    }
}

impl Iterator for Csv {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        self.row().transpose()
    }
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

type Listed = (Box<dyn Iterator<Item = Result<Row>>>, u64);

#[cfg(not(feature = "parquet"))]
fn parquet(list: &Path, _: &PackOptions) -> Result<Listed> {
    Err(Error::Format {
        path: list.into(),
        reason:
            "Parquet is not read by this build; build with `--features parquet`, or export the \
                 two columns as CSV"
                .into(),
    })
}

/// The rows of a Parquet file, one row group after the other. What its decoder makes of a damaged
/// file may be a panic; here that is an error.
#[cfg(feature = "parquet")]
fn parquet(list: &Path, options: &PackOptions) -> Result<Listed> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn sound<T>(list: &Path, work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
        let wrong = |reason: String| Error::Format { path: list.into(), reason };
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(outcome) => outcome.map_err(|e| wrong(e.to_string())),
            Err(_) => Err(wrong("damaged: its decoder panicked".into())),
        }
    }
    let bytes = |field: &Field| match field {
        Field::Str(text) => Some(text.clone().into_bytes()),
        Field::Bytes(bytes) => Some(bytes.data().to_vec()),
        _ => None,
    };
    let file = File::open(list).map_err(Error::io("open", list))?;
    let reader = sound(list, || SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema().clone();
    let names: Vec<String> = schema.get_fields().iter().map(|f| f.name().to_owned()).collect();
    let wanted = columns(list, &names, options)?;
    let fields = schema.get_fields().iter().enumerate();
    let fields = fields.filter(|(n, _)| wanted.contains(n)).map(|(_, field)| field.clone());
    let projection = parquet::schema::types::Type::group_type_builder(schema.name())
        .with_fields(fields.collect())
        .build();
    let projection = sound(list, || projection)?;
    let total = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
    let mut rows = sound(list, || {
        parquet::record::reader::RowIter::from_file_into(Box::new(reader)).project(Some(projection))
    })?;
    let (list, options) = (list.to_owned(), options.clone());
    let mut number = 0;
    Ok((
        Box::new(std::iter::from_fn(move || {
            let row = match sound(&list, || rows.next().transpose()) {
                Ok(row) => row?,
                Err(error) => return Some(Err(error)),
            };
            let column = |name: &String| {
                let mut columns = row.get_column_iter();
                columns.find(|(column, _)| *column == name).and_then(|(_, field)| bytes(field))
            };
            let path = path_of(column(&options.csv_img_key).unwrap_or_default());
            let caption = column(&options.csv_caption_key);
            let caption = caption.map_or(Caption::Missing, Caption::Bytes);
            number += 1;
            Some(Ok(Row { number: number - 1, path, caption, at: number }))
        })),
        total,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: impl AsRef<[u8]>, separator: u8) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        std::fs::write(&path, text).unwrap();
        let options = PackOptions { csv_separator: separator, ..PackOptions::default() };
        open(&path, &options)?.rows.collect()
    }

    fn pairs(text: impl AsRef<[u8]>, separator: u8) -> Vec<(String, Caption)> {
        let rows = rows(text, separator).unwrap();
        rows.into_iter().map(|row| (row.path.display().to_string(), row.caption)).collect()
    }

    fn text(caption: &str) -> Caption {
        Caption::Bytes(caption.into())
    }

    /// The expected fields are what Python's `csv.reader` gives.
    #[test]
    fn csv_is_read_as_python_reads_it() {
        let csv = "\u{feff}id,title,filepath\r\n1,\"a \"\"dog\"\", brown\",a.jpg\r\n\r\n\
                   2,\"two\nlines\",\"b,c.jpg\"\n3,sp ace ,d.jpg\n4,in\"side,e.jpg";
        assert_eq!(
            pairs(csv, b','),
            [
                ("a.jpg".into(), text("a \"dog\", brown")),
                ("b,c.jpg".into(), text("two\nlines")),
                ("d.jpg".into(), text("sp ace ")),
                ("e.jpg".into(), text("in\"side")),
            ]
        );
        let tsv = b"filepath\ttitle\nx\0y.jpg\tc\xff\nshort.jpg\n";
        let expected = [
            ("x\0y.jpg".to_owned(), Caption::Bytes(b"c\xff".to_vec())),
            ("short.jpg".into(), Caption::Missing),
        ];
        assert_eq!(pairs(tsv, b'\t'), expected);
    }

    #[test]
    fn a_hostile_csv_is_an_error() {
        let refused = |text: &[u8], part: &str| {
            let message = rows(text, b'\t').unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        };
        refused(b"", "no header");
        refused(b"filepath,title\n", "--csv-separator");
        refused(b"filepath\tcaption\n", "--csv-caption-key");
        let open = [&b"filepath\ttitle\na\tb\n\"c\td\n"[..], &b"e\tf\n".repeat(1 << 19)].concat();
        refused(&open, "line 3: a record of more than");
        let wide = [&b"filepath\ttitle\n"[..], &b"\t".repeat(5000)].concat();
        refused(&wide, "4096 fields");
    }
}
