//! `embed`: pictures and captions to features on disk, in the order of the shards.
//!
//! | `out` | features | beside them |
//! |---|---|---|
//! | a folder | `images.npy`, `texts.npy` | `keys.jsonl`, `scores.jsonl`, `skips.jsonl` |
//! | `x.npy` | the file itself, of one kind | `x.keys.jsonl`, `x.skips.jsonl` |
//! | `x.safetensors` | its tensors `images`, `texts` | `x.keys.jsonl`, … |
//!
//! A folder also has `thumbnails.npy`, if asked for: `[N, 3·32·32]` of 8 bits, RGB planes.
//!
//! Line `i` of the keys tells what row `i` is: key, shard, and position within it. Where both are
//! embedded, `scores.jsonl` has the cosine of picture and caption, the CLIP score, in the form that
//! `roclip-shards filter` takes. What cannot be read has no row, and a line in `skips.jsonl`. In
//! memory are a few batches.

use super::arrays::{self, Number, Rows};
use super::model::Model;
use super::thumbnails;
use crate::backend::Backend;
use crate::checkpoint::file::publish;
use crate::data::ledger::{Ledger, Tally};
use crate::data::loader::{Loader, LoaderConfig, Position};
use crate::data::sample::Captions;
use crate::data::text::tokenizer::Tokenizer;
use crate::encode::embedder::{cosine, normalize};
use crate::encode::{Clip, Embedder, Keep};
use crate::error::{Error, Result};
use crate::flow::PackedTokens;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the file of thumbnails.
pub const THUMBNAILS: &str = "thumbnails.npy";
/// Longest line of a file of captions, bytes.
const MAX_LINE: u64 = 64 << 10;

/// What is embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Pictures.
    Images,
    /// Captions.
    Texts,
    /// Pictures and captions.
    Both,
}

impl What {
    fn images(self) -> bool {
        self != Self::Texts
    }

    fn texts(self) -> bool {
        self != Self::Images
    }
}

/// Where features go, and in which form.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// A folder, or a file ending in `.npy` or `.safetensors`.
    pub out: PathBuf,
    /// What is embedded.
    pub what: What,
    /// Whether rows are brought to length 1.
    pub normalize: bool,
    /// Whether files that are there are replaced.
    pub overwrite: bool,
    /// Whether thumbnails of pictures are written as well; into a folder only.
    pub thumbnails: bool,
    /// Pictures or captions of a batch.
    pub batch_size: usize,
}

/// What was embedded.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// Rows written.
    pub rows: u64,
    /// What became of every pair; empty for a file of captions.
    pub tally: Tally,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// Files under way, in a hidden folder beside their places; gone if they are not published.
struct Output {
    /// Where the files will stand, and what their names begin with.
    folder: PathBuf,
    stem: String,
    scratch: PathBuf,
    /// The single file of arrays that was asked for.
    single: Option<PathBuf>,
}

impl Output {
    fn create(options: &EmbedOptions) -> Result<Self> {
        let out = &options.out;
        let extension = out.extension().and_then(|e| e.to_str());
        let is_file = matches!(extension, Some("npy" | "safetensors"));
        if extension == Some("npy") && options.what == What::Both {
            return Err(Error::Option {
                flag: "--out".into(),
                got: format!("{}, which holds one array", out.display()),
                expected: "--images or --texts, or a folder or .safetensors for both".into(),
            });
        }
        if is_file && options.thumbnails {
            return Err(Error::Option {
                flag: "--thumbnails".into(),
                got: format!("--out {}, a file of features", out.display()),
                expected: "a folder".into(),
            });
        }
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = out.file_stem().unwrap_or_default().to_string_lossy();
        let (folder, stem, single) = if is_file {
            (parent.to_owned(), format!("{stem}."), Some(out.clone()))
        } else {
            (out.clone(), String::new(), None)
        };
        let scratch = folder.join(format!(".{stem}embed.{}.part", std::process::id()));
        let output = Self { folder, stem, scratch, single };
        let arrays = ["images.npy", "texts.npy"].map(|name| output.place(name));
        let texts = ["keys.jsonl", "scores.jsonl", "skips.jsonl"].map(|name| output.place(name));
        if let Some(there) =
            arrays.iter().chain(&texts).find(|path| !options.overwrite && path.exists())
        {
            return Err(Error::Option {
                flag: "--out".into(),
                got: format!("{} is there already", there.display()),
                expected: "another place, or --force to replace it".into(),
            });
        }
        std::fs::create_dir_all(&output.scratch).map_err(Error::io("create", &output.scratch))?;
        Ok(output)
    }

