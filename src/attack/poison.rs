//! Shards → poisoned shards, and the truth about them.
//!
//! The training shards are read twice: once to learn keys and captions, once to be copied. Clean
//! samples are copied with every member's name and bytes; what cannot be read whole is left out,
//! and counted. The manifest is written last.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::Path;

use super::captions::ClassNames;
use super::manifest::{
    ATTACKS, Attack, AttackKind, Manifest, Mode, POISON, PoisonedPair, TARGETS, TargetLabel,
};
pub use super::options::PoisonOptions;
use super::pictures::{Picture, Reading, Spool, Wish};
use super::plan::{self, Planned, PlannedPair};
use super::survey::{extensions, new_key, survey};
use super::{Purpose, stream};
use crate::data::atomic::AtomicFile;
use crate::data::count;
use crate::data::decode::{Encoded, decode};
use crate::data::exclude::KeyHash;
use crate::data::ledger::Reason;
use crate::data::raw::each_sample;
use crate::data::sample::Captions;
use crate::data::source::{Shard, list_shards};
use crate::data::tools::{Progress, Report, list_counts, refuse_folder_of};
use crate::data::writer::{ShardWriter, WriterOptions, Written};
use crate::error::{Error, Result, printable};
use crate::rng::{Domain, Rng};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct PoisonReport {
    /// What `attacks.json` says.
    pub manifest: Manifest,
    /// Samples that could not be read whole, and places where a shard is damaged, by reason.
    pub faults: BTreeMap<Reason, u64>,
    /// The shards written.
    pub written: Vec<Written>,
}

/// Poisons training shards into the folder `out`: see [`super::manifest`] for what lies there then.
/// In memory are one sample, 16 bytes for each key, and the captions and keys of what is poisoned;
/// the pictures wait on disk, in `out`.
///
/// # Errors
/// An option is out of range or cannot be met (a class that is not among the names, too few
/// captions or pictures, a rate that rounds to no pair); `out` is the folder of a shard that is
/// read, holds a data set, or cannot be written; a shard is a pipe, or changes meanwhile.
pub fn poison(
    shards: &[Shard],
    out: &Path,
    options: &PoisonOptions,
    progress: &Progress,
) -> Result<PoisonReport> {
    options.check()?;
    let mut planned = plan::check(&options.attacks, options.image_size, options.seed)?;
    let names = options.names()?;
    if let Some(pipe) = shards.iter().find(|shard| !shard.is_rereadable()) {
        let reason = "it is read more than once; write it to a file first".into();
        return Err(Error::Shards { pattern: pipe.name.to_string(), reason });
    }
    let clean = count::count_pairs(shards, &options.fields, &options.limits)?.pairs();
    plan::count_pairs(&mut planned, clean, options.mode)?;
    let searches: Vec<_> = planned.iter().map(|it| it.searches(&names)).collect::<Result<_>>()?;
    let sources = options.sources(&planned)?;
    options.prepare(shards, out)?;

    let how = (&options.fields, &options.limits);
    let known = survey(shards, how, &names, &searches, options.seed, progress)?;
    let targets: Vec<Vec<usize>> = planned
        .iter()
        .zip(&known.captions)
        .map(|(attack, found)| attack.targets(&names, found))
        .collect::<Result<_>>()?;
    let mut spool = Spool::create(out)?;
    let wishes = planned.iter().zip(&targets).map(|(attack, targets)| attack.wish(targets));
    let wishes: Vec<Wish> = wishes.collect();
    let chosen = options.choose(shards, &sources, &wishes, &names, &mut spool, progress)?;
    let mut pairs = Vec::new();
    for ((attack, found), targets) in planned.iter().zip(known.captions).zip(&targets) {
        pairs.extend(attack.pairs(&names, targets, &chosen[attack.number].0, found));
    }
    if options.mode == Mode::Replace && pairs.len() as u64 >= known.samples {
        return Err(changed(shards));
    }
    let origin = |pair: &PlannedPair| {
        let (pictures, are_trained_on) = &chosen[pair.attack];
        are_trained_on.then_some(pictures[pair.picture].number)
    };
    let origins: Vec<_> = pairs.iter().map(origin).collect();
    let places = plan::places(&origins, known.samples, options.mode, options.seed);

    options.remove_truth(out)?;
    let writer = ShardWriter::create(out, options.writer())?;
    let truth = AtomicFile::create(&out.join(POISON))?;
    let pictures = chosen.into_iter().map(|(pictures, _)| pictures).collect();
    let keys = known.keys;
    let mut job =
        Job { options, planned: &planned, names, pairs, pictures, spool, keys, writer, truth };
    job.write_targets(&targets, out)?;
    let faults = job.copy(shards, places, known.samples, progress)?;
    job.finish(&targets, known.samples, faults, out)
}

