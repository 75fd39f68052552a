//! Goal:   ranks under MPI learn what one process learns from the same global batches, whatever
//!         their number; a run goes on on another number of them; one that is killed, stopped or in
//!         doubt ends all, with a word that names it.
//! Method: `mpirun` starts `roclip-train` on tiny uneven shards; losses, weights and matches are
//!         compared with one process's, within what the order of a sum can change.

use crate::common::shards::{members, tar};
use crate::run::{Bench, assert_same, text};
use roclip::flow::State;
use roclip::rng::{Domain, Rng};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Pairs of the shards: no number of ranks divides them, and one shard has a single pair.
const SHARDS: [u32; 4] = [30, 1, 17, 14];
/// Rows of a global batch.
const GLOBAL: usize = 12;
/// Steps of 4 epochs of 62 pairs: one lane of five pairs has a broken one.
const STEPS: usize = 16;

/// A run of the bench on uneven shards, with `--eps 1`: AdamW then moves a weight by the learning
/// rate times its gradient, as SGD does, so that what a rounding changes stays as small as it is.
/// Adam's own step is the sign of a gradient that is nothing but rounding.
struct Ranks {
    bench: Bench,
    shards: String,
}

impl Ranks {
    fn new() -> Self {
        let bench = Bench::new();
        let (mut from, folder) = (0, bench.path("uneven"));
        fs::create_dir(&folder).unwrap();
        for (n, pairs) in SHARDS.into_iter().enumerate() {
            let mut members = members(from, from + pairs);
            if n == 2 {
                // A picture that does not decode: its lane alone fills its place.
                members[8].1.truncate(20);
            }
            fs::write(folder.join(format!("{n}.tar")), tar(&members)).unwrap();
            from += pairs;
        }
        let shards = format!("{}/{{0..3}}.tar", folder.display());
        Self { bench, shards }
    }

    /// That many ranks, of which each has its part of the global batch.
    fn command(&self, name: &str, ranks: usize, more: &[&str]) -> Command {
        let batch = (GLOBAL / ranks).to_string();
        let flags = ["--shards", &self.shards, "--batch-size", &batch, "--lanes", "12", "--eps"];
        let flags = [&flags[..], &["1", "--lr", "0.1", "--grad-clip-norm", "1"], more].concat();
        let run = self.bench.command(name, &flags);
        if ranks == 1 {
            return run;
        }
        let mut command = Command::new("mpirun");
        command.args(["-n", &ranks.to_string()]).arg(run.get_program()).args(run.get_args());
        // Open MPI 4, and 5.
        let settings = [
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
            ("OMPI_MCA_hwloc_base_binding_policy", "none"),
            ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
            ("PRTE_MCA_hwloc_default_binding_policy", "none"),
        ];
        command.envs(settings);
        command
    }