    /// Where a file will stand.
    fn place(&self, name: &str) -> PathBuf {
        match &self.single {
            Some(single) if name.ends_with(".npy") => single.clone(),
            _ => self.folder.join(format!("{}{name}", self.stem)),
        }
    }

    fn lines(&self, name: &str) -> Result<Lines> {
        let path = self.scratch.join(name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Lines { path, file: BufWriter::new(file) })
    }

    fn rows<T: Number>(&self, name: &str, width: usize) -> Result<Rows<T>> {
        Rows::create(self.scratch.join(name), width)
    }

    /// Brings arrays and texts to their places.
    fn publish(
        self,
        arrays: Vec<(&str, Rows<f32>)>,
        thumbnails: Option<Rows<u8>>,
        texts: &[&str],
    ) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut moved = |from: &Path, to: PathBuf| {
            let rename = |scratch: &Path| std::fs::rename(from, scratch);
            publish(&to, |scratch| rename(scratch).map_err(Error::io("write", &to)))?;
            files.push(to);
            Ok(())
        };
        let finish = |(name, rows): (_, Rows<f32>)| rows.finish().map(|done| (name, done));
        let arrays: Vec<_> = arrays.into_iter().map(finish).collect::<Result<_>>()?;
        let joined = self.single.as_ref().filter(|p| p.extension().is_some_and(|e| e != "npy"));
        for text in texts {
            moved(&self.scratch.join(text), self.place(text))?;
        }
        for (name, (path, _)) in arrays.iter().filter(|_| joined.is_none()) {
            moved(path, self.place(&format!("{name}.npy")))?;
        }
        if let Some(rows) = thumbnails {
            moved(&rows.finish()?.0, self.place(THUMBNAILS))?;
        }
        if let Some(path) = joined {
            arrays::join(path, &arrays)?;
            files.push(path.clone());
        }
        Ok(files)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // What is left is temporary; the first error is the one to tell.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// A file of JSON lines.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn push(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(Error::io("write", &self.path))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}

/// Thumbnails under way.
struct Thumbnails {
    rows: Rows<u8>,
    side: usize,
    normalization: [[f64; 3]; 2],
    batch: Vec<u8>,
}

impl Thumbnails {
    fn open(output: &Output, model: &Model, options: &EmbedOptions) -> Result<Option<Self>> {
        if !options.thumbnails || !options.what.images() {
            return Ok(None);
        }
        let (mean, std) = model.normalization;
        let rows = output.rows(THUMBNAILS, 3 * thumbnails::SIDE.pow(2))?;
        let side = model.config.vision_cfg.image_size();
        Ok(Some(Self { rows, side, normalization: [mean, std], batch: Vec::new() }))
    }

