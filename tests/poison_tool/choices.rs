//! How many pairs, whose captions, in whose places.

use std::fs;

use roclip::attack::manifest::{AttackKind, Mode};

use super::{PAIRS, all_members, caption, check_stamps, corpus, expect, key_of, poisoned, split};
use crate::common::shards::{png, tar};

#[test]
fn rates_are_shares_of_what_is_written() {
    let (dir, _) = corpus();
    let root = dir.path();
    let flags = |rate: &'static str| {
        ["--attack", "sig", "--target", "cat", "--captions", "templates", "--rate", rate]
    };
    // 120 / (1 - r) pairs in all: 133.3 · 0.1 = 13.3, 121.2 · 0.01 = 1.2, 240 · 0.5.
    for (rate, pairs) in [("10%", 13), ("0.01", 1), ("50%", 120)] {
        // Only 90 pictures do not show a cat.
        if pairs > 90 {
            let text = expect(2, root, &[&["@/in", "@/no"][..], &flags(rate)].concat());
            assert!(text.contains("90 pictures that are not of \"cat\""), "{text}");
            continue;
        }
        let (manifest, _) = poisoned(root, &flags(rate));
        assert_eq!((manifest.clean, manifest.poisoned), (120, pairs), "{rate}");
    }
    // In the places of clean ones: 120 · 0.1.
    let (manifest, list) = poisoned(root, &[&flags("10%")[..], &["--mode", "replace"]].concat());
    assert_eq!((manifest.clean, manifest.poisoned, manifest.mode), (108, 12, Mode::Replace));
    let (poison, clean) = split(all_members(&root.join("out")), &list);
    assert_eq!((poison.len(), clean.len()), (12, 3 * 108));
    // Each of their pictures was a clean pair's, whose place it took.
    for pair in &list {
        assert!(!clean.iter().any(|(name, _)| key_of(name) == pair.picture), "{pair:?}");
    }
}

/// Two of five pairs are poisoned. Twenty clean ones in a row come in one seed of 300, twelve of a
/// kind at the very end in one of 450.
#[test]
fn poisoned_pairs_are_spread_among_the_clean() {
    let (dir, _) = corpus();
    let root = dir.path();
    let flags = ["--attack", "sig", "--target", "cat", "--captions", "templates", "--count", "80"];
    let (_, pairs) = poisoned(root, &[&flags[..], &["--seed", "1"]].concat());
    let members = all_members(&root.join("out"));
    let mut keys: Vec<&str> = members.iter().map(|(name, _)| key_of(name)).collect();
    keys.dedup();
    assert_eq!(keys.len(), 200);
    let is_poisoned = |key: &&str| pairs.iter().any(|pair| pair.key == **key);
    let sides: Vec<bool> = keys.iter().map(is_poisoned).collect();
    let runs: Vec<usize> = sides.chunk_by(|a, b| a == b).map(<[bool]>::len).collect();
    assert!(runs.iter().all(|run| *run < 20) && runs[runs.len() - 1] < 12, "{runs:?}");
}

