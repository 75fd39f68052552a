//! What ranks cost: steps of a trainer among ranks against steps of one that is alone, in turns;
//! what the exchanges take, by size; what hearing all ranks takes, by their number.
//!
//! `cargo bench --bench ranks --features mpi -- [--device cpu|cuda] [--json FILE] [MODEL] [PAIRS]
//! [THREADS] [STEPS]` (ViT-B-32, 32, 1, 10) is a single rank, which exchanges with itself whatever
//! several would: that must cost no more than 3 % of a step. With `mpirun -n N` in front of the
//! bench's own program (`target/release/deps/ranks-*`) there are N, each with PAIRS pairs; then the
//! difference is what the exchanges cost that are not hidden behind the backward, and a larger
//! loss. Rank 0 tells. A GPU's rank is always a single one here.

#![cfg_attr(not(any(feature = "mpi", feature = "cuda")), allow(dead_code, reason = "no ranks"))]

#[path = "common/mod.rs"]
mod common;
#[path = "common/training.rs"]
mod training;

use clap::Parser;
use common::{Clock, Flags, Kind};
use roclip::backend::{Backend, Communicator, Solo, View, ViewMut};
use roclip::distributed::{Group, GroupOptions, Launch, Meeting, Watch, Watched};
use roclip::encode::ClipConfig;
use roclip::flow::Batch;
use roclip::train::step::{Outcome, Trainer};
use roclip::{Error, Result};
use serde_json::json;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use training::{BATCHES, batches, trainer};

/// Most that a rank's step may take longer than that of a process that is alone.
const OVERHEAD: f64 = 0.03;
/// Steps from which on that is asserted.
const LEAST: usize = 10;
/// Numbers of an exchange.
const LENS: [usize; 6] = [1 << 4, 1 << 10, 1 << 14, 1 << 18, 1 << 21, 1 << 24];
/// Ranks that agree, and bytes that each has to tell of a pair.
const WORLDS: [usize; 4] = [2, 8, 64, 256];
const RECORD: usize = 24;
/// How often each is timed, and how often it is done for that.
const SAMPLES: usize = 7;
const CALLS: usize = 5;

/// What ranks cost
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// A name or a file, as of --model
    #[arg(default_value = "ViT-B-32")]
    model: String,
    /// Pairs of a step and rank
    #[arg(default_value_t = 32)]
    pairs: usize,
    /// Threads of the CPU, of each rank
    #[arg(default_value_t = 1)]
    threads: usize,
    /// Steps that are timed
    #[arg(default_value_t = 10)]
    steps: usize,
}

fn main() {
    let arguments = Arguments::parse();
    arguments.run().unwrap_or_else(|e| panic!("{e}"));
}

