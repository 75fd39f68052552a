//! Bytes → what stands beside shards: indices, lists of pairs and of pictures, names in braces.

use std::path::Path;

use roclip::data::exclude::Exclusions;
use roclip::data::index::{Header, ShardIndex, path_beside};
use roclip::data::sample::{Contents, Found, SampleReader};
use roclip::data::source::{MAX_EXPANSION, Shard, expand_braces};
use roclip::data::tools::Progress;
use roclip::data::tools::pack::{PackOptions, pack};

use super::files::Folder;
use super::tar;

/// What must never be packed: it lies outside the folder of the pictures.
const SECRET: &[u8] = b"\xFF\xD8\xFFsecret";
/// What the lists name.
const PICTURE: &[u8] = b"\xFF\xD8\xFFpicture";

/// A list. The first byte chooses of what kind.
pub fn lists(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else { return };
    thread_local!(static FOLDER: Folder = Folder::new());
    FOLDER.with(|folder| match choice % 6 {
        0 => braces(&String::from_utf8_lossy(bytes)),
        1 => exclusions(&folder.write("list.txt", bytes)),
        2 => exclusions(&folder.write("list.jsonl", bytes)),
        3 => index(folder, bytes),
        4 => packed(folder, "list.csv", b',', bytes),
        _ => packed(folder, "list.tsv", b'\t', bytes),
    });
}

fn braces(pattern: &str) {
    let Ok(names) = expand_braces(pattern) else { return };
    assert!(names.len() as u64 <= MAX_EXPANSION);
    // Nothing is made up: where there are neither braces nor escapes, the name is the pattern.
    if !pattern.contains(['{', '}', '\\']) {
        assert_eq!(names, [pattern]);
    }
}

fn exclusions(list: &Path) {
    let Ok(list) = Exclusions::read(list) else { return };
    assert!(!list.contains("a.tar", "no key of any list of this size") || !list.is_empty());
}

/// An index beside a shard of three pairs: what it says is written and read the same, and a pair
/// that it fetches is one that is there.
fn index(folder: &Folder, bytes: &[u8]) {
    let shard = Shard::file(folder.write("shard.tar", &three_pairs()));
    let shard_path = folder.path().join("shard.tar");
    let path = folder.write(path_beside(&shard_path).file_name().unwrap().to_str().unwrap(), bytes);
    let header = Header::read(&path);
    let Ok(index) = ShardIndex::read(&path) else { return };
    let header = header.expect("the first line of an index");
    assert!(index.header == header && index.entries.len() as u64 == header.seen);
    assert!(index.entries.len() <= bytes.len());
    index.write(&path).expect("a temporary file");
    assert_eq!(ShardIndex::read(&path).expect("an index just written"), index);
    header.is_stale(&shard_path);
    let limits = tar::limits();
    for (n, entry) in index.entries.iter().enumerate().take(4) {
        let Ok(pair) = index.fetch((&shard, 0), n, &limits) else { continue };
        assert!(*pair.id.key == *entry.key && pair.offset == entry.offset);
        entry.check(&pair).expect("it was checked");
        let archive = three_pairs();
        let place = (&shard.name, 0);
        let fields = &header.fields;
        let all = SampleReader::new(&archive[..], place, fields, Contents::Read, &limits);
        let mut pairs = all.filter_map(|found| match found {
            Found::Pair(pair) => Some(pair),
            _ => None,
        });
        assert!(pairs.any(|there| there.image == pair.image && there.caption == pair.caption));
    }
}

fn three_pairs() -> Vec<u8> {
    let mut archive = Vec::new();
    for n in 0..3u8 {
        for (extension, data) in [("jpg", vec![n; 5]), ("txt", vec![b'a' + n; 7])] {
            let name = format!("{n}.{extension}");
            roclip::data::tar::write::append(&mut archive, &name, &data).expect("memory");
        }
    }
    roclip::data::tar::write::finish(&mut archive).expect("memory");
    archive
}

/// A list of pictures, packed: whatever it names, nothing outside its folder is read.
fn packed(folder: &Folder, name: &str, separator: u8, bytes: &[u8]) {
    let root = folder.path().join("pictures");
    std::fs::create_dir_all(&root).expect("a temporary folder");
    folder.write("pictures/a.jpg", PICTURE);
    folder.write("secret.jpg", SECRET);
    let list = folder.write(name, bytes);
    let out = folder.path().join("out");
    let _ = std::fs::remove_dir_all(&out);
    let options =
        PackOptions { csv_separator: separator, root: Some(root), ..PackOptions::default() };
    let Ok(report) = pack(&list, &out, &options, &Progress::hidden()) else { return };
    assert!(report.tally.closes() && report.tally.seen <= bytes.len() as u64);
    for shard in std::fs::read_dir(&out).expect("a temporary folder") {
        let path = shard.expect("a temporary file").path();
        let written = std::fs::read(path).expect("a temporary file");
        assert!(!written.windows(SECRET.len()).any(|part| part == SECRET), "a secret is out");
    }
}
