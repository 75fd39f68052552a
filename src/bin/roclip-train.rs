//! `roclip-train`: trains CLIP on shards. Flags become options, options become stages, stages run;
//! the rest is in the library.

use roclip::backend::{Backend, Communicator, Device, HostAlloc};
use roclip::checkpoint::{Folder, file};
use roclip::config::{self, Args, Assembled, Parsed, RankedWork, Settings, Work};
use roclip::data::count::{Counts, count_pairs};
use roclip::data::loader::{Loader, LoaderConfig, Sampling};
use roclip::data::transform::TransformConfig;
use roclip::distributed::{Group, GroupOptions, Launch, Verdict};
use roclip::encode::{self, ClipConfig, Embedder, EmbedderRoom, Keep};
use roclip::error::{Error, Result, printable, quoted, redact};
use roclip::eval::attack::Attacks;
use roclip::eval::{Templates, ZeroShot};
use roclip::flow::State;
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
use std::time::Duration;

/// A signal stopped the run and a checkpoint holds it: `EX_TEMPFAIL`, "try again".
const STOPPED: u8 = 75;

/// Shards whose pairs are counted before others are told that counting gets on.
const COUNTED_AT_ONCE: usize = 64;

fn main() -> ExitCode {
    let done = Launch::from_env().and_then(|launch| start(&launch));
    done.unwrap_or_else(|error| config::refused("roclip-train", &error))
}

fn start(launch: &Launch) -> Result<ExitCode> {
    let (args, settings) = match config::parse(std::env::args_os())? {
        Parsed::Run(args, settings) => (args, settings),
        // All ranks have the same flags: one tells what is wrong with them.
        Parsed::Print(text, code) => {
            match code {
                _ if launch.rank > 0 => {}
                0 => print!("{text}"),
                _ => eprint!("{text}"),
            }
            return Ok(ExitCode::from(code as u8));
        }
    };
    let assembled = config::assemble(&args, &settings)?;
    if args.run.plan {
        if launch.rank == 0 {
            let plan = Plan { args: &args, world_size: launch.world_size, assembled };
            print!("{}", args.model.device.run(args.model.threads, plan)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let timeout = Duration::from_secs(args.run.dist_timeout);
    let options = GroupOptions { timeout, end: Box::new(end_with) };
    let job = Job { args: &args, settings, assembled };
    config::run_ranks(args.model.device, args.model.threads, launch, options, job)
}

/// Another rank is gone; this one may be waiting for it for ever.
fn end_with(verdict: Verdict) {
    if verdict.speaks {
        eprintln!("roclip-train: {}; all ranks end", printable(&verdict.message));
    }
    std::process::exit(STOPPED.into());
}

/// What `--plan` prints.
struct Plan<'a> {
    args: &'a Args,
    world_size: usize,
    assembled: Assembled,
}

impl Work for Plan<'_> {
    type Done = String;

    fn on<D: Backend>(self, device: D) -> Result<String> {
        plan(&device, self.args, self.world_size, self.assembled)
    }
}

/// Trains.
struct Job<'a> {
    args: &'a Args,
    settings: Settings,
    assembled: Assembled,
}

impl RankedWork for Job<'_> {
    type Done = ExitCode;

    fn on<D: Backend, C: Communicator<D>>(
        self,
        device: D,
        comm: C,
        group: &Group,
    ) -> Result<ExitCode> {
        let stop = stop_on_signals()?;
        Ok(match train((device, comm, group), self, &stop)? {
            End::Finished => ExitCode::SUCCESS,
            End::Interrupted(_) => ExitCode::from(STOPPED),
        })
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
    (device, comm, group): (D, C, &Group),
    Job { args, settings, assembled }: Job<'_>,
    stop: &AtomicBool,
) -> Result<End> {
    let Assembled { model: config, pretrained, loader, eval, adamw, decay, mut identity, notes } =
        assembled;
    // The time is in it.
    let folder = args.run.logs.join(group.first_has(name(args))?);
    if group.is_first() {
        refuse_to_overwrite(args, &folder)?;
    }
    let memory = HostAlloc::of(&device);
    let lanes = lanes(args, &folder, group)?;
    let (rank, world_size) = (group.rank(), group.world_size());
    let loader = LoaderConfig { memory: memory.clone(), lanes, rank, world_size, ..loader };
    let evaluation = Evaluation::open(args, LoaderConfig { memory, ..eval })?;
    let (loader, pairs) = counted(args, Loader::new(loader)?, group)?;
    let shards = format!("{} (list {})", args.data.shards, loader.fingerprint());
    identity.extend([("shards".into(), shards), ("lanes".into(), lanes.to_string())]);
    let batch = args.optim.batch_size * args.optim.accum_freq * world_size;
    identity.insert("batch_size".into(), batch.to_string());
    let steps_per_epoch = pairs / batch as u64;
    if steps_per_epoch == 0 {
        return Err(Error::Option {
            flag: "--batch-size".into(),
            got: format!("{batch} pairs a step"),
            expected: format!("at most {pairs}, the pairs of {}", args.data.shards),
        });
    }
    let has_pool = args.objective.objective.pools() > 0;
    let pool_rows = if has_pool { args.objective.pool_size().resolve(pairs as usize)? } else { 0 };
    let recipe = recipe(args, &config, (adamw, decay), pool_rows, steps_per_epoch);
    let embeds = evaluation.is_some() || separates(args);
    let planner = planner::<D>(recipe.clone(), (world_size, lanes), embeds);
    device.memory().map_or(Ok(()), |memory| planner.check(memory))?;
    let weights = match pretrained {
        Some(pretrained) => pretrained.weights(&device)?,
        None => encode::init(&device, &config, args.run.seed)?,
    };
    let parts = recipe.parts(&device, &comm, weights, args.run.seed)?;
    let mut log = if group.is_first() { open_log(&folder, &settings)? } else { Log::silent() };
    log.info(format!("Running on {}{}", device.name(), group.in_words()));
    let (parameters, memory) = (parts.model.params().values(), planner.plan()?.in_words());
    log.info(format!("{parameters} parameters; {memory} of memory"));
    log.info(format!("{pairs} pairs in {} shards", loader.shards().len()));
    notes.iter().for_each(|note| log.info(note));
    let TransformConfig { mean, std, .. } = loader.config().transform;
    let model_json = config.open_clip_json(mean, std);
    let options_of_run = run_options(args, &folder, pairs, identity, model_json);
    let trainer = Trainer::new(device, comm, parts, recipe.step)?;
    let mut run = Run::new(trainer, loader, options_of_run, log, group, stop)?;
    if let Some(evaluation) = &evaluation {
        let gets_on = || group.watch().enter("evaluating");
        run.evaluate = Some(Box::new(move |trainer| evaluation.measure(trainer, &gets_on)));
    }
    if let Some(from) = &args.run.resume {
        run.resume(from)?;
    }
    run.run()
}

