//! The part of the zip format that `torch.save` uses: members stored as they are, found by the
//! directory at the end of the file.
//!
//! Source: PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5 (Zip64 included).

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Fixed part of the record that ends an archive; a comment of up to 65,535 bytes may follow.
const END: usize = 22;
const END64: usize = 56;
const LOCATOR64: usize = 20;
const LOCAL: usize = 30;
const CENTRAL: usize = 46;
/// Most bytes of the directory: a hundred times that of the largest CLIP with its optimiser.
const MAX_DIRECTORY: u64 = 64 << 20;

/// Where one member lies.
#[derive(Clone, Copy, Debug)]
struct Member {
    header: u64,
    size: u64,
    crc: u32,
    /// Neither compressed nor encrypted.
    is_plain: bool,
}

/// An archive whose directory was read.
pub(super) struct Archive {
    file: File,
    path: PathBuf,
    members: BTreeMap<String, Member>,
    /// Where the directory begins: no member reaches beyond.
    directory: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | (u16_at(bytes, at + 2) << 16)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | (u32_at(bytes, at + 4) << 32)
}

/// The bytes of `file` from `at` on.
fn read_at(file: &mut File, at: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes).map(|()| bytes)
}

/// First byte, length and number of entries of the directory, from the last bytes of the file,
/// which begin at `from`.
fn find_directory(tail: &[u8], from: u64) -> Result<[u64; 3], String> {
    let last = tail.len().checked_sub(END);
    let ends = |&at: &usize| {
        tail[at..].starts_with(b"PK\x05\x06")
            && u16_at(tail, at + 20) == (tail.len() - at - END) as u64
    };
    let end = last.and_then(|last| (0..=last).rev().find(ends)).ok_or(
        "a .pt archive without the directory at its end: it is cut short; fetch or save it again",
    )?;
    let directory = [u32_at(tail, end + 16), u32_at(tail, end + 12), u16_at(tail, end + 10)];
    let is_zip64 = end >= LOCATOR64 && tail[end - LOCATOR64..].starts_with(b"PK\x06\x07");
    let (directory, behind) = if is_zip64 {
        let at = u64_at(tail, end - LOCATOR64 + 8).checked_sub(from).map(|at| at as usize);
        let record = at.and_then(|at| tail.get(at..end - LOCATOR64)).unwrap_or_default();
        if record.len() < END64 || !record.starts_with(b"PK\x06\x06") {
            return Err("a damaged .pt archive: its Zip64 directory is not where it says".into());
        }
        let directory = [u64_at(record, 48), u64_at(record, 40), u64_at(record, 32)];
        (directory, from + at.unwrap_or_default() as u64)
    } else {
        (directory, from + end as u64)
    };
    let [first, len, entries] = directory;
    let fits = first.checked_add(len).is_some_and(|end| end <= behind) && len <= MAX_DIRECTORY;
    if !fits || entries > len / CENTRAL as u64 {
        return Err(format!(
            "a damaged .pt archive: its directory says {entries} members in {len} bytes at {first}"
        ));
    }
    Ok(directory)
}

/// Size, compressed size and place, which a Zip64 field holds where 32 bits do not suffice.
fn wide(fixed: [u64; 3], mut extra: &[u8]) -> Option<[u64; 3]> {
    const FULL: u64 = 0xFFFF_FFFF;
    if !fixed.contains(&FULL) {
        return Some(fixed);
    }
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let mut field = extra.get(4..4 + len)?;
        extra = &extra[4 + len..];
        if id != 1 {
            continue;
        }
        let mut wide = fixed;
        for value in wide.iter_mut().filter(|value| **value == FULL) {
            *value = u64_at(field.get(..8)?, 0);
            field = &field[8..];
        }
        return Some(wide);
    }
    None
}

/// The members that a directory of so many entries lists.
fn members(mut bytes: &[u8], entries: u64) -> Result<BTreeMap<String, Member>, String> {
    let mut members = BTreeMap::new();
    let damaged = |n: u64| format!("a damaged .pt archive: entry {n} of its directory is wrong");
    for n in 0..entries {
        if bytes.len() < CENTRAL || !bytes.starts_with(b"PK\x01\x02") {
            return Err(damaged(n));
        }
        let lens = [28, 30, 32].map(|at| u16_at(bytes, at) as usize);
        let rest = &bytes[CENTRAL..];
        let name = rest.get(..lens[0]).and_then(|name| std::str::from_utf8(name).ok());
        let extra = rest.get(lens[0]..lens[0] + lens[1]);
        let (Some(name), Some(extra)) = (name, extra) else { return Err(damaged(n)) };
        let fixed = [24, 20, 42].map(|at| u32_at(bytes, at));
        let [size, stored, header] = wide(fixed, extra).ok_or_else(|| damaged(n))?;
        let is_plain = u16_at(bytes, 10) == 0 && u16_at(bytes, 8) & 1 == 0 && size == stored;
        let crc = u32_at(bytes, 16) as u32;
        let member = Member { header, size, crc, is_plain };
        if members.insert(name.to_owned(), member).is_some() {
            return Err(format!("a damaged .pt archive: member {name:?} stands there twice"));
        }
        bytes = rest.get(lens.iter().sum()..).ok_or_else(|| damaged(n))?;
    }
    Ok(members)
}

impl Archive {
    /// Reads the directory of an archive of `length` bytes.
    pub fn open(mut file: File, length: u64, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
        let reach = length.min((END + 0xFFFF + LOCATOR64 + END64) as u64);
        let tail = read_at(&mut file, length - reach, reach).map_err(Error::io("read", path))?;
        let [directory, len, entries] = find_directory(&tail, length - reach).map_err(wrong)?;
        let bytes = read_at(&mut file, directory, len).map_err(Error::io("read", path))?;
        let members = members(&bytes, entries).map_err(wrong)?;
        Ok(Self { file, path: path.to_owned(), members, directory })
    }

    /// Names of all members, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Bytes of a member, as the directory has them.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.members.get(name).map(|member| member.size)
    }

    /// The content of a member.
    pub fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.clone();
        let wrong = |what: &str| Error::Format {
            path: path.clone(),
            reason: format!("member {name:?} of the archive {what}"),
        };
        let member = self.members.get(name).copied().ok_or_else(|| wrong("is missing"))?;
        if !member.is_plain {
            return Err(wrong("is compressed or encrypted; torch stores tensors as they are"));
        }
        let beyond = || wrong("reaches beyond its place: the archive is damaged");
        let room = self.directory.checked_sub(member.header).ok_or_else(beyond)?;
        if room < LOCAL as u64 {
            return Err(beyond());
        }
        let header = read_at(&mut self.file, member.header, LOCAL as u64);
        let header = header.map_err(Error::io("read", &path))?;
        let lens = [26, 28].map(|at| u16_at(&header, at));
        let before = LOCAL as u64 + lens[0] + lens[1];
        if room.checked_sub(before).is_none_or(|room| room < member.size) {
            return Err(beyond());
        }
        let own = read_at(&mut self.file, member.header + LOCAL as u64, lens[0]);
        if !header.starts_with(b"PK\x03\x04")
            || own.map_err(Error::io("read", &path))? != name.as_bytes()
        {
            return Err(wrong("does not lie where the directory says: the archive is damaged"));
        }
        let bytes = read_at(&mut self.file, member.header + before, member.size);
        let bytes = bytes.map_err(Error::io("read", &path))?;
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if crc.sum() != member.crc {
            return Err(wrong("is not what was written: its CRC-32 differs"));
        }
        Ok(bytes)
    }
}
