//! The pairs that the bench runs on: given shards, or small ones made on the spot.

use roclip::data::count::count_pairs;
use roclip::data::pool::BufferPool;
use roclip::data::sample::{Contents, Fields, Found, Pair, SampleReader};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::{Shard, SourceOptions, list_shards};
use roclip::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Shards, and some of their pairs in memory.
pub struct Corpus {
    /// What the report calls it.
    pub name: String,
    /// As `--train-data` takes it.
    pub shards: String,
    /// Pairs in all shards.
    pub count: usize,
    /// The first pairs.
    pub pairs: Vec<Pair>,
}

impl Corpus {
    /// Keeps the first `most` pairs of these shards.
    ///
    /// # Errors
    /// There are no such shards, or no pair in them.
    pub fn open(name: &str, shards: &str, most: usize) -> Result<Self> {
        let (mut pairs, listed) = (Vec::new(), list_shards(shards, &SourceOptions::default())?);
        let count = count_pairs(&listed, &Fields::default(), &ShardLimits::default())?.pairs();
        for (n, shard) in listed.iter().enumerate() {
            let found = reader(shard, n)?;
            let good = found.filter_map(|found| match found {
                Found::Pair(pair) => Some(pair),
                _ => None,
            });
            pairs.extend(good.take(most - pairs.len()));
        }
        if pairs.is_empty() {
            let reason = "there is no pair in them".into();
            return Err(Error::Shards { pattern: shards.into(), reason });
        }
        let (name, shards) = (name.into(), shards.into());
        Ok(Self { name, shards, count: count as usize, pairs })
    }

    /// The list of shards, as often as it takes to hold so many pairs: one long epoch, as those of
    /// pre-training are.
    pub fn repeated(&self, pairs: usize) -> String {
        vec![&*self.shards; pairs.div_ceil(self.count).max(1)].join("::")
    }

    /// Two shards of `count` pictures each of this size, written to `dir`: waves and some noise,
    /// as JPEG without halved chroma.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn synthetic(dir: &Path, count: u32, size: [u32; 2]) -> Result<Self> {
        for shard in 0..2 {
            let mut tar = tar::Builder::new(Vec::new());
            for n in shard * count..(shard + 1) * count {
                let text = format!("a photo of waves number {n}, in colours seldom seen & noisy");
                append(&mut tar, &format!("{n:06}.jpg"), &jpeg(n, size));
                append(&mut tar, &format!("{n:06}.txt"), text.as_bytes());
            }
            let path = dir.join(format!("{shard:02}.tar"));
            let bytes = tar.into_inner().expect("memory takes everything");
            std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        let shards = format!("{}/{{00..01}}.tar", dir.display());
        let name = format!("synthetic {}x{}", size[0], size[1]);
        Self::open(&name, &shards, 2 * count as usize)
    }

    /// Reads and groups every member once, as a reader of the loader does; the number of pairs.
    ///
    /// # Errors
    /// There are no such shards any more.
    pub fn read(&self, pool: &Arc<BufferPool>) -> Result<usize> {
        let mut pairs = 0;
        for (n, shard) in list_shards(&self.shards, &SourceOptions::default())?.iter().enumerate() {
            for found in reader(shard, n)?.with_pool(pool) {
                if let Found::Pair(Pair { id, image, caption, .. }) = found {
                    pairs += 1;
                    let used = [image, caption.into_bytes(), id.key.into_bytes()];
                    used.into_iter().for_each(|used| pool.give(used));
                }
            }
        }
        Ok(pairs)
    }

    /// Reads the bytes of every shard once, into one buffer that stays in a core's cache: the copy
    /// that no reader can do without.
    ///
    /// # Errors
    /// There are no such files any more.
    pub fn read_bytes(&self) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        for shard in list_shards(&self.shards, &SourceOptions::default())? {
            let failed = |e| Error::io("read", &*shard.name)(e);
            let mut file = File::open(&*shard.name).map_err(failed)?;
            while file.read(&mut buffer).map_err(failed)? > 0 {}
        }
        Ok(())
    }
}

fn reader(shard: &Shard, n: usize) -> Result<SampleReader<ShardReader>> {
    let limits = ShardLimits::default();
    let opened = ShardReader::open(shard, &limits, Arc::default());
    let input = opened.map_err(|fault| {
        let (pattern, reason) = (shard.name.to_string(), fault.to_string());
        Error::Shards { pattern, reason }
    })?;
    let place = (&shard.name, n as u32);
    Ok(SampleReader::new(input, place, &Fields::default(), Contents::Read, &limits))
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, data).expect("memory takes everything");
}

fn jpeg(n: u32, [width, height]: [u32; 2]) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503 + n)) >> 27;
        let wave = |a: u32, b: u32| (((x * a + y * b + n * 7) as f32 * 0.01).sin() + 1.0) * 100.0;
        image::Rgb([wave(3, 1), wave(1, 2), wave(5, 4)].map(|v| v as u8 + noise as u8))
    });
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 88);
    picture.write_with_encoder(encoder).expect("memory takes everything");
    bytes
}
