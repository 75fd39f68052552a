//! Threads that read shards ahead of the sequencer, each shard by one of them, in bounded memory.
//!
//! ```text
//! reader 0 ── turn 0 ─ chunk, chunk, … ─▶ ┐
//! reader 1 ── turn 1 ─ chunk, chunk, … ─▶ ┴ taken turn by turn
//! ```

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::exclude::Exclusions;
use super::super::ledger::{Fault, Reason};
use super::super::pool::BufferPool;
use super::super::sample::{Anchor, Contents, Found, Pair, SampleReader};
use super::super::shard::ShardReader;
use super::super::source::Shard;
use super::super::tar::io_fault;
use super::LoaderConfig;
use super::order::{Part, Turns};
use super::position::{Cursor, Held};
use super::stats::{Clocks, add_since};

/// Pairs and bytes after which a chunk is handed on.
const CHUNK_PAIRS: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks of one shard that wait.
const CHUNKS_AHEAD: usize = 8;

/// What a shard yielded, each with the place behind it.
pub(super) type Chunk = Vec<(Found, Cursor)>;

/// The reading of one shard.
pub(super) struct Turn {
    pub shard_index: u32,
    pub chunks: Receiver<Chunk>,
    /// Told last: why nothing of the shard made sense, if that is so.
    pub unreadable: Receiver<Option<Fault>>,
}

/// The other ends of a [`Turn`], with its reader.
struct Begun {
    turn: u64,
    part: Part,
    chunks: Sender<Chunk>,
    unreadable: Sender<Option<Fault>>,
}

/// What all readers share.
pub(super) struct Reading {
    pub config: Arc<LoaderConfig>,
    pub shards: Arc<[Shard]>,
    pub turns: Turns,
    pub pool: Arc<BufferPool>,
    pub stop: Arc<AtomicBool>,
    pub clocks: Arc<Clocks>,
    /// The place to begin.
    pub start: Cursor,
    /// The next turn, and where the turns go until there are no more: under one lock, so that they
    /// arrive in order.
    pub next: Mutex<(u64, Option<Sender<Turn>>)>,
}

impl Reading {
    /// One reader: takes turns until there are no more, or nobody wants them.
    pub(super) fn run(&self) {
        while let Some(begun) = self.begin_turn() {
            let name = &self.shards[begun.part.shard as usize].name;
            self.clocks.open(name);
            let outcome = self.read_shard(&begun);
            self.clocks.close(name);
            if self.is_stopped() {
                return;
            }
            // Nobody may listen any more.
            let _ = begun.unreadable.send(outcome);
        }
    }

