//! Shards written by the library.

use std::fs;

use roclip::data::writer::{ShardWriter, WriterOptions};

use super::{all_members, members_of, shards_in};

type Members = Vec<(&'static str, Vec<u8>)>;

fn sample(n: usize) -> (String, Members) {
    (format!("d/{n:03}"), vec![("jpg", vec![n as u8; n]), ("Seg.PNG", vec![]), ("txt", vec![65])])
}

#[test]
fn shards_roll_over_by_samples_and_by_bytes() {
    // Header and padded data of three members, of which one has at most 512 bytes.
    let bytes = 3 * 512 + 512 + 512;
    for (options, expected) in [
        (WriterOptions { max_samples: 4, ..Default::default() }, vec![4, 4, 2]),
        (WriterOptions { max_bytes: 3 * bytes, ..Default::default() }, vec![3, 3, 3, 1]),
        (WriterOptions { max_bytes: 1, ..Default::default() }, vec![1; 10]),
        (WriterOptions { zstd: Some(3), max_samples: 9, ..Default::default() }, vec![9, 1]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), options).unwrap();
        let samples: Vec<_> = (1..=10).map(sample).collect();
        for (key, members) in &samples {
            writer.write(key, members).unwrap();
        }
        let written = writer.finish().unwrap();
        assert_eq!(written.iter().map(|s| s.samples).collect::<Vec<_>>(), expected);
        assert_eq!(
            written.iter().map(|s| s.path.clone()).collect::<Vec<_>>(),
            shards_in(dir.path())
        );
        for shard in &written {
            assert_eq!(fs::metadata(&shard.path).unwrap().len(), shard.bytes);
        }
        let name = |key: &str, ext: &str| format!("{key}.{ext}");
        let went_in: Vec<_> = samples
            .iter()
            .flat_map(|(key, m)| m.iter().map(move |(e, data)| (name(key, e), data.clone())))
            .collect();
        assert_eq!(all_members(dir.path()), went_in);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), expected.len());
    }
}

#[test]
fn equal_keys_in_a_row_do_not_become_one_sample() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), WriterOptions::default()).unwrap();
    for _ in 0..2 {
        writer.write("a", &[("jpg", "x")]).unwrap();
    }
    assert_eq!(writer.finish().unwrap().len(), 2);
}

#[test]
fn what_a_reader_would_misread_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), WriterOptions::default()).unwrap();
    let too_long = "k".repeat(10_000);
    for (key, extension) in [("a.b", "jpg"), ("", "jpg"), ("d/", "jpg"), ("a", ""), ("__a", "txt")]
    {
        let message = writer.write(key, &[(extension, "")]).unwrap_err().to_string();
        assert!(message.contains("would not be read again"), "{message}");
    }
    assert!(writer.write(&too_long, &[("jpg", "")]).is_err());
    writer.write("d.e/a", &[("seg.png", "x")]).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!(members_of(&written[0].path), [("d.e/a.seg.png".into(), b"x".to_vec())]);
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), WriterOptions::default()).unwrap();
    writer.write("a", &[("jpg", "x")]).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(shards_in(dir.path()).iter().all(|path| path.extension().unwrap() == "part"));
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shards_are_only_overwritten_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| fs::write(dir.path().join(name), b"old").unwrap();
    let write = |overwrite| {
        let options = WriterOptions { overwrite, ..Default::default() };
        let mut writer = ShardWriter::create(dir.path(), options)?;
        writer.write("a", &[("jpg", "x")])?;
        writer.finish()
    };
    let ours = ["000000.tar", "000000.tar.index.jsonl", "000007.tar.zst", "sizes.json", "note.txt"];
    ours.into_iter().for_each(put);
    assert!(write(false).unwrap_err().to_string().contains("there already"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), ours.len());
    write(true).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["000000.tar", "note.txt"]);
    put("train-000000.tar");
    for overwrite in [false, true] {
        assert!(write(overwrite).is_err());
    }
}
