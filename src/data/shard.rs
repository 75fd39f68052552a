//! Shard → plain tar bytes: opens, recognises the compression by its magic bytes, and stops
//! streams that inflate without end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;

use super::ledger::{Fault, Reason};
#[cfg(feature = "remote")]
use super::source::remote::{Opened, RemoteReader};
use super::source::{Shard, Source};
use super::tar::Input;

const BUFFER_BYTES: usize = 1 << 18;
/// Largest zstd window, as a power of two: 128 MiB, the limit of the `zstd` tool.
const ZSTD_WINDOW_LOG: u32 = 27;
const MAGIC_BYTES: u64 = 4;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// What a shard may cost. Beyond a limit the shard or the member is given up, and ledgered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// Most bytes one shard may decompress to. Default 64 GiB.
    pub shard_bytes: u64,
    /// Most bytes out for one byte in, once `inflation_after` bytes are out. Default 1000.
    pub inflation: u64,
    /// Bytes out before `inflation` is looked at. Default 64 MiB.
    pub inflation_after: u64,
    /// Largest image member read. Default 64 MiB.
    pub image_bytes: u64,
    /// Largest caption, json or class member read. Default 1 MiB.
    pub text_bytes: u64,
    /// Longest caption delivered, whatever member it comes from. Of an honest one the text tower
    /// reads the first hundreds of bytes; cleaning and augmenting a hostile one of a megabyte
    /// costs up to a second. Default 64 KiB.
    pub max_caption_bytes: u64,
    /// Largest member skipped on the word of its header. Default 1 GiB.
    pub skip_bytes: u64,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            shard_bytes: 64 << 30,
            inflation: 1000,
            inflation_after: 64 << 20,
            image_bytes: 64 << 20,
            text_bytes: 1 << 20,
            max_caption_bytes: 64 << 10,
            skip_bytes: 1 << 30,
        }
    }
}

/// The decompressed bytes of a shard.
pub struct ShardReader {
    bytes: Bytes,
    limits: ShardLimits,
    /// Bytes given out.
    out: u64,
    /// Set from outside to end the reading.
    stop: Arc<AtomicBool>,
}

enum Bytes {
    /// A plain file and its length.
    File(BufReader<File>, u64),
    /// A transfer of which no byte has been asked for, until it is taken out.
    #[cfg(feature = "remote")]
    Unseen(Option<Box<RemoteReader>>),
    /// A transfer of plain bytes.
    #[cfg(feature = "remote")]
    Remote(Box<RemoteReader>),
    /// A plain pipe.
    Pipe(Compressed),
    Gzip(MultiGzDecoder<Compressed>),
    Zstd(zstd::Decoder<'static, Compressed>),
}

type Compressed = BufReader<Counted<Box<dyn Read + Send>>>;

/// Counts the bytes that pass.
struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

impl ShardReader {
    /// Opens a shard. Setting `stop` makes every further read fail, so that a reader that skips
    /// through gigabytes, or waits for a server, ends at once.
    ///
    /// Opening and then skipping to a byte reads nothing of what lies before it, unless the shard
    /// is compressed or a pipe: a file is seeked, and the transfer of a remote shard begins there.
    ///
    /// # Errors
    /// The shard cannot be opened, is empty, or is a directory: a fault for the ledger. A remote
    /// shard is not asked for before the first read or skip; these fail then.
    pub fn open(shard: &Shard, limits: &ShardLimits, stop: Arc<AtomicBool>) -> Result<Self, Fault> {
        let bytes = match &shard.source {
            Source::Stdin => open_stream(Box::new(io::stdin())),
            Source::File(path) => File::open(path).and_then(open_file),
            #[cfg(feature = "remote")]
            Source::Remote(remote) => match remote.open(Arc::clone(&stop)) {
                Ok(Opened::Local(file)) => open_file(file),
                Ok(Opened::Transfer(reader)) => Ok(Some(Bytes::Unseen(Some(reader)))),
                Err(e) => Err(e),
            },
        };
        let bytes = bytes
            .map_err(|e| Fault::new(Reason::UnreadableShard, format!("cannot open: {e}")))?
            .ok_or_else(empty)?;
        Ok(Self { bytes, limits: limits.clone(), out: 0, stop })
    }

