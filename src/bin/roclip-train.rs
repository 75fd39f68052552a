//! `roclip-train`: trains CLIP on shards. Flags become options, options become stages, stages run;
//! the rest is in the library.

use roclip::backend::{Backend, Communicator, Device, HostAlloc, Solo};
use roclip::config::{self, Args, Assembled, Parsed, Settings, Work};
use roclip::data::count::count_pairs;
use roclip::data::loader::{Loader, LoaderConfig, Sampling};
use roclip::data::transform::TransformConfig;
use roclip::encode::{self, ClipConfig, Embedder, EmbedderRoom, Keep};
use roclip::error::{Error, Result, quoted, redact};
use roclip::eval::attack::Attacks;
use roclip::eval::{Templates, ZeroShot};
use roclip::matching::PoolSize;
use roclip::optim::{AdamWOptions, DecayRule};
use roclip::train::log::Log;
use roclip::train::objective::Objective;
use roclip::train::plan::{EvaluationRoom, Planner};
use roclip::train::recipe::Recipe;
use roclip::train::run::{End, Run, RunOptions};
use roclip::train::step::{StepOptions, Trainer};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A signal stopped the run and a checkpoint holds it: `EX_TEMPFAIL`, "try again".
const STOPPED: u8 = 75;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roclip-train: {error}");
            ExitCode::from(match error {
                Error::Option { .. } => 2,
                Error::NonFinite(_) => 3,
                _ => 1,
            })
        }
    }
}

fn start() -> Result<ExitCode> {
    let (args, settings) = match config::parse(std::env::args_os())? {
        Parsed::Run(args, settings) => (args, settings),
        Parsed::Print(text, 0) => {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Parsed::Print(text, code) => {
            eprint!("{text}");
            return Ok(ExitCode::from(code as u8));
        }
    };
    let assembled = config::assemble(&args, &settings)?;
    args.model.device.run(args.model.threads, Job { args: &args, settings, assembled })
}

/// Plans or trains, as asked.
struct Job<'a> {
    args: &'a Args,
    settings: Settings,
    assembled: Assembled,
}

impl Work for Job<'_> {
    type Done = ExitCode;

    fn on<D: Backend>(self, device: D) -> Result<ExitCode> {
        let Self { args, settings, assembled } = self;
        if args.run.plan {
            print!("{}", plan(&device, args, assembled)?);
            return Ok(ExitCode::SUCCESS);
        }
        let stop = stop_on_signals()?;
        match train(device, Solo, args, settings, assembled, &stop)? {
            End::Finished => Ok(ExitCode::SUCCESS),
            End::Interrupted(_) => Ok(ExitCode::from(STOPPED)),
        }
    }
}

/// A flag that the first signal sets; a second Ctrl-C ends the program at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        let register = || {
            if signal == SIGINT {
                signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            }
            signal_hook::flag::register(signal, Arc::clone(&stop))
        };
        register().map_err(Error::io("handle signals of", "this process"))?;
    }
    Ok(stop)
}

fn train<D: Backend, C: Communicator<D>>(
    device: D,
    comm: C,
    args: &Args,
    settings: Settings,
    assembled: Assembled,
    stop: &AtomicBool,
) -> Result<End> {
    let Assembled { model: config, pretrained, loader, eval, adamw, decay, mut identity, notes } =
        assembled;
    let memory = HostAlloc::of(&device);
    let (loader, eval) =
        (LoaderConfig { memory: memory.clone(), ..loader }, LoaderConfig { memory, ..eval });
    let evaluation = Evaluation::open(args, eval)?;
    let loader = Loader::new(loader)?;
    let shards = format!("{} (list {})", args.data.shards, loader.fingerprint());
    identity.insert("shards".into(), shards);
    let (loader, pairs) = counted(args, loader)?;
    let batch = args.optim.batch_size * args.optim.accum_freq * comm.world_size();
    let steps_per_epoch = pairs / batch as u64;
    if steps_per_epoch == 0 {
        return Err(Error::Option {
            flag: "--batch-size".into(),
            got: format!("{batch} pairs a step"),
            expected: format!("at most {pairs}, the pairs of {}", args.data.shards),
        });
    }
    let folder = args.run.logs.join(name(args));
    refuse_to_overwrite(args, &folder)?;
    let has_pool = args.objective.objective.pools() > 0;
    let pool_rows = if has_pool { args.objective.pool_size().resolve(pairs as usize)? } else { 0 };
    let recipe = recipe(args, &config, (adamw, decay), pool_rows, steps_per_epoch);
    let embeds = evaluation.is_some() || separates(args);
    let planner = planner::<D>(recipe.clone(), comm.world_size(), embeds);
    device.memory().map_or(Ok(()), |memory| planner.check(memory))?;
    let weights = match pretrained {
        Some(pretrained) => pretrained.weights(&device)?,
        None => encode::init(&device, &config, args.run.seed)?,
    };
    let parts = recipe.parts(&device, weights, args.run.seed)?;
    let mut log = open_log(&folder, &settings)?;
    log.info(format!("Running on {}", device.name()));
    let (parameters, memory) = (parts.model.params().values(), planner.plan()?.in_words());
    log.info(format!("{parameters} parameters; {memory} of memory"));
    log.info(format!("{pairs} pairs in {} shards", loader.shards().len()));
    notes.iter().for_each(|note| log.info(note));
    let TransformConfig { mean, std, .. } = loader.config().transform;
    let model_json = config.open_clip_json(mean, std);
    let options_of_run = run_options(args, &folder, pairs, identity, model_json);
    let trainer = Trainer::new(device, comm, parts, recipe.step)?;
    let mut run = Run::new(trainer, loader, options_of_run, log, stop)?;
    if let Some(evaluation) = &evaluation {
        run.evaluate = Some(Box::new(|trainer| evaluation.measure(trainer)));
    }
    if let Some(from) = &args.run.resume {
        run.resume(from)?;
    }
    run.run()
}

