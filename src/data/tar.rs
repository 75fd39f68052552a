//! Bytes → members of a tar archive, going on after damage.
//!
//! Written by hand, because the `tar` crate ends an archive at its first bad header and cannot be
//! told to look for the next: 512 bytes of damage would cost the rest of the shard. This reader
//! scans on, block by block, for a header with magic and checksum. The crate serves as the
//! writer, and CPython's `tarfile` as the oracle, of the tests.
//!
//! Understood: ustar, GNU long names, PAX `path` and `size` (where they disagree with the ustar
//! header PAX wins, as in `tarfile`: both see the same members, so nothing can be smuggled past
//! one of them). A global PAX header is passed over: a name or size for all members is nonsense.

mod header;
pub mod write;

use std::io::{self, Read};

use super::ledger::{Fault, Reason, cut};
use header::{Extension, Header, padded, text_field};

/// Bytes of a header, and the multiple to which member data are padded.
pub const BLOCK: usize = 512;
/// Longest name of a member, in bytes (Linux `PATH_MAX`).
pub(super) const NAME_BYTES: usize = 4096;
/// Bytes read at a time.
const WINDOW: usize = 1 << 18;
/// Longest GNU or PAX extension read.
const EXTENSION_BYTES: u64 = 1 << 20;

/// A source of archive bytes.
pub trait Input: Read {
    /// Moves on by up to `bytes`; returns by how many (fewer only at the end).
    ///
    /// # Errors
    /// The source cannot be read on.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;

    /// Bytes left, where that is known.
    fn remaining(&self) -> Option<u64>;
}

impl Input for &[u8] {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = self.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        *self = &self[skipped..];
        Ok(skipped as u64)
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}

/// A member as its header describes it; its name is [`TarReader::name`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where its first header lies, in bytes from the start of the archive: reading can begin
    /// there. With a long name that is the header of the extension.
    pub offset: u64,
    /// Bytes of data; 0 for what has none.
    pub size: u64,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// What is wrong with it; then it has no data to read.
    pub fault: Option<Fault>,
}

/// What stands next in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A member; its data may be read before the next event is asked for.
    Member(Member),
    /// Damage at a byte; reading goes on behind it.
    Damage {
        /// Where, in bytes from the start of the archive.
        offset: u64,
        /// What.
        fault: Fault,
    },
}

/// What a header is expected to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The data of the last member: the next block is a header or the end.
    Header,
    /// Damage: anything may come; only a block with magic and checksum is a header.
    Anything,
    /// The end-of-archive marker: nothing should come.
    Nothing,
}

/// Reads the members of an archive one after another.
pub struct TarReader<R> {
    input: R,
    /// Bytes read from `input` and not used yet: `window[used..filled]`.
    window: Vec<u8>,
    used: usize,
    filled: usize,
    /// Most bytes of one member that are skipped on the word of its header.
    skip_limit: u64,
    /// Position in the archive.
    at: u64,
    /// The end of the archive, once met.
    end: Option<u64>,
    /// Bytes of data and padding until the next header.
    pending: u64,
    expect: Expect,
    zero_blocks: u32,
    /// Whether the end-of-archive marker was met.
    has_marker: bool,
    /// Name of the last member.
    name: String,
    extension: Extension,
    /// Where the extensions of the next member begin, if it has any.
    extended_from: Option<u64>,
    headers: u64,
    failure: Option<io::Error>,
}

impl<R: Input> TarReader<R> {
    /// Reads from the start of an archive. A member that claims more than `skip_limit` bytes is
    /// not believed: headers are looked for inside it.
    pub fn new(input: R, skip_limit: u64) -> Self {
        Self {
            input,
            window: vec![0; WINDOW],
            used: 0,
            filled: 0,
            skip_limit,
            at: 0,
            end: None,
            pending: 0,
            expect: Expect::Header,
            zero_blocks: 0,
            has_marker: false,
            name: String::new(),
            extension: Extension::default(),
            extended_from: None,
            headers: 0,
            failure: None,
        }
    }

