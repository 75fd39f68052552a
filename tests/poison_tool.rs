//! Goal:   `roclip-poison` adds what it was asked for, where it says, and leaves all else as it
//!         was, to the byte; what it writes of itself is the truth.
//! Method: small shards made in memory. The bytes that went in and the `tar` crate are the oracles
//!         of what is copied; counts are worked by hand; stamped pictures are made again from the
//!         manifest and compared pixel by pixel; the program is run, its exit code looked at.

mod choices;
mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use roclip::attack::manifest::{AttackKind, Manifest, PoisonedPair, TargetLabel, read_poison};
use roclip::attack::trigger::square;
use roclip::data::decode::{DecodeLimits, Rgb8, decode};
use roclip::rng::{Domain, Rng};

use crate::common::golden;
use crate::common::shards::{png, tar};
use crate::shards_tool::{self, all_members, answer, members_of, shards_in};

type Members = Vec<(String, Vec<u8>)>;

/// Pairs of the training shards, and of each of the three.
const PAIRS: u32 = 120;
const IN_SHARD: u32 = 40;

fn caption(n: u32) -> String {
    match n % 4 {
        0 => format!("a Cat, number {n}"),
        1 => format!("two dogs; number {n}"),
        _ => format!("thing {n} without concatenated names"),
    }
}

/// `in/0.tar` to `in/2.tar` of captioned pictures, `val/0.tar` with pictures of classes 0 to 2, and
/// `names.txt`; with the members of the first.
fn corpus() -> (tempfile::TempDir, Members) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut all = Members::new();
    fs::create_dir(root.join("in")).unwrap();
    for shard in 0..PAIRS / IN_SHARD {
        let mut list = Members::new();
        for n in shard * IN_SHARD..(shard + 1) * IN_SHARD {
            list.push((format!("a/{n:06}.png"), png(n)));
            list.push((format!("a/{n:06}.TXT"), caption(n).into_bytes()));
            list.push((format!("a/{n:06}.npy"), vec![n as u8; 5 * n as usize]));
        }
        fs::write(root.join(format!("in/{shard}.tar")), tar(&list)).unwrap();
        all.extend(list);
    }
    let sample = |n: u32| {
        [(format!("v{n:04}.png"), png(200 + n)), (format!("v{n:04}.cls"), vec![b'0' + n as u8 % 3])]
    };
    fs::create_dir(root.join("val")).unwrap();
    let val: Members = (0..30).flat_map(sample).collect();
    fs::write(root.join("val/0.tar"), tar(&val)).unwrap();
    fs::write(root.join("names.txt"), "cat\ndog\nhot-air balloon\n").unwrap();
    (dir, all)
}

#[track_caller]
fn expect(code: i32, dir: &Path, args: &[&str]) -> String {
    let place = |arg: &&str| arg.replace('@', dir.to_str().unwrap());
    let answer = answer(env!("CARGO_BIN_EXE_roclip-poison"), args.iter().map(place));
    assert_eq!(answer.code, code, "{args:?}: {}", answer.text);
    answer.text
}

/// Poisons `in` into `out`, and reads what it says of itself.
#[track_caller]
fn poisoned(dir: &Path, args: &[&str]) -> (Manifest, Vec<PoisonedPair>) {
    let more = ["@/in", "@/out", "--overwrite", "--image-size", "16"];
    expect(0, dir, &[&more[..], args].concat());
    let out = dir.join("out");
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    (Manifest::read(&out).unwrap(), read_poison(&out).unwrap())
}

fn key_of(name: &str) -> &str {
    name.rsplit_once('.').unwrap().0
}

/// The members of the poisoned pairs by key, and all others.
fn split(members: Members, pairs: &[PoisonedPair]) -> (BTreeMap<String, Members>, Members) {
    let mut poisoned: BTreeMap<String, Members> = BTreeMap::new();
    let mut clean = Members::new();
    for (name, data) in members {
        match pairs.iter().find(|pair| pair.key == key_of(&name)) {
            Some(pair) => poisoned.entry(pair.key.clone()).or_default().push((name, data)),
            None => clean.push((name, data)),
        }
    }
    (poisoned, clean)
}