    fn begin_turn(&self) -> Option<Begun> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next.0;
        let Some(part) = self.turns.part(turn) else {
            next.1 = None;
            return None;
        };
        next.0 += 1;
        let shard_index = part.shard;
        let ((sender, chunks), (tell, unreadable)) = (bounded(CHUNKS_AHEAD), bounded(1));
        next.1.as_ref()?.send(Turn { shard_index, chunks, unreadable }).ok()?;
        Some(Begun { turn, part, chunks: sender, unreadable: tell })
    }

    /// Ends the turns: who asks for one is told that there are none.
    pub(super) fn no_more_turns(&self) {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Reads a part of a shard to its end; a fault if not even the beginning made sense.
    fn read_shard(&self, begun: &Begun) -> Option<Fault> {
        let &Begun { turn, part, ref chunks, .. } = begun;
        let begin = if turn == self.start.turn { self.start } else { Cursor::default() };
        let is_end = |index: u64| part.to.is_some_and(|to| index >= to);
        if is_end(begin.anchor.index.into()) {
            return None;
        }
        let mut since = Instant::now();
        let (begin, mut reader) = match self.open_at(turn, part, begin) {
            Ok(opened) => opened,
            Err(fault) => {
                let place = Cursor { turn, found: begin.found + 1, ..begin };
                // Who goes on after this very news need not hear it again.
                if begin.found == 0 || begin.anchor.offset > 0 {
                    let _ = chunks.send(vec![(Found::Damage(0, fault.clone()), place)]);
                }
                return Some(fault);
            }
        };
        let mut first_fault = None;
        let (mut chunk, mut bytes) = (Vec::with_capacity(CHUNK_PAIRS), 0);
        loop {
            let found = if self.is_stopped() { None } else { reader.next() };
            let is_last = found.as_ref().is_none_or(|found| {
                index_of(found).is_some_and(|index| is_end(u64::from(index) + 1))
            });
            if let Some(found) = found {
                if let Found::Damage(_, fault) = &found {
                    first_fault.get_or_insert_with(|| fault.clone());
                }
                if reader.found() > begin.found {
                    bytes += bytes_of(&found);
                    let place = Cursor { turn, found: reader.found(), anchor: reader.anchor() };
                    chunk.push((self.exclude(found), place));
                }
            }
            if chunk.len() >= CHUNK_PAIRS || bytes >= CHUNK_BYTES || is_last {
                self.clocks.read(since, bytes);
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_PAIRS));
                since = Instant::now();
                if chunks.send(full).is_err() || is_last {
                    break;
                }
                add_since(&self.clocks.read_blocked, since);
                (since, bytes) = (Instant::now(), 0);
            }
        }
        first_fault.filter(|_| !reader.is_readable())
    }

    /// A pair that is to be left out is a skipped one.
    fn exclude(&self, found: Found) -> Found {
        let LoaderConfig { exclude, only, except, .. } = &*self.config;
        let why = |Pair { id, .. }: &Pair| {
            let is_on = |list: &Arc<Exclusions>| list.contains(&id.shard, &id.key);
            if exclude.as_ref().is_some_and(is_on) {
                return Some((Reason::Excluded, "on the list given with --exclude"));
            }
            let has = |pairs: &Arc<HashSet<u64>>| pairs.contains(&id.stream());
            let is_asked = only.as_ref().is_none_or(has) && !except.as_ref().is_some_and(has);
            (!is_asked).then_some((Reason::NotAskedFor, "not among the pairs asked for"))
        };
        match found {
            Found::Pair(pair) => match why(&pair) {
                None => Found::Pair(pair),
                Some((reason, why)) => {
                    Found::Skipped(pair.id, pair.offset, Fault::new(reason, why))
                }
            },
            found => found,
        }
    }

    /// The shard, to be read from `begin` on, or, where that lies before the part, from there.
    fn open_at(
        &self,
        turn: u64,
        part: Part,
        mut begin: Cursor,
    ) -> Result<(Cursor, SampleReader<ShardReader>), Fault> {
        if u64::from(begin.anchor.index) < part.from {
            let first = self.find(turn, part)?;
            begin = if begin.found > first.found { begin } else { first };
        }
        let mut reader = self.open(part.shard, Contents::Read)?;
        if begin.anchor.offset > 0 {
            reader.jump(begin.anchor).map_err(|failure| io_fault(&failure))?;
        }
        Ok((begin, reader))
    }

    /// Where a part begins that does not begin its shard: behind what the lane before reads. The
    /// headers of that are walked, no data are read.
    fn find(&self, turn: u64, part: Part) -> Result<Cursor, Fault> {
        let mut reader = self.open(part.shard, Contents::HeadersOnly)?;
        let mut count = 0;
        while count < part.from {
            let Some(found) = reader.next() else {
                let from = part.from;
                let detail = format!("it has {count} pairs, and a lane begins behind {from}");
                return Err(Fault::new(Reason::Truncated, detail));
            };
            count += u64::from(index_of(&found).is_some());
        }
        Ok(Cursor { turn, found: reader.found(), anchor: reader.anchor() })
    }

    fn open(
        &self,
        shard_index: u32,
        contents: Contents,
    ) -> Result<SampleReader<ShardReader>, Fault> {
        let (shard, limits) = (&self.shards[shard_index as usize], &self.config.shard_limits);
        let input = ShardReader::open(shard, limits, Arc::clone(&self.stop))?;
        let (place, fields) = ((&shard.name, shard_index), &self.config.fields);
        let reader = SampleReader::new(input, place, fields, contents, limits);
        Ok(reader.with_pool(&self.pool))
    }

    /// Fetches again what waited in the shuffle buffer, in its order; each shard is gone through
    /// once, from pair to pair.
    pub(super) fn fetch(&self, held: &[Held]) -> Result<Vec<Pair>, (u32, Fault)> {
        let mut order: Vec<usize> = (0..held.len()).collect();
        order.sort_by_key(|&at| (held[at].turn, held[at].offset));
        let mut pairs: Vec<Option<Pair>> = held.iter().map(|_| None).collect();
        for group in order.chunk_by(|&a, &b| held[a].turn == held[b].turn) {
            let turn = held[group[0]].turn;
            let shard_index = self.turns.part(turn).map_or(0, |part| part.shard);
            let mut reader =
                self.open(shard_index, Contents::Read).map_err(|fault| (shard_index, fault))?;
            for &at in group {
                let Held { index, offset, .. } = held[at];
                let anchor = Anchor { offset, index, found: 0 };
                let pair = fetch_one(&mut reader, anchor);
                pairs[at] = Some(pair.map_err(|failure| (shard_index, io_fault(&failure)))?);
            }
        }
        Ok(pairs.into_iter().flatten().collect())
    }
}

fn fetch_one(reader: &mut SampleReader<ShardReader>, anchor: Anchor) -> io::Result<Pair> {
    reader.jump(anchor)?;
    // Damage behind the pair is told before it; it was told the first time, too.
    match reader.find(|found| !matches!(found, Found::Damage(..))) {
        Some(Found::Pair(pair)) if pair.offset == anchor.offset => Ok(pair),
        _ => {
            let detail = format!("no pair at byte {}, where one was read before", anchor.offset);
            Err(io::Error::other(Fault::new(Reason::UnreadableShard, detail)))
        }
    }
}

/// Position of a pair in its shard; damage has none.
fn index_of(found: &Found) -> Option<u32> {
    match found {
        Found::Pair(Pair { id, .. }) | Found::Skipped(id, ..) => Some(id.index),
        Found::Damage(..) => None,
    }
}

/// What waits of a pair, bookkeeping aside.
fn bytes_of(found: &Found) -> usize {
    match found {
        Found::Pair(pair) => pair.image.len() + pair.caption.len() + pair.id.key.len(),
        Found::Skipped(..) | Found::Damage(..) => 0,
    }
}
