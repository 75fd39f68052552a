//! `roclip-shards pack`.

use std::fs;
use std::path::Path;
use std::process::Command;

use roclip::data::tools::Progress;
use roclip::data::tools::pack::{PackOptions, pack};
use serde_json::Value;

use super::{all_members, expect, members_of, reasons, shards_in};
use crate::common::shards::*;

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Ten pictures under names of every kind, and a list of them.
fn corpus() -> (tempfile::TempDir, Vec<(String, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.jpg", "b c.png", "sub/d.e.f.JPEG", "ü/ключ", "g,h.webp"];
    let row = |n: u32| (format!("{n}{}", names[n as usize % 5]), format!("a \"caption\"\n{n}, ü"));
    let rows: Vec<_> = (0..10).map(row).collect();
    let mut list = "id,title,filepath\n".to_owned();
    for (n, (path, caption)) in rows.iter().enumerate() {
        put(dir.path(), &format!("in/{path}"), png(n as u32));
        list += &format!("{n},\"{}\",\"{path}\"\n", caption.replace('"', "\"\""));
    }
    put(dir.path(), "in/list.csv", list);
    (dir, rows)
}

#[test]
fn every_row_of_a_list_arrives_unchanged() {
    let (dir, rows) = corpus();
    let args = ["pack", "@/in/list.csv", "@/out", "--csv-separator", ",", "--shard-size", "4"];
    let text = expect(0, dir.path(), &args);
    assert!(text.contains("10 of 10 pairs packed into 3 shards"), "{text}");
    let out = dir.path().join("out");
    for (n, sample) in all_members(&out).chunks(3).enumerate() {
        let [(image, picture), (txt, caption), (json, about)] = sample else { panic!() };
        assert_eq!(
            [image, txt, json],
            ["png", "txt", "json"].map(|e| format!("{n:09}.{e}")).each_ref()
        );
        assert_eq!(*picture, png(n as u32));
        assert_eq!(caption, rows[n].1.as_bytes());
        let about: Value = serde_json::from_slice(about).unwrap();
        assert_eq!(about["filepath"], rows[n].0.as_str());
    }
    let outcome = load(plain(out.to_str().unwrap()));
    assert_eq!((outcome.keys.len(), outcome.entries.len()), (10, 0));
    // The same bytes again; and shuffled the same samples, in an order that the seed gives.
    let shards = || shards_in(&out).iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let first = shards();
    expect(2, dir.path(), &args);
    expect(0, dir.path(), &[&args[..], &["--overwrite"]].concat());
    assert_eq!(shards(), first);
    let shuffled = |seed: &str| {
        expect(0, dir.path(), &[&args[..], &["--overwrite", "--shuffle", seed]].concat());
        all_members(&out)
    };
    let (one, again, two) = (shuffled("1"), shuffled("1"), shuffled("2"));
    assert!(one == again && one != two);
    let sorted = |mut members: Vec<(String, Vec<u8>)>| {
        members.sort();
        members
    };
    expect(0, dir.path(), &[&args[..], &["--overwrite"]].concat());
    let in_order = sorted(all_members(&out));
    assert!(sorted(one) == in_order && sorted(two) == in_order);
}

#[test]
fn bad_rows_are_skipped_counted_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in ["secret.png", "in/good.png", "in/sub/x.png"] {
        put(root, name, png(1));
    }
    put(root, "in/empty.png", "");
    put(root, "in/page.jpg", "<html>");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, root.join("in").join(name)).unwrap();
    };
    link("../secret.png", "link.png");
    link("good.png", "inside.png");
    link("..", "up");
    assert!(Command::new("mkfifo").arg(root.join("in/pipe.png")).status().unwrap().success());
    let rows: [(&str, &[u8], &str); 16] = [
        ("good.png", b"a", ""),
        ("sub/../good.png", b"b", ""),
        ("inside.png", b"c", ""),
        ("@/in/good.png", b"d", ""),
        ("../secret.png", b"x", "outside-folder"),
        ("@/secret.png", b"x", "outside-folder"),
        ("link.png", b"x", "outside-folder"),
        ("up/secret.png", b"x", "outside-folder"),
        ("gone.png", b"x", "missing-image"),
        ("go\0od.png", b"x", "missing-image"),
        ("pipe.png", b"x", "not-a-file"),
        ("sub", b"x", "not-a-file"),
        ("empty.png", b"x", "empty-image"),
        ("page.jpg", b"x", "unknown-image"),
        ("good.png", b" ", "empty-caption"),
        ("good.png", b"\xff", "caption-not-utf8"),
    ];
    let mut list = b"filepath\ttitle\n".to_vec();
    for (path, caption, _) in rows {
        let path = path.replace('@', root.canonicalize().unwrap().to_str().unwrap());
        list.extend([path.as_bytes(), b"\t", caption, b"\n"].concat());
    }
    list.extend(b"good.png\n\tx\n");
    put(root, "in/list.tsv", list);
    let text = expect(3, root, &["pack", "@/in/list.tsv", "@/out"]);
    assert!(text.contains("4 of 18 pairs"), "{text}");
    let mut expected: Vec<_> = rows.iter().map(|row| row.2.to_owned()).collect();
    expected.extend(["missing-caption".into(), "missing-image".into()]);
    let expected: Vec<_> = (0..18).map(|n| format!("{n:09}")).zip(expected).skip(4).collect();
    assert_eq!(reasons(&root.join("out/skips.jsonl")), expected);
    // Keys are positions in the list, whatever is skipped.
    expect(3, root, &["pack", "@/in/list.tsv", "@/all", "--follow"]);
    let keys: Vec<_> = members_of(&root.join("all/000000.tar")).into_iter().map(|m| m.0).collect();
    let expected = (0..8).flat_map(|n| ["png", "txt", "json"].map(|e| format!("{n:09}.{e}")));
    assert_eq!(keys, expected.collect::<Vec<_>>());
}