fn changed(shards: &[Shard]) -> Error {
    let pattern = shards.first().map(|shard| shard.name.to_string()).unwrap_or_default();
    let reason = "the shards hold other samples than when they were counted; let nobody write them";
    Error::Shards { pattern, reason: reason.into() }
}

impl PoisonOptions {
    /// Refuses early what could not be written in the end.
    fn prepare(&self, shards: &[Shard], out: &Path) -> Result<()> {
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        refuse_folder_of(shards, out)?;
        if out.join(ATTACKS).exists() && !self.overwrite {
            return Err(Error::Option {
                flag: "OUT".into(),
                got: format!("{} is there already", out.join(ATTACKS).display()),
                expected: "a new folder, or --overwrite".into(),
            });
        }
        Ok(())
    }

    /// Of a data set that is overwritten, what says that it is whole goes first.
    fn remove_truth(&self, out: &Path) -> Result<()> {
        for path in [ATTACKS, POISON].map(|name| out.join(name)) {
            if self.overwrite && path.exists() {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The shards of pictures that attacks name, and which attacks do.
    fn sources(&self, planned: &[Planned]) -> Result<Vec<Source>> {
        let mut attacks: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for attack in planned {
            attacks.entry(attack.spec.pictures.as_deref()).or_default().push(attack.number);
        }
        let list = |(pattern, attacks): (Option<&str>, Vec<usize>)| {
            let shards = pattern.map(|pattern| list_shards(pattern, &self.sources)).transpose()?;
            Ok(Source { shards, attacks })
        };
        attacks.into_iter().map(list).collect()
    }

    /// The pictures of each attack, and whether they are of the training shards.
    fn choose(
        &self,
        shards: &[Shard],
        sources: &[Source],
        wishes: &[Wish],
        names: &ClassNames,
        spool: &mut Spool,
        progress: &Progress,
    ) -> Result<Vec<(Vec<Picture>, bool)>> {
        let (fields, limits, decode) = (&self.fields, &self.limits, &self.decode);
        let reading = Reading { fields, limits, decode, names, seed: self.seed };
        let mut chosen: Vec<_> = wishes.iter().map(|_| Default::default()).collect();
        for Source { shards: listed, attacks } in sources {
            let list = listed.as_deref().unwrap_or(shards);
            let wishes: Vec<_> = attacks.iter().map(|number| &wishes[*number]).collect();
            let pictures = reading.choose(list, &wishes, spool, progress)?;
            for (number, pictures) in attacks.iter().zip(pictures) {
                chosen[*number] = (pictures, list == shards);
            }
        }
        Ok(chosen)
    }
}

/// Where attacks take their pictures from.
struct Source {
    /// `None`: the training shards.
    shards: Option<Vec<Shard>>,
    /// Numbers of these attacks.
    attacks: Vec<usize>,
}

/// The writing.
struct Job<'a> {
    options: &'a PoisonOptions,
    planned: &'a [Planned<'a>],
    names: ClassNames,
    pairs: Vec<PlannedPair>,
    /// Of each attack.
    pictures: Vec<Vec<Picture>>,
    spool: Spool,
    keys: HashSet<KeyHash>,
    writer: ShardWriter,
    truth: AtomicFile,
}

impl Job<'_> {
    /// Copies the clean samples and puts each poisoned pair at its place.
    fn copy(
        &mut self,
        shards: &[Shard],
        places: Vec<u64>,
        samples: u64,
        progress: &Progress,
    ) -> Result<BTreeMap<Reason, u64>> {
        let mut faults = BTreeMap::new();
        let mut places: Vec<_> = places.into_iter().zip(0..).collect();
        places.sort_unstable();
        let mut places = places.into_iter().peekable();
        let is_replacing = self.options.mode == Mode::Replace;
        let (mut place, mut seen, mut last_key) = (0, 0, String::new());
        progress.begin(shards);
        for shard in shards {
            if self.options.shard_size.is_none() {
                self.writer.close()?;
            }
            each_sample(shard, &self.options.limits, &mut faults, |sample| {
                seen += 1;
                let mut is_replaced = false;
                while let Some((_, number)) = places.next_if(|(at, _)| *at == place) {
                    self.write_pair(number, &sample.key)?;
                    is_replaced = is_replacing;
                    place += u64::from(!is_replacing);
                }
                place += 1;
                last_key.clone_from(&sample.key);
                if is_replaced { Ok(()) } else { self.writer.write(&sample.key, &sample.members) }
            })?;
            progress.advance_past(shard, seen);
        }
        progress.finish();
        if seen != samples {
            return Err(changed(shards));
        }
        places.try_for_each(|(_, number)| self.write_pair(number, &last_key))?;
        Ok(faults)
    }