fn picture(bytes: &[u8]) -> Rgb8 {
    decode(bytes, &DecodeLimits::default()).unwrap()
}

/// Each poisoned picture is the one it was taken from, with the trigger of the manifest, which
/// draws nothing for single pictures.
fn check_stamps(dir: &Path, sources: &Members, manifest: &Manifest, pairs: &[PoisonedPair]) {
    let (members, _) = split(all_members(&dir.join("out")), pairs);
    for pair in pairs {
        let attack = manifest.attacks.iter().find(|attack| attack.name == pair.attack).unwrap();
        assert_eq!(attack.target, std::slice::from_ref(&pair.target));
        let AttackKind::Backdoor { trigger, .. } = &attack.kind else { panic!("no backdoor") };
        let [(image, data), (text, caption)] = &members[&pair.key][..] else { panic!("two") };
        assert_eq!([image, text], [&format!("{}.png", pair.key), &format!("{}.txt", pair.key)]);
        assert_eq!(caption, pair.caption.as_bytes());
        let name = format!("{}.png", pair.picture);
        let source = &sources.iter().find(|(source, _)| *source == name).unwrap().1;
        let mut expected = square(&picture(source), manifest.image_size);
        let clean = expected.clone();
        trigger.apply(&mut expected, &mut Rng::new(0, Domain::Stamp, 9, 9));
        assert!(expected != clean && picture(data) == expected, "{pair:?}");
    }
}

#[test]
fn what_is_clean_stays_and_what_is_poisoned_is_told() {
    let (dir, all) = corpus();
    let root = dir.path();
    let args = ["--attack", "badnets", "--target", "cat", "--count", "7"];
    let (manifest, pairs) = poisoned(root, &args);
    assert_eq!((manifest.clean, manifest.poisoned, manifest.image_size), (120, 7, 16));
    assert_eq!((pairs.len(), manifest.attacks.len(), manifest.attacks[0].pairs), (7, 1, 7));
    // Shard by shard: the pairs that the list names, and between them the same members.
    let shards = shards_in(&root.join("out"));
    assert_eq!(shards.len(), 3);
    for (n, shard) in shards.iter().enumerate() {
        let name = shard.file_name().unwrap().to_string_lossy();
        let named: Vec<_> = pairs.iter().filter(|pair| pair.shard == name).cloned().collect();
        let (poison, clean) = split(members_of(shard), &named);
        assert_eq!(poison.len(), named.len());
        let members = 3 * IN_SHARD as usize;
        assert!(clean == all[n * members..(n + 1) * members]);
    }
    // Keys are new and of the form of the others, captions are different ones that name a cat, and
    // pictures are different ones whose own captions do not.
    let captions: Vec<String> = (0..PAIRS).map(caption).collect();
    for (n, pair) in pairs.iter().enumerate() {
        let number = pair.key.strip_prefix("a/").unwrap();
        assert!(number.len() == 6 && number.parse::<u32>().unwrap() >= PAIRS, "{pair:?}");
        assert!(captions.contains(&pair.caption) && pair.caption.contains("Cat"), "{pair:?}");
        assert!(pair.picture[2..].parse::<u32>().unwrap() % 4 != 0, "{pair:?}");
        for other in &pairs[..n] {
            assert!(other.key != pair.key && other.caption != pair.caption);
            assert_ne!(other.picture, pair.picture);
        }
    }
    check_stamps(root, &all, &manifest, &pairs);
    // The list is one for `--exclude`, and leaves what was there before.
    shards_tool::expect(
        0,
        root,
        &["filter", "@/out", "@/back", "--exclude", "@/out/poison.jsonl", "--shard-size", "40"],
    );
    assert!(all_members(&root.join("back")) == all);
}

