//! Goal: `roclip-eval` as a user meets it.
//! Method: a model of random weights on small shards. Features come from `roclip-model embed` and
//! are measured by loops here; an attack's numbers must be those of zero-shot classification on
//! copies that the test stamped, labelled as the question asks.

use crate::common::shards;
use crate::common::tiny::tiny_weights;
use roclip::attack::manifest::{Attack, AttackKind, Manifest, Mode, TargetLabel};
use roclip::attack::trigger::{self, Pattern, Place, Trigger};
use roclip::data::decode::Rgb8;
use roclip::encode::{self, ClipConfig};
use roclip::interop::{Tensor, Tensors};
use roclip::rng::{Domain, Rng};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CLASSES: [&str; 3] = ["red apple", "cat", "small boat"];
/// Side at which triggers are stamped: neither the model's nor the pictures'.
const SIDE: u32 = 24;

/// A model, and folders to measure it on.
struct Bench {
    dir: tempfile::TempDir,
    model: Vec<String>,
}

/// Noise of few tones, 20 × 14 pixels.
fn picture(n: u64) -> Rgb8 {
    let mut rng = Rng::new(n, Domain::Init, 0, 0);
    let base: [u64; 3] = std::array::from_fn(|_| rng.below(200));
    let data = (0..20 * 14 * 3).map(|i| (base[i % 3] + rng.below(56)) as u8).collect();
    Rgb8 { width: 20, height: 14, data }
}