/// Parts that an epoch's shards are cut into: as said, as in the run that is resumed, or one for
/// each rank.
fn lanes(args: &Args, folder: &Path, group: &Group) -> Result<usize> {
    let of_run = || match args.run.resume.as_deref() {
        None => Ok(None),
        Some("latest") => Folder::any(&folder.join("checkpoints")),
        Some(path) => file::peek(Path::new(path)).map(Some),
    };
    let told = |state: State| state.values.get("identity")?["lanes"].as_str()?.parse().ok();
    let lanes = match args.data.lanes {
        None if group.is_first() => of_run()?.and_then(told),
        lanes => lanes,
    };
    group.first_has(lanes.unwrap_or(group.world_size()))
}

/// The loader and the pairs of one epoch: as declared, or counted by a pass over the headers, which
/// several lanes need in any case. Rank 0 counts for all.
fn counted(args: &Args, loader: Loader, group: &Group) -> Result<(Loader, u64)> {
    let (declared, config) = (args.data.train_num_samples, loader.config());
    let is_cut = config.lanes > 1 && config.sampling == Sampling::Once;
    let counts = match declared {
        Some(_) if !is_cut => None,
        _ => {
            let mut counts = Counts::default();
            // The others wait as long as it gets on.
            for shards in loader.shards().chunks(COUNTED_AT_ONCE).filter(|_| group.is_first()) {
                group.watch().enter("counting pairs");
                let counted = count_pairs(shards, &config.fields, &config.shard_limits)?;
                counts.shards.extend(counted.shards);
            }
            Some(group.first_has(counts)?)
        }
    };
    let pairs = declared.or(counts.as_ref().map(Counts::pairs)).unwrap_or_default();
    let loader = counts.iter().fold(loader, Loader::with_counts).with_epoch_pairs(pairs);
    Ok((loader, pairs))
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
        bn_sync: args.model.use_bn_sync,
    };
    let keep = if args.optim.grad_checkpointing { Keep::Inputs } else { Keep::All };
    let locks = args.model.locks();
    let (model, shard_pool) = (model.clone(), args.objective.shard_pool);
    Recipe { model, keep, locks, pool_rows, shard_pool, adamw, decay, step }
}

/// Whether the objective looks at all pairs between epochs.
fn separates(args: &Args) -> bool {
    matches!(args.objective.objective, Objective::SafeClip(_))
}

fn planner<D: Device>(
    recipe: Recipe,
    (world_size, lanes): (usize, usize),
    embeds: bool,
) -> Planner<'static, D> {
    let room = |device: &_, model: &_| EmbedderRoom::new(device, model).map(drop);
    let evaluation = embeds.then(|| -> Box<EvaluationRoom<'_, D>> { Box::new(room) });
    Planner { recipe, world_size, lanes, evaluation }
}

/// What `--plan` prints. Nothing is allocated, and no more is read than the number of pairs.
fn plan<D: Backend>(
    device: &D,
    args: &Args,
    world_size: usize,
    assembled: Assembled,
) -> Result<String> {
    let Assembled { model, loader, eval, adamw, decay, .. } = assembled;
    let embeds = Evaluation::open(args, eval)?.is_some() || separates(args);
    let pool_rows = match (args.objective.pool_size(), args.data.train_num_samples) {
        _ if args.objective.objective.pools() == 0 => 0,
        (PoolSize::Rows(rows), _) => rows,
        (share, Some(pairs)) => share.resolve(pairs as usize)?,
        (share, None) => {
            share.resolve(counted(args, Loader::new(loader)?, &Group::solo())?.1 as usize)?
        }
    };
    let recipe = recipe(args, &model, (adamw, decay), pool_rows, 1);
    let lanes = args.data.lanes.unwrap_or(world_size);
    planner(recipe, (world_size, lanes), embeds).report(device)
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
        gets_on: &dyn Fn(),
    ) -> Result<BTreeMap<String, f64>> {
        let (device, model, weights) = trainer.for_eval();
        let mut embedder = Embedder::new(device, model, weights)?.telling(gets_on);
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
