//! Goal:   shards are read over HTTP whatever the server does: every pair arrives once and whole,
//!         or a fault says what happened; nothing is asked for twice that came.
//! Method: a server of our own (`common/http.rs`) that stalls, breaks off, lies about lengths and
//!         changes its mind. What arrives is compared with what the shard was made of. Timeouts
//!         are in milliseconds.

mod cache;
mod index;
mod lengths;
mod stores;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use roclip::data::ledger::{Fault, Reason};
use roclip::data::loader::{Loader, LoaderConfig, Position};
use roclip::data::sample::{Contents, Fields, Found, SampleReader};
use roclip::data::shard::{ShardLimits, ShardReader};
use roclip::data::source::{Shard, SourceOptions, fingerprint, list_shards};
use roclip::data::tar::Input;

use crate::common::http::{Answer, Request, Server, Then};
use crate::common::shards::{in_time, keys, load, load_from, members, plain, tar};

/// Small chunks and short patience.
fn hasty() -> SourceOptions {
    SourceOptions {
        connect_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(150),
        total_timeout: Duration::from_secs(5),
        tries: 4,
        backoff: Duration::from_millis(2),
        max_backoff: Duration::from_millis(20),
        chunk_bytes: 4096,
        read_ahead: 3,
        ..SourceOptions::default()
    }
}

type Pair = (String, Vec<u8>, String);

/// A shard of pairs with pictures of 1 to 6000 bytes of noise, and these pairs.
fn noisy_shard(pairs: u32) -> (Vec<u8>, Vec<Pair>) {
    let pair = |n: u32| {
        let bytes = 1 + n.wrapping_mul(2_654_435_761) % 6000;
        let noise = (0..bytes).map(|i| (i.wrapping_mul(i ^ n).wrapping_mul(37) >> 3) as u8);
        (format!("{n:04}"), noise.collect(), format!("caption {n}"))
    };
    let pairs: Vec<Pair> = (0..pairs).map(pair).collect();
    let files = pairs.iter().flat_map(|(key, image, caption)| {
        [(format!("{key}.jpg"), image.clone()), (format!("{key}.txt"), caption.clone().into())]
    });
    (tar(&files.collect::<Vec<_>>()), pairs)
}

fn list(url: &str, options: &SourceOptions) -> Vec<Shard> {
    list_shards(url, options).unwrap()
}

/// What a shard yields: its pairs in order, and what went wrong.
fn read_shard(shard: &Shard) -> (Vec<Pair>, Vec<Fault>) {
    let limits = ShardLimits::default();
    let reader = match ShardReader::open(shard, &limits, Arc::default()) {
        Ok(reader) => reader,
        Err(fault) => return (Vec::new(), vec![fault]),
    };
    let fields = Fields::default();
    let samples = SampleReader::new(reader, (&shard.name, 0), &fields, Contents::Read, &limits);
    let (mut pairs, mut faults) = (Vec::new(), Vec::new());
    for found in samples {
        match found {
            Found::Pair(pair) => pairs.push((pair.id.key.to_string(), pair.image, pair.caption)),
            Found::Skipped(_, _, fault) | Found::Damage(_, fault) => faults.push(fault),
        }
    }
    (pairs, faults)
}

/// Reads `/a.tar` under a deadline.
fn read(server: &Server, options: SourceOptions) -> (Vec<Pair>, Vec<Fault>) {
    let url = server.url("/a.tar");
    in_time(move || read_shard(&list(&url, &options)[0]))
}

/// Serves a shard of 30 pairs (25 chunks and more) with `spoil` applied to each answer, and
/// expects every pair once. Returns the server for a look at what was asked.
fn all_arrive(spoil: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) -> Server {
    let (shard, pairs) = noisy_shard(30);
    assert!(shard.len() > 20 * hasty().chunk_bytes);
    let server = Server::new(move |request| spoil(request, Answer::file(request, &shard)));
    let (got, faults) = read(&server, hasty());
    assert_eq!(faults, []);
    assert!(got == pairs, "{} of {} pairs", got.len(), pairs.len());
    server
}

