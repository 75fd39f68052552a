//! The 512 bytes in front of a member, and the extensions in front of those.

use super::super::ledger::Fault;
use super::BLOCK;

pub(super) fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}

/// One header block.
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) typeflag: u8,
    has_magic: bool,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, String> {
        let stored = number(&block[148..156]).ok_or("the checksum is no number")?;
        let as_spaces = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
        let unsigned: u64 = (0..BLOCK).map(|at| u64::from(as_spaces(at))).sum();
        // Some old writers summed signed bytes.
        let signed: i64 = (0..BLOCK).map(|at| i64::from(as_spaces(at) as i8)).sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err(format!("checksum {stored}, computed {unsigned}"));
        }
        let size = number(&block[124..136]).ok_or("the size is no number")?;
        if size > i64::MAX as u64 {
            return Err(format!("a size of {size} bytes"));
        }
        let mut name = text_field(&block[..100]);
        let typeflag = block[156];
        let prefix = text_field(&block[345..500]);
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        Ok(Self { name, size, typeflag, has_magic: &block[257..262] == b"ustar" })
    }

    pub(super) fn require_magic(self, strict: bool) -> Result<Self, String> {
        if strict && !self.has_magic { Err("no magic".into()) } else { Ok(self) }
    }

    /// Regular files; a name that ends in `/` was a directory before there was a type for it.
    pub(super) fn is_file(&self) -> bool {
        match self.typeflag {
            b'\0' => !self.name.ends_with('/'),
            b'0' | b'7' => true,
            _ => false,
        }
    }

    /// Links, devices and directories have no data, whatever size they claim (as in `tarfile`).
    pub(super) fn has_data(&self) -> bool {
        !matches!(self.typeflag, b'1'..=b'6') && (self.typeflag != b'\0' || self.is_file())
    }
}

/// Octal digits between spaces, up to a NUL; or base 256 if the first bit is set (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at(field.len().saturating_sub(9));
        let value = low.iter().fold(0u64, |n, &b| (n << 8) | u64::from(b));
        return high.iter().all(|&b| b == 0).then_some(value);
    }
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let digits = std::str::from_utf8(&field[..end]).ok()?.trim();
    match digits {
        "" => Some(0),
        _ if digits.starts_with('+') => None,
        _ => u64::from_str_radix(digits, 8).ok(),
    }
}

pub(super) fn text_field(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// What extension headers say of the member that follows.
#[derive(Default)]
pub(super) struct Extension {
    pub(super) name: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) fault: Option<Fault>,
}

impl Extension {
    /// Records of the form `"<length> <key>=<value>\n"`, where length counts the whole record.
    pub(super) fn parse_pax(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() && data[0] != 0 {
            let space = data.iter().take(20).position(|&b| b == b' ');
            let length = space.and_then(|at| std::str::from_utf8(&data[..at]).ok()?.parse().ok());
            let (Some(space), Some(length)) = (space, length) else {
                return Err("a PAX record without a length".into());
            };
            let record = data.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n"));
            let record = record.ok_or("a PAX record of the wrong length")?;
            let equals = record.iter().position(|&b| b == b'=').ok_or("a PAX record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => {
                    let path = String::from_utf8_lossy(value);
                    self.name = Some(path.trim_end_matches('/').into());
                }
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    let size = size.filter(|&size| size <= i64::MAX as u64);
                    self.size = Some(size.ok_or("a PAX size that is no number")?);
                }
                _ => {}
            }
            data = &data[length..];
        }
        Ok(())
    }
}
