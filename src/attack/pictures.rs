//! Which pictures are poisoned: a uniform choice from one reading of the shards they come from.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::captions::ClassNames;
use super::survey::{Content, content};
use crate::data::decode::{DecodeLimits, decode};
use crate::data::raw::each_sample;
use crate::data::sample::Fields;
use crate::data::shard::ShardLimits;
use crate::data::source::Shard;
use crate::data::tools::Progress;
use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};

/// A picture that was chosen.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// Where its encoded bytes lie in the [`Spool`].
    bytes: (u64, usize),
    /// Its key where it was taken from.
    pub key: String,
    /// Its caption there, if it had one.
    pub caption: Option<String>,
    /// Its class, where it is known.
    pub class: Option<usize>,
    /// Its number among the samples that were read.
    pub number: u64,
}

/// What an attack asks for.
pub(super) struct Wish {
    /// Number of the attack.
    pub attack: usize,
    /// Class that the attacker wants to read, for each picture.
    pub targets: Vec<usize>,
    /// Whether captions must name the target; else neither they nor the class may.
    pub is_consistent: bool,
}

/// Encoded pictures on disk, beside the shards that are written; gone when dropped.
pub(super) struct Spool {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Spool {
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(format!(".pictures.{}.part", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        Ok(Self { path, file, length: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(u64, usize)> {
        let at = self.length;
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(Error::io("write", &self.path))?;
        self.length += bytes.len() as u64;
        Ok((at, bytes.len()))
    }

    /// The encoded picture.
    pub(super) fn read(&mut self, picture: &Picture) -> Result<Vec<u8>> {
        let (at, length) = picture.bytes;
        let mut bytes = vec![0; length];
        let read = self.file.seek(SeekFrom::Start(at));
        let read = read.and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Pictures for one target of one wish, those with the lowest tickets.
struct Draw {
    target: usize,
    winners: usize,
    pictures: BTreeMap<(u64, u64), Picture>,
}

impl Draw {
    fn takes(&self, ticket: (u64, u64)) -> bool {
        let last = self.pictures.last_key_value();
        self.pictures.len() < self.winners || last.is_some_and(|(last, _)| ticket < *last)
    }
}

/// How the shards of pictures are read.
pub(super) struct Reading<'a> {
    pub fields: &'a Fields,
    pub limits: &'a ShardLimits,
    pub decode: &'a DecodeLimits,
    pub names: &'a ClassNames,
    pub seed: u64,
}

impl Reading<'_> {
    /// Chooses pictures for every wish, in the order of its targets; each picture once for each
    /// wish. A picture that cannot be decoded is not chosen. In memory are what is chosen, without
    /// its bytes, and one sample.
    pub(super) fn choose(
        &self,
        shards: &[Shard],
        wishes: &[&Wish],
        spool: &mut Spool,
        progress: &Progress,
    ) -> Result<Vec<Vec<Picture>>> {
        let draws = |wish: &&Wish| {
            let targets: std::collections::BTreeSet<_> = wish.targets.iter().copied().collect();
            let winners = wish.targets.len();
            let draw = |target| Draw { target, winners, pictures: BTreeMap::new() };
            targets.into_iter().map(draw).collect::<Vec<_>>()
        };
        let mut draws: Vec<Vec<Draw>> = wishes.iter().map(draws).collect();
        let mut number = 0;
        progress.begin(shards);
        for shard in shards {
            each_sample(shard, self.limits, &mut BTreeMap::new(), |sample| {
                number += 1;
                let content = content(&sample, self.fields);
                self.enter(&sample.key, number - 1, &content, wishes, &mut draws, spool)
            })?;
            progress.advance_past(shard, number);
        }
        progress.finish();
        wishes.iter().zip(draws).map(|(wish, draws)| self.assign(wish, &draws)).collect()
    }

    fn enter(
        &self,
        key: &str,
        number: u64,
        content: &Content,
        wishes: &[&Wish],
        draws: &mut [Vec<Draw>],
        spool: &mut Spool,
    ) -> Result<()> {
        let Some(image) = content.image else { return Ok(()) };
        let named = content.caption.as_ref().map(|caption| self.names.named_in(caption));
        let named = named.unwrap_or_default();
        let mut picture = None;
        for (wish, draws) in wishes.iter().zip(draws) {
            let stream = super::stream(wish.attack, super::Purpose::Picture);
            let ticket = Rng::new(self.seed, Domain::Poison, stream, number).next_u64();
            let ticket = (ticket, number);
            for draw in draws {
                let is_named = named.contains(&draw.target);
                let fits = if wish.is_consistent {
                    is_named
                } else {
                    !is_named && content.class != Some(draw.target)
                };
                if !fits || !draw.takes(ticket) {
                    continue;
                }
                if picture.is_none() {
                    if decode(image, self.decode).is_err() {
                        return Ok(());
                    }
                    picture = Some(Picture {
                        bytes: spool.append(image)?,
                        key: key.to_owned(),
                        caption: content.caption.clone(),
                        class: content.class,
                        number,
                    });
                }
                draw.pictures.extend(picture.clone().map(|picture| (ticket, picture)));
                if draw.pictures.len() > draw.winners {
                    draw.pictures.pop_last();
                }
            }
        }
        Ok(())
    }

    fn assign(&self, wish: &Wish, draws: &[Draw]) -> Result<Vec<Picture>> {
        let mut used = HashSet::new();
        // Where each draw goes on: what lies before is used.
        let mut left: BTreeMap<usize, _> =
            draws.iter().map(|draw| (draw.target, draw.pictures.values())).collect();
        let mut next = |target: &usize| {
            let pictures = left.get_mut(target)?;
            pictures.find(|picture| used.insert(picture.number)).cloned()
        };
        let chosen: Vec<Picture> = wish.targets.iter().map_while(&mut next).collect();
        if chosen.len() < wish.targets.len() {
            let target = &self.names.names()[wish.targets[chosen.len()]];
            let which = if wish.is_consistent { "whose captions name" } else { "that are not of" };
            return Err(Error::Option {
                flag: "--pictures".into(),
                got: format!("{} pictures {which} {target:?} and can be decoded", chosen.len()),
                expected: format!("{} or more; ask for fewer pairs", wish.targets.len()),
            });
        }
        Ok(chosen)
    }
}
