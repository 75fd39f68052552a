//! Shards to shards: samples are read with all their members, some are kept, and written again.
//!
//! ```text
//! cargo run --release --example write_filtered -- 'demo/*.tar.zst' OUT
//! ```

use std::path::Path;

use roclip::data::raw::{RawFound, RawReader, RawSample};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::{SourceOptions, list_shards};
use roclip::data::writer::{ShardWriter, WriterOptions};

/// What is kept: captions of three words and more.
fn is_kept(sample: &RawSample) -> bool {
    let caption = sample.members.iter().find(|(extension, _)| extension == "txt");
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).split_whitespace().count();
    caption.is_some_and(|(_, bytes)| words(bytes) >= 3)
}

fn main() -> roclip::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(pattern), Some(out)) = (arguments.next(), arguments.next()) else {
        println!("usage: write_filtered SHARDS OUT");
        return Ok(());
    };
    let limits = ShardLimits::default();
    let options = WriterOptions { max_samples: 1000, ..WriterOptions::default() };
    let mut writer = ShardWriter::create(Path::new(&out), options)?;
    let (mut kept, mut dropped) = (0, 0);
    for shard in list_shards(&pattern, &SourceOptions::default())? {
        let input = match ShardReader::open(&shard, &limits, Default::default()) {
            Ok(input) => input,
            Err(fault) => {
                println!("{}: {fault}", shard.name);
                continue;
            }
        };
        for found in RawReader::new(input, limits.skip_bytes) {
            match found {
                RawFound::Sample(sample) if is_kept(&sample) => {
                    writer.write(&sample.key, &sample.members)?;
                    kept += 1;
                }
                RawFound::Sample(_) => dropped += 1,
                RawFound::Skipped(_, at, fault) | RawFound::Damage(at, fault) => {
                    println!("{}, byte {at}: {fault}", shard.name);
                }
            }
        }
    }
    println!("{kept} samples kept, {dropped} dropped");
    for shard in writer.finish()? {
        println!("{}: {} samples, {} bytes", shard.path.display(), shard.samples, shard.bytes);
    }
    Ok(())
}
