//! Pairs fetched out of their shards, with pictures small enough for a page.

use crate::data::decode::DecodeLimits;
use crate::data::index::{ShardIndex, local_path, path_beside};
use crate::data::sample::{Contents, Fields, Found, Pair, SampleReader};
use crate::data::shard::{ShardLimits, ShardReader};
use crate::data::source::Shard;
use crate::data::tools::inspect::thumbnail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ImageEncoder, RgbImage, imageops};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Longer side of a thumbnail, in pixels.
pub(super) const SIDE: u32 = 96;
/// Of a thumbnail as JPEG.
const QUALITY: u8 = 82;

/// Which pair of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Name {
    /// Its key.
    Key(String),
    /// Its position.
    Index(u32),
}

/// A pair as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// Its caption.
    pub caption: String,
    /// Its picture, or why there is none; none either where only the caption was asked for.
    pub picture: Result<RgbImage, String>,
}

/// Pairs that are wanted: by shard and name, and whether with the picture.
pub(super) type Wanted = BTreeMap<String, BTreeMap<Name, bool>>;

/// How pairs are read.
#[derive(Clone, Debug, Default)]
pub(super) struct Library {
    /// The shards.
    pub shards: Vec<Shard>,
    /// Which members make a pair.
    pub fields: Fields,
    /// What a shard may cost.
    pub limits: ShardLimits,
    /// What a picture may cost.
    pub decode: DecodeLimits,
}

/// The pairs that were wanted, or why they are not there.
#[derive(Debug, Default)]
pub(super) struct Album {
    pairs: HashMap<(String, Name), Result<Shown, String>>,
}

impl Library {
    /// The shard of that name, or else the only one whose file is called the same: shards are
    /// moved.
    fn find(&self, name: &str) -> Option<(&Shard, u32)> {
        let file = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let numbered = || self.shards.iter().zip(0u32..);
        numbered().find(|(shard, _)| *shard.name == *name).or_else(|| {
            let mut same = numbered().filter(|(shard, _)| file(&shard.name) == file(name));
            same.next().filter(|_| same.next().is_none())
        })
    }

    /// Fetches pairs: from its place where the shard has an index beside it, else by reading the
    /// shard up to the last one that is wanted. What is damaged costs its own pair.
    pub fn fetch(&self, wanted: &Wanted) -> Album {
        let mut album = Album::default();
        for (name, pairs) in wanted {
            let found = match self.find(name) {
                None => Err("its shard is not among the shards; give --shards".into()),
                Some(shard) => Ok(self.fetch_from(shard, pairs)),
            };
            for (pair, &picture) in pairs {
                let shown = match &found {
                    Err(reason) => Err(String::clone(reason)),
                    Ok(found) => match found.get(pair) {
                        None => Err("its shard has no such pair any more".into()),
                        Some(Err(reason)) => Err(reason.clone()),
                        Some(Ok(pair)) => Ok(self.shown(pair, picture)),
                    },
                };
                album.pairs.insert((name.clone(), pair.clone()), shown);
            }
        }
        album
    }

    fn fetch_from(
        &self,
        shard: (&Shard, u32),
        wanted: &BTreeMap<Name, bool>,
    ) -> HashMap<Name, Result<Pair, String>> {
        let fresh = |path: &std::path::Path| {
            let index = ShardIndex::read(&path_beside(path)).ok()?;
            (!index.header.is_stale(path)).then_some(index)
        };
        match local_path(shard.0).ok().and_then(fresh) {
            Some(index) => seek(&index, shard, wanted, &self.limits),
            None => self.scan(shard, wanted),
        }
    }

