//! Goal:   the second epoch comes from the disk, the directory stays below its limit, and nothing
//!         half written or damaged is ever read.
//! Method: as in the parent; the server's log tells who was asked.

use std::path::{Path, PathBuf};

use roclip::data::source::CacheOptions;

use super::*;

fn cached(dir: &Path, max_bytes: u64) -> SourceOptions {
    let cache = CacheOptions { dir: dir.join("made/here"), max_bytes };
    SourceOptions { cache: Some(cache), ..hasty() }
}

/// Complete files of the cache, sorted.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("made/here")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_second_epoch_comes_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shards = (0..3).map(|n| (format!("/{n}.tar"), tar(&members(n * 5, n * 5 + 5))));
    let server = Server::files(shards.collect());
    let source = cached(dir.path(), 1 << 20);
    let config = LoaderConfig { source, ..plain(server.url("/{0..2}.tar")) };
    let first = load(config.clone());
    assert_eq!(first.keys, keys(0, 15));
    until("three files", || files(dir.path(), "shard").len() == 3);
    assert!(files(dir.path(), "part").is_empty());
    let asked = server.log().len();
    let second = load(config);
    assert_eq!(second.hashes, first.hashes);
    assert_eq!(server.log().len(), asked);
}

#[test]
fn damaged_and_foreign_files_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, pairs) = noisy_shard(20);
    let server = Server::files([("/a.tar".into(), shard)].into());
    let options = cached(dir.path(), 1 << 20);
    let read_again = || {
        let (got, faults) = read(&server, options.clone());
        assert!(got == pairs && faults.is_empty(), "{faults:?}");
        until("one file", || files(dir.path(), "part").is_empty());
    };
    read_again();
    let file = files(dir.path(), "shard").remove(0);
    // A crash took its end.
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1000).unwrap();
    let asked = server.log().len();
    read_again();
    assert!(server.log().len() > asked);
    assert_eq!(files(dir.path(), "shard"), [file]);
    // Another query is another shard.
    let asked = server.log().len();
    let url = server.url("/a.tar?v=2");
    in_time(move || read_shard(&list(&url, &options)[0]));
    assert!(server.log().len() > asked);
}

#[test]
fn what_was_used_least_recently_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, _) = noisy_shard(10);
    let bytes = shard.len() as u64;
    let shards = (0..5).map(|n| (format!("/{n}.tar"), shard.clone()));
    let server = Server::files(shards.collect());
    let options = cached(dir.path(), 3 * bytes + 100);
    let shards = list(&server.url("/{0..4}.tar"), &options);
    let mut names = Vec::new();
    for n in [0, 1, 2, 0, 3, 4] {
        let shard = shards[n].clone();
        in_time(move || read_shard(&shard));
        until("it is kept", || files(dir.path(), "part").is_empty());
        let kept = files(dir.path(), "shard");
        assert!(kept.len() <= 3, "{kept:?}");
        if n > 0 || names.is_empty() {
            let new = kept.iter().find(|path| !names.contains(*path)).unwrap();
            names.push(new.clone());
        }
        // Times of files are only so fine.
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut expected = [names[0].clone(), names[3].clone(), names[4].clone()];
    expected.sort();
    assert_eq!(files(dir.path(), "shard"), expected);

    // What is larger than the whole cache is read all the same.
    let small = cached(&dir.path().join("small"), bytes - 1);
    let server = Server::files([("/a.tar".into(), shard)].into());
    assert_eq!(read(&server, small).0.len(), 10);
    assert!(files(&dir.path().join("small"), "shard").is_empty());
}

#[test]
fn nothing_is_kept_of_what_was_not_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, _) = noisy_shard(20);
    let server = Server::new(move |request| match request.range() {
        Some((first, _)) if first > 30_000 => Answer::new(404, ""),
        _ => Answer::file(request, &shard),
    });
    let options = cached(dir.path(), 1 << 20);
    assert!(!read(&server, options.clone()).1.is_empty());
    let url = server.url("/a.tar");
    in_time(move || {
        let stop = Arc::new(AtomicBool::new(false));
        let shard = &list(&url, &options)[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), stop).unwrap();
        reader.read_exact(&mut [0; 5000]).unwrap();
    });
    assert!(files(dir.path(), "shard").is_empty() && files(dir.path(), "part").is_empty());
}

#[test]
fn many_readers_share_a_directory_that_is_too_small() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, pairs) = noisy_shard(10);
    let files_of_server = (0..4).map(|n| (format!("/{n}.tar"), shard.clone()));
    let server = Server::files(files_of_server.collect());
    // Room for two of four: each reader deletes what others may be reading.
    let limit = 2 * shard.len() as u64 + 100;
    let options = cached(dir.path(), limit);
    let shards = list(&server.url("/{0..3}.tar"), &options);
    let (pairs, shards) = (Arc::new(pairs), Arc::new(shards));
    in_time(move || {
        let readers: Vec<_> = (0..4usize)
            .map(|reader| {
                let (pairs, shards) = (Arc::clone(&pairs), Arc::clone(&shards));
                std::thread::spawn(move || {
                    for turn in 0..12 {
                        let (got, faults) = read_shard(&shards[(reader + turn) % 4]);
                        assert!(got == *pairs && faults.is_empty(), "{faults:?}");
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    until("all is written", || files(dir.path(), "part").is_empty());
    let bytes: u64 = files(dir.path(), "shard").iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(bytes <= limit, "{bytes}");
}
