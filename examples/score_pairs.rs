//! An ingestion job: every pair of a crawl is read, scored and counted; no picture is decoded.
//!
//! ```text
//! cargo run --release --example score_pairs -- 'demo/*.tar.zst' scores.jsonl
//! roclip-shards filter 'demo/*.tar.zst' OUT --scores scores.jsonl --min 0.5
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use roclip::data::sample::{Contents, Fields, Found, Pair, SampleReader};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::{SourceOptions, list_shards};
use roclip::data::tools::inspect::picture_size;
use roclip::error::Error;
use serde_json::json;

/// From 0 to 1: a caption of words enough, a picture neither tiny nor a banner.
fn score(pair: &Pair) -> f64 {
    let words = pair.caption.split_whitespace().count() as f64;
    let Some((_, width, height)) = picture_size(&pair.image) else { return 0.0 };
    let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
    (words / 5.0).min(1.0) * (short / 32.0).min(1.0) * (3.0 * short / long).min(1.0)
}

fn main() -> roclip::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(pattern), Some(path)) = (arguments.next(), arguments.next()) else {
        println!("usage: score_pairs SHARDS SCORES.jsonl");
        return Ok(());
    };
    let mut scores = BufWriter::new(File::create(&path).map_err(Error::io("create", &path))?);
    let (fields, limits) = (Fields::default(), ShardLimits::default());
    let (mut pairs, mut bytes, mut deciles) = (0u64, 0, [0u64; 11]);
    let mut lost: BTreeMap<String, u64> = BTreeMap::new();
    let started = Instant::now();
    for (number, shard) in list_shards(&pattern, &SourceOptions::default())?.iter().enumerate() {
        let input = match ShardReader::open(shard, &limits, Default::default()) {
            Ok(input) => input,
            Err(fault) => {
                *lost.entry(fault.reason.name()).or_default() += 1;
                continue;
            }
        };
        let place = (&shard.name, number as u32);
        for found in SampleReader::new(input, place, &fields, Contents::Read, &limits) {
            match found {
                Found::Pair(pair) => {
                    let score = score(&pair);
                    (pairs, bytes) = (pairs + 1, bytes + pair.image.len());
                    deciles[(10.0 * score) as usize] += 1;
                    let line = json!({ "key": pair.id.key, "score": score });
                    writeln!(scores, "{line}").map_err(Error::io("write", &path))?;
                }
                Found::Skipped(_, _, fault) | Found::Damage(_, fault) => {
                    *lost.entry(fault.reason.name()).or_default() += 1;
                }
            }
        }
    }
    scores.flush().map_err(Error::io("write", &path))?;
    let rate = pairs as f64 / started.elapsed().as_secs_f64();
    println!("{pairs} pairs, {bytes} bytes of pictures, {rate:.0} pairs/s; not read: {lost:?}");
    println!("pairs by score, 0.0 to 1.0: {deciles:?}");
    Ok(())
}
