//! Goal:   pairs of shards on a server are counted without fetching the shards, where an index lies
//!         beside them, and an index of another shard is not believed.
//! Method: as in the parent; the log of the server shows what was fetched.

use roclip::data::count::count_pairs;
use roclip::data::index::{SUFFIX, ShardIndex};

use super::*;

/// A shard of so many pairs and its index.
fn indexed(dir: &std::path::Path, name: &str, pairs: u32) -> [(String, Vec<u8>); 2] {
    let (bytes, _) = noisy_shard(pairs);
    let path = dir.join(name);
    std::fs::write(&path, &bytes).unwrap();
    let (fields, limits) = (Fields::default(), ShardLimits::default());
    let index = ShardIndex::build(&Shard::file(&path), &fields, &limits).unwrap();
    let beside = dir.join(format!("{name}{SUFFIX}"));
    index.write(&beside).unwrap();
    [(format!("/{name}"), bytes), (format!("/{name}{SUFFIX}"), std::fs::read(beside).unwrap())]
}

fn count(url: &str) -> Vec<u64> {
    let (url, fields, limits) = (url.to_owned(), Fields::default(), ShardLimits::default());
    let counts = in_time(move || count_pairs(&list(&url, &hasty()), &fields, &limits).unwrap());
    counts.shards.iter().map(|shard| shard.pairs).collect()
}

#[test]
fn an_index_beside_a_shard_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let [a, a_index] = indexed(dir.path(), "a.tar", 20);
    let [b, b_index] = indexed(dir.path(), "b.tar", 31);
    let header = b_index.1.iter().position(|&byte| byte == b'\n').unwrap();
    let fetched = |server: &Server| -> Vec<String> {
        let log = server.log().into_iter().filter(|request| request.method == "GET");
        log.map(|request| request.path().to_owned()).collect()
    };

    let server = Server::files([a.clone(), a_index.clone(), b.clone(), b_index.clone()].into());
    assert_eq!(count(&server.url("/{a,b}.tar")), [20, 31]);
    assert!(fetched(&server).iter().all(|path| path.ends_with(SUFFIX)));

    // Of another size, of another name, cut off, and none: the shard itself is counted.
    for index in [
        Some(&a_index.1[..]),
        Some(String::from_utf8_lossy(&b_index.1).replace("b.tar", "c.tar").as_bytes()),
        Some(&b_index.1[..header]),
        None,
    ] {
        let index = index.map(|bytes| (b_index.0.clone(), bytes.to_vec()));
        let server = Server::files([b.clone()].into_iter().chain(index).collect());
        assert_eq!(count(&server.url("/b.tar")), [31]);
        assert!(fetched(&server).contains(&"/b.tar".to_owned()));
    }

    // What is signed for the shard opens nothing beside it.
    let server = Server::files([a, a_index].into());
    assert_eq!(count(&server.url("/a.tar?signature=1")), [20]);
    assert!(fetched(&server).iter().all(|path| path == "/a.tar"));
}
