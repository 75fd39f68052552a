//! One object → its bytes in order, fetched ahead of the reader.
//!
//! Who tries again: this module alone; `object_store` is told not to. It would resume a broken
//! body only where there is an ETag, does not know a body that stalls, and does not tell a reader
//! how much has come; and two layers that both try eight times would try 64 times.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::super::ledger::{Fault, Reason};
use super::super::SourceOptions;
use super::http::{Failure, UNKNOWN_LENGTH};

/// The first answer tells the size, which the other chunks wait for; so it is a short one.
const FIRST_SHARE: usize = 8;
/// But not shorter than this.
const MIN_FIRST: usize = 512;

/// One object, while it is being read.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    pub(super) options: Arc<SourceOptions>,
    /// Where credentials come from, for whoever lacks them.
    pub(super) hint: &'static str,
    /// What the first answer said; all others must say the same.
    pub(super) version: OnceLock<ObjectMeta>,
    /// Whether the server has shown that it only gives whole files.
    pub(super) is_whole: AtomicBool,
}

/// What the reader gets.
pub(super) enum Piece {
    Bytes(Vec<u8>),
    End,
    Failed(Fault),
}

/// A transfer under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) pieces: Receiver<Piece>,
    room: Arc<Semaphore>,
    spare: Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

/// The other end of a [`Fetch`].
struct Out {
    pieces: Sender<Piece>,
    room: Arc<Semaphore>,
    spare: Receiver<Vec<u8>>,
}

impl Fetch {
    /// Starts to fetch from byte `at`: at most `limit` bytes, if there is one.
    pub(super) fn start(on: &Handle, object: Arc<Object>, at: u64, limit: Option<usize>) -> Self {
        let room = Arc::new(Semaphore::new(object.options.read_ahead));
        let (sender, pieces) = unbounded();
        let (spare, used) = unbounded();
        let out = Out { pieces: sender, room: Arc::clone(&room), spare: used };
        let task = on.spawn(async move {
            let last = match object.fetch(at, limit, &out).await {
                Ok(()) => Piece::End,
                Err(failure) => {
                    Piece::Failed(Fault::new(Reason::UnreadableShard, failure.text(object.hint)))
                }
            };
            out.send(last);
        });
        Self { pieces, room, spare, task }
    }

    /// Gives back the memory of a piece, and with it the room for another.
    pub(super) fn recycle(&self, mut piece: Vec<u8>) {
        piece.clear();
        // Where nothing is fetched any more the memory is simply freed.
        let _ = self.spare.send(piece);
        self.room.add_permits(1);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Out {
    /// Waits until one more piece may exist.
    async fn piece(&self) -> Vec<u8> {
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        self.spare.try_recv().unwrap_or_default()
    }

    fn send(&self, piece: Piece) {
        // The reader may have gone.
        let _ = self.pieces.send(piece);
    }
}

/// What has been spent on the next bytes.
struct Effort<'a> {
    options: &'a SourceOptions,
    deadline: Instant,
    tries: u32,
}

impl<'a> Effort<'a> {
    fn new(options: &'a SourceOptions) -> Self {
        Self { options, deadline: Instant::now() + options.total_timeout, tries: 0 }
    }

    fn restart(&mut self) {
        (self.deadline, self.tries) = (Instant::now() + self.options.total_timeout, 0);
    }