    fn scan(
        &self,
        (shard, number): (&Shard, u32),
        wanted: &BTreeMap<Name, bool>,
    ) -> HashMap<Name, Result<Pair, String>> {
        let mut found = HashMap::new();
        let input = match ShardReader::open(shard, &self.limits, Arc::default()) {
            Ok(input) => input,
            Err(fault) => {
                let failed = |name: &Name| (name.clone(), Err(fault.to_string()));
                return wanted.keys().map(failed).collect();
            }
        };
        let place = (&shard.name, number);
        for item in SampleReader::new(input, place, &self.fields, Contents::Read, &self.limits) {
            let (id, pair) = match item {
                Found::Pair(pair) => (pair.id.clone(), Ok(pair)),
                Found::Skipped(id, _, fault) => (id, Err(fault.to_string())),
                Found::Damage(..) => continue,
            };
            for name in [Name::Index(id.index), Name::Key(id.key)] {
                if wanted.contains_key(&name) && !found.contains_key(&name) {
                    found.insert(name, pair.clone());
                }
            }
            if found.len() == wanted.len() {
                break;
            }
        }
        found
    }

    fn shown(&self, pair: &Pair, picture: bool) -> Shown {
        let picture = match picture {
            true => thumbnail(&pair.image, SIDE, &self.decode).map_err(|fault| fault.to_string()),
            false => Err("not asked for".into()),
        };
        Shown { caption: pair.caption.clone(), picture }
    }
}

fn seek(
    index: &ShardIndex,
    shard: (&Shard, u32),
    wanted: &BTreeMap<Name, bool>,
    limits: &ShardLimits,
) -> HashMap<Name, Result<Pair, String>> {
    let place = |name: &Name| match name {
        Name::Index(n) => Some(*n as usize).filter(|&n| n < index.entries.len()),
        Name::Key(key) => index.entries.iter().position(|entry| *entry.key == **key),
    };
    let pair = |name: &Name| {
        let pair = index.fetch(shard, place(name)?, limits).map_err(|fault| fault.to_string());
        Some((name.clone(), pair))
    };
    wanted.keys().filter_map(pair).collect()
}

impl Album {
    /// A pair that was wanted.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn get(&self, shard: &str, name: Name) -> Result<&Shown, &str> {
        match self.pairs.get(&(shard.to_owned(), name)) {
            Some(Ok(shown)) => Ok(shown),
            Some(Err(reason)) => Err(reason),
            None => Err("it was not looked for"),
        }
    }
}

/// The mean of pictures, each stretched to a square; `None` of none.
pub(super) fn average<'a>(pictures: impl Iterator<Item = &'a RgbImage>) -> Option<RgbImage> {
    let mut sums = vec![0u32; (3 * SIDE * SIDE) as usize];
    let mut count = 0u32;
    for picture in pictures {
        let square = imageops::resize(picture, SIDE, SIDE, imageops::FilterType::Triangle);
        sums.iter_mut().zip(square.as_raw()).for_each(|(sum, &value)| *sum += u32::from(value));
        count += 1;
    }
    let mean = |sum: &u32| ((sum + count / 2) / count) as u8;
    let picture = || RgbImage::from_raw(SIDE, SIDE, sums.iter().map(mean).collect());
    (count > 0).then(picture).flatten()
}