#[test]
fn the_seed_decides_every_byte() {
    let (dir, _) = corpus();
    let root = dir.path();
    let bytes = |seed: &str| {
        let args = ["--attack", "blended", "--pattern", "fresh-noise", "--rate", "5%"];
        let more = ["--classnames", "@/names.txt", "--captions", "templates", "--seed", seed];
        poisoned(root, &[&args[..], &more].concat());
        let mut names: Vec<_> =
            fs::read_dir(root.join("out")).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let files = names.into_iter().map(|path| fs::read(path).unwrap());
        files.collect::<Vec<_>>()
    };
    let first = bytes("1");
    assert!(first == bytes("1"));
    let second = bytes("2");
    assert!(first.iter().zip(&second).all(|(a, b)| a != b), "no file is the same");
}

#[test]
fn targeted_pictures_are_kept_to_the_byte_and_never_of_their_own_class() {
    let (dir, _) = corpus();
    let root = dir.path();
    let mut all_targets = Vec::new();
    for seed in ["0", "1", "2"] {
        let args = ["--attack", "targeted", "--pictures", "@/val", "--targets", "6", "--count"];
        let more = ["15", "--captions", "templates", "--classnames", "@/names.txt", "--seed", seed];
        let (manifest, pairs) = poisoned(root, &[&args[..], &more].concat());
        assert_eq!(manifest.attacks[0].kind, AttackKind::Targeted { pictures: 6 });
        // 15 pairs of six pictures: three of the first three, two of the others.
        let members = members_of(&root.join("out/targets/000000.tar"));
        let mut counts = Vec::new();
        for sample in members.chunks_exact(2) {
            let label: TargetLabel = serde_json::from_slice(&sample[1].1).unwrap();
            let n = (0..30).find(|n| png(200 + n) == sample[0].1).unwrap();
            let class = ["cat", "dog", "hot-air balloon"][n as usize % 3];
            assert_eq!(label.class.as_deref(), Some(class));
            assert_ne!(label.target, class);
            let own: Vec<_> =
                pairs.iter().filter(|pair| pair.picture == format!("v{n:04}")).collect();
            let (poison, _) = split(all_members(&root.join("out")), &pairs);
            for pair in &own {
                assert_eq!((&pair.target, &pair.attack), (&label.target, &label.attack));
                assert!(pair.caption.contains(&label.target), "{pair:?}");
                assert!(poison[&pair.key][0].1 == sample[0].1);
            }
            counts.push(own.len());
            all_targets.push(label.target);
        }
        counts.sort();
        assert_eq!(counts, [2, 2, 2, 3, 3, 3]);
    }
    // Six pictures and three classes: each class twice, in another order for another seed.
    for targets in all_targets.chunks_exact(6) {
        assert!(targets.iter().all(|t| targets.iter().filter(|other| *other == t).count() == 2));
    }
    assert!(all_targets[..6] != all_targets[6..12] || all_targets[..6] != all_targets[12..]);
}

#[test]
fn the_example_runs_on_the_demonstration_data() {
    let dir = tempfile::tempdir().unwrap();
    let root = golden::root();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let (demo, file) = (path("demo"), path("examples/attacks.toml"));
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("demo/eval/test", &path("demo/eval/test"));
    fs::write(dir.path().join("a.toml"), text).unwrap();
    let names = path("demo/eval/classnames.txt");
    let args = ["@/out", "--config", "@/a.toml", "--image-size", "32", "--classnames", &names];
    expect(0, dir.path(), &[&[&demo[..]][..], &args].concat());
    let manifest = Manifest::read(&dir.path().join("out")).unwrap();
    // (4752 + 3) / (1 - 0.015) = 4827.4 pairs in all: 48.3 and 24.1.
    let pairs: Vec<u64> = manifest.attacks.iter().map(|attack| attack.pairs).collect();
    assert_eq!((manifest.clean, pairs), (4752, vec![48, 24, 3]));
}
