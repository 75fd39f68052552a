//! Goal:   `roclip-train` as a user meets it: it trains, stops, resumes to the same bits, survives
//!         being killed, refuses nonsense before it starts, and keeps its weights finite.
//! Method: runs the program on tiny shards with a tiny model, and compares files.

mod objectives;

use crate::common::shards::{members, tar, write_shards};
use crate::detect::records::matches;
use roclip::checkpoint::file;
use roclip::flow::State;
use roclip::rng::{Domain, Rng};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// 40 pairs in 2 shards, 5 steps of 8 an epoch, a model of 0.8 M parameters (most of them the table
/// of tokens).
pub struct Bench {
    dir: tempfile::TempDir,
    shards: String,
}

const MODEL: &str = r#"{ "embed_dim": 12,
  "vision_cfg": { "image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8 },
  "text_cfg": { "context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2,
                "layers": 1 } }"#;

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.json"), MODEL).unwrap();
        let shards = write_shards(dir.path(), 2, 20);
        Self { dir, shards }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run of 4 epochs, matched in the second and fourth.
    pub fn command(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-train"));
        command
            .args(["--shards", &self.shards, "--name", name, "--logs"])
            .arg(self.path("logs"))
            .arg("--model")
            .arg(self.path("model.json"))
            .args(["--batch-size", "8", "--epochs", "4", "--warmup", "3", "--lr", "0.01"])
            .args(["--pool-size", "12", "--shuffle", "16", "--workers", "2", "--threads", "1"])
            .args(["--text-aug", "none", "--seed", "5", "--save-every-n-steps", "2"])
            .args(more);
        command
    }

    pub fn run(&self, name: &str, more: &[&str]) -> Output {
        let output = self.command(name, more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    fn spawn(&self, name: &str, more: &[&str]) -> Child {
        let mut command = self.command(name, more);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.path("logs").join(name)
    }

    /// The model with blocks enough to keep some and not others.
    pub fn deep_model(&self) -> String {
        let path = self.path("deep.json");
        fs::write(&path, MODEL.replace("\"layers\": 1", "\"layers\": 3")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn final_state(&self, name: &str) -> State {
        file::read(&self.folder(name).join("checkpoints/epoch_4.safetensors")).unwrap()
    }

    pub fn lines(&self, name: &str, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.folder(name).join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The same bits in every tensor, and the same step, position and pool.
#[track_caller]
pub fn assert_same(a: &State, b: &State) {
    let bits = |s: &State| -> Vec<(String, Vec<u32>)> {
        let bits = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect();
        s.tensors.iter().map(|(name, t)| (name.clone(), bits(&t.values))).collect()
    };
    assert_eq!(a.values, b.values);
    assert!(bits(a) == bits(b), "tensors differ");
}

fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(Instant::now() < patience, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_writes_what_its_users_expect() {
    let bench = Bench::new();
    let told = text(&bench.run("plain", &["--log-every-n-steps", "5"]));
    let lines: Vec<&str> = told.lines().filter(|l| l.contains("Train Epoch:")).collect();
    assert_eq!(lines.len(), 4, "{told}");
    assert!(lines[0].contains("Train Epoch: 0 [40/40 (100%)] Data (t): "), "{}", lines[0]);
    assert!(lines[0].contains(" Logit Scale: 1") && lines[0].contains("Pool: 12/12"));
    assert!(!lines[0].contains("Matched") && lines[1].contains("Matched"), "{told}");
    assert!(told.contains("seen 40, delivered 40, skipped 0"), "{told}");
    let folder = bench.folder("plain");
    let mut files: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let expected = "README.md checkpoints config.json matches merges.txt metrics.jsonl \
        model.safetensors open_clip_config.json open_clip_model.safetensors out.log params.txt \
        preprocessor_config.json skips.jsonl special_tokens_map.json tokenizer.json \
        tokenizer_config.json vocab.json";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(files, expected);
    let params = fs::read_to_string(folder.join("params.txt")).unwrap();
    assert!(
        params.contains("batch_size: 8\n") && params.contains("objective: roclip\n"),
        "{params}"
    );
    let steps = bench.lines("plain", "metrics.jsonl");
    assert_eq!(steps.len(), 20);
    for (n, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], n + 1);
        assert_eq!(step["pool_similarity"].is_number(), (n / 5) % 2 == 1, "matched epochs");
    }
    let left: Vec<_> = fs::read_dir(folder.join("checkpoints")).unwrap().flatten().collect();
    assert_eq!(left.len(), 4, "one checkpoint an epoch; those within epochs were superseded");
}

/// The exported model is the checkpoint's, tensor by tensor, and nothing else.
#[test]
fn the_exported_model_is_the_trained_one() {
    let bench = Bench::new();
    bench.run("export", &[]);
    let path = bench.folder("export").join("open_clip_model.safetensors");
    let bytes = fs::read(path).unwrap();
    let model = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let state = bench.final_state("export");
    let of_model = |name: &&String| !name.starts_with("optimizer.") && !name.starts_with("pool.");
    let names: Vec<&String> = state.tensors.keys().filter(of_model).collect();
    assert_eq!(model.len(), names.len());
    for name in names {
        let expected: &[u8] = bytemuck::cast_slice(&state.tensors[name].values);
        assert_eq!(model.tensor(name).unwrap().data(), expected, "{name}");
    }
    let config = fs::read(bench.folder("export").join("open_clip_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["model_cfg"]["embed_dim"], 12);
    assert_eq!(config["preprocess_cfg"]["mean"][0], 0.48145466);
}

#[test]
fn neither_threads_nor_workers_change_a_bit() {
    let bench = Bench::new();
    bench.run("one", &[]);
    bench.run("many", &["--threads", "3", "--workers", "5"]);
    assert_same(&bench.final_state("one"), &bench.final_state("many"));
}

/// Also where a run begins without and resumes with it: it is no part of what a run is.
#[test]
fn recomputed_activations_change_no_bit() {
    let bench = Bench::new();
    let model = bench.deep_model();
    let same = ["--model", &model, "--lr-scheduler", "const"];
    bench.run("kept", &same);
    bench.run("recomputed", &[&same[..], &["--epochs", "2"]].concat());
    let more = ["--grad-checkpointing", "--resume", "latest"];
    bench.run("recomputed", &[&same[..], &more].concat());
    assert_same(&bench.final_state("kept"), &bench.final_state("recomputed"));
}

/// A row of the table that `--plan` prints.
fn planned(told: &str, row: &str) -> u64 {
    let line = told.lines().find(|line| line.starts_with(row)).expect(row);
    line[row.len()..].split_whitespace().next().unwrap().parse().expect(row)
}

#[test]
fn a_plan_is_printed_and_nothing_else_happens() {
    let bench = Bench::new();
    let model = bench.deep_model();
    let nowhere = ["--plan", "--shards", "nowhere.tar", "--model", &model];
    let told = text(&bench.run("never", &nowhere));
    assert_eq!(planned(&told, "caption pool"), 4 * (12 * 12 + 8 + 8), "{told}");
    assert_eq!(planned(&told, "pictures"), 4 * 8 * 3 * 16 * 16);
    assert!(told.contains("largest --batch-size with --accum-freq 1: "), "{told}");
    let less = text(&bench.run("never", &[&nowhere[..], &["--grad-checkpointing"]].concat()));
    assert!(planned(&less, "activations") < planned(&told, "activations"), "{less}");
    let percent = ["--plan", "--pool-size", "30%"];
    let counted = text(&bench.run("never", &percent));
    assert_eq!(planned(&counted, "caption pool"), planned(&told, "caption pool"));
    let told = bench.command("never", &[&nowhere[..], &percent].concat()).output().unwrap();
    assert!(text(&told).contains("nowhere.tar"), "{}", text(&told));
    let declared = ["--train-num-samples", "40"];
    let told = text(&bench.run("never", &[&nowhere[..], &percent, &declared].concat()));
    assert_eq!(planned(&told, "caption pool"), planned(&counted, "caption pool"));
    assert!(!bench.path("logs").exists(), "a plan leaves no folder");
}

/// No machine has memory for so many pairs: told before anything is allocated or written.
#[test]
fn what_does_not_fit_is_refused_with_what_does() {
    let bench = Bench::new();
    let huge = ["--batch-size", "50000000", "--train-num-samples", "100000000"];
    let output = bench.command("never", &huge).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output);
    let start = "roclip-train: --batch-size: 50000000 pairs a pass take ";
    assert!(told.starts_with(start) && told.contains(" are free; expected "), "{told}");
    let fitting: Vec<&str> = told.split("at most ").nth(1).unwrap().split(',').collect();
    assert!(fitting[0].ends_with(" --grad-checkpointing"), "{told}");
    assert!(!bench.path("logs").exists());
    let plan = text(&bench.run("never", &[&huge[..], &["--plan"]].concat()));
    assert!(plan.contains("\ndoes not fit; what does: at most --batch-size "), "{plan}");
}

#[test]
fn a_signal_saves_and_resuming_continues_to_the_same_bits() {
    let bench = Bench::new();
    bench.run("whole", &["--epochs", "40"]);
    for signal in ["-TERM", "-INT"] {
        let name = format!("cut{signal}");
        let child = bench.spawn(&name, &["--epochs", "40"]);
        let metrics = bench.folder(&name).join("metrics.jsonl");
        wait_until("a few steps", || {
            fs::read_to_string(&metrics).is_ok_and(|m| m.lines().count() >= 7)
        });
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(75), "stopped by a signal, resumable");
        let log = fs::read_to_string(bench.folder(&name).join("out.log")).unwrap();
        let word = log.lines().last().unwrap();
        assert!(word.contains("resume with: ") && word.ends_with("--resume latest"), "{word}");
        bench.run(&name, &["--epochs", "40", "--resume", "latest"]);
        let last = |name: &str| {
            file::read(&bench.folder(name).join("checkpoints/epoch_40.safetensors")).unwrap()
        };
        assert_same(&last("whole"), &last(&name));
        assert!(matches(&bench.folder("whole")) == matches(&bench.folder(&name)), "records differ");
    }
}

/// Fifty kills at random moments, each followed by a resume that is killed in its turn, until a run
/// reaches its end; then the bits are those of the undisturbed run.
#[test]
fn killed_fifty_times_the_run_reaches_the_same_bits() {
    let bench = Bench::new();
    let began = Instant::now();
    bench.run("undisturbed", &[]);
    let whole = began.elapsed();
    let expected = bench.final_state("undisturbed");
    let told = matches(&bench.folder("undisturbed"));
    let mut rng = Rng::new(50, Domain::SampleOrder, 0, 0);
    let (mut kills, mut runs) = (0, 0);
    while kills < 50 {
        runs += 1;
        let name = format!("killed{runs}");
        while !finished_after_a_kill(&bench, &name, &[], whole.mul_f64(rng.range(0.0, 1.1))) {
            kills += 1;
        }
        assert_same(&expected, &bench.final_state(&name));
        assert!(matches(&bench.folder(&name)) == told, "records differ");
        let count = bench.lines("undisturbed", "skips.jsonl").len();
        assert_eq!(bench.lines(&name, "skips.jsonl").len(), count);
        fs::remove_dir_all(bench.folder(&name)).unwrap();
    }
    println!("{kills} kills over {runs} runs");
}

/// Starts or resumes a run and kills it after `delay`; whether it was done before that.
pub fn finished_after_a_kill(bench: &Bench, name: &str, more: &[&str], delay: Duration) -> bool {
    let mut child = bench.spawn(name, &[&["--resume", "latest"], more].concat());
    std::thread::sleep(delay);
    let done = child.try_wait().unwrap();
    let _ = child.kill();
    child.wait().unwrap();
    done.is_some_and(|status| {
        assert!(status.success(), "a resumed run failed");
        true
    })
}

#[test]
fn resume_passes_over_a_damaged_checkpoint_and_says_so() {
    let bench = Bench::new();
    bench.run("hurt", &[]);
    let folder = bench.folder("hurt").join("checkpoints");
    let newest = folder.join("epoch_4.safetensors");
    let (expected, records) = (bench.final_state("hurt"), matches(&bench.folder("hurt")));
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let told = text(&bench.run("hurt", &["--resume", "latest"]));
    assert!(told.contains("passed over") && told.contains("damaged: sha256"), "{told}");
    assert!(told.contains("epoch_3.safetensors (epoch 3, step 15)"), "{told}");
    assert_same(&expected, &bench.final_state("hurt"));
    assert!(matches(&bench.folder("hurt")) == records, "the fourth epoch is told of once");
}

#[test]
fn resume_refuses_another_run_and_names_the_flags() {
    let bench = Bench::new();
    bench.run("first", &["--epochs", "1"]);
    let output =
        bench.command("first", &["--batch-size", "4", "--resume", "latest"]).output().unwrap();
    assert!(!output.status.success());
    let told = text(&output);
    assert!(told.contains("--batch-size 8 (now 4)"), "{told}");
    let mut shard = fs::read(bench.path("01.tar")).unwrap();
    shard.extend([0; 1024]);
    fs::write(bench.path("01.tar"), shard).unwrap();
    let output = bench.command("first", &["--resume", "latest"]).output().unwrap();
    assert!(text(&output).contains("made with --shards "), "{}", text(&output));
}

#[test]
fn nothing_is_overwritten() {
    let bench = Bench::new();
    let told = text(&bench.run("mine", &["--epochs", "1", "--resume", "latest"]));
    assert!(told.contains("no checkpoint found to resume; starting from the beginning"), "{told}");
    let before = fs::read(bench.folder("mine").join("out.log")).unwrap();
    let output = bench.command("mine", &["--epochs", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("holds a run already"), "{}", text(&output));
    assert_eq!(fs::read(bench.folder("mine").join("out.log")).unwrap(), before);
}

/// The contrastive loss sees all pairs of a step, however many passes hold them: up to rounding,
/// the same training. The bound is that of float32 sums in another order over 20 steps: 2⁻²³
/// relative to gradients of order 1 under AdamW, whose first steps divide by their own size, gives
/// up to lr.
#[test]
fn accumulation_leaves_the_contrastive_result_unchanged() {
    let bench = Bench::new();
    let sure = ["--warmup", "1000", "--eps", "0.01"];
    bench.run("once", &sure);
    bench.run("twice", &[&sure[..], &["--batch-size", "4", "--accum-freq", "2"]].concat());
    let losses = |name: &str| -> Vec<f64> {
        bench.lines(name, "metrics.jsonl").iter().map(|l| l["loss"].as_f64().unwrap()).collect()
    };
    let (a, b) = (losses("once"), losses("twice"));
    assert_eq!(a.len(), 20);
    for (step, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 1e-5 * a, "step {step}: {a} and {b}");
    }
}

#[test]
fn non_finite_steps_change_nothing_and_stop_the_run() {
    let bench = Bench::new();
    // Keys that would colour a terminal and forge lines of the log.
    for shard in 0..2 {
        let mut members = members(20 * shard, 20 * shard + 20);
        members.iter_mut().for_each(|(name, _)| name.insert_str(0, "\u{1b}[31m\n"));
        fs::write(bench.path(&format!("{shard:02}.tar")), tar(&members)).unwrap();
    }
    let output = bench
        .command("wild", &["--lr", "1e30", "--warmup", "0", "--objective", "clip"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let told = text(&output);
    assert!(told.contains("(3 of 3 in a row)") && told.contains("Lower --lr"), "{told}");
    let log = fs::read_to_string(bench.folder("wild").join("out.log")).unwrap();
    assert!(!(told + &log).contains('\u{1b}') && log.contains(".tar:\\u{1b}[31m\\n0000"), "{log}");
    let refused = bench.lines("wild", "nonfinite.jsonl");
    assert_eq!(refused.len(), 3);
    let stepped = bench.lines("wild", "metrics.jsonl").len();
    let told =
        matches(&bench.folder("wild")).iter().map(|(_, bytes)| bytes.len() / 24).max().unwrap();
    assert_eq!(told, 256 / 24 + 8 * stepped, "a refused step is told of nowhere else");
    let first = refused[0]["samples"][0].as_str().unwrap();
    assert!(first.contains(".tar:\u{1b}[31m\n0000"), "{first}");
    let saved = fs::read_dir(bench.folder("wild").join("checkpoints")).unwrap().flatten();
    for checkpoint in saved {
        let state = file::read(&checkpoint.path()).unwrap();
        let finite = |values: &Vec<f32>| values.iter().all(|v| v.is_finite());
        assert!(state.tensors.values().all(|t| finite(&t.values)), "{:?}", checkpoint.path());
    }
}

#[test]
fn zero_shot_accuracy_is_measured_and_kept() {
    let bench = Bench::new();
    let eval = bench.path("eval");
    fs::create_dir_all(eval.join("test")).unwrap();
    fs::write(eval.join("classnames.txt"), "picture 0\npicture 1\npicture 2\n").unwrap();
    let members: Vec<(String, Vec<u8>)> = (0..3)
        .flat_map(|n| {
            let picture = (format!("{n:06}.png"), crate::common::shards::png(n));
            [picture, (format!("{n:06}.cls"), n.to_string().into_bytes())]
        })
        .collect();
    fs::write(eval.join("test/0.tar"), crate::common::shards::tar(&members)).unwrap();
    let told = text(&bench.run("seen", &["--zeroshot-data", eval.to_str().unwrap()]));
    assert!(told.contains("Eval Epoch: 4 zeroshot-chance: 0.3333"), "{told}");
    let results = bench.lines("seen", "results.jsonl");
    assert_eq!(results.len(), 4);
    for result in results {
        let (top1, top5) = (result["zeroshot-top1"].as_f64().unwrap(), &result["zeroshot-top5"]);
        assert!((top1 * 3.0).fract() == 0.0 && *top5 == 1.0, "{result}");
    }
}

#[test]
fn wrong_flags_are_told_before_anything_starts() {
    let bench = Bench::new();
    let missing = Path::new("/nowhere/model.json").display().to_string();
    let cases: [(&[&str], &str); 12] = [
        (&["--batch-size", "0"], "--batch-size: 0; expected at least 1"),
        (&["--batch-size", "100"], "at most 40, the pairs of"),
        (&["--lr", "-1"], "--lr"),
        (&["--beta2", "1"], "--beta2: 1; expected at least 0 and below 1"),
        (&["--objective", "safe"], "clip, paper, official, roclip, cyclip, cleanclip, safeclip"),
        (&["--pool-size", "0"], "--pool-size"),
        (&["--pool-size", "many"], "--pool-size"),
        (&["--aug-cfg", "scale"], "KEY=VALUE"),
        (&["--model", "ViT-Z-9"], "ViT-B-32"),
        (&["--model", &missing], "/nowhere/model.json"),
        (&["--device", "tpu"], "expected cpu, cuda or cuda:N"),
        (&["--epochs-cooldown", "1"], "--epochs-cooldown"),
    ];
    for (flags, word) in cases {
        let output = bench.command("never", flags).output().unwrap();
        assert!(!output.status.success(), "{flags:?} was taken");
        let told = text(&output);
        assert!(told.contains(word), "{flags:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
        assert!(!bench.folder("never").exists(), "{flags:?} left a folder");
    }
}

#[test]
fn a_config_file_holds_flags_and_the_command_line_wins() {
    let bench = Bench::new();
    let config = bench.path("run.toml");
    fs::write(&config, "epochs = 1\nlr = 0.5\naug-cfg = [\"scale=0.5,1.0\"]\n").unwrap();
    let file = config.to_str().unwrap();
    bench.run("configured", &["--config", file, "--lr", "0.001"]);
    let params = fs::read_to_string(bench.folder("configured").join("params.txt")).unwrap();
    assert!(
        params.contains("lr: 0.001\n") && params.contains("aug_cfg: scale=0.5,1.0\n"),
        "{params}"
    );
    assert!(params.contains("epochs: 4\n"), "flags given after --config override it");
    fs::write(&config, "epoks = 1\n").unwrap();
    let output = bench.command("typo", &["--config", file]).output().unwrap();
    assert!(text(&output).contains("--epoks"), "{}", text(&output));
}

/// Every flag tells what it is for.
#[test]
fn every_flag_has_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_roclip-train")).arg("--help").output().unwrap();
    let help = text(&output);
    let lines: Vec<&str> = help.lines().collect();
    let mut flags = 0;
    for (n, line) in lines.iter().enumerate() {
        if line.trim_start().starts_with("--") {
            flags += 1;
            assert!(lines[n + 1].trim().len() > 10, "{line} has no help");
        }
    }
    assert!(flags >= 45, "{flags} flags:\n{help}");
}