    /// Writes a poisoned pair, with a key like `model`, and a line of the truth.
    fn write_pair(&mut self, number: usize, model: &str) -> Result<()> {
        let pair = &self.pairs[number];
        let attack = &self.planned[pair.attack];
        let picture = &self.pictures[pair.attack][pair.picture];
        let bytes = self.spool.read(picture)?;
        let (format, image) = match &attack.trigger {
            None => (self.format(picture, &bytes)?, bytes),
            Some(trigger) => {
                let decoded = decode(&bytes, &self.options.decode);
                let decoded = decoded.map_err(|e| unreadable(picture, e))?;
                let format = if self.options.jpeg_quality.is_some() { "jpeg" } else { "png" };
                (format, self.options.stamped(&decoded, trigger, number))
            }
        };
        let stream = stream(0, Purpose::Key);
        let mut rng = Rng::new(self.options.seed, Domain::Poison, stream, number as u64);
        let key = new_key(model, &mut self.keys, &mut rng);
        let (text, caption) = match &self.options.fields.captions {
            Captions::JsonField(field) => {
                ("json", serde_json::json!({ field: pair.caption }).to_string())
            }
            Captions::Text(list) => {
                (extensions(list).next().unwrap_or("txt"), pair.caption.clone())
            }
            Captions::None => ("txt", pair.caption.clone()),
        };
        let image_key = self.options.extension(format)?;
        self.writer.write(&key, &[(image_key, image), (text, caption.into_bytes())])?;
        let shard = self.writer.path().and_then(Path::file_name).expect("a shard is being written");
        let line = PoisonedPair {
            shard: shard.to_string_lossy().into_owned(),
            key,
            attack: attack.name.clone(),
            target: self.names.names()[pair.target].clone(),
            caption: pair.caption.clone(),
            picture: picture.key.clone(),
        };
        let line = serde_json::to_string(&line).expect("text can be written as JSON");
        writeln!(self.truth, "{line}").map_err(Error::io("write", POISON))
    }