/// The same, but the shard must fail, with this detail; what came before is kept.
fn it_fails(
    detail: &str,
    spoil: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
) -> Server {
    let (shard, pairs) = noisy_shard(30);
    let server = Server::new(move |request| spoil(request, Answer::file(request, &shard)));
    let (got, faults) = read(&server, hasty());
    assert!(got.len() < pairs.len() && got == pairs[..got.len()], "{} pairs", got.len());
    let fault = faults.first().expect("no fault");
    assert_eq!(fault.reason, Reason::UnreadableShard);
    assert!(fault.detail.contains(detail), "{fault}");
    server
}

#[test]
fn a_good_server_is_asked_for_each_byte_once() {
    let server = all_arrive(|_, answer| answer);
    let mut next = 0;
    let mut ranges: Vec<_> = server.log().iter().map(|request| request.range().unwrap()).collect();
    ranges.sort();
    for (first, last) in ranges {
        assert_eq!(first, next);
        assert!(last - first < hasty().chunk_bytes as u64);
        next = last + 1;
    }
    assert_eq!(next, noisy_shard(30).0.len() as u64);
}

#[test]
fn a_broken_transfer_goes_on_at_its_byte() {
    // Every chunk breaks off three times, each time after 700 bytes.
    let server = all_arrive(|_, answer| match answer.body.len() {
        0..2500 => answer,
        _ => answer.send(700, Then::Close),
    });
    let (starts, last) = (server.starts(), noisy_shard(30).0.len() as u64 - 4096);
    let chunks = (512..last).step_by(4096);
    for first in chunks {
        assert!(
            starts.contains(&first) && starts.contains(&(first + 700)),
            "{first} was not resumed"
        );
    }
}

#[test]
fn stalls_end_after_the_idle_time() {
    // Before the headers, behind them, and in the middle.
    for (sent, then) in [(0, Then::Hang), (0, Then::Stall), (300, Then::Stall)] {
        all_arrive(move |request, answer| match request.range().unwrap().0 {
            0 | 4608 if request.nth == 0 => answer.send(sent, then),
            _ => answer,
        });
    }
}

#[test]
fn dropped_connections_and_busy_servers_are_asked_again() {
    all_arrive(|request, answer| match request.nth {
        0 => answer.send(0, Then::Drop),
        1 => Answer::new(503, "busy"),
        _ => answer,
    });
    for status in [408, 429, 500, 502, 504] {
        all_arrive(move |request, answer| match request.nth {
            0 => Answer::new(status, "later"),
            _ => answer,
        });
    }
}

#[test]
fn a_server_may_ask_for_a_pause() {
    let since = Instant::now();
    all_arrive(|request, answer| match (request.nth, request.range().unwrap().0) {
        (0, 0) => Answer::new(429, "").header("Retry-After", 1),
        _ => answer,
    });
    assert!(since.elapsed() >= Duration::from_secs(1));
    // But not for one beyond all patience.
    it_fails("gave up after 5s: the server answered 503", |_, _| {
        Answer::new(503, "").header("Retry-After", 3600)
    });
}