#[test]
fn a_folder_gives_what_lies_beside_its_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (n, name) in
        ["a.png", "b.PNG", "c.x.png", "d/e.png", "f.png", "g.png", "h.png"].iter().enumerate()
    {
        put(root, &format!("in/{name}"), png(n as u32));
    }
    put(root, "in/a.txt", "from txt");
    put(root, "in/a.json", r#"{"caption":"not this","url":1}"#);
    put(root, "in/b.caption", "from caption");
    put(root, "in/c.x.json", r#"{"caption":"from json"}"#);
    put(root, "in/d/e.txt", "deep");
    put(root, "in/f.json", "{");
    put(root, "secret.txt", "secret");
    put(root, "in/note.txt", "no picture");
    std::os::unix::fs::symlink("../secret.txt", root.join("in/g.txt")).unwrap();
    expect(3, root, &["pack", "@/in", "@/out"]);
    let members = members_of(&root.join("out/000000.tar"));
    let texts: Vec<_> = members.iter().filter(|(name, _)| name.ends_with("txt")).collect();
    let texts: Vec<_> = texts.iter().map(|(_, text)| std::str::from_utf8(text).unwrap()).collect();
    assert_eq!(texts, ["from txt", "from caption", "from json", "deep"]);
    assert_eq!(members[2].1, br#"{"caption":"not this","url":1}"#);
    let skipped = reasons(&root.join("out/skips.jsonl"));
    let expected = [
        ("000000004", "bad-json"),
        ("000000005", "outside-folder"),
        ("000000006", "missing-caption"),
    ];
    assert_eq!(skipped, expected.map(|(key, reason)| (key.into(), reason.into())));
}

#[test]
fn what_is_no_list_is_an_error_and_writes_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.csv", "filepath\ttitle\na\t\"b\n".to_owned() + &"c\td\n".repeat(1 << 18));
    put(dir.path(), "b.csv", [0xff; 1000]);
    put(dir.path(), "c.parquet", b"PAR1\0\0\0\0\xff\xff\xff\x7fPAR1");
    let text = expect(1, dir.path(), &["pack", "@/a.csv", "@/out"]);
    assert!(text.contains("line 2") && text.contains("quotation mark"), "{text}");
    assert!(shards_in(&dir.path().join("out")).is_empty());
    let text = expect(2, dir.path(), &["pack", "@/b.csv", "@/out"]);
    assert!(text.contains("--csv-img-key"), "{text}");
    expect(1, dir.path(), &["pack", "@/c.parquet", "@/out"]);
}

/// The list is pyarrow's (`tests/golden/make_pack.py`).
#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "list.parquet", include_bytes!("../golden/pack.parquet"));
    put(dir.path(), "x.png", png(1));
    put(dir.path(), "y.png", png(2));
    expect(0, dir.path(), &["pack", "@/list.parquet", "@/out"]);
    let mut members = members_of(&dir.path().join("out/000000.tar"));
    members.retain(|(name, _)| !name.ends_with("json"));
    let member = |name: &str, data: &[u8]| (name.to_owned(), data.to_vec());
    let expected = [
        member("000000000.png", &png(1)),
        member("000000000.txt", b"a caption"),
        member("000000001.png", &png(2)),
        member("000000001.txt", "ü 2".as_bytes()),
    ];
    assert_eq!(members, expected);
}

#[test]
fn a_picture_larger_than_the_limit_is_not_read() {
    let (dir, _) = corpus();
    let mut options = PackOptions { csv_separator: b',', ..Default::default() };
    options.limits.image_bytes = 10;
    let (list, out) = (dir.path().join("in/list.csv"), dir.path().join("out"));
    let report = pack(&list, &out, &options, &Progress::hidden()).unwrap();
    assert_eq!((report.tally.seen, report.tally.skipped), (10, 10));
    assert!(
        reasons(&out.join("skips.jsonl")).iter().all(|(_, reason)| reason == "member-too-large")
    );
}
