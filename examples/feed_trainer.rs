//! Batches for another trainer: augmented pictures and packed captions, in an order that can be
//! resumed at any batch.
//!
//! ```text
//! cargo run --release --example feed_trainer -- 'demo/*.tar.zst' [skips.jsonl]
//! ```

use std::time::Instant;

use roclip::data::ledger::Ledger;
use roclip::data::loader::{Loader, LoaderConfig, Position};
use roclip::data::transform::{Augment, TransformConfig};
use roclip::flow::Batch;

const EPOCHS: u64 = 2;

/// What stands here for a trainer: the mean of all pixels and the number of tokens.
#[derive(Default)]
struct Trainer {
    steps: u64,
    pixels: f64,
    tokens: usize,
}

impl Trainer {
    /// `batch.images` is `[N, 3, H, W]` of f32, normalised; caption `n` is
    /// `batch.captions.get(n)`; `batch.samples[n]` tells where the pair came from.
    fn step(&mut self, batch: &Batch) {
        let sum: f64 = batch.images.iter().map(|&x| f64::from(x)).sum();
        self.pixels += sum / batch.images.len() as f64;
        self.tokens += batch.captions.tokens.len();
        self.steps += 1;
    }
}

fn main() -> roclip::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(shards) = arguments.next() else {
        println!("usage: feed_trainer SHARDS [LEDGER]");
        return Ok(());
    };
    let transform = TransformConfig::new(224, Augment::clip());
    let config = LoaderConfig { shards, seed: 1, transform, ..LoaderConfig::default() };
    let loader = Loader::new(config)?;
    let mut ledger =
        arguments.next().map(|path| Ledger::open(path.as_ref(), 0, |_| 0)).transpose()?;
    let mut trainer = Trainer::default();
    // A trainer that is resumed begins at the position that its checkpoint holds.
    for number in 0..EPOCHS {
        let started = Instant::now();
        let mut epoch = loader.epoch(Position::start_of(number))?;
        while let Some(batch) = epoch.next() {
            let batch = batch?;
            trainer.step(&batch);
            // This, written down with the weights, is all that it takes to go on from here.
            let _checkpoint: &Position = epoch.position();
            epoch.recycle(batch);
            if let Some(ledger) = &mut ledger {
                ledger.record(&epoch.take_entries())?;
            }
        }
        let (tally, stats) = (epoch.position().tally(), epoch.stats());
        let rate = tally.delivered as f64 / started.elapsed().as_secs_f64();
        println!("epoch {number}: {tally}");
        println!("  {rate:.0} pairs/s; the trainer waited {:.1?}", stats.consumer_wait);
    }
    let Trainer { steps, pixels, tokens } = trainer;
    println!("{steps} steps, mean pixel {:.3}, {tokens} tokens", pixels / steps.max(1) as f64);
    Ok(())
}