    /// Those of a batch of pictures.
    fn push(&mut self, images: &[f32]) -> Result<()> {
        self.batch.clear();
        thumbnails::append(images, self.side, self.normalization, &mut self.batch);
        self.rows.push(&self.batch)
    }
}

/// Whether the embedded tokenizer is the model's, where captions are read.
fn check_vocabulary(model: &Model, what: What) -> Result<()> {
    if what.texts() { model.check_vocabulary("--texts", ", or --images") } else { Ok(()) }
}

/// The evaluation transform, every pair once, in the order of the shards.
fn loader(model: &Model, options: &EmbedOptions, base: LoaderConfig) -> Result<Loader> {
    let base = model.evaluation(LoaderConfig { batch_size: options.batch_size, ..base });
    let mut fields = base.fields.clone();
    if !options.what.texts() {
        fields.captions = Captions::None;
    }
    Loader::new(LoaderConfig { fields, ..base })
}

/// Embeds the pairs of shards. `base` brings the shards and how they are read; order, batches and
/// transform are set here.
///
/// # Errors
/// [`Error::Option`] where a file is there already, or one array cannot hold what is asked for;
/// those of [`Loader`], of the device and of writing.
pub fn shards<D: Backend>(
    device: &D,
    model: &Model,
    base: LoaderConfig,
    options: &EmbedOptions,
) -> Result<Embedded> {
    check_vocabulary(model, options.what)?;
    let loader = loader(model, options, base)?;
    let mut clip = Clip::new(device, &model.config, options.batch_size, Keep::Inputs)?;
    let weights = model.weights(device)?;
    let mut embedder = Embedder::new(device, &mut clip, &weights)?;
    let (what, width) = (options.what, model.config.embed_dim);
    let output = Output::create(options)?;
    let rows = |wanted: bool, name: &str| wanted.then(|| output.rows(name, width)).transpose();
    let mut images = rows(what.images(), "images.npy")?;
    let mut texts = rows(what.texts(), "texts.npy")?;
    let mut small = Thumbnails::open(&output, model, options)?;
    let (mut keys, mut scores) = (output.lines("keys.jsonl")?, output.lines("scores.jsonl")?);
    let mut ledger = Ledger::open(&output.scratch.join("skips.jsonl"), 0, |_| 0)?;
    let mut epoch = loader.epoch(Position::start_of(0))?;
    let mut count = 0;
    while let Some(batch) = epoch.next().transpose()? {
        let n = batch.len();
        let mut features = [Vec::new(), Vec::new()];
        if what.images() {
            features[0] = embedder.images(&batch.images)?;
        }
        if what.texts() {
            features[1] = embedder.texts(&batch.captions)?;
        }
        for (i, sample) in batch.samples.iter().enumerate() {
            let (key, shard) = (&sample.key, &sample.shard);
            keys.push(&json!({ "key": key, "shard": shard, "index": sample.index }))?;
            if what == What::Both {
                let row = |kind: usize| &features[kind][i * width..][..width];
                let score = cosine(row(0), row(1));
                scores.push(&json!({ "key": key, "shard": shard, "score": score }))?;
            }
        }
        for (features, rows) in features.iter_mut().zip([&mut images, &mut texts]) {
            if options.normalize {
                normalize(features, width);
            }
            rows.as_mut().map_or(Ok(()), |rows| rows.push(features))?;
        }
        small.as_mut().map_or(Ok(()), |small| small.push(&batch.images))?;
        ledger.record(&epoch.take_entries())?;
        count += n as u64;
        epoch.recycle(batch);
    }
    ledger.record(&epoch.take_entries())?;
    let tally = epoch.position().tally();
    keys.finish()?;
    scores.finish()?;
    let arrays = [("images", images), ("texts", texts)];
    let arrays = arrays.into_iter().filter_map(|(name, rows)| Some((name, rows?))).collect();
    let small = small.map(|small| small.rows);
    let with_scores = ["keys.jsonl", "skips.jsonl", "scores.jsonl"];
    let lists = if what == What::Both { &with_scores[..] } else { &with_scores[..2] };
    Ok(Embedded { rows: count, tally, files: output.publish(arrays, small, lists)? })
}

/// Embeds the lines of a text file, each a caption; an empty line is an empty caption. Keys are
/// the numbers of lines, from 1 on.
///
/// # Errors
/// [`Error::Format`] where a line is not UTF-8 or longer than 65,536 bytes; otherwise as
/// [`shards`].
pub fn captions<D: Backend>(
    device: &D,
    model: &Model,
    file: &Path,
    options: &EmbedOptions,
) -> Result<Embedded> {
    let options = EmbedOptions { what: What::Texts, ..options.clone() };
    check_vocabulary(model, options.what)?;
    let input = File::open(file).map_err(Error::io("open", file))?;
    let mut clip = Clip::new(device, &model.config, options.batch_size, Keep::Inputs)?;
    let weights = model.weights(device)?;
    let mut embedder = Embedder::new(device, &mut clip, &weights)?;
    let (tokenizer, context) = (Tokenizer::clip(), model.config.text_cfg.context_length);
    let output = Output::create(&options)?;
    let mut rows = output.rows("texts.npy", model.config.embed_dim)?;
    let mut keys = output.lines("keys.jsonl")?;
    let (mut input, mut line, mut tokens) = (BufReader::new(input), Vec::new(), Vec::new());
    let (mut packed, mut count) = (PackedTokens::new(), 0u64);
    loop {
        line.clear();
        let read = (&mut input).take(MAX_LINE + 1).read_until(b'\n', &mut line);
        let is_end = read.map_err(Error::io("read", file))? == 0;
        if !is_end {
            count += 1;
            let caption = std::str::from_utf8(&line).ok().filter(|_| line.len() as u64 <= MAX_LINE);
            let caption = caption.ok_or_else(|| Error::Format {
                path: file.to_owned(),
                reason: format!("line {count} is not UTF-8 or longer than {MAX_LINE} bytes"),
            })?;
            tokenizer.encode(caption.trim_end_matches(['\r', '\n']), context, &mut tokens);
            packed.push(&tokens);
            keys.push(&json!({ "key": count.to_string() }))?;
        }
        if packed.len() == options.batch_size || is_end && !packed.is_empty() {
            let mut features = embedder.texts(&packed)?;
            if options.normalize {
                normalize(&mut features, model.config.embed_dim);
            }
            rows.push(&features)?;
            packed.clear();
        }
        if is_end {
            break;
        }
    }
    keys.finish()?;
    let files = output.publish(vec![("texts", rows)], None, &["keys.jsonl"])?;
    Ok(Embedded { rows: count, tally: Tally::default(), files })
}