    /// Goes on to a header further on, where a member is known to begin.
    ///
    /// # Errors
    /// The source cannot be read on; it ends before, or the place lies behind.
    pub fn jump(&mut self, offset: u64) -> io::Result<()> {
        let ahead = offset.checked_sub(self.at).ok_or_else(|| io::Error::other("passed by"))?;
        self.pending = 0;
        (self.expect, self.zero_blocks, self.failure) = (Expect::Header, 0, None);
        (self.extension, self.extended_from) = (Extension::default(), None);
        if self.pass(ahead)? < ahead {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // That there is a header is known, so this is an archive; of the start nothing is known.
        if offset > 0 {
            self.headers = self.headers.max(1);
        }
        Ok(())
    }

    /// Path of the last member; bytes that are not UTF-8 are replaced.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Byte of the archive that is read next.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Good headers met so far. None, at the end, says that this is no tar archive, unless it
    /// [`is_empty_archive`](Self::is_empty_archive).
    pub fn headers(&self) -> u64 {
        self.headers
    }

    /// Whether nothing but the end-of-archive marker was met.
    pub fn is_empty_archive(&self) -> bool {
        self.headers == 0 && self.has_marker
    }

    /// The next member or damage; `None` at the end.
    ///
    /// # Errors
    /// The source cannot be read on; what was returned before stands.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        if let Some(failure) = self.failure.take() {
            self.expect = Expect::Nothing;
            return Err(failure);
        }
        if let Some(cut) = self.pass_data()? {
            return Ok(Some(cut));
        }
        loop {
            let offset = self.at;
            let mut block = [0; BLOCK];
            let got = self.fill(&mut block)?;
            if got < BLOCK {
                return Ok(self.at_end(offset, got));
            }
            if block == [0; BLOCK] {
                self.on_zero_block();
                continue;
            }
            let header = Header::parse(&block);
            let strict = self.expect != Expect::Header;
            let header = header.and_then(|h| h.require_magic(strict));
            if let Some(damage) = self.judge(offset, &block, header.as_ref().err()) {
                return Ok(Some(damage));
            }
            if let Ok(header) = &header
                && let Some(event) = self.accept(header, offset)?
            {
                return Ok(Some(event));
            }
        }
    }

    /// What the block at `offset` means for where we believe to be; afterwards a good header is
    /// either taken, or looked at once more after the damage before it was told.
    fn judge(&mut self, offset: u64, block: &[u8], wrong: Option<&String>) -> Option<Event> {
        let lone_zero = self.expect == Expect::Header && self.zero_blocks > 0;
        self.zero_blocks = 0;
        let fault = match (self.expect, wrong) {
            (Expect::Header, Some(wrong)) => {
                self.expect = Expect::Anything;
                (self.extension, self.extended_from) = (Extension::default(), None);
                return Some(damage(offset, Reason::DamagedHeader, wrong.clone()));
            }
            (_, Some(_)) => return None,
            (Expect::Header, None) if lone_zero => {
                Fault::new(Reason::DamagedHeader, "a header of zeros between members")
            }
            (Expect::Nothing, None) => {
                Fault::new(Reason::DataAfterEnd, "members after the end-of-archive marker")
            }
            (Expect::Header | Expect::Anything, None) => {
                self.expect = Expect::Header;
                return None;
            }
        };
        self.expect = Expect::Header;
        self.rewind(block);
        Some(Event::Damage { offset, fault })
    }

    /// Appends the data of the member that the last event announced, at most `limit` bytes.
    /// Memory grows with the bytes that come, not with those that are promised.
    ///
    /// # Errors
    /// The member is larger than `limit`, or its data end early. Reading can go on.
    pub fn read_data(
        &mut self,
        member: &Member,
        limit: u64,
        data: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        if let Some(fault) = &member.fault {
            return Err(fault.clone());
        }
        if member.size > limit {
            let detail = format!("{} bytes; at most {limit}", member.size);
            return Err(Fault::new(Reason::MemberTooLarge, detail));
        }
        let start = data.len();
        if let Err(failure) = self.take_bytes(member.size, data) {
            let fault = io_fault(&failure);
            self.failure = Some(failure);
            return Err(fault);
        }
        let got = (data.len() - start) as u64;
        if got < member.size {
            let detail = format!("{got} of {} bytes", member.size);
            self.end = Some(self.at);
            self.rewind(&data[start..]);
            data.truncate(start);
            self.pending = 0;
            self.expect = Expect::Anything;
            return Err(Fault::new(Reason::Truncated, detail));
        }
        self.pending -= member.size;
        Ok(())
    }

    /// Appends up to `bytes` bytes; fewer only at the end.
    fn take_bytes(&mut self, bytes: u64, data: &mut Vec<u8>) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let ready = &self.window[self.used..self.filled];
            if ready.is_empty() {
                if !self.refill()? {
                    break;
                }
                continue;
            }
            let ready = &ready[..ready.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            data.extend_from_slice(ready);
            (self.used, self.at) = (self.used + ready.len(), self.at + ready.len() as u64);
            left -= ready.len() as u64;
        }
        Ok(())
    }

    /// Reads into the empty window; whether anything came.
    fn refill(&mut self) -> io::Result<bool> {
        (self.used, self.filled) = (0, 0);
        if self.window.len() > WINDOW {
            self.window = vec![0; WINDOW];
        }
        self.filled = loop {
            match self.input.read(&mut self.window) {
                Err(failure) if failure.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        Ok(self.filled > 0)
    }

    fn fill(&mut self, block: &mut [u8; BLOCK]) -> io::Result<usize> {
        if let Some(ready) = self.window[self.used..self.filled].first_chunk() {
            *block = *ready;
            (self.used, self.at) = (self.used + BLOCK, self.at + BLOCK as u64);
            return Ok(BLOCK);
        }
        let mut data = Vec::with_capacity(BLOCK);
        match self.take_bytes(BLOCK as u64, &mut data) {
            // What follows the marker is nobody's: that it cannot be read is no loss.
            Err(_) if self.expect == Expect::Nothing => return Ok(0),
            outcome => outcome?,
        }
        block[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// Puts bytes just read back in front.
    fn rewind(&mut self, data: &[u8]) {
        self.at -= data.len() as u64;
        if data.len() > self.used {
            let ready = self.window[self.used..self.filled].to_vec();
            self.used = data.len();
            self.filled = data.len() + ready.len();
            self.window.resize(self.filled.max(WINDOW), 0);
            self.window[self.used..self.filled].copy_from_slice(&ready);
        }
        let start = self.used - data.len();
        self.window[start..self.used].copy_from_slice(data);
        self.used = start;
    }

    fn left(&self) -> Option<u64> {
        let ready = (self.filled - self.used) as u64;
        match self.end {
            Some(end) => Some(end - self.at),
            None => self.input.remaining().map(|left| left.saturating_add(ready)),
        }
    }

    /// Moves on by up to `bytes`; returns by how many (fewer only at the end).
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        let ready = bytes.min((self.filled - self.used) as u64);
        self.used += ready as usize;
        self.at += ready;
        let fresh = if ready < bytes { self.input.skip(bytes - ready)? } else { 0 };
        self.at += fresh;
        Ok(ready + fresh)
    }

    /// Skips what is left of the last member; an event if the archive ends inside it.
    fn pass_data(&mut self) -> io::Result<Option<Event>> {
        let offset = self.at;
        let wanted = std::mem::take(&mut self.pending);
        if self.pass(wanted)? == wanted {
            return Ok(None);
        }
        self.expect = Expect::Nothing;
        Ok(Some(damage(offset, Reason::Truncated, "ends inside the data of a member")))
    }

    fn at_end(&mut self, offset: u64, got: usize) -> Option<Event> {
        let ended = self.expect == Expect::Nothing || self.zero_blocks > 0;
        let damaged = self.expect == Expect::Anything;
        self.expect = Expect::Nothing;
        if ended || damaged {
            return None;
        }
        let detail = match got {
            0 => "no end-of-archive marker".into(),
            got => format!("ends {got} bytes into a header"),
        };
        let reason = if self.headers == 0 { Reason::NotATar } else { Reason::Truncated };
        Some(damage(offset, reason, detail))
    }

    /// Two blocks of zeros end the archive; inside damage they may be anything.
    fn on_zero_block(&mut self) {
        // An extension belongs to the header right behind it, as in `tarfile`.
        (self.extension, self.extended_from) = (Extension::default(), None);
        self.zero_blocks = self.zero_blocks.saturating_add(1);
        if self.zero_blocks >= 2 && self.expect == Expect::Header {
            self.expect = Expect::Nothing;
            self.has_marker = true;
        }
    }

    /// A member, or `None` for an extension, which is kept for the member that follows.
    fn accept(&mut self, header: &Header, offset: u64) -> io::Result<Option<Event>> {
        self.headers += 1;
        match header.typeflag {
            b'L' | b'x' | b'X' | b'K' | b'g' => self.extend(header, offset),
            _ => Ok(Some(Event::Member(self.member(header, offset)))),
        }
    }

    fn extend(&mut self, header: &Header, offset: u64) -> io::Result<Option<Event>> {
        self.extended_from.get_or_insert(offset);
        if header.size > EXTENSION_BYTES {
            self.expect = Expect::Anything;
            self.extended_from = None;
            let detail = format!("an extension header of {} bytes", header.size);
            return Ok(Some(damage(offset, Reason::DamagedHeader, detail)));
        }
        let mut data = Vec::new();
        self.take_bytes(padded(header.size), &mut data)?;
        if (data.len() as u64) < header.size {
            self.expect = Expect::Nothing;
            return Ok(Some(damage(offset, Reason::Truncated, "ends inside an extension header")));
        }
        data.truncate(header.size as usize);
        match header.typeflag {
            b'L' => self.extension.name = Some(text_field(&data)),
            // Neither the target of a link nor what holds for all members changes what is read.
            b'K' | b'g' => {}
            _ => {
                if let Err(detail) = self.extension.parse_pax(&data) {
                    self.extension.fault = Some(Fault::new(Reason::DamagedHeader, detail));
                }
            }
        }
        Ok(None)
    }

    fn member(&mut self, header: &Header, offset: u64) -> Member {
        let extension = std::mem::take(&mut self.extension);
        let offset = self.extended_from.take().unwrap_or(offset);
        let (is_file, has_data) = (header.is_file(), header.has_data());
        let size = if has_data { extension.size.unwrap_or(header.size) } else { 0 };
        match &extension.name {
            Some(name) => self.name.clone_from(name),
            None => header.write_name(&mut self.name),
        }
        let mut fault = extension.fault;
        self.pending = padded(size);
        let claim = match self.left() {
            _ if size > self.skip_limit => Some(Reason::MemberTooLarge),
            Some(left) if size > left => Some(Reason::Truncated),
            _ => None,
        };
        if let Some(reason) = claim {
            self.pending = 0;
            self.expect = Expect::Anything;
            fault = Some(Fault::new(reason, format!("claims {size} bytes of data")));
        }
        if self.name.len() > NAME_BYTES {
            let detail = format!("a name of {} bytes; at most {NAME_BYTES}", self.name.len());
            cut(&mut self.name, NAME_BYTES);
            fault = Some(Fault::new(Reason::NameTooLong, detail));
        }
        Member { offset, size, is_file, fault }
    }
}

fn damage(offset: u64, reason: Reason, detail: impl Into<String>) -> Event {
    Event::Damage { offset, fault: Fault::new(reason, detail) }
}

/// What a failure to read says about the shard.
pub(super) fn io_fault(failure: &io::Error) -> Fault {
    let reason = match failure.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        Some(fault) => return fault.clone(),
        None if failure.kind() == io::ErrorKind::UnexpectedEof => Reason::Truncated,
        None => Reason::UnreadableShard,
    };
    Fault::new(reason, failure.to_string())
}