    fn run(&self, name: &str, ranks: usize, more: &[&str]) -> Output {
        let output = self.command(name, ranks, more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    fn spawn(&self, name: &str, ranks: usize, more: &[&str]) -> Child {
        let mut command = self.command(name, ranks, more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The model with CLIP's ResNet as its image tower.
    fn resnet(&self) -> String {
        let (from, to) = (self.bench.path("model.json"), self.bench.path("resnet.json"));
        let mut model: Value = serde_json::from_slice(&fs::read(from).unwrap()).unwrap();
        model["vision_cfg"] =
            json!({ "image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32 });
        fs::write(&to, model.to_string()).unwrap();
        to.to_str().unwrap().to_owned()
    }

    fn losses(&self, name: &str) -> Vec<f64> {
        let lines = self.bench.lines(name, "metrics.jsonl");
        lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    }

    fn records(&self, name: &str, epoch: usize) -> Vec<[u32; 6]> {
        let path = self.bench.folder(name).join(format!("matches/epoch_{epoch}.npy"));
        let bytes = fs::read(path).unwrap();
        let (rows, _) = bytes[bytes.len() % 24..].as_chunks::<24>();
        let word = |row: &[u8; 24], n: usize| {
            u32::from_le_bytes(row[4 * n..4 * n + 4].try_into().unwrap())
        };
        rows.iter().map(|row| std::array::from_fn(|n| word(row, n))).collect()
    }
}

/// Most that one rounding order instead of another can make of a weight. A gradient is a sum of at
/// most 2¹¹ terms (12 pairs of up to 10 tokens, widths up to 49), each rounded to 2⁻²⁴ of a sum of
/// at most 1 (the norm is clipped): 2⁻¹³. It moves a weight by the learning rate, in each step.
const WEIGHTS: f64 = 0.1 / 8192.0 * STEPS as f64;

#[track_caller]
fn assert_near(one: &State, other: &State, bound: f64) {
    assert_eq!(one.values["step"], other.values["step"]);
    for (name, tensor) in &one.tensors {
        // Embeddings of the pool are unit: a change of all weights moves them no further than a
        // few times the change.
        let bound = if name.starts_with("pool") { 64.0 * bound } else { bound };
        if name.ends_with("places") {
            assert_eq!(tensor, &other.tensors[name], "{name}");
            continue;
        }
        let values = tensor.values.iter().zip(&other.tensors[name].values);
        let most = values.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(most <= bound, "{name} differs by {most:e}");
    }
}

/// The same losses, weights, records and books on 2, 3 and 4 ranks as on one.
fn same_on_any_number(ranks: &Ranks, objective: &[&str], slack: f64) {
    ranks.run("one", 1, objective);
    let (one, losses) = (ranks.bench.final_state("one"), ranks.losses("one"));
    assert_eq!(losses.len(), STEPS);
    for count in [2, 3, 4] {
        let name = format!("{count}");
        let told = text(&ranks.run(&name, count, objective));
        assert_eq!(told.matches("Epoch 3 done").count(), 1, "one rank speaks: {told}");
        assert_near(&one, &ranks.bench.final_state(&name), slack * WEIGHTS);
        for (n, (a, b)) in losses.iter().zip(ranks.losses(&name)).enumerate() {
            // The inverse temperature, 14, times what the weights' change does to a cosine.
            assert!(
                (a - b).abs() <= 14.3 * slack * WEIGHTS,
                "step {n} of {count} ranks: {a} and {b}"
            );
        }
        for epoch in 0..4 {
            let (ours, theirs) = (ranks.records(&name, epoch), ranks.records("one", epoch));
            let pairs = |rows: &[[u32; 6]]| rows.iter().map(|r| (r[0], r[1], r[4], r[5])).collect();
            let [ours, theirs]: [Vec<_>; 2] = [pairs(&ours), pairs(&theirs)];
            assert_eq!(ours, theirs, "epoch {epoch} of {count} ranks");
        }
        let books = |name: &str| {
            let mut lines = ranks.bench.lines(name, "skips.jsonl");
            lines.sort_by_key(|line| (line["epoch"].as_u64(), line["index"].as_u64()));
            lines
        };
        assert_eq!(books(&name), books("one"));
        assert_eq!(books(&name).len(), 4, "the broken picture, in each epoch");
    }
}

#[test]
fn clip_learns_the_same_on_any_number_of_ranks() {
    same_on_any_number(&Ranks::new(), &["--objective", "clip"], 1.0);
}

#[test]
fn roclip_learns_the_same_on_any_number_of_ranks() {
    same_on_any_number(&Ranks::new(), &["--objective", "roclip"], 1.0);
}

/// CLIP's ResNet, whose norms see the pictures of all ranks. Slack: a norm of twelve pictures, at
/// the end of one pixel each, divides by what little they differ in; four stages, each of which may
/// double what a rounding does.
#[test]
fn norms_see_the_same_on_any_number_of_ranks() {
    let ranks = Ranks::new();
    let model = ranks.resnet();
    same_on_any_number(&ranks, &["--objective", "clip", "--use-bn-sync", "--model", &model], 16.0);
}

/// Again on the same number of ranks, and with a pool in parts: the same bits.
#[test]
fn a_run_of_ranks_repeats_itself() {
    let ranks = Ranks::new();
    ranks.run("once", 3, &[]);
    let once = ranks.bench.final_state("once");
    for (name, more) in [("again", &[][..]), ("parts", &["--shard-pool"])] {
        ranks.run(name, 3, more);
        assert_same(&once, &ranks.bench.final_state(name));
    }
}

/// The processes that `mpirun` started.
fn children(of: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", of.id());
    let pids = fs::read_to_string(path).unwrap_or_default();
    pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

impl Ranks {
    /// Starts ranks and sends a signal to one of them after so many steps.
    fn disturbed(
        &self,
        name: &str,
        (count, which): (usize, usize),
        more: &[&str],
        what: &str,
    ) -> Output {
        let child = self.spawn(name, count, more);
        let metrics = self.bench.folder(name).join("metrics.jsonl");
        let patience = Instant::now() + Duration::from_secs(60);
        while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 7 {
            assert!(Instant::now() < patience, "waited a minute for 7 steps");
            std::thread::sleep(Duration::from_millis(1));
        }
        let pids = children(&child);
        assert_eq!(pids.len(), count);
        signal(what, pids[which]);
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        output
    }
}

/// A signal to one rank stops all, and the run goes on on other numbers of ranks, whether the pool
/// is in parts or not.
#[test]
fn a_run_goes_on_on_another_number_of_ranks() {
    let ranks = Ranks::new();
    // Long enough to be met in the middle.
    let slow = ["--text-aug", "eda", "--epochs", "4"];
    let parts = [&slow[..], &["--shard-pool"]].concat();
    ranks.run("whole", 1, &slow);
    let told = text(&ranks.disturbed("moved", (4, 2), &parts, "-USR1"));
    assert_eq!(told.matches("stopped by a signal; saved").count(), 1, "{told}");
    let resume = [&slow[..], &["--resume", "latest"]].concat();
    let larger = [&resume[..], &["--batch-size", "24"]].concat();
    let refused = text(&ranks.command("moved", 1, &larger).output().unwrap());
    assert!(refused.contains("--batch-size 12 (now 24)"), "{refused}");
    ranks.run("moved", 3, &resume);
    assert_near(&ranks.bench.final_state("whole"), &ranks.bench.final_state("moved"), WEIGHTS);
    assert_eq!(ranks.records("moved", 3).len(), ranks.records("whole", 3).len());
}

/// `kill -9` of a rank ends the others at once; resumed, the run reaches the same bits.
#[test]
fn a_killed_rank_ends_all_and_the_run_resumes_to_the_same_bits() {
    let ranks = Ranks::new();
    ranks.run("whole", 3, &[]);
    for which in [0, 1, 2] {
        let name = format!("killed{which}");
        let began = Instant::now();
        let told = text(&ranks.disturbed(&name, (3, which), &[], "-KILL"));
        assert!(began.elapsed() < Duration::from_secs(30), "{told}");
        assert!(told.contains(&format!("rank {which} on ")) || which == 0, "{told}");
        assert!(told.contains("is gone; it was at: "), "{told}");
        ranks.run(&name, 3, &["--resume", "latest"]);
        assert_same(&ranks.bench.final_state("whole"), &ranks.bench.final_state(&name));
    }
}

/// `kill -9` of a random rank at random moments, each followed by a resume that is killed in its
/// turn. `ROCLIP_KILLS=20` kills more often.
#[test]
fn killed_at_random_the_ranks_reach_the_same_bits() {
    let ranks = Ranks::new();
    let began = Instant::now();
    ranks.run("whole", 3, &[]);
    let whole = began.elapsed();
    let wanted = std::env::var("ROCLIP_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let mut rng = Rng::new(20, Domain::SampleOrder, 0, 0);
    let (mut kills, mut runs) = (0, 0);
    while kills < wanted {
        runs += 1;
        let name = format!("run{runs}");
        loop {
            let mut command = ranks.command(&name, 3, &["--resume", "latest"]);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = quiet.spawn().unwrap();
            std::thread::sleep(whole.mul_f64(rng.range(0.0, 1.1)));
            let pids = children(&child);
            // It may just have ended, or not have started any.
            if let Some(pid) = pids.get(rng.below(3) as usize) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
            if child.wait().unwrap().success() {
                break;
            }
            kills += 1;
        }
        assert_same(&ranks.bench.final_state("whole"), &ranks.bench.final_state(&name));
    }
    println!("{kills} kills over {runs} runs");
}

/// A rank that stands still, as one whose machine is gone, is waited for no longer than was said.
#[test]
fn a_silent_rank_ends_all() {
    let ranks = Ranks::new();
    let began = Instant::now();
    let told = text(&ranks.disturbed("still", (3, 1), &["--dist-timeout", "2"], "-STOP"));
    assert!(began.elapsed() < Duration::from_secs(40), "{told}");
    assert!(told.contains("roclip-train: rank 1 on "), "{told}");
    assert!(told.contains(" has said nothing for 2 s; it was at: "), "{told}");
    assert_eq!(told.matches("all ranks end").count(), 1, "{told}");
}

/// A step whose gradients are not finite is every rank's, and told once, with the pairs of all.
#[test]
fn what_is_not_finite_is_told_once() {
    let ranks = Ranks::new();
    let flags = ["--lr", "1e38", "--warmup", "0", "--max-nonfinite-steps", "2"];
    let output = ranks.command("burst", 3, &flags).output().unwrap();
    let told = text(&output);
    assert!(!output.status.success(), "{told}");
    assert_eq!(told.matches("(2 of 2 in a row)").count(), 1, "{told}");
    let lines = ranks.bench.lines("burst", "nonfinite.jsonl");
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["samples"].as_array().unwrap().len(), GLOBAL);
}

/// Ranks that were started, but not by MPI.
#[test]
fn ranks_that_cannot_talk_are_told_so() {
    let ranks = Ranks::new();
    let mut command = ranks.command("alone", 1, &[]);
    command.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
    let told = text(&command.output().unwrap());
    assert!(told.contains("--device cpu: 2 ranks, started by torchrun; expected mpirun"), "{told}");
}