#[test]
fn what_is_not_there_is_not_asked_for_again() {
    for (status, name) in [(404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone")] {
        let server = it_fails(name, move |_, _| Answer::new(status, "secret page"));
        assert_eq!(server.log().len(), 1);
    }
    let server = it_fails("404 Not Found", |request, answer| match request.range() {
        Some((0, _)) => answer,
        _ => Answer::new(404, ""),
    });
    assert!(server.log().len() <= 1 + hasty().read_ahead);
}

#[test]
fn patience_has_an_end() {
    let server =
        it_fails("gave up after 4 tries: the server answered 503", |_, _| Answer::new(503, "busy"));
    assert_eq!(server.log().len(), 4);
    it_fails("gave up after 4 tries: no byte for 150ms", |request, answer| {
        match request.range().unwrap().0 {
            0 => answer,
            _ => answer.send(0, Then::Stall),
        }
    });
    it_fails("gave up after 4 tries: no answer for 650ms", |_, answer| answer.send(0, Then::Hang));
    // Always a byte in time, but never done.
    let (shard, _) = noisy_shard(3);
    let server = Server::new(move |request| {
        let slow = Then::Trickle(Duration::from_millis(50));
        Answer::file(request, &shard).send(usize::MAX, slow)
    });
    let options = SourceOptions { total_timeout: Duration::from_millis(700), ..hasty() };
    let (_, faults) = read(&server, options);
    assert!(faults[0].detail.contains("not done after 700ms"), "{}", faults[0]);
}

#[test]
fn nobody_there_is_a_fault() {
    let gone = Server::files(BTreeMap::new()).url("/a.tar");
    let (_, faults) = in_time(move || read_shard(&list(&gone, &hasty())[0]));
    assert!(faults[0].detail.contains("gave up after 4 tries"), "{}", faults[0]);
    assert!(faults[0].detail.contains("refused"), "{}", faults[0]);
    let unknown = "http://no-such-host.invalid/a.tar";
    let (_, faults) = in_time(move || read_shard(&list(unknown, &hasty())[0]));
    assert!(faults[0].detail.contains("failed to lookup address"), "{}", faults[0]);
}

#[test]
fn a_lost_shard_costs_entries_and_not_the_run() {
    let files = [0, 2].map(|n| (format!("/{n}.tar"), tar(&members(n * 5, n * 5 + 5))));
    let server = Server::files(files.into());
    let outcome = load(LoaderConfig { source: hasty(), ..plain(server.url("/{0..2}.tar")) });
    assert_eq!(outcome.error, None);
    assert_eq!(outcome.keys, [keys(0, 5), keys(10, 15)].concat());
    let [entry] = &outcome.entries[..] else { panic!("{:?}", outcome.entries) };
    assert_eq!(*entry.shard, *server.url("/1.tar"));
    assert_eq!(entry.detail, "the server answered 404 Not Found");
}

#[test]
fn stopping_does_not_wait_for_the_server() {
    let (shard, _) = noisy_shard(30);
    let server = Server::new(move |request| match request.range() {
        Some((0, _)) => Answer::file(request, &shard),
        _ => Answer::file(request, &shard).send(10, Then::Stall),
    });
    let source = SourceOptions { idle_timeout: Duration::from_secs(60), ..hasty() };
    let config = LoaderConfig { source, ..plain(server.url("/a.tar")) };
    in_time(move || {
        let epoch = Loader::new(config).unwrap().epoch(Position::default()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let since = Instant::now();
        drop(epoch);
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    });
}

#[test]
fn nothing_is_asked_for_once_nobody_reads() {
    let (shard, _) = noisy_shard(30);
    let server = Server::new(move |request| match request.range() {
        Some((0, _)) => Answer::file(request, &shard),
        _ => Answer::file(request, &shard).send(10, Then::Stall),
    });
    let (url, options) = (server.url("/a.tar"), hasty());
    in_time(move || {
        let shard = &list(&url, &options)[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), Arc::default()).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
    });
    std::thread::sleep(Duration::from_millis(50));
    let asked = server.log().len();
    std::thread::sleep(2 * hasty().idle_timeout);
    assert_eq!(server.log().len(), asked);
}

#[test]
fn what_is_skipped_at_the_start_is_not_fetched() {
    let (shard, _) = noisy_shard(60);
    let at = (shard.len() as u64 / 2) & !511;
    let rest = shard[at as usize..].to_vec();
    let server = Server::files([("/a.tar".into(), shard)].into());
    let url = server.url("/a.tar");
    let (skipped, got) = in_time(move || {
        let shard = &list(&url, &hasty())[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), Arc::default()).unwrap();
        let skipped = reader.skip(at).unwrap();
        assert_eq!(reader.remaining(), Some(rest.len() as u64));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        (skipped, got == rest)
    });
    assert!(got && skipped == at);
    for request in server.log() {
        let (first, last) = request.range().unwrap();
        assert!(first >= at || last < 512, "{first}-{last} lies before {at}");
    }
}

#[test]
fn a_resumed_epoch_goes_on_where_it_was() {
    let shards: Vec<_> = (0..3).map(|n| tar(&members(n * 40, n * 40 + 40))).collect();
    let files = (0..).zip(&shards).map(|(n, shard)| (format!("/{n}.tar"), shard.clone()));
    let server = Server::files(files.collect());
    let source = SourceOptions { chunk_bytes: 1024, ..hasty() };
    let config = LoaderConfig { source, ..plain(server.url("/{0..2}.tar")) };
    let whole = load(config.clone());
    assert_eq!(whole.keys, keys(0, 120));
    let before = server.log().len();
    let rest = load_from(config, whole.positions[17].clone());
    assert_eq!(rest.keys, whole.keys[72..]);
    assert_eq!(rest.hashes, whole.hashes[18..]);
    let log = server.log();
    let again = &log[before..];
    assert!(again.iter().all(|request| request.path() != "/0.tar"));
    let second = again.iter().filter(|request| request.path() == "/1.tar");
    let starts: Vec<_> = second.map(|request| request.range().unwrap().0).collect();
    let half = shards[1].len() as u64 / 2;
    assert!(starts.iter().all(|&first| first == 0 || first > half), "{starts:?}");
}

