//! Members → bytes: ustar, with a PAX header where a name does not fit. The same members give the
//! same bytes, always: owner, mode and time are fixed.

use std::io::{self, Write};

use super::super::ledger::cut;
use super::BLOCK;
use super::header::padded;

/// 1 January 2000: tar programs call the year 1970 implausible.
const MTIME: u64 = 946_684_800;
/// What eleven octal digits can say.
const MAX_SIZE: u64 = (1 << 33) - 1;
/// What a PAX header calls itself, as in `tarfile`.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// Bytes that a member of `size` bytes takes in an archive.
pub fn member_bytes(name: &str, size: u64) -> u64 {
    let extension = match split(name) {
        Some(_) => 0,
        None => BLOCK as u64 + padded(pax_record(name).len() as u64),
    };
    extension + BLOCK as u64 + padded(size)
}

/// Appends a regular file.
///
/// # Errors
/// The archive cannot be written, or the member is larger than 8 GiB.
pub fn append(archive: &mut impl Write, name: &str, data: &[u8]) -> io::Result<()> {
    if data.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("{name}: {} bytes in one member", data.len())));
    }
    let mut short;
    let (prefix, last) = match split(name) {
        Some(parts) => parts,
        None => {
            let record = pax_record(name);
            archive.write_all(&header("", PAX_NAME, record.len() as u64, b'x'))?;
            append_data(archive, record.as_bytes())?;
            // For whom PAX is nothing: the beginning of the name.
            short = name.to_owned();
            cut(&mut short, 100);
            ("", short.as_str())
        }
    };
    archive.write_all(&header(prefix, last.as_bytes(), data.len() as u64, b'0'))?;
    append_data(archive, data)
}

/// Appends the end-of-archive marker.
///
/// # Errors
/// The archive cannot be written.
pub fn finish(archive: &mut impl Write) -> io::Result<()> {
    archive.write_all(&[0; 2 * BLOCK])
}

fn append_data(archive: &mut impl Write, data: &[u8]) -> io::Result<()> {
    archive.write_all(data)?;
    archive.write_all(&[0; BLOCK][..(padded(data.len() as u64) - data.len() as u64) as usize])
}

/// Folder and name as ustar holds them: 155 and 100 bytes of ASCII, a slash in between.
fn split(name: &str) -> Option<(&str, &str)> {
    if !name.is_ascii() || name.contains('\0') {
        return None;
    }
    if name.len() <= 100 {
        return Some(("", name));
    }
    let slash = name.bytes().take(156).rposition(|b| b == b'/')?;
    let (prefix, last) = (&name[..slash], &name[slash + 1..]);
    (!prefix.is_empty() && (1..=100).contains(&last.len())).then_some((prefix, last))
}

/// `"<length> path=<name>\n"`, where length counts the whole record, its own digits included.
fn pax_record(name: &str) -> String {
    let rest = format!(" path={name}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

fn header(prefix: &str, name: &[u8], size: u64, typeflag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, field: &[u8]| block[at..at + field.len()].copy_from_slice(field);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{MTIME:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[typeflag]);
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// The oracle is the `tar` crate.
    #[test]
    fn every_name_comes_back() {
        let long = |n: usize| "n".repeat(n);
        let mut names: Vec<String> = (95..105).map(long).collect();
        names.extend((50..260).map(|n| format!("{}/{}", long(n), long(90))));
        names.extend((95..105).map(|n| format!("{}/{}", long(155), long(n))));
        names.extend((480..530).map(|n| format!("é{}", long(n))));
        names.extend(["/".repeat(120), format!("/{}", long(120)), "ключ.jpg".into()]);
        let mut archive = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let before = archive.len() as u64;
            append(&mut archive, name, &vec![7; n * 5]).unwrap();
            assert_eq!(archive.len() as u64 - before, member_bytes(name, n as u64 * 5));
        }
        finish(&mut archive).unwrap();
        let mut reader = tar::Archive::new(&archive[..]);
        let mut found = 0;
        for (n, entry) in reader.entries().unwrap().enumerate() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.path_bytes(), names[n].as_bytes());
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            assert_eq!(data, vec![7; n * 5]);
            let header = entry.header();
            assert_eq!((header.mode().unwrap(), header.uid().unwrap()), (0o644, 0));
            assert_eq!((header.gid().unwrap(), header.mtime().unwrap()), (0, MTIME));
            found += 1;
        }
        assert_eq!(found, names.len());
    }
}
