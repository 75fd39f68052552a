//! `roclip-eval`: measures a model. Flags become options; the work is in [`roclip::eval`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use roclip::backend::Backend;
use roclip::config::{ComputeArgs, FieldArgs, NetworkArgs, WeightsArgs, Work, refused, say};
use roclip::data::loader::LoaderConfig;
use roclip::encode::{Clip, ClipConfig, Embedder, Keep};
use roclip::error::redact;
use roclip::eval::attack::Attacks;
use roclip::eval::probe::{Probe, ProbeOptions};
use roclip::eval::prompts::Prompts;
use roclip::eval::results::{self, ATTACK_SUCCESS, Metric, Record};
use roclip::eval::retrieval::Retrieval;
use roclip::eval::{Templates, ZeroShot};
use roclip::interop::Model;
use roclip::{Error, Result};
use serde_json::Value;

/// Measures a CLIP model: zero-shot classification, retrieval, linear probe, and how well attacks
/// on its training data worked.
#[derive(Debug, Parser)]
#[command(name = "roclip-eval", version)]
#[command(after_help = "Exit codes: 0 all was measured; 1 it could not be; 2 a flag is wrong.")]
struct Args {
    /// The model: a run's directory, a checkpoint, a directory or file of open_clip or transformers
    model_path: PathBuf,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Classify test/*.tar of this directory in CLIP_benchmark's layout by the captions of its
    /// classnames.txt; may be given several times, as the next two
    #[arg(long, value_name = "DIR")]
    zeroshot: Vec<PathBuf>,
    /// Find the captions of the pictures of these shards, and the pictures of their captions, one a
    /// line
    #[arg(long, value_name = "PATTERN")]
    retrieval: Vec<String>,
    /// Fit a linear probe to train/*.tar of this directory, and measure it on its test/*.tar
    #[arg(long, value_name = "DIR")]
    probe: Vec<PathBuf>,
    /// Try the attacks of a poisoned data set on every --zeroshot directory: its attacks.json, or
    /// its directory
    #[arg(long, value_name = "FILE|DIR", requires = "zeroshot")]
    attacks: Option<PathBuf>,
    /// Stamp so many test pictures with each trigger, always the same ones [default: all]
    #[arg(long, value_name = "PICTURES", requires = "attacks")]
    attack_pictures: Option<u64>,
    /// Results (of --output) of a model trained on the same data without the defence, for the
    /// defence's rates DER and RIR
    #[arg(long, value_name = "FILE", requires = "attacks")]
    reference: Option<PathBuf>,
    /// Captions of classes
    #[arg(long, value_enum, default_value_t = TemplatesName::Folder)]
    templates: TemplatesName,
    /// Weight of the probe's penalty, 1/C in scikit-learn [default: the best of 97 on a fifth of
    /// the training pictures]
    #[arg(long, value_name = "WEIGHT", requires = "probe", allow_negative_numbers = true)]
    penalty: Option<f64>,
    /// Write the results as JSON; where the name has {dataset} or {task}, a file for each
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    fields: FieldArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TemplatesName {
    /// The directory's zeroshot_classification_templates.txt, or `a photo of a {c}.`
    Folder,
    /// OpenAI's 80 for ImageNet
    Openai,
    /// 7 of these
    Simple,
}

impl Args {
    fn templates(&self) -> Templates {
        match self.templates {
            TemplatesName::Folder => Templates::Folder,
            TemplatesName::Openai => Templates::OpenAi,
            TemplatesName::Simple => Templates::Simple,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |flag: &str, got: String, expected: &str| {
            Err(Error::Option { flag: flag.into(), got, expected: expected.into() })
        };
        if self.zeroshot.is_empty() && self.retrieval.is_empty() && self.probe.is_empty() {
            return wrong("tasks", "none".into(), "--zeroshot, --retrieval or --probe");
        }
        match self.penalty {
            Some(penalty) if !penalty.is_finite() || penalty < 0.0 => {
                wrong("--penalty", penalty.to_string(), "a finite number, 0 or above")
            }
            _ => self.compute.check(),
        }
    }
}

fn main() -> ExitCode {
    start(&Args::parse())
        .map_or_else(|error| refused("roclip-eval", &error), |()| ExitCode::SUCCESS)
}

fn start(args: &Args) -> Result<()> {
    args.check()?;
    args.compute.run(args)
}

impl Work for &Args {
    type Done = ();

    fn on<D: Backend>(self, device: D) -> Result<()> {
        evaluate(&device, self)
    }
}

/// Opens everything, so that what is wrong is told before anything is computed; then measures.
fn evaluate<D: Backend>(device: &D, args: &Args) -> Result<()> {
    let model = Model::open(&args.model_path, &args.weights.options())?;
    if !args.zeroshot.is_empty() || !args.retrieval.is_empty() {
        model.check_vocabulary("--zeroshot, --retrieval", ", or --probe alone")?;
    }
    let base = model.evaluation(LoaderConfig {
        source: args.network.options()?,
        batch_size: args.compute.batch_size,
        workers: args.compute.workers,
        fields: args.fields.fields(),
        ..LoaderConfig::default()
    });
    let tasks = Tasks::open(args, &base)?;
    let mut clip = Clip::new(device, &model.config, args.compute.batch_size, Keep::Inputs)?;
    let weights = model.weights(device)?;
    let mut report = Report {
        model: name_of(&model.config),
        pretrained: args.model_path.display().to_string(),
        records: Vec::new(),
    };
    tasks.run(&mut Embedder::new(device, &mut clip, &weights)?, args, &mut report)?;
    let Some(output) = &args.output else { return Ok(()) };
    for path in results::write(output, &report.records)? {
        say(path.display());
    }
    Ok(())
}

/// A data set's name, and what is measured on it.
type Named<T> = (String, T);

/// Attacks, and what they did to the model without the defence.
struct Tried {
    attacks: Attacks,
    undefended: Option<Value>,
}

/// What was asked for.
struct Tasks {
    zeroshot: Vec<Named<(ZeroShot, Option<Tried>)>>,
    retrieval: Vec<Named<Retrieval>>,
    probe: Vec<Named<Probe>>,
}

impl Tasks {
    fn open(args: &Args, base: &LoaderConfig) -> Result<Self> {
        let zeroshot = |folder: &PathBuf| {
            let set = ZeroShot::open(folder, args.templates(), base.clone())?;
            let name = name_of_folder(folder);
            let tried = args.attacks.as_ref().map(|manifest| {
                let on = (folder.as_path(), set.prompts());
                let attacks = Attacks::open(manifest, on, args.attack_pictures, base)?;
                let reference = args.reference.as_ref();
                let undefended = reference.map(|path| results::read_attacks(path, &name));
                Ok(Tried { attacks, undefended: undefended.transpose()? })
            });
            let tried = tried.transpose()?;
            Ok((name, (set, tried)))
        };
        let retrieval = |shards: &String| {
            let set = Retrieval::open(shards.clone(), base.clone())?;
            Ok((redact(shards), set))
        };
        let probe = |folder: &PathBuf| {
            let classes = Prompts::read(folder, Templates::Folder)?.classes.len();
            Ok((name_of_folder(folder), Probe::open(folder, classes, base)?))
        };
        Ok(Self {
            zeroshot: args.zeroshot.iter().map(zeroshot).collect::<Result<_>>()?,
            retrieval: args.retrieval.iter().map(retrieval).collect::<Result<_>>()?,
            probe: args.probe.iter().map(probe).collect::<Result<_>>()?,
        })
    }

    fn run<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        args: &Args,
        report: &mut Report,
    ) -> Result<()> {
        for (name, (set, tried)) in &self.zeroshot {
            let classifier = set.classifier(embedder)?;
            let accuracy = set.evaluate(embedder, &classifier)?;
            report.tell(name, "zeroshot_classification", accuracy.metrics(""));
            let Some(Tried { attacks, undefended }) = tried else { continue };
            let clean = accuracy.top1();
            let mut metrics = accuracy.metrics("");
            metrics.truncate(1);
            for (attack, success) in attacks.evaluate(embedder, &classifier)? {
                metrics.extend(success.metrics(&attack, clean, undefended.as_ref()));
            }
            report.tell(name, ATTACK_SUCCESS, metrics);
        }
        for (name, set) in &self.retrieval {
            report.tell(name, "zeroshot_retrieval", set.evaluate(embedder)?.metrics());
        }
        let options = ProbeOptions {
            penalty: args.penalty,
            threads: args.compute.threads(),
            ..ProbeOptions::default()
        };
        for (name, set) in &self.probe {
            report.tell(name, "linear_probe", set.evaluate(embedder, &options)?.metrics());
        }
        Ok(())
    }
}

/// What was measured so far.
struct Report {
    model: String,
    pretrained: String,
    records: Vec<Record>,
}

impl Report {
    fn tell(&mut self, dataset: &str, task: &'static str, metrics: Vec<Metric>) {
        let (model, pretrained) = (self.model.clone(), self.pretrained.clone());
        let record = Record { dataset: dataset.into(), model, pretrained, task, metrics };
        say(&record);
        self.records.push(record);
    }
}

/// The name of a built-in model, if it is one.
fn name_of(config: &ClipConfig) -> String {
    let is_it = |name: &&str| ClipConfig::named(name).as_ref() == Some(config);
    ClipConfig::names().find(is_it).unwrap_or("custom").to_owned()
}

fn name_of_folder(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