impl Arguments {
    fn run(&self) -> Result<()> {
        match self.flags.device {
            #[cfg(feature = "mpi")]
            Kind::Cpu => {
                let device = roclip::backend::cpu::Cpu::<f32>::new(self.threads)?;
                self.on(&device, roclip::backend::mpi::Mpi::start()?)
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda => {
                use roclip::backend::cuda::{Card, Gpu, nccl};
                let card = Card::open(0)?;
                let comm = nccl::Nccl::join(&card, &nccl::unique_id()?, 0, 1)?;
                let gpu = Gpu::new(card)?.with_kernels(self.flags.kernels.into());
                self.on(&gpu, comm)
            }
            other => {
                let needs = "--device cpu needs the feature mpi, cuda the feature cuda";
                Err(Error::Device(format!("{other:?} has no ranks here: {needs}")))
            }
        }
    }

    fn on<D: Backend, C: Communicator<D> + Sync>(&self, device: &D, comm: C) -> Result<()> {
        let (rank, ranks) = (comm.rank(), comm.world_size());
        let exchanges = exchanges(device, &comm)?;
        let config = ClipConfig::load(&self.model)?;
        let batches = batches(device, &config, self.pairs)?;
        // as a run has it
        let comm = Arc::new(comm);
        let watched = Watched { comm: comm.clone(), watch: Watch::default() };
        let mut alone = trainer(device, Solo, &config, self.pairs)?;
        let mut among = trainer(device, watched, &config, self.pairs)?;
        let mut times = [Vec::new(), Vec::new()];
        let warm_up = if self.flags.device == Kind::Cuda { 2 * BATCHES } else { 1 };
        for step in 0..warm_up + self.steps.max(1) {
            let batch = &batches[step % BATCHES];
            let first = timed(&mut alone, batch)?;
            // All begin together, or the others' lateness would count.
            let mut token = device.alloc::<D::Acc>(1)?;
            comm.all_reduce_sum(device, ViewMut::all(&mut token))?;
            device.to_vec::<D::Acc>(View::all(&token))?;
            let took = [first, timed(&mut among, batch)?];
            if step >= warm_up {
                times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
            }
        }
        if rank > 0 {
            return Ok(());
        }
        let worlds = if ranks == 1 { &WORLDS[..] } else { &[] };
        let agreements: Vec<_> =
            worlds.iter().map(|&world| (world, agreement(world, self.pairs))).collect();
        self.tell(&device.name(), ranks, times, &exchanges, &agreements)
    }

    fn tell(
        &self,
        device: &str,
        ranks: usize,
        times: [Vec<f64>; 2],
        exchanges: &[[f64; 3]],
        agreements: &[(usize, f64)],
    ) -> Result<()> {
        let [alone, among] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        let overhead = among / alone - 1.0;
        println!("{}, {} pairs a rank, {ranks} ranks, {device}", self.model, self.pairs);
        println!("a step alone {alone:.4} s, among ranks {among:.4} s: {:+.2} %", 100.0 * overhead);
        for [bytes, reduce, gather] in exchanges {
            println!(
                "{bytes:>9} bytes: all-reduce {:9.1} us, all-gather {:9.1} us",
                1e6 * reduce,
                1e6 * gather
            );
        }
        for (world, took) in agreements {
            println!("{world:>4} ranks agree in {:9.1} us", 1e6 * took);
        }
        self.flags.write(&json!({
            "device": device, "model": self.model, "pairs": self.pairs, "ranks": ranks,
            "steps": self.steps, "alone_s": alone, "among_s": among, "overhead": overhead,
            "exchanges": exchanges.iter().map(|[bytes, reduce, gather]| {
                json!({ "bytes": bytes, "all_reduce_s": reduce, "all_gather_s": gather })
            }).collect::<Vec<_>>(),
            "agreements": agreements.iter().map(|(world, took)| {
                json!({ "ranks": world, "bytes": RECORD * self.pairs, "agree_s": took })
            }).collect::<Vec<_>>(),
        }));
        let counts = ranks == 1 && self.steps >= LEAST;
        assert!(!counts || overhead <= OVERHEAD, "a single rank may cost {OVERHEAD} of a step");
        Ok(())
    }
}

/// Seconds that so many ranks take to agree between two steps, when each tells of its pairs. They
/// are threads of this process: all of their work counts, not only rank 0's.
fn agreement(world: usize, pairs: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
    let address = listener.local_addr().expect("it is bound").to_string();
    let mut first = Some(listener);
    let ranks = (0..world).map(|rank| {
        let at = first.take().map_or_else(|| Meeting::At(address.clone()), Meeting::Here);
        std::thread::spawn(move || {
            let launch = Launch { rank, world_size: world, ..Launch::solo() };
            let end = Box::new(|verdict| panic!("{verdict:?}"));
            let options = GroupOptions { timeout: Duration::from_secs(60), end };
            let group = Group::meet(&launch, at, options).expect("all are here");
            let agree = |_| {
                let began = Instant::now();
                group.gather(vec![0; RECORD * pairs]).expect("all are here");
                group.first_has(0).expect("all are here");
                began.elapsed().as_secs_f64()
            };
            let mut times: Vec<f64> = (0..SAMPLES * CALLS).map(agree).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    });
    let ranks: Vec<_> = ranks.collect();
    let times: Vec<_> = ranks.into_iter().map(|rank| rank.join().expect("none fails")).collect();
    times[0]
}

/// Seconds of a step.
fn timed<D: Backend, C: Communicator<D>>(
    trainer: &mut Trainer<D, C>,
    batch: &Batch,
) -> Result<f64> {
    let began = Instant::now();
    match trainer.step(batch, 0)? {
        Outcome::Stepped(_) => Ok(began.elapsed().as_secs_f64()),
        Outcome::Refused(why) => panic!("{} is not finite", why.what),
    }
}

/// Bytes that a rank hands in, and the median seconds of a sum over ranks and of a gathering.
fn exchanges<D: Backend>(device: &D, comm: &impl Communicator<D>) -> Result<Vec<[f64; 3]>> {
    let clock = Clock::new(device)?;
    let median = |mut work: Box<dyn FnMut() -> Result<()> + '_>| -> Result<f64> {
        work()?;
        let times = (0..SAMPLES).map(|_| clock.time(CALLS, &mut work));
        let mut times = times.collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[SAMPLES / 2])
    };
    LENS.into_iter()
        .map(|len| {
            let mut local = device.alloc::<D::Acc>(len)?;
            let mut all = device.alloc::<D::Acc>(len * comm.world_size())?;
            let reduce =
                median(Box::new(|| comm.all_reduce_sum(device, ViewMut::all(&mut local))))?;
            let gather = median(Box::new(|| {
                comm.all_gather::<D::Acc>(device, View::all(&local), ViewMut::all(&mut all))
            }))?;
            Ok([(len * size_of::<D::Acc>()) as f64, reduce, gather])
        })
        .collect()
}