#[test]
fn no_more_is_fetched_ahead_than_allowed() {
    let (shard, _) = noisy_shard(60);
    let server = Server::files([("/a.tar".into(), shard)].into());
    let url = server.url("/a.tar");
    let options = hasty();
    let most = 1 + options.read_ahead;
    let reader = in_time(move || {
        let shard = &list(&url, &options)[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), Arc::default()).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        reader
    });
    assert!((2..=most).contains(&server.log().len()), "{}", server.log().len());
    drop(reader);
}

#[test]
fn far_skips_start_anew_and_near_ones_read_on() {
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i / 7) as u8).collect();
    let copy = bytes.clone();
    let server = Server::files([("/a.tar".into(), bytes)].into());
    let url = server.url("/a.tar");
    in_time(move || {
        let shard = &list(&url, &hasty())[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), Arc::default()).unwrap();
        let (mut at, mut buffer) = (0, [0; 100]);
        for step in [0, 3000, 5, 120_000, 9000, 40_000] {
            assert_eq!(reader.skip(step).unwrap(), step);
            at += step as usize;
            reader.read_exact(&mut buffer).unwrap();
            assert_eq!(buffer, copy[at..at + 100]);
            at += 100;
            assert_eq!(reader.remaining(), Some((copy.len() - at) as u64));
        }
        let left = (copy.len() - at) as u64;
        assert_eq!(reader.skip(u64::MAX).unwrap(), left);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    });
    let asked: u64 = server.log().iter().map(|r| r.range().map_or(0, |(a, b)| b - a + 1)).sum();
    assert!(asked < 100_000, "{asked} bytes");
}

#[test]
fn secrets_are_used_and_not_told() {
    let (shard, pairs) = noisy_shard(3);
    let server = Server::new(move |request| match request.target.as_str() {
        "/a.tar?sig=hush%2F&b=1" => Answer::file(request, &shard),
        _ => Answer::new(403, "go away"),
    });
    let host = server.host();
    let good = list(&format!("http://me:pass@{host}/a.tar?sig=hush%2F&b=1"), &hasty());
    assert_eq!(*good[0].name, format!("http://{host}/a.tar?…"));
    let (got, faults) = in_time(move || read_shard(&good[0]));
    assert!(faults.is_empty() && got == pairs, "{faults:?}");
    // printf me:pass | base64
    assert_eq!(server.log()[0].headers["authorization"], "Basic bWU6cGFzcw==");

    let outcome = {
        let good = format!("http://me:pass@{host}/a.tar?sig=hush%2F&b=1");
        let bad = format!("{good}::http://me:pass@{host}/b.tar?sig=hush");
        load(LoaderConfig { source: hasty(), ..plain(bad) })
    };
    let told = format!("{outcome:?}");
    assert!(told.contains("403 Forbidden") && told.contains("/b.tar?…"), "{told}");
    assert!(!told.contains("hush") && !told.contains("pass"), "{told}");
    let url = format!("http://me:pass@{host}/a/?sig=hush");
    for told in [
        format!("{:?}", list_shards("http://me:pass@:0/?sig=hush", &hasty()).unwrap_err()),
        format!("{:?}", list(&url, &hasty())),
    ] {
        assert!(!told.contains("hush") && !told.contains("pass"), "{told}");
    }
}

#[test]
fn sizes_are_part_of_the_fingerprint() {
    let server = |bytes: usize| {
        Server::new(move |request| match request.path() {
            "/a.tar" => Answer::file(request, &vec![7; bytes]),
            _ => Answer::new(404, ""),
        })
    };
    let print = |server: &Server| {
        let shards = list(&server.url("/{a,gone}.tar"), &hasty());
        in_time(move || fingerprint(&shards))
    };
    let one = server(5000);
    let first = print(&one);
    assert_eq!(print(&one), first);
    assert!(one.log().iter().all(|request| request.method == "HEAD"));
    let text = format!("{}\0{}\n{}\0-\n", one.url("/a.tar"), 5000, one.url("/gone.tar"));
    use sha2::{Digest, Sha256};
    let digest: String = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(first, digest[..16]);
}