fn png(picture: &Rgb8) -> Vec<u8> {
    let Rgb8 { width, height, data } = picture.clone();
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_raw(width, height, data).unwrap();
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{ "embed_dim": 12,
            "vision_cfg": { "image_size": 16, "layers": 1, "width": 16, "head_width": 8,
                "patch_size": 8 },
            "text_cfg": { "context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2,
                "layers": 1 } }"#;
        let path = dir.path().join("tiny.json");
        fs::write(&path, config).unwrap();
        let config: ClipConfig = serde_json::from_str(config).unwrap();
        let table = encode::params(&config).unwrap();
        let values: Vec<f32> = tiny_weights(&table).into_iter().map(|x| x as f32).collect();
        let tensors: Tensors<'_> = table
            .iter()
            .map(|p| (p.name.clone(), Tensor::from_f32(&p.shape, &values[p.slot.range()])))
            .collect();
        let weights = dir.path().join("tiny.safetensors");
        fs::write(&weights, safetensors::serialize(&tensors, None).unwrap()).unwrap();
        let model =
            [weights.to_str().unwrap(), "--model", path.to_str().unwrap(), "--threads", "1"]
                .map(String::from);
        Self { dir, model: model.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `test/` of an evaluation folder, in shards of five.
    fn folder(&self, name: &str, split: &str, pictures: &[(Vec<u8>, usize)]) -> String {
        let folder = self.path(name);
        fs::create_dir_all(folder.join(split)).unwrap();
        fs::write(folder.join("classnames.txt"), CLASSES.join("\n")).unwrap();
        for (shard, pictures) in pictures.chunks(5).enumerate() {
            let members: Vec<(String, Vec<u8>)> = pictures
                .iter()
                .enumerate()
                .flat_map(|(n, (png, class))| {
                    let class = class.to_string().into_bytes();
                    [(format!("s{n:04}.png"), png.clone()), (format!("s{n:04}.cls"), class)]
                })
                .collect();
            let path = folder.join(split).join(format!("{shard}.tar"));
            fs::write(path, shards::tar(&members)).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    /// Exit code, and all that was printed.
    fn run(&self, more: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-eval"));
        let output = command.args(&self.model).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("panicked"), "{text}");
        (output.status.code().unwrap(), text)
    }

    /// The results of a run that must succeed.
    fn results(&self, more: &[&str]) -> Value {
        let output = self.path("results.json");
        let (code, text) = self.run(&[more, &["--output", output.to_str().unwrap()]].concat());
        assert_eq!(code, 0, "{text}");
        json(&output)
    }

    /// Features of length 1 by `roclip-model embed`.
    fn embed(&self, what: &[&str]) -> Vec<Vec<f32>> {
        let out = self.path("features.npy");
        let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-model"));
        command.arg("embed").args(&self.model).args(what).args(["--normalize", "--force", "--out"]);
        let output = command.arg(&out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = fs::read(out).unwrap();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[128..]);
        values.chunks_exact(12).map(<[f32]>::to_vec).collect()
    }

    fn captions(&self, captions: &[String]) -> Vec<Vec<f32>> {
        let file = self.path("captions.txt");
        fs::write(&file, captions.join("\n")).unwrap();
        self.embed(&["--captions", file.to_str().unwrap()])
    }
}

/// A share that went through JSON, which may cost its last bit.
#[track_caller]
fn same(got: &Value, expected: f64) {
    assert!((got.as_f64().unwrap() - expected).abs() < 1e-15, "{got} {expected}");
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn pictures(n: u64) -> Vec<(Vec<u8>, usize)> {
    (0..n).map(|n| (png(&picture(n)), (n * 7 % 5 % 3) as usize)).collect()
}

#[test]
fn zero_shot_and_probe_are_told_in_clip_benchmarks_form() {
    let bench = Bench::new();
    let test = pictures(13);
    let folder = bench.folder("set", "test", &test);
    bench.folder("set", "train", &pictures(11));
    let pattern = bench.path("{dataset}_{task}.json");
    let tasks = ["--zeroshot", &folder, "--probe", &folder, "--penalty", "0.000001"];
    let (code, text) = bench.run(&[&tasks[..], &["--output", pattern.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("zeroshot_classification on set") && text.contains("95 % within"));
    let result = json(&bench.path("set_zeroshot_classification.json"));
    let class_captions: Vec<String> =
        CLASSES.iter().map(|class| format!("a photo of a {class}.")).collect();
    let classes = bench.captions(&class_captions);
    let images = bench.embed(&["--images", "--shards", &format!("{folder}/test")]);
    let nearest = |image: &Vec<f32>| {
        let score = |class: usize| dot(image, &classes[class]);
        (0..3).reduce(|best, class| if score(class) > score(best) { class } else { best }).unwrap()
    };
    let answers: Vec<usize> = images.iter().map(nearest).collect();
    let right = answers.iter().zip(&test).filter(|(answer, (_, class))| *answer == class).count();
    assert!((1..13).contains(&right), "all alike prove nothing: {answers:?}");
    same(&result["metrics"]["acc1"], right as f64 / 13.0);
    assert_eq!(result["metrics"]["acc3"], 1.0);
    assert!(result["metrics"]["acc5"].is_null(), "three classes have no top 5");
    assert_eq!((&result["model"], &result["language"]), (&"custom".into(), &"en".into()));
    assert_eq!(result["pretrained"], bench.model[0]);
    let probed = json(&bench.path("set_linear_probe.json"));
    // Eleven points in twelve dimensions: the probe learns what it has seen, which the first eleven
    // test pictures are.
    assert!(probed["metrics"]["lp_acc1"].as_f64().unwrap() >= 11.0 / 13.0, "{probed}");
    same(&probed["metrics"]["penalty"], 1e-6);
}

#[test]
fn retrieval_takes_every_line_for_a_caption() {
    let bench = Bench::new();
    let caption = |n: usize| format!("number {n} of a set with colour {}", n % 4);
    let members: Vec<(String, Vec<u8>)> = (0..9)
        .flat_map(|n| {
            let lines: Vec<String> = (0..=n % 3).map(|line| caption(3 * n + line)).collect();
            // An empty line is no caption.
            let text = lines.join("\n\n") + "\n";
            [(format!("{n}.png"), png(&picture(n as u64))), (format!("{n}.txt"), text.into_bytes())]
        })
        .collect();
    let shard = bench.path("pairs.tar");
    fs::write(&shard, shards::tar(&members)).unwrap();
    let shard = shard.to_str().unwrap();
    let owner: Vec<usize> = (0..9).flat_map(|n| vec![n; n % 3 + 1]).collect();
    let captions: Vec<String> =
        (0..9).flat_map(|n| (0..=n % 3).map(move |line| caption(3 * n + line))).collect();
    let (images, texts) =
        (bench.embed(&["--images", "--shards", shard]), bench.captions(&captions));
    for batch in ["2", "64"] {
        let result = bench.results(&["--retrieval", shard, "--batch-size", batch]);
        for k in [1, 5, 10] {
            let found = |own: usize, before: &dyn Fn(usize) -> bool, of: usize| {
                (0..of).filter(|&n| n != own && before(n)).count() < k
            };
            let right = (0..texts.len()).filter(|&j| {
                let own = dot(&images[owner[j]], &texts[j]);
                found(owner[j], &|i| dot(&images[i], &texts[j]) >= own, 9)
            });
            let expected = right.count() as f64 / texts.len() as f64;
            same(&result["metrics"][format!("image_retrieval_recall@{k}")], expected);
            let right = (0..9).filter(|&i| {
                let score = |j: usize| dot(&images[i], &texts[j]);
                let own = (0..texts.len()).filter(|&j| owner[j] == i).map(score);
                let best = own.fold(f32::NEG_INFINITY, f32::max);
                found(usize::MAX, &|j| owner[j] != i && score(j) >= best, texts.len())
            });
            let expected = right.count() as f64 / 9.0;
            same(&result["metrics"][format!("text_retrieval_recall@{k}")], expected);
        }
    }
}

/// A poisoned data set's truth: a patch that asks for "cat", and three pictures that ask for what
/// they are not.
fn poisoned(bench: &Bench, trigger: &Trigger) -> PathBuf {
    let home = bench.path("poisoned");
    fs::create_dir_all(home.join("targets")).unwrap();
    let attack = |name: &str, target: &[&str], kind| Attack {
        name: name.into(),
        target: target.iter().map(|name| (*name).into()).collect(),
        pairs: 9,
        kind,
    };
    let backdoor = AttackKind::Backdoor { trigger: trigger.clone(), label_consistent: false };
    let manifest = Manifest {
        seed: 5,
        clean: 100,
        poisoned: 18,
        image_size: SIDE,
        mode: Mode::Append,
        attacks: vec![
            attack("patch", &["cat"], backdoor),
            attack("chosen", &["cat", "red apple"], AttackKind::Targeted { pictures: 3 }),
        ],
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    fs::write(home.join("attacks.json"), manifest).unwrap();
    let label = |target: &str, class: Option<&str>| {
        let [attack, target] = ["chosen", target].map(String::from);
        let label = TargetLabel { attack, target, class: class.map(String::from) };
        serde_json::to_vec(&label).unwrap()
    };
    let members = [
        ("a.json", label("cat", Some("small boat"))),
        ("a.png", png(&picture(40))),
        ("b.png", png(&picture(41))),
        ("b.json", label("red apple", Some("cat"))),
        ("c.png", png(&picture(42))),
        ("c.json", label("cat", None)),
    ];
    fs::write(home.join("targets/0.tar"), shards::tar(&members)).unwrap();
    home.join("attacks.json")
}

fn stamped(trigger: &Trigger, n: u64) -> Vec<u8> {
    let mut square = trigger::square(&picture(n), SIDE);
    trigger.apply(&mut square, &mut Rng::new(0, Domain::Stamp, 0, 0));
    png(&square)
}

#[test]
fn attacks_are_measured_on_what_they_would_have_stamped() {
    let bench = Bench::new();
    let patch =
        Trigger::Badnets { size: 8, pattern: Pattern::Noise, place: Place::BottomRight, seed: 3 };
    let manifest = poisoned(&bench, &patch);
    let (manifest, test) = (manifest.to_str().unwrap(), pictures(24));
    let folder = bench.folder("clean", "test", &test);
    let results = bench.results(&["--zeroshot", &folder, "--attacks", manifest, "--workers", "3"]);
    assert_eq!(results[1]["task"], "attack_success");
    let metrics = &results[1]["metrics"];
    assert_eq!(metrics["acc1"], results[0]["metrics"]["acc1"]);

    // The same questions, asked of copies: `acc1` where every copy is labelled as asked.
    let asked = |name: &str, keep: &dyn Fn(usize) -> bool, label: &dyn Fn(usize) -> usize| {
        let copies = test.iter().enumerate().filter(|(_, (_, class))| keep(*class));
        let copies: Vec<_> =
            copies.map(|(n, (_, class))| (stamped(&patch, n as u64), label(*class))).collect();
        let folder = bench.folder(name, "test", &copies);
        bench.results(&["--zeroshot", &folder])["metrics"]["acc1"].clone()
    };
    let cat = 1;
    let asr = asked("asr", &|class| class != cat, &|_| cat);
    let all = asked("all", &|_| true, &|_| cat);
    let recovered = asked("recovered", &|class| class != cat, &|class| class);
    let plain = |n: usize| (png(&trigger::square(&picture(n as u64), SIDE)), cat);
    let others: Vec<_> = (0..test.len()).filter(|&n| test[n].1 != cat).map(plain).collect();
    let untouched = bench.folder("untouched", "test", &others);
    let untouched = bench.results(&["--zeroshot", &untouched])["metrics"]["acc1"].clone();
    assert_eq!(metrics["asr_without_trigger-patch"], untouched);
    assert_ne!(untouched, asr, "the trigger has an effect");
    assert_eq!(metrics["asr-patch"], asr);
    assert_eq!(metrics["asr_with_target_class-patch"], all);
    assert_eq!(metrics["recovered-patch"], recovered);
    let [asr, recovered] = [asr, recovered].map(|share| share.as_f64().unwrap());
    assert!(asr > 0.0 && asr < 1.0 && recovered > 0.0, "all alike proves nothing: {metrics}");

    // Against itself the defence has no effect.
    let reference = bench.path("results-of-undefended.json");
    fs::write(&reference, results.to_string()).unwrap();
    let reference = reference.to_str().unwrap();
    let again =
        bench.results(&["--zeroshot", &folder, "--attacks", manifest, "--reference", reference]);
    assert_eq!(again[1]["metrics"]["der-patch"], 0.5);
    assert_eq!(again[1]["metrics"]["rir-patch"], 0.5);

    // Chosen pictures: three folders of one picture each, labelled with the attacker's class.
    let of = |n: u64, class: usize| {
        let folder = bench.folder("one", "test", &[(png(&picture(n)), class)]);
        bench.results(&["--zeroshot", &folder])["metrics"]["acc1"].as_f64().unwrap()
    };
    same(&metrics["psr-chosen"], (of(40, 1) + of(41, 0) + of(42, 1)) / 3.0);
    same(&metrics["recovered-chosen"], (of(40, 2) + of(41, 1)) / 2.0);
    assert_eq!(metrics["psr@3-chosen"], 1.0);
}

#[test]
fn a_sample_of_the_pictures_is_the_same_every_time() {
    let bench = Bench::new();
    let wave = Trigger::Sig { delta: 60.0, periods: 6.0, alpha: None };
    let manifest = poisoned(&bench, &wave);
    let folder = bench.folder("clean", "test", &pictures(24));
    let home = manifest.parent().unwrap().to_str().unwrap();
    let run = |more: &[&str]| {
        let tasks = ["--zeroshot", &folder, "--attacks", home];
        bench.results(&[&tasks[..], more].concat())[1]["metrics"].clone()
    };
    let few = run(&["--attack-pictures", "7"]);
    let interval = &few["asr_with_target_class-patch_interval"];
    let sevenths = few["asr_with_target_class-patch"].as_f64().unwrap() * 7.0;
    assert!((sevenths - sevenths.round()).abs() < 1e-12, "{few}");
    assert_eq!(few, run(&["--attack-pictures", "7", "--workers", "1", "--batch-size", "3"]));
    let all = run(&[]);
    let width = |interval: &Value| interval[1].as_f64().unwrap() - interval[0].as_f64().unwrap();
    assert!(width(interval) > width(&all["asr_with_target_class-patch_interval"]));
    assert_eq!(all, run(&["--attack-pictures", "1000"]));
}

#[test]
fn what_cannot_be_measured_is_told_first() {
    let bench = Bench::new();
    let folder = bench.folder("set", "test", &pictures(3));
    let blended = Trigger::Blended { alpha: 0.2, pattern: Pattern::Noise, seed: 1 };
    let manifest = poisoned(&bench, &blended);
    let manifest = manifest.to_str().unwrap();
    let other = bench.path("other");
    fs::create_dir_all(other.join("test")).unwrap();
    fs::write(other.join("classnames.txt"), "dog\nboat\n").unwrap();
    fs::copy(Path::new(&folder).join("test/0.tar"), other.join("test/0.tar")).unwrap();
    let other = other.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 9] = [
        (&[], 2, "--zeroshot, --retrieval or --probe"),
        (&["--attacks", manifest], 2, "--zeroshot"),
        (&["--zeroshot", &folder, "--attacks", "/nowhere.json"], 2, "attacks.json of a poisoned"),
        (&["--zeroshot", "/nowhere"], 1, "/nowhere/classnames.txt"),
        (&["--zeroshot", other], 1, "class 2, but there are 2 names"),
        (&["--zeroshot", other, "--attacks", manifest], 1, "\"cat\" is not in the classnames.txt"),
        (
            &["--zeroshot", &folder, "--attacks", manifest, "--reference", manifest],
            1,
            "no attack_success on \"set\"",
        ),
        (&["--zeroshot", &folder, "--batch-size", "0"], 2, "--batch-size: 0"),
        (&["--probe", &folder, "--penalty", "-1"], 2, "--penalty"),
    ];
    for (flags, expected, word) in cases {
        let (code, told) = bench.run(flags);
        assert_eq!(code, expected, "{flags:?}: {told}");
        assert!(told.contains(word), "{flags:?}: {told}");
    }
}

/// A run measures itself as `roclip-eval` measures the model that it leaves.
#[test]
fn training_tries_the_attacks_after_every_epoch() {
    let (bench, training) = (Bench::new(), crate::run::Bench::new());
    let wave = Trigger::Sig { delta: 60.0, periods: 6.0, alpha: Some(0.5) };
    let manifest = poisoned(&bench, &wave);
    let (manifest, folder) =
        (manifest.to_str().unwrap(), bench.folder("clean", "test", &pictures(24)));
    let attacks = ["--attacks", manifest, "--attack-pictures", "20"];
    let flags = [&attacks[..], &["--zeroshot-data", &folder]].concat();
    let told = crate::run::text(&training.run("seen", &flags));
    assert!(told.contains("Eval Epoch: 4 asr-patch: 0."), "{told}");
    let results = training.lines("seen", "results.jsonl");
    assert_eq!(results.len(), 4);
    let last = results[3].as_object().unwrap();
    let model = training.folder("seen").to_str().unwrap().to_owned();
    let bench = Bench { model: vec![model, "--threads".into(), "1".into()], ..bench };
    let measured = bench.results(&[&attacks[..], &["--zeroshot", &folder]].concat());
    let measured = measured[1]["metrics"].as_object().unwrap();
    same(&last["zeroshot-top1"], measured["acc1"].as_f64().unwrap());
    let mut compared = 0;
    for (name, value) in last.iter().filter(|(name, _)| name.contains("-patch")) {
        same(value, measured[name].as_f64().unwrap());
        compared += 1;
    }
    for name in ["psr-chosen", "psr@5-chosen", "recovered-chosen", "margin-chosen"] {
        // The weights are the same bits; the margin is a mean of three differences.
        same(&last[name], measured[name].as_f64().unwrap());
    }
    assert_eq!(compared, 4, "{last:?}");
    let plan = training.command("planned", &[&flags[..], &["--plan"]].concat()).output().unwrap();
    assert!(crate::run::text(&plan).contains("evaluation"));
}
