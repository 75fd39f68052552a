//! The whole loader, from shards to batches.

use super::clock;
use roclip::Result;
use roclip::data::loader::{Loader, LoaderConfig, Position};
use std::time::{Duration, Instant};

/// What some epochs took.
pub struct Run {
    /// Pairs delivered.
    pub pairs: usize,
    /// CPU time of all threads.
    pub cpu: Duration,
    /// Time that passed.
    pub wall: Duration,
}

impl Run {
    /// CPU time, microseconds a pair.
    pub fn micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.pairs as f64
    }

    /// Pairs a second.
    pub fn rate(&self) -> f64 {
        self.pairs as f64 / self.wall.as_secs_f64()
    }
}

/// One epoch.
///
/// # Errors
/// Those of the loader.
pub fn run(config: &LoaderConfig) -> Result<Run> {
    let loader = Loader::new(LoaderConfig { drop_last: false, ..config.clone() })?;
    let (cpu, wall, mut pairs) = (clock::of_process(), Instant::now(), 0);
    let mut batches = loader.epoch(Position::default())?;
    while let Some(batch) = batches.next() {
        let batch = batch?;
        pairs += batch.len();
        batches.recycle(batch);
    }
    Ok(Run { pairs, cpu: clock::of_process() - cpu, wall: wall.elapsed() })
}

/// FNV-1a over the first batch, word by word: the bits of its pictures and its token ids.
///
/// # Errors
/// Those of the loader.
pub fn hash(config: &LoaderConfig) -> Result<u64> {
    let loader = Loader::new(LoaderConfig { drop_last: false, ..config.clone() })?;
    let batch = loader.epoch(Position::default())?.next().transpose()?.unwrap_or_default();
    let pixels = batch.images.iter().map(|x| x.to_bits());
    let words = pixels.chain(batch.captions.tokens.iter().copied());
    Ok(words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ u64::from(word)).wrapping_mul(0x100_0000_01b3)
    }))
}
