//! Small shards made in memory, and what a loader makes of them, under a deadline.

use std::path::Path;
use std::time::Duration;

use roclip::data::ledger::{Entry, Tally};
use roclip::data::loader::{Loader, LoaderConfig, Mode, Position};
use roclip::data::transform::{Augment, TransformConfig};
use roclip::flow::Batch;
use sha2::{Digest, Sha256};

/// A picture of one hue, different for each `n`, as PNG.
pub fn png(n: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(12, 10, |x, y| {
        image::Rgb([(n * 37) as u8, (x * 20 + n) as u8, (y * 25) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// An archive of members in this order, written by the `tar` crate.
pub fn tar(members: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.as_ref().len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name.as_ref(), data.as_ref()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The members of pairs `from..to`: `000007.png`, `000007.txt`.
pub fn members(from: u32, to: u32) -> Vec<(String, Vec<u8>)> {
    let pair = |n: u32| {
        let caption = format!("picture number {n} of a small shard").into_bytes();
        [(format!("{n:06}.png"), png(n)), (format!("{n:06}.txt"), caption)]
    };
    (from..to).flat_map(pair).collect()
}

/// Keys of pairs `from..to`.
pub fn keys(from: u32, to: u32) -> Vec<String> {
    (from..to).map(|n| format!("{n:06}")).collect()
}

/// Writes `{00..}.tar` of `pairs` pairs each and gives the list that names them.
pub fn write_shards(dir: &Path, shards: u32, pairs: u32) -> String {
    for shard in 0..shards {
        let bytes = tar(&members(shard * pairs, (shard + 1) * pairs));
        std::fs::write(dir.join(format!("{shard:02}.tar")), bytes).unwrap();
    }
    format!("{}/{{00..{:02}}}.tar", dir.display(), shards - 1)
}

/// Small pictures, no shuffling, every pair delivered.
pub fn plain(shards: impl Into<String>) -> LoaderConfig {
    LoaderConfig {
        shards: shards.into(),
        batch_size: 4,
        workers: 2,
        shuffle: 0,
        transform: TransformConfig::new(8, Augment::roclip()),
        mode: Mode::Eval,
        drop_last: false,
        ..LoaderConfig::default()
    }
}

/// All that an epoch gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub keys: Vec<String>,
    pub hashes: Vec<String>,
    pub positions: Vec<Position>,
    pub entries: Vec<Entry>,
    pub tally: Tally,
    pub error: Option<String>,
}

/// SHA-256 over every field of a batch.
pub fn hash(batch: &Batch) -> String {
    let mut hasher = Sha256::new();
    batch.images.iter().for_each(|x| hasher.update(x.to_le_bytes()));
    let rest = (&batch.captions, &batch.labels, &batch.samples, batch.image_size);
    hasher.update(format!("{rest:?}"));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `work` on its own thread; a minute without an end is a hang, and fails.
pub fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(outcome) => outcome,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// Reads from a position to the end of its epoch. The tally must close.
pub fn load_from(config: LoaderConfig, start: Position) -> Outcome {
    in_time(move || {
        let mut epoch = Loader::new(config).unwrap().epoch(start).unwrap();
        let mut outcome = Outcome::default();
        while let Some(batch) = epoch.next() {
            match batch {
                Ok(batch) => {
                    outcome.keys.extend(batch.samples.iter().map(|id| id.key.to_string()));
                    outcome.hashes.push(hash(&batch));
                    outcome.positions.push(epoch.position().clone());
                }
                Err(error) => outcome.error = Some(error.to_string()),
            }
        }
        outcome.entries = epoch.take_entries();
        outcome.tally = epoch.position().tally();
        assert!(outcome.tally.closes(), "{:?}", outcome.tally);
        let numbered: u64 = epoch.position().lanes.iter().map(|place| place.next_seq).sum();
        assert_eq!(numbered, outcome.tally.seen);
        outcome
    })
}

/// Reads epoch 0.
pub fn load(config: LoaderConfig) -> Outcome {
    load_from(config, Position::default())
}

/// Epoch 0 of one shard with these bytes.
pub fn load_bytes(bytes: &[u8]) -> Outcome {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    load(plain(file.path().to_str().unwrap()))
}
