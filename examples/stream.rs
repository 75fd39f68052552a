//! Shards to batches without a trainer: for a vector index, a captioner, an audit of a crawl.
//!
//! ```text
//! cargo run --release --example stream -- 'data/{00000..00099}.tar' [skips.jsonl]
//! ```

use std::time::Instant;

use roclip::data::ledger::Ledger;
use roclip::data::loader::{Loader, LoaderConfig, Mode, Position};

fn main() -> roclip::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(shards) = arguments.next() else {
        println!("usage: stream SHARDS [LEDGER]");
        return Ok(());
    };
    let mode = Mode::Eval;
    let config = LoaderConfig { shards, mode, shuffle: 0, drop_last: false, ..Default::default() };
    let loader = Loader::new(config)?;
    let mut epoch = loader.epoch(Position::start_of(0))?;
    let started = Instant::now();
    while let Some(batch) = epoch.next() {
        let batch = batch?;
        // `batch.images` is [N, 3, H, W]; `batch.captions` packs the token ids; `batch.samples`
        // tells where each pair came from.
        assert_eq!(batch.images.len(), batch.len() * 3 * batch.image_size * batch.image_size);
        epoch.recycle(batch);
    }
    let tally = &epoch.position().tally;
    let rate = tally.delivered as f64 / started.elapsed().as_secs_f64();
    let stats = epoch.stats();
    println!("{rate:.0} pairs/s with {} workers", loader.config().workers);
    println!("{tally}");
    println!(
        "waited {:.1?} of {:.1?}, workers busy {:.0} %, reading held up {:.0} %",
        stats.consumer_wait,
        stats.elapsed,
        100.0 * stats.prepare_busy,
        100.0 * stats.read_blocked
    );
    if let Some(path) = arguments.next() {
        Ledger::open(path.as_ref(), 0, 0)?.record(&epoch.take_entries())?;
    }
    Ok(())
}