/// A picture as the address of itself: JPEG for what is looked at once, PNG where every pixel
/// counts.
pub(super) fn data_url(picture: &RgbImage, exact: bool) -> String {
    let mut bytes = Vec::new();
    let (width, height) = picture.dimensions();
    let form = image::ExtendedColorType::Rgb8;
    let written = match exact {
        true => PngEncoder::new(&mut bytes).write_image(picture, width, height, form),
        false => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
            encoder.write_image(picture, width, height, form)
        }
    };
    written.expect("memory takes every picture");
    let kind = if exact { "png" } else { "jpeg" };
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tar::write::{append, finish};
    use image::Rgb;
    use std::path::Path;

    fn picture(value: u8) -> RgbImage {
        RgbImage::from_fn(20, 10, |x, y| Rgb([x as u8 * 9, y as u8 * 20, value]))
    }

    fn write_shard(path: &Path) {
        let (mut archive, form) = (Vec::new(), image::ImageFormat::Png);
        for n in 0..5u8 {
            let mut png = std::io::Cursor::new(Vec::new());
            picture(50 * n).write_to(&mut png, form).unwrap();
            let mut png = png.into_inner();
            if n == 3 {
                png.truncate(60);
            }
            append(&mut archive, &format!("k{n}.png"), &png).unwrap();
            append(&mut archive, &format!("k{n}.txt"), format!("caption {n}").as_bytes()).unwrap();
        }
        finish(&mut archive).unwrap();
        std::fs::write(path, archive).unwrap();
    }

    /// With an index and without: the same pairs, or the same reasons why not.
    #[test]
    fn pairs_are_fetched_by_key_and_by_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        write_shard(&path);
        let shard = Shard::file(&path);
        let library = Library { shards: vec![shard.clone()], ..Library::default() };
        let key = |n: u8| Name::Key(format!("k{n}"));
        let names = [(key(4), true), (Name::Index(1), true), (Name::Index(4), false)];
        let gone = [(key(9), true), (Name::Index(99), true), (key(3), true)];
        let pairs: BTreeMap<Name, bool> = names.into_iter().chain(gone).collect();
        let wanted =
            Wanted::from([("elsewhere/a.tar".into(), pairs.clone()), ("b.tar".into(), pairs)]);
        for indexed in [false, true] {
            if indexed {
                let index = ShardIndex::build(&shard, &library.fields, &library.limits).unwrap();
                index.write(&path_beside(&path)).unwrap();
            }
            let album = library.fetch(&wanted);
            let get = |name: Name| album.get("elsewhere/a.tar", name);
            assert_eq!(get(key(4)).unwrap().caption, "caption 4");
            let one = get(Name::Index(1)).unwrap();
            let shown = one.picture.as_ref().unwrap();
            assert_eq!((&*one.caption, shown.dimensions()), ("caption 1", (96, 48)));
            assert!(shown.pixels().all(|pixel| pixel[2].abs_diff(50) < 3));
            assert!(get(Name::Index(4)).unwrap().picture.is_err());
            assert!(get(key(3)).unwrap().picture.as_ref().unwrap_err().len() > 5);
            assert!(get(key(9)).unwrap_err().contains("no such pair"));
            assert!(get(Name::Index(99)).unwrap_err().contains("no such pair"));
            assert!(get(key(0)).unwrap_err().contains("not looked for"));
            assert!(album.get("b.tar", key(4)).unwrap_err().contains("--shards"));
        }
    }

    #[test]
    fn the_average_is_the_mean_of_every_pixel() {
        let flat = |value: u8, side: u32| RgbImage::from_pixel(side, side, Rgb([value, 0, 255]));
        let mut patched = flat(10, SIDE);
        patched.put_pixel(3, 5, Rgb([250, 100, 0]));
        let mean = average([&patched, &flat(21, 7)].into_iter()).unwrap();
        assert_eq!(mean.dimensions(), (SIDE, SIDE));
        assert_eq!(mean.get_pixel(0, 0), &Rgb([16, 0, 255]));
        assert_eq!(mean.get_pixel(3, 5), &Rgb([136, 50, 128]));
        assert!(average([].into_iter()).is_none());
    }

    #[test]
    fn pictures_are_read_back_from_their_addresses() {
        let picture = picture(77);
        for exact in [true, false] {
            let url = data_url(&picture, exact);
            let (_, code) = url.split_once(";base64,").unwrap();
            let read = image::load_from_memory(&STANDARD.decode(code).unwrap()).unwrap().to_rgb8();
            let pairs = read.as_raw().iter().zip(picture.as_raw());
            let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(
                read.dimensions() == (20, 10) && worst <= if exact { 0 } else { 24 },
                "{worst}"
            );
        }
    }
}