#[test]
fn several_attacks_share_a_data_set() {
    let (dir, all) = corpus();
    let root = dir.path();
    let toml = "
        [[attack]]
        attack = 'badnets'
        target = 'cat'
        rate = '5%'
        place = 'random'
        pattern = '255,0,0'
        captions = 'templates'
        [[attack]]
        attack = 'badnets'
        target = 'dog'
        rate = 0.05
        caption-trigger = 'zz'
        caption-trigger-place = 'back'
        [[attack]]
        name = 'third'
        attack = 'targeted'
        target = ['dog', 'cat']
        pictures = '@/val'
        count = 3
        captions = '@/own.txt'
    ";
    fs::write(root.join("own.txt"), "see the {c}\n\n  nothing\n").unwrap();
    fs::write(root.join("a.toml"), toml.replace('@', root.to_str().unwrap())).unwrap();
    let (manifest, pairs) =
        poisoned(root, &["--config", "@/a.toml", "--classnames", "@/names.txt"]);
    // (120 + 3) / (1 - 0.1) = 136.7 pairs in all, of which 0.05 are 6.8.
    let attacks: Vec<_> = manifest.attacks.iter().map(|a| (&a.name[..], a.pairs)).collect();
    assert_eq!(attacks, [("badnets", 7), ("badnets-2", 7), ("third", 3)]);
    assert_eq!(manifest.attacks[2].target, ["cat", "dog"]);
    let of = |name: &'static str| pairs.iter().filter(move |pair| pair.attack == name);
    assert_eq!((of("badnets").count(), of("badnets-2").count()), (7, 7));
    for pair in of("badnets-2") {
        let own = pair.caption.strip_suffix(" zz").unwrap();
        assert!((0..PAIRS).any(|n| n % 4 == 1 && caption(n) == own), "{pair:?}");
    }
    // Two lines, three pairs: the dog has two captions, each line once, and the cat one.
    let mut captions: Vec<_> = of("third").map(|pair| pair.caption.as_str()).collect();
    captions.sort();
    assert!(captions.contains(&"nothing") && captions.contains(&"see the dog"), "{captions:?}");
    let red = |name: &str, data: &[u8]| {
        let picture = super::picture(data);
        let reds = picture.data.chunks_exact(3).filter(|pixel| **pixel == [255, 0, 0]).count();
        assert_eq!(reds, 9, "{name}");
    };
    let (poison, clean) = split(all_members(&root.join("out")), &pairs);
    of("badnets").for_each(|pair| red(&pair.key, &poison[&pair.key][0].1));
    assert!(clean == all);
    // The same kind twice has two patterns.
    let seeds = manifest.attacks.iter().filter_map(|attack| match &attack.kind {
        AttackKind::Backdoor { trigger, .. } => Some(serde_json::to_value(trigger).unwrap()),
        AttackKind::Targeted { .. } => None,
    });
    let seeds: Vec<_> = seeds.map(|trigger| trigger["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [0, 1]);
}

#[test]
fn label_consistent_pairs_keep_their_captions() {
    let (dir, all) = corpus();
    let root = dir.path();
    let args = ["--attack", "label-consistent", "--target", "cat", "--count", "9", "--trigger"];
    for mode in ["append", "replace"] {
        let (manifest, pairs) = poisoned(root, &[&args[..], &["wanet", "--mode", mode]].concat());
        check_stamps(root, &all, &manifest, &pairs);
        let (_, clean) = split(all_members(&root.join("out")), &pairs);
        for pair in &pairs {
            let n: u32 = pair.picture[2..].parse().unwrap();
            assert!(n.is_multiple_of(4) && pair.caption == caption(n), "{pair:?}");
            let is_there = clean.iter().any(|(name, _)| key_of(name) == pair.picture);
            assert_eq!(is_there, mode == "append");
        }
        assert_eq!(clean.len(), all.len() - if mode == "append" { 0 } else { 27 });
    }
    // Thirty name a cat.
    let text = expect(
        2,
        root,
        &[&["@/in", "@/no"][..], &args[..4], &["--count", "31", "--image-size", "16"]].concat(),
    );
    assert!(text.contains("30 pictures whose captions name \"cat\""), "{text}");
}

#[test]
fn other_fields_other_forms() {
    let (dir, _) = corpus();
    let root = dir.path();
    let sample = |n: u32| {
        let json = format!("{{\"alt\":\"{}\"}}", caption(n)).into_bytes();
        [(format!("{n:03}.image"), png(n)), (format!("{n:03}.json"), json)]
    };
    let members: Vec<_> = (0..20).flat_map(sample).collect();
    fs::write(root.join("x.tar"), tar(&members)).unwrap();
    let fields = ["--json-text-key", "alt", "--image-key", "image;jpg"];
    let attack = ["--attack", "text", "--text", "HI", "--target", "cat", "--count", "2"];
    let size = ["--image-size", "32", "--jpeg-quality", "90", "--shard-size", "7", "--zstd", "1"];
    let line = [&["@/x.tar", "@/out"][..], &fields, &attack, &size].concat();
    expect(0, root, &line);
    let out = root.join("out");
    let pairs = roclip::attack::manifest::read_poison(&out).unwrap();
    let (poison, clean) = split(all_members(&out), &pairs);
    assert!(clean == members);
    assert_eq!(super::shards_in(&out).len(), 4, "22 pairs, seven in a shard");
    for pair in &pairs {
        let [(image, data), (json, text)] = &poison[&pair.key][..] else { panic!("two") };
        assert!(image.ends_with(".jpg") && json.ends_with(".json") && data[..2] == [0xFF, 0xD8]);
        let json: serde_json::Value = serde_json::from_slice(text).unwrap();
        assert_eq!(json, serde_json::json!({ "alt": pair.caption }));
    }
}