fn recipe(
    args: &Args,
    model: &ClipConfig,
    (adamw, decay): (AdamWOptions, DecayRule),
    pool_rows: usize,
    steps_per_epoch: u64,
) -> Recipe {
    let step = StepOptions {
        objective: args.objective.objective(),
        match_every: args.objective.match_every,
        micro_batch: args.optim.batch_size,
        accum_freq: args.optim.accum_freq,
        schedule: config::schedule(args, steps_per_epoch),
        steps_per_epoch,
    };
    let keep = if args.optim.grad_checkpointing { Keep::Inputs } else { Keep::All };
    let locks = args.model.locks();
    Recipe { model: model.clone(), keep, locks, pool_rows, adamw, decay, step }
}

/// Whether the objective looks at all pairs between epochs.
fn separates(args: &Args) -> bool {
    matches!(args.objective.objective, Objective::SafeClip(_))
}

fn planner<D: Device>(recipe: Recipe, world_size: usize, embeds: bool) -> Planner<'static, D> {
    let room = |device: &_, model: &_| EmbedderRoom::new(device, model).map(drop);
    let evaluation = embeds.then(|| -> Box<EvaluationRoom<'_, D>> { Box::new(room) });
    Planner { recipe, world_size, evaluation }
}

/// What `--plan` prints. Nothing is allocated, and no more is read than the number of pairs.
fn plan<D: Backend>(device: &D, args: &Args, assembled: Assembled) -> Result<String> {
    let Assembled { model, loader, eval, adamw, decay, .. } = assembled;
    let embeds = Evaluation::open(args, eval)?.is_some() || separates(args);
    let pool_rows = match (args.objective.pool_size(), args.data.train_num_samples) {
        _ if args.objective.objective.pools() == 0 => 0,
        (PoolSize::Rows(rows), _) => rows,
        (share, Some(pairs)) => share.resolve(pairs as usize)?,
        (share, None) => share.resolve(counted(args, Loader::new(loader)?)?.1 as usize)?,
    };
    let recipe = recipe(args, &model, (adamw, decay), pool_rows, 1);
    planner(recipe, 1, embeds).report(device)
}

/// What is measured during training.
struct Evaluation {
    zeroshot: ZeroShot,
    attacks: Option<Attacks>,
}

impl Evaluation {
    fn open(args: &Args, base: LoaderConfig) -> Result<Option<Self>> {
        let Some(folder) = &args.data.zeroshot_data else { return Ok(None) };
        let zeroshot = ZeroShot::open(folder, Templates::Folder, base.clone())?;
        let attacks = args.data.attacks.as_ref().map(|manifest| {
            let sample = Some(args.data.attack_pictures);
            Attacks::open(manifest, (folder, zeroshot.prompts()), sample, &base)
        });
        let attacks = attacks.transpose()?;
        Ok(Some(Self { zeroshot, attacks }))
    }

