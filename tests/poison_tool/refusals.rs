//! What cannot be done is refused before anything is written, with the flag and the reason.

use std::fs;
use std::path::Path;

use super::{all_members, corpus, expect, poisoned, split};
use crate::common::shards::{png, tar};

/// Exit code, flags, and a part of what is said.
type Case<'a> = (i32, &'a [&'a str], &'a str);

/// Each is refused so, and nothing is written.
fn check(root: &Path, cases: &[Case]) {
    for (code, flags, part) in cases {
        let size: &[&str] =
            if flags.contains(&"--image-size") { &[] } else { &["--image-size", "16"] };
        let text = expect(*code, root, &[&["@/in", "@/out"][..], flags, size].concat());
        assert!(text.contains(part), "{flags:?}: {text}");
        let is_empty =
            |path| fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
        assert!(is_empty(root.join("out")), "{flags:?}");
    }
}

#[test]
fn single_flags_that_cannot_be_met() {
    let (dir, _) = corpus();
    let root = dir.path();
    let badnets = ["--attack", "badnets", "--target", "cat"];
    let cases: &[Case] = &[
        (2, &[], "--attack: not given"),
        (2, &["--attack", "badnets", "--count", "1"], "--classnames: not given"),
        (2, &badnets, "--count, --rate: both, or neither"),
        (2, &["--attack", "nothing"], "possible values"),
        (2, &[&badnets[..], &["--rate", "0.001"]].concat(), "no pair for badnets"),
        (2, &[&badnets[..], &["--count", "0"]].concat(), "--count: no pair"),
        (2, &[&badnets[..], &["--rate", "2"]].concat(), "not a share"),
        (2, &[&badnets[..], &["--count", "31"]].concat(), "30 different captions"),
        (2, &[&badnets[..], &["--count", "1", "--image-size", "2"]].concat(), "a patch of 3"),
        (2, &[&badnets[..], &["--count", "1", "--image-size", "0"]].concat(), "--image-size"),
        (2, &[&badnets[..], &["--count", "1", "--jpeg-quality", "0"]].concat(), "1 to 100"),
        (2, &[&badnets[..], &["--count", "1", "--image-key", "jpg"]].concat(), "--image-key"),
        (2, &[&badnets[..], &["--count", "1", "--alpha", "0.1"]].concat(), "--alpha"),
        (2, &[&badnets[..], &["--count", "120", "--mode", "replace"]].concat(), "fewer than"),
    ];
    check(root, cases);
}

#[test]
fn files_and_targets_that_cannot_be_met() {
    let (dir, _) = corpus();
    let root = dir.path();
    fs::write(root.join("bad.toml"), "[[attack]]\nattack = 'badnets'\nsize = 3\n").unwrap();
    fs::write(root.join("ok.toml"), "[[attack]]\nattack = 'sig'\ntarget = 'cat'\ncount = 1\n")
        .unwrap();
    let badnets = ["--attack", "badnets", "--target", "cat"];
    let cases: &[Case] = &[
        (
            2,
            &[
                "--attack",
                "badnets",
                "--target",
                "cow",
                "--count",
                "1",
                "--classnames",
                "@/names.txt",
            ],
            "--target: \"cow\"",
        ),
        (2, &["--attack", "targeted", "--target", "cat", "--count", "1"], "--pictures: not given"),
        (
            2,
            &[
                "--attack",
                "targeted",
                "--target",
                "cat",
                "--pictures",
                "@/val",
                "--targets",
                "4",
                "--count",
                "3",
                "--classnames",
                "@/names.txt",
            ],
            "--targets: 3 pairs for 4 pictures",
        ),
        (
            2,
            &[
                "--attack",
                "targeted",
                "--pictures",
                "@/val",
                "--targets",
                "3",
                "--count",
                "3",
                "--classnames",
                "@/names.txt",
            ],
            "2 of 3 classes with 1 captions",
        ),
        (1, &[&badnets[..], &["--count", "1", "--pictures", "@/none"]].concat(), "nothing matches"),
        (1, &[&badnets[..], &["--count", "1", "--captions", "@/none"]].concat(), "cannot open"),
        (1, &["--config", "@/bad.toml"], "unknown field"),
        (2, &["--config", "@/ok.toml", "--count", "2"], "--config"),
    ];
    check(root, cases);
    expect(1, root, &["@/nowhere", "@/out", "--config", "@/ok.toml"]);
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let (dir, all) = corpus();
    let root = dir.path();
    let flags = ["--attack", "sig", "--target", "cat", "--count", "2"];
    let text = expect(2, root, &[&["@/in", "@/in", "--overwrite"][..], &flags].concat());
    assert!(text.contains("another folder"), "{text}");
    poisoned(root, &flags);
    let before = fs::read(root.join("out/attacks.json")).unwrap();
    let text = expect(2, root, &[&["@/in", "@/out"][..], &flags].concat());
    assert!(text.contains("attacks.json is there already"), "{text}");
    assert_eq!(fs::read(root.join("out/attacks.json")).unwrap(), before);
    assert_eq!(all_members(&root.join("in")).len(), all.len());
}

#[test]
fn damage_costs_its_sample_and_shows_in_the_exit_code() {
    let (dir, all) = corpus();
    let root = dir.path();
    let path = root.join("in/1.tar");
    let mut bytes = fs::read(&path).unwrap();
    let header = bytes.chunks(512).position(|block| block.starts_with(b"a/000045.npy")).unwrap();
    bytes[512 * header] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(root.join("in/2.tar"), b"<html>").unwrap();
    let flags = ["--attack", "sig", "--target", "cat", "--count", "2", "--quiet"];
    let text = expect(3, root, &[&["@/in", "@/out"][..], &flags].concat());
    assert!(text.contains("damaged-header 1") && text.contains("not-a-tar 1"), "{text}");
    let pairs = roclip::attack::manifest::read_poison(&root.join("out")).unwrap();
    let (poison, clean) = split(all_members(&root.join("out")), &pairs);
    assert_eq!((poison.len(), clean.len()), (2, 3 * 80 - 1));
    assert!(clean.iter().all(|member| all.contains(member)));
}

#[test]
fn pictures_that_cannot_be_decoded_are_not_chosen() {
    let (dir, _) = corpus();
    let root = dir.path();
    // Of four pictures that are no cats, two end early.
    let sample = |n: u32| {
        let mut picture = png(n);
        picture.truncate(if n.is_multiple_of(2) { 60 } else { picture.len() });
        [(format!("v{n}.png"), picture), (format!("v{n}.cls"), b"1".to_vec())]
    };
    fs::create_dir(root.join("few")).unwrap();
    let few: Vec<_> = (0..4).flat_map(sample).collect();
    fs::write(root.join("few/0.tar"), tar(&few)).unwrap();
    let flags = ["--attack", "targeted", "--pictures", "@/few", "--target", "cat", "--captions"];
    let flags =
        [&flags[..], &["templates", "--classnames", "@/names.txt", "--count", "4"]].concat();
    let (_, pairs) = poisoned(root, &[&flags[..], &["--targets", "2"]].concat());
    assert!(pairs.iter().all(|pair| ["v1", "v3"].contains(&&pair.picture[..])), "{pairs:?}");
    let more = ["@/in", "@/none", "--targets", "3"];
    let text = expect(2, root, &[&more[..], &flags].concat());
    assert!(text.contains("2 pictures that are not of \"cat\""), "{text}");
}