    /// Finds out whether a transfer is compressed. Plain, it stands at byte `skip` then, or at its
    /// end; compressed, at its start.
    #[cfg(feature = "remote")]
    fn look(&mut self, skip: u64) -> io::Result<()> {
        let Bytes::Unseen(unseen) = &mut self.bytes else { return Ok(()) };
        let magic = unseen.as_mut().map(|reader| reader.magic(skip)).transpose()?;
        if let (Some(mut reader), Some(magic)) = (unseen.take(), magic) {
            if magic.is_empty() {
                return Err(io::Error::other(empty()));
            }
            self.bytes = if is_plain(&magic) {
                self.out = reader.position();
                Bytes::Remote(reader)
            } else {
                if skip > 0 {
                    reader.start_at(0);
                }
                open_stream(reader)?.ok_or_else(|| io::Error::other(empty()))?
            };
        }
        Ok(())
    }

    /// Compressed bytes consumed, where there is a compression.
    fn compressed_in(&self) -> Option<u64> {
        let source = match &self.bytes {
            Bytes::File(..) | Bytes::Pipe(_) => return None,
            #[cfg(feature = "remote")]
            Bytes::Unseen(_) | Bytes::Remote(_) => return None,
            Bytes::Gzip(decoder) => decoder.get_ref(),
            Bytes::Zstd(decoder) => decoder.get_ref(),
        };
        Some(source.get_ref().bytes - source.buffer().len() as u64)
    }

    fn check_limits(&self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("reading was stopped"));
        }
        let limits = &self.limits;
        #[cfg(feature = "remote")]
        if matches!(self.bytes, Bytes::Remote(_)) && self.out > limits.shard_bytes {
            let detail = format!("more than {} bytes from the server", limits.shard_bytes);
            return Err(io::Error::other(Fault::new(Reason::UnreadableShard, detail)));
        }
        let Some(compressed) = self.compressed_in() else { return Ok(()) };
        let bomb = if self.out > limits.shard_bytes {
            format!("more than {} bytes decompressed", limits.shard_bytes)
        } else if self.out > limits.inflation_after && self.out / limits.inflation > compressed {
            format!("{compressed} bytes inflate to {} and more", self.out)
        } else {
            return Ok(());
        };
        Err(io::Error::other(Fault::new(Reason::InflationBomb, bomb)))
    }
}

fn empty() -> Fault {
    Fault::new(Reason::EmptyShard, "0 bytes")
}

fn is_plain(magic: &[u8]) -> bool {
    !magic.starts_with(GZIP_MAGIC) && !magic.starts_with(ZSTD_MAGIC)
}

/// `None` if there is not a single byte.
fn open_file(mut file: File) -> io::Result<Option<Bytes>> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    if !metadata.is_file() {
        return open_stream(Box::new(file));
    }
    // No more than that is read here, for the caller may go elsewhere at once.
    let mut magic = Vec::new();
    (&mut file).take(MAGIC_BYTES).read_to_end(&mut magic)?;
    file.rewind()?;
    if !is_plain(&magic) {
        return open_stream(Box::new(file));
    }
    let bytes = Bytes::File(BufReader::with_capacity(BUFFER_BYTES, file), metadata.len());
    Ok((metadata.len() > 0).then_some(bytes))
}

/// `None` if there is not a single byte.
fn open_stream(source: Box<dyn Read + Send>) -> io::Result<Option<Bytes>> {
    let mut source = BufReader::with_capacity(BUFFER_BYTES, Counted { inner: source, bytes: 0 });
    let magic = source.fill_buf()?;
    Ok(Some(if magic.is_empty() {
        return Ok(None);
    } else if magic.starts_with(GZIP_MAGIC) {
        Bytes::Gzip(MultiGzDecoder::new(source))
    } else if magic.starts_with(ZSTD_MAGIC) {
        let mut decoder = zstd::Decoder::with_buffer(source)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Bytes::Zstd(decoder)
    } else {
        Bytes::Pipe(source)
    }))
}

