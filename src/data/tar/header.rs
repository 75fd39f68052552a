//! The 512 bytes in front of a member, and the extensions in front of those.

use super::super::ledger::Fault;
use super::BLOCK;

pub(super) fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}

/// One header block.
pub(super) struct Header<'a> {
    /// Folder, where the format has a field for it.
    prefix: &'a [u8],
    name: &'a [u8],
    pub(super) size: u64,
    pub(super) typeflag: u8,
    has_magic: bool,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let stored = number(&block[148..156]).ok_or("the checksum is no number")?;
        let (unsigned, signed) = checksums(block);
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err(format!("checksum {stored}, computed {unsigned}"));
        }
        let size = number(&block[124..136]).ok_or("the size is no number")?;
        if size > i64::MAX as u64 {
            return Err(format!("a size of {size} bytes"));
        }
        let has_prefix = &block[257..263] == b"ustar\0";
        Ok(Self {
            prefix: if has_prefix { until_nul(&block[345..500]) } else { &[] },
            name: until_nul(&block[..100]),
            size,
            typeflag: block[156],
            has_magic: &block[257..262] == b"ustar",
        })
    }

    /// The path, in the memory of `name`.
    pub(super) fn write_name(&self, name: &mut String) {
        name.clear();
        for part in [self.prefix, self.name] {
            if !name.is_empty() {
                name.push('/');
            }
            match std::str::from_utf8(part) {
                Ok(part) => name.push_str(part),
                Err(_) => name.push_str(&String::from_utf8_lossy(part)),
            }
        }
    }

    pub(super) fn require_magic(self, strict: bool) -> Result<Self, String> {
        if strict && !self.has_magic { Err("no magic".into()) } else { Ok(self) }
    }

    /// Regular files; a name that ends in `/` was a directory before there was a type for it.
    pub(super) fn is_file(&self) -> bool {
        match self.typeflag {
            b'\0' => !self.name.ends_with(b"/"),
            b'0' | b'7' => true,
            _ => false,
        }
    }

    /// Links, devices and directories have no data, whatever size they claim (as in `tarfile`).
    pub(super) fn has_data(&self) -> bool {
        !matches!(self.typeflag, b'1'..=b'6') && (self.typeflag != b'\0' || self.is_file())
    }
}

/// Sum of the block's bytes with the checksum's own as spaces; and as some old writers summed,
/// who took bytes for signed.
fn checksums(block: &[u8; BLOCK]) -> (u64, i64) {
    let own = &block[148..156];
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    let high = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b >> 7)).sum::<u32>();
    let unsigned = u64::from(sum(block) - sum(own) + 8 * u32::from(b' '));
    (unsigned, unsigned as i64 - 256 * i64::from(high(block) - high(own)))
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

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

pub(super) fn text_field(field: &[u8]) -> String {
    String::from_utf8_lossy(until_nul(field)).into_owned()
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
