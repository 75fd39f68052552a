//! Speed of the shard streamer, by stage and as a whole.
//!
//! `cargo bench --bench loader -- [--shards500 SHARDS] [--shards1024 SHARDS] [--quick]`; the script
//! `scripts/loader_corpus.py` makes both corpora, without any a small one is made on the spot.
//! For open_clip's crop and RoCLIP's full set, fast and exact: microseconds a pair and stage, the
//! floor (the decoder alone on the same parts at the same scale, and one resize), what CPU time
//! and speed the loader reaches with one worker and two, and a hash of the first batch, which must
//! be the same for both. `--peer` runs one of them for `scripts/loader_peers.py`.

#[path = "loader/clock.rs"]
mod clock;
#[path = "loader/corpus.rs"]
mod corpus;
#[path = "loader/stages.rs"]
mod stages;
#[path = "loader/whole.rs"]
mod whole;

use clap::Parser;
pub use corpus::Corpus;
use roclip::data::loader::{LoaderConfig, TextOptions};
use roclip::data::text::eda::Eda;
use roclip::data::text::wordnet::WordNet;
use roclip::data::transform::{Augment, Fidelity, Transform, TransformConfig};
use roclip::{Error, Result};
use serde_json::json;
use stages::Stages;
use std::sync::Arc;
use std::time::{Duration, Instant};
use whole::Run;

/// Captions a second at which the tokeniser's share of a core is told.
const CAPTIONS_PER_SECOND: f64 = 18_000.0;
/// Pairs of a batch.
const BATCH: usize = 64;

/// One way of making batches.
pub struct Setting {
    name: &'static str,
    transform: TransformConfig,
    eda: Option<Eda>,
}

/// open_clip's crop and RoCLIP's set with its changes of captions, each fast and exact.
///
/// # Errors
/// WordNet, which the changes of captions need, is there but broken.
pub fn settings(image_size: usize) -> Result<Vec<Setting>> {
    let eda = Eda::new(WordNet::find(None)?.map(Arc::new));
    let kinds = [
        ("clip-fast", Augment::clip(), Fidelity::Fast, None),
        ("clip-exact", Augment::clip(), Fidelity::Exact, None),
        ("roclip-fast", Augment::roclip(), Fidelity::Fast, Some(eda.clone())),
        ("roclip-exact", Augment::roclip(), Fidelity::Exact, Some(eda)),
    ];
    let setting = |(name, train, fidelity, eda)| {
        let transform = TransformConfig { fidelity, ..TransformConfig::new(image_size, train) };
        Setting { name, transform, eda }
    };
    Ok(kinds.into_iter().map(setting).collect())
}

impl Setting {
    fn loader(&self, corpus: &Corpus, pairs: usize, workers: usize) -> LoaderConfig {
        LoaderConfig {
            shards: corpus.repeated(pairs),
            batch_size: BATCH,
            workers,
            readers: 1,
            transform: self.transform.clone(),
            text: TextOptions { eda: self.eda.clone(), ..TextOptions::default() },
            ..LoaderConfig::default()
        }
    }
}

/// How much is measured.
pub struct Effort {
    /// Pixels a side of the result.
    pub image_size: usize,
    /// Of the stages.
    pub rounds: usize,
    /// Pairs that a loader delivers at least.
    pub pairs: usize,
}

/// What was found for one setting.
pub struct Line {
    /// The setting.
    pub name: &'static str,
    /// By stage.
    pub stages: Stages,
    /// With one worker and with two.
    pub runs: [Run; 2],
    /// First batch with one worker and with two.
    pub hashes: [u64; 2],
}

/// Measures every setting on a corpus and prints the table.
///
/// # Errors
/// Those of the loader.
pub fn report(corpus: &Corpus, effort: &Effort) -> Result<Vec<Line>> {
    let bytes: usize = corpus.pairs.iter().map(|pair| pair.image.len()).sum();
    let (count, size) = (corpus.pairs.len(), effort.image_size);
    println!(
        "\n{}: stages over {count} pairs of {:.1} kB, to {size}x{size}; microseconds a pair",
        corpus.name,
        bytes as f64 / count as f64 / 1e3
    );
    println!(
        "{:12} {:>6} {:>7} {:>7} {:>7} {:>7} {:>8} {:>7} {:>7} {:>6} {:>8}",
        "",
        "read",
        "decode",
        "resize",
        "colour",
        "finish",
        "tokenise",
        "sum",
        "floor",
        "ratio",
        "/s/core"
    );
    let mut lines = Vec::new();
    for setting in settings(size)? {
        let transform = Transform::new(setting.transform.clone())?;
        let stages = stages::measure(corpus, &transform, setting.eda.as_ref(), effort.rounds)?;
        print_stages(setting.name, &stages);
        let [one, two] = [1, 2].map(|workers| setting.loader(corpus, effort.pairs, workers));
        let hashes = [whole::hash(&one)?, whole::hash(&two)?];
        assert_eq!(hashes[0], hashes[1], "{}: two workers make another batch", setting.name);
        let runs = [whole::run(&one)?, whole::run(&two)?];
        lines.push(Line { name: setting.name, stages, runs, hashes });
    }
    lines.iter().for_each(print_runs);
    Ok(lines)
}