impl Read for ShardReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check_limits()?;
        #[cfg(feature = "remote")]
        self.look(0)?;
        let count = match &mut self.bytes {
            Bytes::File(bytes, _) => bytes.read(buffer)?,
            #[cfg(feature = "remote")]
            Bytes::Remote(bytes) => bytes.read(buffer)?,
            // Its first look failed, and the reader should have stopped there.
            #[cfg(feature = "remote")]
            Bytes::Unseen(_) => return Err(io::Error::other("it cannot be read on")),
            Bytes::Pipe(bytes) => bytes.read(buffer)?,
            Bytes::Gzip(bytes) => bytes.read(buffer)?,
            Bytes::Zstd(bytes) => bytes.read(buffer)?,
        };
        self.out += count as u64;
        Ok(count)
    }
}

impl Input for ShardReader {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        if let Bytes::File(file, length) = &mut self.bytes {
            let step = bytes.min(length.saturating_sub(self.out));
            file.seek_relative(i64::try_from(step).map_err(io::Error::other)?)?;
            self.out += step;
            return Ok(step);
        }
        #[cfg(feature = "remote")]
        if bytes > 0 {
            self.check_limits()?;
            let is_unseen = matches!(self.bytes, Bytes::Unseen(_));
            self.look(bytes)?;
            if let Bytes::Remote(reader) = &mut self.bytes {
                let step = if is_unseen { self.out } else { reader.skip(bytes)? };
                self.out = reader.position();
                return Ok(step);
            }
        }
        io::copy(&mut self.take(bytes), &mut io::sink())
    }

    fn remaining(&self) -> Option<u64> {
        match &self.bytes {
            Bytes::File(_, length) => Some(length.saturating_sub(self.out)),
            #[cfg(feature = "remote")]
            Bytes::Remote(reader) => reader.remaining(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(bytes: &[u8], limits: &ShardLimits) -> Result<ShardReader, Fault> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        ShardReader::open(&Shard::file(file.path()), limits, Arc::default())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compression_is_seen_in_the_bytes() {
        let plain: Vec<u8> =
            (0..100_000u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
        let two_members = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
        let zstd = zstd::encode_all(&plain[..], 3).unwrap();
        for bytes in [plain.clone(), gzip(&plain), two_members, zstd] {
            let mut reader = open(&bytes, &ShardLimits::default()).unwrap();
            let mut out = Vec::new();
            assert_eq!(reader.skip(1000).unwrap(), 1000);
            reader.read_to_end(&mut out).unwrap();
            assert!(out == plain[1000..]);
        }
    }

    #[test]
    fn inflation_stops_near_its_limits() {
        let zeros = vec![0; 8 << 20];
        let limits = ShardLimits { inflation: 100, inflation_after: 1 << 20, ..Default::default() };
        let small = ShardLimits { shard_bytes: 1 << 20, ..Default::default() };
        for bytes in [gzip(&zeros), zstd::encode_all(&zeros[..], 3).unwrap()] {
            for limits in [&limits, &small] {
                let mut reader = open(&bytes, limits).unwrap();
                let mut out = Vec::new();
                let error = reader.read_to_end(&mut out).unwrap_err();
                let fault = error.get_ref().unwrap().downcast_ref::<Fault>().unwrap();
                assert_eq!(fault.reason, Reason::InflationBomb);
                assert!(out.len() <= 2 << 20, "{}", out.len());
            }
            let mut reader = open(&bytes, &ShardLimits::default()).unwrap();
            assert_eq!(reader.skip(u64::MAX).unwrap(), zeros.len() as u64);
        }
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        assert_eq!(open(b"", &ShardLimits::default()).err().unwrap().reason, Reason::EmptyShard);
        let gone = Shard::file("/nonexistent/a.tar");
        let fault = ShardReader::open(&gone, &ShardLimits::default(), Arc::default());
        assert_eq!(fault.err().unwrap().reason, Reason::UnreadableShard);
        let stop = Arc::new(AtomicBool::new(false));
        let shard = Shard::file("Cargo.toml");
        let mut reader =
            ShardReader::open(&shard, &ShardLimits::default(), Arc::clone(&stop)).unwrap();
        stop.store(true, Ordering::Relaxed);
        assert!(reader.read(&mut [0; 1]).is_err());
    }
}