    /// Figures under the names of the log.
    fn measure<D: Backend, C: Communicator<D>>(
        &self,
        trainer: &mut Trainer<D, C>,
    ) -> Result<BTreeMap<String, f64>> {
        let (device, model, weights) = trainer.for_eval();
        let mut embedder = Embedder::new(device, model, weights)?;
        let classifier = self.zeroshot.classifier(&mut embedder)?;
        let accuracy = self.zeroshot.evaluate(&mut embedder, &classifier)?;
        let [top1, _, top5, _] = accuracy.top.map(|share| share.value());
        let mut figures = BTreeMap::from([
            ("zeroshot-top1".to_owned(), top1),
            ("zeroshot-top5".to_owned(), top5),
            ("zeroshot-chance".to_owned(), 1.0 / classifier.classes() as f64),
        ]);
        if let Some(attacks) = &self.attacks {
            for (name, success) in attacks.evaluate(&mut embedder, &classifier)? {
                let metrics = success.metrics(&name, accuracy.top1(), None);
                figures.extend(metrics.into_iter().map(|metric| (metric.name, metric.value)));
            }
        }
        Ok(figures)
    }
}

/// A run's folder holds what someone trained: a second run of that name must resume it, or be
/// called otherwise.
fn refuse_to_overwrite(args: &Args, folder: &Path) -> Result<()> {
    if args.run.resume.is_some() || !folder.join("out.log").exists() {
        return Ok(());
    }
    Err(Error::Option {
        flag: "--name".into(),
        got: format!("{} holds a run already", folder.display()),
        expected: "a new name, or --resume latest to continue that run".into(),
    })
}

/// Pairs of one epoch: as declared, or counted by a pass over the headers. Shards that are to be
/// cut into lanes are counted all the same.
fn counted(args: &Args, loader: Loader) -> Result<(Loader, u64)> {
    let (config, declared) = (loader.config(), args.data.train_num_samples);
    let is_cut = config.lanes > 1 && config.sampling == Sampling::Once;
    if let Some(declared) = declared.filter(|_| !is_cut) {
        return Ok((loader.with_epoch_pairs(declared), declared));
    }
    let counts = count_pairs(loader.shards(), &config.fields, &config.shard_limits)?;
    let pairs = declared.unwrap_or(counts.pairs());
    Ok((loader.with_counts(&counts).with_epoch_pairs(pairs), pairs))
}

fn name(args: &Args) -> String {
    args.run.name.clone().unwrap_or_else(|| {
        let time = jiff::Zoned::now().strftime("%Y_%m_%d-%H_%M_%S");
        let model = args.model.name();
        let model = Path::new(&model).file_stem().unwrap_or_default().to_string_lossy();
        let (lr, batch) = (args.optim.lr, args.optim.batch_size);
        format!("{time}-model_{model}-lr_{lr}-b_{batch}-{}", args.objective.objective)
    })
}

/// The run's folder with `params.txt`, as open_clip lays it out.
fn open_log(folder: &Path, settings: &Settings) -> Result<Log> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join("params.txt");
    let text: String = settings.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    Log::open(folder)
}

fn run_options(
    args: &Args,
    folder: &Path,
    pairs: u64,
    identity: Settings,
    model_json: serde_json::Value,
) -> RunOptions {
    RunOptions {
        folder: folder.to_owned(),
        epochs: args.optim.epochs,
        samples_per_epoch: pairs,
        log_every: args.run.log_every_n_steps,
        save_frequency: args.run.save_frequency,
        save_every_steps: args.run.save_every_n_steps,
        delete_previous: args.run.delete_previous_checkpoint,
        max_nonfinite: args.run.max_nonfinite_steps,
        eval_frequency: args.data.zeroshot_frequency,
        record_matches: !args.run.no_record_matches,
        identity,
        model_json,
        resume_command: resume_command(std::env::args(), folder),
    }
}

/// This command line, with the run named and `--resume latest`. It goes to the log, so the secrets
/// of URLs are left out.
fn resume_command(mut given: impl Iterator<Item = String>, folder: &Path) -> String {
    let mut words: Vec<String> = Vec::new();
    while let Some(word) = given.next() {
        match word.as_str() {
            "--resume" | "--name" => drop(given.next()),
            w if w.starts_with("--resume=") || w.starts_with("--name=") => {}
            _ => words.push(quoted(&redact(&word))),
        }
    }
    let name = folder.file_name().map(PathBuf::from).unwrap_or_default();
    words.extend(["--name".into(), quoted(&name.display().to_string())]);
    words.extend(["--resume".into(), "latest".into()]);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_resumes_names_the_run_and_no_secret() {
        let given = [
            "roclip-train",
            "--name",
            "old",
            "--shards=https://me:pw@h/{0..9}.tar?sig=1",
            "--resume=latest",
            "--zeroshot-data",
            "a b",
        ];
        let command = resume_command(given.into_iter().map(String::from), Path::new("logs/run"));
        let shards = "'--shards=https://h/{0..9}.tar?…'";
        let expected =
            format!("roclip-train {shards} --zeroshot-data 'a b' --name run --resume latest");
        assert_eq!(command, expected);
    }
}