fn print_stages(name: &str, stages: &Stages) {
    let Stages { read, decode, resize, colour, finish, tokenise } = stages;
    let (sum, floor) = (stages.sum(), stages.floor());
    println!(
        "{name:12} {read:6.1} {decode:7.1} {resize:7.1} {colour:7.1} {finish:7.1} {tokenise:8.2} \
         {sum:7.1} {floor:7.1} {:6.2} {:8.0}",
        sum / floor,
        1e6 / sum
    );
}

fn print_runs(line: &Line) {
    let ([one, two], stages) = (&line.runs, &line.stages);
    println!(
        "{:12} loader, 1 worker: {:7.1} us of CPU ({:.2} of the floor), {:5.0}/s; 2 workers: \
         {:7.1} us, {:5.0}/s, {:.2} times as fast; tokenising {:.1} % of a core at {} k/s; {:016x}",
        line.name,
        one.micros(),
        one.micros() / stages.floor(),
        one.rate(),
        two.micros(),
        two.rate(),
        two.rate() / one.rate(),
        stages.tokenise * CAPTIONS_PER_SECOND / 1e4,
        CAPTIONS_PER_SECOND / 1e3,
        line.hashes[0]
    );
}

/// Runs one setting, or reading alone, and prints a line of JSON.
///
/// # Errors
/// There is no such setting; those of the loader.
pub fn peer(name: &str, corpus: &Corpus, pairs: usize) -> Result<()> {
    let mut floor = None;
    let run = if name == "read" {
        let (run, bare) = read_alone(corpus, pairs)?;
        floor = Some(bare.as_secs_f64() * 1e6 / run.pairs as f64);
        run
    } else {
        let settings = settings(224)?;
        let setting = settings.iter().find(|setting| setting.name == name).ok_or_else(|| {
            let names: Vec<_> = settings.iter().map(|setting| setting.name).collect();
            let expected = format!("read or one of {names:?}");
            Error::Option { flag: "--peer".into(), got: name.into(), expected }
        })?;
        whole::run(&setting.loader(corpus, pairs, 1))?
    };
    let (micros, wall) = (run.micros(), run.wall.as_secs_f64());
    let line = json!({
        "peer": name, "images": run.pairs, "cpu_us": micros, "wall_s": wall, "floor_us": floor
    });
    println!("{line}");
    Ok(())
}

/// As many epochs as give that many pairs, in turn with bare reading of the same bytes, whose CPU
/// time is the second result.
fn read_alone(corpus: &Corpus, least: usize) -> Result<(Run, Duration)> {
    let mut run = Run { pairs: 0, cpu: Duration::ZERO, wall: Duration::ZERO };
    let (mut bare, pool) = (Duration::ZERO, Arc::default());
    while run.pairs < least {
        let (cpu, wall) = (clock::of_thread(), Instant::now());
        run.pairs += corpus.read(&pool)?;
        run.cpu += clock::of_thread() - cpu;
        run.wall += wall.elapsed();
        let cpu = clock::of_thread();
        corpus.read_bytes()?;
        bare += clock::of_thread() - cpu;
    }
    Ok((run, bare))
}

/// Speed of the shard streamer
#[derive(Parser)]
struct Arguments {
    /// Shards of pictures around 500x375
    #[arg(long)]
    shards500: Option<String>,
    /// Shards of pictures around 1024x768
    #[arg(long)]
    shards1024: Option<String>,
    /// A few tiny pictures, done in a moment
    #[arg(long)]
    quick: bool,
    /// Runs one setting on every corpus and prints JSON
    #[arg(long)]
    peer: Option<String>,
    /// Pairs that a loader delivers at least
    #[arg(long, default_value_t = 8000)]
    images: usize,
    /// Pairs of which the stages are timed
    #[arg(long, default_value_t = 1000)]
    pairs: usize,
    /// Rounds of the stages
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn run(&self) -> Result<()> {
        let scratch = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let given = [("500", &self.shards500), ("1024", &self.shards1024)];
        let mut corpora = Vec::new();
        for (name, shards) in given {
            if let Some(shards) = shards.as_ref().filter(|_| !self.quick) {
                corpora.push(Corpus::open(name, shards, self.pairs)?);
            }
        }
        if corpora.is_empty() {
            let (count, size) = if self.quick { (9, [67, 45]) } else { (200, [500, 375]) };
            corpora.push(Corpus::synthetic(scratch.path(), count, size)?);
        }
        let effort = if self.quick {
            Effort { image_size: 32, rounds: 1, pairs: 18 }
        } else {
            Effort { image_size: 224, rounds: self.rounds, pairs: self.images }
        };
        for corpus in &corpora {
            match &self.peer {
                Some(name) => peer(name, corpus, self.images)?,
                None => _ = report(corpus, &effort)?,
            }
        }
        Ok(())
    }
}

#[allow(dead_code, reason = "the tests include this file and call its parts")]
fn main() {
    Arguments::parse().run().unwrap_or_else(|e| panic!("{e}"));
}