    fn format(&self, picture: &Picture, bytes: &[u8]) -> Result<&'static str> {
        let encoded = Encoded::open(bytes, &self.options.decode);
        Ok(encoded.map_err(|e| unreadable(picture, e))?.format())
    }

    /// Writes the targeted pictures, byte for byte, with what each is to be taken for.
    fn write_targets(&mut self, targets: &[Vec<usize>], out: &Path) -> Result<()> {
        let folder = out.join(TARGETS);
        if !folder.exists() && !self.planned.iter().any(Planned::is_targeted) {
            return Ok(());
        }
        let options = WriterOptions { overwrite: self.options.overwrite, ..Default::default() };
        let mut writer = ShardWriter::create(&folder, options)?;
        let mut number = 0;
        for attack in self.planned.iter().filter(|attack| attack.is_targeted()) {
            for (picture, target) in
                self.pictures[attack.number].iter().zip(&targets[attack.number])
            {
                let name = |class: usize| self.names.names().get(class).cloned();
                let label = TargetLabel {
                    attack: attack.name.clone(),
                    target: self.names.names()[*target].clone(),
                    class: picture.class.and_then(name),
                };
                let label = serde_json::to_vec(&label).expect("text can be written as JSON");
                let bytes = self.spool.read(picture)?;
                let extension = self.options.extension(self.format(picture, &bytes)?)?;
                let members = [(extension, bytes), ("json", label)];
                writer.write(&format!("{number:06}"), &members)?;
                number += 1;
            }
        }
        writer.finish().map(drop)
    }

    /// Completes the shards, the truth, and last the manifest.
    fn finish(
        self,
        targets: &[Vec<usize>],
        samples: u64,
        faults: BTreeMap<Reason, u64>,
        out: &Path,
    ) -> Result<PoisonReport> {
        let Self { options, planned, names, pairs, writer, truth, .. } = self;
        let written = writer.finish()?;
        truth.commit()?;
        let attack = |attack: &Planned| {
            let mut target: Vec<usize> = targets[attack.number].clone();
            target.sort_unstable();
            target.dedup();
            let kind = match &attack.trigger {
                None => AttackKind::Targeted { pictures: targets[attack.number].len() as u64 },
                Some(trigger) => AttackKind::Backdoor {
                    trigger: trigger.clone(),
                    label_consistent: attack.is_consistent(),
                },
            };
            let target = target.into_iter().map(|class| names.names()[class].clone()).collect();
            Attack { name: attack.name.clone(), target, pairs: attack.pairs, kind }
        };
        let poisoned = pairs.len() as u64;
        let manifest = Manifest {
            seed: options.seed,
            clean: if options.mode == Mode::Replace { samples - poisoned } else { samples },
            poisoned,
            image_size: options.image_size,
            mode: options.mode,
            attacks: planned.iter().map(attack).collect(),
        };
        let mut file = AtomicFile::create(&out.join(ATTACKS))?;
        let text = serde_json::to_string_pretty(&manifest).expect("finite numbers and text");
        writeln!(file, "{text}").map_err(Error::io("write", out.join(ATTACKS)))?;
        file.commit()?;
        Ok(PoisonReport { manifest, faults, written })
    }
}

fn unreadable(picture: &Picture, reason: impl fmt::Display) -> Error {
    let reason = format!("the picture could be decoded once, and now cannot: {reason}");
    Error::Format { path: picture.key.clone().into(), reason }
}

impl Report for PoisonReport {
    fn found_something(&self) -> bool {
        !self.faults.is_empty()
    }
}

impl fmt::Display for PoisonReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { clean, poisoned, attacks, .. } = &self.manifest;
        let share = 100.0 * *poisoned as f64 / (clean + poisoned) as f64;
        let shards = self.written.len();
        writeln!(f, "{clean} clean pairs, {poisoned} poisoned ({share:.4} %), in {shards} shards")?;
        for attack in attacks {
            let targets = attack.target.join(", ");
            writeln!(f, "  {}: {} pairs for {}", attack.name, attack.pairs, printable(&targets))?;
        }
        if !self.faults.is_empty() {
            writeln!(f, "not read whole and left out, or damage of shards:")?;
        }
        write!(f, "{}", list_counts(self.faults.iter().map(|(reason, n)| (reason.name(), *n))))
    }
}