    /// Waits before the next try; an error when enough has been tried, or trying is no use.
    async fn pause(&mut self, failure: Failure, progressed: bool) -> Result<(), Failure> {
        let Failure::Passing { detail, wait } = failure else { return Err(failure) };
        self.tries = if progressed { 1 } else { self.tries + 1 };
        if self.tries >= self.options.tries {
            return Err(Failure::Final(format!("gave up after {} tries: {detail}", self.tries)));
        }
        let doubled = self.options.backoff.saturating_mul(1 << (self.tries - 1).min(20));
        let jitter = 0.5 + 0.5 * random_share();
        let pause = doubled.min(self.options.max_backoff).mul_f64(jitter).max(wait);
        if Instant::now() + pause >= self.deadline {
            let limit = self.options.total_timeout;
            return Err(Failure::Final(format!("gave up after {limit:?}: {detail}")));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Uniform in `0..1`. It decides when a server is asked, never what is read, so it need not be
/// the same each time, and should not be.
fn random_share() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

impl Object {
    /// Size in bytes, once known.
    pub(super) fn size(&self) -> Option<u64> {
        self.version.get().map(|version| version.size).filter(|size| *size != UNKNOWN_LENGTH)
    }

    async fn fetch(&self, at: u64, limit: Option<usize>, out: &Out) -> Result<(), Failure> {
        if !self.is_whole.load(Ordering::Relaxed) {
            match self.fetch_ranges(at, limit, out).await {
                Err(Failure::BeyondEnd) if at > 0 => return Ok(()),
                // An empty file has no first byte; a server may also say so of what it will not
                // give in parts.
                Err(Failure::NoRanges | Failure::BeyondEnd) => {
                    self.is_whole.store(true, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        self.fetch_whole(at, limit, out).await
    }

    async fn fetch_ranges(&self, at: u64, limit: Option<usize>, out: &Out) -> Result<(), Failure> {
        let chunk_bytes = self.options.chunk_bytes;
        let first = limit.unwrap_or((chunk_bytes / FIRST_SHARE).max(MIN_FIRST));
        let mut piece = out.piece().await;
        self.fetch_chunk(at..at.saturating_add(first as u64), &mut piece).await?;
        let next = at + piece.len() as u64;
        out.send(Piece::Bytes(piece));
        let Some(size) = self.size().filter(|_| limit.is_none()) else { return Ok(()) };
        let chunks = (next..size).step_by(chunk_bytes).map(|start| async move {
            let mut piece = out.piece().await;
            let end = size.min(start + chunk_bytes as u64);
            match self.fetch_chunk(start..end, &mut piece).await {
                Ok(()) => Ok(piece),
                Err(Failure::NoRanges) => Err(Failure::Final("now it gives no parts".into())),
                Err(failure) => Err(failure),
            }
        });
        let mut chunks = iter(chunks).buffered(self.options.read_ahead);
        while let Some(piece) = chunks.next().await {
            out.send(Piece::Bytes(piece?));
        }
        Ok(())
    }

    /// Fetches these bytes, or those of them that there are.
    async fn fetch_chunk(&self, chunk: Range<u64>, piece: &mut Vec<u8>) -> Result<(), Failure> {
        let mut effort = Effort::new(&self.options);
        loop {
            let before = piece.len();
            let end = chunk.end.min(self.size().unwrap_or(u64::MAX));
            let start = chunk.start + before as u64;
            if start >= end {
                return if before > 0 { Ok(()) } else { Err(Failure::BeyondEnd) };
            }
            let attempt = self.fetch_range(start..end, piece);
            let outcome = timeout_at(effort.deadline, attempt).await;
            match outcome.unwrap_or_else(|_| Err(self.too_slow())) {
                Ok(()) => return Ok(()),
                Err(failure) => effort.pause(failure, piece.len() > before).await?,
            }
        }
    }

    fn too_slow(&self) -> Failure {
        Failure::Final(format!("not done after {:?}", self.options.total_timeout))
    }

    /// One request. What came before it failed is kept, unless the answer proved to be a lie.
    async fn fetch_range(&self, range: Range<u64>, piece: &mut Vec<u8>) -> Result<(), Failure> {
        let before = piece.len();
        let answer = self.get(Some(range.clone())).await?;
        let expected = (answer.range.end - range.start) as usize;
        let mut stream = answer.into_stream();
        while let Some(bytes) = self.next(&mut stream).await? {
            if piece.len() - before + bytes.len() > expected {
                piece.truncate(before);
                return Err(Failure::passing("the answer is longer than the part it names"));
            }
            piece.extend_from_slice(&bytes);
        }
        match piece.len() - before {
            got if got < expected => {
                Err(Failure::passing(format!("the answer ended after {got} of {expected} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Where there are no ranges: everything from the start, again and again if need be.
    async fn fetch_whole(&self, at: u64, limit: Option<usize>, out: &Out) -> Result<(), Failure> {
        let mut effort = Effort::new(&self.options);
        let (mut done, mut piece) = (at, out.piece().await);
        loop {
            let before = done + piece.len() as u64;
            let attempt = self.pass_whole(&mut done, &mut piece, limit, &mut effort, out);
            match attempt.await {
                Ok(()) => {
                    out.send(Piece::Bytes(piece));
                    return Ok(());
                }
                Err(failure) => {
                    effort.pause(failure, done + piece.len() as u64 > before).await?;
                }
            }
        }
    }

    /// One request for everything: passes on what comes behind `done` and `piece`.
    async fn pass_whole(
        &self,
        done: &mut u64,
        piece: &mut Vec<u8>,
        limit: Option<usize>,
        effort: &mut Effort<'_>,
        out: &Out,
    ) -> Result<(), Failure> {
        let mut stream = self.get(None).await?.into_stream();
        let mut seen = 0;
        loop {
            let next = timeout_at(effort.deadline, self.next(&mut stream)).await;
            let Some(bytes) = next.unwrap_or_else(|_| Err(self.too_slow()))? else { break };
            let wanted = *done + piece.len() as u64;
            let old = wanted.saturating_sub(seen).min(bytes.len() as u64) as usize;
            seen += bytes.len() as u64;
            piece.extend_from_slice(&bytes[old..]);
            if limit.is_some_and(|limit| piece.len() >= limit) {
                return Ok(());
            }
            if piece.len() >= self.options.chunk_bytes {
                *done += piece.len() as u64;
                out.send(Piece::Bytes(std::mem::take(piece)));
                *piece = out.piece().await;
                // Neither the time that the reader took nor what was spent before counts.
                effort.restart();
            }
        }
        match self.size() {
            Some(size) if seen != size => {
                Err(Failure::passing(format!("the answer ended after {seen} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Sends a request; the answer must be of the same version as all before.
    async fn get(&self, range: Option<Range<u64>>) -> Result<GetResult, Failure> {
        let range = range.map(GetRange::Bounded);
        let request = self.store.get_opts(&self.path, GetOptions { range, ..Default::default() });
        let limit = self.options.connect_timeout + self.options.idle_timeout;
        let answer = timeout(limit, request).await;
        let answer = answer.map_err(|_| Failure::passing(format!("no answer for {limit:?}")))?;
        let answer = answer.map_err(|error| Failure::of(&error))?;
        self.check_version(&answer.meta)?;
        Ok(answer)
    }

    fn check_version(&self, now: &ObjectMeta) -> Result<(), Failure> {
        let first = self.version.get_or_init(|| now.clone());
        let changed = |what: &str| {
            Err(Failure::Final(format!("it changed while being read: {what} is another now")))
        };
        if first.size != now.size {
            return changed(&format!("its size was {} and is {}: it", first.size, now.size));
        }
        match (&first.e_tag, &now.e_tag) {
            (Some(was), Some(is)) if was != is => changed("its ETag"),
            (Some(_), Some(_)) => Ok(()),
            // A server behind a balancer may leave it out.
            _ if first.last_modified != now.last_modified => changed("its Last-Modified"),
            _ => Ok(()),
        }
    }

    /// The next bytes of a body, or its end.
    async fn next<S, B>(&self, stream: &mut S) -> Result<Option<B>, Failure>
    where
        S: futures_util::Stream<Item = object_store::Result<B>> + Unpin,
    {
        let limit = self.options.idle_timeout;
        match timeout(limit, stream.next()).await {
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => Err(Failure::of(&error)),
            Ok(None) => Ok(None),
            Err(_) => Err(Failure::passing(format!("no byte for {limit:?}"))),
        }
    }

    /// The first bytes, at most `limit`; `None` if it is not there, or gives no parts.
    pub(super) async fn beginning(&self, limit: usize) -> Option<Vec<u8>> {
        let mut piece = Vec::new();
        self.fetch_chunk(0..limit as u64, &mut piece).await.ok()?;
        Some(piece)
    }

    /// Size in bytes from a request of its own.
    pub(super) async fn head(&self) -> Option<u64> {
        let mut effort = Effort::new(&self.options);
        loop {
            let options = GetOptions { head: true, ..Default::default() };
            let request = self.store.get_opts(&self.path, options);
            let failure = match timeout(self.options.idle_timeout, request).await {
                Ok(Ok(answer)) => return Some(answer.meta.size).filter(|n| *n != UNKNOWN_LENGTH),
                Ok(Err(error)) => Failure::of(&error),
                Err(_) => Failure::passing("no answer"),
            };
            effort.pause(failure, false).await.ok()?;
        }
    }
}

/// What lies below a prefix; unless `deep`, only directly.
pub(super) async fn list(
    store: &Arc<dyn ObjectStore>,
    prefix: &Path,
    deep: bool,
    options: &SourceOptions,
) -> Result<Vec<ObjectMeta>, Failure> {
    let mut effort = Effort::new(options);
    loop {
        let listing = async {
            if deep {
                store.list(Some(prefix)).try_collect().await
            } else {
                Ok(store.list_with_delimiter(Some(prefix)).await?.objects)
            }
        };
        let failure = match timeout_at(effort.deadline, listing).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => Failure::of(&error),
            Err(_) => Failure::Final(format!("no list after {:?}", options.total_timeout)),
        };
        effort.pause(failure, false).await?;
    }
}
